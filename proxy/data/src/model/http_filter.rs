//! HTTP filters before the router, and what routes say about them.
//!
//! Source: Envoy `http_connection_manager.v3.HttpFilter`, `config.route.v3.FilterConfig`, "HTTP route: per filter configuration".

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue};

use super::{
    ClusterId,
    ext_authz::{CheckSettings, ExtAuthz},
    format::Format,
    header::{AppendAction, HeaderMutations},
    matcher::{HeaderMatcher, StringMatcher},
    ratelimit::{RateLimit, RateLimitOverride},
    rbac::{Principal, Rbac, Rules},
    route::Fraction,
};
use crate::{
    stats::{CompressorStats, CorsStats, FaultStats, HttpLocalRateLimitStats, LuaStats},
    token_bucket::TokenBucket,
};

/// A filter before the router.
#[derive(Debug)]
pub struct HttpFilter {
    /// Its name in the chain: what routes say about a filter, they say by name. Several filters may share one.
    pub name: Arc<str>,
    /// Off, unless a route has a setting for it.
    pub disabled: bool,
    /// `ExtensionWithMatcher` with the action `SkipFilter`: requests of which one of these holds pass the filter by. Empty for a filter without a matcher.
    pub skip: Box<[Principal]>,
    /// What it does.
    pub kind: HttpFilterKind,
}

/// What a filter does.
#[derive(Debug)]
pub enum HttpFilterKind {
    /// Envoy `filters.http.rbac.v3.RBAC`.
    Rbac(Arc<Rbac>),
    /// Envoy `filters.http.local_ratelimit.v3.LocalRateLimit`.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Envoy `filters.http.fault.v3.HTTPFault`.
    Fault(Arc<Fault>),
    /// Envoy `filters.http.compressor.v3.Compressor` with gzip.
    Compressor(Arc<Compressor>),
    /// Envoy `filters.http.lua.v3.Lua` with the one script that Kuma writes: the route's metadata `route_kri` becomes dynamic metadata
    /// (namespace `kuma.routes`) of the request.
    RouteKri(LuaStats),
    /// Envoy `filters.http.cors.v3.Cors`; what it allows is said by routes.
    Cors(CorsStats),
    /// Envoy `filters.http.header_mutation.v3.HeaderMutation`.
    HeaderMutation {
        /// Of all requests, before those of routes.
        all: Arc<MessageMutations>,
        /// The table's come before the virtual host's and the route's, instead of after.
        most_specific_wins: bool,
    },
    /// Envoy `filters.http.grpc_stats.v3.FilterConfig`.
    GrpcStats(GrpcStatsFilter),
    /// Envoy `filters.http.buffer.v3.Buffer`: requests are forwarded once they are here as a whole.
    Buffer {
        /// Longer ones are refused, bytes.
        limit: u32,
    },
    /// Envoy `filters.http.health_check.v3.HealthCheck`.
    HealthCheck(Arc<HealthCheckFilter>),
    /// Envoy `filters.http.ratelimit.v3.RateLimit`.
    RateLimit(Arc<RateLimit>),
    /// Envoy `filters.http.ext_authz.v3.ExtAuthz`.
    ExtAuthz(Arc<ExtAuthz>),
}

/// What one level (table, virtual host, route, weighted cluster) says about filters: `typed_per_filter_config`.
#[derive(Debug, Default)]
pub struct FilterSettings(pub Box<[(Box<str>, FilterSetting)]>);

/// What is said about one filter.
#[derive(Debug)]
pub enum FilterSetting {
    /// `FilterConfig.disabled`
    Disabled,
    /// `RBACPerRoute`: these rules instead of the filter's.
    Rbac(Arc<RbacRules>),
    /// A limit with a bucket of its own.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Other faults.
    Fault(Arc<FaultSettings>),
    /// `CompressorPerRoute`
    Compressor(CompressorOverride),
    /// `CorsPolicy`
    Cors(Arc<CorsPolicy>),
    /// `HeaderMutationPerRoute`
    HeaderMutation(Arc<MessageMutations>),
    /// `BufferPerRoute.buffer`
    Buffer {
        /// Instead of the filter's.
        limit: u32,
    },
    /// `RateLimitPerRoute`
    RateLimit(Arc<RateLimitOverride>),
    /// `ExtAuthzPerRoute.check_settings`
    ExtAuthz(Arc<CheckSettings>),
}

/// Envoy `GrpcService` with `envoy_grpc`: where a filter makes unary calls.
#[derive(Debug)]
pub struct GrpcCall {
    /// Slot in the snapshot; may be empty.
    pub cluster: ClusterId,
    /// For messages when it is.
    pub name: Arc<str>,
    /// `:authority`; Envoy's default is the cluster's name.
    pub authority: HeaderValue,
    /// Longest wait; `None`: no bound.
    pub timeout: Option<Duration>,
    /// `initial_metadata`
    pub metadata: Vec<(HeaderName, HeaderValue)>,
    /// `x-envoy-*` and `x-forwarded-for` are sent.
    pub envoy_headers: bool,
}

