//! The table of kinds: one entry says everything in which a kind differs from the others.
//!
//! To add a kind: its type in a file of this module, one entry here, its rules in `validate`.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::document::{ParseError, read};
use super::{
    Config, Dataplane, DataplaneInsight, ExternalService, HostnameGenerator, Mesh, MeshCircuitBreaker,
    MeshExternalService, MeshHTTPRoute, MeshMetric, MeshMultiZoneService, MeshRetry, MeshService, MeshTimeout,
    MeshTrafficPermission, Resource, Secret, Zone, ZoneEgress, ZoneIngress, ZoneInsight, ZoneProxyInsight,
};

/// In what a kind differs from others (Kuma `model.ResourceTypeDescriptor`).
#[derive(Clone, Copy, Debug)]
struct Info {
    /// Path segment in the REST API.
    path: &'static str,
    /// Other spelling of `path`; empty without one.
    alias: &'static str,
    /// The name that shikactl takes for one resource.
    singular: &'static str,
    /// Singular and plural for people.
    display: (&'static str, &'static str),
    /// Short name in resource identifiers; empty without one.
    short: &'static str,
    /// Whether resources live in a mesh.
    in_mesh: bool,
    /// Whether only administrators may read or write.
    admin_only: bool,
    /// Whether the control plane alone writes.
    read_only: bool,
    /// Whether the specification stands under `spec`.
    spec_field: bool,
    /// The kind of insight that belongs to resources of this kind, by the same name and mesh.
    insight: Option<Kind>,
    /// Present on policies.
    policy: Option<PolicyRefs>,
    /// Who writes it and where it is sent.
    sync: Sync,
}

/// What a policy may select (Kuma's `policy` of `GET /_resources`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRefs {
    /// Has a list `from`.
    pub from: bool,
    /// Has a list `to`.
    pub to: bool,
    /// Has a list `rules`.
    pub rules: bool,
    /// Whether entries of `from` count as rules.
    pub from_as_rules: bool,
}

/// Who writes a kind and where it is sent in a mesh over several zones (Kuma `KDSFlagType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Users may write it at the global control plane.
    pub by_global: bool,
    /// Users may write it at a zone that has a global control plane.
    pub by_zone: bool,
    /// Sent from global to every zone.
    pub to_zones: bool,
    /// Sent from the zone to global.
    pub to_global: bool,
    /// What comes from one zone is sent on to the others.
    pub across_zones: bool,
    /// Stored by the receiver under a name with a hash of where it comes from.
    pub hashed: bool,
}

/// Written anywhere, sent nowhere.
const NOT_SENT: Sync =
    Sync { by_global: true, by_zone: true, to_zones: false, to_global: false, across_zones: false, hashed: true };
const GLOBAL_TO_ZONES: Sync = Sync { by_zone: false, to_zones: true, ..NOT_SENT };
const ZONE_TO_GLOBAL: Sync = Sync { by_global: false, to_global: true, ..NOT_SENT };
const ZONE_TO_ALL: Sync = Sync { across_zones: true, ..ZONE_TO_GLOBAL };
const BOTH_WAYS: Sync = Sync { to_zones: true, to_global: true, ..NOT_SENT };
const POLICY: Sync = Sync { across_zones: true, ..BOTH_WAYS };
const SECRET: Sync = Sync { to_zones: true, hashed: false, ..NOT_SENT };

/// What most kinds in a mesh have in common.
const IN_MESH: Info = Info {
    path: "",
    alias: "",
    singular: "",
    display: ("", ""),
    short: "",
    in_mesh: true,
    admin_only: false,
    read_only: false,
    spec_field: false,
    insight: None,
    policy: None,
    sync: NOT_SENT,
};
const GLOBAL: Info = Info { in_mesh: false, ..IN_MESH };

