//! Ports of MeshServices, MeshExternalServices and MeshMultiZoneServices as destinations (Kuma `core.Destination`).

use std::collections::{BTreeMap, BTreeSet};

use super::endpoints::{self, ZONE_TAG};
use super::external::External;
use super::{Endpoint, MeshView, Protocol};
use crate::resource::{
    Dataplane, Inbound, Kind, MeshMultiZoneService, MeshService, Meta, SERVICE_TAG, ServiceIdentityKind, ServicePort,
    ServiceSelector, ServiceState, TargetPort,
};

const DISPLAY_NAME_LABEL: &str = "kuma.io/display-name";
const NAMESPACE_LABEL: &str = "k8s.kuma.io/namespace";
const ORIGIN_LABEL: &str = "kuma.io/origin";
/// Longest part of a server name that is not cut.
const SNI_PART: usize = 62;

/// One port of a service resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// `MeshService`, `MeshExternalService` or `MeshMultiZoneService`.
    pub kind: Kind,
    /// Name of the resource here.
    pub resource: String,
    /// Name in the place where it was created.
    pub name: String,
    /// Kubernetes namespace; empty without one.
    pub namespace: String,
    /// Zone; empty without one.
    pub zone: String,
    /// Labels of the resource.
    pub labels: BTreeMap<String, String>,
    /// What policies call the port: its name, else its number.
    pub section: String,
    /// The number that callers use.
    pub port: u32,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Resource identifier of the port.
    pub kri: String,
    /// Server name to ask for.
    pub sni: String,
    /// Whether it is of this zone.
    pub is_local: bool,
    /// SPIFFE ids of which a server must show one; none means any of the mesh.
    pub identities: BTreeSet<String>,
    /// Whether every instance has a certificate of the mesh. Instances of other zones have, or are not reached.
    pub tls_ready: bool,
    /// Where it is.
    pub endpoints: Vec<Endpoint>,
    /// Where a service outside the mesh is, for the zone egress that goes there.
    pub external: Option<External>,
}

/// The ports by name of their cluster, `<mesh>_<name>_<namespace>_<zone>_<kind>_<port>`.
pub(super) fn backends(view: &MeshView) -> BTreeMap<String, Backend> {
    let mut backends = BTreeMap::new();
    for (meta, service) in view.mesh_services.values() {
        mesh_service(view, meta, service, &mut backends);
    }
    for (meta, service) in view.mesh_external_services.values() {
        let Some(external) = view.mesh_outside.get(&meta.name) else { continue };
        let port = ServicePort {
            port: service.matches.port,
            app_protocol: service.matches.protocol.clone(),
            ..ServicePort::default()
        };
        let (key, mut backend) = backend(view, Kind::MeshExternalService, meta, &port);
        backend.identities = BTreeSet::from([format!("spiffe://{}/zone-egress", view.name)]);
        let zone = (!backend.zone.is_empty()).then_some(&backend.zone);
        let (zone, priority) = endpoints::locality(&view.mesh, &view.zones, zone);
        let through_egress = endpoints::own_egresses(&view.zones).map(|(address, port)| Endpoint {
            zone: zone.clone(),
            address: address.to_owned(),
            port,
            tags: meta.labels.clone(),
            weight: 1,
            priority,
            through_zone_proxy: true,
            ..Endpoint::default()
        });
        backend.endpoints = through_egress.collect();
        backend.external = Some(external.clone());
        backends.insert(key, backend);
    }
    // Last, as they have the endpoints of the others.
    for (meta, service) in view.mesh_multi_zone_services.values() {
        multi_zone_service(view, meta, service, &mut backends);
    }
    backends
}

