//! Connections and streams that leave HTTP: WebSocket and other upgrades become a copy of bytes both ways.
//!
//! Over HTTP/1 an upgrade is asked for by `connection` and `upgrade` and granted with 101, over HTTP/2 by an extended CONNECT (RFC 8441) and with 200.
//! As in Envoy (`Http::Utility::transformUpgrade*`), whatever comes and goes is the former to all of the proxy but the two ends: a request that arrives as
//! an extended CONNECT is a GET with something to switch to, and a 200 that grants one is a 101.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, response};
use http_body::Body;
use hyper::{
    body::Incoming,
    ext,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    body::{RequestBody, ResponseBody},
    exchange::Exchange,
    head::Head,
    life::{Active, Life},
    limits::Limits,
    local_reply::Refusal,
};
use crate::{
    error::ResponseFlag,
    tcp::{
        copy::{self, End, both_ways},
        splice::MaybeTcp,
    },
    upstream::pool::{Lease, Protocol},
};

/// How long a client may take to notice that its tunnel has ended. Source: Envoy `delayed_close_timeout`, default 1 s.
const LINGER: Duration = Duration::from_secs(1);

/// Whether an upgrade may happen: the route's word counts, then the connection manager's; without one it may not.
pub fn allowed(kind: &str, manager: &[(Box<str>, bool)], route: &[(Box<str>, bool)]) -> bool {
    let said = |upgrades: &[(Box<str>, bool)]| {
        upgrades.iter().find(|(name, _)| name.eq_ignore_ascii_case(kind)).map(|(_, on)| *on)
    };
    said(route).or_else(|| said(manager)).unwrap_or(false)
}

/// What a request wants to switch to. Rides in its extensions up to the connection that carries it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// As in `upgrade`.
    kind: HeaderValue,
    /// As in `connection`, which Envoy writes in its own way where the client did not write it.
    connection: HeaderValue,
    /// The request's own, for HTTP/1.
    method: Method,
}

impl Asked {
    /// `None` if `kind` is no value of a header.
    pub fn new(kind: &str, head: &Head) -> Option<Self> {
        let connection = HeaderValue::from_static(if head.version == Version::HTTP_2 { "upgrade" } else { "Upgrade" });
        Some(Asked { kind: HeaderValue::from_str(kind).ok()?, connection, method: head.method.clone() })
    }

    /// Asks in the words of the connection's protocol. `None` if it has none for this: an extended CONNECT has no body before it is answered.
    pub fn ask(self, request: &mut Request<RequestBody>, protocol: Protocol) -> Option<()> {
        let headers = request.headers_mut();
        match protocol {
            Protocol::Http1 => {
                headers.insert(header::CONNECTION, self.connection);
                headers.insert(header::UPGRADE, self.kind);
                *request.method_mut() = self.method;
            }
            Protocol::Http2 => {
                for name in [header::CONNECTION, header::UPGRADE, header::CONTENT_LENGTH] {
                    headers.remove(name);
                }
                if !request.body().is_end_stream() {
                    return None;
                }
                let kind = ext::Protocol::from(self.kind.to_str().ok()?);
                request.extensions_mut().insert(kind);
                *request.method_mut() = Method::CONNECT;
            }
        }
        Some(())
    }
}

/// An upgrade that succeeded without being one: an upstream over HTTP/1 that does not switch may answer with 200, which to a client over HTTP/2 would say
/// that it did.
pub(super) fn misunderstood(client: Version, response: &Response<Incoming>) -> Option<Refusal> {
    let granted = response.extensions().get::<OnUpgrade>().is_some();
    (client == Version::HTTP_2 && response.status().is_success() && !granted).then(|| {
        Refusal::new(StatusCode::BAD_GATEWAY, "the upstream did not switch protocols", "upgrade_failed")
            .flag(ResponseFlag::UpstreamProtocolError)
    })
}

