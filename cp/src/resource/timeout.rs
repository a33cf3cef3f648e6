//! MeshTimeout (Kuma `pkg/plugins/policies/meshtimeout/api/v1alpha1`).

use serde::{Deserialize, Serialize};

use super::{GoDuration, PolicyItem, PolicyRule, TargetRef};

/// How long what may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTimeout {
    /// The proxies that the policy applies to; absent means every proxy of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Calls of these proxies, by destination.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<PolicyItem<Timeout>>,
    /// Calls that these proxies serve; the older form of `rules`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<PolicyItem<Timeout>>,
    /// Calls that these proxies serve.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PolicyRule<Timeout>>,
}

/// The timeouts; each may be absent, and then comes from another policy or is Kuma's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeout {
    /// How long connecting may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_timeout: Option<GoDuration>,
    /// How long a connection may be idle; zero means for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<GoDuration>,
    /// What only HTTP has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTimeout>,
}

/// The timeouts of HTTP; zero means none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpTimeout {
    /// From the end of the request to the end of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<GoDuration>,
    /// How long nothing may happen on a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_idle_timeout: Option<GoDuration>,
    /// From beginning to end of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<GoDuration>,
    /// From beginning to end of a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<GoDuration>,
    /// How long the headers of a request may take to arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_headers_timeout: Option<GoDuration>,
}
