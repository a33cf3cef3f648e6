//! Redirected traffic: the listeners that take it in, and what is passed on as it is.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ProxyFeatures, Redirection};
use crate::mesh::MeshView;
use crate::resource::{Dataplane, MtlsMode, Networking};

/// Port of an inbound that stands for no port at all (Kuma `TCPPortReserved`): the workload has identity and tags, but serves nothing.
pub(crate) const NO_PORT: u32 = 49151;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// As names of resources end.
    pub fn suffix(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    /// The address that stands for every address.
    pub fn unspecified(self) -> &'static str {
        match self {
            Family::V4 => "0.0.0.0",
            Family::V6 => "::",
        }
    }

    /// Where connections to the workload come from, so that they are not redirected again (trap 28).
    pub fn exempt_source(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.6",
            Family::V6 => "::6",
        }
    }
}

/// What takes in redirected traffic of one IP family and passes it on, unless another listener has the original destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CapturePlan {
    /// The family.
    pub family: Family,
    /// Port of outbound traffic.
    pub outbound: u32,
    /// Port of inbound traffic; absent if none is redirected, or to the port of outbound traffic too.
    pub inbound: Option<u32>,
    /// Whether traffic to unknown destinations leaves the mesh.
    pub passthrough: bool,
    /// Ports to which inbound traffic may be passed on; absent if all are open. [`NO_PORT`] leads nowhere.
    pub ports: Option<Vec<u32>>,
    /// Addresses of the proxy itself. Traffic to them that arrives with outbound traffic is inbound: one redirection is enough.
    pub own: Vec<IpAddr>,
    /// Whether workers share the port of inbound traffic.
    pub reuse_port: bool,
}

/// The listeners that take in redirected traffic, one for each family.
pub(super) fn captures(
    view: &MeshView,
    networking: &Networking,
    redirection: Redirection,
    features: &ProxyFeatures,
) -> Vec<CapturePlan> {
    if redirection.outbound == 0 {
        // Kuma has no listener for inbound traffic either without one for outbound traffic.
        return Vec::new();
    }
    let strict = view.mesh.enabled_backend().is_some_and(|backend| backend.mode == MtlsMode::Strict);
    let ports = (strict && features.strict_inbound_ports && !networking.inbound.is_empty())
        .then(|| networking.inbound.iter().map(|inbound| inbound.port).collect::<BTreeSet<_>>().into_iter().collect());
    let own: BTreeSet<IpAddr> = networking
        .inbound
        .iter()
        .map(|inbound| inbound.address.as_str())
        .chain([networking.address.as_str()])
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect();
    let families = [Family::V4, Family::V6].into_iter().filter(|family| *family == Family::V4 || redirection.ipv6);
    let captures = families.map(|family| CapturePlan {
        family,
        outbound: redirection.outbound,
        inbound: Some(redirection.inbound).filter(|port| *port != 0 && *port != redirection.outbound),
        passthrough: view.mesh.passthrough(),
        ports: ports.clone(),
        own: own.iter().copied().filter(|address| Family::of(*address) == family).collect(),
        reuse_port: features.reuse_port,
    });
    captures.collect()
}

/// Where connections to a workload come from: an address that is not redirected, unless the workload is on loopback, which never is.
pub(super) fn workload_source(address: &str) -> Option<&'static str> {
    let address: IpAddr = address.parse().ok()?;
    // Other addresses of loopback are redirected.
    let exempt = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&address);
    (!exempt).then(|| Family::of(address).exempt_source())
}

/// Instances that the workload reaches by their own addresses, past load balancing (`directAccessServices`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DirectAccessPlan {
    /// Address and port of each instance.
    pub endpoints: BTreeSet<(String, u32)>,
    /// Mesh whose identity instances must show, if the mesh has mutual TLS.
    pub tls: Option<String>,
}

/// Instances of the services that the Dataplane wants direct access to; `*` means all. `taken` says where other listeners are.
pub(super) fn direct_access(
    view: &MeshView,
    name: &str,
    networking: &Networking,
    taken: &BTreeSet<(String, u32)>,
) -> Option<DirectAccessPlan> {
    let services = &networking.transparent_proxying.as_ref()?.direct_access_services;
    if services.is_empty() {
        return None;
    }
    let wanted = |service: &str| services.iter().any(|wanted| wanted == "*" || wanted == service);
    let others = view.dataplanes.iter().filter(|(other, _)| other.as_str() != name);
    let endpoints = others.flat_map(|(_, (_, dataplane))| instances(dataplane, &wanted).collect::<Vec<_>>());
    Some(DirectAccessPlan {
        endpoints: endpoints.filter(|endpoint| !taken.contains(endpoint)).collect(),
        tls: view.mesh.enabled_backend().map(|_| view.name.clone()),
    })
}

fn instances(dataplane: &Dataplane, wanted: &impl Fn(&str) -> bool) -> impl Iterator<Item = (String, u32)> {
    let inbounds = dataplane.inbounds().iter().filter(|inbound| wanted(inbound.service().unwrap_or_default()));
    inbounds.filter_map(|inbound| {
        let address = if inbound.address.is_empty() { dataplane.address() } else { &inbound.address };
        super::is_ip(address).then(|| (address.to_owned(), inbound.port))
    })
}
