//! Route tables.
//!
//! Source: Envoy `config.route.v3.RouteConfiguration`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use foldhash::HashMap;
use http::{HeaderName, HeaderValue, StatusCode};
use regex::Regex;

use super::{
    ClusterId, RouteTableId,
    format::Format,
    hash::HashPolicy,
    header::HeaderMutations,
    http_filter::FilterSettings,
    labels::Labels,
    matcher::{HeaderMatcher, QueryMatcher, StringMatcher},
    ratelimit::{RateLimitRule, RouteRules},
    retry::RetryPolicy,
    tracing::RouteTracing,
};

/// Envoy `RouteConfiguration`.
#[derive(Debug)]
pub struct RouteTable {
    /// Position in the snapshot.
    pub id: RouteTableId,
    /// Name.
    pub name: Arc<str>,
    /// In configured order.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Which host serves which name.
    pub domains: Domains,
    /// The port in `host` is ignored when a host is matched.
    pub ignore_port: bool,
    /// On requests, after those of the virtual host (before, if `most_specific_wins`).
    pub request_headers: HeaderMutations,
    /// On responses.
    pub response_headers: HeaderMutations,
    /// `most_specific_header_mutations_wins`: evaluated from the table to the route instead of the other way round.
    pub most_specific_wins: bool,
    /// What is said about filters.
    pub filters: FilterSettings,
}

/// Index of domains, all lower case. Values are positions in [`RouteTable::virtual_hosts`].
#[derive(Debug, Default)]
pub struct Domains {
    /// Whole names, with a port where one was given.
    pub exact: HashMap<Box<str>, u32>,
    /// `*.suffix`: key is the part after `*`. The longest wins.
    pub suffix: HashMap<Box<str>, u32>,
    /// Lengths of the keys of `suffix`, descending, each once.
    pub suffix_lengths: Vec<usize>,
    /// `prefix.*`: key is the part before `*`. The longest wins.
    pub prefix: HashMap<Box<str>, u32>,
    /// Lengths of the keys of `prefix`, descending, each once.
    pub prefix_lengths: Vec<usize>,
    /// `*`
    pub any: Option<u32>,
}

/// Envoy `VirtualHost`.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name.
    pub name: Arc<str>,
    /// First match wins.
    pub routes: Vec<Route>,
    /// `require_tls`: plain-text requests are redirected (301) to https.
    pub require_tls: RequireTls,
    /// On requests, after those of the route.
    pub request_headers: HeaderMutations,
    /// On responses.
    pub response_headers: HeaderMutations,
    /// What is said about filters.
    pub filters: FilterSettings,
    /// What rate limit services are told of its requests.
    pub rate_limits: Option<Box<[RateLimitRule]>>,
}

/// Envoy `VirtualHost.TlsRequirementType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequireTls {
    /// Default.
    No,
    /// Requests from outside.
    ExternalOnly,
    /// All.
    All,
}

/// Envoy `Route`.
#[derive(Debug)]
pub struct Route {
    /// Name, may be empty.
    pub name: Arc<str>,
    /// On the path without query and fragment.
    pub path: PathMatch,
    /// All must hold.
    pub headers: Vec<HeaderMatcher>,
    /// All must hold.
    pub query: Vec<QueryMatcher>,
    /// Only gRPC requests (`content-type: application/grpc…`).
    pub grpc_only: bool,
    /// All must hold.
    pub filter_state: Vec<FilterStateMatcher>,
    /// Share of requests that the route takes.
    pub fraction: Option<Fraction>,
    /// What is done.
    pub action: RouteAction,
    /// On requests, first.
    pub request_headers: HeaderMutations,
    /// On responses.
    pub response_headers: HeaderMutations,
    /// What is said about filters.
    pub filters: FilterSettings,
    /// `metadata.filter_metadata["envoy.filters.http.lua"].route_kri`: which Kuma resource the route stands for.
    pub kri: Option<Arc<str>>,
    /// `tracing` and `decorator`.
    pub tracing: Option<Arc<RouteTracing>>,
}

