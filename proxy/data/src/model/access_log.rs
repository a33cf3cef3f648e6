//! Access logs: where lines go, which are written, how they look.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    format::{Format, JsonFormat},
    matcher::HeaderMatcher,
};

/// Envoy `config.accesslog.v3.AccessLog`.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// `None` writes every line.
    pub filter: Option<LogFilter>,
    /// How a line looks; a text format brings its own newline.
    pub format: LogFormat,
    /// Where lines go.
    pub sink: LogSink,
}

/// A line as text or as JSON (one object and a newline).
#[derive(Clone, Debug)]
pub enum LogFormat {
    /// `text_format_source`, or Envoy's default text.
    Text(Format),
    /// `json_format`
    Json(JsonFormat),
}

/// Envoy `AccessLogFilter`.
#[derive(Clone, Debug)]
pub enum LogFilter {
    /// `status_code_filter`
    StatusCode(Comparison),
    /// `duration_filter`, ms
    Duration(Comparison),
    /// `not_health_check_filter`
    NotHealthCheck,
    /// `traceable_filter`... nothing is traced yet, so nothing is traceable
    Traceable,
    /// `and_filter`
    And(Vec<LogFilter>),
    /// `or_filter`
    Or(Vec<LogFilter>),
    /// `header_filter`
    Header(HeaderMatcher),
    /// `response_flag_filter`: any of these short flags, or any flag when empty
    ResponseFlags(Vec<Box<str>>),
}

/// Envoy `ComparisonFilter`.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// How.
    pub op: ComparisonOp,
    /// With what.
    pub value: u64,
}

/// Envoy `ComparisonFilter.Op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonOp {
    /// `EQ`
    Equal,
    /// `GE`
    AtLeast,
    /// `LE`
    AtMost,
    /// `NE`
    NotEqual,
}

impl Comparison {
    /// Whether `actual` satisfies it.
    pub fn holds(self, actual: u64) -> bool {
        match self.op {
            ComparisonOp::Equal => actual == self.value,
            ComparisonOp::AtLeast => actual >= self.value,
            ComparisonOp::AtMost => actual <= self.value,
            ComparisonOp::NotEqual => actual != self.value,
        }
    }
}

/// The path's end of a log: a bounded queue of whole lines. A full queue drops the line and counts it; a slow disk or a FIFO without reader never
/// holds up a worker.
#[derive(Clone, Debug)]
pub struct LogSink {
    /// File name; `/dev/stdout` and `/dev/stderr` for the stream loggers.
    pub path: Arc<str>,
    queue: mpsc::Sender<Bytes>,
    dropped: Arc<AtomicU64>,
}

impl LogSink {
    /// A sink for `path` and the queue that its writer drains. `capacity` is in lines.
    pub fn new(path: &str, capacity: usize) -> (Self, mpsc::Receiver<Bytes>) {
        let (queue, lines) = mpsc::channel(capacity.max(1));
        (LogSink { path: path.into(), queue, dropped: Arc::default() }, lines)
    }

    /// Queues one line, newline included.
    pub fn write(&self, line: Bytes) {
        if self.queue.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines lost to a full queue so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
