//! Where resources are kept: in memory, or in one SQLite file.
//!
//! Writes are optimistic: whoever changes a resource says which version it read. Every change is announced to the
//! [`Watch`]es after it was made durable.

mod memory;
mod sqlite;

use std::path::Path;

use tokio::sync::broadcast;

use crate::resource::{Kind, Resource, ResourceKey};

/// Events a slow watcher may fall behind before it is told to read everything again.
const WATCH_CAPACITY: usize = 4096;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The resource is not there.
    #[error("{0} not found")]
    NotFound(ResourceKey),
    /// The resource is there already, and was to be created.
    #[error("{0} exists already")]
    Exists(ResourceKey),
    /// Somebody else changed the resource in the meantime.
    #[error("{key} was changed by somebody else: version {expected} expected, {found} found; read it again and retry")]
    Conflict {
        /// The resource.
        key: ResourceKey,
        /// The version that the writer had read.
        expected: u64,
        /// The version in the store.
        found: u64,
    },
    /// The mesh of a resource is not there.
    #[error("mesh {mesh:?} of {key} not found; create the mesh first")]
    NoMesh {
        /// The resource.
        key: ResourceKey,
        /// Its mesh.
        mesh: String,
    },
    /// The database failed.
    #[error("store: {0}")]
    Database(String),
}

/// What a writer expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the resource is created.
    Absent,
    /// This version: the resource is changed.
    Version(u64),
    /// Whatever there is. For writers that own the resource, such as the insight of a stream.
    Any,
}

/// A change in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The resource was created or changed.
    Changed(ResourceKey),
    /// The resource was deleted.
    Deleted(ResourceKey),
    /// Events were missed: read everything again.
    Resync,
}

/// A subscription to the changes in a store.
#[derive(Debug)]
pub struct Watch {
    events: broadcast::Receiver<Event>,
}

impl Watch {
    /// The next change; `None` when the store is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// A store of resources. Clones share it.
#[derive(Clone, Debug)]
pub enum Store {
    /// Gone with the process.
    Memory(memory::Memory),
    /// In one file.
    Sqlite(sqlite::Sqlite),
}

impl Store {
    /// A store in memory.
    pub fn memory() -> Store {
        Store::Memory(memory::Memory::new())
    }

    /// A store in one SQLite file, which is created when it is not there.
    ///
    /// # Errors
    /// [`StoreError::Database`] with the path and the reason.
    pub async fn sqlite(path: &Path) -> Result<Store, StoreError> {
        Ok(Store::Sqlite(sqlite::Sqlite::open(path).await?))
    }

    /// The resource of that key, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn get(&self, key: &ResourceKey) -> Result<Option<Resource>, StoreError> {
        match self {
            Store::Memory(store) => Ok(store.get(key)),
            Store::Sqlite(store) => store.get(key).await,
        }
    }

    /// All resources of a kind in one mesh, or in all of them (`None`; also for global kinds), by mesh and name.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn list(&self, kind: Kind, mesh: Option<&str>) -> Result<Vec<Resource>, StoreError> {
        match self {
            Store::Memory(store) => Ok(store.list(kind, mesh)),
            Store::Sqlite(store) => store.list(kind, mesh).await,
        }
    }

    /// Stores a resource and returns it with the times and the version that the store gave it. The resource's own
    /// times and version do not count: `expect` says what is to be found.
    ///
    /// # Errors
    /// [`StoreError::NoMesh`] when its mesh is not there; [`StoreError::Exists`], [`StoreError::NotFound`] or
    /// [`StoreError::Conflict`] when `expect` does not hold; [`StoreError::Database`].
    pub async fn put(&self, resource: Resource, expect: Expect) -> Result<Resource, StoreError> {
        match self {
            Store::Memory(store) => store.put(resource, expect),
            Store::Sqlite(store) => store.put(resource, expect).await,
        }
    }

    /// Deletes a resource and what it owns: a Mesh owns everything in it, any other its insight.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Database`].
    pub async fn delete(&self, key: &ResourceKey) -> Result<(), StoreError> {
        match self {
            Store::Memory(store) => store.delete(key),
            Store::Sqlite(store) => store.delete(key).await,
        }
    }

    /// The changes from now on. Subscribe first and read second, so that no change is missed in between.
    pub fn watch(&self) -> Watch {
        let events = match self {
            Store::Memory(store) => store.subscribe(),
            Store::Sqlite(store) => store.subscribe(),
        };
        Watch { events }
    }
}

/// Whether `owned` is deleted together with `owner`.
fn owns(owner: &ResourceKey, owned: &ResourceKey) -> bool {
    match owner.kind {
        Kind::Mesh => owned.kind.in_mesh() && owned.mesh == owner.name,
        kind => kind.insight() == Some(owned.kind) && owned.mesh == owner.mesh && owned.name == owner.name,
    }
}

/// The version that a write makes, or why it must not be made.
fn next_version(key: &ResourceKey, found: Option<u64>, expect: Expect) -> Result<u64, StoreError> {
    match (found, expect) {
        (None, Expect::Absent | Expect::Any) => Ok(1),
        (Some(_), Expect::Absent) => Err(StoreError::Exists(key.clone())),
        (None, Expect::Version(_)) => Err(StoreError::NotFound(key.clone())),
        (Some(found), Expect::Version(expected)) if found != expected => {
            Err(StoreError::Conflict { key: key.clone(), expected, found })
        }
        (Some(found), Expect::Version(_) | Expect::Any) => Ok(found + 1),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
