//! What a workload may call: a listener and a cluster for each destination.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::external::Site;
use super::{
    Cidr, ClusterPlan, ExternalPlan, OutboundPlan, ProxyFeatures, ProxyPlan, Redirection, Speaks, UpstreamPlan,
    UpstreamTls, dns, host_port, reachable,
};
use crate::mesh::{Backend, Endpoint, MeshView, Protocol, Vip};
use crate::resource::{Kind, Meta, Networking, SERVICE_TAG};
use crate::xds::Version;

/// The tag of a listener in front of a service resource (Kuma `UnifiedNameTag`).
const UNIFIED_NAME_TAG: &str = "kuma.io/unified-name";

/// A listener that is wanted.
struct Place {
    address: String,
    port: u32,
    bind: bool,
}

/// Plans the outbounds of a Dataplane, and the names that lead to them. Without redirection they are those that the Dataplane lists;
/// with it, or with `feature-bind-outbounds`, every destination of the mesh that has an address, as far as the Dataplane does not
/// restrict them (Kuma `resolveVIPOutbounds`).
pub(super) fn outbounds(
    view: &MeshView,
    meta: &Meta,
    networking: &Networking,
    (features, redirection): (&ProxyFeatures, Option<Redirection>),
    internal: &[Cidr],
    plan: &mut ProxyPlan,
) {
    let name = &meta.name;
    let ipv6 = networking.address.parse::<Ipv6Addr>().is_ok();
    let site = Site { ipv6, system_ca_path: &features.system_ca_path };
    let mut outbounds = Outbounds { view, site, internal, plan };
    if redirection.is_none() && !features.bind_outbounds {
        outbounds.listed(name, networking);
        return;
    }
    if !networking.outbound.is_empty() {
        outbounds.plan.warnings.insert(format!(
            "Dataplane {name:?}: networking.outbound has no effect together with redirection; destinations are reached by their names"
        ));
    }
    let own: BTreeSet<(IpAddr, u32)> = networking
        .inbound
        .iter()
        .filter_map(|inbound| {
            let address = if inbound.address.is_empty() { &networking.address } else { &inbound.address };
            Some((address.parse().ok()?, inbound.port))
        })
        .collect();
    let reachable = reachable::Reachable::of(view, name, networking, &mut outbounds.plan.warnings);
    let mut listening = BTreeSet::new();
    for vip in &view.vips {
        for outbound in &vip.outbounds {
            if own.contains(&(vip.address, outbound.port)) {
                continue;
            }
            let place = Place { address: vip.address.to_string(), port: outbound.port, bind: redirection.is_none() };
            match &outbound.backend_ref {
                Some(reference) => {
                    let found = view.backend(&reference.kind, &reference.name, reference.port);
                    let Some((key, backend)) = found.filter(|(key, _)| reachable.backend(key)) else { continue };
                    outbounds.backend(place, key, backend);
                }
                None => {
                    let service = outbound.tags.get(SERVICE_TAG);
                    let Some(service) = service.filter(|service| reachable.service(service)) else { continue };
                    outbounds.tags(place, service, &outbound.tags);
                }
            }
            listening.insert(vip.address);
        }
    }
    let Some(redirection) = redirection else { return };
    let names =
        view.vips.iter().flat_map(|Vip { address, names, .. }| names.iter().map(|name| (*address, name.as_str())));
    plan.dns = dns::dns(meta, redirection, features, &listening, names);
    if let Some(dns::DnsPlan::Filter { port, .. }) = &plan.dns {
        plan.warnings.insert(format!(
            "Dataplane {name:?}: the proxy does not announce feature-embedded-dns, so it gets a DNS filter on 127.0.0.1:{port}, which \
             needs a CoreDNS in front of it"
        ));
    }
}

struct Outbounds<'a> {
    view: &'a MeshView,
    site: Site<'a>,
    internal: &'a [Cidr],
    plan: &'a mut ProxyPlan,
}

