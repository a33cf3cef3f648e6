//! Listeners and filter chains.
//!
//! Source: Envoy `config.listener.v3.Listener` and `FilterChain`.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{
    ChainId, ListenerId, access_log::AccessLog, chain_match::ChainTable, dns::DnsTable, format::Format,
    http::HttpConnectionManager, labels::Labels, proxy_protocol::ProxyProtocol, rbac::Rbac, route::ClusterChoice,
    tls::ServerTls,
};
use crate::{
    denial::Denials,
    stats::{HttpInspectorStats, ListenerStats, LocalRateLimitStats, TcpStats, TlsInspectorStats, UdpListenerStats},
    token_bucket::TokenBucket,
};

/// One listener, bound or virtual.
#[derive(Debug)]
pub struct Listener {
    /// Position in the snapshot.
    pub id: ListenerId,
    /// Resource name.
    pub name: Arc<str>,
    /// Addresses to bind; the first is the primary one, the rest are `additional_addresses`. Port 0 asks the kernel for a port.
    pub addresses: Vec<BindAddress>,
    /// `false`: a virtual listener, reached only by original destination from another one.
    pub bind_to_port: bool,
    /// `true`: one `SO_REUSEPORT` socket per worker; `false`: all workers accept from one socket.
    pub reuse_port: bool,
    /// Listen backlog; Envoy's default is the kernel's `somaxconn`.
    pub backlog: Option<u32>,
    /// Bind to addresses that the host does not have (`IP_FREEBIND`).
    pub freebind: bool,
    /// `IP_TRANSPARENT`.
    pub transparent: bool,
    /// For statistics, tracing and `/drain_listeners?inboundonly`.
    pub direction: TrafficDirection,
    /// Restore the original destination and hand the connection to the listener that owns it.
    pub use_original_dst: bool,
    /// What to look at before a chain is chosen.
    pub inspect: Inspect,
    /// Bound on the time that `inspect` may take; Envoy's default 15 s. `None` waits without limit.
    pub inspect_timeout: Option<Duration>,
    /// On expiry of `inspect_timeout`: go on with what is known instead of closing.
    pub continue_on_inspect_timeout: bool,
    /// Chains and how one is chosen. A listener of datagrams has none.
    pub chains: ChainTable,
    /// Most connections at a time.
    pub connection_limit: Arc<ConnectionLimit>,
    /// The limit on all connections of the process does not hold here (`ignore_global_conn_limit`).
    pub ignores_global_limit: bool,
    /// What becomes of datagrams; set if, and only if, the addresses are [`BindAddress::Udp`].
    pub datagrams: Option<Datagrams>,
    /// Soft limit on bytes buffered per connection; Envoy's default 1 MiB.
    pub buffer_limit: u32,
    /// Logs of connections, written when one ends.
    pub access_log: Vec<AccessLog>,
    /// `listener.<address or stat_prefix>.*`
    pub stats: ListenerStats,
}

impl Listener {
    /// Connections that the kernel redirected come in here: the listener is bound, and hands them over by original destination.
    pub fn takes_redirected(&self) -> bool {
        self.bind_to_port && self.use_original_dst
    }
}

/// Where a listener binds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BindAddress {
    /// TCP.
    Ip {
        /// Address and port.
        address: SocketAddr,
        /// For `[::]`: also accept IPv4 (`ipv4_compat`). Envoy's default is off.
        ipv4_compat: bool,
    },
    /// UDP.
    Udp(SocketAddr),
    /// Unix stream socket; a path that starts with `@` is abstract. A stale file is removed first.
    Unix {
        /// File name.
        path: PathBuf,
        /// File mode, where the configuration sets one.
        mode: Option<u32>,
    },
}

/// The runtime value `envoy.resource_limits.listener.<name>.connection_limit`, which may change while the listener lives.
#[derive(Debug)]
pub struct ConnectionLimit(AtomicU64);

impl Default for ConnectionLimit {
    /// None.
    fn default() -> Self {
        ConnectionLimit(AtomicU64::new(u64::MAX))
    }
}

impl ConnectionLimit {
    /// Puts another limit in force; `None` for none. Connections that are there stay.
    pub fn set(&self, limit: Option<u64>) {
        self.0.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The limit.
    pub fn limit(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
    }
}

/// What a UDP listener does.
#[derive(Debug)]
pub struct Datagrams {
    /// Answers DNS queries; without it datagrams are read and dropped, as in Envoy.
    pub dns: Option<DnsTable>,
    /// `listener.<address or stat_prefix>.udp.*`
    pub stats: UdpListenerStats,
}

/// Envoy `core.v3.TrafficDirection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDirection {
    /// Not said.
    Unspecified,
    /// Towards the local workload.
    Inbound,
    /// From the local workload.
    Outbound,
}

/// Listener filters, as what they find out.
#[derive(Clone, Debug, Default)]
pub struct Inspect {
    /// `proxy_protocol`: the connection begins with a header that says who it is from. Comes before the other two.
    pub proxy_protocol: Option<Arc<ProxyProtocol>>,
    /// `original_dst`: restore the destination without handing over.
    pub original_dst: bool,
    /// `tls_inspector`: transport protocol, SNI, ALPN from the ClientHello.
    pub tls: bool,
    /// `tls_inspector.*`
    pub tls_stats: Option<TlsInspectorStats>,
    /// `http_inspector`: application protocol from the first bytes of plain text.
    pub http: bool,
    /// `http_inspector.*`
    pub http_stats: Option<HttpInspectorStats>,
    /// Connections whose ClientHello is not looked at: `filter_disabled` of `tls_inspector`.
    pub tls_disabled: Option<Destinations>,
    /// Connections whose first line is not looked at: `filter_disabled` of `http_inspector`.
    pub http_disabled: Option<Destinations>,
}

