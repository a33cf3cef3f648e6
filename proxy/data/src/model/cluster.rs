//! Clusters and endpoints.
//!
//! Source: Envoy `config.cluster.v3.Cluster`, `config.endpoint.v3.ClusterLoadAssignment`, `extensions.upstreams.http.v3.HttpProtocolOptions`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{
    ClusterId,
    hash::Hashing,
    health::{CheckAt, Checked, HealthCheck},
    http::Http2Options,
    labels::Labels,
    outlier::{Monitor, Outlier},
    proxy_protocol::UpstreamProxyProtocol,
    tls::ClientTls,
};
use crate::stats::{ClusterStats, EndpointStats, RemainingStats};

mod membership;

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
    /// For [`Balancer::Hash`].
    pub hashing: Option<Box<Hashing>>,
    /// Below this share of healthy hosts, in percent, health is ignored. Envoy's default 50; 0 turns it off.
    pub panic_threshold: u8,
    /// TCP connect and TLS handshake together. Envoy's default 5 s.
    pub connect_timeout: Duration,
    /// Which part of the endpoints is chosen from.
    pub selection: Selection,
    /// Asks endpoints how they are.
    pub health: Option<Box<HealthCheck>>,
    /// Leaves out endpoints that fail.
    pub outlier: Option<Box<Outlier>>,
    /// `close_connections_on_host_health_failure`: told when an endpoint fails a check or is ejected, whose TCP connections then end.
    pub close_on_failure: Option<Box<Notify>>,
    /// `None`: plain text.
    pub tls: Option<Arc<ClientTls>>,
    /// `transport_socket_matches`: the first whose labels the endpoint has counts, before `tls`; `None` is plain text.
    pub tls_matches: Vec<(Labels, Option<Arc<ClientTls>>)>,
    /// Connections begin with a header of the PROXY protocol, before TLS.
    pub proxy_protocol: Option<Box<UpstreamProxyProtocol>>,
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
    /// The TLS that an endpoint is spoken to with.
    pub fn tls_for(&self, endpoint: &Endpoint) -> Option<&Arc<ClientTls>> {
        let labels = endpoint.tls_labels.as_deref();
        let matched = self.tls_matches.iter().find(|(wanted, _)| match labels {
            Some(labels) => labels.holds(wanted),
            None => wanted.is_empty(),
        });
        matched.map_or(self.tls.as_ref(), |(_, tls)| tls.as_ref())
    }

    /// Every TLS context that an endpoint may be spoken to with.
    pub fn all_tls(&self) -> impl Iterator<Item = &Arc<ClientTls>> {
        self.tls.iter().chain(self.tls_matches.iter().filter_map(|(_, tls)| tls.as_ref()))
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
    /// `RING_HASH` or `MAGLEV`, as [`Cluster::hashing`] says.
    Hash,
    /// `CLUSTER_PROVIDED`: by original destination.
    Provided,
}

/// Which part of a cluster's endpoints is chosen from.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `locality_weighted_lb_config`: first a locality by its weight and health, then an endpoint in it.
    pub by_locality: bool,
    /// `fail_traffic_on_panic`: too few healthy endpoints are none.
    pub fail_on_panic: bool,
    /// `lb_subset_config`
    pub subsets: Option<Subsets>,
}

/// Envoy `LbSubsetConfig`.
#[derive(Clone, Debug)]
pub struct Subsets {
    /// Sets of keys, each sorted, with what is done when no endpoint has the values asked for.
    pub selectors: Vec<(Vec<Box<str>>, Option<Fallback>)>,
    /// What is done otherwise.
    pub fallback: Fallback,
    /// For [`Fallback::Default`].
    pub default: Arc<Labels>,
}

/// Envoy `LbSubsetFallbackPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// No endpoint.
    None,
    /// Any.
    Any,
    /// One of the default subset.
    Default,
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
    /// `retry_budget`, instead of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Gauges `remaining_*` are kept.
    pub track_remaining: bool,
    /// These gauges.
    pub remaining: Option<Box<RemainingStats>>,
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
            retry_budget: None,
            track_remaining: false,
            remaining: None,
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
        }
    }
}

/// Envoy `RetryBudget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Share of the requests on their way or waiting that may be retries, percent; Envoy's default 20.
    pub percent: f64,
    /// So many may be retries whatever the share; Envoy's default 3.
    pub least: u32,
}

impl Limits {
    /// Whether one more retry may be on its way.
    pub fn may_retry(&self) -> bool {
        let most = match self.retry_budget {
            None => self.max_retries,
            Some(RetryBudget { percent, least }) => {
                let requests =
                    self.requests.load(Ordering::Relaxed).saturating_add(self.pending.load(Ordering::Relaxed));
                least.max((f64::from(requests) * percent / 100.0) as u32)
            }
        };
        self.retries.load(Ordering::Relaxed) < most
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

impl EndpointSet {
    /// Those of all priorities.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.priorities.iter().flat_map(|priority| &priority.endpoints)
    }
}

/// Endpoints of equal priority.
#[derive(Debug, Default)]
pub struct Priority {
    /// All of them.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Not all weights are equal.
    pub weighted: bool,
    /// Weights of localities, where the configuration gives any.
    pub localities: Vec<(Arc<Locality>, u32)>,
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
    /// Metadata `envoy.lb`, for subsets.
    pub labels: Option<Arc<Labels>>,
    /// Metadata `envoy.transport_socket_match`.
    pub tls_labels: Option<Arc<Labels>>,
    /// What EDS says.
    pub health: AtomicU8,
    /// What health checks say.
    pub checked: Checked,
    /// How often health checks or outlier detection have taken it out.
    pub failures: AtomicU32,
    /// Where and how its health is asked for, if not at its address like that of the others.
    pub check: Option<Box<CheckAt>>,
    /// What outlier detection remembers; made at the first request to an endpoint of a cluster that has it.
    pub monitor: OnceLock<Box<Monitor>>,
    /// Counters and gauges of this endpoint.
    pub stats: EndpointStats,
}

impl Endpoint {
    /// What EDS, health checks and outlier detection say.
    pub fn health(&self) -> Health {
        if self.is_ejected() || self.checked.has_failed() {
            return Health::Unhealthy;
        }
        match self.reported_health() {
            Health::Healthy if self.checked.is_degraded() => Health::Degraded,
            reported => reported,
        }
    }

    /// Whether outlier detection has ejected it.
    pub fn is_ejected(&self) -> bool {
        self.monitor.get().is_some_and(|monitor| monitor.ejected.load(Ordering::Relaxed))
    }

    /// What outlier detection remembers of it.
    pub fn monitor(&self) -> &Monitor {
        self.monitor.get_or_init(Box::default)
    }

    /// What EDS says.
    pub fn reported_health(&self) -> Health {
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
