//! A document's tree to the wire, by the schema. The output is canonical: fields by number, map entries by key, zero
//! values of implicit fields left out.

use std::borrow::Cow;

use super::node::Node;
use super::scalar::{self, Scalar, expected};
use super::{FieldError, MAX_DEPTH, MAX_ERRORS, Options, time};
use crate::path::{FieldPath, Step, quote};
use crate::schema::{Field, Kind, Message, Special};
use crate::type_url;
use crate::wire;

/// Most unknown fields that are listed when they are allowed.
const MAX_IGNORED: usize = 1024;

/// What one pass over a document found.
pub(crate) struct Outcome {
    pub(crate) wire: Vec<u8>,
    pub(crate) errors: Vec<FieldError>,
    pub(crate) ignored: Vec<String>,
}

/// Transcodes a document into the wire form of `message`. The wire form is of use only when there are no errors.
pub(crate) fn transcode(message: Message, root: &Node<'_>, options: Options) -> Outcome {
    let mut parser =
        Parser { out: Vec::new(), path: FieldPath::default(), errors: Vec::new(), ignored: Vec::new(), options };
    parser.message(message, root, 0);
    if parser.is_full() {
        let reason = format!("stopped after {MAX_ERRORS} errors: there may be more");
        parser.errors.push(FieldError { path: String::new(), reason });
    }
    Outcome { wire: parser.out, errors: parser.errors, ignored: parser.ignored }
}

struct Parser<'n> {
    out: Vec<u8>,
    path: FieldPath<'n>,
    errors: Vec<FieldError>,
    ignored: Vec<String>,
    options: Options,
}

impl<'n> Parser<'n> {
    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    fn error(&mut self, reason: impl Into<String>) {
        if !self.is_full() {
            self.errors.push(FieldError { path: self.path.to_string(), reason: reason.into() });
        }
    }

    fn error_at(&mut self, step: Step<'n>, reason: impl Into<String>) {
        self.path.push(step);
        self.error(reason);
        self.path.pop();
    }

    /// Writes a message's body. `depth` counts messages within one `Any`, as the decoder of the wire will.
    fn message(&mut self, message: Message, node: &'n Node<'n>, depth: usize) {
        if depth > MAX_DEPTH {
            return self.error(format!("messages are nested deeper than {MAX_DEPTH} levels"));
        }
        match message.special() {
            Special::None => match node {
                Node::Map(entries) => self.fields(message, entries, false, depth),
                other => self.error(expected(&format!("an object ({})", message.full_name()), other)),
            },
            Special::Any => self.any(node),
            // The fields of these may also be spelt out: protobuf's C++ reader takes that, so files exist that have it.
            Special::Duration | Special::Timestamp | Special::Wrapper if matches!(node, Node::Map(_)) => {
                if let Node::Map(entries) = node {
                    self.fields(message, entries, false, depth);
                }
            }
            Special::Duration => {
                let what = "a duration in seconds such as \"5s\" or \"0.250s\"";
                self.seconds_and_nanos(node, what, time::parse_duration);
            }
            Special::Timestamp => {
                let what = "a time such as \"2026-01-31T23:59:59Z\" (RFC 3339, years 1 to 9999)";
                self.seconds_and_nanos(node, what, time::parse_timestamp);
            }
            Special::Struct => self.struct_body(node, depth),
            Special::Value => self.value_body(node, depth),
            Special::ListValue => self.list_body(node, depth),
            Special::Wrapper => {
                if let Some(field) = message.field_at(0) {
                    self.scalar(field, node);
                }
            }
        }
    }

