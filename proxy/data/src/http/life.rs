//! How busy an HTTP connection is, and when that ends it.

use std::{
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::coop};

use super::{
    body::{BodyError, ResponseBody},
    guard::Refused,
};
use crate::{connection::Connection, io::DownstreamIo, model::http::HttpConnectionManager};

/// While draining, a connection that is idle for this long is closed. Longer than the pause between two requests of a busy client, so that it is told by
/// `connection: close` instead of finding the connection gone.
pub const DRAIN_IDLE: Duration = Duration::from_millis(500);
/// An HTTP/1 connection that is idle for this long gives back what only requests need. Soon, so that connections that are opened in one go do not all
/// hold it at a time; longer than the pauses of a busy client.
const REST: Duration = Duration::from_millis(100);
/// How long a connection that was busy is left in peace.
const BUSY: Duration = Duration::from_secs(1);
/// Stands for "no limit" where a timer is needed all the same.
const LONG: Duration = Duration::from_secs(86_400);

/// What a connection's tasks tell one another. All of them run on one worker: nothing here is contended.
#[derive(Debug)]
pub struct Life {
    active: AtomicU32,
    idle_since: Mutex<Instant>,
    requests: AtomicU32,
    /// Bytes of a response may still be on their way through hyper.
    answering: AtomicBool,
    /// Or behind it, on their way to the kernel.
    unsent: AtomicBool,
    /// The peer has taken bytes since this was last looked at.
    moved: AtomicBool,
    /// The connection has left HTTP.
    raw: AtomicBool,
    /// The number of the request behind which nothing is looked at any more; 0 until there is one.
    leaving: AtomicU32,
    refused: Mutex<Option<Refused>>,
    is_refused: AtomicBool,
    head_since: Mutex<Option<Instant>>,
    used_up: Notify,
    peer_closed: AtomicBool,
    /// Requests whose last byte has been read, while hyper waits for the next; else [`UNSETTLED`].
    settled: AtomicU32,
    /// hyper is to be taken away from the connection, and what it holds of it comes here.
    resting: AtomicBool,
    rested: Mutex<Option<Box<DownstreamIo>>>,
}

/// There is something of a request.
const UNSETTLED: u32 = u32::MAX;

impl Default for Life {
    fn default() -> Self {
        Life {
            active: AtomicU32::new(0),
            idle_since: Mutex::new(Instant::now()),
            requests: AtomicU32::new(0),
            answering: AtomicBool::new(false),
            unsent: AtomicBool::new(false),
            moved: AtomicBool::new(false),
            raw: AtomicBool::new(false),
            leaving: AtomicU32::new(0),
            refused: Mutex::default(),
            is_refused: AtomicBool::new(false),
            head_since: Mutex::default(),
            used_up: Notify::new(),
            peer_closed: AtomicBool::new(false),
            settled: AtomicU32::new(UNSETTLED),
            resting: AtomicBool::new(false),
            rested: Mutex::default(),
        }
    }
}

/// Why a connection is ended from here.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// No request for the idle timeout.
    Idle,
    /// `max_connection_duration`
    Old,
    /// `max_requests_per_connection`
    Used,
    /// It drains.
    Drain,
    /// It was told to end and has not.
    Stuck,
    /// It does not end: it has been idle for a moment, and what only requests need can be given back.
    Rest,
}

impl End {
    /// Counts it.
    pub fn count(self, manager: &HttpConnectionManager) {
        match self {
            End::Idle => manager.stats.downstream_cx_idle_timeout().inc(),
            End::Old => manager.stats.downstream_cx_max_duration_reached().inc(),
            End::Used => manager.stats.downstream_cx_max_requests_reached().inc(),
            End::Drain => manager.stats.downstream_cx_drain_close().inc(),
            End::Stuck => manager.stats.downstream_cx_delayed_close_timeout().inc(),
            End::Rest => {}
        }
    }
}

impl Life {
    /// Requests so far.
    pub fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// The last request that the connection may carry is being answered.
    pub fn used_up(&self) {
        self.used_up.notify_one();
    }

    /// The peer has closed its side, before we closed ours.
    pub fn peer_closes(&self) {
        self.peer_closed.store(true, Relaxed);
    }

