//! Views of meshes: what the planning of every proxy of a mesh has in common, built from the store and replaced whole.
//!
//! [`MeshViews::run`] listens to the store, waits until changes calm down, and builds the views of the meshes concerned. A view is
//! immutable; streams hold a `watch` on it and plan again when it changes. A view also makes sure that a mesh with mTLS has its
//! certificate authority.

mod authority;
mod backends;
mod endpoints;
mod external;
mod resolve;
mod view;
mod vips;
mod zones;

pub use authority::keep_authorities;
pub use backends::Backend;
pub(crate) use endpoints::{own_egresses, remote_ingresses};
pub use external::{External, ExternalHost, ExternalName, OriginatedTls};
pub use view::{Endpoint, MeshView, Named, Protocol, Service};
pub use vips::{LegacyOutbound, LegacyVip, LegacyVips, Vip, VipOutbound, legacy_config};
pub use zones::{ZoneView, Zones};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::identity::IdentityError;
use crate::policy::Policies;
use crate::resource::{Kind, Mesh, MtlsMode, Resource, ResourceKey};
use crate::store::{Event, Store, StoreError};
use authority::authority;

/// Changes that come closer together than this are built into one view.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A view is built at the latest this long after the first change, however many follow.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause before a view that could not be built is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The current view of every mesh.
#[derive(Debug)]
pub struct MeshViews {
    views: Mutex<HashMap<String, watch::Sender<Arc<MeshView>>>>,
    /// Counts the changes of the set of meshes.
    meshes: watch::Sender<u64>,
    /// All meshes together, for the proxies of the zone.
    zone: watch::Sender<Arc<ZoneView>>,
    /// Whether a global control plane makes the certificate authorities.
    federated: bool,
    /// Whether the views were built once.
    built: watch::Sender<bool>,
}

impl MeshViews {
    /// No views yet; [`run`](Self::run) builds them, as the zone of that name sees its meshes. The authorities of a `federated` zone
    /// come from its global control plane; else they are made here.
    pub fn new(zone: &str, federated: bool) -> Arc<Self> {
        let zones = Arc::new(Zones::new(zone));
        let zone = Arc::new(ZoneView { zones, meshes: BTreeMap::new() });
        Arc::new(MeshViews {
            views: Mutex::default(),
            meshes: watch::Sender::new(0),
            zone: watch::Sender::new(zone),
            federated,
            built: watch::Sender::new(false),
        })
    }

    /// Completes once all meshes that were there at the start have a view.
    pub async fn read(&self) {
        // The sender lives as long as this.
        let _ = self.built.subscribe().wait_for(|built| *built).await;
    }

    /// Follows all meshes together, as the proxies of the zone need them.
    pub fn follow_zone(&self) -> watch::Receiver<Arc<ZoneView>> {
        self.zone.subscribe()
    }

    /// Follows the view of a mesh. `None` if there is no such mesh. The channel closes when the mesh is deleted.
    pub fn follow(&self, mesh: &str) -> Option<watch::Receiver<Arc<MeshView>>> {
        self.views.lock().get(mesh).map(watch::Sender::subscribe)
    }

