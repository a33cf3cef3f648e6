//! The rules that Kuma applies to a resource before it stores it, with Kuma's fields and messages
//! (`pkg/core/resources/apis/mesh/*_validator.go` and `pkg/plugins/policies/*/api`).
//!
//! [`resource`] needs the resource alone. Rules that compare it with what is stored stand in [`mesh_update`],
//! [`immutable_labels`] and [`membership`].

mod circuit_breaker;
mod dataplane;
mod external;
mod mesh;
mod metric;
mod permission;
mod policy;
mod retry;
mod route;
mod service;
mod target_ref;
mod timeout;
mod zone;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::{Kind, Meta, Resource, SERVICE_TAG, Spec};

pub use dataplane::membership;
pub use mesh::mesh_update;

/// A broken rule: which field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as `networking.inbound[0].port`.
    pub field: String,
    /// What is wrong, such as `port must be in the range [1, 65535]`.
    pub message: String,
}

impl Violation {
    /// A broken rule.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Violation {
        Violation { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// Checks a resource by itself: its name, mesh and labels, and its specification.
pub fn resource(resource: &Resource) -> Vec<Violation> {
    let mut violations = meta(resource.kind(), &resource.meta);
    match &resource.spec {
        Spec::Mesh(spec) => {
            if resource.meta.name.len() > 63 {
                violations.push(Violation::new("name", "cannot be longer than 63 characters"));
            }
            mesh::mesh(spec, &mut violations);
        }
        Spec::Dataplane(spec) => dataplane::dataplane(spec, &resource.meta, &mut violations),
        Spec::ZoneEgress(spec) => zone::egress(spec, &mut violations),
        Spec::ZoneIngress(spec) => zone::ingress(spec, &mut violations),
        Spec::ExternalService(spec) => external::external_service(spec, &mut violations),
        Spec::HostnameGenerator(spec) => service::hostname_generator(spec, &mut violations),
        Spec::MeshExternalService(spec) => external::mesh_external_service(spec, &resource.meta, &mut violations),
        Spec::MeshMultiZoneService(spec) => service::mesh_multi_zone_service(spec, &mut violations),
        Spec::MeshService(spec) => service::mesh_service(spec, &resource.meta, &mut violations),
        Spec::MeshCircuitBreaker(spec) => circuit_breaker::circuit_breaker(spec, &mut violations),
        Spec::MeshHTTPRoute(spec) => route::route(spec, &resource.meta, &mut violations),
        Spec::MeshMetric(spec) => metric::metric(spec, &resource.meta, &mut violations),
        Spec::MeshRetry(spec) => retry::retry(spec, &resource.meta, &mut violations),
        Spec::MeshTimeout(spec) => timeout::timeout(spec, &resource.meta, &mut violations),
        Spec::MeshTrafficPermission(spec) => permission::permission(spec, &mut violations),
        Spec::Config(_)
        | Spec::DataplaneInsight(_)
        | Spec::GlobalSecret(_)
        | Spec::Secret(_)
        | Spec::Zone(_)
        | Spec::ZoneEgressInsight(_)
        | Spec::ZoneIngressInsight(_)
        | Spec::ZoneInsight(_) => {}
    }
    violations
}

/// What the user should know about a valid resource: settings that are stored and served but have no effect here.
pub fn without_effect(resource: &Resource) -> Vec<String> {
    match &resource.spec {
        Spec::Mesh(spec) => mesh::without_effect(spec),
        Spec::Dataplane(spec) => dataplane::without_effect(spec),
        Spec::ExternalService(spec) => external::external_service_without_effect(spec),
        Spec::HostnameGenerator(spec) => service::hostname_generator_without_effect(spec),
        Spec::MeshExternalService(spec) => external::mesh_external_service_without_effect(spec),
        Spec::MeshCircuitBreaker(spec) => circuit_breaker::without_effect(spec),
        Spec::MeshHTTPRoute(spec) => route::without_effect(spec),
        Spec::MeshMetric(spec) => metric::without_effect(spec),
        Spec::MeshRetry(spec) => retry::without_effect(spec),
        Spec::MeshTimeout(spec) => timeout::without_effect(spec),
        Spec::MeshTrafficPermission(spec) => permission::without_effect(spec),
        _ => Vec::new(),
    }
}

/// Checks name, mesh and labels (Kuma `meta_validator.go`).
pub fn meta(kind: Kind, meta: &Meta) -> Vec<Violation> {
    let mut violations = Vec::new();
    if let Some(message) = identifier(&meta.name, is_subdomain, SUBDOMAIN_MESSAGE) {
        violations.push(Violation::new("name", message));
    }
    if kind.in_mesh() {
        // Meshes from old versions may have an underscore in their name.
        let old = |name: &str| name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'-' | b'_' | b'.'));
        let message =
            "invalid characters. Valid characters are numbers, lowercase latin letters and '-', '_', '.' symbols.";
        if let Some(message) = identifier(&meta.mesh, old, message) {
            violations.push(Violation::new("mesh", message));
        }
    }
    for (key, value) in &meta.labels {
        let field = format!("labels[{key:?}]");
        let (prefix, name) = key.split_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        if !is_qualified(name) || prefix.is_some_and(|prefix| prefix.len() > 253 || !is_subdomain(prefix)) {
            violations.push(Violation::new(
                &field,
                "label name must consist of alphanumeric characters, '-', '_' or '.', start and end with an alphanumeric \
                 character, be at most 63 characters long, with an optional DNS subdomain prefix and '/'",
            ));
        }
        if !value.is_empty() && !is_qualified(value) {
            violations.push(Violation::new(
                &field,
                "label value must be empty or consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start \
                 and end with an alphanumeric character",
            ));
        }
    }
    violations
}

