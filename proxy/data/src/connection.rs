//! The life of a downstream connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use crate::{
    drain::Watch,
    http,
    inspect::{self, Findings, InspectError},
    io::{DownstreamIo, Inspected, Socket},
    listen::PanicCount,
    model::{
        ChainId, ListenerId,
        chain_match::ConnectionFacts,
        listener::{FilterChain, Listener, NetworkFilter, Terminal, TrafficDirection},
        rbac::{Action, PeerNames, Subject},
        tls::ServerTls,
    },
    orig_dst,
    outcome::Outcome,
    snapshot::Snapshot,
    stats::{ListenerStats, RbacStats},
    tcp,
    tls::{self, accept::Accepted},
    worker,
};

/// What is known of a downstream connection; shared by its requests. It names its listener and chain, and holds nothing of their content, so that
/// whoever serves it reads the current one from [`crate::worker::snapshot`].
#[derive(Debug)]
pub struct Connection {
    /// `%CONNECTION_ID%`; unique in the process.
    pub id: u64,
    /// The listener that serves it: after a hand-over by original destination not the one that accepted it.
    pub listener: ListenerId,
    /// Its filter chain.
    pub chain: ChainId,
    /// [`crate::model::listener::FilterChain::demands`] at the time of the handshake.
    pub demands: u64,
    /// Of the listener, for drains.
    pub direction: TrafficDirection,
    /// Destination: the restored original one, else the socket's. `None` for Unix sockets.
    pub local: Option<SocketAddr>,
    /// `local` differs from the socket's own address because the kernel had redirected the connection.
    pub restored: bool,
    /// Our end of the socket.
    pub direct_local: Option<SocketAddr>,
    /// The peer, as far as it may be believed; until a PROXY protocol says otherwise the socket's.
    pub remote: Option<SocketAddr>,
    /// The peer of the socket.
    pub direct_remote: Option<SocketAddr>,
    /// Requested server name in lower case, from the inspector or the handshake; empty without one.
    pub sni: Box<str>,
    /// What ALPN settled on; `None` without TLS or without agreement.
    pub alpn: Option<Box<[u8]>>,
    /// Application protocol that the HTTP inspector or the ClientHello announced, for the codec's choice.
    pub detected: Option<Box<str>>,
    /// `None` for plain text.
    pub tls: Option<PeerTls>,
    /// When it was accepted.
    pub start: Instant,
    /// When it was accepted, on the wall clock.
    pub start_time: SystemTime,
    /// Bytes that the terminal filter read from the peer.
    pub received: AtomicU64,
    /// Bytes that the terminal filter wrote to the peer.
    pub sent: AtomicU64,
    /// Told when the connection should end.
    pub drain: Watch,
    /// The task that copies bytes after the connection has left HTTP.
    pub upgrade: Mutex<Option<JoinHandle<()>>>,
    /// The HTTP codec has ended: whatever request still lives ends because of that.
    pub gone: AtomicBool,
}

/// What the TLS handshake with a downstream peer showed.
#[derive(Debug)]
pub struct PeerTls {
    /// Names in the peer's certificate; `None`: it showed none.
    pub names: Option<PeerNames>,
    /// SHA-256 of the peer's certificate.
    pub fingerprint: Option<[u8; 32]>,
    /// The peer's chain, leaf first; empty when it showed none. For `Cert=` and `Chain=` of `x-forwarded-client-cert`.
    pub chain: Vec<CertificateDer<'static>>,
    /// First URI SAN of our own certificate, for `By=`.
    pub own_uri: Option<Arc<str>>,
    /// As Envoy prints it: `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's name of the cipher suite.
    pub cipher: &'static str,
    /// A session was resumed.
    pub resumed: bool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A connection id, unique in the process.
pub fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// What a publication means for a live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// Its listener or chain is gone, or asks something else of the peer now.
    Drain,
    /// A policy no longer allows it.
    Close,
}

