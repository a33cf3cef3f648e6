//! One proxied TCP connection: cluster, endpoint, connect, copy, count.
//!
//! Source: Envoy `TcpProxy::Filter`.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::copy::{self, End, Limits, Meter, Side};
use crate::{
    connection::Connection,
    error::{ConnectError, ResponseFlag},
    io::{DownstreamIo, UpstreamIo},
    model::{
        ClusterId,
        cluster::{Cluster, Endpoint},
        hash,
        labels::Labels,
        listener::TcpProxy,
        route::ClusterChoice,
    },
    outcome::Outcome,
    stats::{ClusterStats, TcpStats},
    upstream::{
        connect::{self, AlpnChoice, UpstreamConnection},
        outlier::{self, Report},
        pick::{self, Avoid, PickContext},
    },
    worker,
};

/// Proxies a connection until it ends, and writes the filter's log. `early` is an upstream connection that may have been made already.
pub async fn serve(
    io: DownstreamIo,
    connection: &Arc<Connection>,
    proxy: &Arc<TcpProxy>,
    early: Option<Box<Early>>,
) -> Outcome {
    proxy.stats.downstream_cx_total().inc();
    let mut outcome = Outcome::default();
    let mut io = io;
    let (upstream, greeting) = match early.and_then(|early| early.of(proxy, &mut outcome)) {
        Some((upstream, greeting)) => (Some(upstream), greeting),
        None => (Box::pin(establish(connection, proxy, &mut outcome)).await, Bytes::new()),
    };
    if let Some(upstream) = upstream {
        if proxy.log_on_connected {
            outcome.only_connected = true;
            outcome.write(&proxy.access_log, connection);
            outcome.only_connected = false;
        }
        splice(&mut io, upstream, greeting, connection, proxy, &mut outcome).await;
    }
    // Dropped without a farewell: where no upstream was had, bytes that nobody read make it a reset, which is not mistaken for an empty answer.
    drop(io);
    outcome.write(&proxy.access_log, connection);
    outcome
}

/// An upstream connection that is made before it is known that this filter serves the downstream connection.
#[derive(Debug)]
pub struct Early {
    proxy: Arc<TcpProxy>,
    outcome: Outcome,
    upstream: Option<UpstreamConnection>,
    /// What the server has said so far.
    greeting: BytesMut,
}

/// Most of a server's greeting that is read before anyone takes it.
const LARGEST_GREETING: usize = 4096;

impl Early {
    /// Nothing done yet.
    pub fn new(proxy: Arc<TcpProxy>) -> Self {
        Early { proxy, outcome: Outcome::default(), upstream: None, greeting: BytesMut::new() }
    }

    /// Connects, and resolves once the server has spoken or closed. Without an upstream it never does: then it is the client's turn. When it is
    /// cancelled, a connection that has been made stays.
    pub async fn server_speaks(&mut self, connection: &Connection) {
        self.upstream = establish(connection, &self.proxy, &mut self.outcome).await;
        let Some(upstream) = &mut self.upstream else { return std::future::pending().await };
        self.greeting.reserve(LARGEST_GREETING);
        // An end or an error is found again by whoever copies.
        let _ = upstream.io.read_buf(&mut self.greeting).await;
    }

    /// The connection and what its server has said, if it was made for this very configuration.
    fn of(self: Box<Self>, proxy: &Arc<TcpProxy>, outcome: &mut Outcome) -> Option<(UpstreamConnection, Bytes)> {
        let upstream = self.upstream.filter(|_| Arc::ptr_eq(&self.proxy, proxy))?;
        *outcome = self.outcome;
        Some((upstream, self.greeting.freeze()))
    }
}

