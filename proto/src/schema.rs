//! The schema of every message and enum of `envoy-types`, as constant tables that are read in place.
//!
//! `build.rs` writes the tables from the descriptor set that `envoy-types` ships. Nothing is decoded, allocated or
//! sorted at start-up; only the pages that a lookup touches become resident. All numbers are little-endian.
//!
//! | table | sorted by | record |
//! |---|---|---|
//! | messages | full name | name, first field, first key: u32; fields, keys: u16; special: u8; 3 unused |
//! | fields | number within its message | name, JSON name, number: u32; type index: u16; kind, flags, oneof: u8; 3 unused |
//! | keys | text within its message | name (proto or JSON form): u32; index of the field within its message: u16; 2 unused |
//! | enums | full name | name, first value, values: u32 |
//! | values | declaration | name: u32; number: i32 |
//!
//! A name is a reference into one text: offset in the upper 24 bits, length in the lower 8.

static MESSAGES: &[[u8; 20]] = include_bytes!(concat!(env!("OUT_DIR"), "/messages.bin")).as_chunks().0;
static FIELDS: &[[u8; 20]] = include_bytes!(concat!(env!("OUT_DIR"), "/fields.bin")).as_chunks().0;
static KEYS: &[[u8; 8]] = include_bytes!(concat!(env!("OUT_DIR"), "/keys.bin")).as_chunks().0;
static ENUMS: &[[u8; 12]] = include_bytes!(concat!(env!("OUT_DIR"), "/enums.bin")).as_chunks().0;
static VALUES: &[[u8; 8]] = include_bytes!(concat!(env!("OUT_DIR"), "/values.bin")).as_chunks().0;
static STRINGS: &str = include_str!(concat!(env!("OUT_DIR"), "/strings.txt"));

/// A message type.
#[derive(Clone, Copy)]
pub(crate) struct Message(&'static [u8; 20]);

impl Message {
    /// The message with this full name, such as `envoy.config.cluster.v3.Cluster`.
    pub(crate) fn find(full_name: &str) -> Option<Message> {
        let at = MESSAGES.binary_search_by(|row| text(u32_at(row, 0)).cmp(full_name)).ok()?;
        MESSAGES.get(at).map(Message)
    }

    /// Every message, ordered by full name.
    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Message> {
        MESSAGES.iter().map(Message)
    }

    pub(crate) fn full_name(self) -> &'static str {
        text(u32_at(self.0, 0))
    }

    /// How JSON writes this message.
    pub(crate) fn special(self) -> Special {
        match self.0[16] {
            1 => Special::Any,
            2 => Special::Duration,
            3 => Special::Timestamp,
            4 => Special::Struct,
            5 => Special::Value,
            6 => Special::ListValue,
            7 => Special::Wrapper,
            _ => Special::None,
        }
    }

    /// The field with this name, in proto or JSON form.
    pub(crate) fn field_named(self, key: &str) -> Option<Field> {
        let keys = rows(KEYS, u32_at(self.0, 8), u16_at(self.0, 14).into());
        let at = keys.binary_search_by(|row| text(u32_at(row, 0)).cmp(key)).ok()?;
        self.field_at(u16_at(keys.get(at)?, 4))
    }

    /// The field with this number.
    pub(crate) fn field_numbered(self, number: u32) -> Option<Field> {
        let fields = self.field_rows();
        // Most messages number their fields from 1 without a gap.
        let guess = number.wrapping_sub(1) as usize;
        let at = match fields.get(guess) {
            Some(row) if u32_at(row, 8) == number => guess,
            _ => fields.binary_search_by_key(&number, |row| u32_at(row, 8)).ok()?,
        };
        self.field_at(u16::try_from(at).ok()?)
    }

    /// The field at a position in the order of field numbers.
    pub(crate) fn field_at(self, index: u16) -> Option<Field> {
        self.field_rows().get(usize::from(index)).map(|row| Field { row, index })
    }

    fn field_rows(self) -> &'static [[u8; 20]] {
        rows(FIELDS, u32_at(self.0, 4), u16_at(self.0, 12).into())
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

/// The JSON form of a message: an ordinary object, or one of protobuf's well-known forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    None,
    Any,
    Duration,
    Timestamp,
    Struct,
    Value,
    ListValue,
    Wrapper,
}

/// A field of a message.
#[derive(Clone, Copy)]
pub(crate) struct Field {
    row: &'static [u8; 20],
    /// Position among the fields of the message, ordered by number.
    pub(crate) index: u16,
}

impl Field {
    /// Name as in the .proto file.
    pub(crate) fn name(self) -> &'static str {
        text(u32_at(self.row, 0))
    }

    /// Name in lowerCamelCase.
    pub(crate) fn json_name(self) -> &'static str {
        text(u32_at(self.row, 4))
    }

    pub(crate) fn number(self) -> u32 {
        u32_at(self.row, 8)
    }

    pub(crate) fn kind(self) -> Kind {
        let target = usize::from(u16_at(self.row, 12));
        match self.row[14] {
            1 => Kind::Double,
            2 => Kind::Float,
            3 => Kind::Int64,
            4 => Kind::Uint64,
            5 => Kind::Int32,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::String,
            11 => MESSAGES.get(target).map_or(Kind::Bytes, |row| Kind::Message(Message(row))),
            13 => Kind::Uint32,
            14 => ENUMS.get(target).map_or(Kind::Int32, |row| Kind::Enum(Enum(row))),
            15 => Kind::Sfixed32,
            16 => Kind::Sfixed64,
            17 => Kind::Sint32,
            18 => Kind::Sint64,
            _ => Kind::Bytes,
        }
    }

    /// A list; maps are not lists.
    pub(crate) fn is_repeated(self) -> bool {
        self.row[15] & 1 != 0
    }

    pub(crate) fn is_map(self) -> bool {
        self.row[15] & 2 != 0
    }

    /// A list of numbers written as one length-delimited block.
    pub(crate) fn is_packed(self) -> bool {
        self.row[15] & 4 != 0
    }

    /// The zero value of this field means unset.
    pub(crate) fn is_implicit(self) -> bool {
        self.row[15] & 8 != 0
    }

    /// Which oneof of its message the field belongs to.
    pub(crate) fn oneof(self) -> Option<u8> {
        Some(self.row[16]).filter(|oneof| *oneof != u8::MAX)
    }

    /// Key and value of a map's entry.
    pub(crate) fn map_entry(self) -> Option<(Field, Field)> {
        match self.kind() {
            Kind::Message(entry) if self.is_map() => Some((entry.field_at(0)?, entry.field_at(1)?)),
            _ => None,
        }
    }
}

