//! Outlier detection: what is configured, and what is remembered of each endpoint. The decisions are in [`crate::upstream::outlier`].
//!
//! Source: Envoy `config.cluster.v3.OutlierDetection`, "Outlier detection".

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::stats::OutlierStats;

/// A cluster's detector.
#[derive(Debug)]
pub struct Outlier {
    /// As configured.
    pub config: OutlierConfig,
    /// `cluster.<name>.outlier_detection.`
    pub stats: OutlierStats,
    /// Counts ejections and their ends: whoever derived something from the endpoints' health does so again.
    pub epoch: AtomicU64,
    /// When the endpoints are looked at next; `None` before the first time. Held while something is decided.
    pub next: Mutex<Option<Instant>>,
}

/// Envoy `OutlierDetection`. Percentages are whole; `enforce_*` is the share of detections that lead to an ejection.
#[derive(Clone, Debug)]
pub struct OutlierConfig {
    /// Between two looks at all endpoints; Envoy's default 10 s.
    pub interval: Duration,
    /// Of an ejection, times the number of ejections in a row; Envoy's default 30 s.
    pub base_ejection: Duration,
    /// Envoy's default 300 s.
    pub longest_ejection: Duration,
    /// Most that is added to an ejection at random.
    pub jitter: Duration,
    /// Share of the endpoints that may be ejected; Envoy's default 10.
    pub most_ejected: u32,
    /// One may be ejected whatever the share.
    pub always_one: bool,
    /// A health check that it passes ends an ejection; Envoy's default.
    pub check_ends_ejection: bool,
    /// Failures to connect and timeouts are counted apart from responses.
    pub split: bool,
    /// Envoy's default 5.
    pub consecutive_5xx: u32,
    /// Envoy's default 5.
    pub consecutive_gateway: u32,
    /// Envoy's default 5.
    pub consecutive_local: u32,
    /// Envoy's default 100.
    pub enforce_5xx: u32,
    /// Envoy's default 0.
    pub enforce_gateway: u32,
    /// Envoy's default 100.
    pub enforce_local: u32,
    /// Of responses and of connections.
    pub success_rate: SuccessRate,
    /// Likewise.
    pub failure_percentage: FailurePercentage,
}

/// An endpoint far below the mean of all.
#[derive(Clone, Copy, Debug)]
pub struct SuccessRate {
    /// Envoy's default 5.
    pub minimum_hosts: u32,
    /// Of an endpoint per interval; Envoy's default 100.
    pub minimum_requests: u32,
    /// Standard deviations below the mean, in thousandths; Envoy's default 1900.
    pub factor: u32,
    /// Envoy's default 100.
    pub enforce: u32,
    /// Envoy's default 100.
    pub enforce_local: u32,
}

/// An endpoint with too many failures.
#[derive(Clone, Copy, Debug)]
pub struct FailurePercentage {
    /// Envoy's default 85.
    pub threshold: u32,
    /// Envoy's default 5.
    pub minimum_hosts: u32,
    /// Envoy's default 50.
    pub minimum_requests: u32,
    /// Envoy's default 0.
    pub enforce: u32,
    /// Envoy's default 0.
    pub enforce_local: u32,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        OutlierConfig {
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            longest_ejection: Duration::from_secs(300),
            jitter: Duration::ZERO,
            most_ejected: 10,
            always_one: false,
            check_ends_ejection: true,
            split: false,
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_local: 5,
            enforce_5xx: 100,
            enforce_gateway: 0,
            enforce_local: 100,
            success_rate: SuccessRate {
                minimum_hosts: 5,
                minimum_requests: 100,
                factor: 1900,
                enforce: 100,
                enforce_local: 100,
            },
            failure_percentage: FailurePercentage {
                threshold: 85,
                minimum_hosts: 5,
                minimum_requests: 50,
                enforce: 0,
                enforce_local: 0,
            },
        }
    }
}

/// What is remembered of an endpoint.
#[derive(Debug, Default)]
pub struct Monitor {
    /// Responses.
    pub external: Tally,
    /// Connections, where they are counted apart.
    pub local: Tally,
    /// 5xx in a row.
    pub consecutive_5xx: AtomicU32,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway: AtomicU32,
    /// Failures to connect in a row.
    pub consecutive_local: AtomicU32,
    /// Takes no traffic.
    pub ejected: AtomicBool,
    /// Touched by the detector only.
    pub ejection: Mutex<Ejection>,
}

/// Requests of the current interval.
#[derive(Debug, Default)]
pub struct Tally {
    /// All.
    pub total: AtomicU64,
    /// Those that went well.
    pub good: AtomicU64,
}

/// An endpoint's ejections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ejection {
    /// Since when, and for how much longer than the rule says.
    pub since: Option<(Instant, Duration)>,
    /// Multiplies the time of the next one; falls by one for every interval without.
    pub multiplier: u32,
}

impl Tally {
    /// Counts one.
    pub fn count(&self, good: bool) {
        self.total.fetch_add(1, Relaxed);
        if good {
            self.good.fetch_add(1, Relaxed);
        }
    }

    /// Takes what was counted, all and good.
    pub fn take(&self) -> (u64, u64) {
        (self.total.swap(0, Relaxed), self.good.swap(0, Relaxed))
    }
}