/// Judges a live connection by a new configuration. Only a change is judged: what was gone before drains already.
pub(crate) fn judge(connection: &Connection, old: &Snapshot, new: &Snapshot) -> Verdict {
    let before = old.chain(connection.listener, connection.chain).filter(|chain| chain.demands == connection.demands);
    let after = new.chain(connection.listener, connection.chain).filter(|chain| chain.demands == connection.demands);
    match (before, after) {
        (Some(before), Some(after)) if Arc::ptr_eq(before, after) => Verdict::Keep,
        (Some(_), None) => Verdict::Drain,
        (None, None) => Verdict::Keep,
        (_, Some(after)) => match denial(after, connection) {
            Some(denial) => {
                denial.stats.denied().inc();
                tracing::info!(connection = connection.id, chain = %after.name, "closed: a changed policy denies it: {}", denial.details());
                explain(after, connection, new);
                Verdict::Close
            }
            None => Verdict::Keep,
        },
    }
}

/// A network RBAC filter that says no.
struct Denial<'a> {
    stats: &'a RbacStats,
    policy: Option<Arc<str>>,
}

impl Denial<'_> {
    /// `%CONNECTION_TERMINATION_DETAILS%`. Source: Envoy `RBAC::responseDetail`.
    fn details(&self) -> String {
        format!("rbac_access_denied_matched_policy[{}]", self.policy.as_deref().unwrap_or("none"))
    }
}

/// Says which permission refused the connection, where that is known.
pub(crate) fn explain(chain: &FilterChain, connection: &Connection, snapshot: &Snapshot) {
    if let Some(denials) = &chain.denials {
        denials.log(
            connection,
            snapshot.listener(connection.listener).map_or("a removed listener", |listener| &listener.name),
        );
    }
}

/// The first network RBAC filter of a chain that denies the connection.
fn denial<'a>(chain: &'a FilterChain, connection: &Connection) -> Option<Denial<'a>> {
    let subject = connection.subject();
    chain.filters.iter().find_map(|filter| match filter {
        NetworkFilter::Rbac(rbac) => {
            let decision = rbac.enforced.as_ref()?.decide(&subject);
            (!decision.allowed).then_some(Denial { stats: &rbac.stats, policy: decision.policy })
        }
    })
}

impl Connection {
    /// What network RBAC looks at.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            peer: self.tls.as_ref().and_then(|tls| tls.names.as_ref()),
            destination: self.local,
            remote: self.remote,
            direct_remote: self.direct_remote,
            server_name: &self.sni,
            request: None,
        }
    }
}

