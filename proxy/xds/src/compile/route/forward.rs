//! `RouteAction`: where a request is sent, and how.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use shika_data::model::{
    labels::Labels,
    route::{ClusterChoice, Forward, HostRewrite, MaxStreamDuration, Mirror, PathRewrite, WeightedCluster},
};
use shika_proto::envoy::config::{
    core::v3::RoutingPriority,
    route::v3::{
        self as proto,
        route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy},
        weighted_cluster::cluster_weight,
    },
};

use super::{
    super::{
        Compiled, Context, Fault, Within, bound, duration, enumeration, filter, flag, hash,
        header::{self, Mutations},
        labels, matcher, non_empty, required, retry, wrapped,
    },
    Table, cluster, fraction,
};

/// Envoy's default route timeout.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What a route has from its virtual host (or the table) unless it says otherwise itself.
pub(super) struct Host<'a> {
    pub(super) retry: Option<&'a proto::RetryPolicy>,
    pub(super) mirrors: &'a [RequestMirrorPolicy],
    pub(super) buffer_limit: Option<u32>,
}

/// `RouteAction`; how much may be buffered is the route's to say.
pub(super) fn forward(
    context: &mut Context<'_>,
    table: &Table<'_>,
    host: &Host<'_>,
    from: &proto::RouteAction,
) -> Compiled<Forward> {
    let asked = labels::namespace(from.metadata_match.as_ref(), labels::LB);
    let clusters = match &from.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            let (id, name) = cluster(context, table, non_empty(name, "cluster")?).within("cluster")?;
            ClusterChoice::One { id, name }
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => ClusterChoice::Header {
            name: matcher::header_name(name, "cluster_header")?,
            names: context.clusters.shared(),
        },
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            self::weighted(context, table, asked.as_deref(), weighted).within("weighted_clusters")?
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
            return Err(Fault::new("cluster_specifier_plugin", "is not supported"));
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            return Err(Fault::new("inline_cluster_specifier_plugin", "is not supported"));
        }
        None => return Err(Fault::new("cluster_specifier", "value is required")),
    };
    let cluster_not_found = match enumeration(from.cluster_not_found_response_code, "cluster_not_found_response_code")?
    {
        ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
        ClusterNotFoundResponseCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let path_rewrite = match (from.prefix_rewrite.as_str(), &from.regex_rewrite) {
        ("", None) => None,
        (prefix, None) => Some(PathRewrite::Prefix(prefix.into())),
        ("", Some(rewrite)) => {
            let (pattern, substitution) = matcher::substitution(rewrite).within("regex_rewrite")?;
            Some(PathRewrite::Regex { pattern, substitution })
        }
        _ => return Err(Fault::new("regex_rewrite", "Cannot specify both prefix rewrite and regex rewrite")),
    };
    let host_rewrite = match &from.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => {
            Some(HostRewrite::Literal(header_value(text, "host_rewrite_literal")?))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(value)) => value.value.then_some(HostRewrite::Auto),
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            Some(HostRewrite::Header(matcher::header_name(name, "host_rewrite_header")?))
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => {
            let (pattern, substitution) = matcher::substitution(rewrite).within("host_rewrite_path_regex")?;
            Some(HostRewrite::PathRegex { pattern, substitution })
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            return Err(Fault::new("host_rewrite", "is not supported; use host_rewrite_literal"));
        }
    };
    let max_stream_duration = match &from.max_stream_duration {
        None => None,
        Some(limits) => Some(stream_duration(limits).within("max_stream_duration")?),
    };
    let timeout = bound(&from.timeout, "timeout", Some(TIMEOUT))?;
    let mut upgrades = Vec::with_capacity(from.upgrade_configs.len());
    for upgrade in &from.upgrade_configs {
        upgrades.push((upgrade.upgrade_type.to_ascii_lowercase().into(), flag(&upgrade.enabled, true)));
    }
    Ok(Forward {
        clusters,
        cluster_not_found,
        // As in Envoy (`RouteEntry::usingNewTimeouts`): the one takes the place of the other, set or not.
        timeout: timeout.filter(|_| max_stream_duration.is_none()),
        idle_timeout: switch(&from.idle_timeout, "idle_timeout")?,
        max_stream_duration: max_stream_duration.map(Box::new),
        path_rewrite: path_rewrite.map(Box::new),
        host_rewrite: host_rewrite.map(Box::new),
        append_forwarded_host: from.append_x_forwarded_host,
        upgrades,
        high_priority: match enumeration(from.priority, "priority")? {
            RoutingPriority::Default => false,
            RoutingPriority::High => true,
        },
        retry: match (&from.retry_policy, host.retry) {
            (Some(policy), _) => retry::policy(policy).within("retry_policy")?,
            // Refused with the virtual host, if it is to be refused.
            (None, Some(policy)) => retry::policy(policy)?,
            (None, None) => None,
        }
        .map(Box::new),
        buffer_limit: None,
        labels: asked,
        hash: hash::policies(&from.hash_policy)?,
        mirrors: mirrors(context, table, host, &from.request_mirror_policies)?,
        rate_limits: filter::ratelimit::of_route(context, from)?,
    })
}

