//! MeshHTTPRoute: where requests go.
//!
//! The rules of all policies for a destination form one list: rules with equal matches are merged, a later policy outranking an earlier
//! one, and what comes first outranks what comes later, as in the Gateway API. [`routes`] turns the list into routes in the order in which
//! they are tried.

use std::cmp::{Ordering, Reverse};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::id::ResourceId;
use super::merge::merge;
use super::retry::RetryPolicy;
use super::rules::{Policy, ToEntry};
use super::timeout::RouteTimeouts;
use crate::resource::{
    IntOrString, MeshHTTPRoute, PathMatch, PathMatchType, RouteBackendRef, RouteFilter, RouteFilterType, RouteMatch,
    RouteRule, RuleMatch, TargetRef, TargetRefKind,
};

impl Policy for MeshHTTPRoute {
    type Conf = Vec<RouteRule>;

    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<(&TargetRef, &Vec<RouteRule>)> {
        self.to.iter().map(|to| (&to.target_ref, &to.rules)).collect()
    }

    fn inbound(&self) -> Vec<(&[RuleMatch], &Vec<RouteRule>)> {
        Vec::new()
    }
}

/// A rule for a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedRule {
    /// Matches, and what all policies say about them.
    pub rule: RouteRule,
    /// Hash of the matches.
    pub hash: String,
    /// The MeshHTTPRoute that has the last word.
    pub origin: ResourceId,
}

/// Makes one list of the rules of all entries, each of which is outranked by the later ones (trap 13).
pub fn merge_rules(entries: &[ToEntry<'_, Vec<RouteRule>>]) -> Vec<MergedRule> {
    // From the lowest rank to the highest: within a policy the first rule ranks highest. A rule takes its place from where its matches
    // appear with the highest rank.
    let mut merged: Vec<(Vec<&RouteRule>, ResourceId)> = Vec::new();
    for entry in entries {
        for rule in entry.conf.iter().rev() {
            let same = merged.iter().position(|(rules, _)| rules.first().is_some_and(|r| r.matches == rule.matches));
            let mut rules = same.map(|position| merged.remove(position).0).unwrap_or_default();
            rules.push(rule);
            merged.push((rules, ResourceId::of(TargetRefKind::MeshHTTPRoute, entry.policy)));
        }
    }
    merged
        .into_iter()
        .rev()
        .filter_map(|(rules, origin)| {
            let matches = rules.first()?.matches.clone();
            let default = merge(rules.iter().map(|rule| &rule.default))?;
            let hash = matches_hash(&matches);
            Some(MergedRule { rule: RouteRule { matches, default }, hash, origin })
        })
        .collect()
}

/// Name of the route with these matches: base64 of the SHA-256 of their JSON, as Go writes it (Kuma `HashMatches`).
pub fn matches_hash(matches: &[RouteMatch]) -> String {
    // These types hold text and lists: JSON has a form for each of them.
    let json = serde_json::to_string(matches).unwrap_or_default();
    let mut as_go = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Go writes these so that JSON can stand in HTML and in JavaScript.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => as_go.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => as_go.push(c),
        }
    }
    STANDARD.encode(Sha256::digest(as_go.as_bytes()))
}

/// The match of every request.
pub fn everything() -> RouteMatch {
    let path = PathMatch { value: "/".to_owned(), kind: PathMatchType::PathPrefix };
    RouteMatch { path: Some(path), ..RouteMatch::default() }
}

/// A route of an outbound listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpRoute {
    /// Its name.
    pub name: String,
    /// Which requests take it.
    pub r#match: RouteMatch,
    /// What is changed on the way.
    pub filters: Vec<RouteFilter>,
    /// Where copies go.
    pub mirrors: Vec<Mirror>,
    /// Where requests go, by weight; never empty.
    pub backends: Vec<Split>,
    /// How long what may take; absent where no policy says, and then there is no limit.
    pub timeouts: Option<RouteTimeouts>,
    /// What is tried again.
    pub retry: Option<RetryPolicy>,
}

/// A share of the requests of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Split {
    /// Name of the cluster.
    pub cluster: String,
    /// The share, relative to that of the others.
    pub weight: u32,
    /// Whether it is outside the mesh: it then gets its own host name.
    pub external: bool,
}

