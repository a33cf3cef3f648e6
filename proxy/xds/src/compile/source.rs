//! `core.v3.DataSource`.

use shika_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};

use super::{Compiled, Fault, non_empty};

/// Largest file that a data source may name.
const LARGEST_FILE: u64 = 16 << 20;

/// Bytes and where they came from, for messages: a file name or `<inline>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// File name, or `<inline>`.
    pub path: String,
}

/// The content of a data source.
pub(crate) fn data(from: &DataSource) -> Compiled<Data> {
    let inline = || "<inline>".to_owned();
    match &from.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(Data { bytes: bytes.clone(), path: inline() }),
        Some(Specifier::InlineString(text)) => Ok(Data { bytes: text.clone().into_bytes(), path: inline() }),
        Some(Specifier::EnvironmentVariable(name)) => {
            let value = std::env::var(name).map_err(|_| {
                Fault::new("environment_variable", format!("Environment variable doesn't exist: {name}"))
            })?;
            Ok(Data { bytes: value.into_bytes(), path: inline() })
        }
        Some(Specifier::Filename(name)) => {
            let cannot =
                |error: &dyn std::fmt::Display| Fault::new("filename", format!("cannot read {name:?}: {error}"));
            let file = std::fs::metadata(non_empty(name, "filename")?).map_err(|error| cannot(&error))?;
            if !file.is_file() {
                return Err(cannot(&"not a regular file"));
            }
            if file.len() > LARGEST_FILE {
                return Err(cannot(&format_args!("larger than {LARGEST_FILE} bytes")));
            }
            Ok(Data { bytes: std::fs::read(name).map_err(|error| cannot(&error))?, path: name.clone() })
        }
        None => Err(Fault::new("specifier", "value is required")),
    }
}

/// The content as text.
pub(crate) fn text(from: &DataSource) -> Compiled<String> {
    String::from_utf8(data(from)?.bytes).map_err(|_| Fault::new("", "must be UTF-8"))
}
