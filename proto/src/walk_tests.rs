#![allow(clippy::unwrap_used)]

use prost::Message as _;

use super::*;
use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::listener::v3::Listener;
use crate::{json, wire};

const LISTENER: &str = "envoy.config.listener.v3.Listener";

fn listener() -> Vec<u8> {
    let listener: Listener = json::from_yaml(
        "
name: in
metadata: { filter_metadata: { a: { x: 1 } } }
filter_chains:
- filters:
  - name: tcp
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: s
      idle_timeout: 1s
- filters: [{}, {}]
",
    )
    .unwrap();
    listener.encode_to_vec()
}

#[test]
fn lists_set_fields_through_any() {
    let found = set_fields(LISTENER, &listener()).unwrap();
    let got: Vec<_> = found.iter().map(|f| (f.message.rsplit('.').next().unwrap(), f.field, f.path.as_str())).collect();
    let filters = "filter_chains[0].filters[0].typed_config";
    assert_eq!(
        got,
        [
            ("Listener", "name", "name"),
            ("Listener", "filter_chains", "filter_chains"),
            ("FilterChain", "filters", "filter_chains[0].filters"),
            ("Filter", "name", "filter_chains[0].filters[0].name"),
            ("Filter", "typed_config", filters),
            ("TcpProxy", "stat_prefix", format!("{filters}.stat_prefix").as_str()),
            ("TcpProxy", "idle_timeout", format!("{filters}.idle_timeout").as_str()),
            ("FilterChain", "filters", "filter_chains[1].filters"),
            ("Listener", "metadata", "metadata"),
            ("Metadata", "filter_metadata", "metadata.filter_metadata"),
        ]
    );
}

#[test]
fn lists_unknown_fields_and_types() {
    let mut proxy = Vec::new();
    wire::put_bytes(&mut proxy, 1, b"s");
    wire::put_bytes(&mut proxy, 9_999, b"?");
    let name = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let mut any = Vec::new();
    wire::put_bytes(&mut any, 1, name.as_bytes());
    wire::put_bytes(&mut any, 2, &proxy);
    let mut filter = Vec::new();
    wire::put_bytes(&mut filter, 1, b"tcp");
    wire::put_bytes(&mut filter, 4, &any);
    let mut chain = Vec::new();
    wire::put_bytes(&mut chain, 3, &filter);
    let mut listener = Vec::new();
    wire::put_bytes(&mut listener, 3, &chain);
    wire::put_bytes(&mut listener, 8_888, b"");
    wire::put_bytes(&mut listener, 8_888, b"again");
    let paths = ["filter_chains[0].filters[0].typed_config.#9999", "#8888"];
    assert_eq!(unknown_fields(LISTENER, &listener, 10).unwrap(), paths);
    assert_eq!(unknown_fields(LISTENER, &listener, 1).unwrap(), paths[..1]);

    let mut any = Vec::new();
    wire::put_bytes(&mut any, 1, b"type.googleapis.com/acme.Nope");
    let mut filter = Vec::new();
    wire::put_bytes(&mut filter, 4, &any);
    let mut seen = Vec::new();
    walk("envoy.config.listener.v3.Filter", &filter, &mut |found, path| {
        if let Found::UnknownType { type_url } = found {
            seen.push(format!("{path} {type_url}"));
        }
    })
    .unwrap();
    assert_eq!(seen, ["typed_config type.googleapis.com/acme.Nope"]);
}

#[test]
fn refuses_what_it_cannot_walk() {
    assert!(matches!(set_fields("acme.Nope", &[]), Err(WalkError::UnknownMessage(_))));
    assert!(matches!(set_fields(LISTENER, &[0x0a, 0x05]), Err(WalkError::Malformed { .. })));
    // A message field written as a number.
    assert!(matches!(set_fields(LISTENER, &[0x10, 0x05]), Err(WalkError::Malformed { .. })));
    // An Any in an Any, and so on.
    let mut bytes = Vec::new();
    for _ in 0..1_000 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 1, b"type.googleapis.com/google.protobuf.Any");
        wire::put_bytes(&mut outer, 2, &bytes);
        bytes = outer;
    }
    assert!(matches!(set_fields("google.protobuf.Any", &bytes), Err(WalkError::TooDeep { .. })));
}

#[test]
fn zero_values_of_implicit_fields_are_not_set() {
    let cluster = Cluster { name: "c".into(), ..Default::default() };
    let mut bytes = cluster.encode_to_vec();
    // alt_stat_name, an implicit string, written though empty.
    wire::put_bytes(&mut bytes, 28, b"");
    let found = set_fields("envoy.config.cluster.v3.Cluster", &bytes).unwrap();
    assert_eq!(found.iter().map(|f| f.field).collect::<Vec<_>>(), ["name"]);
}
