//! Copies bytes both ways between two streams, in one task.
//!
//! Bytes are read into the worker's scratch buffer and written from there at once. Only what the other side does not take is kept, in a buffer of the
//! connection's own that is given back when it is empty. So an idle connection holds no buffer, a busy one reads into memory that is warm in the cache,
//! and a slow receiver holds at most one scratch buffer's worth: reading goes on when it has been taken. Bulk between two sockets is spliced.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use super::splice::{Bulk, MaybeTcp, Step};
use crate::drain::{Phase, Watch};

/// Bytes read at once at most.
const SCRATCH: usize = 64 * 1024;
/// Reads of one direction in a row before other connections of the worker get their turn.
const TURNS: u32 = 8;
/// Stands for "no deadline": far enough, and cheap to compare with.
const FAR: Duration = Duration::from_secs(86_400 * 365);

thread_local! {
    static SCRATCH_BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Which side of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Downstream,
    /// The endpoint's.
    Upstream,
}

/// How a copy ended.
#[derive(Debug)]
pub enum End {
    /// Both sides have finished; named is the one that did first.
    Finished(Side),
    /// Reading from, or writing to, this side failed.
    Failed(Side, io::Error),
    /// No byte in either direction for the idle timeout.
    Idle,
    /// The connection lived as long as it may.
    MaxDuration,
    /// A drain is over, or a policy changed.
    Closing,
}

/// Bounds on a copy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time without a byte in either direction.
    pub idle: Option<Duration>,
    /// When the connection has to end.
    pub until: Option<Instant>,
    /// Once the upstream's end is passed on, nothing more is expected of the downstream.
    pub upstream_ends: bool,
    /// The same for the downstream's end.
    pub downstream_ends: bool,
}

/// Is told of every byte that was passed on.
pub trait Meter {
    /// `n` bytes were read from the client and taken by the endpoint's socket.
    fn to_upstream(&mut self, n: usize);
    /// `n` bytes were read from the endpoint and taken by the client's socket.
    fn to_downstream(&mut self, n: usize);
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// Read, but not yet taken by the other side; from `at` on.
    rest: Vec<u8>,
    at: usize,
    bulk: Bulk,
    unflushed: bool,
    /// The reader said that nothing more comes.
    ended: bool,
    /// The end was passed on.
    shut: bool,
}

/// Copies until both sides have finished or something ends it earlier. A side that finishes is passed on as a half-close. `watch` is polled as the
/// connection's own task, of which there may be one.
pub async fn copy<D, U>(
    downstream: &mut D,
    upstream: &mut U,
    limits: Limits,
    watch: Option<&Watch>,
    meter: &mut impl Meter,
) -> End
where
    D: AsyncRead + AsyncWrite + MaybeTcp + Unpin,
    U: AsyncRead + AsyncWrite + MaybeTcp + Unpin,
{
    let (mut up, mut down) = (Half::default(), Half::default());
    let mut first = None;
    let mut active = Instant::now();
    let deadline = move |active: Instant| {
        let idle = limits.idle.map(|idle| active + idle);
        match (idle, limits.until) {
            (Some(idle), Some(until)) => idle.min(until),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => active + FAR,
        }
    };
    let mut timer = pin!(sleep_until(deadline(active)));
    poll_fn(|cx| {
        let mut moved = false;
        let to_up = up.poll(cx, downstream, upstream, &mut |n| {
            moved = true;
            meter.to_upstream(n);
        });
        if let Poll::Ready(Err((reading, error))) = to_up {
            return Poll::Ready(End::Failed(if reading { Side::Downstream } else { Side::Upstream }, error));
        }
        let to_down = down.poll(cx, upstream, downstream, &mut |n| {
            moved = true;
            meter.to_downstream(n);
        });
        if let Poll::Ready(Err((reading, error))) = to_down {
            return Poll::Ready(End::Failed(if reading { Side::Upstream } else { Side::Downstream }, error));
        }
        match (up.ended, down.ended) {
            (true, _) => first = first.or(Some(Side::Downstream)),
            (_, true) => first = first.or(Some(Side::Upstream)),
            (false, false) => {}
        }
        let (up_over, down_over) = (to_up.is_ready(), to_down.is_ready());
        let over = (up_over && (down_over || limits.downstream_ends)) || (down_over && limits.upstream_ends);
        if let (Some(first), true) = (first, over) {
            return Poll::Ready(End::Finished(first));
        }
        if watch.is_some_and(|watch| watch.poll(cx, Phase::Closing).is_ready()) {
            return Poll::Ready(End::Closing);
        }
        // The timer is not moved with every byte: it fires at most once per idle timeout and then looks when the last byte was.
        if moved {
            active = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if limits.until.is_some_and(|until| now >= until) {
                return Poll::Ready(End::MaxDuration);
            }
            if limits.idle.is_some_and(|idle| now >= active + idle) {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(deadline(active));
        }
        Poll::Pending
    })
    .await
}

/// Bytes that a copy passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// To the endpoint.
    pub to_upstream: u64,
    /// To the client.
    pub to_downstream: u64,
}

