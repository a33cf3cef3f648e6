#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use prost::Message as _;
use shika_proto::{envoy::config::cluster::v3::Cluster, google::protobuf::Any, json};

use super::*;
use crate::compile::testing::yaml;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

#[test]
fn every_name_in_the_table_exists_and_occurs_once() {
    let mut messages = BTreeSet::new();
    let mut wrong = Vec::new();
    for message in support::table() {
        assert!(messages.insert(message.name), "{} twice", message.name);
        assert!(shika_proto::is_known_message(message.name), "{}", message.name);
        let others = message.harmless.iter().chain(message.refused).map(|(field, _)| *field);
        let mut fields = BTreeSet::new();
        for field in message.honoured.split_whitespace().chain(others) {
            assert!(fields.insert(field), "{}.{field} twice", message.name);
            // Null is a value of every field, and an error for a name that is none.
            let text = format!("{{\"@type\": \"type.googleapis.com/{}\", \"{field}\": null}}", message.name);
            let parsed = json::from_json_str::<Any>(&text);
            if let Err(errors) = parsed {
                wrong.push(format!("{}.{field}: {errors:?}", message.name));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn what_the_table_does_not_mention_is_refused_with_its_path() {
    let check = |text: &str| {
        let cluster: Cluster = yaml(text);
        check(CLUSTER, &cluster.encode_to_vec(), false)
    };
    let faults = |text: &str| {
        check(text)
            .unwrap_err()
            .into_iter()
            .map(|fault| format!("{}: {}", fault.path, fault.reason))
            .collect::<Vec<_>>()
    };
    assert_eq!(check("{ name: a, connect_timeout: 1s }"), Ok(Vec::new()));
    assert_eq!(
        faults("{ name: a, load_balancing_policy: {}, connection_pool_per_downstream_connection: true }"),
        [
            "load_balancing_policy: is not supported; use lb_policy",
            "connection_pool_per_downstream_connection: pools are shared by all downstream connections"
        ]
    );
    assert_eq!(
        faults(
            "{ transport_socket: { typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: { name: x } } } }"
        ),
        ["transport_socket.typed_config: envoy.extensions.filters.http.wasm.v3.Wasm is not supported"]
    );
    let passed = check("{ metadata: { filter_metadata: { a: { b: 1 } } }, dns_jitter: 1s }").unwrap();
    let fields: BTreeSet<_> = passed.iter().map(|one| one.field.as_str()).collect();
    assert_eq!(
        fields,
        BTreeSet::from(["envoy.config.cluster.v3.Cluster.dns_jitter", "envoy.config.cluster.v3.Cluster.metadata"])
    );
}

#[test]
fn fields_unknown_to_the_schema_are_counted_or_refused() {
    let mut bytes = Cluster { name: "a".into(), ..Default::default() }.encode_to_vec();
    bytes.extend([0xfa, 0xff, 0x07, 0x01, 0x00]);
    let passed = check(CLUSTER, &bytes, false).unwrap();
    assert_eq!(passed[0].path, "#16383");
    let faults = check(CLUSTER, &bytes, true).unwrap_err();
    assert_eq!((faults[0].path.as_str(), faults[0].reason.as_str()), ("#16383", "the field is unknown to the schema"));
}

#[test]
fn seen_is_bounded() {
    let mut seen = HarmlessSeen::default();
    for index in 0..MOST_FIELDS + 10 {
        seen.note(&index.to_string(), String::new, "x");
    }
    seen.note("0", String::new, "x");
    assert_eq!((seen.iter().count(), seen.unlisted()), (MOST_FIELDS, 10));
    assert_eq!(seen.iter().next().unwrap().1.count, 2);
}
