//! References to proxies, services and routes (Kuma `api/common/v1alpha1/targetref.go`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A reference to a set of proxies or services (Kuma `TargetRef`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// What is referred to; validation refuses a reference without kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<TargetRefKind>,
    /// The name, for kinds that take one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Tags, for the subset kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// The mesh, for references to another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// `Sidecar`, `Gateway` or both; absent means both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_types: Option<Vec<String>>,
    /// The Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels, for kinds that are selected by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// A part of what is referred to: the name of an inbound, or its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What a [`TargetRef`] refers to, in the order in which policies with that top-level reference outrank each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetRefKind {
    /// The whole mesh.
    Mesh,
    /// Dataplanes by name or labels.
    Dataplane,
    /// Dataplanes by tags.
    MeshSubset,
    /// A builtin gateway.
    MeshGateway,
    /// Dataplanes of a service.
    MeshService,
    /// An external service.
    MeshExternalService,
    /// A service over several zones.
    MeshMultiZoneService,
    /// Dataplanes of a service, by tags.
    MeshServiceSubset,
    /// A route.
    MeshHTTPRoute,
}

impl TargetRefKind {
    /// The short name in resource identifiers (`kri_<short>_…`); `None` for kinds that are no resources.
    pub fn short(self) -> Option<&'static str> {
        match self {
            TargetRefKind::Mesh => Some("m"),
            TargetRefKind::Dataplane => Some("dp"),
            TargetRefKind::MeshGateway => Some("mgw"),
            TargetRefKind::MeshService => Some("msvc"),
            TargetRefKind::MeshExternalService => Some("extsvc"),
            TargetRefKind::MeshMultiZoneService => Some("mzsvc"),
            TargetRefKind::MeshHTTPRoute => Some("mhttpr"),
            TargetRefKind::MeshSubset | TargetRefKind::MeshServiceSubset => None,
        }
    }
}

/// Where a route sends requests (Kuma `BackendRef`): a reference with a share of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteBackendRef {
    /// What is referred to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<TargetRefKind>,
    /// The name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Tags, for MeshServiceSubset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// The mesh, for references to another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// Not allowed here; read so that it can be refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_types: Option<Vec<String>>,
    /// The Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels, for kinds that are selected by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The name of a port of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The share of requests, relative to the other references of the rule.
    #[serde(default = "one", skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The port of the service; makes a MeshService reference one to a resource instead of a tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
}

fn one() -> Option<u32> {
    Some(1)
}

impl RouteBackendRef {
    /// The reference without its share and port.
    pub fn target_ref(&self) -> TargetRef {
        TargetRef {
            kind: self.kind,
            name: self.name.clone(),
            tags: self.tags.clone(),
            mesh: self.mesh.clone(),
            proxy_types: self.proxy_types.clone(),
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            section_name: self.section_name.clone(),
        }
    }

    /// Whether it names a resource, not a value of the tag `kuma.io/service` (Kuma `ReferencesRealObject`).
    pub fn names_resource(&self) -> bool {
        match self.kind {
            None | Some(TargetRefKind::MeshServiceSubset) => false,
            Some(TargetRefKind::MeshService) => {
                self.section_name.as_ref().is_some_and(|name| !name.is_empty()) || self.port.is_some()
            }
            Some(_) => true,
        }
    }
}
