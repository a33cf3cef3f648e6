//! Tokens on request (Kuma `pkg/tokens/builtin/server`, `pkg/plugins/authn/api-server/tokens/ws`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::access::require_token_admin;
use super::server::{Answer, Request};
use super::{Api, ApiError};
use crate::auth::{DataplaneIdentity, User, ZoneScope};
use crate::resource::parse_go_duration;
use crate::resource::validate::Violation;

const TITLE: &str = "Could not issue a token";
/// Validity of a token whose request names none: ten years.
const DEFAULT_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DataplaneTokenRequest {
    name: String,
    mesh: String,
    tags: Option<BTreeMap<String, BTreeSet<String>>>,
    #[serde(rename = "type")]
    kind: String,
    workload: String,
    valid_for: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ZoneTokenRequest {
    zone: String,
    scope: Option<Vec<String>>,
    valid_for: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct UserTokenRequest {
    name: String,
    groups: Option<Vec<String>>,
    valid_for: String,
}

/// `POST /tokens/dataplane`.
pub(super) async fn dataplane(api: &Api, request: &Request, user: &User) -> Result<Answer, ApiError> {
    let asked: DataplaneTokenRequest = read(request)?;
    let mut violations = Vec::new();
    if asked.mesh.is_empty() {
        violations.push(Violation::new("mesh", "cannot be empty"));
    }
    let valid_for = valid_for(&asked.valid_for, &mut violations);
    match asked.kind.as_str() {
        "" | "dataplane" => {}
        "ingress" | "egress" => {
            let kind = &asked.kind;
            let message = format!("a zone {kind} joins with a zone token: POST /tokens/zone with scope [{kind:?}]");
            violations.push(Violation::new("type", message));
        }
        kind => violations.push(Violation::new("type", format!("unknown proxy type {kind:?}; use \"dataplane\""))),
    }
    refuse(violations)?;
    require_token_admin(user, "dataplane tokens")?;
    let identity = DataplaneIdentity {
        name: asked.name,
        mesh: asked.mesh,
        tags: asked.tags.unwrap_or_default(),
        kind: asked.kind,
        workload: asked.workload,
    };
    let token = api.dataplane_tokens.issue(&identity, valid_for).await.map_err(|e| ApiError::token(e, TITLE))?;
    tracing::info!(name = identity.name, mesh = identity.mesh, user = user.name, "issued a dataplane token");
    Ok(Answer::text(StatusCode::OK, token))
}

/// `POST /tokens/zone`.
pub(super) async fn zone(api: &Api, request: &Request, user: &User) -> Result<Answer, ApiError> {
    require_token_admin(user, "zone tokens")?;
    let asked: ZoneTokenRequest = read(request)?;
    let mut violations = Vec::new();
    let mut scope = Vec::new();
    if asked.scope.as_ref().is_none_or(Vec::is_empty) {
        violations.push(Violation::new("scope", "cannot be empty"));
    }
    for (index, text) in asked.scope.iter().flatten().enumerate() {
        match ZoneScope::parse(text) {
            Some(known) if !scope.contains(&known) => scope.push(known),
            Some(_) => {}
            None => {
                let message = format!("unknown scope {text:?}; use ingress, egress or cp");
                violations.push(Violation::new(format!("scope[{index}]"), message));
            }
        }
    }
    let valid_for = valid_for(&asked.valid_for, &mut violations);
    refuse(violations)?;
    let token = api.zone_tokens.issue(&asked.zone, &scope, valid_for).await.map_err(|e| ApiError::token(e, TITLE))?;
    tracing::info!(zone = asked.zone, user = user.name, "issued a zone token");
    Ok(Answer::text(StatusCode::OK, token))
}

/// The validity that was asked for, or the default.
fn valid_for(text: &str, violations: &mut Vec<Violation>) -> Duration {
    if text.is_empty() {
        return DEFAULT_VALIDITY;
    }
    parse_go_duration(text).unwrap_or_else(|e| {
        violations.push(Violation::new("validFor", format!("is invalid: {e}")));
        Duration::ZERO
    })
}

/// `POST /tokens/user`.
pub(super) async fn user(api: &Api, request: &Request, user: &User) -> Result<Answer, ApiError> {
    require_token_admin(user, "user tokens")?;
    let asked: UserTokenRequest = read(request)?;
    let mut violations = Vec::new();
    if asked.name.is_empty() {
        violations.push(Violation::new("name", "cannot be empty"));
    }
    let valid_for = if asked.valid_for.is_empty() {
        violations.push(Violation::new("validFor", "cannot be empty"));
        Duration::ZERO
    } else {
        match parse_go_duration(&asked.valid_for) {
            Ok(Duration::ZERO) => {
                violations.push(Violation::new("validFor", "cannot be empty or nil"));
                Duration::ZERO
            }
            Ok(valid_for) => valid_for,
            Err(e) => {
                violations.push(Violation::new("validFor", format!("is invalid: {e}")));
                Duration::ZERO
            }
        }
    };
    refuse(violations)?;
    let asked_user = User { name: asked.name, groups: asked.groups.unwrap_or_default() };
    let token = api.user_tokens.issue(&asked_user, valid_for).await.map_err(|e| ApiError::token(e, TITLE))?;
    tracing::info!(name = asked_user.name, user = user.name, "issued a user token");
    Ok(Answer::text(StatusCode::OK, token))
}

fn read<T: DeserializeOwned>(request: &Request) -> Result<T, ApiError> {
    serde_json::from_slice(&request.body).map_err(|e| ApiError::bad_request(format!("the body is not valid JSON: {e}")))
}

fn refuse(violations: Vec<Violation>) -> Result<(), ApiError> {
    if violations.is_empty() { Ok(()) } else { Err(ApiError::invalid("Invalid request", violations)) }
}
