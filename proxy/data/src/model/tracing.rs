//! Tracing: which requests are traced, what is said of them, and where that goes.
//!
//! Source: Envoy `HttpConnectionManager.Tracing`, "Tracing", `config.trace.v3`, `config.route.v3.Tracing` and `Decorator`.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use http::HeaderName;
use tokio::sync::mpsc;

use super::{format::Format, route::Fraction};

/// Envoy `HttpConnectionManager.Tracing`.
#[derive(Debug)]
pub struct Tracing {
    /// Which requests are traced.
    pub sampling: Sampling,
    /// The connection manager serves requests that leave the workload.
    pub egress: bool,
    /// `spawn_upstream_span`: each try has a span of its own.
    pub spawn_upstream: bool,
    /// Most bytes of a path in `http.url`. Envoy's default 256.
    pub longest_path: usize,
    /// Tags besides Envoy's own.
    pub tags: Vec<CustomTag>,
    /// How a trace goes on from proxy to proxy.
    pub propagation: Propagation,
    /// Where spans go.
    pub sink: SpanSink,
}

/// Shares of requests that are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Of those with `x-client-trace-id`. Envoy's default all.
    pub client: Fraction,
    /// Of all. Envoy's default all.
    pub random: Fraction,
    /// Bound on both. Envoy's default all.
    pub overall: Fraction,
}

/// Envoy `Route.tracing` and `Route.decorator`.
#[derive(Clone, Debug, Default)]
pub struct RouteTracing {
    /// Instead of the connection manager's.
    pub sampling: Option<Sampling>,
    /// Before the connection manager's of the same name.
    pub tags: Vec<CustomTag>,
    /// What spans are called; `None` without a decorator.
    pub operation: Option<Box<str>>,
    /// The operation is told to the next proxy, or back to the one before (`x-envoy-decorator-operation`).
    pub propagate: bool,
}

/// Envoy `type.tracing.v3.CustomTag`.
#[derive(Clone, Debug)]
pub struct CustomTag {
    /// Name.
    pub name: Box<str>,
    /// Where its value comes from.
    pub value: TagValue,
}

/// Where the value of a tag comes from.
#[derive(Clone, Debug)]
pub enum TagValue {
    /// `literal`, or `environment` as it was when the configuration came.
    Constant(Box<str>),
    /// `request_header`
    Header {
        /// Which.
        header: HeaderName,
        /// Value without that header; without either there is no tag.
        default: Option<Box<str>>,
    },
    /// `value`: no tag where nothing comes of it.
    Format(Format),
}

/// Headers by which a trace goes on from proxy to proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Zipkin's `x-b3-*`, or `b3` alone.
    B3 {
        /// A span of ours that serves is the caller's span (`shared_span_context`). Envoy's default.
        shared: bool,
        /// Trace ids of 128 bits (`trace_id_128bit`).
        wide: bool,
        /// Spans are always those of a server (`split_spans_for_request`).
        split: bool,
    },
    /// W3C `traceparent` and `tracestate`.
    TraceContext,
    /// `x-datadog-*`, and W3C Trace Context beside it.
    Datadog,
}

/// Who takes spans.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Collector {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// What it understands.
    pub protocol: CollectorProtocol,
}

/// How spans are sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CollectorProtocol {
    /// `config.trace.v3.ZipkinConfig`
    Zipkin {
        /// Path.
        endpoint: Arc<str>,
        /// Host.
        host: Arc<str>,
        /// `HTTP_PROTO` instead of `HTTP_JSON`.
        proto: bool,
        /// Spans of servers say that they share the client's.
        shared: bool,
    },
    /// `config.trace.v3.OpenTelemetryConfig`
    OpenTelemetry {
        /// `service.name`
        service: Arc<str>,
        /// gRPC or HTTP.
        target: OtlpTarget,
    },
    /// `config.trace.v3.DatadogConfig`
    Datadog {
        /// Service.
        service: Arc<str>,
        /// Host.
        host: Arc<str>,
    },
}

/// Where the OpenTelemetry protocol goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OtlpTarget {
    /// `:authority` or host.
    pub authority: Arc<str>,
    /// Path of HTTP; `None` is gRPC.
    pub path: Option<Arc<str>>,
    /// Sent with each request, names in lower case.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Bound on one request.
    pub timeout: Duration,
}

