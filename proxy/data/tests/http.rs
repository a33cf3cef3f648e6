//! The life of a request over real sockets: a snapshot built by hand, scripted upstreams, raw clients.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU8},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use shika_data::{
    drain::{DrainScope, DrainStrategy},
    listen,
    model::{
        ChainId, ClusterId, ListenerId, RouteTableId,
        chain_match::{ChainMatch, ChainTable},
        cluster::{
            Balancer, Cluster, Discovery, Endpoint, EndpointAddress, EndpointSet, Limits, Locality, Priority,
            Selection, UpstreamProtocol,
        },
        header::HeaderMutations,
        http::{
            Codec, EscapedSlashes, ForwardClientCert, ForwardClientCertMode, Http1Options, Http2Options,
            HttpConnectionManager, ServerHeader, StripPort, Timeouts, Trust, Underscores,
        },
        http_filter::FilterSettings,
        listener::{BindAddress, FilterChain, Inspect, Listener, Terminal, TrafficDirection},
        proxy_protocol::{PassThrough, UpstreamProxyProtocol},
        route::{
            ClusterChoice, DirectResponse, Domains, Forward, PathMatch, RequireTls, Route, RouteAction, RouteTable,
            VirtualHost,
        },
    },
    proxy_protocol::Version,
    snapshot::Snapshot,
    stats::{
        ClusterStats, EndpointStats, HttpStats, ListenerStats, Registry, Scope, ServerStats, UpstreamProxyProtocolStats,
    },
    worker::{WorkerConfig, Workers},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A proxy with one listener, and what a test changes about it.
struct Proxy {
    workers: Workers,
    registry: Arc<Registry>,
    address: SocketAddr,
    cluster: Arc<Cluster>,
}

struct Setup {
    upstream: SocketAddr,
    protocol: UpstreamProtocol,
    timeout: Option<Duration>,
    limits: Limits,
    upgrades: Vec<(Box<str>, bool)>,
    generation: u64,
    /// The cluster is told in a line of the PROXY protocol whom a connection is for.
    proxied: bool,
}

impl Setup {
    fn new(upstream: SocketAddr) -> Self {
        Setup {
            upstream,
            protocol: UpstreamProtocol::Http1,
            timeout: Some(Duration::from_secs(15)),
            limits: Limits::default(),
            upgrades: Vec::new(),
            generation: 1,
            proxied: false,
        }
    }
}

fn scope(prefix: &str) -> Scope {
    Scope { prefix: prefix.into(), stem: prefix.into(), tags: Vec::new() }
}

fn cluster(setup: &mut Setup, registry: &Registry) -> Arc<Cluster> {
    let endpoint = Arc::new(Endpoint {
        address: EndpointAddress::Ip(setup.upstream),
        hostname: None,
        weight: 1,
        locality: Arc::new(Locality::default()),
        labels: None,
        tls_labels: None,
        health: AtomicU8::new(0),
        monitor: Default::default(),
        checked: Default::default(),
        failures: Default::default(),
        check: None,
        stats: EndpointStats::default(),
    });
    Arc::new(Cluster {
        id: ClusterId(0),
        name: "upstream".into(),
        discovery: Discovery::Static,
        endpoints: ArcSwap::from_pointee(EndpointSet {
            priorities: vec![Priority { endpoints: vec![endpoint], weighted: false, localities: Vec::new() }],
            overprovisioning: 140,
        }),
        balancer: Balancer::RoundRobin,
        hashing: None,
        close_on_failure: None,
        panic_threshold: 50,
        connect_timeout: Duration::from_secs(5),
        selection: Selection::default(),
        health: None,
        outlier: None,
        tls: None,
        tls_matches: Vec::new(),
        proxy_protocol: setup.proxied.then(|| {
            Box::new(UpstreamProxyProtocol {
                version: Version::V1,
                pass_through: PassThrough::None,
                added: Vec::new(),
                stats: UpstreamProxyProtocolStats::new(registry, scope("cluster.upstream.upstream.proxyprotocol.")),
            })
        }),
        protocol: setup.protocol.clone(),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection: None,
        max_stream: None,
        max_requests_per_connection: None,
        http2: Http2Options::default(),
        limits: std::mem::take(&mut setup.limits),
        high_limits: Limits::default(),
        bind_source: None,
        keepalive: None,
        buffer_limit: 1 << 20,
        stats: ClusterStats::new(registry, scope("cluster.upstream.")),
    })
}

