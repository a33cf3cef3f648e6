//! Bodies that are kept while they are sent, for further tries and for copies.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Progress, RequestBody, RequestBodyError, Source};
use crate::model::cluster::Cluster;

/// One try's view of a body that is kept.
#[derive(Debug)]
pub struct Sending {
    kept: Arc<Mutex<Kept>>,
    progress: Arc<Progress>,
    trailers: bool,
    /// Which try; a later one takes the body away from an earlier.
    turn: u32,
    /// Frames of `kept` that this try has sent.
    at: usize,
}

/// What has come of a body so far, and where the rest comes from.
#[derive(Debug)]
pub(super) struct Kept {
    source: Source,
    frames: Vec<KeptFrame>,
    bytes: usize,
    limit: usize,
    /// It got too long to be kept.
    abandoned: bool,
    /// All of it has come before any of it was sent.
    whole: bool,
    /// And its length is told.
    sized: bool,
    turn: u32,
    /// Who gets a copy of it once it is complete.
    copies: Vec<oneshot::Sender<Vec<KeptFrame>>>,
}

impl Kept {
    /// A body of which nothing has come.
    fn new(source: Source, limit: usize) -> Self {
        let frames = Vec::new();
        Kept {
            source,
            frames,
            bytes: 0,
            limit,
            abandoned: false,
            whole: false,
            sized: false,
            turn: 0,
            copies: Vec::new(),
        }
    }

    /// With what has come of it already; `whole`: all of it.
    pub(super) fn begun(source: Source, limit: usize, frames: Vec<KeptFrame>, whole: bool, sized: bool) -> Self {
        let bytes = frames.iter().map(KeptFrame::len).sum();
        Kept { frames, bytes, whole, sized, ..Kept::new(source, limit.max(bytes)) }
    }

    /// Gives copies to those who wait for them: the body is complete.
    fn hand_out(&mut self) {
        if self.copies.is_empty() {
            return;
        }
        let frames = self.frames.clone();
        for copy in self.copies.drain(..) {
            // A copy that is no longer wanted is nobody's loss.
            let _ = copy.send(frames.clone());
        }
    }
}

/// A frame of a body that is kept.
#[derive(Clone, Debug)]
pub(in crate::http) enum KeptFrame {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

impl KeptFrame {
    fn frame(self) -> Frame<Bytes> {
        match self {
            KeptFrame::Data(bytes) => Frame::data(bytes),
            KeptFrame::Trailers(trailers) => Frame::trailers(trailers),
        }
    }

    fn len(&self) -> usize {
        match self {
            KeptFrame::Data(bytes) => bytes.len(),
            KeptFrame::Trailers(_) => 0,
        }
    }
}

/// A body that is all there.
#[derive(Debug)]
pub struct Replay {
    frames: VecDeque<KeptFrame>,
    sized: bool,
}

impl Replay {
    /// Of these frames.
    pub(in crate::http) fn new(frames: Vec<KeptFrame>) -> Self {
        Replay { frames: frames.into(), sized: true }
    }

    /// The same without telling its length, as gRPC has it.
    pub(in crate::http) fn unsized_message(bytes: Bytes) -> Self {
        Replay { frames: VecDeque::from([KeptFrame::Data(bytes)]), sized: false }
    }

    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        self.frames.pop_front().map(KeptFrame::frame)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn left(&self) -> SizeHint {
        match self.sized {
            true => SizeHint::with_exact(self.frames.iter().map(|frame| frame.len() as u64).sum()),
            false => SizeHint::new(),
        }
    }
}

impl RequestBody {
    /// The same body, kept up to `limit` bytes, and what will give a copy of it once it is complete: `None` for an empty one. The copy is given up when the
    /// body breaks off or gets too long.
    pub(in crate::http) fn kept(
        self,
        limit: u32,
        cluster: &Arc<Cluster>,
    ) -> (RequestBody, Option<oneshot::Receiver<Vec<KeptFrame>>>) {
        let mut repeatable = Repeatable::new(self, limit, cluster.clone());
        let copy = repeatable.kept.as_ref().map(|sending| {
            let (copied, copy) = oneshot::channel();
            sending.kept.lock().copies.push(copied);
            copy
        });
        (repeatable.send(), copy)
    }
}

/// A request's body for several tries.
#[derive(Debug)]
pub(in crate::http) struct Repeatable {
    kept: Option<Sending>,
    cluster: Arc<Cluster>,
}

impl Repeatable {
    /// Keeps at most `limit` bytes of it. A body that has been sent in part already is not passed in.
    pub fn new(body: RequestBody, limit: u32, cluster: Arc<Cluster>) -> Self {
        let kept = match body {
            RequestBody::Empty | RequestBody::Replay(_) => None,
            RequestBody::Repeatable(sending) => Some(sending),
            RequestBody::Streaming { source, trailers } => {
                let progress = source.progress().clone();
                let kept = Kept::new(source, limit as usize);
                Some(Sending { kept: Arc::new(Mutex::new(kept)), progress, trailers, turn: 0, at: 0 })
            }
        };
        Repeatable { kept, cluster }
    }

