//! What a workload may call: a listener and a cluster for each destination.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{
    Cidr, ClusterPlan, OutboundPlan, ProxyFeatures, ProxyPlan, Redirection, UpstreamPlan, UpstreamTls, dns, host_port,
    routes,
};
use crate::mesh::{Endpoint, MeshView, Protocol, Vip};
use crate::policy::proxy::{Destination, ProxyPolicies};
use crate::resource::{Meta, MtlsMode, Networking, SERVICE_TAG};
use crate::xds::Version;

/// A listener that is wanted, and the destination behind it.
struct Wanted<'a> {
    address: String,
    port: u32,
    bind: bool,
    service: &'a str,
    tags: &'a BTreeMap<String, String>,
}

/// Plans the outbounds of a Dataplane, and the names that lead to them. Without redirection they are those that the Dataplane lists;
/// with it, or with `feature-bind-outbounds`, every destination of the mesh that has an address, as far as the Dataplane does not
/// restrict them (Kuma `resolveVIPOutbounds`).
pub(super) fn outbounds(
    view: &MeshView,
    meta: &Meta,
    networking: &Networking,
    policies: &ProxyPolicies<'_>,
    (features, redirection): (&ProxyFeatures, Option<Redirection>),
    internal: &[Cidr],
    plan: &mut ProxyPlan,
) {
    let name = &meta.name;
    if redirection.is_none() && !features.bind_outbounds {
        for (index, outbound) in networking.outbound.iter().enumerate() {
            let field = || format!("Dataplane {name:?}: networking.outbound[{index}]");
            if outbound.backend_ref.is_some() {
                plan.warnings.insert(format!("{}.backendRef has no effect; name the service with tags", field()));
                continue;
            }
            let Some(service) = outbound.service() else {
                let warning = format!("{} names no service with the tag {SERVICE_TAG}; it is left out", field());
                plan.warnings.insert(warning);
                continue;
            };
            let address = outbound.listen_address().to_owned();
            let tags = &outbound.tags;
            let wanted = Wanted { address, port: outbound.port, bind: true, service, tags };
            add(view, wanted, policies, internal, plan);
        }
        return;
    }
    if !networking.outbound.is_empty() {
        plan.warnings.insert(format!(
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
    let reachable = networking.transparent_proxying.as_ref().map(|settings| &settings.reachable_services);
    let reachable = reachable.filter(|services| !services.is_empty());
    let mut listening = BTreeSet::new();
    for vip in &view.vips {
        for outbound in &vip.outbounds {
            let Some(service) = outbound.tags.get(SERVICE_TAG) else { continue };
            let restricted = reachable.is_some_and(|services| !services.contains(service));
            if restricted || own.contains(&(vip.address, outbound.port)) {
                continue;
            }
            listening.insert(vip.address);
            let address = vip.address.to_string();
            let wanted =
                Wanted { address, port: outbound.port, bind: redirection.is_none(), service, tags: &outbound.tags };
            add(view, wanted, policies, internal, plan);
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

fn add(view: &MeshView, wanted: Wanted<'_>, policies: &ProxyPolicies<'_>, internal: &[Cidr], plan: &mut ProxyPlan) {
    let Wanted { address, port, bind, service, tags } = wanted;
    let cluster = upstream(view, service, tags, policies, plan);
    let protocol = protocol(view, service);
    let routes = routes::routes(view, (service, &cluster), policies, plan);
    let set = policies.destination(Destination::Service(service), protocol);
    plan.outbounds.push(OutboundPlan {
        name: format!("outbound:{}", host_port(&address, port)),
        address,
        port,
        bind,
        protocol,
        service: service.to_owned(),
        cluster,
        routes,
        timeouts: set.timeouts,
        max_connect_attempts: set.max_connect_attempts,
        tags: tags.clone(),
        internal: internal.to_vec(),
    });
}

/// What all instances of a service speak.
pub(super) fn protocol(view: &MeshView, service: &str) -> Protocol {
    view.services.get(service).map_or(Protocol::Tcp, |service| service.protocol)
}

/// The name of the cluster of the instances of a service that have all of these tags, which is added if it is not there.
pub(super) fn upstream(
    view: &MeshView,
    service: &str,
    tags: &BTreeMap<String, String>,
    policies: &ProxyPolicies<'_>,
    plan: &mut ProxyPlan,
) -> String {
    let subset: BTreeMap<String, String> =
        tags.iter().filter(|(tag, _)| *tag != SERVICE_TAG).map(|(k, v)| (k.clone(), v.clone())).collect();
    let cluster = if subset.is_empty() { service.to_owned() } else { format!("{service}-{}", Version::of(tags)) };
    if plan.upstreams.contains_key(&cluster) {
        return cluster;
    }
    let found = view.services.get(service);
    let permissive = view.mesh.enabled_backend().is_some_and(|backend| backend.mode == MtlsMode::Permissive);
    let tls_ready = !permissive || found.is_some_and(|service| service.tls_ready);
    let tls = (plan.mtls.is_some() && tls_ready).then(|| UpstreamTls {
        mesh: view.name.clone(),
        sni: sni(service, &subset, &view.name),
        expected: format!("spiffe://{}/{service}", view.name),
    });
    let endpoints = found.map(|service| service.endpoints.as_slice()).unwrap_or_default();
    let matches = |endpoint: &&Endpoint| subset.iter().all(|(tag, value)| endpoint.tags.get(tag) == Some(value));
    let protocol = protocol(view, service);
    let policies = policies.destination(Destination::Service(service), protocol).cluster;
    let upstream = UpstreamPlan {
        cluster: ClusterPlan { name: cluster.clone(), protocol, tls, policies },
        endpoints: endpoints.iter().filter(matches).cloned().collect(),
    };
    plan.upstreams.insert(cluster.clone(), upstream);
    cluster
}

/// Server name of a destination by tags: `<service>{mesh=<mesh>,<tag>=<value>}`, tags sorted (Kuma `pkg/xds/envoy/tls/sni.go`).
pub(super) fn sni(service: &str, tags: &BTreeMap<String, String>, mesh: &str) -> String {
    let mut tags = tags.clone();
    tags.insert("mesh".to_owned(), mesh.to_owned());
    let pairs: Vec<String> = tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
    format!("{service}{{{}}}", pairs.join(","))
}