fn route(path: &str, action: RouteAction) -> Route {
    Route {
        name: path.into(),
        path: PathMatch::Prefix { value: path.into(), ignore_case: false },
        headers: Vec::new(),
        query: Vec::new(),
        grpc_only: false,
        filter_state: Vec::new(),
        fraction: None,
        action,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        filters: FilterSettings::default(),
        kri: None,
        tracing: None,
    }
}

fn forward(id: ClusterId, timeout: Option<Duration>) -> RouteAction {
    RouteAction::Forward(Forward {
        clusters: ClusterChoice::One { id, name: "upstream".into() },
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        timeout,
        idle_timeout: None,
        max_stream_duration: None,
        path_rewrite: None,
        host_rewrite: None,
        append_forwarded_host: false,
        upgrades: Vec::new(),
        high_priority: false,
        retry: None,
        mirrors: Vec::new(),
        rate_limits: None,
        buffer_limit: None,
        labels: None,
        hash: Vec::new(),
    })
}

fn snapshot(setup: &Setup, registry: &Registry, cluster: &Arc<Cluster>) -> Arc<Snapshot> {
    let direct = RouteAction::Direct(DirectResponse {
        status: StatusCode::OK,
        body: Bytes::from_static(b"direct"),
        format: None,
    });
    let routes = vec![
        route("/direct", direct),
        route("/missing-cluster", forward(ClusterId(7), setup.timeout)),
        route("/", forward(ClusterId(0), setup.timeout)),
    ];
    let table = RouteTable {
        id: RouteTableId(0),
        name: "table".into(),
        virtual_hosts: vec![VirtualHost {
            name: "host".into(),
            routes,
            require_tls: RequireTls::No,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
            rate_limits: None,
            filters: FilterSettings::default(),
        }],
        domains: Domains { any: Some(0), ..Domains::default() },
        ignore_port: false,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        most_specific_wins: false,
        filters: FilterSettings::default(),
    };
    let manager = HttpConnectionManager {
        stats: HttpStats::new(registry, scope("http.test.")),
        codec: Codec::Auto,
        routes: RouteTableId(0),
        filters: Vec::new(),
        suppress_envoy_headers: false,
        strict_headers: Vec::new(),
        tracing: None,
        access_log: Vec::new(),
        trust: Trust::default(),
        server_name: HeaderValue::from_static("envoy"),
        server_header: ServerHeader::Overwrite,
        generate_request_id: true,
        preserve_external_request_id: false,
        always_set_request_id_in_response: false,
        via: None,
        normalize_path: false,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::Keep,
        strip_port: StripPort::No,
        strip_trailing_dot: false,
        underscores: Underscores::Allow,
        max_request_headers: 60 << 10,
        max_header_count: 100,
        timeouts: Timeouts {
            idle: Some(Duration::from_secs(3600)),
            max_connection: None,
            max_stream: None,
            stream_idle: Some(Duration::from_secs(300)),
            request: None,
            request_headers: None,
            drain: Duration::from_secs(5),
        },
        max_requests_per_connection: None,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        upgrades: setup.upgrades.clone(),
        client_cert: ForwardClientCert {
            mode: ForwardClientCertMode::Sanitize,
            subject: false,
            cert: false,
            chain: false,
            dns: false,
            uri: false,
        },
    };
    let chain = FilterChain {
        id: ChainId(0),
        name: "chain".into(),
        tls: None,
        handshake_timeout: None,
        filters: Vec::new(),
        terminal: Terminal::Http(Arc::new(manager)),
        demands: 0,
        denials: None,
    };
    let listener = Listener {
        id: ListenerId(0),
        name: "listener".into(),
        addresses: vec![BindAddress::Ip { address: "127.0.0.1:0".parse().unwrap(), ipv4_compat: false }],
        bind_to_port: true,
        reuse_port: true,
        backlog: None,
        freebind: false,
        transparent: false,
        direction: TrafficDirection::Unspecified,
        use_original_dst: false,
        inspect: Inspect::default(),
        inspect_timeout: Some(Duration::from_secs(15)),
        continue_on_inspect_timeout: false,
        chains: ChainTable::new(vec![(ChainMatch::default(), Arc::new(chain))], None).unwrap(),
        connection_limit: Arc::default(),
        ignores_global_limit: false,
        datagrams: None,
        buffer_limit: 1 << 20,
        access_log: Vec::new(),
        stats: ListenerStats::new(registry, scope("listener.test.")),
    };
    Arc::new(Snapshot {
        generation: setup.generation,
        listeners: vec![Some(Arc::new(listener))],
        route_tables: vec![Some(Arc::new(table))],
        clusters: vec![Some(cluster.clone())],
    })
}

