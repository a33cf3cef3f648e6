//! DataplaneInsight (Kuma `api/mesh/v1alpha1/dataplane_insight.proto`).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::{self, is_default};
use super::{Dataplane, InboundState};

/// What the control plane knows of a proxy: its streams, what was sent to it and its certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneInsight {
    /// The ADS streams of the proxy, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscription>,
    /// The certificate that the proxy holds.
    #[serde(rename = "mTLS", alias = "mtls", skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsInsight>,
    /// The node metadata that the proxy announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

impl DataplaneInsight {
    /// Whether the proxy has a stream to a control plane now (Kuma `IsOnline`).
    pub fn is_online(&self) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.disconnect_time.is_none())
    }

    /// The newest stream.
    pub fn last_subscription(&self) -> Option<&Subscription> {
        self.subscriptions.last()
    }
}

/// One ADS stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subscription {
    /// Unique identifier of the stream.
    pub id: String,
    /// The control plane instance that served it.
    #[serde(alias = "control_plane_instance_id", skip_serializing_if = "is_default")]
    pub control_plane_instance_id: String,
    /// When it began.
    #[serde(alias = "connect_time", skip_serializing_if = "Option::is_none")]
    pub connect_time: Option<DateTime<Utc>>,
    /// When it ended; absent while it lasts.
    #[serde(alias = "disconnect_time", skip_serializing_if = "Option::is_none")]
    pub disconnect_time: Option<DateTime<Utc>>,
    /// What was sent and how it was answered.
    #[serde(skip_serializing_if = "is_default")]
    pub status: DiscoveryStatus,
    /// Versions that the proxy announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<InsightVersion>,
    /// Counts the writes of this subscription, so that one whose control plane died can be told from a quiet one.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub generation: u32,
}

/// What was sent on a stream and how it was answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DiscoveryStatus {
    /// When these figures last changed.
    #[serde(alias = "last_update_time", skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<DateTime<Utc>>,
    /// All types together.
    pub total: ServiceStats,
    /// Clusters.
    pub cds: ServiceStats,
    /// Endpoints.
    pub eds: ServiceStats,
    /// Listeners.
    pub lds: ServiceStats,
    /// Routes.
    pub rds: ServiceStats,
}

/// Responses of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStats {
    /// Sent to the proxy.
    #[serde(alias = "responses_sent", with = "wire::u64_text", skip_serializing_if = "is_default")]
    pub responses_sent: u64,
    /// Accepted by the proxy (ACK).
    #[serde(alias = "responses_acknowledged", with = "wire::u64_text", skip_serializing_if = "is_default")]
    pub responses_acknowledged: u64,
    /// Refused by the proxy (NACK).
    #[serde(alias = "responses_rejected", with = "wire::u64_text", skip_serializing_if = "is_default")]
    pub responses_rejected: u64,
}

/// Versions that a proxy announced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InsightVersion {
    /// Of the program beside the proxy: kuma-dp, or `shika-proxy run`.
    #[serde(alias = "kuma_dp", skip_serializing_if = "is_default")]
    pub kuma_dp: KumaDpVersion,
    /// Of the proxy.
    #[serde(skip_serializing_if = "is_default")]
    pub envoy: EnvoyVersion,
    /// Of other programs, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dependencies: BTreeMap<String, String>,
}

/// Version of the program beside the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KumaDpVersion {
    /// The version, such as `2.14.0`.
    #[serde(skip_serializing_if = "is_default")]
    pub version: String,
    /// The git tag it was built from.
    #[serde(alias = "git_tag", skip_serializing_if = "is_default")]
    pub git_tag: String,
    /// The git commit it was built from.
    #[serde(alias = "git_commit", skip_serializing_if = "is_default")]
    pub git_commit: String,
    /// When it was built.
    #[serde(alias = "build_date", skip_serializing_if = "is_default")]
    pub build_date: String,
    /// Whether this control plane supports it.
    #[serde(alias = "kuma_cp_compatible", skip_serializing_if = "is_default")]
    pub kuma_cp_compatible: bool,
}

/// Version of the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyVersion {
    /// The version, such as `1.40.0`.
    #[serde(skip_serializing_if = "is_default")]
    pub version: String,
    /// The full build string.
    #[serde(skip_serializing_if = "is_default")]
    pub build: String,
    /// Whether the program beside it supports it.
    #[serde(alias = "kuma_dp_compatible", skip_serializing_if = "is_default")]
    pub kuma_dp_compatible: bool,
}

