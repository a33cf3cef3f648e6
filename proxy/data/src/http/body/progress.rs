//! How far a request's body has come.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::RequestBodyError;
use crate::{
    error::ResponseFlag,
    http::{filter::RequestMessages, headers as names, local_reply::Refusal},
};

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
    handed_over: AtomicBool,
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
    pub(in crate::http) fn refusal(self) -> Refusal {
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
            handed_over: AtomicBool::new(false),
            broken: OnceLock::new(),
            abandoned: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            messages: OnceLock::new(),
        })
    }

    /// Has the messages that come from now on counted. Once for each request.
    pub(in crate::http) fn count_messages(&self, by: Vec<RequestMessages>) {
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

    /// Whether the upstream connection has taken all of it: of what was held before it was sent, that is later than `done`.
    pub(in crate::http) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Relaxed)
    }

    /// Whether the upstream connection has all of it now; a further try begins anew.
    pub(super) fn hand_over(&self, all: bool) {
        self.handed_over.store(all, Relaxed);
    }

    /// The request is over while its body is not: whoever sends it upstream stops, and what is left is not read.
    pub fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
        let source = self.source.lock().take();
        drop(source);
        self.reader.wake();
    }

    /// What of the body has not come yet comes from here, for as long as the returned value lives and the request is not over.
    pub(super) fn read_from(self: &Arc<Self>, source: Incoming) -> Source {
        *self.source.lock() = Some(source);
        Source(self.clone())
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

impl Source {
    /// What its frames are counted by.
    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.0
    }

    /// The next frame.
    pub(super) fn poll(
        &self,
        trailers: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let frame = match &mut *self.0.source.lock() {
            Some(source) => poll_incoming(source, &self.0, trailers, cx),
            None => Poll::Ready(Some(Err(RequestBodyError::Abandoned))),
        };
        if self.0.done.load(Relaxed) {
            self.0.hand_over(true);
        }
        frame
    }

    /// Whether nothing more comes.
    pub(super) fn is_at_end(&self) -> bool {
        self.0.source.lock().as_ref().is_some_and(Body::is_end_stream)
    }

    /// How much more comes.
    pub(super) fn hint(&self) -> SizeHint {
        self.0.source.lock().as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let source = self.0.source.lock().take();
        drop(source);
    }
}

/// The next frame from the downstream.
pub(super) fn poll_incoming(
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
