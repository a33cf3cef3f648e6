//! Access logs as OpenTelemetry takes them.
//!
//! Source: `opentelemetry.proto.collector.logs.v1`, `opentelemetry.proto.logs.v1`; Envoy `OpenTelemetryAccessLogConfig`.

use bytes::Bytes;
use prost::Message;
use serde_json::Value as Json;
use shika_data::model::access_log::LogCollector;
use shika_proto::opentelemetry::proto::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tracing::warn;

use super::{super::gather::Gather, Identity, Relaxed, Telemetry, send::Channel};

/// The method that takes them.
const LOGS_SERVICE: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// Most lines of one request.
const BATCH: usize = 1024;

/// `ExportLogsServiceRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(message, repeated, tag = "1")]
    pub resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ScopeLogs {
    #[prost(message, repeated, tag = "2")]
    pub log_records: Vec<LogRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LogRecord {
    #[prost(fixed64, tag = "1")]
    pub time_unix_nano: u64,
    #[prost(message, optional, tag = "5")]
    pub body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    pub attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    pub span_id: Vec<u8>,
}

/// Sends what is logged to one collector, in batches.
pub(super) async fn export(telemetry: Telemetry, collector: LogCollector, mut queue: mpsc::Receiver<Bytes>) {
    let mut tick = tokio::time::interval_at(Instant::now() + collector.flush, collector.flush);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut channel = Channel::default();
    let (mut batch, mut failing, mut gather) = (Vec::new(), false, Gather::default());
    loop {
        let room = BATCH - batch.len();
        let (open, due) = tokio::select! {
            () = gather.over(), if gather.goes_on() => continue,
            count = queue.recv_many(&mut batch, room), if !gather.goes_on() => (count > 0, false),
            _ = tick.tick(), if !batch.is_empty() => (true, true),
        };
        if queue.is_empty() {
            gather.begin();
        }
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        if !batch.is_empty() && (due || !open || batch.len() == BATCH || bytes >= collector.bytes as usize) {
            deliver(&telemetry, &collector, &mut channel, std::mem::take(&mut batch), &mut failing).await;
        }
        if !open {
            return;
        }
    }
}

/// Sends a batch, once: a collector that is away loses lines, and memory does not grow for it.
async fn deliver(
    telemetry: &Telemetry,
    collector: &LogCollector,
    channel: &mut Channel,
    lines: Vec<Bytes>,
    failing: &mut bool,
) {
    let identity = telemetry.0.identity.load_full();
    let sent = async {
        let cluster = telemetry.cluster(&collector.cluster)?;
        let message = request(collector, &identity, &lines).encode_to_vec();
        channel.export(&cluster, &collector.target, LOGS_SERVICE, message.into()).await
    };
    let outcome = match tokio::time::timeout(collector.target.timeout, sent).await {
        Ok(outcome) => outcome,
        Err(_) => Err("it does not answer".into()),
    };
    match outcome {
        Ok(()) => *failing = false,
        Err(error) => {
            *channel = Channel::default();
            telemetry.0.lost_lines.fetch_add(lines.len() as u64, Relaxed);
            if !std::mem::replace(failing, true) {
                warn!(
                    "access log lines for {} are lost: {error}; they are counted in server.log_lines_dropped",
                    collector.cluster
                );
            }
        }
    }
}

/// A request with these lines.
pub(super) fn request(collector: &LogCollector, identity: &Identity, lines: &[Bytes]) -> Request {
    let mut attributes = Vec::with_capacity(collector.resource.len() + 4);
    if let Some(name) = &collector.log_name {
        for (key, value) in [
            ("log_name", &**name),
            ("zone_name", &identity.zone),
            ("cluster_name", &identity.cluster),
            ("node_name", &identity.node),
        ] {
            attributes.push(pair(key, Value::StringValue(value.to_owned())));
        }
    }
    for (key, value) in &collector.resource {
        if let Ok(value) = serde_json::from_str(value) {
            attributes.extend(any(value).map(|value| pair(key, value)));
        }
    }
    let log_records = lines.iter().filter_map(|line| record(line)).collect();
    Request {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource { attributes }),
            scope_logs: vec![ScopeLogs { log_records }],
        }],
    }
}

fn record(line: &[u8]) -> Option<LogRecord> {
    let Ok(Json::Object(mut line)) = serde_json::from_slice(line) else { return None };
    let number = |value: Option<&Json>, width: usize| -> Vec<u8> {
        let number = value.and_then(Json::as_str).and_then(|text| u128::from_str_radix(text, 16).ok());
        number.map_or(Vec::new(), |number| number.to_be_bytes().get(16 - width..).unwrap_or_default().to_vec())
    };
    let body = line.remove("body").and_then(any);
    let attributes = match line.remove("attributes") {
        Some(Json::Object(members)) => pairs(members),
        _ => Vec::new(),
    };
    Some(LogRecord {
        time_unix_nano: line.get("time").and_then(Json::as_str).and_then(|time| time.parse().ok()).unwrap_or(0),
        body: body.map(|value| AnyValue { value: Some(value) }),
        attributes,
        trace_id: number(line.get("trace"), 16),
        span_id: number(line.get("span"), 8),
    })
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn pairs(members: serde_json::Map<String, Json>) -> Vec<KeyValue> {
    members.into_iter().filter_map(|(key, value)| Some(pair(&key, any(value)?))).collect()
}

/// Any value that a format, or a resource's attribute, can have.
fn any(value: Json) -> Option<Value> {
    Some(match value {
        Json::Null => return None,
        Json::Bool(value) => Value::BoolValue(value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::IntValue(number),
            None => Value::DoubleValue(number.as_f64()?),
        },
        Json::String(text) => Value::StringValue(text),
        Json::Array(items) => {
            let values = items.into_iter().filter_map(any).map(|value| AnyValue { value: Some(value) }).collect();
            Value::ArrayValue(ArrayValue { values })
        }
        Json::Object(members) => Value::KvlistValue(KeyValueList { values: pairs(members) }),
    })
}