macro_rules! kinds {
    ($( $(#[$doc:meta])* $kind:ident($spec:ident) = $info:expr; )*) => {
        /// The kinds of resource that this control plane stores.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $( $(#[$doc])* $kind, )*
        }

        impl Kind {
            /// Every kind, in the order in which lists and help texts show them.
            pub const ALL: [Kind; [$(Kind::$kind),*].len()] = [$(Kind::$kind),*];

            /// The `type` of the resource in a document, such as `Dataplane`.
            pub fn name(self) -> &'static str {
                match self {
                    $( Kind::$kind => stringify!($kind), )*
                }
            }

            fn info(self) -> &'static Info {
                match self {
                    $( Kind::$kind => const { &$info }, )*
                }
            }
        }

        /// The specification of a resource, by kind. Shared, so that a list of ten thousand resources copies none of them.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Spec {
            $( $(#[$doc])* $kind(Arc<$spec>), )*
        }

        impl Resource {
            /// The kind.
            pub fn kind(&self) -> Kind {
                match self.spec {
                    $( Spec::$kind(_) => Kind::$kind, )*
                }
            }
        }

        /// Reads the specification alone, as [`spec_to_value`] wrote it.
        ///
        /// # Errors
        /// [`ParseError::Fields`], each field below `prefix`.
        pub(crate) fn spec_from_value(
            kind: Kind,
            value: Value,
            prefix: &str,
            warnings: &mut Vec<String>,
        ) -> Result<Spec, ParseError> {
            Ok(match kind {
                $( Kind::$kind => Spec::$kind(Arc::new(read(value, prefix, warnings)?)), )*
            })
        }

        /// The specification alone, as JSON.
        pub(crate) fn spec_to_value(spec: &Spec) -> Value {
            let value = match spec {
                $( Spec::$kind(spec) => serde_json::to_value(spec), )*
            };
            // These types hold text, numbers, lists and maps with text keys: JSON has a form for each of them.
            value.unwrap_or_default()
        }
    };
}

