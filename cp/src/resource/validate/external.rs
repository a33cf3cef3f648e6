//! Rules for ExternalService and MeshExternalService (Kuma `external_service_validator.go`,
//! `pkg/core/resources/apis/meshexternalservice`).

use std::net::IpAddr;

use super::{TagValues, Violation, is_dns_name, one_of, port, require_service, short_name, tags};
use crate::resource::{
    DataSource, ExternalService, MeshExternalService, MeshExternalTls, Meta, PROTOCOL_TAG, SERVICE_TAG, TlsVersions,
};

const VERSIONS: [&str; 5] = ["TLSAuto", "TLS10", "TLS11", "TLS12", "TLS13"];

pub(super) fn external_service(service: &ExternalService, violations: &mut Vec<Violation>) {
    match &service.networking {
        None => violations.push(Violation::new("networking", "should have networking")),
        Some(networking) => {
            address(&networking.address, violations);
            if let Some(tls) = &networking.tls {
                if tls.server_name.as_deref() == Some("") {
                    violations.push(Violation::new("networking.tls.serverName", "cannot be empty"));
                }
                for (field, source) in
                    [("caCert", &tls.ca_cert), ("clientCert", &tls.client_cert), ("clientKey", &tls.client_key)]
                {
                    data_source(&format!("networking.tls.{field}"), source.as_ref(), violations);
                }
            }
        }
    }
    let known = ["grpc", "http", "http2", "kafka", "mysql", "tcp", "tls"];
    if let Some(protocol) =
        service.tags.get(PROTOCOL_TAG).filter(|protocol| !known.contains(&protocol.to_ascii_lowercase().as_str()))
    {
        let message = format!(
            "tag {PROTOCOL_TAG:?} has an invalid value {protocol:?}. Allowed values: grpc, http, http2, kafka, tcp"
        );
        violations.push(Violation::new(format!("tags[{PROTOCOL_TAG:?}]"), message));
    }
    tags("tags", &service.tags, TagValues::Plain, violations);
    require_service("tags", &service.tags, violations);
    if let (Some(name), Some((host, _))) = (service.service(), service.host_port())
        && name == host
    {
        let message = "cannot be the same as networking.address";
        violations.push(Violation::new(format!("tags[{SERVICE_TAG:?}]"), message));
    }
}

fn address(address: &str, violations: &mut Vec<Violation>) {
    let field = "networking.address";
    if address.is_empty() {
        violations.push(Violation::new(field, "address can't be empty"));
        return;
    }
    let Some((host, port_text)) = address.rsplit_once(':') else {
        violations.push(Violation::new(field, "unable to parse address"));
        return;
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_ip = bare.unwrap_or(host).parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == bare.is_some());
    if !is_ip && (bare.is_some() || !is_dns_name(host)) {
        violations.push(Violation::new(field, "address has to be a valid IP address or a domain name"));
    }
    match port_text.parse::<u32>() {
        Ok(number) => port(field, number, violations),
        Err(_) => violations.push(Violation::new(field, "unable to parse port in address")),
    }
}

fn data_source(field: &str, source: Option<&DataSource>, violations: &mut Vec<Violation>) {
    let Some(source) = source else { return };
    let given = [&source.secret, &source.file, &source.inline, &source.inline_string];
    if given.into_iter().all(|text| text.as_deref().unwrap_or_default().is_empty()) {
        violations.push(Violation::new(field, "data source cannot be empty"));
    }
}

pub(super) fn external_service_without_effect(service: &ExternalService) -> Vec<String> {
    let tls = service.networking.as_ref().and_then(|networking| networking.tls.as_ref());
    let renegotiation = tls.and_then(|tls| tls.allow_renegotiation) == Some(true);
    renegotiation
        .then(|| "networking.tls.allowRenegotiation: without effect, the proxy never renegotiates".to_owned())
        .into_iter()
        .collect()
}

