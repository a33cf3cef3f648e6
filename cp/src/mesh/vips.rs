//! Addresses that stand for destinations, and the names that lead to them (Kuma `pkg/xds/topology/dns.go`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::MeshView;
use crate::resource::{
    BackendRef, HostnameAddress, Kind, MeshServicesMode, Meta, Resource, ResourceKey, SERVICE_TAG, Spec,
};
use crate::store::{Store, StoreError};

/// The port of a service's virtual address (Kuma `dnsServer.serviceVipPort`).
pub const SERVICE_VIP_PORT: u32 = 80;
/// The domain of services by tag (Kuma `dnsServer.domain`).
const DOMAIN: &str = "mesh";

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

/// A destination behind an address that stands for it: by tags or by reference, as in an outbound of a Dataplane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipOutbound {
    /// The port.
    pub port: u32,
    /// The destination by tags, `kuma.io/service` among them; empty for one by reference.
    pub tags: BTreeMap<String, String>,
    /// The destination as a reference to a MeshService, a MeshExternalService or a MeshMultiZoneService of this view, by the
    /// name of the resource.
    pub backend_ref: Option<BackendRef>,
}

/// The addresses of services by tag, by what they stand for: `0:<service>` for a service, `1:<host>` for the host of an
/// ExternalService. Kept in the Config `kuma-<mesh>-dns-vips`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LegacyVips(pub BTreeMap<String, LegacyVip>);

/// The address of a service by tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LegacyVip {
    /// The address.
    pub address: String,
    /// What is reached there. Empty when the service is gone: its address is kept for it, in case it comes back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbounds: Vec<LegacyOutbound>,
}

/// What is reached at the address of a service by tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LegacyOutbound {
    /// The port; 0 for [`SERVICE_VIP_PORT`] alone.
    pub port: u32,
    /// The tags of the destination.
    pub tag_set: BTreeMap<String, String>,
    /// What asked for it.
    pub origin: String,
}

/// The Config that keeps the addresses of a mesh's services by tag.
pub fn legacy_config(mesh: &str) -> ResourceKey {
    ResourceKey::global(Kind::Config, format!("kuma-{mesh}-dns-vips"))
}

/// The mesh whose addresses a Config of that name keeps.
pub(super) fn mesh_of_config(name: &str) -> Option<&str> {
    name.strip_prefix("kuma-")?.strip_suffix("-dns-vips")
}

impl LegacyVips {
    /// Those of a mesh. What cannot be read counts as empty, and is said.
    pub(crate) async fn read(store: &Store, mesh: &str) -> Result<(LegacyVips, Option<Resource>), StoreError> {
        let stored = store.get(&legacy_config(mesh)).await?;
        let vips = match stored.as_ref().map(|resource| &resource.spec) {
            Some(Spec::Config(config)) => serde_json::from_str(&config.config).unwrap_or_else(|error| {
                tracing::error!(mesh, %error, "the virtual addresses of the mesh cannot be read; they are given out anew");
                LegacyVips::default()
            }),
            _ => LegacyVips::default(),
        };
        Ok((vips, stored))
    }

    /// As addresses with names and outbounds.
    fn vips(&self) -> impl Iterator<Item = Vip> {
        self.0.iter().filter_map(|(entry, vip)| {
            let address: IpAddr = vip.address.parse().ok()?;
            let first = vip.outbounds.first()?;
            let by_tags = |port: u32, tags: &BTreeMap<String, String>| VipOutbound {
                port,
                tags: tags.clone(),
                backend_ref: None,
            };
            let mut outbounds: Vec<VipOutbound> = vip
                .outbounds
                .iter()
                .filter(|outbound| outbound.port != 0)
                .map(|outbound| by_tags(outbound.port, &outbound.tag_set))
                .collect();
            if !outbounds.iter().any(|outbound| outbound.port == SERVICE_VIP_PORT) {
                outbounds.push(by_tags(SERVICE_VIP_PORT, &first.tag_set));
            }
            let names = match entry.split_once(':') {
                Some(("0", _)) => {
                    let service = first.tag_set.get(SERVICE_TAG)?;
                    let mut names = vec![format!("{service}.{DOMAIN}")];
                    if service.contains('_') {
                        names.push(format!("{}.{DOMAIN}", service.replace('_', ".")));
                    }
                    names
                }
                Some((_, host)) if host.parse::<IpAddr>().is_err() => vec![host.to_owned()],
                _ => Vec::new(),
            };
            Some(Vip { address, names, outbounds })
        })
    }
}

