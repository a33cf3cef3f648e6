//! Virtual addresses of services by tag and of the hosts of ExternalServices (Kuma `pkg/dns/vips_allocator.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::Input;
use crate::mesh::{LegacyOutbound, LegacyVips, legacy_config};
use crate::resource::{Config, InboundState, Kind, MeshServicesMode, Meta, Resource, SERVICE_TAG, Spec};
use crate::store::{Expect, Store, StoreError};

/// The first address. Kuma's range is 240.0.0.0/4, of which 241 to 243 belong to MeshServices and their relatives.
const FIRST: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 0);
/// Addresses in the part of the range that is used here, a /8.
const RANGE: u32 = 1 << 24;
/// Addresses that are kept for services that are gone; beyond these, the lowest ones are given up.
const KEPT: usize = 4096;

/// Brings the addresses of a mesh's services by tag up to date. A service that comes back gets the address it had.
pub(super) async fn update(store: &Store, input: &Input, zone: &str) -> Result<(), StoreError> {
    // There are no services by tag in this mode; what they had is kept, in case the mode changes again.
    if input.mode == MeshServicesMode::Exclusive {
        return Ok(());
    }
    let wanted = wanted(store, input, zone).await?;
    let (before, stored) = LegacyVips::read(store, &input.name).await?;
    if stored.is_none() && wanted.is_empty() {
        return Ok(());
    }
    let after = merged(&before, wanted, &input.name);
    if after == before && stored.is_some() {
        return Ok(());
    }
    let text = serde_json::to_string(&after).map_err(|e| StoreError::Database(e.to_string()))?;
    let config = Spec::Config(Arc::new(Config { config: text }));
    let expect = stored.map_or(Expect::Absent, |stored| Expect::Version(stored.meta.version));
    match store.put(Resource::new(Meta::new("", legacy_config(&input.name).name), config), expect).await {
        // Whoever wrote it meanwhile leads to another round.
        Ok(_) | Err(StoreError::Conflict { .. } | StoreError::Exists(_) | StoreError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

type Wanted = BTreeMap<String, Vec<LegacyOutbound>>;

async fn wanted(store: &Store, input: &Input, zone: &str) -> Result<Wanted, StoreError> {
    let tags = |service: &str| BTreeMap::from([(SERVICE_TAG.to_owned(), service.to_owned())]);
    let mut wanted = Wanted::new();
    let mut service = |name: &str, port: u32| {
        let outbound = LegacyOutbound { port, tag_set: tags(name), origin: "service".to_owned() };
        let outbounds = wanted.entry(format!("0:{name}")).or_default();
        if !outbounds.contains(&outbound) {
            outbounds.push(outbound);
        }
    };
    for (_, dataplane) in &input.dataplanes {
        for inbound in dataplane.inbounds().iter().filter(|inbound| inbound.state != InboundState::Ignored) {
            if let Some(name) = inbound.service() {
                service(name, 0);
            }
        }
    }
    for ingress in store.list(Kind::ZoneIngress, None).await? {
        let Some(ingress) = ingress.zone_ingress().filter(|ingress| !ingress.zone.is_empty() && ingress.zone != zone)
        else {
            continue;
        };
        for available in ingress.available_services.iter().filter(|available| available.mesh == input.name) {
            if let Some(name) = available.service() {
                service(name, 0);
            }
        }
    }
    for resource in &input.external_services {
        let Some((name, (_, port))) =
            resource.external_service().and_then(|service| Some((service.service()?, service.host_port()?)))
        else {
            continue;
        };
        service(name, u32::from(port));
    }
    for resource in &input.external_services {
        let Some(external) = resource.external_service() else { continue };
        let (Some(name), Some((host, port))) = (external.service(), external.host_port()) else { continue };
        if external.networking.as_ref().is_some_and(|networking| networking.disable_host_dns_entry) {
            continue;
        }
        let origin = format!("external-service:{}", resource.meta.name);
        let outbound = LegacyOutbound { port: u32::from(port), tag_set: tags(name), origin };
        let outbounds = wanted.entry(format!("1:{host}")).or_default();
        // Two services on one port of a host cannot be told apart; the first by name has it.
        if !outbounds.iter().any(|other| other.port == outbound.port) {
            outbounds.push(outbound);
        }
    }
    Ok(wanted)
}

fn merged(before: &LegacyVips, wanted: Wanted, mesh: &str) -> LegacyVips {
    let mut after = before.clone();
    for vip in after.0.values_mut() {
        vip.outbounds.clear();
    }
    let mut used: BTreeSet<u32> = after.0.values().filter_map(|vip| offset(&vip.address)).collect();
    for (entry, outbounds) in wanted {
        let vip = after.0.entry(entry).or_default();
        vip.outbounds = outbounds;
        if offset(&vip.address).is_some() {
            continue;
        }
        // The one after the highest, so that an address that was given up is not given out again soon.
        let next = used.last().map_or(0, |last| last + 1);
        let free = (next..RANGE).next().or_else(|| (0..RANGE).find(|candidate| !used.contains(candidate)));
        match free {
            Some(free) => {
                used.insert(free);
                vip.address = Ipv4Addr::from_bits(FIRST.to_bits() + free).to_string();
            }
            None => tracing::error!(mesh, "every virtual address of {FIRST}/8 is in use; new services have none"),
        }
    }
    let gone: Vec<(u32, String)> = after
        .0
        .iter()
        .filter(|(_, vip)| vip.outbounds.is_empty())
        .map(|(entry, vip)| (offset(&vip.address).unwrap_or_default(), entry.clone()))
        .collect();
    let surplus = gone.len().saturating_sub(KEPT);
    let mut gone = gone;
    gone.sort();
    for (_, entry) in gone.into_iter().take(surplus) {
        after.0.remove(&entry);
    }
    after
}

fn offset(address: &str) -> Option<u32> {
    let address: Ipv4Addr = address.parse().ok()?;
    address.to_bits().checked_sub(FIRST.to_bits()).filter(|offset| *offset < RANGE)
}
