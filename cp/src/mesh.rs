//! Views of meshes: what the planning of every proxy of a mesh has in common, built from the store and replaced whole.
//!
//! [`MeshViews::run`] listens to the store, waits until changes calm down, and builds the views of the meshes concerned. A view is
//! immutable; streams hold a `watch` on it and plan again when it changes. A view also makes sure that a mesh with mTLS has its
//! certificate authority.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::identity::IdentityError;
use crate::identity::ca::{self, CaPem, CertificateAuthority};
use crate::policy::Policies;
use crate::resource::{
    CaBackend, Dataplane, Kind, Mesh, MeshTrafficPermission, Meta, MtlsMode, Resource, ResourceKey, SERVICE_TAG,
    Secret, Spec,
};
use crate::store::{Event, Expect, Store, StoreError};

/// Changes that come closer together than this are built into one view.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A view is built at the latest this long after the first change, however many follow.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause before a view that could not be built is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Application protocols that change what is generated (Kuma `pkg/core/metadata/protocol.go`); everything else is TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Bytes.
    Tcp,
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// The protocol of a tag value, whatever its case; TCP for what is not known.
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "http" => Protocol::Http,
            "http2" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            _ => Protocol::Tcp,
        }
    }

    /// The value of the tag `kuma.io/protocol`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Http => "http",
            Protocol::Http2 => "http2",
            Protocol::Grpc => "grpc",
        }
    }

    /// What both are: gRPC is HTTP/2, everything is TCP.
    pub fn common(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Protocol::Grpc, Protocol::Http2) | (Protocol::Http2, Protocol::Grpc) => Protocol::Http2,
            _ => Protocol::Tcp,
        }
    }
}

/// An instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Zone it is in, from the tag `kuma.io/zone`; empty without one.
    pub zone: String,
    /// IP address.
    pub address: String,
    /// Port.
    pub port: u32,
    /// Tags of the inbound without `kuma.io/service`.
    pub tags: BTreeMap<String, String>,
    /// Labels of the Dataplane.
    pub labels: BTreeMap<String, String>,
}

/// A service: everything with one value of `kuma.io/service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Healthy instances, sorted.
    pub endpoints: Vec<Endpoint>,
    /// What all instances speak, healthy or not, so that an outage does not change listeners.
    pub protocol: Protocol,
    /// Whether every instance has a certificate of the mesh: a mesh in PERMISSIVE mode is called with TLS only then.
    pub tls_ready: bool,
}

/// An address that stands for destinations of the mesh, with the names that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address; nothing listens on it but proxies that traffic to it is redirected to.
    pub address: IpAddr,
    /// Names that resolve to it.
    pub names: Vec<String>,
    /// What is reached on its ports.
    pub outbounds: Vec<VipOutbound>,
}

/// A destination behind an address that stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipOutbound {
    /// The port.
    pub port: u32,
    /// The destination by tags, `kuma.io/service` among them.
    pub tags: BTreeMap<String, String>,
}

/// One mesh at one moment.
#[derive(Debug)]
pub struct MeshView {
    /// Name of the mesh.
    pub name: String,
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// Dataplanes by name.
    pub dataplanes: BTreeMap<String, (Meta, Arc<Dataplane>)>,
    /// MeshTrafficPermissions by name.
    pub permissions: Vec<(Meta, Arc<MeshTrafficPermission>)>,
    /// Policies of the other kinds.
    pub policies: Policies,
    /// Services by name.
    pub services: BTreeMap<String, Service>,
    /// Addresses that stand for destinations.
    pub vips: Vec<Vip>,
    /// The authority; `None` while mTLS is off, an error when it is on and the authority cannot be used.
    pub authority: Result<Option<Arc<CertificateAuthority>>, IdentityError>,
    /// The Secrets that `authority` was read from.
    authority_pem: Option<CaPem>,
}

impl MeshView {
    /// A view of these resources. `with_certificate` names the Dataplanes that hold a certificate of the mesh.
    pub fn new(
        name: &str,
        mesh: Arc<Mesh>,
        dataplanes: Vec<(Meta, Arc<Dataplane>)>,
        permissions: Vec<(Meta, Arc<MeshTrafficPermission>)>,
        authority: Result<Option<Arc<CertificateAuthority>>, IdentityError>,
        with_certificate: &BTreeSet<String>,
    ) -> Self {
        let services = services(&dataplanes, with_certificate);
        MeshView {
            name: name.to_owned(),
            mesh,
            dataplanes: dataplanes.into_iter().map(|(meta, spec)| (meta.name.clone(), (meta, spec))).collect(),
            permissions,
            policies: Policies::default(),
            services,
            vips: Vec::new(),
            authority,
            authority_pem: None,
        }
    }
}