fn mirrors(
    context: &mut Context<'_>,
    table: &Table<'_>,
    host: &Host<'_>,
    from: &[RequestMirrorPolicy],
) -> Compiled<Vec<Mirror>> {
    let from = if from.is_empty() { host.mirrors } else { from };
    let mut mirrors = Vec::with_capacity(from.len());
    for (index, one) in from.iter().enumerate() {
        let mirror = (|| {
            let (cluster, name) = cluster(context, table, non_empty(&one.cluster, "cluster")?).within("cluster")?;
            let fraction = match one.runtime_fraction.as_ref() {
                None => None,
                Some(share) => Some(
                    required(&share.default_value, "default_value")
                        .and_then(|value| fraction(value).within("default_value"))
                        .within("runtime_fraction")?,
                ),
            };
            Ok(Mirror { cluster, name, fraction, suffix: !one.disable_shadow_host_suffix_append })
        })();
        mirrors.push(mirror.at("request_mirror_policies", index)?);
    }
    Ok(mirrors)
}

fn stream_duration(from: &proto::route_action::MaxStreamDuration) -> Compiled<MaxStreamDuration> {
    Ok(MaxStreamDuration {
        longest: switch(&from.max_stream_duration, "max_stream_duration")?,
        grpc_most: duration(&from.grpc_timeout_header_max, "grpc_timeout_header_max")?,
        grpc_offset: duration(&from.grpc_timeout_header_offset, "grpc_timeout_header_offset")?.unwrap_or_default(),
    })
}

/// Unset leaves the outer limit, `0s` turns it off.
fn switch(value: &Option<shika_proto::google::protobuf::Duration>, field: &str) -> Compiled<Option<Option<Duration>>> {
    Ok(duration(value, field)?.map(|limit| Some(limit).filter(|limit| !limit.is_zero())))
}

pub(super) fn header_value(text: &str, field: &str) -> Compiled<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| Fault::new(field, "is not a valid header value"))
}

fn weighted(
    context: &mut Context<'_>,
    table: &Table<'_>,
    asked: Option<&Labels>,
    from: &proto::WeightedCluster,
) -> Compiled<ClusterChoice> {
    if from.clusters.is_empty() {
        return Err(Fault::new("clusters", "value must contain at least 1 item(s)"));
    }
    let mut clusters = Vec::with_capacity(from.clusters.len());
    let mut total: u32 = 0;
    for (index, one) in from.clusters.iter().enumerate() {
        let cluster = weight(context, table, asked, one).at("clusters", index)?;
        total = total
            .checked_add(cluster.weight)
            .ok_or_else(|| Fault::new("clusters", "The sum of weights of all weighted clusters exceeds 4294967295"))?;
        clusters.push(cluster);
    }
    if total == 0 {
        return Err(Fault::new("clusters", "Sum of weights in the weighted_cluster must be greater than 0."));
    }
    if let Some(wanted) = wrapped(&from.total_weight)
        && wanted != total
    {
        return Err(Fault::new(
            "total_weight",
            format!("Sum of weights in the weighted_cluster must equal {wanted}, but is {total}"),
        ));
    }
    Ok(ClusterChoice::Weighted { clusters, total })
}

fn weight(
    context: &mut Context<'_>,
    table: &Table<'_>,
    asked: Option<&Labels>,
    from: &proto::weighted_cluster::ClusterWeight,
) -> Compiled<WeightedCluster> {
    let (id, name) = cluster(context, table, non_empty(&from.name, "name")?).within("name")?;
    let host_rewrite = match &from.host_rewrite_specifier {
        None => None,
        Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(text)) => {
            Some(header_value(text, "host_rewrite_literal")?)
        }
    };
    Ok(WeightedCluster {
        id,
        name,
        weight: wrapped(&from.weight).unwrap_or(0),
        labels: match (asked, labels::namespace(from.metadata_match.as_ref(), labels::LB)) {
            (Some(asked), Some(own)) => Some(Arc::new(asked.clone().with(&own))),
            (Some(asked), None) => Some(Arc::new(asked.clone())),
            (None, own) => own,
        },
        host_rewrite,
        request_headers: header::mutations(
            context,
            Mutations { side: "request", add: &from.request_headers_to_add, remove: &from.request_headers_to_remove },
        )?,
        response_headers: header::mutations(
            context,
            Mutations {
                side: "response",
                add: &from.response_headers_to_add,
                remove: &from.response_headers_to_remove,
            },
        )?,
        filters: filter::settings(context, &from.typed_per_filter_config)?,
    })
}
