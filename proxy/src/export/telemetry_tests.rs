#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, SystemTime};

use prost::Message;
use shika_data::stats::{Registry, Scope};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

fn span(parent: Option<u64>, client: bool) -> Span {
    Span {
        trace: 10,
        id: 11,
        parent,
        remote_parent: parent.is_some(),
        state: None,
        client,
        name: "ingress".into(),
        start: SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000),
        duration: Duration::from_micros(250),
        tags: vec![("http.method".into(), "GET".into())],
        error: true,
        root: !client,
        datadog: None,
    }
}

fn identity() -> Identity {
    Identity { node: "node-1".into(), cluster: "web".into(), zone: "east".into(), address: Some([127, 0, 0, 1].into()) }
}

#[test]
fn zipkin_reads_what_is_written() {
    let text = zipkin::json(&[span(Some(12), false), span(None, true)], &identity(), true);
    let spans: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        spans[0],
        serde_json::json!({
            "traceId": "000000000000000a", "id": "000000000000000b", "parentId": "000000000000000c", "name": "ingress", "kind": "SERVER",
            "timestamp": 1_500_000, "duration": 250, "shared": true,
            "localEndpoint": {"serviceName": "web", "ipv4": "127.0.0.1", "port": 0},
            "annotations": [{"timestamp": 1_500_250, "value": "ss"}],
            "tags": {"node_id": "node-1", "zone": "east", "http.method": "GET"},
        })
    );
    assert_eq!(
        (&spans[1]["kind"], &spans[1]["shared"], &spans[1]["parentId"]),
        (&"CLIENT".into(), &().into(), &().into())
    );
}

/// Field numbers are the protocol's, so a foreign reader of the same bytes is the test: here one that knows numbers and wire types alone.
#[test]
fn protobuf_has_the_protocols_numbers() {
    #[derive(Clone, PartialEq, Message)]
    struct Outer {
        #[prost(message, repeated, tag = "1")]
        spans: Vec<Inner>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Inner {
        #[prost(bytes = "vec", tag = "1")]
        trace: Vec<u8>,
        #[prost(int32, tag = "4")]
        kind: i32,
        #[prost(bool, tag = "13")]
        shared: bool,
    }
    let read = Outer::decode(zipkin::proto(&[span(None, false)], &identity(), true).as_slice()).unwrap();
    let inner = &read.spans[0];
    assert_eq!((inner.trace.as_slice(), inner.kind, inner.shared), (&[0, 0, 0, 0, 0, 0, 0, 10][..], 2, true));
}

/// Takes one request, answers it, and returns it.
async fn collector(listener: TcpListener) -> String {
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    loop {
        assert!(socket.read_buf(&mut seen).await.unwrap() > 0, "the whole request comes");
        let text = String::from_utf8_lossy(&seen).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            socket.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return text;
        }
    }
}

fn stats(registry: &Registry) -> ServerStats {
    ServerStats::new(registry, Scope { prefix: "server.".into(), stem: "server.".into(), tags: Vec::new() })
}

/// One cluster, `collector`, at a port.
fn clusters(port: u16) -> Arc<Snapshot> {
    let bootstrap: shika_proto::envoy::config::bootstrap::v3::Bootstrap = shika_proto::json::from_yaml(&format!(
        "static_resources: {{clusters: [{{name: collector, load_assignment: {{cluster_name: collector, endpoints: [{{lb_endpoints: [\
         {{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}]}}"
    ))
    .unwrap();
    let options = shika_xds::CompileOptions {
        hostname: String::new(),
        concurrency: 1,
        reject_unknown_dynamic_fields: false,
        log_sink: Box::new(|path| shika_data::model::access_log::LogSink::new(path, 1).0),
        span_sink: Box::new(|_| SpanSink::new(1).0),
        log_collector: Box::new(|_| shika_data::model::access_log::LogSink::new("", 1).0),
    };
    let mut compiler = shika_xds::Compiler::new(Registry::new(1), options);
    compiler.load_static(&(&bootstrap).into(), std::time::Instant::now()).unwrap();
    compiler.build().unwrap().snapshot
}

#[tokio::test]
async fn spans_reach_their_collector_in_batches() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let registry = Registry::new(1);
    let telemetry = Telemetry::new(
        stats(&registry),
        Box::new(|telemetry, exporters| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            std::thread::spawn(move || tokio::task::LocalSet::new().block_on(&runtime, run(telemetry, exporters)));
        }),
    );
    telemetry.identify(identity());
    telemetry.publish(clusters(port));
    let zipkin = |cluster: &str| Collector {
        cluster: cluster.into(),
        protocol: CollectorProtocol::Zipkin {
            endpoint: "/api/v2/spans".into(),
            host: "zipkin.example".into(),
            proto: false,
            shared: true,
        },
    };
    let sink = telemetry.spans(&zipkin("collector"));
    for _ in 0..ENOUGH {
        sink.send(span(None, false));
    }
    let request = tokio::time::timeout(Duration::from_secs(20), collector(listener)).await.unwrap();
    assert!(request.starts_with("POST /api/v2/spans HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("host: zipkin.example\r\n") && request.contains("content-type: application/json\r\n"));
    assert_eq!(request.matches("\"traceId\"").count(), ENOUGH);

    let nowhere = telemetry.spans(&zipkin("missing"));
    for _ in 0..ENOUGH {
        nowhere.send(span(None, false));
    }
    while telemetry.0.stats.spans_dropped().total() < ENOUGH as u64 {
        tokio::task::yield_now().await;
    }
}
