//! Access logs: where lines go, which are written, how they look.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::HeaderName;
use tokio::sync::mpsc;

use super::{
    format::{Format, GRPC_STATUS, JsonFormat, REQUEST_ID},
    header_view::HeaderNames,
    matcher::{HeaderMatcher, HeaderRef, StringMatcher},
    route::Fraction,
    tracing::OtlpTarget,
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

/// Access logs of requests, and what they ask for of a request and its response: no more of them is kept until they are written.
#[derive(Clone, Debug)]
pub struct RequestLogs {
    logs: Vec<AccessLog>,
    request_headers: HeaderNames,
    response_headers: HeaderNames,
}

impl Default for RequestLogs {
    fn default() -> Self {
        Vec::new().into()
    }
}

/// Names of headers that somebody asks for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Of the request.
    pub request: Vec<HeaderName>,
    /// Of the response.
    pub response: Vec<HeaderName>,
}

impl Asked {
    /// Takes down a header of the request. Method, path and their like are kept anyway.
    pub fn request(&mut self, header: &HeaderRef) {
        if let HeaderRef::Name(name) = header {
            self.request.push(name.clone());
        }
    }

    /// The same of the response.
    pub fn response(&mut self, header: &HeaderRef) {
        if let HeaderRef::Name(name) = header {
            self.response.push(name.clone());
        }
    }
}

impl RequestLogs {
    /// The headers of a request that lines or filters may show, and its id, which other things ask for.
    pub fn request_headers(&self) -> &HeaderNames {
        &self.request_headers
    }

    /// The headers of a response that lines or filters may show.
    pub fn response_headers(&self) -> &HeaderNames {
        &self.response_headers
    }
}

impl From<Vec<AccessLog>> for RequestLogs {
    fn from(logs: Vec<AccessLog>) -> Self {
        let mut asked = Asked { request: vec![REQUEST_ID], ..Asked::default() };
        for log in &logs {
            match &log.format {
                LogFormat::Text(format) => format.note(&mut asked),
                LogFormat::Json(format) => format.note(&mut asked),
            }
            if let Some(filter) = &log.filter {
                filter.note(&mut asked);
            }
        }
        RequestLogs { logs, request_headers: asked.request.into(), response_headers: asked.response.into() }
    }
}

impl Deref for RequestLogs {
    type Target = [AccessLog];

    fn deref(&self) -> &[AccessLog] {
        &self.logs
    }
}

/// Envoy `access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig`: who takes lines. Each is a JSON object with `time` (nanoseconds, as text),
/// `body`, `attributes`, `trace` and `span`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogCollector {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// gRPC or HTTP.
    pub target: OtlpTarget,
    /// `log_name`; `None` with `disable_builtin_labels`: neither it nor the node is told.
    pub log_name: Option<Box<str>>,
    /// Attributes of the resource, with values as JSON text.
    pub resource: Vec<(Box<str>, Box<str>)>,
    /// Lines are sent at the latest after this. Envoy's default 1 s.
    pub flush: Duration,
    /// As soon as so many bytes wait. Envoy's default 16 KiB; 0 is at once.
    pub bytes: u32,
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
    /// `traceable_filter`: somebody asked for this very request to be traced
    Traceable,
    /// `and_filter`
    And(Vec<LogFilter>),
    /// `or_filter`
    Or(Vec<LogFilter>),
    /// `header_filter`
    Header(HeaderMatcher),
    /// `response_flag_filter`: any of these short flags, or any flag when empty
    ResponseFlags(Vec<Box<str>>),
    /// `grpc_status_filter`: one of these codes, or with `exclude` none of them
    GrpcStatus {
        /// Codes.
        codes: Vec<u64>,
        /// Turned round.
        exclude: bool,
    },
    /// `runtime_filter`
    Share {
        /// Of all lines.
        share: Fraction,
        /// Drawn for each line; else the request's `x-request-id` decides, so that all proxies that it passes decide alike.
        independent: bool,
    },
    /// `log_type_filter`: which lines pass
    LogType {
        /// At the end of a request (`DownstreamEnd`).
        request_end: bool,
        /// At the end of a TCP connection (`TcpConnectionEnd`).
        connection_end: bool,
        /// When its upstream is connected (`TcpUpstreamConnected`).
        connected: bool,
    },
    /// `metadata_filter` on the one value of dynamic metadata that there is, `kuma.routes`, `route_kri`
    RouteKri {
        /// What the value has to be; `None`: something that a text never is.
        value: Option<StringMatcher>,
        /// Outcome without one.
        if_missing: bool,
    },
    /// `metadata_filter` on metadata that nothing sets
    Always(bool),
    /// `extension_filter` with a CEL expression
    Expression(Expression),
}

impl LogFilter {
    /// Takes down the headers that it looks at.
    fn note(&self, asked: &mut Asked) {
        match self {
            Self::And(filters) | Self::Or(filters) => filters.iter().for_each(|filter| filter.note(asked)),
            Self::GrpcStatus { .. } => asked.response.push(GRPC_STATUS),
            Self::Header(matcher) => asked.request(&matcher.name),
            Self::Expression(expression) => expression.note(asked),
            // Of the connection, the request's id, or what is counted.
            Self::StatusCode(_)
            | Self::Duration(_)
            | Self::NotHealthCheck
            | Self::Traceable
            | Self::ResponseFlags(_)
            | Self::Share { .. }
            | Self::LogType { .. }
            | Self::RouteKri { .. }
            | Self::Always(_) => {}
        }
    }
}

/// A CEL expression. Its value may be unknown, as CEL's own is an error: when it asks for what is not there.
///
/// Source: Envoy "Attributes", `access_loggers.filters.cel.v3.ExpressionFilter`.
#[derive(Clone, Debug)]
pub enum Expression {
    /// `a && b`
    And(Vec<Expression>),
    /// `a || b`
    Or(Vec<Expression>),
    /// `!a`
    Not(Box<Expression>),
    /// A comparison of texts.
    Text(Attribute, StringMatcher),
    /// `response.code`, `request.total_size` and their like.
    Number(NumberAttribute, Relation, u64),
}

impl Expression {
    /// Takes down the headers that it looks at.
    fn note(&self, asked: &mut Asked) {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.note(asked)),
            Self::Not(part) => part.note(asked),
            Self::Text(Attribute::Header(header), _) => asked.request(header),
            Self::Text(..) | Self::Number(..) => {}
        }
    }
}

/// Attributes that are texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `connection.uri_san_peer_certificate`: the first.
    PeerUriSan,
    /// `connection.dns_san_peer_certificate`: the first.
    PeerDnsSan,
    /// `connection.subject_peer_certificate`
    PeerSubject,
    /// `connection.requested_server_name`; empty without one.
    RequestedServerName,
    /// `request.headers["…"]`, and attributes that are headers.
    Header(HeaderRef),
    /// `request.url_path`: without the query.
    UrlPath,
}

/// Attributes that are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberAttribute {
    /// `response.code`
    ResponseCode,
    /// `source.port`
    SourcePort,
    /// `destination.port`
    DestinationPort,
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

impl Relation {
    /// Whether it holds.
    pub fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::AtMost => left <= right,
            Relation::Greater => left > right,
            Relation::AtLeast => left >= right,
        }
    }
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

    /// Whether any configuration still holds it besides its owner.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.dropped) > 1
    }

    /// Lines lost to a full queue so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