impl Meter for Copied {
    fn to_upstream(&mut self, n: usize) {
        self.to_upstream += n as u64;
    }

    fn to_downstream(&mut self, n: usize) {
        self.to_downstream += n as u64;
    }
}

/// Copies between two streams that have left HTTP, until both have finished, one has failed, a limit is reached or `watch` says so.
pub async fn both_ways<D, U>(downstream: &mut D, upstream: &mut U, limits: Limits, watch: &Watch) -> (Copied, End)
where
    D: AsyncRead + AsyncWrite + MaybeTcp + Unpin,
    U: AsyncRead + AsyncWrite + MaybeTcp + Unpin,
{
    let mut copied = Copied::default();
    let end = tokio::select! {
        end = copy(downstream, upstream, limits, None, &mut copied) => end,
        () = watch.closing() => End::Closing,
    };
    tracing::trace!(?end, "copy ended");
    (copied, end)
}

impl Half {
    /// Moves what can be moved. Ready when the end has been passed on; an error says whether reading was at fault.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut dyn FnMut(usize),
    ) -> Poll<Result<(), (bool, io::Error)>>
    where
        R: AsyncRead + MaybeTcp + Unpin,
        W: AsyncWrite + MaybeTcp + Unpin,
    {
        let writing = |error| (false, error);
        for _ in 0..TURNS {
            while let Some(rest) = self.rest.get(self.at..).filter(|rest| !rest.is_empty()) {
                match ready!(Pin::new(&mut *to).poll_write(cx, rest)).map_err(writing)? {
                    0 => return Poll::Ready(Err(writing(io::ErrorKind::WriteZero.into()))),
                    n => {
                        self.at += n;
                        moved(n);
                    }
                }
            }
            if self.at > 0 {
                (self.rest, self.at) = (Vec::new(), 0);
            }
            if self.unflushed {
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(writing)?;
                self.unflushed = false;
            }
            if self.ended {
                if !self.shut {
                    match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        Ok(()) => {}
                        // The other side has closed already: there is nobody left to tell.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        Err(error) => return Poll::Ready(Err(writing(error))),
                    }
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            if (self.bulk.goes_on() || self.bulk.holds())
                && let (Some(from), Some(to)) = (from.source(), to.sink())
            {
                match ready!(self.bulk.poll(cx, from, to, moved))? {
                    Step::Moved => {}
                    Step::Ended => self.ended = true,
                }
                continue;
            }
            let mut scratch = SCRATCH_BUFFER.take().unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
            let progress = self.pass(cx, from, to, &mut scratch, moved);
            SCRATCH_BUFFER.set(Some(scratch));
            ready!(progress)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read and one write.
    fn pass<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        scratch: &mut [u8],
        moved: &mut dyn FnMut(usize),
    ) -> Poll<Result<(), (bool, io::Error)>>
    where
        R: AsyncRead + MaybeTcp + Unpin,
        W: AsyncWrite + MaybeTcp + Unpin,
    {
        let mut buffer = ReadBuf::new(scratch);
        match ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer)) {
            Ok(()) => {}
            // TLS without close_notify. BoringSSL, and with it Envoy, takes it as an end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Poll::Ready(Err((true, error))),
        }
        let read = buffer.filled();
        if read.is_empty() {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        self.unflushed = true;
        self.bulk.saw_read(read.len());
        // From socket to socket nothing is computed in between, so what a turn writes goes out together anyway, and need not wait for its end.
        let sink = if from.source().is_some() { to.sink() } else { None };
        let written = match sink.map(|tcp| tcp.try_write(read)) {
            Some(Ok(n)) => n,
            Some(Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Some(Err(error)) => return Poll::Ready(Err((false, error))),
            None => match Pin::new(to).poll_write(cx, read) {
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err((false, error))),
                Poll::Pending => 0,
            },
        };
        if written > 0 {
            moved(written);
        }
        if let Some(rest) = read.get(written..).filter(|rest| !rest.is_empty()) {
            self.rest = rest.to_vec();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
