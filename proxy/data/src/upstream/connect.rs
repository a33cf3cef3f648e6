//! A connection to an endpoint.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
};

use crate::{
    connection::Connection,
    error::ConnectError,
    io::{Socket, UpstreamIo},
    model::{
        cluster::{Cluster, Discovery, Endpoint, EndpointAddress, Keepalive},
        proxy_protocol::UpstreamProxyProtocol,
    },
    orig_dst::PassedOn,
    pacing,
    proxy_protocol::Addresses,
    tls,
};

/// Which ALPN offers a TLS handshake makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlpnChoice {
    /// Those of the cluster's TLS context.
    Configured,
    /// These, in order of preference.
    Offer(&'static [&'static [u8]]),
    /// Those of the cluster's TLS context, these if it has none.
    Fallback(&'static [&'static [u8]]),
}

/// An open connection and its place in the counters.
#[derive(Debug)]
pub struct UpstreamConnection {
    /// The bytes.
    pub io: UpstreamIo,
    /// Counts the connection as live until it is dropped.
    pub guard: ConnectionGuard,
}

/// Connects, with TLS if the cluster has it, within the cluster's `connect_timeout`. Counts `upstream_cx_total`, `_active`, `_connect_fail`,
/// `_connect_timeout`, `_connect_ms`, the endpoint's counters and the circuit breaker's connections; whether the breaker allows one more is the caller's
/// question ([`may_connect`]). `downstream` is whom it is made for, which clusters that speak the PROXY protocol are told.
pub async fn connect(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    alpn: AlpnChoice,
    downstream: Option<&Connection>,
) -> Result<UpstreamConnection, ConnectError> {
    let mut guard = ConnectionGuard::new(cluster.clone(), endpoint.clone());
    let attempt = async {
        let (mut socket, passed_on) = open(cluster, &endpoint.address).await?;
        if let Some(proxy_protocol) = &cluster.proxy_protocol {
            introduce(proxy_protocol, downstream, &mut socket).await?;
        }
        let io = match cluster.tls_for(endpoint) {
            None => UpstreamIo::Plain(socket),
            // Boxed: a handshake's state is large and short-lived.
            Some(tls) => Box::pin(tls::connect::connect(tls, socket, endpoint, alpn)).await?,
        };
        Ok((io, passed_on))
    };
    let result = match tokio::time::timeout(cluster.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    };
    match result {
        Ok((io, passed_on)) => {
            guard.passed_on = passed_on;
            cluster.stats.upstream_cx_connect_ms().record(millis(guard.opened));
            Ok(UpstreamConnection { io, guard })
        }
        Err(error) => {
            cluster.stats.upstream_cx_connect_fail().inc();
            endpoint.stats.cx_connect_fail.fetch_add(1, Relaxed);
            if error == ConnectError::Timeout {
                cluster.stats.upstream_cx_connect_timeout().inc();
            }
            guard.failed = true;
            Err(error)
        }
    }
}

/// Says whom the connection is made for.
async fn introduce(
    proxy_protocol: &UpstreamProxyProtocol,
    downstream: Option<&Connection>,
    socket: &mut Socket,
) -> Result<(), ConnectError> {
    let own = match (socket.local_address(), socket.peer_address()) {
        (Some(source), Some(destination)) => Some(Addresses { source, destination }),
        _ => None,
    };
    socket.write_all(&proxy_protocol.header(downstream, own)).await.map_err(|error| sort_error(&error))
}

/// Whether the circuit breaker of default priority allows one more connection. Counts `upstream_cx_overflow` if not.
pub fn may_connect(cluster: &Cluster) -> bool {
    let allowed = cluster.limits.connections.load(Relaxed) < cluster.limits.max_connections;
    if !allowed {
        cluster.stats.upstream_cx_overflow().inc();
    }
    allowed
}

/// Connects for a check of the endpoint's health, at `address`: outside of pools, counters and circuit breakers. The caller bounds the time.
pub(crate) async fn probe(
    cluster: &Cluster,
    endpoint: &Endpoint,
    address: &EndpointAddress,
    alpn: AlpnChoice,
) -> Result<UpstreamIo, ConnectError> {
    let (mut socket, _) = open(cluster, address).await?;
    if let Some(proxy_protocol) = &cluster.proxy_protocol {
        introduce(proxy_protocol, None, &mut socket).await?;
    }
    match cluster.tls_for(endpoint) {
        None => Ok(UpstreamIo::Plain(socket)),
        Some(tls) => Box::pin(tls::connect::connect(tls, socket, endpoint, alpn)).await,
    }
}

async fn open(cluster: &Cluster, address: &EndpointAddress) -> Result<(Socket, Option<PassedOn>), ConnectError> {
    match address {
        EndpointAddress::Unix(path) => {
            #[cfg(feature = "fuzzing")]
            if let Some(stream) = crate::fuzzing::connect(path) {
                return Ok((Socket::Memory(stream), None));
            }
            let stream = UnixStream::connect(path).await.map_err(|error| sort_error(&error))?;
            Ok((Socket::Unix(stream), None))
        }
        EndpointAddress::Ip(address) => {
            let (stream, passed_on) = open_tcp(cluster, *address).await?;
            prepare(&stream, cluster.keepalive).map_err(|error| local(&error))?;
            Ok((Socket::Tcp(stream.into()), passed_on))
        }
    }
}

