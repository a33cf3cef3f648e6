//! Spans and logs that arrive at collectors: Zipkin, OpenTelemetry over gRPC and HTTP, Datadog's agent.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use common::{Proxy, answer, eventually};
use prost::Message;
use serde_json::{Value, json};

/// What a collector was sent: path, head, body.
type Seen = Arc<Mutex<Vec<(String, String, Vec<u8>)>>>;

/// Takes requests over HTTP/1.1 as long as the test lives.
fn http_collector() -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Seen::default();
    let store = seen.clone();
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let store = store.clone();
            thread::spawn(move || {
                let mut writer = socket.try_clone().unwrap();
                let mut reader = BufReader::new(socket);
                while let Some((path, head, body)) = read_request(&mut reader) {
                    store.lock().unwrap().push((path, head, body));
                    if writer.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, seen)
}

fn read_request(reader: &mut impl BufRead) -> Option<(String, String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head.split(' ').nth(1)?.to_owned(), head, body))
}

/// Takes gRPC calls.
fn grpc_collector() -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Seen::default();
    let store = seen.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve_grpc(socket, store.clone()));
            }
        });
    });
    (address, seen)
}

async fn serve_grpc(socket: tokio::net::TcpStream, store: Seen) {
    let mut connection = h2::server::handshake(socket).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let store = store.clone();
        tokio::spawn(async move {
            let (parts, mut body) = request.into_parts();
            let mut message = Vec::new();
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                message.extend_from_slice(&data);
            }
            let head = format!("{} {:?}", parts.uri, parts.headers);
            // A frame's head: not compressed, and a length.
            store.lock().unwrap().push((parts.uri.path().to_owned(), head, message.split_off(5)));
            let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
            stream
                .send_trailers(
                    [("grpc-status", "0")]
                        .iter()
                        .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
                        .collect::<http::HeaderMap>(),
                )
                .unwrap();
        });
    }
}

/// Answers every request with the names and values of its headers.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut writer = socket.try_clone().unwrap();
                let mut reader = BufReader::new(socket);
                while let Some((_, head, _)) = read_request(&mut reader) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                    if writer.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Listeners by name: direction, cluster, fields of the connection manager.
fn bootstrap(listeners: &[(&str, &str, &str, String)], clusters: &[(&str, &str, bool)]) -> String {
    let mut text =
        "node: {id: node-1, cluster: web, locality: {zone: east}}\nstatic_resources:\n  listeners:".to_owned();
    for (name, direction, cluster, fields) in listeners {
        let routes = format!(
            "{fields}\n          route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             route: {{cluster: {cluster}}}}}]}}]}}"
        );
        let listener = common::http_listener(name, "127.0.0.1:0", &routes);
        text +=
            &listener.replace("    filter_chains:", &format!("    traffic_direction: {direction}\n    filter_chains:"));
    }
    text += "  clusters:";
    for (name, address, http2) in clusters {
        text += &common::cluster(name, address);
        if *http2 {
            text += "    typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
                     type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}\n";
        }
    }
    text
}

fn tracing(tracer: &str, config: &str, more: &str) -> String {
    format!(
        "tracing: {{{more} custom_tags: [{{tag: kuma.mesh, literal: {{value: default}}}}], provider: {{name: x, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.config.trace.v3.{tracer}, {config}}}}}}}"
    )
}

/// One request; what the upstream saw of it.
fn ask(address: &str, path: &str, headers: &str) -> String {
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nhost: web.example\r\nuser-agent: test\r\nx-request-id: 00000000-0000-4000-8000-000000000000\r\n{headers}\r\n"
    )
    .unwrap();
    answer(&mut BufReader::new(socket)).body
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

