//! Takes secrets out of what is shown.
//!
//! Source: Envoy's `udpa.annotations.sensitive` fields: text becomes `[redacted]`, bytes its base64 form. Credentials in the metadata of gRPC services
//! go the same way, which Envoy shows.

use serde_json::Value;

const TEXT: &str = "[redacted]";
/// `[redacted]` in base64, as a bytes field prints it.
const BYTES: &str = "W3JlZGFjdGVkXQ==";

/// Redacts every sensitive field below `value`.
pub fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            let authorization =
                fields.get("key").and_then(Value::as_str).is_some_and(|key| key.eq_ignore_ascii_case("authorization"));
            let ticket_keys = fields.contains_key("keys");
            for (name, field) in fields.iter_mut() {
                match name.as_str() {
                    "private_key" | "private_key_provider" | "password" => blank(field),
                    "generic_secret" | "session_ticket_keys" => blank(field),
                    "keys" if ticket_keys && field.is_array() => blank(field),
                    "value" | "raw_value" if authorization => blank(field),
                    _ => redact(field),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Replaces all text and bytes below.
fn blank(value: &mut Value) {
    match value {
        Value::String(text) => *text = TEXT.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(blank),
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match name.as_str() {
                    "inline_bytes" | "raw_value" => *field = BYTES.into(),
                    "@type" => {}
                    _ => blank(field),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_and_tokens_go_certificates_stay() {
        let mut value = json!({
            "name": "s",
            "tls_certificate": {"certificate_chain": {"inline_string": "PEM"}, "private_key": {"inline_bytes": "c2VjcmV0"}, "password": {"inline_string": "p"}},
            "initial_metadata": [{"key": "authorization", "value": "token"}, {"key": "other", "value": "shown"}],
            "session_ticket_keys": {"keys": [{"filename": "/k"}]},
            "generic_secret": {"secret": {"inline_string": "x"}},
        });
        redact(&mut value);
        assert_eq!(
            value,
            json!({
                "name": "s",
                "tls_certificate": {"certificate_chain": {"inline_string": "PEM"}, "private_key": {"inline_bytes": BYTES}, "password": {"inline_string": TEXT}},
                "initial_metadata": [{"key": "authorization", "value": TEXT}, {"key": "other", "value": "shown"}],
                "session_ticket_keys": {"keys": [{"filename": TEXT}]},
                "generic_secret": {"secret": {"inline_string": TEXT}},
            })
        );
        assert_eq!(base64::engine::general_purpose::STANDARD.encode(TEXT), BYTES);
    }
}