/// Envoy `type.matcher.v3.FilterStateMatcher` on what [`super::listener::SetFilterState`] keeps; a key that is not there matches nothing.
#[derive(Debug)]
pub struct FilterStateMatcher {
    /// Key.
    pub key: Box<str>,
    /// On the value.
    pub value: StringMatcher,
}

/// How a path is matched.
#[derive(Debug)]
pub enum PathMatch {
    /// Start of the path.
    Prefix {
        /// In lower case when case is ignored.
        value: Box<str>,
        /// `case_sensitive: false`
        ignore_case: bool,
    },
    /// Whole path.
    Exact {
        /// In lower case when case is ignored.
        value: Box<str>,
        /// `case_sensitive: false`
        ignore_case: bool,
    },
    /// `path_separated_prefix`: the whole path, or followed by `/`.
    SeparatedPrefix {
        /// Without a trailing slash; in lower case when case is ignored.
        value: Box<str>,
        /// `case_sensitive: false`
        ignore_case: bool,
    },
    /// `safe_regex`, anchored.
    Regex(Regex),
    /// `connect_matcher`: CONNECT requests.
    Connect,
}

/// A share, as numerator over denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    /// At most `denominator`.
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

/// What a route does.
#[derive(Debug)]
pub enum RouteAction {
    /// `route`
    Forward(Forward),
    /// `redirect`
    Redirect(Redirect),
    /// `direct_response`
    Direct(DirectResponse),
    /// `non_forwarding_action`: the router answers 404... Envoy's router has no route to follow.
    NonForwarding,
}

/// Envoy `RouteAction.MaxStreamDuration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// Replaces the connection manager's maximum stream duration: `None` not set, `Some(None)` off.
    pub longest: Option<Option<Duration>>,
    /// `grpc-timeout` counts in place of it, up to this; zero: however long that is. `None`: it does not count.
    pub grpc_most: Option<Duration>,
    /// Taken off that.
    pub grpc_offset: Duration,
}

/// Envoy `RouteAction`.
#[derive(Debug)]
pub struct Forward {
    /// Where to.
    pub clusters: ClusterChoice,
    /// Answer when the cluster does not exist; Envoy's default 503.
    pub cluster_not_found: StatusCode,
    /// From the end of the request to the end of the response, all tries together. Envoy's default 15 s.
    pub timeout: Option<Duration>,
    /// Replaces the connection manager's stream idle timeout: `None` not set, `Some(None)` off.
    pub idle_timeout: Option<Option<Duration>>,
    /// Bounds on the whole of the request, in place of `timeout`, which is off then.
    pub max_stream_duration: Option<Box<MaxStreamDuration>>,
    /// What becomes of the path. The original goes to `x-envoy-original-path`.
    pub path_rewrite: Option<Box<PathRewrite>>,
    /// What becomes of `host`.
    pub host_rewrite: Option<Box<HostRewrite>>,
    /// The old host goes to `x-forwarded-host`.
    pub append_forwarded_host: bool,
    /// Upgrades on or off for this route, over the connection manager's.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// Circuit breaker of high priority.
    pub high_priority: bool,
    /// What is tried again; `None`: nothing. Of the route, else of its virtual host.
    pub retry: Option<Box<RetryPolicy>>,
    /// Most bytes of a request that are kept for further tries; `None`: what the listener buffers.
    pub buffer_limit: Option<u32>,
    /// What is asked of endpoints (`metadata_match`); heeded by clusters with subsets.
    pub labels: Option<Arc<Labels>>,
    /// What is hashed for clusters that choose endpoints by a hash, in order.
    pub hash: Vec<HashPolicy>,
    /// Who gets copies. Of the route, else of its virtual host, else of the table.
    pub mirrors: Vec<Mirror>,
    /// What rate limit services are told of its requests; `None`: nothing of its own.
    pub rate_limits: Option<Box<RouteRules>>,
}

