//! Readiness and the admin interface on the proxy's own address (Kuma `pkg/xds/generator/admin_proxy_generator.go`).
//!
//! Unlike Kuma's listener this one has no filter chain for a control plane with a certificate of its own, as this control plane does not
//! call proxies: it offers `/ready`, and nothing else.

use shika_proto::any::pack;
use shika_proto::envoy::config::cluster::v3::Cluster;
use shika_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use shika_proto::envoy::config::core::v3::{self as core, Pipe, TrafficDirection};
use shika_proto::envoy::config::listener::v3::{FilterChain, Listener};
use shika_proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use shika_proto::google::protobuf::{Any, BoolValue};

use super::cluster::{CONNECT, static_endpoint};
use super::{Emitter, address, listener, seconds};
use crate::plan::{AdminPlan, AdminTarget, stat_name};
use crate::xds::ResourceType;

/// Name of the listener and of the admin interface's cluster.
const ADMIN: &str = "kuma:envoy:admin";
/// Name of the readiness' cluster.
const READINESS: &str = "kuma:readiness";

/// Adds the clusters, and the listener if there is a place for one.
pub(super) fn admin(plan: &AdminPlan, to: &mut Emitter<'_>) {
    to.add(ResourceType::Cluster, ADMIN, &plan.admin, || match &plan.admin {
        AdminTarget::Tcp(ip, port) => cluster(ADMIN, address(ip, *port)),
        AdminTarget::Socket(path) => {
            let pipe = Pipe { path: path.clone(), ..Pipe::default() };
            cluster(ADMIN, core::Address { address: Some(core::address::Address::Pipe(pipe)) })
        }
    });
    let (ip, port) = &plan.readiness;
    to.add(ResourceType::Cluster, READINESS, &plan.readiness, || cluster(READINESS, address(ip, *port)));
    if let Some((ip, port)) = &plan.listen {
        to.add(ResourceType::Listener, ADMIN, plan, || listen(plan, address(ip, *port)));
    }
}

fn cluster(name: &str, address: core::Address) -> Any {
    pack(&Cluster {
        name: name.to_owned(),
        alt_stat_name: stat_name(name),
        connect_timeout: seconds(CONNECT),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(static_endpoint(name, address)),
        ..Cluster::default()
    })
}

fn listen(plan: &AdminPlan, address: core::Address) -> Any {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(READINESS.to_owned())),
        prefix_rewrite: "/ready".to_owned(),
        ..RouteAction::default()
    };
    let ready = route_match::PathSpecifier::Prefix("/ready".to_owned());
    let routes = RouteConfiguration {
        validate_clusters: Some(BoolValue { value: false }),
        virtual_hosts: vec![VirtualHost {
            name: ADMIN.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                r#match: Some(RouteMatch { path_specifier: Some(ready), ..RouteMatch::default() }),
                action: Some(route::Action::Route(action)),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let filter = listener::static_http(&stat_name(ADMIN), &plan.internal, routes);
    pack(&Listener {
        name: ADMIN.to_owned(),
        address: Some(address),
        enable_reuse_port: Some(BoolValue { value: plan.reuse_port }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}
