//! Rules for a Dataplane (Kuma `dataplane_validator.go`, `membership_validator.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::mesh::metrics_backend;
use super::{TagValues, Violation, address, port, positive_duration, require_service, tags};
use crate::resource::{
    Dataplane, GatewayType, Inbound, Mesh, Meta, Networking, Outbound, PROTOCOL_TAG, SERVICE_TAG, TagRule,
    WORKLOAD_LABEL,
};

const BACKEND_KINDS: [&str; 3] = ["MeshExternalService", "MeshMultiZoneService", "MeshService"];
/// What Kuma's `ParseProtocol` knows.
const PROTOCOLS: [&str; 7] = ["grpc", "http", "http2", "kafka", "mysql", "tcp", "tls"];
/// What Kuma's messages offer.
const OFFERED_PROTOCOLS: &str = "Allowed values: grpc, http, http2, kafka, tcp";

pub(super) fn dataplane(dataplane: &Dataplane, meta: &Meta, violations: &mut Vec<Violation>) {
    let Some(networking) = &dataplane.networking else {
        violations.push(Violation::new("networking", "must be defined"));
        return;
    };
    admin(networking, violations);
    if let Some(metrics) = &dataplane.metrics {
        metrics_backend("metrics", metrics, violations);
    }
    match networking.gateway.as_ref().map(|gateway| (gateway.kind, gateway)) {
        Some((kind, gateway)) => {
            let whose = match kind {
                GatewayType::Delegated => "delegated gateways",
                GatewayType::Builtin => "builtin gateways",
            };
            let mut forbid = |defined: bool, field: &str| {
                if defined {
                    let message = format!("{field} cannot be defined for {whose}");
                    violations.push(Violation::new(format!("networking.{field}"), message));
                }
            };
            forbid(!networking.inbound.is_empty(), "inbound");
            forbid(kind == GatewayType::Builtin && !networking.outbound.is_empty(), "outbound");
            forbid(!networking.listeners.is_empty(), "listeners");
            forbid(kind == GatewayType::Builtin && dataplane.probes.is_some(), "probes");
            if let Some(protocol) =
                gateway.tags.get(PROTOCOL_TAG).filter(|protocol| !protocol.eq_ignore_ascii_case("tcp"))
            {
                let message = format!("other values than tcp are not allowed, provided value {protocol:?}");
                violations.push(Violation::new(format!("networking.gateway.tags[{PROTOCOL_TAG:?}]"), message));
            }
            tags("networking.gateway.tags", &gateway.tags, TagValues::Plain, violations);
            if !gateway.tags.is_empty() {
                require_service("networking.gateway.tags", &gateway.tags, violations);
            }
        }
        None => {
            // Kuma up to 2.13 refuses this; 2.14 stores it, and the proxy then has no service to be certified as.
            if networking.inbound.is_empty() && networking.listeners.is_empty() {
                let message = "has to contain at least one inbound interface or gateway";
                violations.push(Violation::new("networking", message));
            }
            listeners(networking, violations);
        }
    }
    address("networking.address", &networking.address, violations);
    if !networking.advertised_address.is_empty() {
        address("networking.advertisedAddress", &networking.advertised_address, violations);
    }
    let mut used = BTreeSet::new();
    for (index, inbound) in networking.inbound.iter().enumerate() {
        let at = format!("networking.inbound[{index}]");
        self::inbound(&at, inbound, &networking.address, violations);
        // The tag names the service in certificates and policies; other tags make no sense without it.
        if !inbound.tags.contains_key(SERVICE_TAG) {
            violations.push(Violation::new(format!("{at}.tags[{SERVICE_TAG:?}]"), "tag has to exist"));
        }
        let listen = if inbound.address.is_empty() { &networking.address } else { &inbound.address };
        if inbound.port != 0 && !used.insert((listen.as_str(), inbound.port)) {
            let message = format!("address and port {listen}:{} are already used by another inbound", inbound.port);
            violations.push(Violation::new(format!("{at}.port"), message));
        }
    }
    let mut used = BTreeSet::new();
    for (index, outbound) in networking.outbound.iter().enumerate() {
        let at = format!("networking.outbound[{index}]");
        self::outbound(&at, outbound, violations);
        let listen = outbound.listen_address();
        if outbound.port != 0 && !used.insert((listen, outbound.port)) {
            let message = format!("address and port {listen}:{} are already used by another outbound", outbound.port);
            violations.push(Violation::new(format!("{at}.port"), message));
        }
    }
    if let Some(workload) = meta.labels.get(WORKLOAD_LABEL) {
        let bytes = workload.as_bytes();
        let valid = workload.len() <= 63
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if !valid {
            let message =
                "must be a valid DNS-1035 label (at most 63 characters, matching regex [a-z]([-a-z0-9]*[a-z0-9])?)";
            violations.push(Violation::new(format!("labels[{WORKLOAD_LABEL:?}]"), message));
        }
    }
}

