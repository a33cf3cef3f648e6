//! What the policies of one kind add up to, for each destination of a proxy and for each of its inbounds
//! (Kuma `pkg/plugins/policies/core/rules`).
//!
//! Destinations are known in two ways, which Kuma treats differently: by the tag `kuma.io/service`, and as resources (MeshService and
//! others). For both, a rule is made for what some policy names and for the mesh as a whole; every rule already contains the settings of
//! everything less specific, so that the most specific one that is found applies alone.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::id::ResourceId;
use super::merge::merge;
use super::route::matches_hash;
use super::select::{self, Target, attributes, contains, display_name};
use crate::resource::{Inbound, MeshHTTPRoute, Meta, RuleMatch, SpiffeIdMatchType, TargetRef, TargetRefKind};

/// A kind of policy with a reference at its top, and settings by destination or by client.
pub trait Policy {
    /// The settings.
    type Conf;
    /// The reference at the top.
    fn target_ref(&self) -> Option<&TargetRef>;
    /// Settings by destination.
    fn to(&self) -> Vec<(&TargetRef, &Self::Conf)>;
    /// Settings by client. No matches means every client.
    fn inbound(&self) -> Vec<(&[RuleMatch], &Self::Conf)>;
}

/// A service that is a resource, as far as policies can refer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTarget {
    /// MeshService, MeshExternalService or MeshMultiZoneService.
    pub kind: TargetRefKind,
    /// Name and labels.
    pub meta: Meta,
    /// Its ports: name (the number for one without a name) and number.
    pub ports: Vec<(String, u32)>,
}

/// What a policy can refer to.
#[derive(Clone, Copy, Debug)]
pub struct Referable<'a> {
    /// Name of the mesh.
    pub mesh: &'a str,
    /// Services that are resources.
    pub services: &'a [ServiceTarget],
    /// Routes.
    pub routes: &'a [(Meta, Arc<MeshHTTPRoute>)],
}

/// The policies of one kind that concern the proxy, each outranked by the later ones.
pub fn selected<'a, P: Policy>(
    policies: &'a [(Meta, Arc<P>)],
    target: Target<'_>,
    routes: &[(Meta, Arc<MeshHTTPRoute>)],
) -> Vec<(&'a Meta, &'a P)> {
    sorted(policies, |meta, target_ref| select::selects_proxy(meta, target_ref, target, routes))
}

/// The policies of one kind that concern the inbound, each outranked by the later ones.
pub fn selected_for_inbound<'a, P: Policy>(
    policies: &'a [(Meta, Arc<P>)],
    target: Target<'_>,
    inbound: &Inbound,
) -> Vec<(&'a Meta, &'a P)> {
    sorted(policies, |meta, target_ref| select::selects(meta, target_ref, target, inbound))
}

fn sorted<P: Policy>(
    policies: &[(Meta, Arc<P>)],
    selects: impl Fn(&Meta, Option<&TargetRef>) -> bool,
) -> Vec<(&Meta, &P)> {
    let mut selected: Vec<(&Meta, &P)> = policies
        .iter()
        .filter(|(meta, policy)| selects(meta, policy.target_ref()))
        .map(|(meta, policy)| (meta, policy.as_ref()))
        .collect();
    selected.sort_by(|a, b| select::order((a.0, a.1.target_ref()), (b.0, b.1.target_ref())));
    selected
}

/// An entry of `to` of a policy.
#[derive(Debug)]
pub struct ToEntry<'a, C> {
    /// The policy.
    pub policy: &'a Meta,
    /// Position in its `to`.
    pub index: usize,
    /// The settings.
    pub conf: &'a C,
}

impl<C> Clone for ToEntry<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for ToEntry<'_, C> {}

/// What applies to a destination, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<M> {
    /// The settings of all policies together.
    pub conf: M,
    /// Names of policies, with positions in their `to`, each outranked by the later ones.
    pub origins: Vec<(String, usize)>,
}

/// A destination by tag. A part that is absent stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Tags {
    service: Option<String>,
    /// Hash of the matches of a route, see [`matches_hash`].
    route: Option<String>,
}

impl Tags {
    /// Whether what is said of `self` holds for `other`.
    fn covers(&self, other: &Tags) -> bool {
        let holds = |part: &Option<String>, other: &Option<String>| part.is_none() || part == other;
        holds(&self.service, &other.service) && holds(&self.route, &other.route)
    }
}

