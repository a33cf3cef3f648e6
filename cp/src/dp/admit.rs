//! Which proxies are let in: node, token, the resource that describes them, and membership of the mesh.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::Shared;
use super::node::{ProxyKind, ProxyNode};
use super::session::Incoming;
use super::source::Source;
use crate::auth::TokenError;
use crate::resource::{
    Mesh, Resource, ResourceKey, Spec, WORKLOAD_LABEL, ZoneEgress, ZoneIngress, documents, parse, validate,
};
use crate::store::{Expect, StoreError};

/// How long a proxy waits for the view of a mesh that was stored a moment ago.
const VIEW_PATIENCE: Duration = Duration::from_secs(5);

/// What is known once a proxy was let in.
pub(super) struct Opened {
    pub(super) node: ProxyNode,
    pub(super) source: Source,
    /// Whether the resource that describes the proxy came with the proxy and goes with it.
    pub(super) brought: bool,
}

/// Lets a proxy in: reads its node, checks its token against its Dataplane, and stores the Dataplane if the proxy brought it.
pub(super) async fn open(shared: &Shared, token: Option<String>, first: &Incoming) -> Result<Opened, Status> {
    let node = first.node.as_ref().ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    let node = ProxyNode::read(node).map_err(Status::invalid_argument)?;
    let unavailable = |e: StoreError| Status::unavailable(e.to_string());
    let key = node.key();
    let stored = shared.store.get(&key).await.map_err(unavailable)?;
    let brought = match &node.dataplane {
        Some(text) => {
            let resource = read_resource(text, &key).map_err(|reason| {
                Status::invalid_argument(format!("node.metadata[\"dataplane.resource\"]: {reason}"))
            })?;
            Some(resource)
        }
        None => None,
    };
    let resource = brought.as_ref().or(stored.as_ref()).ok_or_else(|| {
        Status::not_found(format!("{key} not found; apply it, or give it to the proxy with --dataplane-file"))
    })?;
    if shared.config.require_token {
        let token = token.filter(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| Status::unauthenticated("metadata authorization is missing: a token is required"))?;
        check_token(shared, &token, resource).await.map_err(|e| match e {
            TokenError::Invalid(reason) => Status::unauthenticated(reason),
            other => Status::unavailable(other.to_string()),
        })?;
    }
    let source = if node.kind == ProxyKind::Dataplane {
        let view = shared.views.follow_soon(&node.mesh, VIEW_PATIENCE).await;
        let view =
            view.ok_or_else(|| Status::not_found(format!("mesh {:?} does not exist; create it first", node.mesh)))?;
        let mesh = view.borrow().mesh.clone();
        check_membership(&node.mesh, &mesh, resource).map_err(Status::permission_denied)?;
        Source::Mesh(view)
    } else {
        Source::All(shared.views.follow_all())
    };
    let is_brought = brought.is_some();
    if let Some(resource) = brought {
        let resource = of_this_zone(shared, resource, stored.as_ref());
        let unchanged = stored.is_some_and(|s| s.spec == resource.spec && s.meta.labels == resource.meta.labels);
        if !unchanged {
            shared.store.put(resource, Expect::Any).await.map_err(unavailable)?;
        }
    }
    Ok(Opened { node, source, brought: is_brought })
}

/// A zone proxy is of the zone of its control plane, and what an ingress serves is for that to say.
fn of_this_zone(shared: &Shared, resource: Resource, stored: Option<&Resource>) -> Resource {
    let Resource { meta, spec } = resource;
    let spec = match spec {
        Spec::ZoneIngress(ingress) => {
            let mut ingress = ZoneIngress::clone(&ingress);
            ingress.zone.clone_from(&shared.config.zone);
            ingress.available_services = stored
                .and_then(Resource::zone_ingress)
                .map(|stored| stored.available_services.clone())
                .unwrap_or_default();
            Spec::ZoneIngress(Arc::new(ingress))
        }
        Spec::ZoneEgress(egress) => {
            let mut egress = ZoneEgress::clone(&egress);
            egress.zone.clone_from(&shared.config.zone);
            Spec::ZoneEgress(Arc::new(egress))
        }
        other => other,
    };
    Resource { meta, spec }
}

/// Reads the resource that a proxy brings along; the error says which field is wrong. Kind, mesh and name must be the proxy's.
pub(super) fn read_resource(text: &str, key: &ResourceKey) -> Result<Resource, String> {
    let kind = key.kind;
    let mut found = documents(text).map_err(|e| e.to_string())?;
    let document = match (found.pop(), found.is_empty()) {
        (Some(document), true) => document,
        _ => return Err(format!("exactly one {kind} is expected")),
    };
    let parsed = parse(document).map_err(|e| e.to_string())?;
    for warning in &parsed.warnings {
        tracing::warn!(proxy = %key, "the resource that the proxy brings along: {warning}");
    }
    let resource = parsed.resource;
    if resource.kind() != kind {
        return Err(format!("type: a {kind} is expected, not a {}", resource.kind()));
    }
    for (field, found, expected) in [("mesh", &resource.meta.mesh, &key.mesh), ("name", &resource.meta.name, &key.name)]
    {
        if found != expected {
            return Err(format!("{field}: {found:?} is not the {field} of the proxy, {expected:?}"));
        }
    }
    let violations = validate::resource(&resource);
    if violations.is_empty() {
        return Ok(resource);
    }
    Err(violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// Checks that the mesh's constraints let the Dataplane in.
pub(super) fn check_membership(name: &str, mesh: &Mesh, resource: &Resource) -> Result<(), String> {
    match resource.dataplane() {
        Some(dataplane) => validate::membership(name, mesh, dataplane),
        None => Err("a Dataplane is expected".to_owned()),
    }
}

/// Checks that the token was made for this Dataplane.
pub(super) async fn check_token(shared: &Shared, token: &str, resource: &Resource) -> Result<(), TokenError> {
    let tags = resource.dataplane().map(|dataplane| dataplane.tags()).unwrap_or_default();
    let workload = resource.meta.labels.get(WORKLOAD_LABEL).map(String::as_str);
    shared.tokens.validate(token, &resource.meta.mesh, &resource.meta.name, &tags, workload).await.map(|_| ())
}
