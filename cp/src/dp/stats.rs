//! Counters of the ADS streams.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::xds::ResourceType;

/// Streams that ended and are still listed.
const REMEMBERED: usize = 100;

/// What one stream was sent and how it answered, by type in the order of [`ResourceType::ORDER`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Mesh of the proxy.
    pub mesh: String,
    /// Name of the Dataplane.
    pub name: String,
    /// Whether the stream is of the delta variant.
    pub delta: bool,
    /// Whether it ended.
    pub ended: bool,
    /// Responses sent.
    pub responses: [u64; 5],
    /// Resources in these responses.
    pub resources: [u64; 5],
    /// Names of removed resources in these responses.
    pub removed: [u64; 5],
    /// Responses accepted.
    pub acknowledged: [u64; 5],
    /// Responses refused.
    pub rejected: [u64; 5],
    /// What the proxy said when it last refused a response.
    pub last_rejection: Option<String>,
}

impl StreamStats {
    /// Resources of one type that were sent.
    pub fn resources_sent(&self, kind: ResourceType) -> u64 {
        self.resources[kind.index()]
    }

    /// Resources of all types that were sent.
    pub fn all_resources_sent(&self) -> u64 {
        self.resources.iter().sum()
    }
}

/// Counters of the whole server.
#[derive(Debug, Default)]
pub struct DpStats {
    streams: Mutex<BTreeMap<u64, StreamStats>>,
    next: AtomicU64,
    totals: Mutex<StreamStats>,
    opened: AtomicU64,
    bootstraps: AtomicU64,
    certificates: AtomicU64,
    certificate_failures: AtomicU64,
}

impl DpStats {
    /// Every open stream and the last that ended, by number, oldest first.
    pub fn streams(&self) -> Vec<(u64, StreamStats)> {
        self.streams.lock().iter().map(|(id, stream)| (*id, stream.clone())).collect()
    }

    /// Certificates issued to proxies.
    pub fn certificates(&self) -> u64 {
        self.certificates.load(Ordering::Relaxed)
    }

    pub(super) fn open(&self, mesh: &str, name: &str, delta: bool) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
        let stream = StreamStats { mesh: mesh.to_owned(), name: name.to_owned(), delta, ..StreamStats::default() };
        self.streams.lock().insert(id, stream);
        id
    }

    pub(super) fn close(&self, id: u64) {
        let mut streams = self.streams.lock();
        if let Some(stream) = streams.get_mut(&id) {
            stream.ended = true;
        }
        let ended: Vec<u64> = streams.iter().filter(|(_, stream)| stream.ended).map(|(id, _)| *id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(REMEMBERED)) {
            streams.remove(id);
        }
    }

    pub(super) fn sent(&self, id: u64, kind: ResourceType, resources: usize, removed: usize) {
        self.update(id, |stream| {
            stream.responses[kind.index()] += 1;
            stream.resources[kind.index()] += resources as u64;
            stream.removed[kind.index()] += removed as u64;
        });
    }

    pub(super) fn acknowledged(&self, id: u64, kind: ResourceType) {
        self.update(id, |stream| stream.acknowledged[kind.index()] += 1);
    }

    pub(super) fn rejected(&self, id: u64, kind: ResourceType, message: &str) {
        self.update(id, |stream| {
            stream.rejected[kind.index()] += 1;
            stream.last_rejection = Some(message.to_owned());
        });
    }

    fn update(&self, id: u64, change: impl Fn(&mut StreamStats)) {
        if let Some(stream) = self.streams.lock().get_mut(&id) {
            change(stream);
        }
        change(&mut self.totals.lock());
    }

    pub(super) fn bootstrap(&self) {
        self.bootstraps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn certificate(&self, issued: bool) {
        let counter = if issued { &self.certificates } else { &self.certificate_failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters in the text format of Prometheus.
    pub fn prometheus(&self) -> String {
        let open = self.streams.lock().values().filter(|stream| !stream.ended).count();
        let totals = self.totals.lock().clone();
        let mut text = String::new();
        let mut plain = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        plain("xds_streams_active", "gauge", "ADS streams that are open.", open as u64);
        plain("xds_streams_total", "counter", "ADS streams opened.", self.opened.load(Ordering::Relaxed));
        plain("bootstrap_total", "counter", "Bootstraps served.", self.bootstraps.load(Ordering::Relaxed));
        plain(
            "cert_generation",
            "counter",
            "Certificates issued to proxies.",
            self.certificates.load(Ordering::Relaxed),
        );
        let failures = self.certificate_failures.load(Ordering::Relaxed);
        plain("cert_generation_failures", "counter", "Certificates that could not be issued.", failures);
        for (name, help, values) in [
            ("xds_responses_total", "Responses sent.", totals.responses),
            ("xds_resources_sent_total", "Resources in responses.", totals.resources),
            ("xds_resources_removed_total", "Names of removed resources in responses.", totals.removed),
            ("xds_acks_total", "Responses that proxies accepted.", totals.acknowledged),
            ("xds_nacks_total", "Responses that proxies refused.", totals.rejected),
        ] {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for kind in ResourceType::ORDER {
                let _ = writeln!(text, "{name}{{type_url=\"{}\"}} {}", kind.url(), values[kind.index()]);
            }
        }
        text
    }
}
