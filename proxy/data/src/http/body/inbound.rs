//! A request's body before it is forwarded: untouched, or held in part or as a whole because a filter looks at it or waits for it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;

use super::{Broken, KeptFrame, Progress, RequestBody, Sending, kept::Kept, progress::poll_incoming};

/// A request's body.
#[derive(Debug)]
pub struct Inbound {
    inner: Incoming,
    held: Vec<KeptFrame>,
    bytes: usize,
    /// Its length is known and told to the upstream.
    sized: bool,
    ended: bool,
}

/// How holding a body went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Hold {
    /// All of it is here.
    Whole,
    /// It is longer than the limit; so much is here, and a little more.
    TooLong,
    /// The client broke off.
    Broken(Broken),
    /// Nothing came for too long.
    Idle,
}

impl Inbound {
    /// As it came.
    pub fn new(inner: Incoming) -> Self {
        let ended = inner.is_end_stream();
        Inbound { inner, held: Vec::new(), bytes: 0, sized: false, ended }
    }

    /// The request has no body.
    pub(in crate::http) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.ended
    }

    /// Nothing more comes.
    pub(in crate::http) fn is_whole(&self) -> bool {
        self.ended
    }

    /// What is held.
    pub(in crate::http) fn held(&self) -> impl Iterator<Item = &Bytes> {
        self.held.iter().filter_map(|frame| match frame {
            KeptFrame::Data(bytes) => Some(bytes),
            KeptFrame::Trailers(_) => None,
        })
    }

    /// Bytes that are held.
    pub(in crate::http) fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// All of it is held, and the upstream is told its length.
    pub(in crate::http) fn set_sized(&mut self) {
        self.sized = self.ended;
    }

    async fn next(
        &mut self,
        progress: &Progress,
        trailers: bool,
        idle: Option<Duration>,
    ) -> Result<Frame<Bytes>, Hold> {
        let inner = &mut self.inner;
        let next = std::future::poll_fn(|cx| poll_incoming(inner, progress, trailers, cx));
        let frame = match idle {
            Some(idle) => tokio::time::timeout(idle, next).await.map_err(|_| Hold::Idle)?,
            None => next.await,
        };
        match frame {
            None => Err(Hold::Whole),
            Some(Err(_)) => Err(Hold::Broken(progress.broken().unwrap_or(Broken::Aborted))),
            Some(Ok(frame)) => {
                self.ended = self.inner.is_end_stream();
                Ok(frame)
            }
        }
    }

    /// Reads on to the end without keeping anything.
    pub(in crate::http) async fn discard(&mut self, progress: &Progress, idle: Option<Duration>) {
        while !self.ended {
            if self.next(progress, false, idle).await.is_err() {
                self.ended = true;
            }
        }
    }

    /// Reads on until all of the body is here, or more than `limit` bytes of it.
    pub(in crate::http) async fn hold(
        &mut self,
        progress: &Progress,
        trailers: bool,
        limit: usize,
        idle: Option<Duration>,
    ) -> Hold {
        while !self.ended {
            if self.bytes > limit {
                return Hold::TooLong;
            }
            match self.next(progress, trailers, idle).await {
                Err(Hold::Whole) => self.ended = true,
                Err(how) => return how,
                Ok(frame) => match frame.into_data() {
                    Ok(data) => {
                        self.bytes += data.len();
                        self.held.push(KeptFrame::Data(data));
                    }
                    Err(frame) => self.held.extend(frame.into_trailers().ok().map(KeptFrame::Trailers)),
                },
            }
        }
        if self.bytes > limit { Hold::TooLong } else { Hold::Whole }
    }

    /// For the upstream. What is held is kept for further tries, up to `limit` bytes.
    pub(in crate::http) fn into_body(self, progress: Arc<Progress>, trailers: bool, limit: u32) -> RequestBody {
        let Inbound { inner, held, bytes: _, sized, ended } = self;
        if held.is_empty() {
            if ended {
                return RequestBody::Empty;
            }
            return RequestBody::Streaming { source: progress.read_from(inner), trailers };
        }
        let kept = Kept::begun(progress.read_from(inner), limit as usize, held, ended, sized);
        RequestBody::Repeatable(Sending::resume(kept, progress, trailers))
    }
}
