//! Tokens on request (Kuma `pkg/tokens/builtin/server`, `pkg/plugins/authn/api-server/tokens/ws`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::access::require_token_admin;
use super::server::{Answer, Request};
use super::{Api, ApiError};
use crate::auth::{DataplaneIdentity, User};
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
    let valid_for = if asked.valid_for.is_empty() {
        DEFAULT_VALIDITY
    } else {
        parse_go_duration(&asked.valid_for).unwrap_or_else(|e| {
            violations.push(Violation::new("validFor", format!("is invalid: {e}")));
            Duration::ZERO
        })
    };
    match asked.kind.as_str() {
        "" | "dataplane" => {}
        "ingress" | "egress" => {
            let message = format!("{} tokens are not supported by this version: it has no zone proxies", asked.kind);
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
