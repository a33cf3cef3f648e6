//! Resources: list, get, put, delete (Kuma `pkg/api-server/resource_endpoints.go`).

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::list::Query;
use super::server::{Answer, Request};
use super::{Api, ApiError, Role, kubernetes};
use crate::defaults;
use crate::kds;
use crate::resource::validate::{self, Violation};
use crate::resource::{Kind, Resource, ResourceKey, Spec, parse, set_status, status_to_value};
use crate::store::Expect;

const GET_TITLE: &str = "Could not retrieve a resource";
const LIST_TITLE: &str = "Could not retrieve resources";
const PUT_TITLE: &str = "Could not process a resource";
const CREATE_TITLE: &str = "Failed to create a resource";
const UPDATE_TITLE: &str = "Failed to update a resource";
const DELETE_TITLE: &str = "Could not delete a resource";
const MESH_TITLE: &str = "Failed to retrieve Mesh";

/// Lists a kind, in one mesh or in all of them.
pub(super) async fn list(api: &Api, request: &Request, kind: Kind, mesh: Option<&str>) -> Result<Answer, ApiError> {
    let query = Query::read(request)?;
    if let Some(mesh) = mesh {
        require_mesh(api, mesh).await?;
    }
    let mut resources = api.store.list(kind, mesh).await.map_err(|e| ApiError::store(e, LIST_TITLE))?;
    resources.retain(|resource| query.shows(resource));
    Ok(query.page(request, &resources, Resource::to_document))
}

/// Serves one resource.
pub(super) async fn get(api: &Api, request: &Request, key: &ResourceKey) -> Result<Answer, ApiError> {
    if key.kind.in_mesh() {
        require_mesh(api, &key.mesh).await?;
    }
    let found = api.store.get(key).await.map_err(|e| ApiError::store(e, GET_TITLE))?;
    in_format(request, &found.ok_or_else(|| ApiError::not_found(GET_TITLE))?)
}

/// The resource in the format that is asked for.
fn in_format(request: &Request, resource: &Resource) -> Result<Answer, ApiError> {
    let document = match request.parameter("format").as_deref() {
        None | Some("" | "universal") => resource.to_document(),
        Some("k8s" | "kubernetes") => kubernetes::object(resource, &request.parameter("namespace").unwrap_or_default()),
        Some(_) => {
            let violation = Violation::new("format", "must be one of k8s, kubernetes, universal");
            return Err(ApiError::invalid(GET_TITLE, vec![violation]));
        }
    };
    Ok(Answer::json(StatusCode::OK, &document))
}

/// Serves the resource of an identifier such as `kri_dp_default___web-1_`.
pub(super) async fn by_kri(api: &Api, request: &Request, kri: &str) -> Result<Answer, ApiError> {
    let malformed = || {
        ApiError::bad_request(format!(
            "{kri:?} is not a resource identifier: expected kri_<type>_<mesh>_<zone>_<namespace>_<name>_<section>"
        ))
    };
    let parts: Vec<&str> = kri.split('_').collect();
    let ["kri", short, mesh, zone, _namespace, name, _section, ..] = parts.as_slice() else {
        return Err(malformed());
    };
    let kind = Kind::ALL.into_iter().find(|kind| kind.short() == Some(short)).ok_or_else(malformed)?;
    let mesh = if kind.in_mesh() { *mesh } else { "" };
    // A resource of another control plane has the name that it had there in its identifier, and another one here.
    let stored = api.store.list(kind, Some(mesh)).await.map_err(|e| ApiError::store(e, GET_TITLE))?;
    let wanted = parts.get(..6).map(|parts| format!("{}_", parts.join("_"))).unwrap_or_default();
    let found = stored.into_iter().find(|resource| {
        let key = resource.key();
        key.kri(&resource.meta.labels).is_some_and(|kri| kri == wanted) || (key.name == *name && zone.is_empty())
    });
    in_format(request, &found.ok_or_else(|| ApiError::not_found(GET_TITLE))?)
}

