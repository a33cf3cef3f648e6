//! Listeners.

use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::{CidrRange, HttpProtocolOptions, TrafficDirection};
use shika_proto::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use shika_proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use shika_proto::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use shika_proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use shika_proto::envoy::extensions::filters::http::router::v3::Router;
use shika_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use shika_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, InternalAddressConfig, RouteSpecifier, SetCurrentClientCertDetails,
};
use shika_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use shika_proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use shika_proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use shika_proto::google::protobuf::{Any, BoolValue, UInt32Value};

use super::cluster::WORKLOAD_IDLE;
use super::{POLICY_METADATA, address, metadata, rbac, seconds, tags, tls};
use crate::mesh::Protocol;
use crate::plan::{Cidr, InboundPlan, InboundTls, OutboundPlan, stat_name};
use crate::policy::permission::Permission;

/// Kuma's default for streams to the application: how long one may be idle, seconds.
const WORKLOAD_STREAM_IDLE: u64 = 3600;
/// Name of a route that matches everything: base64 of the SHA-256 of `[{"path":{"value":"/","type":"PathPrefix"}}]` (Kuma).
const CATCH_ALL_ROUTE: &str = "9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo=";
/// Header with which Kuma marks the tags of the caller; never passed on to an application.
const TAGS_HEADER: &str = "x-kuma-tags";
/// Key of the listener metadata that holds its tags.
const TAGS_METADATA: &str = "io.kuma.tags";

/// Traffic for the application. With mutual TLS in STRICT mode one chain; in PERMISSIVE mode three: plain text, the application's own
/// TLS, and mesh TLS, which alone is subject to permissions.
pub(super) fn inbound(plan: &InboundPlan) -> Any {
    let mut chains = Vec::new();
    let mut listener_filters = Vec::new();
    match &plan.tls {
        None => chains.push(inbound_chain(plan, None)),
        Some(tls) if tls.permissive => {
            listener_filters.push(tls_inspector());
            let matches = [("raw_buffer", None, None), ("tls", None, None), ("tls", Some(tls::ALPN), Some(tls))];
            for (transport, alpn, tls) in matches {
                let mut chain = inbound_chain(plan, tls);
                chain.filter_chain_match = Some(FilterChainMatch {
                    transport_protocol: transport.to_owned(),
                    application_protocols: alpn.into_iter().map(str::to_owned).collect(),
                    ..FilterChainMatch::default()
                });
                chains.push(chain);
            }
        }
        Some(tls) => chains.push(inbound_chain(plan, Some(tls))),
    }
    pack(&Listener {
        name: plan.name.clone(),
        address: Some(address(&plan.address, plan.port)),
        bind_to_port: unbound(plan.bind),
        enable_reuse_port: Some(BoolValue { value: plan.reuse_port }),
        filter_chains: chains,
        listener_filters,
        metadata: metadata([(TAGS_METADATA, tags(&plan.tags))]),
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}

/// Tells by a connection's first bytes whether it is TLS, and for whom.
pub(super) fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&TlsInspector::default()))),
        ..ListenerFilter::default()
    }
}

fn inbound_chain(plan: &InboundPlan, tls: Option<&InboundTls>) -> FilterChain {
    let mut filters = Vec::new();
    match plan.protocol {
        Protocol::Tcp => {
            filters.extend(tls.map(|tls| network_rbac(&plan.name, &tls.mesh, &tls.permission)));
            filters.push(tcp_proxy(&plan.cluster, &plan.stat_prefix, Some(WORKLOAD_IDLE)));
        }
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => filters.push(inbound_http(plan, tls)),
    }
    FilterChain {
        filters,
        transport_socket: tls.map(|tls| tls::downstream(&tls.mesh)),
        metadata: tls.and_then(|tls| metadata([(POLICY_METADATA, rbac::explanation(&tls.mesh, &tls.permission))])),
        ..FilterChain::default()
    }
}

fn inbound_http(plan: &InboundPlan, tls: Option<&InboundTls>) -> Filter {
    let rbac = tls.map(|tls| http_rbac(&tls.mesh, &tls.permission));
    let route_name = if plan.host == plan.name { plan.name.clone() } else { format!("inbound:{}", plan.host) };
    let routes = RouteConfiguration {
        request_headers_to_remove: vec![TAGS_HEADER.to_owned()],
        ..catch_all(route_name, &plan.host, &plan.cluster, "")
    };
    let manager = HttpConnectionManager {
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: seconds(WORKLOAD_IDLE),
            ..HttpProtocolOptions::default()
        }),
        stream_idle_timeout: seconds(WORKLOAD_STREAM_IDLE),
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            uri: true,
            ..SetCurrentClientCertDetails::default()
        }),
        http_filters: rbac.into_iter().chain(common_http_filters(plan.protocol)).collect(),
        ..http_manager(&plan.stat_prefix, &plan.internal, routes)
    };
    network_filter("envoy.filters.network.http_connection_manager", pack(&manager))
}

