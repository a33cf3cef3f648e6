//! Identifiers of resources that do not change when a resource is synchronised (Kuma `pkg/core/kri`).

use std::fmt;

use super::select::display_name;
use crate::resource::{Meta, TargetRef, TargetRefKind};

/// A resource, or a part of one: where it comes from, and what it is called there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId {
    /// The kind.
    pub kind: TargetRefKind,
    /// The mesh; empty for a mesh itself.
    pub mesh: String,
    /// The zone; empty for what comes from the global control plane.
    pub zone: String,
    /// The Kubernetes namespace; empty elsewhere.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The part, such as the name of a port; empty for the whole.
    pub section: String,
}

impl ResourceId {
    /// The resource with this metadata.
    pub fn of(kind: TargetRefKind, meta: &Meta) -> ResourceId {
        let label = |name: &str| meta.labels.get(name).cloned().unwrap_or_default();
        ResourceId {
            kind,
            mesh: meta.mesh.clone(),
            zone: label("kuma.io/zone"),
            namespace: label("k8s.kuma.io/namespace"),
            name: display_name(meta).clone(),
            section: String::new(),
        }
    }

    /// The mesh of that name.
    pub fn of_mesh(name: &str) -> ResourceId {
        ResourceId {
            kind: TargetRefKind::Mesh,
            mesh: String::new(),
            zone: String::new(),
            namespace: String::new(),
            name: name.to_owned(),
            section: String::new(),
        }
    }

    /// What `target_ref`, as the resource `origin` has it, names: something from the same zone and, unless it says otherwise, the same
    /// namespace (Kuma `TargetRefToKRI`).
    pub fn referred(kind: TargetRefKind, origin: &Meta, target_ref: &TargetRef) -> ResourceId {
        if kind == TargetRefKind::Mesh {
            return ResourceId::of_mesh(&origin.mesh);
        }
        let mut id = ResourceId::of(kind, origin);
        id.name = target_ref.name.clone().unwrap_or_default();
        if let Some(namespace) = target_ref.namespace.as_ref().filter(|namespace| !namespace.is_empty()) {
            id.namespace.clone_from(namespace);
        }
        id
    }

    /// The same, but this part of it.
    #[must_use]
    pub fn with_section(&self, section: &str) -> ResourceId {
        ResourceId { section: section.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResourceId { kind, mesh, zone, namespace, name, section } = self;
        let short = kind.short().unwrap_or_default();
        write!(f, "kri_{short}_{mesh}_{zone}_{namespace}_{name}_{section}")
    }
}
