//! What one proxy needs, in our own types: listeners, clusters, endpoints and who may call.
//!
//! [`plan`] is a pure function of a [`MeshView`] and the proxy's name. Its parts implement `Hash`: a part whose hash did not change is
//! neither emitted nor sent again (see [`crate::xds::Version`]). Names and defaults are those of Kuma 2.14 without Mesh* policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use crate::identity::leaf;
use crate::mesh::{Endpoint, MeshView, Protocol};
use crate::policy::permission::{Permission, permission};
use crate::policy::select::Target;
use crate::resource::{Dataplane, Inbound, Meta, MtlsMode, Outbound, SERVICE_TAG};
use crate::xds::Version;

/// What the proxy announced that changes what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProxyFeatures {
    /// `feature-reuse-port`: listeners share their port between workers.
    pub reuse_port: bool,
    /// `ipv6Enabled` of the node metadata.
    pub ipv6: bool,
}

impl Default for ProxyFeatures {
    fn default() -> Self {
        ProxyFeatures { reuse_port: false, ipv6: true }
    }
}

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
    /// The mesh's mutual TLS, if it is on.
    pub mtls: Option<MtlsPlan>,
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
    /// What it speaks.
    pub protocol: Protocol,
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
    /// Protocol of the destination.
    pub protocol: Protocol,
    /// Service that is called.
    pub service: String,
    /// Name of the cluster.
    pub cluster: String,
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
    /// Mutual TLS; absent means plain text.
    pub tls: Option<UpstreamTls>,
}

/// Mutual TLS towards a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Mesh of the destination.
    pub mesh: String,
    /// Server name to ask for.
    pub sni: String,
    /// Identity that the server must show.
    pub expected: String,
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
    /// Zone ingresses and zone egresses are let in and registered, but not configured.
    #[error("{kind} {name:?} is registered; this version has no configuration for it")]
    ZoneProxy {
        /// The kind of proxy.
        kind: crate::resource::Kind,
        /// Its name.
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
    let mut plan = ProxyPlan { mtls: mtls(view, dataplane)?, ..ProxyPlan::default() };
    let Dataplane { networking, metrics, probes } = dataplane.as_ref();
    for (field, set) in [("metrics", metrics.is_some()), ("probes", probes.is_some())] {
        if set {
            plan.warnings.insert(format!("Dataplane {name:?}: {field} has no effect"));
        }
    }
    let Some(networking) = networking else { return Ok(plan) };
    if networking.transparent_proxying.is_some() {
        plan.warnings.insert(format!(
            "Dataplane {name:?}: networking.transparentProxying has no effect; traffic reaches the proxy on the ports \
             of inbound and outbound only"
        ));
    }
    if !networking.listeners.is_empty() {
        plan.warnings.insert(format!("Dataplane {name:?}: networking.listeners has no effect"));
    }
    let internal = internal_addresses(features.ipv6);
    for inbound in &networking.inbound {
        plan_inbound(view, (meta, dataplane), inbound, features, &internal, &mut plan);
    }
    for (index, outbound) in networking.outbound.iter().enumerate() {
        plan_outbound(view, name, (index, outbound), &internal, &mut plan);
    }
    Ok(plan)
}

fn mtls(view: &MeshView, dataplane: &Dataplane) -> Result<Option<MtlsPlan>, PlanError> {
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
            uris: leaf::uris(&view.name, &dataplane.tags()),
            lifetime: backend.certificate_lifetime(),
        },
    }))
}

fn plan_inbound(
    view: &MeshView,
    (meta, dataplane): (&Meta, &Dataplane),
    inbound: &Inbound,
    features: ProxyFeatures,
    internal: &[Cidr],
    plan: &mut ProxyPlan,
) {
    let address = if inbound.address.is_empty() { dataplane.address() } else { &inbound.address }.to_owned();
    let name = format!("inbound:{}", host_port(&address, inbound.port));
    let protocol = Protocol::parse(&inbound.protocol());
    if inbound.protocol() == "kafka" {
        plan.warnings.insert(format!("{name}: protocol kafka is treated as tcp"));
    }
    let service_address =
        if inbound.service_address.is_empty() { address.clone() } else { inbound.service_address.clone() };
    let workload = workload(service_address, inbound.application_port(), protocol, plan);

    let tls = plan.mtls.is_some().then(|| {
        let mut warnings = Vec::new();
        let policies = view.permissions.iter().map(|(meta, policy)| (meta, policy.as_ref()));
        let permission = permission(policies, Target { meta, dataplane }, inbound, &mut warnings);
        plan.warnings.extend(warnings);
        let permissive = view.mesh.enabled_backend().is_some_and(|backend| backend.mode == MtlsMode::Permissive);
        InboundTls { mesh: view.name.clone(), permissive, permission }
    });
    plan.inbounds.push(InboundPlan {
        host: inbound.service().map_or_else(|| name.clone(), str::to_owned),
        stat_prefix: stat_name(&workload),
        cluster: workload,
        name,
        address,
        port: inbound.port,
        protocol,
        tags: inbound.tags.clone(),
        tls,
        reuse_port: features.reuse_port,
        internal: internal.to_vec(),
    });
}

