//! `core.v3.DataSource` and `ConfigSource`.

use std::time::Duration;

use shika_proto::envoy::config::core::v3::{
    ApiVersion, ConfigSource, DataSource, api_config_source::ApiType, config_source::ConfigSourceSpecifier,
    data_source::Specifier,
};

use super::{Compiled, Fault, Within, duration, enumeration, non_empty};
use crate::bootstrap::Source;

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

/// Envoy's default `initial_fetch_timeout`.
pub(crate) const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Where resources come from: ADS or a file.
pub(crate) fn config(source: &ConfigSource) -> Compiled<Source> {
    let initial_fetch_timeout = match duration(&source.initial_fetch_timeout, "initial_fetch_timeout")? {
        None => Some(INITIAL_FETCH_TIMEOUT),
        Some(Duration::ZERO) => None,
        Some(limit) => Some(limit),
    };
    check_version(source.resource_api_version, "resource_api_version")?;
    match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) => Ok(Source::Ads { initial_fetch_timeout }),
        // The transport that the resource itself came by.
        Some(ConfigSourceSpecifier::Self_(_)) => Ok(Source::Ads { initial_fetch_timeout }),
        Some(ConfigSourceSpecifier::PathConfigSource(from)) => Ok(Source::File {
            path: non_empty(&from.path, "path").within("path_config_source")?.to_owned(),
            watched_directory: from.watched_directory.as_ref().map(|directory| directory.path.clone()),
            initial_fetch_timeout,
        }),
        Some(ConfigSourceSpecifier::Path(path)) => Ok(Source::File {
            path: non_empty(path, "path")?.to_owned(),
            watched_directory: None,
            initial_fetch_timeout,
        }),
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
            let kind = enumeration::<ApiType>(api.api_type, "api_type").within("api_config_source")?;
            match kind {
                ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc => Ok(Source::Ads { initial_fetch_timeout }),
                ApiType::Rest | ApiType::Grpc | ApiType::DeltaGrpc | ApiType::DeprecatedAndUnavailableDoNotUse => {
                    Err(Fault::new(
                        "api_config_source",
                        "a stream of its own for one type is not supported; use ads or path_config_source",
                    ))
                }
            }
        }
        None => Err(Fault::new("config_source_specifier", "value is required")),
    }
}

/// Only version 3 exists; `AUTO` (unset) is taken for it.
pub(crate) fn check_version(number: i32, field: &str) -> Compiled<()> {
    match enumeration::<ApiVersion>(number, field)? {
        ApiVersion::Auto | ApiVersion::V3 => Ok(()),
        ApiVersion::V2 => Err(Fault::new(field, "V2 is no longer supported; use V3")),
    }
}
