//! Where the requests to a destination go, as the MeshHTTPRoutes say.

use std::collections::BTreeMap;

use super::ProxyPlan;
use super::outbound::{Outbounds, backend_id};
use crate::mesh::{Backend, MeshView, Protocol};
use crate::policy::id::ResourceId;
use crate::policy::proxy::Destination;
use crate::policy::route::{self, Backends, HttpRoute, MergedRule, Split};
use crate::resource::{RouteBackendRef, RouteFilterType, SERVICE_TAG, TargetRefKind};

/// The routes to a destination whose own cluster is `own`; none if it does not speak HTTP and no rule makes it do so.
pub(super) fn routes(
    outbounds: &mut Outbounds<'_>,
    destination: Destination<'_>,
    protocol: Protocol,
    own: Split,
) -> Vec<HttpRoute> {
    let policies = outbounds.policies;
    let rules = policies.routes(destination);
    if rules.is_empty() && protocol == Protocol::Tcp {
        return Vec::new();
    }
    for merged in rules {
        warn(merged, outbounds.plan);
    }
    let own = (protocol != Protocol::Tcp).then_some(own);
    let is_resource = matches!(destination, Destination::Resource(_));
    let routes = route::routes(rules, is_resource, &mut Services { outbounds, own });
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

/// Where rules can send requests.
struct Services<'a, 'b> {
    outbounds: &'a mut Outbounds<'b>,
    /// The cluster of the destination itself, if it speaks HTTP.
    own: Option<Split>,
}

impl Backends for Services<'_, '_> {
    fn backend(&mut self, reference: &RouteBackendRef, origin: &MergedRule) -> Option<Split> {
        let weight = reference.weight.unwrap_or(1);
        let kind = reference.kind?;
        if weight == 0 {
            return None;
        }
        let reason = if reference.names_resource() {
            let view = self.outbounds.view;
            match referenced(view, kind, reference, &origin.origin) {
                Some((key, backend)) if backend.protocol != Protocol::Tcp => {
                    return Some(self.outbounds.backend_cluster(key, backend, weight));
                }
                Some(_) => "does not speak HTTP",
                None => "does not exist",
            }
        } else {
            let service = reference.name.as_deref().unwrap_or_default();
            if self.outbounds.protocol(service) != Protocol::Tcp {
                let mut tags: BTreeMap<String, String> = reference.tags.clone().unwrap_or_default();
                tags.insert(SERVICE_TAG.to_owned(), service.to_owned());
                return Some(self.outbounds.service_cluster(service, &tags, weight));
            }
            "does not speak HTTP or does not exist"
        };
        let name = reference.name.as_deref().unwrap_or_default();
        let route = &origin.origin.name;
        self.outbounds.plan.warnings.insert(format!(
            "MeshHTTPRoute {route:?}: what the backendRef {kind:?} {name:?} leads to {reason}; it is left out"
        ));
        None
    }

    fn destination(&mut self) -> Option<Split> {
        self.own.clone()
    }
}

/// The port that a reference in the route `origin` means: by name one from where the route comes from, by labels any.
fn referenced<'a>(
    view: &'a MeshView,
    kind: TargetRefKind,
    reference: &RouteBackendRef,
    origin: &ResourceId,
) -> Option<(&'a str, &'a Backend)> {
    let labels = reference.labels.as_ref().filter(|labels| !labels.is_empty());
    let namespace = reference.namespace.as_ref().filter(|namespace| !namespace.is_empty());
    let wanted = ResourceId {
        kind,
        name: reference.name.clone().unwrap_or_default(),
        namespace: namespace.unwrap_or(&origin.namespace).clone(),
        section: String::new(),
        ..origin.clone()
    };
    let section = reference.section_name.as_deref().filter(|section| !section.is_empty());
    let of_port = |backend: &Backend| match (section, reference.port) {
        (Some(section), _) => section == backend.section || section == backend.port.to_string(),
        (None, Some(port)) => port == backend.port,
        (None, None) => true,
    };
    let named = |backend: &Backend| {
        let id = backend_id(&view.name, backend).with_section("");
        match labels {
            Some(labels) => {
                id.kind == kind && labels.iter().all(|(label, value)| backend.labels.get(label) == Some(value))
            }
            None => id == wanted,
        }
    };
    let found = view.backends.iter().find(|(_, backend)| named(backend) && of_port(backend));
    found.map(|(key, backend)| (key.as_str(), backend))
}
