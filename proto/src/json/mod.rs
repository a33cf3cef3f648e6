//! Protobuf messages from and to JSON and YAML, with every error named by its field path.
//!
//! The forms are those of proto3 JSON (<https://protobuf.dev/programming-guides/json/>) as Envoy reads and writes them:
//!
//! - Both `connect_timeout` and `connectTimeout` are read; enum names are read regardless of case.
//! - An `Any` is an object with `@type`; its fields stand beside it, or under `value` for a well-known type.
//! - YAML's plain scalars mean what they mean to Envoy (`yes` is a boolean, `0644` is octal, `1.10` is text until a
//!   number is wanted); anchors, aliases and merge keys work. An unquoted integer is no string: it needs quotes.
//! - A list of one may stand without brackets, and numbers and booleans in quotes, as in Envoy.
//! - Unlike Envoy, a key that occurs twice is an error, as are null inside a map and a second YAML document: Envoy
//!   drops one of the two in silence.
//! - Written output has the names of the .proto files (or lowerCamelCase on request), 64-bit integers as strings, enums
//!   by name and no unset fields. Fields come by number and map entries by key, so equal messages give equal text.
//!
//! A document is transcoded into protobuf's wire form by constant tables and then decoded by prost; a message is printed
//! by the same way back.

mod node;
mod parse;
mod print;
mod scalar;
mod time;
mod yaml;

use std::fmt;

use prost::{Message, Name};
use serde_json::Value;

use crate::schema;
use node::Node;

/// Deepest nesting of messages inside one message or one `Any`: what prost decodes.
const MAX_DEPTH: usize = 100;
/// Most errors that are collected before a document is given up.
const MAX_ERRORS: usize = 64;

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FieldError {
    /// The field, such as `static_resources.listeners[0].filter_chains[0]`; empty for the document as a whole.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

/// How strictly a document is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Fields unknown to the schema are listed instead of refused, as with Envoy's `--allow-unknown-static-fields`.
    /// Unknown names of enums and unknown types of an `Any` stay errors. Default: false.
    pub allow_unknown_fields: bool,
}

/// A message and what was passed over in reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<M> {
    /// The message.
    pub message: M,
    /// Paths of unknown fields that were ignored, 1,024 at most; empty unless [`Options::allow_unknown_fields`].
    pub ignored: Vec<String>,
}

/// Which names printed fields have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// As in the .proto files (`connect_timeout`): Envoy's admin interface.
    #[default]
    Proto,
    /// `connectTimeout`: what Go control planes log and Kuma's REST API answers.
    LowerCamelCase,
}

/// Why a message has no JSON form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrintError {
    /// The bytes are not the wire form of the type.
    #[error("the bytes are not a message of this type")]
    Malformed,
    /// A duration or time that JSON cannot express.
    #[error("a {0} is outside the range that has a JSON form")]
    OutOfRange(&'static str),
    /// Nested deeper than 256 levels.
    #[error("messages are nested too deeply")]
    TooDeep,
    /// The type is not among Envoy's.
    #[error("the type is unknown")]
    UnknownType,
}

/// Reads a message from a YAML document (or JSON, which is YAML too, but see [`from_json_str`]: it is faster).
///
/// # Errors
/// Every error found, 64 at most; bad syntax is a single error with line and column.
pub fn from_yaml<M: Message + Name + Default>(text: &str) -> Result<M, Vec<FieldError>> {
    from_yaml_with(text, Options::default()).map(|parsed| parsed.message)
}

/// [`from_yaml`] with options.
///
/// # Errors
/// As [`from_yaml`].
pub fn from_yaml_with<M: Message + Name + Default>(text: &str, options: Options) -> Result<Parsed<M>, Vec<FieldError>> {
    let node = yaml::parse(text).map_err(|error| whole(format!("bad YAML: {error}")))?;
    from_node(&node, options)
}

/// [`from_yaml_with`], left in protobuf's own form: `full_name` is the message's, such as `envoy.config.bootstrap.v3.Bootstrap`.
///
/// # Errors
/// As [`from_yaml`]; also an unknown type.
pub fn yaml_to_wire(full_name: &str, text: &str, options: Options) -> Result<Parsed<Vec<u8>>, Vec<FieldError>> {
    let node = yaml::parse(text).map_err(|error| whole(format!("bad YAML: {error}")))?;
    to_wire(full_name, &node, options)
}