/// Creates or changes a resource.
pub(super) async fn put(api: &Api, request: &Request, key: ResourceKey) -> Result<Answer, ApiError> {
    require_writable(api, key.kind)?;
    if key.kind.in_mesh() {
        require_mesh(api, &key.mesh).await?;
    }
    let (mut resource, mut warnings) = read(request, &key)?;
    warnings.extend(validate::without_effect(&resource));
    if let (Role::Zone(zone), Spec::Dataplane(dataplane)) = (&api.role, &mut resource.spec) {
        Arc::make_mut(dataplane).set_zone(zone);
    }
    let stored = api.store.get(&key).await.map_err(|e| ApiError::store(e, "Failed to find a resource"))?;
    require_own(api, &resource, stored.as_ref())?;
    let title = if stored.is_some() { UPDATE_TITLE } else { CREATE_TITLE };
    check(api, &resource, stored.as_ref(), title).await?;
    // The status is the control plane's: a document with another one does not change it.
    if let Some(status) = stored.as_ref().and_then(|stored| status_to_value(&stored.spec)) {
        set_status(&mut resource.spec, status).map_err(ApiError::parse)?;
    }
    let new_mesh = resource.mesh().cloned().filter(|_| stored.is_none());
    let expect = stored.as_ref().map_or(Expect::Absent, |stored| Expect::Version(stored.meta.version));
    api.store.put(resource, expect).await.map_err(|e| ApiError::store(e, title))?;
    if let Some(mesh) = new_mesh {
        defaults::new_mesh(&api.store, &key.name, &mesh).await.map_err(|error| {
            tracing::error!(mesh = key.name, %error, "cannot create the defaults of a new mesh");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, CREATE_TITLE, "Internal Server Error")
        })?;
    }
    let body = if warnings.is_empty() { json!({}) } else { json!({"warnings": warnings}) };
    let status = if stored.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok(Answer::json(status, &body))
}

/// Deletes a resource.
pub(super) async fn delete(api: &Api, key: &ResourceKey) -> Result<Answer, ApiError> {
    require_writable(api, key.kind)?;
    if key.kind.in_mesh() {
        require_mesh(api, &key.mesh).await?;
    }
    let found = api.store.get(key).await.map_err(|e| ApiError::store(e, DELETE_TITLE))?;
    let Some(found) = found else { return Err(ApiError::not_found(DELETE_TITLE)) };
    require_own(api, &found, Some(&found))?;
    if key.kind == Kind::Zone
        && kds::global::is_connected(&api.store, &key.name).await.map_err(|e| ApiError::store(e, DELETE_TITLE))?
    {
        let message = "unable to delete Zone, its control plane is still connected; stop it first";
        return Err(ApiError::invalid(DELETE_TITLE, vec![Violation::new("zone", message)]));
    }
    if key.kind == Kind::Mesh {
        let attached = api.store.list(Kind::Dataplane, Some(&key.name)).await;
        if !attached.map_err(|e| ApiError::store(e, DELETE_TITLE))?.is_empty() {
            let message = "unable to delete mesh, there are still some dataplanes attached";
            return Err(ApiError::invalid(DELETE_TITLE, vec![Violation::new("mesh", message)]));
        }
    }
    api.store.delete(key).await.map_err(|e| ApiError::store(e, DELETE_TITLE))?;
    Ok(Answer::json(StatusCode::OK, &json!({})))
}

/// Refuses kinds that nobody may write here: those of the control plane itself, and in a mesh over several zones those that are
/// written elsewhere (Kuma `ResourceTypeDescriptor.IsReadOnly`).
fn require_writable(api: &Api, kind: Kind) -> Result<(), ApiError> {
    let sync = kind.sync();
    let reason = match &api.role {
        _ if kind.read_only() => {
            format!("{kind} is written by the control plane alone, it cannot be changed or deleted")
        }
        Role::Global if !sync.by_global => format!(
            "On global control plane you can not modify {kind} resources: they belong to a zone, write them at the control \
             plane of that zone"
        ),
        Role::Zone(_) if !sync.by_zone => format!(
            "On zone control plane you can only modify zone resources: {kind} belongs to all zones, write it at the global \
             control plane"
        ),
        Role::Standalone | Role::Global | Role::Zone(_) => return Ok(()),
    };
    Err(ApiError::method_not_allowed(reason))
}