/// What is the same for all kinds: identifiers, and the SNI (trap 10).
fn backend(view: &MeshView, kind: Kind, meta: &Meta, port: &ServicePort) -> (String, Backend) {
    let mesh = &view.name;
    let label = |label: &str| meta.labels.get(label).cloned().unwrap_or_default();
    let (namespace, zone) = (label(NAMESPACE_LABEL), label(ZONE_TAG));
    let name = meta.labels.get(DISPLAY_NAME_LABEL).unwrap_or(&meta.name).clone();
    let short = kind.short().unwrap_or_default();
    let section = port.section_name();
    let backend = Backend {
        kind,
        kri: format!("kri_{short}_{mesh}_{zone}_{namespace}_{name}_{section}"),
        sni: sni(&sni_name(kind, meta), mesh, port.port, kind),
        is_local: view.zones.is_local(meta),
        resource: meta.name.clone(),
        labels: meta.labels.clone(),
        section,
        port: port.port,
        protocol: Protocol::parse(&port.app_protocol),
        identities: BTreeSet::new(),
        tls_ready: true,
        endpoints: Vec::new(),
        external: None,
        name,
        namespace,
        zone,
    };
    let Backend { name, namespace, zone, port, .. } = &backend;
    (format!("{mesh}_{name}_{namespace}_{zone}_{short}_{port}"), backend)
}

fn mesh_service(view: &MeshView, meta: &Meta, service: &MeshService, backends: &mut BTreeMap<String, Backend>) {
    let (name, mesh) = (&view.name, view.mesh.as_ref());
    let mut identities: BTreeSet<String> = service
        .identities
        .iter()
        .map(|identity| match identity.kind {
            ServiceIdentityKind::ServiceTag => format!("spiffe://{name}/{}", identity.value),
            ServiceIdentityKind::SpiffeID => identity.value.clone(),
        })
        .collect();
    let local = view.zones.is_local(meta);
    let selected: Vec<_> = if local {
        let all = view.dataplanes.values();
        all.filter(|(meta, dataplane)| selects(&service.selector, meta, dataplane)).collect()
    } else {
        Vec::new()
    };
    if identities.is_empty() {
        let tags = selected.iter().flat_map(|(_, dataplane)| dataplane.tags().remove(SERVICE_TAG).unwrap_or_default());
        identities = tags.map(|tag| format!("spiffe://{name}/{tag}")).collect();
    }
    let tls_ready = selected.iter().all(|(meta, _)| view.with_certificate.contains(&meta.name));
    for port in &service.ports {
        let (key, mut backend) = backend(view, Kind::MeshService, meta, port);
        backend.identities.clone_from(&identities);
        if local {
            backend.tls_ready = tls_ready;
            for (meta, dataplane) in &selected {
                let inbounds = dataplane.inbounds().iter().filter(|inbound| is_target(inbound, port));
                let inbounds = inbounds.filter(|inbound| selects_inbound(&service.selector, inbound));
                let instance = |inbound| endpoints::instance(mesh, &view.zones, meta, dataplane, inbound);
                backend.endpoints.extend(inbounds.filter_map(instance));
            }
        } else if mesh.enabled_backend().is_some() {
            backend.endpoints = remote_endpoints(view, &key, &backend.zone);
        }
        backend.endpoints.sort();
        backend.endpoints.dedup();
        backends.insert(key, backend);
    }
}

/// The ways to a service of another zone: its ingresses, or the egresses of this one if the mesh wants that. Kuma 2.14 has no egress in
/// this way; a mesh that wants its traffic to leave the zone through one is taken at its word here.
fn remote_endpoints(view: &MeshView, service: &str, zone: &str) -> Vec<Endpoint> {
    let ingresses = endpoints::remote_ingresses(&view.zones).filter(|(_, ingress)| ingress.zone == zone);
    let mut places: BTreeSet<(&str, u32)> = ingresses.map(|(place, _)| place).collect();
    if !places.is_empty() && view.mesh.uses_zone_egress() {
        places = endpoints::own_egresses(&view.zones).collect();
    }
    let tags = BTreeMap::from([(SERVICE_TAG.to_owned(), service.to_owned()), (ZONE_TAG.to_owned(), zone.to_owned())]);
    let endpoint = |(address, port): (&str, u32)| Endpoint {
        zone: zone.to_owned(),
        address: address.to_owned(),
        port,
        tags: tags.clone(),
        weight: 1,
        priority: 1,
        through_zone_proxy: true,
        ..Endpoint::default()
    };
    places.into_iter().map(endpoint).collect()
}

