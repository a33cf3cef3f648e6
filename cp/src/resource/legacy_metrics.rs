//! `metrics` of a Mesh and of a Dataplane, which MeshMetric replaces (Kuma `api/mesh/v1alpha1/metrics.proto`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::{self, is_default};
use super::{Dataplane, Mesh};

/// The only type of backend.
const PROMETHEUS: &str = "prometheus";
/// Port of the metrics unless set.
const PORT: u32 = 5670;
/// Path of the metrics unless set.
const PATH: &str = "/metrics";

/// Metrics backends of a mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyMetrics {
    /// The name of the backend in use; empty for none.
    #[serde(alias = "enabled_backend", skip_serializing_if = "is_default")]
    pub enabled_backend: String,
    /// The backends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<LegacyMetricsBackend>,
}

/// A metrics backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyMetricsBackend {
    /// The name, which `enabledBackend` refers to.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// `prometheus`.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Its configuration; see [`prometheus`](Self::prometheus).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conf: Option<Value>,
}

/// How a proxy offers metrics to Prometheus. Fields of the Dataplane win over those of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LegacyPrometheus {
    /// The port; 5670 by default.
    #[serde(deserialize_with = "wire::u32")]
    pub port: u32,
    /// The path; `/metrics` by default.
    pub path: String,
    /// Tags of the port as a service of its own; without effect in Kuma 2 as well.
    pub tags: BTreeMap<String, String>,
    /// The older way to say `tls.mode: disabled`.
    #[serde(rename = "skipMTLS")]
    pub skip_mtls: Option<bool>,
    /// Metrics of the application that the proxy passes on.
    pub aggregate: Vec<LegacyAggregate>,
    /// Metrics of the proxy itself.
    pub envoy: Option<LegacySidecarMetrics>,
    /// TLS of the port.
    pub tls: Option<LegacyTls>,
}

/// Metrics of the application that the proxy passes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LegacyAggregate {
    /// The name; an entry of the Dataplane replaces the one of the mesh with the same name.
    pub name: String,
    /// Port of the application.
    #[serde(deserialize_with = "wire::u32")]
    pub port: u32,
    /// Path of its metrics.
    pub path: String,
    /// Whether to fetch them; yes by default.
    pub enabled: Option<bool>,
    /// Address of the application; that of the Dataplane by default.
    pub address: String,
}

/// A choice of metrics of the proxy itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LegacySidecarMetrics {
    /// Only metrics whose name matches; empty for all.
    pub filter_regex: String,
    /// Only those that were ever counted.
    pub used_only: Option<bool>,
}

/// TLS of the port for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LegacyTls {
    /// Which certificate.
    pub mode: LegacyTlsMode,
}

/// Which certificate the port for Prometheus shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum LegacyTlsMode {
    /// That of the mesh, and it demands one of the mesh; plain text in a mesh without mutual TLS.
    #[default]
    #[serde(rename = "activeMTLSBackend")]
    ActiveMtlsBackend,
    /// One from files that the proxy was started with.
    #[serde(rename = "providedTLS")]
    ProvidedTls,
    /// None: plain text.
    #[serde(rename = "disabled")]
    Disabled,
}

impl LegacyMetricsBackend {
    /// Whether it is for Prometheus.
    pub fn is_prometheus(&self) -> bool {
        self.kind == PROMETHEUS
    }

    /// The configuration as written, without defaults.
    ///
    /// # Errors
    /// What is wrong with it, with the field.
    pub fn prometheus(&self) -> Result<LegacyPrometheus, String> {
        let Some(conf) = &self.conf else { return Ok(LegacyPrometheus::default()) };
        serde_path_to_error::deserialize(conf).map_err(|error| format!("conf.{error}"))
    }
}

impl LegacyPrometheus {
    /// Which certificate the port shows, by either of the two ways to say so.
    pub fn tls_mode(&self) -> LegacyTlsMode {
        match (&self.tls, self.skip_mtls) {
            (Some(tls), _) => tls.mode,
            (None, Some(true)) => LegacyTlsMode::Disabled,
            (None, _) => LegacyTlsMode::ActiveMtlsBackend,
        }
    }

    /// The applications whose metrics are fetched.
    pub fn enabled(&self) -> impl Iterator<Item = &LegacyAggregate> {
        self.aggregate.iter().filter(|aggregate| aggregate.enabled != Some(false))
    }

    /// Lays the settings of a Dataplane over these, as protobuf merges messages: what is zero or false was not set.
    fn merge(&mut self, over: LegacyPrometheus) {
        let LegacyPrometheus { port, path, tags, skip_mtls, aggregate, envoy, tls } = over;
        if port != 0 {
            self.port = port;
        }
        if !path.is_empty() {
            self.path = path;
        }
        self.tags.extend(tags);
        self.skip_mtls = either(self.skip_mtls, skip_mtls);
        for entry in aggregate {
            match self.aggregate.iter_mut().find(|known| known.name == entry.name) {
                Some(known) => *known = entry,
                None => self.aggregate.push(entry),
            }
        }
        if let Some(LegacySidecarMetrics { filter_regex, used_only }) = envoy {
            let own = self.envoy.get_or_insert_default();
            if !filter_regex.is_empty() {
                own.filter_regex = filter_regex;
            }
            own.used_only = either(own.used_only, used_only);
        }
        if let Some(LegacyTls { mode }) = tls {
            let own = self.tls.get_or_insert_default();
            if mode != LegacyTlsMode::default() {
                own.mode = mode;
            }
        }
    }
}

fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one || other),
        (one, other) => one.or(other),
    }
}

impl Mesh {
    /// The metrics backend in use, if it is Prometheus.
    pub fn prometheus_backend(&self) -> Option<&LegacyMetricsBackend> {
        let metrics = self.metrics.as_ref()?;
        let enabled = |backend: &&LegacyMetricsBackend| backend.name == metrics.enabled_backend;
        metrics.backends.iter().find(enabled).filter(|backend| backend.is_prometheus())
    }

    /// How a Dataplane offers metrics to Prometheus, as far as mesh and Dataplane say; `None` when the mesh has no metrics backend
    /// (Kuma `DataplaneResource.GetPrometheusConfig`).
    pub fn prometheus_of(&self, dataplane: &Dataplane) -> Option<Result<LegacyPrometheus, String>> {
        let backend = self.prometheus_backend()?;
        let read = || {
            let mut conf = backend.prometheus().map_err(|reason| format!("metrics of the mesh: {reason}"))?;
            if conf.port == 0 {
                conf.port = PORT;
            }
            if conf.path.is_empty() {
                PATH.clone_into(&mut conf.path);
            }
            // Laid down when the mesh is stored, before a Dataplane has a say.
            conf.tls = Some(LegacyTls { mode: conf.tls_mode() });
            if let Some(over) = dataplane.metrics.as_ref().filter(|over| over.is_prometheus()) {
                conf.merge(over.prometheus().map_err(|reason| format!("metrics: {reason}"))?);
            }
            Ok(conf)
        };
        Some(read())
    }
}

#[cfg(test)]
#[path = "legacy_metrics_tests.rs"]
mod tests;
