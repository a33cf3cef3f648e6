//! Mesh (Kuma `api/mesh/v1alpha1/mesh.proto`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::LegacyMetrics;
use super::wire::{self, is_default};

/// A mesh: the unit of trust and of isolation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mesh {
    /// Mutual TLS between the proxies; off when absent or without an enabled backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// Legacy tracing backends, kept as given; this control plane does not act on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Value>,
    /// Legacy logging backends, kept as given; this control plane does not act on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Value>,
    /// Legacy metrics backends; a MeshMetric takes their place for the proxies that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<LegacyMetrics>,
    /// Traffic that leaves the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<MeshNetworking>,
    /// Routing inside the mesh and to other zones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// Which Dataplanes may join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Constraints>,
    /// Default policies not to create with the mesh: type names, or `*` for all of them.
    #[serde(alias = "skip_creating_initial_policies", skip_serializing_if = "Vec::is_empty")]
    pub skip_creating_initial_policies: Vec<String>,
    /// How MeshServices are made.
    #[serde(alias = "mesh_services", skip_serializing_if = "Option::is_none")]
    pub mesh_services: Option<MeshServices>,
}

impl Mesh {
    /// The CA backend that issues certificates, or `None` when mTLS is off.
    pub fn enabled_backend(&self) -> Option<&CaBackend> {
        let mtls = self.mtls.as_ref()?;
        mtls.backends.iter().find(|backend| !mtls.enabled_backend.is_empty() && backend.name == mtls.enabled_backend)
    }

    /// Whether traffic to other zones and to ExternalServices takes the way through a zone egress (`routing.zoneEgress`). An egress tells
    /// destinations apart by the server name of mutual TLS, so without that there is none.
    pub fn uses_zone_egress(&self) -> bool {
        self.enabled_backend().is_some() && self.routing.as_ref().is_some_and(|routing| routing.zone_egress)
    }

    /// How services are called (`meshServices.mode`).
    pub fn services_mode(&self) -> MeshServicesMode {
        self.mesh_services.as_ref().map(|services| services.mode).unwrap_or_default()
    }

    /// Whether traffic to destinations outside the mesh passes (Kuma's default: yes).
    pub fn passthrough(&self) -> bool {
        self.networking
            .as_ref()
            .and_then(|networking| networking.outbound.as_ref())
            .and_then(|outbound| outbound.passthrough)
            .unwrap_or(true)
    }
}

/// Mutual TLS of a mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mtls {
    /// The name of the backend that issues certificates; empty turns mTLS off.
    #[serde(alias = "enabled_backend", skip_serializing_if = "is_default")]
    pub enabled_backend: String,
    /// The CAs; at most one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<CaBackend>,
    /// Whether to allow a change of the enabled backend while mTLS is on.
    #[serde(alias = "skip_validation", skip_serializing_if = "is_default")]
    pub skip_validation: bool,
}

/// A certificate authority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaBackend {
    /// The name, which `enabledBackend` refers to.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// `builtin`; others are refused by name.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Workload certificates.
    #[serde(alias = "dp_cert", skip_serializing_if = "Option::is_none")]
    pub dp_cert: Option<DpCert>,
    /// Configuration of that type of backend; see [`CaBackend::builtin_conf`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conf: Option<Value>,
    /// Whether proxies also accept plain text.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: MtlsMode,
    /// Fetching of the root chain.
    #[serde(alias = "root_chain", skip_serializing_if = "Option::is_none")]
    pub root_chain: Option<RootChain>,
}

impl CaBackend {
    /// How long a workload certificate lives: `dpCert.rotation.expiration`, by default 24 hours.
    ///
    /// Validation refuses an expiration that does not parse, so that the default only stands in for an absent one.
    pub fn certificate_lifetime(&self) -> Duration {
        self.dp_cert
            .as_ref()
            .and_then(|dp_cert| dp_cert.rotation.as_ref())
            .and_then(|rotation| super::parse_duration(&rotation.expiration).ok())
            .unwrap_or(Duration::from_secs(24 * 60 * 60))
    }