impl FilterSettings {
    /// What is said about the filter of this name.
    pub fn of(&self, name: &str) -> Option<&FilterSetting> {
        self.0.iter().find(|(of, _)| **of == *name).map(|(_, setting)| setting)
    }
}

/// Envoy `RBACPerRoute.rbac`; without either nothing is asked.
#[derive(Debug)]
pub struct RbacRules {
    /// Decides.
    pub enforced: Option<Rules>,
    /// Only counted.
    pub shadow: Option<Rules>,
}

/// Envoy `filters.http.local_ratelimit.v3.LocalRateLimit`.
#[derive(Debug)]
pub struct LocalRateLimit {
    /// `<stat_prefix>.http_local_rate_limit.*`
    pub stats: HttpLocalRateLimitStats,
    /// Shared by all workers; without one there is no limit.
    pub bucket: Option<TokenBucket>,
    /// Share of the requests that are counted; Envoy's default none.
    pub enabled: Fraction,
    /// Share of the requests over the limit that are refused; Envoy's default none.
    pub enforced: Fraction,
    /// Of the refusal, 400 or more; Envoy's default 429.
    pub status: http::StatusCode,
    /// `rate_limited_as_resource_exhausted`: the gRPC status of a refusal is 8 instead of 14.
    pub resource_exhausted: bool,
    /// On refusals.
    pub response_headers: HeaderMutations,
    /// On requests over the limit that are let through: `request_headers_to_add_when_not_enforced`.
    pub request_headers: HeaderMutations,
    /// `enable_x_ratelimit_headers: DRAFT_VERSION_03`: every response says limit, rest and reset.
    pub draft_headers: bool,
}

/// Envoy `filters.http.fault.v3.HTTPFault`.
#[derive(Debug)]
pub struct Fault {
    /// `http.<stat_prefix>.fault.*`, also for faults that a route sets.
    pub stats: FaultStats,
    /// What is injected, unless the route says otherwise.
    pub settings: FaultSettings,
}

/// The faults themselves.
#[derive(Debug)]
pub struct FaultSettings {
    /// Requests wait.
    pub delay: Option<FaultDelay>,
    /// Requests are refused.
    pub abort: Option<FaultAbort>,
    /// Response bodies trickle.
    pub rate: Option<FaultRate>,
    /// Only requests whose route leads to this cluster.
    pub upstream_cluster: Option<Box<str>>,
    /// Only requests of which all these hold.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests whose `x-envoy-downstream-service-node` is one of these; empty: all.
    pub downstream_nodes: Vec<Box<str>>,
    /// Most requests under a fault at once; `None`: no bound.
    pub max_active: Option<u32>,
}

/// Envoy `FaultDelay`.
#[derive(Clone, Copy, Debug)]
pub struct FaultDelay {
    /// Share of the requests.
    pub share: Fraction,
    /// `None`: `x-envoy-fault-delay-request` says it, in ms.
    pub duration: Option<Duration>,
}

/// Envoy `FaultAbort`.
#[derive(Clone, Copy, Debug)]
pub struct FaultAbort {
    /// Share of the requests.
    pub share: Fraction,
    /// The answer.
    pub with: AbortWith,
}

/// The answer of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortWith {
    /// `http_status`, 200 to 599
    Http(http::StatusCode),
    /// `grpc_status`
    Grpc(u32),
    /// `header_abort`: `x-envoy-fault-abort-request` (HTTP), else `x-envoy-fault-abort-grpc-request`.
    Header,
}

/// Envoy `FaultRateLimit`.
#[derive(Clone, Copy, Debug)]
pub struct FaultRate {
    /// Share of the requests.
    pub share: Fraction,
    /// KiB a second, at least 1; `None`: `x-envoy-fault-throughput-response` says it.
    pub kib_per_second: Option<u64>,
}

/// Envoy `filters.http.compressor.v3.Compressor` for responses, with gzip.
#[derive(Debug)]
pub struct Compressor {
    /// `http.<stat_prefix>.compressor.<library name>.gzip.*`
    pub stats: CompressorStats,
    /// `response_direction_config.common_config.enabled`
    pub enabled: bool,
    /// Smaller bodies are left alone; Envoy's default 30 bytes.
    pub min_content_length: u64,
    /// Media types without parameters, in lower case.
    pub content_types: Vec<Box<str>>,
    /// Responses with an `etag` are left alone.
    pub disable_on_etag: bool,
    /// A strong `etag` becomes weak instead of being removed.
    pub weaken_etag: bool,
    /// The upstream does not see `accept-encoding`.
    pub remove_accept_encoding: bool,
    /// Responses of these codes are left alone.
    pub uncompressible: Vec<u16>,
    /// 0 to 9, as zlib's.
    pub level: u32,
    /// `choose_first`: preferred among encodings of the same weight.
    pub choose_first: bool,
}

