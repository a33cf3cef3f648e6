//! An open loop: requests are due by a fixed schedule, whatever becomes of those before them.
//!
//! One task hands out what is due, any idle lane takes it, and a request is timed from the moment it was due: one that waits for a
//! lane or for a late timer is charged for the wait, so no queue is left out of the percentiles (coordinated omission). How late the
//! schedule itself ran is counted beside.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::histogram::Histogram;

/// The nearest moment that is waited for; sooner ones count as due.
const GRAIN: Duration = Duration::from_micros(5);

/// Requests that are due and not yet sent. It holds what the subject could not take, which the length of the run limits.
#[derive(Default)]
pub struct Queue {
    due: Mutex<VecDeque<Instant>>,
    more: Notify,
}

impl Queue {
    /// The moment that the oldest request was due; waits for one.
    pub async fn take(&self) -> Instant {
        loop {
            // Registered before looking, so that no request slips in between.
            let more = self.more.notified();
            if let Some(due) = self.due.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return due;
            }
            more.await;
        }
    }

    /// Requests that wait for a lane.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn put(&self, due: Instant) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).push_back(due);
        self.more.notify_one();
    }
}

/// The moments that requests are due at: `begin`, and then one every `1 / rate` seconds.
struct Schedule {
    begin: Instant,
    rate: f64,
    given: u64,
}

impl Schedule {
    fn next_due(&self) -> Instant {
        // From the start each time: adding up an interval that was rounded to nanoseconds would drift.
        self.begin + Duration::from_secs_f64(self.given as f64 / self.rate)
    }

    /// The moment of one request that is due by `now`; none when the next is later.
    fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due();
        (due <= now).then(|| {
            self.given += 1;
            due
        })
    }
}

/// Hands out requests at this rate per second until it is dropped; how late each was handed out goes into `lateness`.
pub async fn run(rate: f64, queue: Arc<Queue>, lateness: Arc<Mutex<Histogram>>) {
    let mut schedule = Schedule { begin: Instant::now(), rate: rate.max(0.001), given: 0 };
    let mut timer = Timer::new();
    loop {
        let now = Instant::now();
        while let Some(due) = schedule.take_due(now) {
            lateness.lock().unwrap_or_else(PoisonError::into_inner).record(now.saturating_duration_since(due));
            queue.put(due);
        }
        timer.wait(schedule.next_due().saturating_duration_since(Instant::now()).max(GRAIN)).await;
    }
}

/// Tokio's timers step by a millisecond, in which a fast subject answers a hundred requests; the kernel's step by nanoseconds.
enum Timer {
    Precise(AsyncFd<OwnedFd>),
    Coarse,
}

impl Timer {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types whose descriptor may change; that of an OwnedFd does not"
    )]
    fn new() -> Self {
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .ok()
            .and_then(|timer| AsyncFd::new(timer).ok())
            .map_or(Self::Coarse, Self::Precise)
    }

    async fn wait(&mut self, time: Duration) {
        let Self::Precise(timer) = self else { return tokio::time::sleep(time).await };
        let value = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        if rustix::time::timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once).is_err() {
            return tokio::time::sleep(time).await;
        }
        if let Ok(mut ready) = timer.readable().await {
            let mut expirations = [0; 8];
            let _ = rustix::io::read(ready.get_inner(), &mut expirations);
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_gives_every_request_once_and_never_early() {
        let begin = Instant::now();
        let mut schedule = Schedule { begin, rate: 3_000.0, given: 0 };
        assert_eq!(schedule.take_due(begin), Some(begin));
        assert_eq!(schedule.take_due(begin), None, "the second is due a third of a millisecond later");
        // A late look gets all that were due meanwhile, each with its own moment.
        let late = begin + Duration::from_millis(1);
        let due: Vec<Duration> = std::iter::from_fn(|| schedule.take_due(late)).map(|due| due - begin).collect();
        assert_eq!(due.len(), 3, "{due:?}");
        assert_eq!(due.last(), Some(&Duration::from_millis(1)));
        // No drift: request 3,000,000 is due after 1,000 s exactly.
        schedule.given = 3_000_000;
        assert_eq!(schedule.next_due() - begin, Duration::from_secs(1_000));
    }

    #[tokio::test]
    async fn what_no_lane_took_keeps_its_moment() {
        let queue = Arc::new(Queue::default());
        let (lateness, begin) = (Arc::new(Mutex::new(Histogram::default())), Instant::now());
        let pacing = tokio::spawn(run(10_000.0, queue.clone(), lateness.clone()));
        while queue.waiting() < 20 {
            tokio::task::yield_now().await;
        }
        let (first, second) = (queue.take().await, queue.take().await);
        assert!(first >= begin);
        let apart = (second - first).as_nanos();
        assert!((99_999..=100_001).contains(&apart), "{apart} ns between two requests at 10,000/s");
        pacing.abort();
        assert!(lateness.lock().unwrap_or_else(PoisonError::into_inner).count() >= 20);
    }
}