/// Labels that a user cannot change once the resource has them (Kuma `validateImmutableLabels`).
pub fn immutable_labels(stored: &Meta, new: &Meta) -> Vec<Violation> {
    let mut violations = Vec::new();
    for label in ["kuma.io/origin", "kuma.io/zone", "kuma.io/display-name"] {
        let Some(old) = stored.labels.get(label) else { continue };
        let message = match new.labels.get(label) {
            None => format!("is immutable, cannot be removed (was {old:?})"),
            Some(value) if value != old => format!("is immutable, cannot be changed from {old:?} to {value:?}"),
            Some(_) => continue,
        };
        violations.push(Violation::new(format!("labels[{label:?}]"), message));
    }
    violations
}

const SUBDOMAIN_MESSAGE: &str = "invalid characters. A lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
                                 characters, '-' or '.', and must start and end with an alphanumeric character";

fn identifier(text: &str, allowed: impl Fn(&str) -> bool, message: &str) -> Option<String> {
    match text {
        "" => Some("cannot be empty".to_owned()),
        text if text.len() > 253 => Some("value length must less or equal 253".to_owned()),
        text if !allowed(text) => Some(message.to_owned()),
        _ => None,
    }
}

/// Whether a text can be a host name: an RFC 1123 subdomain, lower case.
pub fn is_hostname(text: &str) -> bool {
    text.len() <= 253 && is_subdomain(text)
}

/// RFC 1123 subdomain, lower case.
fn is_subdomain(text: &str) -> bool {
    text.split('.').all(|label| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = label.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    })
}

/// The name part of a Kubernetes label, and its value.
fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A name that a resolver could look up; upper case and underscores are allowed, as in Kuma.
fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
            label.len() <= 63
                && edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

/// `address`: an IP address or a DNS name that others can dial.
fn address(field: &str, address: &str, violations: &mut Vec<Violation>) {
    if address.is_empty() {
        violations.push(Violation::new(field, "address can't be empty"));
        return;
    }
    match address.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => violations.push(Violation::new(field, "must not be 0.0.0.0 or ::")),
        Ok(_) => {}
        // All digits and dots is an address with a typing error, which no resolver will find.
        Err(_) if is_dns_name(address) && !address.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {}
        Err(_) => violations.push(Violation::new(field, "address has to be valid IP address or domain name")),
    }
}

fn port(field: &str, port: u32, violations: &mut Vec<Violation>) {
    if !(1..=65535).contains(&port) {
        violations.push(Violation::new(field, "port must be in the range [1, 65535]"));
    }
}

/// Whether tag values may contain what only selectors may.
#[derive(Clone, Copy, PartialEq)]
enum TagValues {
    /// Of a Dataplane.
    Plain,
    /// Of a selector: also slashes, or `*` alone.
    Selector,
}

fn tags(field: &str, tags: &BTreeMap<String, String>, values: TagValues, violations: &mut Vec<Violation>) {
    for (tag, value) in tags {
        let at = format!("{field}[{tag:?}]");
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        if tag.is_empty() {
            violations.push(Violation::new(field, "tag name must be non-empty"));
        }
        if !tag.bytes().all(|b| plain(b) || b == b'/') {
            let message = "tag name must consist of alphanumeric characters, dots, dashes, slashes and underscores";
            violations.push(Violation::new(&at, message));
        }
        if value.is_empty() {
            violations.push(Violation::new(&at, "tag value must be non-empty"));
        }
        match values {
            TagValues::Plain if !value.bytes().all(plain) => {
                let message = "tag value must consist of alphanumeric characters, dots, dashes and underscores";
                violations.push(Violation::new(&at, message));
            }
            TagValues::Selector if value != "*" && !value.bytes().all(|b| plain(b) || b == b'/') => {
                let message = "tag value must consist of alphanumeric characters, dots, dashes, slashes and underscores or be \"*\"";
                violations.push(Violation::new(&at, message));
            }
            TagValues::Plain | TagValues::Selector => {}
        }
    }
}

/// Kuma's limit for names that become a label of a host name.
fn short_name(meta: &Meta, violations: &mut Vec<Violation>) {
    let name = meta.labels.get("kuma.io/display-name").unwrap_or(&meta.name);
    if name.len() > 63 {
        violations.push(Violation::new("name", "must be no longer than 63 characters"));
    }
}

fn one_of(field: String, value: &str, allowed: &[&str], violations: &mut Vec<Violation>) {
    if !allowed.contains(&value) {
        let name = field.rsplit('.').next().unwrap_or_default().to_owned();
        violations.push(Violation::new(field, format!("{name:?} must be one of [{}]", allowed.join(", "))));
    }
}

fn require_service(field: &str, tags: &BTreeMap<String, String>, violations: &mut Vec<Violation>) {
    if !tags.contains_key(SERVICE_TAG) {
        violations.push(Violation::new(field, format!("mandatory tag {SERVICE_TAG:?} is missing")));
    }
}

/// A duration as protobuf's JSON mapping writes it (`10s`, `0.5s`), which must be positive.
fn positive_duration(field: &str, text: Option<&str>, violations: &mut Vec<Violation>) {
    let Some(text) = text else { return };
    match text.strip_suffix('s').and_then(|seconds| seconds.parse::<f64>().ok()).filter(|seconds| seconds.is_finite()) {
        None => violations.push(Violation::new(field, "must have a valid value, such as 10s")),
        Some(seconds) if seconds <= 0.0 => violations.push(Violation::new(field, "must have a positive value")),
        Some(_) => {}
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "kinds_tests.rs"]
mod kinds_tests;

#[cfg(test)]
#[path = "policies_tests.rs"]
mod policies_tests;