/// [`from_json_str_with`], left in protobuf's own form.
///
/// # Errors
/// As [`yaml_to_wire`].
pub fn json_str_to_wire(full_name: &str, text: &str, options: Options) -> Result<Parsed<Vec<u8>>, Vec<FieldError>> {
    let node: Node<'_> = serde_json::from_str(text).map_err(|error| whole(format!("bad JSON: {error}")))?;
    to_wire(full_name, &node, options)
}

/// Reads a message from a JSON text.
///
/// # Errors
/// As [`from_yaml`].
pub fn from_json_str<M: Message + Name + Default>(text: &str) -> Result<M, Vec<FieldError>> {
    from_json_str_with(text, Options::default()).map(|parsed| parsed.message)
}

/// [`from_json_str`] with options.
///
/// # Errors
/// As [`from_yaml`].
pub fn from_json_str_with<M: Message + Name + Default>(
    text: &str,
    options: Options,
) -> Result<Parsed<M>, Vec<FieldError>> {
    let node: Node<'_> = serde_json::from_str(text).map_err(|error| whole(format!("bad JSON: {error}")))?;
    from_node(&node, options)
}

/// Reads a message from a tree of serde_json, in which duplicate keys are already lost.
///
/// # Errors
/// As [`from_yaml`].
pub fn from_json_value<M: Message + Name + Default>(value: &Value) -> Result<M, Vec<FieldError>> {
    from_json_value_with(value, Options::default()).map(|parsed| parsed.message)
}

/// [`from_json_value`] with options.
///
/// # Errors
/// As [`from_yaml`].
pub fn from_json_value_with<M: Message + Name + Default>(
    value: &Value,
    options: Options,
) -> Result<Parsed<M>, Vec<FieldError>> {
    let node = Node::of_value(value, 0).map_err(whole)?;
    from_node(&node, options)
}

/// The JSON form of a message; of a `google.protobuf.Any` its expanded content.
///
/// An `Any` whose type is unknown or whose bytes do not fit its type is kept as `{"@type": url, "value": base64}`.
///
/// # Errors
/// A value outside the range that JSON has for it (a duration of more than 10,000 years), or nesting deeper than 256.
pub fn to_json_value<M: Message + Name>(message: &M, names: Names) -> Result<Value, PrintError> {
    wire_to_json_value(&M::full_name(), &message.encode_to_vec(), names)
}

/// The JSON form of an encoded message of a type known by its full name, such as `envoy.config.cluster.v3.Cluster`.
///
/// # Errors
/// As [`to_json_value`]; also bytes that are not of that type, and an unknown type.
pub fn wire_to_json_value(full_name: &str, bytes: &[u8], names: Names) -> Result<Value, PrintError> {
    let message = schema::Message::find(full_name).ok_or(PrintError::UnknownType)?;
    print::message(message, bytes, names)
}

/// The other way round: the encoded message, of a type known by its full name, that a tree of JSON stands for.
///
/// # Errors
/// As [`from_yaml`]; also an unknown type.
pub fn json_value_to_wire(full_name: &str, value: &Value, options: Options) -> Result<Vec<u8>, Vec<FieldError>> {
    let node = Node::of_value(value, 0).map_err(whole)?;
    to_wire(full_name, &node, options).map(|parsed| parsed.message)
}

/// [`to_json_value`] as a YAML document, such as a bootstrap that Envoy reads. Envoy's reader of YAML has no fractions
/// outside of fields that want them: a fraction inside a `Struct` is printed, but reads back as text.
///
/// # Errors
/// As [`to_json_value`].
pub fn to_yaml<M: Message + Name>(message: &M, names: Names) -> Result<String, PrintError> {
    Ok(yaml::print(&to_json_value(message, names)?))
}

fn from_node<M: Message + Name + Default>(node: &Node<'_>, options: Options) -> Result<Parsed<M>, Vec<FieldError>> {
    let name = M::full_name();
    let Parsed { message: wire, ignored } = to_wire(&name, node, options)?;
    let message = M::decode(wire.as_slice()).map_err(|error| whole(format!("cannot decode {name}: {error}")))?;
    Ok(Parsed { message, ignored })
}

fn to_wire(full_name: &str, node: &Node<'_>, options: Options) -> Result<Parsed<Vec<u8>>, Vec<FieldError>> {
    let message = schema::Message::find(full_name).ok_or_else(|| whole(format!("{full_name} is not in the schema")))?;
    let outcome = parse::transcode(message, node, options);
    if !outcome.errors.is_empty() {
        return Err(outcome.errors);
    }
    Ok(Parsed { message: outcome.wire, ignored: outcome.ignored })
}

fn whole(reason: String) -> Vec<FieldError> {
    vec![FieldError { path: String::new(), reason }]
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
