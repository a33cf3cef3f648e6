//! The way in for fuzz targets: connections in memory instead of sockets, and what is private elsewhere. Built with the feature `fuzzing` alone.

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::watch,
};

pub use crate::inspect::{Findings, InspectError};
use crate::{
    connection, inspect,
    io::{Inspected, Socket},
    listen::PanicCount,
    model::{ListenerId, listener::Look},
    snapshot::Snapshot,
    stats::ServerStats,
    tls, worker,
};

/// Our end of every connection in memory.
pub(crate) const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 80);
/// The peer's end.
pub(crate) const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 50_000);

/// One end of a connection in memory.
#[derive(Debug)]
pub struct Memory {
    pipe: DuplexStream,
    /// Gone once this end has said all it has to say.
    talking: Option<watch::Sender<()>>,
    peer: watch::Receiver<()>,
}

/// Both ends of a connection that holds so many bytes in each direction.
pub fn pair(size: usize) -> (Memory, Memory) {
    let (near, far) = tokio::io::duplex(size);
    let ((near_talks, near_heard), (far_talks, far_heard)) = (watch::channel(()), watch::channel(()));
    (
        Memory { pipe: near, talking: Some(near_talks), peer: far_heard },
        Memory { pipe: far, talking: Some(far_talks), peer: near_heard },
    )
}

impl Memory {
    /// Resolves once the peer has shut its side down, whether or not what it wrote is read.
    pub(crate) fn peer_is_gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut peer = self.peer.clone();
        async move { while peer.changed().await.is_ok() {} }
    }
}

impl AsyncRead for Memory {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for Memory {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.talking = None;
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// Gives the stream to an upstream on a Unix socket; `None` refuses the connection.
type Upstreams = Box<dyn FnMut(&Path) -> Option<Memory>>;

thread_local! {
    static UPSTREAMS: RefCell<Option<Upstreams>> = const { RefCell::new(None) };
}

/// Makes this thread a worker with this configuration that remembers nothing of the runs before. Clusters whose endpoints are Unix sockets are connected
/// by `upstreams`.
pub fn enter(snapshot: &Arc<Snapshot>, upstreams: impl FnMut(&Path) -> Option<Memory> + 'static) {
    worker::forget();
    worker::enter_for_test(snapshot.clone());
    UPSTREAMS.with(|slot| *slot.borrow_mut() = Some(Box::new(upstreams)));
}

pub(crate) fn connect(path: &Path) -> Option<Memory> {
    UPSTREAMS.with(|slot| slot.borrow_mut().as_mut().and_then(|upstreams| upstreams(path)))
}

/// Serves one downstream connection to its end.
pub async fn serve(stream: Memory, listener: ListenerId, server: ServerStats) {
    connection::serve(Socket::Memory(stream), Some(REMOTE), listener, PanicCount(server)).await;
}

/// What the inspectors find in the bytes of a connection.
pub async fn inspect(stream: Memory, tls: bool, http: bool) -> Result<Findings, InspectError> {
    let wanted = Look { tls, http };
    inspect::inspect(&mut Socket::Memory(stream), &mut BytesMut::new(), wanted).await
}

/// The server name that the handshake reads out of a ClientHello, in lower case; `None` if there is none that can be read.
pub async fn server_name(stream: Memory) -> std::io::Result<Option<String>> {
    tls::server_name(&mut Inspected { head: Bytes::new(), socket: Socket::Memory(stream) }).await
}
