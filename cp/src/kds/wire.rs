//! Resources in Kuma's messages. A kind of the protobuf sort is packed as its message; a kind that Kuma calls a plugin is JSON in an
//! `Any` without type URL (Kuma `pkg/core/resources/model/utils.go`).

use serde_json::Value;
use shika_proto::envoy::service::discovery::v3::Resource as WireResource;
use shika_proto::google::protobuf::Any;
use shika_proto::json::{self, Names, Options};
use shika_proto::kuma::mesh::v1alpha1::{KumaResource, kuma_resource};

use crate::resource::{
    Kind, Meta, Resource, ResourceKey, set_status, spec_from_value, spec_to_value, status_to_value, validate,
};

/// Type of what a wire resource holds.
const KUMA_RESOURCE: &str = "type.googleapis.com/kuma.mesh.v1alpha1.KumaResource";
const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// The message of a kind of the protobuf sort.
fn message(kind: Kind) -> String {
    let (package, name) = match kind {
        Kind::Secret | Kind::GlobalSecret => ("system", "Secret"),
        Kind::Config => ("system", "Config"),
        Kind::Zone | Kind::ZoneInsight => ("system", kind.name()),
        kind => ("mesh", kind.name()),
    };
    format!("kuma.{package}.v1alpha1.{name}")
}

/// The name on the wire: `<name>.<mesh>`, with nothing after the dot for a global kind.
pub(super) fn wire_name(key: &ResourceKey) -> String {
    format!("{}.{}", key.name, key.mesh)
}

/// The key of a name on the wire, which is split at its last dot: names have dots, meshes do not.
pub(super) fn key_of_wire(kind: Kind, name: &str) -> ResourceKey {
    let (name, mesh) = name.rsplit_once('.').unwrap_or((name, ""));
    ResourceKey::new(kind, mesh, name)
}

/// Packs a resource.
///
/// # Errors
/// A text, when the specification has a value that its message has no place for.
pub(super) fn pack(resource: &Resource) -> Result<Any, String> {
    let kind = resource.kind();
    let spec = spec_to_value(&resource.spec);
    let spec = if kind.has_spec_field() {
        plain(&spec)
    } else {
        let message = message(kind);
        let wire = json::json_value_to_wire(&message, &spec, Options::default())
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        Any { type_url: format!("{TYPE_URL_PREFIX}{message}"), value: wire }
    };
    let status = status_to_value(&resource.spec).map(|status| plain(&status));
    let meta = kuma_resource::Meta {
        name: resource.meta.name.clone(),
        mesh: resource.meta.mesh.clone(),
        version: String::new(),
        labels: resource.meta.labels.clone().into_iter().collect(),
    };
    let packed = KumaResource { meta: Some(meta), spec: Some(spec), status };
    Ok(Any { type_url: KUMA_RESOURCE.to_owned(), value: prost::Message::encode_to_vec(&packed) })
}

fn plain(value: &Value) -> Any {
    Any { type_url: String::new(), value: value.to_string().into_bytes() }
}

/// Unpacks and checks a resource of that kind.
///
/// # Errors
/// The name of the resource, as far as it is known, and what is wrong with it.
pub(super) fn unpack(kind: Kind, wire: &WireResource) -> Result<Resource, (ResourceKey, String)> {
    let fallback = key_of_wire(kind, &wire.name);
    let packed = wire.resource.as_ref().ok_or_else(|| (fallback.clone(), "it has no content".to_owned()))?;
    let packed: KumaResource = prost::Message::decode(packed.value.as_slice())
        .map_err(|e| (fallback.clone(), format!("it is no KumaResource: {e}")))?;
    let meta = packed.meta.unwrap_or_default();
    let key = ResourceKey::new(kind, if kind.in_mesh() { meta.mesh } else { String::new() }, meta.name);
    let wrong = |reason: String| (key.clone(), reason);
    let spec = packed.spec.unwrap_or_default();
    let value = if kind.has_spec_field() {
        if !spec.type_url.is_empty() {
            return Err(wrong(format!(
                "its specification has the type {:?}; JSON without a type is expected",
                spec.type_url
            )));
        }
        json_of(&spec).map_err(wrong)?
    } else {
        let message = message(kind);
        let written = spec.type_url.strip_prefix(TYPE_URL_PREFIX).unwrap_or(&spec.type_url);
        if written != message && !spec.value.is_empty() {
            return Err(wrong(format!("its specification has the type {written:?}; {message:?} is expected")));
        }
        json::wire_to_json_value(&message, &spec.value, Names::LowerCamelCase)
            .map_err(|e| wrong(format!("its specification cannot be read: {e}")))?
    };
    let mut ignored = Vec::new();
    let mut spec = spec_from_value(kind, value, "spec", &mut ignored).map_err(|e| wrong(e.to_string()))?;
    for field in ignored {
        tracing::warn!(resource = %key, "from another control plane: {field}");
    }
    if let Some(status) = packed.status.filter(|status| !status.value.is_empty()) {
        set_status(&mut spec, json_of(&status).map_err(wrong)?).map_err(|e| wrong(e.to_string()))?;
    }
    let mut resource_meta = Meta::new(key.mesh.clone(), key.name.clone());
    resource_meta.labels = meta.labels.into_iter().collect();
    let resource = Resource::new(resource_meta, spec);
    // The sender has checked it. What makes no sense here is checked again, so that nothing unheard of gets into the store.
    let violations = validate::meta(kind, &resource.meta);
    let broken: Vec<String> = violations
        .iter()
        .filter(|violation| matches!(violation.field.as_str(), "name" | "mesh"))
        .map(ToString::to_string)
        .collect();
    if broken.is_empty() { Ok(resource) } else { Err(wrong(broken.join("; "))) }
}

fn json_of(any: &Any) -> Result<Value, String> {
    if any.value.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    serde_json::from_slice(&any.value).map_err(|e| format!("it is no JSON: {e}"))
}
