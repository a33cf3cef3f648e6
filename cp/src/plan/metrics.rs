//! Metrics that a proxy offers: listeners for Prometheus, and a document that says what they show.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Cidr, ProxyFeatures, ProxyPlan, loopback_addresses};
use crate::mesh::MeshView;
use crate::policy::metric::{metric, prometheus};
use crate::policy::select::Target;
use crate::resource::{
    Dataplane, LegacyTlsMode, Metric, MetricsBackendType, PrometheusTlsMode, SERVICE_TAG, SidecarMetrics,
    WORKLOAD_LABEL,
};

/// Where the document is (Kuma `pkg/plugins/policies/meshmetric/dpapi`).
const METRICS_PATH: &str = "/meshmetric";
/// Name of the listener for a backend that names no client.
const DEFAULT_BACKEND: &str = "default-backend";

/// Listeners for Prometheus, and what is behind them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MetricsPlan {
    /// Name of the cluster that is behind them.
    pub cluster: &'static str,
    /// One for each backend.
    pub listeners: Vec<MetricsListener>,
    /// Socket at which the proxy's companion answers with all metrics, without directory.
    pub socket: String,
    /// Directory of the socket; empty means the directory in which the proxy was started.
    pub work_dir: String,
}

/// A listener for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MetricsListener {
    /// `_kuma:metrics:prometheus:<client>`.
    pub name: String,
    /// Address to listen on.
    pub address: String,
    /// Port to listen on.
    pub port: u32,
    /// Path of the metrics.
    pub path: String,
    /// What the proxy's companion is asked for instead.
    pub rewrite: String,
    /// How it is protected.
    pub tls: MetricsTls,
    /// Whether workers share the port.
    pub reuse_port: bool,
    /// Addresses that count as internal.
    pub internal: Vec<Cidr>,
}

/// How a listener for Prometheus is protected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MetricsTls {
    /// Not at all.
    None,
    /// By TLS with these files.
    Files {
        /// File of the certificate chain.
        certificate: String,
        /// File of the key.
        key: String,
    },
    /// By mutual TLS of the mesh, except for callers at the proxy's own address.
    Mesh {
        /// The mesh.
        mesh: String,
    },
}

#[derive(Serialize)]
struct Document<'a> {
    observability: Observability<'a>,
}

#[derive(Serialize)]
struct Observability<'a> {
    metrics: Metrics<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metrics<'a> {
    applications: Option<Vec<Application<'a>>>,
    backends: Vec<Backend>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecar: Option<&'a SidecarMetrics>,
    extra_labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Application<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    path: &'a str,
    port: u32,
    address: &'a str,
}

#[derive(Serialize)]
struct Backend {
    r#type: &'static str,
    name: Option<String>,
}

/// Plans what the MeshMetrics say of the proxy, or else what the mesh says.
pub(super) fn metrics(view: &MeshView, target: Target<'_>, features: &ProxyFeatures, plan: &mut ProxyPlan) {
    let Target { meta, dataplane } = target;
    let Some(conf) = metric(&view.policies, target) else {
        legacy(view, target, features, plan);
        return;
    };
    let name = &meta.name;
    if conf.backends.iter().flatten().any(|backend| backend.kind == MetricsBackendType::OpenTelemetry) {
        plan.warnings.insert(format!(
            "Dataplane {name:?}: a MeshMetric has a backend of type OpenTelemetry, which has no effect"
        ));
    }
    let mut listeners: Vec<MetricsListener> = Vec::new();
    for backend in prometheus(&conf) {
        let files = (&features.metrics_cert_path, &features.metrics_key_path);
        let wants_tls = backend.tls.as_ref().is_some_and(|tls| tls.mode == PrometheusTlsMode::ProvidedTLS);
        let has_files = !files.0.is_empty() && !files.1.is_empty();
        if wants_tls && !has_files {
            plan.warnings.insert(format!(
                "Dataplane {name:?}: a MeshMetric asks for ProvidedTLS, and the proxy was started without certificate and key \
                 for its metrics; they are served in plain text on port {}",
                backend.port
            ));
        }
        let client = backend.client_id.as_deref().unwrap_or(DEFAULT_BACKEND);
        let listener = MetricsListener {
            name: format!("_kuma:metrics:prometheus:{client}"),
            address: dataplane.address().to_owned(),
            port: backend.port,
            path: backend.path.clone(),
            rewrite: METRICS_PATH.to_owned(),
            tls: if wants_tls && has_files { provided(features) } else { MetricsTls::None },
            reuse_port: features.reuse_port,
            internal: loopback_addresses(features.ipv6),
        };
        if let Some(other) = listeners.iter().find(|other| other.port == listener.port || other.name == listener.name) {
            plan.warnings.insert(format!(
                "Dataplane {name:?}: MeshMetric backends {} and {} have one port or one client; the second has no effect",
                other.name, listener.name
            ));
            continue;
        }
        listeners.push(listener);
    }
    if listeners.is_empty() {
        return;
    }
    let document = document(&conf, target);
    plan.metrics = Some(MetricsPlan {
        cluster: "_kuma:metrics:hijacker",
        listeners,
        socket: socket(target),
        work_dir: features.work_dir.clone(),
    });
    plan.add_document(features, METRICS_PATH, document);
}

