//! Requests that a service has to allow.
//!
//! Source: Envoy `filters.http.ext_authz.v3.ExtAuthz`, "External Authorization".

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};

use super::{ClusterId, http_filter::GrpcCall, matcher::StringMatcher, route::Fraction};
use crate::stats::ExtAuthzStats;

/// Envoy `ExtAuthz`.
#[derive(Debug)]
pub struct ExtAuthz {
    /// `http.<stat_prefix>.ext_authz.*`
    pub stats: ExtAuthzStats,
    /// Who is asked.
    pub service: AuthzService,
    /// Requests go on when the service fails. Envoy's default is that they are refused.
    pub failure_mode_allow: bool,
    /// They then carry `x-envoy-auth-failure-mode-allowed: true`.
    pub failure_mode_header: bool,
    /// `with_request_body`
    pub body: Option<AskedBody>,
    /// Of the refusal when the service fails; Envoy's default 403.
    pub status_on_error: StatusCode,
    /// Share of the requests that are asked about; Envoy's default all.
    pub enabled: Fraction,
    /// The others are refused.
    pub deny_at_disable: bool,
    /// The service sees the client's certificate.
    pub peer_certificate: bool,
    /// The service sees the server name that the client asked for.
    pub tls_session: bool,
    /// Headers that the service sees; `None`: the service's default.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// Headers that it does not see.
    pub disallowed_headers: Vec<StringMatcher>,
    /// `encode_raw_headers`: headers are sent one by one, as bytes.
    pub raw_headers: bool,
    /// Refusals count among the answers of the route's cluster; Envoy's default.
    pub charge_cluster: bool,
    /// Longest body of a refusal, bytes; the rest is cut off. 0: no bound.
    pub longest_denial: u32,
}

/// Envoy `BufferSettings`.
#[derive(Clone, Copy, Debug)]
pub struct AskedBody {
    /// So many bytes of the body are sent, at least 1.
    pub most: u32,
    /// Longer bodies are sent in part, instead of being refused.
    pub partial: bool,
    /// `raw_body` instead of `body`.
    pub as_bytes: bool,
}

/// Who is asked.
#[derive(Debug)]
pub enum AuthzService {
    /// `grpc_service`
    Grpc(GrpcCall),
    /// `http_service`
    Http(HttpAuthz),
}

/// Envoy `HttpService`.
#[derive(Debug)]
pub struct HttpAuthz {
    /// Slot in the snapshot; may be empty.
    pub cluster: ClusterId,
    /// For messages when it is.
    pub name: Arc<str>,
    /// Longest wait.
    pub timeout: Duration,
    /// Before the request's path.
    pub path_prefix: Box<str>,
    /// Instead of it.
    pub path_override: Option<Box<str>>,
    /// On what is sent to the service.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Of an allowing answer, in place of what the request has.
    pub to_upstream: Vec<StringMatcher>,
    /// Of an allowing answer, beside what the request has.
    pub append_to_upstream: Vec<StringMatcher>,
    /// Of a refusing answer; empty: all.
    pub to_client: Vec<StringMatcher>,
    /// Of an allowing answer, on the response.
    pub to_client_on_success: Vec<StringMatcher>,
}

/// Envoy `CheckSettings`, of a route.
#[derive(Debug, Default)]
pub struct CheckSettings {
    /// Is told to a gRPC service.
    pub context: Vec<(Box<str>, Box<str>)>,
    /// `Some(None)`: the service does not see the body here.
    pub body: Option<Option<AskedBody>>,
}
