//! One mesh at one moment: its resources, and what the planning of all its proxies has in common.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::backends::{self, Backend};
use super::external::{self, External};
use super::{Vip, Zones, endpoints};
use crate::identity::IdentityError;
use crate::identity::ca::{CaPem, CertificateAuthority};
use crate::policy::Policies;
use crate::resource::{
    Dataplane, ExternalService, Kind, Mesh, MeshExternalService, MeshMultiZoneService, MeshService,
    MeshTrafficPermission, Meta, MtlsMode,
};
use crate::store::{Store, StoreError};

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

/// An instance of a service, or a zone proxy through which it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Share of the traffic.
    pub weight: u32,
    /// Endpoints of higher numbers are used when those of lower ones are down.
    pub priority: u32,
    /// Whether a zone proxy stands between, which tells destinations apart by the server name: there is no way without TLS.
    pub through_zone_proxy: bool,
}

/// A service: everything with one value of `kuma.io/service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Healthy instances and ways to those of other zones, sorted.
    pub endpoints: Vec<Endpoint>,
    /// What all instances speak, healthy or not, so that an outage does not change listeners.
    pub protocol: Protocol,
    /// Whether every instance has a certificate of the mesh: a mesh in PERMISSIVE mode is called with TLS only then.
    pub tls_ready: bool,
    /// Whether it is outside the mesh, as ExternalServices say.
    pub is_external: bool,
}

