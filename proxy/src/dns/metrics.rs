//! Counters of the DNS server, under kuma-dp's names.
//!
//! Source: Kuma `app/kuma-dp/pkg/dataplane/dnsproxy/metrics.go`; Prometheus client library defaults for the buckets.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use hickory_server::proto::{op::ResponseCode, rr::RecordType};
use parking_lot::Mutex;

/// Bounds in seconds, as of the Prometheus client libraries.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of the wait for the first configuration.
const WAIT_SECONDS: &[f64] = &[0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The table.
    Local,
    /// A resolver, now or before.
    Upstream,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    /// From query to reply.
    pub request_duration: Histogram,
    /// The same, for what went to a resolver.
    pub upstream_duration: Histogram,
    /// Until the first table came.
    pub config_ready_wait: Histogram,
    /// Queries that no resolver answered.
    pub upstream_failures: AtomicU64,
    /// Queries refused because too many waited.
    pub overloaded: AtomicU64,
    /// Queries answered from the cache.
    pub cache_hits: AtomicU64,
    /// Queries that waited for the same one's answer.
    pub coalesced: AtomicU64,
    entries: AtomicU64,
    queries: [[AtomicU64; 2]; 3],
    codes: [AtomicU64; 4],
    /// Resolvers, and whether they answered last time.
    resolvers: Mutex<BTreeMap<SocketAddr, bool>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            request_duration: Histogram::new(SECONDS),
            upstream_duration: Histogram::new(SECONDS),
            config_ready_wait: Histogram::new(WAIT_SECONDS),
            upstream_failures: AtomicU64::default(),
            overloaded: AtomicU64::default(),
            cache_hits: AtomicU64::default(),
            coalesced: AtomicU64::default(),
            entries: AtomicU64::default(),
            queries: Default::default(),
            codes: Default::default(),
            resolvers: Mutex::default(),
        }
    }
}

const KINDS: [&str; 3] = ["A", "AAAA", "other"];
const SOURCES: [&str; 2] = ["local", "upstream"];
const CODES: [&str; 4] = ["noerror", "nxdomain", "servfail", "other"];

impl Metrics {
    /// Number of names in the table.
    pub fn entries(&self, entries: u64) {
        self.entries.store(entries, Relaxed);
    }

    /// Counts a query that was answered.
    pub fn answered(&self, kind: RecordType, source: Source, code: ResponseCode, took: Duration) {
        let kind = match kind {
            RecordType::A => 0,
            RecordType::AAAA => 1,
            _ => 2,
        };
        let source = usize::from(source == Source::Upstream);
        if let Some(counter) = self.queries.get(kind).and_then(|sources| sources.get(source)) {
            counter.fetch_add(1, Relaxed);
        }
        self.refused(code);
        self.request_duration.record(took);
        if source == 1 {
            self.upstream_duration.record(took);
        }
    }