async fn start(mut setup: Setup) -> Proxy {
    let registry = Registry::new(1);
    let cluster = cluster(&mut setup, &registry);
    let snapshot = snapshot(&setup, &registry, &cluster);
    let workers = Workers::start(WorkerConfig {
        count: 1,
        server: ServerStats::new(&registry, scope("server.")),
        drain_time: Duration::from_secs(5),
        drain_strategy: DrainStrategy::Immediate,
    })
    .unwrap();
    let bound = listen::bind(snapshot.listener(ListenerId(0)).unwrap(), 1).unwrap();
    let address = bound.addresses[0].unwrap();
    workers.publish(snapshot).await;
    workers.listen(bound).await;
    Proxy { workers, registry, address, cluster }
}

impl Proxy {
    async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), rest: Vec::new() }
    }
}

/// A client or an upstream that speaks HTTP/1 byte by byte.
struct Client {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Client {
    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads up to and with the end of a head.
    async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.rest.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.rest.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.read().await > 0, "closed in the middle of a head: {:?}", String::from_utf8_lossy(&self.rest));
        }
    }

    async fn body(&mut self, length: usize) -> String {
        while self.rest.len() < length {
            assert!(self.read().await > 0, "closed in the middle of a body");
        }
        String::from_utf8(self.rest.drain(..length).collect()).unwrap()
    }

    async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let body = self.body(length).await;
        (head, body)
    }

    async fn read(&mut self) -> usize {
        tokio::time::timeout(Duration::from_secs(20), self.stream.read_buf(&mut self.rest))
            .await
            .expect("the other side answers")
            .unwrap()
    }
}

/// Accepts one connection at a time.
struct Upstream(TcpListener);