pub(super) fn mesh_external_service(service: &MeshExternalService, meta: &Meta, violations: &mut Vec<Violation>) {
    short_name(meta, violations);
    let matches = &service.matches;
    if !matches!(matches.kind.as_str(), "" | "HostnameGenerator") {
        let message = format!("unrecognized type '{}' - only 'HostnameGenerator' is supported", matches.kind);
        violations.push(Violation::new("spec.match.type", message));
    }
    let valid_port = |number: u32| (1..=65535).contains(&number);
    if !valid_port(matches.port) {
        violations.push(Violation::new("spec.match.port", "port must be a valid (1-65535)"));
    }
    if !matches.protocol.is_empty() {
        let protocols = ["tcp", "grpc", "http", "http2"];
        one_of("spec.match.protocol".to_owned(), &matches.protocol, &protocols, violations);
    }
    match &service.extension {
        Some(extension) if extension.kind.is_empty() => {
            violations.push(Violation::new("spec.extension.type", "must not be empty"));
        }
        Some(_) => {}
        None => {
            for (index, endpoint) in service.endpoints.iter().enumerate() {
                let at = format!("spec.endpoints[{index}]");
                if endpoint.address.parse::<IpAddr>().is_err() && !is_dns_name(&endpoint.address) {
                    let message = "address has to be a valid IP or hostname";
                    violations.push(Violation::new(format!("{at}.address"), message));
                } else if !valid_port(endpoint.port) {
                    violations.push(Violation::new(format!("{at}.port"), "port must be a valid (1-65535)"));
                }
            }
            if let Some(tls) = &service.tls {
                mesh_external_tls(tls, violations);
            }
        }
    }
}

fn mesh_external_tls(tls: &MeshExternalTls, violations: &mut Vec<Violation>) {
    if let Some(version) = &tls.version {
        versions(version, violations);
    }
    let Some(verification) = &tls.verification else { return };
    let at = "spec.tls.verification";
    if verification.server_name.as_deref().is_some_and(|name| !is_dns_name(name)) {
        violations.push(Violation::new(format!("{at}.serverName"), "must be a valid DNS name"));
    }
    if !verification.mode.is_empty() {
        let modes = ["SkipSAN", "SkipCA", "SkipAll", "Secured"];
        one_of(format!("{at}.mode"), &verification.mode, &modes, violations);
    }
    for (index, san) in verification.subject_alt_names.iter().enumerate() {
        if !san.kind.is_empty() {
            one_of(format!("{at}.subjectAltNames[{index}].type"), &san.kind, &["Prefix", "Exact"], violations);
        }
    }
    match (&verification.client_cert, &verification.client_key) {
        (Some(_), None) => {
            let message = "must be defined when clientCert is defined";
            violations.push(Violation::new(format!("{at}.clientKey"), message));
        }
        (None, Some(_)) => {
            let message = "must be defined when clientKey is defined";
            violations.push(Violation::new(format!("{at}.clientCert"), message));
        }
        (None, None) | (Some(_), Some(_)) => {}
    }
    for (field, source) in [
        ("caCert", &verification.ca_cert),
        ("clientCert", &verification.client_cert),
        ("clientKey", &verification.client_key),
    ] {
        data_source(&format!("{at}.{field}"), source.as_ref(), violations);
    }
}

fn versions(version: &TlsVersions, violations: &mut Vec<Violation>) {
    for (field, value) in [("min", &version.min), ("max", &version.max)] {
        if let Some(value) = value {
            one_of(format!("spec.tls.version.{field}"), value, &VERSIONS, violations);
        }
    }
    // The position in the list is the order, and the first one stands for any.
    let rank = |value: &Option<String>| {
        let position = VERSIONS.iter().position(|known| Some(*known) == value.as_deref());
        position.filter(|position| *position > 0)
    };
    if let (Some(min), Some(max)) = (rank(&version.min), rank(&version.max))
        && min > max
    {
        violations.push(Violation::new("spec.tls.version.min", "min version must be lower than max"));
    }
}

pub(super) fn mesh_external_service_without_effect(service: &MeshExternalService) -> Vec<String> {
    let mut fields = Vec::new();
    if let Some(extension) = &service.extension {
        let kind = &extension.kind;
        fields.push(format!(
            "spec.extension: this control plane has no extension {kind:?}; the service has no endpoints"
        ));
    }
    if service.tls.as_ref().is_some_and(|tls| tls.allow_renegotiation) {
        fields.push("spec.tls.allowRenegotiation: without effect, the proxy never renegotiates".to_owned());
    }
    fields
}