pub(super) fn without_effect(dataplane: &Dataplane) -> Vec<String> {
    let mut fields = Vec::new();
    let mut note = |present: bool, field: &str| {
        if present {
            fields.push(format!("{field}: stored, but without effect in this version"));
        }
    };
    let Some(networking) = &dataplane.networking else { return fields };
    note(!networking.listeners.is_empty(), "networking.listeners");
    let builtin = networking.gateway.as_ref().is_some_and(|gateway| gateway.kind == GatewayType::Builtin);
    note(builtin, "networking.gateway.type");
    for (index, inbound) in networking.inbound.iter().enumerate() {
        note(inbound.service_probe.is_some(), &format!("networking.inbound[{index}].serviceProbe"));
    }
    fields
}

/// The admin port must be free on the loopback interface.
fn admin(networking: &Networking, violations: &mut Vec<Violation>) {
    let Some(admin) = networking.admin.as_ref().filter(|admin| admin.port != 0) else { return };
    port("networking.admin.port", admin.port, violations);
    let on_loopback = |address: &str| address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    let listens = |inbound: &Inbound| {
        let listen = if inbound.address.is_empty() { &networking.address } else { &inbound.address };
        let application = if inbound.service_address.is_empty() { listen } else { &inbound.service_address };
        (inbound.port == admin.port && on_loopback(listen))
            || (inbound.application_port() == admin.port && on_loopback(application))
    };
    if networking.inbound.iter().any(listens) {
        violations.push(Violation::new("networking.admin.port", "must differ from inbound"));
    }
    if networking.outbound.iter().any(|o| o.port == admin.port && on_loopback(o.listen_address())) {
        violations.push(Violation::new("networking.admin.port", "must differ from outbound"));
    }
}

fn inbound(at: &str, inbound: &Inbound, dataplane_address: &str, violations: &mut Vec<Violation>) {
    port(&format!("{at}.port"), inbound.port, violations);
    if inbound.service_port != 0 {
        port(&format!("{at}.servicePort"), inbound.service_port, violations);
    }
    let ip = |field: &str, address: &str, violations: &mut Vec<Violation>| {
        if !address.is_empty() && address.parse::<IpAddr>().is_err() {
            violations.push(Violation::new(format!("{at}.{field}"), format!("{field} has to be valid IP address")));
        }
    };
    ip("serviceAddress", &inbound.service_address, violations);
    ip("address", &inbound.address, violations);
    let same_port = inbound.service_port == 0 || inbound.service_port == inbound.port;
    let listen = if inbound.address.is_empty() { dataplane_address } else { &inbound.address };
    if !inbound.service_address.is_empty() && same_port && inbound.service_address == listen {
        let message = "serviceAddress and servicePort has to differ from address and port";
        violations.push(Violation::new(format!("{at}.serviceAddress"), message));
    }
    let known = |protocol: &str| PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(protocol));
    if let Some(protocol) = inbound.tags.get(PROTOCOL_TAG).filter(|protocol| !known(protocol)) {
        let message = format!("tag {PROTOCOL_TAG:?} has an invalid value {protocol:?}. {OFFERED_PROTOCOLS}");
        violations.push(Violation::new(format!("{at}.tags[{PROTOCOL_TAG:?}]"), message));
    }
    tags(&format!("{at}.tags"), &inbound.tags, TagValues::Plain, violations);
    if !inbound.protocol.is_empty() && !known(&inbound.protocol) {
        let message = format!("has an invalid value {:?}. {OFFERED_PROTOCOLS}", inbound.protocol);
        violations.push(Violation::new(format!("{at}.protocol"), message));
    }
    let Some(probe) = &inbound.service_probe else { return };
    positive_duration(&format!("{at}.serviceProbe.interval"), probe.interval.as_deref(), violations);
    positive_duration(&format!("{at}.serviceProbe.timeout"), probe.timeout.as_deref(), violations);
    for (field, threshold) in
        [("unhealthyThreshold", probe.unhealthy_threshold), ("healthyThreshold", probe.healthy_threshold)]
    {
        if threshold == Some(0) {
            violations.push(Violation::new(format!("{at}.serviceProbe.{field}"), "must have a positive value"));
        }
    }
}

