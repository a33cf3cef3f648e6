//! Kuma's resources: their kinds, keys, metadata and specifications.
//!
//! A [`Resource`] is metadata plus a closed enum of specifications. `document` turns Kuma's universal YAML or JSON into
//! one and back, `validate` holds the rules that Kuma applies before it stores one.

mod circuit_breaker;
mod dataplane;
mod decimal;
mod document;
mod duration;
mod external;
mod hostname;
mod insight;
mod kind;
mod legacy_metrics;
mod mesh;
mod metric;
mod permission;
mod policy_item;
mod retry;
mod route;
mod secret;
mod service;
mod target_ref;
mod timeout;
pub mod validate;
mod wire;
mod zone;

pub use circuit_breaker::{
    CircuitBreaker, CircuitBreakerRule, ConnectionLimits, Consecutive, Detectors, FailurePercentage,
    MeshCircuitBreaker, OutlierDetection, SuccessRate,
};
pub use dataplane::{
    Admin, BackendRef, Dataplane, Gateway, GatewayType, Health, Inbound, InboundState, Listener, Networking, Outbound,
    ServiceProbe, TransparentProxying,
};
pub use decimal::IntOrString;
pub use document::{ParseError, Parsed, documents, parse};
pub(crate) use document::{set_status, status_to_value, time};
pub use duration::{GoDuration, parse_duration, parse_go_duration};
pub use external::{
    DataSource, Extension, ExternalEndpoint, ExternalMatch, ExternalNetworking, ExternalService, ExternalTls,
    MeshExternalService, MeshExternalServiceStatus, MeshExternalTls, SanMatch, TlsVerification, TlsVersions,
};
pub use hostname::{HostnameGenerator, HostnameSelector, TemplateData, render};
pub use insight::{
    DataplaneInsight, DiscoveryStatus, DpStatus, EnvoyVersion, InsightVersion, KumaDpVersion, MtlsInsight,
    ServiceStats, Subscription,
};
pub use kind::{Kind, PolicyRefs, Spec, Sync};
pub(crate) use kind::{spec_from_value, spec_to_value};
pub use legacy_metrics::{
    LegacyAggregate, LegacyMetrics, LegacyMetricsBackend, LegacyPrometheus, LegacySidecarMetrics, LegacyTls,
    LegacyTlsMode,
};
pub use mesh::{
    BuiltinCaConf, CaBackend, Constraints, DataplaneConstraints, DpCert, Mesh, MeshNetworking, MeshOutbound,
    MeshServices, MeshServicesMode, Mtls, MtlsMode, RootChain, Rotation, Routing, TagRule,
};
pub use metric::{
    ApplicationMetrics, BackendResourceRef, MeshMetric, Metric, MetricsBackend, MetricsBackendType, MetricsProfile,
    MetricsProfileName, MetricsProfiles, MetricsSelector, MetricsSelectorType, OpenTelemetryBackend, PrometheusBackend,
    PrometheusTls, PrometheusTlsMode, SidecarMetrics,
};
pub use permission::{
    Action, From, FromDefault, MeshTrafficPermission, Rule, RuleDefault, RuleMatch, SniMatch, SpiffeIdMatch,
    SpiffeIdMatchType,
};
pub use policy_item::{PolicyItem, PolicyRule};
pub use retry::{
    BackOff, GrpcRetry, HostPredicate, HttpCondition, HttpRetry, MeshRetry, PredicateType, RateLimitedBackOff,
    ResetFormat, ResetHeader, Retry, TcpRetry, grpc_condition,
};
pub use route::{
    HeaderKeyValue, HeaderMatch, HeaderMatchType, HeaderModifier, HttpMethod, MeshHTTPRoute, PathMatch, PathMatchType,
    PathRewrite, PathRewriteType, QueryMatch, QueryMatchType, RequestMirror, RequestRedirect, RouteConf, RouteFilter,
    RouteFilterType, RouteMatch, RouteRule, RouteTo, UrlRewrite,
};
pub use secret::{Config, Secret};
pub use service::{
    Condition, DataplaneProxies, DataplaneRef, HostnameAddress, HostnameGeneratorRef, HostnameGeneratorStatus,
    LabelSelector, MatchedMeshService, MeshMultiZoneService, MeshMultiZoneServiceStatus, MeshService,
    MeshServiceStatus, MultiZoneSelector, ServiceIdentity, ServiceIdentityKind, ServicePort, ServiceSelector,
    ServiceState, ServiceTls, TargetPort, TlsStatus, Vip,
};
pub use target_ref::{RouteBackendRef, TargetRef, TargetRefKind};
pub use timeout::{HttpTimeout, MeshTimeout, Timeout};
pub use validate::is_hostname;
pub use zone::{
    AvailableService, HealthCheck, KdsStatus, KdsStream, KdsStreams, KdsSubscription, ProxyType, Zone, ZoneEgress,
    ZoneEgressNetworking, ZoneIngress, ZoneIngressNetworking, ZoneInsight, ZoneProxyInsight,
};

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

    /// The Zone, if it is one.
    pub fn zone(&self) -> Option<&Arc<Zone>> {
        if let Spec::Zone(zone) = &self.spec { Some(zone) } else { None }
    }

    /// The ZoneInsight, if it is one.
    pub fn zone_insight(&self) -> Option<&Arc<ZoneInsight>> {
        if let Spec::ZoneInsight(insight) = &self.spec { Some(insight) } else { None }
    }

    /// The ZoneIngress, if it is one.
    pub fn zone_ingress(&self) -> Option<&Arc<ZoneIngress>> {
        if let Spec::ZoneIngress(ingress) = &self.spec { Some(ingress) } else { None }
    }

    /// The ZoneEgress, if it is one.
    pub fn zone_egress(&self) -> Option<&Arc<ZoneEgress>> {
        if let Spec::ZoneEgress(egress) = &self.spec { Some(egress) } else { None }
    }

    /// The ExternalService, if it is one.
    pub fn external_service(&self) -> Option<&Arc<ExternalService>> {
        if let Spec::ExternalService(service) = &self.spec { Some(service) } else { None }
    }

    /// The HostnameGenerator, if it is one.
    pub fn hostname_generator(&self) -> Option<&Arc<HostnameGenerator>> {
        if let Spec::HostnameGenerator(generator) = &self.spec { Some(generator) } else { None }
    }

    /// The MeshExternalService, if it is one.
    pub fn mesh_external_service(&self) -> Option<&Arc<MeshExternalService>> {
        if let Spec::MeshExternalService(service) = &self.spec { Some(service) } else { None }
    }

    /// The MeshMultiZoneService, if it is one.
    pub fn mesh_multi_zone_service(&self) -> Option<&Arc<MeshMultiZoneService>> {
        if let Spec::MeshMultiZoneService(service) = &self.spec { Some(service) } else { None }
    }

    /// The MeshService, if it is one.
    pub fn mesh_service(&self) -> Option<&Arc<MeshService>> {
        if let Spec::MeshService(service) = &self.spec { Some(service) } else { None }
    }

    /// The insight of a zone ingress or a zone egress, if it is one.
    pub fn zone_proxy_insight(&self) -> Option<&Arc<ZoneProxyInsight>> {
        match &self.spec {
            Spec::ZoneIngressInsight(insight) | Spec::ZoneEgressInsight(insight) => Some(insight),
            _ => None,
        }
    }

    /// The secret bytes, if it is a Secret or a GlobalSecret.
    pub fn secret(&self) -> Option<&Arc<Secret>> {
        match &self.spec {
            Spec::Secret(secret) | Spec::GlobalSecret(secret) => Some(secret),
            _ => None,
        }
    }
}
