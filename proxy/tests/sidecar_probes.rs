//! The application probe proxy of `shika-proxy run`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use common::{
    Answer, LIMIT, eventually,
    sidecar::{Setup, Sidecar, exchange, free_port},
};
use http::{HeaderMap, HeaderValue, Response};
use serde_json::json;
use shika_proto::type_url;

/// A workload whose answer's status is its path, `/500`; any other path is never answered.
fn workload() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = heads.clone();
    thread::spawn(move || {
        let mut silent = Vec::new();
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            kept.lock().unwrap().push(head.to_ascii_lowercase());
            match head.split(['/', '?', ' ']).nth(2).and_then(|status| status.parse::<u16>().ok()) {
                // Whoever has seen enough of the body may go.
                Some(status) => {
                    drop(write!(socket, "HTTP/1.1 {status} X\r\ncontent-length: 20000\r\n\r\n{}", "x".repeat(20000)))
                }
                None => silent.push(socket),
            }
        }
    });
    (address, heads)
}

/// `grpc.health.v1.Health` whose service `good` serves, `bad` does not, and any other does not exist.
async fn grpc() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    // The connection moves on only while it is polled here.
                    tokio::spawn(async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        let mut body = request.into_body();
                        let asked = body.data().await.unwrap().unwrap();
                        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                        let mut trailers = HeaderMap::new();
                        let status = match &asked[7.min(asked.len())..] {
                            b"good" => Some(1),
                            b"bad" => Some(2),
                            _ => None,
                        };
                        let mut stream = respond.send_response(response, false).unwrap();
                        if let Some(status) = status {
                            stream.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false).unwrap();
                        }
                        let code = if status.is_some() { "0" } else { "5" };
                        trailers.insert("grpc-status", HeaderValue::from_static(code));
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

