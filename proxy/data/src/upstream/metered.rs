//! Bytes of upstream connections, counted for `cluster.<name>.upstream_cx_*_bytes_total`.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{connect::Pooled, pool::Open};
use crate::{io::UpstreamIo, model::cluster::Cluster};

/// A connection whose bytes are counted. It is open for as long as this lives, also when it has left HTTP.
#[derive(Debug)]
pub struct Metered {
    io: UpstreamIo,
    /// Its place in a pool.
    _open: Option<Open>,
    cluster: Arc<Cluster>,
    heard: Arc<AtomicU64>,
    pooled: Arc<Pooled>,
}

impl Metered {
    /// Counts for `cluster`, and tells `pooled` who closed.
    pub fn new(io: UpstreamIo, cluster: Arc<Cluster>, pooled: &Arc<Pooled>) -> Self {
        Metered { io, _open: None, cluster, heard: Arc::default(), pooled: pooled.clone() }
    }

    /// Keeps this place in a pool for as long as it lives.
    pub(super) fn in_pool(self, open: Open) -> Self {
        Metered { _open: Some(open), ..self }
    }

    /// Grows by the bytes that come in over this connection.
    pub fn heard(&self) -> Arc<AtomicU64> {
        self.heard.clone()
    }

    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.pooled.blocked.store(true, Relaxed),
            Poll::Ready(Ok(n)) => self.cluster.stats.upstream_cx_tx_bytes_total().add(*n as u64),
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let room = buf.remaining();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        let n = (buf.filled().len() - before) as u64;
        if read.is_err() || (n == 0 && room > 0) {
            this.pooled.closed_by_peer.store(true, Relaxed);
        }
        read?;
        this.cluster.stats.upstream_cx_rx_bytes_total().add(n);
        this.heard.fetch_add(n, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.written(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Most writes are one piece, for which the plain call is cheaper in the kernel.
        let written = match bufs {
            [one] => Pin::new(&mut this.io).poll_write(cx, one),
            _ => Pin::new(&mut this.io).poll_write_vectored(cx, bufs),
        };
        this.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.pooled.blocked.store(flushed.is_pending(), Relaxed);
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
