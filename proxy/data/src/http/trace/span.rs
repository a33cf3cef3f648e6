//! What is said of a request, or of one try of it, at its end.

use std::{
    borrow::Cow,
    time::{Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, header};

use super::{Trace, context, nonzero};
use crate::{
    http::{
        exchange::{Exchange, UpstreamRequest},
        headers as names,
    },
    model::{
        cluster::{Cluster, Endpoint},
        header_view::HeaderView,
        rbac::RequestView,
        tracing::{CustomTag, Span, TagValue, Tracing},
    },
    record::{self, Record},
    worker,
};

/// gRPC codes that tell of a failure of the server: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const GRPC_ERRORS: [&str; 6] = ["2", "4", "12", "13", "14", "15"];

/// The span of one try, where tries have spans of their own.
#[derive(Debug)]
pub struct TrySpan {
    id: u64,
    start: Instant,
    start_time: SystemTime,
    /// Tries before it.
    retries: u32,
    /// Its response's code; 0 without one.
    pub status: u16,
}

type Tags = Vec<(Cow<'static, str>, String)>;

impl Trace {
    /// Ends the span.
    pub fn finish(self, tracing: &Tracing, record: &Record<'_>) {
        if !self.is_sent() {
            return;
        }
        let mut tags: Tags = Vec::with_capacity(24 + tracing.tags.len());
        if let Some(request) = record.request {
            request_tags(&mut tags, tracing, &request, record);
        }
        put(&mut tags, "request_size", record.bytes_received.to_string());
        put(&mut tags, "response_size", record.bytes_sent.to_string());
        let error = common(&mut tags, &self, tracing, record, (record.status, record.cluster, record.request));
        tracing.sink.send(Span {
            tags,
            trace: self.trace,
            id: self.id,
            parent: self.parent,
            remote_parent: self.continued,
            state: self.state,
            client: self.client,
            name: self.name,
            start: record.start_time,
            duration: record.duration,
            error,
            root: true,
            datadog: self.datadog,
        });
    }

    /// Begins the span of a try, and lets the trace go on from it.
    pub(in super::super) fn begin_try(
        &self,
        tracing: &Tracing,
        retries: u32,
        headers: &mut HeaderMap,
    ) -> Option<Box<TrySpan>> {
        if !tracing.spawn_upstream {
            return None;
        }
        let id = nonzero(worker::random());
        context::inject(tracing.propagation, self, (id, Some(self.id)), headers);
        Some(Box::new(TrySpan { id, start: Instant::now(), start_time: SystemTime::now(), retries, status: 0 }))
    }
}

/// Ends the span of a try, if it has one. `broken_off`: what was left of its response is not read.
pub(in super::super) fn finish_try(exchange: &Exchange, upstream: &mut UpstreamRequest, broken_off: bool) {
    let (Some(span), Some(trace), Some(tracing)) =
        (upstream.span.take(), exchange.trace.as_ref(), exchange.manager.tracing.as_ref())
    else {
        return;
    };
    if !trace.is_sent() {
        return;
    }
    let record = exchange.record();
    let mut tags: Tags = Vec::with_capacity(16 + tracing.tags.len());
    if span.retries > 0 {
        put(&mut tags, "retry.count", span.retries.to_string());
    }
    if broken_off {
        put(&mut tags, "canceled", "true".to_owned());
    }
    put(&mut tags, "http.protocol", record::protocol(exchange.version).to_owned());
    let address = address(&upstream.endpoint);
    put(&mut tags, "upstream_address", address.clone());
    put(&mut tags, "peer.address", address);
    let error = common(&mut tags, trace, tracing, &record, (span.status, Some(&upstream.cluster), record.request));
    tracing.sink.send(Span {
        tags,
        trace: trace.trace,
        id: span.id,
        parent: Some(trace.id),
        remote_parent: false,
        state: trace.state.clone(),
        client: true,
        name: format!("router {} egress", upstream.cluster.name).into(),
        start: span.start_time,
        duration: span.start.elapsed(),
        error,
        root: false,
        datadog: None,
    });
}

fn address(endpoint: &Endpoint) -> String {
    endpoint.address.to_string()
}

fn put(tags: &mut Tags, name: &'static str, value: String) {
    tags.push((name.into(), value));
}

/// What Envoy says of a request before it looks at its response.
fn request_tags(tags: &mut Tags, tracing: &Tracing, request: &RequestView<'_>, record: &Record<'_>) {
    let text = |name: &http::HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(id) = text(&names::REQUEST_ID) {
        put(tags, "guid:x-request-id", id.to_owned());
    }
    let path = text(&names::ENVOY_ORIGINAL_PATH).unwrap_or(request.path);
    let mut end = path.len().min(tracing.longest_path);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    let scheme = text(&names::FORWARDED_PROTO).unwrap_or(request.scheme);
    put(tags, "http.url", format!("{scheme}://{}{}", request.authority, path.get(..end).unwrap_or(path)));
    put(tags, "http.method", request.method.to_owned());
    put(tags, "downstream_cluster", text(&names::DOWNSTREAM_CLUSTER).unwrap_or("-").to_owned());
    put(tags, "user_agent", text(&header::USER_AGENT).unwrap_or("-").to_owned());
    if let Some(version) = record.version {
        put(tags, "http.protocol", record::protocol(version).to_owned());
    }
    if let Some(peer) = record.connection.direct_remote {
        put(tags, "peer.address", peer.ip().to_string());
    }
    if let Some(id) = text(&names::CLIENT_TRACE_ID) {
        put(tags, "guid:x-client-trace-id", id.to_owned());
    }
    if let Some(kind) = text(&header::CONTENT_TYPE).filter(|kind| kind.starts_with("application/grpc")) {
        put(tags, "grpc.path", request.path.to_owned());
        put(tags, "grpc.authority", request.authority.to_owned());
        put(tags, "grpc.content_type", kind.to_owned());
        if let Some(timeout) = text(&names::GRPC_TIMEOUT) {
            put(tags, "grpc.timeout", timeout.to_owned());
        }
    }
}

/// What it says of both kinds of spans, and what the configuration adds. Returns whether the span tells of a failure.
fn common(
    tags: &mut Tags,
    trace: &Trace,
    tracing: &Tracing,
    record: &Record<'_>,
    (status, cluster, request): (u16, Option<&Cluster>, Option<RequestView<'_>>),
) -> bool {
    put(tags, "component", "proxy".to_owned());
    if let Some(cluster) = cluster {
        put(tags, "upstream_cluster", cluster.name.to_string());
        put(tags, "upstream_cluster.name", cluster.name.to_string());
    }
    put(tags, "http.status_code", status.to_string());
    put(tags, "response_flags", record::flags_text(record.flags));
    let mut error = status == 0 || status >= 500;
    let answer = [record.response, record.trailers.map(HeaderView::All)]
        .into_iter()
        .flatten()
        .find(|part| part.get(&names::GRPC_STATUS).is_some());
    if let Some(answer) = answer {
        let text = |name: &HeaderName| answer.get(name).and_then(|value| value.to_str().ok());
        if let Some(code) = text(&names::GRPC_STATUS) {
            put(tags, "grpc.status_code", code.to_owned());
            error |= GRPC_ERRORS.contains(&code);
        }
        if let Some(message) = text(&names::GRPC_MESSAGE) {
            put(tags, "grpc.message", message.to_owned());
        }
    }
    if error {
        put(tags, "error", "true".to_owned());
    }
    let of_route = trace.route.as_deref().map_or(&[][..], |route| &route.tags);
    let others = tracing.tags.iter().filter(|tag| !of_route.iter().any(|other| other.name == tag.name));
    for custom in of_route.iter().chain(others) {
        if let Some(value) = custom_value(custom, record, request) {
            tags.push((custom.name.to_string().into(), value));
        }
    }
    error
}

fn custom_value(tag: &CustomTag, record: &Record<'_>, request: Option<RequestView<'_>>) -> Option<String> {
    match &tag.value {
        TagValue::Constant(value) => Some(value.to_string()),
        TagValue::Header { header, default } => {
            let found = request.as_ref().and_then(|request| request.headers.get(header)?.to_str().ok());
            found.or(default.as_deref()).map(str::to_owned)
        }
        TagValue::Format(format) => {
            let mut value = String::new();
            record::render_header(format, record, &mut value);
            (!value.is_empty()).then_some(value)
        }
    }
}
