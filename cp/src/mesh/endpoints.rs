//! Where the services of a mesh are: instances in this zone, and ways to those in others (Kuma `pkg/xds/topology/outbound.go`).

use std::collections::{BTreeMap, BTreeSet};

use super::{Endpoint, MeshView, Protocol, Service, Zones};
use crate::resource::{Dataplane, Inbound, Mesh, Meta, PROTOCOL_TAG, SERVICE_TAG, ZoneIngress};

/// The tag and the label that name a zone.
pub(super) const ZONE_TAG: &str = "kuma.io/zone";

/// The services by tag. Instances in other zones are reached through these zones' ingresses, or through an egress of this zone if the
/// mesh wants that; both tell destinations apart by the server name of mutual TLS, so without it there is no way.
pub(super) fn services(view: &MeshView) -> BTreeMap<String, Service> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    let (mesh, zones) = (view.mesh.as_ref(), view.zones.as_ref());
    let mut ingresses = BTreeSet::new();
    if mesh.enabled_backend().is_some() {
        ingresses = remote(&view.name, mesh, zones, &mut services);
    }
    // Every ingress endpoint stands for all instances of its zone, so with two ingresses these count twice: the own ones then do too.
    let weight = u32::try_from(ingresses.len()).unwrap_or(u32::MAX).max(1);
    for (meta, dataplane) in view.dataplanes.values() {
        for inbound in dataplane.inbounds() {
            let Some(service) = inbound.service() else { continue };
            let protocol = Protocol::parse(&inbound.protocol());
            let service = services.entry(service.to_owned()).or_insert_with(|| Service::new(protocol));
            service.protocol = service.protocol.common(protocol);
            service.tls_ready &= view.with_certificate.contains(&meta.name);
            if let Some(endpoint) = instance(mesh, zones, meta, dataplane, inbound) {
                service.endpoints.push(Endpoint { weight, ..endpoint });
            }
        }
    }
    external(view, &mut services);
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
    zones: &'a Zones,
    services: &mut BTreeMap<String, Service>,
) -> BTreeSet<(&'a str, u32)> {
    let through_egress = mesh.uses_zone_egress();
    let mut seen = BTreeSet::new();
    for ((address, port), ingress) in remote_ingresses(zones) {
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
            if available.instances == 0 {
                continue;
            }
            let mut tags = available.tags.clone();
            tags.remove(SERVICE_TAG);
            let (zone_of, priority) = locality(mesh, zones, tags.get(ZONE_TAG));
            let endpoint =
                Endpoint { zone: zone_of, priority, tags, weight: 1, through_zone_proxy: true, ..Endpoint::default() };
            if through_egress {
                let egresses = own_egresses(zones);
                let endpoints =
                    egresses.map(|(ip, port)| Endpoint { address: ip.to_owned(), port, ..endpoint.clone() });
                service.endpoints.extend(endpoints);
            } else {
                let (address, weight) = (address.to_owned(), available.instances);
                service.endpoints.push(Endpoint { address, port, weight, ..endpoint });
            }
        }
    }
    seen
}

/// Adds ExternalServices: they are no endpoints of EDS unless an egress stands between.
fn external(view: &MeshView, services: &mut BTreeMap<String, Service>) {
    let through_egress = view.mesh.uses_zone_egress();
    for external in &view.outside {
        let protocol = external.protocol;
        let service = services.entry(external.service.clone()).or_insert_with(|| Service::new(protocol));
        service.protocol = service.protocol.common(protocol);
        service.is_external = true;
        if !through_egress {
            continue;
        }
        let tags = &external.tags;
        let (zone_of, priority) = locality(&view.mesh, &view.zones, tags.get(ZONE_TAG));
        service.endpoints.extend(own_egresses(&view.zones).map(|(address, port)| Endpoint {
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
    zones: &Zones,
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
    let (zone, priority) = locality(mesh, zones, tags.get(ZONE_TAG).or_else(|| meta.labels.get(ZONE_TAG)));
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
pub(super) fn locality(mesh: &Mesh, zones: &Zones, zone: Option<&String>) -> (String, u32) {
    let Some(zone) = zone else { return (String::new(), 0) };
    let stays = mesh.routing.as_ref().is_some_and(|routing| routing.locality_aware_load_balancing);
    (zone.clone(), u32::from(stays && !zones.local.is_empty() && *zone != zones.local))
}

/// Zone ingresses through which other zones are reached: where they are, and what is behind them.
pub(crate) fn remote_ingresses(zones: &Zones) -> impl Iterator<Item = ((&str, u32), &ZoneIngress)> {
    let places = zones.remote_ingresses().filter_map(|ingress| Some((ingress.advertised()?, ingress.as_ref())));
    places.filter(|((address, _), _)| crate::plan::is_ip(address))
}

/// Where the zone egresses of this zone are.
pub(crate) fn own_egresses(zones: &Zones) -> impl Iterator<Item = (&str, u32)> {
    let places = zones.local_egresses().filter_map(|egress| egress.networking.as_ref());
    let places = places.map(|networking| (networking.address.as_str(), networking.port));
    places.filter(|(address, port)| crate::plan::is_ip(address) && *port != 0)
}