/// LIFE OF A CONNECTION, from accept to end: destination, listener, first bytes, filter chain, TLS, network filters, terminal filter.
pub(crate) async fn serve(mut socket: Socket, accepted_by: ListenerId, panics: PanicCount) {
    let _panics = panics;
    let (start, start_time) = (Instant::now(), SystemTime::now());
    let snapshot = worker::snapshot();
    let (direct_local, direct_remote) = (socket.local_address(), socket.peer_address());

    // Where it wanted to go, and whose connection it is therefore.
    let Some(mut listener) = snapshot.listener(accepted_by) else { return };
    let mut original = None;
    if listener.use_original_dst || listener.inspect.original_dst {
        original = orig_dst::original_destination(&socket);
    }
    if listener.use_original_dst
        && let Some(owner) = original.and_then(|destination| snapshot.listener_for(destination))
    {
        listener = owner;
    }
    let local = original.or(direct_local);

    // What it speaks.
    let mut head = BytesMut::new();
    let Some(findings) = inspect(&mut socket, &mut head, listener).await else { return };
    let io = inspect::replay(head, socket);

    // Which chain takes it.
    let facts = ConnectionFacts {
        destination: local,
        source: direct_remote,
        direct_source: direct_remote,
        server_name: &findings.server_name,
        transport: findings.transport,
        application_protocols: &findings.application_protocols,
    };
    let Some(chain) = listener.chains.find(&facts) else {
        listener.stats.no_filter_chain_match().inc();
        tracing::debug!(listener = %listener.name, ?facts, "no filter chain matches");
        return;
    };
    let counted = Counted::new(listener.stats.clone(), start);
    let mut connection = Connection {
        id: next_id(),
        listener: listener.id,
        chain: chain.id,
        demands: chain.demands,
        direction: listener.direction,
        local,
        restored: original.is_some(),
        direct_local,
        remote: direct_remote,
        direct_remote,
        sni: findings.server_name,
        alpn: None,
        detected: findings.application_protocols.into_iter().next(),
        tls: None,
        start,
        start_time,
        received: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        drain: Watch::new(worker::random() as u16),
        upgrade: Mutex::default(),
        gone: AtomicBool::new(false),
    };

    // TLS. Boxed: a handshake's state is large and short-lived.
    let mut outcome = Outcome::default();
    let io = match &chain.tls {
        None => DownstreamIo::Plain(io),
        Some(tls) => match Box::pin(handshake(tls, io, chain, listener, direct_remote)).await {
            Ok(accepted) => {
                connection.sni = accepted.sni;
                connection.alpn = accepted.alpn;
                connection.tls = Some(accepted.peer);
                DownstreamIo::Tls(accepted.stream)
            }
            Err(reason) => {
                tracing::debug!(listener = %listener.name, connection = connection.id, "{reason}");
                outcome.downstream_failure = Some(reason);
                return finish(&connection, &outcome, &snapshot);
            }
        },
    };

    // From here on every publication judges the connection; what was published during the handshake is looked at now.
    let connection = Arc::new(connection);
    let _registered = worker::register(connection.clone());
    drop(snapshot);
    let snapshot = worker::snapshot();
    let Some(chain) =
        snapshot.chain(connection.listener, connection.chain).filter(|chain| chain.demands == connection.demands)
    else {
        return finish(&connection, &outcome, &snapshot);
    };
    let chain = chain.clone();
    if let Some(details) = decide(&chain, &connection) {
        tracing::debug!(connection = connection.id, chain = %chain.name, "denied: {details}");
        explain(&chain, &connection, &snapshot);
        outcome.details = Some(details);
        Box::pin(hang_up(io, &connection)).await;
        if let Terminal::Tcp(tcp) = &chain.terminal {
            outcome.write(&tcp.access_log, &connection);
        }
        return finish(&connection, &outcome, &snapshot);
    }
    // A connection may live for days: it must not hold a configuration that long.
    drop(snapshot);

    match &chain.terminal {
        Terminal::Http(_) => Box::pin(http::connection::serve(io, connection.clone(), chain.clone())).await,
        Terminal::Tcp(tcp) => {
            let tcp = tcp.clone();
            drop(chain);
            outcome = tcp::proxy::serve(io, &connection, &tcp).await;
        }
        Terminal::DirectResponse(bytes) => Box::pin(answer(io, bytes.clone(), &connection)).await,
        Terminal::Echo => Box::pin(echo(io, &connection)).await,
        Terminal::Close => drop(io),
    }
    drop(counted);
    finish(&connection, &outcome, &worker::snapshot());
}

/// Inspects what the listener asks for, within its time. `None`: the connection is over, and has been counted.
async fn inspect(socket: &mut Socket, head: &mut BytesMut, listener: &Listener) -> Option<Findings> {
    if !listener.inspect.tls && !listener.inspect.http {
        return Some(Findings::default());
    }
    let _waiting = PreCounted::new(&listener.stats);
    let inspection = inspect::inspect(socket, head, &listener.inspect);
    let result = match listener.inspect_timeout {
        None => Ok(inspection.await),
        Some(limit) => tokio::time::timeout(limit, inspection).await,
    };
    match result {
        Ok(Ok(findings)) => Some(findings),
        Ok(Err(InspectError::Closed)) => {
            listener.stats.downstream_listener_filter_remote_close().inc();
            None
        }
        Ok(Err(InspectError::Io(_))) => {
            listener.stats.downstream_listener_filter_error().inc();
            None
        }
        Err(_) => {
            listener.stats.downstream_pre_cx_timeout().inc();
            listener.continue_on_inspect_timeout.then(Findings::default)
        }
    }
}

/// Ends TLS, within the chain's time. The error is `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
async fn handshake(
    tls: &ServerTls,
    io: Inspected,
    chain: &FilterChain,
    listener: &Listener,
    peer: Option<SocketAddr>,
) -> Result<Accepted, String> {
    let accept = tls::accept::accept(tls, io, peer);
    let result = match chain.handshake_timeout {
        None => Ok(accept.await),
        Some(limit) => tokio::time::timeout(limit, accept).await,
    };
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => {
            listener.stats.downstream_cx_transport_socket_connect_timeout().inc();
            Err("transport socket timeout was reached".into())
        }
    }
}

