//! Walks over encoded messages, those inside every `Any` included: which fields are set, and which the schema does not
//! know. Well-known types that JSON writes as one value (durations, wrappers, `Struct`) are not entered.

use crate::path::{FieldPath, Step};
use crate::schema::{Field, Kind, Message, Special};
use crate::type_url;
use crate::wire::{Malformed, Reader, Wire};

/// Deepest nesting of messages, those inside an `Any` included.
const MAX_NESTING: usize = 256;

/// Something met on a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A field that is set; a list or map is reported once for each message that has it, before its items are entered.
    Set {
        /// Full name of the message that has the field.
        message: &'static str,
        /// Name of the field as in the .proto file.
        field: &'static str,
    },
    /// A field number that the schema does not have; the path is that of the message.
    UnknownField {
        /// Full name of the message.
        message: &'static str,
        /// Field number.
        number: u32,
    },
    /// An `Any` of a type that the schema does not have; its content is not entered.
    UnknownType {
        /// The type URL as received.
        type_url: &'a str,
    },
}

/// Why a walk ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// The type is not in the schema.
    #[error("unknown message type {0:?}")]
    UnknownMessage(String),
    /// The bytes are not protobuf of the schema's shape.
    #[error("{path}: malformed message")]
    Malformed {
        /// Where.
        path: String,
    },
    /// Nested deeper than 256 messages.
    #[error("{path}: messages are nested too deeply")]
    TooDeep {
        /// Where.
        path: String,
    },
}

/// A set field of [`set_fields`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetField {
    /// Full name of the message that has the field.
    pub message: &'static str,
    /// Name of the field as in the .proto file.
    pub field: &'static str,
    /// The field's path from the outermost message.
    pub path: String,
}

/// Walks over the encoded message of type `full_name` and shows `visit` everything it meets, in wire order, with its
/// path. The path is written out only when `visit` displays it, so a walk over a large message is cheap.
///
/// # Errors
/// An unknown type, bytes that do not fit the schema, or nesting deeper than 256.
pub fn walk(full_name: &str, bytes: &[u8], visit: &mut dyn FnMut(Found<'_>, &FieldPath<'_>)) -> Result<(), WalkError> {
    let message = Message::find(full_name).ok_or_else(|| WalkError::UnknownMessage(full_name.to_owned()))?;
    let mut walker = Walker { path: FieldPath::default(), visit };
    walker.message(message, bytes, 0)
}

/// Every set field, in wire order. For a look-up in a table of supported fields, [`walk`] does it without the copies.
///
/// # Errors
/// As [`walk`].
pub fn set_fields(full_name: &str, bytes: &[u8]) -> Result<Vec<SetField>, WalkError> {
    let mut fields = Vec::new();
    walk(full_name, bytes, &mut |found, path| {
        if let Found::Set { message, field } = found {
            fields.push(SetField { message, field, path: path.to_string() });
        }
    })?;
    Ok(fields)
}

/// Paths of the fields that the schema does not know, each once, the field by its number:
/// `filter_chains[0].filters[1].typed_config.#1234`. `limit` bounds the list.
///
/// # Errors
/// As [`walk`].
pub fn unknown_fields(full_name: &str, bytes: &[u8], limit: usize) -> Result<Vec<String>, WalkError> {
    let mut unknown: Vec<String> = Vec::new();
    walk(full_name, bytes, &mut |found, path| {
        if let Found::UnknownField { number, .. } = found
            && unknown.len() < limit
        {
            let path = path.to_string();
            let dot = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{dot}#{number}");
            if unknown.last() != Some(&path) {
                unknown.push(path);
            }
        }
    })?;
    Ok(unknown)
}

struct Walker<'a, 'v> {
    path: FieldPath<'a>,
    visit: &'v mut dyn FnMut(Found<'_>, &FieldPath<'_>),
}

impl<'a> Walker<'a, '_> {
    fn malformed(&self) -> WalkError {
        WalkError::Malformed { path: self.path.to_string() }
    }

    fn message(&mut self, message: Message, bytes: &'a [u8], depth: usize) -> Result<(), WalkError> {
        if depth > MAX_NESTING {
            return Err(WalkError::TooDeep { path: self.path.to_string() });
        }
        match message.special() {
            Special::None => {}
            Special::Any => return self.any(bytes, depth),
            _ => return Ok(()),
        }
        // Which lists and maps were met, and how many of their items.
        let mut lists: Vec<(u16, usize)> = Vec::new();
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next().map_err(|Malformed| self.malformed())? {
            let Some(field) = message.field_numbered(number) else {
                (self.visit)(Found::UnknownField { message: message.full_name(), number }, &self.path);
                continue;
            };
            if field.is_implicit() && wire.is_zero() {
                continue;
            }
            let index = match lists.iter_mut().find(|(list, _)| *list == field.index) {
                Some((_, count)) => {
                    *count += 1;
                    *count
                }
                None => {
                    lists.push((field.index, 0));
                    0
                }
            };
            self.path.push(Step::Field(field.name()));
            if index == 0 {
                (self.visit)(Found::Set { message: message.full_name(), field: field.name() }, &self.path);
            }
            self.content(field, wire, index, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    /// Enters the messages in a field's value.
    fn content(&mut self, field: Field, wire: Wire<'a>, index: usize, depth: usize) -> Result<(), WalkError> {
        let Kind::Message(message) = field.kind() else {
            return Ok(());
        };
        let Wire::Len(bytes) = wire else {
            return Err(self.malformed());
        };
        if let Some((key, value)) = field.map_entry() {
            let Kind::Message(message) = value.kind() else {
                return Ok(());
            };
            let (mut name, mut content) = ("", &[][..]);
            let mut reader = Reader(bytes);
            while let Some((number, wire)) = reader.next().map_err(|Malformed| self.malformed())? {
                match (number, wire) {
                    (1, Wire::Len(text)) if matches!(key.kind(), Kind::String) => {
                        name = std::str::from_utf8(text).map_err(|_| self.malformed())?;
                    }
                    (2, Wire::Len(bytes)) => content = bytes,
                    _ => {}
                }
            }
            self.path.push(Step::Key(name));
            self.message(message, content, depth + 2)?;
            self.path.pop();
            return Ok(());
        }
        if field.is_repeated() {
            self.path.push(Step::Index(index));
            self.message(message, bytes, depth + 1)?;
            self.path.pop();
            return Ok(());
        }
        self.message(message, bytes, depth + 1)
    }

    fn any(&mut self, bytes: &'a [u8], depth: usize) -> Result<(), WalkError> {
        let (mut url, mut value) = ("", &[][..]);
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next().map_err(|Malformed| self.malformed())? {
            match (number, wire) {
                (1, Wire::Len(text)) => url = std::str::from_utf8(text).map_err(|_| self.malformed())?,
                (2, Wire::Len(bytes)) => value = bytes,
                _ => {}
            }
        }
        if url.is_empty() && value.is_empty() {
            return Ok(());
        }
        match type_url::message_name(url).and_then(Message::find) {
            Some(message) => self.message(message, value, depth + 1),
            None => {
                (self.visit)(Found::UnknownType { type_url: url }, &self.path);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