/// The name of the application's cluster, which is added if it is not there. Kuma calls it `localhost:<port>` whatever the address, so
/// that two applications on one port of two addresses become one; here the second is called `<address>:<port>`.
fn workload(address: String, port: u32, protocol: Protocol, plan: &mut ProxyPlan) -> String {
    let mut wanted = WorkloadPlan { name: format!("localhost:{port}"), address, port, protocol };
    match plan.workloads.iter().find(|workload| workload.name == wanted.name) {
        Some(found) if *found == wanted => return wanted.name,
        Some(found) if found.address == wanted.address => {
            wanted.name = format!("localhost:{port}:{}", protocol.name());
        }
        Some(_) => wanted.name = host_port(&wanted.address, port),
        None => {}
    }
    let name = wanted.name.clone();
    if !plan.workloads.contains(&wanted) {
        plan.workloads.push(wanted);
    }
    name
}

fn plan_outbound(
    view: &MeshView,
    dataplane: &str,
    (index, outbound): (usize, &Outbound),
    internal: &[Cidr],
    plan: &mut ProxyPlan,
) {
    let field = || format!("Dataplane {dataplane:?}: networking.outbound[{index}]");
    if outbound.backend_ref.is_some() {
        plan.warnings.insert(format!("{}.backendRef has no effect; name the service with tags", field()));
        return;
    }
    let Some(service) = outbound.service() else {
        plan.warnings.insert(format!("{} names no service with the tag {SERVICE_TAG}; it is left out", field()));
        return;
    };
    let subset: BTreeMap<String, String> =
        outbound.tags.iter().filter(|(tag, _)| *tag != SERVICE_TAG).map(|(k, v)| (k.clone(), v.clone())).collect();
    let cluster =
        if subset.is_empty() { service.to_owned() } else { format!("{service}-{}", Version::of(&outbound.tags)) };
    let found = view.services.get(service);
    let protocol = found.map_or(Protocol::Tcp, |service| service.protocol);
    let address = outbound.listen_address().to_owned();
    plan.outbounds.push(OutboundPlan {
        name: format!("outbound:{}", host_port(&address, outbound.port)),
        address,
        port: outbound.port,
        protocol,
        service: service.to_owned(),
        cluster: cluster.clone(),
        tags: outbound.tags.clone(),
        internal: internal.to_vec(),
    });
    if plan.upstreams.contains_key(&cluster) {
        return;
    }
    let permissive = view.mesh.enabled_backend().is_some_and(|backend| backend.mode == MtlsMode::Permissive);
    let tls_ready = !permissive || found.is_some_and(|service| service.tls_ready);
    let tls = (plan.mtls.is_some() && tls_ready).then(|| UpstreamTls {
        mesh: view.name.clone(),
        sni: sni(service, &subset, &view.name),
        expected: format!("spiffe://{}/{service}", view.name),
    });
    let endpoints = found.map(|service| service.endpoints.as_slice()).unwrap_or_default();
    let matches = |endpoint: &&Endpoint| subset.iter().all(|(tag, value)| endpoint.tags.get(tag) == Some(value));
    let upstream = UpstreamPlan {
        cluster: ClusterPlan { name: cluster.clone(), tls },
        endpoints: endpoints.iter().filter(matches).cloned().collect(),
    };
    plan.upstreams.insert(cluster, upstream);
}

/// Server name of a destination by tags: `<service>{mesh=<mesh>,<tag>=<value>}`, tags sorted (Kuma `pkg/xds/envoy/tls/sni.go`).
fn sni(service: &str, tags: &BTreeMap<String, String>, mesh: &str) -> String {
    let mut tags = tags.clone();
    tags.insert("mesh".to_owned(), mesh.to_owned());
    let pairs: Vec<String> = tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
    format!("{service}{{{}}}", pairs.join(","))
}

/// Kuma's `ipam.knownInternalCIDRs`; the IPv6 ranges only for a proxy that has IPv6.
fn internal_addresses(ipv6: bool) -> Vec<Cidr> {
    let v4 = [("10.0.0.0", 8), ("192.168.0.0", 16), ("172.16.0.0", 12), ("127.0.0.1", 32)];
    let v6 = [("fc00::", 7), ("::1", 128)];
    let v6 = v6.iter().filter(|_| ipv6);
    v4.iter().chain(v6).map(|&(address, prefix)| Cidr { address, prefix }).collect()
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
