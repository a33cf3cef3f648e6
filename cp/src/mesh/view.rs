//! One mesh at one moment: its resources, and what the planning of all its proxies has in common.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::backends::{self, Backend};
use super::endpoints;
use super::external::External;
use crate::identity::IdentityError;
use crate::identity::ca::{CaPem, CertificateAuthority};
use crate::resource::{
    Dataplane, Mesh, MeshExternalService, MeshMultiZoneService, MeshService, MeshServicesMode, MeshTrafficPermission,
    Meta, MtlsMode, ZoneEgress, ZoneIngress,
};

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

/// An address that stands for destinations of the mesh, with the names that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshVip {
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
    /// What is there.
    pub destination: VipDestination,
}

/// What is behind a port of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VipDestination {
    /// A service by tags, `kuma.io/service` among them.
    Tags(BTreeMap<String, String>),
    /// A port of a service resource: a key of [`MeshView::backends`].
    Backend(String),
}

/// What the meshes of a zone have in common.
#[derive(Debug, Default)]
pub struct ZoneView {
    /// Name of the zone; empty if there is none.
    pub name: String,
    /// Zone ingresses of every zone by name, their advertised addresses resolved.
    pub ingresses: BTreeMap<String, Arc<ZoneIngress>>,
    /// Zone egresses of every zone by name, their addresses resolved.
    pub egresses: BTreeMap<String, Arc<ZoneEgress>>,
}

impl ZoneView {
    /// Zone ingresses of other zones that can be reached: where they are, and what is behind them.
    pub fn remote_ingresses(&self) -> impl Iterator<Item = ((&str, u32), &ZoneIngress)> {
        let remote = self.ingresses.values().filter(|ingress| !self.is_own(&ingress.zone));
        let reachable = remote.filter_map(|ingress| Some((ingress.advertised()?, ingress.as_ref())));
        reachable.filter(|((address, _), _)| crate::plan::is_ip(address))
    }

    /// Where the zone egresses of this zone are.
    pub fn own_egresses(&self) -> impl Iterator<Item = (&str, u32)> {
        let own = self.egresses.values().filter(|egress| self.is_own(&egress.zone));
        let places = own.filter_map(|egress| egress.networking.as_ref());
        let places = places.map(|networking| (networking.address.as_str(), networking.port));
        places.filter(|(address, port)| crate::plan::is_ip(address) && *port != 0)
    }

    /// Whether this zone is meant; what names no zone belongs to every one.
    pub fn is_own(&self, zone: &str) -> bool {
        zone.is_empty() || zone == self.name
    }
}

/// What a view is made of.
#[derive(Debug, Default)]
pub struct MeshParts {
    /// What the meshes of the zone have in common.
    pub zone: Arc<ZoneView>,
    /// Dataplanes, their addresses resolved.
    pub dataplanes: Vec<(Meta, Arc<Dataplane>)>,
    /// MeshTrafficPermissions.
    pub permissions: Vec<(Meta, Arc<MeshTrafficPermission>)>,
    /// ExternalServices.
    pub external_services: Vec<External>,
    /// MeshServices.
    pub mesh_services: Vec<(Meta, Arc<MeshService>)>,
    /// MeshExternalServices, and where they are.
    pub mesh_external_services: Vec<(Meta, Arc<MeshExternalService>, External)>,
    /// MeshMultiZoneServices.
    pub mesh_multi_zone_services: Vec<(Meta, Arc<MeshMultiZoneService>)>,
    /// Addresses that stand for services by tags.
    pub vips: Vec<MeshVip>,
    /// Names of the Dataplanes that hold a certificate of the mesh.
    pub with_certificate: BTreeSet<String>,
    /// What could not be used, in words.
    pub warnings: Vec<String>,
}

/// One mesh at one moment.
#[derive(Debug)]
pub struct MeshView {
    /// Name of the mesh.
    pub name: String,
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// What the meshes of the zone have in common.
    pub zone: Arc<ZoneView>,
    /// Dataplanes by name.
    pub dataplanes: BTreeMap<String, (Meta, Arc<Dataplane>)>,
    /// MeshTrafficPermissions by name.
    pub permissions: Vec<(Meta, Arc<MeshTrafficPermission>)>,
    /// ExternalServices.
    pub external_services: Vec<External>,
    /// Services by name.
    pub services: BTreeMap<String, Service>,
    /// Ports of MeshServices, MeshExternalServices and MeshMultiZoneServices by the name of their cluster.
    pub backends: BTreeMap<String, Backend>,
    /// Addresses that stand for destinations.
    pub vips: Vec<MeshVip>,
    /// What of the mesh could not be used, in words.
    pub warnings: Vec<String>,
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
        let with_certificate = with_certificate.clone();
        Self::of(name, mesh, authority, MeshParts { dataplanes, permissions, with_certificate, ..MeshParts::default() })
    }

    /// A view of these parts.
    pub fn of(
        name: &str,
        mesh: Arc<Mesh>,
        authority: Result<Option<Arc<CertificateAuthority>>, IdentityError>,
        parts: MeshParts,
    ) -> Self {
        let services = endpoints::services(name, &mesh, &parts);
        let (backends, of_resources) = backends::backends(name, &mesh, &parts);
        // In mode Exclusive services are called as resources only.
        let by_tags = if mesh.services_mode() == MeshServicesMode::Exclusive { Vec::new() } else { parts.vips };
        MeshView {
            name: name.to_owned(),
            mesh,
            zone: parts.zone,
            dataplanes: parts.dataplanes.into_iter().map(|(meta, spec)| (meta.name.clone(), (meta, spec))).collect(),
            permissions: parts.permissions,
            external_services: parts.external_services,
            services,
            backends,
            vips: by_tags.into_iter().chain(of_resources).collect(),
            warnings: parts.warnings,
            authority,
            authority_pem: None,
        }
    }

    /// Whether proxies of the mesh take plain text beside mutual TLS.
    pub fn is_permissive(&self) -> bool {
        self.mesh.enabled_backend().is_some_and(|backend| backend.mode == MtlsMode::Permissive)
    }

    /// Whether traffic to other zones and to ExternalServices takes the way through a zone egress.
    pub fn uses_zone_egress(&self) -> bool {
        self.mesh.uses_zone_egress()
    }
}
