//! What the policies of a mesh say about one proxy, ready to be looked up for each inbound and each destination.

use std::collections::BTreeSet;

use super::Policies;
use super::id::ResourceId;
use super::retry::RetryPolicy;
use super::route::{HttpRoute, MergedRule, merge_rules};
use super::rules::{OutboundRules, Policy, Referable, Rule, catch_all, inbound_rules, selected, selected_for_inbound};
use super::select::Target;
use super::timeout::{RouteTimeouts, Timeouts};
use crate::mesh::Protocol;
use crate::resource::{CircuitBreaker, Inbound, Meta, Retry, TargetRefKind, Timeout};

/// What the policies of a mesh say about one proxy.
#[derive(Debug)]
pub struct ProxyPolicies<'a> {
    policies: &'a Policies,
    target: Target<'a>,
    circuit_breakers: OutboundRules<CircuitBreaker>,
    retries: OutboundRules<Retry>,
    routes: OutboundRules<Vec<MergedRule>>,
    timeouts: OutboundRules<Timeout>,
}

/// What is set for an inbound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPolicies {
    /// How long what may take; absent if there are settings for some requests only.
    pub timeouts: Option<Timeouts>,
    /// How much the application is given.
    pub circuit_breaker: CircuitBreaker,
}

/// A destination, as policies know it.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// By the tag `kuma.io/service`.
    Service(&'a str),
    /// A resource, or a port of it.
    Resource(&'a ResourceId),
}

/// What is set for a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationPolicies {
    /// Of the cluster.
    pub cluster: ClusterPolicies,
    /// Of the listener; absent if no policy says anything about a service by tag.
    pub timeouts: Option<Timeouts>,
    /// How often connecting is tried in all.
    pub max_connect_attempts: Option<u32>,
}

/// What is set for the cluster of a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClusterPolicies {
    /// How long what may take.
    pub timeouts: Timeouts,
    /// How much it is given.
    pub circuit_breaker: CircuitBreaker,
}

impl<'a> ProxyPolicies<'a> {
    /// Looks at the policies of `mesh`. `warnings` gets a text for everything that concerns the proxy and is not applied.
    pub fn new(policies: &'a Policies, mesh: &str, target: Target<'a>, warnings: &mut BTreeSet<String>) -> Self {
        let Policies { circuit_breakers, metrics: _, retries, routes, timeouts, services } = policies;
        let referable = Referable { mesh, services, routes };
        let timeouts = selected(timeouts, target, routes);
        let retries = selected(retries, target, routes);
        let circuit_breakers = selected(circuit_breakers, target, routes);
        only_resources("MeshTimeout", &timeouts, warnings);
        only_resources("MeshRetry", &retries, warnings);
        only_resources("MeshCircuitBreaker", &circuit_breakers, warnings);
        ProxyPolicies {
            policies,
            target,
            circuit_breakers: OutboundRules::merged(&circuit_breakers, referable),
            retries: OutboundRules::merged(&retries, referable),
            routes: OutboundRules::build(&selected(routes, target, routes), referable, merge_rules),
            timeouts: OutboundRules::merged(&timeouts, referable),
        }
    }

    /// For an inbound.
    pub fn inbound(&self, inbound: &Inbound, warnings: &mut BTreeSet<String>) -> InboundPolicies {
        let Policies { circuit_breakers, timeouts, .. } = self.policies;
        let breakers = selected_for_inbound(circuit_breakers, self.target, inbound);
        let timeouts = inbound_rules(&selected_for_inbound(timeouts, self.target, inbound));
        for rule in timeouts.iter().filter(|rule| rule.matches.is_some()) {
            warnings.insert(format!(
                "MeshTimeout {:?}: spec.rules[{}] has matches; timeouts that depend on the caller have no effect on inbound {}",
                rule.policy.name,
                rule.index,
                inbound.section_name()
            ));
        }
        let conf = catch_all(&timeouts);
        InboundPolicies {
            // As in Kuma, defaults come with the policy plugin whether or not there is a policy.
            timeouts: conf.map(|conf| Timeouts::of(&conf)).or_else(|| timeouts.is_empty().then(Timeouts::default)),
            circuit_breaker: catch_all(&inbound_rules(&breakers)).unwrap_or_default(),
        }
    }

