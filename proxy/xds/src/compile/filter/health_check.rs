//! `filters.http.health_check.v3.HealthCheck`.

use std::sync::Arc;

use http::HeaderValue;
use shika_data::model::{
    ClusterId,
    http_filter::{CheckCache, HealthCheckFilter, HttpFilterKind},
};
use shika_proto::envoy::extensions::filters::http::health_check::v3::HealthCheck;

use super::super::{Compiled, Context, Fault, Within, duration, matcher, required};

/// The filter.
pub(crate) fn filter(context: &mut Context<'_>, from: &HealthCheck) -> Compiled<HttpFilterKind> {
    let pass_through = required(&from.pass_through_mode, "pass_through_mode")?.value;
    let cache_time = duration(&from.cache_time, "cache_time")?.filter(|time| !time.is_zero());
    if !pass_through && cache_time.is_some() {
        return Err(Fault::new("cache_time", "cache_time_ms must not be set when path_through_mode is disabled"));
    }
    if pass_through && !from.cluster_min_healthy_percentages.is_empty() {
        return Err(Fault::new(
            "cluster_min_healthy_percentages",
            "cluster_min_healthy_percentages must not be set when path_through_mode is enabled",
        ));
    }
    let headers = from.headers.iter().enumerate().map(|(index, one)| matcher::header(one).at("headers", index));
    let headers = headers.collect::<Compiled<_>>()?;
    let mut least_healthy = Vec::with_capacity(from.cluster_min_healthy_percentages.len());
    for (name, percent) in &from.cluster_min_healthy_percentages {
        if !(0.0..=100.0).contains(&percent.value) {
            return Err(Fault::new("value", format!("value must be inside range [0, 100], not {}", percent.value)))
                .at_key("cluster_min_healthy_percentages", name);
        }
        // As in Envoy whole percents count.
        least_healthy.push((context.clusters.intern(name).0, percent.value as u32));
    }
    // In an order that does not depend on the map's.
    least_healthy.sort_by_key(|(id, _): &(ClusterId, u32)| id.index());
    let local_cluster = HeaderValue::from_str(context.local_cluster)
        .map_err(|_| Fault::new("", "the node's cluster (node.cluster) is not a valid header value"))?;
    Ok(HttpFilterKind::HealthCheck(Arc::new(HealthCheckFilter {
        headers,
        pass_through,
        cache: cache_time.map(CheckCache::new),
        least_healthy,
        local_cluster,
    })))
}
