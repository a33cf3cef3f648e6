//! HTTP filters, what routes say about them, and the network filters that need a file of their own.

pub(crate) mod call;
pub(crate) mod compressor;
pub(crate) mod cors;
pub(crate) mod ext_authz;
pub(crate) mod fault;
pub(crate) mod grpc_stats;
pub(crate) mod header_mutation;
pub(crate) mod health_check;
pub(crate) mod local_ratelimit;
pub(crate) mod lua;
pub(crate) mod network;
pub(crate) mod ratelimit;
pub(crate) mod rbac;

use std::{collections::HashMap, sync::Arc};

use shika_data::{
    model::{
        http_filter::{FilterSetting, FilterSettings, HttpFilter, HttpFilterKind},
        rbac::Principal,
    },
    stats::{CorsStats, Scope},
};
use shika_proto::{
    any,
    envoy::{
        config::route::v3::FilterConfig,
        extensions::{
            common::matching::v3::ExtensionWithMatcher,
            filters::{
                common::matcher::action::v3::SkipFilter,
                http::{
                    buffer::v3::{Buffer, BufferPerRoute, buffer_per_route},
                    compressor::v3::{Compressor, CompressorPerRoute},
                    cors::v3::{Cors, CorsPolicy},
                    ext_authz::v3::{ExtAuthz, ExtAuthzPerRoute},
                    fault::v3::HttpFault,
                    grpc_stats::v3::FilterConfig as GrpcStats,
                    header_mutation::v3::{HeaderMutation, HeaderMutationPerRoute},
                    health_check::v3::HealthCheck,
                    local_ratelimit::v3::LocalRateLimit,
                    lua::v3::Lua,
                    ratelimit::v3::{RateLimit, RateLimitPerRoute},
                    rbac::v3::{Rbac as HttpRbac, RbacPerRoute},
                    router::v3::Router,
                },
                network::http_connection_manager::v3::{self as proto, http_filter},
            },
        },
    },
    google::protobuf::Any,
    xds::r#type::matcher::v3::{
        Matcher,
        matcher::{MatcherType, OnMatch, on_match},
    },
};

use super::{Compiled, Context, Fault, Within, required, unpack};

/// All filters but the router, and the router.
pub(crate) fn filters(
    context: &mut Context<'_>,
    from: &[proto::HttpFilter],
    stat_prefix: &str,
) -> Compiled<(Vec<HttpFilter>, Router)> {
    let Some((last, others)) = from.split_last() else {
        return Err(Fault::new("http_filters", "at least one filter is required: the router"));
    };
    let mut filters = Vec::with_capacity(others.len());
    for (index, one) in others.iter().enumerate() {
        filters.push(filter(context, one, stat_prefix).at("http_filters", index)?);
    }
    let router = (|| {
        let content = content(last)?;
        if !any::is::<Router>(content) {
            return Err(Fault::new(
                "typed_config",
                format!("the last HTTP filter has to be the router, but {:?} is {}", last.name, content.type_url),
            ));
        }
        if last.disabled {
            return Err(Fault::new("disabled", "the router is the terminal filter, which cannot be off"));
        }
        unpack::<Router>(content).within("typed_config")
    })()
    .at("http_filters", others.len())?;
    Ok((filters, router))
}

fn content(from: &proto::HttpFilter) -> Compiled<&Any> {
    match &from.config_type {
        Some(http_filter::ConfigType::TypedConfig(content)) => Ok(content),
        Some(http_filter::ConfigType::ConfigDiscovery(_)) => {
            Err(Fault::new("config_discovery", "ECDS is not supported; use typed_config"))
        }
        None => Err(Fault::new("typed_config", "value is required")),
    }
}

fn filter(context: &mut Context<'_>, from: &proto::HttpFilter, stat_prefix: &str) -> Compiled<HttpFilter> {
    let content = content(from)?;
    let (kind, skip) = if any::is::<ExtensionWithMatcher>(content) {
        with_matcher(context, &unpack(content).within("typed_config")?, stat_prefix)
    } else {
        kind(context, content, stat_prefix).map(|kind| (kind, Box::default()))
    }
    .within("typed_config")?;
    if matches!(kind, HttpFilterKind::RouteKri(_)) && from.name != lua::NAME {
        // A script first asks for metadata under its filter's name.
        return Err(Fault::new("name", format!("the script is known under the name {} only", lua::NAME)));
    }
    Ok(HttpFilter { name: from.name.as_str().into(), disabled: from.disabled, skip, kind })
}

