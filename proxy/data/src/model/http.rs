//! The HTTP connection manager.
//!
//! Source: Envoy `filters.network.http_connection_manager.v3.HttpConnectionManager`.

use std::time::Duration;

use http::HeaderValue;
use ipnet::IpNet;

use super::{RouteTableId, access_log::RequestLogs, http_filter::HttpFilter, tracing::Tracing};
use crate::stats::HttpStats;

/// A header that the router's `strict_check_headers` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictHeader {
    /// `x-envoy-upstream-rq-timeout-ms`
    Timeout,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`
    PerTryTimeout,
    /// `x-envoy-max-retries`
    MaxRetries,
    /// `x-envoy-retry-on`
    RetryOn,
    /// `x-envoy-retry-grpc-on`
    RetryGrpcOn,
}

impl StrictHeader {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Timeout, Self::PerTryTimeout, Self::MaxRetries, Self::RetryOn, Self::RetryGrpcOn];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "x-envoy-upstream-rq-timeout-ms",
            Self::PerTryTimeout => "x-envoy-upstream-rq-per-try-timeout-ms",
            Self::MaxRetries => "x-envoy-max-retries",
            Self::RetryOn => "x-envoy-retry-on",
            Self::RetryGrpcOn => "x-envoy-retry-grpc-on",
        }
    }
}

/// Envoy `HttpConnectionManager`. The router is always the last filter and is not listed.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// `http.<stat_prefix>.*`
    pub stats: HttpStats,
    /// Which protocol is spoken.
    pub codec: Codec,
    /// Inline or from RDS; while the slot is empty requests get 404 (`route_configuration_not_found`).
    pub routes: RouteTableId,
    /// Filters before the router, in configured order.
    pub filters: Vec<HttpFilter>,
    /// Router option `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// Router option `strict_check_headers`: a request with one of them that does not parse is refused.
    pub strict_headers: Vec<StrictHeader>,
    /// Written when a request ends.
    pub access_log: RequestLogs,
    /// Which requests are traced, and where that goes.
    pub tracing: Option<Box<Tracing>>,
    /// `x-forwarded-for`, `-proto`, internal requests.
    pub trust: Trust,
    /// Value of the `server` header, Envoy's default `envoy`.
    pub server_name: HeaderValue,
    /// What is done with the upstream's.
    pub server_header: ServerHeader,
    /// Makes `x-request-id` when it is missing. Default on.
    pub generate_request_id: bool,
    /// Keeps an `x-request-id` from outside.
    pub preserve_external_request_id: bool,
    /// Also puts it on responses.
    pub always_set_request_id_in_response: bool,
    /// Appended to `via` on both sides; `None` leaves it alone.
    pub via: Option<HeaderValue>,
    /// RFC 3986 normalisation of the path.
    pub normalize_path: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What is done with `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
    /// What of the port in `host` is removed before routing.
    pub strip_port: StripPort,
    /// A trailing dot of the host is removed.
    pub strip_trailing_dot: bool,
    /// What is done with header names that hold `_`.
    pub underscores: Underscores,
    /// Bound on the size of request headers, bytes. Envoy's default 60 KiB.
    pub max_request_headers: u32,
    /// Bound on their number. Envoy's default 100.
    pub max_header_count: u32,
    /// Bounds on time.
    pub timeouts: Timeouts,
    /// Requests after which a connection is closed.
    pub max_requests_per_connection: Option<u32>,
    /// HTTP/1 codec.
    pub http1: Http1Options,
    /// HTTP/2 codec.
    pub http2: Http2Options,
    /// Protocols that `Upgrade` (or extended CONNECT) may switch to, lower case, with whether they are on.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// `x-forwarded-client-cert`.
    pub client_cert: ForwardClientCert,
}

/// Envoy `codec_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, else by the HTTP/2 preface.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only, by prior knowledge or ALPN.
    Http2,
}

