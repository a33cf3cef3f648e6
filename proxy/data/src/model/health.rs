//! Active health checks: what is asked of endpoints, how often, and what their answers make of them.
//!
//! Source: Envoy `core.v3.HealthCheck`, "Health checking", `HealthCheckerImplBase`.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use tokio::sync::Notify;

use super::{access_log::LogSink, cluster::EndpointAddress};
use crate::stats::HealthCheckStats;

/// Envoy `HealthCheck` of one cluster.
#[derive(Debug)]
pub struct HealthCheck {
    /// What is asked.
    pub ask: Ask,
    /// Bound on one check, connecting included.
    pub timeout: Duration,
    /// Between checks of a healthy endpoint.
    pub interval: Duration,
    /// Of an unhealthy one; Envoy's default `interval`.
    pub unhealthy_interval: Duration,
    /// Of one that is about to become unhealthy; Envoy's default `unhealthy_interval`.
    pub unhealthy_edge_interval: Duration,
    /// Of one that is about to become healthy; Envoy's default `interval`.
    pub healthy_edge_interval: Duration,
    /// Of an unhealthy one as long as the cluster has had no connection; Envoy's default 60 s.
    pub no_traffic_interval: Duration,
    /// Of a healthy one as long as the cluster has had no connection; Envoy's default `no_traffic_interval`.
    pub no_traffic_healthy_interval: Duration,
    /// Most that goes by before the first check.
    pub initial_jitter: Duration,
    /// Most that is added to an interval.
    pub jitter: Duration,
    /// The same in percent of the interval.
    pub jitter_percent: u32,
    /// Failures in a row that make an endpoint unhealthy, unless it answered that it is.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again. At the very first check one is enough.
    pub healthy_threshold: u32,
    /// The connection is kept for the next check.
    pub reuse_connection: bool,
    /// Endpoints that were never checked do not count at all (`ignore_new_hosts_until_first_hc`).
    pub ignore_new: bool,
    /// Endpoints go when the configuration says so (`ignore_health_on_host_removal`); else they stay until a check fails.
    pub removes_healthy: bool,
    /// Where changes of health are written.
    pub events: Option<LogSink>,
    /// Every failure is written there, not the change only.
    pub always_log_failures: bool,
    /// Likewise every success.
    pub always_log_successes: bool,
    /// `cluster.<name>.health_check.*`
    pub stats: HealthCheckStats,
    /// Changes with the health of any endpoint.
    pub epoch: AtomicU64,
    /// Told when the endpoints have changed.
    pub changed: Notify,
}

/// What is asked of an endpoint.
#[derive(Debug)]
pub enum Ask {
    /// `http_health_check`
    Http(Box<HttpAsk>),
    /// `tcp_health_check`
    Tcp {
        /// Sent once connected.
        send: Bytes,
        /// All have to come back, in this order. None: connecting is enough, and nothing is sent.
        receive: Vec<Bytes>,
    },
    /// `grpc_health_check`
    Grpc(Box<GrpcAsk>),
}

impl Ask {
    /// As in events.
    pub fn kind(&self) -> &'static str {
        match self {
            Ask::Http(_) => "HTTP",
            Ask::Tcp { .. } => "TCP",
            Ask::Grpc(_) => "GRPC",
        }
    }
}

/// Envoy `HealthCheck.HttpHealthCheck`.
#[derive(Debug)]
pub struct HttpAsk {
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
    /// Envoy's default GET.
    pub method: Method,
    /// Path and query.
    pub path: Box<str>,
    /// Host, unless the endpoint has one for this.
    pub host: HeaderValue,
    /// Headers besides Envoy's own, as they are at the end; `None` removes.
    pub headers: Vec<(HeaderName, Option<HeaderValue>)>,
    /// Codes that are healthy, end exclusive.
    pub expected: Vec<std::ops::Range<u16>>,
    /// Codes that are as bad as no answer, but no worse.
    pub retriable: Vec<std::ops::Range<u16>>,
}

/// Envoy `HealthCheck.GrpcHealthCheck`.
#[derive(Debug)]
pub struct GrpcAsk {
    /// The request message with its frame.
    pub request: Bytes,
    /// `:authority`, unless the endpoint has one for this.
    pub authority: HeaderValue,
    /// Metadata.
    pub headers: Vec<(HeaderName, Option<HeaderValue>)>,
}

/// Envoy `Endpoint.HealthCheckConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckAt {
    /// Another address than the endpoint's.
    pub address: Option<EndpointAddress>,
    /// Another port than the endpoint's.
    pub port: Option<u16>,
    /// Host or authority.
    pub hostname: Option<HeaderValue>,
    /// It is not checked.
    pub disabled: bool,
}

/// What checks say of an endpoint; nothing where it is not checked.
#[derive(Debug, Default)]
pub struct Checked(AtomicU8);

impl Checked {
    const FAILED: u8 = 1;
    const AWAITED: u8 = 2;
    const DEGRADED: u8 = 4;
    const TIMED_OUT: u8 = 8;
    const REMOVED: u8 = 16;
    const TRACKED: u8 = 32;

    fn has(&self, bit: u8) -> bool {
        self.0.load(Relaxed) & bit != 0
    }