impl Upstream {
    async fn new() -> Self {
        Upstream(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    async fn accept(&self) -> Client {
        let (stream, _) =
            tokio::time::timeout(Duration::from_secs(20), self.0.accept()).await.expect("the proxy connects").unwrap();
        Client { stream, rest: Vec::new() }
    }
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

const GET: &str = "GET /a?b=c HTTP/1.1\r\nhost: example.com\r\nx-mine: 1\r\n\r\n";

#[tokio::test]
async fn requests_go_over_one_pooled_connection() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let mut server = upstream.accept().await;
    for turn in 0..3 {
        let head = server.head().await;
        assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{head}");
        for expected in [
            "host: example.com\r\n",
            "x-mine: 1\r\n",
            "x-forwarded-proto: http\r\n",
            "x-request-id: ",
            "x-envoy-expected-rq-timeout-ms: 15000\r\n",
        ] {
            assert!(head.contains(expected), "{expected} in {head}");
        }
        server.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver: mine\r\nconnection: keep-alive\r\n\r\nhi").await;
        let (head, body) = client.response().await;
        assert_eq!((status(&head), body.as_str()), (200, "hi"));
        assert!(head.contains("server: envoy\r\n") && head.contains("x-envoy-upstream-service-time: "), "{head}");
        assert!(!head.contains("connection:"), "{head}");
        if turn < 2 {
            client.send(GET).await;
        }
    }
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
    assert_eq!(proxy.cluster.stats.upstream_rq_total().total(), 3);
    assert_eq!(proxy.cluster.stats.upstream_rq_active().value(), 0);
}

#[tokio::test]
async fn a_chunked_request_and_response_pass() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    assert_eq!(server.body(13).await, "3\r\nabc\r\n0\r\n\r\n");
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    assert_eq!(client.body(12).await, "2\r\nhi\r\n0\r\n\r\n");
}

#[tokio::test]
async fn a_pooled_connection_that_the_upstream_closed_costs_no_request() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    for _ in 0..5 {
        client.send(GET).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        let (head, _) = client.response().await;
        assert_eq!(status(&head), 204);
        drop(server);
    }
}

#[tokio::test]
async fn answers_of_its_own() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    for (request, expected, body) in [
        ("GET /direct HTTP/1.1\r\nhost: a\r\n\r\n", 200, "direct"),
        ("GET /missing-cluster HTTP/1.1\r\nhost: a\r\n\r\n", 503, ""),
        ("GET / HTTP/1.1\r\n\r\n", 400, ""),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400, "Bad Request"),
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 403, ""),
    ] {
        // Some of them end their connection.
        let mut client = proxy.connect().await;
        client.send(request).await;
        let (head, text) = client.response().await;
        assert_eq!((status(&head), text.as_str()), (expected, body), "{request}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_explained() {
    let upstream = Upstream::new().await;
    let address = upstream.address();
    drop(upstream);
    let proxy = start(Setup::new(address)).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let (head, body) = client.response().await;
    assert_eq!(status(&head), 503);
    // How the transport failed is for the log, not for clients.
    assert!(body.ends_with("reset reason: remote connection failure"), "{body}");
}

#[tokio::test]
async fn an_upstream_that_closes_without_a_word_is_explained() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let mut server = upstream.accept().await;
    server.head().await;
    drop(server);
    let (head, body) = client.response().await;
    assert_eq!(status(&head), 503);
    assert!(body.ends_with("reset reason: connection termination"), "{body}");
}

#[tokio::test]
async fn a_silent_upstream_times_out() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.timeout = Some(Duration::from_millis(50));
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let (head, body) = client.response().await;
    assert_eq!((status(&head), body.as_str()), (504, "upstream request timeout"));
    assert_eq!(proxy.cluster.stats.upstream_rq_timeout().total(), 1);
}

#[tokio::test]
async fn the_circuit_breaker_refuses_beyond_its_limits() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.limits.max_requests = 1;
    let proxy = start(setup).await;
    let mut first = proxy.connect().await;
    first.send(GET).await;
    let mut server = upstream.accept().await;
    server.head().await;
    let mut second = proxy.connect().await;
    second.send(GET).await;
    let (head, body) = second.response().await;
    assert_eq!(status(&head), 503);
    assert!(body.ends_with("reset reason: overflow") && head.contains("x-envoy-overloaded: true"), "{head}{body}");
}

#[tokio::test]
async fn a_request_waits_for_a_connection_when_no_more_may_be_opened() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.limits.max_connections = 1;
    let proxy = start(setup).await;
    let mut first = proxy.connect().await;
    first.send(GET).await;
    let mut server = upstream.accept().await;
    server.head().await;
    let mut second = proxy.connect().await;
    second.send(GET).await;
    // The second request waits; the first one's answer frees the connection.
    while proxy.cluster.stats.upstream_rq_pending_active().value() == 0 {
        tokio::task::yield_now().await;
    }
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1").await;
    assert_eq!(first.response().await.1, "1");
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2").await;
    assert_eq!(second.response().await.1, "2");
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
}

