//! Which proxies are let in: node, token, the resource that describes the proxy, and membership of the mesh.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::Shared;
use super::node::ProxyNode;
use super::session::Incoming;
use super::source::Source;
use crate::auth::{TokenError, ZoneScope};
use crate::resource::{Kind, Mesh, ProxyType, Resource, Spec, WORKLOAD_LABEL, documents, parse, validate};
use crate::store::{Expect, StoreError};

/// How long a proxy waits for the view of a mesh that was stored a moment ago.
const VIEW_PATIENCE: Duration = Duration::from_secs(5);

/// What is known once a proxy was let in.
pub(super) struct Opened {
    pub(super) node: ProxyNode,
    pub(super) source: Source,
    /// Whether the resource that describes the proxy came with it and goes with it.
    pub(super) brought: bool,
}

/// Lets a proxy in: reads its node, checks its token against the resource that describes it, and stores that resource if the proxy
/// brought it.
pub(super) async fn open(shared: &Shared, token: Option<String>, first: &Incoming) -> Result<Opened, Status> {
    let node = first.node.as_ref().ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    let node = ProxyNode::read(node).map_err(Status::invalid_argument)?;
    let unavailable = |e: StoreError| Status::unavailable(e.to_string());
    let key = node.key();
    let stored = shared.store.get(&key).await.map_err(unavailable)?;
    let brought = match &node.dataplane {
        Some(text) => {
            let resource = read_proxy(shared, text, node.proxy_type, &node.mesh, &node.name).map_err(|reason| {
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
            TokenError::Store(error) => Status::unavailable(error.to_string()),
            other => Status::unauthenticated(other.to_string()),
        })?;
    }
    let source = match node.proxy_type {
        ProxyType::Dataplane => {
            let view = shared.views.follow_soon(&node.mesh, VIEW_PATIENCE).await;
            let view =
                view.ok_or_else(|| Status::not_found(format!("mesh {:?} does not exist; create it first", node.mesh)))?;
            let mesh = view.borrow().mesh.clone();
            check_membership(&node.mesh, &mesh, resource).map_err(Status::permission_denied)?;
            Source::Mesh(view)
        }
        ProxyType::Ingress | ProxyType::Egress => {
            check_zone(shared, resource).map_err(Status::permission_denied)?;
            Source::Zone(shared.views.follow_zone())
        }
    };
    let is_brought = brought.is_some();
    if let Some(mut resource) = brought {
        if let Some(stored) = &stored {
            keep_own_fields(&mut resource, stored);
        }
        let unchanged = stored.is_some_and(|s| s.spec == resource.spec && s.meta.labels == resource.meta.labels);
        if !unchanged {
            shared.store.put(resource, Expect::Any).await.map_err(unavailable)?;
        }
    }
    Ok(Opened { node, source, brought: is_brought })
}

/// What the control plane itself finds out about a zone ingress stays when the ingress comes again.
fn keep_own_fields(resource: &mut Resource, stored: &Resource) {
    if let (Spec::ZoneIngress(new), Spec::ZoneIngress(stored)) = (&mut resource.spec, &stored.spec) {
        Arc::make_mut(new).available_services.clone_from(&stored.available_services);
    }
}

/// A zone ingress or a zone egress belongs to the zone of this control plane.
pub(super) fn check_zone(shared: &Shared, resource: &Resource) -> Result<(), String> {
    let zone = match &resource.spec {
        Spec::ZoneIngress(ingress) => &ingress.zone,
        Spec::ZoneEgress(egress) => &egress.zone,
        _ => return Ok(()),
    };
    let local = &shared.config.zone;
    if zone.is_empty() || zone == local {
        return Ok(());
    }
    Err(format!(
        "{} is in zone {zone:?}, and this is the control plane of zone {local:?}; connect it to the control plane of its own \
         zone",
        resource.key()
    ))
}

/// Reads the resource that a proxy brings along; the error says which field is wrong. Type, mesh and name must be the proxy's.
pub(super) fn read_proxy(
    shared: &Shared,
    text: &str,
    proxy_type: ProxyType,
    mesh: &str,
    name: &str,
) -> Result<Resource, String> {
    let kind = proxy_type.kind();
    let mut found = documents(text).map_err(|e| e.to_string())?;
    let document = match (found.pop(), found.is_empty()) {
        (Some(document), true) => document,
        _ => return Err(format!("exactly one {kind} is expected")),
    };
    let parsed = parse(document).map_err(|e| e.to_string())?;
    for warning in &parsed.warnings {
        tracing::warn!(mesh, name, "the {kind} that the proxy brings along: {warning}");
    }
    let mut resource = parsed.resource;
    if resource.kind() != kind {
        return Err(format!("type: a {kind} is expected, not a {}", resource.kind()));
    }
    for (field, found, expected) in [("mesh", &resource.meta.mesh, mesh), ("name", &resource.meta.name, name)] {
        if found != expected {
            return Err(format!("{field}: {found:?} is not the {field} of the proxy, {expected:?}"));
        }
    }
    let zone = &shared.config.zone;
    match &mut resource.spec {
        Spec::ZoneIngress(ingress) if ingress.zone.is_empty() => Arc::make_mut(ingress).zone.clone_from(zone),
        Spec::ZoneEgress(egress) if egress.zone.is_empty() => Arc::make_mut(egress).zone.clone_from(zone),
        Spec::Dataplane(dataplane) if shared.config.federated => Arc::make_mut(dataplane).set_zone(zone),
        _ => {}
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

/// Checks that the token was made for this proxy: a data plane token for a Dataplane, a zone token of this zone with the right scope
/// for a zone ingress or a zone egress.
pub(super) async fn check_token(shared: &Shared, token: &str, resource: &Resource) -> Result<(), TokenError> {
    let scope = match resource.kind() {
        Kind::ZoneIngress => Some(ZoneScope::Ingress),
        Kind::ZoneEgress => Some(ZoneScope::Egress),
        _ => None,
    };
    if let Some(scope) = scope {
        return shared.zone_tokens.validate(token, &shared.config.zone, scope).await.map(|_| ());
    }
    let tags = resource.dataplane().map(|dataplane| dataplane.tags()).unwrap_or_default();
    let workload = resource.meta.labels.get(WORKLOAD_LABEL).map(String::as_str);
    shared.tokens.validate(token, &resource.meta.mesh, &resource.meta.name, &tags, workload).await.map(|_| ())
}
