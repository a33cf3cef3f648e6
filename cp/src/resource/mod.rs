//! Kuma's resources: their kinds, keys, metadata and specifications.
//!
//! A [`Resource`] is metadata plus a closed enum of specifications. `document` turns Kuma's universal YAML or JSON into
//! one and back, `validate` holds the rules that Kuma applies before it stores one.

mod dataplane;
mod document;
mod duration;
mod insight;
mod mesh;
mod permission;
mod secret;
pub mod validate;
mod wire;

pub use dataplane::{
    Admin, BackendRef, Dataplane, Gateway, GatewayType, Health, Inbound, InboundState, Listener, Networking, Outbound,
    ServiceProbe, TransparentProxying,
};
pub use document::{ParseError, Parsed, documents, parse};
pub(crate) use document::{spec_from_value, spec_to_value, time};
pub use duration::{parse_duration, parse_go_duration};
pub use insight::{
    DataplaneInsight, DiscoveryStatus, DpStatus, EnvoyVersion, InsightVersion, KumaDpVersion, MtlsInsight,
    ServiceStats, Subscription,
};
pub use mesh::{
    BuiltinCaConf, CaBackend, Constraints, DataplaneConstraints, DpCert, Mesh, MeshNetworking, MeshOutbound,
    MeshServices, MeshServicesMode, Mtls, MtlsMode, RootChain, Rotation, Routing, TagRule,
};
pub use permission::{
    Action, From, FromDefault, MeshTrafficPermission, Rule, RuleDefault, RuleMatch, SniMatch, SpiffeIdMatch,
    SpiffeIdMatchType, TargetRef, TargetRefKind,
};
pub use secret::Secret;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};

/// The tag that names the service of an inbound or outbound; mandatory on every inbound (Kuma `ServiceTag`).
pub const SERVICE_TAG: &str = "kuma.io/service";
/// The tag that names the application protocol of an inbound (Kuma `ProtocolTag`).
pub const PROTOCOL_TAG: &str = "kuma.io/protocol";
/// The label that carries the workload a Dataplane belongs to (Kuma `WorkloadLabel`).
pub const WORKLOAD_LABEL: &str = "kuma.io/workload";

/// The kinds of resource that this control plane stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A mesh: the unit of trust and of isolation. Global.
    Mesh,
    /// One workload proxy.
    Dataplane,
    /// What the control plane knows of a connected proxy; written by the control plane only.
    DataplaneInsight,
    /// Who may call whom.
    MeshTrafficPermission,
    /// Secret bytes of one mesh: CA keys, signing keys.
    Secret,
    /// Secret bytes of the control plane itself. Global.
    GlobalSecret,
}

impl Kind {
    /// Every kind, in the order in which lists and help texts show them.
    pub const ALL: [Kind; 6] = [
        Kind::Mesh,
        Kind::Dataplane,
        Kind::DataplaneInsight,
        Kind::MeshTrafficPermission,
        Kind::Secret,
        Kind::GlobalSecret,
    ];

    /// The `type` of the resource in a document, such as `Dataplane`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Mesh => "Mesh",
            Kind::Dataplane => "Dataplane",
            Kind::DataplaneInsight => "DataplaneInsight",
            Kind::MeshTrafficPermission => "MeshTrafficPermission",
            Kind::Secret => "Secret",
            Kind::GlobalSecret => "GlobalSecret",
        }
    }

    /// The kind of that `type`, if this control plane has it.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The path segment in the REST API, such as `dataplanes`.
    pub fn path(self) -> &'static str {
        match self {
            Kind::Mesh => "meshes",
            Kind::Dataplane => "dataplanes",
            Kind::DataplaneInsight => "dataplane-insights",
            Kind::MeshTrafficPermission => "meshtrafficpermissions",
            Kind::Secret => "secrets",
            Kind::GlobalSecret => "globalsecrets",
        }
    }

    /// The name that shikactl takes for one resource, such as `dataplane`.
    pub fn singular(self) -> &'static str {
        match self {
            Kind::Mesh => "mesh",
            Kind::Dataplane => "dataplane",
            Kind::DataplaneInsight => "dataplane-insight",
            Kind::MeshTrafficPermission => "meshtrafficpermission",
            Kind::Secret => "secret",
            Kind::GlobalSecret => "globalsecret",
        }
    }

    /// Kuma's short name in a resource identifier (`kri_dp_…`), where the kind has one.
    pub fn short(self) -> Option<&'static str> {
        match self {
            Kind::Mesh => Some("m"),
            Kind::Dataplane => Some("dp"),
            Kind::MeshTrafficPermission => Some("mtp"),
            Kind::DataplaneInsight | Kind::Secret | Kind::GlobalSecret => None,
        }
    }

    /// Whether resources of this kind live in a mesh.
    pub fn in_mesh(self) -> bool {
        match self {
            Kind::Mesh | Kind::GlobalSecret => false,
            Kind::Dataplane | Kind::DataplaneInsight | Kind::MeshTrafficPermission | Kind::Secret => true,
        }
    }

    /// Whether only administrators may read or write resources of this kind.
    pub fn admin_only(self) -> bool {
        matches!(self, Kind::Secret | Kind::GlobalSecret)
    }

    /// Whether the REST API refuses to write this kind: the control plane alone does.
    pub fn read_only(self) -> bool {
        matches!(self, Kind::DataplaneInsight)
    }

    /// Whether the fields of the specification stand under `spec` (Kuma's plugin kinds) or beside the metadata.
    pub fn has_spec_field(self) -> bool {
        matches!(self, Kind::MeshTrafficPermission)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What identifies a resource in the store. Compared as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// The kind.
    pub kind: Kind,
    /// The mesh; empty for global kinds.
    pub mesh: String,
    /// The name, unique within kind and mesh.
    pub name: String,
}

