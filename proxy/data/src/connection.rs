//! The life of a downstream connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use ::http::HeaderValue;
use bytes::BytesMut;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::task::JoinHandle;

mod detect;
mod ends;
mod filter_state;
mod policy;
mod proxied;

pub use filter_state::FilterState;
pub(crate) use policy::{Verdict, explain, judge};
pub use proxied::Proxied;

use crate::{
    drain::Watch,
    error::ResponseFlag,
    http, inspect,
    io::{DownstreamIo, Inspected, Socket},
    listen::PanicCount,
    model::{
        ChainId, ListenerId,
        chain_match::{ConnectionFacts, TransportProtocol},
        http::ForwardClientCert,
        listener::{FilterChain, Listener, Terminal, TrafficDirection},
        rbac::{PeerNames, Subject},
        tls::ServerTls,
    },
    notice::{self, Notice},
    orig_dst::{self, Owner},
    outcome::Outcome,
    snapshot::Snapshot,
    stats::ListenerStats,
    tcp,
    tls::{
        self,
        accept::{AcceptError, Accepted},
    },
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
    /// Its filter chain; [`ChainId::NONE`] until one is chosen.
    pub chain: ChainId,
    /// [`crate::model::listener::FilterChain::demands`] at the time of the handshake.
    pub demands: u64,
    /// Of the listener, for drains.
    pub direction: TrafficDirection,
    /// Destination: what the PROXY protocol says, else the restored original one, else the socket's. `None` for Unix sockets.
    pub local: Option<SocketAddr>,
    /// `local` differs from the socket's own address because the kernel had redirected the connection, or another proxy passed it on.
    pub restored: bool,
    /// Our end of the socket.
    pub direct_local: Option<SocketAddr>,
    /// The peer: what the PROXY protocol says, else the socket's.
    pub remote: Option<SocketAddr>,
    /// The peer of the socket.
    pub direct_remote: Option<SocketAddr>,
    /// Requested server name in lower case, from the inspector or, where there is none, from the handshake; empty without one. A peer may say anything here.
    pub sni: Box<str>,
    /// What ALPN settled on; `None` without TLS or without agreement.
    pub alpn: Option<Box<[u8]>>,
    /// Application protocol that the HTTP inspector or the ClientHello announced, for the codec's choice.
    pub detected: Option<Box<str>>,
    /// `None` for plain text.
    pub tls: Option<Box<PeerTls>>,
    /// What filters keep of it.
    pub filter_state: FilterState,
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
    /// `x-forwarded-client-cert` as it was first made, and for which settings: it says the same of each request.
    pub told: OnceLock<Box<(ForwardClientCert, HeaderValue)>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A connection id, unique in the process.
pub fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

impl Connection {
    /// A connection that has just come in for `listener`; `original` is where it wanted to go before the kernel redirected it.
    pub(crate) fn arrived(
        listener: &Listener,
        socket: &Socket,
        peer: Option<SocketAddr>,
        original: Option<SocketAddr>,
    ) -> Self {
        let direct_local = socket.local_address();
        Connection {
            id: next_id(),
            listener: listener.id,
            chain: ChainId::NONE,
            demands: 0,
            direction: listener.direction,
            local: original.or(direct_local),
            restored: original.is_some(),
            direct_local,
            remote: peer,
            direct_remote: peer,
            sni: "".into(),
            alpn: None,
            detected: None,
            tls: None,
            filter_state: FilterState::default(),
            start: Instant::now(),
            start_time: SystemTime::now(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            drain: Watch::new(worker::random() as u16),
            upgrade: Mutex::default(),
            gone: AtomicBool::new(false),
        }
    }

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

/// A place for one more connection of a listener; without one it is closed at once, and counted.
fn place(listener: &Listener) -> Option<worker::Place> {
    let stats = &listener.stats;
    if let Some(limit) = listener.connection_limit.limit()
        && stats.downstream_cx_active().value() + stats.downstream_pre_cx_active().value() >= limit
    {
        stats.downstream_cx_overflow().inc();
        return None;
    }
    if listener.ignores_global_limit {
        return Some(worker::Place::default());
    }
    let place = worker::place();
    if place.is_none() {
        stats.downstream_global_cx_overflow().inc();
    }
    place
}

/// LIFE OF A CONNECTION, from accept to end: destination, listener, first bytes, filter chain, TLS and network filters in [`arrive`], then its terminal
/// filter.
pub(crate) fn serve(
    socket: Socket,
    peer: Option<SocketAddr>,
    accepted_by: ListenerId,
    panics: PanicCount,
) -> impl Future<Output = ()> {
    // Boxed, and gone when it is done: a connection may live for days, and to be let in takes several times the memory of being served.
    let arriving = Box::pin(arrive(socket, peer, accepted_by));
    async move {
        let _panics = panics;
        let Some(Arrived { io, connection, chain, early, counted, place: _place, registered: _registered }) =
            arriving.await
        else {
            return;
        };
        let outcome = match &chain.terminal {
            Terminal::Http(_) => {
                Box::pin(http::connection::serve(io, connection.clone(), chain.clone())).await;
                None
            }
            Terminal::Tcp(tcp) => {
                let tcp = tcp.clone();
                drop(chain);
                // Boxed like the others: what one kind of connection needs, the other kinds do not carry.
                Some(Box::pin(tcp::proxy::serve(io, &connection, &tcp, early)).await)
            }
            Terminal::DirectResponse(bytes) => {
                Box::pin(ends::answer(io, bytes.clone(), &connection)).await;
                None
            }
            Terminal::Echo => {
                Box::pin(ends::echo(io, &connection)).await;
                None
            }
            Terminal::Close => {
                drop(io);
                None
            }
        };
        drop(counted);
        finish(&connection, &outcome.unwrap_or_default(), &worker::snapshot());
    }
}

/// A connection that was let in.
struct Arrived {
    io: DownstreamIo,
    connection: Arc<Connection>,
    chain: Arc<FilterChain>,
    early: Option<Box<tcp::proxy::Early>>,
    place: worker::Place,
    counted: Counted,
    registered: worker::Registered,
}

/// Up to where its terminal filter takes over; `None`: it was turned away, and has been counted and logged.
async fn arrive(mut socket: Socket, peer: Option<SocketAddr>, accepted_by: ListenerId) -> Option<Arrived> {
    let snapshot = worker::snapshot();

    // Where it wanted to go, and whose connection it is therefore.
    let accepting = snapshot.listener(accepted_by)?;
    let restores = accepting.use_original_dst || accepting.inspect.original_dst;
    let original = if restores { orig_dst::original_destination(&socket) } else { None };
    let listener = match orig_dst::owner(&snapshot, accepting, original, &socket, peer) {
        Owner::Listener(listener) => listener,
        Owner::Loop(why) => {
            accepting.stats.downstream_cx_redirect_loop().inc();
            if let Some(more) = notice::due(accepting.id, Notice::RedirectLoop) {
                tracing::warn!(listener = %accepting.name, destination = ?original, ?peer, more, "closed: {why}");
            }
            return None;
        }
    };
    let place = place(listener)?;
    let mut connection = Connection::arrived(listener, &socket, peer, original);

    // What it speaks: by the client's first bytes, or by the server's speaking first.
    let mut head = BytesMut::new();
    let (findings, early) = detect::detect(&mut socket, &mut head, listener, &mut connection).await?;
    let io = inspect::replay(head, socket);

    // Which chain takes it.
    let facts = ConnectionFacts {
        destination: connection.local,
        source: connection.remote,
        direct_source: connection.direct_remote,
        server_name: &findings.server_name,
        transport: findings.transport,
        application_protocols: &findings.application_protocols,
    };
    let Some(chain) = listener.chains.find(&facts) else {
        listener.stats.no_filter_chain_match().inc();
        if let Some(more) = notice::due(listener.id, Notice::NoChain) {
            tracing::warn!(listener = %listener.name, ?facts, more, "closed: no filter chain matches the connection");
        }
        return None;
    };
    let counted = Counted::new(listener.stats.clone(), connection.start);
    (connection.chain, connection.demands) = (chain.id, chain.demands);
    let speaks_tls = findings.transport == TransportProtocol::Tls;
    connection.sni = findings.server_name;
    connection.detected = findings.application_protocols.into_iter().next();

    // Envoy's filters hear of a new connection before its TLS handshake.
    let mut outcome = Outcome::default();
    if let Some(details) = policy::admit(chain, &mut connection) {
        tracing::debug!(connection = connection.id, chain = %chain.name, "closed: {details}");
        outcome.details = Some(details.into());
        outcome.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
        Box::pin(ends::turn_away(DownstreamIo::Plain(io))).await;
        if let Terminal::Tcp(tcp) = &chain.terminal {
            outcome.write(&tcp.access_log, &connection);
        }
        finish(&connection, &outcome, &snapshot);
        return None;
    }

    // TLS. Boxed: a handshake's state is large and short-lived.
    let io = match &chain.tls {
        None => DownstreamIo::Plain(io),
        Some(tls) => match Box::pin(handshake(tls, io, chain, listener, connection.direct_remote)).await {
            // Chain and policies go by what the inspector read, so the handshake must not have been for another server.
            Ok(accepted) if speaks_tls && accepted.sni != connection.sni => {
                outcome.downstream_failure = Some("TLS_error: the server name changed after it was inspected".into());
                finish(&connection, &outcome, &snapshot);
                return None;
            }
            Ok(accepted) => {
                if !listener.inspect.at(connection.local).tls {
                    connection.sni = accepted.sni;
                }
                connection.alpn = accepted.alpn;
                connection.tls = Some(Box::new(accepted.peer));
                policy::keep(chain, &mut connection);
                DownstreamIo::Tls(accepted.stream)
            }
            Err(reason) => {
                tracing::debug!(listener = %listener.name, connection = connection.id, "{reason}");
                outcome.downstream_failure = Some(reason);
                finish(&connection, &outcome, &snapshot);
                return None;
            }
        },
    };

    // From here on every publication judges the connection; what was published during the handshake is looked at now.
    let connection = Arc::new(connection);
    let registered = worker::register(connection.clone());
    drop(snapshot);
    let snapshot = worker::snapshot();
    let Some(chain) =
        snapshot.chain(connection.listener, connection.chain).filter(|chain| chain.demands == connection.demands)
    else {
        finish(&connection, &outcome, &snapshot);
        return None;
    };
    let chain = chain.clone();
    if let Some(details) = policy::decide(&chain, &connection) {
        tracing::debug!(connection = connection.id, chain = %chain.name, "denied: {details}");
        explain(&chain, &connection, &snapshot);
        outcome.details = Some(details);
        Box::pin(ends::hang_up(io, &connection)).await;
        if let Terminal::Tcp(tcp) = &chain.terminal {
            outcome.write(&tcp.access_log, &connection);
        }
        finish(&connection, &outcome, &snapshot);
        return None;
    }
    // The configuration ends here: a connection must not hold one for as long as it may live.
    Some(Arrived { io, connection, chain, early, counted, place, registered })
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
        Ok(result) => result.map_err(|error| {
            if matches!(error, AcceptError::Refused(_))
                && let Some(more) = notice::due(listener.id, Notice::Certificate)
            {
                tracing::warn!(listener = %listener.name, chain = %chain.name, more, "closed: {error}");
            }
            error.to_string()
        }),
        Err(_) => {
            listener.stats.downstream_cx_transport_socket_connect_timeout().inc();
            Err("transport socket timeout was reached".into())
        }
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

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