impl Inspect {
    /// What is looked at in a connection with this (restored) destination.
    pub fn at(&self, destination: Option<SocketAddr>) -> Look {
        let on = |on: bool, disabled: &Option<Destinations>| {
            on && !disabled.as_ref().is_some_and(|disabled| disabled.hold(destination))
        };
        Look { tls: on(self.tls, &self.tls_disabled), http: on(self.http, &self.http_disabled) }
    }
}

/// What of a connection's first bytes is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Transport protocol, SNI, ALPN from a ClientHello.
    pub tls: bool,
    /// Application protocol from plain text.
    pub http: bool,
}

/// Envoy `ListenerFilterChainMatchPredicate`: which connections are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destinations {
    /// `any_match`
    Any,
    /// `not_match`
    Not(Box<Destinations>),
    /// `and_match`
    All(Vec<Destinations>),
    /// `or_match`
    Either(Vec<Destinations>),
    /// `destination_port_range`: start inclusive, end exclusive.
    Ports(std::ops::Range<u32>),
}

impl Destinations {
    /// Whether a connection with this destination is meant. One without an IP address has no port.
    pub fn hold(&self, destination: Option<SocketAddr>) -> bool {
        match self {
            Self::Any => true,
            Self::Not(not) => !not.hold(destination),
            Self::All(all) => all.iter().all(|one| one.hold(destination)),
            Self::Either(any) => any.iter().any(|one| one.hold(destination)),
            Self::Ports(ports) => destination.is_some_and(|address| ports.contains(&u32::from(address.port()))),
        }
    }
}

/// What happens to a connection once its chain is chosen.
#[derive(Debug)]
pub struct FilterChain {
    /// Position in the listener; survives updates of the chain's content.
    pub id: ChainId,
    /// Name as configured, may be empty.
    pub name: Arc<str>,
    /// TLS to terminate; `None` is plain text (or TLS passed through).
    pub tls: Option<Arc<ServerTls>>,
    /// Bound on the TLS handshake. Envoy's default: none.
    pub handshake_timeout: Option<Duration>,
    /// Filters before the last, in configured order.
    pub filters: Vec<NetworkFilter>,
    /// The last filter, which serves the connection.
    pub terminal: Terminal,
    /// Hash of all that the peer had to prove (TLS context without the secret's bytes). A live connection whose chain has another value now drains.
    pub demands: u64,
    /// Explains refusals of the chain's permission checks, where the control plane says what stands behind them.
    pub denials: Option<Denials>,
}

/// A network filter that decides about, but does not serve, a connection.
#[derive(Debug)]
pub enum NetworkFilter {
    /// Envoy `filters.network.rbac.v3.RBAC`: decided on the first bytes, and again on every change of the rules.
    Rbac(Arc<Rbac>),
    /// Envoy `filters.network.local_ratelimit.v3.LocalRateLimit`: a connection without a token is closed before anything else.
    LocalRateLimit(Arc<ConnectionRateLimit>),
    /// Envoy `filters.network.set_filter_state.v3.Config`.
    SetFilterState(Arc<SetFilterState>),
}

/// Envoy `filters.network.local_ratelimit.v3.LocalRateLimit`.
#[derive(Debug)]
pub struct ConnectionRateLimit {
    /// `local_rate_limit.<stat_prefix>.*`
    pub stats: LocalRateLimitStats,
    /// Shared by all workers.
    pub bucket: TokenBucket,
}

/// Envoy `filters.network.set_filter_state.v3.Config`: what is kept of a connection under a key.
#[derive(Debug, Default)]
pub struct SetFilterState {
    /// `on_new_connection`
    pub on_connection: Vec<FilterStateRule>,
    /// `on_downstream_tls_handshake`: connections in plain text have none.
    pub on_handshake: Vec<FilterStateRule>,
}

/// Envoy `filters.common.set_filter_state.v3.FilterStateValue`.
#[derive(Debug)]
pub struct FilterStateRule {
    /// `object_key`
    pub key: Arc<str>,
    /// `format_string`
    pub value: Format,
    /// No later rule changes it.
    pub read_only: bool,
    /// An empty value is not kept.
    pub skip_if_empty: bool,
}

/// The filter that serves the connection.
#[derive(Debug)]
pub enum Terminal {
    /// Envoy `http_connection_manager`.
    Http(Arc<HttpConnectionManager>),
    /// Envoy `tcp_proxy`.
    Tcp(Arc<TcpProxy>),
    /// Envoy network `direct_response`: send these bytes and close.
    DirectResponse(Bytes),
    /// Envoy `echo`.
    Echo,
    /// A chain without filters: the connection is closed at once.
    Close,
}

/// Envoy `filters.network.tcp_proxy.v3.TcpProxy`.
#[derive(Debug)]
pub struct TcpProxy {
    /// `tcp.<stat_prefix>.*`
    pub stats: TcpStats,
    /// Destination, chosen once per connection.
    pub clusters: ClusterChoice,
    /// What is asked of endpoints (`metadata_match`), unless the weighted cluster says it.
    pub labels: Option<Arc<Labels>>,
    /// `hash_policy` with `source_ip`: clusters that hash choose an endpoint by the client's address.
    pub hash_source_ip: bool,
    /// No bytes in either direction for this long closes the connection; Envoy's default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Bound on the life of the connection. Envoy's default: none.
    pub max_duration: Option<Duration>,
    /// Tries to connect, at least 1.
    pub max_connect_attempts: u32,
    /// Written when the connection ends.
    pub access_log: Vec<AccessLog>,
    /// Also write a log line once the upstream is connected.
    pub log_on_connected: bool,
}
