//! Who calls, and what they may do (Kuma `pkg/api-server/authn`, `pkg/core/resources/access`).

use std::net::IpAddr;

use http::{HeaderMap, StatusCode, header};

use super::server::Request;
use super::{Api, ApiError};
use crate::auth::{TokenError, User};
use crate::resource::Kind;

/// Finds out who calls: the administrator on the loopback interface, whoever a token names, or nobody in particular.
///
/// # Errors
/// 401 when a token is given and is not valid. A request that is open to everybody is refused too: the caller believes to
/// have rights, and should learn that they do not count.
pub(super) async fn authenticate(api: &Api, request: &Request) -> Result<User, ApiError> {
    if api.localhost_is_admin && is_direct_loopback(request) {
        return Ok(User::admin().authenticated());
    }
    let Some(value) = request.headers.get(header::AUTHORIZATION) else { return Ok(User::anonymous()) };
    let token = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    let Some(token) = token else { return Ok(User::anonymous()) };
    match api.user_tokens.validate(token).await {
        Ok(user) => Ok(user),
        Err(TokenError::Store(error)) => Err(ApiError::store(error, "Could not check authentication data")),
        Err(error) => {
            // The reason goes to the log, not to the caller, who may be guessing.
            tracing::info!(peer = %request.peer, reason = %error, "authentication rejected");
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "Invalid authentication data", "Unauthenticated"))
        }
    }
}

/// Secrets are for administrators.
pub(super) fn require_admin(user: &User, kind: Kind) -> Result<(), ApiError> {
    if !kind.admin_only() || user.is_admin() {
        return Ok(());
    }
    Err(denied(user, &format!("the resource of type {:?}", kind.name())))
}

/// Tokens are made by administrators.
pub(super) fn require_token_admin(user: &User, what: &str) -> Result<(), ApiError> {
    if user.is_admin() { Ok(()) } else { Err(denied(user, what)) }
}

fn denied(user: &User, what: &str) -> ApiError {
    let detail = format!(
        "user {:?} cannot access {what}; call from the control plane's own host, or with a user token of group \
         \"mesh-system:admin\"",
        user.to_string()
    );
    ApiError::new(StatusCode::FORBIDDEN, "Access Denied", detail)
}

/// Whether somebody on this host calls directly: neither through a proxy, nor a page of another site through a browser
/// on this host.
fn is_direct_loopback(request: &Request) -> bool {
    let headers = &request.headers;
    if !is_loopback(request.peer.ip()) {
        return false;
    }
    let through_proxy = ["forwarded", "x-forwarded-for", "x-real-ip"];
    if through_proxy.iter().any(|name| headers.get(*name).is_some_and(|value| !value.is_empty())) {
        return false;
    }
    let Some(host) = request.host().and_then(|authority| Authority::parse(authority, 80)) else { return false };
    if !host.is_loopback() {
        return false;
    }
    if !matches!(text(headers, "sec-fetch-site"), Some("" | "same-origin" | "none")) {
        return false;
    }
    match text(headers, "origin") {
        None => false,
        Some("") => true,
        Some(origin) => {
            let (default_port, authority) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
                (Some(authority), _) => (80, authority),
                (_, Some(authority)) => (443, authority),
                (None, None) => return false,
            };
            let host = request.host().and_then(|host| Authority::parse(host, default_port));
            Authority::parse(authority, default_port).is_some_and(|origin| origin.is_loopback() && Some(origin) == host)
        }
    }
}

/// A header's value, empty when it is absent, `None` when it is not text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map_or(Some(""), |value| value.to_str().ok())
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Host and port of a URL.
#[derive(PartialEq)]
struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    fn parse(text: &str, default_port: u16) -> Option<Authority> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
            }
            None => match text.split_once(':') {
                Some((host, port)) if !port.is_empty() => (host, Some(port)),
                Some(_) => return None,
                None => (text, Some("")),
            },
        };
        let port = match port? {
            "" => default_port,
            port => port.parse().ok().filter(|port| *port != 0)?,
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let valid = !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
        valid.then_some(Authority { host, port })
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(is_loopback)
    }
}
