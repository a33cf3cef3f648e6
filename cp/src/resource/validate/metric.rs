//! Rules for a MeshMetric (Kuma `meshmetric/api/v1alpha1/validator.go`).

use super::Violation;
use super::policy::At;
use super::target_ref::{target_ref, top_kinds, top_without_effect};
use crate::resource::{
    MeshMetric, Meta, Metric, MetricsBackend, MetricsBackendType, MetricsSelector, MetricsSelectorType,
    OpenTelemetryBackend, PrometheusTlsMode,
};

pub(super) fn metric(policy: &MeshMetric, meta: &Meta, violations: &mut Vec<Violation>) {
    let MeshMetric { target_ref: top, default: Metric { sidecar, applications, backends } } = policy;
    if let Some(top) = top {
        target_ref("spec.targetRef", top, &top_kinds(meta, false), false, violations);
    }
    let mut at = At::new("spec.default", violations);
    if let Some(profiles) = sidecar.as_ref().and_then(|sidecar| sidecar.profiles.as_ref()) {
        for (name, selectors) in [("exclude", &profiles.exclude), ("include", &profiles.include)] {
            for (index, MetricsSelector { kind, r#match }) in selectors.iter().flatten().enumerate() {
                if *kind == MetricsSelectorType::Regex && regex::Regex::new(r#match).is_err() {
                    at.wrong_field(&format!("sidecar.profiles.{name}[{index}].match"), "invalid regex");
                }
            }
        }
    }
    // The names "application" and "backend", without the s, are Kuma's.
    for (index, application) in applications.iter().flatten().enumerate() {
        port(&format!("applications.application[{index}]"), application.port, &mut at);
    }
    for (index, backend) in backends.iter().flatten().enumerate() {
        self::backend(backend, at.entry("backends.backend", index));
    }
}

fn port(name: &str, port: u32, at: &mut At<'_>) {
    if !(1..=65535).contains(&port) {
        at.wrong_field(name, "port must be a valid (1-65535)");
    }
}

fn backend(backend: &MetricsBackend, mut at: At<'_>) {
    let MetricsBackend { kind, prometheus, open_telemetry } = backend;
    match kind {
        MetricsBackendType::Prometheus => match prometheus {
            None => at.wrong_field("prometheus", "must be defined"),
            Some(prometheus) => port("port", prometheus.port, &mut at),
        },
        MetricsBackendType::OpenTelemetry => match open_telemetry {
            None => at.wrong_field("openTelemetry", "must be defined"),
            Some(backend) => collector(backend, at.field("openTelemetry")),
        },
    }
}

fn collector(backend: &OpenTelemetryBackend, mut at: At<'_>) {
    let OpenTelemetryBackend { endpoint, backend_ref, refresh_interval } = backend;
    at.positive("refreshInterval", *refresh_interval);
    match (endpoint.is_empty(), backend_ref) {
        (false, Some(_)) => at.wrong("openTelemetry must have only one type defined: endpoint, backendRef"),
        (true, None) => at.wrong("openTelemetry must have exactly one defined: endpoint, backendRef"),
        (true, Some(reference)) => {
            if reference.kind != "MeshOpenTelemetryBackend" {
                at.wrong_field("backendRef.kind", "kind must be one of: MeshOpenTelemetryBackend");
            }
            if reference.labels.is_empty() {
                at.wrong_field("backendRef", "backendRef must have exactly one defined: labels");
            }
        }
        (false, None) => {
            if host_and_port(endpoint).is_none() {
                at.wrong_field("endpoint", "must be in host:port format");
            }
        }
    }
}

/// `host:port` with a host in brackets if it has colons.
fn host_and_port(endpoint: &str) -> Option<(&str, u16)> {
    let (host, port) = endpoint.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bracketed.unwrap_or(host);
    (!host.is_empty() && (bracketed.is_some() || !host.contains(':'))).then_some(())?;
    Some((host, port.parse().ok()?))
}

pub(super) fn without_effect(policy: &MeshMetric) -> Vec<String> {
    let mut notes: Vec<String> = top_without_effect(policy.target_ref.as_ref()).into_iter().collect();
    for (index, backend) in policy.default.backends.iter().flatten().enumerate() {
        let at = format!("spec.default.backends[{index}]");
        if backend.kind == MetricsBackendType::OpenTelemetry {
            notes.push(format!("{at}: stored, but without effect: this version sends no metrics to OpenTelemetry"));
        }
        let tls = backend.prometheus.as_ref().and_then(|prometheus| prometheus.tls.as_ref());
        if tls.is_some_and(|tls| tls.mode == PrometheusTlsMode::ActiveMTLSBackend) {
            notes.push(format!(
                "{at}.prometheus.tls.mode: ActiveMTLSBackend: metrics are served in plain text (as in Kuma)"
            ));
        }
    }
    notes
}