/// A copy of the requests of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mirror {
    /// Name of the cluster.
    pub cluster: String,
    /// Of how many requests, per cent; of all without it.
    pub percentage: Option<IntOrString>,
}

/// What [`routes`] needs to know of the destination.
pub trait Backends {
    /// The cluster of a reference, or `None` if requests cannot go there; says why by itself.
    fn backend(&mut self, reference: &RouteBackendRef, origin: &MergedRule) -> Option<Split>;
    /// The cluster of the destination itself, or `None` if it is not HTTP.
    fn destination(&mut self) -> Option<Split>;
}

/// The routes to a destination in the order in which they are tried: the most specific first, and at last one that takes everything else.
/// `resource` says whether the destination is a resource, whose routes are named after the MeshHTTPRoute. Empty if no route leads anywhere
/// (Kuma `prepareRoutes`).
pub fn routes(
    rules: &[MergedRule],
    resource: bool,
    backends: &mut impl Backends,
) -> Vec<(HttpRoute, Option<ResourceId>)> {
    let mut found: Vec<(&RouteMatch, Option<&MergedRule>)> = Vec::new();
    for merged in rules {
        found.extend(merged.rule.matches.iter().map(|one| (one, Some(merged))));
    }
    found.sort_by(|a, b| compare(a.0, b.0));
    let everything = everything();
    if !found.iter().any(|(one, _)| **one == everything) {
        found.push((&everything, None));
    }
    let mut routes = Vec::new();
    for (one, merged) in found {
        let conf = merged.map(|merged| &merged.rule.default);
        let references = conf.and_then(|conf| conf.backend_refs.as_deref()).unwrap_or_default();
        let splits: Vec<Split> = match merged {
            Some(merged) if !references.is_empty() => {
                references.iter().filter_map(|reference| backends.backend(reference, merged)).collect()
            }
            _ => backends.destination().into_iter().collect(),
        };
        if splits.is_empty() {
            continue;
        }
        let filters = conf.and_then(|conf| conf.filters.clone()).unwrap_or_default();
        let mut mirrors = Vec::new();
        for mirror in filters.iter().filter_map(|filter| filter.request_mirror.as_ref()) {
            let cluster = merged.and_then(|merged| backends.backend(&mirror.backend_ref, merged));
            mirrors
                .extend(cluster.map(|split| Mirror { cluster: split.cluster, percentage: mirror.percentage.clone() }));
        }
        let origin = merged.map(|merged| merged.origin.clone()).filter(|_| resource);
        let name = match (&origin, merged) {
            (Some(origin), _) => origin.to_string(),
            (None, Some(merged)) => merged.hash.clone(),
            (None, None) => matches_hash(std::slice::from_ref(&everything)),
        };
        let r#match = RouteMatch { path: one.path.clone().or_else(|| everything.path.clone()), ..one.clone() };
        let filters = filters.into_iter().filter(|filter| filter.kind != RouteFilterType::RequestMirror).collect();
        let route = HttpRoute { name, r#match, filters, mirrors, backends: splits, timeouts: None, retry: None };
        routes.push((route, origin));
    }
    routes
}

/// Which of two matches is tried first: exact paths, then the longest prefix, then the longest expression, then no path; then those with a
/// method; then those with more headers; then those with more parameters of the query (Gateway API, `HTTPRouteRule`).
fn compare(a: &RouteMatch, b: &RouteMatch) -> Ordering {
    let path = |one: &RouteMatch| match &one.path {
        Some(path) => match path.kind {
            PathMatchType::Exact => (0, Reverse(0)),
            PathMatchType::PathPrefix => (1, Reverse(path.value.len())),
            PathMatchType::RegularExpression => (2, Reverse(path.value.len())),
        },
        None => (3, Reverse(0)),
    };
    let rank = |one: &RouteMatch| {
        let headers = one.headers.as_ref().map_or(0, Vec::len);
        let parameters = one.query_params.as_ref().map_or(0, Vec::len);
        (path(one), one.method.is_none(), Reverse(headers), Reverse(parameters))
    };
    rank(a).cmp(&rank(b))
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
