//! Draining: how a live connection learns that it should end, or must.
//!
//! Source: Envoy "Draining" (`--drain-time-s`, `--drain-strategy`). A connection has one place in the drain window, drawn when it is accepted; with the
//! gradual strategy it starts to drain when that share of the window has passed, so that over all connections the share that drains grows linearly,
//! as Envoy's per-response probability does.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::model::{ChainId, ListenerId};

/// Where a connection stands. Ordered: later is closer to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Serves.
    Open = 0,
    /// Finishes what it has and takes no more: HTTP answers with `Connection: close` or GOAWAY. Raw TCP goes on.
    Draining = 1,
    /// Must end now: the drain time is over, or a policy no longer allows it.
    Closing = 2,
}

/// One connection's view of drains.
#[derive(Debug)]
pub struct Watch {
    phase: AtomicU8,
    /// The connection's own task: it is woken for every request or piece of data, and waits at the price of a look each time.
    server: AtomicWaker,
    /// Everybody else.
    others: Notify,
    place: u16,
}

impl Watch {
    /// `place` is the connection's place in a gradual drain: it starts when `place / 65536` of the drain time has passed.
    pub fn new(place: u16) -> Self {
        Watch { phase: AtomicU8::new(Phase::Open as u8), server: AtomicWaker::new(), others: Notify::new(), place }
    }

    /// Where the connection stands now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Draining,
            _ => Phase::Closing,
        }
    }

    /// Whether the connection should take no more requests.
    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Ready once the phase is `wanted` or later. Any change wakes the task. For the connection's own task, copier or HTTP server; a second one would not be woken.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, wanted: Phase) -> Poll<()> {
        if self.phase() >= wanted {
            return Poll::Ready(());
        }
        self.server.register(cx.waker());
        // Set between the load and the registration: the waker was not there to be woken.
        if self.phase() >= wanted { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until the connection must end.
    pub async fn closing(&self) {
        self.reached(Phase::Closing).await;
    }

    /// Waits until the connection is further than in `phase`; at once if there is nothing further.
    pub fn after(&self, phase: Phase) -> impl Future<Output = ()> {
        self.reached(if phase == Phase::Open { Phase::Draining } else { Phase::Closing })
    }

    async fn reached(&self, wanted: Phase) {
        loop {
            // Made before the look: a change between the two completes it.
            let change = self.others.notified();
            if self.phase() >= wanted {
                return;
            }
            change.await;
        }
    }

    /// Moves to `phase`. `Closing` is final; `Draining` may be taken back by `Open` (admin `/healthcheck/ok`).
    pub fn set(&self, phase: Phase) {
        let changed = self.phase.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (now != phase as u8 && now != Phase::Closing as u8).then_some(phase as u8)
        });
        if changed.is_ok() {
            self.server.wake();
            self.others.notify_waiters();
        }
    }

    /// Whether this connection's turn has come when `elapsed` of a gradual drain over `window` has passed.
    pub fn turn_has_come(&self, elapsed: Duration, window: Duration) -> bool {
        elapsed >= window || elapsed.as_secs_f64() / window.as_secs_f64() * 65536.0 >= f64::from(self.place)
    }
}

/// `--drain-strategy`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainStrategy {
    /// Spread over the drain time. Envoy's default.
    #[default]
    Gradual,
    /// All at once.
    Immediate,
}

/// Which connections drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainScope {
    /// All of them: shutdown, `/drain_listeners`, `/healthcheck/fail`.
    All,
    /// Those of listeners with [`crate::model::listener::TrafficDirection::Inbound`]: `/drain_listeners?inboundonly`.
    Inbound,
    /// Those of one listener.
    Listener(ListenerId),
    /// Those of one filter chain.
    Chain(ListenerId, ChainId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_move_forward_and_only_an_open_end_comes_back() {
        let watch = Watch::new(0);
        watch.set(Phase::Draining);
        assert_eq!(watch.phase(), Phase::Draining);
        watch.set(Phase::Open);
        assert_eq!(watch.phase(), Phase::Open);
        watch.set(Phase::Closing);
        watch.set(Phase::Open);
        watch.set(Phase::Draining);
        assert_eq!(watch.phase(), Phase::Closing);
    }

    #[test]
    fn places_spread_over_the_window() {
        let window = Duration::from_secs(100);
        for (place, elapsed, expected) in
            [(0, 0, true), (1, 0, false), (32768, 49, false), (32768, 50, true), (65535, 99, false), (65535, 100, true)]
        {
            assert_eq!(
                Watch::new(place).turn_has_come(Duration::from_secs(elapsed), window),
                expected,
                "{place} at {elapsed}"
            );
        }
        assert!(Watch::new(65535).turn_has_come(Duration::ZERO, Duration::ZERO));
    }

    #[tokio::test]
    async fn a_waiter_is_woken() {
        let watch = std::sync::Arc::new(Watch::new(7));
        let waiter = tokio::spawn({
            let watch = watch.clone();
            async move { watch.closing().await }
        });
        tokio::task::yield_now().await;
        watch.set(Phase::Draining);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        watch.set(Phase::Closing);
        assert!(waiter.await.is_ok());
    }
}
