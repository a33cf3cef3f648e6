//! Zone proxies: the ingress, which lets other zones' traffic in, and the egress, which takes traffic to other zones and to services
//! outside the mesh out. One process serves all meshes; destinations are told apart by the server name of mutual TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use super::external::Site;
use super::outbound::sni;
use super::{
    Cidr, ClusterPlan, ExternalPlan, PlanError, ProxyFeatures, ProxyPlan, Speaks, UpstreamPlan, admin, host_port,
    internal_addresses, mtls,
};
use crate::mesh::{Endpoint, External, MeshView, Protocol, ZoneView, Zones, own_egresses, remote_ingresses};
use crate::policy::permission::{Entry, Permission, permission};
use crate::policy::select::Target;
use crate::resource::{
    Action, AvailableService, Dataplane, Inbound, Kind, Meta, Networking, SERVICE_TAG, TargetRefKind,
};

/// The listener of a zone proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ZoneProxyPlan {
    /// `inbound:<address>:<port>`.
    pub name: String,
    /// Address to listen on.
    pub address: String,
    /// Port to listen on.
    pub port: u32,
    /// Whether workers share the port.
    pub reuse_port: bool,
    /// One for each destination; no two have the same server name.
    pub chains: Vec<ZoneChain>,
    /// What an ingress without destinations answers.
    pub answer: Option<String>,
    /// Addresses that count as internal.
    pub internal: Vec<Cidr>,
}

/// How a zone proxy reaches one destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ZoneChain {
    /// Server name of the connections.
    pub sni: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Present for a destination outside the mesh; to others connections are passed on as they are.
    pub outside: Option<OutsideChain>,
}

/// How an egress reaches a destination outside the mesh: mutual TLS ends here, whoever is allowed passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutsideChain {
    /// Name of the filter chain.
    pub name: String,
    /// Name of the virtual host, and prefix of the statistics.
    pub host: String,
    /// Name of the route configuration.
    pub route: String,
    /// Mesh whose identity is shown and expected.
    pub mesh: String,
    /// What the destination speaks.
    pub protocol: Protocol,
    /// Who may call it.
    pub permission: Permission,
    /// Whether policies say who may call it, and a denial is to be explained by them.
    pub by_policies: bool,
}

/// Plans the zone ingress `name`: traffic of other zones to the instances of this one.
///
/// # Errors
/// See [`PlanError`]; the proxy keeps what it has.
pub fn ingress(all: &ZoneView, name: &str, features: &ProxyFeatures) -> Result<ProxyPlan, PlanError> {
    let ingress = all.zones.ingresses.get(name).map(|(_, ingress)| ingress);
    let missing = || PlanError::NoZoneProxy { kind: Kind::ZoneIngress, name: name.to_owned() };
    let (ingress, networking) =
        ingress.and_then(|ingress| Some((ingress, ingress.networking.as_ref()?))).ok_or_else(missing)?;
    let mut builder = Builder::default();
    for (mesh, view) in &all.meshes {
        for available in ingress.available_services.iter().filter(|available| available.mesh == *mesh) {
            let Some(service) = available.service() else { continue };
            // A service outside the mesh is behind the egress of this zone, if there is one.
            let of = &view.services.get(service).map(|service| service.endpoints.as_slice()).unwrap_or_default();
            let endpoints = of.iter().filter(|endpoint| endpoint.through_zone_proxy == available.external_service);
            let endpoints = endpoints.filter(|endpoint| {
                !endpoint.through_zone_proxy
                    || own_egresses(&all.zones).any(|own| own == (endpoint.address.as_str(), endpoint.port))
            });
            builder.service(mesh, service, endpoints.cloned().collect());
        }
        let local = view.backends.iter().filter(|(_, backend)| match backend.kind {
            Kind::MeshService => is_own(&all.zones, &backend.zone),
            Kind::MeshMultiZoneService => true,
            _ => false,
        });
        for (key, backend) in local {
            let own = backend.endpoints.iter().filter(|endpoint| !endpoint.through_zone_proxy).cloned();
            builder.pass_on(mesh, key, &backend.sni, own.collect());
        }
    }
    let answer = builder.chains.is_empty().then(|| {
        // Both are text, which always has a JSON form.
        serde_json::json!({"proxy": format!(".{name}"), "zone": all.zones.local}).to_string()
    });
    Ok(builder.finish((name, &networking.address, networking.port), features, answer))
}

