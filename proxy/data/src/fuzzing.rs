//! The way in for fuzz targets: connections in memory instead of sockets, and what is private elsewhere. Built with the feature `fuzzing` alone.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use tokio::io::DuplexStream;

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

/// Gives the stream to an upstream on a Unix socket; `None` refuses the connection.
type Upstreams = Box<dyn FnMut(&Path) -> Option<DuplexStream>>;

thread_local! {
    static UPSTREAMS: RefCell<Option<Upstreams>> = const { RefCell::new(None) };
}

/// Makes this thread a worker with this configuration that remembers nothing of the runs before. Clusters whose endpoints are Unix sockets are connected
/// by `upstreams`.
pub fn enter(snapshot: &Arc<Snapshot>, upstreams: impl FnMut(&Path) -> Option<DuplexStream> + 'static) {
    worker::forget();
    worker::enter_for_test(snapshot.clone());
    UPSTREAMS.with(|slot| *slot.borrow_mut() = Some(Box::new(upstreams)));
}

pub(crate) fn connect(path: &Path) -> Option<DuplexStream> {
    UPSTREAMS.with(|slot| slot.borrow_mut().as_mut().and_then(|upstreams| upstreams(path)))
}

/// Serves one downstream connection to its end.
pub async fn serve(stream: DuplexStream, listener: ListenerId, server: ServerStats) {
    connection::serve(Socket::Memory(stream), listener, PanicCount(server)).await;
}

/// What the inspectors find in the bytes of a connection.
pub async fn inspect(stream: DuplexStream, tls: bool, http: bool) -> Result<Findings, InspectError> {
    let wanted = Look { tls, http };
    inspect::inspect(&mut Socket::Memory(stream), &mut BytesMut::new(), wanted).await
}

/// The server name that the handshake reads out of a ClientHello, in lower case; `None` if there is none that can be read.
pub async fn server_name(stream: DuplexStream) -> std::io::Result<Option<String>> {
    tls::server_name(&mut Inspected { head: Bytes::new(), socket: Socket::Memory(stream) }).await
}
