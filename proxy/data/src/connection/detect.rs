//! What a connection speaks: by what its client says, or by its server's speaking first.
//!
//! Envoy holds a connection until its listener filters are done, which a client of MySQL or SMTP, that waits for the server's greeting, never lets them be:
//! it is served after `listener_filters_timeout`, if at all. Here the upstream of the chain that plain TCP would take is connected while the client keeps
//! silent. If the server speaks (or closes) before the client has said a byte, the connection is plain TCP. If the client speaks first, its bytes decide as
//! ever; the connection made meanwhile is used if the same filter serves it, and closed if not.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use super::{Connection, policy, proxied};
use crate::{
    inspect::{self, Findings, InspectError},
    io::Socket,
    model::{
        chain_match::{ConnectionFacts, TransportProtocol},
        listener::{Listener, TcpProxy, Terminal},
    },
    stats::{ListenerStats, TlsInspectorStats},
    tcp::proxy::Early,
};

/// A client that has said nothing for this long may be waiting for the server. Longer than the way of a ClientHello or a request behind the handshake, so
/// that clients that speak first cost no upstream connection; short beside what anyone notices.
const SILENCE: Duration = Duration::from_millis(20);

/// Room for what the client says first; more is made as it is needed.
const FIRST_BYTES: usize = 1024;

/// Finds out what the listener asks for, within its time. `None`: the connection is over, and has been counted.
pub(super) async fn detect(
    socket: &mut Socket,
    head: &mut BytesMut,
    listener: &Listener,
    connection: &mut Connection,
) -> Option<(Findings, Option<Box<Early>>)> {
    let proxy_protocol = listener.inspect.proxy_protocol.as_deref();
    let look = listener.inspect.at(connection.local);
    if !look.tls && !look.http && proxy_protocol.is_none() {
        return Some((Findings::default(), None));
    }
    let _waiting = PreCounted::new(&listener.stats);
    let mut early = None;
    let detection = async {
        if let Some(filter) = proxy_protocol {
            // Boxed: connections that begin with their own bytes do without.
            Box::pin(proxied::read(socket, head, filter, connection)).await?;
        }
        // The header may have said where the connection goes.
        let look = listener.inspect.at(connection.local);
        if !look.tls && !look.http {
            return Ok(Findings::default());
        }
        let connection = &*connection;
        head.reserve(FIRST_BYTES);
        match tokio::time::timeout(SILENCE, said(socket, head)).await {
            Ok(read) => read?,
            Err(_) => {
                if let Some(proxy) = plain_tcp(listener, connection) {
                    let early = early.insert(Box::new(Early::new(proxy)));
                    // Boxed: it holds the state of a connect, which clients with a word to say do without.
                    let server = Box::pin(early.server_speaks(connection));
                    tokio::select! {
                        biased;
                        read = said(socket, head) => read?,
                        () = server => return Ok(Findings::default()),
                    }
                }
            }
        }
        let result = inspect::inspect(socket, head, look).await;
        if let Some(stats) = listener.inspect.tls_stats.as_ref().filter(|_| look.tls) {
            count(stats, &result);
        }
        if let (Some(stats), Ok(findings)) = (&listener.inspect.http_stats, &result)
            && look.http
            && findings.transport != TransportProtocol::Tls
        {
            match findings.application_protocols.first().map(|protocol| &**protocol) {
                Some("http/1.0") => stats.http10_found().inc(),
                Some("http/1.1") => stats.http11_found().inc(),
                Some(_) => stats.http2_found().inc(),
                None => stats.http_not_found().inc(),
            }
        }
        result
    };
    let result = match listener.inspect_timeout {
        None => Ok(detection.await),
        Some(limit) => tokio::time::timeout(limit, detection).await,
    };
    match result {
        Ok(Ok(findings)) => Some((findings, early)),
        Ok(Err(InspectError::Closed)) => {
            listener.stats.downstream_listener_filter_remote_close().inc();
            None
        }
        Ok(Err(InspectError::ProxyProtocol)) => {
            // Envoy has not read what it refuses, and that makes its close a reset.
            socket.reset_on_close();
            None
        }
        Ok(Err(InspectError::Io(_) | InspectError::TooLarge)) => {
            listener.stats.downstream_listener_filter_error().inc();
            None
        }
        Err(_) => {
            listener.stats.downstream_pre_cx_timeout().inc();
            listener.continue_on_inspect_timeout.then(|| (Findings::default(), early))
        }
    }
}

/// Counts what the TLS inspector found.
fn count(stats: &TlsInspectorStats, result: &Result<Findings, InspectError>) {
    let findings = match result {
        Ok(findings) => findings,
        Err(InspectError::TooLarge) => return stats.client_hello_too_large().inc(),
        Err(_) => return,
    };
    if findings.transport != TransportProtocol::Tls {
        return stats.tls_not_found().inc();
    }
    stats.tls_found().inc();
    match findings.server_name.is_empty() {
        true => stats.sni_not_found().inc(),
        false => stats.sni_found().inc(),
    }
    match findings.application_protocols.is_empty() {
        true => stats.alpn_not_found().inc(),
        false => stats.alpn_found().inc(),
    }
}

/// Waits for a word of the client, unless it has said one.
async fn said(socket: &mut Socket, head: &mut BytesMut) -> std::io::Result<()> {
    if head.is_empty() {
        socket.read_buf(head).await?;
    }
    Ok(())
}

/// The TCP proxy that serves the connection if it turns out to be plain text in no known protocol, and that the connection's policies allow.
fn plain_tcp(listener: &Listener, connection: &Connection) -> Option<Arc<TcpProxy>> {
    let plain = Findings::default();
    let chain = listener.chains.find(&ConnectionFacts {
        destination: connection.local,
        source: connection.remote,
        direct_source: connection.direct_remote,
        server_name: &plain.server_name,
        transport: plain.transport,
        application_protocols: &plain.application_protocols,
    })?;
    match &chain.terminal {
        Terminal::Tcp(proxy) if chain.tls.is_none() && policy::denial(chain, connection).is_none() => {
            Some(proxy.clone())
        }
        Terminal::Tcp(_) | Terminal::Http(_) | Terminal::DirectResponse(_) | Terminal::Echo | Terminal::Close => None,
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