/// Plans the zone egress `name`: traffic of this zone to the ingresses of others, and to services outside the mesh.
///
/// # Errors
/// See [`PlanError`]; the proxy keeps what it has.
pub fn egress(all: &ZoneView, name: &str, features: &ProxyFeatures) -> Result<ProxyPlan, PlanError> {
    let egress = all.zones.egresses.get(name).map(|(_, egress)| egress);
    let missing = || PlanError::NoZoneProxy { kind: Kind::ZoneEgress, name: name.to_owned() };
    let networking = egress.and_then(|egress| egress.networking.as_ref()).ok_or_else(missing)?;
    let ipv6 = networking.address.parse::<Ipv6Addr>().is_ok();
    let site = Site { ipv6, system_ca_path: &features.system_ca_path };
    let mut builder = Builder::default();
    for view in all.meshes.values() {
        let identity = |mesh: &str| vec![format!("spiffe://{mesh}/zone-egress")];
        // A mesh whose authority is not there must not take the other meshes' egress away.
        match mtls(view, identity) {
            Ok(Some(mtls)) => builder.plan.mtls.push(mtls),
            Ok(None) => continue,
            Err(error) => {
                builder.plan.warnings.insert(format!("ZoneEgress {name:?}: {error}; it does not serve the mesh"));
                continue;
            }
        }
        if view.mesh.uses_zone_egress() {
            other_zones(&all.zones, view, &mut builder);
        }
        outside(&all.zones, view, site, &mut builder);
    }
    Ok(builder.finish((name, &networking.address, networking.port), features, None))
}

/// Destinations in other zones.
fn other_zones(zones: &Zones, view: &MeshView, builder: &mut Builder) {
    let mesh = view.name.as_str();
    let outside_here = |service: &str| {
        view.outside.iter().any(|external| external.service == service && is_here(zones, &external.tags))
    };
    let mut services: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
    for ((address, port), ingress) in remote_ingresses(zones) {
        for available in ingress.available_services.iter().filter(|available| available.mesh == mesh) {
            let AvailableService { tags, instances, external_service, .. } = available;
            let Some(service) = available.service().filter(|service| !*external_service || !outside_here(service))
            else {
                continue;
            };
            let mut tags = tags.clone();
            tags.remove(SERVICE_TAG);
            let zone = tags.get("kuma.io/zone").cloned().unwrap_or_default();
            let endpoint =
                Endpoint { zone, address: address.to_owned(), port, tags, weight: *instances, ..Endpoint::default() };
            services.entry(service).or_default().push(endpoint);
        }
    }
    for (service, mut endpoints) in services {
        endpoints.retain(|endpoint| endpoint.weight > 0);
        if !endpoints.is_empty() {
            builder.service(mesh, service, endpoints);
        }
    }
    let mut by_zone: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
    for ((address, port), ingress) in remote_ingresses(zones) {
        let zone = ingress.zone.clone();
        let endpoint = Endpoint { zone, address: address.to_owned(), port, weight: 1, ..Endpoint::default() };
        by_zone.entry(&ingress.zone).or_default().push(endpoint);
    }
    for (key, backend) in &view.backends {
        let zones: BTreeSet<&str> = match backend.kind {
            Kind::MeshService if !backend.is_local => BTreeSet::from([backend.zone.as_str()]),
            Kind::MeshMultiZoneService => {
                let remote = backend.endpoints.iter().filter(|endpoint| endpoint.through_zone_proxy);
                remote.map(|endpoint| endpoint.zone.as_str()).collect()
            }
            _ => continue,
        };
        let endpoints: Vec<Endpoint> = zones.iter().filter_map(|zone| by_zone.get(zone)).flatten().cloned().collect();
        if !endpoints.is_empty() {
            builder.pass_on(mesh, key, &backend.sni, endpoints);
        }
    }
}

/// Destinations outside the mesh.
fn outside(zones: &Zones, view: &MeshView, site: Site<'_>, builder: &mut Builder) {
    let mesh = view.name.as_str();
    let mut services: BTreeMap<&str, Vec<&External>> = BTreeMap::new();
    for external in view.outside.iter().filter(|external| is_here(zones, &external.tags)) {
        services.entry(&external.service).or_default().push(external);
    }
    for (service, externals) in services {
        let cluster = format!("{mesh}:{service}");
        let warnings = &mut builder.plan.warnings;
        let mut tags = externals.first().map(|external| external.tags.clone()).unwrap_or_default();
        tags.insert(SERVICE_TAG.to_owned(), service.to_owned());
        let plan = ExternalPlan::of(&cluster, externals.iter().copied(), Some(mesh), site, warnings);
        let Some(plan) = plan else { continue };
        let chain = OutsideChain {
            name: format!("{service}_{mesh}"),
            host: service.to_owned(),
            route: format!("outbound:{service}"),
            mesh: mesh.to_owned(),
            protocol: plan.protocol,
            permission: permission_of(view, tags, warnings),
            by_policies: true,
        };
        builder.outside(sni(service, &BTreeMap::new(), mesh), plan, chain);
    }
    let forbidden =
        view.mesh.routing.as_ref().is_some_and(|routing| routing.default_forbid_mesh_external_service_access);
    for (key, backend) in &view.backends {
        let Some(external) = backend.external.as_ref().filter(|_| is_own(zones, &backend.zone)) else { continue };
        let warnings = &mut builder.plan.warnings;
        let Some(plan) = ExternalPlan::of(key, [external].into_iter(), Some(mesh), site, warnings) else { continue };
        let everyone = Entry { policy: String::new(), index: 0, action: Action::Allow, clients: Vec::new() };
        let chain = OutsideChain {
            name: key.clone(),
            host: key.clone(),
            route: key.clone(),
            mesh: mesh.to_owned(),
            protocol: plan.protocol,
            permission: Permission { entries: if forbidden { Vec::new() } else { vec![everyone] } },
            by_policies: false,
        };
        builder.outside(backend.sni.clone(), plan, chain);
    }
}