/// A finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Of the whole trace.
    pub trace: u128,
    /// Its own.
    pub id: u64,
    /// Of the span that it is a part of.
    pub parent: Option<u64>,
    /// That one is another process's.
    pub remote_parent: bool,
    /// The other vendors' part of the context, passed on as it came.
    pub state: Option<Box<str>>,
    /// Of a client, not of a server.
    pub client: bool,
    /// Operation.
    pub name: Box<str>,
    /// Begin.
    pub start: SystemTime,
    /// Length.
    pub duration: Duration,
    /// Names and values.
    pub tags: Vec<(Cow<'static, str>, String)>,
    /// It failed.
    pub error: bool,
    /// The request's own span, not that of a try.
    pub root: bool,
    /// What Datadog's agent is to do with the trace; for its tracer only.
    pub datadog: Option<Box<DatadogContext>>,
}

/// What Datadog's tracers tell each other besides ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatadogContext {
    /// `x-datadog-sampling-priority`: above 0 is kept, 2 and -1 are somebody's express wish.
    pub priority: i32,
    /// `x-datadog-origin`
    pub origin: Option<Box<str>>,
    /// `_dd.p.*`, without the upper half of the trace id.
    pub tags: Vec<(Box<str>, Box<str>)>,
}

/// Most bytes of spans that wait for one exporter. Their tags hold what requests brought, so that their number alone bounds nothing.
const MOST_WAITING: usize = 16 * 1024 * 1024;

/// The path's end of an exporter: a queue bounded in spans and in bytes. A full one drops the span and counts it; a slow collector never holds up a
/// worker.
#[derive(Clone, Debug)]
pub struct SpanSink {
    queue: mpsc::Sender<Span>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

/// The exporter's end.
#[derive(Debug)]
pub struct SpanQueue {
    spans: mpsc::Receiver<Span>,
    waiting: Arc<AtomicUsize>,
}

impl SpanSink {
    /// A sink, and the queue that its exporter drains. `capacity` is in spans.
    pub fn new(capacity: usize) -> (Self, SpanQueue) {
        let (queue, spans) = mpsc::channel(capacity.max(1));
        let waiting = Arc::<AtomicUsize>::default();
        (SpanSink { queue, waiting: waiting.clone(), dropped: Arc::default() }, SpanQueue { spans, waiting })
    }

    /// Queues a span.
    pub fn send(&self, span: Span) {
        let size = span.size();
        let fits = self.waiting.fetch_add(size, Relaxed) + size <= MOST_WAITING;
        if !fits || self.queue.try_send(span).is_err() {
            self.waiting.fetch_sub(size, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Spans lost to a full queue since the last call.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed)
    }

    /// Whether any configuration still holds it besides its owner.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.dropped) > 1
    }
}

impl SpanQueue {
    /// No span waits.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Waits for spans and appends up to `most` of them; 0 once no sink is left. Nothing is lost when the wait is given up.
    pub async fn receive(&mut self, into: &mut Vec<Span>, most: usize) -> usize {
        let before = into.len();
        let count = self.spans.recv_many(into, most).await;
        let size: usize = into.iter().skip(before).map(Span::size).sum();
        self.waiting.fetch_sub(size, Relaxed);
        count
    }
}

impl Span {
    /// Bytes that it holds, about.
    fn size(&self) -> usize {
        size_of::<Self>() + self.tags.iter().map(|(name, value)| name.len() + value.len() + 48).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(size: usize) -> Span {
        Span {
            trace: 1,
            id: 1,
            parent: None,
            remote_parent: false,
            state: None,
            client: false,
            name: "".into(),
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            tags: vec![("user_agent".into(), "x".repeat(size))],
            error: false,
            root: true,
            datadog: None,
        }
    }

    #[tokio::test]
    async fn large_spans_do_not_fill_the_memory() {
        let (sink, mut queue) = SpanSink::new(1024);
        for _ in 0..20 {
            sink.send(span(MOST_WAITING / 10));
        }
        assert_eq!(sink.take_dropped(), 11, "nine fit");
        let mut spans = Vec::new();
        assert_eq!(queue.receive(&mut spans, 100).await, 9);
        sink.send(span(MOST_WAITING / 2));
        assert_eq!(sink.take_dropped(), 0, "there is room again");
        drop(sink);
        assert_eq!((queue.receive(&mut spans, 100).await, queue.receive(&mut spans, 100).await), (1, 0));
    }
}
