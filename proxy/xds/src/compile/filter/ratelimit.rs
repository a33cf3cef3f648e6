//! `filters.http.ratelimit.v3.RateLimit`, and the rules of routes: `config.route.v3.RateLimit`.

use std::time::Duration;

use http::StatusCode;
use shika_data::model::{
    ratelimit::{AsksFor, HostRules, RateAction, RateLimit, RateLimitOverride, RateLimitRule, RouteRules},
    route::Fraction,
};
use shika_proto::envoy::{
    config::{
        core::v3::RuntimeFractionalPercent,
        route::v3::{
            RateLimit as ProtoRule, RouteAction,
            rate_limit::{
                Action, HitsAddend, XRateLimitOption,
                action::{self, ActionSpecifier},
                r#override::OverrideSpecifier,
            },
        },
    },
    extensions::filters::http::ratelimit::v3::{
        RateLimit as Proto, RateLimitPerRoute,
        rate_limit::XRateLimitHeadersRfcVersion,
        rate_limit_per_route::{OverrideOptions, VhRateLimitsOptions},
    },
    r#type::v3::{HttpStatus, RateLimitUnit, StatusCode as ProtoStatus},
};

use super::{
    super::{
        Compiled, Context, Fault, Within, duration, enumeration, flag, header, matcher, non_empty, required, route,
        wrapped,
    },
    call,
};

/// Envoy's default for the answer of the service.
const TIMEOUT: Duration = Duration::from_millis(20);
/// Stages go up to here.
const LAST_STAGE: u32 = 10;

/// The filter.
pub(crate) fn filter(context: &mut Context<'_>, from: &Proto) -> Compiled<RateLimit> {
    let domain = non_empty(&from.domain, "domain")?.into();
    let service = required(&from.rate_limit_service, "rate_limit_service")?;
    let timeout = duration(&from.timeout, "timeout")?.unwrap_or(TIMEOUT);
    let service = (|| {
        call::version(service.transport_api_version)?;
        let mut service = call::required_grpc(context, &service.grpc_service, None)?;
        // The filter's timeout is the one that counts.
        service.timeout = (!timeout.is_zero()).then_some(timeout);
        Ok(service)
    })()
    .within("rate_limit_service")?;
    let asks_for = match from.request_type.as_str() {
        "" | "both" => AsksFor::Both,
        "internal" => AsksFor::Internal,
        "external" => AsksFor::External,
        other => {
            let reason = format!("value must be in list [internal external both], not {other:?}");
            return Err(Fault::new("request_type", reason));
        }
    };
    let draft_headers = match enumeration(from.enable_x_ratelimit_headers, "enable_x_ratelimit_headers")? {
        XRateLimitHeadersRfcVersion::Off => false,
        XRateLimitHeadersRfcVersion::DraftVersion03 => true,
    };
    Ok(RateLimit {
        domain,
        stage: stage(from.stage)?,
        asks_for,
        service,
        stat_prefix: match from.stat_prefix.as_str() {
            "" => "".into(),
            prefix => format!("{prefix}.").into(),
        },
        failure_mode_deny: from.failure_mode_deny,
        status_on_error: status(&from.status_on_error, 200, StatusCode::INTERNAL_SERVER_ERROR)
            .within("status_on_error")?,
        status: status(&from.rate_limited_status, 400, StatusCode::TOO_MANY_REQUESTS).within("rate_limited_status")?,
        resource_exhausted: from.rate_limited_as_resource_exhausted,
        draft_headers,
        ratelimited_header: !from.disable_x_envoy_ratelimited_header,
        response_headers: header::additions(context, &from.response_headers_to_add, "response_headers_to_add")?,
        enabled: share(&from.filter_enabled).within("filter_enabled")?,
        enforced: share(&from.filter_enforced).within("filter_enforced")?,
        rules: rules(context, &from.rate_limits, true)?,
    })
}

/// `RateLimitPerRoute`
pub(crate) fn per_route(context: &Context<'_>, from: &RateLimitPerRoute) -> Compiled<RateLimitOverride> {
    let host = match enumeration(from.vh_rate_limits, "vh_rate_limits")? {
        VhRateLimitsOptions::Override => HostRules::Fallback,
        VhRateLimitsOptions::Include => HostRules::Include,
        VhRateLimitsOptions::Ignore => HostRules::Ignore,
    };
    if enumeration::<OverrideOptions>(from.override_option, "override_option")? != OverrideOptions::Default {
        return Err(Fault::new("override_option", "is not supported; use vh_rate_limits"));
    }
    let domain = (!from.domain.is_empty()).then(|| from.domain.as_str().into());
    Ok(RateLimitOverride { host, rules: rules(context, &from.rate_limits, true)?, domain })
}

