//! Envoy's protobuf, made from a [`ProxyPlan`]. Nothing else builds Envoy resources.
//!
//! Names and shapes are those of Kuma 2.14. Deliberate differences:
//!
//! * a filter chain with a permission check carries, in its metadata under [`POLICY_METADATA`], the rules in the order in which they
//!   apply, so that a denial can be explained where it happens. The metadata of a listener would make Envoy replace the listener for a
//!   change of a permission; that of the chain does not.
//! * [`crate::policy::permission`] and the names of clusters of applications (see [`crate::plan`]).

mod admin;
mod cluster;
mod dynconf;
mod endpoint;
mod external;
mod listener;
mod metrics;
mod outlier;
mod probes;
mod rbac;
mod retry;
mod route;
mod secret;
mod tls;
mod transparent;
mod zone;

pub mod bootstrap;

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use shika_proto::envoy::config::core::v3 as core;
use shika_proto::google::protobuf;
use shika_proto::google::protobuf::Any;
use shika_proto::google::protobuf::value::Kind;

use crate::identity::leaf::Leaf;
use crate::plan::{DnsPlan, ProxyPlan};
use crate::xds::{Resource, ResourceType, Snapshot, Version};

/// Key of the filter chain metadata that names the policies behind a permission check.
pub const POLICY_METADATA: &str = "io.shika.policy";

/// Name of the Secret with the proxy's own certificate.
pub fn identity_secret(mesh: &str) -> String {
    format!("identity_cert:secret:{mesh}")
}

/// Name of the Secret with the mesh's trust bundle.
pub fn ca_secret(mesh: &str) -> String {
    format!("mesh_ca:secret:{mesh}")
}

/// The proxy's certificate as far as it is known here.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Version under which it is sent.
    pub version: Version,
    /// The certificate; absent if the proxy got it from an earlier instance.
    pub leaf: Option<&'a Leaf>,
}

/// Emits a plan. Whatever did not change since `before` is taken over from it, without being built again.
/// `identities` are the proxy's certificates by mesh: one for a sidecar that has it, one for each mesh of an egress.
pub fn snapshot<'a>(
    plan: &ProxyPlan,
    identities: impl IntoIterator<Item = (&'a str, Identity<'a>)>,
    before: &Snapshot,
) -> Snapshot {
    let mut to = Emitter { before, snapshot: Snapshot::default() };
    let ProxyPlan {
        inbounds,
        workloads,
        outbounds,
        upstreams,
        externals,
        zone_proxy,
        captures,
        direct_access,
        dns,
        dynamic,
        metrics,
        admin,
        probes,
        mtls,
        warnings: _,
    } = plan;
    for workload in workloads {
        to.add(ResourceType::Cluster, &workload.name, workload, || cluster::workload(workload));
    }
    for (name, upstream) in upstreams {
        to.add(ResourceType::Cluster, name, &upstream.cluster, || cluster::upstream(&upstream.cluster));
        to.add(ResourceType::Endpoint, name, &(name, &upstream.endpoints), || {
            endpoint::assignment(name, &upstream.endpoints)
        });
    }
    for (name, external) in externals {
        to.add(ResourceType::Cluster, name, external, || external::cluster(external));
    }
    if let Some(zone_proxy) = zone_proxy {
        to.add(ResourceType::Listener, &zone_proxy.name, zone_proxy, || zone::listener(zone_proxy));
    }
    for inbound in inbounds {
        to.add(ResourceType::Listener, &inbound.name, inbound, || listener::inbound(inbound));
    }
    for outbound in outbounds {
        to.add(ResourceType::Listener, &outbound.name, outbound, || listener::outbound(outbound));
    }
    transparent::captures(captures, &mut to);
    if let Some(direct_access) = direct_access {
        transparent::direct_access(direct_access, &mut to);
    }
    if let Some(DnsPlan::Filter { port, records }) = dns {
        to.add(ResourceType::Listener, dynconf::DNS, &(port, records), || dynconf::dns_filter(*port, records));
    }
    if let Some(dynamic) = dynamic {
        to.add(ResourceType::Listener, dynconf::DYNAMIC_CONFIG, dynamic, || dynconf::documents(dynamic));
    }
    if let Some(metrics) = metrics {
        metrics::metrics(metrics, &mut to);
    }
    if let Some(admin) = admin {
        admin::admin(admin, &mut to);
    }
    if let Some(probes) = probes {
        to.add(ResourceType::Listener, probes::PROBES, probes, || probes::listener(probes));
    }
    for mtls in mtls {
        let name = ca_secret(&mtls.mesh);
        to.add(ResourceType::Secret, &name, &(&name, &mtls.trust_bundle), || {
            secret::trust_bundle(&name, &mtls.trust_bundle)
        });
    }
    for (mesh, identity) in identities {
        if mtls.iter().any(|mtls| mtls.mesh == mesh) {
            let name = identity_secret(mesh);
            let body = identity.leaf.map(|leaf| secret::certificate(&name, leaf));
            to.snapshot.insert(ResourceType::Secret, name, Arc::new(Resource { version: identity.version, body }));
        }
    }
    to.snapshot
}

