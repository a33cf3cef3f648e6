//! MeshTrafficPermission (Kuma `pkg/plugins/policies/meshtrafficpermission/api/v1alpha1`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire::is_default;

/// Who may call the proxies that the policy selects. Without any policy a mesh with mTLS denies everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTrafficPermission {
    /// The proxies that the policy applies to; absent means every proxy of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Rules by tags of the client.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// Rules by identity of the client; they apply to proxies whose identity comes from a MeshIdentity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
}

/// A rule by tags of the client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct From {
    /// The clients that the rule is about.
    pub target_ref: TargetRef,
    /// What is done with them.
    #[serde(skip_serializing_if = "is_default")]
    pub default: FromDefault,
}

/// What is done with the clients of a [`From`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FromDefault {
    /// The action; validation refuses a policy without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
}

/// What is done with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Let it through.
    Allow,
    /// Refuse it.
    Deny,
    /// Let it through, and count that a denial would have refused it.
    AllowWithShadowDeny,
}

/// A rule by identity of the client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// What the rule says.
    pub default: RuleDefault,
}

/// Lists of matches; a denial in any policy outweighs every permission.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleDefault {
    /// Clients to refuse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<RuleMatch>>,
    /// Clients to let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<RuleMatch>>,
    /// Clients to let through, counting that a denial would have refused them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_with_shadow_deny: Option<Vec<RuleMatch>>,
}

/// A match of a client; all given parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleMatch {
    /// By the SPIFFE identity in its certificate.
    #[serde(rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeIdMatch>,
    /// By the server name it asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<SniMatch>,
}

/// A match of a SPIFFE identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpiffeIdMatch {
    /// How `value` is compared.
    #[serde(rename = "type")]
    pub kind: SpiffeIdMatchType,
    /// What is expected, beginning with `spiffe://`.
    pub value: String,
}

/// How an identity is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpiffeIdMatchType {
    /// Equal.
    Exact,
    /// Begins with.
    Prefix,
}

/// An exact match of a server name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SniMatch {
    /// Always `Exact`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The expected server name.
    pub value: String,
}

/// A reference to a set of proxies or services (Kuma `api/common/v1alpha1/ref.go`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
