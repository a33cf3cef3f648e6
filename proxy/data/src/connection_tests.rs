#![allow(clippy::unwrap_used, clippy::panic)]

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    drain::DrainStrategy,
    listen,
    model::{
        access_log::{AccessLog, LogFormat, LogSink},
        chain_match::{ChainMatch, ChainTable},
        cluster::Cluster,
        format::{Format, Operator, Part},
        listener::{Inspect, TcpProxy},
        tls::{ClientContext, ClientTls, ClientTlsSpec, Identity, Parameters, SanKind, ServerContext, Validation},
    },
    stats::{RbacStats, Registry, ServerStats, SslFactoryStats, SslStats},
    testing::{
        self, Ca, allow_only, chain, cluster, endpoint, exact, listener, server_spec, server_tls, snapshot, tcp_proxy,
    },
    upstream::connect::AlpnChoice,
    worker::{WorkerConfig, Workers},
};

/// One worker and what it counts in.
struct Proxy {
    registry: Arc<Registry>,
    workers: Workers,
}

impl Proxy {
    fn start(drain_time: Duration) -> Self {
        let registry = Registry::new(1);
        let server = ServerStats::new(&registry, testing::scope("server."));
        let workers =
            Workers::start(WorkerConfig { count: 1, server, drain_time, drain_strategy: DrainStrategy::Immediate })
                .unwrap();
        Proxy { registry, workers }
    }

    /// Publishes these and accepts for the first listener.
    async fn serve(&self, listener: Listener, cluster: Cluster) -> SocketAddr {
        let bound = listen::bind(&listener, 1).unwrap();
        let address = bound.addresses[0].unwrap();
        self.workers.publish(snapshot(vec![listener], vec![Arc::new(cluster)])).await;
        self.workers.listen(bound).await;
        address
    }

    fn tcp_chain(&self) -> FilterChain {
        chain(0, Terminal::Tcp(Arc::new(tcp_proxy(&self.registry, 0))))
    }

    fn to(&self, upstream: &TcpListener) -> Cluster {
        cluster(&self.registry, 0, "test", vec![endpoint(upstream.local_addr().unwrap())])
    }

    fn rbac(&self) -> RbacStats {
        RbacStats::new(&self.registry, testing::scope("test.rbac."))
    }

    fn listener_stats(&self) -> ListenerStats {
        ListenerStats::new(&self.registry, testing::scope("listener.test."))
    }