fn multi_zone_service(
    view: &MeshView,
    meta: &Meta,
    service: &MeshMultiZoneService,
    backends: &mut BTreeMap<String, Backend>,
) {
    let mesh = &view.name;
    let services = view.mesh_services.values();
    let unavailable: BTreeSet<(String, String, String)> = services
        .filter(|(meta, service)| !view.zones.is_local(meta) && service.state != ServiceState::Available)
        .map(|(meta, _)| {
            let label = |label: &str| meta.labels.get(label).cloned().unwrap_or_default();
            let name = meta.labels.get(DISPLAY_NAME_LABEL).unwrap_or(&meta.name).clone();
            (name, label(NAMESPACE_LABEL), label(ZONE_TAG))
        })
        .collect();
    for port in &service.ports {
        let (key, mut all) = backend(view, Kind::MeshMultiZoneService, meta, port);
        for matched in &service.status.mesh_services {
            let place = (matched.name.clone(), matched.namespace.clone(), matched.zone.clone());
            let (name, namespace, zone) = &place;
            let one = backends.get(&format!("{mesh}_{name}_{namespace}_{zone}_msvc_{}", port.port));
            let Some(one) = one.filter(|_| !unavailable.contains(&place)) else { continue };
            all.identities.extend(one.identities.iter().cloned());
            all.endpoints.extend(one.endpoints.iter().cloned());
        }
        all.endpoints.sort();
        all.endpoints.dedup();
        backends.insert(key, all);
    }
}

/// Whether a Dataplane is an instance (Kuma `apis/meshservice/match.go`).
fn selects(selector: &ServiceSelector, meta: &Meta, dataplane: &Dataplane) -> bool {
    let ServiceSelector { dataplane_tags, dataplane_ref, dataplane_labels } = selector;
    match (dataplane_ref, dataplane_labels, dataplane_tags) {
        (Some(reference), _, _) => reference.name == meta.name,
        (None, Some(labels), _) => labels.matches(&meta.labels),
        (None, None, Some(_)) => dataplane.inbounds().iter().any(|inbound| selects_inbound(selector, inbound)),
        (None, None, None) => false,
    }
}

fn selects_inbound(selector: &ServiceSelector, inbound: &Inbound) -> bool {
    let tags = selector.dataplane_tags.iter().flatten();
    tags.into_iter().all(|(tag, value)| inbound.tags.get(tag) == Some(value))
}

fn is_target(inbound: &Inbound, port: &ServicePort) -> bool {
    match port.target() {
        TargetPort::Number(number) => inbound.port == number,
        TargetPort::Name(name) => inbound.section_name() == name,
    }
}

/// How a server name calls a service: by its name in the zone where it was created.
fn sni_name(kind: Kind, meta: &Meta) -> String {
    let display_name = meta.labels.get(DISPLAY_NAME_LABEL).unwrap_or(&meta.name);
    if kind != Kind::MeshService {
        return display_name.clone();
    }
    let namespace = meta.labels.get(NAMESPACE_LABEL).filter(|namespace| !namespace.is_empty());
    match (meta.labels.get(ORIGIN_LABEL).map(String::as_str), namespace) {
        (Some("global"), None) => display_name.clone(),
        (Some("global"), Some(namespace)) => format!("{display_name}.{namespace}"),
        (Some("zone"), Some(namespace)) => format!("{}.{namespace}", meta.name),
        _ => meta.name.clone(),
    }
}

/// Server name of a service resource: `a<hash>.<name>.<port>.<mesh>.<kind>` (Kuma `SNIForResource`).
fn sni(name: &str, mesh: &str, port: u32, kind: Kind) -> String {
    let hash = fnv1a(format!("{name};{mesh};").as_bytes());
    let kind = match kind {
        Kind::MeshExternalService => "mes",
        Kind::MeshMultiZoneService => "mzms",
        _ => "ms",
    };
    format!("a{hash:016x}.{}.{port}.{}.{kind}", cut(name), cut(mesh))
}

/// A part of a server name, at most 63 bytes.
fn cut(part: &str) -> String {
    match part.char_indices().find(|(at, c)| at + c.len_utf8() > SNI_PART) {
        Some((at, _)) => format!("{}x", &part[..at]),
        None => part.to_owned(),
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[path = "backends_tests.rs"]
mod tests;
