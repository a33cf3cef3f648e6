//! `config.endpoint.v3.ClusterLoadAssignment`.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU8},
};

use shika_data::{
    model::{
        cluster::{Endpoint, EndpointAddress, EndpointSet, Health, Locality, Priority},
        health::CheckAt,
        labels::Labels,
    },
    stats::EndpointStats,
};
use shika_proto::envoy::{
    config::core::v3::{HealthStatus, Locality as ProtoLocality},
    config::endpoint::v3::{
        ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        locality_lb_endpoints::LbConfig,
    },
};

use super::{
    Compiled, Fault, Within,
    address::{self, Target},
    enumeration, health, labels, required, wrapped,
};

/// Namespace of metadata that adds TLVs to the PROXY protocol.
const PROXY_PROTOCOL: &str = "envoy.transport_sockets.proxy_protocol";

/// Highest priority number that Envoy takes.
const LAST_PRIORITY: u32 = 128;

/// An assignment, with names not resolved yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Assignment {
    /// `overprovisioning_factor`, percent.
    pub overprovisioning: u32,
    /// All hosts, in order.
    pub hosts: Vec<Host>,
    /// Weights of localities by priority, where there are any.
    pub localities: Vec<(u32, Arc<Locality>, u32)>,
}

/// One host of an assignment.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    target: Target,
    hostname: Option<Arc<str>>,
    weight: u32,
    locality: Arc<Locality>,
    priority: u32,
    health: Health,
    labels: Option<Arc<Labels>>,
    tls_labels: Option<Arc<Labels>>,
    check: Option<Box<CheckAt>>,
}

/// Addresses of names, as the resolver found them.
pub(crate) type Resolved = HashMap<Arc<str>, Vec<IpAddr>>;

/// Which forms of address a cluster's endpoints may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// IP addresses and Unix sockets: STATIC and EDS.
    Refused,
    /// Names and IP addresses: DNS clusters.
    Allowed,
}

/// An assignment.
pub(crate) fn assignment(from: &ClusterLoadAssignment, names: Names) -> Compiled<Assignment> {
    let overprovisioning = match &from.policy {
        None => 140,
        Some(policy) => match wrapped(&policy.overprovisioning_factor) {
            Some(0) => return Err(Fault::new("policy.overprovisioning_factor", "value must be greater than 0")),
            Some(factor) => factor,
            None => 140,
        },
    };
    let mut assignment = Assignment { overprovisioning, ..Assignment::default() };
    for (index, group) in from.endpoints.iter().enumerate() {
        locality(group, names, &mut assignment).at("endpoints", index)?;
    }
    Ok(assignment)
}

fn locality(group: &LocalityLbEndpoints, names: Names, assignment: &mut Assignment) -> Compiled<()> {
    if group.priority > LAST_PRIORITY {
        return Err(Fault::new(
            "priority",
            format!("value must be less than or equal to {LAST_PRIORITY}, not {}", group.priority),
        ));
    }
    let locality = Arc::new(group.locality.as_ref().map(self::place).unwrap_or_default());
    if let Some(weight) = wrapped(&group.load_balancing_weight) {
        if weight == 0 {
            return Err(Fault::new("load_balancing_weight", "value must be greater than or equal to 1"));
        }
        assignment.localities.push((group.priority, locality.clone(), weight));
    }
    let hosts = &mut assignment.hosts;
    let add = |endpoints: &[LbEndpoint], hosts: &mut Vec<Host>| -> Compiled<()> {
        hosts.reserve_exact(endpoints.len());
        for (index, endpoint) in endpoints.iter().enumerate() {
            hosts.push(host(endpoint, names, &locality, group.priority).at("lb_endpoints", index)?);
        }
        Ok(())
    };
    match &group.lb_config {
        None => add(&group.lb_endpoints, hosts),
        Some(LbConfig::LoadBalancerEndpoints(list)) => add(&list.lb_endpoints, hosts).within("load_balancer_endpoints"),
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            Err(Fault::new("leds_cluster_locality_config", "LEDS is not supported"))
        }
    }
}

fn place(from: &ProtoLocality) -> Locality {
    Locality {
        region: from.region.as_str().into(),
        zone: from.zone.as_str().into(),
        sub_zone: from.sub_zone.as_str().into(),
    }
}

