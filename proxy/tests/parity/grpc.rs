//! Scripted unary gRPC services.

use serde_json::Value;
use shika_proto::json::{self, Names, Options};

use crate::case::{Body, Messages, Reply};
use crate::observe::Recorder;
use crate::run::Run;

/// A reply whose message is put into its body.
pub fn framed(mut reply: Reply, messages: &Messages, run: &Run, upstream: &str) -> Reply {
    let Some(message) = reply.message.take() else { return reply };
    let bytes = json::json_value_to_wire(&messages.response, &message, Options::default()).unwrap_or_else(|errors| {
        run.recorder.miss(format!("upstream {upstream}: no {}: {errors:?}", messages.response));
        Vec::new()
    });
    let mut body = vec![0];
    body.extend((bytes.len() as u32).to_be_bytes());
    body.extend(bytes);
    reply.body = Some(Body::Bytes(body));
    reply.headers.push("content-type: application/grpc".into());
    if reply.trailers.is_empty() {
        reply.trailers.push("grpc-status: 0".into());
    }
    reply
}

/// Notes the fields of a message that a service was asked with.
pub fn note(recorder: &Recorder, path: &str, messages: &Messages, body: &[u8]) {
    let path = format!("{path}.message");
    let value = match body.split_at_checked(5) {
        Some(([0, length @ ..], message)) if (message.len() as u32).to_be_bytes() == *length => {
            json::wire_to_json_value(&messages.request, message, Names::Proto).map_err(|error| error.to_string())
        }
        _ => Err("no single gRPC message".to_owned()),
    };
    match value {
        Ok(value) => note_value(recorder, &path, &value),
        Err(error) => recorder.miss(format!("{path}: {error}")),
    }
}

fn note_value(recorder: &Recorder, path: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                note_value(recorder, &format!("{path}.{name}"), value);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                note_value(recorder, &format!("{path}[{index}]"), item);
            }
        }
        // Chosen by the kernel.
        _ if path.ends_with("source.address.socket_address.port_value") => recorder.note(path, "<PORT>"),
        _ if path.ends_with("destination.address.socket_address.port_value") => recorder.note(path, "<LISTENER>"),
        // A request's number in the process.
        Value::String(text) if path.ends_with("request.http.id") && text.parse::<u64>().is_ok() => {
            recorder.note(path, "<number>");
        }
        Value::String(text) if path.ends_with("request.time") && text.ends_with('Z') => recorder.note(path, "<time>"),
        Value::String(text) => {
            let (parent, name) = path.rsplit_once('.').unwrap_or((path, ""));
            recorder.note_headers(parent, &[(name.to_owned(), text.clone())]);
        }
        other => recorder.note(path, &other.to_string()),
    }
}
