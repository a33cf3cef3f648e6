//! Bodies on their way through: a request's towards the upstream, a response's towards the downstream. Nothing is held back.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::Sleep;

mod inbound;
mod kept;

pub(super) use inbound::Hold;
pub use inbound::Inbound;
pub(super) use kept::{KeptFrame, Repeatable};
pub use kept::{Replay, Sending};

use super::{
    exchange::Exchange,
    filter::{RequestMessages, Shaped},
    headers as names,
    local_reply::Refusal,
};
use crate::{error::ResponseFlag, upstream::pool::Lease};

/// How far a request's body has come, and where the rest comes from; shared between the request and the upstream connection that sends it.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    /// The downstream's. Here, so that the end of the request takes it away: a connection that waits for its peer to make room does not look at the bodies
    /// that it sends, and a downstream connection whose body is held is not served any further.
    source: Mutex<Option<Incoming>>,
    bytes: AtomicU64,
    /// Of the last frame, in ns since `start`.
    last: AtomicU64,
    done: AtomicBool,
    broken: OnceLock<Broken>,
    abandoned: AtomicBool,
    reader: AtomicWaker,
    /// Those that count its gRPC messages; unset for almost all requests.
    messages: OnceLock<Box<[RequestMessages]>>,
}

/// How a request ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The client left, or reset its stream.
    Aborted,
    /// What it sent as a body is none.
    Malformed,
    /// Its trailers, over HTTP/2, have a name that is none.
    BadTrailers,
}

impl Broken {
    /// The answer to such a request, and what the access log says of it.
    pub(super) fn refusal(self) -> Refusal {
        let (body, details, flag) = match self {
            // Nobody reads the answer; what is logged is that the client left.
            Broken::Aborted => ("", "downstream_remote_disconnect", ResponseFlag::DownstreamConnectionTermination),
            Broken::Malformed => ("Bad Request", "http1.codec_error", ResponseFlag::DownstreamProtocolError),
            Broken::BadTrailers => ("", "http2.invalid.header.field", ResponseFlag::DownstreamProtocolError),
        };
        Refusal::new(StatusCode::BAD_REQUEST, body, details).flag(flag).closing()
    }
}

