//! TCP sockets, whose small writes go out with those of other connections.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::net::SendFlags;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    task::AbortHandle,
};

use super::outbox;

/// A TCP socket of a connection.
///
/// On a worker a small write is taken for sent and goes out at the end of the worker's turn, as one that the kernel has taken goes out some time. Should
/// the kernel not take it then, it is sent as soon as the kernel does, and until then there is no room for another write, nor is the socket flushed. Should
/// it fail, the next call says so. The end of the stream leaves in one segment with what goes out last. To be shut down before it is dropped: that alone
/// tells whether the kernel has all; or dropped when [`Tcp::poll_parting`] is ready.
#[derive(Debug)]
pub struct Tcp(Arc<Shared>);

/// What the outbox knows of a socket as well.
#[derive(Debug)]
pub(super) struct Shared {
    stream: TcpStream,
    state: AtomicU8,
    /// It ends with a reset, and never as if it were complete.
    resets: AtomicBool,
    trouble: Mutex<Option<Box<Trouble>>>,
}

/// Nothing but the socket.
const CLEAR: u8 = 0;
/// There is something in the outbox.
const WAITING: u8 = 1;
/// The last write found too little room, so the next is to ask for it.
const FULL: u8 = 2;
/// There is trouble.
const TROUBLED: u8 = 3;
/// Its owner has dropped it; what is in the outbox is still sent.
const GONE: u8 = 4;
/// Its owner ends the stream behind what is in the outbox.
const ENDING: u8 = 5;

/// How long the kernel has to take the last bytes of a socket whose owner is gone.
/// Source: Envoy `delayed_close_timeout`, default 1 s.
const PARTING: Duration = Duration::from_secs(1);

/// What became of a write that was taken for sent.
#[derive(Debug)]
enum Trouble {
    /// The kernel has not taken it yet.
    Held { rest: Vec<u8>, task: Option<AbortHandle>, writer: Option<Waker> },
    /// It was never sent.
    Failed(io::Error),
}

impl From<TcpStream> for Tcp {
    fn from(stream: TcpStream) -> Self {
        Tcp(Arc::new(Shared {
            stream,
            state: AtomicU8::new(CLEAR),
            resets: AtomicBool::new(false),
            trouble: Mutex::new(None),
        }))
    }
}

/// To ask it for addresses and options, not to write to it.
impl Deref for Tcp {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.0.stream
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if self.0.state.swap(GONE, Relaxed) == TROUBLED
            && let Some(Trouble::Held { task: Some(task), .. }) = self.0.trouble.lock().take().map(|trouble| *trouble)
        {
            task.abort();
        }
    }
}

impl Tcp {
    /// The socket as it is, with nothing on its way to the kernel that another write would overtake; `None` while there is.
    pub(crate) fn bare(&self) -> Option<&TcpStream> {
        if self.0.state.load(Relaxed) == WAITING {
            outbox::send();
        }
        matches!(self.0.state.load(Relaxed), CLEAR | FULL).then_some(&self.0.stream)
    }

    /// Ready when the kernel has all that was written.
    pub(crate) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.state.load(Relaxed) == WAITING {
            outbox::send();
        }
        if self.0.state.load(Relaxed) != TROUBLED {
            return Poll::Ready(Ok(()));
        }
        let mut trouble = self.0.trouble.lock();
        if let Some(Trouble::Held { writer, .. }) = trouble.as_deref_mut() {
            *writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(trouble);
        Poll::Ready(self.0.failed().map_or(Ok(()), Err))
    }

