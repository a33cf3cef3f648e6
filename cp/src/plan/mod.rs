//! What one proxy needs, in our own types: listeners, clusters, endpoints and who may call.
//!
//! [`plan`] is a pure function of a [`MeshView`] and the proxy's name. Its parts implement `Hash`: a part whose hash did not change is
//! neither emitted nor sent again (see [`crate::xds::Version`]). Names and defaults are those of Kuma 2.14.

mod admin;
mod dns;
mod external;
mod features;
mod metrics;
mod outbound;
mod probes;
mod reachable;
mod routes;
mod transparent;
mod zone;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use crate::identity::leaf;
use crate::mesh::{Endpoint, MeshView, Protocol};
use crate::policy::permission::{Permission, permission};
use crate::policy::proxy::{ClusterPolicies, InboundPolicies, ProxyPolicies};
use crate::policy::route::HttpRoute;
use crate::policy::select::Target;
use crate::policy::timeout::Timeouts;
use crate::resource::{Dataplane, Inbound, Kind};

pub use admin::{AdminPlan, AdminTarget};
pub(crate) use dns::TTL;
pub use dns::{DNS_PATH, DnsPlan, Record};
pub use external::{ExternalHostPlan, ExternalPlan};
pub use features::{AdminEndpoint, ProxyFeatures, Redirection};
pub use metrics::{MetricsListener, MetricsPlan, MetricsTls};
pub(crate) use metrics::{service, tag_labels};
pub use probes::{ProbeRoute, ProbesPlan};
pub(crate) use transparent::NO_PORT;
pub use transparent::{CapturePlan, DirectAccessPlan, Family};
pub use zone::{OutsideChain, ZoneChain, ZoneProxyPlan, egress, ingress};

/// Everything that one proxy needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyPlan {
    /// One listener for each inbound.
    pub inbounds: Vec<InboundPlan>,
    /// One cluster for each application port.
    pub workloads: Vec<WorkloadPlan>,
    /// One listener for each outbound.
    pub outbounds: Vec<OutboundPlan>,
    /// One cluster for each destination, by cluster name.
    pub upstreams: BTreeMap<String, UpstreamPlan>,
    /// One cluster for each destination outside the mesh that is reached without an egress, by cluster name.
    pub externals: BTreeMap<String, ExternalPlan>,
    /// The listener of a zone ingress or egress.
    pub zone_proxy: Option<ZoneProxyPlan>,
    /// What takes in redirected traffic, one for each IP family.
    pub captures: Vec<CapturePlan>,
    /// Instances that are reached past load balancing.
    pub direct_access: Option<DirectAccessPlan>,
    /// What the proxy is told of names.
    pub dns: Option<DnsPlan>,
    /// What the proxy asks for on a socket of its own, by path.
    pub dynamic: Option<DynamicPlan>,
    /// What is offered to Prometheus.
    pub metrics: Option<MetricsPlan>,
    /// What is offered of the admin interface.
    pub admin: Option<AdminPlan>,
    /// Virtual probes.
    pub probes: Option<ProbesPlan>,
    /// Mutual TLS of the mesh, if it is on; for a zone egress, of every mesh with it.
    pub mtls: Vec<MtlsPlan>,
    /// What was asked for and is not done, in words; sorted.
    pub warnings: BTreeSet<String>,
}

/// A listener that takes in traffic for the application.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InboundPlan {
    /// `inbound:<address>:<port>`.
    pub name: String,
    /// Address to listen on.
    pub address: String,
    /// Port to listen on.
    pub port: u32,
    /// Whether to bind the address; otherwise only redirected traffic gets here.
    pub bind: bool,
    /// Protocol of the application.
    pub protocol: Protocol,
    /// Name of the virtual host: the service, or the listener's name without one.
    pub host: String,
    /// Name of the cluster that is the application.
    pub cluster: String,
    /// Prefix of the statistics.
    pub stat_prefix: String,
    /// Tags of the inbound.
    pub tags: BTreeMap<String, String>,
    /// Mutual TLS; absent means plain text, without any permission check.
    pub tls: Option<InboundTls>,
    /// How long what may take; absent for the defaults of an inbound without policies.
    pub timeouts: Option<Timeouts>,
    /// Whether workers share the port.
    pub reuse_port: bool,
    /// Addresses that count as internal.
    pub internal: Vec<Cidr>,
}

