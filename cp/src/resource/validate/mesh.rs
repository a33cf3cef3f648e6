//! Rules for a Mesh (Kuma `mesh_validator.go`, `pkg/core/managers/apis/mesh/mesh_validator.go`).

use std::collections::BTreeSet;

use super::{TagValues, Violation, positive_duration, tags};
use crate::resource::{CaBackend, LegacyMetricsBackend, LegacyTlsMode, Mesh, TagRule, parse_duration};

pub(super) fn mesh(mesh: &Mesh, violations: &mut Vec<Violation>) {
    if let Some(mtls) = &mesh.mtls {
        if mtls.backends.len() > 1 {
            violations.push(Violation::new("mtls.backends", "cannot have more than 1 backends"));
        }
        let mut names = BTreeSet::new();
        for (index, backend) in mtls.backends.iter().enumerate() {
            let at = format!("mtls.backends[{index}]");
            if backend.name.is_empty() {
                violations.push(Violation::new(format!("{at}.name"), "cannot be empty"));
            } else if !names.insert(backend.name.as_str()) {
                let message = format!("{:?} name is already used for another backend", backend.name);
                violations.push(Violation::new(format!("{at}.name"), message));
            }
            ca_backend(&at, backend, violations);
        }
        if !mtls.enabled_backend.is_empty() && !names.contains(mtls.enabled_backend.as_str()) {
            let message = "has to be set to one of the backends in the mesh";
            violations.push(Violation::new("mtls.enabledBackend", message));
        }
    }
    if let Some(metrics) = &mesh.metrics {
        let mut names = BTreeSet::new();
        for (index, backend) in metrics.backends.iter().enumerate() {
            let at = format!("metrics.backends[{index}]");
            if !names.insert(backend.name.as_str()) {
                let message = format!("{:?} name is already used for another backend", backend.name);
                violations.push(Violation::new(format!("{at}.name"), message));
            }
            metrics_backend(&at, backend, violations);
        }
        if !metrics.enabled_backend.is_empty() && !names.contains(metrics.enabled_backend.as_str()) {
            let message = "has to be set to one of the backends in the mesh";
            violations.push(Violation::new("metrics.enabledBackend", message));
        }
    }
    if let Some(rules) = mesh.constraints.as_ref().and_then(|constraints| constraints.dataplane_proxy.as_ref()) {
        tag_rules("constraints.dataplaneProxy.requirements", &rules.requirements, violations);
        tag_rules("constraints.dataplaneProxy.restrictions", &rules.restrictions, violations);
    }
    if mesh.routing.as_ref().is_some_and(|routing| routing.zone_egress) && mesh.enabled_backend().is_none() {
        violations.push(Violation::new("mtls", "has to be set when zoneEgress enabled"));
    }
}

/// Rules for a metrics backend of a Mesh or of a Dataplane.
pub(super) fn metrics_backend(at: &str, backend: &LegacyMetricsBackend, violations: &mut Vec<Violation>) {
    if !backend.is_prometheus() {
        let message = "unknown backend type. Available backends: \"prometheus\"";
        violations.push(Violation::new(format!("{at}.type"), message));
        return;
    }
    let conf = match backend.prometheus() {
        Ok(conf) => conf,
        Err(reason) => {
            violations.push(Violation::new(format!("{at}.conf"), format!("could not parse config: {reason}")));
            return;
        }
    };
    let tls = conf.tls.as_ref().map(|tls| tls.mode);
    let agree = match (conf.skip_mtls, tls) {
        (Some(skip), Some(mode)) => {
            mode == if skip { LegacyTlsMode::Disabled } else { LegacyTlsMode::ActiveMtlsBackend }
        }
        _ => true,
    };
    if !agree {
        let message = "skipMTLS and tls configuration cannot be defined together";
        violations.push(Violation::new(format!("{at}.conf"), message));
    }
    if let Some(Err(error)) = conf.envoy.as_ref().map(|envoy| regex::Regex::new(&envoy.filter_regex)) {
        let message = format!("provided regexp isn't correct: {error}");
        violations.push(Violation::new(format!("{at}.conf.envoy.filterRegex"), message));
    }
    let mut names = BTreeSet::new();
    for (index, aggregate) in conf.aggregate.iter().enumerate() {
        if !names.insert(aggregate.name.as_str()) {
            let message = format!("duplicate entry: {}, values have to be unique", aggregate.name);
            violations.push(Violation::new(format!("{at}.conf.aggregate[{index}].name"), message));
        }
    }
}

