//! Emitted resources and those of Kuma side by side.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use shika_proto::json::Names;

use super::POLICY_METADATA;
use crate::xds::{ResourceType, Snapshot};

/// The resources of a snapshot as Envoy's JSON, keyed by kind and name, without what is different from Kuma on purpose.
pub(super) fn as_json(snapshot: &Snapshot) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for kind in ResourceType::ORDER {
        for (name, resource) in snapshot.resources(kind) {
            let body = resource.body.as_ref().unwrap();
            let message = body.type_url.rsplit('/').next().unwrap();
            let mut json = shika_proto::json::wire_to_json_value(message, &body.value, Names::LowerCamelCase).unwrap();
            strip(&mut json);
            all.insert(format!("{message} {name}"), json);
        }
    }
    all
}

/// Takes out what is different on purpose: the explanation of permissions, and the list of internal addresses, which is configuration.
pub(super) fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("internalAddressConfig");
            if let Some(metadata) = fields.get_mut("metadata").and_then(|metadata| metadata.get_mut("filterMetadata")) {
                metadata.as_object_mut().unwrap().remove(POLICY_METADATA);
            }
            if fields.get("metadata") == Some(&json!({"filterMetadata": {}})) {
                fields.remove("metadata");
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Resources of a golden of Kuma 2.14, or `None` if the corpus is not at hand.
pub(super) fn golden(file: &str) -> Option<BTreeMap<String, Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/kuma-2.14-xds-corpus").join(file);
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    };
    let document: Value = serde_yaml_ng::from_str(&text).unwrap();
    let resources = document["resources"].as_array().unwrap();
    let all = resources.iter().map(|resource| {
        let message = resource["type_url"].as_str().unwrap().rsplit('/').next().unwrap();
        let mut body = resource["resource"].clone();
        strip(&mut body);
        (format!("{message} {}", resource["name"].as_str().unwrap()), body)
    });
    Some(all.collect())
}

pub(super) const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
pub(super) const ENDPOINT: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(super) const LISTENER: &str = "envoy.config.listener.v3.Listener";

pub(super) fn assert_same(ours: &BTreeMap<String, Value>, golden: &BTreeMap<String, Value>, names: &[String]) {
    for name in names {
        let (ours, golden) = (ours.get(name), golden.get(name));
        assert_eq!(ours, golden, "{name}\nours: {:#}\ngolden: {:#}", json!(ours), json!(golden));
    }
}