/// The framing of a body is wrong.
pub fn broken_by_protocol(error: &hyper::Error) -> bool {
    matches!(io_kind(error), Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

/// The connection was closed in the middle of a body whose framing promised more.
pub fn cut_short(error: &hyper::Error) -> bool {
    io_kind(error) == Some(io::ErrorKind::UnexpectedEof)
}

fn io_kind(error: &hyper::Error) -> Option<io::ErrorKind> {
    std::error::Error::source(error)?.downcast_ref::<io::Error>().map(io::Error::kind)
}

impl Progress {
    /// Nothing received; `start` is the request's.
    pub fn new(start: Instant) -> Arc<Self> {
        Arc::new(Progress {
            start,
            source: Mutex::default(),
            bytes: AtomicU64::new(0),
            last: AtomicU64::new(0),
            done: AtomicBool::new(false),
            broken: OnceLock::new(),
            abandoned: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            messages: OnceLock::new(),
        })
    }

    /// Has the messages that come from now on counted. Once for each request.
    pub(super) fn count_messages(&self, by: Vec<RequestMessages>) {
        let _ = self.messages.set(by.into());
    }

    /// Body bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// When the last byte came, if it came.
    pub fn done(&self) -> Option<Duration> {
        self.done.load(Relaxed).then(|| self.last_activity())
    }

    /// The request is over while its body is not: whoever sends it upstream stops, and what is left is not read.
    pub fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
        let source = self.source.lock().take();
        drop(source);
        self.reader.wake();
    }

    /// What of the body has not come yet comes from here, for as long as the returned value lives and the request is not over.
    fn read_from(self: &Arc<Self>, source: Incoming) -> Source {
        *self.source.lock() = Some(source);
        Source(self.clone())
    }

    /// The next frame of [`Self::read_from`].
    fn poll_source(
        &self,
        trailers: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match &mut *self.source.lock() {
            Some(source) => poll_incoming(source, self, trailers, cx),
            None => Poll::Ready(Some(Err(RequestBodyError::Abandoned))),
        }
    }

    /// Whether nothing more comes of [`Self::read_from`].
    fn source_is_at_end(&self) -> bool {
        self.source.lock().as_ref().is_some_and(Body::is_end_stream)
    }

    /// How much more comes of [`Self::read_from`].
    fn source_hint(&self) -> SizeHint {
        self.source.lock().as_ref().map(Body::size_hint).unwrap_or_default()
    }

    /// How it broke off, if it did.
    pub fn broken(&self) -> Option<Broken> {
        self.broken.get().copied()
    }

    /// When the last frame came, since the start of the request.
    pub fn last_activity(&self) -> Duration {
        Duration::from_nanos(self.last.load(Relaxed))
    }

    fn touch(&self) {
        self.last.store(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// The right to read the rest of a request's body. Nobody reads it once this is dropped: the downstream connection need not wait for that.
#[derive(Debug)]
pub struct Source(Arc<Progress>);

impl Drop for Source {
    fn drop(&mut self) {
        let source = self.0.source.lock().take();
        drop(source);
    }
}

/// A request's body as the upstream connection sends it.
#[derive(Debug)]
pub enum RequestBody {
    /// The request has none.
    Empty,
    /// Streamed from the downstream.
    Streaming {
        /// The downstream's, which reports to the request.
        source: Source,
        /// HTTP/1 trailers are dropped unless the listener enables them, as in Envoy.
        trailers: bool,
    },
    /// Streamed, and kept for further tries and for copies.
    Repeatable(Sending),
    /// Of a copy: all there.
    Replay(Replay),
}

/// A request's body that ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The downstream broke off.
    #[error("downstream broke off the request: {0}")]
    Downstream(#[from] hyper::Error),
    /// The response was complete before the request was.
    #[error("the request was answered before its end")]
    Abandoned,
    /// Its trailers have a name that is none.
    #[error("the request's trailers are malformed")]
    Trailers,
}

/// The next frame from the downstream.
fn poll_incoming(
    inner: &mut Incoming,
    progress: &Progress,
    trailers: bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
    loop {
        if progress.abandoned.load(Relaxed) {
            return Poll::Ready(Some(Err(RequestBodyError::Abandoned)));
        }
        let Poll::Ready(frame) = Pin::new(&mut *inner).poll_frame(cx) else {
            progress.reader.register(cx.waker());
            // Abandoned between the look and the registration: the waker was not there to be woken.
            if progress.abandoned.load(Relaxed) {
                continue;
            }
            return Poll::Pending;
        };
        progress.touch();
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    progress.bytes.fetch_add(data.remaining() as u64, Relaxed);
                    for messages in progress.messages.get().into_iter().flatten() {
                        messages.see(data);
                    }
                } else if !trailers {
                    continue;
                } else if frame.trailers_ref().is_some_and(names::has_bad_name) {
                    let _ = progress.broken.set(Broken::BadTrailers);
                    return Poll::Ready(Some(Err(RequestBodyError::Trailers)));
                }
                if inner.is_end_stream() {
                    progress.done.store(true, Relaxed);
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Some(Err(error)) => {
                let how = if broken_by_protocol(&error) { Broken::Malformed } else { Broken::Aborted };
                let _ = progress.broken.set(how);
                return Poll::Ready(Some(Err(error.into())));
            }
            None => {
                progress.done.store(true, Relaxed);
                return Poll::Ready(None);
            }
        }
    }
}

impl RequestBody {
    /// Whether there is a body whose length only its end will tell.
    pub fn is_unsized(&self) -> bool {
        match self {
            RequestBody::Empty | RequestBody::Replay(_) => false,
            RequestBody::Streaming { .. } | RequestBody::Repeatable(_) => {
                !self.is_end_stream() && self.size_hint().exact().is_none()
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match self.get_mut() {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Streaming { source, trailers } => source.0.poll_source(*trailers, cx),
            RequestBody::Repeatable(sending) => sending.poll(cx),
            RequestBody::Replay(replay) => Poll::Ready(replay.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Streaming { source, .. } => source.0.source_is_at_end(),
            RequestBody::Repeatable(sending) => sending.is_at_end(),
            RequestBody::Replay(replay) => replay.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Streaming { source, .. } => source.0.source_hint(),
            RequestBody::Repeatable(sending) => sending.left(),
            RequestBody::Replay(replay) => replay.left(),
        }
    }
}

/// A response's body as the downstream connection sends it.
#[derive(Debug)]
pub enum ResponseBody {
    /// None, or one that is all there.
    Full(Option<Bytes>),
    /// Streamed from an upstream.
    Upstream(Box<UpstreamBody>),
    /// Either, changed by filters.
    Shaped(Box<Shaped>),
}

impl ResponseBody {
    /// No body.
    pub const EMPTY: ResponseBody = ResponseBody::Full(None);

    /// All of the body.
    pub fn full(bytes: Bytes) -> Self {
        ResponseBody::Full((!bytes.is_empty()).then_some(bytes))
    }
}

/// The end of a request's life: it owns the exchange, which is recorded when this is dropped.
#[derive(Debug)]
pub struct UpstreamBody {
    inner: Incoming,
    /// Given back to the pool at the end of the body; dropped with the body otherwise, which closes an HTTP/1 connection.
    lease: Option<Lease>,
    exchange: Box<Exchange>,
    limits: BodyLimits,
    last_activity: Instant,
    /// The upstream keeps us waiting since then; unset, a frame has come after it.
    waiting: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Bounds on the time a response's body may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// End of the route's timeout, and what to flag then.
    pub deadline: Option<(Instant, ResponseFlag)>,
    /// Longest pause.
    pub idle: Option<Duration>,
}

/// A response that cannot go on: the connection (HTTP/1) or stream (HTTP/2) to the downstream is reset.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The upstream broke off.
    #[error("upstream broke off the response: {0}")]
    Upstream(#[from] hyper::Error),
    /// Its trailers have a name that is none.
    #[error("the response's trailers are malformed")]
    Trailers,
    /// A bound on time was reached.
    #[error("response took too long: {}", .0.long())]
    Timeout(ResponseFlag),
}

impl UpstreamBody {
    /// Wraps a body that is not yet at its end; its headers came `now`.
    pub fn new(inner: Incoming, lease: Lease, exchange: Box<Exchange>, limits: BodyLimits, now: Instant) -> Box<Self> {
        Box::new(UpstreamBody {
            inner,
            lease: Some(lease),
            exchange,
            limits,
            last_activity: now,
            waiting: false,
            timer: None,
        })
    }

    /// The earliest moment at which this has taken too long.
    fn expiry(&self) -> Option<(Instant, ResponseFlag)> {
        let idle = self.limits.idle.map(|idle| (self.last_activity + idle, ResponseFlag::StreamIdleTimeout));
        match (self.limits.deadline, idle) {
            (Some(deadline), Some(idle)) => Some(if idle.0 < deadline.0 { idle } else { deadline }),
            (deadline, idle) => deadline.or(idle),
        }
    }

    /// Arms the timer only once the upstream keeps us waiting: most bodies arrive with their headers.
    fn poll_expiry(&mut self, cx: &mut Context<'_>) -> Poll<ResponseFlag> {
        loop {
            let Some((at, flag)) = self.expiry() else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
            ready!(timer.as_mut().poll(cx));
            if at <= Instant::now() {
                return Poll::Ready(flag);
            }
            timer.as_mut().reset(at.into());
        }
    }

    fn end(&mut self) {
        self.exchange.complete();
        // Once, though the end may show twice.
        if let Some(lease) = self.lease.take() {
            lease.give_back();
            if let Some(effects) = &self.exchange.effects {
                effects.end(&self.exchange);
            }
        }
    }

    /// The next frame.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if !self.waiting {
                    self.waiting = true;
                    self.last_activity = Instant::now();
                }
                let flag = ready!(self.poll_expiry(cx));
                self.exchange.abort(flag);
                return Poll::Ready(Some(Err(BodyError::Timeout(flag))));
            }
        };
        match frame {
            Some(Ok(frame)) => {
                self.waiting = false;
                if frame.trailers_ref().is_some_and(names::has_bad_name) {
                    self.exchange.upstream_went_wrong();
                    return Poll::Ready(Some(Err(BodyError::Trailers)));
                }
                match frame.data_ref() {
                    Some(data) => self.exchange.bytes_sent += data.remaining() as u64,
                    None => self.exchange.keep_trailers(frame.trailers_ref()),
                }
                if let Some(effects) = &mut self.exchange.effects {
                    effects.see(&frame);
                }
                if self.inner.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.exchange.upstream_broke_off(&error);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }

    /// What is left of it, as far as that is known.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }

    /// The request that it ends.
    pub(super) fn exchange(&mut self) -> &mut Exchange {
        &mut self.exchange
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            ResponseBody::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ResponseBody::Upstream(body) => body.poll_frame(cx),
            ResponseBody::Shaped(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Full(bytes) => bytes.is_none(),
            ResponseBody::Upstream(body) => body.inner.is_end_stream(),
            ResponseBody::Shaped(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            ResponseBody::Upstream(body) => body.inner.size_hint(),
            ResponseBody::Shaped(body) => body.size_hint(),
        }
    }
}