/// Resources by name.
pub type Named<T> = BTreeMap<String, (Meta, Arc<T>)>;

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
    /// Names of the Dataplanes that hold a certificate of the mesh.
    pub with_certificate: BTreeSet<String>,
    /// Services by name; see [`complete`](Self::complete).
    pub services: BTreeMap<String, Service>,
    /// Ports of MeshServices, MeshExternalServices and MeshMultiZoneServices by the name of their cluster; see
    /// [`complete`](Self::complete).
    pub backends: BTreeMap<String, Backend>,
    /// Keys of `backends` by kind, name of the resource, and port.
    by_resource: BTreeMap<(Kind, String, u32), String>,
    /// How ExternalServices are reached.
    pub outside: Vec<External>,
    /// How MeshExternalServices are reached, by the name of the resource.
    pub mesh_outside: BTreeMap<String, External>,
    /// What of the mesh cannot be used, in words.
    pub warnings: Vec<String>,
    /// ExternalServices by name.
    pub external_services: Named<ExternalService>,
    /// MeshExternalServices by name, with their virtual address and host names in `status`.
    pub mesh_external_services: Named<MeshExternalService>,
    /// MeshMultiZoneServices by name, with the MeshServices they stand for in `status`.
    pub mesh_multi_zone_services: Named<MeshMultiZoneService>,
    /// MeshServices by name, of this zone and of others ([`Zones::is_local`]), with their virtual addresses, host names and
    /// identities. What `status` has besides these is left out: it changes no plan.
    pub mesh_services: Named<MeshService>,
    /// Addresses that stand for destinations, in the order of their addresses.
    pub vips: Vec<Vip>,
    /// The zones and their proxies.
    pub zones: Arc<Zones>,
    /// The authority; `None` while mTLS is off, an error when it is on and the authority cannot be used.
    pub authority: Result<Option<Arc<CertificateAuthority>>, IdentityError>,
    /// The Secrets that `authority` was read from.
    pub(super) authority_pem: Option<CaPem>,
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
        let mut view = MeshView {
            name: name.to_owned(),
            mesh,
            dataplanes: dataplanes.into_iter().map(|(meta, spec)| (meta.name.clone(), (meta, spec))).collect(),
            permissions,
            policies: Policies::default(),
            with_certificate: with_certificate.clone(),
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            by_resource: BTreeMap::new(),
            outside: Vec::new(),
            mesh_outside: BTreeMap::new(),
            warnings: Vec::new(),
            external_services: BTreeMap::new(),
            mesh_external_services: BTreeMap::new(),
            mesh_multi_zone_services: BTreeMap::new(),
            mesh_services: BTreeMap::new(),
            vips: Vec::new(),
            zones: Arc::default(),
            authority,
            authority_pem: None,
        };
        view.complete();
        view
    }

    /// Finds out where services are, from what the view has of resources. To be called whenever these were changed.
    pub fn complete(&mut self) {
        self.services = endpoints::services(self);
        self.backends = backends::backends(self);
        let keys = self.backends.iter();
        self.by_resource =
            keys.map(|(key, backend)| ((backend.kind, backend.resource.clone(), backend.port), key.clone())).collect();
    }

    /// The port of a service resource, by the name of the resource.
    pub fn backend(&self, kind: &str, resource: &str, port: u32) -> Option<(&str, &Backend)> {
        let kind = Kind::from_name(kind)?;
        let key = self.by_resource.get(&(kind, resource.to_owned(), port))?;
        self.backends.get_key_value(key).map(|(key, backend)| (key.as_str(), backend))
    }

    /// Whether proxies of the mesh take plain text beside mutual TLS.
    pub fn is_permissive(&self) -> bool {
        self.mesh.enabled_backend().is_some_and(|backend| backend.mode == MtlsMode::Permissive)
    }

    /// Logs what cannot be used, unless it was `known`.
    pub(super) fn warn(&self, known: &[String]) {
        for warning in self.warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!(mesh = self.name, "{warning}");
        }
    }

    /// Reads what the way to services outside the mesh takes.
    pub(super) async fn read_outside(&mut self, store: &Store) -> Result<(), StoreError> {
        for (meta, service) in self.external_services.values() {
            match external::external_service(store, meta, service).await? {
                Ok(external) => self.outside.push(external),
                Err(warning) => self.warnings.push(warning),
            }
        }
        for (name, (meta, service)) in &self.mesh_external_services {
            match external::mesh_external_service(store, meta, service).await? {
                Ok(external) => drop(self.mesh_outside.insert(name.clone(), external)),
                Err(warning) => self.warnings.push(warning),
            }
        }
        Ok(())
    }

    /// Whether every plan made from the other view is the plan made from this one.
    pub(super) fn plans_as(&self, other: &MeshView) -> bool {
        let MeshView {
            name,
            mesh,
            dataplanes,
            permissions,
            policies,
            with_certificate: _,
            services,
            backends,
            by_resource: _,
            outside,
            mesh_outside,
            warnings,
            external_services,
            mesh_external_services,
            mesh_multi_zone_services,
            mesh_services,
            vips,
            zones,
            authority,
            authority_pem: _,
        } = self;
        let same_authority = match (authority, &other.authority) {
            (Ok(None), Ok(None)) => true,
            (Ok(Some(one)), Ok(Some(other))) => Arc::ptr_eq(one, other),
            _ => false,
        };
        same_authority
            && *name == other.name
            && *mesh == other.mesh
            && same(dataplanes, &other.dataplanes)
            && permissions.len() == other.permissions.len()
            && permissions.iter().zip(&other.permissions).all(|(a, b)| same_resource(a, b))
            && policies.plans_as(&other.policies)
            && *services == other.services
            && *backends == other.backends
            && *outside == other.outside
            && *mesh_outside == other.mesh_outside
            && *warnings == other.warnings
            && same(external_services, &other.external_services)
            && same(mesh_external_services, &other.mesh_external_services)
            && same(mesh_multi_zone_services, &other.mesh_multi_zone_services)
            && same(mesh_services, &other.mesh_services)
            && *vips == other.vips
            && *zones == other.zones
    }
}

/// Whether two resources plan the same. Times and versions do not count, but for the order of creation.
fn same_resource<T: PartialEq>((meta, spec): &(Meta, Arc<T>), (other, other_spec): &(Meta, Arc<T>)) -> bool {
    meta.name == other.name
        && meta.labels == other.labels
        && meta.creation_time == other.creation_time
        && (Arc::ptr_eq(spec, other_spec) || spec == other_spec)
}

fn same<T: PartialEq>(one: &Named<T>, other: &Named<T>) -> bool {
    one.len() == other.len() && one.values().zip(other.values()).all(|(a, b)| same_resource(a, b))
}
