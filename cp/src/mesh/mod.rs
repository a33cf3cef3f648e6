//! Views of meshes: what the planning of every proxy of a mesh has in common, built from the store and replaced whole.
//!
//! [`MeshViews::run`] listens to the store, waits until changes calm down, and builds the views of the meshes concerned. A view is
//! immutable; streams hold a `watch` on it and plan again when it changes. A view also makes sure that a mesh with mTLS has its
//! certificate authority.

mod authority;
mod backends;
mod endpoints;
mod external;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::resource::{Dataplane, Kind, Mesh, MtlsMode, Resource, ResourceKey, ZoneEgress, ZoneIngress};
use crate::store::{Event, Store, StoreError};

pub use backends::Backend;
pub use external::{External, ExternalHost, ExternalName, OriginatedTls};
pub use view::{Endpoint, MeshParts, MeshView, MeshVip, Protocol, Service, VipDestination, VipOutbound, ZoneView};

/// Changes that come closer together than this are built into one view.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A view is built at the latest this long after the first change, however many follow.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause before a view that could not be built is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The current view of every mesh.
#[derive(Debug)]
pub struct MeshViews {
    /// Name of this zone; empty if there is none.
    zone: String,
    views: Mutex<HashMap<String, watch::Sender<Arc<MeshView>>>>,
    /// Counts the changes of the set of meshes.
    meshes: watch::Sender<u64>,
    /// Every mesh with its view, for proxies that serve all of them. `None` until they were all built for the first time.
    all: watch::Sender<Option<Arc<AllMeshes>>>,
}

/// Every mesh of a zone at one moment.
#[derive(Debug, Default)]
pub struct AllMeshes {
    /// What they have in common.
    pub zone: Arc<ZoneView>,
    /// The meshes by name.
    pub meshes: BTreeMap<String, Arc<MeshView>>,
}

impl MeshViews {
    /// No views yet; [`run`](Self::run) builds them.
    /// `zone` is the name of this zone, empty if there is none.
    pub fn new(zone: &str) -> Arc<Self> {
        Arc::new(MeshViews {
            zone: zone.to_owned(),
            views: Mutex::default(),
            meshes: watch::Sender::new(0),
            all: watch::Sender::new(None),
        })
    }

    /// Follows all meshes. `None` is there until they were read for the first time.
    pub fn follow_all(&self) -> watch::Receiver<Option<Arc<AllMeshes>>> {
        self.all.subscribe()
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
        let mut dirty = Dirty { all: true, ..Dirty::default() };
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
                    if let Err(error) = self.build(&store, &mut dirty).await {
                        tracing::error!(%error, "could not read the store; proxies keep their configuration");
                        build_at = Some(Instant::now() + RETRY);
                    }
                }
            }
        }
    }

    fn is_permissive(&self, mesh: &str) -> bool {
        let views = self.views.lock();
        let Some(view) = views.get(mesh) else { return false };
        view.borrow().mesh.enabled_backend().is_some_and(|backend| backend.mode == MtlsMode::Permissive)
    }

    /// Builds what is marked, and unmarks it as it succeeds.
    async fn build(&self, store: &Store, dirty: &mut Dirty) -> Result<(), StoreError> {
        if dirty.all {
            let stored = store.list(Kind::Mesh, None).await?.into_iter().map(|mesh| mesh.meta.name);
            let known: Vec<String> = self.views.lock().keys().cloned().collect();
            dirty.meshes.extend(stored.chain(known));
            dirty.all = false;
        }
        let zone = Arc::new(zone(store, &self.zone).await?);
        while let Some(mesh) = dirty.meshes.pop_first() {
            if let Err(error) = self.build_mesh(store, &mesh, &zone).await {
                dirty.meshes.insert(mesh);
                return Err(error);
            }
        }
        let views = self.views.lock();
        let meshes = views.iter().map(|(name, view)| (name.clone(), view.borrow().clone())).collect();
        self.all.send_replace(Some(Arc::new(AllMeshes { zone, meshes })));
        Ok(())
    }

    async fn build_mesh(&self, store: &Store, name: &str, zone: &Arc<ZoneView>) -> Result<(), StoreError> {
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
        let (authority, authority_pem) = authority::authority(store, name, mesh, before.as_deref()).await?;
        if let Err(error) = &authority {
            tracing::error!(mesh = name, %error, "certificates of the mesh cannot be issued");
        }

        let mut parts = parts(store, name, zone).await?;
        parts.with_certificate = with_certificate(store, name, mesh).await?;
        let known = before.map(|before| before.warnings.clone()).unwrap_or_default();
        for warning in parts.warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!(mesh = name, "{warning}");
        }
        let mut view = MeshView::of(name, mesh.clone(), authority, parts);
        view.authority_pem = authority_pem;
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
    meshes: BTreeSet<String>,
}

