//! How long a request may take: several clocks, of which the earliest counts.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use super::body::{BodyLimits, Progress};
use crate::error::ResponseFlag;

/// Bounds on the time until the response's headers. The response's clock starts when the request is complete, as in Envoy.
pub(super) struct Limits {
    /// When the request came.
    pub start: Instant,
    /// How long filters held the request back since then.
    pub held: Duration,
    /// From the request's end to the response's end.
    pub response: Option<Duration>,
    /// Longest pause.
    pub idle: Option<Duration>,
    /// Life of the request, by the listener or the route.
    pub stream: Option<Duration>,
    /// Life of the request, by the cluster.
    pub upstream_stream: Option<Duration>,
    /// Until the request is complete.
    pub request: Option<Duration>,
}

/// Which bound was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// `timeout` of the route.
    Response,
    /// `per_try_timeout` of its retry policy.
    Try,
    /// `stream_idle_timeout`, or the route's.
    Idle {
        /// The request was complete.
        request_done: bool,
    },
    /// `max_stream_duration` of the listener or the route.
    Stream {
        /// The request was complete.
        request_done: bool,
    },
    /// `max_stream_duration` of the cluster.
    UpstreamStream,
    /// `request_timeout`.
    Request,
    /// None yet: the request goes on, so look again.
    Recheck,
}

impl Limits {
    /// Awaits `attempt`, or tells which bound was reached before.
    ///
    /// Takes it pinned: an argument that is then pinned here would stand in the future twice, and be moved once.
    pub async fn watch<F: Future>(
        &self,
        mut attempt: Pin<&mut F>,
        progress: Option<&Progress>,
    ) -> Result<F::Output, Expired> {
        loop {
            let Some((at, _)) = self.next(progress) else { return Ok(attempt.await) };
            tokio::select! {
                biased;
                output = attempt.as_mut() => return Ok(output),
                () = tokio::time::sleep_until(at.into()) => {}
            }
            let due = self.next(progress);
            if let Some((at, expired)) =
                due.filter(|(at, expired)| *at <= Instant::now() && *expired != Expired::Recheck)
            {
                tracing::debug!(?expired, late = ?at.elapsed(), "a request reached a time limit");
                return Err(expired);
            }
        }
    }

    /// The earliest bound that applies now.
    fn next(&self, progress: Option<&Progress>) -> Option<(Instant, Expired)> {
        let done = match progress {
            None => Some(Duration::ZERO),
            Some(progress) => progress.done(),
        };
        let done = done.map(|done| done.max(self.held));
        let activity = progress.map_or(Duration::ZERO, Progress::last_activity).max(self.held);
        let response = match (self.response, done) {
            (Some(limit), Some(done)) => Some((done + limit, Expired::Response)),
            (Some(limit), None) => Some((self.start.elapsed() + limit, Expired::Recheck)),
            (None, _) => None,
        };
        let request = self.request.filter(|_| done.is_none()).map(|limit| (limit, Expired::Request));
        let idle = self.idle.map(|limit| (activity + limit, Expired::Idle { request_done: done.is_some() }));
        let stream = self.stream.map(|limit| (limit, Expired::Stream { request_done: done.is_some() }));
        let upstream_stream = self.upstream_stream.map(|limit| (self.held + limit, Expired::UpstreamStream));
        let earliest =
            [response, request, idle, stream, upstream_stream].into_iter().flatten().min_by_key(|(after, _)| *after)?;
        Some((self.start + earliest.0, earliest.1))
    }

    /// When a tunnel ends at the latest, and what to flag then. The response's clock does not run: its request has no end.
    pub fn tunnel_end(&self) -> Option<(Instant, ResponseFlag)> {
        let stream = self.stream.map(|limit| (self.start + limit, ResponseFlag::DurationTimeout));
        let upstream =
            self.upstream_stream.map(|limit| (self.start + self.held + limit, ResponseFlag::UpstreamMaxStreamDuration));
        [stream, upstream].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Bounds on the response's body.
    pub fn body(&self, progress: Option<&Progress>) -> BodyLimits {
        let done = progress
            .map_or(Some(Duration::ZERO), Progress::done)
            .unwrap_or_else(|| self.start.elapsed())
            .max(self.held);
        let response = self.response.map(|limit| (self.start + done + limit, ResponseFlag::UpstreamRequestTimeout));
        let stream = self.stream.map(|limit| (self.start + limit, ResponseFlag::DurationTimeout));
        let upstream =
            self.upstream_stream.map(|limit| (self.start + self.held + limit, ResponseFlag::UpstreamMaxStreamDuration));
        BodyLimits {
            deadline: [response, stream, upstream].into_iter().flatten().min_by_key(|(at, _)| *at),
            idle: self.idle,
        }
    }
}
