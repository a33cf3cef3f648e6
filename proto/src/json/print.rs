//! The wire to a JSON tree, by the schema: fields by number, map entries by key, every `Any` expanded.

use serde_json::{Map, Value};

use super::scalar::{print, print_bytes, print_float};
use super::{Names, PrintError, time};
use crate::schema::{Field, Kind, Message, Special};
use crate::type_url;
use crate::wire::{FIXED32, FIXED64, Malformed, Reader, VARINT, Wire};

/// Deepest nesting of messages, those inside an `Any` included.
const MAX_NESTING: usize = 256;

impl From<Malformed> for PrintError {
    fn from(Malformed: Malformed) -> Self {
        PrintError::Malformed
    }
}

/// Renders the wire form of a message.
pub(crate) fn message(message: Message, bytes: &[u8], names: Names) -> Result<Value, PrintError> {
    Printer { names }.message(message, bytes, 0)
}

struct Printer {
    names: Names,
}

impl Printer {
    fn message(&self, message: Message, bytes: &[u8], depth: usize) -> Result<Value, PrintError> {
        if depth > MAX_NESTING {
            return Err(PrintError::TooDeep);
        }
        match message.special() {
            Special::None => Ok(Value::Object(self.fields(message, bytes, depth)?)),
            Special::Any => self.any(message, bytes, depth),
            Special::Duration => seconds_and_nanos(message, bytes, time::print_duration),
            Special::Timestamp => seconds_and_nanos(message, bytes, time::print_timestamp),
            Special::Struct => {
                let fields = set_fields(message, bytes)?;
                let map = match (fields.first(), message.field_at(0)) {
                    (Some(_), Some(field)) => self.map(field, &fields, depth)?,
                    _ => Map::new(),
                };
                Ok(Value::Object(map))
            }
            Special::Value => self.value(message, bytes, depth),
            Special::ListValue => {
                let fields = set_fields(message, bytes)?;
                match (fields.first(), message.field_at(0)) {
                    (Some(_), Some(field)) => self.list(field, &fields, depth),
                    _ => Ok(Value::Array(Vec::new())),
                }
            }
            Special::Wrapper => {
                let field = message.field_at(0).ok_or(PrintError::Malformed)?;
                match set_fields(message, bytes)?.last() {
                    Some((_, value)) => print(field.kind(), *value).ok_or(PrintError::Malformed),
                    None => zero(field.kind()).ok_or(PrintError::Malformed),
                }
            }
        }
    }

