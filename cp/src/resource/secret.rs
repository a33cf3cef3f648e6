//! Secret, GlobalSecret and Config (Kuma `api/system/v1alpha1/secret.proto`, `config.proto`).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Secret bytes: a CA key, a signing key, a list of revoked tokens. `Debug` shows their number only.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The bytes; base64 in documents.
    #[serde(default, serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub data: Vec<u8>,
}

impl Secret {
    /// A secret of these bytes.
    pub fn new(data: impl Into<Vec<u8>>) -> Secret {
        Secret { data: data.into() }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.data.len())
    }
}

/// A text that the control plane keeps (Kuma `api/system/v1alpha1/config.proto`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The text.
    #[serde(default)]
    pub config: String,
}

fn to_base64<S: Serializer>(data: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&STANDARD.encode(data))
}

fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    STANDARD.decode(text.trim()).map_err(|e| serde::de::Error::custom(format!("expected base64: {e}")))
}
