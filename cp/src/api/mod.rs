//! The REST API on 5681, in Kuma's JSON (Kuma `pkg/api-server`), and the diagnostics server on 5680.
//!
//! Life of a request: [`server`] reads it, [`access`] finds out who calls, [`route`] picks the answer, which is either a
//! document or an [`ApiError`].

pub mod access;
mod description;
pub mod diagnostics;
mod error;
mod kubernetes;
mod list;
mod overview;
mod resources;
pub mod server;
mod tokens;

pub use error::{ApiError, InvalidParameter};

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::auth::{DataplaneTokens, User, UserTokens, ZoneTokens};
use crate::resource::{Kind, ResourceKey};
use crate::store::Store;
use access::require_admin;
use server::{Answer, Request};

/// What the product calls itself where clients compare it with their own name.
pub const PRODUCT: &str = "Kuma";
/// The version of Kuma whose API this is. kumactl compares it with its own, and warns when minor versions differ.
pub const KUMA_VERSION: &str = "2.14.0";

/// Which part of a mesh over several zones a control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Alone: everything is written here.
    Standalone,
    /// The global one: what is in a zone is written there.
    Global,
    /// That of the zone of that name: what is in all zones is written at global.
    Zone(String),
}

/// What the API serves from.
#[derive(Debug)]
pub struct Api {
    /// The resources.
    pub store: Store,
    /// Tokens of data planes.
    pub dataplane_tokens: DataplaneTokens,
    /// Tokens of users.
    pub user_tokens: UserTokens,
    /// Tokens of zones.
    pub zone_tokens: ZoneTokens,
    /// Which part of a mesh over several zones this control plane is; says what may be written here.
    pub role: Role,
    /// Whether a caller on the loopback interface is the administrator (`apiServer.authn.localhostIsAdmin`).
    pub localhost_is_admin: bool,
    /// Name of the host.
    pub hostname: String,
    /// Unique identifier of this process.
    pub instance_id: String,
    /// Unique identifier of this control plane, the same after a restart.
    pub cluster_id: String,
    /// The configuration as `/config` shows it; holds no secrets.
    pub config: Value,
}

impl Api {
    /// An API on that store, with the defaults of everything else.
    pub fn new(store: Store) -> Api {
        Api {
            dataplane_tokens: DataplaneTokens::new(store.clone()),
            user_tokens: UserTokens::new(store.clone()),
            zone_tokens: ZoneTokens::new(store.clone()),
            store,
            role: Role::Standalone,
            localhost_is_admin: true,
            hostname: String::new(),
            instance_id: String::new(),
            cluster_id: String::new(),
            config: json!({}),
        }
    }

    /// Answers a request.
    pub async fn answer(self: &Arc<Api>, request: Request) -> Answer {
        let user = match access::authenticate(self, &request).await {
            Ok(user) => user,
            Err(error) => return error.into(),
        };
        match route(self, &request, &user).await {
            Ok(answer) => answer,
            Err(error) => error.into(),
        }
    }
}