impl ResourceKey {
    /// A key of a resource in a mesh.
    pub fn new(kind: Kind, mesh: impl Into<String>, name: impl Into<String>) -> ResourceKey {
        ResourceKey { kind, mesh: mesh.into(), name: name.into() }
    }

    /// A key of a resource of a global kind.
    pub fn global(kind: Kind, name: impl Into<String>) -> ResourceKey {
        ResourceKey { kind, mesh: String::new(), name: name.into() }
    }

    /// Kuma's resource identifier, for example `kri_dp_default___web-1_`, or `None` for kinds without a short name.
    ///
    /// Zone and namespace are empty: they only exist for resources that were synchronised or come from Kubernetes.
    pub fn kri(&self, labels: &BTreeMap<String, String>) -> Option<String> {
        let short = self.kind.short()?;
        let part = |label: &str| labels.get(label).map(String::as_str).unwrap_or_default();
        let name = labels.get("kuma.io/display-name").unwrap_or(&self.name);
        Some(format!("kri_{short}_{}_{}_{}_{name}_", self.mesh, part("kuma.io/zone"), part("k8s.kuma.io/namespace")))
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mesh.is_empty() {
            write!(f, "{} {:?}", self.kind, self.name)
        } else {
            write!(f, "{} {:?} in mesh {:?}", self.kind, self.name, self.mesh)
        }
    }
}

/// What every resource carries besides its specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The mesh; empty for global kinds.
    pub mesh: String,
    /// The name, unique within kind and mesh.
    pub name: String,
    /// Labels, as the user gave them.
    pub labels: BTreeMap<String, String>,
    /// When the resource was first stored. Set by the store.
    pub creation_time: DateTime<Utc>,
    /// When the resource was last stored. Set by the store.
    pub modification_time: DateTime<Utc>,
    /// Counts the writes of this resource, from 1; 0 in a resource that was never stored. Set by the store.
    pub version: u64,
}

impl Meta {
    /// Metadata of a resource that was not stored yet.
    pub fn new(mesh: impl Into<String>, name: impl Into<String>) -> Meta {
        Meta {
            mesh: mesh.into(),
            name: name.into(),
            labels: BTreeMap::new(),
            creation_time: DateTime::UNIX_EPOCH,
            modification_time: DateTime::UNIX_EPOCH,
            version: 0,
        }
    }
}

/// The specification of a resource, by kind. Shared, so that a list of ten thousand resources copies none of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// See [`Mesh`].
    Mesh(Arc<Mesh>),
    /// See [`Dataplane`].
    Dataplane(Arc<Dataplane>),
    /// See [`DataplaneInsight`].
    DataplaneInsight(Arc<DataplaneInsight>),
    /// See [`MeshTrafficPermission`].
    MeshTrafficPermission(Arc<MeshTrafficPermission>),
    /// See [`Secret`].
    Secret(Arc<Secret>),
    /// See [`Secret`]; of the control plane itself.
    GlobalSecret(Arc<Secret>),
}

/// A resource: metadata and specification.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// What every resource carries.
    pub meta: Meta,
    /// What is particular to its kind.
    pub spec: Spec,
}

impl Resource {
    /// A resource that was not stored yet.
    pub fn new(meta: Meta, spec: Spec) -> Resource {
        Resource { meta, spec }
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        match self.spec {
            Spec::Mesh(_) => Kind::Mesh,
            Spec::Dataplane(_) => Kind::Dataplane,
            Spec::DataplaneInsight(_) => Kind::DataplaneInsight,
            Spec::MeshTrafficPermission(_) => Kind::MeshTrafficPermission,
            Spec::Secret(_) => Kind::Secret,
            Spec::GlobalSecret(_) => Kind::GlobalSecret,
        }
    }

    /// The key in the store.
    pub fn key(&self) -> ResourceKey {
        ResourceKey { kind: self.kind(), mesh: self.meta.mesh.clone(), name: self.meta.name.clone() }
    }

    /// The Mesh, if it is one.
    pub fn mesh(&self) -> Option<&Arc<Mesh>> {
        if let Spec::Mesh(mesh) = &self.spec { Some(mesh) } else { None }
    }

    /// The Dataplane, if it is one.
    pub fn dataplane(&self) -> Option<&Arc<Dataplane>> {
        if let Spec::Dataplane(dataplane) = &self.spec { Some(dataplane) } else { None }
    }

    /// The DataplaneInsight, if it is one.
    pub fn insight(&self) -> Option<&Arc<DataplaneInsight>> {
        if let Spec::DataplaneInsight(insight) = &self.spec { Some(insight) } else { None }
    }

    /// The MeshTrafficPermission, if it is one.
    pub fn permission(&self) -> Option<&Arc<MeshTrafficPermission>> {
        if let Spec::MeshTrafficPermission(permission) = &self.spec { Some(permission) } else { None }
    }

    /// The secret bytes, if it is a Secret or a GlobalSecret.
    pub fn secret(&self) -> Option<&Arc<Secret>> {
        match &self.spec {
            Spec::Secret(secret) | Spec::GlobalSecret(secret) => Some(secret),
            Spec::Mesh(_) | Spec::Dataplane(_) | Spec::DataplaneInsight(_) | Spec::MeshTrafficPermission(_) => None,
        }
    }
}
