//! MeshServices from Dataplanes (Kuma `pkg/core/resources/apis/meshservice/generate`): one for each service by tag whose name can be
//! a part of a host name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Held, Input, Settings, is_local};
use crate::resource::{
    Dataplane, Inbound, InboundState, MeshService, MeshServicesMode, Meta, Resource, SERVICE_TAG, ServicePort,
    ServiceSelector, Spec, TargetPort,
};

/// The label of who made a resource, and its value here.
const MANAGED_BY: (&str, &str) = ("kuma.io/managed-by", "meshservice-generator");
/// The label that says since when a MeshService has no Dataplane.
const GRACE: &str = "kuma.io/deletion-grace-period-started-at";
/// Protocols that an inbound may name.
const PROTOCOLS: [&str; 7] = ["grpc", "http", "http2", "kafka", "mysql", "tcp", "tls"];

/// Brings the MeshServices that are made here up to date: creates, changes, and after a time of grace deletes them.
pub(super) fn generate(input: &Input, settings: &Settings, services: &mut Vec<Held>, now: DateTime<Utc>) {
    let mut wanted = if input.mode == MeshServicesMode::Disabled { BTreeMap::new() } else { from_dataplanes(input) };
    for held in services.iter_mut() {
        let Some(service) = &mut held.wanted else { continue };
        let ports = wanted.remove(&service.meta.name);
        let managed = service.meta.labels.get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1);
        if !managed || !is_local(&service.meta) {
            continue;
        }
        if input.mode == MeshServicesMode::Disabled {
            held.wanted = None;
            continue;
        }
        match ports {
            Some(candidates) => {
                let current = service.mesh_service().map(|service| service.ports.clone()).unwrap_or_default();
                // The ports stay as they are while one Dataplane has them; otherwise the oldest one says.
                let ports = if candidates.iter().any(|(_, ports)| *ports == current) {
                    current
                } else {
                    candidates.first().map(|(_, ports)| ports.clone()).unwrap_or_default()
                };
                conflicts(input, &service.meta.name, &candidates, &ports);
                service.meta.labels.remove(GRACE);
                service.meta.labels.extend(labels(&input.name, &service.meta.name, &settings.zone));
                let name = service.meta.name.clone();
                if let Spec::MeshService(spec) = &mut service.spec
                    && (spec.ports != ports || spec.selector != selector(&name))
                {
                    let spec = Arc::make_mut(spec);
                    spec.ports = ports;
                    spec.selector = selector(&name);
                }
            }
            None => match grace_began(&service.meta) {
                Some(began) if (now - began).to_std().is_ok_and(|passed| passed >= settings.grace) => {
                    held.wanted = None;
                }
                Some(_) => {}
                None => {
                    let text = now.to_rfc3339_opts(SecondsFormat::AutoSi, true);
                    service.meta.labels.insert(GRACE.to_owned(), text);
                }
            },
        }
    }
    for (name, candidates) in wanted {
        let Some((_, ports)) = candidates.first() else { continue };
        conflicts(input, &name, &candidates, ports);
        let mut meta = Meta::new(input.name.clone(), name.clone());
        meta.labels = labels(&input.name, &name, &settings.zone);
        let service = MeshService { selector: selector(&name), ports: ports.clone(), ..MeshService::default() };
        let resource = Resource::new(meta, Spec::MeshService(Arc::new(service)));
        services.push(Held { stored: None, wanted: Some(resource) });
    }
}

/// When the next grace period ends.
pub(super) fn deadline(services: &[Held], grace: Duration) -> Option<DateTime<Utc>> {
    let ends = |held: &Held| {
        let service = held.wanted.as_ref().filter(|service| is_local(&service.meta))?;
        grace_began(&service.meta)?.checked_add_signed(chrono::TimeDelta::from_std(grace).ok()?)
    };
    services.iter().filter_map(ends).min()
}

fn grace_began(meta: &Meta) -> Option<DateTime<Utc>> {
    meta.labels.get(GRACE)?.parse().ok()
}

fn labels(mesh: &str, name: &str, zone: &str) -> BTreeMap<String, String> {
    [
        MANAGED_BY,
        ("kuma.io/mesh", mesh),
        ("kuma.io/display-name", name),
        ("kuma.io/env", "universal"),
        ("kuma.io/zone", zone),
        ("kuma.io/origin", "zone"),
    ]
    .map(|(label, value)| (label.to_owned(), value.to_owned()))
    .into()
}

fn selector(service: &str) -> ServiceSelector {
    let tags = BTreeMap::from([(SERVICE_TAG.to_owned(), service.to_owned())]);
    ServiceSelector { dataplane_tags: Some(tags), ..ServiceSelector::default() }
}

/// For each service, which Dataplane says it has which ports; the oldest Dataplane first.
type Candidates = BTreeMap<String, Vec<(String, Vec<ServicePort>)>>;

fn from_dataplanes(input: &Input) -> Candidates {
    let mut candidates = Candidates::new();
    for (meta, dataplane) in &input.dataplanes {
        for (service, ports) in by_service(dataplane) {
            candidates.entry(service).or_default().push((meta.name.clone(), ports));
        }
    }
    candidates
}

fn by_service(dataplane: &Dataplane) -> BTreeMap<String, Vec<ServicePort>> {
    let mut services: BTreeMap<String, Vec<ServicePort>> = BTreeMap::new();
    for inbound in dataplane.inbounds().iter().filter(|inbound| inbound.state != InboundState::Ignored) {
        // What cannot be a label of a host name is known by its tag alone.
        let Some(service) = inbound.service().filter(|service| is_dns_label(service)) else { continue };
        let ports = services.entry(service.to_owned()).or_default();
        let port = port(inbound);
        if !ports.iter().any(|other| other.port == port.port && other.app_protocol == port.app_protocol) {
            ports.push(port);
        }
    }
    services
}

fn port(inbound: &Inbound) -> ServicePort {
    let protocol = inbound.protocol();
    ServicePort {
        name: inbound.section_name(),
        port: inbound.port,
        target_port: Some(TargetPort::Number(inbound.port)),
        app_protocol: if PROTOCOLS.contains(&protocol.as_str()) { protocol } else { "tcp".to_owned() },
    }
}

/// RFC 1035 label: at most 63 lower case letters, digits and dashes, beginning with a letter.
fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|b| *b != b'-')
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn conflicts(input: &Input, service: &str, candidates: &[(String, Vec<ServicePort>)], ports: &[ServicePort]) {
    let differ: Vec<&str> =
        candidates.iter().filter(|(_, other)| other != ports).map(|(name, _)| name.as_str()).collect();
    if !differ.is_empty() {
        tracing::warn!(
            mesh = input.name,
            service,
            dataplanes = differ.join(","),
            "port conflict: ports must be the same in all Dataplanes of a MeshService; those of the others are used"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::is_dns_label;

    #[test]
    fn which_services_get_a_mesh_service() {
        let long = "a".repeat(63);
        for (name, expected) in [
            ("web", true),
            ("web-2", true),
            (&long, true),
            (&format!("{long}a"), false),
            ("2web", false),
            ("web-", false),
            ("-web", false),
            ("Web", false),
            ("web_shop_svc_80", false),
            ("web.shop", false),
            ("", false),
        ] {
            assert_eq!(is_dns_label(name), expected, "{name}");
        }
    }
}