impl Outbounds<'_> {
    /// Those that the Dataplane lists.
    fn listed(&mut self, name: &str, networking: &Networking) {
        for (index, outbound) in networking.outbound.iter().enumerate() {
            let field = || format!("Dataplane {name:?}: networking.outbound[{index}]");
            let place = Place { address: outbound.listen_address().to_owned(), port: outbound.port, bind: true };
            if let Some(reference) = &outbound.backend_ref {
                match reachable::referenced(self.view, reference) {
                    Some((key, backend)) => self.backend(place, key, backend),
                    None => {
                        let warning = format!("{}.backendRef leads to no port of a service; it is left out", field());
                        self.plan.warnings.insert(warning);
                    }
                }
                continue;
            }
            match outbound.service() {
                Some(service) => self.tags(place, service, &outbound.tags),
                None => {
                    let warning = format!("{} names no service with the tag {SERVICE_TAG}; it is left out", field());
                    self.plan.warnings.insert(warning);
                }
            }
        }
    }

    /// A service by tags.
    fn tags(&mut self, place: Place, service: &str, tags: &BTreeMap<String, String>) {
        let subset: BTreeMap<String, String> =
            tags.iter().filter(|(tag, _)| *tag != SERVICE_TAG).map(|(k, v)| (k.clone(), v.clone())).collect();
        let cluster = if subset.is_empty() { service.to_owned() } else { format!("{service}-{}", Version::of(tags)) };
        let found = self.view.services.get(service);
        let outside = found.is_some_and(|found| found.is_external);
        let protocol = found.map_or(Protocol::Tcp, |service| service.protocol);
        self.listener(place, protocol, (service, format!("outbound:{service}")), &cluster, outside, tags.clone());
        if self.plan.upstreams.contains_key(&cluster) || self.plan.externals.contains_key(&cluster) {
            return;
        }
        let view = self.view;
        if outside && !view.mesh.uses_zone_egress() {
            let services = view.outside.iter().filter(|external| external.service == service);
            let services = services.filter(|external| contains(&external.tags, &subset));
            let external = ExternalPlan::of(&cluster, services, None, self.site, &mut self.plan.warnings);
            // One of another zone is behind that zone's ingress, like any service.
            if let Some(external) = external {
                self.plan.externals.insert(cluster, external);
                return;
            }
        }
        let ready = !view.is_permissive() || outside || found.is_some_and(|service| service.tls_ready);
        let identity = if outside { "zone-egress" } else { service };
        let tls = (!self.plan.mtls.is_empty() && ready).then(|| UpstreamTls {
            mesh: view.name.clone(),
            sni: sni(service, &subset, &view.name),
            expected: vec![format!("spiffe://{}/{identity}", view.name)],
        });
        let endpoints = found.map(|service| service.endpoints.as_slice()).unwrap_or_default();
        let endpoints = endpoints.iter().filter(|endpoint| contains(&endpoint.tags, &subset));
        self.upstream(&cluster, if outside { Speaks::Declared(protocol) } else { Speaks::Mesh }, tls, endpoints);
    }

    /// A port of a service resource.
    fn backend(&mut self, place: Place, key: &str, backend: &Backend) {
        let view = self.view;
        let outside = backend.kind == Kind::MeshExternalService;
        let tags = BTreeMap::from([(UNIFIED_NAME_TAG.to_owned(), backend.kri.clone())]);
        self.listener(place, backend.protocol, (key, backend.kri.clone()), key, outside, tags);
        if self.plan.upstreams.contains_key(key) {
            return;
        }
        if outside && self.plan.mtls.is_empty() {
            self.plan.warnings.insert(format!(
                "MeshExternalService {:?}: it is reached through a zone egress, which needs mutual TLS; mesh {:?} has none",
                backend.name, view.name
            ));
        } else if outside && backend.endpoints.is_empty() {
            self.plan.warnings.insert(format!(
                "MeshExternalService {:?}: it is reached through a zone egress, and zone {:?} has none",
                backend.name, view.zones.local
            ));
        }
        let local_plain = backend.kind == Kind::MeshService && backend.is_local && view.is_permissive();
        let ready = !local_plain || backend.tls_ready;
        let tls = (!self.plan.mtls.is_empty() && ready).then(|| UpstreamTls {
            mesh: view.name.clone(),
            sni: backend.sni.clone(),
            expected: backend.identities.iter().cloned().collect(),
        });
        let speaks = if outside { Speaks::Declared(backend.protocol) } else { Speaks::Mesh };
        self.upstream(key, speaks, tls, backend.endpoints.iter());
    }

    fn listener(
        &mut self,
        place: Place,
        protocol: Protocol,
        (service, route): (&str, String),
        cluster: &str,
        outside: bool,
        tags: BTreeMap<String, String>,
    ) {
        let Place { address, port, bind } = place;
        self.plan.outbounds.push(OutboundPlan {
            name: format!("outbound:{}", host_port(&address, port)),
            address,
            port,
            bind,
            protocol,
            service: service.to_owned(),
            route,
            cluster: cluster.to_owned(),
            outside,
            tags,
            internal: self.internal.to_vec(),
        });
    }

    fn upstream<'a>(
        &mut self,
        name: &str,
        speaks: Speaks,
        tls: Option<UpstreamTls>,
        endpoints: impl Iterator<Item = &'a Endpoint>,
    ) {
        // A zone proxy goes by the server name, so without TLS there is no way through it.
        let endpoints = endpoints.filter(|endpoint| tls.is_some() || !endpoint.through_zone_proxy).cloned().collect();
        let cluster = ClusterPlan { name: name.to_owned(), speaks, tls };
        self.plan.upstreams.insert(name.to_owned(), UpstreamPlan { cluster, endpoints });
    }
}

fn contains(tags: &BTreeMap<String, String>, subset: &BTreeMap<String, String>) -> bool {
    subset.iter().all(|(tag, value)| tags.get(tag) == Some(value))
}

/// Server name of a destination by tags: `<service>{mesh=<mesh>,<tag>=<value>}`, tags sorted (Kuma `pkg/xds/envoy/tls/sni.go`).
pub(super) fn sni(service: &str, tags: &BTreeMap<String, String>, mesh: &str) -> String {
    let mut tags = tags.clone();
    tags.insert("mesh".to_owned(), mesh.to_owned());
    let pairs: Vec<String> = tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
    format!("{service}{{{}}}", pairs.join(","))
}