/// What the policies of one kind say about the destinations of a proxy.
#[derive(Debug)]
pub struct OutboundRules<M> {
    tags: BTreeMap<Tags, Rule<M>>,
    resources: BTreeMap<ResourceId, Rule<M>>,
    mesh: ResourceId,
}

impl<M> OutboundRules<M> {
    /// Builds the rules of `policies`, which are sorted. `combine` makes one of all entries that concern a destination.
    pub fn build<'a, P: Policy>(
        policies: &[(&'a Meta, &'a P)],
        referable: Referable<'_>,
        combine: impl Fn(&[ToEntry<'a, P::Conf>]) -> M,
    ) -> Self {
        OutboundRules {
            tags: by_tags(policies, referable, &combine),
            resources: by_resource(policies, referable, &combine),
            mesh: ResourceId::of_mesh(referable.mesh),
        }
    }

    /// For a service by tag.
    pub fn service(&self, service: &str) -> Option<&Rule<M>> {
        let tags = Tags { service: Some(service.to_owned()), route: None };
        self.tags.get(&tags).or_else(|| self.tags.get(&Tags::default()))
    }

    /// For requests to a service by tag that take the route with these matches, if some policy is about such routes.
    pub fn service_route(&self, service: &str, route: &str) -> Option<&Rule<M>> {
        let mut tags = Tags { service: Some(service.to_owned()), route: Some(route.to_owned()) };
        self.tags.get(&tags).or_else(|| {
            tags.service = None;
            self.tags.get(&tags)
        })
    }

    /// For a service that is a resource, or for a port of it.
    pub fn resource(&self, id: &ResourceId) -> Option<&Rule<M>> {
        self.resources
            .get(id)
            .or_else(|| self.resources.get(&id.with_section("")))
            .or_else(|| self.resources.get(&self.mesh))
    }

    /// For requests that take a route, if some policy is about it.
    pub fn route(&self, route: &ResourceId) -> Option<&Rule<M>> {
        self.resources.get(&route.with_section(""))
    }

    /// Every rule for a resource, for the mesh too.
    pub fn resources(&self) -> &BTreeMap<ResourceId, Rule<M>> {
        &self.resources
    }
}

impl<M: Clone + Serialize + DeserializeOwned + Default> OutboundRules<M> {
    /// Builds the rules of policies whose settings merge as JSON.
    pub fn merged<'a, P: Policy<Conf = M>>(policies: &[(&'a Meta, &'a P)], referable: Referable<'_>) -> Self
    where
        M: 'a,
    {
        OutboundRules::build(policies, referable, |entries: &[ToEntry<'a, M>]| {
            merge(entries.iter().map(|entry| entry.conf)).unwrap_or_default()
        })
    }
}