    /// For a destination that speaks `protocol`.
    pub fn destination(&self, destination: Destination<'_>, protocol: Protocol) -> DestinationPolicies {
        let timeouts = lookup(&self.timeouts, destination).map(|rule| Timeouts::of(&rule.conf));
        let breaker = lookup(&self.circuit_breakers, destination);
        let retry = lookup(&self.retries, destination);
        let attempts = retry.and_then(|rule| rule.conf.tcp.as_ref()).and_then(|tcp| tcp.max_connect_attempt);
        let listener = match destination {
            Destination::Service(_) => timeouts,
            Destination::Resource(_) => Some(timeouts.unwrap_or_default()),
        };
        DestinationPolicies {
            cluster: ClusterPolicies {
                timeouts: timeouts.unwrap_or_default(),
                circuit_breaker: breaker.map(|rule| rule.conf.clone()).unwrap_or_default(),
            },
            timeouts: listener,
            max_connect_attempts: attempts.filter(|_| protocol == Protocol::Tcp),
        }
    }

    /// The rules of the MeshHTTPRoutes for a destination.
    pub fn routes(&self, destination: Destination<'_>) -> &[MergedRule] {
        lookup(&self.routes, destination).map(|rule| rule.conf.as_slice()).unwrap_or_default()
    }

    /// Sets what policies say about a route. `origin` is the MeshHTTPRoute that it is of, for destinations that are resources.
    pub fn configure(
        &self,
        destination: Destination<'_>,
        protocol: Protocol,
        route: &mut HttpRoute,
        origin: Option<&ResourceId>,
    ) {
        let timeouts = of_route(&self.timeouts, destination, &route.name, origin);
        let service = lookup(&self.timeouts, destination);
        route.timeouts = match destination {
            Destination::Service(_) => timeouts.or(service).map(|rule| RouteTimeouts::of(&rule.conf, None)),
            Destination::Resource(_) => {
                let service = service.map(|rule| Timeouts::of(&rule.conf)).unwrap_or_default().route;
                Some(timeouts.map_or(service, |rule| RouteTimeouts::of(&rule.conf, Some(service))))
            }
        };
        let retry = |rule: Option<&Rule<Retry>>| rule.and_then(|rule| RetryPolicy::of(&rule.conf, protocol));
        // As in Kuma, a route for which retries are turned off falls back to those of the destination.
        let of_route = retry(of_route(&self.retries, destination, &route.name, origin));
        route.retry = of_route.or_else(|| retry(lookup(&self.retries, destination)));
    }
}

fn lookup<'a, M>(rules: &'a OutboundRules<M>, destination: Destination<'_>) -> Option<&'a Rule<M>> {
    match destination {
        Destination::Service(service) => rules.service(service),
        Destination::Resource(id) => rules.resource(id),
    }
}

fn of_route<'a, M>(
    rules: &'a OutboundRules<M>,
    destination: Destination<'_>,
    name: &str,
    origin: Option<&ResourceId>,
) -> Option<&'a Rule<M>> {
    match destination {
        Destination::Service(service) => rules.service_route(service, name),
        Destination::Resource(_) => rules.route(origin?),
    }
}

/// A policy with an entry about a route says nothing about services by tag, not even in its other entries (Kuma `legacyBuildToRules`).
fn only_resources<P: Policy>(kind: &str, policies: &[(&Meta, &P)], warnings: &mut BTreeSet<String>) {
    for (meta, policy) in policies {
        if policy.to().iter().any(|(target, _)| target.kind == Some(TargetRefKind::MeshHTTPRoute)) {
            warnings.insert(format!(
                "{kind} {:?}: spec.to has an entry of kind MeshHTTPRoute, so the policy concerns destinations that are resources \
                 and none that is known by its tag kuma.io/service alone",
                meta.name
            ));
        }
    }
}