/// Plans what `metrics` of the mesh and of the Dataplane say, if the mesh has a backend in use
/// (Kuma `pkg/xds/generator/prometheus_endpoint_generator.go`).
fn legacy(view: &MeshView, target: Target<'_>, features: &ProxyFeatures, plan: &mut ProxyPlan) {
    let Target { meta, dataplane } = target;
    let name = &meta.name;
    let conf = match view.mesh.prometheus_of(dataplane) {
        None => return,
        Some(Ok(conf)) => conf,
        Some(Err(reason)) => {
            plan.warnings.insert(format!("Dataplane {name:?}: {reason}; no metrics are offered"));
            return;
        }
    };
    if plan.inbounds.iter().any(|inbound| inbound.port == conf.port && inbound.address == dataplane.address()) {
        plan.warnings.insert(format!(
            "Dataplane {name:?}: port {} of the metrics is that of an inbound; no metrics are offered",
            conf.port
        ));
        return;
    }
    let tls = match conf.tls_mode() {
        LegacyTlsMode::ActiveMtlsBackend if view.mesh.enabled_backend().is_some() => {
            MetricsTls::Mesh { mesh: view.name.clone() }
        }
        LegacyTlsMode::ProvidedTls if features.metrics_cert_path.is_empty() || features.metrics_key_path.is_empty() => {
            plan.warnings.insert(format!(
                "Dataplane {name:?}: metrics of the mesh ask for providedTLS, and the proxy was started without certificate and \
                 key for its metrics; they are served in plain text on port {}",
                conf.port
            ));
            MetricsTls::None
        }
        LegacyTlsMode::ProvidedTls => provided(features),
        LegacyTlsMode::ActiveMtlsBackend | LegacyTlsMode::Disabled => MetricsTls::None,
    };
    let envoy = conf.envoy.unwrap_or_default();
    let used_only = if envoy.used_only == Some(true) { "usedonly" } else { "" };
    // The lone `&` at the end is Kuma's.
    let rewrite = match (envoy.filter_regex.as_str(), used_only) {
        ("", "") => "/".to_owned(),
        ("", used_only) => format!("/?{used_only}"),
        (filter, used_only) => format!("/?filter={filter}&{used_only}"),
    };
    plan.metrics = Some(MetricsPlan {
        cluster: "kuma:metrics:hijacker",
        listeners: vec![MetricsListener {
            name: "kuma:metrics:prometheus".to_owned(),
            address: dataplane.address().to_owned(),
            port: conf.port,
            path: conf.path,
            rewrite,
            tls,
            reuse_port: features.reuse_port,
            internal: loopback_addresses(features.ipv6),
        }],
        socket: socket(target),
        work_dir: features.work_dir.clone(),
    });
}

fn provided(features: &ProxyFeatures) -> MetricsTls {
    MetricsTls::Files { certificate: features.metrics_cert_path.clone(), key: features.metrics_key_path.clone() }
}

fn socket(Target { meta, .. }: Target<'_>) -> String {
    format!("kuma-mh-{}-{}", meta.name, meta.mesh)
}

fn document(conf: &Metric, target: Target<'_>) -> String {
    let applications = conf.applications.as_ref().filter(|applications| !applications.is_empty());
    let document = Document {
        observability: Observability {
            metrics: Metrics {
                applications: applications.map(|applications| {
                    let shown = applications.iter().map(|application| Application {
                        name: application.name.as_deref(),
                        path: &application.path,
                        port: application.port,
                        address: application.address.as_deref().unwrap_or_default(),
                    });
                    shown.collect()
                }),
                backends: vec![Backend { r#type: "Prometheus", name: None }],
                sidecar: conf.sidecar.as_ref(),
                extra_labels: labels(target),
            },
        },
    };
    // Strings and numbers always have a JSON form.
    serde_json::to_string(&document).unwrap_or_default()
}

/// Labels of every metric of the proxy and of its applications.
fn labels(Target { meta, dataplane }: Target<'_>) -> BTreeMap<String, String> {
    let mut labels = tag_labels(dataplane);
    labels.insert("mesh".to_owned(), meta.mesh.clone());
    labels.insert("dataplane".to_owned(), meta.name.clone());
    labels.insert("kuma.proxy_role".to_owned(), role(dataplane).to_owned());
    let label = |name: &str| meta.labels.get(name).filter(|value| !value.is_empty()).cloned();
    labels.extend(label("kuma.io/zone").map(|zone| ("zone".to_owned(), zone)));
    match label(WORKLOAD_LABEL) {
        Some(workload) => drop(labels.insert("kuma.workload".to_owned(), workload)),
        None => labels.extend(service(dataplane).map(|service| ("service".to_owned(), service))),
    }
    labels
}

/// The service that stands for a Dataplane: the first of its services in alphabetical order (Kuma `IdentifyingName`).
pub(crate) fn service(dataplane: &Dataplane) -> Option<String> {
    dataplane.tags().remove(SERVICE_TAG).and_then(|mut services| services.pop_first())
}

/// Every tag as a label with its first value, and in the plural with all of them (Kuma `pkg/mads/util.go`).
pub(crate) fn tag_labels(dataplane: &Dataplane) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (tag, values) in dataplane.tags() {
        let all: Vec<&str> = values.iter().map(String::as_str).collect();
        labels.insert(label_name(&tag), all.first().copied().unwrap_or_default().to_owned());
        labels.insert(label_name(&format!("{tag}s")), format!(",{},", all.join(",")));
    }
    labels
}

/// A name as Prometheus allows it.
fn label_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

fn role(dataplane: &Dataplane) -> &'static str {
    let Some(networking) = &dataplane.networking else { return "sidecar" };
    if networking.gateway.is_some() {
        return "gateway";
    }
    let has = |kind: &str| networking.listeners.iter().any(|listener| listener.kind == kind);
    match (has("ZoneIngress"), has("ZoneEgress")) {
        (true, true) => "zone-proxy",
        (true, false) => "zone-ingress",
        (false, true) => "zone-egress",
        (false, false) => "sidecar",
    }
}