kinds! {
    // Meshes and proxies.

    /// A mesh: the unit of trust and of isolation. Global.
    Mesh(Mesh) = Info {
        path: "meshes", singular: "mesh", display: ("Mesh", "Meshes"), short: "m",
        sync: Sync { hashed: false, ..GLOBAL_TO_ZONES }, ..GLOBAL
    };
    /// One workload proxy.
    Dataplane(Dataplane) = Info {
        path: "dataplanes", singular: "dataplane", display: ("Dataplane", "Dataplanes"), short: "dp",
        insight: Some(Kind::DataplaneInsight), sync: ZONE_TO_GLOBAL, ..IN_MESH
    };
    /// What the control plane knows of a connected proxy; written by the control plane only.
    DataplaneInsight(DataplaneInsight) = Info {
        path: "dataplane-insights", singular: "dataplane-insight", display: ("Dataplane Insight", "Dataplane Insights"),
        read_only: true, sync: ZONE_TO_GLOBAL, ..IN_MESH
    };

    // Zones and their proxies.

    /// A zone of a mesh over several zones. Global.
    Zone(Zone) = Info {
        path: "zones", singular: "zone", display: ("Zone", "Zones"), short: "z",
        insight: Some(Kind::ZoneInsight), ..GLOBAL
    };
    /// A proxy that lets other zones' traffic out of this one. Global.
    ZoneEgress(ZoneEgress) = Info {
        path: "zoneegresses", singular: "zoneegress", display: ("Zone Egress", "Zone Egresses"), short: "ze",
        insight: Some(Kind::ZoneEgressInsight), sync: ZONE_TO_GLOBAL, ..GLOBAL
    };
    /// What the control plane knows of a connected zone egress; written by the control plane only.
    ZoneEgressInsight(ZoneProxyInsight) = Info {
        path: "zoneegressinsights", singular: "zoneegressinsight",
        display: ("Zone Egress Insight", "Zone Egress Insights"), read_only: true, sync: ZONE_TO_GLOBAL, ..GLOBAL
    };
    /// A proxy that lets other zones' traffic into this one. Global.
    ZoneIngress(ZoneIngress) = Info {
        path: "zoneingresses", alias: "zone-ingresses", singular: "zoneingress",
        display: ("Zone Ingress", "Zone Ingresses"), short: "zi",
        insight: Some(Kind::ZoneIngressInsight), sync: ZONE_TO_ALL, ..GLOBAL
    };
    /// What the control plane knows of a connected zone ingress; written by the control plane only.
    ZoneIngressInsight(ZoneProxyInsight) = Info {
        path: "zone-ingress-insights", singular: "zone-ingress-insight",
        display: ("Zone Ingress Insight", "Zone Ingress Insights"), read_only: true, sync: ZONE_TO_GLOBAL, ..GLOBAL
    };
    /// What the global control plane knows of a connected zone; written by the control plane only.
    ZoneInsight(ZoneInsight) = Info {
        path: "zone-insights", singular: "zone-insight", display: ("Zone Insight", "Zone Insights"),
        read_only: true, ..GLOBAL
    };

    // Services and their names.

    /// A service outside the mesh, by tags.
    ExternalService(ExternalService) = Info {
        path: "external-services", singular: "external-service", display: ("External Service", "External Services"),
        sync: GLOBAL_TO_ZONES, ..IN_MESH
    };
    /// Gives services host names. Global.
    HostnameGenerator(HostnameGenerator) = Info {
        path: "hostnamegenerators", singular: "hostnamegenerator",
        display: ("Hostname Generator", "Hostname Generators"), short: "hg", spec_field: true, sync: BOTH_WAYS, ..GLOBAL
    };
    /// A service outside the mesh.
    MeshExternalService(MeshExternalService) = Info {
        path: "meshexternalservices", singular: "meshexternalservice",
        display: ("Mesh External Service", "Mesh External Services"), short: "extsvc", spec_field: true, sync: BOTH_WAYS,
        ..IN_MESH
    };
    /// Several MeshServices, of several zones, as one.
    MeshMultiZoneService(MeshMultiZoneService) = Info {
        path: "meshmultizoneservices", singular: "meshmultizoneservice",
        display: ("Mesh Multi Zone Service", "Mesh Multi Zone Services"), short: "mzsvc", spec_field: true,
        sync: GLOBAL_TO_ZONES, ..IN_MESH
    };
    /// A service of the mesh in one zone.
    MeshService(MeshService) = Info {
        path: "meshservices", singular: "meshservice", display: ("Mesh Service", "Mesh Services"), short: "msvc",
        spec_field: true, sync: ZONE_TO_ALL, ..IN_MESH
    };

    // Policies.

    /// How much a destination is given, and when an instance of it is left out.
    MeshCircuitBreaker(MeshCircuitBreaker) = Info {
        path: "meshcircuitbreakers", singular: "meshcircuitbreaker",
        display: ("Mesh Circuit Breaker", "Mesh Circuit Breakers"), short: "mcb", spec_field: true,
        policy: Some(PolicyRefs { from: true, to: true, rules: true, from_as_rules: true }), sync: POLICY, ..IN_MESH
    };
    /// Where HTTP requests go.
    MeshHTTPRoute(MeshHTTPRoute) = Info {
        path: "meshhttproutes", singular: "meshhttproute", display: ("Mesh HTTP Route", "Mesh HTTP Routes"),
        short: "mhttpr", spec_field: true,
        policy: Some(PolicyRefs { from: false, to: true, rules: false, from_as_rules: false }), sync: POLICY, ..IN_MESH
    };
    /// Which metrics proxies offer, and to whom.
    MeshMetric(MeshMetric) = Info {
        path: "meshmetrics", singular: "meshmetric", display: ("Mesh Metric", "Mesh Metrics"), short: "mm",
        spec_field: true, policy: Some(PolicyRefs { from: false, to: false, rules: false, from_as_rules: false }),
        sync: POLICY, ..IN_MESH
    };
    /// What is tried again.
    MeshRetry(MeshRetry) = Info {
        path: "meshretries", singular: "meshretry", display: ("Mesh Retry", "Mesh Retries"), short: "mr",
        spec_field: true, policy: Some(PolicyRefs { from: false, to: true, rules: false, from_as_rules: false }),
        sync: POLICY, ..IN_MESH
    };
    /// How long what may take.
    MeshTimeout(MeshTimeout) = Info {
        path: "meshtimeouts", singular: "meshtimeout", display: ("Mesh Timeout", "Mesh Timeouts"), short: "mt",
        spec_field: true, policy: Some(PolicyRefs { from: true, to: true, rules: true, from_as_rules: true }),
        sync: POLICY, ..IN_MESH
    };
    /// Who may call whom.
    MeshTrafficPermission(MeshTrafficPermission) = Info {
        path: "meshtrafficpermissions", singular: "meshtrafficpermission",
        display: ("Mesh Traffic Permission", "Mesh Traffic Permissions"), short: "mtp", spec_field: true,
        policy: Some(PolicyRefs { from: true, to: false, rules: true, from_as_rules: false }), sync: POLICY, ..IN_MESH
    };

    // What the control plane keeps for itself, and secrets.

    /// A text that the control plane keeps, such as virtual addresses; not part of the REST API. Global.
    Config(Config) = Info { display: ("Config", "Configs"), read_only: true, ..GLOBAL };

    /// Secret bytes of one mesh: CA keys, signing keys.
    Secret(Secret) = Info {
        path: "secrets", singular: "secret", display: ("Secret", "Secrets"), admin_only: true, sync: SECRET, ..IN_MESH
    };
    /// Secret bytes of the control plane itself. Global.
    GlobalSecret(Secret) = Info {
        path: "globalsecrets", alias: "global-secrets", singular: "globalsecret",
        display: ("Global Secret", "Global Secrets"), admin_only: true, sync: SECRET, ..GLOBAL
    };
}

