//! `path_config_source`: resources in files, read again when a file is moved into place.
//!
//! A file holds a `DiscoveryResponse` as YAML or JSON (`.yaml`, `.yml`, `.json`), or in protobuf's binary form (`.pb`). As Envoy does, only a move to the
//! watched name counts as a change: a file that is being written is never read half.

use std::path::{Path, PathBuf};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{ModifyKind, RenameMode},
};
use prost::Message;
use shika_proto::{envoy::service::discovery::v3::DiscoveryResponse, json};

use crate::compiler::{Resource, Update, UpdateKind};

/// Largest file that is read, bytes.
const LARGEST: u64 = 256 << 20;

/// Why a file gives no resources. What it gave before stays.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// File name.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Its content is not a discovery response.
    #[error("{path}: {reason}")]
    Content {
        /// File name.
        path: String,
        /// What is wrong, with the field's path.
        reason: String,
    },
}

/// Reads the resources of one type from a file.
///
/// # Errors
/// The file cannot be read, is too large, is malformed, or holds resources of another type.
pub fn read(path: &str, type_url: &str) -> Result<Update, FileError> {
    let unreadable = |error| FileError::Read { path: path.to_owned(), error };
    let wrong = |reason: String| FileError::Content { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > LARGEST {
        return Err(wrong(format!("is larger than {LARGEST} bytes")));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let response = if Path::new(path).extension().is_some_and(|extension| extension == "pb") {
        DiscoveryResponse::decode(bytes.as_slice()).map_err(|error| wrong(error.to_string()))?
    } else {
        let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8".into()))?;
        json::from_yaml::<DiscoveryResponse>(&text)
            .map_err(|errors| wrong(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?
    };
    if let Some(other) = response.resources.iter().find(|resource| resource.type_url != type_url) {
        return Err(wrong(format!("holds a resource of type {}, not {type_url}", other.type_url)));
    }
    let version = response.version_info;
    let resources = response
        .resources
        .into_iter()
        .map(|resource| Resource { name: String::new(), version: version.clone(), resource })
        .collect();
    Ok(Update { type_url: type_url.to_owned(), resources, removed: Vec::new(), kind: UpdateKind::FullState, version })
}

/// Watches a directory for moves. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

/// Calls `changed` whenever something is moved to `path`, or, with a watched directory, whenever anything is moved into that directory (as Kubernetes
/// does with a volume's `..data`). `changed` runs on the watcher's thread.
///
/// # Errors
/// The directory does not exist or cannot be watched.
pub fn watch(path: &str, directory: Option<&str>, mut changed: impl FnMut() + Send + 'static) -> notify::Result<Watch> {
    let file = PathBuf::from(path);
    let name = file.file_name().map(ToOwned::to_owned);
    let parent = match directory {
        Some(directory) => PathBuf::from(directory),
        None => file
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .map_or_else(|| PathBuf::from("."), Path::to_path_buf),
    };
    let any_name = directory.is_some();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        // The end of a move: the new name, alone or as the second of a pair.
        let moved = match event.kind {
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => event.paths.first(),
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => event.paths.get(1),
            _ => None,
        };
        if moved.is_some_and(|to| any_name || to.file_name() == name.as_deref()) {
            changed();
        }
    })?;
    watcher.watch(&parent, RecursiveMode::NonRecursive)?;
    Ok(Watch { _watcher: watcher })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