/// Mutual TLS of an inbound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InboundTls {
    /// Mesh whose identity is shown and expected.
    pub mesh: String,
    /// Whether plain text is accepted too.
    pub permissive: bool,
    /// Who may call, over TLS.
    pub permission: Permission,
}

/// The application behind inbounds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadPlan {
    /// Name of the cluster, `localhost:<port>`.
    pub name: String,
    /// Where the application listens.
    pub address: String,
    /// Port of the application.
    pub port: u32,
    /// Address from which to connect; absent for whatever the host chooses.
    pub source: Option<&'static str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// How much it is given.
    pub policies: InboundPolicies,
}

/// A listener for calls that the application makes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutboundPlan {
    /// `outbound:<address>:<port>`.
    pub name: String,
    /// Address to listen on.
    pub address: String,
    /// Port to listen on.
    pub port: u32,
    /// Whether to bind the address; otherwise only redirected traffic gets here.
    pub bind: bool,
    /// Protocol of the destination.
    pub protocol: Protocol,
    /// What is called: the service, or the name of the port of a service resource. Names the virtual host and the statistics.
    pub service: String,
    /// Name of the route configuration.
    pub route: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Where requests go, in the order in which routes are tried; none means that connections go to `cluster`.
    pub routes: Vec<HttpRoute>,
    /// How long what may take; absent where no policy says.
    pub timeouts: Option<Timeouts>,
    /// How often connecting is tried in all, for connections.
    pub max_connect_attempts: Option<u32>,
    /// Tags of the outbound.
    pub tags: BTreeMap<String, String>,
    /// Addresses that count as internal.
    pub internal: Vec<Cidr>,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamPlan {
    /// The cluster.
    pub cluster: ClusterPlan,
    /// Where it is.
    pub endpoints: Vec<Endpoint>,
}

/// The cluster of a destination, without its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterPlan {
    /// Name: the service, with a hash if more tags than the service select it.
    pub name: String,
    /// What is spoken with it.
    pub speaks: Speaks,
    /// What the destination itself speaks.
    pub protocol: Protocol,
    /// Mutual TLS; absent means plain text.
    pub tls: Option<UpstreamTls>,
    /// How much it is given.
    pub policies: ClusterPolicies,
}

/// What is spoken with a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Speaks {
    /// HTTP/2 between the proxies of a mesh, whatever the workload speaks (trap 8).
    Mesh,
    /// What a service outside the mesh speaks.
    Declared(Protocol),
    /// Bytes, which a zone proxy passes on as they are.
    Bytes,
}

/// Mutual TLS towards a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Mesh of the destination.
    pub mesh: String,
    /// Server name to ask for.
    pub sni: String,
    /// Identities of which the server must show one; none means any of the mesh.
    pub expected: Vec<String>,
}

/// What the certificate of the proxy must say, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MtlsPlan {
    /// The mesh.
    pub mesh: String,
    /// Trust bundle of the mesh, PEM.
    pub trust_bundle: String,
    /// The certificate to issue.
    pub leaf: leaf::LeafRequest,
}

/// Documents that the proxy asks for, over HTTP on a socket of its own (Kuma `pkg/xds/dynconf`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DynamicPlan {
    /// Directory of the socket; empty means the directory in which the proxy was started.
    pub work_dir: String,
    /// Addresses that count as internal.
    pub internal: Vec<Cidr>,
    /// JSON by path.
    pub documents: BTreeMap<&'static str, String>,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// First address.
    pub address: &'static str,
    /// Length of the prefix, bits.
    pub prefix: u32,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The view does not have the Dataplane (yet).
    #[error("mesh {mesh:?} has no Dataplane {name:?}")]
    NoDataplane {
        /// Mesh looked at.
        mesh: String,
        /// Dataplane looked for.
        name: String,
    },
    /// The zone has no such zone proxy (yet).
    #[error("there is no {kind} {name:?}")]
    NoZoneProxy {
        /// ZoneIngress or ZoneEgress.
        kind: Kind,
        /// Name looked for.
        name: String,
    },
    /// Mutual TLS is on and the authority cannot be used. Nothing is planned without it: plain text in its place would be worse.
    #[error("mesh {mesh:?} has mTLS enabled, but its certificate authority cannot be used: {reason}")]
    NoAuthority {
        /// The mesh.
        mesh: String,
        /// Why.
        reason: String,
    },
}