fn ca_backend(at: &str, backend: &CaBackend, violations: &mut Vec<Violation>) {
    match backend.kind.as_str() {
        "builtin" => {
            if let Err(message) = backend.builtin_conf() {
                violations.push(Violation::new(format!("{at}.conf"), message));
            } else if let Ok(conf) = backend.builtin_conf() {
                if !matches!(conf.rsa_bits, 2048 | 3072 | 4096) {
                    let message = format!("{} is not supported; use 2048, 3072 or 4096", conf.rsa_bits);
                    violations.push(Violation::new(format!("{at}.conf.caCert.RSAbits"), message));
                }
                if conf.expiration.is_zero() {
                    let message = "has to be greater than zero";
                    violations.push(Violation::new(format!("{at}.conf.caCert.expiration"), message));
                }
            }
        }
        // Kuma's types that are not built here are named, so that nobody takes them for a typing error.
        "provided" | "vault" | "acmpca" | "certmanager" => {
            let message = format!("{:?} is not supported by this version of shika-cp; use \"builtin\"", backend.kind);
            violations.push(Violation::new(format!("{at}.type"), message));
        }
        kind => {
            let message = format!("could not find installed plugin for this type {kind:?}; use \"builtin\"");
            violations.push(Violation::new(format!("{at}.type"), message));
        }
    }
    if let Some(dp_cert) = &backend.dp_cert {
        let expiration = dp_cert.rotation.as_ref().map(|rotation| rotation.expiration.as_str()).unwrap_or_default();
        // Kuma's field is spelt in lower case and without the backend.
        if parse_duration(expiration).ok().is_none_or(|expiration| expiration.is_zero()) {
            violations.push(Violation::new("mtls.dpcert.rotation.expiration", "has to be a valid format"));
        }
        positive_duration(&format!("{at}.dpCert.requestTimeout"), dp_cert.request_timeout.as_deref(), violations);
    }
    let timeout = backend.root_chain.as_ref().and_then(|root_chain| root_chain.request_timeout.as_deref());
    positive_duration(&format!("{at}.rootChain.requestTimeout"), timeout, violations);
}

fn tag_rules(at: &str, rules: &[TagRule], violations: &mut Vec<Violation>) {
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("{at}[{index}].tags");
        if rule.tags.is_empty() {
            violations.push(Violation::new(&field, "must have at least one tag"));
        }
        tags(&field, &rule.tags, TagValues::Selector, violations);
    }
}

/// Checks a change of a mesh: the CA cannot be exchanged while proxies trust it.
pub fn mesh_update(stored: &Mesh, new: &Mesh) -> Vec<Violation> {
    let skip = new.mtls.as_ref().is_some_and(|mtls| mtls.skip_validation);
    match (stored.enabled_backend(), new.enabled_backend()) {
        (Some(old), Some(new)) if old.name != new.name && !skip => vec![Violation::new(
            "mtls.enabledBackend",
            "Changing CA when mTLS is enabled is forbidden. Disable mTLS first and then change the CA",
        )],
        _ => Vec::new(),
    }
}

pub(super) fn without_effect(mesh: &Mesh) -> Vec<String> {
    let mut fields = Vec::new();
    let mut note = |present: bool, field: &str| {
        if present {
            fields.push(format!("{field}: stored, but without effect in this version"));
        }
    };
    note(mesh.logging.is_some(), "logging");
    note(mesh.tracing.is_some(), "tracing");
    fields
}
