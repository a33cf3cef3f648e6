//! Kuma's universal documents, YAML or JSON: from text to a [`Resource`] and back.
//!
//! Kuma ignores fields it does not know. Shika accepts such a document too, but names every ignored field in
//! [`Parsed::warnings`], which the REST API returns and shikactl prints.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::kind::{spec_from_value, spec_to_value};
use super::validate::Violation;
use super::{Kind, Meta, Resource, Spec};

/// Why a document is not a resource.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// It is neither YAML nor JSON.
    #[error("invalid YAML or JSON: {0}")]
    Syntax(String),
    /// A field has the wrong type or value.
    #[error("{}", violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Fields {
        /// One for each field.
        violations: Vec<Violation>,
    },
}

impl ParseError {
    fn field(field: impl Into<String>, message: impl Into<String>) -> ParseError {
        ParseError::Fields { violations: vec![Violation::new(field, message)] }
    }
}

/// A resource read from a document, and what was ignored on the way.
#[derive(Debug)]
pub struct Parsed {
    /// The resource; its times and version are not taken from the document.
    pub resource: Resource,
    /// What the user should know: fields that are not known, settings without effect.
    pub warnings: Vec<String>,
}

/// Splits a text of several YAML documents (or one JSON document) into values; empty documents are left out.
///
/// # Errors
/// [`ParseError::Syntax`] with line and column, counted from the start of the text.
pub fn documents(text: &str) -> Result<Vec<Value>, ParseError> {
    let mut values = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        // By way of YAML's own value: it refuses a key that is given twice, where JSON's map would keep the last one.
        let value: serde_yaml_ng::Value =
            serde::Deserialize::deserialize(document).map_err(|e| ParseError::Syntax(e.to_string()))?;
        if value.is_null() {
            continue;
        }
        values.push(serde_json::to_value(value).map_err(|e| ParseError::Syntax(e.to_string()))?);
    }
    Ok(values)
}

/// Reads one document as a resource. Its rules are not checked: see [`super::validate`].
///
/// # Errors
/// [`ParseError::Fields`] naming the field that has no `type` known here, or a value of the wrong type.
pub fn parse(document: Value) -> Result<Parsed, ParseError> {
    let Value::Object(mut fields) = document else {
        return Err(ParseError::Syntax("expected a resource: an object with type, mesh and name".to_owned()));
    };
    if fields.contains_key("apiVersion") && fields.contains_key("kind") && !fields.contains_key("type") {
        return Err(ParseError::field(
            "kind",
            "this is a Kubernetes document; use the universal format with type, mesh and name at the top",
        ));
    }
    let type_name = take_text(&mut fields, "type")?;
    if type_name.is_empty() {
        return Err(ParseError::field("type", "cannot be empty"));
    }
    let kind = Kind::in_api().find(|kind| kind.name() == type_name).ok_or_else(|| {
        let known: Vec<&str> = Kind::in_api().map(Kind::name).collect();
        ParseError::field("type", format!("unknown resource type {type_name:?}; known: {}", known.join(", ")))
    })?;
    let mut warnings = Vec::new();
    let mesh = take_text(&mut fields, "mesh")?;
    let mesh = match (kind.in_mesh(), mesh.is_empty()) {
        // Kuma takes a resource without mesh as one of the default mesh.
        (true, true) => "default".to_owned(),
        (true, false) => mesh,
        (false, false) if kind == Kind::Mesh => String::new(),
        (false, false) => {
            warnings.push(format!("mesh: ignored, a {kind} does not belong to a mesh"));
            String::new()
        }
        (false, true) => String::new(),
    };
    let mut meta = Meta::new(mesh, take_text(&mut fields, "name")?);
    if let Some(labels) = fields.remove("labels") {
        meta.labels = read::<BTreeMap<String, String>>(labels, "labels", &mut warnings)?;
    }
    // Written by the control plane into what it serves, and so part of what people edit and apply again.
    for computed in ["creationTime", "modificationTime", "kri"] {
        fields.remove(computed);
    }
    let spec = read_spec(kind, fields, &mut warnings)?;
    Ok(Parsed { resource: Resource::new(meta, spec), warnings })
}

fn read_spec(kind: Kind, mut fields: Map<String, Value>, warnings: &mut Vec<String>) -> Result<Spec, ParseError> {
    let prefix = if kind.has_spec_field() { "spec" } else { "" };
    let value = if kind.has_spec_field() {
        let spec = fields.remove("spec").unwrap_or_else(|| json!({}));
        fields.remove("status");
        warnings.extend(fields.keys().map(|field| format!("{field}: unknown field of {kind}, ignored")));
        spec
    } else {
        Value::Object(fields)
    };
    spec_from_value(kind, value, prefix, warnings)
}

