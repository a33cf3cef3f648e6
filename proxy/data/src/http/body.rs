//! Bodies on their way through: a request's towards the upstream, a response's towards the downstream. Nothing is held back.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

mod inbound;
mod kept;
mod progress;

pub(super) use inbound::Hold;
pub use inbound::Inbound;
pub(super) use kept::{KeptFrame, Repeatable};
pub use kept::{Replay, Sending};
pub use progress::{Broken, Progress, Source, broken_by_protocol, cut_short};

use super::{exchange::Exchange, filter::Shaped, headers as names};
use crate::{error::ResponseFlag, upstream::pool::Lease};

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
            RequestBody::Streaming { source, trailers } => source.poll(*trailers, cx),
            RequestBody::Repeatable(sending) => sending.poll(cx),
            RequestBody::Replay(replay) => Poll::Ready(replay.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Streaming { source, .. } => source.is_at_end(),
            RequestBody::Repeatable(sending) => sending.is_at_end(),
            RequestBody::Replay(replay) => replay.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Streaming { source, .. } => source.hint(),
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

/// Bytes of one response after which others have their turn, though there are more: a connection that is driven by its request would go on for as long as
/// both of its sides keep up.
const TURN: usize = 512 * 1024;

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
    /// Bytes that came since it last waited.
    turn: usize,
    timer: Option<Pin<Box<Sleep>>>,
    /// How it broke off: told with the next look, for whoever sends it drops with an error what it was given in the same turn, were it the head.
    broken: Option<hyper::Error>,
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
            turn: 0,
            timer: None,
            broken: None,
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
        if let Some(error) = self.broken.take() {
            self.exchange.upstream_broke_off(&error);
            return Poll::Ready(Some(Err(error.into())));
        }
        if self.lease.is_none() {
            // It has ended.
            return Poll::Ready(None);
        }
        if self.turn >= TURN {
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = match &self.lease {
            Some(lease) => lease.poll_frame(&mut self.inner, cx),
            None => Pin::new(&mut self.inner).poll_frame(cx),
        };
        let frame = match next {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                self.turn = 0;
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
                    Some(data) => {
                        self.turn += data.remaining();
                        self.exchange.bytes_sent += data.remaining() as u64;
                    }
                    None => self.exchange.keep_trailers(frame.trailers_ref()),
                }
                if let Some(effects) = &mut self.exchange.effects {
                    effects.see(&frame);
                }
                // Nobody asks for more once there were trailers, and an HTTP/1 body does not say that they are its end.
                if frame.is_trailers() || self.inner.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
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
