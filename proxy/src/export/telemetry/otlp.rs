//! Spans as OpenTelemetry takes them.
//!
//! Source: `opentelemetry.proto.collector.trace.v1`, `opentelemetry.proto.trace.v1`.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use shika_data::model::tracing::Span;
use shika_proto::opentelemetry::proto::common::v1::{AnyValue, KeyValue, any_value::Value};

use super::{Identity, own_tags};

/// The method that takes them.
pub const TRACE_SERVICE: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The parent's kind is known (0x100), the parent is remote (0x200), and the trace is recorded (0x01). Source: OTLP `SpanFlags`.
const FLAGS: u32 = 0x101;
const REMOTE: u32 = 0x200;

/// `ExportTraceServiceRequest`
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<OtlpSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct OtlpSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    /// SERVER is 2, CLIENT 3.
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

/// `InstrumentationScope`
#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    /// ERROR is 2.
    #[prost(int32, tag = "3")]
    code: i32,
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A request with these spans.
pub fn spans(spans: &[Span], identity: &Identity, service: &str) -> Vec<u8> {
    let spans = spans.iter().map(|span| {
        let own = own_tags(span, identity).map(|(key, value)| attribute(key, value));
        OtlpSpan {
            trace_id: span.trace.to_be_bytes().to_vec(),
            span_id: span.id.to_be_bytes().to_vec(),
            trace_state: span.state.as_deref().unwrap_or_default().to_owned(),
            parent_span_id: span.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
            name: span.name.to_string(),
            kind: if span.client { 3 } else { 2 },
            start_time_unix_nano: nanos(span.start),
            end_time_unix_nano: nanos(span.start + span.duration),
            attributes: own.chain(span.tags.iter().map(|(key, value)| attribute(key, value))).collect(),
            status: span.error.then_some(Status { code: 2 }),
            flags: if span.remote_parent { FLAGS | REMOTE } else { FLAGS },
        }
    });
    let resource = Resource {
        attributes: vec![
            attribute("service.name", service),
            attribute("telemetry.sdk.language", "rust"),
            attribute("telemetry.sdk.name", "shika"),
            attribute("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ],
    };
    let scope = Scope { name: "shika".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let scope = ScopeSpans { scope: Some(scope), spans: spans.collect() };
    Request { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans: vec![scope] }] }
        .encode_to_vec()
}
