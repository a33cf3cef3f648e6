//! Redirected traffic: what takes it in, and what passes it on as it is (Kuma `pkg/xds/generator/transparent_proxy_generator.go` and
//! `direct_access_proxy_generator.go`).
//!
//! Unlike Kuma's, the listener for outbound traffic also serves inbound traffic, so that one redirection is enough: a connection to an
//! inbound's address is handed to the listener of that inbound as every connection is, and what else is for the proxy's own addresses
//! has a filter chain.

use std::net::IpAddr;

use shika_proto::any::pack;
use shika_proto::envoy::config::cluster::v3::Cluster;
use shika_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use shika_proto::envoy::config::core::v3::{
    self as core, BindConfig, CidrRange, SocketAddress, TrafficDirection, socket_address::PortSpecifier,
};
use shika_proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use shika_proto::google::protobuf::{Any, BoolValue, UInt32Value};

use super::cluster::CONNECT;
use super::listener::tcp_proxy;
use super::{Emitter, address, seconds, tls};
use crate::plan::{CapturePlan, DirectAccessPlan, Family, NO_PORT, host_port, stat_name};
use crate::xds::ResourceType;

/// The cluster that leads nowhere.
const NO_DESTINATION: &str = "self_transparentproxy_no_destination_inbound";
/// The cluster of instances that are reached past load balancing.
const DIRECT_ACCESS: &str = "direct_access";

/// Name of the listener, and of the cluster behind it, that passes on what no other listener wants.
pub(crate) fn passthrough(direction: &str, family: Family) -> String {
    format!("{direction}:passthrough:{}", family.suffix())
}

/// Adds what takes in redirected traffic.
pub(super) fn captures(plans: &[CapturePlan], to: &mut Emitter<'_>) {
    if plans.is_empty() {
        return;
    }
    to.add(ResourceType::Cluster, NO_DESTINATION, NO_DESTINATION, || {
        pack(&Cluster {
            name: NO_DESTINATION.to_owned(),
            alt_stat_name: NO_DESTINATION.to_owned(),
            connect_timeout: seconds(CONNECT),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            ..Cluster::default()
        })
    });
    for plan in plans {
        let (inbound, outbound) = (passthrough("inbound", plan.family), passthrough("outbound", plan.family));
        let source = plan.family.exempt_source();
        to.add(ResourceType::Cluster, &inbound, &(&inbound, source), || {
            original_destination(&inbound, Some(source), None)
        });
        if plan.passthrough {
            to.add(ResourceType::Cluster, &outbound, &outbound, || original_destination(&outbound, None, None));
        }
        // Without its cluster the listener resets connections: mesh traffic goes on, everything else ends there.
        to.add(ResourceType::Listener, &outbound, plan, || outbound_listener(plan, &outbound, &inbound));
        if let Some(port) = plan.inbound {
            to.add(ResourceType::Listener, &inbound, plan, || inbound_listener(plan, &inbound, port));
        }
    }
}

fn outbound_listener(plan: &CapturePlan, name: &str, inbound: &str) -> Any {
    let mut chains = Vec::new();
    if !plan.own.is_empty() {
        let cluster = if plan.ports.is_some() { NO_DESTINATION } else { inbound };
        chains.push(FilterChain {
            filter_chain_match: Some(FilterChainMatch {
                prefix_ranges: plan.own.iter().map(host_range).collect(),
                ..FilterChainMatch::default()
            }),
            ..chain(cluster, inbound)
        });
    }
    chains.push(chain(name, name));
    pack(&capture(name, plan.family, plan.outbound, chains, TrafficDirection::Outbound))
}

fn inbound_listener(plan: &CapturePlan, name: &str, port: u32) -> Any {
    let chains = match &plan.ports {
        None => vec![chain(name, name)],
        Some(ports) => ports
            .iter()
            .map(|&port| FilterChain {
                filter_chain_match: Some(FilterChainMatch {
                    destination_port: Some(UInt32Value { value: port }),
                    ..FilterChainMatch::default()
                }),
                ..chain(if port == NO_PORT { NO_DESTINATION } else { name }, name)
            })
            .collect(),
    };
    pack(&Listener {
        enable_reuse_port: Some(BoolValue { value: plan.reuse_port }),
        ..capture(name, plan.family, port, chains, TrafficDirection::Inbound)
    })
}

fn capture(name: &str, family: Family, port: u32, chains: Vec<FilterChain>, direction: TrafficDirection) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(address(family.unspecified(), port)),
        filter_chains: chains,
        use_original_dst: Some(BoolValue { value: true }),
        traffic_direction: direction.into(),
        ..Listener::default()
    }
}

fn chain(cluster: &str, name: &str) -> FilterChain {
    FilterChain { filters: vec![tcp_proxy(cluster, &stat_name(name), None)], ..FilterChain::default() }
}

fn host_range(address: &IpAddr) -> CidrRange {
    let length = if address.is_ipv4() { 32 } else { 128 };
    CidrRange { address_prefix: address.to_string(), prefix_len: Some(UInt32Value { value: length }) }
}

/// A cluster that connects to where the connection wanted to go.
fn original_destination(name: &str, source: Option<&str>, transport_socket: Option<core::TransportSocket>) -> Any {
    let alt_stat_name = stat_name(name);
    pack(&Cluster {
        alt_stat_name: if alt_stat_name == name { String::new() } else { alt_stat_name },
        name: name.to_owned(),
        connect_timeout: seconds(CONNECT),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        upstream_bind_config: source.map(bind_from),
        transport_socket,
        ..Cluster::default()
    })
}

/// Connections from this address.
pub(super) fn bind_from(source: &str) -> BindConfig {
    let source = SocketAddress {
        address: source.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    BindConfig { source_address: Some(source), ..BindConfig::default() }
}

/// Adds what reaches instances past load balancing.
pub(super) fn direct_access(plan: &DirectAccessPlan, to: &mut Emitter<'_>) {
    let mesh = plan.tls.as_deref();
    to.add(ResourceType::Cluster, DIRECT_ACCESS, &mesh, || {
        original_destination(DIRECT_ACCESS, None, mesh.map(tls::upstream_of_mesh))
    });
    for (ip, port) in &plan.endpoints {
        let name = format!("{DIRECT_ACCESS}_{}", host_port(ip, *port));
        to.add(ResourceType::Listener, &name, &(ip, port), || {
            let filter = tcp_proxy(DIRECT_ACCESS, &stat_name(&name), None);
            pack(&Listener {
                name: name.clone(),
                address: Some(address(ip, *port)),
                bind_to_port: Some(BoolValue { value: false }),
                filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
                traffic_direction: TrafficDirection::Outbound.into(),
                ..Listener::default()
            })
        });
    }
}