    /// The configuration of a builtin CA.
    ///
    /// # Errors
    /// A text with field and reason when `conf` has not the shape of `{caCert: {RSAbits, expiration}}`.
    pub fn builtin_conf(&self) -> Result<BuiltinCaConf, String> {
        #[derive(Deserialize, Default)]
        #[serde(default, deny_unknown_fields)]
        struct Conf {
            #[serde(rename = "caCert")]
            ca_cert: CaCert,
        }
        #[derive(Deserialize, Default)]
        #[serde(default, deny_unknown_fields)]
        struct CaCert {
            #[serde(rename = "RSAbits", alias = "rsaBits", deserialize_with = "wire::u32")]
            rsa_bits: u32,
            expiration: String,
        }
        let conf = match &self.conf {
            None => Conf::default(),
            Some(conf) => Conf::deserialize(conf).map_err(|e| e.to_string())?,
        };
        let ca_cert = conf.ca_cert;
        Ok(BuiltinCaConf {
            rsa_bits: if ca_cert.rsa_bits == 0 { 2048 } else { ca_cert.rsa_bits },
            expiration: match ca_cert.expiration.as_str() {
                "" => Duration::from_secs(10 * 365 * 24 * 60 * 60),
                text => super::parse_duration(text).map_err(|e| format!("caCert.expiration: {e}"))?,
            },
        })
    }
}

/// Configuration of a builtin CA (Kuma `api/system/v1alpha1` / `pkg/plugins/ca/builtin/config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltinCaConf {
    /// Size of the RSA key of the root certificate; by default 2048.
    pub rsa_bits: u32,
    /// How long the root certificate lives; by default 10 years.
    pub expiration: Duration,
}

/// Whether proxies accept plain text besides mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Mutual TLS only.
    #[default]
    Strict,
    /// Plain text too.
    Permissive,
}

/// Workload certificates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DpCert {
    /// When they are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// How long issuing one may take, as protobuf writes durations (`10s`).
    #[serde(alias = "request_timeout", skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<String>,
}

/// Replacement of workload certificates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rotation {
    /// Lifetime of a certificate: a number and one of the units `y w d h m s ms`; it is replaced after four fifths of it.
    #[serde(skip_serializing_if = "is_default")]
    pub expiration: String,
}

/// Fetching of the root chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootChain {
    /// How long fetching it may take, as protobuf writes durations (`10s`).
    #[serde(alias = "request_timeout", skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<String>,
}

/// Traffic that leaves the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshNetworking {
    /// Outbound traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<MeshOutbound>,
}

/// Outbound traffic of a mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshOutbound {
    /// Whether destinations outside the mesh may be called; unset means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passthrough: Option<bool>,
}

/// Routing inside a mesh and to other zones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Routing {
    /// Whether endpoints of the own zone are preferred.
    #[serde(alias = "locality_aware_load_balancing", skip_serializing_if = "is_default")]
    pub locality_aware_load_balancing: bool,
    /// Whether traffic to other zones leaves through a zone egress; needs mTLS.
    #[serde(alias = "zone_egress", skip_serializing_if = "is_default")]
    pub zone_egress: bool,
    /// Whether MeshExternalServices are closed unless a permission opens them.
    #[serde(alias = "default_forbid_mesh_external_service_access", skip_serializing_if = "is_default")]
    pub default_forbid_mesh_external_service_access: bool,
}

/// Which Dataplanes may join a mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Constraints {
    /// For Dataplanes.
    #[serde(alias = "dataplane_proxy", skip_serializing_if = "Option::is_none")]
    pub dataplane_proxy: Option<DataplaneConstraints>,
}

/// Which tags a Dataplane must and must not have to join.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneConstraints {
    /// At least one of these must match, if there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<TagRule>,
    /// None of these may match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restrictions: Vec<TagRule>,
}

/// A set of tags; a value of `*` stands for any value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TagRule {
    /// All of these must match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// How MeshServices are made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshServices {
    /// Which services get one.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: MeshServicesMode,
}

/// Which services get a MeshService.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MeshServicesMode {
    /// None: services are known by the tag `kuma.io/service` alone.
    #[default]
    Disabled,
    /// All, beside the tag.
    Everywhere,
    /// Those that a proxy names as reachable, beside the tag.
    ReachableBackends,
    /// All, and the tag does not count.
    Exclusive,
}