/// Envoy `RouteAction.RequestMirrorPolicy`.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Slot in the snapshot; may be empty.
    pub cluster: ClusterId,
    /// For messages when it is.
    pub name: Arc<str>,
    /// Share of the requests; `None`: all.
    pub fraction: Option<Fraction>,
    /// The host gets `-shadow`; Envoy's default.
    pub suffix: bool,
}

/// Which cluster takes a request or a connection.
#[derive(Debug)]
pub enum ClusterChoice {
    /// One.
    One {
        /// Slot in the snapshot; may be empty.
        id: ClusterId,
        /// For messages when it is.
        name: Arc<str>,
    },
    /// By weight; total is the sum.
    Weighted {
        /// In order.
        clusters: Vec<WeightedCluster>,
        /// At least 1.
        total: u32,
    },
    /// By the value of a request header.
    Header {
        /// Which.
        name: HeaderName,
        /// All clusters by name; shared by the snapshot's compiler.
        names: Arc<HashMap<Arc<str>, ClusterId>>,
    },
}

/// Envoy `WeightedCluster.ClusterWeight`.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Slot in the snapshot.
    pub id: ClusterId,
    /// For messages.
    pub name: Arc<str>,
    /// Share of the total.
    pub weight: u32,
    /// What is asked of endpoints: the weight's `metadata_match` over the route's.
    pub labels: Option<Arc<Labels>>,
    /// `host_rewrite_literal` of the weight.
    pub host_rewrite: Option<HeaderValue>,
    /// On requests, before those of the route.
    pub request_headers: HeaderMutations,
    /// On responses.
    pub response_headers: HeaderMutations,
    /// What is said about filters.
    pub filters: FilterSettings,
}

/// What becomes of a path.
#[derive(Debug)]
pub enum PathRewrite {
    /// `prefix_rewrite`: replaces what matched.
    Prefix(Box<str>),
    /// `regex_rewrite`: every match in the path (without query) is replaced; `\1` is written `${1}` by the compiler.
    Regex {
        /// Not anchored.
        pattern: Regex,
        /// In the regex crate's syntax.
        substitution: Box<str>,
    },
}

/// What becomes of the host.
#[derive(Debug)]
pub enum HostRewrite {
    /// `host_rewrite_literal`
    Literal(HeaderValue),
    /// `auto_host_rewrite`: the chosen endpoint's host name, if it has one.
    Auto,
    /// `host_rewrite_header`: the value of this header, if present.
    Header(HeaderName),
    /// `host_rewrite_path_regex`
    PathRegex {
        /// On the path without query.
        pattern: Regex,
        /// In the regex crate's syntax.
        substitution: Box<str>,
    },
}

/// Envoy `RedirectAction`.
#[derive(Debug)]
pub struct Redirect {
    /// Envoy's default 301.
    pub status: StatusCode,
    /// `scheme_redirect`, or https by `https_redirect`.
    pub scheme: Option<Box<str>>,
    /// `host_redirect`
    pub host: Option<Box<str>>,
    /// `port_redirect`; `None` keeps it, unless it is the old scheme's default port and the scheme changes.
    pub port: Option<u16>,
    /// What becomes of the path.
    pub path: RedirectPath,
    /// The query is dropped.
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Debug)]
pub enum RedirectPath {
    /// Kept.
    Keep,
    /// `path_redirect`: replaces the path, and the query if it holds one.
    Path(Box<str>),
    /// `prefix_rewrite` or `regex_rewrite`.
    Rewrite(PathRewrite),
}

/// Envoy `DirectResponseAction`.
#[derive(Debug)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: StatusCode,
    /// May be empty.
    pub body: Bytes,
    /// `body_format`... a body with operators; `None` sends `body` as it is.
    pub format: Option<Format>,
}
