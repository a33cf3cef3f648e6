//! A client's connection: plain or TLS, from one of several source addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, HandshakeKind};

use super::Failure;

/// Source addresses that connections to loopback are spread over, `127.0.1.1` and up: one alone has 28,232 ports, and a port is taken
/// for as long as its last connection is in `TIME_WAIT`.
const SOURCES: u32 = 200;

/// Sessions that a lane keeps.
const SESSIONS: usize = 8;

/// TLS as the load speaks it.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificates and roots; no sessions.
    pub config: Arc<ClientConfig>,
    /// Whether each lane keeps the sessions that it is given and resumes them.
    pub resume: bool,
    /// Name sent and verified.
    pub name: ServerName<'static>,
    /// What the handshakes were.
    pub handshakes: Arc<Handshakes>,
}

/// Handshakes so far.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// With certificates.
    pub full: AtomicU64,
    /// Of a resumed session.
    pub resumed: AtomicU64,
}

/// Whom to connect to, and how.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// TLS to it; none is plain.
    pub tls: Option<Tls>,
    /// Whether connections to loopback come from many addresses of it.
    pub spread: bool,
}

impl Peer {
    /// Plain TCP from the address that the kernel chooses.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None, spread: false }
    }

    /// For one lane: with sessions of its own, because a store shared by many runs out of tickets while they connect at once.
    pub fn for_lane(&self) -> Self {
        let mut peer = self.clone();
        if let Some(tls) = peer.tls.as_mut().filter(|tls| tls.resume) {
            let mut config = ClientConfig::clone(&tls.config);
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            tls.config = Arc::new(config);
        }
        peer
    }
}

/// An open connection.
pub enum Stream {
    /// TCP as it is.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Connects without Nagle's delay, and shakes hands where TLS is spoken.
    ///
    /// # Errors
    /// [`Failure::Connect`].
    pub async fn open(peer: &Peer) -> Result<Self, Failure> {
        let stream = connect(peer).await.map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        let Some(tls) = &peer.tls else { return Ok(Self::Plain(stream)) };
        let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
        let stream = connector.connect(tls.name.clone(), stream).await.map_err(Failure::Connect)?;
        let counter = match stream.get_ref().1.handshake_kind() {
            Some(HandshakeKind::Resumed) => &tls.handshakes.resumed,
            _ => &tls.handshakes.full,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Self::Tls(Box::new(stream)))
    }
}

async fn connect(peer: &Peer) -> std::io::Result<TcpStream> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !peer.spread || !peer.address.ip().is_loopback() || !peer.address.is_ipv4() {
        return TcpStream::connect(peer.address).await;
    }
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    let turn = NEXT.fetch_add(1, Ordering::Relaxed) % SOURCES;
    let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + turn);
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    socket.connect(peer.address).await
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
