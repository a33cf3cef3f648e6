//! What several tests build on: certificates, snapshots made by hand, sockets.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use chrono::{Datelike, NaiveDate};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    connection::Connection,
    io::Socket,
    model::{
        ChainId, ClusterId, ListenerId,
        chain_match::{ChainMatch, ChainTable},
        cluster::*,
        listener::*,
        matcher::StringMatcher,
        rbac::*,
        route::ClusterChoice,
        tls::{Identity, Parameters, SanKind, SanMatcher, ServerContext, ServerTls, ServerTlsSpec, Trust, Validation},
    },
    snapshot::Snapshot,
    stats::*,
};

pub fn scope(prefix: &str) -> Scope {
    Scope { prefix: prefix.into(), stem: prefix.into(), tags: Vec::new() }
}

/// A certificate authority.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// What a leaf certificate is like.
pub struct Leaf<'a> {
    pub names: &'a [&'a str],
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub expired: bool,
    /// The day, in UTC, with whose begin it expires; else thousands of years from now.
    pub until: Option<NaiveDate>,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// Names that hold `://` are URIs, the rest DNS names.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_leaf(&Leaf { names, usages: Vec::new(), expired: false, until: None })
    }

    pub fn issue_leaf(&self, leaf: &Leaf<'_>) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        for name in leaf.names {
            params.subject_alt_names.push(if name.contains("://") {
                SanType::URI((*name).try_into().unwrap())
            } else {
                SanType::DnsName((*name).try_into().unwrap())
            });
        }
        params.extended_key_usages = leaf.usages.clone();
        if leaf.expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        if let Some(day) = leaf.until {
            params.not_after = rcgen::date_time_ymd(day.year(), day.month() as u8, day.day() as u8);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            path: "<inline>".into(),
        }
    }

    /// Trust in this authority alone, and these names.
    pub fn validation(&self, sans: Vec<SanMatcher>) -> Validation {
        Validation { trust: Trust::Authorities(vec![self.der()]), sans, ..no_validation() }
    }
}

pub fn no_validation() -> Validation {
    Validation {
        trust: Trust::None,
        sans: Vec::new(),
        spki_hashes: Vec::new(),
        certificate_hashes: Vec::new(),
        allow_expired: false,
        accept_untrusted: false,
        path: "<inline>".into(),
    }
}

pub fn exact(kind: SanKind, value: &str) -> SanMatcher {
    SanMatcher { kind, matcher: exactly(value) }
}

pub fn exactly(value: &str) -> StringMatcher {
    StringMatcher::Exact { value: value.into(), ignore_case: false }
}

pub fn server_spec(identity: Identity, validation: Option<Validation>) -> ServerTlsSpec {
    ServerTlsSpec {
        identities: vec![identity],
        require_client_certificate: validation.is_some(),
        validation,
        alpn: Vec::new(),
        parameters: Parameters::default(),
        resumption: Some(7200),
    }
}

pub fn server_tls(registry: &Registry, spec: &ServerTlsSpec) -> Arc<ServerTls> {
    Arc::new(ServerTls {
        context: ArcSwapOption::from_pointee(ServerContext::build(spec).unwrap()),
        stats: SslStats::new(registry, scope("listener.test.ssl.")),
        factory: SslFactoryStats::new(registry, scope("listener.test.server_ssl_socket_factory.")),
    })
}

pub fn endpoint(address: SocketAddr) -> Arc<Endpoint> {
    weighted_endpoint(address, 1, Health::Healthy)
}

pub fn weighted_endpoint(address: SocketAddr, weight: u32, health: Health) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: EndpointAddress::Ip(address),
        hostname: None,
        weight,
        locality: Arc::default(),
        labels: None,
        tls_labels: None,
        health: (health as u8).into(),
        checked: Default::default(),
        failures: Default::default(),
        check: None,
        monitor: Default::default(),
        stats: EndpointStats::default(),
    })
}

pub fn cluster(registry: &Registry, id: u32, name: &str, endpoints: Vec<Arc<Endpoint>>) -> Cluster {
    let weighted = endpoints.windows(2).any(|pair| pair[0].weight != pair[1].weight);
    Cluster {
        id: ClusterId(id),
        name: name.into(),
        discovery: Discovery::Static,
        endpoints: ArcSwap::from_pointee(EndpointSet {
            priorities: vec![Priority { endpoints, weighted, localities: Vec::new() }],
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
        proxy_protocol: None,
        protocol: UpstreamProtocol::Http1,
        idle_timeout: None,
        max_connection: None,
        max_stream: None,
        max_requests_per_connection: None,
        http2: Default::default(),
        limits: Limits::default(),
        high_limits: Limits::default(),
        bind_source: None,
        keepalive: None,
        buffer_limit: 1 << 20,
        stats: ClusterStats::new(registry, scope(&format!("cluster.{name}."))),
    }
}

pub fn tcp_proxy(registry: &Registry, cluster: u32) -> TcpProxy {
    TcpProxy {
        stats: TcpStats::new(registry, scope("tcp.test.")),
        clusters: ClusterChoice::One { id: ClusterId(cluster), name: "test".into() },
        labels: None,
        hash_source_ip: false,
        idle_timeout: Some(Duration::from_secs(3600)),
        max_duration: None,
        max_connect_attempts: 1,
        access_log: Vec::new(),
        log_on_connected: false,
    }
}

pub fn chain(id: u32, terminal: Terminal) -> FilterChain {
    FilterChain {
        id: ChainId(id),
        name: format!("chain-{id}").into(),
        tls: None,
        handshake_timeout: None,
        filters: Vec::new(),
        terminal,
        demands: 1,
        denials: None,
    }
}

/// A listener on a port of the kernel's choice, with one chain for everything.
pub fn listener(registry: &Registry, id: u32, chain: FilterChain) -> Listener {
    Listener {
        id: ListenerId(id),
        name: format!("listener-{id}").into(),
        addresses: vec![BindAddress::Ip { address: ([127, 0, 0, 1], 0).into(), ipv4_compat: false }],
        bind_to_port: true,
        reuse_port: true,
        backlog: None,
        freebind: false,
        transparent: false,
        direction: TrafficDirection::Inbound,
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
    }
}

/// A connection over a Unix socket, about which nothing is known. Needs a runtime.
pub fn connection() -> Arc<Connection> {
    let registry = Registry::new(1);
    let listener = listener(&registry, 0, chain(0, Terminal::Echo));
    let (socket, _) = tokio::net::UnixStream::pair().unwrap();
    Arc::new(Connection::arrived(&listener, &Socket::Unix(socket), None, None))
}

pub fn snapshot(listeners: Vec<Listener>, clusters: Vec<Arc<Cluster>>) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        generation: 1,
        listeners: listeners.into_iter().map(|listener| Some(Arc::new(listener))).collect(),
        route_tables: Vec::new(),
        clusters: clusters.into_iter().map(Some).collect(),
    })
}

/// Allows only peers that authenticate as `principal`.
pub fn allow_only(registry: &Registry, principal: &str) -> NetworkFilter {
    NetworkFilter::Rbac(Arc::new(Rbac {
        enforced: Some(Rules {
            action: Action::Allow,
            policies: vec![Policy {
                name: "callers".into(),
                permissions: vec![Permission::Any],
                principals: vec![Principal::Authenticated(Some(exactly(principal)))],
                allows: true,
            }],
        }),
        shadow: None,
        stats: RbacStats::new(registry, scope("test.rbac.")),
    }))
}

/// Two ends of a loopback connection.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}
