//! Spans and logs on their way to collectors: one task per collector, all on one thread, so that a slow one holds up neither a worker nor the control
//! thread.
//!
//! Source: Envoy "Tracing", "OpenTelemetry access log"; the Zipkin API v2; the OpenTelemetry protocol (OTLP); the API of Datadog's agent.

mod datadog;
mod logs;
mod otlp;
mod send;
mod zipkin;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use shika_data::{
    model::{
        access_log::{LogCollector, LogSink},
        cluster::Cluster,
        tracing::{Collector, CollectorProtocol, Span, SpanQueue, SpanSink},
    },
    snapshot::Snapshot,
    stats::ServerStats,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tracing::warn;

use self::send::{Channel, SendError};
use super::gather::Gather;

/// Spans, or lines, that may wait for a collector.
const QUEUE: usize = 16 * 1024;
/// Spans of one request to a collector.
const BATCH: usize = 512;
/// So many are sent at once; Envoy's default is 5, which makes many small requests.
const ENOUGH: usize = 64;
/// At the latest after this. Envoy's default.
const FLUSH: Duration = Duration::from_secs(5);
/// The same for Datadog, whose tracer has one of its own.
const FLUSH_DATADOG: Duration = Duration::from_secs(2);
/// Bound on one request, unless the configuration has one.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Who we are, for collectors.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// `node.id`
    pub node: String,
    /// `node.cluster`
    pub cluster: String,
    /// `node.locality.zone`
    pub zone: String,
    /// This host's address.
    pub address: Option<IpAddr>,
}

/// The sinks of the process, by collector. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry(Arc<Shared>);

/// Starts the exporters' thread.
pub type Start = Box<dyn FnOnce(Telemetry, Exporters) + Send>;

struct Shared {
    spans: Mutex<BTreeMap<Collector, SpanSink>>,
    logs: Mutex<BTreeMap<LogCollector, LogSink>>,
    jobs: mpsc::UnboundedSender<Job>,
    /// Until the first sink is asked for: a proxy that sends nothing has no thread for it.
    start: Mutex<Option<(Start, Exporters)>>,
    snapshot: ArcSwap<Snapshot>,
    identity: ArcSwap<Identity>,
    /// Lines that could not be sent.
    lost_lines: AtomicU64,
    stats: ServerStats,
}

/// What an exporter sends, and to whom.
enum Job {
    Spans(Collector, SpanQueue),
    Logs(LogCollector, mpsc::Receiver<Bytes>),
}

/// The exporters' end of [`Telemetry`].
pub struct Exporters(mpsc::UnboundedReceiver<Job>);

impl Telemetry {
    /// The sinks. `start` has to [`run`] the exporters on a thread of theirs. Spans that could not be sent are counted in `server.spans_dropped`.
    pub fn new(stats: ServerStats, start: Start) -> Telemetry {
        let (jobs, receiver) = mpsc::unbounded_channel();
        Telemetry(Arc::new(Shared {
            spans: Mutex::default(),
            logs: Mutex::default(),
            jobs,
            start: Mutex::new(Some((start, Exporters(receiver)))),
            snapshot: ArcSwap::default(),
            identity: ArcSwap::default(),
            lost_lines: AtomicU64::new(0),
            stats,
        }))
    }

    /// The sink of a collector of spans. Connection managers with equal ones share it.
    pub fn spans(&self, collector: &Collector) -> SpanSink {
        let mut sinks = self.0.spans.lock();
        if let Some(sink) = sinks.get(collector) {
            return sink.clone();
        }
        // Its exporter ends with it, once it has sent what there is.
        sinks.retain(|_, sink| sink.is_used());
        let (sink, spans) = SpanSink::new(QUEUE);
        self.begin(Job::Spans(collector.clone(), spans));
        sinks.insert(collector.clone(), sink.clone());
        sink
    }

    /// The sink of a collector of logs, likewise.
    pub fn logs(&self, collector: &LogCollector) -> LogSink {
        let mut sinks = self.0.logs.lock();
        if let Some(sink) = sinks.get(collector) {
            return sink.clone();
        }
        sinks.retain(|_, sink| {
            if !sink.is_used() {
                self.0.lost_lines.fetch_add(sink.dropped(), Relaxed);
            }
            sink.is_used()
        });
        let (sink, lines) = LogSink::new(&collector.cluster, QUEUE);
        self.begin(Job::Logs(collector.clone(), lines));
        sinks.insert(collector.clone(), sink.clone());
        sink
    }

    fn begin(&self, job: Job) {
        if let Some((start, exporters)) = self.0.start.lock().take() {
            start(self.clone(), exporters);
        }
        // Without an exporters' thread (validation) no request is served either.
        let _ = self.0.jobs.send(job);
    }