    /// Waits until all connections have been counted down.
    async fn idle(&self) {
        while self.workers.connections() > 0 || self.listener_stats().downstream_cx_active().value() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn upstream() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn says<R: tokio::io::AsyncRead + Unpin>(io: &mut R, text: &str) {
    let mut bytes = vec![0; text.len()];
    io.read_exact(&mut bytes).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

fn client_tls(registry: &Registry, identity: Option<Identity>, validation: Option<Validation>) -> ClientTls {
    let spec = ClientTlsSpec {
        identity,
        validation,
        sni: Some("backend.mesh".into()),
        alpn: Vec::new(),
        parameters: Parameters::default(),
        max_session_keys: 0,
    };
    ClientTls {
        context: ArcSwapOption::from_pointee(ClientContext::build(&spec).unwrap()),
        stats: SslStats::new(registry, testing::scope("cluster.client.ssl.")),
        factory: SslFactoryStats::new(registry, testing::scope("cluster.client.client_ssl_socket_factory.")),
    }
}

async fn connect_tls(
    address: SocketAddr,
    tls: &ClientTls,
) -> Result<crate::io::UpstreamIo, crate::error::ConnectError> {
    let socket = Socket::Tcp(TcpStream::connect(address).await.unwrap().into());
    tls::connect::connect(tls, socket, &endpoint(address), AlpnChoice::Configured).await
}

#[tokio::test]
async fn tcp_is_proxied_with_half_closes_and_counted() {
    let proxy = Proxy::start(Duration::ZERO);
    let upstream = upstream().await;
    let cluster = proxy.to(&upstream);
    let (cluster_stats, host) = (cluster.stats.clone(), cluster.endpoints.load().priorities[0].endpoints[0].clone());
    let address = proxy.serve(listener(&proxy.registry, 0, proxy.tcp_chain()), cluster).await;

    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "question");
    assert_eq!(
        (proxy.workers.connections(), cluster_stats.upstream_cx_active().value(), host.stats.rq_active.load(Relaxed)),
        (1, 1, 1)
    );
    server.write_all(b"an answer").await.unwrap();
    drop(server);
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "an answer");
    proxy.idle().await;

    let tcp = tcp_proxy(&proxy.registry, 0).stats;
    assert_eq!(
        (
            tcp.downstream_cx_total().total(),
            tcp.downstream_cx_rx_bytes_total().total(),
            tcp.downstream_cx_tx_bytes_total().total()
        ),
        (1, 8, 9)
    );
    assert_eq!(
        (cluster_stats.upstream_cx_tx_bytes_total().total(), cluster_stats.upstream_cx_rx_bytes_total().total()),
        (8, 9)
    );
    assert_eq!((cluster_stats.upstream_cx_total().total(), cluster_stats.upstream_cx_active().value()), (1, 0));
    assert_eq!(
        (host.stats.cx_active.load(Relaxed), host.stats.rq_active.load(Relaxed), host.stats.cx_total.load(Relaxed)),
        (0, 0, 1)
    );
    let stats = proxy.listener_stats();
    assert_eq!((stats.downstream_cx_total().total(), stats.downstream_cx_destroy().total()), (1, 1));
}

#[tokio::test]
async fn a_refused_endpoint_is_followed_by_another() {
    let proxy = Proxy::start(Duration::ZERO);
    let (dead, upstream) = (upstream().await, upstream().await);
    let endpoints = vec![endpoint(dead.local_addr().unwrap()), endpoint(upstream.local_addr().unwrap())];
    drop(dead);
    let cluster = cluster(&proxy.registry, 0, "test", endpoints);
    let stats = cluster.stats.clone();
    let terminal = Terminal::Tcp(Arc::new(TcpProxy { max_connect_attempts: 2, ..tcp_proxy(&proxy.registry, 0) }));
    let address = proxy.serve(listener(&proxy.registry, 0, chain(0, terminal)), cluster).await;
    for _ in 0..2 {
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut server, _) = upstream.accept().await.unwrap();
        server.write_all(b"hello").await.unwrap();
        says(&mut client, "hello").await;
    }
    assert!(stats.upstream_cx_connect_fail().total() >= 1);
    assert_eq!(stats.upstream_cx_connect_attempts_exceeded().total(), 0);
}

#[tokio::test]
async fn without_endpoint_or_cluster_the_client_is_closed() {
    let proxy = Proxy::start(Duration::ZERO);
    let dead = upstream().await;
    let cluster = proxy.to(&dead);
    drop(dead);
    let stats = cluster.stats.clone();
    let address = proxy.serve(listener(&proxy.registry, 0, proxy.tcp_chain()), cluster).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    proxy.idle().await;
    assert_eq!(
        (stats.upstream_cx_connect_fail().total(), stats.upstream_cx_connect_attempts_exceeded().total()),
        (1, 1)
    );
    assert_eq!((stats.upstream_cx_active().value(), stats.upstream_cx_destroy().total()), (0, 1));
}

