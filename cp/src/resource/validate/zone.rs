//! Rules for ZoneIngress and ZoneEgress (Kuma `zone_ingress_validator.go`, `zone_egress_validator.go`).

use std::net::IpAddr;

use super::{TagValues, Violation, address, port, require_service, tags};
use crate::resource::{Admin, ZoneEgress, ZoneIngress};

pub(super) fn ingress(ingress: &ZoneIngress, violations: &mut Vec<Violation>) {
    let networking = ingress.networking.clone().unwrap_or_default();
    admin(networking.admin.as_ref(), &networking.address, networking.port, violations);
    if networking.advertised_address.is_empty() && networking.advertised_port != 0 {
        let message = "has to be defined with advertisedPort";
        violations.push(Violation::new("networking.advertisedAddress", message));
    }
    if networking.advertised_port == 0 && !networking.advertised_address.is_empty() {
        let message = "has to be defined with advertisedAddress";
        violations.push(Violation::new("networking.advertisedPort", message));
    }
    if !networking.address.is_empty() {
        address("networking.address", &networking.address, violations);
    }
    if !networking.advertised_address.is_empty() {
        address("networking.advertisedAddress", &networking.advertised_address, violations);
    }
    port("networking.port", networking.port, violations);
    if networking.advertised_port != 0 {
        port("networking.advertisedPort", networking.advertised_port, violations);
    }
    for (index, service) in ingress.available_services.iter().enumerate() {
        // Kuma's field is spelt in the singular.
        let at = format!("availableService[{index}].tags");
        tags(&at, &service.tags, TagValues::Plain, violations);
        require_service(&at, &service.tags, violations);
    }
}

pub(super) fn egress(egress: &ZoneEgress, violations: &mut Vec<Violation>) {
    let networking = egress.networking.clone().unwrap_or_default();
    admin(networking.admin.as_ref(), &networking.address, networking.port, violations);
    if !networking.address.is_empty() {
        address("networking.address", &networking.address, violations);
    }
    port("networking.port", networking.port, violations);
}

/// The admin endpoint listens on the loopback interface, where the proxy itself may listen too.
fn admin(admin: Option<&Admin>, address: &str, port: u32, violations: &mut Vec<Violation>) {
    let on_loopback = address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    if admin.is_some_and(|admin| admin.port != 0 && admin.port == port) && on_loopback {
        violations.push(Violation::new("networking.admin.port", "must differ from port"));
    }
}