#[tokio::test]
async fn an_upgraded_connection_outlives_a_publication() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.upgrades = vec![("websocket".into(), true)];
    let mut again = Setup::new(upstream.address());
    again.upgrades = setup.upgrades.clone();
    again.generation = 2;
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    assert!(
        head.contains("upgrade: websocket\r\n") && head.to_ascii_lowercase().contains("connection: upgrade\r\n"),
        "{head}"
    );
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(status(&head), 101);
    proxy.workers.publish(snapshot(&again, &proxy.registry, &proxy.cluster)).await;
    client.send("ping").await;
    assert_eq!(server.body(4).await, "ping");
    server.send("pong").await;
    assert_eq!(client.body(4).await, "pong");
}

#[tokio::test]
async fn draining_closes_after_the_next_response() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send("GET /direct HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.response().await;
    proxy.workers.drain(DrainScope::All, Some(DrainStrategy::Immediate), None).await;
    client.send("GET /direct HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(client.read().await, 0);
}

#[tokio::test]
async fn http2_goes_in_and_out() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.protocol = UpstreamProtocol::Http2;
    let proxy = start(setup).await;
    let serve = tokio::spawn(async move {
        let (stream, _) = upstream.0.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = accepted.unwrap();
            assert_eq!(request.uri().to_string(), "http://example.com/x");
            assert!(request.headers().get("host").is_none());
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"two"), true).unwrap();
        }
    });
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    for _ in 0..3 {
        let request = http::Request::get("http://example.com/x").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "two");
        sender = sender.ready().await.unwrap();
    }
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
    drop(sender);
    driving.abort();
    serve.abort();
}

/// The way to the upstream is cut: nothing comes back, and nothing says that the connection is of no use.
#[tokio::test]
async fn a_silent_http2_connection_gets_no_further_requests() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.protocol = UpstreamProtocol::Http2;
    // Long enough for the requests that are answered.
    setup.timeout = Some(Duration::from_secs(4));
    let proxy = start(setup).await;
    let serve = tokio::spawn(async move {
        let (stream, _) = upstream.0.accept().await.unwrap();
        let mut silent = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = silent.accept().await.unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        // The second request is taken, and nobody goes on with the connection.
        let _taken = silent.accept().await.unwrap().unwrap();
        let (stream, _) = upstream.0.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(accepted) = connection.accept().await {
            let (_, mut respond) = accepted.unwrap();
            respond.send_response(http::Response::new(()), true).unwrap();
        }
    });
    let mut answers = Vec::new();
    while answers.len() < 10 && answers.iter().filter(|status| **status == 200).count() < 2 {
        let mut client = proxy.connect().await;
        client.send(GET).await;
        answers.push(status(&client.response().await.0));
    }
    assert_eq!((answers.first(), answers.get(1), answers.last()), (Some(&200), Some(&504), Some(&200)), "{answers:?}");
    serve.abort();
}

#[tokio::test]
async fn what_follows_an_upgrade_request_is_for_the_other_side_of_the_tunnel() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.upgrades = vec![("websocket".into(), true)];
    let proxy = start(setup).await;
    // In one piece with the head, and as the beginning of a request that never ends. Neither is HTTP, however much it looks like it.
    for early in ["BREW\n", "GE", "GET /never HTTP/1.1\r\nhost: a\r\n\r\n", "\0\r\0"] {
        let mut client = proxy.connect().await;
        client
            .send(&format!("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n{early}"))
            .await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 101);
        client.send("later").await;
        assert_eq!(server.body(early.len() + 5).await, format!("{early}later"));
        client.stream.shutdown().await.unwrap();
        while server.read().await > 0 {}
        assert_eq!(server.rest, b"", "after {early:?}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_leave_http_after_all_ends() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.upgrades = vec![("websocket".into(), true)];
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    // The bytes behind the head were not looked at, so they are not served.
    client
        .send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nGET /direct HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
    let (head, body) = client.response().await;
    assert_eq!((status(&head), body.as_str()), (200, "no"));
    assert!(head.contains("connection: close\r\n"), "{head}");
    while client.read().await > 0 {}
    assert_eq!(client.rest, b"");
}

