//! Every Envoy resource that Kuma's control plane is known to emit goes to the wire, to JSON and back without a change.
//!
//! The corpora lie beside the repository (`../shared/data`); without them the test says so and has nothing to do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::{Map, Value};
use shika_proto::envoy::config::bootstrap::v3::Bootstrap;
use shika_proto::envoy::config::cluster::v3::Cluster;
use shika_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use shika_proto::envoy::config::listener::v3::Listener;
use shika_proto::envoy::config::route::v3::RouteConfiguration;
use shika_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use shika_proto::google::protobuf::Any;
use shika_proto::json::{self, Names};
use shika_proto::{any, type_url, walk};

/// What the corpora have that cannot be read, with the reason.
const EXPECTED_ERRORS: &[(&str, &str)] = &[
    ("not base64: Invalid input length: 13", "the text CERT_REDACTED in the place of bytes"),
    (
        "unknown type \"envoy.extensions.filters.network.kafka_broker.v3.KafkaBroker\"",
        "of Envoy contrib, not in envoy-types",
    ),
];

#[test]
fn corpora_round_trip() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let mut files = Vec::new();
    collect(&data, &mut files);
    if files.is_empty() {
        println!("skipped: no corpora in {}", data.display());
        return;
    }
    files.sort();
    let (mut documents, mut resources, mut set_fields) = (0, 0, 0);
    let mut errors: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let Ok(document) = serde::Deserialize::deserialize(document) else { break };
            let mut found = Vec::new();
            envoy_messages(&document, &mut found);
            documents += usize::from(!found.is_empty());
            for message in found {
                resources += 1;
                match json::from_json_value::<Any>(&message) {
                    Ok(any) => set_fields += round_trip(&any, file),
                    Err(list) => {
                        for error in list {
                            errors.entry(error.reason).or_default().push(format!("{} {}", file.display(), error.path));
                        }
                    }
                }
            }
        }
    }
    println!("{} files, {documents} documents with {resources} Envoy messages, {set_fields} set fields", files.len());
    errors.retain(|reason, places| {
        let expected = EXPECTED_ERRORS.iter().any(|(known, _)| reason.contains(known));
        println!("{} {}x {reason}; first: {}", if expected { "expected" } else { "ERROR" }, places.len(), places[0]);
        !expected
    });
    assert!(errors.is_empty());
    assert!(resources > 5_000, "{resources} resources");
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| ["yaml", "json", "golden"].iter().any(|known| e == *known)) {
            files.push(path);
        }
    }
}

/// The outermost Envoy messages of a document, as JSON of `Any`.
fn envoy_messages(document: &Value, found: &mut Vec<Value>) {
    match document {
        Value::Array(list) => list.iter().for_each(|item| envoy_messages(item, found)),
        Value::Object(map) => match (map.get("@type"), map.get("type_url"), map.get("resource")) {
            (Some(Value::String(url)), ..) if url.contains("/envoy.") => found.push(document.clone()),
            (None, Some(Value::String(url)), Some(Value::Object(resource))) if !resource.contains_key("@type") => {
                let mut any = Map::from_iter([("@type".to_owned(), Value::String(url.clone()))]);
                any.extend(resource.clone());
                found.push(Value::Object(any));
            }
            _ => map.values().for_each(|item| envoy_messages(item, found)),
        },
        _ => {}
    }
}

fn round_trip(any: &Any, file: &Path) -> usize {
    let place = format!("{} {}", file.display(), any.type_url);
    let snake = json::to_json_value(any, Names::Proto).unwrap();
    let again: Any = json::from_json_value(&snake).unwrap_or_else(|e| panic!("{place}: {e:?}"));
    assert!(again == *any, "{place}: not the same bytes");
    assert_eq!(json::to_json_value(&again, Names::Proto).unwrap(), snake);

    let camel = json::to_json_value(any, Names::LowerCamelCase).unwrap();
    assert!(json::from_json_value::<Any>(&camel).unwrap() == *any, "{place}: camelCase");
    let yaml = json::to_yaml(any, Names::Proto).unwrap();
    assert!(
        json::from_yaml::<Any>(&yaml).unwrap_or_else(|e| panic!("{place}: {e:?}\n{yaml}")) == *any,
        "{place}: YAML"
    );
    let text = serde_json::to_string(&snake).unwrap();
    assert!(json::from_json_str::<Any>(&text).unwrap() == *any, "{place}: text");

    let name = type_url::message_name(&any.type_url).unwrap();
    let same_through_prost = match any.type_url.as_str() {
        type_url::LISTENER => through_prost::<Listener>(any),
        type_url::CLUSTER => through_prost::<Cluster>(any),
        type_url::ROUTE => through_prost::<RouteConfiguration>(any),
        type_url::ENDPOINT => through_prost::<ClusterLoadAssignment>(any),
        type_url::SECRET => through_prost::<Secret>(any),
        type_url::BOOTSTRAP => through_prost::<Bootstrap>(any),
        _ => true,
    };
    assert!(same_through_prost, "{place}: prost reads something else");
    assert_eq!(walk::unknown_fields(name, &any.value, 10).unwrap(), [""; 0], "{place}");
    walk::set_fields(name, &any.value).unwrap().len()
}

/// prost's own encoding means the same as ours.
fn through_prost<M: Message + prost::Name + Default>(any: &Any) -> bool {
    let message: M = any::unpack(any).unwrap();
    json::wire_to_json_value(&M::full_name(), &any.value, Names::Proto) == json::to_json_value(&message, Names::Proto)
}