/// Waits until a path was sent to, and gives all that was.
fn bodies(seen: &Seen, path: &str, enough: impl Fn(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
    eventually(path, || {
        let bodies: Vec<Vec<u8>> =
            seen.lock().unwrap().iter().filter(|(at, ..)| at == path).map(|(.., body)| body.clone()).collect();
        enough(&bodies).then_some(bodies)
    })
}

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resource>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, optional, tag = "1")]
    resource: Option<Attributes>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<Scope>,
}

#[derive(Clone, PartialEq, Message)]
struct Attributes {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(bytes = "vec", repeated, tag = "2")]
    items: Vec<Vec<u8>>,
}

/// As far as it is looked at; in a trace it is a span.
#[derive(Clone, PartialEq, Message)]
struct OtlpSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct OtlpLog {
    #[prost(fixed64, tag = "1")]
    time: u64,
    #[prost(message, optional, tag = "5")]
    body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    span: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(message, optional, tag = "6")]
    members: Option<Attributes>,
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<&str, &str> {
    let text = |one: &'_ KeyValue| one.value.as_ref().and_then(|value| value.text.clone()).unwrap_or_default();
    attributes.iter().map(|one| (one.key.as_str(), &*text(one).leak())).collect()
}

fn items(bodies: &[Vec<u8>]) -> Vec<(Vec<KeyValue>, Vec<u8>)> {
    let mut items = Vec::new();
    for body in bodies {
        for one in Export::decode(body.as_slice()).unwrap().resources {
            let resource = one.resource.unwrap_or_default().attributes;
            items.extend(one.scopes.into_iter().flat_map(|scope| scope.items).map(|item| (resource.clone(), item)));
        }
    }
    items
}

#[test]
fn zipkin_gets_one_span_of_both_proxies() {
    let (collector, seen) = http_collector();
    let upstream = echo();
    let zipkin = |more: &str| {
        let config = "collector_cluster: collector, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON, \
                      collector_hostname: zipkin.example, trace_id_128bit: true";
        tracing("ZipkinConfig", config, more)
    };
    // The port of the second is not known before it listens, so that it runs in a proxy of its own.
    let clusters = [("collector", collector.as_str(), false), ("up", upstream.as_str(), false)];
    let server = Proxy::start(&bootstrap(&[("in", "INBOUND", "up", zipkin(""))], &clusters), &[]).live();
    let inbound = server.listener("in");
    let clusters = [("collector", collector.as_str(), false), ("server", inbound.as_str(), false)];
    let listeners = [
        ("out", "OUTBOUND", "server", zipkin("")),
        ("none", "OUTBOUND", "server", zipkin("random_sampling: {value: 0},")),
    ];
    let client = Proxy::start(&bootstrap(&listeners, &clusters), &[]).live();
    let untraced = ask(&client.listener("none"), "/not", "");
    assert_eq!(header(&untraced, "x-b3-sampled"), Some("0"));
    let saw = ask(&client.listener("out"), "/a?b=c", "");
    let spans = eventually("two spans", || {
        let spans: Vec<Value> = seen
            .lock()
            .unwrap()
            .iter()
            .flat_map(|(.., body)| serde_json::from_slice::<Vec<Value>>(body).unwrap())
            .collect();
        (spans.len() >= 2).then_some(spans)
    });
    assert_eq!(spans.len(), 2, "what is not sampled is not sent: {spans:?}");
    let of = |kind: &str| spans.iter().find(|span| span["kind"] == kind).unwrap();
    let (client, server) = (of("CLIENT"), of("SERVER"));
    for (span, shared) in [(client, Value::Null), (server, true.into())] {
        assert_eq!(span["traceId"], header(&saw, "x-b3-traceid").unwrap());
        assert_eq!(span["id"], header(&saw, "x-b3-spanid").unwrap(), "the server shares its client's span");
        assert_eq!(span["shared"], shared);
        assert_eq!(span["name"], "web.example");
        assert_eq!(span["localEndpoint"]["serviceName"], "web");
        for (tag, value) in [
            ("http.url", "http://web.example/a?b=c"),
            ("http.method", "GET"),
            ("http.status_code", "200"),
            ("http.protocol", "HTTP/1.1"),
            ("guid:x-request-id", "00000000-0000-9000-8000-000000000000"),
            ("component", "proxy"),
            ("user_agent", "test"),
            ("peer.address", "127.0.0.1"),
            ("node_id", "node-1"),
            ("zone", "east"),
            ("kuma.mesh", "default"),
        ] {
            assert_eq!(span["tags"][tag], value, "{tag}");
        }
    }
    assert_eq!(header(&saw, "x-b3-traceid").unwrap().len(), 32);
    assert_eq!(header(&saw, "x-b3-sampled"), Some("1"));
    let (_, head, _) = seen.lock().unwrap()[0].clone();
    assert!(head.starts_with("POST /api/v2/spans HTTP/1.1\r\nhost: zipkin.example\r\n"), "{head}");
}

