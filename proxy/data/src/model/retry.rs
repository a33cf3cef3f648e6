//! Retry policies.
//!
//! Source: Envoy `config.route.v3.RetryPolicy`, "Router: x-envoy-retry-on".

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName};

use super::{
    labels::Labels,
    matcher::{HeaderMatcher, HeaderRef},
    rbac::RequestView,
};

/// Envoy `RetryPolicy`.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// What is retried.
    pub on: RetryOn,
    /// Tries after the first; Envoy's default 1.
    pub retries: u32,
    /// Bound on the time of each try, from its request's end to the response's headers.
    pub per_try_timeout: Option<Duration>,
    /// First pause; Envoy's default 25 ms. Doubles with every try.
    pub base: Duration,
    /// Longest pause; Envoy's default ten times the base.
    pub longest: Duration,
    /// For `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// For `retriable-headers`: one of them has to match the response.
    pub response_headers: Vec<HeaderMatcher>,
    /// If there are any, one of them has to match the request.
    pub request_headers: Vec<HeaderMatcher>,
    /// `rate_limited_retry_back_off`: in this order, the response's first header that tells a pause decides it.
    pub reset_headers: Vec<ResetHeader>,
    /// A longer pause in such a header is not heeded; Envoy's default 300 s.
    pub longest_reset: Duration,
    /// Predicate `previous_hosts`: another endpoint than those that were tried.
    pub other_hosts: bool,
    /// Predicates `omit_host_metadata`: endpoints with all labels of one of these are not tried again.
    pub omitted_hosts: Vec<Arc<Labels>>,
    /// How often a choice is repeated for these; Envoy's default 1.
    pub reselections: u32,
    /// Retry priority `previous_priorities`: after so many tries the priorities tried are left out.
    pub other_priorities_after: Option<u32>,
}

/// A header that tells when to try again.
#[derive(Clone, Debug)]
pub struct ResetHeader {
    /// Which.
    pub name: HeaderName,
    /// A point in time (seconds since 1970) instead of a number of seconds.
    pub is_timestamp: bool,
}

/// What is retried, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

/// Why a try ended without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The circuit breaker was open.
    Overflow,
    /// No connection could be made.
    Connect,
    /// The upstream refused the stream.
    Refused,
    /// It broke off, or took longer than a try may.
    Other,
}

impl RetryOn {
    const SERVER_ERROR: u32 = 1;
    const GATEWAY_ERROR: u32 = 1 << 1;
    const CONNECT_FAILURE: u32 = 1 << 2;
    const RATE_LIMITED: u32 = 1 << 3;
    const CONFLICT: u32 = 1 << 4;
    const REFUSED_STREAM: u32 = 1 << 5;
    const STATUS_CODES: u32 = 1 << 6;
    const HEADERS: u32 = 1 << 7;
    const RESET: u32 = 1 << 8;
    const RESET_BEFORE_REQUEST: u32 = 1 << 9;
    /// `grpc-status` and the bit for it.
    const GRPC: [(&str, &str, u32); 5] = [
        ("cancelled", "1", 1 << 10),
        ("deadline-exceeded", "4", 1 << 11),
        ("resource-exhausted", "8", 1 << 12),
        ("internal", "13", 1 << 13),
        ("unavailable", "14", 1 << 14),
    ];

    /// Whether this is a name that `x-envoy-retry-on` knows.
    pub fn is_http(name: &str) -> bool {
        // Retries after what HTTP/3 alone has are known, and never happen.
        name == "http3-post-connect-failure" || !Self::is_grpc(name) && !Self::parse(name).is_empty()
    }

    /// Whether this is a name that `x-envoy-retry-grpc-on` knows.
    pub fn is_grpc(name: &str) -> bool {
        Self::GRPC.iter().any(|(known, ..)| *known == name)
    }