/// Chooses cluster and endpoint and connects, as often as the filter allows, to another endpoint each time where there is one.
async fn establish(connection: &Connection, proxy: &TcpProxy, outcome: &mut Outcome) -> Option<UpstreamConnection> {
    let (id, labels) = choose_cluster(proxy)?;
    let Some(cluster) = worker::snapshot().cluster(id).cloned() else {
        proxy.stats.downstream_cx_no_route().inc();
        outcome.flags.set(ResponseFlag::NoCluster);
        return None;
    };
    outcome.cluster = Some(cluster.clone());
    if !connect::may_connect(&cluster) {
        outcome.flags.set(ResponseFlag::UpstreamOverflow);
        return None;
    }
    let source = connection.remote.filter(|_| proxy.hash_source_ip && cluster.hashing.is_some());
    let hash = source.map(|source| hash::hash(source.ip().to_string().as_bytes()));
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    while outcome.attempts < proxy.max_connect_attempts.max(1) {
        let context = PickContext {
            original_destination: connection.local.filter(|_| connection.restored),
            labels,
            hash,
            avoid: Avoid { hosts: &tried, reselections: RESELECTIONS, ..Avoid::default() },
        };
        let Ok(endpoint) = pick::choose(&cluster, &context) else {
            outcome.flags.set(ResponseFlag::NoHealthyUpstream);
            return None;
        };
        outcome.attempts += 1;
        cluster.stats.upstream_rq_pending_total().inc();
        outcome.endpoint = Some(endpoint.clone());
        let attempt = tokio::select! {
            attempt = connect::connect(&cluster, &endpoint, AlpnChoice::Configured, Some(connection)) => attempt,
            () = connection.drain.closing() => return None,
        };
        match attempt {
            Ok(upstream) => {
                outlier::report(&cluster, &endpoint, Report::ConnectedFinally);
                outcome.upstream_local = upstream.io.local_address();
                return Some(upstream);
            }
            Err(error) => {
                tracing::debug!(connection = connection.id, cluster = %cluster.name, endpoint = %endpoint.address, "cannot connect: {error}");
                cluster.stats.upstream_rq_pending_failure_eject().inc();
                let timed_out = error == ConnectError::Timeout;
                outlier::report(&cluster, &endpoint, if timed_out { Report::TimedOut } else { Report::Failed });
                outcome.flags.set(ResponseFlag::UpstreamConnectionFailure);
                outcome.upstream_failure = Some(error.to_string());
                tried.push(endpoint);
            }
        }
    }
    cluster.stats.upstream_cx_connect_attempts_exceeded().inc();
    outcome.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
    None
}

/// Copies between the two sides, and says how it ended.
async fn splice(
    io: &mut DownstreamIo,
    upstream: UpstreamConnection,
    greeting: Bytes,
    connection: &Arc<Connection>,
    proxy: &TcpProxy,
    outcome: &mut Outcome,
) {
    let UpstreamConnection { io: mut upstream, mut guard } = upstream;
    // Envoy never sees a TCP connection to an endpoint without its one request.
    guard.request_active = true;
    let _active = ActiveStream::new(guard.cluster().clone(), guard.endpoint().clone());
    let (cluster, endpoint) = (guard.cluster().clone(), guard.endpoint().clone());
    let failures = endpoint.failures.load(Relaxed);
    let mut meter = Counters { tcp: &proxy.stats, cluster: &cluster.stats, connection };
    let limits = Limits {
        idle: proxy.idle_timeout,
        until: proxy.max_duration.map(|limit| Instant::from_std(connection.start) + limit),
        upstream_ends: false,
        downstream_ends: false,
    };
    if !greeting.is_empty() && pass_on(io, &greeting, connection).await.is_ok() {
        meter.to_downstream(greeting.len());
    }
    // Told apart here, once, so that the loop that runs for every byte is compiled for plain sockets without asking.
    let end = match (&mut *io, &mut upstream) {
        (DownstreamIo::Plain(down), UpstreamIo::Plain(up)) if cluster.close_on_failure.is_none() => {
            copy::copy(down, up, limits, Some(&connection.drain), &mut meter).await
        }
        (down, up) if cluster.close_on_failure.is_some() => {
            let copying = Box::pin(copy::copy(down, up, limits, Some(&connection.drain), &mut meter));
            tokio::select! {
                end = copying => end,
                () = cluster.closes(&endpoint, failures) => End::Closing,
            }
        }
        (down, up) => Box::pin(copy::copy(down, up, limits, Some(&connection.drain), &mut meter)).await,
    };
    match end {
        // The side that finishes last closes the connection: when the client was first, that is the endpoint.
        End::Finished(side) => guard.closed_by_peer = side == Side::Downstream,
        End::Failed(side, error) => {
            guard.closed_by_peer = side == Side::Upstream;
            // A reset is passed on as one: the other side must not take what it has got for complete.
            if error.kind() == io::ErrorKind::ConnectionReset {
                match side {
                    Side::Downstream => {
                        outcome.flags.set(ResponseFlag::DownstreamRemoteReset);
                        upstream.socket().reset_on_close();
                    }
                    Side::Upstream => {
                        outcome.flags.set(ResponseFlag::UpstreamRemoteReset);
                        io.socket().reset_on_close();
                    }
                }
            }
            tracing::debug!(connection = connection.id, ?side, %error, "connection failed");
        }
        End::Idle => proxy.stats.idle_timeout().inc(),
        End::MaxDuration => {
            proxy.stats.max_downstream_connection_duration().inc();
            outcome.flags.set(ResponseFlag::DurationTimeout);
        }
        End::Closing => {}
    }
}

