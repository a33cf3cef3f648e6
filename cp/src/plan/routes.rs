//! Where the requests to a service go, as the MeshHTTPRoutes say.

use std::collections::BTreeMap;

use super::{ProxyPlan, outbound};
use crate::mesh::{MeshView, Protocol};
use crate::policy::proxy::{Destination, ProxyPolicies};
use crate::policy::route::{self, Backends, HttpRoute, MergedRule, Split};
use crate::resource::{RouteBackendRef, RouteFilterType, SERVICE_TAG, TargetRefKind};

/// The share of the destination itself where no rule says otherwise (Kuma `DefaultBackendRef`).
const WHOLE: u32 = 100;

/// The routes to the service whose own cluster is `cluster`; none if it does not speak HTTP and no rule makes it do so.
pub(super) fn routes(
    view: &MeshView,
    (service, cluster): (&str, &str),
    policies: &ProxyPolicies<'_>,
    plan: &mut ProxyPlan,
) -> Vec<HttpRoute> {
    let destination = Destination::Service(service);
    let rules = policies.routes(destination);
    let protocol = outbound::protocol(view, service);
    if rules.is_empty() && protocol == Protocol::Tcp {
        return Vec::new();
    }
    for merged in rules {
        warn(merged, plan);
    }
    let mut services = Services { view, own: (service, cluster), policies, plan };
    let routes = route::routes(rules, false, &mut services);
    let configured = routes.into_iter().map(|(mut route, origin)| {
        policies.configure(destination, protocol, &mut route, origin.as_ref());
        route
    });
    configured.collect()
}

/// What a rule says and is not done.
fn warn(merged: &MergedRule, plan: &mut ProxyPlan) {
    let name = &merged.origin.name;
    let filters = merged.rule.default.filters.as_deref().unwrap_or_default();
    let has = |kind| filters.iter().any(|filter| filter.kind == kind);
    if has(RouteFilterType::RequestRedirect)
        && (has(RouteFilterType::URLRewrite) || has(RouteFilterType::RequestMirror))
    {
        plan.warnings.insert(format!(
            "MeshHTTPRoute {name:?}: a rule has a RequestRedirect, so that its URLRewrite and RequestMirror have no effect"
        ));
    }
    for one in &merged.rule.matches {
        let headers = one.headers.as_deref().unwrap_or_default();
        let twice = headers
            .iter()
            .enumerate()
            .find(|(index, header)| headers.iter().take(*index).any(|earlier| earlier.name == header.name));
        if let Some((_, header)) = twice {
            let header = &header.name;
            plan.warnings.insert(format!(
                "MeshHTTPRoute {name:?}: a match names the header {header:?} more than once; only the first condition has effect"
            ));
        }
    }
}

/// Destinations by the tag `kuma.io/service`.
struct Services<'a, 'b> {
    view: &'a MeshView,
    /// The service that the routes are to, and its cluster.
    own: (&'a str, &'a str),
    policies: &'a ProxyPolicies<'b>,
    plan: &'a mut ProxyPlan,
}

impl Services<'_, '_> {
    fn speaks_http(&self, service: &str) -> bool {
        outbound::protocol(self.view, service) != Protocol::Tcp
    }
}

impl Backends for Services<'_, '_> {
    fn backend(&mut self, reference: &RouteBackendRef, origin: &MergedRule) -> Option<Split> {
        let weight = reference.weight.unwrap_or(1);
        let kind = reference.kind?;
        let service = reference.name.as_deref().unwrap_or_default();
        let of_service = matches!(kind, TargetRefKind::MeshService | TargetRefKind::MeshServiceSubset);
        if weight == 0 {
            return None;
        }
        let reason = if reference.names_resource() || !of_service {
            Some("names a resource, and this destination is known by its tag alone")
        } else if !self.speaks_http(service) {
            Some("leads to a service that does not speak HTTP or does not exist")
        } else {
            None
        };
        if let Some(reason) = reason {
            let name = &origin.origin.name;
            self.plan.warnings.insert(format!(
                "MeshHTTPRoute {name:?}: the backendRef {kind:?} {service:?} {reason}; it is left out"
            ));
            return None;
        }
        let mut tags: BTreeMap<String, String> = reference.tags.clone().unwrap_or_default();
        tags.insert(SERVICE_TAG.to_owned(), service.to_owned());
        let cluster = outbound::upstream(self.view, service, &tags, self.policies, self.plan);
        Some(Split { cluster, weight, external: false })
    }

    fn destination(&mut self) -> Option<Split> {
        let (service, cluster) = self.own;
        self.speaks_http(service).then(|| Split { cluster: cluster.to_owned(), weight: WHOLE, external: false })
    }
}
