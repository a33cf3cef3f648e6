//! Figures: what they are of, and their median and range over rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a figure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// CPU time of all proxies of the scenario per request, in microseconds.
    Cpu,
    /// Requests answered per second.
    Rate,
    /// Median latency in microseconds.
    P50,
    /// 90th percentile of latency in microseconds.
    P90,
    /// 99th percentile of latency in microseconds.
    P99,
    /// 99.9th percentile of latency in microseconds.
    P999,
    /// Context switches of the proxies per request.
    Switches,
    /// Resident set of all proxies, in MB.
    Resident,
    /// Proportional set of all proxies, in MB.
    Proportional,
    /// 99th percentile of how late the load handed requests out, in microseconds.
    Lateness,
    /// Start to the first byte through the proxy, in milliseconds.
    Start,
    /// Resident set before any traffic, in MB.
    IdleMemory,
    /// Resident set per idle connection, in kB.
    ConnectionMemory,
    /// Resident set per cluster beyond that with one cluster, in kB.
    ClusterMemory,
    /// CPU time of one `/stats/prometheus`, in milliseconds.
    ScrapeAll,
    /// Bytes of one `/stats/prometheus`, in MB.
    ScrapeSize,
    /// CPU time of one `/stats/prometheus?usedonly`, in milliseconds.
    ScrapeUsed,
    /// From an update of endpoints to the first reply from the new one, in milliseconds.
    Update,
    /// CPU time per request over that with one cluster in the same round.
    Growth,
    /// Updates of endpoints that the proxy took per second.
    Updates,
}

impl Metric {
    /// What it is called in tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cpu => "CPU µs per request",
            Self::Rate => "requests/s",
            Self::P50 => "p50 µs",
            Self::P90 => "p90 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::Switches => "context switches per request",
            Self::Resident => "RSS MB",
            Self::Proportional => "PSS MB",
            Self::Lateness => "load's own lateness, p99 µs",
            Self::Start => "start to first byte, ms",
            Self::IdleMemory => "RSS before traffic, MB",
            Self::ConnectionMemory => "RSS per connection, kB",
            Self::ClusterMemory => "RSS per cluster, kB",
            Self::ScrapeAll => "/stats/prometheus, CPU ms",
            Self::ScrapeSize => "/stats/prometheus, MB",
            Self::ScrapeUsed => "/stats/prometheus?usedonly, CPU ms",
            Self::Update => "endpoint update to use, ms",
            Self::Growth => "CPU per request, times that with one cluster",
            Self::Updates => "endpoint updates/s",
        }
    }
}

/// What one round measured of one subject.
pub type Round = BTreeMap<Metric, f64>;

/// Median and range of several measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figure {
    /// The middle value; the mean of the two middle ones when their number is even.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Figure {
    /// Of these values; none when there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = |at: usize| values.get(at).copied().unwrap_or_default();
        let median = (middle((values.len() - 1) / 2) + middle(values.len() / 2)) / 2.0;
        Some(Self { median, min, max })
    }

    /// Median and range with as many digits as they deserve.
    pub fn shown(&self) -> String {
        if self.min == self.max {
            return number(self.median);
        }
        format!("{} ({}–{})", number(self.median), number(self.min), number(self.max))
    }
}

/// Three or more significant digits, no more than two behind the point.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        for (values, expected) in [
            (vec![], None),
            (vec![4.0], Some((4.0, 4.0, 4.0))),
            (vec![9.0, 1.0, 2.0], Some((2.0, 1.0, 9.0))),
            (vec![4.0, 1.0, 3.0, 2.0], Some((2.5, 1.0, 4.0))),
        ] {
            let figure = Figure::of(values).map(|figure| (figure.median, figure.min, figure.max));
            assert_eq!(figure, expected);
        }
    }

    #[test]
    fn digits_follow_the_size() {
        for (value, shown) in [(0.447, "0.45"), (12.34, "12.3"), (1234.5, "1234"), (-150.2, "-150")] {
            assert_eq!(number(value), shown);
        }
        assert_eq!(Figure { median: 2.0, min: 1.0, max: 3.0 }.shown(), "2.00 (1.00–3.00)");
        assert_eq!(Figure { median: 2.0, min: 2.0, max: 2.0 }.shown(), "2.00");
    }
}