    fn put(&self, bit: u8, on: bool) {
        if on {
            self.0.fetch_or(bit, Relaxed);
        } else {
            self.0.fetch_and(!bit, Relaxed);
        }
    }

    /// Nobody checks it.
    pub fn forget(&self) {
        self.0.store(0, Relaxed);
    }

    /// It is checked from now on, and unhealthy until its first check says otherwise. What is known of it stays.
    pub fn await_first(&self) {
        if !self.has(Self::TRACKED) {
            self.0.store(Self::TRACKED | Self::FAILED | Self::AWAITED, Relaxed);
        }
    }

    /// Its first check is not over.
    pub fn is_awaited(&self) -> bool {
        self.has(Self::AWAITED)
    }

    /// `/failed_active_hc`
    pub fn has_failed(&self) -> bool {
        self.has(Self::FAILED)
    }

    /// `/degraded_active_hc`
    pub fn is_degraded(&self) -> bool {
        self.has(Self::DEGRADED)
    }

    /// `/active_hc_timeout`
    pub fn has_timed_out(&self) -> bool {
        self.has(Self::TIMED_OUT)
    }

    /// `/pending_dynamic_removal`: the configuration no longer has it.
    pub fn is_removed(&self) -> bool {
        self.has(Self::REMOVED)
    }

    /// The configuration has it no longer, or again.
    pub fn set_removed(&self, removed: bool) {
        self.put(Self::REMOVED, removed);
    }

    /// What a check has found; `true` when that is news.
    pub fn found(&self, failed: bool, timed_out: bool, degraded: bool) -> bool {
        let before = self.0.load(Relaxed);
        self.put(Self::AWAITED, false);
        self.put(Self::FAILED, failed);
        self.put(Self::TIMED_OUT, failed && timed_out);
        self.put(Self::DEGRADED, degraded);
        before != self.0.load(Relaxed)
    }
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As it should be.
    Healthy {
        /// It asks for less traffic (`x-envoy-degraded`).
        degraded: bool,
    },
    /// It says that it is not well.
    Unwell,
    /// It says so, but that may pass (`retriable_statuses`).
    Retriable,
    /// No connection, or it broke, or what came was no answer.
    Network,
    /// Nothing in time.
    Timeout,
}

/// Successes and failures of one endpoint in a row.
#[derive(Clone, Copy, Debug)]
pub struct Streak {
    failed: bool,
    first: bool,
    good: u32,
    bad: u32,
}

/// What an answer makes of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// It is unhealthy from now on.
    pub failed: bool,
    /// It was not before, or the other way round.
    pub changed: bool,
    /// It is on its way to change.
    pub pending: bool,
    /// It was the first check.
    pub first: bool,
}

impl Streak {
    /// Of an endpoint that is taken for failed or not so far, and was never checked or was.
    pub fn new(failed: bool, first: bool) -> Self {
        Streak { failed, first, good: 0, bad: 0 }
    }

    /// Takes an answer.
    ///
    /// Source: Envoy `ActiveHealthCheckSession::handleSuccess` and `setUnhealthy`.
    pub fn judge(&mut self, check: &HealthCheck, answer: Answer) -> Judgement {
        let first = std::mem::replace(&mut self.first, false);
        let before = self.failed;
        let mut pending = false;
        match answer {
            Answer::Healthy { .. } => {
                self.bad = 0;
                if self.failed {
                    self.good += 1;
                    self.failed = !first && self.good < check.healthy_threshold;
                    pending = self.failed;
                }
            }
            Answer::Unwell | Answer::Retriable | Answer::Network | Answer::Timeout => {
                self.good = 0;
                if !self.failed {
                    self.bad += 1;
                    self.failed = answer == Answer::Unwell || self.bad >= check.unhealthy_threshold;
                    pending = !self.failed;
                }
            }
        }
        Judgement { failed: self.failed, changed: self.failed != before, pending, first }
    }
}

impl HealthCheck {
    /// How long to wait for the next check after a judgement. `healthy`: what the last answer was. `traffic`: the cluster has had a connection.
    /// `random` gives uniformly distributed numbers.
    ///
    /// Source: Envoy `HealthCheckerImplBase::interval`.
    pub fn pause(&self, healthy: bool, judged: Judgement, traffic: bool, random: &mut dyn FnMut() -> u64) -> Duration {
        let base = match (traffic, healthy) {
            (true, true) if judged.pending => self.healthy_edge_interval,
            (true, true) => self.interval,
            (true, false) if judged.pending => self.unhealthy_edge_interval,
            (true, false) => self.unhealthy_interval,
            (false, true) => self.no_traffic_healthy_interval,
            (false, false) => self.no_traffic_interval,
        };
        let share = base.mul_f64(f64::from(self.jitter_percent) / 100.0);
        base + up_to(share, random) + up_to(self.jitter, random)
    }

    /// How long to wait for the first.
    pub fn first_pause(&self, random: &mut dyn FnMut() -> u64) -> Duration {
        up_to(self.initial_jitter, random)
    }
}

fn up_to(limit: Duration, random: &mut dyn FnMut() -> u64) -> Duration {
    match u64::try_from(limit.as_millis()) {
        Ok(0) => Duration::ZERO,
        Ok(limit) => Duration::from_millis(random() % limit),
        Err(_) => limit,
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