#[test]
fn open_telemetry_gets_spans_over_grpc_and_http() {
    let (grpc, calls) = grpc_collector();
    let (http, posts) = http_collector();
    let upstream = echo();
    let over_grpc = "service_name: web, grpc_service: {envoy_grpc: {cluster_name: grpc}, initial_metadata: [{key: tenant, value: t}]}";
    let over_http = "service_name: web, http_service: {http_uri: {uri: \"http://otel.example:4318/v1/traces\", cluster: http, timeout: 5s}, \
                     request_headers_to_add: [{header: {key: authorization, value: Bearer x}}]}";
    let listeners = [
        ("grpc", "OUTBOUND", "up", tracing("OpenTelemetryConfig", over_grpc, "spawn_upstream_span: true,")),
        ("http", "INBOUND", "up", tracing("OpenTelemetryConfig", over_http, "")),
    ];
    let clusters = [("grpc", grpc.as_str(), true), ("http", http.as_str(), false), ("up", upstream.as_str(), false)];
    let proxy = Proxy::start(&bootstrap(&listeners, &clusters), &[]).live();
    let context = "traceparent: 00-0000000000000001000000000000000a-000000000000000b-01\r\n";
    let saw = ask(&proxy.listener("grpc"), "/", context);
    ask(&proxy.listener("http"), "/", "");

    let method = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let found = items(&bodies(&calls, method, |bodies| items(bodies).len() >= 2));
    let spans: Vec<OtlpSpan> = found.iter().map(|(_, item)| OtlpSpan::decode(item.as_slice()).unwrap()).collect();
    let server = spans.iter().find(|span| span.kind == 2).unwrap();
    let client = spans.iter().find(|span| span.kind == 3).unwrap();
    let trace = (1_u128 << 64 | 10).to_be_bytes().to_vec();
    assert_eq!((&server.trace, &client.trace), (&trace, &trace));
    assert_eq!((server.parent.as_slice(), server.flags), (&11_u64.to_be_bytes()[..], 0x301));
    assert_eq!((&client.parent, client.flags), (&server.span, 0x101));
    assert_eq!((server.name.as_str(), client.name.as_str()), ("egress web.example", "router up egress"));
    let id: String = client.span.iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = format!("00-0000000000000001000000000000000a-{id}-01");
    assert_eq!(header(&saw, "traceparent"), Some(wanted.as_str()), "the trace goes on from the try");
    assert_eq!(texts(&found[0].0)["service.name"], "web");
    assert_eq!(texts(&server.attributes)["node_id"], "node-1");
    let tags = texts(&client.attributes);
    assert_eq!((tags["upstream_address"], tags.get("node_id")), (upstream.as_str(), None));
    assert!(calls.lock().unwrap()[0].1.contains("\"tenant\": \"t\""), "{:?}", calls.lock().unwrap()[0].1);

    let found = items(&bodies(&posts, "/v1/traces", |bodies| !bodies.is_empty()));
    let span = OtlpSpan::decode(found[0].1.as_slice()).unwrap();
    assert_eq!((span.name.as_str(), span.kind, span.parent.len(), span.trace.len()), ("ingress", 2, 0, 16));
    let head = posts.lock().unwrap()[0].1.clone();
    for line in ["host: otel.example:4318", "authorization: Bearer x", "content-type: application/x-protobuf"] {
        assert!(head.contains(line), "{line}: {head}");
    }
}