    fn fields(&self, message: Message, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, PrintError> {
        let mut object = Map::new();
        for values in set_fields(message, bytes)?.chunk_by(|(a, _), (b, _)| a.index == b.index) {
            let [.., (field, last)] = values else { continue };
            let value = if field.is_map() {
                Value::Object(self.map(*field, values, depth)?)
            } else if field.is_repeated() {
                self.list(*field, values, depth)?
            } else if let Kind::Message(message) = field.kind() {
                match values {
                    [(_, value)] => self.submessage(message, *value, depth)?,
                    // A message sent in parts is the merge of them, which on the wire is their concatenation.
                    parts => {
                        let mut whole = Vec::new();
                        for (_, part) in parts {
                            whole.extend_from_slice(content(*part)?);
                        }
                        self.message(message, &whole, depth + 1)?
                    }
                }
            } else if field.is_implicit() && last.is_zero() {
                continue;
            } else {
                print(field.kind(), *last).ok_or(PrintError::Malformed)?
            };
            let name = match self.names {
                Names::Proto => field.name(),
                Names::LowerCamelCase => field.json_name(),
            };
            object.insert(name.to_owned(), value);
        }
        Ok(object)
    }

    fn submessage(&self, message: Message, value: Wire<'_>, depth: usize) -> Result<Value, PrintError> {
        self.message(message, content(value)?, depth + 1)
    }

    fn list(&self, field: Field, values: &[(Field, Wire<'_>)], depth: usize) -> Result<Value, PrintError> {
        let mut list = Vec::with_capacity(values.len());
        for (_, value) in values {
            match (field.kind(), packed_type(field.kind()), *value) {
                (Kind::Message(message), ..) => list.push(self.submessage(message, *value, depth)?),
                (kind, Some(wire_type), Wire::Len(bytes)) => {
                    let mut reader = Reader(bytes);
                    while !reader.0.is_empty() {
                        list.push(print(kind, reader.value(wire_type)?).ok_or(PrintError::Malformed)?);
                    }
                }
                (kind, ..) => list.push(print(kind, *value).ok_or(PrintError::Malformed)?),
            }
        }
        Ok(Value::Array(list))
    }

    fn map(&self, field: Field, values: &[(Field, Wire<'_>)], depth: usize) -> Result<Map<String, Value>, PrintError> {
        let (key, value) = field.map_entry().ok_or(PrintError::Malformed)?;
        let mut entries = Vec::with_capacity(values.len());
        for (_, entry) in values {
            let (mut name, mut item) = (None, None);
            let mut reader = Reader(content(*entry)?);
            while let Some((number, wire)) = reader.next()? {
                match number {
                    1 => name = Some(print(key.kind(), wire).ok_or(PrintError::Malformed)?),
                    2 => item = Some(wire),
                    _ => {}
                }
            }
            let name = match name.or_else(|| zero(key.kind())).ok_or(PrintError::Malformed)? {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let item = match (value.kind(), item) {
                (Kind::Message(message), Some(wire)) => self.message(message, content(wire)?, depth + 2)?,
                (Kind::Message(message), None) => self.message(message, &[], depth + 2)?,
                (kind, Some(wire)) => print(kind, wire).ok_or(PrintError::Malformed)?,
                (kind, None) => zero(kind).ok_or(PrintError::Malformed)?,
            };
            entries.push((name, item));
        }
        // Stable, so that of two entries with one key the later one stays.
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(entries.into_iter().collect())
    }

    /// `{"@type": url, ...fields}`. What cannot be expanded, because its type is unknown or its bytes are not of that
    /// type, is kept as `{"@type": url, "value": base64}`.
    fn any(&self, any: Message, bytes: &[u8], depth: usize) -> Result<Value, PrintError> {
        let (mut url, mut value) = ("", &[][..]);
        for (field, wire) in set_fields(any, bytes)? {
            match field.number() {
                1 => url = std::str::from_utf8(content(wire)?).map_err(|_| PrintError::Malformed)?,
                _ => value = content(wire)?,
            }
        }
        let mut object = Map::new();
        if url.is_empty() && value.is_empty() {
            return Ok(Value::Object(object));
        }
        object.insert("@type".into(), Value::String(url.to_owned()));
        let fields = match type_url::message_name(url).and_then(Message::find) {
            Some(message) if message.special() == Special::None => self.fields(message, value, depth + 1).ok(),
            Some(message) => {
                self.message(message, value, depth + 1).ok().map(|value| Map::from_iter([("value".to_owned(), value)]))
            }
            None => None,
        };
        match fields {
            Some(fields) => object.extend(fields),
            None => {
                object.insert("value".into(), Value::String(print_bytes(value)));
            }
        }
        Ok(Value::Object(object))
    }

    fn value(&self, message: Message, bytes: &[u8], depth: usize) -> Result<Value, PrintError> {
        let fields = set_fields(message, bytes)?;
        match fields.last() {
            None => Ok(Value::Null),
            Some((field, wire)) => match (field.kind(), wire) {
                (Kind::Message(inner), _) => self.submessage(inner, *wire, depth),
                (Kind::Double, Wire::Fixed64(bits)) => Ok(print_float(f64::from_bits(*bits))),
                (kind, _) => print(kind, *wire).ok_or(PrintError::Malformed),
            },
        }
    }
}

/// The known fields of a message, ordered by number; of a oneof only the member that came last.
fn set_fields<'a>(message: Message, bytes: &'a [u8]) -> Result<Vec<(Field, Wire<'a>)>, PrintError> {
    let mut fields: Vec<(Field, Wire<'a>)> = Vec::new();
    let mut chosen: Vec<(u8, u16)> = Vec::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some(field) = message.field_numbered(number) else { continue };
        if let Some(oneof) = field.oneof() {
            match chosen.iter_mut().find(|(known, _)| *known == oneof) {
                Some((_, member)) => *member = field.index,
                None => chosen.push((oneof, field.index)),
            }
        }
        fields.push((field, wire));
    }
    fields.retain(|(field, _)| {
        chosen.iter().all(|(oneof, member)| field.oneof() != Some(*oneof) || field.index == *member)
    });
    fields.sort_by_key(|(field, _)| field.index);
    Ok(fields)
}

fn content(wire: Wire<'_>) -> Result<&[u8], PrintError> {
    match wire {
        Wire::Len(bytes) => Ok(bytes),
        _ => Err(PrintError::Malformed),
    }
}

/// The wire type of a list's elements when they are packed; `None` for types that never are.
fn packed_type(kind: Kind) -> Option<u8> {
    match kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => None,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Some(FIXED64),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Some(FIXED32),
        _ => Some(VARINT),
    }
}

/// The JSON of a value that is not on the wire.
fn zero(kind: Kind) -> Option<Value> {
    let wire = match packed_type(kind) {
        Some(VARINT) => Wire::Varint(0),
        Some(FIXED64) => Wire::Fixed64(0),
        Some(FIXED32) => Wire::Fixed32(0),
        _ => Wire::Len(&[]),
    };
    print(kind, wire)
}

fn seconds_and_nanos(
    message: Message,
    bytes: &[u8],
    print: fn(i64, i32) -> Option<String>,
) -> Result<Value, PrintError> {
    let (mut seconds, mut nanos) = (0, 0);
    for (field, wire) in set_fields(message, bytes)? {
        match (field.number(), wire) {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = number as i32,
            _ => return Err(PrintError::Malformed),
        }
    }
    print(seconds, nanos).map(Value::String).ok_or(PrintError::OutOfRange(message.full_name()))
}