#[tokio::test]
async fn log_lines_say_how_it_ended() {
    let proxy = Proxy::start(Duration::ZERO);
    let (dead, alive) = (upstream().await, upstream().await);
    let operators = [
        Operator::ResponseFlags,
        Operator::BytesReceived,
        Operator::BytesSent,
        Operator::UpstreamCluster,
        Operator::UpstreamTransportFailureReason,
    ];
    let parts =
        operators.into_iter().flat_map(|operator| [Part::Operator(operator, None), Part::Text(" ".into())]).collect();
    let (sink, mut lines) = LogSink::new("log", 8);
    let log = AccessLog { filter: None, format: LogFormat::Text(Format { parts, omit_empty: false }), sink };
    let listener = || {
        let terminal = TcpProxy { access_log: vec![log.clone()], ..tcp_proxy(&proxy.registry, 0) };
        listener(&proxy.registry, 0, chain(0, Terminal::Tcp(Arc::new(terminal))))
    };

    let address = proxy.serve(listener(), proxy.to(&alive)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"abc").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = alive.accept().await.unwrap();
    says(&mut server, "abc").await;
    server.write_all(b"de").await.unwrap();
    drop(server);
    assert_eq!(lines.recv().await.unwrap(), "- 3 2 test - ");

    // A reset is passed on as one.
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"abc").await.unwrap();
    let (mut server, _) = alive.accept().await.unwrap();
    says(&mut server, "abc").await;
    Socket::Tcp(server.into()).reset_on_close();
    assert_eq!(lines.recv().await.unwrap(), "UR 3 0 test - ");
    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let cluster = proxy.to(&dead);
    drop(dead);
    let address = proxy.serve(listener(), cluster).await;
    let _client = TcpStream::connect(address).await.unwrap();
    assert_eq!(lines.recv().await.unwrap(), "UF,URX 0 0 test delayed connect error: Connection refused ");
}

#[tokio::test]
async fn spiffe_identities_decide_and_a_taken_permission_closes_live_connections() {
    let proxy = Proxy::start(Duration::ZERO);
    let upstream = upstream().await;
    let ca = Ca::new("ca");
    let tls = server_tls(
        &proxy.registry,
        &server_spec(ca.issue(&["spiffe://mesh/backend"]), Some(ca.validation(Vec::new()))),
    );
    let with_rules = |principal: &str, generation| {
        let chain = FilterChain {
            tls: Some(tls.clone()),
            filters: vec![allow_only(&proxy.registry, principal)],
            ..proxy.tcp_chain()
        };
        let mut snapshot =
            Arc::into_inner(snapshot(vec![listener(&proxy.registry, 0, chain)], vec![Arc::new(proxy.to(&upstream))]))
                .unwrap();
        snapshot.generation = generation;
        Arc::new(snapshot)
    };
    let first = with_rules("spiffe://mesh/frontend", 1);
    let bound = listen::bind(first.listener(ListenerId(0)).unwrap(), 1).unwrap();
    let address = bound.addresses[0].unwrap();
    proxy.workers.publish(first).await;
    proxy.workers.listen(bound).await;

    // Allowed.
    let frontend =
        client_tls(&proxy.registry, Some(ca.issue(&["spiffe://mesh/frontend"])), Some(ca.validation(Vec::new())));
    let mut client = connect_tls(address, &frontend).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    server.write_all(b"hello").await.unwrap();
    says(&mut client, "hello").await;
    assert_eq!((proxy.rbac().allowed().total(), proxy.rbac().denied().total()), (1, 0));

    // Denied: it is closed without an upstream connection.
    let stranger =
        client_tls(&proxy.registry, Some(ca.issue(&["spiffe://mesh/stranger"])), Some(ca.validation(Vec::new())));
    let mut denied = connect_tls(address, &stranger).await.unwrap();
    denied.write_all(b"let me in").await.unwrap();
    denied.flush().await.unwrap();
    assert_eq!(denied.read(&mut [0]).await.unwrap(), 0);
    assert_eq!((proxy.rbac().allowed().total(), proxy.rbac().denied().total()), (1, 1));

    // A publication that changes nothing for it leaves the connection alone, though every value in it is new.
    proxy.workers.publish(with_rules("spiffe://mesh/frontend", 2)).await;
    server.write_all(b" again").await.unwrap();
    says(&mut client, " again").await;

    // One that takes the permission away closes it.
    proxy.workers.publish(with_rules("spiffe://mesh/other", 3)).await;
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    proxy.idle().await;
    assert_eq!(proxy.rbac().denied().total(), 2);
}

