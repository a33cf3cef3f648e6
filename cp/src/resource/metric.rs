//! MeshMetric (Kuma `pkg/plugins/policies/meshmetric/api/v1alpha1`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GoDuration, TargetRef};

/// Which metrics a proxy offers, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshMetric {
    /// The proxies that the policy applies to; absent means every proxy of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// The setting.
    pub default: Metric,
}

/// Which metrics, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metric {
    /// Metrics of the proxy itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarMetrics>,
    /// Metrics of the application that the proxy passes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applications: Option<Vec<ApplicationMetrics>>,
    /// Who collects them; without any the policy has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<MetricsBackend>>,
}

/// Metrics of the proxy itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarMetrics {
    /// Which of them; those of the profile `Basic` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiles: Option<MetricsProfiles>,
    /// Whether also those that were never counted; no by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_unused: Option<bool>,
}

/// A choice of metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsProfiles {
    /// Named choices; those of all policies add up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append_profiles: Option<Vec<MetricsProfile>>,
    /// Left out of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<MetricsSelector>>,
    /// Added to them; wins over `exclude`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<MetricsSelector>>,
}

/// A named choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MetricsProfile {
    /// The name.
    pub name: MetricsProfileName,
}

/// The named choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MetricsProfileName {
    /// Everything.
    All,
    /// What Kuma's dashboards show.
    Basic,
    /// Nothing.
    None,
}

/// Metrics by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MetricsSelector {
    /// How names are compared.
    #[serde(rename = "type")]
    pub kind: MetricsSelectorType,
    /// What is expected.
    pub r#match: String,
}

/// How names are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MetricsSelectorType {
    /// Begins with.
    Prefix,
    /// Matches the expression.
    Regex,
    /// Equal.
    Exact,
    /// Contains.
    Contains,
}

/// Metrics of the application.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApplicationMetrics {
    /// A name, which becomes a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the metrics are; `/metrics` by default.
    pub path: String,
    /// Address of the application; by default that of the Dataplane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Port of the application.
    pub port: u32,
}

impl Default for ApplicationMetrics {
    fn default() -> Self {
        ApplicationMetrics { name: None, path: "/metrics".to_owned(), address: None, port: 0 }
    }
}

/// Who collects metrics. The field that belongs to `kind` must be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricsBackend {
    /// Which protocol.
    #[serde(rename = "type")]
    pub kind: MetricsBackendType,
    /// For [`MetricsBackendType::Prometheus`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusBackend>,
    /// For [`MetricsBackendType::OpenTelemetry`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<OpenTelemetryBackend>,
}

/// Which protocol metrics are collected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MetricsBackendType {
    /// Prometheus fetches them.
    Prometheus,
    /// The proxy sends them.
    OpenTelemetry,
}

/// Prometheus fetches metrics from a port of the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrometheusBackend {
    /// Only the Prometheus that calls itself so is told of the proxy; by default every one that no other backend names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The port; 5670 by default.
    pub port: u32,
    /// The path; `/metrics` by default.
    pub path: String,
    /// Whether it is TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<PrometheusTls>,
}

impl Default for PrometheusBackend {
    fn default() -> Self {
        PrometheusBackend { client_id: None, port: 5670, path: "/metrics".to_owned(), tls: None }
    }
}

/// Whether the port for Prometheus is TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrometheusTls {
    /// Which certificate.
    pub mode: PrometheusTlsMode,
}

/// Which certificate the port for Prometheus shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PrometheusTlsMode {
    /// None: plain text.
    #[default]
    Disabled,
    /// One from files that the proxy was started with.
    ProvidedTLS,
    /// That of the mesh; treated as `Disabled` (as in Kuma).
    ActiveMTLSBackend,
}

/// The proxy sends metrics to a collector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenTelemetryBackend {
    /// `host:port` of the collector.
    pub endpoint: String,
    /// The collector as a resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<BackendResourceRef>,
    /// How often; every minute by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_interval: Option<GoDuration>,
}

/// A collector as a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendResourceRef {
    /// Always `MeshOpenTelemetryBackend`.
    pub kind: String,
    /// The labels that it has.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}
