//! MeshTrafficPermission (Kuma `pkg/plugins/policies/meshtrafficpermission/api/v1alpha1`).

use serde::{Deserialize, Serialize};

use super::TargetRef;
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpiffeIdMatch {
    /// How `value` is compared.
    #[serde(rename = "type")]
    pub kind: SpiffeIdMatchType,
    /// What is expected, beginning with `spiffe://`.
    pub value: String,
}

/// How an identity is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SpiffeIdMatchType {
    /// Equal.
    Exact,
    /// Begins with.
    Prefix,
}

/// An exact match of a server name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SniMatch {
    /// Always `Exact`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The expected server name.
    pub value: String,
}