#[tokio::test]
async fn a_rotated_certificate_serves_new_handshakes_and_leaves_old_connections() {
    let proxy = Proxy::start(Duration::ZERO);
    let upstream = upstream().await;
    let ca = Ca::new("ca");
    let spec = |name: &str| server_spec(ca.issue(&[name]), None);
    let tls = server_tls(&proxy.registry, &spec("old.mesh"));
    let chain = FilterChain { tls: Some(tls.clone()), ..proxy.tcp_chain() };
    let address = proxy.serve(listener(&proxy.registry, 0, chain), proxy.to(&upstream)).await;
    let expecting = |name| client_tls(&proxy.registry, None, Some(ca.validation(vec![exact(SanKind::Dns, name)])));

    let mut old = connect_tls(address, &expecting("old.mesh")).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    tls.context.store(Some(Arc::new(ServerContext::build(&spec("new.mesh")).unwrap())));
    let refused = connect_tls(address, &expecting("old.mesh")).await.unwrap_err().to_string();
    assert!(refused.contains("expected any of: DNS:old.mesh; presented: DNS:new.mesh"), "{refused}");
    connect_tls(address, &expecting("new.mesh")).await.unwrap();
    server.write_all(b"still here").await.unwrap();
    says(&mut old, "still here").await;
}

