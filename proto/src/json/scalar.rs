//! Single values between JSON and the wire: numbers, booleans, enums, text and bytes, with the ranges of proto3 JSON.
//! Source: <https://protobuf.dev/programming-guides/json/>.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Number, Value};

use super::node::Node;
use crate::path::quote;
use crate::schema::Kind;
use crate::wire::{self, Wire};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);

/// A value on its way to the wire.
pub(crate) enum Scalar<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Cow<'a, [u8]>),
}

impl Scalar<'_> {
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Scalar::Varint(number) | Scalar::Fixed64(number) => *number == 0,
            Scalar::Fixed32(number) => *number == 0,
            Scalar::Bytes(bytes) => bytes.is_empty(),
        }
    }

    pub(crate) fn wire_type(&self) -> u8 {
        match self {
            Scalar::Varint(_) => wire::VARINT,
            Scalar::Fixed64(_) => wire::FIXED64,
            Scalar::Fixed32(_) => wire::FIXED32,
            Scalar::Bytes(_) => wire::LEN,
        }
    }

    /// Writes the value without a tag.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Scalar::Varint(number) => wire::put_varint(out, *number),
            Scalar::Fixed64(number) => out.extend_from_slice(&number.to_le_bytes()),
            Scalar::Fixed32(number) => out.extend_from_slice(&number.to_le_bytes()),
            Scalar::Bytes(bytes) => {
                wire::put_varint(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
        }
    }
}

/// Reads a value of a type that is not a message; `Err` is the reason, without the place.
pub(crate) fn parse<'a>(kind: Kind, node: &'a Node<'_>) -> Result<Scalar<'a>, String> {
    let signed = |number: i64| Scalar::Varint(number.cast_unsigned());
    Ok(match kind {
        Kind::Bool => Scalar::Varint(boolean(node)?.into()),
        Kind::Int32 => signed(integer(node, i32::MIN.into(), i32::MAX.into(), "int32")? as i64),
        Kind::Int64 => signed(integer(node, i64::MIN.into(), i64::MAX.into(), "int64")? as i64),
        Kind::Uint32 => Scalar::Varint(integer(node, 0, u32::MAX.into(), "uint32")? as u64),
        Kind::Uint64 => Scalar::Varint(integer(node, 0, u64::MAX.into(), "uint64")? as u64),
        Kind::Sint32 | Kind::Sint64 => {
            let (least, most) = match kind {
                Kind::Sint32 => (i32::MIN.into(), i32::MAX.into()),
                _ => (i64::MIN.into(), i64::MAX.into()),
            };
            let number = integer(node, least, most, "signed integer")? as i64;
            Scalar::Varint(((number << 1) ^ (number >> 63)).cast_unsigned())
        }
        Kind::Fixed32 => Scalar::Fixed32(integer(node, 0, u32::MAX.into(), "fixed32")? as u32),
        Kind::Fixed64 => Scalar::Fixed64(integer(node, 0, u64::MAX.into(), "fixed64")? as u64),
        Kind::Sfixed32 => {
            Scalar::Fixed32((integer(node, i32::MIN.into(), i32::MAX.into(), "sfixed32")? as i32).cast_unsigned())
        }
        Kind::Sfixed64 => {
            Scalar::Fixed64((integer(node, i64::MIN.into(), i64::MAX.into(), "sfixed64")? as i64).cast_unsigned())
        }
        Kind::Double => Scalar::Fixed64(float(node)?.to_bits()),
        Kind::Float => {
            let wide = float(node)?;
            let narrow = wide as f32;
            if narrow.is_infinite() && wide.is_finite() {
                return Err(format!("{wide} is out of range for float"));
            }
            Scalar::Fixed32(narrow.to_bits())
        }
        Kind::String => match node {
            Node::Text(text) => Scalar::Bytes(Cow::Borrowed(text.as_bytes())),
            Node::Unsigned(_) | Node::Signed(_) | Node::Float(_) | Node::Bool(_) => {
                return Err(format!("expected a string, found {}: put it in quotes", node.describe()));
            }
            other => return Err(expected("a string", other)),
        },
        Kind::Bytes => Scalar::Bytes(Cow::Owned(base64_bytes(node)?)),
        Kind::Enum(enumeration) => {
            let number = match node {
                Node::Text(name) => enumeration.number_of(name).or_else(|| name.parse().ok()).ok_or_else(|| {
                    let known: Vec<_> = enumeration.values().take(12).map(|(name, _)| name).collect();
                    let more = if enumeration.values().nth(12).is_some() { ", ..." } else { "" };
                    let names = known.join(", ");
                    format!("{} is not a value of {} ({names}{more})", quote(name), enumeration.full_name())
                })?,
                Node::Null if enumeration.is_null_value() => 0,
                Node::Unsigned(_) | Node::Signed(_) | Node::Float(_) => {
                    integer(node, i32::MIN.into(), i32::MAX.into(), "an enum")? as i32
                }
                other => return Err(expected(&format!("a value of {}", enumeration.full_name()), other)),
            };
            signed(number.into())
        }
        Kind::Message(message) => return Err(format!("{} is not a single value", message.full_name())),
    })
}

