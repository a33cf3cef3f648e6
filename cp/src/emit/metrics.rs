//! Listeners at which Prometheus fetches metrics (Kuma `pkg/plugins/policies/meshmetric/plugin/xds/prometheus_configurer.go`,
//! `pkg/xds/generator/prometheus_endpoint_generator.go`).
//!
//! Beside a listener with TLS Kuma has a chain without, for connections that a TLS inspector recognises; as there is no inspector nothing
//! ever takes it, and it is left out here.

use shika_proto::any::pack;
use shika_proto::envoy::config::cluster::v3::Cluster;
use shika_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use shika_proto::envoy::config::core::v3::{
    self as core, CidrRange, DataSource, Pipe, TrafficDirection, TransportSocket, data_source,
};
use shika_proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use shika_proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use shika_proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, TlsCertificate,
};
use shika_proto::google::protobuf::{Any, BoolValue, UInt32Value};

use super::cluster::static_endpoint;
use super::outlier;
use super::{Emitter, address, listener, seconds, tls};
use crate::plan::{MetricsListener, MetricsPlan, MetricsTls, stat_name};
use crate::resource::CircuitBreaker;
use crate::xds::ResourceType;

/// The listeners and what is behind them.
pub(super) fn metrics(plan: &MetricsPlan, to: &mut Emitter<'_>) {
    to.add(ResourceType::Cluster, plan.cluster, &(&plan.work_dir, &plan.socket), || hijacker(plan));
    for listener in &plan.listeners {
        to.add(ResourceType::Listener, &listener.name, listener, || prometheus(listener, plan.cluster));
    }
}

fn hijacker(plan: &MetricsPlan) -> Any {
    let pipe = Pipe { path: super::bootstrap::socket(&plan.work_dir, &plan.socket), ..Pipe::default() };
    let pipe = core::Address { address: Some(core::address::Address::Pipe(pipe)) };
    let mut cluster = Cluster {
        name: plan.cluster.to_owned(),
        alt_stat_name: stat_name(plan.cluster),
        connect_timeout: seconds(5),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(static_endpoint(plan.cluster, pipe)),
        ..Cluster::default()
    };
    outlier::configure(&mut cluster, &CircuitBreaker::default());
    pack(&cluster)
}

fn prometheus(plan: &MetricsListener, cluster: &str) -> Any {
    let MetricsListener { name, address: ip, port, path, rewrite, tls, reuse_port, internal } = plan;
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        prefix_rewrite: rewrite.clone(),
        ..RouteAction::default()
    };
    let matches =
        RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix(path.clone())), ..RouteMatch::default() };
    let routes = RouteConfiguration {
        validate_clusters: Some(BoolValue { value: false }),
        virtual_hosts: vec![VirtualHost {
            name: name.clone(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                r#match: Some(matches),
                action: Some(route::Action::Route(action)),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let chain = FilterChain {
        filters: vec![listener::static_http(&stat_name(name), internal, routes)],
        ..FilterChain::default()
    };
    let filter_chains = match tls {
        MetricsTls::None => vec![chain],
        MetricsTls::Files { certificate, key } => {
            vec![FilterChain { transport_socket: Some(files(certificate, key)), ..chain }]
        }
        MetricsTls::Mesh { mesh } => {
            let own = FilterChainMatch { source_prefix_ranges: host_range(ip), ..FilterChainMatch::default() };
            vec![
                FilterChain { filter_chain_match: Some(own), ..chain.clone() },
                FilterChain { transport_socket: Some(tls::downstream(mesh)), ..chain },
            ]
        }
    };
    pack(&Listener {
        name: name.clone(),
        address: Some(address(ip, *port)),
        enable_reuse_port: Some(BoolValue { value: *reuse_port }),
        filter_chains,
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}

/// This address alone.
fn host_range(ip: &str) -> Vec<CidrRange> {
    let bits = if ip.contains(':') { 128 } else { 32 };
    vec![CidrRange { address_prefix: ip.to_owned(), prefix_len: Some(UInt32Value { value: bits }) }]
}

/// TLS with a certificate and key from files of the proxy's host.
fn files(certificate: &str, key: &str) -> TransportSocket {
    let file = |path: &str| {
        Some(DataSource { specifier: Some(data_source::Specifier::Filename(path.to_owned())), ..DataSource::default() })
    };
    let certificate =
        TlsCertificate { certificate_chain: file(certificate), private_key: file(key), ..TlsCertificate::default() };
    let common = CommonTlsContext { tls_certificates: vec![certificate], ..CommonTlsContext::default() };
    tls::socket(pack(&DownstreamTlsContext { common_tls_context: Some(common), ..DownstreamTlsContext::default() }))
}