fn probe(port: u16, path: &str, headers: &str) -> Answer {
    exchange(TcpStream::connect(("127.0.0.1", port)).unwrap(), "GET", path, headers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_tcp_and_grpc() {
    let port = free_port();
    let args = ["--application-probe-proxy-port", &port.to_string()];
    let configuration = json!({"networking": {"address": "127.0.0.1"}});
    // Transparent: connections have to come from 127.0.0.6 (trap 28).
    let mut sidecar = Sidecar::start(Setup { args: &args, configuration, dns: true, ..Setup::default() }).await;
    // Trap 2.
    assert_eq!(sidecar.request["appProbeProxyDisabled"], true);
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    eventually("the probe proxy", || TcpStream::connect(("127.0.0.1", port)).ok());

    let (app, heads) = workload();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let health = grpc().await;
    let (http, grpc) = (app.port(), health.port());
    tokio::task::spawn_blocking(move || {
        for (path, headers, status, body) in [
            (format!("/{http}/200/live?x=1"), "", 200, "HEALTHY\n"),
            (format!("/{http}/399"), "", 200, "HEALTHY\n"),
            (format!("/{http}/404"), "", 404, "UNHEALTHY\n"),
            (format!("/{http}/500"), "", 500, "UNHEALTHY\n"),
            (format!("/{http}/hangs"), "x-kuma-probes-timeout: 1\r\n", 503, "UNHEALTHY\n"),
            (format!("/{closed}/200"), "", 503, "UNHEALTHY\n"),
            ("/x/200".into(), "", 503, "UNKNOWN\n"),
            (format!("/tcp/{http}"), "", 200, "HEALTHY\n"),
            (format!("/tcp/{closed}"), "", 503, "UNHEALTHY\n"),
            ("/tcp/99999".into(), "", 503, "UNKNOWN\n"),
            (format!("/grpc/{grpc}"), "x-kuma-probes-grpc-service: good\r\n", 200, "HEALTHY\n"),
            (format!("/grpc/{grpc}"), "x-kuma-probes-grpc-service: bad\r\n", 503, "UNHEALTHY\n"),
            (format!("/grpc/{grpc}"), "", 503, "UNHEALTHY\n"),
            (format!("/grpc/{http}"), "x-kuma-probes-timeout: 1\r\n", 503, "UNHEALTHY\n"),
            (format!("/grpc/{closed}"), "", 503, "UNHEALTHY\n"),
        ] {
            // A second, which is what probes have by default, may be too little for an answer on a busy machine.
            let patience = if headers.contains("timeout") { "" } else { "x-kuma-probes-timeout: 20\r\n" };
            let answer = probe(port, &path, &format!("{headers}{patience}"));
            assert_eq!((answer.status, answer.body.as_str()), (status, body), "{path}");
            assert!(answer.head.contains("content-type: text/plain; charset=utf-8"), "{}", answer.head);
        }
        probe(
            port,
            &format!("/{http}/200"),
            "x-kuma-probes-host: app.example\r\nx-kuma-probes-timeout: 20\r\nuser-agent: kube-probe/1.30\r\nx-mine: 1\r\n",
        );
    })
    .await
    .unwrap();
    let heads = heads.lock().unwrap();
    assert!(heads[0].starts_with("get /200/live?x=1 http/1.1\r\n"), "{heads:?}");
    assert!(
        heads[0].contains(&format!("host: 127.0.0.1:{http}\r\n")) && heads[0].contains("user-agent: kuma-probe/"),
        "{heads:?}"
    );
    let last = heads.last().unwrap();
    for line in ["host: app.example\r\n", "user-agent: kube-probe/1.30\r\n", "x-mine: 1\r\n", "connection: close\r\n"] {
        assert!(last.contains(line), "{last}");
    }
    assert!(!last.contains("x-kuma-probes"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_is_not_verified_and_the_source_is_not_redirected() {
    let port = free_port();
    let args = ["--application-probe-proxy-port", &port.to_string()];
    let configuration = json!({"networking": {"address": "127.0.0.1"}});
    let mut sidecar = Sidecar::start(Setup { args: &args, configuration, dns: true, ..Setup::default() }).await;
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    eventually("the probe proxy", || TcpStream::connect(("127.0.0.1", port)).ok());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["other.example".into()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let app = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut socket, peer) = listener.accept().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let mut reader = BufReader::new(&mut stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        stream.flush().unwrap();
        peer
    });
    let answer = probe(port, &format!("/{app}/"), "x-kuma-probes-scheme: HTTPS\r\nx-kuma-probes-timeout: 20\r\n");
    assert_eq!((answer.status, answer.body.as_str()), (200, "HEALTHY\n"));
    // Trap 28: only this source passes the redirection.
    assert_eq!(server.join().unwrap().ip().to_string(), "127.0.0.6");
}

/// Kuma's virtual probes are a listener like any other: the kubelet is sent on to the workload's own port. From Kuma's golden file of the probe generator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn virtual_probes_come_by_xds() {
    let mut sidecar = Sidecar::start(Setup::default()).await;
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    let text = "name: 'probe:listener'
address: {socket_address: {address: 127.0.0.1, port_value: 0}}
enable_reuse_port: false
traffic_direction: INBOUND
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      http_filters: [{name: envoy.filters.http.router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
      internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.1, prefix_len: 32}, {address_prefix: '::1', prefix_len: 128}]}
      route_config:
        name: probe:route_configuration
        virtual_hosts:
        - domains: ['*']
          name: probe
          routes:
          - match: {headers: [{name: ':method', string_match: {exact: GET}}], path: /8080/healthz/probe}
            redirect: {path_redirect: /healthz/probe, port_redirect: 8080}
      stat_prefix: probe_listener
";
    let listener: shika_proto::envoy::config::listener::v3::Listener = shika_proto::json::from_yaml(text).unwrap();
    let resource = shika_proto::any::pack(&listener);
    let ack = stream.send(type_url::LISTENER, "1", vec![("probe:listener", resource)]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    let address = sidecar.listener("probe:listener");
    let get = |path: &str| exchange(TcpStream::connect(&address).unwrap(), "GET", path, "");
    let answer = get("/8080/healthz/probe");
    assert_eq!(answer.status, 301);
    assert!(answer.head.contains("location: http://test:8080/healthz/probe\r\n"), "{}", answer.head);
    assert_eq!(get("/8080/other").status, 404);
}