/// Asks every network RBAC filter, and counts. `Some` is why the connection is denied.
fn decide(chain: &FilterChain, connection: &Connection) -> Option<String> {
    let subject = connection.subject();
    for filter in &chain.filters {
        match filter {
            NetworkFilter::Rbac(rbac) => {
                if let Some(shadow) = &rbac.shadow {
                    if shadow.decide(&subject).allowed {
                        rbac.stats.shadow_allowed().inc()
                    } else {
                        rbac.stats.shadow_denied().inc()
                    }
                }
                let Some(enforced) = &rbac.enforced else { continue };
                let decision = enforced.decide(&subject);
                if !decision.allowed {
                    rbac.stats.denied().inc();
                    return Some(Denial { stats: &rbac.stats, policy: decision.policy }.details());
                }
                rbac.stats.allowed().inc();
                if enforced.action == Action::Log {
                    if decision.policy.is_some() { rbac.stats.logged().inc() } else { rbac.stats.not_logged().inc() }
                }
            }
        }
    }
    None
}

/// Bound on waiting for a peer that is being sent away.
const GOODBYE: Duration = Duration::from_secs(1);

/// Sends a denied peer away: what it says first is read, because a close with unread bytes becomes a reset.
async fn hang_up(mut io: DownstreamIo, connection: &Connection) {
    let mut first = [0; 4096];
    tokio::select! {
        read = tokio::time::timeout(GOODBYE, io.read(&mut first)) => {
            if let Ok(Ok(n)) = read {
                connection.received.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
        () = connection.drain.closing() => {}
    }
    let _ = tokio::time::timeout(GOODBYE, io.shutdown()).await;
}

/// Envoy network filter `direct_response`.
async fn answer(mut io: DownstreamIo, bytes: Bytes, connection: &Connection) {
    let exchange = async {
        io.write_all(&bytes).await?;
        connection.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        io.shutdown().await?;
        let mut rest = [0; 1024];
        while io.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    tokio::select! {
        _ = tokio::time::timeout(GOODBYE, exchange) => {}
        () = connection.drain.closing() => {}
    }
}

/// Envoy network filter `echo`.
async fn echo(mut io: DownstreamIo, connection: &Connection) {
    let exchange = async {
        let mut bytes = vec![0; 4096];
        loop {
            let n = io.read(&mut bytes).await?;
            if n == 0 {
                return io.shutdown().await;
            }
            connection.received.fetch_add(n as u64, Ordering::Relaxed);
            io.write_all(bytes.get(..n).unwrap_or_default()).await?;
            io.flush().await?;
            connection.sent.fetch_add(n as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = exchange => {}
        () = connection.drain.closing() => {}
    }
}

/// Writes the listener's log.
fn finish(connection: &Connection, outcome: &Outcome, snapshot: &Snapshot) {
    if let Some(listener) = snapshot.listener(connection.listener) {
        outcome.write(&listener.access_log, connection);
    }
}

/// Counts a connection of a listener; the end of it is counted by `Drop`.
struct Counted {
    stats: ListenerStats,
    start: Instant,
}

impl Counted {
    fn new(stats: ListenerStats, start: Instant) -> Self {
        stats.downstream_cx_total().inc();
        stats.downstream_cx_active().inc();
        Counted { stats, start }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.downstream_cx_active().dec();
        self.stats.downstream_cx_destroy().inc();
        self.stats
            .downstream_cx_length_ms()
            .record(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}

/// Counts a connection that is being inspected.
struct PreCounted<'a>(&'a ListenerStats);

impl<'a> PreCounted<'a> {
    fn new(stats: &'a ListenerStats) -> Self {
        stats.downstream_pre_cx_active().inc();
        PreCounted(stats)
    }
}

impl Drop for PreCounted<'_> {
    fn drop(&mut self) {
        self.0.downstream_pre_cx_active().dec();
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