/// The downstream's side of an upgrade.
#[derive(Debug)]
pub(super) struct Client {
    upgrade: OnUpgrade,
    /// What it wants to switch to.
    kind: HeaderValue,
    /// Of a connection that carries other requests as well (HTTP/2).
    life: Option<Arc<Life>>,
}

impl Client {
    /// Takes it from the request's extensions. On the heap: it is seldom, and every request's future would have room for it.
    pub fn new(kind: &str, extensions: &mut http::Extensions) -> Option<Box<Self>> {
        let upgrade = extensions.remove()?;
        Some(Box::new(Client { upgrade, kind: HeaderValue::from_str(kind).ok()?, life: extensions.remove() }))
    }
}

/// The answer that tells the client that it has switched, and the tunnel behind it. `named` is what the upstream says that it switched to.
pub(super) fn granted(
    mut parts: response::Parts,
    named: Option<HeaderValue>,
    client: Option<Box<Client>>,
    server: Option<OnUpgrade>,
    mut exchange: Box<Exchange>,
    lease: Lease,
    limits: &Limits,
) -> Response<ResponseBody> {
    parts.extensions = http::Extensions::new();
    if exchange.version == Version::HTTP_2 {
        parts.status = StatusCode::OK;
        parts.headers.remove(header::CONTENT_LENGTH);
    } else {
        // Envoy writes it in its own way where the upstream did not write it.
        let connection = if lease.protocol() == Protocol::Http2 { "upgrade" } else { "Upgrade" };
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
        if let Some(kind) = named.or_else(|| client.as_ref().map(|client| client.kind.clone())) {
            parts.headers.insert(header::UPGRADE, kind);
        }
    }
    match (client, server) {
        (Some(client), Some(server)) => splice(*client, server, exchange, lease, limits),
        _ => exchange.complete(),
    }
    Response::from_parts(parts, ResponseBody::EMPTY)
}

/// Copies bytes between the two sides once both have left HTTP. As in Envoy, the upstream's end is the tunnel's, and so is that of a client over HTTP/1:
/// whatever it has said before still goes through. The exchange and the lease live as long as the copy. A downstream connection over HTTP/1 waits for it,
/// one over HTTP/2 counts it as a request under way.
fn splice(client: Client, server: OnUpgrade, mut exchange: Box<Exchange>, lease: Lease, limits: &Limits) {
    exchange.manager.stats.downstream_cx_upgrades_active().inc();
    let Client { upgrade: client, life, .. } = client;
    let connection = exchange.connection.clone();
    let whole = life.is_none();
    let active = life.map(Active::tunnel);
    let (until, idle) = (limits.tunnel_end(), limits.idle);
    let versions = (exchange.version, lease.protocol());
    let task = tokio::spawn(async move {
        let mut left = false;
        if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
            let mut client = Side::new(client, versions.0 == Version::HTTP_2);
            let mut server = Side::new(server, versions.1 == Protocol::Http2);
            let limits = copy::Limits {
                idle,
                until: until.map(|(at, _)| at.into()),
                upstream_ends: true,
                downstream_ends: whole,
            };
            let (copied, end) = both_ways(&mut client, &mut server, limits, &exchange.connection.drain).await;
            (exchange.bytes_sent, exchange.bytes_received) = (copied.to_downstream, copied.to_upstream);
            left =
                whole && matches!(end, End::Finished(copy::Side::Downstream) | End::Failed(copy::Side::Downstream, _));
            drop(server);
            if whole && matches!(end, End::Finished(_)) {
                // A connection that is closed with something unread is reset, and what was sent over it may be lost.
                let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut client, &mut tokio::io::sink())).await;
            }
            match (end, until) {
                (End::Idle, _) => exchange.abort(ResponseFlag::StreamIdleTimeout),
                (End::MaxDuration, Some((_, flag))) => exchange.abort(flag),
                (End::MaxDuration | End::Finished(_) | End::Failed(..) | End::Closing, _) => {}
            }
        }
        exchange.manager.stats.downstream_cx_upgrades_active().dec();
        // Dropping the exchange records that the client left.
        if !left {
            exchange.complete();
        }
        drop((exchange, lease, active));
    });
    if whole {
        *connection.upgrade.lock() = Some(task);
    }
}

