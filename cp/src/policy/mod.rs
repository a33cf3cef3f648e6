//! Policies: which of them concern a proxy, in which order, and what they add up to.
//!
//! * [`select`]: the top-level `targetRef`, and the order in which policies outrank each other.
//! * [`merge`]: how settings of several policies become one.
//! * [`rules`]: what the policies of one kind add up to, for each destination and each inbound.
//! * A file for each kind: what it means in the end.

pub mod circuit_breaker;
pub mod id;
pub mod merge;
pub mod metric;
pub mod permission;
pub mod proxy;
pub mod retry;
pub mod route;
pub mod rules;
pub mod select;
pub mod timeout;

use std::sync::Arc;

use crate::resource::{
    Kind, MeshCircuitBreaker, MeshHTTPRoute, MeshMetric, MeshRetry, MeshTimeout, Meta, Resource, Spec, TargetRefKind,
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
    /// The kinds of resource that are looked at.
    pub const KINDS: [Kind; 8] = [
        Kind::MeshCircuitBreaker,
        Kind::MeshHTTPRoute,
        Kind::MeshMetric,
        Kind::MeshRetry,
        Kind::MeshTimeout,
        Kind::MeshExternalService,
        Kind::MeshMultiZoneService,
        Kind::MeshService,
    ];

    /// Adds a resource, if it is of one of [`KINDS`](Self::KINDS).
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

    /// Whether these policies say what the others say. When they were written does not count.
    pub fn plans_as(&self, other: &Policies) -> bool {
        let Policies { circuit_breakers, metrics, retries, routes, timeouts, services } = self;
        let same_service = |(one, other): (&ServiceTarget, &ServiceTarget)| {
            one.kind == other.kind && same_meta(&one.meta, &other.meta) && one.ports == other.ports
        };
        same(circuit_breakers, &other.circuit_breakers)
            && same(metrics, &other.metrics)
            && same(retries, &other.retries)
            && same(routes, &other.routes)
            && same(timeouts, &other.timeouts)
            && services.len() == other.services.len()
            && services.iter().zip(&other.services).all(same_service)
    }

    fn service(&mut self, kind: TargetRefKind, meta: Meta, ports: Vec<(String, u32)>) {
        self.services.push(ServiceTarget { kind, meta, ports });
    }
}

fn same_meta(one: &Meta, other: &Meta) -> bool {
    one.name == other.name && one.labels == other.labels
}

fn same<T: PartialEq>(one: &[(Meta, Arc<T>)], other: &[(Meta, Arc<T>)]) -> bool {
    let pairs = || one.iter().zip(other);
    one.len() == other.len()
        && pairs().all(|((meta, _), (other, _))| same_meta(meta, other))
        && pairs().all(|((_, spec), (_, other))| Arc::ptr_eq(spec, other) || spec == other)
}

#[cfg(test)]
#[path = "vectors_tests.rs"]
mod vectors;
