#![allow(clippy::unwrap_used, clippy::panic)]

use shika_proto::json::from_json_value;

use super::*;

/// As Kuma writes it, with these fields on top.
fn kuma(more: Value) -> Result<GoogleStream, String> {
    let mut value = json!({
        "target_uri": "cp.example:5678",
        "stat_prefix": "ads",
        "credentials_factory_name": FILE_BASED,
        "call_credentials": [{ "from_plugin": { "name": FILE_BASED, "typed_config": {
            "@type": "type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig",
            "secret_data": { "filename": "/token" }
        } } }],
        "channel_credentials": { "ssl_credentials": { "root_certs": { "inline_string": "pem" } } },
        "channel_args": { "args": {
            "grpc.http2.max_pings_without_data": { "int_value": 0 },
            "grpc.keepalive_time_ms": { "int_value": 10_000 },
            "grpc.keepalive_timeout_ms": { "int_value": 30_000 },
            "grpc.max_receive_message_length": { "int_value": 4_194_304 }
        } }
    });
    for (field, content) in more.as_object().unwrap() {
        value[field] = content.clone();
    }
    let message: GoogleGrpc = from_json_value(&value).unwrap();
    stream(&message).map_err(|fault| format!("{}: {}", fault.path, fault.reason))
}

#[test]
fn everything_that_kuma_writes_is_read() {
    let stream = kuma(json!({})).unwrap();
    assert_eq!(stream.cluster.name, "google_grpc.ads");
    assert_eq!(stream.authority, "cp.example:5678");
    assert_eq!(stream.keepalive, Some((Duration::from_secs(10), Duration::from_secs(30))));
    assert_eq!(stream.largest_message, 4_194_304);
    let token = stream.token_file.unwrap();
    assert_eq!(
        (token.path.to_str(), token.header.as_str(), token.prefix.as_str()),
        (Some("/token"), "authorization", "")
    );
    assert!(stream.cluster.transport_socket.is_some());
}

#[test]
fn targets() {
    for (target, authority) in [
        ("dns:///cp:1", Some("cp:1")),
        ("dns:cp:1", Some("cp:1")),
        ("[::1]:5678", Some("[::1]:5678")),
        ("10.0.0.1:5678", Some("10.0.0.1:5678")),
        ("cp", None),
        (":1", None),
        ("cp:x", None),
    ] {
        let got = kuma(json!({ "target_uri": target }));
        assert_eq!(got.ok().map(|stream| stream.authority).as_deref(), authority, "{target}");
    }
}

#[test]
fn what_is_not_honoured_is_refused_with_its_path() {
    for (more, expected) in [
        (json!({ "stat_prefix": "" }), "stat_prefix: value length must be at least 1 characters"),
        (json!({ "credentials_factory_name": "x" }), "credentials_factory_name: \"x\" is not supported"),
        (json!({ "call_credentials": [{ "access_token": "x" }] }), "call_credentials[0]: only from_plugin"),
        (
            json!({ "channel_credentials": { "google_default": {} } }),
            "channel_credentials.google_default: is not supported",
        ),
        (
            json!({ "channel_credentials": { "ssl_credentials": {} } }),
            "channel_credentials.ssl_credentials.root_certs: value is required",
        ),
        (
            json!({ "channel_credentials": { "ssl_credentials": {
                "root_certs": { "inline_string": "pem" }, "cert_chain": { "inline_string": "pem" } } } }),
            "channel_credentials.ssl_credentials.private_key: value is required",
        ),
        (
            json!({ "channel_args": { "args": { "grpc.x": { "int_value": 1 } } } }),
            "channel_args.args[\"grpc.x\"]: is not supported",
        ),
    ] {
        let error = kuma(more).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}
