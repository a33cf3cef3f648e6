//! The listener of a zone ingress or egress (Kuma `pkg/xds/generator/ingress_generator.go`, `pkg/xds/generator/egress`).

use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::{DataSource, TrafficDirection, data_source};
use shika_proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use shika_proto::envoy::extensions::filters::network::direct_response::v3::Config as DirectResponse;
use shika_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use shika_proto::google::protobuf::{Any, BoolValue};

use super::listener::{
    catch_all, common_http_filters, http_manager, http_rbac, network_filter, network_rbac, rewrite_hosts, tcp_proxy,
    tls_inspector,
};
use super::{POLICY_METADATA, address, metadata, rbac, tls};
use crate::mesh::Protocol;
use crate::plan::{OutsideChain, ZoneChain, ZoneProxyPlan, stat_name};

/// One filter chain for each destination. What asks for none of them is closed.
pub(super) fn listener(plan: &ZoneProxyPlan) -> Any {
    let mut chains: Vec<FilterChain> = plan.chains.iter().map(|chain| filter_chain(plan, chain)).collect();
    if let Some(answer) = &plan.answer {
        let response = DataSource {
            specifier: Some(data_source::Specifier::InlineBytes(answer.as_bytes().to_vec())),
            ..DataSource::default()
        };
        let filter =
            network_filter("envoy.filters.network.direct_response", pack(&DirectResponse { response: Some(response) }));
        chains.push(FilterChain { filters: vec![filter], ..FilterChain::default() });
    }
    pack(&Listener {
        name: plan.name.clone(),
        address: Some(address(&plan.address, plan.port)),
        enable_reuse_port: Some(BoolValue { value: plan.reuse_port }),
        filter_chains: chains,
        listener_filters: vec![tls_inspector()],
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}

fn filter_chain(plan: &ZoneProxyPlan, chain: &ZoneChain) -> FilterChain {
    let ZoneChain { sni, cluster, outside } = chain;
    let with = match outside {
        None => FilterChain { filters: vec![tcp_proxy(cluster, &stat_name(cluster), None)], ..FilterChain::default() },
        Some(outside) => outside_chain(plan, cluster, outside),
    };
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "tls".to_owned(),
            server_names: vec![sni.clone()],
            ..FilterChainMatch::default()
        }),
        ..with
    }
}

/// Mutual TLS ends, whoever is allowed passes, and the connection goes on as what the destination speaks.
fn outside_chain(plan: &ZoneProxyPlan, cluster: &str, chain: &OutsideChain) -> FilterChain {
    let OutsideChain { name, host, route, mesh, protocol, permission, by_policies } = chain;
    let filters = match protocol {
        Protocol::Tcp => {
            vec![network_rbac(&plan.name, mesh, permission), tcp_proxy(cluster, &stat_name(host), None)]
        }
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            let mut routes = catch_all(route.clone(), host, cluster, "");
            rewrite_hosts(&mut routes);
            let filters = [http_rbac(mesh, permission)].into_iter().chain(common_http_filters(Protocol::Http));
            let manager = HttpConnectionManager {
                http_filters: filters.collect(),
                ..http_manager(&stat_name(host), &plan.internal, routes)
            };
            vec![network_filter("envoy.filters.network.http_connection_manager", pack(&manager))]
        }
    };
    let explanation = by_policies.then(|| rbac::explanation(mesh, permission));
    FilterChain {
        name: name.clone(),
        filters,
        transport_socket: Some(tls::downstream(mesh)),
        metadata: explanation.and_then(|explanation| metadata([(POLICY_METADATA, explanation)])),
        ..FilterChain::default()
    }
}