/// Writes what the server said while nobody knew who its client was. A client that is gone is found again by whoever copies.
async fn pass_on(io: &mut DownstreamIo, greeting: &[u8], connection: &Connection) -> io::Result<()> {
    let write = async {
        io.write_all(greeting).await?;
        io.flush().await
    };
    tokio::select! {
        result = write => result,
        () = connection.drain.closing() => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// How often a choice is repeated to avoid an endpoint that was tried before.
const RESELECTIONS: u32 = 5;

/// One cluster, or one of several by weight, and what is asked of its endpoints. Header-driven choice is for HTTP and never compiled into a TCP proxy.
fn choose_cluster(proxy: &TcpProxy) -> Option<(ClusterId, Option<&Arc<Labels>>)> {
    match &proxy.clusters {
        ClusterChoice::One { id, .. } => Some((*id, proxy.labels.as_ref())),
        ClusterChoice::Weighted { clusters, total } => {
            let mut drawn = (worker::random() % u64::from((*total).max(1))) as u32;
            let chosen = clusters.iter().find(|cluster| match drawn.checked_sub(cluster.weight) {
                Some(left) => {
                    drawn = left;
                    false
                }
                None => true,
            });
            chosen.map(|cluster| (cluster.id, cluster.labels.as_ref()))
        }
        ClusterChoice::Header { .. } => None,
    }
}

struct Counters<'a> {
    tcp: &'a TcpStats,
    cluster: &'a ClusterStats,
    connection: &'a Connection,
}

impl Meter for Counters<'_> {
    fn to_upstream(&mut self, n: usize) {
        let n = n as u64;
        self.tcp.downstream_cx_rx_bytes_total().add(n);
        self.cluster.upstream_cx_tx_bytes_total().add(n);
        add(&self.connection.received, n);
    }

    fn to_downstream(&mut self, n: usize) {
        let n = n as u64;
        self.tcp.downstream_cx_tx_bytes_total().add(n);
        self.cluster.upstream_cx_rx_bytes_total().add(n);
        add(&self.connection.sent, n);
    }
}

/// Only the connection's own task writes, so a load and a store suffice.
fn add(cell: &std::sync::atomic::AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Envoy counts a proxied connection as one request to its endpoint; the end of it is counted by `Drop`.
struct ActiveStream {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
}

impl ActiveStream {
    fn new(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>) -> Self {
        cluster.stats.upstream_rq_total().inc();
        cluster.stats.upstream_rq_active().inc();
        endpoint.stats.rq_total.fetch_add(1, Relaxed);
        endpoint.stats.rq_active.fetch_add(1, Relaxed);
        ActiveStream { cluster, endpoint }
    }
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active().dec();
        self.endpoint.stats.rq_active.fetch_sub(1, Relaxed);
    }
}
