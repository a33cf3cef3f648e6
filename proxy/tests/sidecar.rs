//! `shika-proxy run`: DNS, readiness, signals, credentials.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
};

use common::{
    LIMIT, eventually, http_listener,
    sidecar::{Setup, Sidecar, documents, exchange},
};
use hickory_server::proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use shika_proto::{
    any, envoy::config::bootstrap::v3::bootstrap::StaticResources, google::protobuf::Any, json, type_url,
};

fn ask(port: u16, name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    socket.send(&query.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn web() -> Any {
    let routes = "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hi}}}]}]}";
    let text = format!("listeners:{}", http_listener("web", "127.0.0.1:0", routes));
    let mut resources: StaticResources = json::from_yaml(&text).unwrap();
    resources.listeners[0].traffic_direction = 1;
    any::pack(&resources.listeners[0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_and_readiness() {
    let resolv_conf = tempfile::NamedTempFile::new().unwrap();
    fs::write(&resolv_conf, "nameserver [127.0.0.1]:1\noptions timeout:1\n").unwrap();
    let args = ["--dns-resolv-conf", resolv_conf.path().to_str().unwrap()];
    let mut sidecar = Sidecar::start(Setup { dns: true, args: &args, ..Setup::default() }).await;
    // Traps 2 and 7: what is told to the control plane is what is there.
    assert_eq!(sidecar.request["appProbeProxyDisabled"], false);
    assert_eq!(sidecar.request["dnsPort"], sidecar.dns_port);
    let features = sidecar.request["features"].as_array().unwrap();
    assert!(features.contains(&"feature-embedded-dns".into()), "{features:?}");
    assert_eq!(sidecar.request["dataplaneConfig"]["redirect"]["inbound"]["port"], 15006);

    let mut stream = sidecar.session().await;
    stream.request(type_url::CLUSTER).await;
    let answer = eventually("readiness", || sidecar.readiness());
    assert_eq!((answer.status, answer.body.as_str()), (503, "NOT_READY"));
    for line in ["content-type: text/plain\r\n", "cache-control: no-cache, max-age=0\r\n", "x-powered-by: kuma-dp\r\n"]
    {
        assert!(answer.head.contains(line), "{}", answer.head);
    }
    let other = exchange(TcpStream::connect(("127.0.0.1", sidecar.readiness_port)).unwrap(), "GET", "/stats", "");
    assert_eq!((other.status, other.body.as_str()), (404, "404 page not found\n"));
    // Nothing is the mesh's yet, and the only resolver is away.
    assert_eq!(ask(sidecar.dns_port, "backend.mesh.", RecordType::A).metadata.response_code, ResponseCode::ServFail);

    stream.send(type_url::CLUSTER, "1", vec![]).await;
    let directory = sidecar.directory.path().to_str().unwrap().to_owned();
    let document = r#"{"records":[{"name":"backend.mesh","ips":["240.0.0.1"]}],"ttl":30}"#;
    let ack = stream
        .send(type_url::LISTENER, "1", vec![("_kuma:dynamicconfig", documents(&directory, &[("/dns", document)]))])
        .await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    let answer = ask(sidecar.dns_port, "backend.mesh.", RecordType::A);
    let RData::A(address) = answer.answers[0].data else { panic!("{answer:?}") };
    assert_eq!((address.0.to_string().as_str(), answer.answers[0].ttl), ("240.0.0.1", 30));
    assert!(ask(sidecar.dns_port, "backend.mesh.", RecordType::AAAA).answers.is_empty());
    // With the admin interface on a Unix socket readiness is what that says.
    let live = eventually("LIVE", || sidecar.readiness().filter(|answer| answer.status == 200));
    assert_eq!(live.body, "LIVE\n");
    assert_eq!(sidecar.unix("kuma-readiness-reporter.sock", "GET", "/ready", "").body, "LIVE\n");

    // What cannot be used is refused with its place, and what was there before stays.
    for (document, needle) in
        [("{\"records\": [", "/dns: EOF"), (r#"{"records":[{"name":7}]}"#, "/dns: records[0].name: expected a string")]
    {
        let bad = documents(&directory, &[("/dns", document)]);
        let nack = stream.send(type_url::LISTENER, "2", vec![("_kuma:dynamicconfig", bad)]).await;
        let detail = nack.error_detail.expect("a refusal").message;
        assert!(detail.contains("Listener \"_kuma:dynamicconfig\"") && detail.contains(needle), "{detail}");
        assert_eq!(ask(sidecar.dns_port, "backend.mesh.", RecordType::A).answers.len(), 1);
    }
    assert!(sidecar.logged().contains("/dns: EOF"), "{}", sidecar.logged());

    let metrics = sidecar.admin("/stats/prometheus").body;
    assert!(metrics.contains("kuma_dp_dns_queries_total{qtype=\"A\",source=\"local\"} 3\n"), "{metrics}");

    // Without a connection it would be gone two seconds later; a request that is not finished keeps it until it was seen.
    stream.send(type_url::LISTENER, "3", vec![("web", web())]).await;
    let mut busy = TcpStream::connect(sidecar.listener("web")).unwrap();
    busy.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n").unwrap();
    eventually("the connection", || {
        (sidecar.admin("/stats?filter=downstream_cx_active").body.contains(": 1\n")).then_some(())
    });
    sidecar.signal("TERM");
    let terminating = eventually("TERMINATING", || sidecar.readiness().filter(|answer| answer.status == 503));
    assert_eq!(terminating.body, "TERMINATING");
    drop(busy);
    assert_eq!(sidecar.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_is_shown_on_a_new_stream() {
    let mut sidecar = Sidecar::start(Setup::default()).await;
    assert_eq!(sidecar.request["dataplaneToken"], "first");
    let mut stream = sidecar.session().await;
    assert_eq!(stream.token, "first");
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    stream.send(type_url::LISTENER, "1", vec![("web", web())]).await;
    let web = sidecar.listener("web");
    let mut client = TcpStream::connect(&web).unwrap();
    // As a whole: a file that is being written is empty for a moment.
    fs::write(sidecar.path("token.new"), "second\n").unwrap();
    fs::rename(sidecar.path("token.new"), sidecar.path("token")).unwrap();
    let mut again = sidecar.session().await;
    assert_eq!(again.token, "second");
    // What is held is told, and no connection was lost over it.
    let held = again.request(type_url::LISTENER).await;
    assert_eq!(held.initial_resource_versions.get("web").map(String::as_str), Some("1"));
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(!sidecar.logged().contains("second"), "a token in the log");
}

/// Trap 24: SIGUSR2 drains inbound connections, and the SIGTERM after it ends the process at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sigusr2_sigterm_is_immediate() {
    let mut sidecar = Sidecar::start(Setup { args: &["--drain-time=1h"], ..Setup::default() }).await;
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    stream.send(type_url::LISTENER, "1", vec![("web", web())]).await;
    let web = sidecar.listener("web");
    // A request that is not finished keeps its connection.
    let mut busy = TcpStream::connect(&web).unwrap();
    busy.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n").unwrap();
    sidecar.signal("USR2");
    // Drained: the answer on a new connection ends it.
    eventually("the drain", || {
        let mut client = TcpStream::connect(&web).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut bytes = [0; 1024];
        let length = client.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).to_ascii_lowercase().contains("connection: close").then_some(())
    });
    sidecar.signal("TERM");
    assert_eq!(sidecar.exit_code(), Some(0));
    assert!(sidecar.logged().contains("exiting at once"), "{}", sidecar.logged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_skips_the_drain() {
    let mut sidecar = Sidecar::start(Setup { args: &["--drain-time=1h"], ..Setup::default() }).await;
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    stream.send(type_url::LISTENER, "1", vec![("web", web())]).await;
    let web = sidecar.listener("web");
    let mut busy = TcpStream::connect(&web).unwrap();
    busy.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n").unwrap();
    eventually("the connection", || {
        (sidecar.admin("/stats?filter=downstream_cx_active").body.contains(": 1\n")).then_some(())
    });
    sidecar.signal("TERM");
    eventually("TERMINATING", || sidecar.readiness().filter(|answer| answer.body == "TERMINATING"));
    // While connections drain, new ones are still taken: peers may not know yet.
    let answer = exchange(TcpStream::connect(&web).unwrap(), "GET", "/", "");
    assert_eq!(answer.status, 200);
    sidecar.signal("TERM");
    assert_eq!(sidecar.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_interface_is_the_owners() {
    use std::os::unix::fs::PermissionsExt;
    let mut sidecar = Sidecar::start(Setup::default()).await;
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    assert!(sidecar.admin("/server_info").body.contains("\"default.backend-1\""));
    let mode = fs::metadata(sidecar.path("kuma-envoy-admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(sidecar.unix("kuma-envoy-admin.sock", "POST", "/healthcheck/fail", "").body, "OK\n");
    assert_eq!(sidecar.readiness().unwrap().body, "DRAINING\n");
}