/// Whether a service outside the mesh is reached from this zone.
fn is_here(zones: &Zones, tags: &BTreeMap<String, String>) -> bool {
    tags.get("kuma.io/zone").is_none_or(|zone| is_own(zones, zone))
}

/// Whether this zone is meant; what names no zone belongs to every one.
fn is_own(zones: &Zones, zone: &str) -> bool {
    zone.is_empty() || zone == zones.local
}

/// Who may call an ExternalService: policies select it by its tags (Kuma `matchers/egress.go`).
fn permission_of(view: &MeshView, tags: BTreeMap<String, String>, warnings: &mut BTreeSet<String>) -> Permission {
    let inbound = Inbound { tags, ..Inbound::default() };
    let networking = Networking { inbound: vec![inbound.clone()], ..Networking::default() };
    let dataplane = Dataplane { networking: Some(networking), ..Dataplane::default() };
    let meta = Meta::new(&view.name, "");
    let policies = view.permissions.iter().map(|(meta, policy)| (meta, policy.as_ref()));
    let by_tags = policies.filter(|(_, policy)| {
        policy.target_ref.as_ref().is_none_or(|reference| reference.kind != Some(TargetRefKind::Dataplane))
    });
    let mut said = Vec::new();
    let permission = permission(by_tags, Target { meta: &meta, dataplane: &dataplane }, &inbound, &mut said);
    warnings.extend(said);
    permission
}

#[derive(Default)]
struct Builder {
    plan: ProxyPlan,
    chains: Vec<ZoneChain>,
    names: BTreeSet<String>,
}

impl Builder {
    /// A service by tags, to whose endpoints connections are passed on.
    fn service(&mut self, mesh: &str, service: &str, endpoints: Vec<Endpoint>) {
        self.pass_on(mesh, &format!("{mesh}:{service}"), &sni(service, &BTreeMap::new(), mesh), endpoints);
    }

    fn pass_on(&mut self, mesh: &str, cluster: &str, sni: &str, endpoints: Vec<Endpoint>) {
        if !self.names.insert(sni.to_owned()) {
            return;
        }
        self.chains.push(ZoneChain { sni: sni.to_owned(), cluster: cluster.to_owned(), outside: None });
        let endpoints = endpoints.into_iter().map(|mut endpoint| {
            endpoint.tags.insert("mesh".to_owned(), mesh.to_owned());
            // Zones are for the sidecars to prefer: what arrived here is wanted here.
            Endpoint { priority: 0, through_zone_proxy: false, ..endpoint }
        });
        let plan = ClusterPlan { name: cluster.to_owned(), speaks: Speaks::Bytes, tls: None };
        self.plan.upstreams.insert(cluster.to_owned(), UpstreamPlan { cluster: plan, endpoints: endpoints.collect() });
    }

    fn outside(&mut self, sni: String, plan: ExternalPlan, chain: OutsideChain) {
        if self.names.insert(sni.clone()) {
            self.chains.push(ZoneChain { sni, cluster: plan.name.clone(), outside: Some(chain) });
            self.plan.externals.insert(plan.name.clone(), plan);
        }
    }

    fn finish(
        mut self,
        (name, address, port): (&str, &str, u32),
        features: &ProxyFeatures,
        answer: Option<String>,
    ) -> ProxyPlan {
        // Envoy refuses a listener without filter chains.
        if !self.chains.is_empty() || answer.is_some() {
            self.plan.zone_proxy = Some(ZoneProxyPlan {
                name: format!("inbound:{}", host_port(address, port)),
                address: address.to_owned(),
                port,
                reuse_port: features.reuse_port,
                chains: self.chains,
                answer,
                internal: internal_addresses(features.ipv6),
            });
        }
        match admin::admin(address, features) {
            Ok(admin) => self.plan.admin = admin,
            Err(warning) => drop(self.plan.warnings.insert(format!("{name:?}: {warning}"))),
        }
        self.plan
    }
}