    /// Counts a reply to what was no query.
    pub fn refused(&self, code: ResponseCode) {
        let code = match code {
            ResponseCode::NoError => 0,
            ResponseCode::NXDomain => 1,
            ResponseCode::ServFail => 2,
            _ => 3,
        };
        if let Some(counter) = self.codes.get(code) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Sets the resolvers that are asked from now on.
    pub fn resolvers(&self, servers: &[SocketAddr]) {
        *self.resolvers.lock() = servers.iter().map(|server| (*server, true)).collect();
    }

    /// Notes whether a resolver answered.
    pub fn resolver(&self, server: SocketAddr, up: bool) {
        if let Some(state) = self.resolvers.lock().get_mut(&server) {
            *state = up;
        }
    }

    /// Appends all families in Prometheus' text format; `labels` are rendered ones, `name="value"` joined by commas.
    pub fn write(&self, out: &mut String, labels: &str) {
        // Writing to a string does not fail.
        let _ = self.render(out, labels);
    }

    fn render(&self, out: &mut String, labels: &str) -> std::fmt::Result {
        let with = |own: &str| match (labels, own) {
            ("", "") => String::new(),
            (labels, "") => format!("{{{labels}}}"),
            ("", own) => format!("{{{own}}}"),
            (labels, own) => format!("{{{labels},{own}}}"),
        };
        for (name, help, histogram) in [
            (
                "kuma_dp_dns_request_duration_seconds",
                "The duration of the request (inclusive of request that use internal DNS map).",
                &self.request_duration,
            ),
            (
                "kuma_dp_dns_upstream_request_duration_seconds",
                "The duration of the proxied requests.",
                &self.upstream_duration,
            ),
            (
                "kuma_dp_dns_config_ready_wait_seconds",
                "Time between start and the first configuration.",
                &self.config_ready_wait,
            ),
        ] {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram")?;
            histogram.render(out, name, &with)?;
        }
        for (name, kind, help, value) in [
            (
                "kuma_dp_dns_upstream_request_failure_count",
                "counter",
                "The total number of failed upstream requests.",
                &self.upstream_failures,
            ),
            ("kuma_dp_dns_entries_total", "gauge", "Current number of hostnames in the DNS proxy map.", &self.entries),
            ("shika_dns_overloaded_total", "counter", "Queries refused because too many waited.", &self.overloaded),
            ("shika_dns_cache_hits_total", "counter", "Forwarded queries answered from the cache.", &self.cache_hits),
            ("shika_dns_coalesced_total", "counter", "Queries that waited for the same one.", &self.coalesced),
        ] {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{} {}", with(""), value.load(Relaxed))?;
        }
        writeln!(
            out,
            "# HELP kuma_dp_dns_queries_total Total DNS queries handled, by query type and source (local map or upstream).\n\
             # TYPE kuma_dp_dns_queries_total counter"
        )?;
        for (kind, sources) in KINDS.iter().zip(&self.queries) {
            for (source, counter) in SOURCES.iter().zip(sources) {
                let own = with(&format!("qtype=\"{kind}\",source=\"{source}\""));
                writeln!(out, "kuma_dp_dns_queries_total{own} {}", counter.load(Relaxed))?;
            }
        }
        writeln!(
            out,
            "# HELP kuma_dp_dns_response_codes_total Total DNS responses by response code.\n\
             # TYPE kuma_dp_dns_response_codes_total counter"
        )?;
        for (code, counter) in CODES.iter().zip(&self.codes) {
            let own = with(&format!("rcode=\"{code}\""));
            writeln!(out, "kuma_dp_dns_response_codes_total{own} {}", counter.load(Relaxed))?;
        }
        writeln!(
            out,
            "# HELP shika_dns_resolver_up Whether the resolver answered last time.\n# TYPE shika_dns_resolver_up gauge"
        )?;
        for (server, up) in self.resolvers.lock().iter() {
            let own = with(&format!("resolver=\"{server}\""));
            writeln!(out, "shika_dns_resolver_up{own} {}", u8::from(*up))?;
        }
        Ok(())
    }
}

/// A histogram of durations.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds.
    buckets: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), nanos: AtomicU64::new(0) }
    }

    /// Records one value.
    pub fn record(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.nanos.fetch_add(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn render(&self, out: &mut String, name: &str, with: &dyn Fn(&str) -> String) -> std::fmt::Result {
        let mut count = 0;
        for (bound, bucket) in self.bounds.iter().zip(&self.buckets) {
            count += bucket.load(Relaxed);
            writeln!(out, "{name}_bucket{} {count}", with(&format!("le=\"{bound}\"")))?;
        }
        count += self.buckets.last().map_or(0, |bucket| bucket.load(Relaxed));
        writeln!(out, "{name}_bucket{} {count}", with("le=\"+Inf\""))?;
        writeln!(out, "{name}_sum{} {}", with(""), Duration::from_nanos(self.nanos.load(Relaxed)).as_secs_f64())?;
        writeln!(out, "{name}_count{} {count}", with(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kumas_families_with_the_control_planes_labels() {
        let metrics = Metrics::default();
        let resolver = SocketAddr::from(([10, 0, 0, 2], 53));
        metrics.entries(3);
        metrics.resolvers(&[resolver]);
        metrics.resolver(resolver, false);
        metrics.answered(RecordType::A, Source::Local, ResponseCode::NoError, Duration::from_millis(1));
        metrics.answered(RecordType::MX, Source::Upstream, ResponseCode::NXDomain, Duration::from_millis(300));
        let mut text = String::new();
        metrics.write(&mut text, "mesh=\"default\"");
        for line in [
            "kuma_dp_dns_queries_total{mesh=\"default\",qtype=\"A\",source=\"local\"} 1",
            "kuma_dp_dns_queries_total{mesh=\"default\",qtype=\"other\",source=\"upstream\"} 1",
            "kuma_dp_dns_response_codes_total{mesh=\"default\",rcode=\"nxdomain\"} 1",
            "kuma_dp_dns_entries_total{mesh=\"default\"} 3",
            "kuma_dp_dns_request_duration_seconds_bucket{mesh=\"default\",le=\"0.005\"} 1",
            "kuma_dp_dns_request_duration_seconds_bucket{mesh=\"default\",le=\"0.5\"} 2",
            "kuma_dp_dns_request_duration_seconds_count{mesh=\"default\"} 2",
            "kuma_dp_dns_upstream_request_duration_seconds_count{mesh=\"default\"} 1",
            "kuma_dp_dns_upstream_request_failure_count{mesh=\"default\"} 0",
            "shika_dns_resolver_up{mesh=\"default\",resolver=\"10.0.0.2:53\"} 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        let mut plain = String::new();
        metrics.write(&mut plain, "");
        assert!(plain.contains("\nkuma_dp_dns_entries_total 3\n"), "{plain}");
    }
}