#[tokio::test]
async fn a_chunked_body_ends_for_all_in_the_same_place_or_not_at_all() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let zeros = "0".repeat(18_000) + "3\r\nabc\r\n0\r\n\r\n";
    for body in
        ["0\r\n\n", "0\r\nx: y\n\n", "0\r\nx: y\n\r\n", "3\r\nabc\n0\r\n\r\n", "3;a\rb\r\nabc\r\n0\r\n\r\n", &zeros]
    {
        let mut client = proxy.connect().await;
        client.send("POST /first HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut server = upstream.accept().await;
        assert!(server.head().await.starts_with("POST /first "));
        client.send(&format!("{body}GET /victim HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let (head, _) = client.response().await;
        assert_eq!(status(&head), 400, "{body:.40?}");
        while client.read().await > 0 {}
        assert_eq!(client.rest, b"", "{body:.40?}");
        // The upstream's connection ends inside the body.
        while server.read().await > 0 {}
        assert!(!String::from_utf8_lossy(&server.rest).contains("victim"), "{body:.40?}");
    }
}

#[tokio::test]
async fn bodies_of_unusual_methods_pass() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    for method in ["GET", "HEAD", "DELETE", "POST"] {
        let mut client = proxy.connect().await;
        client
            .send(&format!("{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
            .await;
        let mut server = upstream.accept().await;
        let head = server.head().await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert_eq!(server.body(13).await, "3\r\nabc\r\n0\r\n\r\n", "{method}");
        // Closes, so that the next request does not find this connection.
        server.send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 204);
    }
}

#[tokio::test]
async fn connections_that_begin_with_a_client_are_for_that_client_alone() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new(upstream.local_addr().unwrap());
    setup.proxied = true;
    let proxy = start(setup).await;
    let accept = async || Client { stream: upstream.accept().await.unwrap().0, rest: Vec::new() };
    let line = |client: &Client| {
        let client = client.stream.local_addr().unwrap();
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", client.port(), proxy.address.port())
    };

    let (mut first, mut second) = (proxy.connect().await, proxy.connect().await);
    first.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut for_first = accept().await;
    let head = for_first.head().await;
    assert!(head.starts_with(&format!("{}GET /a HTTP/1.1\r\n", line(&first))), "{head}");
    for_first.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1").await;
    assert_eq!(first.response().await.1, "1");

    // Another client does not get the connection that is idle now.
    second.send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut for_second = accept().await;
    let head = for_second.head().await;
    assert!(head.starts_with(&format!("{}GET /b HTTP/1.1\r\n", line(&second))), "{head}");
    for_second.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2").await;
    assert_eq!(second.response().await.1, "2");

    // The same client does, and nothing is said about it again.
    first.send("GET /c HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = for_first.head().await;
    assert!(head.starts_with("GET /c HTTP/1.1\r\n"), "{head}");
    for_first.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n3").await;
    assert_eq!(first.response().await.1, "3");

    // It ends with its client.
    drop(first);
    assert_eq!(for_first.read().await, 0);
    second.send("GET /d HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(for_second.head().await.starts_with("GET /d "));
}

#[tokio::test]
async fn a_client_that_resets_a_stalled_upload_does_not_leave_its_request_behind() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.timeout = None;
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    // The upstream reads nothing more, so the proxy stops reading too. A machine that is slow here ends the upload early, which is as good.
    let piece = vec![b'x'; 1 << 16];
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), client.stream.write(&piece)).await {
        written.unwrap();
    }
    assert_eq!(proxy.cluster.stats.upstream_rq_active().value(), 1);
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let ended = async {
        while proxy.cluster.stats.upstream_rq_active().value() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the request ends with its client");
}