/// Calls of the application. The destination's load balancer and TLS are the cluster's.
pub(super) fn outbound(plan: &OutboundPlan) -> Any {
    let filter = match plan.protocol {
        Protocol::Tcp => tcp_proxy(&plan.cluster, &stat_name(&plan.cluster), None),
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            let mut routes = catch_all(plan.route.clone(), &plan.service, &plan.cluster, CATCH_ALL_ROUTE);
            if plan.outside {
                rewrite_hosts(&mut routes);
            }
            let manager = HttpConnectionManager {
                normalize_path: Some(BoolValue { value: true }),
                http_filters: common_http_filters(plan.protocol).collect(),
                ..http_manager(&stat_name(&plan.service), &plan.internal, routes)
            };
            network_filter("envoy.filters.network.http_connection_manager", pack(&manager))
        }
    };
    pack(&Listener {
        name: plan.name.clone(),
        address: Some(address(&plan.address, plan.port)),
        bind_to_port: unbound(plan.bind),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        metadata: metadata([(TAGS_METADATA, tags(&plan.tags))]),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    })
}

/// A listener that is not bound is reached by redirected traffic only.
fn unbound(bind: bool) -> Option<BoolValue> {
    (!bind).then_some(BoolValue { value: false })
}

/// Answers requests by these routes, and does nothing else to them.
pub(super) fn static_http(stat_prefix: &str, internal: &[Cidr], routes: RouteConfiguration) -> Filter {
    let router = http_filter("envoy.filters.http.router", pack(&Router::default()));
    let manager = HttpConnectionManager { http_filters: vec![router], ..http_manager(stat_prefix, internal, routes) };
    network_filter("envoy.filters.network.http_connection_manager", pack(&manager))
}

pub(super) fn http_manager(stat_prefix: &str, internal: &[Cidr], routes: RouteConfiguration) -> HttpConnectionManager {
    let cidr_ranges = internal.iter().map(|cidr| CidrRange {
        address_prefix: cidr.address.to_owned(),
        prefix_len: Some(UInt32Value { value: cidr.prefix }),
    });
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        internal_address_config: Some(InternalAddressConfig {
            cidr_ranges: cidr_ranges.collect(),
            ..InternalAddressConfig::default()
        }),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..HttpConnectionManager::default()
    }
}

/// Every request of every host goes to one cluster, without a limit of time.
pub(super) fn catch_all(name: String, host: &str, cluster: &str, route_name: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: seconds(0),
        ..RouteAction::default()
    };
    let everything = route_match::PathSpecifier::Prefix("/".to_owned());
    let route = Route {
        name: route_name.to_owned(),
        r#match: Some(RouteMatch { path_specifier: Some(everything), ..RouteMatch::default() }),
        action: Some(route::Action::Route(action)),
        ..Route::default()
    };
    RouteConfiguration {
        name,
        validate_clusters: Some(BoolValue { value: false }),
        virtual_hosts: vec![VirtualHost {
            name: host.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

/// Requests go by the name of the host that they are sent to.
pub(super) fn rewrite_hosts(routes: &mut RouteConfiguration) {
    for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        if let Some(route::Action::Route(action)) = &mut route.action {
            action.host_rewrite_specifier =
                Some(route_action::HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true }));
        }
    }
}

pub(super) fn common_http_filters(protocol: Protocol) -> impl Iterator<Item = HttpFilter> {
    let grpc_stats = (protocol == Protocol::Grpc).then(|| {
        let stats = GrpcStats { emit_filter_state: true, ..GrpcStats::default() };
        http_filter("envoy.filters.http.grpc_stats", pack(&stats))
    });
    let router = http_filter("envoy.filters.http.router", pack(&Router::default()));
    grpc_stats.into_iter().chain([router])
}

pub(super) fn http_rbac(mesh: &str, permission: &Permission) -> HttpFilter {
    http_filter(
        "envoy.filters.http.rbac",
        pack(&HttpRbac {
            rules: Some(rbac::rules(mesh, permission)),
            shadow_rules: rbac::shadow_rules(mesh, permission),
            ..HttpRbac::default()
        }),
    )
}

pub(super) fn network_rbac(listener: &str, mesh: &str, permission: &Permission) -> Filter {
    network_filter(
        "envoy.filters.network.rbac",
        pack(&NetworkRbac {
            rules: Some(rbac::rules(mesh, permission)),
            shadow_rules: rbac::shadow_rules(mesh, permission),
            // The dot makes `<listener>.rbac.allowed` of it.
            stat_prefix: format!("{}.", stat_name(listener)),
            ..NetworkRbac::default()
        }),
    )
}

pub(super) fn tcp_proxy(cluster: &str, stat_prefix: &str, idle_timeout: Option<u64>) -> Filter {
    network_filter(
        "envoy.filters.network.tcp_proxy",
        pack(&TcpProxy {
            stat_prefix: stat_prefix.to_owned(),
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
            idle_timeout: idle_timeout.and_then(seconds),
            ..TcpProxy::default()
        }),
    )
}

pub(super) fn network_filter(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}