/// The certificate that a proxy holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MtlsInsight {
    /// When it expires.
    #[serde(alias = "certificate_expiration_time", skip_serializing_if = "Option::is_none")]
    pub certificate_expiration_time: Option<DateTime<Utc>>,
    /// When it was issued.
    #[serde(alias = "last_certificate_regeneration", skip_serializing_if = "Option::is_none")]
    pub last_certificate_regeneration: Option<DateTime<Utc>>,
    /// How often one was issued.
    #[serde(alias = "certificate_regenerations", deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub certificate_regenerations: u32,
    /// The backend that issued it.
    #[serde(rename = "issuedBackend", alias = "issued_backend", skip_serializing_if = "is_default")]
    pub issued_backend: String,
    /// The backends whose certificates the proxy trusts.
    #[serde(alias = "supported_backends", skip_serializing_if = "Vec::is_empty")]
    pub supported_backends: Vec<String>,
}

/// The status of a proxy, as overviews and `inspect dataplanes` show it (Kuma `DataplaneOverview.Status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpStatus {
    /// Connected, and every inbound is ready.
    Online,
    /// Not connected, or no inbound is ready.
    Offline,
    /// Connected, and some inbounds are not ready.
    PartiallyDegraded,
}

impl DpStatus {
    /// As overviews and tables show it.
    pub fn as_str(self) -> &'static str {
        match self {
            DpStatus::Online => "Online",
            DpStatus::Offline => "Offline",
            DpStatus::PartiallyDegraded => "Partially degraded",
        }
    }

    /// The status of a proxy, and what is not ready (Kuma `DataplaneOverviewResource.Status`).
    pub fn of(dataplane: &Dataplane, insight: Option<&DataplaneInsight>) -> (DpStatus, Vec<String>) {
        let online = insight.is_some_and(DataplaneInsight::is_online);
        let Some(networking) = &dataplane.networking else { return (DpStatus::Offline, Vec::new()) };
        if networking.gateway.is_some() {
            return (if online { DpStatus::Online } else { DpStatus::Offline }, Vec::new());
        }
        let mut notes = Vec::new();
        for inbound in &networking.inbound {
            let unhealthy = inbound.health.as_ref().is_some_and(|health| !health.ready);
            // An ignored inbound counts as ready: nobody waits for it.
            if unhealthy || inbound.state == InboundState::NotReady {
                let service = inbound.service().unwrap_or_default();
                notes.push(format!("inbound[port={},svc={service}] is not ready", inbound.port));
            }
        }
        for listener in &networking.listeners {
            if listener.state != InboundState::Ready {
                notes.push(format!("listener[port={},type={}] is not ready", listener.port, listener.kind));
            }
        }
        let total = networking.inbound.len() + networking.listeners.len();
        let status = if !online || notes.len() >= total {
            DpStatus::Offline
        } else if notes.is_empty() {
            DpStatus::Online
        } else {
            DpStatus::PartiallyDegraded
        };
        (status, notes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Trap 20: without inbounds and without gateway a proxy is offline, and ignored inbounds count as ready.
    #[test]
    fn what_is_online() {
        let connected: DataplaneInsight =
            serde_json::from_str(r#"{"subscriptions": [{"id": "1", "connectTime": "2026-01-01T00:00:00Z"}]}"#).unwrap();
        let inbound =
            |port: u32, state: &str| format!("{{port: {port}, state: {state}, tags: {{kuma.io/service: a}}}}");
        let with =
            |inbounds: &[String]| format!("{{networking: {{address: 10.0.0.1, inbound: [{}]}}}}", inbounds.join(", "));
        for (yaml, online, expected) in [
            ("{}".to_owned(), true, "Offline"),
            (with(&[]), true, "Offline"),
            ("{networking: {address: 10.0.0.1, gateway: {tags: {kuma.io/service: gw}}}}".to_owned(), true, "Online"),
            ("{networking: {address: 10.0.0.1, gateway: {tags: {kuma.io/service: gw}}}}".to_owned(), false, "Offline"),
            (with(&[inbound(1, "Ready")]), true, "Online"),
            (with(&[inbound(1, "Ready")]), false, "Offline"),
            (with(&[inbound(1, "Ignored")]), true, "Online"),
            (with(&[inbound(1, "Ready"), inbound(2, "Ignored")]), true, "Online"),
            (with(&[inbound(1, "Ready"), inbound(2, "NotReady")]), true, "Partially degraded"),
            (with(&[inbound(1, "NotReady"), inbound(2, "NotReady")]), true, "Offline"),
        ] {
            let dataplane: Dataplane = serde_yaml_ng::from_str(&yaml).unwrap();
            let (status, notes) = DpStatus::of(&dataplane, online.then_some(&connected));
            assert_eq!(status.as_str(), expected, "{yaml}: {notes:?}");
        }
    }
}