fn host(from: &LbEndpoint, names: Names, locality: &Arc<Locality>, priority: u32) -> Compiled<Host> {
    let endpoint = match &from.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(HostIdentifier::EndpointName(_)) => {
            return Err(Fault::new("endpoint_name", "named endpoints are not supported"));
        }
        None => return Err(Fault::new("endpoint", "value is required")),
    };
    let target = address::target(required(&endpoint.address, "address").within("endpoint")?)
        .within("address")
        .within("endpoint")?;
    if let (Target::Name(name, _), Names::Refused) = (&target, names) {
        return Err(Fault::new(
            "endpoint.address.socket_address.address",
            format!(
                "malformed IP address: {name}. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"
            ),
        ));
    }
    let weight = match wrapped(&from.load_balancing_weight) {
        Some(0) => return Err(Fault::new("load_balancing_weight", "value must be greater than or equal to 1")),
        Some(weight) => weight,
        None => 1,
    };
    let health = match enumeration(from.health_status, "health_status")? {
        HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
        HealthStatus::Degraded => Health::Degraded,
        HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
    };
    let hostname = match (&target, endpoint.hostname.as_str()) {
        (Target::Name(name, _), "") => Some(name.as_str().into()),
        (_, "") => None,
        (_, name) => Some(name.into()),
    };
    let metadata = from.metadata.as_ref();
    let check = endpoint.health_check_config.as_ref().map(health::check_at).transpose();
    let check = check.within("health_check_config").within("endpoint")?;
    if metadata.is_some_and(|metadata| metadata.typed_filter_metadata.contains_key(PROXY_PROTOCOL)) {
        return Err(Fault::new(
            format!("metadata.typed_filter_metadata[{PROXY_PROTOCOL:?}]"),
            "TLVs of single endpoints are not supported; use added_tlvs of the cluster's transport socket",
        ));
    }
    Ok(Host {
        target,
        hostname,
        weight,
        locality: locality.clone(),
        priority,
        health,
        labels: labels::namespace(metadata, labels::LB),
        tls_labels: labels::namespace(metadata, labels::TRANSPORT_SOCKET_MATCH),
        check: check.flatten().map(Box::new),
    })
}

impl Assignment {
    /// Names to resolve.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().filter_map(|host| match &host.target {
            Target::Name(name, _) => Some(name.as_str()),
            Target::Ip(_) | Target::Unix(_) => None,
        })
    }

    /// The endpoints. Those that `old` has too stay the same `Arc`; `first_only` takes one address of each name (`LOGICAL_DNS`).
    pub fn endpoints(&self, resolved: &Resolved, first_only: bool, old: Option<&EndpointSet>) -> EndpointSet {
        let mut known: HashMap<(EndpointAddress, Option<Arc<str>>), &Arc<Endpoint>> = old
            .into_iter()
            .flat_map(|set| &set.priorities)
            .flat_map(|priority| &priority.endpoints)
            .map(|endpoint| ((endpoint.address.clone(), endpoint.hostname.clone()), endpoint))
            .collect();
        let mut priorities: Vec<Priority> = Vec::new();
        for host in &self.hosts {
            let addresses: Vec<EndpointAddress> = match &host.target {
                Target::Ip(address) => vec![EndpointAddress::Ip(*address)],
                Target::Unix(path) => vec![EndpointAddress::Unix(path.clone())],
                Target::Name(name, port) => {
                    let found = resolved.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
                    let found = if first_only { found.get(..1).unwrap_or_default() } else { found };
                    found.iter().map(|ip| EndpointAddress::Ip(SocketAddr::new(*ip, *port))).collect()
                }
            };
            let at = host.priority as usize;
            if priorities.len() <= at {
                priorities.reserve_exact(at + 1 - priorities.len());
                priorities.resize_with(at + 1, Priority::default);
            }
            let Some(priority) = priorities.get_mut(at) else { continue };
            for address in addresses {
                let same = known
                    .remove(&(address.clone(), host.hostname.clone()))
                    .filter(|old| old.weight == host.weight && old.locality == host.locality)
                    .filter(|old| old.labels == host.labels && old.tls_labels == host.tls_labels)
                    .filter(|old| old.check == host.check);
                let endpoint = match same {
                    Some(endpoint) => {
                        endpoint.health.store(host.health as u8, std::sync::atomic::Ordering::Relaxed);
                        endpoint.clone()
                    }
                    None => Arc::new(Endpoint {
                        address,
                        hostname: host.hostname.clone(),
                        weight: host.weight,
                        locality: host.locality.clone(),
                        labels: host.labels.clone(),
                        tls_labels: host.tls_labels.clone(),
                        monitor: Default::default(),
                        health: AtomicU8::new(host.health as u8),
                        checked: Default::default(),
                        failures: Default::default(),
                        check: host.check.clone(),
                        stats: EndpointStats::default(),
                    }),
                };
                priority.endpoints.push(endpoint);
            }
        }
        for (at, locality, weight) in &self.localities {
            if let Some(priority) = priorities.get_mut(*at as usize) {
                priority.localities.push((locality.clone(), *weight));
            }
        }
        for priority in &mut priorities {
            let first = priority.endpoints.first().map(|endpoint| endpoint.weight);
            priority.weighted = priority.endpoints.iter().any(|endpoint| Some(endpoint.weight) != first);
        }
        EndpointSet { priorities, overprovisioning: self.overprovisioning }
    }
}