/// One side of a tunnel.
struct Side {
    io: TokioIo<Upgraded>,
    /// It is a stream of an HTTP/2 connection. hyper reads the reset of one as its end.
    stream: bool,
    /// The end was read, which may have been a reset.
    ended: bool,
}

impl Side {
    fn new(io: Upgraded, stream: bool) -> Self {
        Side { io: TokioIo::new(io), stream, ended: false }
    }
}

impl MaybeTcp for Side {
    fn source(&self) -> Option<&TcpStream> {
        None
    }

    fn sink(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Side {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended {
            // Whatever sends on the stream has had its turn since: if that has ended by itself, the other end has reset the stream.
            return match Pin::new(&mut this.io).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error))),
                _ => Poll::Ready(Ok(())),
            };
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if this.stream && buf.filled().len() == before {
            this.ended = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Side {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent for an upgrade: method, `connection`, `upgrade`, `:protocol`.
    fn sent(head: &Head, protocol: Protocol) -> (String, [Option<String>; 3]) {
        let kind = head.upgrade.as_deref().unwrap_or_default();
        let mut request = Request::new(RequestBody::Empty);
        // From a try over the other protocol.
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        let asked = Asked::new(kind, head).and_then(|asked| asked.ask(&mut request, protocol));
        assert!(asked.is_some());
        let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let named = request.extensions().get::<ext::Protocol>().map(|kind| kind.as_str().to_owned());
        (request.method().to_string(), [text(header::CONNECTION), text(header::UPGRADE), named])
    }

    fn texts(values: [Option<&str>; 3]) -> [Option<String>; 3] {
        values.map(|value| value.map(str::to_owned))
    }

    #[test]
    fn an_extended_connect_is_an_upgrade_to_all_but_its_ends() {
        let mut request =
            Request::connect("http://a.example/chat").version(Version::HTTP_2).body(()).unwrap_or_default();
        request.extensions_mut().insert(ext::Protocol::from_static("WebSocket"));
        let head = Head::new(request).0;
        assert_eq!(
            (head.method.as_str(), head.path.as_str(), head.upgrade.as_deref()),
            ("GET", "/chat", Some("websocket"))
        );
        for (protocol, method, values) in [
            (Protocol::Http1, "GET", [Some("upgrade"), Some("websocket"), None]),
            (Protocol::Http2, "CONNECT", [None, None, Some("websocket")]),
        ] {
            assert_eq!(sent(&head, protocol), (method.to_owned(), texts(values)));
        }
    }

    #[test]
    fn an_upgrade_keeps_its_method_over_http1() {
        let mut head = Head::new(Request::post("/chat").body(()).unwrap_or_default()).0;
        head.upgrade = Some("other".into());
        for (protocol, method, values) in [
            (Protocol::Http1, "POST", [Some("Upgrade"), Some("other"), None]),
            (Protocol::Http2, "CONNECT", [None, None, Some("other")]),
        ] {
            assert_eq!(sent(&head, protocol), (method.to_owned(), texts(values)));
        }
    }

    #[test]
    fn a_route_overrides_the_connection_manager() {
        let on: [(Box<str>, bool); 1] = [("websocket".into(), true)];
        let off: [(Box<str>, bool); 1] = [("WebSocket".into(), false)];
        assert!(!allowed("websocket", &[], &[]));
        assert!(allowed("websocket", &on, &[]));
        assert!(!allowed("websocket", &on, &off));
        assert!(allowed("websocket", &off, &on));
        assert!(!allowed("other", &on, &on));
    }
}