/// Plans the proxy `name` of the mesh.
///
/// # Errors
/// See [`PlanError`]; the proxy keeps what it has.
pub fn plan(view: &MeshView, name: &str, features: ProxyFeatures) -> Result<ProxyPlan, PlanError> {
    let (meta, dataplane) = view
        .dataplanes
        .get(name)
        .ok_or_else(|| PlanError::NoDataplane { mesh: view.name.clone(), name: name.to_owned() })?;
    let mtls = mtls(view, |mesh| leaf::uris(mesh, &dataplane.tags()))?;
    let mut plan = ProxyPlan { mtls: mtls.into_iter().collect(), ..ProxyPlan::default() };
    let Dataplane { networking, metrics: _, probes } = dataplane.as_ref();
    let Some(networking) = networking else { return Ok(plan) };
    if !networking.listeners.is_empty() {
        plan.warnings.insert(format!("Dataplane {name:?}: networking.listeners has no effect"));
    }
    let redirection = Redirection::of(networking, &features);
    let internal = internal_addresses(features.ipv6);
    let target = Target { meta, dataplane };
    let policies = ProxyPolicies::new(&view.policies, &view.name, target, &mut plan.warnings);
    for inbound in networking.inbound.iter().filter(|inbound| inbound.port != NO_PORT) {
        plan_inbound(view, target, &policies, inbound, (&features, redirection), &internal, &mut plan);
    }
    if let Some(probes) = probes {
        let clusters = plan.workloads.iter().map(|workload| (workload.port, workload.name.clone())).collect();
        match probes::probes(probes, networking, (&features, redirection), &clusters) {
            Ok(probes) => plan.probes = probes,
            Err(reason) => drop(plan.warnings.insert(format!("Dataplane {name:?}: {reason}"))),
        }
    }
    outbound::outbounds(view, meta, networking, &policies, (&features, redirection), &internal, &mut plan);
    if let Some(redirection) = redirection {
        plan.captures = transparent::captures(view, networking, redirection, &features);
        let taken = plan.outbounds.iter().map(|outbound| (outbound.address.clone(), outbound.port)).collect();
        plan.direct_access = transparent::direct_access(view, name, networking, &taken);
    }
    match admin::admin(dataplane.address(), &features) {
        Ok(admin) => plan.admin = admin,
        Err(warning) => drop(plan.warnings.insert(format!("Dataplane {name:?}: {warning}"))),
    }
    metrics::metrics(view, target, &features, &mut plan);
    if let Some(DnsPlan::Document(document)) = &plan.dns {
        plan.add_document(&features, DNS_PATH, document.clone());
    }
    Ok(plan)
}

impl ProxyPlan {
    /// Adds a document to the dynamic configuration.
    pub(crate) fn add_document(&mut self, features: &ProxyFeatures, path: &'static str, json: String) {
        let dynamic = self.dynamic.get_or_insert_with(|| DynamicPlan {
            work_dir: features.work_dir.clone(),
            internal: loopback_addresses(features.ipv6),
            documents: BTreeMap::new(),
        });
        dynamic.documents.insert(path, json);
    }
}

/// Mutual TLS of a mesh, with a certificate of these URIs.
fn mtls(view: &MeshView, uris: impl Fn(&str) -> Vec<String>) -> Result<Option<MtlsPlan>, PlanError> {
    let Some(backend) = view.mesh.enabled_backend() else { return Ok(None) };
    let authority = view
        .authority
        .as_ref()
        .map_err(|e| PlanError::NoAuthority { mesh: view.name.clone(), reason: e.to_string() })?;
    let Some(authority) = authority else {
        return Err(PlanError::NoAuthority { mesh: view.name.clone(), reason: "it is not loaded yet".to_owned() });
    };
    Ok(Some(MtlsPlan {
        mesh: view.name.clone(),
        trust_bundle: authority.certificate().to_owned(),
        leaf: leaf::LeafRequest {
            mesh: view.name.clone(),
            backend: backend.name.clone(),
            authority: authority.fingerprint(),
            uris: uris(&view.name),
            lifetime: backend.certificate_lifetime(),
        },
    }))
}

