//! What a zone makes of its Dataplanes: MeshServices, their virtual addresses, names and state, the addresses of services by tag,
//! and what its zone ingresses offer to other zones.
//!
//! [`Services::run`] listens to the store, waits until changes calm down, and brings the meshes concerned up to date. Every step is a
//! function of resources, so that a change that was missed is made by the next round, and a round that finds nothing to do writes
//! nothing.

mod generate;
mod hostname;
mod ingress;
mod legacy;
mod status;
mod vip;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep_until};

use crate::resource::{
    AvailableService, Dataplane, DataplaneInsight, Kind, Mesh, MeshServicesMode, Meta, Resource, ResourceKey, Spec,
};
use crate::store::{Event, Expect, Store, StoreError};
use vip::Allocator;

/// Changes that come closer together than this are dealt with in one round.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A round begins at the latest this long after the first change, however many follow.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(500);
/// News of connected proxies change the state of services only, which can wait (Kuma `coreResources.status`, 5 s).
const INSIGHT_DELAY: Duration = Duration::from_secs(5);
/// Pause before a round that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this zone.
    pub zone: String,
    /// How long a MeshService stays after its last Dataplane is gone (Kuma `meshService.deletionGracePeriod`, 1 h).
    pub grace: Duration,
}

impl Settings {
    /// Defaults, in the zone of that name.
    pub fn new(zone: &str) -> Settings {
        Settings { zone: zone.to_owned(), grace: Duration::from_secs(3600) }
    }
}

/// Keeps what a zone makes of its Dataplanes up to date.
#[derive(Debug)]
pub struct Services {
    store: Store,
    settings: Settings,
    allocator: Allocator,
    /// When the next grace period of a mesh ends, by mesh.
    deadlines: BTreeMap<String, DateTime<Utc>>,
    /// What each mesh offers to other zones.
    offered: BTreeMap<String, Vec<AvailableService>>,
}

/// What is to be done in the next round.
#[derive(Debug, Default)]
struct Dirty {
    all: bool,
    meshes: BTreeSet<String>,
}

/// How soon an event has to be dealt with.
enum Urgency {
    Soon,
    Later,
    Never,
}

impl Services {
    /// With that store.
    pub fn new(store: Store, settings: Settings) -> Services {
        Services {
            allocator: Allocator::new(store.clone()),
            store,
            settings,
            deadlines: BTreeMap::new(),
            offered: BTreeMap::new(),
        }
    }