    /// Writes the fields of an ordinary message; `in_any` passes over `@type`.
    fn fields(&mut self, message: Message, entries: &'n [(Cow<'n, str>, Node<'n>)], in_any: bool, depth: usize) {
        let mut set: Vec<(Field, &'n str, &'n Node<'n>)> = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            if in_any && key == "@type" {
                continue;
            }
            match message.field_named(key) {
                Some(field) => {
                    if let Some((_, first, _)) = set.iter().find(|(other, ..)| other.index == field.index) {
                        let reason = match *first == key {
                            true => "the key occurs twice".into(),
                            false => format!("the same field occurs twice, as {} and {}", quote(first), quote(key)),
                        };
                        self.error_at(Step::Field(field.name()), reason);
                        continue;
                    }
                    let list_or_map = field.is_repeated() || field.is_map();
                    if matches!(node, Node::Null) && (list_or_map || !null_is_a_value(field.kind())) {
                        continue;
                    }
                    let sibling =
                        set.iter().find(|(other, ..)| field.oneof().is_some() && other.oneof() == field.oneof());
                    if let Some((other, ..)) = sibling {
                        let reason =
                            format!("excludes `{}`, which is set as well: only one of them may be", other.name());
                        self.error_at(Step::Field(field.name()), reason);
                        continue;
                    }
                    set.push((field, key, node));
                }
                None if self.options.allow_unknown_fields => {
                    self.path.push(Step::Field(key));
                    if self.ignored.len() < MAX_IGNORED {
                        self.ignored.push(self.path.to_string());
                    }
                    self.path.pop();
                }
                None => self.error_at(Step::Field(key), format!("unknown field of {}", message.full_name())),
            }
            if self.is_full() {
                return;
            }
        }
        set.sort_by_key(|(field, ..)| field.index);
        for (field, _, node) in set {
            self.path.push(Step::Field(field.name()));
            self.field(field, node, depth);
            self.path.pop();
            if self.is_full() {
                return;
            }
        }
    }

    fn field(&mut self, field: Field, node: &'n Node<'n>, depth: usize) {
        if let Some((key, value)) = field.map_entry() {
            return self.map(field, key, value, node, depth);
        }
        if !field.is_repeated() {
            return match field.kind() {
                Kind::Message(message) => self.submessage(field.number(), message, node, depth),
                _ => self.scalar(field, node),
            };
        }
        // A list of one may be written without brackets: protobuf's C++ reader takes that, so files exist that have it.
        let items = match node {
            Node::List(items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        let packed = (field.is_packed() && !items.is_empty()).then(|| {
            wire::put_tag(&mut self.out, field.number(), wire::LEN);
            wire::open(&mut self.out)
        });
        let in_brackets = matches!(node, Node::List(_));
        for (i, item) in items.iter().enumerate() {
            if in_brackets {
                self.path.push(Step::Index(i));
            }
            match field.kind() {
                _ if matches!(item, Node::Null) && !null_is_a_value(field.kind()) => {
                    self.error("null is not allowed in a list")
                }
                Kind::Message(message) => self.submessage(field.number(), message, item, depth),
                kind => match scalar::parse(kind, item) {
                    Ok(value) => {
                        if packed.is_none() {
                            wire::put_tag(&mut self.out, field.number(), value.wire_type());
                        }
                        value.put(&mut self.out);
                    }
                    Err(reason) => self.error(reason),
                },
            }
            if in_brackets {
                self.path.pop();
            }
            if self.is_full() {
                return;
            }
        }
        if let Some(start) = packed {
            wire::close(&mut self.out, start);
        }
    }

    fn submessage(&mut self, number: u32, message: Message, node: &'n Node<'n>, depth: usize) {
        wire::put_tag(&mut self.out, number, wire::LEN);
        let start = wire::open(&mut self.out);
        self.message(message, node, depth + 1);
        wire::close(&mut self.out, start);
    }

    fn scalar(&mut self, field: Field, node: &'n Node<'n>) {
        match scalar::parse(field.kind(), node) {
            Ok(value) if field.is_implicit() && value.is_zero() => {}
            Ok(value) => self.put(field.number(), &value),
            Err(reason) => self.error(reason),
        }
    }

    fn put(&mut self, number: u32, value: &Scalar<'_>) {
        wire::put_tag(&mut self.out, number, value.wire_type());
        value.put(&mut self.out);
    }

    fn map(&mut self, field: Field, key: Field, value: Field, node: &'n Node<'n>, depth: usize) {
        let Node::Map(entries) = node else {
            return self.error(expected("an object (a map)", node));
        };
        for (name, item) in self.sorted(entries) {
            self.path.push(Step::Key(name));
            let key_node = key_node(key.kind(), name);
            match scalar::parse(key.kind(), &key_node) {
                Ok(_) if matches!(item, Node::Null) && !null_is_a_value(value.kind()) => {
                    self.error("null is not allowed in a map");
                }
                Ok(key_value) => {
                    wire::put_tag(&mut self.out, field.number(), wire::LEN);
                    let start = wire::open(&mut self.out);
                    self.put(key.number(), &key_value);
                    match value.kind() {
                        Kind::Message(message) => self.submessage(value.number(), message, item, depth + 1),
                        kind => match scalar::parse(kind, item) {
                            Ok(scalar) => self.put(value.number(), &scalar),
                            Err(reason) => self.error(reason),
                        },
                    }
                    wire::close(&mut self.out, start);
                }
                Err(reason) => self.error(format!("bad key: {reason}")),
            }
            self.path.pop();
            if self.is_full() {
                return;
            }
        }
    }

    /// The entries of a map by key, each key once; a key's second occurrence is an error.
    fn sorted(&mut self, entries: &'n [(Cow<'n, str>, Node<'n>)]) -> Vec<(&'n str, &'n Node<'n>)> {
        let mut sorted: Vec<_> = entries.iter().map(|(key, node)| (key.as_ref(), node)).collect();
        sorted.sort_by_key(|(key, _)| *key);
        for pair in sorted.windows(2) {
            if let [(first, _), (second, _)] = pair
                && first == second
            {
                self.error_at(Step::Key(first), "the key occurs twice");
            }
        }
        sorted.dedup_by_key(|(key, _)| *key);
        sorted
    }

    fn any(&mut self, node: &'n Node<'n>) {
        let Node::Map(entries) = node else {
            return self.error(expected("an object with `@type` (google.protobuf.Any)", node));
        };
        if entries.is_empty() {
            return;
        }
        let mut types = entries.iter().filter(|(key, _)| key == "@type").map(|(_, node)| node);
        let url = match (types.next(), types.next()) {
            (Some(Node::Text(url)), None) => url.as_ref(),
            (None, _) => return self.error("`@type` is missing: it names the type of this google.protobuf.Any"),
            (Some(_), Some(_)) => return self.error_at(Step::Field("@type"), "the key occurs twice"),
            (Some(other), None) => return self.error_at(Step::Field("@type"), expected("a type URL", other)),
        };
        let Some(name) = type_url::message_name(url) else {
            let reason =
                format!("{} is not a type URL: expected such as \"type.googleapis.com/package.Message\"", quote(url));
            return self.error_at(Step::Field("@type"), reason);
        };
        let Some(message) = Message::find(name) else {
            return self.error_at(Step::Field("@type"), format!("unknown type {}", quote(name)));
        };
        wire::put_bytes(&mut self.out, 1, url.as_bytes());
        let before = self.out.len();
        wire::put_tag(&mut self.out, 2, wire::LEN);
        let start = wire::open(&mut self.out);
        if message.special() == Special::None {
            self.fields(message, entries, true, 0);
        } else {
            // Well-known types have no fields to stand beside `@type`: their JSON is under `value`.
            let mut content = None;
            for (key, node) in entries.iter().filter(|(key, _)| key != "@type") {
                match (key.as_ref(), content) {
                    ("value", None) => content = Some(node),
                    ("value", Some(_)) => self.error_at(Step::Field("value"), "the key occurs twice"),
                    (other, _) => {
                        let reason = format!("{name} has its JSON form under `value` and nothing beside it");
                        self.error_at(Step::Field(other), reason);
                    }
                }
            }
            match content {
                Some(node) => {
                    self.path.push(Step::Field("value"));
                    self.message(message, node, 0);
                    self.path.pop();
                }
                None => self.error(format!("`value` is missing: {name} has its JSON form there")),
            }
        }
        if self.out.len() == start {
            self.out.truncate(before);
        } else {
            wire::close(&mut self.out, start);
        }
    }

    fn seconds_and_nanos(&mut self, node: &Node<'_>, what: &str, parse: fn(&str) -> Option<(i64, i32)>) {
        let parsed = match node {
            Node::Text(text) => parse(text),
            _ => None,
        };
        let Some((seconds, nanos)) = parsed else {
            return self.error(expected(what, node));
        };
        for (number, part) in [(1, seconds), (2, i64::from(nanos))] {
            if part != 0 {
                self.put(number, &Scalar::Varint(part.cast_unsigned()));
            }
        }
    }

    fn struct_body(&mut self, node: &'n Node<'n>, depth: usize) {
        let Node::Map(entries) = node else {
            return self.error(expected("an object (google.protobuf.Struct)", node));
        };
        for (key, item) in self.sorted(entries) {
            self.path.push(Step::Key(key));
            wire::put_tag(&mut self.out, 1, wire::LEN);
            let entry = wire::open(&mut self.out);
            wire::put_bytes(&mut self.out, 1, key.as_bytes());
            wire::put_tag(&mut self.out, 2, wire::LEN);
            let value = wire::open(&mut self.out);
            self.value_body(item, depth + 2);
            wire::close(&mut self.out, value);
            wire::close(&mut self.out, entry);
            self.path.pop();
            if self.is_full() {
                return;
            }
        }
    }

    fn value_body(&mut self, node: &'n Node<'n>, depth: usize) {
        if depth > MAX_DEPTH {
            return self.error(format!("messages are nested deeper than {MAX_DEPTH} levels"));
        }
        match node {
            Node::Null => self.put(1, &Scalar::Varint(0)),
            Node::Bool(value) => self.put(4, &Scalar::Varint((*value).into())),
            Node::Text(text) => wire::put_bytes(&mut self.out, 3, text.as_bytes()),
            Node::Unsigned(_) | Node::Signed(_) | Node::Float(_) => match scalar::float(node) {
                Ok(number) if number.is_finite() => self.put(2, &Scalar::Fixed64(number.to_bits())),
                _ => self.error(expected("a finite number", node)),
            },
            Node::Map(_) | Node::List(_) => {
                let number = if matches!(node, Node::Map(_)) { 5 } else { 6 };
                wire::put_tag(&mut self.out, number, wire::LEN);
                let start = wire::open(&mut self.out);
                match node {
                    Node::Map(_) => self.struct_body(node, depth + 1),
                    _ => self.list_body(node, depth + 1),
                }
                wire::close(&mut self.out, start);
            }
        }
    }

    fn list_body(&mut self, node: &'n Node<'n>, depth: usize) {
        let Node::List(items) = node else {
            return self.error(expected("a list (google.protobuf.ListValue)", node));
        };
        for (i, item) in items.iter().enumerate() {
            self.path.push(Step::Index(i));
            wire::put_tag(&mut self.out, 1, wire::LEN);
            let start = wire::open(&mut self.out);
            self.value_body(item, depth + 1);
            wire::close(&mut self.out, start);
            self.path.pop();
            if self.is_full() {
                return;
            }
        }
    }
}

/// Whether null is a value of this type; elsewhere it means unset.
fn null_is_a_value(kind: Kind) -> bool {
    match kind {
        Kind::Message(message) => message.special() == Special::Value,
        Kind::Enum(enumeration) => enumeration.is_null_value(),
        _ => false,
    }
}

/// JSON's keys are text: those of number and boolean maps are read from it.
fn key_node<'k>(kind: Kind, name: &'k str) -> Node<'k> {
    match (kind, name) {
        (Kind::Bool, "true") => Node::Bool(true),
        (Kind::Bool, "false") => Node::Bool(false),
        _ => Node::Text(Cow::Borrowed(name)),
    }
}