fn services(dataplanes: &[(Meta, Arc<Dataplane>)], with_certificate: &BTreeSet<String>) -> BTreeMap<String, Service> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    for (meta, dataplane) in dataplanes {
        let Some(networking) = &dataplane.networking else { continue };
        for inbound in &networking.inbound {
            let Some(name) = inbound.service() else { continue };
            let protocol = Protocol::parse(&inbound.protocol());
            let service = services.entry(name.to_owned()).or_insert_with(|| Service {
                endpoints: Vec::new(),
                protocol,
                tls_ready: true,
            });
            service.protocol = service.protocol.common(protocol);
            service.tls_ready &= with_certificate.contains(&meta.name);
            let address = [&networking.advertised_address, &inbound.address, &networking.address]
                .into_iter()
                .find(|address| !address.is_empty());
            // EDS takes IP addresses only: one name that does not resolve would cost the service all its endpoints.
            let usable = |address: &&String| inbound.is_healthy() && crate::plan::is_ip(address);
            let Some(address) = address.filter(usable) else { continue };
            let mut tags = inbound.tags.clone();
            tags.remove(SERVICE_TAG);
            service.endpoints.push(Endpoint {
                zone: tags.get("kuma.io/zone").cloned().unwrap_or_default(),
                address: address.clone(),
                port: inbound.port,
                tags,
                labels: meta.labels.clone(),
            });
        }
    }
    for service in services.values_mut() {
        service.endpoints.sort();
        service.endpoints.dedup();
    }
    services
}

/// The current view of every mesh.
#[derive(Debug)]
pub struct MeshViews {
    views: Mutex<HashMap<String, watch::Sender<Arc<MeshView>>>>,
    /// Counts the changes of the set of meshes.
    meshes: watch::Sender<u64>,
}

impl Default for MeshViews {
    fn default() -> Self {
        MeshViews { views: Mutex::default(), meshes: watch::Sender::new(0) }
    }
}

