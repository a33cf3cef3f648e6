//! Overviews: a resource together with its insight (Kuma `DataplaneOverview`, `ZoneOverview`, `ZoneIngressOverview`,
//! `ZoneEgressOverview`).

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::list::Query;
use super::resources::require_mesh;
use super::server::{Answer, Request};
use super::{Api, ApiError};
use crate::resource::{Kind, Resource, ResourceKey, spec_to_value};

const TITLE: &str = "Could not retrieve insights";

/// Lists the overviews of a kind that has insights, of one mesh or of all.
pub(super) async fn list(api: &Api, request: &Request, kind: Kind, mesh: Option<&str>) -> Result<Answer, ApiError> {
    let (query, insight) = (Query::read(request)?, insight_of(kind)?);
    if mesh.is_some() && !kind.in_mesh() {
        return Err(ApiError::not_found(TITLE));
    }
    if let Some(mesh) = mesh {
        require_mesh(api, mesh).await?;
    }
    let mut resources = api.store.list(kind, mesh).await.map_err(|e| ApiError::store(e, TITLE))?;
    resources.retain(|resource| query.shows(resource));
    let insights = api.store.list(insight, mesh).await.map_err(|e| ApiError::store(e, TITLE))?;
    let insights: BTreeMap<(&str, &str), &Resource> =
        insights.iter().map(|insight| ((insight.meta.mesh.as_str(), insight.meta.name.as_str()), insight)).collect();
    Ok(query.page(request, &resources, |resource| {
        let key = (resource.meta.mesh.as_str(), resource.meta.name.as_str());
        document(resource, insights.get(&key).copied())
    }))
}

/// Serves one overview.
pub(super) async fn one(api: &Api, kind: Kind, mesh: &str, name: &str) -> Result<Answer, ApiError> {
    let insight = insight_of(kind)?;
    if kind.in_mesh() == mesh.is_empty() {
        return Err(ApiError::not_found(TITLE));
    }
    if kind.in_mesh() {
        require_mesh(api, mesh).await?;
    }
    let read =
        async |kind| api.store.get(&ResourceKey::new(kind, mesh, name)).await.map_err(|e| ApiError::store(e, TITLE));
    let resource = read(kind).await?.ok_or_else(|| ApiError::not_found("Could not retrieve a resource"))?;
    let insight = read(insight).await?;
    Ok(Answer::json(StatusCode::OK, &document(&resource, insight.as_ref())))
}

fn insight_of(kind: Kind) -> Result<Kind, ApiError> {
    kind.insight().ok_or_else(|| ApiError::not_found(TITLE))
}

fn document(resource: &Resource, insight: Option<&Resource>) -> Value {
    let mut document = resource.to_document();
    // What the overview shares with its resource are the fields beside the specification.
    let Value::Object(fields) = &mut document else { return document };
    fields.retain(|field, _| {
        matches!(field.as_str(), "type" | "mesh" | "name" | "creationTime" | "modificationTime" | "labels" | "kri")
    });
    let name = resource.kind().name();
    fields.insert("type".to_owned(), json!(format!("{name}Overview")));
    let field = match name.split_at_checked(1) {
        Some((first, rest)) => format!("{}{rest}", first.to_ascii_lowercase()),
        None => name.to_owned(),
    };
    fields.insert(field.clone(), spec_to_value(&resource.spec));
    if let Some(insight) = insight {
        fields.insert(format!("{field}Insight"), spec_to_value(&insight.spec));
    }
    document
}
