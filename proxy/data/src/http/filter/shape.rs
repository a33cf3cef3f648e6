//! Response bodies that are not sent as they came: compressed, or slowed down.

use std::{
    io::Write,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use flate2::{Compression, write::GzEncoder};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::super::{
    body::{BodyError, UpstreamBody},
    exchange::Exchange,
};
use crate::stats::CompressorStats;

/// How often a slowed body may go on.
const TICK: Duration = Duration::from_millis(50);
/// Ticks that a body that has nothing to send may save up: a second.
const MOST_TICKS: u64 = 20;

/// A gzip stream.
pub(super) struct Gzip {
    encoder: GzEncoder<Vec<u8>>,
    stats: CompressorStats,
}

impl std::fmt::Debug for Gzip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gzip").finish_non_exhaustive()
    }
}

impl Gzip {
    /// An empty stream; `level` is zlib's.
    pub(super) fn new(level: u32, stats: CompressorStats) -> Self {
        Gzip { encoder: GzEncoder::new(Vec::new(), Compression::new(level)), stats }
    }

    /// Compresses some of a body. What goes in comes out at once, so that a client reads an event when it happens.
    fn push(&mut self, data: &[u8]) -> Bytes {
        self.stats.total_uncompressed_bytes().add(data.len() as u64);
        // Writing to memory does not fail.
        let _ = self.encoder.write_all(data).and_then(|()| self.encoder.flush());
        self.out()
    }

    fn finish(&mut self) -> Bytes {
        let _ = self.encoder.try_finish();
        self.out()
    }

    fn out(&mut self) -> Bytes {
        let out = std::mem::take(self.encoder.get_mut());
        self.stats.total_compressed_bytes().add(out.len() as u64);
        Bytes::from(out)
    }
}

/// The pace of a slowed body: so many bytes a tick, the first at once.
#[derive(Debug)]
pub(super) struct Throttle {
    slice: u64,
    ticks: u64,
    /// Since when ticks have gathered; `None` before the first byte.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    /// Envoy's: a slice is a twentieth of a second's bytes.
    pub(super) fn new(kib_per_second: u64) -> Self {
        let slice = kib_per_second.saturating_mul(1024) / MOST_TICKS;
        Throttle { slice: slice.max(1), ticks: 1, since: None, timer: None }
    }

    /// How many of `want` bytes may go now; at least one.
    fn poll_take(&mut self, want: usize, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            let now = Instant::now();
            let since = *self.since.get_or_insert(now);
            let passed = u64::try_from((now - since).as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
            if passed > 0 {
                self.ticks = self.ticks.saturating_add(passed).min(MOST_TICKS);
                let whole = TICK.saturating_mul(u32::try_from(passed).unwrap_or(u32::MAX));
                self.since = since.checked_add(whole).or(Some(now));
            }
            if self.ticks > 0 {
                let ticks = (want as u64).div_ceil(self.slice).clamp(1, self.ticks);
                self.ticks -= ticks;
                self.timer = None;
                let most = ticks.saturating_mul(self.slice).min(want as u64);
                return Poll::Ready(usize::try_from(most).unwrap_or(want));
            }
            let next = self.since.unwrap_or(now) + TICK;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
        }
    }
}

/// Where a shaped body comes from.
#[derive(Debug)]
enum Source {
    /// An answer of ours, with the exchange that ends with it.
    Local {
        rest: Option<Bytes>,
        exchange: Box<Exchange>,
    },
    Upstream(Box<UpstreamBody>),
}

/// A body on its way through gzip, throttle, or both in this order.
#[derive(Debug)]
pub struct Shaped {
    source: Source,
    gzip: Option<Gzip>,
    throttle: Option<Throttle>,
    ready: Bytes,
    trailers: Option<HeaderMap>,
    ended: bool,
    sent: u64,
}

impl Shaped {
    /// A body of ours.
    pub(in crate::http) fn local(body: Option<Bytes>, exchange: Box<Exchange>) -> Box<Self> {
        Shaped::new(Source::Local { rest: body, exchange })
    }

    /// A body from an upstream.
    pub(in crate::http) fn upstream(body: Box<UpstreamBody>) -> Box<Self> {
        Shaped::new(Source::Upstream(body))
    }

    fn new(mut source: Source) -> Box<Self> {
        let exchange = source.exchange();
        exchange.bytes_sent = 0;
        let (gzip, throttle) =
            exchange.effects.as_mut().map_or((None, None), |effects| (effects.gzip.take(), effects.throttle.take()));
        Box::new(Shaped { source, gzip, throttle, ready: Bytes::new(), trailers: None, ended: false, sent: 0 })
    }

    /// The body's next piece, as far as it is to go now.
    pub(in crate::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if !self.ready.is_empty() {
                let most = match &mut self.throttle {
                    Some(throttle) => ready!(throttle.poll_take(self.ready.len(), cx)),
                    None => self.ready.len(),
                };
                let piece = self.ready.split_to(most);
                self.sent += piece.len() as u64;
                self.source.exchange().bytes_sent = self.sent;
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let frame = match &mut self.source {
                Source::Local { rest, .. } => rest.take().map(|bytes| Ok(Frame::data(bytes))),
                Source::Upstream(body) => ready!(body.poll_frame(cx)),
            };
            // Undone: the source counts what it gives, and what is sent is another number.
            self.source.exchange().bytes_sent = self.sent;
            match frame.transpose()? {
                Some(frame) => match frame.into_data() {
                    Ok(mut data) => {
                        let data = data.copy_to_bytes(data.remaining());
                        self.ready = match &mut self.gzip {
                            Some(gzip) => gzip.push(&data),
                            None => data,
                        };
                    }
                    // The source is read on, to its end: only then does it give its connection back.
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                None => self.end(),
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(gzip) = &mut self.gzip {
            self.ready = gzip.finish();
        }
    }

    pub(in crate::http) fn is_end_stream(&self) -> bool {
        self.ended && self.ready.is_empty() && self.trailers.is_none()
    }

    /// Known unless the body is compressed.
    pub(in crate::http) fn size_hint(&self) -> SizeHint {
        let rest = match &self.source {
            _ if self.gzip.is_some() => None,
            Source::Local { rest, .. } => Some(rest.as_ref().map_or(0, |rest| rest.len() as u64)),
            Source::Upstream(body) => body.size_hint().exact(),
        };
        rest.map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + self.ready.len() as u64))
    }
}

impl Source {
    fn exchange(&mut self) -> &mut Exchange {
        match self {
            Source::Local { exchange, .. } => exchange,
            Source::Upstream(body) => body.exchange(),
        }
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