/// Envoy `CompressorPerRoute`.
#[derive(Clone, Copy, Debug)]
pub struct CompressorOverride {
    /// Instead of [`Compressor::enabled`].
    pub enabled: Option<bool>,
    /// Instead of [`Compressor::remove_accept_encoding`].
    pub remove_accept_encoding: Option<bool>,
}

/// Envoy `filters.http.cors.v3.CorsPolicy`. What one level leaves unset, the next one says.
#[derive(Debug)]
pub struct CorsPolicy {
    /// `allow_origin_string_match`; one that matches `*` allows all.
    pub origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`; `*` allows the method asked for.
    pub methods: Option<HeaderValue>,
    /// `access-control-allow-headers`; `*` allows the headers asked for.
    pub headers: Option<HeaderValue>,
    /// `access-control-expose-headers`
    pub expose: Option<HeaderValue>,
    /// `access-control-max-age`
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials`
    pub credentials: Option<bool>,
    /// `access-control-allow-private-network`
    pub private_network: Option<bool>,
    /// Preflights of other origins go to the upstream; Envoy's default.
    pub forward_not_matching: Option<bool>,
    /// Share of the requests that it holds for; Envoy's default all.
    pub enabled: Fraction,
    /// Share of the others that are counted; Envoy's default none.
    pub shadow: Fraction,
}

/// Envoy `filters.http.header_mutation.v3.Mutations`: one step after the other, each of a single addition or removal.
#[derive(Debug, Default)]
pub struct MessageMutations {
    /// On requests.
    pub request: Vec<HeaderMutations>,
    /// On the query of requests, after their headers.
    pub query: Vec<QueryMutation>,
    /// On responses.
    pub response: Vec<HeaderMutations>,
}

/// Envoy `KeyValueMutation` on the parameters of a query.
#[derive(Debug)]
pub enum QueryMutation {
    /// `append`
    Put {
        /// Not escaped.
        name: Box<str>,
        /// Is escaped.
        value: Format,
        /// What to do when it is there already.
        append: AppendAction,
    },
    /// All of this name.
    Remove(Box<str>),
}

/// Envoy `filters.http.grpc_stats.v3.FilterConfig`: counts in `cluster.<name>.grpc.*`.
#[derive(Debug)]
pub struct GrpcStatsFilter {
    /// Which methods have counters of their own.
    pub methods: GrpcMethods,
    /// `enable_upstream_stats`: how long the upstream took.
    pub upstream_time: bool,
}

/// Methods with counters of their own.
#[derive(Debug)]
pub enum GrpcMethods {
    /// `stats_for_all_methods`
    All {
        /// Dots in the name of the service become `_`.
        replace_dots: bool,
    },
    /// `individual_method_stats_allowlist`, service and method; the others are counted together. Envoy's default, with none.
    Listed(Vec<(Box<str>, Box<str>)>),
}

/// Envoy `filters.http.health_check.v3.HealthCheck`.
#[derive(Debug)]
pub struct HealthCheckFilter {
    /// What makes a request a health check: all of these.
    pub headers: Vec<HeaderMatcher>,
    /// Checks go to the upstream, unless its last answer is cached.
    pub pass_through: bool,
    /// `cache_time`, with `pass_through` only.
    pub cache: Option<CheckCache>,
    /// Clusters, and how many percent of their endpoints have to be healthy or degraded.
    pub least_healthy: Vec<(ClusterId, u32)>,
    /// Name of this proxy's cluster (`node.cluster`), which answers to checks say.
    pub local_cluster: HeaderValue,
}

/// The upstream's last answer to a health check, until the end of the period in which it came.
#[derive(Debug)]
pub struct CheckCache {
    period: Duration,
    start: Instant,
    /// Number of the period + 1, degraded or not, code; 0: none.
    answer: AtomicU64,
}

impl CheckCache {
    /// Empty; the first period begins now.
    pub fn new(period: Duration) -> Self {
        CheckCache { period, start: Instant::now(), answer: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        let period = self.period.as_nanos().max(1);
        u64::try_from(self.start.elapsed().as_nanos() / period).unwrap_or(u64::MAX) & (u64::MAX >> 32)
    }

    /// Keeps an answer.
    pub fn store(&self, code: u16, degraded: bool) {
        let answer = (self.now() + 1) << 24 | u64::from(degraded) << 16 | u64::from(code);
        self.answer.store(answer, Ordering::Relaxed);
    }

    /// The answer of this period: code, and whether degraded.
    pub fn load(&self) -> Option<(u16, bool)> {
        let answer = self.answer.load(Ordering::Relaxed);
        (answer >> 24 == self.now() + 1).then_some((answer as u16, answer >> 16 & 1 == 1))
    }
}
