//! What a client writes during a handshake whose server has a name that rustls does not send: every ClientHello gets it on its way.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::sni;

/// A connection to a TLS server.
#[derive(Debug)]
pub struct Outgoing<IO> {
    io: IO,
    renames: bool,
    /// Renamed and not yet written, from `at` on.
    renamed: Vec<u8>,
    at: usize,
}

impl<IO> Outgoing<IO> {
    /// `renames`: the handshake is under a stand-in.
    pub(super) fn new(io: IO, renames: bool) -> Self {
        Outgoing { io, renames, renamed: Vec::new(), at: 0 }
    }

    /// The handshake is over.
    pub(super) fn stop_renaming(&mut self) {
        self.renames = false;
    }

    /// The connection below.
    pub fn io(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncWrite + Unpin> Outgoing<IO> {
    fn poll_renamed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.renamed.get(self.at..).filter(|rest| !rest.is_empty()) {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.at += n;
        }
        (self.renamed, self.at) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Outgoing<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Outgoing<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.renamed.is_empty() {
            ready!(this.poll_renamed(cx))?;
        }
        if !this.renames {
            return Pin::new(&mut this.io).poll_write(cx, buf);
        }
        // rustls hands over whole records, and a ClientHello fits one. What cannot be written now is written before the next, or by a flush.
        this.renamed = sni::outgoing(buf.to_vec());
        match this.poll_renamed(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(buf.len())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.renames || !self.renamed.is_empty() {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
            return self.poll_write(cx, first);
        }
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_renamed(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_renamed(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
