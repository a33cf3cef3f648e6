//! Connections to upstreams, kept by each worker for itself.
//!
//! A pool belongs to one cluster value and one endpoint value, compared as a whole (both are immutable and kept alive by the pool, so their addresses
//! stand for all they hold: TLS identity, expected peers, protocol). A cluster that changed is another value and starts with empty pools; what the old
//! ones hold is closed as it falls idle.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use foldhash::HashMap;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;

use super::{
    connect::{self, AlpnChoice, ConnectionGuard, Pooled, UpstreamConnection},
    metered::Metered,
};
use crate::{
    connection::Connection,
    error::ConnectError,
    http::body::RequestBody,
    model::cluster::{Cluster, Endpoint, UpstreamProtocol},
    worker::{self, with_pools, with_pools_while_open},
};

/// HTTP version spoken to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

/// Why no connection could be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireError {
    /// The circuit breaker is open.
    Overflow,
    /// Connecting failed.
    Connect(ConnectError),
}

mod driven;
mod lease;
mod opening;
mod upkeep;

pub use driven::Driven;
pub use lease::{Lease, Sender};
use opening::open;

/// Addresses of the cluster and the endpoint, which the pool keeps alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    cluster: usize,
    endpoint: usize,
    protocol: Protocol,
    /// The downstream connection that the connection was made for, if that is what it began with (PROXY protocol); else [`ANYBODY`].
    client: u64,
}

/// No downstream connection has this id.
const ANYBODY: u64 = 0;

/// The pools of one worker.
#[derive(Debug, Default)]
pub struct Pools {
    hosts: HashMap<Key, HostPool>,
    /// Pools of one downstream connection each, by its id.
    own: HashMap<u64, Vec<Key>>,
}

#[derive(Debug)]
struct HostPool {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    /// HTTP/1: most recently used last.
    idle: Vec<Idle>,
    /// Requests that wait while the circuit breaker allows no further connection.
    waiters: VecDeque<oneshot::Sender<()>>,
    /// HTTP/2.
    shared: Vec<Shared>,
    /// HTTP/2: requests that wait for the connection that is being made.
    connecting: Option<Vec<oneshot::Sender<Result<(), ConnectError>>>>,
    /// Connections that are open, idle or not.
    live: u32,
    /// How often the endpoint had failed when these connections were made.
    failures: u32,
    /// Replaced by configuration: connections are closed instead of kept.
    retired: bool,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    driven: Arc<Driven>,
    local: Option<SocketAddr>,
    since: Instant,
    opened: Instant,
    requests: u32,
    pooled: Arc<Pooled>,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    local: Option<SocketAddr>,
    opened: Instant,
    last_used: Instant,
    requests: u32,
    active: u32,
    /// Bytes that came in.
    heard: Arc<AtomicU64>,
    /// The connection.
    pooled: Arc<Pooled>,
}

/// Streams per HTTP/2 connection before another one is opened; Envoy's default.
const MAX_STREAMS: u32 = 1024;

/// A shared connection on which nothing at all came in while a request waited so long gets no further ones: the way there may have been cut, which
/// shows as silence until TCP gives up a quarter of an hour later, and after which TCP takes as long to try again as the cut lasted. An HTTP/1
/// connection is closed by a request that gives up anyway. (Envoy goes on with such a connection unless `connection_keepalive` is set.)
const SILENCE: Duration = Duration::from_millis(750);

/// A connection to `endpoint` for a request of `client`, or of the proxy itself: an idle one, a shared one, or a new one.
pub async fn acquire(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    client: Option<&Connection>,
    downstream: Protocol,
) -> Result<Lease, AcquireError> {
    let protocol = match cluster.protocol {
        UpstreamProtocol::Http1 => Protocol::Http1,
        UpstreamProtocol::Http2 => Protocol::Http2,
        UpstreamProtocol::Downstream => downstream,
        // ALPN decides when connecting; HTTP/2 connections are looked for first, because one of them serves everybody.
        UpstreamProtocol::Auto => Protocol::Http2,
    };
    let auto = cluster.protocol == UpstreamProtocol::Auto;
    let key = |protocol| Key {
        cluster: Arc::as_ptr(cluster) as usize,
        endpoint: Arc::as_ptr(endpoint) as usize,
        protocol,
        client: client.filter(|_| cluster.proxy_protocol.is_some()).map_or(ANYBODY, |client| client.id),
    };
    let mut turn: Option<Turn> = None;
    loop {
        let found = with_pools(|pools| {
            let mut others = 0;
            if auto {
                // Where ALPN decides, connections over HTTP/1 tell what it decided last time.
                let host = pools.host(key(Protocol::Http1), cluster, endpoint);
                if let Some(lease) = host.take_idle(key(Protocol::Http1)) {
                    return Found::Lease(lease);
                }
                others = host.live;
            }
            pools.host(key(protocol), cluster, endpoint).take(key(protocol), others, turn.is_some())
        });
        if let Some(turn) = turn.as_mut().filter(|_| !matches!(found, Found::Overflow)) {
            turn.used = true;
        }
        match found {
            Found::Lease(lease) => return Ok(lease),
            Found::Connect => {
                // On the heap, because it is seldom: every request's future would have room for a connection attempt and a TLS handshake.
                return Box::pin(open(cluster, endpoint, client, key(protocol), auto)).await;
            }
            Found::WaitIdle(next) => {
                let _pending = Pending::new(cluster);
                turn.insert(next).comes().await;
            }
            Found::WaitConnect(connected) => {
                let _pending = Pending::new(cluster);
                if let Ok(Err(error)) = connected.await {
                    return Err(AcquireError::Connect(error));
                }
            }
            Found::Overflow => return Err(AcquireError::Overflow),
        }
    }
}

