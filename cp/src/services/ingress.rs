//! What zone ingresses offer to other zones (Kuma `pkg/zone/available_services.go`, `pkg/xds/ingress`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Input;
use crate::resource::{AvailableService, Inbound, Kind, MeshServicesMode, Spec};
use crate::store::{Expect, Store, StoreError};

/// The tag of the zone that an inbound is in.
const ZONE_TAG: &str = "kuma.io/zone";

/// What a mesh offers to other zones: the tag sets of its healthy inbounds, with how many have them, and with a zone egress the
/// ExternalServices that are in this zone alone.
pub(super) fn offered(input: &Input, zone: &str) -> Vec<AvailableService> {
    // Other zones reach MeshServices by name in this mode.
    if input.mode == MeshServicesMode::Exclusive {
        return Vec::new();
    }
    let mut sets: BTreeMap<BTreeMap<String, String>, u32> = BTreeMap::new();
    for (_, dataplane) in &input.dataplanes {
        for inbound in dataplane.inbounds().iter().filter(|inbound: &&Inbound| inbound.is_healthy()) {
            let mut tags = inbound.tags.clone();
            tags.entry(ZONE_TAG.to_owned()).or_insert_with(|| zone.to_owned());
            *sets.entry(tags).or_default() += 1;
        }
    }
    let available = |external_service: bool| {
        let mesh = input.name.clone();
        move |(tags, instances)| AvailableService { tags, instances, mesh: mesh.clone(), external_service }
    };
    let mut offered: Vec<AvailableService> = sets.into_iter().map(available(false)).collect();
    if input.mesh.routing.as_ref().is_some_and(|routing| routing.zone_egress) {
        let mut sets: BTreeMap<BTreeMap<String, String>, u32> = BTreeMap::new();
        for service in input.external_services.iter().filter_map(|resource| resource.external_service()) {
            if service.tags.get(ZONE_TAG).is_some_and(|of| of == zone) {
                *sets.entry(service.tags.clone()).or_default() += 1;
            }
        }
        offered.extend(sets.into_iter().map(available(true)));
    }
    offered
}

/// Writes it into the zone ingresses of this zone.
pub(super) async fn update(store: &Store, zone: &str, offered: &[AvailableService]) -> Result<(), StoreError> {
    for mut resource in store.list(Kind::ZoneIngress, None).await? {
        let version = resource.meta.version;
        let Spec::ZoneIngress(ingress) = &mut resource.spec else { continue };
        if (!ingress.zone.is_empty() && ingress.zone != zone) || ingress.available_services == offered {
            continue;
        }
        Arc::make_mut(ingress).available_services = offered.to_vec();
        match store.put(resource, Expect::Version(version)).await {
            // Whoever wrote it meanwhile leads to another round.
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