/// Bounds on time of connections and requests; `None` is no bound.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Connection without requests. Envoy's default 1 h.
    pub idle: Option<Duration>,
    /// Life of a connection.
    pub max_connection: Option<Duration>,
    /// Life of a stream.
    pub max_stream: Option<Duration>,
    /// No activity on a stream. Envoy's default 5 min.
    pub stream_idle: Option<Duration>,
    /// Until the whole request is there.
    pub request: Option<Duration>,
    /// Until the request's headers are there.
    pub request_headers: Option<Duration>,
    /// For a client to leave a connection that was told to end. Envoy's default 5 s.
    pub drain: Duration,
}

impl Timeouts {
    /// How long a connection that was told to end may go on with nothing to serve and a peer that takes nothing. Source: Envoy `drain_timeout`, and behind
    /// it `delayed_close_timeout`, default 1 s.
    pub fn ending(&self) -> Duration {
        self.drain.max(Duration::from_secs(1))
    }
}

/// How far peers are believed.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The socket's peer is the client: `x-forwarded-for` is appended and `x-envoy-*` of outsiders dropped.
    pub use_remote_address: bool,
    /// How many right-most entries of `x-forwarded-for` are trusted.
    pub xff_trusted_hops: u32,
    /// Does not append, though `use_remote_address`.
    pub skip_xff_append: bool,
    /// What counts as internal; empty is Envoy's default: no address (since 1.36) unless the compiler fills RFC 1918 ranges in.
    pub internal: Vec<IpNet>,
    /// Unix-socket peers count as internal.
    pub internal_unix: bool,
}

/// Envoy `ServerHeaderTransformation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    /// Ours replaces it. The default.
    Overwrite,
    /// Ours if there is none.
    AppendIfAbsent,
    /// Left alone.
    PassThrough,
}

/// Envoy `PathWithEscapedSlashesAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Left alone.
    Keep,
    /// 400.
    Reject,
    /// Unescaped, then a redirect (307) to the new path.
    UnescapeAndRedirect,
    /// Unescaped and forwarded.
    UnescapeAndForward,
}

/// Envoy `strip_port_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripPort {
    /// Kept.
    No,
    /// Removed if it is the listener's port.
    Matching,
    /// Removed.
    Any,
}

/// Envoy `HeadersWithUnderscoresAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    /// Passed.
    Allow,
    /// 400, or a stream reset.
    Reject,
    /// The header is dropped.
    Drop,
}

/// HTTP/1 options.
#[derive(Clone, Debug, Default)]
pub struct Http1Options {
    /// Requests of HTTP/1.0 are served instead of refused with 426.
    pub accept_http_10: bool,
    /// Host of an HTTP/1.0 request without one.
    pub default_host: Option<HeaderValue>,
    /// Trailers are passed on; by default they are dropped.
    pub enable_trailers: bool,
}

/// HTTP/2 options; `None` is Envoy's default.
#[derive(Clone, Debug, Default)]
pub struct Http2Options {
    /// Streams that the peer may open. Envoy's default 1024.
    pub max_concurrent_streams: Option<u32>,
    /// Stream window, bytes. Envoy's default 16 MiB.
    pub initial_stream_window: Option<u32>,
    /// Connection window, bytes. Envoy's default 24 MiB.
    pub initial_connection_window: Option<u32>,
    /// Extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// Interval of keep-alive pings.
    pub keepalive_interval: Option<Duration>,
    /// How long an answer to one may take.
    pub keepalive_timeout: Option<Duration>,
}

/// Envoy `ForwardClientCertDetails` and `SetCurrentClientCertDetails`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardClientCert {
    /// What is done with the header.
    pub mode: ForwardClientCertMode,
    /// `Subject=`
    pub subject: bool,
    /// `Cert=`
    pub cert: bool,
    /// `Chain=`
    pub chain: bool,
    /// `DNS=`
    pub dns: bool,
    /// `URI=`
    pub uri: bool,
}

/// Envoy `ForwardClientCertDetails`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardClientCertMode {
    /// Removed. The default.
    Sanitize,
    /// Passed on when the connection is mTLS.
    ForwardOnly,
    /// Ours appended when the connection is mTLS.
    AppendForward,
    /// Replaced by ours when the connection is mTLS.
    SanitizeSet,
    /// Passed on always.
    AlwaysForwardOnly,
}