    /// Whether the peer closed first.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed.load(Relaxed)
    }

    /// Waits for [`Life::used_up`].
    pub async fn is_used_up(&self) {
        self.used_up.notified().await;
    }

    /// The request that is coming in is refused; the first reason counts.
    pub fn refuse(&self, why: Refused) {
        self.refused.lock().get_or_insert(why);
        self.is_refused.store(true, Relaxed);
    }

    /// Why the connection's last request was refused before it was one.
    pub fn refused(&self) -> Option<Refused> {
        self.is_refused.load(Relaxed).then(|| *self.refused.lock()).flatten()
    }

    /// The request of this number, from 1, asks to leave HTTP: no other may follow it.
    pub fn may_leave_http(&self, request: u32) {
        self.leaving.store(request, Relaxed);
    }

    /// Whether the request that is being served, the `n`th, is the last that was looked at before hyper saw it.
    pub fn is_leaving(&self, n: u32) -> bool {
        self.leaving.load(Relaxed) == n
    }

    /// Whether the connection has left HTTP.
    pub fn is_raw(&self) -> bool {
        self.raw.load(Relaxed)
    }

    /// Whether what hyper writes now may belong to a response of ours. If not, it is hyper's own answer to a head that it cannot parse.
    pub fn is_answering(&self) -> bool {
        self.answering.load(Relaxed)
    }

    /// Whether a request is under way.
    pub fn is_active(&self) -> bool {
        self.active.load(Relaxed) > 0
    }

    /// hyper has written all it had; `sent` if the connection has no more of it either.
    pub fn flushed(&self, sent: bool) {
        if !self.is_active() {
            self.answering.store(false, Relaxed);
        }
        self.unsent.store(!sent, Relaxed);
    }

    /// The peer takes what is written, as far as the kernel tells.
    pub fn moves(&self) {
        self.moved.store(true, Relaxed);
    }

    /// hyper waits for bytes; `heads` requests were read to their end, `None` if one is not.
    pub fn settles(&self, heads: Option<u32>) {
        self.settled.store(heads.unwrap_or(UNSETTLED), Relaxed);
    }

    /// Whether hyper is not needed: every request that it has read is answered, and all that it had is written and sent.
    fn can_rest(&self) -> bool {
        !self.is_active()
            && !self.is_answering()
            && !self.unsent.load(Relaxed)
            && !self.is_raw()
            && !self.is_refused.load(Relaxed)
            && !self.peer_closed()
            && self.settled.load(Relaxed) == self.requests()
    }

    /// From now on what is dropped of the connection leaves its stream behind, for [`Life::wakes`].
    pub fn rest(&self) {
        self.resting.store(true, Relaxed);
    }

    /// Takes the stream of a connection that rests.
    pub fn left_behind(&self, io: DownstreamIo) {
        if self.resting.load(Relaxed) {
            *self.rested.lock() = Some(Box::new(io));
        }
    }

    /// The stream that was left behind.
    pub fn wakes(&self) -> Option<Box<DownstreamIo>> {
        self.resting.store(false, Relaxed);
        self.settled.store(UNSETTLED, Relaxed);
        self.rested.lock().take()
    }

    /// Whether a head has begun and not ended.
    pub fn head_is_under_way(&self, begun: bool) {
        let mut since = self.head_since.lock();
        *since = if begun { Some(since.unwrap_or_else(Instant::now)) } else { None };
    }

    /// Resolves when a head has been under way for longer than `limit`.
    pub async fn late(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        let mut timer = None;
        poll_fn(|cx| {
            let since = *self.head_since.lock();
            let Some(since) = since.filter(|_| !self.is_refused.load(Relaxed)) else {
                timer = None;
                return Poll::Pending;
            };
            let (armed_for, timer) =
                timer.get_or_insert_with(|| (since, Box::pin(tokio::time::sleep_until((since + limit).into()))));
            if *armed_for != since {
                *armed_for = since;
                timer.as_mut().reset((since + limit).into());
            }
            timer.as_mut().poll(cx)
        })
        .await;
    }

    /// When to look again whether the connection has been idle, or has lived, for too long; the error is that it has.
    pub fn next_end(
        &self,
        connection: &Connection,
        manager: &HttpConnectionManager,
        now: Instant,
    ) -> Result<Instant, End> {
        let oldest = manager.timeouts.max_connection.map(|limit| connection.start + limit);
        let draining = connection.drain.is_draining();
        if draining && self.active.load(Relaxed) == 0 && now.duration_since(*self.idle_since.lock()) >= DRAIN_IDLE {
            return Err(End::Drain);
        }
        let idle = manager.timeouts.idle.map(|limit| match self.active.load(Relaxed) {
            0 => *self.idle_since.lock() + limit,
            _ => now + limit,
        });
        let next = match (idle, oldest) {
            (_, Some(oldest)) if oldest <= now => return Err(End::Old),
            (Some(idle), _) if idle <= now && self.active.load(Relaxed) == 0 => return Err(End::Idle),
            (Some(idle), Some(oldest)) => idle.min(oldest),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => now + LONG,
        };
        Ok(if draining { next.min(now + DRAIN_IDLE) } else { next })
    }

    /// Resolves when the connection has been idle, or has lived, for too long; with `rests` also when it has nothing to do for a moment. Re-arms itself by
    /// looking at what happened meanwhile, so that a request costs no timer. For the task that a change of the connection's drain wakes anyway.
    pub async fn end(&self, connection: &Connection, manager: &HttpConnectionManager, rests: bool) -> End {
        if rests && manager.timeouts.max_connection.is_none() {
            // A connection may have come with one request and leave with its answer, so that a timer would be set in vain. The task is woken for both.
            let draining = connection.drain.is_draining();
            poll_fn(|_| match self.is_active() && connection.drain.is_draining() == draining {
                true => Poll::Pending,
                false => Poll::Ready(()),
            })
            .await;
        }
        // Or many such ones have come in one go.
        let mut look = REST;
        loop {
            let now = Instant::now();
            let draining = connection.drain.is_draining();
            let next = match self.next_end(connection, manager, now) {
                Ok(next) => next,
                Err(end) => return end,
            };
            let next = match *self.idle_since.lock() + REST {
                _ if !rests => next,
                _ if self.is_active() => next.min(now + mem::replace(&mut look, BUSY)),
                rested if rested > now => next.min(rested),
                _ if self.can_rest() => return End::Rest,
                // Half a request has come, or the end of an answer waits for its reader.
                _ => next.min(now + BUSY),
            };
            let mut timer = pin!(tokio::time::sleep_until(next.into()));
            let mut armed: Option<Waker> = None;
            poll_fn(|cx| {
                if !draining && connection.drain.is_draining() {
                    return Poll::Ready(());
                }
                // The task is woken for every request. A timer that will wake it in its time need not be told so again.
                if !timer.is_elapsed() && armed.as_ref().is_some_and(|armed| armed.will_wake(cx.waker())) {
                    return Poll::Pending;
                }
                // Without budget the timer does not take the waker.
                armed = coop::has_budget_remaining().then(|| cx.waker().clone());
                timer.as_mut().poll(cx)
            })
            .await;
        }
    }

    /// Resolves once a connection that was told to end has served nothing for `limit`, and its peer has taken nothing of what is left.
    pub async fn overstays(&self, limit: Duration) {
        loop {
            self.moved.store(false, Relaxed);
            tokio::time::sleep(limit).await;
            if !self.is_active() && !self.moved.load(Relaxed) && self.idle_since.lock().elapsed() >= limit {
                return;
            }
        }
    }
}

