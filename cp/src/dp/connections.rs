//! Connections of a server that speaks HTTP/1.1 and HTTP/2 on one port, with TLS or without.

use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
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

/// Serves every connection, with the router that is made for its peer, until `shutdown` completes; then tells `stopping` so, and
/// waits a little for what is in progress.
pub(crate) async fn serve_connections(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    router: impl Fn(SocketAddr) -> axum::Router,
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
                    connections.spawn(connection(socket, acceptor.clone(), router(peer), stopping.subscribe()));
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

async fn connection(
    socket: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: axum::Router,
    stopping: watch::Receiver<bool>,
) {
    // Small frames of a request-response protocol: waiting for more of them only delays.
    let _ = socket.set_nodelay(true);
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
