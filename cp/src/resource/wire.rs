//! Reading and writing the scalar types of protobuf's JSON mapping (<https://protobuf.dev/programming-guides/json/>).

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serializer};

/// Whether a field has its default value and is therefore left out of a document.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number, or a string that holds one")]
enum Number<'a> {
    Number(u64),
    // Protobuf's JSON mapping writes 64-bit integers as strings and reads every integer from a string too.
    Text(#[serde(borrow)] Cow<'a, str>),
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match Number::deserialize(from)? {
        Number::Number(number) => Ok(number),
        Number::Text(text) => {
            text.parse().map_err(|_| serde::de::Error::custom(format!("expected a whole number, not {text:?}")))
        }
    }
}

/// Reads a `uint32` from a number or a string.
pub(super) fn u32<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let number = number(from)?;
    u32::try_from(number).map_err(|_| serde::de::Error::custom(format!("{number} does not fit into 32 bits")))
}

/// `uint64`: a string in JSON.
pub(super) mod u64_text {
    use super::{Deserializer, Serializer};

    pub(in crate::resource) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(in crate::resource) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        super::number(from)
    }
}