/// Connects by hand, because the source address must be known before the peer can have accepted: a redirected connection comes back that fast.
async fn open_tcp(cluster: &Cluster, address: SocketAddr) -> Result<(TcpStream, Option<PassedOn>), ConnectError> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket =
        socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP)).map_err(|e| local(&e))?;
    if let Some(source) = cluster.bind_source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        // Otherwise the kernel would reserve one of 28,000 ports per source address instead of per pair of addresses.
        let _ = socket.set_reuse_address(true);
        if let Err(error) = socket.bind(&SocketAddr::new(source, 0).into()) {
            cluster.stats.bind_errors().inc();
            return Err(local(&error));
        }
    }
    pacing::spare(&socket, address.ip());
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(sort_error(&error)),
    }
    let passed_on = match cluster.discovery {
        Discovery::OriginalDst => socket.local_addr().ok().and_then(|source| source.as_socket()).map(PassedOn::new),
        Discovery::Static | Discovery::Eds(_) | Discovery::StrictDns | Discovery::LogicalDns => None,
    };
    let stream = TcpStream::from_std(socket.into()).map_err(|error| local(&error))?;
    stream.writable().await.map_err(|error| sort_error(&error))?;
    match stream.take_error() {
        Ok(None) => Ok((stream, passed_on)),
        Ok(Some(error)) | Err(error) => Err(sort_error(&error)),
    }
}

/// connect(2): the handshake goes on.
const EINPROGRESS: i32 = 115;

fn prepare(stream: &TcpStream, keepalive: Option<Keepalive>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Some(Keepalive { probes, time, interval }) = keepalive {
        let mut values = TcpKeepalive::new();
        if let Some(time) = time {
            values = values.with_time(time);
        }
        if let Some(interval) = interval {
            values = values.with_interval(interval);
        }
        if let Some(probes) = probes {
            values = values.with_retries(probes);
        }
        let socket = SockRef::from(stream);
        socket.set_keepalive(true)?;
        socket.set_tcp_keepalive(&values)?;
    }
    Ok(())
}

/// Sorts what `connect(2)` says into the peer's fault and ours.
fn sort_error(error: &io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::AddrInUse
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::OutOfMemory => local(error),
        io::ErrorKind::TimedOut => ConnectError::Timeout,
        _ => ConnectError::Refused { reason: errno_text(error) },
    }
}

fn local(error: &io::Error) -> ConnectError {
    ConnectError::Local { reason: errno_text(error) }
}

/// The error number's text alone, as Envoy writes it: `Connection refused`, without Rust's ` (os error 111)`.
pub(crate) fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// What a pooled connection, its bytes and its requests tell one another.
#[derive(Debug, Default)]
pub struct Pooled {
    /// Requests that it has carried.
    pub requests: AtomicU64,
    /// Requests on it now, or cut off by its end.
    pub active: AtomicU64,
    /// The peer closed first.
    pub closed_by_peer: AtomicBool,
    /// There is more to write than the peer takes.
    pub blocked: AtomicBool,
}

impl Pooled {
    /// Another request is sent.
    pub fn carries(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.active.fetch_add(1, Relaxed);
    }

    /// A request has had its answer, or was reset alone.
    pub fn carried(&self) {
        let _ = self.active.fetch_update(Relaxed, Relaxed, |active| active.checked_sub(1));
    }
}

/// Counts a connection to an endpoint as live; the end of it is counted by `Drop`.
#[derive(Debug)]
pub struct ConnectionGuard {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    opened: Instant,
    failed: bool,
    passed_on: Option<PassedOn>,
    /// The peer closed first; `upstream_cx_destroy_remote` is counted instead of `_local`.
    pub closed_by_peer: bool,
    /// What became of it in a pool; `None` for TCP.
    pub pooled: Option<Arc<Pooled>>,
    /// A request (for TCP: the downstream connection) was still being served; `_with_active_rq` is counted too.
    pub request_active: bool,
}

impl ConnectionGuard {
    fn new(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>) -> Self {
        cluster.stats.upstream_cx_total().inc();
        cluster.stats.upstream_cx_active().inc();
        cluster.limits.connections.fetch_add(1, Relaxed);
        endpoint.stats.cx_total.fetch_add(1, Relaxed);
        endpoint.stats.cx_active.fetch_add(1, Relaxed);
        ConnectionGuard {
            cluster,
            endpoint,
            opened: Instant::now(),
            failed: false,
            passed_on: None,
            closed_by_peer: false,
            pooled: None,
            request_active: false,
        }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// When the connection was begun.
    pub fn opened(&self) -> Instant {
        self.opened
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let stats = &self.cluster.stats;
        stats.upstream_cx_active().dec();
        self.cluster.limits.connections.fetch_sub(1, Relaxed);
        self.endpoint.stats.cx_active.fetch_sub(1, Relaxed);
        stats.upstream_cx_destroy().inc();
        if let Some(pooled) = &self.pooled {
            stats.upstream_rq_per_cx().record(pooled.requests.load(Relaxed));
            self.closed_by_peer |= pooled.closed_by_peer.load(Relaxed);
            self.request_active |= pooled.active.load(Relaxed) > 0;
        }
        match (self.failed || self.closed_by_peer, self.request_active) {
            (true, false) => stats.upstream_cx_destroy_remote().inc(),
            (false, false) => stats.upstream_cx_destroy_local().inc(),
            (true, true) => {
                stats.upstream_cx_destroy_remote().inc();
                stats.upstream_cx_destroy_remote_with_active_rq().inc();
                stats.upstream_cx_destroy_with_active_rq().inc();
            }
            (false, true) => {
                stats.upstream_cx_destroy_local().inc();
                stats.upstream_cx_destroy_local_with_active_rq().inc();
                stats.upstream_cx_destroy_with_active_rq().inc();
            }
        }
        stats.upstream_cx_length_ms().record(millis(self.opened));
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