impl Kind {
    /// The kind of that `type`, if this control plane has it.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kinds that the REST API serves.
    pub fn in_api() -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| !kind.path().is_empty())
    }

    /// The kind of that path segment in the REST API, in any of its spellings.
    pub fn from_path(path: &str) -> Option<Kind> {
        let known = |kind: &Kind| kind.path() == path || (!kind.info().alias.is_empty() && kind.info().alias == path);
        Kind::in_api().find(known)
    }

    /// The path segment in the REST API, such as `dataplanes`; empty for a kind that is not part of it.
    pub fn path(self) -> &'static str {
        self.info().path
    }

    /// The name that shikactl takes for one resource, such as `dataplane`.
    pub fn singular(self) -> &'static str {
        self.info().singular
    }

    /// Singular and plural name for people.
    pub fn display(self) -> (&'static str, &'static str) {
        self.info().display
    }

    /// Kuma's short name in a resource identifier (`kri_dp_…`), where the kind has one.
    pub fn short(self) -> Option<&'static str> {
        Some(self.info().short).filter(|short| !short.is_empty())
    }

    /// Whether resources of this kind live in a mesh.
    pub fn in_mesh(self) -> bool {
        self.info().in_mesh
    }

    /// Whether only administrators may read or write resources of this kind.
    pub fn admin_only(self) -> bool {
        self.info().admin_only
    }

    /// Whether the REST API refuses to write this kind: the control plane alone does.
    pub fn read_only(self) -> bool {
        self.info().read_only
    }

    /// Whether the fields of the specification stand under `spec` (Kuma's plugin kinds) or beside the metadata.
    pub fn has_spec_field(self) -> bool {
        self.info().spec_field
    }

    /// The kind of insight that belongs to a resource of this kind, by the same name and mesh, and is deleted with it.
    pub fn insight(self) -> Option<Kind> {
        self.info().insight
    }

    /// Whether this is a kind of insight.
    pub fn is_insight(self) -> bool {
        Kind::ALL.into_iter().any(|kind| kind.insight() == Some(self))
    }

    /// What a policy of this kind may select; `None` for a kind that is no policy.
    pub fn policy(self) -> Option<PolicyRefs> {
        self.info().policy
    }

    /// Who writes this kind and where it is sent in a mesh over several zones.
    pub fn sync(self) -> Sync {
        self.info().sync
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
