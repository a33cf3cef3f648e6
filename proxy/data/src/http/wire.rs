//! The bytes of a downstream HTTP connection: counted, and for HTTP/1 guarded on their way to hyper.
//!
//! hyper ends a head that it cannot parse with an answer of its own. Here that answer is replaced by Envoy's, and a head that only the [`Guard`] refuses is
//! cut off with bytes that no head may hold, so that hyper refuses it too: there is one way out for both. Chunked bodies likewise. Then nothing comes any
//! more: hyper reads the end of the stream.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::{
    guard::{Fault, Guard, Refused},
    life::Life,
};
use crate::{
    io::{Departure, DownstreamIo},
    model::http::{HttpConnectionManager, ServerHeader},
    stats::HttpStats,
    worker,
};

/// How long a peer that may still be sending is read after the last answer: a close with unread bytes becomes a reset, which may overtake the answer.
/// Source: Envoy `delayed_close_timeout`, default 1 s.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// How long hyper has not read when the socket begins to be watched. Most pauses, such as those between the pieces of a body, are shorter, and cost nothing.
const UNREAD: Duration = Duration::from_millis(100);
/// Ends a head and a chunked body: wherever in them a carriage return may stand, a line feed must follow it. The empty line behind it makes hyper look: of a
/// head that comes in pieces it waits for the end.
const POISON: &[u8] = b"\r\0\n\n";

/// A downstream connection whose first bytes were read to find its protocol, and whose bytes are counted.
#[derive(Debug)]
pub struct Wire {
    /// There until it is left behind.
    io: Option<DownstreamIo>,
    seen: Vec<u8>,
    at: usize,
    stats: HttpStats,
    life: Arc<Life>,
    http1: Option<Box<Http1>>,
}

#[derive(Debug)]
struct Http1 {
    guard: Guard,
    /// What is left to be read of [`POISON`], once something is wrong with what came.
    poison: Option<&'static [u8]>,
    life: Arc<Life>,
    manager: Arc<HttpConnectionManager>,
    /// The answer to a refused head, and how much of it is written.
    answer: Option<(Vec<u8>, usize)>,
    linger: Option<Pin<Box<Sleep>>>,
    shut: bool,
    /// hyper waits for bytes, so it hears of their end.
    reads: bool,
    /// hyper has waited for bytes since the watch was last looked at.
    has_read: bool,
    watch: Watch,
}

/// For the end of a connection that is not read.
#[derive(Debug)]
enum Watch {
    Off,
    /// On once this is over, if hyper reads nothing meanwhile.
    Soon(Pin<Box<Sleep>>),
    On(Departure),
}

impl Wire {
    /// `seen` was read already.
    pub fn new(io: DownstreamIo, seen: Vec<u8>, stats: HttpStats, life: &Arc<Life>) -> Self {
        Wire { io: Some(io), seen, at: 0, stats, life: life.clone(), http1: None }
    }

    /// Turns the guard on.
    pub fn speak_http1(&mut self, manager: &Arc<HttpConnectionManager>, life: &Arc<Life>) {
        let guard = Guard::new(manager.max_request_headers, manager.http1.accept_http_10).behind(life.requests());
        self.http1 = Some(Box::new(Http1 {
            guard,
            poison: None,
            life: life.clone(),
            manager: manager.clone(),
            answer: None,
            linger: None,
            shut: false,
            reads: false,
            has_read: false,
            watch: Watch::Off,
        }));
    }

    /// The HTTP/1 state if hyper is writing an answer of its own.
    fn refusing(&mut self) -> Option<&mut Http1> {
        self.http1.as_deref_mut().filter(|http1| !http1.life.is_answering() && !http1.life.is_raw())
    }

    fn count_written(&self, n: usize) {
        self.life.moves();
        self.stats.downstream_cx_tx_bytes_total().add(n as u64);
    }

    /// Writes our answer in the place of hyper's, which begins with `hypers` and is `length` long.
    fn poll_answer(&mut self, cx: &mut Context<'_>, hypers: &[u8], length: usize) -> Poll<io::Result<usize>> {
        loop {
            let Some(http1) = self.http1.as_deref_mut() else { return Poll::Ready(Ok(length)) };
            let (answer, written) = http1.answer.get_or_insert_with(|| {
                http1.life.refuse(match hypers.get(9..12) {
                    Some(b"431" | b"414") => Refused::TooLarge,
                    _ => Refused::Malformed,
                });
                (answer(http1.life.refused().unwrap_or(Refused::Malformed), &http1.manager), 0)
            });
            let rest = answer.get(*written..).unwrap_or_default();
            if rest.is_empty() {
                return Poll::Ready(Ok(length));
            }
            let Some(stream) = &mut self.io else { return Poll::Ready(Err(gone())) };
            let n = ready!(Pin::new(stream).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += n;
            self.count_written(n);
        }
    }
}

/// The stream was left behind, and nobody should ask for it.
fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(stream) = self.io.take() {
            self.life.left_behind(stream);
        }
    }
}

impl Http1 {
    /// hyper has asked for bytes; whether there were none.
    fn note_read(&mut self, blocked: bool) {
        self.reads = blocked;
        self.has_read |= blocked;
        if blocked {
            self.life.settles(self.guard.settled());
        }
    }