impl MeshViews {
    /// No views yet; [`run`](Self::run) builds them.
    pub fn new() -> Arc<Self> {
        Arc::new(MeshViews::default())
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
        while let Some(mesh) = dirty.meshes.pop_first() {
            if let Err(error) = self.build_mesh(store, &mesh).await {
                dirty.meshes.insert(mesh);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn build_mesh(&self, store: &Store, name: &str) -> Result<(), StoreError> {
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
        let (authority, authority_pem) = authority(store, name, mesh, before.as_deref()).await?;
        if let Err(error) = &authority {
            tracing::error!(mesh = name, %error, "certificates of the mesh cannot be issued");
        }

        let mut dataplanes = Vec::new();
        for resource in store.list(Kind::Dataplane, Some(name)).await? {
            if let Some(dataplane) = resource.dataplane() {
                dataplanes.push((resource.meta.clone(), resolved(dataplane).await));
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
            Kind::Secret if key.name.contains(".ca-builtin-") => self.meshes.insert(key.mesh),
            // Insights say who has a certificate, which matters in PERMISSIVE mode only.
            Kind::DataplaneInsight if permissive(&key.mesh) => self.meshes.insert(key.mesh),
            Kind::DataplaneInsight | Kind::Secret => return false,
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

/// The Dataplane with host names in its addresses replaced by what they resolve to now. A name that does not resolve stays, and the
/// proxies of the mesh do without that endpoint.
async fn resolved(dataplane: &Arc<Dataplane>) -> Arc<Dataplane> {
    let Some(networking) = &dataplane.networking else { return dataplane.clone() };
    let names: Vec<&String> = [&networking.address, &networking.advertised_address]
        .into_iter()
        .filter(|address| !address.is_empty() && !crate::plan::is_ip(address))
        .collect();
    if names.is_empty() {
        return dataplane.clone();
    }
    let mut addresses = BTreeMap::new();
    for name in names {
        match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(found) => {
                let mut found: Vec<_> = found.map(|address| address.ip()).collect();
                // IPv4 first, then in numerical order: the same answer in another order is no change.
                found.sort_by_key(|ip| (ip.is_ipv6(), *ip));
                if let Some(ip) = found.first() {
                    addresses.insert(name.clone(), ip.to_string());
                }
            }
            Err(error) => tracing::warn!(address = name, %error, "the address of a Dataplane does not resolve"),
        }
    }
    let mut dataplane = Dataplane::clone(dataplane);
    if let Some(networking) = &mut dataplane.networking {
        for address in [&mut networking.address, &mut networking.advertised_address] {
            if let Some(ip) = addresses.get(address.as_str()) {
                address.clone_from(ip);
            }
        }
    }
    Arc::new(dataplane)
}

type Authority = (Result<Option<Arc<CertificateAuthority>>, IdentityError>, Option<CaPem>);

/// The authority of a mesh, created if mTLS is on and it has none. Read again only if its Secrets changed.
async fn authority(store: &Store, name: &str, mesh: &Mesh, before: Option<&MeshView>) -> Result<Authority, StoreError> {
    let Some(backend) = mesh.enabled_backend() else { return Ok((Ok(None), None)) };
    if backend.kind != "builtin" {
        let error = IdentityError::Crypto {
            doing: format!("using mTLS backend {:?}", backend.name),
            reason: format!("type {:?} is not supported, only builtin is", backend.kind),
        };
        return Ok((Err(error), None));
    }
    let pem = match ensure(store, name, backend).await? {
        Ok(pem) => pem,
        Err(error) => return Ok((Err(error), None)),
    };
    if let Some(before) = before
        && before.authority_pem.as_ref().is_some_and(|old| old.certificate == pem.certificate && old.key == pem.key)
    {
        return Ok((before.authority.clone(), Some(pem)));
    }
    Ok((CertificateAuthority::from_pem(name, &pem).map(|authority| Some(Arc::new(authority))), Some(pem)))
}

/// The Secrets of a builtin authority, created when they are missing. The certificate makes the pair complete: a key alone is what a
/// crash left behind, with which nothing was signed.
async fn ensure(store: &Store, mesh: &str, backend: &CaBackend) -> Result<Result<CaPem, IdentityError>, StoreError> {
    let certificate_key = ResourceKey::new(Kind::Secret, mesh, ca::certificate_secret(mesh, &backend.name));
    let key_key = ResourceKey::new(Kind::Secret, mesh, ca::key_secret(mesh, &backend.name));
    // The second round reads what another instance created first.
    for _ in 0..2 {
        if let Some(certificate) = text(store, &certificate_key).await? {
            let missing = IdentityError::AuthorityMissing { mesh: mesh.to_owned(), secret: key_key.name.clone() };
            return Ok(text(store, &key_key).await?.map(|key| CaPem { certificate, key }).ok_or(missing));
        }
        let conf = match backend.builtin_conf() {
            Ok(conf) => conf,
            Err(reason) => {
                return Ok(Err(IdentityError::Crypto {
                    doing: format!("reading conf of mTLS backend {:?}", backend.name),
                    reason,
                }));
            }
        };
        let owner = mesh.to_owned();
        let job = move || ca::create(&owner, conf.rsa_bits, conf.expiration, Utc::now());
        let pem = match tokio::task::spawn_blocking(job).await {
            Ok(Ok(pem)) => pem,
            Ok(Err(error)) => return Ok(Err(error)),
            Err(stopped) => return Err(StoreError::Database(stopped.to_string())),
        };
        let secret = |key: &ResourceKey, pem: &str| {
            let spec = Spec::Secret(Arc::new(Secret::new(pem.as_bytes())));
            Resource::new(Meta::new(mesh, key.name.clone()), spec)
        };
        match store.put(secret(&key_key, &pem.key), Expect::Absent).await {
            Ok(_) => {}
            // Either another instance is at it, and its certificate is about to appear, or it died half way.
            Err(StoreError::Exists(_)) => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if text(store, &certificate_key).await?.is_some() {
                    continue;
                }
                store.put(secret(&key_key, &pem.key), Expect::Any).await?;
            }
            Err(error) => return Err(error),
        }
        match store.put(secret(&certificate_key, &pem.certificate), Expect::Absent).await {
            Ok(_) => {
                tracing::info!(mesh, backend = backend.name, "created the certificate authority of the mesh");
                return Ok(Ok(pem));
            }
            Err(StoreError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Err(IdentityError::AuthorityMissing { mesh: mesh.to_owned(), secret: certificate_key.name }))
}

async fn text(store: &Store, key: &ResourceKey) -> Result<Option<String>, StoreError> {
    let resource = store.get(key).await?;
    let secret = resource.as_ref().and_then(Resource::secret);
    Ok(secret.map(|secret| String::from_utf8_lossy(&secret.data).into_owned()))
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
