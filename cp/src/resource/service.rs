//! MeshService and MeshMultiZoneService (Kuma `pkg/core/resources/apis/meshservice`, `meshmultizoneservice`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire::is_default;

/// A service of the mesh in one zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshService {
    /// Whether other zones send traffic to it.
    #[serde(skip_serializing_if = "is_default")]
    pub state: ServiceState,
    /// Which Dataplanes are its instances.
    #[serde(skip_serializing_if = "is_default")]
    pub selector: ServiceSelector,
    /// The ports on which it is called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// The identities that its instances show; kept by the control plane.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<ServiceIdentity>,
    /// What the control plane found out; no part of the specification.
    #[serde(skip)]
    pub status: MeshServiceStatus,
}

impl MeshService {
    /// The services by tag that its instances are (identities of type `ServiceTag`).
    pub fn service_tags(&self) -> impl Iterator<Item = &str> {
        let of_tag = |identity: &&ServiceIdentity| identity.kind == ServiceIdentityKind::ServiceTag;
        self.identities.iter().filter(of_tag).map(|identity| identity.value.as_str())
    }
}

/// Whether other zones send traffic to a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceState {
    /// Not known yet.
    #[default]
    #[serde(rename = "")]
    Unknown,
    /// It has a healthy instance.
    Available,
    /// It has none.
    Unavailable,
}

/// Which Dataplanes are the instances of a service; at most one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSelector {
    /// Those with an inbound that has all of these tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_tags: Option<BTreeMap<String, String>>,
    /// The one of that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_ref: Option<DataplaneRef>,
    /// Those with all of these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_labels: Option<LabelSelector>,
}

/// A Dataplane by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataplaneRef {
    /// The name.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
}

/// Resources by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// All of these must be there; none selects everything.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl LabelSelector {
    /// Whether it selects a resource with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(label, value)| labels.get(label) == Some(value))
    }
}

/// A port on which a service is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// The name; empty means the number.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// The number that callers use.
    pub port: u32,
    /// The inbound of the instances; absent means the one of the same number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// The protocol; empty means `tcp`.
    #[serde(skip_serializing_if = "is_default")]
    pub app_protocol: String,
}

impl ServicePort {
    /// What policies and resource identifiers call it: its name, else its number.
    pub fn section_name(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }

    /// The inbound of the instances.
    pub fn target(&self) -> TargetPort {
        self.target_port.clone().unwrap_or(TargetPort::Number(self.port))
    }
}

/// An inbound of the instances of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a port number or the name of an inbound")]
pub enum TargetPort {
    /// By port.
    Number(u32),
    /// By name.
    Name(String),
}

/// An identity that the instances of a service show.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceIdentity {
    /// What the value is.
    #[serde(rename = "type")]
    pub kind: ServiceIdentityKind,
    /// The identity.
    pub value: String,
}

/// What the value of an identity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceIdentityKind {
    /// A value of the tag `kuma.io/service`.
    ServiceTag,
    /// A SPIFFE id.
    SpiffeID,
}

/// What the control plane found out about a MeshService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshServiceStatus {
    /// Host names under which it is called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<HostnameAddress>,
    /// Virtual addresses in this zone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<Vip>,
    /// Whether it takes mutual TLS.
    #[serde(skip_serializing_if = "is_default")]
    pub tls: ServiceTls,
    /// What became of each HostnameGenerator that selects it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostname_generators: Vec<HostnameGeneratorStatus>,
    /// How many instances it has.
    #[serde(skip_serializing_if = "is_default")]
    pub dataplane_proxies: DataplaneProxies,
}

/// A virtual address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Vip {
    /// The address.
    #[serde(skip_serializing_if = "is_default")]
    pub ip: String,
}

/// Whether a service takes mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceTls {
    /// The answer.
    #[serde(skip_serializing_if = "is_default")]
    pub status: TlsStatus,
}

/// Whether a service takes mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsStatus {
    /// Not known yet.
    #[default]
    #[serde(rename = "")]
    Unknown,
    /// Every instance does.
    Ready,
    /// Some instance does not.
    NotReady,
}

/// How many instances a service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataplaneProxies {
    /// With a stream to the control plane.
    #[serde(skip_serializing_if = "is_default")]
    pub connected: u32,
    /// Of these, with a healthy inbound.
    #[serde(skip_serializing_if = "is_default")]
    pub healthy: u32,
    /// All.
    #[serde(skip_serializing_if = "is_default")]
    pub total: u32,
}

/// A host name of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostnameAddress {
    /// The name.
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: String,
    /// `HostnameGenerator` or `Kubernetes`.
    #[serde(skip_serializing_if = "is_default")]
    pub origin: String,
    /// The generator.
    #[serde(skip_serializing_if = "is_default")]
    pub hostname_generator_ref: HostnameGeneratorRef,
}

/// A HostnameGenerator by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostnameGeneratorRef {
    /// The name.
    pub core_name: String,
}

/// What became of a HostnameGenerator for one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostnameGeneratorStatus {
    /// The generator.
    pub hostname_generator_ref: HostnameGeneratorRef,
    /// What became of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One thing that is true, false or unknown of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What, such as `Generated`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

/// Several MeshServices, of several zones, as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshMultiZoneService {
    /// Which MeshServices.
    pub selector: MultiZoneSelector,
    /// The ports on which it is called.
    pub ports: Vec<ServicePort>,
    /// What the control plane found out; no part of the specification.
    #[serde(skip)]
    pub status: MeshMultiZoneServiceStatus,
}

/// Which MeshServices a MeshMultiZoneService stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MultiZoneSelector {
    /// By labels.
    pub mesh_service: LabelSelector,
}

/// What the control plane found out about a MeshMultiZoneService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshMultiZoneServiceStatus {
    /// Host names under which it is called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<HostnameAddress>,
    /// Virtual addresses in this zone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<Vip>,
    /// The MeshServices that it stands for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mesh_services: Vec<MatchedMeshService>,
    /// What became of each HostnameGenerator that selects it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostname_generators: Vec<HostnameGeneratorStatus>,
    /// Whether it stands for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A MeshService that a MeshMultiZoneService stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct MatchedMeshService {
    /// Its display name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its zone.
    pub zone: String,
    /// Its mesh.
    pub mesh: String,
}