    /// Ready once the client of a request that is being served is gone. To be called while hyper does not read.
    fn poll_departure(&mut self, io: &DownstreamIo, cx: &mut Context<'_>) -> Poll<()> {
        if self.life.is_raw() {
            self.watch = Watch::Off;
        }
        if self.life.is_raw() || !self.life.is_active() {
            return Poll::Pending;
        }
        loop {
            self.watch = match &mut self.watch {
                Watch::Off => {
                    self.has_read = false;
                    Watch::Soon(Box::pin(tokio::time::sleep(UNREAD)))
                }
                Watch::Soon(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    if self.has_read {
                        Watch::Off
                    } else {
                        // Without a descriptor it is tried again later.
                        Departure::new(io.socket()).map_or(Watch::Off, Watch::On)
                    }
                }
                Watch::On(departure) => return departure.poll(cx),
            };
        }
    }

    /// What is left of the poison; nothing, the end of the stream, behind it.
    fn serve_poison(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = self.poison.unwrap_or(POISON);
        let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
        buf.put_slice(now);
        self.poison = Some(later);
    }
}

/// Envoy's local reply to a head that is none.
fn answer(refused: Refused, manager: &HttpConnectionManager) -> Vec<u8> {
    let (status, body) = (refused.status(), refused.body());
    let mut text =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    let mut field = |name: &str, value: &[u8]| {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    };
    field("content-length", body.len().to_string().as_bytes());
    if !body.is_empty() {
        field("content-type", b"text/plain");
    }
    field("date", worker::date().as_bytes());
    match manager.server_header {
        ServerHeader::Overwrite | ServerHeader::AppendIfAbsent => field("server", manager.server_name.as_bytes()),
        ServerHeader::PassThrough => {}
    }
    field("connection", b"close");
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(body.as_bytes());
    text
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(http1) = this.http1.as_deref_mut().filter(|http1| !http1.life.is_raw())
            && (http1.poison.is_some() || http1.life.refused().is_some())
        {
            http1.serve_poison(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if let Some(rest) = this.seen.get(this.at..).filter(|rest| !rest.is_empty()) {
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            this.at += n;
            if this.at == this.seen.len() {
                // Gives the allocation back.
                (this.seen, this.at) = (Vec::new(), 0);
            }
        } else {
            let room = buf.remaining();
            let Some(stream) = &mut this.io else { return Poll::Ready(Err(gone())) };
            let read = Pin::new(stream).poll_read(cx, buf);
            if let Some(http1) = &mut this.http1 {
                http1.note_read(read.is_pending());
            }
            let read = ready!(read);
            let ended = read.is_err() || (room > 0 && buf.remaining() == room);
            if ended && this.http1.as_ref().is_none_or(|http1| !http1.shut) {
                this.life.peer_closes();
            }
            read?;
        }
        let new = buf.filled().get(before..).unwrap_or_default();
        this.stats.downstream_cx_rx_bytes_total().add(new.len() as u64);
        let Some(http1) = this.http1.as_deref_mut().filter(|http1| !http1.life.is_raw()) else {
            return Poll::Ready(Ok(()));
        };
        let inspected = http1.guard.inspect(new);
        if http1.manager.timeouts.request_headers.is_some() {
            http1.life.head_is_under_way(http1.guard.in_head());
        }
        if let Some(request) = http1.guard.leaving() {
            http1.life.may_leave_http(request);
        }
        if let Err((sound, fault)) = inspected {
            if let Fault::Head(why) = fault {
                http1.life.refuse(why);
            }
            // At least one byte was not sound, so there is room for one.
            buf.set_filled(before + sound);
            http1.serve_poison(buf);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refusing().is_some() {
            return this.poll_answer(cx, buf, buf.len());
        }
        let Some(stream) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let n = ready!(Pin::new(stream).poll_write(cx, buf))?;
        this.count_written(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refusing().is_some() {
            let first = bufs.first().map_or(&[][..], |first| &**first);
            return this.poll_answer(cx, first, bufs.iter().map(|buf| buf.len()).sum());
        }
        // Most writes are one piece, for which the plain call is cheaper in the kernel.
        let Some(stream) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let n = match bufs {
            [one] => ready!(Pin::new(stream).poll_write(cx, one))?,
            _ => ready!(Pin::new(stream).poll_write_vectored(cx, bufs))?,
        };
        this.count_written(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(|stream| stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let flushed = Pin::new(&mut *stream).poll_flush(cx);
        if let Some(http1) = &mut this.http1 {
            http1.life.flushed(flushed.is_ready());
            if !http1.reads && http1.poll_departure(stream, cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let Some(http1) = this.http1.as_deref_mut().filter(|http1| !http1.life.is_raw()) else {
            return Pin::new(stream).poll_shutdown(cx);
        };
        // What comes although we end the connection would make a reset of its close, which may overtake the answer.
        let nothing_comes = http1.life.refused().is_none()
            && (http1.guard.is_over() || (http1.life.peer_closed() && http1.guard.is_between_requests()));
        if !http1.shut {
            let shut = match stream {
                // The close that follows says as much to a peer without TLS.
                DownstreamIo::Plain(plain) if nothing_comes => plain.socket.poll_parting(cx),
                _ => Pin::new(&mut *stream).poll_shutdown(cx),
            };
            if let Poll::Ready(shut) = shut {
                shut?;
                http1.shut = true;
            }
        }
        if http1.shut && nothing_comes {
            return Poll::Ready(Ok(()));
        }
        // Also of a peer that does not take the end.
        let linger = http1.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if linger.as_mut().poll(cx).is_ready() {
            http1.manager.stats.downstream_cx_delayed_close_timeout().inc();
            return Poll::Ready(Ok(()));
        }
        if !http1.shut {
            return Poll::Pending;
        }
        let mut waste = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
