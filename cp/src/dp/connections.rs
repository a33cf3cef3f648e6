//! Connections of a server that speaks HTTP/1.1 and HTTP/2 on one port, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::stopped;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often an idle HTTP/2 connection is asked whether it still lives, and how long it may take to answer. When the network of this host fails all
/// connections are lost within one interval, which is less than the deregistration delay: the first is not given up before the last is
/// known to be lost.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(20));
/// How long streams may take to say goodbye when the server stops.
const GOODBYE: Duration = Duration::from_secs(5);

/// A connection, as the streams on it see it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The other end.
    pub(crate) peer: SocketAddr,
    opened: Instant,
    /// When something last came in, in milliseconds after `opened`.
    heard: Arc<AtomicU64>,
}

impl Connection {
    fn new(peer: SocketAddr) -> Connection {
        Connection { peer, opened: Instant::now(), heard: Arc::default() }
    }

    fn note(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(millis, Ordering::Relaxed);
    }

    /// Whether nothing came in for so long that the other end, if it could be reached, would have answered a question for its life.
    pub(crate) fn is_silent(&self) -> bool {
        let heard = self.opened + Duration::from_millis(self.heard.load(Ordering::Relaxed));
        heard.elapsed() >= KEEPALIVE.0 * 2
    }
}

/// A socket that notes when something comes in.
struct Noting {
    socket: TcpStream,
    connection: Connection,
}

impl AsyncRead for Noting {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            this.connection.note();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Noting {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// Serves every connection, with the router that is made for it, until `shutdown` completes; then tells `stopping` so, and
/// waits a little for what is in progress.
pub(crate) async fn serve_connections(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    router: impl Fn(Connection) -> axum::Router,
    stopping: &watch::Sender<bool>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut connections = tokio::task::JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let connection = Connection::new(peer);
                    let router = router(connection.clone());
                    // Small frames of a request-response protocol: waiting for more of them only delays.
                    let _ = socket.set_nodelay(true);
                    let socket = Noting { socket, connection };
                    connections.spawn(serve(socket, acceptor.clone(), router, stopping.subscribe()));
                }
                // Out of file descriptors, or a connection that was gone at once: neither ends the server.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let goodbye = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
        connections.abort_all();
    }
}

async fn serve(socket: Noting, acceptor: Option<TlsAcceptor>, router: axum::Router, stopping: watch::Receiver<bool>) {
    let Some(acceptor) = acceptor else { return http(socket, router, stopping).await };
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => http(stream, router, stopping).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => {}
    }
}

/// Serves one connection until it ends, or until the server stops and the requests on it are answered.
async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: axum::Router,
    mut stopping: watch::Receiver<bool>,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE.0).keep_alive_timeout(KEEPALIVE.1);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}