    /// Collectors are among these clusters from now on.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.0.snapshot.store(snapshot);
    }

    /// Says who we are.
    pub fn identify(&self, identity: Identity) {
        self.0.identity.store(Arc::new(identity));
    }

    /// Spans lost to full queues since the last call; those that could not be sent are counted where that is known.
    pub fn newly_dropped_spans(&self) -> u64 {
        self.0.spans.lock().values().map(SpanSink::take_dropped).sum()
    }

    /// Lines lost so far, to full queues and to collectors that were away.
    pub fn dropped_lines(&self) -> u64 {
        self.0.logs.lock().values().map(LogSink::dropped).sum::<u64>() + self.0.lost_lines.load(Relaxed)
    }

    fn cluster(&self, name: &str) -> Result<Arc<Cluster>, SendError> {
        let snapshot = self.0.snapshot.load();
        let cluster = snapshot.clusters.iter().flatten().find(|cluster| *cluster.name == *name);
        Ok(cluster.cloned().ok_or("there is no such cluster")?)
    }
}

/// Runs the exporters until all [`Telemetry`] is gone. Has to run in a [`tokio::task::LocalSet`].
pub async fn run(telemetry: Telemetry, mut exporters: Exporters) {
    while let Some(job) = exporters.0.recv().await {
        match job {
            Job::Spans(collector, queue) => tokio::task::spawn_local(export(telemetry.clone(), collector, queue)),
            Job::Logs(collector, queue) => tokio::task::spawn_local(logs::export(telemetry.clone(), collector, queue)),
        };
    }
}

/// What the tags of a request's own span begin with.
fn own_tags<'a>(span: &Span, identity: &'a Identity) -> impl Iterator<Item = (&'a str, &'a str)> {
    let own = [("node_id", identity.node.as_str()), ("zone", identity.zone.as_str())];
    own.into_iter().take(if span.root { own.len() } else { 0 })
}

/// Sends what comes to one collector, in batches.
async fn export(telemetry: Telemetry, collector: Collector, mut queue: SpanQueue) {
    let pause = match collector.protocol {
        CollectorProtocol::Datadog { .. } => FLUSH_DATADOG,
        CollectorProtocol::Zipkin { .. } | CollectorProtocol::OpenTelemetry { .. } => FLUSH,
    };
    let mut tick = tokio::time::interval_at(Instant::now() + pause, pause);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut channel = Channel::default();
    let mut batch = Vec::new();
    let mut failing = false;
    let mut gather = Gather::default();
    loop {
        let room = BATCH - batch.len();
        let open = tokio::select! {
            () = gather.over(), if gather.goes_on() => continue,
            count = queue.receive(&mut batch, room), if !gather.goes_on() => count > 0,
            _ = tick.tick(), if !batch.is_empty() => {
                deliver(&telemetry, &collector, &mut channel, &mut batch, &mut failing).await;
                continue;
            }
        };
        if queue.is_empty() {
            gather.begin();
        }
        if batch.len() >= ENOUGH || !open && !batch.is_empty() {
            deliver(&telemetry, &collector, &mut channel, &mut batch, &mut failing).await;
        }
        if !open {
            return;
        }
    }
}

/// Sends a batch, once: a collector that is away loses spans, and memory does not grow for it.
async fn deliver(
    telemetry: &Telemetry,
    collector: &Collector,
    channel: &mut Channel,
    batch: &mut Vec<Span>,
    failing: &mut bool,
) {
    let batch = std::mem::take(batch);
    let count = batch.len() as u64;
    let identity = telemetry.0.identity.load_full();
    let sent = async {
        let cluster = telemetry.cluster(&collector.cluster)?;
        match &collector.protocol {
            CollectorProtocol::Zipkin { endpoint, host, proto, shared } => {
                let (kind, body) = match proto {
                    false => ("application/json", zipkin::json(&batch, &identity, *shared).into_bytes()),
                    true => ("application/x-protobuf", zipkin::proto(&batch, &identity, *shared)),
                };
                channel.post(&cluster, (host, endpoint), [("content-type", kind)], body.into()).await
            }
            CollectorProtocol::OpenTelemetry { service, target } => {
                let message = otlp::spans(&batch, &identity, service);
                channel.export(&cluster, target, otlp::TRACE_SERVICE, message.into()).await
            }
            CollectorProtocol::Datadog { service, host } => {
                let (body, traces) = datadog::traces(&batch, &identity, service);
                let traces = traces.to_string();
                let headers = datadog::HEADERS.into_iter().chain([("x-datadog-trace-count", traces.as_str())]);
                channel.post(&cluster, (host, datadog::PATH), headers, body.into()).await
            }
        }
    };
    let limit = match &collector.protocol {
        CollectorProtocol::OpenTelemetry { target, .. } => target.timeout,
        CollectorProtocol::Zipkin { .. } | CollectorProtocol::Datadog { .. } => TIMEOUT,
    };
    let outcome = match tokio::time::timeout(limit, sent).await {
        Ok(outcome) => outcome,
        Err(_) => Err("it does not answer".to_owned().into()),
    };
    match outcome {
        Ok(()) => *failing = false,
        Err(error) => {
            *channel = Channel::default();
            telemetry.0.stats.spans_dropped().add(count);
            if !std::mem::replace(failing, true) {
                warn!("spans for {} are lost: {error}; they are counted in server.spans_dropped", collector.cluster);
            }
        }
    }
}

#[cfg(test)]
#[path = "telemetry_tests.rs"]
mod tests;
