#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use shika_data::{
    model::proxy_protocol::PassThrough,
    proxy_protocol::{Accepts, Version},
};
use shika_proto::envoy::config::{cluster::v3::Cluster, listener::v3::Listener};

use crate::compile::testing::{apply, compiler};

fn listener(filter: &str, more: &str) -> String {
    format!(
        "name: l\naddress: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }}\nfilter_chains: [{{}}]\n{more}\n\
         listener_filters:\n- {{ name: p, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, {filter} }} }}\n"
    )
}

fn cluster(config: &str, inner: &str) -> String {
    format!(
        "name: c\ntype: STATIC\ntransport_socket:\n  name: p\n  typed_config:\n    \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport\n    \
         {config}\n    {inner}\n"
    )
}

const RAW: &str = "transport_socket: { name: raw, typed_config: { '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";
const TLS: &str = "{ name: t, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }";

#[test]
fn what_a_listener_asks_for() {
    let text = listener(
        "allow_requests_without_proxy_protocol: true, disallowed_versions: [V1], stat_prefix: edge, \
         rules: [{ tlv_type: 1, on_tlv_present: { key: first } }, { tlv_type: 234, on_tlv_present: { metadata_namespace: space, key: k } }, \
                 { tlv_type: 1, on_tlv_present: { key: last } }], \
         pass_through_tlvs: { match_type: INCLUDE, tlv_type: [2, 5] }",
        "",
    );
    let mut compiler = compiler();
    let applied = apply::<Listener>(&mut compiler, Instant::now(), &[&text]);
    assert!(applied.rejects.is_empty(), "{:?}", applied.rejects);
    let plan = compiler.build().unwrap();
    let listener = plan.snapshot.listeners.iter().flatten().next().unwrap();
    let filter = listener.inspect.proxy_protocol.as_ref().unwrap();
    assert_eq!(filter.accepts, Accepts { v1: false, v2: true, nothing: true });
    let rules: Vec<_> = filter.rules.iter().map(|rule| (rule.kind, &*rule.namespace, &*rule.key)).collect();
    assert_eq!(rules, [(234, "space", "k"), (1, "envoy.filters.listener.proxy_protocol", "last")]);
    assert_eq!(filter.pass_through, PassThrough::These(vec![2, 5]));
    assert_eq!(filter.v2.group().scope.prefix, "proxy_proto.edge.versions.v2.");
    assert_eq!(filter.errors.group().scope.prefix, "");
}

#[test]
fn what_a_cluster_says() {
    let text = cluster("config: { version: V2, pass_through_tlvs: {}, added_tlvs: [{ type: 7, value: YWJj }] }", RAW);
    let mut compiler = compiler();
    let applied = apply::<Cluster>(&mut compiler, Instant::now(), &[&text]);
    assert!(applied.rejects.is_empty(), "{:?}", applied.rejects);
    let plan = compiler.build().unwrap();
    let cluster = plan.snapshot.clusters.iter().flatten().next().unwrap();
    let said = cluster.proxy_protocol.as_ref().unwrap();
    assert!(cluster.tls.is_none());
    assert_eq!((said.version, &said.pass_through), (Version::V2, &PassThrough::All));
    assert_eq!(said.added.iter().map(|tlv| (tlv.kind, &tlv.value[..])).collect::<Vec<_>>(), [(7, &b"abc"[..])]);
}

#[test]
fn what_is_not_honoured_is_refused_with_its_path() {
    let here = "listener_filters[0].typed_config";
    for (text, expected) in [
        (listener("disallowed_versions: [V1, V2]", ""), format!("{here}.disallowed_versions: Proxy Protocol filter is misconfigured: all proxy protocol versions are disallowed.")),
        (listener("tlv_location: FILTER_STATE", ""), format!("{here}.tlv_location: FILTER_STATE is not supported; use DYNAMIC_METADATA")),
        (listener("rules: [{ tlv_type: 256, on_tlv_present: { key: k } }]", ""), format!("{here}.rules[0].tlv_type: value must be less than 256, not 256")),
        (listener("rules: [{ tlv_type: 1, on_tlv_present: {} }]", ""), format!("{here}.rules[0].on_tlv_present.key: value length must be at least 1 characters")),
        (listener("rules: [{ tlv_type: 1 }]", ""), format!("{here}.rules[0].on_tlv_present: value is required")),
        (listener("rules: [{ tlv_type: 1, on_tlv_present: { key: k, value_string_encoding: BASE64 } }]", ""), format!("{here}.rules[0].on_tlv_present.value_string_encoding: BASE64 is not supported; SANITIZED_UTF8 is")),
        (listener("pass_through_tlvs: { tlv_type: [1, 300] }", ""), format!("{here}.pass_through_tlvs.tlv_type[1]: value must be less than 256, not 300")),
        (listener("stat_prefix: x", "use_original_dst: true"), format!("{here}: is not supported together with use_original_dst; put it into the listeners that take over")),
        (
            listener("stat_prefix: x", "").replace("listener_filters:\n", &format!("listener_filters:\n- {TLS}\n")),
            "listener_filters[1].typed_config: the header comes before what tls_inspector and http_inspector look at; put this filter first".into(),
        ),
    ] {
        let applied = apply::<Listener>(&mut compiler(), Instant::now(), &[&text]);
        let found: Vec<_> = applied.rejects.iter().map(|reject| format!("{}: {}", reject.field_path, reject.reason)).collect();
        assert_eq!(found, [expected], "{text}");
    }
    let here = "transport_socket.typed_config";
    for (text, expected) in [
        (cluster("config: { version: V1 }", ""), format!("{here}.transport_socket: value is required")),
        (
            cluster("config: { added_tlvs: [{ type: 256 }] }", RAW),
            format!("{here}.config.added_tlvs[0].type: value must be less than 256, not 256"),
        ),
        (
            cluster("allow_unspecified_address: true", RAW),
            format!("{here}.allow_unspecified_address: is not supported"),
        ),
        (
            cluster(
                "config: {}",
                &cluster("config: {}", RAW)
                    .split_once("\ntransport_socket")
                    .map(|(_, inner)| format!("transport_socket{}", inner.replace('\n', "\n    ")))
                    .unwrap(),
            ),
            format!(
                "{here}.transport_socket.typed_config: the PROXY protocol is supported as the cluster's own transport_socket alone"
            ),
        ),
    ] {
        let applied = apply::<Cluster>(&mut compiler(), Instant::now(), &[&text]);
        let found: Vec<_> =
            applied.rejects.iter().map(|reject| format!("{}: {}", reject.field_path, reject.reason)).collect();
        assert_eq!(found, [expected], "{text}");
    }
}
