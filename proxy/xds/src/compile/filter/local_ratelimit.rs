//! `filters.http.local_ratelimit.v3.LocalRateLimit`.

use std::time::Duration;

use http::StatusCode;
use shika_data::{
    model::{http_filter::LocalRateLimit, route::Fraction},
    stats::{HttpLocalRateLimitStats, Scope},
    token_bucket::TokenBucket,
};
use shika_proto::envoy::{
    config::core::v3::RuntimeFractionalPercent,
    extensions::{
        common::ratelimit::v3::XRateLimitHeadersRfcVersion, filters::http::local_ratelimit::v3::LocalRateLimit as Proto,
    },
    r#type::v3::{StatusCode as ProtoStatus, TokenBucket as ProtoBucket},
};

use super::super::{
    Compiled, Context, Fault, Within, duration, enumeration, header, non_empty, required, route, wrapped,
};

/// Shortest `fill_interval`.
const SHORTEST: Duration = Duration::from_millis(50);

/// A filter's, which limits nothing without a bucket: routes have theirs.
pub(crate) fn http(context: &Context<'_>, from: &Proto) -> Compiled<LocalRateLimit> {
    let bucket = from.token_bucket.as_ref().map(bucket).transpose().within("token_bucket")?;
    limit(context, from, bucket)
}

/// A route's, which needs a bucket.
pub(crate) fn per_route(context: &Context<'_>, from: &Proto) -> Compiled<LocalRateLimit> {
    let bucket = required(&from.token_bucket, "token_bucket").map_err(|fault| Fault {
        reason: "local rate limit token bucket must be set for per filter configs".into(),
        ..fault
    })?;
    limit(context, from, Some(self::bucket(bucket).within("token_bucket")?))
}

/// `type.v3.TokenBucket`
pub(super) fn bucket(from: &ProtoBucket) -> Compiled<TokenBucket> {
    if from.max_tokens == 0 {
        return Err(Fault::new("max_tokens", "value must be greater than 0"));
    }
    let per_fill = match wrapped(&from.tokens_per_fill) {
        None => 1,
        Some(0) => return Err(Fault::new("tokens_per_fill", "value must be greater than 0")),
        Some(tokens) => tokens,
    };
    let interval = duration(&from.fill_interval, "fill_interval")?
        .ok_or_else(|| Fault::new("fill_interval", "value is required"))?;
    if interval < SHORTEST {
        return Err(Fault::new("fill_interval", "local rate limit token bucket fill timer must be >= 50ms"));
    }
    Ok(TokenBucket::new(from.max_tokens, per_fill, interval))
}

fn limit(context: &Context<'_>, from: &Proto, bucket: Option<TokenBucket>) -> Compiled<LocalRateLimit> {
    let prefix = non_empty(&from.stat_prefix, "stat_prefix")?;
    let scope = Scope {
        prefix: format!("{prefix}.http_local_rate_limit."),
        stem: "http_local_rate_limit.".into(),
        tags: vec![("envoy.local_http_ratelimit_prefix", prefix.to_owned())],
    };
    let status = match &from.status {
        None => StatusCode::TOO_MANY_REQUESTS,
        Some(status) => {
            enumeration::<ProtoStatus>(status.code, "code").within("status")?;
            u16::try_from(status.code)
                .ok()
                .filter(|code| *code >= 400)
                .and_then(|code| StatusCode::from_u16(code).ok())
                .unwrap_or(StatusCode::TOO_MANY_REQUESTS)
        }
    };
    let draft_headers = match enumeration(from.enable_x_ratelimit_headers, "enable_x_ratelimit_headers")? {
        XRateLimitHeadersRfcVersion::Off => false,
        XRateLimitHeadersRfcVersion::DraftVersion03 => true,
    };
    Ok(LocalRateLimit {
        stats: HttpLocalRateLimitStats::new(context.registry, scope),
        bucket,
        enabled: share(&from.filter_enabled).within("filter_enabled")?,
        enforced: share(&from.filter_enforced).within("filter_enforced")?,
        status,
        resource_exhausted: from.rate_limited_as_resource_exhausted,
        response_headers: header::additions(context, &from.response_headers_to_add, "response_headers_to_add")?,
        request_headers: header::additions(
            context,
            &from.request_headers_to_add_when_not_enforced,
            "request_headers_to_add_when_not_enforced",
        )?,
        draft_headers,
    })
}

/// Unset is never.
fn share(from: &Option<RuntimeFractionalPercent>) -> Compiled<Fraction> {
    match from {
        None => Ok(Fraction { numerator: 0, denominator: 100 }),
        Some(share) => route::fraction(required(&share.default_value, "default_value")?).within("default_value"),
    }
}
