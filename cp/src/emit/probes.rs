//! The listener of virtual probes.

use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::TrafficDirection;
use shika_proto::envoy::config::listener::v3::{FilterChain, Listener};
use shika_proto::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use shika_proto::envoy::config::route::v3::{
    HeaderMatcher, RedirectAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, header_matcher,
    route, route_action, route_match,
};
use shika_proto::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher};
use shika_proto::google::protobuf::{Any, BoolValue};

use super::{address, listener};
use crate::plan::{ProbeRoute, ProbesPlan, stat_name};

/// Name of the listener.
pub(super) const PROBES: &str = "probe:listener";

/// Each probe goes to the workload, with the path that the workload expects.
pub(super) fn listener(plan: &ProbesPlan) -> Any {
    let routes = RouteConfiguration {
        name: "probe:route_configuration".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "probe".to_owned(),
            domains: vec!["*".to_owned()],
            routes: plan.routes.iter().map(probe).collect(),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let filter = listener::static_http(&stat_name(PROBES), &plan.internal, routes);
    pack(&Listener {
        name: PROBES.to_owned(),
        address: Some(address(&plan.address, plan.port)),
        bind_to_port: (!plan.bind).then_some(BoolValue { value: false }),
        enable_reuse_port: Some(BoolValue { value: plan.reuse_port }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}

fn probe(probe: &ProbeRoute) -> Route {
    let ProbeRoute { path, workload_path, workload_port, cluster } = probe;
    let get = HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::Exact("GET".to_owned())),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    };
    let action = match cluster {
        Some(cluster) => route::Action::Route(RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.clone())),
            regex_rewrite: Some(RegexMatchAndSubstitute {
                pattern: Some(RegexMatcher { regex: ".*".to_owned(), ..RegexMatcher::default() }),
                substitution: workload_path.clone(),
            }),
            ..RouteAction::default()
        }),
        None => route::Action::Redirect(RedirectAction {
            port_redirect: *workload_port,
            path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect(workload_path.clone())),
            ..RedirectAction::default()
        }),
    };
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Path(path.clone())),
            headers: vec![get],
            ..RouteMatch::default()
        }),
        action: Some(action),
        ..Route::default()
    }
}