    /// A list as in `retry_on`. A name that Envoy does not know (Kuma writes `canceled`) is passed over, as Envoy does.
    pub fn parse(list: &str) -> Self {
        let mut set = 0;
        for name in list.split(',').map(str::trim) {
            set |= match name {
                "5xx" => Self::SERVER_ERROR,
                "gateway-error" => Self::GATEWAY_ERROR,
                "connect-failure" => Self::CONNECT_FAILURE,
                "envoy-ratelimited" => Self::RATE_LIMITED,
                "retriable-4xx" => Self::CONFLICT,
                "refused-stream" => Self::REFUSED_STREAM,
                "retriable-status-codes" => Self::STATUS_CODES,
                "retriable-headers" => Self::HEADERS,
                "reset" => Self::RESET,
                "reset-before-request" => Self::RESET_BEFORE_REQUEST,
                name => Self::GRPC.iter().find(|(known, ..)| *known == name).map_or(0, |(.., bit)| *bit),
            };
        }
        RetryOn(set)
    }

    /// Nothing is retried.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }
}

impl RetryPolicy {
    /// The bound on the first try that is tighter than `all`, that of all tries together.
    pub fn first_timeout(&self, all: Option<Duration>) -> Option<Duration> {
        self.per_try_timeout.filter(|limit| all.is_none_or(|all| *limit < all))
    }

    /// Whether a request is one that may be tried again.
    pub fn admits(&self, request: &RequestView<'_>) -> bool {
        !self.on.is_empty()
            && (self.request_headers.is_empty()
                || self.request_headers.iter().any(|matcher| request.header_matches(matcher)))
    }

    /// Whether a response with this head is worth another try.
    ///
    /// Source: Envoy `RetryStateImpl::wouldRetryFromHeaders`.
    pub fn wants_after_response(&self, status: u16, headers: &HeaderMap) -> bool {
        if headers.contains_key("x-envoy-ratelimited") {
            return self.on.has(RetryOn::RATE_LIMITED);
        }
        let matches = |matcher: &HeaderMatcher| match &matcher.name {
            HeaderRef::Status => matcher.matches(Some(&status.to_string())),
            HeaderRef::Name(name) => matcher.matches_any(headers.get_all(name).iter()),
            HeaderRef::Method | HeaderRef::Path | HeaderRef::Authority | HeaderRef::Scheme | HeaderRef::Protocol => {
                matcher.matches(None)
            }
        };
        let grpc = || headers.get("grpc-status").and_then(|status| status.to_str().ok());
        (self.on.has(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (self.on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (self.on.has(RetryOn::CONFLICT) && status == 409)
            || (self.on.has(RetryOn::STATUS_CODES) && self.status_codes.contains(&status))
            || (self.on.has(RetryOn::HEADERS) && self.response_headers.iter().any(matches))
            || grpc()
                .is_some_and(|code| RetryOn::GRPC.iter().any(|(_, wanted, bit)| self.on.has(*bit) && *wanted == code))
    }

    /// Whether a try that ended so is worth another.
    ///
    /// Source: Envoy `RetryStateImpl::wouldRetryFromReset`.
    pub fn wants_after_reset(&self, reset: Reset) -> bool {
        let any = RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::RESET;
        match reset {
            Reset::Overflow => false,
            Reset::Connect => self.on.has(any | RetryOn::CONNECT_FAILURE | RetryOn::RESET_BEFORE_REQUEST),
            Reset::Refused => self.on.has(any | RetryOn::REFUSED_STREAM),
            Reset::Other => self.on.has(any),
        }
    }

    /// The pause that the response itself asks for, if it is not too long. A random share of half of it is added by the caller.
    ///
    /// Source: Envoy `ResetHeaderParserImpl`.
    pub fn asked_pause(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let since_1970 = || now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.reset_headers.iter().find_map(|header| {
            let number: u64 = headers.get(&header.name)?.to_str().ok()?.trim().parse().ok()?;
            let pause = match header.is_timestamp {
                false => Duration::from_secs(number),
                true => Duration::from_secs(number).checked_sub(since_1970())?,
            };
            (pause <= self.longest_reset && pause > Duration::from_millis(1)).then_some(pause)
        })
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