#[tokio::test]
async fn a_removed_listener_drains_and_then_closes() {
    let proxy = Proxy::start(Duration::from_millis(50));
    let upstream = upstream().await;
    let address = proxy.serve(listener(&proxy.registry, 0, proxy.tcp_chain()), proxy.to(&upstream)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    server.write_all(b"hello").await.unwrap();
    says(&mut client, "hello").await;

    proxy.workers.stop_listening(ListenerId(0)).await;
    proxy.workers.publish(Arc::default()).await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody accepts any more");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    proxy.idle().await;
}

#[tokio::test]
async fn shutdown_ends_connections_at_the_deadline() {
    let proxy = Proxy::start(Duration::from_secs(600));
    let upstream = upstream().await;
    let address = proxy.serve(listener(&proxy.registry, 0, proxy.tcp_chain()), proxy.to(&upstream)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    server.write_all(b"hello").await.unwrap();
    says(&mut client, "hello").await;
    proxy.workers.shutdown(tokio::time::Instant::now()).await;
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn chains_without_a_proxy() {
    let proxy = Proxy::start(Duration::ZERO);
    let upstream = upstream().await;
    for (terminal, said, heard) in [
        (Terminal::DirectResponse(Bytes::from_static(b"go away")), "", "go away"),
        (Terminal::Echo, "echo", "echo"),
        (Terminal::Close, "", ""),
    ] {
        let address = proxy.serve(listener(&proxy.registry, 0, chain(0, terminal)), proxy.to(&upstream)).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(said.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, heard);
        proxy.workers.stop_listening(ListenerId(0)).await;
    }
}

#[tokio::test]
async fn a_failed_inspection_is_counted() {
    let proxy = Proxy::start(Duration::ZERO);
    let upstream = upstream().await;
    let mut listener = listener(&proxy.registry, 0, proxy.tcp_chain());
    listener.inspect.tls = true;
    listener.inspect_timeout = Some(Duration::from_millis(1));
    let address = proxy.serve(listener, proxy.to(&upstream)).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    let stats = proxy.listener_stats();
    assert_eq!(
        (
            stats.downstream_pre_cx_timeout().total(),
            stats.downstream_pre_cx_active().value(),
            stats.downstream_cx_total().total()
        ),
        (1, 0, 0)
    );
}

/// A listener that tells TLS from plain TCP: TLS goes to cluster 1, the rest to cluster 0.
fn telling_tls_apart(proxy: &Proxy, plain: FilterChain) -> Listener {
    let tls = chain(1, Terminal::Tcp(Arc::new(tcp_proxy(&proxy.registry, 1))));
    let criteria = |transport: &str| ChainMatch { transport_protocol: Some(transport.into()), ..Default::default() };
    let chains = vec![(criteria("raw_buffer"), Arc::new(plain)), (criteria("tls"), Arc::new(tls))];
    Listener {
        inspect: Inspect { tls: true, ..Default::default() },
        inspect_timeout: None,
        chains: ChainTable::new(chains, None).unwrap(),
        ..listener(&proxy.registry, 0, proxy.tcp_chain())
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_plain_tcp() {
    let proxy = Proxy::start(Duration::ZERO);
    let upstream = upstream().await;
    let cluster = proxy.to(&upstream);
    let (cluster_stats, server_says) = (cluster.stats.clone(), b"220 ready\r\n");
    let address = proxy.serve(telling_tls_apart(&proxy, proxy.tcp_chain()), cluster).await;

    // Without limit on the detection: only the greeting can end it.
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    server.write_all(server_says).await.unwrap();
    says(&mut client, "220 ready\r\n").await;
    client.write_all(b"EHLO").await.unwrap();
    says(&mut server, "EHLO").await;
    drop((client, server));
    proxy.idle().await;
    let tcp = tcp_proxy(&proxy.registry, 0).stats;
    assert_eq!((tcp.downstream_cx_total().total(), tcp.downstream_cx_tx_bytes_total().total()), (1, 11));
    assert_eq!((cluster_stats.upstream_cx_total().total(), cluster_stats.upstream_cx_active().value()), (1, 0));

    // One that closes without a word is passed on too.
    let mut client = TcpStream::connect(address).await.unwrap();
    drop(upstream.accept().await.unwrap());
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_speaks_late_decides_itself() {
    let proxy = Proxy::start(Duration::ZERO);
    let (plain, tls) = (upstream().await, upstream().await);
    let listener = telling_tls_apart(&proxy, proxy.tcp_chain());
    let bound = listen::bind(&listener, 1).unwrap();
    let address = bound.addresses[0].unwrap();
    let tls_cluster = cluster(&proxy.registry, 1, "tls", vec![endpoint(tls.local_addr().unwrap())]);
    let plain_cluster = proxy.to(&plain);
    let stats = plain_cluster.stats.clone();
    proxy.workers.publish(snapshot(vec![listener], vec![Arc::new(plain_cluster), Arc::new(tls_cluster)])).await;
    proxy.workers.listen(bound).await;
    // A peer's kernel accepts before the proxy knows that it is connected; a client that speaks in between gets another connection.
    let connected = async |times| {
        while stats.upstream_cx_connect_ms().count() < times {
            tokio::task::yield_now().await;
        }
    };

    // Plain text: over the connection that is there already.
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut server, _) = plain.accept().await.unwrap();
    connected(1).await;
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    says(&mut server, "GET / HTTP/1.1\r\n").await;
    server.write_all(b"HTTP/1.1 200").await.unwrap();
    says(&mut client, "HTTP/1.1 200").await;

    // TLS: elsewhere, and that connection is closed.
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut unused, _) = plain.accept().await.unwrap();
    connected(2).await;
    let hello = crate::inspect::tests::hello("db.mesh", &[]);
    client.write_all(&hello).await.unwrap();
    let (mut server, _) = tls.accept().await.unwrap();
    let mut heard = vec![0; hello.len()];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, hello);
    assert_eq!(unused.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_silent_client_that_is_not_allowed_reaches_nobody() {
    let proxy = Proxy::start(Duration::ZERO);
    let upstream = upstream().await;
    let cluster = proxy.to(&upstream);
    let stats = cluster.stats.clone();
    let denied = FilterChain { filters: vec![allow_only(&proxy.registry, "spiffe://mesh/a")], ..proxy.tcp_chain() };
    let mut listener = telling_tls_apart(&proxy, denied);
    listener.inspect_timeout = Some(Duration::from_millis(60));
    let address = proxy.serve(listener, cluster).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(stats.upstream_cx_total().total(), 0);
}

#[tokio::test]
async fn futures_stay_small() {
    let (socket, _other) = testing::pair().await;
    let registry = Registry::new(1);
    let panics = || PanicCount(ServerStats::new(&registry, testing::scope("server.")));
    let size = std::mem::size_of_val(&serve(Socket::Tcp(socket.into()), None, ListenerId(0), panics()));
    assert!((100..=800).contains(&size), "{size} bytes");
    assert!(std::mem::size_of::<Connection>() <= 400, "{} bytes", std::mem::size_of::<Connection>());
}
