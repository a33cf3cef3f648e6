//! Spans as Zipkin takes them: API v2, as JSON and as protobuf.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message;
use serde_json::{Map, Value, json};
use shika_data::model::tracing::Span;

use super::{Identity, own_tags};

fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

fn trace_bytes(span: &Span) -> Vec<u8> {
    match u64::try_from(span.trace) {
        Ok(short) => short.to_be_bytes().to_vec(),
        Err(_) => span.trace.to_be_bytes().to_vec(),
    }
}

fn tags<'a>(span: &'a Span, identity: &'a Identity) -> impl Iterator<Item = (&'a str, &'a str)> {
    own_tags(span, identity).chain(span.tags.iter().map(|(name, value)| (&**name, value.as_str())))
}

/// A list of spans in JSON. `shared`: spans of servers may be those of their clients.
pub fn json(spans: &[Span], identity: &Identity, shared: bool) -> String {
    let spans: Vec<Value> = spans
        .iter()
        .map(|span| {
            let trace = match u64::try_from(span.trace) {
                Ok(short) => format!("{short:016x}"),
                Err(_) => format!("{:032x}", span.trace),
            };
            let mut endpoint = json!({"serviceName": identity.cluster, "port": 0});
            if let Some(address) = identity.address {
                endpoint[if address.is_ipv4() { "ipv4" } else { "ipv6" }] = address.to_string().into();
            }
            let mut value = json!({
                "traceId": trace,
                "id": format!("{:016x}", span.id),
                "name": &*span.name,
                "kind": if span.client { "CLIENT" } else { "SERVER" },
                "timestamp": micros(span.start),
                "duration": (span.duration.as_micros() as u64).max(1),
                "localEndpoint": endpoint,
                "annotations": [{"timestamp": micros(span.start + span.duration), "value": annotation(span)}],
                "tags": tags(span, identity).map(|(name, value)| (name.to_owned(), value.into())).collect::<Map<_, _>>(),
            });
            if let Some(parent) = span.parent {
                value["parentId"] = format!("{parent:016x}").into();
            }
            if shared && !span.client {
                value["shared"] = true.into();
            }
            value
        })
        .collect();
    Value::from(spans).to_string()
}

/// How the end of a span is called: the server has sent, or the client has received.
fn annotation(span: &Span) -> &'static str {
    if span.client { "cr" } else { "ss" }
}

/// `zipkin.proto3.ListOfSpans`
#[derive(Clone, PartialEq, Message)]
struct ListOfSpans {
    #[prost(message, repeated, tag = "1")]
    spans: Vec<ProtoSpan>,
}

/// `zipkin.proto3.Span`
#[derive(Clone, PartialEq, Message)]
struct ProtoSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    parent_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    id: Vec<u8>,
    /// CLIENT is 1, SERVER 2.
    #[prost(int32, tag = "4")]
    kind: i32,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "6")]
    timestamp: u64,
    #[prost(uint64, tag = "7")]
    duration: u64,
    #[prost(message, optional, tag = "8")]
    local_endpoint: Option<ProtoEndpoint>,
    #[prost(message, repeated, tag = "10")]
    annotations: Vec<ProtoAnnotation>,
    #[prost(btree_map = "string, string", tag = "11")]
    tags: std::collections::BTreeMap<String, String>,
    #[prost(bool, tag = "13")]
    shared: bool,
}

/// `zipkin.proto3.Annotation`
#[derive(Clone, PartialEq, Message)]
struct ProtoAnnotation {
    #[prost(fixed64, tag = "1")]
    timestamp: u64,
    #[prost(string, tag = "2")]
    value: String,
}

/// `zipkin.proto3.Endpoint`
#[derive(Clone, PartialEq, Message)]
struct ProtoEndpoint {
    #[prost(string, tag = "1")]
    service_name: String,
    #[prost(bytes = "vec", tag = "2")]
    ipv4: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    ipv6: Vec<u8>,
    #[prost(int32, tag = "4")]
    port: i32,
}

/// The same in protobuf. Ids are written as the format has them, from the highest byte on; Envoy turns those of spans (not of traces) round.
pub fn proto(spans: &[Span], identity: &Identity, shared: bool) -> Vec<u8> {
    let spans = spans.iter().map(|span| {
        let mut endpoint = ProtoEndpoint { service_name: identity.cluster.clone(), ..ProtoEndpoint::default() };
        match identity.address {
            Some(IpAddr::V4(address)) => endpoint.ipv4 = address.octets().to_vec(),
            Some(IpAddr::V6(address)) => endpoint.ipv6 = address.octets().to_vec(),
            None => {}
        }
        ProtoSpan {
            trace_id: trace_bytes(span),
            parent_id: span.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
            id: span.id.to_be_bytes().to_vec(),
            kind: if span.client { 1 } else { 2 },
            name: span.name.to_string(),
            timestamp: micros(span.start),
            duration: (span.duration.as_micros() as u64).max(1),
            local_endpoint: Some(endpoint),
            annotations: vec![ProtoAnnotation {
                timestamp: micros(span.start + span.duration),
                value: annotation(span).to_owned(),
            }],
            tags: tags(span, identity).map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            shared: shared && !span.client,
        }
    });
    ListOfSpans { spans: spans.collect() }.encode_to_vec()
}
