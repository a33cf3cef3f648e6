//! Lists: filters and pages (Kuma `pkg/api-server/filters`, `pagination.go`).

use std::collections::BTreeMap;

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::server::{Answer, Request};
use super::{ApiError, InvalidParameter};
use crate::resource::validate::Violation;
use crate::resource::{Dataplane, GatewayType, Resource};

/// Items of a page unless `size` says otherwise, and the most it may say.
const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1000;
const TITLE: &str = "Could not retrieve resources";

/// What a list shows: the parameters of its query.
pub(super) struct Query {
    size: usize,
    offset: usize,
    name: String,
    labels: Vec<(String, String)>,
    tags: BTreeMap<String, String>,
    gateway: GatewayFilter,
}

#[derive(Clone, Copy, PartialEq)]
enum GatewayFilter {
    Any,
    None,
    All,
    Only(GatewayType),
}

impl Query {
    /// Reads the query of a list.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub(super) fn read(request: &Request) -> Result<Query, ApiError> {
        let mut query = Query {
            size: DEFAULT_PAGE_SIZE,
            offset: 0,
            name: String::new(),
            labels: Vec::new(),
            tags: BTreeMap::new(),
            gateway: GatewayFilter::Any,
        };
        let mut violations = Vec::new();
        for (parameter, value) in request.parameters() {
            match parameter.as_str() {
                "size" if value.is_empty() => {}
                "size" => query.size = size(&value)?,
                "offset" if value.is_empty() => {}
                "offset" => {
                    let invalid =
                        |_| ApiError::new(StatusCode::BAD_REQUEST, TITLE, format!("invalid offset {value:?}"));
                    query.offset = value.parse().map_err(invalid)?;
                }
                "name" => query.name = value,
                "tag" => {
                    // Only the first colon separates, a value may hold others; what has none is no filter in Kuma either.
                    if let Some((tag, value)) = value.split_once(':') {
                        query.tags.insert(tag.to_owned(), value.to_owned());
                    }
                }
                "gateway" => match value.to_ascii_lowercase().as_str() {
                    "" => {}
                    "true" => query.gateway = GatewayFilter::All,
                    "false" => query.gateway = GatewayFilter::None,
                    "builtin" => query.gateway = GatewayFilter::Only(GatewayType::Builtin),
                    "delegated" => query.gateway = GatewayFilter::Only(GatewayType::Delegated),
                    mode => violations.push(Violation::new(
                        format!("{}.gateway", request.path()),
                        format!("should use 'true', 'false', 'builtin' or 'delegated' instead of {mode}"),
                    )),
                },
                filter if filter.starts_with("filter[") => {
                    match filter.strip_prefix("filter[labels.").and_then(|rest| rest.strip_suffix(']')) {
                        Some(label) if !label.contains(']') => query.labels.push((label.to_owned(), value)),
                        Some(_) => violations.push(Violation::new(
                            format!("{}.{filter}", request.path()),
                            "advanced filters are not supported",
                        )),
                        None => violations.push(Violation::new(
                            format!("{}.{filter}", request.path()),
                            "filters are only supported on labels",
                        )),
                    }
                }
                // What is no filter here is none in Kuma either: `format`, for example.
                _ => {}
            }
        }
        if violations.is_empty() { Ok(query) } else { Err(ApiError::invalid(TITLE, violations)) }
    }

    /// Whether the list shows that resource.
    pub(super) fn shows(&self, resource: &Resource) -> bool {
        resource.meta.name.contains(&self.name)
            && self.labels.iter().all(|(label, value)| resource.meta.labels.get(label) == Some(value))
            && resource.dataplane().is_none_or(|dataplane| self.shows_dataplane(dataplane))
    }

    fn shows_dataplane(&self, dataplane: &Dataplane) -> bool {
        let gateway = dataplane.networking.as_ref().and_then(|networking| networking.gateway.as_ref());
        let shown = match (self.gateway, gateway) {
            (GatewayFilter::Any, _) | (GatewayFilter::None, None) | (GatewayFilter::All, Some(_)) => true,
            (GatewayFilter::Only(kind), Some(gateway)) => gateway.kind == kind,
            (GatewayFilter::None, Some(_)) | (GatewayFilter::All | GatewayFilter::Only(_), None) => false,
        };
        // All of the wanted tags on one inbound, or on the gateway, each holding the wanted text somewhere.
        let matches = |tags: &BTreeMap<String, String>| {
            self.tags.iter().all(|(tag, part)| tags.get(tag).is_some_and(|value| value.contains(part)))
        };
        shown
            && (self.tags.is_empty()
                || dataplane.inbounds().iter().any(|inbound| matches(&inbound.tags))
                || gateway.is_some_and(|gateway| matches(&gateway.tags)))
    }

    /// The page that the query asks for.
    pub(super) fn page<T>(&self, request: &Request, all: &[T], document: impl Fn(&T) -> Value) -> Answer {
        let items: Vec<Value> = all.iter().skip(self.offset).take(self.size).map(document).collect();
        let end = self.offset.saturating_add(items.len());
        let next = if end < all.len() && !items.is_empty() { json!(next_url(request, end)) } else { Value::Null };
        Answer::json(StatusCode::OK, &json!({"total": all.len(), "items": items, "next": next}))
    }
}

fn size(text: &str) -> Result<usize, ApiError> {
    let invalid = |reason: String| {
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, TITLE, "Invalid page size");
        error.invalid_parameters = vec![InvalidParameter { field: "size".to_owned(), reason }];
        error
    };
    match text.parse::<i64>() {
        Err(_) => Err(invalid("invalid format".to_owned())),
        Ok(size) if size <= 0 => Err(invalid("must be greater than 0".to_owned())),
        Ok(size) => usize::try_from(size)
            .ok()
            .filter(|size| *size <= MAX_PAGE_SIZE)
            .ok_or_else(|| invalid(format!("invalid page size of {size}. Maximum page size is {MAX_PAGE_SIZE}"))),
    }
}

/// The address of the next page: the one that was called, with another offset.
fn next_url(request: &Request, offset: usize) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut parameters: Vec<(String, String)> =
        request.parameters().into_iter().filter(|(name, _)| name != "offset").collect();
    parameters.push(("offset".to_owned(), offset.to_string()));
    parameters.sort();
    let query: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    format!("http://{}{}?{}", request.host().unwrap_or("localhost"), request.path(), query.join("&"))
}