/// A request under way, until the last of its response is in hyper's hands.
#[derive(Debug)]
pub struct Active(Arc<Life>);

impl Active {
    /// Counts it.
    pub fn new(life: Arc<Life>) -> Self {
        life.active.fetch_add(1, Relaxed);
        life.requests.fetch_add(1, Relaxed);
        life.answering.store(true, Relaxed);
        Active(life)
    }

    /// Counts what goes on behind a request's answer.
    pub fn tunnel(life: Arc<Life>) -> Self {
        life.active.fetch_add(1, Relaxed);
        Active(life)
    }

    /// What follows the response is not HTTP.
    pub fn leaves_http(&self) {
        self.0.raw.store(true, Relaxed);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Relaxed) == 1 {
            *self.0.idle_since.lock() = Instant::now();
        }
    }
}

/// A response's body that keeps its request active.
#[derive(Debug)]
pub struct Answered {
    body: ResponseBody,
    _active: Active,
}

impl Answered {
    /// Joins them.
    pub fn new(body: ResponseBody, active: Active) -> Self {
        Answered { body, _active: active }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_rests_only_when_nothing_of_a_request_is_left() {
        let life = Arc::new(Life::default());
        assert!(!life.can_rest(), "hyper has not asked for bytes yet");
        life.settles(Some(0));
        assert!(life.can_rest());
        let active = Active::new(life.clone());
        life.settles(Some(1));
        assert!(!life.can_rest(), "a request is being served");
        drop(active);
        assert!(!life.can_rest(), "its answer is not written");
        life.flushed(false);
        assert!(!life.is_answering() && !life.can_rest(), "nor sent when it is");
        life.flushed(true);
        assert!(life.can_rest());
        for (heads, why) in [(None, "half a request has come"), (Some(2), "one that was read is not served yet")] {
            life.settles(heads);
            assert!(!life.can_rest(), "{why}");
        }
        life.settles(Some(1));
        life.peer_closes();
        assert!(!life.can_rest(), "the peer has gone");
    }

    #[test]
    fn only_what_rests_leaves_its_stream_behind() {
        let life = Life::default();
        life.settles(Some(0));
        life.rest();
        assert!(life.wakes().is_none(), "nothing was dropped");
        assert!(!life.can_rest(), "what was known of the last codec does not count for the next");
    }
}
