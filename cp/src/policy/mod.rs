//! Policies: which of them concern a proxy, in which order, and what they add up to.
//!
//! * [`select`]: the top-level `targetRef`, and the order in which policies outrank each other.
//! * [`merge`]: how settings of several policies become one.
//! * [`rules`]: what the policies of one kind add up to, for each destination and each inbound.
//! * A file for each kind: what it means in the end.

pub mod circuit_breaker;
pub mod id;
pub mod merge;
pub mod permission;
pub mod proxy;
pub mod retry;
pub mod route;
pub mod rules;
pub mod select;
pub mod timeout;

use std::sync::Arc;

use crate::resource::{
    MeshCircuitBreaker, MeshHTTPRoute, MeshMetric, MeshRetry, MeshTimeout, Meta, Resource, Spec, TargetRefKind,
};
use rules::ServiceTarget;

/// The policies of a mesh, each kind by name, and the services that they can refer to.
#[derive(Debug, Default)]
pub struct Policies {
    /// MeshCircuitBreakers.
    pub circuit_breakers: Vec<(Meta, Arc<MeshCircuitBreaker>)>,
    /// MeshMetrics.
    pub metrics: Vec<(Meta, Arc<MeshMetric>)>,
    /// MeshRetries.
    pub retries: Vec<(Meta, Arc<MeshRetry>)>,
    /// MeshHTTPRoutes.
    pub routes: Vec<(Meta, Arc<MeshHTTPRoute>)>,
    /// MeshTimeouts.
    pub timeouts: Vec<(Meta, Arc<MeshTimeout>)>,
    /// MeshServices, MeshExternalServices and MeshMultiZoneServices.
    pub services: Vec<ServiceTarget>,
}

impl Policies {
    /// Adds a resource, if it is a policy of one of these kinds.
    pub fn add(&mut self, resource: &Resource) {
        let meta = || resource.meta.clone();
        match &resource.spec {
            Spec::MeshCircuitBreaker(spec) => self.circuit_breakers.push((meta(), spec.clone())),
            Spec::MeshHTTPRoute(spec) => self.routes.push((meta(), spec.clone())),
            Spec::MeshMetric(spec) => self.metrics.push((meta(), spec.clone())),
            Spec::MeshRetry(spec) => self.retries.push((meta(), spec.clone())),
            Spec::MeshTimeout(spec) => self.timeouts.push((meta(), spec.clone())),
            Spec::MeshExternalService(spec) => {
                let port = spec.matches.port;
                self.service(TargetRefKind::MeshExternalService, meta(), vec![(port.to_string(), port)]);
            }
            Spec::MeshMultiZoneService(spec) => {
                let ports = spec.ports.iter().map(|port| (port.section_name(), port.port)).collect();
                self.service(TargetRefKind::MeshMultiZoneService, meta(), ports);
            }
            Spec::MeshService(spec) => {
                let ports = spec.ports.iter().map(|port| (port.section_name(), port.port)).collect();
                self.service(TargetRefKind::MeshService, meta(), ports);
            }
            _ => {}
        }
    }

    fn service(&mut self, kind: TargetRefKind, meta: Meta, ports: Vec<(String, u32)>) {
        self.services.push(ServiceTarget { kind, meta, ports });
    }
}

#[cfg(test)]
#[path = "vectors_tests.rs"]
mod vectors;