fn outbound(at: &str, outbound: &Outbound, violations: &mut Vec<Violation>) {
    port(&format!("{at}.port"), outbound.port, violations);
    if !outbound.address.is_empty() && outbound.address.parse::<IpAddr>().is_err() {
        violations.push(Violation::new(format!("{at}.address"), "address has to be valid IP address"));
    }
    match &outbound.backend_ref {
        Some(backend) => {
            if !BACKEND_KINDS.contains(&backend.kind.as_str()) {
                let message = format!("invalid value. Available values are: {}", BACKEND_KINDS.join(","));
                violations.push(Violation::new(format!("{at}.backendRef.kind"), message));
            }
            if backend.name.is_empty() && backend.labels.is_empty() {
                let message = "either 'name' or 'labels' should be specified";
                violations.push(Violation::new(format!("{at}.backendRef"), message));
            }
            if backend.kind != "MeshExternalService" {
                port(&format!("{at}.backendRef.port"), backend.port, violations);
            }
            if !outbound.tags.is_empty() {
                let message = "both backendRef and tags/service cannot be defined";
                violations.push(Violation::new(format!("{at}.backendRef"), message));
            }
        }
        None => {
            let field = format!("{at}.tags");
            tags(&field, &outbound.tags, TagValues::Plain, violations);
            require_service(&field, &outbound.tags, violations);
        }
    }
}

fn listeners(networking: &Networking, violations: &mut Vec<Violation>) {
    let mut names: BTreeSet<&str> =
        networking.inbound.iter().map(|inbound| inbound.name.as_str()).filter(|name| !name.is_empty()).collect();
    let mut addresses: BTreeMap<(&str, u32), &str> = BTreeMap::new();
    for (index, listener) in networking.listeners.iter().enumerate() {
        let at = format!("networking.listeners[{index}]");
        if !matches!(listener.kind.as_str(), "ZoneIngress" | "ZoneEgress") {
            violations.push(Violation::new(format!("{at}.type"), "type must be ZoneIngress or ZoneEgress"));
        }
        address(&format!("{at}.address"), &listener.address, violations);
        port(&format!("{at}.port"), listener.port, violations);
        if !listener.name.is_empty() && !names.insert(&listener.name) {
            let message = format!("name {:?} must be unique across inbounds and listeners", listener.name);
            violations.push(Violation::new(format!("{at}.name"), message));
        }
        let socket = format!("{}:{}", listener.address, listener.port);
        if let Some(other) = addresses.insert((&listener.address, listener.port), &listener.kind) {
            let message = if other == listener.kind {
                format!("address:port {socket} is already used by another listener")
            } else {
                format!("address:port {socket} is used by listeners of different types")
            };
            violations.push(Violation::new(&at, message));
        }
        let taken = networking.inbound.iter().any(|inbound| {
            let listen = if inbound.address.is_empty() { &networking.address } else { &inbound.address };
            *listen == listener.address && inbound.port == listener.port
        });
        if taken {
            violations.push(Violation::new(&at, format!("address:port {socket} collides with an inbound listener")));
        }
    }
}

/// Checks that a Dataplane may join a mesh (Kuma `membership_validator.go`).
///
/// # Errors
/// Kuma's message: which tags are not allowed, or which restriction they match.
pub fn membership(mesh_name: &str, mesh: &Mesh, dataplane: &Dataplane) -> Result<(), String> {
    let Some(rules) = mesh.constraints.as_ref().and_then(|constraints| constraints.dataplane_proxy.as_ref()) else {
        return Ok(());
    };
    let networking = dataplane.networking.as_ref();
    let gateway = networking.and_then(|networking| networking.gateway.as_ref()).map(|gateway| &gateway.tags);
    for set in dataplane.inbounds().iter().map(|inbound| &inbound.tags).chain(gateway) {
        if !rules.requirements.is_empty() && !rules.requirements.iter().any(|rule| matches(rule, set)) {
            return Err(format!(
                "dataplane cannot be a member of mesh {mesh_name:?} because its tags {:?} does not fulfill any requirements \
                 defined on the Mesh",
                text(set)
            ));
        }
        if let Some(rule) = rules.restrictions.iter().find(|rule| matches(rule, set)) {
            return Err(format!(
                "dataplane cannot be a member of mesh {mesh_name:?} because its tags {:?} matches restricted tags {:?} \
                 defined on the Mesh",
                text(set),
                text(&rule.tags)
            ));
        }
    }
    Ok(())
}

fn matches(rule: &TagRule, set: &BTreeMap<String, String>) -> bool {
    rule.tags.iter().all(|(tag, required)| {
        let value = set.get(tag).map(String::as_str).unwrap_or_default();
        (required == "*" && !value.is_empty()) || required == value
    })
}

fn text(tags: &BTreeMap<String, String>) -> String {
    tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect::<Vec<_>>().join(" ")
}