enum Found {
    Lease(Lease),
    Connect,
    WaitIdle(Turn),
    WaitConnect(oneshot::Receiver<Result<(), ConnectError>>),
    Overflow,
}

/// Counts a waiting request.
struct Pending<'a>(&'a Cluster);

impl<'a> Pending<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.limits.pending.fetch_add(1, Relaxed);
        cluster.stats.upstream_rq_pending_active().inc();
        cluster.stats.upstream_rq_pending_total().inc();
        Pending(cluster)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.limits.pending.fetch_sub(1, Relaxed);
        self.0.stats.upstream_rq_pending_active().dec();
    }
}

/// A request's place among those that wait while the circuit breaker allows no further connection.
struct Turn {
    key: Key,
    freed: oneshot::Receiver<()>,
    came: bool,
    /// The request took what it was told of, or found that there was nothing.
    used: bool,
}

impl Turn {
    /// Waits until there may be a connection, or room for one.
    async fn comes(&mut self) {
        // An error means that the pool is gone, or that there is something for all; the request then finds out what.
        self.came = (&mut self.freed).await.is_ok();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The request was given up after it was told: it is the next one's turn.
        if !self.used && (self.came || self.freed.try_recv().is_ok()) {
            tell(with_pools_while_open(|pools| pools.next_waiter(self.key)));
        }
    }
}

fn tell(waiter: Option<oneshot::Sender<()>>) {
    if let Some(waiter) = waiter {
        let _ = waiter.send(());
    }
}

/// A connection's place in its pool and in the counters, until its socket is closed.
#[derive(Debug)]
pub(super) struct Open {
    guard: Option<ConnectionGuard>,
    key: Key,
}

impl Open {
    fn new(guard: ConnectionGuard, key: Key) -> Self {
        Open { guard: Some(guard), key }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Counted first: whoever is told of it is to find room.
        self.guard = None;
        closed(self.key);
    }
}

/// A connection ended: whoever waits for one may open another.
fn closed(key: Key) {
    tell(with_pools_while_open(|pools| {
        let host = pools.hosts.get_mut(&key)?;
        host.live = host.live.saturating_sub(1);
        let is_over = (host.retired || key.client != ANYBODY) && host.live == 0;
        let waiter = pools.next_waiter(key);
        if waiter.is_none() && is_over {
            pools.hosts.remove(&key);
        }
        waiter
    }));
}

/// Forgets connections that have ended.
fn sweep(key: Key) {
    with_pools(|pools| {
        if let Some(host) = pools.hosts.get_mut(&key) {
            host.idle.retain(|idle| !idle.sender.is_closed());
            host.shared.retain(|shared| !shared.sender.is_closed());
        }
    });
}

/// Tells who waits longest of an idle connection that can be had.
fn offer(key: Key) {
    tell(with_pools(|pools| {
        let host = pools.hosts.get(&key)?;
        host.idle.iter().any(|idle| idle.sender.is_ready()).then(|| pools.next_waiter(key)).flatten()
    }));
}