impl Dirty {
    /// Marks what an event concerns; false if that is nothing.
    fn note(&mut self, event: Event, permissive: impl Fn(&str) -> bool) -> bool {
        let key = match event {
            Event::Changed(key) | Event::Deleted(key) => key,
            Event::Resync => {
                self.all = true;
                return true;
            }
        };
        match key.kind {
            Kind::Mesh => self.meshes.insert(key.name),
            // Insights say who has a certificate, which matters in PERMISSIVE mode only.
            Kind::DataplaneInsight if permissive(&key.mesh) => self.meshes.insert(key.mesh),
            Kind::DataplaneInsight => return false,
            kind if kind.in_mesh() => self.meshes.insert(key.mesh),
            Kind::ZoneIngress | Kind::ZoneEgress => {
                self.all = true;
                true
            }
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

/// What the store has of a mesh.
async fn parts(store: &Store, mesh: &str, zone: &Arc<ZoneView>) -> Result<MeshParts, StoreError> {
    let mut parts = MeshParts { zone: zone.clone(), ..MeshParts::default() };
    let list = |kind| store.list(kind, Some(mesh));
    for resource in list(Kind::Dataplane).await? {
        if let Some(dataplane) = resource.dataplane() {
            parts.dataplanes.push((resource.meta.clone(), resolved(dataplane).await));
        }
    }
    for resource in list(Kind::MeshTrafficPermission).await? {
        if let Some(permission) = resource.permission() {
            parts.permissions.push((resource.meta.clone(), permission.clone()));
        }
    }
    for resource in list(Kind::ExternalService).await? {
        let Some(service) = resource.external_service() else { continue };
        match external::external_service(store, &resource.meta, service).await? {
            Ok(external) => parts.external_services.push(external),
            Err(warning) => parts.warnings.push(warning),
        }
    }
    for resource in list(Kind::MeshService).await? {
        if let Some(service) = resource.mesh_service() {
            parts.mesh_services.push((resource.meta.clone(), service.clone()));
        }
    }
    for resource in list(Kind::MeshExternalService).await? {
        let Some(service) = resource.mesh_external_service() else { continue };
        match external::mesh_external_service(store, &resource.meta, service).await? {
            Ok(external) => parts.mesh_external_services.push((resource.meta.clone(), service.clone(), external)),
            Err(warning) => parts.warnings.push(warning),
        }
    }
    for resource in list(Kind::MeshMultiZoneService).await? {
        if let Some(service) = resource.mesh_multi_zone_service() {
            parts.mesh_multi_zone_services.push((resource.meta.clone(), service.clone()));
        }
    }
    Ok(parts)
}

/// What the meshes of the zone have in common.
async fn zone(store: &Store, name: &str) -> Result<ZoneView, StoreError> {
    let mut zone = ZoneView { name: name.to_owned(), ..ZoneView::default() };
    for resource in store.list(Kind::ZoneIngress, None).await? {
        let Some(ingress) = resource.zone_ingress() else { continue };
        let mut ingress: Arc<ZoneIngress> = ingress.clone();
        if let Some(networking) = &ingress.networking
            && let Some(ip) = resolve(&networking.advertised_address).await
        {
            let mut networking = networking.clone();
            networking.advertised_address = ip;
            Arc::make_mut(&mut ingress).networking = Some(networking);
        }
        zone.ingresses.insert(resource.meta.name.clone(), ingress);
    }
    for resource in store.list(Kind::ZoneEgress, None).await? {
        let Some(egress) = resource.zone_egress() else { continue };
        let mut egress: Arc<ZoneEgress> = egress.clone();
        if let Some(networking) = &egress.networking
            && let Some(ip) = resolve(&networking.address).await
        {
            let mut networking = networking.clone();
            networking.address = ip;
            Arc::make_mut(&mut egress).networking = Some(networking);
        }
        zone.egresses.insert(resource.meta.name.clone(), egress);
    }
    Ok(zone)
}

/// The Dataplane with host names in its addresses replaced by what they resolve to now. A name that does not resolve stays, and the
/// proxies of the mesh do without that endpoint.
async fn resolved(dataplane: &Arc<Dataplane>) -> Arc<Dataplane> {
    let Some(networking) = &dataplane.networking else { return dataplane.clone() };
    let (address, advertised) = (resolve(&networking.address).await, resolve(&networking.advertised_address).await);
    if address.is_none() && advertised.is_none() {
        return dataplane.clone();
    }
    let mut dataplane = Dataplane::clone(dataplane);
    if let Some(networking) = &mut dataplane.networking {
        for (address, ip) in [(&mut networking.address, address), (&mut networking.advertised_address, advertised)] {
            if let Some(ip) = ip {
                *address = ip;
            }
        }
    }
    Arc::new(dataplane)
}

/// What a host name resolves to now; `None` for an IP address, for nothing, and for a name that does not resolve.
async fn resolve(name: &str) -> Option<String> {
    if name.is_empty() || crate::plan::is_ip(name) {
        return None;
    }
    match tokio::net::lookup_host((name, 0)).await {
        Ok(found) => {
            let mut found: Vec<_> = found.map(|address| address.ip()).collect();
            // IPv4 first, then in numerical order: the same answer in another order is no change.
            found.sort_by_key(|ip| (ip.is_ipv6(), *ip));
            found.first().map(ToString::to_string)
        }
        Err(error) => {
            tracing::warn!(address = name, %error, "the address of a proxy does not resolve");
            None
        }
    }
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
