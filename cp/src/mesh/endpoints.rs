//! Where the services of a mesh are: instances in this zone, and ways to those in others (Kuma `pkg/xds/topology/outbound.go`).

use std::collections::{BTreeMap, BTreeSet};

use super::view::{Endpoint, MeshParts, Protocol, Service, ZoneView};
use crate::resource::{Dataplane, Inbound, Mesh, Meta, PROTOCOL_TAG, SERVICE_TAG};

/// The tag and the label that name a zone.
pub(super) const ZONE_TAG: &str = "kuma.io/zone";

/// The services by tag. Instances in other zones are reached through these zones' ingresses, or through an egress of this zone if the
/// mesh wants that; both tell destinations apart by the server name of mutual TLS, so without it there is no way.
pub(super) fn services(name: &str, mesh: &Mesh, parts: &MeshParts) -> BTreeMap<String, Service> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    let zone = parts.zone.as_ref();
    let mut ingresses = BTreeSet::new();
    if mesh.enabled_backend().is_some() {
        ingresses = remote(name, mesh, zone, &mut services);
    }
    // Every ingress endpoint stands for all instances of its zone, so with two ingresses these count twice: the own ones then do too.
    let weight = u32::try_from(ingresses.len()).unwrap_or(u32::MAX).max(1);
    for (meta, dataplane) in &parts.dataplanes {
        for inbound in dataplane.inbounds() {
            let Some(service) = inbound.service() else { continue };
            let protocol = Protocol::parse(&inbound.protocol());
            let service = services.entry(service.to_owned()).or_insert_with(|| Service::new(protocol));
            service.protocol = service.protocol.common(protocol);
            service.tls_ready &= parts.with_certificate.contains(&meta.name);
            if let Some(endpoint) = instance(mesh, zone, meta, dataplane, inbound) {
                service.endpoints.push(Endpoint { weight, ..endpoint });
            }
        }
    }
    external(mesh, parts, &mut services);
    for service in services.values_mut() {
        service.endpoints.sort();
        service.endpoints.dedup();
    }
    services
}

impl Service {
    fn new(protocol: Protocol) -> Self {
        Service { endpoints: Vec::new(), protocol, tls_ready: true, is_external: false }
    }
}

/// Adds the ways to other zones, and returns the addresses of their ingresses.
fn remote<'a>(
    name: &str,
    mesh: &Mesh,
    zone: &'a ZoneView,
    services: &mut BTreeMap<String, Service>,
) -> BTreeSet<(&'a str, u32)> {
    let through_egress = mesh.uses_zone_egress();
    let mut seen = BTreeSet::new();
    for ((address, port), ingress) in zone.remote_ingresses() {
        // Ingresses behind one load balancer are one. A new one that does not yet know its services must not stand for the others.
        if ingress.available_services.is_empty() || !seen.insert((address, port)) {
            continue;
        }
        for available in ingress.available_services.iter().filter(|available| available.mesh == name) {
            let Some(service) = available.service() else { continue };
            let protocol = Protocol::parse(available.tags.get(PROTOCOL_TAG).map(String::as_str).unwrap_or_default());
            let service = services.entry(service.to_owned()).or_insert_with(|| Service::new(protocol));
            service.protocol = service.protocol.common(protocol);
            service.is_external |= available.external_service;
            let mut tags = available.tags.clone();
            tags.remove(SERVICE_TAG);
            let (zone_of, priority) = locality(mesh, zone, tags.get(ZONE_TAG));
            let endpoint =
                Endpoint { zone: zone_of, priority, tags, weight: 1, through_zone_proxy: true, ..Endpoint::default() };
            if through_egress {
                let egresses = zone.own_egresses();
                let endpoints =
                    egresses.map(|(ip, port)| Endpoint { address: ip.to_owned(), port, ..endpoint.clone() });
                service.endpoints.extend(endpoints);
            } else if available.instances > 0 {
                let (address, weight) = (address.to_owned(), available.instances);
                service.endpoints.push(Endpoint { address, port, weight, ..endpoint });
            }
        }
    }
    seen
}

/// Adds ExternalServices: they are no endpoints of EDS unless an egress stands between.
fn external(mesh: &Mesh, parts: &MeshParts, services: &mut BTreeMap<String, Service>) {
    let through_egress = mesh.uses_zone_egress();
    for external in &parts.external_services {
        let protocol = external.protocol;
        let service = services.entry(external.service.clone()).or_insert_with(|| Service::new(protocol));
        service.protocol = service.protocol.common(protocol);
        service.is_external = true;
        if !through_egress {
            continue;
        }
        let tags = &external.tags;
        let (zone_of, priority) = locality(mesh, &parts.zone, tags.get(ZONE_TAG));
        service.endpoints.extend(parts.zone.own_egresses().map(|(address, port)| Endpoint {
            zone: zone_of.clone(),
            address: address.to_owned(),
            port,
            tags: tags.clone(),
            weight: 1,
            priority,
            through_zone_proxy: true,
            ..Endpoint::default()
        }));
    }
}

/// An inbound as an endpoint, if it is healthy and has an address that EDS takes: one name that does not resolve would cost a service
/// all its endpoints.
pub(super) fn instance(
    mesh: &Mesh,
    zone: &ZoneView,
    meta: &Meta,
    dataplane: &Dataplane,
    inbound: &Inbound,
) -> Option<Endpoint> {
    let networking = dataplane.networking.as_ref()?;
    let address = [&networking.advertised_address, &inbound.address, &networking.address]
        .into_iter()
        .find(|address| !address.is_empty())
        .filter(|address| inbound.is_healthy() && crate::plan::is_ip(address))?;
    let mut tags = inbound.tags.clone();
    tags.remove(SERVICE_TAG);
    let (zone, priority) = locality(mesh, zone, tags.get(ZONE_TAG).or_else(|| meta.labels.get(ZONE_TAG)));
    Some(Endpoint {
        zone,
        address: address.clone(),
        port: inbound.port,
        tags,
        labels: meta.labels.clone(),
        weight: 1,
        priority,
        through_zone_proxy: false,
    })
}

/// The zone of an endpoint, empty for none, and its priority: other zones come second if the mesh wants traffic to stay in its zone.
pub(super) fn locality(mesh: &Mesh, own: &ZoneView, zone: Option<&String>) -> (String, u32) {
    let Some(zone) = zone else { return (String::new(), 0) };
    let stays = mesh.routing.as_ref().is_some_and(|routing| routing.locality_aware_load_balancing);
    (zone.clone(), u32::from(stays && !own.name.is_empty() && !own.is_own(zone)))
}