fn hostnames(addresses: &[HostnameAddress]) -> Vec<String> {
    addresses.iter().map(|address| address.hostname.clone()).filter(|name| !name.is_empty()).collect()
}

fn by_reference(kind: &str, name: &str, port: u32) -> VipOutbound {
    let backend_ref = BackendRef { kind: kind.to_owned(), name: name.to_owned(), port, ..BackendRef::default() };
    VipOutbound { port, tags: BTreeMap::new(), backend_ref: Some(backend_ref) }
}

impl MeshView {
    /// Reads services from the store, and from them the addresses that stand for them.
    pub(super) async fn read_services(&mut self, store: &Store) -> Result<(), StoreError> {
        let mesh = Some(self.name.as_str());
        for resource in store.list(Kind::ExternalService, mesh).await? {
            if let Spec::ExternalService(spec) = resource.spec {
                self.external_services.insert(resource.meta.name.clone(), (resource.meta, spec));
            }
        }
        for resource in store.list(Kind::MeshExternalService, mesh).await? {
            if let Spec::MeshExternalService(mut spec) = resource.spec {
                Arc::make_mut(&mut spec).status.hostname_generators.clear();
                self.mesh_external_services.insert(resource.meta.name.clone(), (resource.meta, spec));
            }
        }
        for resource in store.list(Kind::MeshMultiZoneService, mesh).await? {
            if let Spec::MeshMultiZoneService(mut spec) = resource.spec {
                Arc::make_mut(&mut spec).status.hostname_generators.clear();
                self.mesh_multi_zone_services.insert(resource.meta.name.clone(), (resource.meta, spec));
            }
        }
        for resource in store.list(Kind::MeshService, mesh).await? {
            if let Spec::MeshService(mut spec) = resource.spec {
                let status = &mut Arc::make_mut(&mut spec).status;
                status.hostname_generators.clear();
                status.dataplane_proxies = Default::default();
                self.mesh_services.insert(resource.meta.name.clone(), (resource.meta, spec));
            }
        }
        let (legacy, _) = LegacyVips::read(store, &self.name).await?;
        self.vips = self.addresses(&legacy);
        Ok(())
    }

    /// Every address: those of services by tag unless the mesh does without, and those of service resources.
    pub(crate) fn addresses(&self, legacy: &LegacyVips) -> Vec<Vip> {
        let mode = self.mesh.mesh_services.as_ref().map(|services| services.mode).unwrap_or_default();
        let mut vips: Vec<Vip> = Vec::new();
        if mode != MeshServicesMode::Exclusive {
            vips.extend(legacy.vips());
        }
        let mut add = |addresses: Vec<&str>, names: Vec<String>, outbounds: Vec<VipOutbound>| {
            for address in addresses.into_iter().filter_map(|address| address.parse().ok()) {
                vips.push(Vip { address, names: names.clone(), outbounds: outbounds.clone() });
            }
        };
        let name_of = |meta: &Meta| meta.name.clone();
        if mode != MeshServicesMode::Disabled {
            for (meta, service) in self.mesh_services.values() {
                let ports = service.ports.iter();
                let outbounds = ports.map(|port| by_reference("MeshService", &name_of(meta), port.port)).collect();
                let addresses = service.status.vips.iter().map(|vip| vip.ip.as_str()).collect();
                add(addresses, hostnames(&service.status.addresses), outbounds);
            }
        }
        for (meta, service) in self.mesh_multi_zone_services.values() {
            let ports = service.ports.iter();
            let outbounds = ports.map(|port| by_reference("MeshMultiZoneService", &name_of(meta), port.port)).collect();
            let addresses = service.status.vips.iter().map(|vip| vip.ip.as_str()).collect();
            add(addresses, hostnames(&service.status.addresses), outbounds);
        }
        for (meta, service) in self.mesh_external_services.values() {
            let outbounds = vec![by_reference("MeshExternalService", &name_of(meta), service.matches.port)];
            add(vec![service.status.vip.ip.as_str()], hostnames(&service.status.addresses), outbounds);
        }
        vips.sort_by_key(|vip| vip.address);
        vips
    }
}