    /// Works until the store is gone. Errors of the store are logged, and what failed is tried again.
    pub async fn run(mut self) {
        let mut watch = self.store.watch();
        let mut dirty = Dirty { all: true, ..Dirty::default() };
        let mut due = Some(Instant::now());
        let mut first_change = None;
        // When the grace period of a MeshService ends.
        let mut deadline: Option<DateTime<Utc>> = None;
        loop {
            let expiry = deadline.map(|at| Instant::now() + (at - Utc::now()).to_std().unwrap_or_default());
            let alarm = async {
                match [due, expiry].into_iter().flatten().min() {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                event = watch.next() => {
                    let Some(event) = event else { return };
                    let now = Instant::now();
                    match note(&mut dirty, event) {
                        Urgency::Soon => {
                            let first = *first_change.get_or_insert(now);
                            let at = (now + DEBOUNCE).min(first + LONGEST_DEBOUNCE);
                            // A round that was to wait for longer is not waited for.
                            due = Some(due.filter(|due| *due < now).unwrap_or(at));
                        }
                        Urgency::Later => {
                            due.get_or_insert(now + INSIGHT_DELAY);
                        }
                        Urgency::Never => {}
                    }
                }
                () = alarm => {
                    (due, first_change) = (None, None);
                    match self.round(&mut dirty).await {
                        Ok(next) => deadline = next,
                        Err(error) => {
                            tracing::error!(%error, "services could not be brought up to date");
                            dirty.all = true;
                            due = Some(Instant::now() + RETRY);
                        }
                    }
                }
            }
        }
    }

    /// Brings what is marked up to date. Returns when the next grace period ends.
    async fn round(&mut self, dirty: &mut Dirty) -> Result<Option<DateTime<Utc>>, StoreError> {
        let meshes = self.store.list(Kind::Mesh, None).await?;
        let known = |name: &String| meshes.iter().any(|mesh| mesh.meta.name == *name);
        self.deadlines.retain(|name, _| known(name));
        self.offered.retain(|name, _| known(name));
        let now = Utc::now();
        for resource in &meshes {
            let Some(mesh) = resource.mesh() else { continue };
            let name = resource.meta.name.as_str();
            let due = self.deadlines.get(name).is_some_and(|at| *at <= now);
            if !dirty.all && !due && !dirty.meshes.contains(name) {
                continue;
            }
            let input = Input::read(&self.store, name, mesh).await?;
            self.offered.insert(name.to_owned(), ingress::offered(&input, &self.settings.zone));
            match self.mesh(&input).await? {
                Some(deadline) => self.deadlines.insert(name.to_owned(), deadline),
                None => self.deadlines.remove(name),
            };
        }
        let mut offered: Vec<AvailableService> = self.offered.values().flatten().cloned().collect();
        offered.sort();
        ingress::update(&self.store, &self.settings.zone, &offered).await?;
        *dirty = Dirty::default();
        Ok(self.deadlines.values().min().copied())
    }

    /// Brings one mesh up to date. Returns when its next grace period ends.
    async fn mesh(&mut self, input: &Input) -> Result<Option<DateTime<Utc>>, StoreError> {
        let mut services = Held::list(&self.store, Kind::MeshService, &input.name).await?;
        generate::generate(input, &self.settings, &mut services, Utc::now());
        status::mesh_services(&self.store, input, &self.settings.zone, &mut services).await?;
        let mut multi_zone = Held::list(&self.store, Kind::MeshMultiZoneService, &input.name).await?;
        status::multi_zone_services(&services, &mut multi_zone);
        let mut external = Held::list(&self.store, Kind::MeshExternalService, &input.name).await?;
        let generators = self.store.list(Kind::HostnameGenerator, None).await?;
        for held in [&mut services, &mut multi_zone, &mut external] {
            hostname::name(&generators, &self.settings.zone, held);
            self.allocator.give(held).await?;
        }
        let deadline = generate::deadline(&services, self.settings.grace);
        for held in [services, multi_zone, external] {
            for held in held {
                held.write(&self.store).await?;
            }
        }
        legacy::update(&self.store, input, &self.settings.zone).await?;
        Ok(deadline)
    }
}

/// Marks what an event concerns.
fn note(dirty: &mut Dirty, event: Event) -> Urgency {
    let key = match event {
        Event::Changed(key) | Event::Deleted(key) => key,
        Event::Resync => {
            dirty.all = true;
            return Urgency::Soon;
        }
    };
    match key.kind {
        Kind::Mesh => dirty.meshes.insert(key.name),
        Kind::Dataplane
        | Kind::ExternalService
        | Kind::MeshExternalService
        | Kind::MeshMultiZoneService
        | Kind::MeshService => dirty.meshes.insert(key.mesh),
        Kind::HostnameGenerator | Kind::ZoneIngress => {
            dirty.all = true;
            true
        }
        Kind::DataplaneInsight => {
            dirty.meshes.insert(key.mesh);
            return Urgency::Later;
        }
        _ => return Urgency::Never,
    };
    Urgency::Soon
}

/// What everything is made from, in one mesh.
#[derive(Debug)]
struct Input {
    name: String,
    mesh: Arc<Mesh>,
    mode: MeshServicesMode,
    /// The oldest first, then by name.
    dataplanes: Vec<(Meta, Arc<Dataplane>)>,
    external_services: Vec<Resource>,
}

impl Input {
    async fn read(store: &Store, name: &str, mesh: &Arc<Mesh>) -> Result<Input, StoreError> {
        let mut dataplanes: Vec<(Meta, Arc<Dataplane>)> = Vec::new();
        for resource in store.list(Kind::Dataplane, Some(name)).await? {
            if let Spec::Dataplane(dataplane) = resource.spec {
                dataplanes.push((resource.meta, dataplane));
            }
        }
        dataplanes.sort_by(|(a, _), (b, _)| (a.creation_time, &a.name).cmp(&(b.creation_time, &b.name)));
        Ok(Input {
            name: name.to_owned(),
            mode: mesh.mesh_services.as_ref().map(|services| services.mode).unwrap_or_default(),
            mesh: mesh.clone(),
            dataplanes,
            external_services: store.list(Kind::ExternalService, Some(name)).await?,
        })
    }
}

/// What proxies of a mesh told of themselves.
async fn insights(store: &Store, mesh: &str) -> Result<BTreeMap<String, Arc<DataplaneInsight>>, StoreError> {
    let insights = store.list(Kind::DataplaneInsight, Some(mesh)).await?;
    let named = |resource: Resource| match resource.spec {
        Spec::DataplaneInsight(insight) => Some((resource.meta.name, insight)),
        _ => None,
    };
    Ok(insights.into_iter().filter_map(named).collect())
}

/// A resource while it is worked on: what is stored, and what should be.
#[derive(Debug)]
struct Held {
    stored: Option<Resource>,
    /// `None` when it is to be deleted.
    wanted: Option<Resource>,
}

impl Held {
    async fn list(store: &Store, kind: Kind, mesh: &str) -> Result<Vec<Held>, StoreError> {
        let stored = store.list(kind, Some(mesh)).await?;
        Ok(stored.into_iter().map(|resource| Held { wanted: Some(resource.clone()), stored: Some(resource) }).collect())
    }