/// A route's rules; `None` without any.
pub(crate) fn of_route(context: &Context<'_>, from: &RouteAction) -> Compiled<Option<Box<RouteRules>>> {
    let include_host = flag(&from.include_vh_rate_limits, false);
    let rules = rules(context, &from.rate_limits, false)?;
    Ok((include_host || !rules.is_empty()).then(|| Box::new(RouteRules { rules, include_host })))
}

/// A virtual host's rules; `None` without any.
pub(crate) fn of_host(context: &Context<'_>, from: &[ProtoRule]) -> Compiled<Option<Box<[RateLimitRule]>>> {
    let rules = rules(context, from, false)?;
    Ok((!rules.is_empty()).then(|| rules.into()))
}

fn rules(context: &Context<'_>, from: &[ProtoRule], of_filter: bool) -> Compiled<Vec<RateLimitRule>> {
    from.iter().enumerate().map(|(index, one)| rule(context, one, of_filter).at("rate_limits", index)).collect()
}

fn rule(context: &Context<'_>, from: &ProtoRule, of_filter: bool) -> Compiled<RateLimitRule> {
    if of_filter && (from.stage.is_some() || !from.disable_key.is_empty()) {
        let field = if from.stage.is_some() { "stage" } else { "disable_key" };
        return Err(Fault::new(field, "is not supported in the rules of a filter"));
    }
    if !of_filter && from.hits_addend.is_some() {
        return Err(Fault::new("hits_addend", "is supported in the rules of a filter only (typed_per_filter_config)"));
    }
    if from.apply_on_stream_done {
        return Err(Fault::new("apply_on_stream_done", "the service is asked before a request only"));
    }
    if enumeration::<XRateLimitOption>(from.x_ratelimit_option, "x_ratelimit_option")? != XRateLimitOption::Unspecified
    {
        return Err(Fault::new("x_ratelimit_option", "is not supported; use enable_x_ratelimit_headers of the filter"));
    }
    if from.actions.is_empty() {
        return Err(Fault::new("actions", "value must contain at least 1 item(s)"));
    }
    let limit = match from.limit.as_ref().map(|limit| &limit.override_specifier) {
        None => None,
        Some(Some(OverrideSpecifier::RateLimit(limit))) => {
            let unit = enumeration::<RateLimitUnit>(limit.unit, "unit").within("rate_limit").within("limit")?;
            Some((limit.requests_per_unit, unit as u32))
        }
        Some(Some(OverrideSpecifier::DynamicMetadata(_))) => {
            return Err(Fault::new("limit.dynamic_metadata", "is not supported; use rate_limit"));
        }
        Some(None) => return Err(Fault::new("limit.override_specifier", "value is required")),
    };
    let actions = from.actions.iter().enumerate().map(|(index, one)| action(context, one).at("actions", index));
    Ok(RateLimitRule {
        stage: stage(wrapped(&from.stage).unwrap_or(0))?,
        actions: actions.collect::<Compiled<_>>()?,
        limit,
        hits: from.hits_addend.as_ref().map(hits).transpose().within("hits_addend")?,
    })
}

fn hits(from: &HitsAddend) -> Compiled<(u64, bool)> {
    if !from.format.is_empty() {
        return Err(Fault::new("format", "is not supported; use number"));
    }
    match &from.number {
        Some(number) if number.value > 1_000_000_000 => {
            Err(Fault::new("number", "value must be less than or equal to 1000000000"))
        }
        Some(number) => Ok((number.value, from.is_negative_hits)),
        None => Err(Fault::new("number", "value is required")),
    }
}

fn stage(from: u32) -> Compiled<u32> {
    if from > LAST_STAGE {
        return Err(Fault::new("stage", format!("value must be less than or equal to {LAST_STAGE}, not {from}")));
    }
    Ok(from)
}

