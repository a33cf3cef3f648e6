//! Reading under TLS: what has arrived, at once.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most that is read ahead.
const AHEAD: usize = 64 * 1024;
/// From here on what is left is kept where it was read, and not copied.
const MANY: usize = 32 * 1024;

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// What TLS reads from. rustls asks for 4 kB at a time, a quarter of a record: a system call each would be most of what a large body costs. So all that
/// has arrived is read at once, into memory of the worker's own, and kept until it is asked for; with nothing to keep no memory is held.
#[derive(Debug)]
pub struct Ahead<IO> {
    io: IO,
    rest: Rest,
}

/// What was read and is not yet asked for.
#[derive(Debug, Default)]
enum Rest {
    #[default]
    None,
    Few(Bytes),
    /// In the worker's memory, which is this connection's until all is asked for.
    Many {
        buffer: Box<[u8]>,
        at: usize,
        end: usize,
    },
}

impl Rest {
    fn is_empty(&self) -> bool {
        matches!(self, Rest::None)
    }

    /// Gives out as much as fits; memory goes back with the last byte.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        match self {
            Rest::None => return,
            Rest::Few(rest) => {
                buf.put_slice(&rest.split_to(rest.len().min(buf.remaining())));
                if !rest.is_empty() {
                    return;
                }
            }
            Rest::Many { buffer, at, end } => {
                let rest = buffer.get(*at..*end).unwrap_or_default();
                let now = rest.get(..buf.remaining()).unwrap_or(rest);
                buf.put_slice(now);
                *at += now.len();
                if at < end {
                    return;
                }
            }
        }
        if let Rest::Many { buffer, .. } = std::mem::take(self) {
            SCRATCH.set(Some(buffer));
        }
    }
}

impl<IO> Ahead<IO> {
    /// Reads ahead of whoever reads this.
    pub fn new(io: IO) -> Self {
        Ahead { io, rest: Rest::None }
    }

    /// What it reads from.
    pub fn io(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Ahead<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.rest.is_empty() {
            this.rest.give(buf);
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= AHEAD {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let mut scratch = SCRATCH.take().unwrap_or_else(|| vec![0; AHEAD].into_boxed_slice());
        let mut ahead = ReadBuf::new(&mut scratch);
        let read = Pin::new(&mut this.io).poll_read(cx, &mut ahead);
        let end = ahead.filled().len();
        let (now, later) = ahead.filled().split_at(end.min(buf.remaining()));
        buf.put_slice(now);
        if later.len() >= MANY {
            let at = now.len();
            this.rest = Rest::Many { buffer: scratch, at, end };
            return read;
        }
        if !later.is_empty() {
            this.rest = Rest::Few(Bytes::copy_from_slice(later));
        }
        SCRATCH.set(Some(scratch));
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Ahead<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