/// The answer to a request: every path of the API stands here.
async fn route(api: &Api, request: &Request, user: &User) -> Result<Answer, ApiError> {
    let path = request.path();
    let mut segments = Vec::new();
    for segment in path.trim_matches('/').split('/').filter(|segment| !segment.is_empty()) {
        let decoded = percent_decode_str(segment)
            .decode_utf8()
            .map_err(|_| ApiError::bad_request(format!("path segment {segment:?} is not UTF-8")))?;
        segments.push(decoded.into_owned());
    }
    let mut segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    // Old spellings: `dataplanes+insights/web` stands for `dataplanes/web/_overview`.
    for position in [0, 2] {
        if let Some(segment) = segments.get_mut(position)
            && let Some(plural) = old_overview(segment)
        {
            *segment = plural;
            segments.push("_overview");
            break;
        }
    }
    let get = matches!(request.method, Method::GET | Method::HEAD);
    match segments.as_slice() {
        [] if get => Ok(Answer::json(StatusCode::OK, &description::index(api))),
        ["config"] if get => Ok(Answer::json(StatusCode::OK, &api.config)),
        ["who-am-i"] if get => Ok(Answer::json(StatusCode::OK, &json!({"name": user.name, "groups": user.groups}))),
        ["policies"] if get => Ok(Answer::json(StatusCode::OK, &description::policies())),
        ["_resources"] if get => Ok(Answer::json(StatusCode::OK, &description::resources())),
        ["tokens", "dataplane"] if request.method == Method::POST => tokens::dataplane(api, request, user).await,
        ["tokens", "user"] if request.method == Method::POST => tokens::user(api, request, user).await,
        ["tokens", "zone"] if request.method == Method::POST => tokens::zone(api, request, user).await,
        [collection, "_overview"] if get => {
            overview::list(api, request, with_insight(collection, request)?, None).await
        }
        [collection, name, "_overview"] if get => {
            overview::one(api, with_insight(collection, request)?, "", name).await
        }
        ["meshes", mesh, collection, "_overview"] if get => {
            overview::list(api, request, with_insight(collection, request)?, Some(mesh)).await
        }
        ["meshes", mesh, collection, name, "_overview"] if get => {
            overview::one(api, with_insight(collection, request)?, mesh, name).await
        }
        ["_kri", kri] if get => resources::by_kri(api, request, kri).await,
        ["meshes", mesh, plural] => match Kind::from_path(plural).filter(|kind| kind.in_mesh()) {
            Some(kind) => collection(api, request, user, kind, Some(mesh)).await,
            None => Err(not_here(request)),
        },
        ["meshes", mesh, plural, name] => match Kind::from_path(plural).filter(|kind| kind.in_mesh()) {
            Some(kind) => single(api, request, user, ResourceKey::new(kind, *mesh, *name)).await,
            None => Err(not_here(request)),
        },
        [plural] => match Kind::from_path(plural) {
            Some(kind) => collection(api, request, user, kind, None).await,
            None => Err(not_here(request)),
        },
        [plural, name] => match Kind::from_path(plural).filter(|kind| !kind.in_mesh()) {
            Some(kind) => single(api, request, user, ResourceKey::global(kind, *name)).await,
            None => Err(not_here(request)),
        },
        _ => Err(not_here(request)),
    }
}

async fn collection(
    api: &Api,
    request: &Request,
    user: &User,
    kind: Kind,
    mesh: Option<&str>,
) -> Result<Answer, ApiError> {
    require_admin(user, kind)?;
    match request.method {
        Method::GET | Method::HEAD => resources::list(api, request, kind, mesh).await,
        _ => Err(ApiError::method_not_allowed(format!("{} is not allowed on {}", request.method, request.path()))),
    }
}

async fn single(api: &Api, request: &Request, user: &User, key: ResourceKey) -> Result<Answer, ApiError> {
    require_admin(user, key.kind)?;
    match request.method {
        Method::GET | Method::HEAD => resources::get(api, request, &key).await,
        Method::PUT => resources::put(api, request, key).await,
        Method::DELETE => resources::delete(api, &key).await,
        _ => Err(ApiError::method_not_allowed(format!("{} is not allowed on {}", request.method, request.path()))),
    }
}

/// `dataplanes` of `dataplanes+insights`, and `zoneegresses` of the one that has a name of its own.
fn old_overview(segment: &str) -> Option<&str> {
    match segment {
        "zoneegressoverviews" => Some(Kind::ZoneEgress.path()),
        segment => segment.strip_suffix("+insights"),
    }
}

/// The kind of that path, if there are insights of it.
fn with_insight(plural: &str, request: &Request) -> Result<Kind, ApiError> {
    Kind::from_path(plural).filter(|kind| kind.insight().is_some()).ok_or_else(|| not_here(request))
}

fn not_here(request: &Request) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "Not found",
        format!("{} {} is not part of this API", request.method, request.path()),
    )
}

/// The address of a caller, or an unspecified one in tests that have none.
pub(crate) type Peer = SocketAddr;

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