fn plan_inbound(
    view: &MeshView,
    target: Target<'_>,
    policies: &ProxyPolicies<'_>,
    inbound: &Inbound,
    (features, redirection): (&ProxyFeatures, Option<Redirection>),
    internal: &[Cidr],
    plan: &mut ProxyPlan,
) {
    let Target { dataplane, .. } = target;
    let address = if inbound.address.is_empty() { dataplane.address() } else { &inbound.address }.to_owned();
    let name = format!("inbound:{}", host_port(&address, inbound.port));
    let protocol = Protocol::parse(&inbound.protocol());
    if inbound.protocol() == "kafka" {
        plan.warnings.insert(format!("{name}: protocol kafka is treated as tcp"));
    }
    let service_address =
        if inbound.service_address.is_empty() { address.clone() } else { inbound.service_address.clone() };
    let source = redirection.and_then(|_| transparent::workload_source(&service_address));
    let application = (service_address, inbound.application_port(), source);
    let set = policies.inbound(inbound, &mut plan.warnings);
    let timeouts = set.timeouts;
    let workload = workload(application, protocol, set, plan);

    let tls = (!plan.mtls.is_empty()).then(|| {
        let mut warnings = Vec::new();
        let policies = view.permissions.iter().map(|(meta, policy)| (meta, policy.as_ref()));
        let permission = permission(policies, target, inbound, &mut warnings);
        plan.warnings.extend(warnings);
        InboundTls { mesh: view.name.clone(), permissive: view.is_permissive(), permission }
    });
    plan.inbounds.push(InboundPlan {
        host: inbound.service().map_or_else(|| name.clone(), str::to_owned),
        stat_prefix: stat_name(&workload),
        cluster: workload,
        name,
        address,
        port: inbound.port,
        bind: redirection.is_none(),
        protocol,
        tags: inbound.tags.clone(),
        tls,
        timeouts,
        reuse_port: features.reuse_port,
        internal: internal.to_vec(),
    });
}

/// The name of the application's cluster, which is added if it is not there. Kuma calls it `localhost:<port>` whatever the address, so
/// that two applications on one port of two addresses become one; here the second is called `<address>:<port>`. Where inbounds share an
/// application, the policies of the last one apply to it (as in Kuma).
fn workload(
    (address, port, source): (String, u32, Option<&'static str>),
    protocol: Protocol,
    policies: InboundPolicies,
    plan: &mut ProxyPlan,
) -> String {
    let mut wanted = WorkloadPlan { name: format!("localhost:{port}"), address, port, source, protocol, policies };
    let same = |found: &WorkloadPlan, wanted: &WorkloadPlan| {
        (&found.address, found.port, found.source, found.protocol)
            == (&wanted.address, wanted.port, wanted.source, wanted.protocol)
    };
    match plan.workloads.iter().find(|workload| workload.name == wanted.name) {
        Some(found) if same(found, &wanted) => {}
        Some(found) if found.address == wanted.address => {
            wanted.name = format!("localhost:{port}:{}", protocol.name());
        }
        Some(_) => wanted.name = host_port(&wanted.address, port),
        None => {}
    }
    let name = wanted.name.clone();
    match plan.workloads.iter_mut().find(|workload| workload.name == name) {
        Some(found) => *found = wanted,
        None => plan.workloads.push(wanted),
    }
    name
}

/// Kuma's `ipam.knownInternalCIDRs`; the IPv6 ranges only for a proxy that has IPv6.
fn internal_addresses(ipv6: bool) -> Vec<Cidr> {
    let v4 = [("10.0.0.0", 8), ("192.168.0.0", 16), ("172.16.0.0", 12), ("127.0.0.1", 32)];
    let v6 = [("fc00::", 7), ("::1", 128)];
    let v6 = v6.iter().filter(|_| ipv6);
    v4.iter().chain(v6).map(|&(address, prefix)| Cidr { address, prefix }).collect()
}

/// What is internal to a listener that only the proxy's own host is meant to use.
fn loopback_addresses(ipv6: bool) -> Vec<Cidr> {
    let all = [("127.0.0.1", 32), ("::1", 128)];
    all.iter().take(if ipv6 { 2 } else { 1 }).map(|&(address, prefix)| Cidr { address, prefix }).collect()
}

/// `<address>:<port>`, an IPv6 address in brackets.
pub(crate) fn host_port(address: &str, port: u32) -> String {
    match address.parse::<Ipv6Addr>() {
        Ok(_) => format!("[{address}]:{port}"),
        Err(_) => format!("{address}:{port}"),
    }
}

/// A name as the prefix of statistics: everything but letters, digits, `_` and `-` becomes `_` (Kuma `SanitizeMetric`).
pub(crate) fn stat_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}

/// Whether an endpoint can be given to a proxy: EDS takes IP addresses only.
pub(crate) fn is_ip(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok()
}
