//! Clusters of services outside the mesh.

use std::collections::{BTreeMap, BTreeSet};

use crate::mesh::{External, OriginatedTls, Protocol};

/// A destination outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalPlan {
    /// Name of the cluster.
    pub name: String,
    /// What is spoken.
    pub protocol: Protocol,
    /// Whether names may resolve to IPv6 addresses.
    pub ipv6: bool,
    /// Where it is.
    pub hosts: Vec<ExternalHostPlan>,
    /// The trust store of the proxy's host, empty if it named none.
    pub system_ca_path: String,
}

/// What the proxy that goes outside has of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    /// Whether the proxy's address is IPv6; names then resolve to both families.
    pub(super) ipv6: bool,
    /// The trust store of the proxy's host, empty if it named none.
    pub(super) system_ca_path: &'a str,
}

/// One place of a destination outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalHostPlan {
    /// An IP address or a DNS name.
    pub host: String,
    /// Port.
    pub port: u32,
    /// Zone it is in, from the tag `kuma.io/zone`; empty without one.
    pub zone: String,
    /// Part of the zone; empty without one.
    pub sub_zone: String,
    /// Higher numbers are used when lower ones are down.
    pub priority: u32,
    /// Tags, without `kuma.io/service`.
    pub tags: BTreeMap<String, String>,
    /// TLS towards it.
    pub tls: Option<OriginatedTls>,
}

impl ExternalPlan {
    /// The cluster `name` of these services; `None` without any. An egress, which serves many meshes, says in the tags which `mesh` they
    /// are of.
    pub(super) fn of<'a>(
        name: &str,
        services: impl Iterator<Item = &'a External>,
        mesh: Option<&str>,
        site: Site<'_>,
        warnings: &mut BTreeSet<String>,
    ) -> Option<Self> {
        let mut plan = ExternalPlan {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            ipv6: site.ipv6,
            hosts: Vec::new(),
            system_ca_path: site.system_ca_path.to_owned(),
        };
        for external in services {
            let External { name, service, tags, protocol, hosts, tls } = external;
            plan.protocol = if plan.hosts.is_empty() { *protocol } else { plan.protocol.common(*protocol) };
            if let Some(tls) = tls
                && tls.ca.is_none()
                && (!tls.system_ca || site.system_ca_path.is_empty())
            {
                let kind = if service.is_empty() { "MeshExternalService" } else { "ExternalService" };
                warnings.insert(format!(
                    "{kind} {name:?}: the certificate of the server is not verified, as no authority is given"
                ));
            }
            let mut tags = tags.clone();
            tags.extend(mesh.map(|mesh| ("mesh".to_owned(), mesh.to_owned())));
            for host in hosts {
                // A service by tags has a zone, one of its own kind has priorities.
                let (zone, sub_zone) = if service.is_empty() {
                    (String::new(), format!("priority-{}", host.priority))
                } else {
                    (tags.get("kuma.io/zone").cloned().unwrap_or_default(), String::new())
                };
                plan.hosts.push(ExternalHostPlan {
                    host: host.host.clone(),
                    port: host.port,
                    zone,
                    sub_zone,
                    priority: host.priority,
                    tags: tags.clone(),
                    tls: tls.clone(),
                });
            }
        }
        plan.hosts.sort_by(|a, b| (a.priority, &a.zone, &a.host, a.port).cmp(&(b.priority, &b.zone, &b.host, b.port)));
        (!plan.hosts.is_empty()).then_some(plan)
    }
}
