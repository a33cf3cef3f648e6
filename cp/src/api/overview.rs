//! Overviews: a Dataplane together with its insight (Kuma `DataplaneOverview`).

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::list::Query;
use super::resources::require_mesh;
use super::server::{Answer, Request};
use super::{Api, ApiError};
use crate::resource::{Kind, Resource, ResourceKey, spec_to_value};

const TITLE: &str = "Could not retrieve insights";

/// Lists the overviews of one mesh or of all.
pub(super) async fn list(api: &Api, request: &Request, mesh: Option<&str>) -> Result<Answer, ApiError> {
    let query = Query::read(request)?;
    if let Some(mesh) = mesh {
        require_mesh(api, mesh).await?;
    }
    let mut dataplanes = api.store.list(Kind::Dataplane, mesh).await.map_err(|e| ApiError::store(e, TITLE))?;
    dataplanes.retain(|dataplane| query.shows(dataplane));
    let insights = api.store.list(Kind::DataplaneInsight, mesh).await.map_err(|e| ApiError::store(e, TITLE))?;
    let insights: BTreeMap<(&str, &str), &Resource> =
        insights.iter().map(|insight| ((insight.meta.mesh.as_str(), insight.meta.name.as_str()), insight)).collect();
    Ok(query.page(request, &dataplanes, |dataplane| {
        let key = (dataplane.meta.mesh.as_str(), dataplane.meta.name.as_str());
        document(dataplane, insights.get(&key).copied())
    }))
}

/// Serves one overview.
pub(super) async fn one(api: &Api, mesh: &str, name: &str) -> Result<Answer, ApiError> {
    require_mesh(api, mesh).await?;
    let read =
        async |kind| api.store.get(&ResourceKey::new(kind, mesh, name)).await.map_err(|e| ApiError::store(e, TITLE));
    let dataplane = read(Kind::Dataplane).await?.ok_or_else(|| ApiError::not_found("Could not retrieve a resource"))?;
    let insight = read(Kind::DataplaneInsight).await?;
    Ok(Answer::json(StatusCode::OK, &document(&dataplane, insight.as_ref())))
}

fn document(dataplane: &Resource, insight: Option<&Resource>) -> Value {
    let mut document = dataplane.to_document();
    // What the overview shares with its Dataplane are the fields beside the specification.
    let Value::Object(fields) = &mut document else { return document };
    fields.retain(|field, _| {
        matches!(field.as_str(), "type" | "mesh" | "name" | "creationTime" | "modificationTime" | "labels" | "kri")
    });
    fields.insert("type".to_owned(), json!("DataplaneOverview"));
    fields.insert("dataplane".to_owned(), spec_to_value(&dataplane.spec));
    if let Some(insight) = insight {
        fields.insert("dataplaneInsight".to_owned(), spec_to_value(&insight.spec));
    }
    document
}