fn kind(context: &mut Context<'_>, content: &Any, stat_prefix: &str) -> Compiled<HttpFilterKind> {
    if any::is::<HttpRbac>(content) {
        Ok(HttpFilterKind::Rbac(Arc::new(rbac::http(context, &unpack(content)?, stat_prefix)?)))
    } else if any::is::<LocalRateLimit>(content) {
        let limit = local_ratelimit::http(context, &unpack(content)?)?;
        Ok(HttpFilterKind::LocalRateLimit(Arc::new(limit)))
    } else if any::is::<HttpFault>(content) {
        Ok(HttpFilterKind::Fault(Arc::new(fault::http(context, &unpack(content)?, stat_prefix)?)))
    } else if any::is::<Compressor>(content) {
        Ok(HttpFilterKind::Compressor(Arc::new(compressor::http(context, &unpack(content)?, stat_prefix)?)))
    } else if any::is::<Lua>(content) {
        lua::http(context, &unpack(content)?, stat_prefix).map(HttpFilterKind::RouteKri)
    } else if any::is::<Cors>(content) {
        Ok(HttpFilterKind::Cors(CorsStats::new(context.registry, scope(stat_prefix, "cors."))))
    } else if any::is::<HeaderMutation>(content) {
        let from: HeaderMutation = unpack(content)?;
        Ok(HttpFilterKind::HeaderMutation {
            all: Arc::new(header_mutation::mutations(context, &from.mutations)?),
            most_specific_wins: from.most_specific_header_mutations_wins,
        })
    } else if any::is::<GrpcStats>(content) {
        grpc_stats::filter(&unpack(content)?).map(HttpFilterKind::GrpcStats)
    } else if any::is::<Buffer>(content) {
        buffer_limit(&unpack(content)?).map(|limit| HttpFilterKind::Buffer { limit })
    } else if any::is::<RateLimit>(content) {
        Ok(HttpFilterKind::RateLimit(Arc::new(ratelimit::filter(context, &unpack(content)?)?)))
    } else if any::is::<ExtAuthz>(content) {
        Ok(HttpFilterKind::ExtAuthz(Arc::new(ext_authz::filter(context, &unpack(content)?, stat_prefix)?)))
    } else if any::is::<HealthCheck>(content) {
        health_check::filter(context, &unpack(content)?)
    } else if any::is::<Router>(content) {
        Err(Fault::new("", "the router must be the last HTTP filter"))
    } else {
        Err(Fault::new("", format!("HTTP filter {} is not supported", content.type_url)))
    }
}

/// A filter with a matcher in front, and what it is passed by for.
fn with_matcher(
    context: &mut Context<'_>,
    from: &ExtensionWithMatcher,
    stat_prefix: &str,
) -> Compiled<(HttpFilterKind, Box<[Principal]>)> {
    let extension = required(&from.extension_config, "extension_config")?;
    let inner = required(&extension.typed_config, "typed_config").within("extension_config")?;
    let kind = kind(context, inner, stat_prefix).within("typed_config").within("extension_config")?;
    let skip = match (&from.xds_matcher, &from.matcher) {
        (Some(matcher), _) => skipped(matcher).within("xds_matcher")?,
        (None, Some(_)) => return Err(Fault::new("matcher", "is not supported; use xds_matcher")),
        (None, None) => return Err(Fault::new("xds_matcher", "value is required")),
    };
    Ok((kind, skip))
}

/// The predicates of a matcher whose only action is `SkipFilter`: it does not matter which of them holds first.
fn skipped(from: &Matcher) -> Compiled<Box<[Principal]>> {
    let entries = match &from.matcher_type {
        None => &[][..],
        Some(MatcherType::MatcherList(list)) => list.matchers.as_slice(),
        Some(MatcherType::MatcherTree(_)) => {
            return Err(Fault::new("matcher_tree", "is not supported; use matcher_list"));
        }
    };
    let mut skipped = Vec::with_capacity(entries.len() + 1);
    for (index, entry) in entries.iter().enumerate() {
        let predicate = (|| {
            skips(required(&entry.on_match, "on_match")?).within("on_match")?;
            rbac::predicate(required(&entry.predicate, "predicate")?, 0).within("predicate")
        })();
        skipped.push(predicate.at("matchers", index).within("matcher_list")?);
    }
    if let Some(on_no_match) = &from.on_no_match {
        skips(on_no_match).within("on_no_match")?;
        skipped.push(Principal::Any);
    }
    Ok(skipped.into())
}

