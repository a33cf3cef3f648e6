//! `/clusters`.
//!
//! Source: Envoy documentation, "Administration interface", and `envoy.admin.v3.Clusters`.

use std::{
    collections::BTreeSet,
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use serde_json::{Value, json};
use shika_data::model::cluster::{Cluster, Endpoint, EndpointAddress, Health, Limits};

use super::json;

/// `/clusters`, made cluster by cluster.
pub struct Listing {
    clusters: std::vec::IntoIter<Arc<Cluster>>,
    dynamic: BTreeSet<String>,
    json: bool,
    started: bool,
    finished: bool,
}

impl Listing {
    /// Of these clusters; those named in `dynamic` came from a control plane or a file.
    pub fn new(mut clusters: Vec<Arc<Cluster>>, dynamic: BTreeSet<String>, json: bool) -> Listing {
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        Listing { clusters: clusters.into_iter(), dynamic, json, started: false, finished: false }
    }

    /// Appends about `limit` bytes; `false` when there is no more.
    pub fn write(&mut self, out: &mut String, limit: usize) -> bool {
        if self.finished {
            return false;
        }
        while out.len() < limit {
            let Some(cluster) = self.clusters.next() else {
                if self.json {
                    out.push_str(if self.started { "\n ]\n}\n" } else { "{\n \"cluster_statuses\": []\n}\n" });
                }
                self.finished = true;
                break;
            };
            let dynamic = self.dynamic.contains(cluster.name.as_ref());
            if self.json {
                out.push_str(if self.started { ",\n  " } else { "{\n \"cluster_statuses\": [\n  " });
                json::pretty(&status(&cluster, dynamic), 2, out);
            } else {
                // Writing to a string does not fail.
                let _ = lines(out, &cluster, dynamic);
            }
            self.started = true;
        }
        true
    }
}

fn lines(out: &mut String, cluster: &Cluster, dynamic: bool) -> std::fmt::Result {
    let name = &cluster.name;
    writeln!(out, "{name}::observability_name::{name}")?;
    for (priority, limits) in [("default", &cluster.limits), ("high", &cluster.high_limits)] {
        writeln!(out, "{name}::{priority}_priority::max_connections::{}", limits.max_connections)?;
        writeln!(out, "{name}::{priority}_priority::max_pending_requests::{}", limits.max_pending)?;
        writeln!(out, "{name}::{priority}_priority::max_requests::{}", limits.max_requests)?;
        writeln!(out, "{name}::{priority}_priority::max_retries::{}", limits.max_retries)?;
    }
    writeln!(out, "{name}::added_via_api::{dynamic}")?;
    for (priority, endpoints) in cluster.endpoints.load().priorities.iter().enumerate() {
        for endpoint in &endpoints.endpoints {
            let head = format!("{name}::{}", endpoint.address);
            for (stat, value) in counters(endpoint) {
                writeln!(out, "{head}::{stat}::{value}")?;
            }
            writeln!(out, "{head}::hostname::{}", endpoint.hostname.as_deref().unwrap_or_default())?;
            let flags = flags(endpoint);
            let flags = if flags.is_empty() { "healthy" } else { &flags };
            writeln!(out, "{head}::health_flags::{flags}")?;
            writeln!(out, "{head}::weight::{}", endpoint.weight)?;
            writeln!(out, "{head}::region::{}", endpoint.locality.region)?;
            writeln!(out, "{head}::zone::{}", endpoint.locality.zone)?;
            writeln!(out, "{head}::sub_zone::{}", endpoint.locality.sub_zone)?;
            writeln!(out, "{head}::canary::false")?;
            writeln!(out, "{head}::priority::{priority}")?;
            writeln!(out, "{head}::success_rate::-1")?;
            writeln!(out, "{head}::local_origin_success_rate::-1")?;
        }
    }
    Ok(())
}

/// Why an endpoint is not healthy, in Envoy's order.
fn flags(endpoint: &Endpoint) -> String {
    let (checked, reported) = (&endpoint.checked, endpoint.reported_health());
    [
        ("/failed_active_hc", checked.has_failed()),
        ("/failed_outlier_check", endpoint.is_ejected()),
        ("/failed_eds_health", reported == Health::Unhealthy),
        ("/degraded_active_hc", checked.is_degraded()),
        ("/degraded_eds_health", reported == Health::Degraded),
        ("/pending_dynamic_removal", checked.is_removed()),
        ("/active_hc_timeout", checked.has_timed_out()),
    ]
    .into_iter()
    .filter_map(|(flag, is_set)| is_set.then_some(flag))
    .collect()
}

/// In the order of Envoy's text. Requests that wait are counted per cluster, so per host there are none.
fn counters(endpoint: &Endpoint) -> [(&'static str, u64); 9] {
    let stats = &endpoint.stats;
    [
        ("cx_active", stats.cx_active.load(Relaxed)),
        ("cx_connect_fail", stats.cx_connect_fail.load(Relaxed)),
        ("cx_total", stats.cx_total.load(Relaxed)),
        ("rq_active", stats.rq_active.load(Relaxed)),
        ("rq_error", stats.rq_error.load(Relaxed)),
        ("rq_pending_active", 0),
        ("rq_success", stats.rq_success.load(Relaxed)),
        ("rq_timeout", stats.rq_timeout.load(Relaxed)),
        ("rq_total", stats.rq_total.load(Relaxed)),
    ]
}

fn status(cluster: &Cluster, dynamic: bool) -> Value {
    let mut status = json!({"name": cluster.name.as_ref()});
    if dynamic {
        status["added_via_api"] = true.into();
    }
    let mut hosts = Vec::new();
    for (priority, endpoints) in cluster.endpoints.load().priorities.iter().enumerate() {
        hosts.extend(endpoints.endpoints.iter().map(|endpoint| host(endpoint, priority)));
    }
    if !hosts.is_empty() {
        status["host_statuses"] = hosts.into();
    }
    status["circuit_breakers"] =
        json!({"thresholds": [thresholds(&cluster.limits, None), thresholds(&cluster.high_limits, Some("HIGH"))]});
    status["observability_name"] = cluster.name.as_ref().into();
    if let shika_data::model::cluster::Discovery::Eds(service) = &cluster.discovery
        && **service != *cluster.name
    {
        status["eds_service_name"] = service.as_ref().into();
    }
    status
}

fn thresholds(limits: &Limits, priority: Option<&str>) -> Value {
    let mut value = serde_json::Map::new();
    if let Some(priority) = priority {
        value.insert("priority".into(), priority.into());
    }
    for (name, limit) in [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ] {
        value.insert(name.into(), limit.into());
    }
    value.into()
}

fn host(endpoint: &Endpoint, priority: usize) -> Value {
    let address = match &endpoint.address {
        EndpointAddress::Ip(address) => {
            json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
        }
        EndpointAddress::Unix(path) => json!({"pipe": {"path": path.display().to_string()}}),
    };
    let is_gauge = |name: &str| name.ends_with("_active");
    let mut stats = counters(endpoint);
    // In the message counters come first.
    stats.sort_by_key(|(name, _)| is_gauge(name));
    let stats: Vec<_> = stats
        .into_iter()
        .map(|(name, value)| {
            let mut stat = serde_json::Map::new();
            if is_gauge(name) {
                stat.insert("type".into(), "GAUGE".into());
            }
            if value > 0 {
                stat.insert("value".into(), value.to_string().into());
            }
            stat.insert("name".into(), name.into());
            Value::from(stat)
        })
        .collect();
    let health = match endpoint.reported_health() {
        Health::Healthy => "HEALTHY",
        Health::Degraded => "DEGRADED",
        Health::Unhealthy => "UNHEALTHY",
    };
    let mut status = json!({"address": address, "stats": stats, "health_status": {"eds_health_status": health}, "weight": endpoint.weight});
    for (name, is_set) in [
        ("failed_active_health_check", endpoint.checked.has_failed()),
        ("failed_outlier_check", endpoint.is_ejected()),
        ("failed_active_degraded_check", endpoint.checked.is_degraded()),
        ("pending_dynamic_removal", endpoint.checked.is_removed()),
        ("active_hc_timeout", endpoint.checked.has_timed_out()),
    ] {
        if is_set {
            status["health_status"][name] = true.into();
        }
    }
    if let Some(hostname) = endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
        status["hostname"] = hostname.into();
    }
    if priority > 0 {
        status["priority"] = priority.into();
    }
    let mut locality = serde_json::Map::new();
    for (name, value) in [
        ("region", &endpoint.locality.region),
        ("zone", &endpoint.locality.zone),
        ("sub_zone", &endpoint.locality.sub_zone),
    ] {
        if !value.is_empty() {
            locality.insert(name.into(), value.as_ref().into());
        }
    }
    status["locality"] = locality.into();
    status
}

/// The endpoints of a cluster as a `ClusterLoadAssignment`, for `/config_dump?include_eds`.
pub fn endpoint_config(cluster: &Cluster) -> Value {
    let set = cluster.endpoints.load();
    let mut groups = Vec::new();
    for (priority, endpoints) in set.priorities.iter().enumerate() {
        let mut localities: Vec<(Value, Vec<Value>)> = Vec::new();
        for endpoint in &endpoints.endpoints {
            let shown = host(endpoint, priority);
            let mut inner = json!({"address": shown["address"], "health_check_config": {}});
            if let Some(hostname) = shown.get("hostname") {
                inner["hostname"] = hostname.clone();
            }
            let item = json!({
                "endpoint": inner,
                "health_status": shown["health_status"]["eds_health_status"],
                "metadata": {},
                "load_balancing_weight": endpoint.weight,
            });
            match localities.iter_mut().find(|(locality, _)| *locality == shown["locality"]) {
                Some((_, items)) => items.push(item),
                None => localities.push((shown["locality"].clone(), vec![item])),
            }
        }
        groups.extend(localities.into_iter().map(|(locality, items)| {
            let mut group = json!({"locality": locality, "lb_endpoints": items});
            if priority > 0 {
                group["priority"] = priority.into();
            }
            group
        }));
    }
    json!({
        "@type": shika_proto::type_url::ENDPOINT,
        "cluster_name": cluster.name.as_ref(),
        "endpoints": groups,
        "policy": {"overprovisioning_factor": set.overprovisioning},
    })
}