    /// The body for the next try, from its beginning.
    pub fn send(&mut self) -> RequestBody {
        let Some(Sending { kept, progress, trailers, .. }) = &self.kept else { return RequestBody::Empty };
        let turn = {
            let mut kept = kept.lock();
            kept.turn += 1;
            progress.hand_over(false);
            kept.turn
        };
        RequestBody::Repeatable(Sending {
            kept: kept.clone(),
            progress: progress.clone(),
            trailers: *trailers,
            turn,
            at: 0,
        })
    }

    /// Whether a further try would send all of it. If it got too long, that is counted.
    pub fn can_be_sent_again(&self) -> bool {
        let abandoned = self.kept.as_ref().is_some_and(|sending| sending.kept.lock().abandoned);
        if abandoned {
            self.cluster.stats.retry_or_shadow_abandoned().inc();
        }
        !abandoned
    }

    /// Whether all of it has come and been sent.
    pub fn is_sent(&self) -> bool {
        self.kept.as_ref().is_none_or(|sending| sending.progress.done().is_some())
    }
}

impl Sending {
    /// Of a body that has come in part.
    pub(super) fn resume(kept: Kept, progress: Arc<Progress>, trailers: bool) -> Self {
        Sending { kept: Arc::new(Mutex::new(kept)), progress, trailers, turn: 0, at: 0 }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let mut kept = self.kept.lock();
        if kept.turn != self.turn {
            return Poll::Ready(Some(Err(RequestBodyError::Abandoned)));
        }
        if let Some(frame) = kept.frames.get(self.at).cloned() {
            self.at += 1;
            if self.at == kept.frames.len() && (kept.whole || self.progress.done().is_some()) {
                self.progress.hand_over(true);
            }
            if kept.whole && self.at == kept.frames.len() {
                kept.hand_out();
            }
            return Poll::Ready(Some(Ok(frame.frame())));
        }
        if kept.whole {
            return Poll::Ready(None);
        }
        let frame = ready!(kept.source.poll(self.trailers, cx));
        if let Some(Ok(frame)) = &frame
            && !kept.abandoned
        {
            let copy = match (frame.data_ref(), frame.trailers_ref()) {
                (Some(bytes), _) => Some(KeptFrame::Data(bytes.clone())),
                (None, trailers) => trailers.cloned().map(KeptFrame::Trailers),
            };
            kept.bytes += frame.data_ref().map_or(0, Bytes::len);
            if kept.bytes > kept.limit {
                kept.abandoned = true;
                kept.frames = Vec::new();
                kept.copies = Vec::new();
                self.at = 0;
            } else if let Some(copy) = copy {
                kept.frames.push(copy);
                self.at += 1;
            }
        }
        if self.progress.done().is_some() {
            kept.hand_out();
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_at_end(&self) -> bool {
        let kept = self.kept.lock();
        self.at >= kept.frames.len() && (kept.whole || kept.source.is_at_end())
    }

    pub(super) fn left(&self) -> SizeHint {
        let kept = self.kept.lock();
        let sent_before: usize = kept.frames.iter().skip(self.at).map(KeptFrame::len).sum();
        if kept.sized {
            return SizeHint::with_exact(sent_before as u64);
        }
        let rest = kept.source.hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + sent_before as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + sent_before as u64);
        }
        hint
    }
}