fn skips(from: &OnMatch) -> Compiled<()> {
    let action = match &from.on_match {
        Some(on_match::OnMatch::Action(action)) => action,
        Some(on_match::OnMatch::Matcher(_)) => return Err(Fault::new("matcher", "nested matchers are not supported")),
        None => return Err(Fault::new("on_match", "value is required")),
    };
    let content = required(&action.typed_config, "typed_config").within("action")?;
    if any::is::<SkipFilter>(content) {
        return Ok(());
    }
    Err(Fault::new("action.typed_config", format!("action {} is not supported; SkipFilter is", content.type_url)))
}

/// `typed_per_filter_config` of one level. A name that no filter has is as good as any: the table may serve several listeners.
pub(crate) fn settings(context: &Context<'_>, from: &HashMap<String, Any>) -> Compiled<FilterSettings> {
    if from.is_empty() {
        return Ok(FilterSettings::default());
    }
    let mut settings = Vec::with_capacity(from.len());
    for (name, content) in from {
        settings.push((name.as_str().into(), setting(context, content).at_key("typed_per_filter_config", name)?));
    }
    settings.sort_by(|a: &(Box<str>, FilterSetting), b| a.0.cmp(&b.0));
    Ok(FilterSettings(settings.into()))
}

fn setting(context: &Context<'_>, content: &Any) -> Compiled<FilterSetting> {
    if any::is::<FilterConfig>(content) {
        let config: FilterConfig = unpack(content)?;
        if config.disabled {
            return Ok(FilterSetting::Disabled);
        }
        let inner = required(&config.config, "config")?;
        if any::is::<FilterConfig>(inner) {
            return Err(Fault::new("config", "must be the setting of a filter, not another FilterConfig"));
        }
        return setting(context, inner).within("config");
    }
    if any::is::<LocalRateLimit>(content) {
        local_ratelimit::per_route(context, &unpack(content)?)
            .map(|limit| FilterSetting::LocalRateLimit(Arc::new(limit)))
    } else if any::is::<HttpFault>(content) {
        fault::settings(&unpack(content)?).map(|faults| FilterSetting::Fault(Arc::new(faults)))
    } else if any::is::<RbacPerRoute>(content) {
        rbac::per_route(&unpack(content)?).map(|rules| FilterSetting::Rbac(Arc::new(rules)))
    } else if any::is::<CompressorPerRoute>(content) {
        compressor::per_route(&unpack(content)?).map(FilterSetting::Compressor)
    } else if any::is::<CorsPolicy>(content) {
        cors::policy(&unpack(content)?).map(|policy| FilterSetting::Cors(Arc::new(policy)))
    } else if any::is::<HeaderMutationPerRoute>(content) {
        let from: HeaderMutationPerRoute = unpack(content)?;
        let mutations = header_mutation::mutations(context, &from.mutations)?;
        Ok(FilterSetting::HeaderMutation(Arc::new(mutations)))
    } else if any::is::<RateLimitPerRoute>(content) {
        ratelimit::per_route(context, &unpack(content)?).map(|own| FilterSetting::RateLimit(Arc::new(own)))
    } else if any::is::<ExtAuthzPerRoute>(content) {
        ext_authz::per_route(&unpack(content)?)
    } else if any::is::<BufferPerRoute>(content) {
        match unpack::<BufferPerRoute>(content)?.r#override {
            Some(buffer_per_route::Override::Disabled(true)) => Ok(FilterSetting::Disabled),
            Some(buffer_per_route::Override::Disabled(false)) => Err(Fault::new("disabled", "value must equal true")),
            Some(buffer_per_route::Override::Buffer(buffer)) => {
                buffer_limit(&buffer).within("buffer").map(|limit| FilterSetting::Buffer { limit })
            }
            None => Err(Fault::new("override", "value is required")),
        }
    } else {
        Err(Fault::new("", format!("settings of type {} are not supported for a route", content.type_url)))
    }
}

/// `Buffer.max_request_bytes`
fn buffer_limit(from: &Buffer) -> Compiled<u32> {
    match required(&from.max_request_bytes, "max_request_bytes")?.value {
        0 => Err(Fault::new("max_request_bytes", "value must be greater than 0")),
        limit => Ok(limit),
    }
}

/// A scope below a connection manager's.
fn scope(stat_prefix: &str, below: &str) -> Scope {
    Scope {
        prefix: format!("http.{stat_prefix}.{below}"),
        stem: format!("http.{below}"),
        tags: vec![("envoy.http_conn_manager_prefix", stat_prefix.to_owned())],
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