struct Emitter<'a> {
    before: &'a Snapshot,
    snapshot: Snapshot,
}

impl Emitter<'_> {
    /// Adds the resource that `build` makes from `plan`, unless the snapshot before has it of an equal plan.
    fn add<T: Hash + ?Sized>(&mut self, kind: ResourceType, name: &str, plan: &T, build: impl FnOnce() -> Any) {
        let version = Version::of(plan);
        let before = self.before.resources(kind).get(name).filter(|resource| resource.version == version);
        let resource = match before {
            Some(resource) => resource.clone(),
            None => Arc::new(Resource { version, body: Some(build()) }),
        };
        self.snapshot.insert(kind, name.to_owned(), resource);
    }
}

/// A socket address. Envoy takes IP addresses for listeners and endpoints.
fn address(address: &str, port: u32) -> core::Address {
    let socket = core::SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

/// A length of time. Lengths here are constants or validated, far below the limit of the type.
fn duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

fn seconds(seconds: u64) -> Option<protobuf::Duration> {
    Some(duration(Duration::from_secs(seconds)))
}

/// Configuration comes over the ADS stream that this very resource comes over.
fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..core::ConfigSource::default()
    }
}

fn string(text: impl Into<String>) -> protobuf::Value {
    protobuf::Value { kind: Some(Kind::StringValue(text.into())) }
}

fn list(values: impl IntoIterator<Item = protobuf::Value>) -> protobuf::Value {
    protobuf::Value { kind: Some(Kind::ListValue(protobuf::ListValue { values: values.into_iter().collect() })) }
}

fn structure<K: Into<String>>(fields: impl IntoIterator<Item = (K, protobuf::Value)>) -> protobuf::Struct {
    protobuf::Struct { fields: fields.into_iter().map(|(key, value)| (key.into(), value)).collect() }
}

fn tags(tags: &BTreeMap<String, String>) -> protobuf::Struct {
    structure(tags.iter().map(|(tag, value)| (tag.as_str(), string(value))))
}

/// Metadata of the parts that are not empty; none if all are.
fn metadata<const N: usize>(parts: [(&str, protobuf::Struct); N]) -> Option<core::Metadata> {
    let filter_metadata: HashMap<String, protobuf::Struct> = parts
        .into_iter()
        .filter(|(_, part)| !part.fields.is_empty())
        .map(|(key, part)| (key.to_owned(), part))
        .collect();
    (!filter_metadata.is_empty()).then(|| core::Metadata { filter_metadata, ..core::Metadata::default() })
}

#[cfg(test)]
mod testing;

#[cfg(test)]
#[path = "emit_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "transparent_tests.rs"]
mod transparent_tests;

#[cfg(test)]
#[path = "policy_tests.rs"]
mod policy_tests;

#[cfg(test)]
#[path = "zone_tests.rs"]
mod zone_tests;
