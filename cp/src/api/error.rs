//! Errors in Kuma's JSON (Kuma `pkg/core/rest/errors`).

use http::StatusCode;
use serde_json::{Value, json};

use super::server::Answer;
use crate::auth::TokenError;
use crate::resource::{Kind, ParseError, ResourceKey, validate::Violation};
use crate::store::StoreError;

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A short summary, the same for every occurrence of the problem.
    pub title: String,
    /// What happened this time.
    pub detail: String,
    /// Which fields or parameters are wrong.
    pub invalid_parameters: Vec<InvalidParameter>,
}

/// A field or parameter that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidParameter {
    /// Its path.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ApiError {
    /// An error without invalid parameters.
    pub fn new(status: StatusCode, title: impl Into<String>, detail: impl Into<String>) -> ApiError {
        ApiError { status, title: title.into(), detail: detail.into(), invalid_parameters: Vec::new() }
    }

    /// 400 with Kuma's title.
    pub fn bad_request(detail: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "Bad Request", detail)
    }

    /// 404: the title says what was tried.
    pub fn not_found(title: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, title, "Not found")
    }

    /// 405 with Kuma's title.
    pub fn method_not_allowed(detail: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method not Allowed", detail)
    }

    /// 400 that names what breaks Kuma's rules.
    pub fn invalid(title: impl Into<String>, violations: Vec<Violation>) -> ApiError {
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, title, "Resource is not valid");
        error.invalid_parameters = violations
            .into_iter()
            .map(|violation| InvalidParameter { field: violation.field, reason: violation.message })
            .collect();
        error
    }

    /// A document that cannot be read.
    pub fn parse(error: ParseError) -> ApiError {
        match error {
            ParseError::Syntax(detail) => ApiError::bad_request(detail),
            ParseError::Fields { violations } => {
                let detail = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                let mut error = ApiError::invalid("Bad Request", violations);
                error.detail = detail;
                error
            }
        }
    }

    /// A failure of the store; `title` says what was tried.
    pub fn store(error: StoreError, title: &str) -> ApiError {
        match error {
            StoreError::NotFound(_) => ApiError::not_found(title),
            StoreError::Exists(_) | StoreError::Conflict { .. } => {
                ApiError::new(StatusCode::CONFLICT, "Conflict", error.to_string())
            }
            StoreError::NoMesh { key, mesh } => no_mesh(title, &key, &mesh),
            StoreError::Database(reason) => {
                tracing::error!(%reason, "{title}");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, title, "Internal Server Error")
            }
        }
    }

    /// A token that was not made.
    pub fn token(error: TokenError, title: &str) -> ApiError {
        match error {
            TokenError::NoSigningKey { .. } => {
                ApiError::new(StatusCode::NOT_FOUND, "Signing Key not found", error.to_string())
            }
            TokenError::Store(error) => ApiError::store(error, title),
            TokenError::Invalid(detail) => ApiError::new(StatusCode::BAD_REQUEST, title, detail),
            TokenError::Issue(detail) => {
                tracing::error!(%detail, "{title}");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, title, detail)
            }
        }
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        let mut body = json!({
            "type": "/std-errors",
            "status": self.status.as_u16(),
            "title": self.title,
            "detail": self.detail,
        });
        let parameters = &self.invalid_parameters;
        if !parameters.is_empty() {
            let parameter = |p: &InvalidParameter| json!({"field": p.field, "reason": p.reason});
            body["invalid_parameters"] = parameters.iter().map(parameter).collect();
        }
        // The old names of the same, which kumactl still reads.
        body["details"] = json!(self.detail);
        if !parameters.is_empty() {
            let cause = |p: &InvalidParameter| json!({"field": p.field, "message": p.reason});
            body["causes"] = parameters.iter().map(cause).collect();
        }
        body
    }
}

fn no_mesh(title: &str, key: &ResourceKey, mesh: &str) -> ApiError {
    let mut error = ApiError::new(StatusCode::BAD_REQUEST, title, "Mesh is not found");
    debug_assert!(key.kind != Kind::Mesh, "a mesh is in no mesh");
    error.invalid_parameters =
        vec![InvalidParameter { field: "mesh".to_owned(), reason: format!("mesh of name {mesh} is not found") }];
    error
}

impl From<ApiError> for Answer {
    fn from(error: ApiError) -> Answer {
        Answer::json(error.status, &error.to_json())
    }
}
