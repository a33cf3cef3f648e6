//! The resources as they were accepted, for `/config_dump` and to know what has not changed.

use std::{collections::BTreeMap, time::SystemTime};

use shika_proto::google::protobuf::Any;

use crate::reject::Reject;

/// One accepted resource.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As received.
    pub resource: Any,
    /// The control plane's version; empty for static resources.
    pub version: String,
    /// xxHash64 of the bytes.
    pub hash: u64,
    /// When it was accepted.
    pub last_updated: SystemTime,
    /// It is in force; otherwise it waits for what it needs.
    pub warming: bool,
}

/// The last refused version of a resource.
#[derive(Clone, Debug)]
pub struct ErrorState {
    /// As received, if it could be read.
    pub resource: Option<Any>,
    /// The version that was refused.
    pub version: String,
    /// Why.
    pub details: String,
    /// When.
    pub last_update_attempt: SystemTime,
}

/// All resources of one type.
#[derive(Debug, Default)]
pub struct TypeStore {
    /// From the bootstrap, by name.
    pub fixed: BTreeMap<String, Stored>,
    /// From control plane or file, by name.
    pub dynamic: BTreeMap<String, Stored>,
    /// Refused, by name; gone once a version is accepted.
    pub errors: BTreeMap<String, ErrorState>,
    /// Version of the last accepted response (state of the world) or system version (delta).
    pub version: String,
}

/// All resources by type URL.
#[derive(Debug, Default)]
pub struct Store {
    types: BTreeMap<String, TypeStore>,
}

impl Store {
    /// The resources of one type.
    pub fn of(&self, type_url: &str) -> Option<&TypeStore> {
        self.types.get(type_url)
    }

    /// The resources of one type, made if there are none.
    pub(crate) fn of_mut(&mut self, type_url: &str) -> &mut TypeStore {
        self.types.entry(type_url.to_owned()).or_default()
    }

    /// A resource is in force now.
    pub(crate) fn warmed(&mut self, type_url: &str, name: &str) {
        let store = self.of_mut(type_url);
        if let Some(stored) = store.fixed.get_mut(name).or(store.dynamic.get_mut(name)) {
            stored.warming = false;
        }
    }

    /// Keeps only these dynamic resources of a type.
    pub(crate) fn retain(&mut self, type_url: &str, keep: impl Fn(&str) -> bool) {
        if let Some(store) = self.types.get_mut(type_url) {
            store.dynamic.retain(|name, _| keep(name));
            store.errors.retain(|name, _| keep(name));
        }
    }

    /// Notes a refusal.
    pub(crate) fn refuse(&mut self, reject: &Reject, resource: Option<Any>, version: &str) {
        let errors = &mut self.of_mut(&reject.type_url).errors;
        if errors.len() >= MOST_ERRORS && !errors.contains_key(&reject.name) {
            return;
        }
        errors.insert(
            reject.name.clone(),
            ErrorState {
                resource,
                version: version.to_owned(),
                details: reject.to_string(),
                last_update_attempt: SystemTime::now(),
            },
        );
    }

    /// An accepted resource turned out not to work: `kept` takes its place again.
    pub(crate) fn roll_back(
        &mut self,
        type_url: &str,
        name: &str,
        kept: Option<Stored>,
        refused: Option<Stored>,
        reject: &Reject,
    ) {
        let (resource, version) = refused.map(|stored| (stored.resource, stored.version)).unzip();
        let store = self.of_mut(type_url);
        let place = if store.fixed.contains_key(name) { &mut store.fixed } else { &mut store.dynamic };
        match kept {
            Some(stored) => place.insert(name.to_owned(), stored),
            None => place.remove(name),
        };
        self.refuse(reject, resource, &version.unwrap_or_default());
    }
}

/// Refused resources of one type that are remembered.
const MOST_ERRORS: usize = 10_000;

/// The content hash that tells whether a resource has changed.
pub fn content_hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, 0)
}
