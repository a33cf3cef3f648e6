//! A proxy with one listener and one cluster.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU8},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use shika_data::{
    drain::DrainStrategy,
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
        http_filter::{FilterSettings, HttpFilter, HttpFilterKind},
        listener::{BindAddress, FilterChain, Inspect, Listener, Terminal, TrafficDirection},
        proxy_protocol::{PassThrough, UpstreamProxyProtocol},
        route::{
            ClusterChoice, DirectResponse, Domains, Forward, PathMatch, RequireTls, Route, RouteAction, RouteTable,
            VirtualHost,
        },
        tls::{Identity, Parameters, ServerContext, ServerTls, ServerTlsSpec},
    },
    proxy_protocol::Version,
    snapshot::Snapshot,
    stats::{
        ClusterStats, EndpointStats, HttpStats, ListenerStats, Registry, Scope, ServerStats, SslFactoryStats, SslStats,
        UpstreamProxyProtocolStats,
    },
    worker::{WorkerConfig, Workers},
};
use tokio::net::TcpStream;

use crate::peer::Client;

/// A proxy with one listener, and what a test changes about it.
pub struct Proxy {
    pub workers: Workers,
    pub registry: Arc<Registry>,
    pub address: SocketAddr,
    pub cluster: Arc<Cluster>,
}

pub struct Setup {
    pub upstream: SocketAddr,
    pub protocol: UpstreamProtocol,
    pub timeout: Option<Duration>,
    pub limits: Limits,
    pub upgrades: Vec<(Box<str>, bool)>,
    pub generation: u64,
    /// The cluster is told in a line of the PROXY protocol whom a connection is for.
    pub proxied: bool,
    /// Streams on one connection to the upstream.
    pub max_streams: Option<u32>,
    /// Requests on one connection to the upstream.
    pub max_requests: Option<u32>,
    /// Requests up to so many bytes are forwarded once they are here as a whole.
    pub holds: Option<u32>,
    /// Requests on one connection of a client.
    pub max_client_requests: Option<u32>,
    /// Of connections of clients.
    pub idle: Duration,
    pub request_headers: Option<Duration>,
    /// What the listener shows to clients that must speak TLS.
    pub tls: Option<Identity>,
}

impl Setup {
    pub fn new(upstream: SocketAddr) -> Self {
        Setup {
            upstream,
            protocol: UpstreamProtocol::Http1,
            timeout: Some(Duration::from_secs(15)),
            limits: Limits::default(),
            upgrades: Vec::new(),
            generation: 1,
            proxied: false,
            max_streams: None,
            max_requests: None,
            holds: None,
            max_client_requests: None,
            idle: Duration::from_secs(3600),
            request_headers: None,
            tls: None,
        }
    }
}

pub fn scope(prefix: &str) -> Scope {
    Scope { prefix: prefix.into(), stem: prefix.into(), tags: Vec::new() }
}

pub fn cluster(setup: &mut Setup, registry: &Registry) -> Arc<Cluster> {
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
        max_requests_per_connection: setup.max_requests,
        http2: Http2Options { max_concurrent_streams: setup.max_streams, ..Http2Options::default() },
        limits: std::mem::take(&mut setup.limits),
        high_limits: Limits::default(),
        bind_source: None,
        keepalive: None,
        buffer_limit: 1 << 20,
        stats: ClusterStats::new(registry, scope("cluster.upstream.")),
    })
}

pub fn route(path: &str, action: RouteAction) -> Route {
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

pub fn forward(id: ClusterId, timeout: Option<Duration>) -> RouteAction {
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

fn server_tls(registry: &Registry, identity: &Identity) -> Arc<ServerTls> {
    let spec = ServerTlsSpec {
        identities: vec![identity.clone()],
        validation: None,
        require_client_certificate: false,
        alpn: Vec::new(),
        parameters: Parameters::default(),
        resumption: None,
    };
    Arc::new(ServerTls {
        context: ArcSwapOption::from_pointee(ServerContext::build(&spec).unwrap()),
        stats: SslStats::new(registry, scope("listener.test.ssl.")),
        factory: SslFactoryStats::new(registry, scope("listener.test.server_ssl_socket_factory.")),
    })
}

pub fn snapshot(setup: &Setup, registry: &Registry, cluster: &Arc<Cluster>) -> Arc<Snapshot> {
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
        filters: setup
            .holds
            .map(|limit| HttpFilter {
                name: "buffer".into(),
                disabled: false,
                skip: Box::default(),
                kind: HttpFilterKind::Buffer { limit },
            })
            .into_iter()
            .collect(),
        suppress_envoy_headers: false,
        strict_headers: Vec::new(),
        tracing: None,
        access_log: Vec::new().into(),
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
            idle: Some(setup.idle),
            max_connection: None,
            max_stream: None,
            stream_idle: Some(Duration::from_secs(300)),
            request: None,
            request_headers: setup.request_headers,
            drain: Duration::ZERO,
        },
        max_requests_per_connection: setup.max_client_requests,
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
        tls: setup.tls.as_ref().map(|identity| server_tls(registry, identity)),
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

pub async fn start(mut setup: Setup) -> Proxy {
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
    pub async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), rest: Vec::new() }
    }

    /// Of its HTTP connection manager.
    pub fn stats(&self) -> HttpStats {
        HttpStats::new(&self.registry, scope("http.test."))
    }

    /// `downstream_cx_tx_bytes_total` of its HTTP connection manager.
    pub fn sent(&self) -> u64 {
        self.stats().downstream_cx_tx_bytes_total().total()
    }
}
