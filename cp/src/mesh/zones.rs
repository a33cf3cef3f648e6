//! The zones, their proxies, and what a proxy of the zone needs of all meshes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MeshView, Named, resolve};
use crate::resource::{Kind, Meta, Resource, Zone, ZoneEgress, ZoneIngress};
use crate::store::{Store, StoreError};

/// The label that names the zone in which a resource was created (Kuma `ZoneTag`).
pub const ZONE_LABEL: &str = "kuma.io/zone";

/// The zones and their proxies at one moment, as this zone sees them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Zones {
    /// Name of this zone.
    pub local: String,
    /// Zones by name; only known to a control plane that has no global one above it.
    pub zones: BTreeMap<String, Arc<Zone>>,
    /// Zone ingresses of all zones, by the name of the resource. Host names are replaced by what they resolve to.
    pub ingresses: Named<ZoneIngress>,
    /// Zone egresses of this zone, by the name of the resource. Host names are replaced by what they resolve to.
    pub egresses: Named<ZoneEgress>,
}

impl Zones {
    /// Nothing but the name of this zone.
    pub fn new(local: &str) -> Zones {
        Zones { local: local.to_owned(), ..Zones::default() }
    }

    pub(super) async fn read(store: &Store, local: &str) -> Result<Zones, StoreError> {
        let mut zones = Zones::new(local);
        for resource in store.list(Kind::Zone, None).await? {
            if let Some(zone) = resource.zone() {
                zones.zones.insert(resource.meta.name.clone(), zone.clone());
            }
        }
        for resource in store.list(Kind::ZoneIngress, None).await? {
            if let Some(ingress) = resource.zone_ingress() {
                let ingress = resolve::ingress(ingress).await;
                zones.ingresses.insert(resource.meta.name.clone(), (stable(&resource), ingress));
            }
        }
        for resource in store.list(Kind::ZoneEgress, None).await? {
            if let Some(egress) = resource.zone_egress() {
                let egress = resolve::egress(egress).await;
                zones.egresses.insert(resource.meta.name.clone(), (stable(&resource), egress));
            }
        }
        Ok(zones)
    }

    /// Whether a resource with these labels was created in this zone: its label `kuma.io/zone` says so, or it has none.
    pub fn is_local(&self, meta: &Meta) -> bool {
        let zone = meta.labels.get(ZONE_LABEL);
        meta.labels.get("kuma.io/origin").is_none_or(|origin| origin != "global")
            && zone.is_none_or(|zone| *zone == self.local)
    }

    /// The zone ingresses through which other zones are reached: of zones that are not disabled, with an advertised address.
    pub fn remote_ingresses(&self) -> impl Iterator<Item = &Arc<ZoneIngress>> {
        let usable = |ingress: &&Arc<ZoneIngress>| {
            let zone = ingress.zone.as_str();
            !zone.is_empty()
                && zone != self.local
                && ingress.advertised().is_some()
                && self.zones.get(zone).is_none_or(|zone| zone.is_enabled())
        };
        self.ingresses.values().map(|(_, ingress)| ingress).filter(usable)
    }

    /// The zone egresses of this zone.
    pub fn local_egresses(&self) -> impl Iterator<Item = &Arc<ZoneEgress>> {
        let local = |egress: &&Arc<ZoneEgress>| egress.zone.is_empty() || egress.zone == self.local;
        self.egresses.values().map(|(_, egress)| egress).filter(local)
    }
}

/// Metadata without what changes with every write.
fn stable(resource: &Resource) -> Meta {
    Meta { version: 0, modification_time: resource.meta.creation_time, ..resource.meta.clone() }
}

/// Everything that a zone ingress or a zone egress is planned from.
#[derive(Debug)]
pub struct ZoneView {
    /// The zones and their proxies.
    pub zones: Arc<Zones>,
    /// Every mesh, by name.
    pub meshes: BTreeMap<String, Arc<MeshView>>,
}