    /// Writes what changed. Whoever changed it in the meantime is right: their change leads to another round.
    async fn write(self, store: &Store) -> Result<(), StoreError> {
        let result = match (self.stored, self.wanted) {
            (Some(stored), Some(wanted)) if stored.spec == wanted.spec && stored.meta.labels == wanted.meta.labels => {
                return Ok(());
            }
            (Some(stored), Some(wanted)) => store.put(wanted, Expect::Version(stored.meta.version)).await.map(|_| ()),
            (None, Some(wanted)) => {
                let key = wanted.key();
                let created = store.put(wanted, Expect::Absent).await;
                created.map(|_| tracing::info!(service = %key, "created"))
            }
            (Some(stored), None) => {
                let key = stored.key();
                store.delete(&key).await.map(|()| tracing::info!(service = %key, "deleted"))
            }
            (None, None) => return Ok(()),
        };
        match result {
            Err(
                StoreError::Conflict { .. }
                | StoreError::Exists(_)
                | StoreError::NotFound(_)
                | StoreError::NoMesh { .. },
            ) => Ok(()),
            other => other,
        }
    }
}

/// The labels of a resource with those that Kuma gives to every resource it stores, where the resource has none of its own.
fn effective_labels(meta: &Meta, zone: &str) -> BTreeMap<String, String> {
    let mut labels = meta.labels.clone();
    for (label, value) in [
        ("kuma.io/origin", "zone"),
        ("kuma.io/zone", zone),
        ("kuma.io/env", "universal"),
        ("kuma.io/mesh", meta.mesh.as_str()),
        ("kuma.io/display-name", meta.name.as_str()),
    ] {
        labels.entry(label.to_owned()).or_insert_with(|| value.to_owned());
    }
    labels
}

/// Whether a resource was created in this zone, and did not come from the global control plane.
fn is_local(meta: &Meta) -> bool {
    meta.labels.get("kuma.io/origin").is_none_or(|origin| origin != "global")
}

/// The key of a resource that the control plane keeps for itself.
fn config_key(name: &str) -> ResourceKey {
    ResourceKey::global(Kind::Config, name)
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