/// The type of a field's value.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Message(Message),
    Bytes,
    Uint32,
    Enum(Enum),
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
}

/// An enum type.
#[derive(Clone, Copy)]
pub(crate) struct Enum(&'static [u8; 12]);

impl Enum {
    pub(crate) fn full_name(self) -> &'static str {
        text(u32_at(self.0, 0))
    }

    /// `google.protobuf.NullValue`, which JSON writes as null.
    pub(crate) fn is_null_value(self) -> bool {
        self.full_name() == "google.protobuf.NullValue"
    }

    /// Names and numbers in the order of declaration.
    pub(crate) fn values(self) -> impl Iterator<Item = (&'static str, i32)> {
        rows(VALUES, u32_at(self.0, 4), u32_at(self.0, 8) as usize)
            .iter()
            .map(|row| (text(u32_at(row, 0)), u32_at(row, 4).cast_signed()))
    }

    /// The number of a name. As in Envoy, upper and lower case are equal.
    pub(crate) fn number_of(self, name: &str) -> Option<i32> {
        let exact = self.values().find(|(known, _)| *known == name);
        exact.or_else(|| self.values().find(|(known, _)| known.eq_ignore_ascii_case(name))).map(|(_, number)| number)
    }

    /// The first name declared for a number.
    pub(crate) fn name_of(self, number: i32) -> Option<&'static str> {
        self.values().find(|(_, known)| *known == number).map(|(name, _)| name)
    }
}

fn rows<const N: usize>(table: &'static [[u8; N]], first: u32, count: usize) -> &'static [[u8; N]] {
    let first = first as usize;
    table.get(first..first.saturating_add(count)).unwrap_or_default()
}

fn text(reference: u32) -> &'static str {
    let offset = (reference >> 8) as usize;
    let length = (reference & 0xff) as usize;
    STRINGS.get(offset..offset + length).unwrap_or_default()
}

fn u32_at<const N: usize>(row: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
}

fn u16_at<const N: usize>(row: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([row[at], row[at + 1]])
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_whole_and_sorted() {
        let (mut messages, mut fields) = (0, 0);
        let mut previous = "";
        for message in Message::all() {
            assert!(previous < message.full_name(), "{previous} before {}", message.full_name());
            previous = message.full_name();
            assert!(Message::find(previous).is_some_and(|found| found == message));
            messages += 1;
            for row in 0..u16_at(message.0, 12) {
                let field = message.field_at(row).expect("field in range");
                fields += 1;
                assert!(message.field_numbered(field.number()).is_some_and(|found| found.index == row));
                assert!(message.field_named(field.name()).is_some_and(|found| found.index == row));
                assert!(message.field_named(field.json_name()).is_some());
                assert!(!field.name().is_empty());
                match (field.row[14], field.kind()) {
                    (11, Kind::Message(target)) => assert!(!target.full_name().is_empty()),
                    (14, Kind::Enum(target)) => assert!(target.values().count() > 0),
                    (11 | 14, _) => panic!("{previous}.{}: type is missing", field.name()),
                    _ => {}
                }
                assert!(!field.is_map() || field.map_entry().is_some(), "{previous}.{}", field.name());
            }
        }
        assert_eq!(MESSAGES.len(), messages);
        assert_eq!(FIELDS.len(), fields);
        assert!(messages > 1500 && fields > 5000, "{messages} messages, {fields} fields");
    }

    #[test]
    fn finds_by_both_names_and_by_number() {
        let cluster = Message::find("envoy.config.cluster.v3.Cluster").expect("known");
        for key in ["connect_timeout", "connectTimeout"] {
            let field = cluster.field_named(key).expect("known");
            assert_eq!((field.name(), field.number()), ("connect_timeout", 4));
        }
        assert!(cluster.field_named("nope").is_none());
        assert!(cluster.field_numbered(0).is_none());
        assert!(cluster.field_numbered(u32::MAX).is_none());
        assert!(Message::find("envoy.config.cluster.v3.Nope").is_none());
        assert!(Message::find("").is_none());
    }

    #[test]
    fn enums_by_name_and_number() {
        let cluster = Message::find("envoy.config.cluster.v3.Cluster").expect("known");
        let Some(Kind::Enum(discovery)) = cluster.field_named("type").map(Field::kind) else {
            panic!("type is an enum");
        };
        for (name, number) in [("STATIC", Some(0)), ("strict_dns", Some(1)), ("Strict-Dns", None), ("NOPE", None)] {
            assert_eq!(discovery.number_of(name), number, "{name}");
        }
        assert_eq!(discovery.name_of(3), Some("EDS"));
        assert_eq!(discovery.name_of(99), None);
    }
}