fn rule<'a, C, M>(entries: &[ToEntry<'a, C>], combine: impl Fn(&[ToEntry<'a, C>]) -> M) -> Rule<M> {
    let mut origins: Vec<(String, usize)> = Vec::new();
    for entry in entries {
        let origin = (entry.policy.name.clone(), entry.index);
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    Rule { conf: combine(entries), origins }
}

/// Entries rank by their policies alone, and within a policy by position.
fn by_tags<'a, P: Policy, M>(
    policies: &[(&'a Meta, &'a P)],
    referable: Referable<'_>,
    combine: &impl Fn(&[ToEntry<'a, P::Conf>]) -> M,
) -> BTreeMap<Tags, Rule<M>> {
    let mut entries: Vec<(Tags, ToEntry<'a, P::Conf>)> = Vec::new();
    for (meta, policy) in policies {
        let to = policy.to();
        // As in Kuma, a policy with an entry about a route is about resources only.
        if to.iter().any(|(target, _)| target.kind == Some(TargetRefKind::MeshHTTPRoute)) {
            continue;
        }
        let route = policy
            .target_ref()
            .filter(|top| top.kind == Some(TargetRefKind::MeshHTTPRoute))
            .map(|top| select::named_route(meta, top, referable.routes));
        let of_route = route.map(|route| route.map(|(_, route)| route_tags(route)).unwrap_or_default());
        for (index, (target, conf)) in to.into_iter().enumerate() {
            let entry = ToEntry { policy: meta, index, conf };
            match &of_route {
                Some(tags) => entries.extend(tags.iter().map(|tags| (tags.clone(), entry))),
                None => match target.kind {
                    Some(TargetRefKind::Mesh) => entries.push((Tags::default(), entry)),
                    Some(TargetRefKind::MeshService) if target.name.is_some() => {
                        entries.push((Tags { service: target.name.clone(), route: None }, entry));
                    }
                    _ => {}
                },
            }
        }
    }
    let mut keys: Vec<Tags> = entries.iter().map(|(tags, _)| tags.clone()).collect();
    keys.sort();
    keys.dedup();
    let relevant = |key: &Tags| -> Vec<ToEntry<'a, P::Conf>> {
        entries.iter().filter(|(tags, _)| tags.covers(key)).map(|(_, entry)| *entry).collect()
    };
    keys.into_iter().map(|key| (key.clone(), rule(&relevant(&key), combine))).collect()
}

/// The destinations and matches of a route.
fn route_tags(route: &MeshHTTPRoute) -> Vec<Tags> {
    let mut all = Vec::new();
    for to in &route.to {
        let service = match to.target_ref.kind {
            Some(TargetRefKind::Mesh | TargetRefKind::MeshSubset) => None,
            _ => Some(to.target_ref.name.clone().unwrap_or_default()),
        };
        all.extend(
            to.rules.iter().map(|rule| Tags { service: service.clone(), route: Some(matches_hash(&rule.matches)) }),
        );
    }
    all
}

/// An entry of `to` with the target of its policy and what it names.
type NamedEntry<'a, C> = (Option<&'a TargetRef>, &'a TargetRef, ToEntry<'a, C>);

/// The entries of `to` of all policies with what they name. They rank by the attributes of their policies, then by what they name, then by
/// the names of their policies (trap 12); each is outranked by the later ones.
pub(super) fn to_entries<'a, P: Policy>(policies: &[(&'a Meta, &'a P)]) -> Vec<NamedEntry<'a, P::Conf>> {
    let mut entries = Vec::new();
    for (meta, policy) in policies {
        let top = policy.target_ref();
        for (index, (target, conf)) in policy.to().into_iter().enumerate() {
            entries.push((top, target, ToEntry { policy: meta, index, conf }));
        }
    }
    entries.sort_by_cached_key(|(top, target, entry)| {
        let of_section = target.kind == Some(TargetRefKind::MeshService)
            && target.section_name.as_ref().is_some_and(|section| !section.is_empty());
        let name = Reverse(display_name(entry.policy).clone());
        (attributes(entry.policy, *top), target.kind, of_section, name)
    });
    entries
}

fn by_resource<'a, P: Policy, M>(
    policies: &[(&'a Meta, &'a P)],
    referable: Referable<'_>,
    combine: &impl Fn(&[ToEntry<'a, P::Conf>]) -> M,
) -> BTreeMap<ResourceId, Rule<M>> {
    let entries = to_entries(policies);
    let of_resources = |top: &Option<&TargetRef>| top.and_then(|top| top.kind) != Some(TargetRefKind::MeshHTTPRoute);
    let entries = entries.into_iter().filter(|(top, _, _)| of_resources(top));
    let resolved: Vec<(ResourceId, ToEntry<'a, P::Conf>)> = entries
        .flat_map(|(_, target, entry)| resolve(target, entry.policy, referable).into_iter().map(move |id| (id, entry)))
        .collect();
    let mut keys: Vec<ResourceId> = resolved.iter().map(|(id, _)| id.clone()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .map(|key| {
            let relevant: Vec<_> =
                resolved.iter().filter(|(id, _)| concerns(id, &key)).map(|(_, entry)| *entry).collect();
            (key, rule(&relevant, combine))
        })
        .collect()
}

/// Whether what is said of `id` holds for `other`.
fn concerns(id: &ResourceId, other: &ResourceId) -> bool {
    match id.kind {
        TargetRefKind::Mesh => true,
        _ if id.section.is_empty() => *id == other.with_section(""),
        _ => id == other,
    }
}

/// The resources that a reference names, with the port if it names one (Kuma `resolve.TargetRef`).
pub(super) fn resolve(target: &TargetRef, origin: &Meta, referable: Referable<'_>) -> Vec<ResourceId> {
    let Some(kind) = target.kind else { return Vec::new() };
    let labels = target.labels.as_ref().filter(|labels| !labels.is_empty());
    let id = ResourceId::referred(kind, origin, target);
    match kind {
        TargetRefKind::Mesh => vec![id],
        TargetRefKind::MeshHTTPRoute => referable
            .routes
            .iter()
            .map(|(meta, _)| (meta, ResourceId::of(kind, meta)))
            .filter(|(meta, found)| labels.map_or(*found == id, |labels| contains(&meta.labels, Some(labels))))
            .map(|(_, found)| found)
            .collect(),
        TargetRefKind::MeshService | TargetRefKind::MeshExternalService | TargetRefKind::MeshMultiZoneService => {
            let section = target.section_name.as_deref().filter(|section| !section.is_empty());
            // Names of Kubernetes services as values of the tag, such as backend_default_svc_80.
            let by_tag = target
                .name
                .as_deref()
                .filter(|_| kind == TargetRefKind::MeshService && section.is_none() && labels.is_none())
                .and_then(kubernetes_service);
            let services = referable.services.iter().filter(|service| service.kind == kind);
            let named = services.filter(|service| match (&by_tag, labels) {
                (Some((labels, _)), _) => contains(&service.meta.labels, Some(labels)),
                (None, Some(labels)) => contains(&service.meta.labels, Some(labels)),
                (None, None) => ResourceId::of(kind, &service.meta) == id,
            });
            let number = by_tag.as_ref().and_then(|(_, port)| *port);
            named
                .filter_map(|service| {
                    let id = ResourceId::of(kind, &service.meta);
                    let port = match (number, section) {
                        (None, None) => return Some(id),
                        (Some(number), _) => service.ports.iter().find(|(_, port)| *port == number),
                        (None, Some(section)) => service.ports.iter().find(|(name, _)| name == section),
                    };
                    port.map(|(name, _)| id.with_section(name))
                })
                .collect()
        }
        TargetRefKind::Dataplane
        | TargetRefKind::MeshSubset
        | TargetRefKind::MeshGateway
        | TargetRefKind::MeshServiceSubset => Vec::new(),
    }
}

/// `<name>_<namespace>_svc_<port>`, or without port: the labels that the MeshService has, and the port.
fn kubernetes_service(tag: &str) -> Option<(BTreeMap<String, String>, Option<u32>)> {
    let parts: Vec<&str> = tag.split('_').collect();
    let (name, namespace, port) = match parts.as_slice() {
        [name, namespace, _, port] => (name, namespace, Some(port.parse().ok()?)),
        [name, namespace, _] => (name, namespace, None),
        _ => return None,
    };
    let labels = BTreeMap::from([
        ("k8s.kuma.io/namespace".to_owned(), (*namespace).to_owned()),
        ("kuma.io/display-name".to_owned(), (*name).to_owned()),
    ]);
    Some((labels, port))
}

/// What a policy says about some requests to an inbound.
#[derive(Debug)]
pub struct InboundRule<'a, C> {
    /// The requests; absent means all.
    pub matches: Option<&'a RuleMatch>,
    /// The settings.
    pub conf: &'a C,
    /// The policy.
    pub policy: &'a Meta,
    /// Position in its `rules` or `from`.
    pub index: usize,
}

/// What the policies, which are sorted, say about an inbound: the most specific matches first, and of those that are equally specific each
/// outranked by the later ones.
pub fn inbound_rules<'a, P: Policy>(policies: &[(&'a Meta, &'a P)]) -> Vec<InboundRule<'a, P::Conf>> {
    let mut rules = Vec::new();
    for (policy, spec) in policies {
        for (index, (matches, conf)) in spec.inbound().into_iter().enumerate() {
            if matches.is_empty() {
                rules.push(InboundRule { matches: None, conf, policy, index });
            }
            rules.extend(matches.iter().map(|found| InboundRule { matches: Some(found), conf, policy, index }));
        }
    }
    rules.sort_by_key(|rule| {
        let identity = rule.matches.and_then(|found| found.spiffe_id.as_ref()).map(|id| id.kind);
        let identity = match identity {
            Some(SpiffeIdMatchType::Exact) => 0,
            Some(SpiffeIdMatchType::Prefix) => 1,
            None => 2,
        };
        (identity, rule.matches.is_none_or(|found| found.sni.is_none()))
    });
    rules
}

/// The settings for every request: those of the rules without matches, merged. `None` if there is no such rule.
pub fn catch_all<C: Clone + Serialize + DeserializeOwned>(rules: &[InboundRule<'_, C>]) -> Option<C> {
    merge(rules.iter().filter(|rule| rule.matches.is_none()).map(|rule| rule.conf))
}
