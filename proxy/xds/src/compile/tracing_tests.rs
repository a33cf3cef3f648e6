#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use shika_data::model::access_log::{LogCollector, LogSink};
use shika_proto::envoy::config::listener::v3::Listener as ProtoListener;

use super::*;
use crate::{
    compile::testing::{apply, compiler},
    compiler::Compiler,
};

type Seen = (Arc<Mutex<Vec<Collector>>>, Arc<Mutex<Vec<LogCollector>>>);

/// A compiler that notes whom it asks for sinks.
fn noting() -> (Compiler, Seen) {
    let seen = Seen::default();
    let (spans, logs) = seen.clone();
    let mut compiler = compiler();
    compiler.options.span_sink = Box::new(move |collector| {
        spans.lock().unwrap().push(collector.clone());
        shika_data::model::tracing::SpanSink::new(1).0
    });
    compiler.options.log_collector = Box::new(move |collector| {
        logs.lock().unwrap().push(collector.clone());
        LogSink::new("", 1).0
    });
    (compiler, seen)
}

/// A listener whose connection manager has these fields; what is refused of it, from the connection manager on.
fn listen(compiler: &mut Compiler, fields: &str) -> String {
    let text = format!(
        "name: l\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}\nfilter_chains: [{{filters: [{{name: f, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, \
         route_config: {{}}, http_filters: [{{name: envoy.filters.http.router, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}], {fields}}}}}]}}]"
    );
    let rejects = apply::<ProtoListener>(compiler, Instant::now(), &[&text]).rejects;
    let path = "filter_chains[0].filters[0].typed_config.";
    let text = |reject: &crate::Reject| format!("{}: {}", reject.field_path.trim_start_matches(path), reject.reason);
    rejects.iter().map(text).collect::<Vec<_>>().join("\n")
}

fn tracer(name: &str, config: &str) -> String {
    format!(
        "tracing: {{provider: {{name: x, typed_config: {{'@type': type.googleapis.com/envoy.config.trace.v3.{name}, {config}}}}}}}"
    )
}

#[test]
fn tracers_become_collectors() {
    let five = Duration::from_secs(5);
    let otlp = |target| CollectorProtocol::OpenTelemetry { service: "web".into(), target };
    for (name, config, protocol) in [
        (
            "ZipkinConfig",
            "collector_cluster: c, collector_endpoint: /spans, collector_endpoint_version: HTTP_PROTO, shared_span_context: false",
            CollectorProtocol::Zipkin { endpoint: "/spans".into(), host: "c".into(), proto: true, shared: false },
        ),
        (
            "OpenTelemetryConfig",
            "service_name: web, grpc_service: {envoy_grpc: {cluster_name: c, authority: a}, initial_metadata: [{key: K, value: v}]}",
            otlp(OtlpTarget {
                authority: "a".into(),
                path: None,
                headers: vec![("k".into(), "v".into())],
                timeout: five,
            }),
        ),
        (
            "OpenTelemetryConfig",
            "service_name: web, http_service: {http_uri: {uri: 'http://otel:4318/v1/traces?a=b', cluster: c, timeout: 1s}, \
             request_headers_to_add: [{header: {key: K, value: v}}]}",
            otlp(OtlpTarget {
                authority: "otel:4318".into(),
                path: Some("/v1/traces?a=b".into()),
                headers: vec![("k".into(), "v".into())],
                timeout: Duration::from_secs(1),
            }),
        ),
        (
            "DatadogConfig",
            "collector_cluster: c, service_name: web, collector_hostname: agent",
            CollectorProtocol::Datadog { service: "web".into(), host: "agent".into() },
        ),
    ] {
        let (mut compiler, (spans, _)) = noting();
        assert_eq!(listen(&mut compiler, &tracer(name, config)), "", "{config}");
        assert_eq!(*spans.lock().unwrap(), [Collector { cluster: "c".into(), protocol }], "{config}");
    }
}