    /// As [`follow`](Self::follow), but gives a mesh that was stored a moment ago `patience` to appear.
    pub async fn follow_soon(&self, mesh: &str, patience: Duration) -> Option<watch::Receiver<Arc<MeshView>>> {
        let mut meshes = self.meshes.subscribe();
        let search = async {
            loop {
                if let Some(view) = self.follow(mesh) {
                    return Some(view);
                }
                if meshes.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(patience, search).await.ok().flatten()
    }

    /// Keeps the views up to date until the store is gone. Errors of the store are logged, and what failed is tried again.
    pub async fn run(self: Arc<Self>, store: Store) {
        let mut watch = store.watch();
        let mut dirty = Dirty { all: true, zones: true, ..Dirty::default() };
        let mut build_at = Some(Instant::now());
        let mut first_change = None;
        loop {
            let due = async {
                match build_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                event = watch.next() => {
                    let Some(event) = event else { return };
                    if dirty.note(event, |mesh| self.is_permissive(mesh)) {
                        let now = Instant::now();
                        let first = *first_change.get_or_insert(now);
                        build_at = Some((now + DEBOUNCE).min(first + LONGEST_DEBOUNCE));
                    }
                }
                () = due => {
                    first_change = None;
                    build_at = None;
                    match self.build(&store, &mut dirty).await {
                        Ok(()) => {
                            self.built.send_replace(true);
                        }
                        Err(error) => {
                            tracing::error!(%error, "could not read the store; proxies keep their configuration");
                            build_at = Some(Instant::now() + RETRY);
                        }
                    }
                }
            }
        }
    }

    fn is_permissive(&self, mesh: &str) -> bool {
        let views = self.views.lock();
        let Some(view) = views.get(mesh) else { return false };
        view.borrow().is_permissive()
    }

    /// Builds what is marked, and unmarks it as it succeeds.
    async fn build(&self, store: &Store, dirty: &mut Dirty) -> Result<(), StoreError> {
        let before = self.zone.borrow().zones.clone();
        let mut zones = before.clone();
        if dirty.zones {
            let read = Zones::read(store, &before.local).await?;
            if read != *before {
                zones = Arc::new(read);
                // Every mesh looks at the zones.
                dirty.all = true;
            }
            dirty.zones = false;
        }
        if dirty.all {
            let stored = store.list(Kind::Mesh, None).await?.into_iter().map(|mesh| mesh.meta.name);
            let known: Vec<String> = self.views.lock().keys().cloned().collect();
            dirty.meshes.extend(stored.chain(known));
            dirty.all = false;
        }
        while let Some(mesh) = dirty.meshes.pop_first() {
            if let Err(error) = self.build_mesh(store, &mesh, &zones).await {
                dirty.meshes.insert(mesh);
                // The zones were not given to every mesh yet.
                dirty.zones = true;
                return Err(error);
            }
        }
        let views = self.views.lock();
        let meshes: BTreeMap<String, Arc<MeshView>> =
            views.iter().map(|(name, view)| (name.clone(), view.borrow().clone())).collect();
        drop(views);
        self.zone.send_if_modified(|view| {
            let same = |(one, other): (&Arc<MeshView>, &Arc<MeshView>)| Arc::ptr_eq(one, other);
            if Arc::ptr_eq(&view.zones, &zones)
                && view.meshes.len() == meshes.len()
                && view.meshes.values().zip(meshes.values()).all(same)
            {
                return false;
            }
            *view = Arc::new(ZoneView { zones, meshes });
            true
        });
        Ok(())
    }

    async fn build_mesh(&self, store: &Store, name: &str, zones: &Arc<Zones>) -> Result<(), StoreError> {
        let key = ResourceKey::global(Kind::Mesh, name);
        let stored = store.get(&key).await?;
        let Some(mesh) = stored.as_ref().and_then(Resource::mesh) else {
            if self.views.lock().remove(name).is_some() {
                tracing::info!(mesh = name, "mesh deleted");
                self.meshes.send_modify(|changes| *changes += 1);
            }
            return Ok(());
        };
        let before = self.views.lock().get(name).map(|view| view.borrow().clone());
        let (authority, authority_pem) = authority(store, name, mesh, before.as_deref(), !self.federated).await?;
        match &authority {
            // The first moments of every mesh: the Mesh comes before its Secrets.
            Err(error @ IdentityError::AuthorityMissing { .. }) if self.federated => {
                tracing::info!(mesh = name, %error, "no certificates until the authority has come from global");
            }
            Err(error) => tracing::error!(mesh = name, %error, "certificates of the mesh cannot be issued"),
            Ok(_) => {}
        }

        let mut dataplanes = Vec::new();
        for resource in store.list(Kind::Dataplane, Some(name)).await? {
            if let Some(dataplane) = resource.dataplane() {
                dataplanes.push((resource.meta.clone(), resolve::dataplane(dataplane).await));
            }
        }
        let mut permissions = Vec::new();
        for resource in store.list(Kind::MeshTrafficPermission, Some(name)).await? {
            if let Some(permission) = resource.permission() {
                permissions.push((resource.meta.clone(), permission.clone()));
            }
        }
        let with_certificate = with_certificate(store, name, mesh).await?;
        let mut view = MeshView::new(name, mesh.clone(), dataplanes, permissions, authority, &with_certificate);
        for kind in Policies::KINDS {
            store.list(kind, Some(name)).await?.iter().for_each(|resource| view.policies.add(resource));
        }
        view.authority_pem = authority_pem;
        view.zones.clone_from(zones);
        view.read_services(store).await?;
        view.read_outside(store).await?;
        view.complete();
        if let Some(before) = before {
            if before.plans_as(&view) {
                return Ok(());
            }
            view.warn(&before.warnings);
        } else {
            view.warn(&[]);
        }
        let view = Arc::new(view);

        let mut views = self.views.lock();
        match views.get(name) {
            Some(sender) => {
                sender.send_replace(view);
            }
            None => {
                views.insert(name.to_owned(), watch::Sender::new(view));
                self.meshes.send_modify(|changes| *changes += 1);
            }
        }
        Ok(())
    }
}

/// Which meshes have to be built.
#[derive(Debug, Default)]
struct Dirty {
    all: bool,
    zones: bool,
    meshes: BTreeSet<String>,
}

impl Dirty {
    /// Marks what an event concerns; false if that is nothing.
    fn note(&mut self, event: Event, permissive: impl Fn(&str) -> bool) -> bool {
        let key = match event {
            Event::Changed(key) | Event::Deleted(key) => key,
            Event::Resync => {
                (self.all, self.zones) = (true, true);
                return true;
            }
        };
        match key.kind {
            Kind::Mesh => self.meshes.insert(key.name),
            // Insights say who has a certificate, which matters in PERMISSIVE mode only.
            Kind::DataplaneInsight if permissive(&key.mesh) => self.meshes.insert(key.mesh),
            Kind::DataplaneInsight => return false,
            Kind::Zone | Kind::ZoneIngress | Kind::ZoneEgress => {
                self.zones = true;
                return true;
            }
            Kind::Config => match vips::mesh_of_config(&key.name) {
                Some(mesh) => self.meshes.insert(mesh.to_owned()),
                None => return false,
            },
            kind if kind.in_mesh() => self.meshes.insert(key.mesh),
            _ => return false,
        };
        true
    }
}

/// Dataplanes whose insight shows a certificate of the enabled backend; nobody asks unless the mesh is in PERMISSIVE mode.
async fn with_certificate(store: &Store, name: &str, mesh: &Mesh) -> Result<BTreeSet<String>, StoreError> {
    let Some(backend) = mesh.enabled_backend().filter(|backend| backend.mode == MtlsMode::Permissive) else {
        return Ok(BTreeSet::new());
    };
    let insights = store.list(Kind::DataplaneInsight, Some(name)).await?;
    let has_certificate = |resource: &&Resource| {
        let mtls = resource.insight().and_then(|insight| insight.mtls.as_ref());
        mtls.is_some_and(|mtls| mtls.issued_backend == backend.name)
    };
    Ok(insights.iter().filter(has_certificate).map(|resource| resource.meta.name.clone()).collect())
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