impl Pools {
    fn host(&mut self, key: Key, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> &mut HostPool {
        let own = &mut self.own;
        self.hosts.entry(key).or_insert_with(|| {
            if key.client != ANYBODY {
                own.entry(key.client).or_default().push(key);
            }
            HostPool {
                cluster: cluster.clone(),
                endpoint: endpoint.clone(),
                idle: Vec::new(),
                waiters: VecDeque::new(),
                shared: Vec::new(),
                connecting: None,
                live: 0,
                failures: endpoint.failures.load(Relaxed),
                retired: false,
            }
        })
    }

    /// Who waits for a connection like this one, or for the room that it leaves.
    fn next_waiter(&mut self, key: Key) -> Option<oneshot::Sender<()>> {
        // Requests for which ALPN decides wait where connections over HTTP/2 are.
        let other = match key.protocol {
            Protocol::Http1 => Protocol::Http2,
            Protocol::Http2 => Protocol::Http1,
        };
        [key, Key { protocol: other, ..key }].into_iter().find_map(|key| self.hosts.get_mut(&key)?.next_waiter())
    }

    /// A downstream connection is gone, and with it those for whom the connections were that began with its addresses.
    pub fn forget_client(&mut self, id: u64) {
        for key in self.own.remove(&id).into_iter().flatten() {
            if let Some(host) = self.hosts.get_mut(&key) {
                host.retire();
                if host.live == 0 {
                    self.hosts.remove(&key);
                }
            }
        }
    }
}

impl HostPool {
    /// `others`: open connections to the same endpoint that are elsewhere. `again`: the request has waited, and has been told.
    fn take(&mut self, key: Key, others: u32, again: bool) -> Found {
        let lease = match key.protocol {
            Protocol::Http1 => self.take_idle(key),
            Protocol::Http2 => self.take_shared(key),
        };
        if let Some(lease) = lease {
            return Found::Lease(lease);
        }
        let limits = &self.cluster.limits;
        if limits.pending.load(Relaxed) >= limits.max_pending {
            self.cluster.stats.upstream_rq_pending_overflow().inc();
            return Found::Overflow;
        }
        if let Some(waiters) = &mut self.connecting {
            let (told, connected) = oneshot::channel();
            waiters.push(told);
            return Found::WaitConnect(connected);
        }
        // A host without any connection may have one beyond the limit, as in Envoy: else it could never be reached.
        if self.live + others > 0 && limits.connections.load(Relaxed) >= limits.max_connections {
            self.cluster.stats.upstream_cx_overflow().inc();
            let (told, freed) = oneshot::channel();
            if again {
                self.waiters.push_front(told);
            } else {
                self.waiters.push_back(told);
            }
            return Found::WaitIdle(Turn { key, freed, came: false, used: false });
        }
        self.live += 1;
        if key.protocol == Protocol::Http2 {
            self.connecting = Some(Vec::new());
        }
        Found::Connect
    }

    /// Who waits longest here. Those that have given up do not count.
    fn next_waiter(&mut self) -> Option<oneshot::Sender<()>> {
        std::iter::from_fn(|| self.waiters.pop_front()).find(|waiter| !waiter.is_closed())
    }

    fn take_idle(&mut self, key: Key) -> Option<Lease> {
        while let Some(idle) = self.idle.pop() {
            if idle.sender.is_closed() {
                continue;
            }
            if !idle.sender.is_ready() {
                // Its last response is not wholly read yet; it will be, behind the others.
                self.idle.insert(0, idle);
                if self.idle.iter().all(|idle| !idle.sender.is_ready()) {
                    return None;
                }
                continue;
            }
            let Idle { sender, driven, local, opened, requests, pooled, .. } = idle;
            driven.lease();
            pooled.carries();
            self.cluster.stats.upstream_rq_total().inc();
            return Some(Lease {
                sender: Some(Sender::Http1(sender, driven)),
                reused: true,
                local,
                key,
                opened,
                requests: requests + 1,
                began: opened,
                heard_before: 0,
                heard: Arc::default(),
                pooled,
            });
        }
        None
    }

    fn take_shared(&mut self, key: Key) -> Option<Lease> {
        self.shared.retain(|shared| !shared.sender.is_closed());
        let limit = self.cluster.http2.max_concurrent_streams.unwrap_or(MAX_STREAMS);
        let most = self.cluster.max_requests_per_connection;
        let at = self.shared.iter().position(|shared| shared.active < limit)?;
        let shared = self.shared.get_mut(at)?;
        shared.active += 1;
        shared.requests += 1;
        shared.pooled.carries();
        self.cluster.stats.upstream_rq_total().inc();
        let used_up = most.is_some_and(|most| shared.requests >= most);
        let lease = Lease {
            sender: Some(Sender::Http2(shared.sender.clone())),
            reused: true,
            local: shared.local,
            key,
            opened: shared.opened,
            requests: shared.requests,
            began: Instant::now(),
            heard_before: shared.heard.load(Relaxed),
            heard: shared.heard.clone(),
            pooled: shared.pooled.clone(),
        };
        if used_up {
            // It ends with the last of those that are on it.
            self.cluster.stats.upstream_cx_max_requests().inc();
            self.shared.swap_remove(at);
        }
        Some(lease)
    }

    /// A stream has ended, and with it the wait for one.
    fn end_stream(&mut self, lease: &Lease) -> Option<oneshot::Sender<()>> {
        let at = self.shared.iter().position(|shared| shared.opened == lease.opened)?;
        let shared = self.shared.get_mut(at)?;
        let now = Instant::now();
        shared.active = shared.active.saturating_sub(1);
        shared.last_used = now;
        let silent = lease.heard.load(Relaxed) == lease.heard_before;
        if silent && now.saturating_duration_since(lease.began) >= SILENCE {
            self.shared.swap_remove(at);
        }
        self.next_waiter()
    }

    fn retire(&mut self) {
        self.retired = true;
        self.idle.clear();
        self.shared.clear();
        self.waiters.clear();
    }
}
