//! What Shika is to reach, and whether it did.

use super::figure::Metric;
use super::report::Report;
use super::subject::Name;

/// How a bar is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// At most this fraction of Envoy's median in the same rounds.
    OfEnvoy(f64),
    /// At most this many times the better of HAProxy's and nginx's medians.
    OfBetterPeer(f64),
    /// At most this value.
    AtMost(f64),
    /// At most this many times Shika's own median in another scenario.
    OfScenario(&'static str, f64),
}

/// A figure and its limit.
pub struct Bar {
    /// The scenario's name.
    pub scenario: &'static str,
    /// Which of its figures.
    pub metric: Metric,
    /// The limit.
    pub limit: Limit,
}

/// A bar against what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The figure that is held against the limit.
    pub reached: f64,
    /// The limit in words.
    pub limit: String,
    /// Whether it is kept.
    pub held: bool,
}

const fn bar(scenario: &'static str, metric: Metric, limit: Limit) -> Bar {
    Bar { scenario, metric, limit }
}

/// All bars in the order of the scenarios.
pub const BARS: &[Bar] = &[
    bar("http1_one_hop", Metric::Cpu, Limit::OfEnvoy(0.45)),
    bar("http1_one_hop", Metric::Cpu, Limit::OfBetterPeer(1.2)),
    bar("http2_one_hop", Metric::Cpu, Limit::OfEnvoy(0.50)),
    bar("tcp_one_hop", Metric::Cpu, Limit::OfEnvoy(0.75)),
    bar("tcp_one_hop_10mb", Metric::Cpu, Limit::OfEnvoy(0.75)),
    bar("http1_64k", Metric::Cpu, Limit::OfEnvoy(0.60)),
    bar("http1_64k_post", Metric::Cpu, Limit::OfEnvoy(0.60)),
    bar("http1_conn_per_request", Metric::Cpu, Limit::OfEnvoy(0.60)),
    bar("pair_mtls_http1", Metric::Cpu, Limit::OfEnvoy(0.42)),
    bar("pair_mtls_http2", Metric::Cpu, Limit::OfEnvoy(0.38)),
    bar("pair_mtls_http1_over_http2", Metric::Cpu, Limit::OfEnvoy(0.38)),
    bar("pair_mtls_grpc", Metric::Cpu, Limit::OfEnvoy(0.38)),
    bar("pair_mtls_tcp", Metric::Cpu, Limit::OfEnvoy(0.65)),
    bar("pair_mtls_tcp_10mb", Metric::Cpu, Limit::OfEnvoy(0.80)),
    bar("handshake", Metric::Cpu, Limit::OfEnvoy(0.65)),
    bar("sidecar_stack", Metric::Cpu, Limit::OfEnvoy(0.45)),
    // Throughput with two workers on two CPUs is to be 1.7 times that with one: 2 ÷ 1.7 of the CPU time per request.
    bar("workers_2", Metric::Cpu, Limit::OfScenario("workers_1", 1.18)),
    bar("latency_70", Metric::P99, Limit::OfEnvoy(0.6)),
    bar("latency_70", Metric::P999, Limit::OfEnvoy(0.7)),
    bar("start", Metric::IdleMemory, Limit::AtMost(10.0)),
    bar("idle_plain", Metric::ConnectionMemory, Limit::AtMost(6.0)),
    bar("idle_mtls", Metric::ConnectionMemory, Limit::AtMost(15.0)),
    bar("clusters_100", Metric::Growth, Limit::AtMost(1.1)),
    bar("clusters_1000", Metric::Growth, Limit::AtMost(1.1)),
    bar("clusters_10000", Metric::Growth, Limit::AtMost(1.1)),
    bar("clusters_10000", Metric::Start, Limit::AtMost(400.0)),
    bar("clusters_10000", Metric::IdleMemory, Limit::AtMost(60.0)),
    bar("clusters_10000", Metric::ScrapeAll, Limit::AtMost(300.0)),
    bar("clusters_10000", Metric::ScrapeUsed, Limit::AtMost(300.0)),
    bar("clusters_10000", Metric::Update, Limit::AtMost(10.0)),
];

impl Bar {
    /// Holds it against what was measured; none where a figure is missing.
    pub fn judge(&self, report: &Report) -> Option<Judged> {
        let median = |scenario: &str, subject| Some(report.figure(scenario, subject, self.metric)?.median);
        let own = median(self.scenario, Name::Shika)?;
        let ratio = |other: f64| (other > 0.0).then_some(own / other);
        let at_most = |reached: f64, most: f64, of: &str| Judged {
            reached,
            limit: format!("≤ {most}{of}"),
            held: reached <= most,
        };
        match self.limit {
            Limit::OfEnvoy(most) => Some(at_most(ratio(median(self.scenario, Name::Envoy)?)?, most, " of Envoy")),
            Limit::OfBetterPeer(most) => {
                let peers = [Name::Haproxy, Name::Nginx].into_iter().filter_map(|peer| median(self.scenario, peer));
                let better = peers.min_by(f64::total_cmp)?;
                Some(at_most(ratio(better)?, most, " of the better of HAProxy and nginx"))
            }
            Limit::AtMost(most) => Some(at_most(own, most, "")),
            Limit::OfScenario(other, most) => {
                Some(at_most(ratio(median(other, Name::Shika)?)?, most, &format!(" of {other}")))
            }
        }
    }
}