#[test]
fn what_tracing_cannot_do_is_refused_with_its_path() {
    let zipkin = "collector_cluster: c, collector_endpoint: /spans, collector_endpoint_version: HTTP_JSON";
    let config = "tracing.provider.typed_config";
    for (fields, refused) in [
        (
            tracer("ZipkinConfig", &format!("{zipkin}, trace_context_option: USE_B3_WITH_W3C_PROPAGATION")),
            format!("{config}.trace_context_option: W3C headers beside B3 are not supported"),
        ),
        (
            tracer("ZipkinConfig", "collector_cluster: c, collector_endpoint_version: HTTP_JSON"),
            format!("{config}.collector_endpoint: value length must be at least 1 characters"),
        ),
        (
            tracer("DatadogConfig", "collector_cluster: c, service_name: s, remote_config: {}"),
            format!("{config}.remote_config: is not supported: the configuration's sampling decides"),
        ),
        (tracer("OpenTelemetryConfig", "service_name: s"), format!("{config}.grpc_service: value is required")),
        (
            tracer("OpenTelemetryConfig", "grpc_service: {google_grpc: {target_uri: x, stat_prefix: s}}"),
            format!("{config}.grpc_service.google_grpc: is not supported; use envoy_grpc"),
        ),
        (
            tracer(
                "OpenTelemetryConfig",
                "http_service: {http_uri: {uri: /v1, cluster: c, timeout: 1s}, request_headers_to_add: [{header: {key: a, value: '%HOSTNAME%'}}]}",
            ),
            format!(
                "{config}.http_service.request_headers_to_add[0].header.value: command operators have no meaning here, where there is no \
                 request; write the value itself"
            ),
        ),
        (
            "tracing: {custom_tags: [{tag: a, literal: {value: b}}, {tag: c, metadata: {kind: {request: {}}}}]}"
                .to_owned(),
            "tracing.custom_tags[1].metadata: tags of metadata are not supported".to_owned(),
        ),
        (
            "tracing: {random_sampling: {value: 101}}".to_owned(),
            "tracing.random_sampling.value: value must be inside range [0, 100]".to_owned(),
        ),
    ] {
        let refusal = listen(&mut compiler(), &fields);
        let google = refusal.contains("google_grpc") && refused.contains("google_grpc");
        assert!(refusal == refused || google, "{fields}\n{refusal}\n{refused}");
    }
}

#[test]
fn logs_become_collectors() {
    let log = |config: &str| {
        format!(
            "access_log: [{{name: x, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, {config}}}}}]"
        )
    };
    let grpc = "grpc_service: {envoy_grpc: {cluster_name: c}}";
    let base = LogCollector {
        cluster: "c".into(),
        target: OtlpTarget { authority: "c".into(), path: None, headers: Vec::new(), timeout: TIMEOUT },
        log_name: Some("log".into()),
        resource: Vec::new(),
        flush: Duration::from_secs(1),
        bytes: 16 * 1024,
    };
    for (config, wanted) in [
        (format!("log_name: log, {grpc}"), base.clone()),
        (format!("common_config: {{log_name: log, {grpc}, transport_api_version: V3}}"), base.clone()),
        (
            format!(
                "disable_builtin_labels: true, {grpc}, buffer_flush_interval: 2s, buffer_size_bytes: 0, resource_attributes: {{values: \
                 [{{key: a, value: {{string_value: '%x'}}}}, {{key: b, value: {{array_value: {{values: [{{int_value: 5}}]}}}}}}]}}"
            ),
            LogCollector {
                log_name: None,
                resource: vec![("a".into(), "\"%x\"".into()), ("b".into(), "[5]".into())],
                flush: Duration::from_secs(2),
                bytes: 0,
                ..base
            },
        ),
    ] {
        let (mut compiler, (_, logs)) = noting();
        assert_eq!(listen(&mut compiler, &log(&config)), "", "{config}");
        assert_eq!(*logs.lock().unwrap(), [wanted], "{config}");
    }
    let at = "access_log[0].typed_config";
    for (config, refused) in [
        (
            format!("{grpc}, body: {{int_value: 5}}"),
            format!(
                "{at}.body.value: Only string values, nested key value lists and array values are supported in OpenTelemetry access log format."
            ),
        ),
        (
            format!("{grpc}, attributes: {{values: [{{key: a, value: {{string_value: '%NOPE%'}}}}]}}"),
            format!("{at}.attributes.values[0].value.string_value: Not supported field in StreamInfo: NOPE"),
        ),
        ("log_name: log".to_owned(), format!("{at}.grpc_service: value is required")),
    ] {
        assert_eq!(listen(&mut compiler(), &log(&config)), refused, "{config}");
    }
}
