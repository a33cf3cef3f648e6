//! Health checks that are answered here.
//!
//! Source: Envoy "Health check" filter.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{
    super::{exchange::Exchange, head::Head, local_reply::Refusal},
    effects,
};
use crate::{
    error::ResponseFlag,
    model::{
        cluster::{Cluster, Health},
        http_filter::HealthCheckFilter,
    },
    snapshot::Snapshot,
    worker,
};

const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
const IMMEDIATE_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");

/// What the filter does to a response.
#[derive(Debug)]
pub(super) struct Checked {
    filter: Arc<HealthCheckFilter>,
    /// The request was a health check.
    check: bool,
}

/// Answers a health check, or lets it pass. The error is the answer.
pub(super) fn judge(
    filter: &Arc<HealthCheckFilter>,
    exchange: &mut Exchange,
    head: &Head,
    snapshot: &Snapshot,
) -> Result<(), Refusal> {
    let view = head.view();
    let check = filter.headers.iter().all(|matcher| view.header_matches(matcher));
    let failing = worker::health_failed();
    if !check {
        if failing {
            effects(exchange).checked.get_or_insert_with(|| Checked { filter: filter.clone(), check });
        }
        return Ok(());
    }
    exchange.health_check = true;
    effects(exchange).checked = Some(Checked { filter: filter.clone(), check });
    let cached = filter.cache.as_ref().and_then(|cache| cache.load());
    if filter.pass_through && !failing && cached.is_none() {
        return Ok(());
    }
    let (status, details) = match cached {
        _ if failing => (StatusCode::SERVICE_UNAVAILABLE, "health_check_failed"),
        Some((status, _)) => (StatusCode::from_u16(status).unwrap_or(StatusCode::OK), "health_check_cached"),
        None if filter.least_healthy.is_empty() => (StatusCode::OK, "health_check_ok"),
        None => {
            let mut verdicts =
                filter.least_healthy.iter().map(|(id, percent)| verdict(snapshot.cluster(*id), *percent));
            match verdicts.find_map(Result::err) {
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
                None => (StatusCode::OK, "health_check_ok_cluster_healthy"),
            }
        }
    };
    let mut answer = Refusal::new(status, "", details);
    if !status.is_success() {
        answer = answer.flag(ResponseFlag::FailedLocalHealthCheck);
    }
    if cached.is_some_and(|(_, degraded)| degraded && !failing) {
        answer.headers = Some(Box::new(HeaderMap::from_iter([(DEGRADED, HeaderValue::from_static(""))])));
    }
    Err(answer)
}

/// Whether enough of a cluster's endpoints are healthy; if not, why.
fn verdict(cluster: Option<&Arc<Cluster>>, percent: u32) -> Result<(), &'static str> {
    let Some(cluster) = cluster else { return Err("health_check_failed_no_cluster_found") };
    let endpoints = cluster.endpoints.load();
    let (mut total, mut healthy) = (0_u64, 0_u64);
    for endpoint in endpoints.priorities.iter().flat_map(|priority| &priority.endpoints) {
        total += 1;
        healthy += u64::from(endpoint.health() != Health::Unhealthy);
    }
    match total {
        0 if percent == 0 => Ok(()),
        0 => Err("health_check_failed_cluster_empty"),
        _ if healthy * 100 < total * u64::from(percent) => Err("health_check_failed_cluster_unhealthy"),
        _ => Ok(()),
    }
}

impl Checked {
    /// The response to a health check says which cluster was checked; others say if this proxy fails its checks.
    pub(super) fn respond(&self, status: u16, headers: &mut HeaderMap) {
        if self.check {
            if let Some(cache) = &self.filter.cache {
                cache.store(status, headers.contains_key(&DEGRADED));
            }
            headers.insert(CHECKED_CLUSTER, self.filter.local_cluster.clone());
        }
        if worker::health_failed() {
            headers.insert(IMMEDIATE_FAIL, HeaderValue::from_static("true"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{stats::Registry, testing};

    #[test]
    fn enough_endpoints_are_healthy() {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let endpoint = |health| testing::weighted_endpoint(address, 1, health);
        let cluster = |endpoints| Arc::new(testing::cluster(&Registry::new(1), 0, "c", endpoints));
        let half = cluster(vec![endpoint(Health::Healthy), endpoint(Health::Unhealthy)]);
        let empty = cluster(Vec::new());
        for (cluster, percent, expected) in [
            (Some(&half), 50, Ok(())),
            (Some(&half), 51, Err("health_check_failed_cluster_unhealthy")),
            (Some(&empty), 0, Ok(())),
            (Some(&empty), 1, Err("health_check_failed_cluster_empty")),
            (None, 0, Err("health_check_failed_no_cluster_found")),
        ] {
            assert_eq!(verdict(cluster, percent), expected, "{percent}");
        }
    }
}
