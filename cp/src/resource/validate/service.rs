//! Rules for MeshService, MeshMultiZoneService and HostnameGenerator (Kuma
//! `pkg/core/resources/apis/{meshservice,meshmultizoneservice,hostnamegenerator}`).

use std::collections::BTreeSet;

use super::{SUBDOMAIN_MESSAGE, Violation, is_subdomain, port, short_name};
use crate::resource::hostname::check;
use crate::resource::{HostnameGenerator, MeshMultiZoneService, MeshService, Meta, ServicePort, TargetPort};

/// What a port may speak (Kuma `SupportedProtocols`).
const PROTOCOLS: [&str; 5] = ["grpc", "http", "http2", "kafka", "tcp"];

pub(super) fn mesh_service(service: &MeshService, meta: &Meta, violations: &mut Vec<Violation>) {
    short_name(meta, violations);
    let selector = &service.selector;
    let selectors =
        [selector.dataplane_tags.is_some(), selector.dataplane_ref.is_some(), selector.dataplane_labels.is_some()];
    if selectors.into_iter().filter(|set| *set).count() > 1 {
        let message = "must specify only one of: dataplaneTags, dataplaneRef, or dataplaneLabels";
        violations.push(Violation::new("spec.selector", message));
    }
    ports(&service.ports, violations);
}

pub(super) fn mesh_multi_zone_service(service: &MeshMultiZoneService, violations: &mut Vec<Violation>) {
    if service.selector.mesh_service.match_labels.is_empty() {
        violations.push(Violation::new("spec.selector.meshService.matchLabels", "cannot be empty"));
    }
    if service.ports.is_empty() {
        violations.push(Violation::new("spec.ports", "cannot be empty"));
    }
    ports(&service.ports, violations);
}

/// Kuma leaves most of this to the schema of its Kubernetes resource.
fn ports(ports: &[ServicePort], violations: &mut Vec<Violation>) {
    let mut used = BTreeSet::new();
    for (index, service_port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        port(&format!("{at}.port"), service_port.port, violations);
        match &service_port.target_port {
            Some(TargetPort::Number(number)) => port(&format!("{at}.targetPort"), *number, violations),
            Some(TargetPort::Name(name)) if name.is_empty() => {
                violations.push(Violation::new(format!("{at}.targetPort"), "must not be empty"));
            }
            Some(TargetPort::Name(_)) | None => {}
        }
        let protocol = service_port.app_protocol.to_ascii_lowercase();
        if !protocol.is_empty() && !PROTOCOLS.contains(&protocol.as_str()) {
            let message = format!("\"appProtocol\" must be one of [{}]", PROTOCOLS.join(", "));
            violations.push(Violation::new(format!("{at}.appProtocol"), message));
        }
        if !used.insert((service_port.port, protocol)) {
            violations.push(Violation::new(&at, "port and appProtocol are already used by another port"));
        }
    }
}

pub(super) fn hostname_generator(generator: &HostnameGenerator, violations: &mut Vec<Violation>) {
    let selector = &generator.selector;
    let selectors = [
        selector.mesh_service.is_some(),
        selector.mesh_external_service.is_some(),
        selector.mesh_multi_zone_service.is_some(),
    ];
    if selectors.into_iter().filter(|set| *set).count() != 1 {
        let message = "exact one selector (meshService, meshExternalService, meshMultiZoneService) must be defined";
        violations.push(Violation::new("spec.selector", message));
    }
    if generator.template.is_empty() {
        violations.push(Violation::new("spec.template", "must not be empty"));
    } else {
        match check(&generator.template) {
            Err(reason) => {
                violations.push(Violation::new("spec.template", format!("couldn't parse template: {reason}")))
            }
            Ok(rendered) if rendered.len() > 253 || !is_subdomain(&rendered) => {
                let message =
                    format!("template renders to {rendered:?} which is not a valid DNS name: {SUBDOMAIN_MESSAGE}");
                violations.push(Violation::new("spec.template", message));
            }
            Ok(_) => {}
        }
    }
    if generator.extension.as_ref().is_some_and(|extension| extension.kind.is_empty()) {
        violations.push(Violation::new("spec.extension.type", "must not be empty"));
    }
}

pub(super) fn hostname_generator_without_effect(generator: &HostnameGenerator) -> Vec<String> {
    let extension = generator.extension.as_ref().map(|extension| {
        let kind = &extension.kind;
        format!("spec.extension: this control plane has no extension {kind:?}; the generator makes no names")
    });
    extension.into_iter().collect()
}
