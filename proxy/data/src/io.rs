//! Byte streams of connections, as closed enums.

mod ahead;
pub(crate) mod outbox;
mod tcp;

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{client, server};

pub use ahead::Ahead;
pub use tcp::Tcp;

use crate::tls::outgoing::Outgoing;

/// A stream socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(Tcp),
    /// Unix stream socket.
    Unix(UnixStream),
    /// Memory, for [`crate::fuzzing`].
    #[cfg(feature = "fuzzing")]
    Memory(crate::fuzzing::Memory),
}

impl Socket {
    /// Our end; `None` for Unix sockets. An IPv4 connection on a dual-stack socket has IPv4 addresses here, as in Envoy.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok().map(canonical),
            Self::Unix(_) => None,
            #[cfg(feature = "fuzzing")]
            Self::Memory(_) => Some(crate::fuzzing::LOCAL),
        }
    }

    /// The peer's end; `None` for Unix sockets, and once the peer has reset the connection.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok().map(canonical),
            Self::Unix(_) => None,
            #[cfg(feature = "fuzzing")]
            Self::Memory(_) => Some(crate::fuzzing::REMOTE),
        }
    }

    /// Ready when the socket may be dropped without losing what was written; its end follows that.
    pub(crate) fn poll_parting(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_parting(cx),
            Self::Unix(_) => Poll::Ready(Ok(())),
            #[cfg(feature = "fuzzing")]
            Self::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    /// Makes the close that follows send RST instead of FIN, as Envoy does when a connection is refused before it was served. Best effort.
    pub fn reset_on_close(&self) {
        if let Self::Tcp(tcp) = self {
            tcp.reset_on_close();
        }
    }
}

/// That a peer has closed its side of a connection or reset it, known although what it sent before is not read yet: a reader learns of it behind the last
/// byte alone. What a client has sent is not read while it cannot be served, and its request would outlive it.
///
/// Costs a descriptor and two system calls, so it is for connections that are not read for a while.
pub struct Departure(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Departure {
    /// Watches this socket from now on, also past its life: drop both together. The error is that there are no descriptors left.
    pub fn new(socket: &Socket) -> io::Result<Self> {
        // The socket is lent to its reader, which waits for another thing, so this is a second descriptor of it. `PRIORITY` stands for urgent data and for
        // the end of what the peer sends; as tokio's registration does not ask for urgent data, it stands for the end alone.
        Ok(Departure(Some(match socket {
            Socket::Tcp(tcp) => {
                let again = TcpStream::from_std(tcp.as_fd().try_clone_to_owned()?.into())?;
                Box::pin(async move { drop(again.ready(Interest::PRIORITY).await) })
            }
            Socket::Unix(unix) => {
                let again = UnixStream::from_std(unix.as_fd().try_clone_to_owned()?.into())?;
                Box::pin(async move { drop(again.ready(Interest::PRIORITY).await) })
            }
            #[cfg(feature = "fuzzing")]
            Socket::Memory(memory) => Box::pin(memory.peer_is_gone()),
        })))
    }

    /// Ready once the peer is gone, and from then on.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waiting) = &mut self.0 {
            ready!(waiting.as_mut().poll(cx));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

impl fmt::Debug for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Departure").field("gone", &self.0.is_none()).finish()
    }
}

/// `::ffff:192.0.2.1` is 192.0.2.1.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
            #[cfg(feature = "fuzzing")]
            Self::Memory(memory) => Pin::new(memory).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
            #[cfg(feature = "fuzzing")]
            Self::Memory(memory) => Pin::new(memory).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
            #[cfg(feature = "fuzzing")]
            Self::Memory(memory) => Pin::new(memory).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Unix(_) => Poll::Ready(Ok(())),
            #[cfg(feature = "fuzzing")]
            Self::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            #[cfg(feature = "fuzzing")]
            Self::Memory(memory) => Pin::new(memory).poll_shutdown(cx),
        }
    }
}

/// An accepted socket together with the bytes that were read to choose its filter chain; they are read again first.
#[derive(Debug)]
pub struct Inspected {
    /// Read, not yet consumed.
    pub head: Bytes,
    /// The rest.
    pub socket: Socket,
}

impl AsyncRead for Inspected {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.head.is_empty() {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        }
        let n = this.head.len().min(buf.remaining());
        buf.put_slice(&this.head[..n]);
        this.head.advance(n);
        if this.head.is_empty() {
            // Gives the allocation back.
            this.head = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Inspected {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// What a downstream connection's terminal filter reads and writes.
#[derive(Debug)]
pub enum DownstreamIo {
    /// As it comes from the socket.
    Plain(Inspected),
    /// TLS ends here. Boxed: a session is some hundred bytes that plain connections should not carry.
    Tls(Box<server::TlsStream<Ahead<Inspected>>>),
}

impl DownstreamIo {
    /// The socket below.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(plain) => &plain.socket,
            Self::Tls(tls) => &tls.get_ref().0.io().socket,
        }
    }
}

/// What is read from and written to an endpoint.
#[derive(Debug)]
pub enum UpstreamIo {
    /// Plain text.
    Plain(Socket),
    /// TLS begins here.
    Tls(Box<client::TlsStream<Outgoing<Ahead<Socket>>>>),
}

impl UpstreamIo {
    /// The socket below.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0.io().io(),
        }
    }

    /// What ALPN settled on; `None` without TLS or when the server chose nothing.
    pub fn negotiated_alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// Our end; `None` for Unix sockets.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket().local_address()
    }
}

/// Delegates to the two variants of an I/O enum.
macro_rules! delegate_io {
    ($name:ident) => {
        impl AsyncRead for $name {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
                    Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
                }
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
                    Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
                    Self::Tls(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::Plain(io) => io.is_write_vectored(),
                    Self::Tls(io) => io.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(io) => Pin::new(io).poll_flush(cx),
                    Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
                    Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
                }
            }
        }
    };
}

delegate_io!(DownstreamIo);
delegate_io!(UpstreamIo);
