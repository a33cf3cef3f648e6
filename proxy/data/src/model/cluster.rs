//! Clusters and endpoints.
//!
//! Source: Envoy `config.cluster.v3.Cluster`, `config.endpoint.v3.ClusterLoadAssignment`, `extensions.upstreams.http.v3.HttpProtocolOptions`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{ClusterId, http::Http2Options, tls::ClientTls};
use crate::stats::{ClusterStats, EndpointStats};

/// A cluster: everything about it is fixed but its endpoints, its secrets and its counters. A changed cluster is a new value, with new pools.
#[derive(Debug)]
pub struct Cluster {
    /// Position in the snapshot.
    pub id: ClusterId,
    /// Resource name.
    pub name: Arc<str>,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// The endpoints now. Swapped alone, by the control thread only.
    pub endpoints: ArcSwap<EndpointSet>,
    /// How one is chosen.
    pub balancer: Balancer,
    /// Below this share of healthy hosts, in percent, health is ignored. Envoy's default 50; 0 turns it off.
    pub panic_threshold: u8,
    /// TCP connect and TLS handshake together. Envoy's default 5 s.
    pub connect_timeout: Duration,
    /// `None`: plain text.
    pub tls: Option<Arc<ClientTls>>,
    /// What is spoken to it.
    pub protocol: UpstreamProtocol,
    /// An unused pooled connection is closed after this. Envoy's default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Life of a pooled connection.
    pub max_connection: Option<Duration>,
    /// Life of a request.
    pub max_stream: Option<Duration>,
    /// Requests per pooled connection.
    pub max_requests_per_connection: Option<u32>,
    /// HTTP/2 codec.
    pub http2: Http2Options,
    /// Circuit breaker, default priority.
    pub limits: Limits,
    /// Circuit breaker, high priority.
    pub high_limits: Limits,
    /// Source address of connections.
    pub bind_source: Option<IpAddr>,
    /// TCP keep-alive.
    pub keepalive: Option<Keepalive>,
    /// Soft limit on bytes buffered per connection; Envoy's default 1 MiB.
    pub buffer_limit: u32,
    /// `cluster.<name or alt_stat_name>.*`
    pub stats: ClusterStats,
}

impl Cluster {
    /// Puts a set of endpoints in force and tells `membership_*`.
    pub fn put_endpoints(&self, endpoints: EndpointSet) {
        let (mut total, mut healthy, mut degraded) = (0, 0, 0);
        for endpoint in endpoints.priorities.iter().flat_map(|priority| &priority.endpoints) {
            total += 1;
            match endpoint.health() {
                Health::Healthy => healthy += 1,
                Health::Degraded => degraded += 1,
                Health::Unhealthy => {}
            }
        }
        let before = self.endpoints.load();
        let before = || before.priorities.iter().flat_map(|priority| &priority.endpoints);
        let after = || endpoints.priorities.iter().flat_map(|priority| &priority.endpoints);
        let stats = &self.stats;
        if stats.membership_total().value() != total as u64
            || before().zip(after()).any(|(before, after)| !Arc::ptr_eq(before, after))
        {
            stats.membership_change().inc();
        }
        stats.membership_total().set(total as u64);
        stats.membership_healthy().set(healthy);
        stats.membership_degraded().set(degraded);
        stats.membership_excluded().set(0);
        self.endpoints.store(Arc::new(endpoints));
    }
}

/// Envoy `Cluster.DiscoveryType`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Endpoints are in the resource.
    Static,
    /// From EDS, under this name.
    Eds(Arc<str>),
    /// Every address of every name is an endpoint.
    StrictDns,
    /// The first address of the name, replaced as it changes.
    LogicalDns,
    /// The connection's own original destination.
    OriginalDst,
}

/// Envoy `Cluster.LbPolicy`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Balancer {
    /// `ROUND_ROBIN`, weighted.
    RoundRobin,
    /// `LEAST_REQUEST`
    LeastRequest {
        /// Hosts compared when all weights are equal; Envoy's default 2.
        choices: u32,
        /// For unequal weights: weight / (active + 1)^bias. Envoy's default 1.
        bias: f64,
    },
    /// `RANDOM`
    Random,
    /// `CLUSTER_PROVIDED`: by original destination.
    Provided,
}

/// Which protocol is spoken to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1. Envoy's default.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// What the downstream speaks.
    Downstream,
    /// What ALPN chooses, HTTP/1.1 without one.
    Auto,
}

/// Envoy `CircuitBreakers.Thresholds`. Counted per cluster and process.
#[derive(Debug)]
pub struct Limits {
    /// Envoy's default 1024.
    pub max_connections: u32,
    /// Envoy's default 1024.
    pub max_pending: u32,
    /// Envoy's default 1024.
    pub max_requests: u32,
    /// Envoy's default 3.
    pub max_retries: u32,
    /// Gauges `remaining_*` are kept.
    pub track_remaining: bool,
    /// Live connections.
    pub connections: AtomicU32,
    /// Requests that wait for a connection.
    pub pending: AtomicU32,
    /// Requests on their way.
    pub requests: AtomicU32,
    /// Retries on their way.
    pub retries: AtomicU32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            track_remaining: false,
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
        }
    }
}

/// Envoy `TcpKeepalive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// By priority, 0 first. A gap is an empty priority.
    pub priorities: Vec<Priority>,
    /// `overprovisioning_factor`, percent. Envoy's default 140.
    pub overprovisioning: u32,
}

/// Endpoints of equal priority.
#[derive(Debug, Default)]
pub struct Priority {
    /// All of them.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Not all weights are equal.
    pub weighted: bool,
}

/// One endpoint. The same `Arc` survives updates that leave its address and attributes alone, and with it its counters and pools.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: EndpointAddress,
    /// DNS name it came from, or `hostname`.
    pub hostname: Option<Arc<str>>,
    /// At least 1.
    pub weight: u32,
    /// Envoy's region/zone/sub_zone.
    pub locality: Arc<Locality>,
    /// What EDS and health checks say.
    pub health: AtomicU8,
    /// Counters and gauges of this endpoint.
    pub stats: EndpointStats,
}

impl Endpoint {
    /// What EDS and health checks say.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Healthy,
            1 => Health::Degraded,
            _ => Health::Unhealthy,
        }
    }
}

/// Address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// TCP.
    Ip(SocketAddr),
    /// Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Health of an endpoint, as stored in [`Endpoint::health`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Takes traffic.
    Healthy = 0,
    /// Takes traffic when the healthy ones do not suffice.
    Degraded = 1,
    /// Takes none, unless the cluster is in panic.
    Unhealthy = 2,
}

/// Envoy `core.v3.Locality`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
    /// Sub-zone.
    pub sub_zone: Box<str>,
}
