//! MeshTimeout: how long what may take.

use std::time::Duration;

use super::rules::Policy;
use crate::resource::{GoDuration, HttpTimeout, MeshTimeout, RuleMatch, TargetRef, Timeout};

impl Policy for MeshTimeout {
    type Conf = Timeout;

    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<(&TargetRef, &Timeout)> {
        self.to.iter().map(|item| (&item.target_ref, &item.default)).collect()
    }

    fn inbound(&self) -> Vec<(&[RuleMatch], &Timeout)> {
        if self.rules.is_empty() {
            return self.from.iter().map(|item| (&[][..], &item.default)).collect();
        }
        self.rules.iter().map(|rule| (rule.matches.as_slice(), &rule.default)).collect()
    }
}

/// How long what may take; zero means no limit. What no policy says is Kuma's default (`pkg/plugins/policies/core/defaults`), in which
/// inbound and outbound do not differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// Connecting: 5 s.
    pub connect: Duration,
    /// A connection without anything happening: 1 h.
    pub idle: Duration,
    /// A whole connection: no limit.
    pub max_connection: Duration,
    /// A whole stream: no limit.
    pub max_stream: Duration,
    /// The headers of a request: no limit.
    pub request_headers: Duration,
    /// Of requests.
    pub route: RouteTimeouts,
}

/// How long what may take with a request; zero means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteTimeouts {
    /// From the end of the request to the end of the response: 15 s.
    pub request: Duration,
    /// A stream without anything happening: 30 min.
    pub stream_idle: Duration,
}

const CONNECT: GoDuration = GoDuration::from_secs(5);
const IDLE: GoDuration = GoDuration::from_secs(3600);
const REQUEST: GoDuration = GoDuration::from_secs(15);
const STREAM_IDLE: GoDuration = GoDuration::from_secs(30 * 60);

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts::of(&Timeout::default())
    }
}

impl Timeouts {
    /// With the defaults for what is absent.
    pub fn of(conf: &Timeout) -> Timeouts {
        let Timeout { connection_timeout, idle_timeout, http } = conf;
        let none = HttpTimeout::default();
        let HttpTimeout {
            request_timeout: _,
            stream_idle_timeout: _,
            max_stream_duration,
            max_connection_duration,
            request_headers_timeout,
        } = http.as_ref().unwrap_or(&none);
        Timeouts {
            connect: connection_timeout.unwrap_or(CONNECT).length(),
            idle: idle_timeout.unwrap_or(IDLE).length(),
            max_connection: max_connection_duration.unwrap_or_default().length(),
            max_stream: max_stream_duration.unwrap_or_default().length(),
            request_headers: request_headers_timeout.unwrap_or_default().length(),
            route: RouteTimeouts::of(conf, None),
        }
    }
}

impl RouteTimeouts {
    /// With the defaults for what is absent; that for a stream is taken from `service` where there is one (Kuma `ConfigureRouteAction`).
    pub fn of(conf: &Timeout, service: Option<RouteTimeouts>) -> RouteTimeouts {
        let http = conf.http.as_ref();
        let stream_idle = http.and_then(|http| http.stream_idle_timeout).map(GoDuration::length);
        RouteTimeouts {
            request: http.and_then(|http| http.request_timeout).unwrap_or(REQUEST).length(),
            stream_idle: stream_idle
                .or(service.map(|service| service.stream_idle))
                .unwrap_or_else(|| STREAM_IDLE.length()),
        }
    }
}
