//! Virtual addresses of services (Kuma `pkg/core/resources/apis/core/vip`): each gets the next one of its kind's range, and none is
//! given out twice, not even after a restart, so that a cached name never leads to another service.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Held, config_key};
use crate::resource::{Config, Kind, Meta, Resource, Spec, Vip};
use crate::store::{Expect, Store, StoreError};

/// The Config that keeps how far addresses were given out.
const CONFIG: &str = "shika-vips";
/// Addresses in a /8.
const RANGE: u32 = 1 << 24;

/// The first address of a kind's range, a /8 (Kuma `ipam.*.cidr`).
fn first(kind: Kind) -> Option<Ipv4Addr> {
    match kind {
        Kind::MeshService => Some(Ipv4Addr::new(241, 0, 0, 0)),
        Kind::MeshExternalService => Some(Ipv4Addr::new(242, 0, 0, 0)),
        Kind::MeshMultiZoneService => Some(Ipv4Addr::new(243, 0, 0, 0)),
        _ => None,
    }
}

/// How many addresses of each kind were given out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Given(BTreeMap<String, u32>);

/// Gives out addresses.
#[derive(Debug)]
pub(super) struct Allocator {
    store: Store,
    given: Option<Given>,
}

impl Allocator {
    pub(super) fn new(store: Store) -> Allocator {
        Allocator { store, given: None }
    }

    /// Gives an address to each service that has none. The addresses are noted as given before any service is stored with one.
    pub(super) async fn give(&mut self, services: &mut [Held]) -> Result<(), StoreError> {
        let without = |held: &&mut Held| held.wanted.as_ref().is_some_and(|service| needs_vip(&service.spec));
        let mut waiting: Vec<&mut Held> = services.iter_mut().filter(without).collect();
        let Some(kind) = waiting.first().and_then(|held| held.wanted.as_ref()).map(Resource::kind) else {
            return Ok(());
        };
        let Some(first) = first(kind) else { return Ok(()) };
        let mut given = match self.given.take() {
            Some(given) => given,
            None => self.read().await?,
        };
        let count = given.0.entry(kind.name().to_owned()).or_default();
        for held in &mut waiting {
            if *count >= RANGE {
                tracing::error!(%kind, "every virtual address of the range {first}/8 was given out; new services have none");
                break;
            }
            let address = Ipv4Addr::from_bits(first.to_bits() + *count);
            *count += 1;
            if let Some(service) = &mut held.wanted {
                tracing::info!(service = %service.key(), %address, "gave out a virtual address");
                set_vip(&mut service.spec, address);
            }
        }
        let text = serde_json::to_string(&given).map_err(|e| StoreError::Database(e.to_string()))?;
        let config = Resource::new(Meta::new("", CONFIG), Spec::Config(Arc::new(Config { config: text })));
        self.store.put(config, Expect::Any).await?;
        self.given = Some(given);
        Ok(())
    }

    /// What was given out: by the note, and by the services that have addresses, in case the note was lost.
    async fn read(&self) -> Result<Given, StoreError> {
        let stored = self.store.get(&config_key(CONFIG)).await?;
        let mut given = match stored.as_ref().map(|resource| &resource.spec) {
            Some(Spec::Config(config)) => serde_json::from_str(&config.config).unwrap_or_else(|error| {
                tracing::error!(%error, "Config {CONFIG:?} cannot be read; addresses in use are not given out again");
                Given::default()
            }),
            _ => Given::default(),
        };
        for kind in [Kind::MeshService, Kind::MeshExternalService, Kind::MeshMultiZoneService] {
            let Some(first) = first(kind) else { continue };
            for service in self.store.list(kind, None).await? {
                for vip in vips(&service.spec) {
                    let offset =
                        vip.ip.parse::<Ipv4Addr>().ok().and_then(|ip| ip.to_bits().checked_sub(first.to_bits()));
                    if let Some(offset) = offset.filter(|offset| *offset < RANGE) {
                        let count = given.0.entry(kind.name().to_owned()).or_default();
                        *count = (*count).max(offset + 1);
                    }
                }
            }
        }
        Ok(given)
    }
}

fn vips(spec: &Spec) -> &[Vip] {
    match spec {
        Spec::MeshService(service) => &service.status.vips,
        Spec::MeshMultiZoneService(service) => &service.status.vips,
        Spec::MeshExternalService(service) => std::slice::from_ref(&service.status.vip),
        _ => &[],
    }
}

fn needs_vip(spec: &Spec) -> bool {
    vips(spec).iter().all(|vip| vip.ip.is_empty())
}

fn set_vip(spec: &mut Spec, address: Ipv4Addr) {
    let vip = Vip { ip: address.to_string() };
    match spec {
        Spec::MeshService(service) => Arc::make_mut(service).status.vips = vec![vip],
        Spec::MeshMultiZoneService(service) => Arc::make_mut(service).status.vips = vec![vip],
        Spec::MeshExternalService(service) => Arc::make_mut(service).status.vip = vip,
        _ => {}
    }
}