/// Refuses to write what another control plane wrote, and what says that another one did (Kuma `validateOriginForWrite`).
fn require_own(api: &Api, resource: &Resource, stored: Option<&Resource>) -> Result<(), ApiError> {
    let origin = |resource: &Resource| resource.meta.labels.get("kuma.io/origin").cloned();
    let here = match &api.role {
        Role::Standalone => return Ok(()),
        Role::Global => "global",
        Role::Zone(_) => "zone",
    };
    if let Some(other) = stored.and_then(origin).filter(|origin| origin != here) {
        return Err(ApiError::method_not_allowed(format!(
            "{} was created at another control plane (its origin is {other}); change it there",
            resource.key()
        )));
    }
    match origin(resource) {
        Some(origin) if origin != here => {
            let message = format!("the origin label must be set to '{here}'");
            Err(ApiError::invalid(PUT_TITLE, vec![Violation::new("labels[\"kuma.io/origin\"]", message)]))
        }
        _ => Ok(()),
    }
}

/// Reads the body of a put, which must be about the resource that the URL names.
fn read(request: &Request, key: &ResourceKey) -> Result<(Resource, Vec<String>), ApiError> {
    let body: Value = serde_json::from_slice(&request.body)
        .map_err(|e| ApiError::bad_request(format!("the body is not valid JSON: {e}")))?;
    let parsed = parse(body).map_err(ApiError::parse)?;
    let found = parsed.resource.key();
    let mut violations = Vec::new();
    let mut same = |field: &str, same: bool| {
        if !same {
            violations.push(Violation::new(field, format!("{field} from the URL has to be the same as in body")));
        }
    };
    same("name", found.name == key.name);
    same("type", found.kind == key.kind);
    same("mesh", found.mesh == key.mesh || found.kind != key.kind);
    if violations.is_empty() {
        violations = validate::meta(key.kind, &parsed.resource.meta);
    }
    if !violations.is_empty() {
        return Err(ApiError::invalid(PUT_TITLE, violations));
    }
    Ok((parsed.resource, parsed.warnings))
}

/// Checks a resource by itself and against what is stored.
async fn check(api: &Api, resource: &Resource, stored: Option<&Resource>, title: &str) -> Result<(), ApiError> {
    let mut violations = validate::resource(resource);
    if let Some(stored) = stored {
        violations.extend(validate::immutable_labels(&stored.meta, &resource.meta));
        if let (Some(old), Some(new)) = (stored.mesh(), resource.mesh()) {
            violations.extend(validate::mesh_update(old, new));
        }
    }
    if !violations.is_empty() {
        return Err(ApiError::invalid(title, violations));
    }
    if let Spec::Dataplane(dataplane) = &resource.spec {
        let mesh_key = ResourceKey::global(Kind::Mesh, resource.meta.mesh.clone());
        let mesh = api.store.get(&mesh_key).await.map_err(|e| ApiError::store(e, title))?;
        if let Some(mesh) = mesh.as_ref().and_then(Resource::mesh) {
            validate::membership(&resource.meta.mesh, mesh, dataplane)
                .map_err(|reason| ApiError::new(StatusCode::BAD_REQUEST, title, reason))?;
        }
    }
    Ok(())
}

pub(super) async fn require_mesh(api: &Api, mesh: &str) -> Result<(), ApiError> {
    let found = api.store.get(&ResourceKey::global(Kind::Mesh, mesh)).await;
    match found.map_err(|e| ApiError::store(e, MESH_TITLE))? {
        Some(_) => Ok(()),
        None => Err(ApiError::not_found(MESH_TITLE)),
    }
}