/// `expected ..., found ...`
pub(crate) fn expected(what: &str, found: &Node<'_>) -> String {
    format!("expected {what}, found {}", found.describe())
}

/// A boolean, or its text in one of the forms that protobuf's C++ reader takes.
fn boolean(node: &Node<'_>) -> Result<bool, String> {
    match node {
        Node::Bool(value) => Some(*value),
        Node::Text(text) if text.len() <= 5 => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
    .ok_or_else(|| expected("true or false", node))
}

/// A whole number as number or text, also written as `1e3` or `5.0`.
fn integer(node: &Node<'_>, least: i128, most: i128, what: &str) -> Result<i128, String> {
    let whole = |value: f64| (value.fract() == 0.0 && value.abs() < 1e30).then_some(value as i128);
    let number = match node {
        Node::Unsigned(value) => Some(i128::from(*value)),
        Node::Signed(value) => Some(i128::from(*value)),
        Node::Float(value) => whole(*value),
        Node::Text(text) if is_number(text) => text.parse().ok().or_else(|| text.parse().ok().and_then(whole)),
        _ => None,
    }
    .ok_or_else(|| expected(&format!("a whole number ({what})"), node))?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} is out of range for {what} ({least} to {most})"))
    }
}

/// A number, or its text; not-a-number and the infinities have names.
pub(crate) fn float(node: &Node<'_>) -> Result<f64, String> {
    match node {
        Node::Float(value) => Some(*value),
        Node::Unsigned(value) => Some(*value as f64),
        Node::Signed(value) => Some(*value as f64),
        Node::Text(text) => match text.as_ref() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text if is_number(text) => text.parse().ok().filter(|value: &f64| value.is_finite()),
            _ => None,
        },
        _ => None,
    }
    .ok_or_else(|| expected("a number", node))
}

/// Text that is a number: with digits, and without the names that Rust reads as not-a-number and infinity.
fn is_number(text: &str) -> bool {
    text.len() <= 64
        && text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E'))
}

fn base64_bytes(node: &Node<'_>) -> Result<Vec<u8>, String> {
    let Node::Text(text) = node else {
        return Err(expected("bytes in base64", node));
    };
    // Both alphabets are taken, and as Envoy does, both in one text.
    let standard = text.replace('-', "+").replace('_', "/");
    BASE64.decode(standard).map_err(|error| format!("not base64: {error}"))
}

/// Writes a value of a type that is not a message as JSON; `None` when the wire's form does not fit the type.
pub(crate) fn print(kind: Kind, value: Wire<'_>) -> Option<Value> {
    Some(match (kind, value) {
        (Kind::Bool, Wire::Varint(number)) => Value::Bool(number != 0),
        (Kind::Int32, Wire::Varint(number)) => Value::from(number as i32),
        (Kind::Uint32, Wire::Varint(number)) => Value::from(number as u32),
        (Kind::Sint32, Wire::Varint(number)) => Value::from(unzigzag(number) as i32),
        (Kind::Int64, Wire::Varint(number)) => Value::String(number.cast_signed().to_string()),
        (Kind::Sint64, Wire::Varint(number)) => Value::String(unzigzag(number).to_string()),
        (Kind::Uint64, Wire::Varint(number)) => Value::String(number.to_string()),
        (Kind::Fixed32, Wire::Fixed32(number)) => Value::from(number),
        (Kind::Sfixed32, Wire::Fixed32(number)) => Value::from(number.cast_signed()),
        (Kind::Fixed64, Wire::Fixed64(number)) => Value::String(number.to_string()),
        (Kind::Sfixed64, Wire::Fixed64(number)) => Value::String(number.cast_signed().to_string()),
        (Kind::Double, Wire::Fixed64(number)) => print_float(f64::from_bits(number)),
        // Through the shortest text, so that 0.1 stays 0.1.
        (Kind::Float, Wire::Fixed32(number)) => print_float(f32::from_bits(number).to_string().parse().ok()?),
        (Kind::String, Wire::Len(bytes)) => Value::String(std::str::from_utf8(bytes).ok()?.to_owned()),
        (Kind::Bytes, Wire::Len(bytes)) => Value::String(print_bytes(bytes)),
        (Kind::Enum(enumeration), Wire::Varint(number)) => match enumeration.name_of(number as i32) {
            Some(_) if enumeration.is_null_value() => Value::Null,
            Some(name) => Value::String(name.to_owned()),
            None => Value::from(number as i32),
        },
        _ => return None,
    })
}

/// A double as JSON, whole numbers without a fraction.
pub(crate) fn print_float(value: f64) -> Value {
    if value.is_nan() {
        return Value::String("NaN".into());
    }
    if value.is_infinite() {
        return Value::String(if value > 0.0 { "Infinity" } else { "-Infinity" }.into());
    }
    if value.fract() == 0.0 && value.abs() < 1e15 && !(value == 0.0 && value.is_sign_negative()) {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Bytes in padded standard base64.
pub(crate) fn print_bytes(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}
