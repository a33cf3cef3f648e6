#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::SocketAddr, time::Instant};

use shika_data::model::listener::BindAddress;
use shika_proto::envoy::config::listener::v3::Listener as ProtoListener;

use crate::compile::testing::{apply, compiler};

const ADDRESS: &str = "name: l\naddress: { socket_address: { protocol: UDP, address: 127.0.0.1, port_value: 53 } }";

/// A listener with the DNS filter, whose configuration this is but for its type.
fn dns(config: &str) -> String {
    let kind = "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig";
    format!("{ADDRESS}\nlistener_filters: [{{ name: dns, typed_config: {{ '@type': {kind}, {config} }} }}]")
}

fn names(domain: &str) -> String {
    dns(&format!("stat_prefix: d, server_config: {{ inline_dns_table: {{ virtual_domains: [{domain}] }} }}"))
}

#[test]
fn names_are_in_the_model() {
    let text = names("{ name: A.mesh, endpoint: { address_list: { address: [240.0.0.1, 'fd00::1'] } } }");
    let mut compiler = compiler();
    assert!(apply::<ProtoListener>(&mut compiler, Instant::now(), &[&text]).rejects.is_empty());
    let plan = compiler.build().unwrap();
    let listener = plan.snapshot.listeners.iter().flatten().next().unwrap();
    assert_eq!(listener.addresses, [BindAddress::Udp(SocketAddr::from(([127, 0, 0, 1], 53)))]);
    let table = listener.datagrams.as_ref().and_then(|datagrams| datagrams.dns.as_ref()).unwrap();
    let (addresses, ttl) = table.look_up("A.mesh").unwrap();
    assert_eq!((addresses.v4.len(), addresses.v6.len(), ttl.as_secs()), (1, 1, 300));
    assert!(table.look_up("a.mesh").is_none() && table.knows("x.A.mesh"));
}

#[test]
fn a_listener_of_datagrams_needs_no_filter() {
    let mut compiler = compiler();
    assert!(apply::<ProtoListener>(&mut compiler, Instant::now(), &[ADDRESS]).rejects.is_empty());
    let plan = compiler.build().unwrap();
    let listener = plan.snapshot.listeners.iter().flatten().next().unwrap();
    assert!(listener.datagrams.as_ref().is_some_and(|datagrams| datagrams.dns.is_none()));
}

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    let config = "listener_filters[0].typed_config";
    let domain = format!("{config}.server_config.inline_dns_table.virtual_domains[0]");
    let inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    for (text, expected) in [
        (
            format!("{ADDRESS}\nfilter_chains: [{{}}]"),
            "filter_chains: error adding listener 'l': filter chains are for connections, not for UDP".to_owned(),
        ),
        (
            format!(
                "{ADDRESS}\nadditional_addresses: [{{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }} }}]"
            ),
            "additional_addresses: all addresses of a listener have to be UDP, or none".into(),
        ),
        (
            format!("{ADDRESS}\nlistener_filters: [{{ name: x, typed_config: {{ '@type': {inspector} }} }}]"),
            format!("listener_filters[0].typed_config: UDP filter {inspector} is not supported"),
        ),
        (dns(""), format!("{config}.stat_prefix: value length must be at least 1 characters")),
        (
            dns("stat_prefix: d, client_config: { max_pending_lookups: 1 }"),
            format!("{config}.client_config: other names are not forwarded: the sidecar's own DNS server does that"),
        ),
        (
            dns("stat_prefix: d, server_config: { external_dns_table: { filename: /x } }"),
            format!(
                "{config}.server_config.external_dns_table: tables in files are not supported; use inline_dns_table"
            ),
        ),
        (names("{ name: a, endpoint: {} }"), format!("{domain}.endpoint: value is required")),
        (
            names("{ name: a, endpoint: { address_list: { address: [x] } } }"),
            format!("{domain}.endpoint.address_list.address[0]: malformed IP address: x"),
        ),
        (
            names("{ name: a, endpoint: { cluster_name: c } }"),
            format!(
                "{domain}.endpoint.cluster_name: answers from a cluster's endpoints are not supported; give addresses"
            ),
        ),
        (
            names("{ name: a, answer_ttl: 5s, endpoint: { address_list: { address: [10.0.0.1] } } }"),
            format!("{domain}.answer_ttl: value must be greater than or equal to 30s"),
        ),
    ] {
        let applied = apply::<ProtoListener>(&mut compiler(), Instant::now(), &[&text]);
        let rejects: Vec<String> =
            applied.rejects.iter().map(|reject| format!("{}: {}", reject.field_path, reject.reason)).collect();
        assert_eq!(rejects.join("\n"), expected, "{text}");
    }
}
