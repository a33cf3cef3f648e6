//! Resources as the Kubernetes objects that they would be (Kuma `pkg/plugins/resources/k8s/mapper.go`): what `?format=kubernetes` asks
//! for, which the GUI shows and `kumactl export` writes.

use chrono::SecondsFormat;
use serde_json::{Map, Value, json};

use crate::resource::{Kind, Resource};

/// Where objects are that belong to the control plane (Kuma `store.kubernetes.systemNamespace`).
const SYSTEM_NAMESPACE: &str = "kuma-system";
/// The label that names the mesh of an object without a field for it.
const MESH_LABEL: &str = "kuma.io/mesh";
/// What of a document is no part of its specification.
const ENVELOPE: [&str; 7] = ["type", "mesh", "name", "creationTime", "modificationTime", "labels", "kri"];

/// The object of a resource. `namespace` is the one that was asked for; empty for that of the control plane.
pub(super) fn object(resource: &Resource, namespace: &str) -> Value {
    let (kind, meta) = (resource.kind(), &resource.meta);
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(meta.name));
    if is_namespaced(kind) {
        let namespace = if namespace.is_empty() { SYSTEM_NAMESPACE } else { namespace };
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    let created = meta.creation_time.to_rfc3339_opts(SecondsFormat::Secs, true);
    metadata.insert("creationTimestamp".to_owned(), json!(created));
    let has_mesh_field = !kind.has_spec_field() && resource.secret().is_none();
    if kind.in_mesh() && !has_mesh_field {
        metadata.insert("labels".to_owned(), json!({MESH_LABEL: meta.mesh}));
    }
    let Value::Object(mut document) = resource.to_document() else { return Value::Null };
    if resource.secret().is_some() {
        let kind = if kind.in_mesh() { "system.kuma.io/secret" } else { "system.kuma.io/global-secret" };
        let value = document.remove("data").unwrap_or_default();
        return json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": {"value": value}});
    }
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), json!("kuma.io/v1alpha1"));
    object.insert("kind".to_owned(), json!(kind.name()));
    object.insert("metadata".to_owned(), Value::Object(metadata));
    if kind.has_spec_field() {
        for field in ["spec", "status"] {
            object.extend(document.remove(field).map(|value| (field.to_owned(), value)));
        }
        return Value::Object(object);
    }
    if kind.in_mesh() {
        object.insert("mesh".to_owned(), json!(meta.mesh));
    }
    document.retain(|field, _| !ENVELOPE.contains(&field.as_str()));
    // What the control plane finds out itself is a status there.
    let field = if kind.name().ends_with("Insight") { "status" } else { "spec" };
    object.insert(field.to_owned(), Value::Object(document));
    Value::Object(object)
}

/// Whether such objects are in a namespace.
fn is_namespaced(kind: Kind) -> bool {
    !matches!(kind, Kind::Mesh | Kind::Zone | Kind::ZoneInsight | Kind::ExternalService)
}