    /// Ready when the socket may be dropped: what was written goes out without it, and so does the end of the stream.
    pub(crate) fn poll_parting(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.state.load(Relaxed) {
            TROUBLED => self.poll_sent(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Makes the close that follows a reset, also for what is still to be sent then. Best effort.
    pub(crate) fn reset_on_close(&self) {
        self.0.resets.store(true, Relaxed);
        let _ = SockRef::from(&self.0.stream).set_linger(Some(Duration::ZERO));
    }

    /// Whether a write may be taken for sent.
    fn takes(&self) -> bool {
        matches!(self.0.state.load(Relaxed), CLEAR | WAITING)
    }
}

impl Shared {
    /// Its bytes are in the outbox from now on.
    pub(super) fn waits(&self) {
        self.state.store(WAITING, Relaxed);
    }

    /// Sends what was in the outbox, or keeps it until the kernel takes it.
    pub(super) fn send(self: &Arc<Self>, mut bytes: &[u8]) {
        if self.state.load(Relaxed) == TROUBLED {
            // It has come up with what is sent now, and its place is behind that.
            if let Some(Trouble::Held { rest, .. }) = self.trouble.lock().as_deref_mut() {
                rest.extend_from_slice(bytes);
            }
            return;
        }
        let state = self.state.load(Relaxed);
        // There may be more of it further behind in the outbox, which refers to it then.
        let last = match state {
            GONE => Arc::strong_count(self) == 1 && !self.resets.load(Relaxed),
            ENDING => Arc::strong_count(self) == 2,
            _ => false,
        };
        while !bytes.is_empty() {
            let sent = match last {
                // The kernel keeps it for the end of the stream, which follows at once: one segment instead of two.
                true => self.stream.try_io(Interest::WRITABLE, || {
                    Ok(rustix::net::send(&self.stream, bytes, SendFlags::MORE | SendFlags::NOSIGNAL)?)
                }),
                false => self.stream.try_write(bytes),
            };
            match sent {
                Ok(0) => return self.fail(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return self.hold(bytes),
                    _ => return self.fail(error),
                },
            }
        }
        match state {
            // The close alone would be a reset if something has come that nobody has read. The peer is told of the end first; what it has no room for is
            // still lost then, so that whoever expects the peer to send on reads until it ends (`http/wire.rs`).
            GONE if last => drop(SockRef::from(&self.stream).shutdown(Shutdown::Write)),
            GONE => {}
            _ => self.state.store(CLEAR, Relaxed),
        }
    }

    fn hold(self: &Arc<Self>, rest: &[u8]) {
        let Ok(runtime) = Handle::try_current() else { return };
        let shared = self.clone();
        let task = if self.state.load(Relaxed) == GONE {
            // A reset does not wait for what it makes void. Nothing that is further behind in the outbox may close the gap.
            if self.resets.load(Relaxed) {
                return self.state.store(TROUBLED, Relaxed);
            }
            runtime.spawn(async move {
                let _ = tokio::time::timeout(PARTING, shared.finish()).await;
                let _ = SockRef::from(&shared.stream).shutdown(Shutdown::Write);
            });
            None
        } else {
            Some(runtime.spawn(async move { shared.finish().await }).abort_handle())
        };
        *self.trouble.lock() = Some(Box::new(Trouble::Held { rest: rest.to_vec(), task, writer: None }));
        self.state.store(TROUBLED, Relaxed);
    }

    /// Sends what is held as the kernel takes it.
    async fn finish(&self) {
        loop {
            if let Err(error) = self.stream.writable().await {
                return self.fail(error);
            }
            let mut trouble = self.trouble.lock();
            let Some(Trouble::Held { rest, writer, .. }) = trouble.as_deref_mut() else { return };
            match self.stream.try_write(rest) {
                Ok(n) if n > 0 => drop(rest.drain(..n.min(rest.len()))),
                Ok(_) => {
                    drop(trouble);
                    return self.fail(io::ErrorKind::WriteZero.into());
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    drop(trouble);
                    return self.fail(error);
                }
            }
            if rest.is_empty() {
                let writer = writer.take();
                *trouble = None;
                self.state.store(CLEAR, Relaxed);
                return writer.into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Why what was taken for sent was not. Said once: from then on the socket says what it says.
    fn failed(&self) -> Option<io::Error> {
        if self.state.load(Relaxed) != TROUBLED {
            return None;
        }
        let mut trouble = self.trouble.lock();
        match trouble.take().map(|trouble| *trouble) {
            Some(Trouble::Failed(error)) => {
                self.state.store(CLEAR, Relaxed);
                Some(error)
            }
            other => {
                *trouble = other.map(Box::new);
                None
            }
        }
    }

    fn fail(&self, error: io::Error) {
        if self.state.load(Relaxed) == GONE {
            return;
        }
        let before = self.trouble.lock().replace(Box::new(Trouble::Failed(error)));
        self.state.store(TROUBLED, Relaxed);
        // Wakes the reader, who may be the only one to wait; what has been received can be read nevertheless.
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
        if let Some(Trouble::Held { writer: Some(writer), .. }) = before.map(|trouble| *trouble) {
            writer.wake();
        }
    }

    /// Fewer bytes than asked for have been read, or written: there is no more, or no room, before the kernel says so. Spares the call that would ask.
    fn is_exhausted(&self, interest: Interest) {
        let _ = self.stream.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }

    /// A write that does not wait. To be called when all before it is sent.
    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl Fn() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write() {
                Ok(n) if n < length => {
                    self.is_exhausted(Interest::WRITABLE);
                    self.state.store(FULL, Relaxed);
                    return Poll::Ready(Ok(n));
                }
                Ok(n) => {
                    self.state.store(CLEAR, Relaxed);
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.state.store(FULL, Relaxed),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &*self.get_mut().0;
        let room = buf.remaining();
        loop {
            ready!(shared.stream.poll_read_ready(cx))?;
            match shared.stream.try_read_buf(buf) {
                // The error that a write has run into is not to be had from the socket again.
                Ok(0)
                    if room > 0
                        && let Some(error) = shared.failed() =>
                {
                    return Poll::Ready(Err(error));
                }
                Ok(n) => {
                    if 0 < n && n < room {
                        shared.is_exhausted(Interest::READABLE);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.takes() && outbox::take(&this.0, &[IoSlice::new(buf)]) {
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(this.poll_sent(cx))?;
        this.0.poll_write(cx, buf.len(), || this.0.stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if this.takes() && outbox::take(&this.0, bufs) {
            return Poll::Ready(Ok(length));
        }
        ready!(this.poll_sent(cx))?;
        this.0.poll_write(cx, length, || this.0.stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.state.load(Relaxed) {
            TROUBLED => self.poll_sent(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.state.load(Relaxed) == WAITING {
            self.0.state.store(ENDING, Relaxed);
            outbox::send();
        }
        ready!(self.poll_sent(cx))?;
        match SockRef::from(&self.0.stream).shutdown(Shutdown::Write) {
            // As tokio has it: the peer has closed already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
