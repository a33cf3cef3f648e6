//! What a proxy is told beside its configuration: documents over HTTP on a socket, and names as a DNS filter.

use sha2::{Digest as _, Sha256};
use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::{
    self as core, DataSource, HeaderValue, HeaderValueOption, Pipe, data_source, socket_address,
};
use shika_proto::envoy::config::listener::v3::{FilterChain, Listener, ListenerFilter, listener_filter};
use shika_proto::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, Route, RouteConfiguration, RouteMatch, VirtualHost, header_matcher, route,
    route_match,
};
use shika_proto::envoy::data::dns::v3::{DnsTable, dns_table};
use shika_proto::envoy::extensions::filters::udp::dns_filter::v3::{DnsFilterConfig, dns_filter_config};
use shika_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use shika_proto::google::protobuf::{Any, BoolValue, UInt32Value};

use super::bootstrap::socket;
use super::{listener, seconds};
use crate::plan::{DynamicPlan, Record, TTL, stat_name};

/// Name of the listener that serves the documents.
pub(super) const DYNAMIC_CONFIG: &str = "_kuma:dynamicconfig";
/// Name of the DNS listener.
pub(super) const DNS: &str = "kuma:dns";

/// The documents, each with its hash as ETag, so that a proxy that polls is sent nothing twice (Kuma `pkg/xds/dynconf/listener.go`).
pub(super) fn documents(plan: &DynamicPlan) -> Any {
    let longest = plan.documents.values().map(String::len).max().unwrap_or_default();
    let routes = RouteConfiguration {
        // Envoy's own limit is 4096 bytes.
        max_direct_response_body_size_bytes: Some(UInt32Value { value: u32::try_from(longest).unwrap_or(u32::MAX) }),
        virtual_hosts: vec![VirtualHost {
            name: DYNAMIC_CONFIG.to_owned(),
            domains: vec!["*".to_owned()],
            routes: plan.documents.iter().flat_map(|(path, json)| document(path, json)).collect(),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let filter = listener::static_http(&stat_name(DYNAMIC_CONFIG), &plan.internal, routes);
    let pipe = Pipe { path: socket(&plan.work_dir, "kuma-mesh-metric-config"), ..Pipe::default() };
    pack(&Listener {
        name: DYNAMIC_CONFIG.to_owned(),
        address: Some(core::Address { address: Some(core::address::Address::Pipe(pipe)) }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    })
}

fn document(path: &str, json: &str) -> [Route; 2] {
    let etag: String = Sha256::digest(json.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let on_path = |headers| RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Path(path.to_owned())),
        headers,
        ..RouteMatch::default()
    };
    let exact = string_matcher::MatchPattern::Exact(etag.clone());
    let unchanged = HeaderMatcher {
        name: "If-None-Match".to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(exact),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    };
    let respond = |status, body: Option<&str>| {
        let body = body.map(|text| DataSource {
            specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
            ..DataSource::default()
        });
        Some(route::Action::DirectResponse(DirectResponseAction { status, body, ..DirectResponseAction::default() }))
    };
    let header = HeaderValue { key: "Etag".to_owned(), value: etag.clone(), ..HeaderValue::default() };
    [
        Route { r#match: Some(on_path(vec![unchanged])), action: respond(304, None), ..Route::default() },
        Route {
            name: format!("{DYNAMIC_CONFIG}:{path}"),
            r#match: Some(on_path(Vec::new())),
            action: respond(200, Some(json)),
            response_headers_to_add: vec![HeaderValueOption { header: Some(header), ..HeaderValueOption::default() }],
            ..Route::default()
        },
    ]
}

/// Names for a proxy that does not answer DNS itself: Envoy's filter, which answers for these names and refuses all others.
pub(super) fn dns_filter(port: u32, records: &[Record]) -> Any {
    let domains = records.iter().map(|record| dns_table::DnsVirtualDomain {
        name: record.name.clone(),
        endpoint: Some(dns_table::DnsEndpoint {
            endpoint_config: Some(dns_table::dns_endpoint::EndpointConfig::AddressList(dns_table::AddressList {
                address: record.ips.clone(),
            })),
        }),
        answer_ttl: seconds(u64::from(TTL)),
    });
    let table = DnsTable { virtual_domains: domains.collect(), ..DnsTable::default() };
    let source = dns_filter_config::server_context_config::ConfigSource::InlineDnsTable(table);
    let filter = DnsFilterConfig {
        stat_prefix: "kuma_dns".to_owned(),
        server_config: Some(dns_filter_config::ServerContextConfig { config_source: Some(source) }),
        ..DnsFilterConfig::default()
    };
    let mut address = super::address("127.0.0.1", port);
    if let Some(core::address::Address::SocketAddress(socket)) = &mut address.address {
        socket.protocol = socket_address::Protocol::Udp.into();
    }
    pack(&Listener {
        name: DNS.to_owned(),
        address: Some(address),
        // Envoy has a socket for each worker on UDP.
        enable_reuse_port: Some(BoolValue { value: true }),
        listener_filters: vec![ListenerFilter {
            name: "envoy.filters.udp.dns_filter".to_owned(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&filter))),
            ..ListenerFilter::default()
        }],
        traffic_direction: core::TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}
