//! Host names of services (Kuma `pkg/core/resources/apis/hostnamegenerator/hostname`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Held, effective_labels, is_local};
use crate::resource::{
    Condition, HostnameAddress, HostnameGenerator, HostnameGeneratorRef, HostnameGeneratorStatus, LabelSelector, Meta,
    Resource, Spec, TemplateData, is_hostname, render,
};

/// Gives the services of one kind and one mesh the names that the generators make. The generator that comes first wins: those of this
/// zone, then the older ones; and of two services the older one.
pub(super) fn name(generators: &[Resource], zone: &str, services: &mut [Held]) {
    let mut generators: Vec<(&Meta, &HostnameGenerator)> = generators
        .iter()
        .filter_map(|resource| Some((&resource.meta, resource.hostname_generator()?.as_ref())))
        .collect();
    generators.sort_by_key(|(meta, _)| (!is_local(meta), meta.creation_time, meta.name.clone()));
    let mut order: Vec<usize> = (0..services.len()).collect();
    order.sort_by_key(|index| {
        // What is created in this round is the youngest.
        let held = services.get(*index);
        let created = held.and_then(|held| held.stored.as_ref()).map(|stored| stored.meta.creation_time);
        let name = held.and_then(|held| held.wanted.as_ref()).map(|wanted| wanted.meta.name.clone());
        (created.is_none(), created, name)
    });
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let mut named: BTreeMap<usize, Names> = BTreeMap::new();
    for (meta, generator) in generators {
        for index in &order {
            let Some(service) = services.get(*index).and_then(|held| held.wanted.as_ref()) else { continue };
            let Some(selector) = selector(generator, service) else { continue };
            let labels = effective_labels(&service.meta, zone);
            if generator.extension.is_some() || !selector.matches(&labels) {
                continue;
            }
            let names = named.entry(*index).or_default();
            let outcome = match evaluate(generator, service, &labels) {
                Err(message) => Err(("TemplateError", message)),
                Ok(name) => match taken.get(&name) {
                    Some(other) if *other != service.meta.name => {
                        let message = format!("Hostname collision with {}: {other}", service.kind());
                        Err(("Collision", message))
                    }
                    _ => Ok(name),
                },
            };
            if let Ok(name) = &outcome {
                taken.insert(name.clone(), service.meta.name.clone());
            }
            names.add(&meta.name, outcome);
        }
    }
    for (index, held) in services.iter_mut().enumerate() {
        if let Some(service) = &mut held.wanted {
            named.remove(&index).unwrap_or_default().put(&mut service.spec);
        }
    }
}

fn selector<'a>(generator: &'a HostnameGenerator, service: &Resource) -> Option<&'a LabelSelector> {
    match &service.spec {
        Spec::MeshService(_) => generator.selector.mesh_service.as_ref(),
        Spec::MeshExternalService(_) => generator.selector.mesh_external_service.as_ref(),
        Spec::MeshMultiZoneService(_) => generator.selector.mesh_multi_zone_service.as_ref(),
        _ => None,
    }
}

fn evaluate(
    generator: &HostnameGenerator,
    service: &Resource,
    labels: &BTreeMap<String, String>,
) -> Result<String, String> {
    let label = |label: &str| labels.get(label).map(String::as_str).unwrap_or_default();
    let data = TemplateData {
        name: &service.meta.name,
        display_name: label("kuma.io/display-name"),
        namespace: label("k8s.kuma.io/namespace"),
        mesh: &service.meta.mesh,
        zone: label("kuma.io/zone"),
        // Only what the resource really has can be asked for by name.
        labels: &service.meta.labels,
    };
    let name = render(&generator.template, &data)?;
    if is_hostname(&name) { Ok(name) } else { Err(format!("generated hostname {name:?} is not a valid DNS name")) }
}

/// The names of one service and what became of each generator.
#[derive(Default)]
struct Names {
    addresses: Vec<HostnameAddress>,
    generators: Vec<HostnameGeneratorStatus>,
}

impl Names {
    fn add(&mut self, generator: &str, outcome: Result<String, (&str, String)>) {
        let hostname_generator_ref = HostnameGeneratorRef { core_name: generator.to_owned() };
        let (status, reason, message) = match &outcome {
            Ok(_) => ("True", "Generated", String::new()),
            Err((reason, message)) => ("False", *reason, message.clone()),
        };
        let condition =
            Condition { kind: "Generated".to_owned(), status: status.to_owned(), reason: reason.to_owned(), message };
        self.generators.push(HostnameGeneratorStatus {
            hostname_generator_ref: hostname_generator_ref.clone(),
            conditions: vec![condition],
        });
        if let Ok(hostname) = outcome {
            let origin = "HostnameGenerator".to_owned();
            self.addresses.push(HostnameAddress { hostname, origin, hostname_generator_ref });
        }
    }

    /// Puts them into the status.
    fn put(mut self, spec: &mut Spec) {
        self.addresses.sort_by(|a, b| a.hostname_generator_ref.core_name.cmp(&b.hostname_generator_ref.core_name));
        self.generators.sort_by(|a, b| a.hostname_generator_ref.core_name.cmp(&b.hostname_generator_ref.core_name));
        macro_rules! put {
            ($service:expr) => {
                if $service.status.addresses != self.addresses || $service.status.hostname_generators != self.generators
                {
                    let status = &mut Arc::make_mut($service).status;
                    status.addresses = self.addresses;
                    status.hostname_generators = self.generators;
                }
            };
        }
        match spec {
            Spec::MeshService(service) => put!(service),
            Spec::MeshExternalService(service) => put!(service),
            Spec::MeshMultiZoneService(service) => put!(service),
            _ => {}
        }
    }
}
