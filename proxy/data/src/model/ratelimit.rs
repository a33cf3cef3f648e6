//! Rate limits that a service keeps, and what routes say about a request to it.
//!
//! Source: Envoy `filters.http.ratelimit.v3.RateLimit`, `config.route.v3.RateLimit`, "Rate limit".

use http::{HeaderName, HeaderValue, StatusCode};

use super::{
    header::HeaderMutations,
    http_filter::GrpcCall,
    matcher::{HeaderMatcher, HeaderRef, QueryMatcher},
    route::Fraction,
};

/// Envoy `filters.http.ratelimit.v3.RateLimit`.
#[derive(Debug)]
pub struct RateLimit {
    /// Whose limits are asked for.
    pub domain: Box<str>,
    /// Only rules of this stage.
    pub stage: u32,
    /// `request_type`
    pub asks_for: AsksFor,
    /// Who keeps the limits.
    pub service: GrpcCall,
    /// `stat_prefix` with a dot, or empty: `cluster.<name>.ratelimit.<prefix>…`
    pub stat_prefix: Box<str>,
    /// Requests are refused when the service fails. Envoy's default is that they go on.
    pub failure_mode_deny: bool,
    /// Of that refusal; Envoy's default 500.
    pub status_on_error: StatusCode,
    /// Of the refusal of a request over its limit, 400 or more; Envoy's default 429.
    pub status: StatusCode,
    /// The gRPC status of such a refusal is 8 instead of 14.
    pub resource_exhausted: bool,
    /// `enable_x_ratelimit_headers: DRAFT_VERSION_03`
    pub draft_headers: bool,
    /// Refusals say `x-envoy-ratelimited: true`; Envoy's default.
    pub ratelimited_header: bool,
    /// On refusals.
    pub response_headers: HeaderMutations,
    /// Share of the requests that are asked about; Envoy's default all.
    pub enabled: Fraction,
    /// Share of those over their limit that are refused; Envoy's default all.
    pub enforced: Fraction,
    /// Rules of the filter itself, which then stand for those of all routes.
    pub rules: Vec<RateLimitRule>,
}

/// Envoy `RateLimit.request_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsksFor {
    /// All requests; the default.
    Both,
    /// Those with `x-envoy-internal: true`.
    Internal,
    /// The others.
    External,
}

/// Envoy `RateLimitPerRoute`.
#[derive(Debug)]
pub struct RateLimitOverride {
    /// What becomes of the virtual host's rules.
    pub host: HostRules,
    /// If there are any, they stand for those of route and virtual host.
    pub rules: Vec<RateLimitRule>,
    /// Instead of the filter's.
    pub domain: Option<Box<str>>,
}

/// Envoy `VhRateLimitsOptions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRules {
    /// They count for routes without rules of their own; the default.
    Fallback,
    /// They count too.
    Include,
    /// They do not count.
    Ignore,
}

/// The rules of a route.
#[derive(Debug, Default)]
pub struct RouteRules {
    /// In order.
    pub rules: Vec<RateLimitRule>,
    /// `include_vh_rate_limits`
    pub include_host: bool,
}

/// Envoy `config.route.v3.RateLimit`: one descriptor, unless an action has nothing to say about the request.
#[derive(Debug)]
pub struct RateLimitRule {
    /// For filters of this stage.
    pub stage: u32,
    /// Entries of the descriptor, in order.
    pub actions: Vec<RateAction>,
    /// `limit.rate_limit`: requests, and the number of Envoy's `RateLimitUnit`.
    pub limit: Option<(u32, u32)>,
    /// `hits_addend`: how many hits the request counts for, and whether they are given back instead of taken.
    pub hits: Option<(u64, bool)>,
}

/// Envoy `RateLimit.Action`: an entry's key and value.
#[derive(Debug)]
pub enum RateAction {
    /// `generic_key`, and `source_cluster`, which is this proxy's `node.cluster`.
    Constant {
        /// Key.
        key: Box<str>,
        /// Value.
        value: Box<str>,
    },
    /// `destination_cluster`
    DestinationCluster,
    /// `request_headers`
    Header {
        /// Which.
        name: HeaderRef,
        /// Key.
        key: Box<str>,
        /// Without the header there is no entry, but a descriptor.
        skip_if_absent: bool,
    },
    /// `query_parameters`
    Query {
        /// Which.
        name: Box<str>,
        /// Key.
        key: Box<str>,
        /// Without the parameter there is no entry, but a descriptor.
        skip_if_absent: bool,
    },
    /// `remote_address`
    RemoteAddress,
    /// `masked_remote_address`: lengths of the prefix for IPv4 and IPv6.
    MaskedRemoteAddress {
        /// 0 to 32; Envoy's default 32.
        v4: u8,
        /// 0 to 128; Envoy's default 128.
        v6: u8,
    },
    /// `header_value_match`
    HeaderMatch {
        /// Key.
        key: Box<str>,
        /// Value.
        value: Box<str>,
        /// Whether all of them have to hold, or not.
        expect: bool,
        /// What is asked of the request.
        headers: Vec<HeaderMatcher>,
    },
    /// `query_parameter_value_match`
    QueryMatch {
        /// Key.
        key: Box<str>,
        /// Value.
        value: Box<str>,
        /// Whether all of them have to hold, or not.
        expect: bool,
        /// What is asked of the request.
        parameters: Vec<QueryMatcher>,
    },
}

/// Name of the header that refusals carry.
pub const RATE_LIMITED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-envoy-ratelimited"), HeaderValue::from_static("true"));
