//! Resources in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{SubsecRound, Utc};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::{Event, Expect, StoreError, WATCH_CAPACITY, next_version, owns};
use crate::resource::{Kind, Resource, ResourceKey};

/// Resources in memory. Clones share them.
#[derive(Clone, Debug)]
pub struct Memory {
    resources: Arc<Mutex<BTreeMap<ResourceKey, Resource>>>,
    events: broadcast::Sender<Event>,
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory { resources: Arc::default(), events: broadcast::Sender::new(WATCH_CAPACITY) }
    }

    pub(super) fn get(&self, key: &ResourceKey) -> Option<Resource> {
        self.resources.lock().get(key).cloned()
    }

    pub(super) fn list(&self, kind: Kind, mesh: Option<&str>) -> Vec<Resource> {
        let from = ResourceKey::new(kind, mesh.unwrap_or_default(), "");
        self.resources
            .lock()
            .range(from..)
            .take_while(|(key, _)| key.kind == kind && mesh.is_none_or(|mesh| key.mesh == mesh))
            .map(|(_, resource)| resource.clone())
            .collect()
    }

    pub(super) fn put(&self, mut resource: Resource, expect: Expect) -> Result<Resource, StoreError> {
        let key = resource.key();
        let mut resources = self.resources.lock();
        if key.kind.in_mesh() && !resources.contains_key(&ResourceKey::global(Kind::Mesh, key.mesh.clone())) {
            return Err(StoreError::NoMesh { mesh: key.mesh.clone(), key });
        }
        let found = resources.get(&key).map(|found| (found.meta.version, found.meta.creation_time));
        let now = Utc::now().trunc_subsecs(6);
        resource.meta.version = next_version(&key, found.map(|(version, _)| version), expect)?;
        resource.meta.creation_time = found.map(|(_, created)| created).unwrap_or(now);
        resource.meta.modification_time = now;
        resources.insert(key.clone(), resource.clone());
        // Announced under the lock, so that watchers see changes in the order in which they were made.
        let _ = self.events.send(Event::Changed(key));
        Ok(resource)
    }

    pub(super) fn delete(&self, key: &ResourceKey) -> Result<(), StoreError> {
        let mut resources = self.resources.lock();
        if resources.remove(key).is_none() {
            return Err(StoreError::NotFound(key.clone()));
        }
        let owned: Vec<ResourceKey> = resources.keys().filter(|other| owns(key, other)).cloned().collect();
        for owned in owned {
            resources.remove(&owned);
            let _ = self.events.send(Event::Deleted(owned));
        }
        let _ = self.events.send(Event::Deleted(key.clone()));
        Ok(())
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