fn action(context: &Context<'_>, from: &Action) -> Compiled<RateAction> {
    let or = |key: &str, default: &str| -> Box<str> { if key.is_empty() { default.into() } else { key.into() } };
    match &from.action_specifier {
        None => Err(Fault::new("action_specifier", "value is required")),
        Some(ActionSpecifier::SourceCluster(_)) => {
            Ok(RateAction::Constant { key: "source_cluster".into(), value: context.local_cluster.into() })
        }
        Some(ActionSpecifier::DestinationCluster(_)) => Ok(RateAction::DestinationCluster),
        Some(ActionSpecifier::RequestHeaders(from)) => (|| {
            Ok(RateAction::Header {
                name: matcher::header_ref(&from.header_name, "header_name")?,
                key: non_empty(&from.descriptor_key, "descriptor_key")?.into(),
                skip_if_absent: from.skip_if_absent,
            })
        })()
        .within("request_headers"),
        Some(ActionSpecifier::QueryParameters(from)) => (|| {
            Ok(RateAction::Query {
                name: non_empty(&from.query_parameter_name, "query_parameter_name")?.into(),
                key: non_empty(&from.descriptor_key, "descriptor_key")?.into(),
                skip_if_absent: from.skip_if_absent,
            })
        })()
        .within("query_parameters"),
        Some(ActionSpecifier::RemoteAddress(_)) => Ok(RateAction::RemoteAddress),
        Some(ActionSpecifier::MaskedRemoteAddress(from)) => masked(from).within("masked_remote_address"),
        Some(ActionSpecifier::GenericKey(from)) => {
            let value = non_empty(&from.descriptor_value, "descriptor_value").within("generic_key")?.into();
            Ok(RateAction::Constant { key: or(&from.descriptor_key, "generic_key"), value })
        }
        Some(ActionSpecifier::HeaderValueMatch(from)) => (|| {
            if from.headers.is_empty() {
                return Err(Fault::new("headers", "value must contain at least 1 item(s)"));
            }
            let headers = from.headers.iter().enumerate().map(|(index, one)| matcher::header(one).at("headers", index));
            Ok(RateAction::HeaderMatch {
                key: or(&from.descriptor_key, "header_match"),
                value: non_empty(&from.descriptor_value, "descriptor_value")?.into(),
                expect: flag(&from.expect_match, true),
                headers: headers.collect::<Compiled<_>>()?,
            })
        })()
        .within("header_value_match"),
        Some(ActionSpecifier::QueryParameterValueMatch(from)) => (|| {
            if from.query_parameters.is_empty() {
                return Err(Fault::new("query_parameters", "value must contain at least 1 item(s)"));
            }
            let parameters = from
                .query_parameters
                .iter()
                .enumerate()
                .map(|(index, one)| matcher::query(one).at("query_parameters", index));
            Ok(RateAction::QueryMatch {
                key: or(&from.descriptor_key, "query_match"),
                value: non_empty(&from.descriptor_value, "descriptor_value")?.into(),
                expect: flag(&from.expect_match, true),
                parameters: parameters.collect::<Compiled<_>>()?,
            })
        })()
        .within("query_parameter_value_match"),
        Some(ActionSpecifier::Metadata(_)) => Err(Fault::new("metadata", "is not supported")),
        Some(ActionSpecifier::DynamicMetadata(_)) => Err(Fault::new("dynamic_metadata", "is not supported")),
        Some(ActionSpecifier::Extension(_)) => Err(Fault::new("extension", "is not supported")),
        Some(ActionSpecifier::RemoteAddressMatch(_)) => Err(Fault::new("remote_address_match", "is not supported")),
    }
}

fn masked(from: &action::MaskedRemoteAddress) -> Compiled<RateAction> {
    let length = |value, field, most: u8| match wrapped(value) {
        None => Ok(most),
        Some(length) => u8::try_from(length)
            .ok()
            .filter(|length| *length <= most)
            .ok_or_else(|| Fault::new(field, format!("value must be less than or equal to {most}, not {length}"))),
    };
    Ok(RateAction::MaskedRemoteAddress {
        v4: length(&from.v4_prefix_mask_len, "v4_prefix_mask_len", 32)?,
        v6: length(&from.v6_prefix_mask_len, "v6_prefix_mask_len", 128)?,
    })
}

/// A code of at least `least`; as in Envoy a smaller one is as good as none.
pub(super) fn status(from: &Option<HttpStatus>, least: u16, default: StatusCode) -> Compiled<StatusCode> {
    let Some(from) = from else { return Ok(default) };
    enumeration::<ProtoStatus>(from.code, "code")?;
    let code = u16::try_from(from.code).ok().filter(|code| *code >= least);
    Ok(code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(default))
}

/// Unset is always.
pub(super) fn share(from: &Option<RuntimeFractionalPercent>) -> Compiled<Fraction> {
    match from {
        None => Ok(Fraction { numerator: 100, denominator: 100 }),
        Some(share) => route::fraction(required(&share.default_value, "default_value")?).within("default_value"),
    }
}
