//! MeshRetry (Kuma `pkg/plugins/policies/meshretry/api/v1alpha1`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire::is_default;
use super::{GoDuration, HeaderMatch, HttpMethod, PolicyItem, TargetRef};

/// What is tried again, how often and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshRetry {
    /// The proxies that the policy applies to; absent means every proxy of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Calls of these proxies, by destination.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<PolicyItem<Retry>>,
}

/// Retries by protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retry {
    /// Connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpRetry>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRetry>,
    /// Calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcRetry>,
}

/// Retries of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRetry {
    /// How often connecting is tried in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connect_attempt: Option<u32>,
}

/// Retries of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRetry {
    /// How often a request is sent again; zero turns retries off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// How long one try may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<GoDuration>,
    /// How long to wait before the next try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    /// How long to wait where the answer says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// What is tried again: conditions, methods (`HttpMethodGet`) and status codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<String>>,
    /// Only answers with one of these headers are a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retriable_response_headers: Option<Vec<HeaderMatch>>,
    /// Only requests with one of these headers are sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retriable_request_headers: Option<Vec<HeaderMatch>>,
    /// Which instances are not tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_selection: Option<Vec<HostPredicate>>,
    /// How often an instance is chosen anew before it is taken in spite of the predicates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_selection_max_attempts: Option<i64>,
}

/// Retries of gRPC calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRetry {
    /// How often a call is made again; zero turns retries off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// How long one try may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<GoDuration>,
    /// How long to wait before the next try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    /// How long to wait where the answer says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// Status codes of gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<String>>,
}

/// How long to wait before the next try: a random part of an interval that doubles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackOff {
    /// The first interval; 25 ms by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_interval: Option<GoDuration>,
    /// The greatest interval; ten times the first by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<GoDuration>,
}

/// How long to wait where a header of the answer says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimitedBackOff {
    /// The headers, in order of precedence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_headers: Option<Vec<ResetHeader>>,
    /// A header that asks for more is ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<GoDuration>,
}

/// A header that says how long to wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResetHeader {
    /// Name of the header.
    #[serde(default)]
    pub name: String,
    /// What it holds.
    pub format: ResetFormat,
}

/// What a header that says how long to wait holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

/// Which instances are not tried again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPredicate {
    /// Which.
    pub predicate: PredicateType,
    /// The tags, for [`PredicateType::OmitHostsWithTags`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// After how many tries priorities are looked at anew, for [`PredicateType::OmitPreviousPriorities`]; 2 by default.
    #[serde(default = "two", skip_serializing_if = "is_default")]
    pub update_frequency: i32,
}

fn two() -> i32 {
    2
}

/// Which instances are not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PredicateType {
    /// Those that were tried.
    OmitPreviousHosts,
    /// Those with certain tags.
    OmitHostsWithTags,
    /// Those of a priority that was tried.
    OmitPreviousPriorities,
}

/// An entry of `retryOn` for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpCondition {
    /// A condition of Envoy's `retry_on`.
    Named(&'static str),
    /// Only requests of this method are sent again.
    Method(HttpMethod),
    /// An answer with this status is a reason.
    Status(u32),
}

impl HttpCondition {
    /// Reads an entry; `None` for what Kuma does not know.
    pub fn parse(text: &str) -> Option<HttpCondition> {
        Some(match text {
            "5xx" => HttpCondition::Named("5xx"),
            "GatewayError" => HttpCondition::Named("gateway-error"),
            "Reset" => HttpCondition::Named("reset"),
            "Retriable4xx" => HttpCondition::Named("retriable-4xx"),
            "ConnectFailure" => HttpCondition::Named("connect-failure"),
            "EnvoyRatelimited" => HttpCondition::Named("envoy-ratelimited"),
            "RefusedStream" => HttpCondition::Named("refused-stream"),
            "Http3PostConnectFailure" => HttpCondition::Named("http3-post-connect-failure"),
            "HttpMethodConnect" => HttpCondition::Method(HttpMethod::Connect),
            "HttpMethodDelete" => HttpCondition::Method(HttpMethod::Delete),
            "HttpMethodGet" => HttpCondition::Method(HttpMethod::Get),
            "HttpMethodHead" => HttpCondition::Method(HttpMethod::Head),
            "HttpMethodOptions" => HttpCondition::Method(HttpMethod::Options),
            "HttpMethodPatch" => HttpCondition::Method(HttpMethod::Patch),
            "HttpMethodPost" => HttpCondition::Method(HttpMethod::Post),
            "HttpMethodPut" => HttpCondition::Method(HttpMethod::Put),
            "HttpMethodTrace" => HttpCondition::Method(HttpMethod::Trace),
            text => HttpCondition::Status(text.parse().ok().filter(|status| is_assigned(*status))?),
        })
    }
}

/// Whether the status has a name (IANA "HTTP Status Code Registry", as Go's `http.StatusText` has it).
fn is_assigned(status: u32) -> bool {
    matches!(status, 100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451)
        || matches!(status, 500..=508 | 510 | 511)
}

/// An entry of `retryOn` for gRPC calls, as Envoy's `retry_grpc_on` names it.
///
/// For `Canceled` that is `cancelled`. Kuma 2.14 emits `canceled`, which Envoy does not know and drops without a word.
pub fn grpc_condition(text: &str) -> Option<&'static str> {
    Some(match text {
        "Canceled" => "cancelled",
        "DeadlineExceeded" => "deadline-exceeded",
        "Internal" => "internal",
        "ResourceExhausted" => "resource-exhausted",
        "Unavailable" => "unavailable",
        _ => return None,
    })
}