/// What the control plane found out about a resource, as JSON; `None` for a kind without a status.
pub(crate) fn status_to_value(spec: &Spec) -> Option<Value> {
    let value = match spec {
        Spec::MeshExternalService(spec) => serde_json::to_value(&spec.status),
        Spec::MeshMultiZoneService(spec) => serde_json::to_value(&spec.status),
        Spec::MeshService(spec) => serde_json::to_value(&spec.status),
        _ => return None,
    };
    value.ok()
}

/// Puts a status, as [`status_to_value`] wrote it, into a specification; kinds without one ignore it.
///
/// # Errors
/// [`ParseError::Fields`], each field below `status`.
pub(crate) fn set_status(spec: &mut Spec, status: Value) -> Result<(), ParseError> {
    let mut ignored = Vec::new();
    match spec {
        Spec::MeshExternalService(spec) => Arc::make_mut(spec).status = read(status, "status", &mut ignored)?,
        Spec::MeshMultiZoneService(spec) => Arc::make_mut(spec).status = read(status, "status", &mut ignored)?,
        Spec::MeshService(spec) => Arc::make_mut(spec).status = read(status, "status", &mut ignored)?,
        _ => {}
    }
    Ok(())
}

impl Resource {
    /// The document that the REST API serves: Kuma's universal JSON.
    pub fn to_document(&self) -> Value {
        let kind = self.kind();
        let mut document = Map::new();
        document.insert("type".to_owned(), json!(kind.name()));
        if kind.in_mesh() {
            document.insert("mesh".to_owned(), json!(self.meta.mesh));
        }
        document.insert("name".to_owned(), json!(self.meta.name));
        document.insert("creationTime".to_owned(), json!(time(self.meta.creation_time)));
        document.insert("modificationTime".to_owned(), json!(time(self.meta.modification_time)));
        if !self.meta.labels.is_empty() {
            document.insert("labels".to_owned(), json!(self.meta.labels));
        }
        if let Some(kri) = self.key().kri(&self.meta.labels) {
            document.insert("kri".to_owned(), json!(kri));
        }
        let spec = spec_to_value(&self.spec);
        if kind.has_spec_field() {
            document.insert("spec".to_owned(), spec);
            let is_empty = |status: &Value| status.as_object().is_none_or(Map::is_empty);
            if let Some(status) = status_to_value(&self.spec).filter(|status| !is_empty(status)) {
                document.insert("status".to_owned(), status);
            }
        } else if let Value::Object(spec) = spec {
            document.extend(spec);
        }
        Value::Object(document)
    }
}

/// A time as Kuma writes it: RFC 3339, UTC, fractions of a second only where there are any.
pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn take_text(fields: &mut Map<String, Value>, field: &str) -> Result<String, ParseError> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(ParseError::field(field, format!("expected a string, not {other}"))),
    }
}

/// Reads a value into its type: wrong types are errors with their path, unknown fields are warnings with theirs.
pub(super) fn read<T: DeserializeOwned>(
    mut value: Value,
    prefix: &str,
    warnings: &mut Vec<String>,
) -> Result<T, ParseError> {
    drop_nulls(&mut value);
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let mut ignored = Vec::new();
    let result = serde_ignored::deserialize(deserializer, |path| ignored.push(field_path(prefix, &path.to_string())));
    match result {
        Ok(read) => {
            warnings.extend(ignored.into_iter().map(|field| format!("{field}: unknown field, ignored")));
            Ok(read)
        }
        Err(error) => Err(ParseError::field(join(prefix, &track.path().to_string()), error.to_string())),
    }
}

/// Protobuf's JSON mapping takes `null` as an absent field.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `networking.inbound.0.port` as Kuma writes it: `networking.inbound[0].port`.
fn field_path(prefix: &str, path: &str) -> String {
    let mut field = prefix.to_owned();
    // A question mark stands for an optional part and is no field.
    for part in path.split('.').filter(|part| *part != "?") {
        if part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty() {
            field.push_str(&format!("[{part}]"));
        } else {
            if !field.is_empty() {
                field.push('.');
            }
            field.push_str(part);
        }
    }
    field
}

fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        ("", path) => path.to_owned(),
        (prefix, "." | "") => prefix.to_owned(),
        (prefix, path) => format!("{prefix}.{path}"),
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