/// The part of MessagePack that a tracer needs.
fn unpack(bytes: &mut &[u8]) -> Value {
    let mut take = |count: usize| {
        let (head, rest) = bytes.split_at(count);
        *bytes = rest;
        head.to_vec()
    };
    let kind = take(1)[0];
    let mut length = |width: usize| take(width).iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    match kind {
        0xcf => (length(8) as u64).into(),
        0xcb => f64::from_bits(length(8) as u64).into(),
        0xdb => {
            let count = length(4);
            String::from_utf8(take(count)).unwrap().into()
        }
        0xdd => {
            let count = length(4);
            (0..count).map(|_| unpack(bytes)).collect::<Vec<_>>().into()
        }
        0xdf => {
            let count = length(4);
            let members = (0..count).map(|_| (unpack(bytes).as_str().unwrap().to_owned(), unpack(bytes)));
            Value::Object(members.collect())
        }
        other => panic!("{other:x} is not expected"),
    }
}

#[test]
fn datadogs_agent_gets_traces() {
    let (agent, seen) = http_collector();
    let upstream = echo();
    let config = "collector_cluster: agent, service_name: web_OUTBOUND";
    let listeners = [
        ("dd", "OUTBOUND", "up", tracing("DatadogConfig", config, "spawn_upstream_span: true,")),
        ("less", "INBOUND", "up", tracing("DatadogConfig", config, "overall_sampling: {value: 0},")),
    ];
    let clusters = [("agent", agent.as_str(), false), ("up", upstream.as_str(), false)];
    let proxy = Proxy::start(&bootstrap(&listeners, &clusters), &[]).live();
    let saw = ask(
        &proxy.listener("dd"),
        "/",
        "x-datadog-trace-id: 10\r\nx-datadog-parent-id: 11\r\nx-datadog-sampling-priority: 2\r\n",
    );
    let dropped = ask(&proxy.listener("less"), "/", "");
    assert_eq!(header(&dropped, "x-datadog-sampling-priority"), Some("-1"));
    let traces = |bodies: &[Vec<u8>]| -> Vec<Value> {
        bodies.iter().flat_map(|body| unpack(&mut body.as_slice()).as_array().unwrap().clone()).collect()
    };
    let found = traces(&bodies(&seen, "/v0.4/traces", |bodies| traces(bodies).len() >= 2));
    let of = |id: &str| {
        found.iter().find(|trace| trace[0]["trace_id"].as_u64() == id.parse().ok()).unwrap().as_array().unwrap()
    };
    let trace = of("10");
    assert_eq!(trace.len(), 2, "a try and its request: {trace:?}");
    let (child, root) = (&trace[0], &trace[1]);
    assert_eq!((&root["parent_id"], &root["resource"]), (&json!(11), &json!("egress web.example")));
    assert_eq!(
        (&root["service"], &root["name"], &root["type"]),
        (&json!("web_OUTBOUND"), &json!("envoy.proxy"), &json!("web"))
    );
    assert_eq!((&root["error"], &root["metrics"]["_sampling_priority_v1"]), (&json!(0), &json!(2.0)));
    assert_eq!((&root["meta"]["kuma.mesh"], &root["meta"]["node_id"]), (&json!("default"), &json!("node-1")));
    assert_eq!((&child["parent_id"], &child["resource"]), (&root["span_id"], &json!("router up egress")));
    assert_eq!(header(&saw, "x-datadog-trace-id"), Some("10"));
    assert_eq!(header(&saw, "x-datadog-parent-id"), Some(child["span_id"].to_string().as_str()));
    assert_eq!(header(&saw, "x-datadog-sampling-priority"), Some("2"));
    let unwanted = of(header(&dropped, "x-datadog-trace-id").unwrap());
    assert_eq!(unwanted[0]["metrics"]["_sampling_priority_v1"], json!(-1.0));
    let counted: u64 = seen
        .lock()
        .unwrap()
        .iter()
        .map(|(_, head, _)| header(head, "x-datadog-trace-count").unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(counted, 2);
}

#[test]
fn open_telemetry_gets_access_logs() {
    let (grpc, calls) = grpc_collector();
    let upstream = echo();
    let log = |cluster: &str, more: &str| {
        format!(
            "access_log: [{{name: otel, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, log_name: MeshAccessLog, \
             grpc_service: {{envoy_grpc: {{cluster_name: {cluster}}}}}, \
             resource_attributes: {{values: [{{key: kuma.mesh, value: {{string_value: default}}}}]}}, {more}}}}}]"
        )
    };
    let plain = "body: {string_value: '%REQ(:PATH)% %RESPONSE_CODE% %REQ(NONE)%'}, attributes: {values: [{key: code, value: {string_value: \
                 '%RESPONSE_CODE%'}}]}";
    let list = "disable_builtin_labels: true, body: {kvlist_value: {values: [{key: path, value: {string_value: '%REQ(:PATH)%'}}]}}";
    let otel = "service_name: web, grpc_service: {envoy_grpc: {cluster_name: grpc}}";
    let traced = format!("{}\n          {}", log("grpc", plain), tracing("OpenTelemetryConfig", otel, ""));
    let listeners = [
        ("plain", "INBOUND", "up", traced),
        ("list", "INBOUND", "up", log("grpc", list)),
        ("away", "INBOUND", "up", log("nowhere", list)),
    ];
    let clusters = [("grpc", grpc.as_str(), true), ("up", upstream.as_str(), false)];
    let proxy = Proxy::start(&bootstrap(&listeners, &clusters), &[]).live();
    let saw = ask(&proxy.listener("plain"), "/a", "");
    ask(&proxy.listener("list"), "/b", "");
    ask(&proxy.listener("away"), "/c", "");
    let method = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    let found = items(&bodies(&calls, method, |bodies| items(bodies).len() >= 2));
    let logs: Vec<(BTreeMap<&str, &str>, OtlpLog)> =
        found.iter().map(|(resource, item)| (texts(resource), OtlpLog::decode(item.as_slice()).unwrap())).collect();
    let (resource, plain) = logs.iter().find(|(resource, _)| resource.len() > 1).unwrap();
    for (key, value) in [
        ("log_name", "MeshAccessLog"),
        ("zone_name", "east"),
        ("cluster_name", "web"),
        ("node_name", "node-1"),
        ("kuma.mesh", "default"),
    ] {
        assert_eq!(resource.get(key), Some(&value), "{key}");
    }
    assert_eq!(plain.body.as_ref().unwrap().text.as_deref(), Some("/a 200 -"));
    assert_eq!(texts(&plain.attributes), BTreeMap::from([("code", "200")]));
    assert!(plain.time > 1_700_000_000_000_000_000, "{}", plain.time);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(header(&saw, "traceparent"), Some(format!("00-{}-{}-01", hex(&plain.trace), hex(&plain.span)).as_str()));
    let (resource, list) = logs.iter().find(|(resource, _)| resource.len() == 1).unwrap();
    assert_eq!(resource.get("kuma.mesh"), Some(&"default"));
    let members = &list.body.as_ref().unwrap().members.as_ref().unwrap().attributes;
    assert_eq!((texts(members), list.trace.len()), (BTreeMap::from([("path", "/b")]), 0));
    // A collector that is away loses its lines, and they are counted.
    eventually("the lost line", || (proxy.stat("server.log_lines_dropped") == 1).then_some(()));
}
