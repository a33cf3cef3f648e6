//! Virtual probes: health checks of the workload that arrive at the proxy, which knows where they belong (Kuma
//! `pkg/xds/generator/probe_generator.go`). Proxies with a probe proxy of their own do not need them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Cidr, ProxyFeatures, Redirection, loopback_addresses};
use crate::resource::Networking;

/// The listener of virtual probes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbesPlan {
    /// Address to listen on.
    pub address: String,
    /// Port to listen on.
    pub port: u32,
    /// Whether to bind the address; otherwise only redirected traffic gets here.
    pub bind: bool,
    /// Whether workers share the port.
    pub reuse_port: bool,
    /// What is asked, and what for.
    pub routes: Vec<ProbeRoute>,
    /// Addresses that count as internal.
    pub internal: Vec<Cidr>,
}

/// One virtual probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbeRoute {
    /// Path that is asked for.
    pub path: String,
    /// Path of the workload.
    pub workload_path: String,
    /// Port of the workload.
    pub workload_port: u32,
    /// Cluster of the workload; absent if no inbound has that port, and the caller is sent to the workload itself.
    pub cluster: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Probes {
    port: u32,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    inbound_port: u32,
    inbound_path: String,
    path: String,
}

/// Plans the probes of a Dataplane. `clusters` are those of its inbounds by the port of the workload.
///
/// # Errors
/// What the Dataplane says of probes that cannot be read.
pub(super) fn probes(
    probes: &Value,
    networking: &Networking,
    (features, redirection): (&ProxyFeatures, Option<Redirection>),
    clusters: &BTreeMap<u32, String>,
) -> Result<Option<ProbesPlan>, String> {
    if features.app_probe_proxy {
        return Ok(None);
    }
    let Probes { port, endpoints } = Probes::deserialize(probes).map_err(|e| format!("probes: {e}"))?;
    if port == 0 {
        return Err("probes.port: the port is missing".to_owned());
    }
    let routes = endpoints.into_iter().map(|endpoint| ProbeRoute {
        path: without_query(&endpoint.path),
        workload_path: without_query(&endpoint.inbound_path),
        workload_port: endpoint.inbound_port,
        cluster: clusters.get(&endpoint.inbound_port).cloned(),
    });
    Ok(Some(ProbesPlan {
        address: networking.address.clone(),
        port,
        bind: redirection.is_none(),
        reuse_port: features.reuse_port,
        routes: routes.collect(),
        internal: loopback_addresses(features.ipv6),
    }))
}

/// Routes match paths without their query.
fn without_query(path: &str) -> String {
    path.split(['?', '#']).next().unwrap_or_default().to_owned()
}
