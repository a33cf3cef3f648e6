//! Which destinations a Dataplane restricts itself to (`reachableServices`, `reachableBackends`), and references to service resources.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::mesh::{Backend, MeshView};
use crate::resource::{BackendRef, MeshServicesMode, Networking};

/// What a Dataplane restricts itself to.
pub(super) struct Reachable<'a> {
    /// Services by tag; none means all.
    services: Option<&'a Vec<String>>,
    /// Keys of service resources; absent means all.
    backends: Option<BTreeSet<String>>,
    mode: MeshServicesMode,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReachableBackends {
    refs: Vec<BackendRef>,
}

impl<'a> Reachable<'a> {
    /// What the Dataplane says. What cannot be read restricts it to nothing, with a warning.
    pub(super) fn of(
        view: &MeshView,
        name: &str,
        networking: &'a Networking,
        warnings: &mut BTreeSet<String>,
    ) -> Reachable<'a> {
        let settings = networking.transparent_proxying.as_ref();
        let services = settings.map(|settings| &settings.reachable_services).filter(|services| !services.is_empty());
        let backends = settings.and_then(|settings| settings.reachable_backends.as_ref());
        let backends = backends.map(|backends| match ReachableBackends::deserialize(backends) {
            Ok(backends) => {
                let all = view.backends.iter();
                let named = all.filter(|(_, backend)| backends.refs.iter().any(|reference| refers(reference, backend)));
                named.map(|(key, _)| key.clone()).collect()
            }
            Err(error) => {
                warnings.insert(format!(
                    "Dataplane {name:?}: networking.transparentProxying.reachableBackends: {error}; no service resource is reached"
                ));
                BTreeSet::new()
            }
        });
        Reachable { services, backends, mode: view.mesh.services_mode() }
    }

    /// Whether the Dataplane calls this service by its tags.
    pub(super) fn service(&self, service: &String) -> bool {
        self.services.is_none_or(|services| services.contains(service))
    }

    /// Whether the Dataplane calls this port of a service resource.
    pub(super) fn backend(&self, key: &str) -> bool {
        match &self.backends {
            Some(backends) => backends.contains(key),
            // Who lists services by tag wants no more than these.
            None => self.services.is_none() && self.mode != MeshServicesMode::ReachableBackends,
        }
    }
}

/// The port of a service resource that an outbound refers to; the first one if it does not say which.
pub(super) fn referenced<'a>(view: &'a MeshView, reference: &BackendRef) -> Option<(&'a str, &'a Backend)> {
    view.backends.iter().find(|(_, backend)| refers(reference, backend)).map(|(key, backend)| (key.as_str(), backend))
}

/// Whether a reference means this port: by name it means a resource of this zone or of the global control plane, by labels any.
fn refers(reference: &BackendRef, backend: &Backend) -> bool {
    let BackendRef { kind, name, port, labels } = reference;
    let here = backend.is_local || backend.zone.is_empty();
    let by_name = !name.is_empty() && *name == backend.name && here;
    let by_labels = !labels.is_empty() && labels.iter().all(|(label, value)| backend.labels.get(label) == Some(value));
    kind == backend.kind.name() && (by_name || by_labels) && (*port == 0 || *port == backend.port)
}
