//! Messages that anyone can cause by connecting: said at once, then at most once per interval, with how often it happened meanwhile.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use foldhash::HashMap;
use parking_lot::Mutex;

use crate::model::ListenerId;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// A redirected connection would come back here for ever.
    RedirectLoop,
    /// No filter chain takes a connection.
    NoChain,
    /// A peer's certificate is not accepted, or missing.
    Certificate,
}

/// The interval.
const INTERVAL: Duration = Duration::from_secs(10);

/// Of all workers; taken only when something is refused.
static NOTICES: LazyLock<Mutex<Notices>> = LazyLock::new(Mutex::default);

/// Whether to tell something about a listener now; the number is how often it was kept back since it was told last.
pub(crate) fn due(listener: ListenerId, notice: Notice) -> Option<u64> {
    NOTICES.lock().due(listener, notice, Instant::now())
}

/// When each thing was last told. As many entries as there were listeners, at most three times.
#[derive(Debug, Default)]
struct Notices(HashMap<(ListenerId, Notice), Told>);

#[derive(Debug)]
struct Told {
    last: Instant,
    kept_back: u64,
}

impl Notices {
    fn due(&mut self, listener: ListenerId, notice: Notice, now: Instant) -> Option<u64> {
        let mut first = false;
        let told = self.0.entry((listener, notice)).or_insert_with(|| {
            first = true;
            Told { last: now, kept_back: 0 }
        });
        if first {
            return Some(0);
        }
        if now.saturating_duration_since(told.last) < INTERVAL {
            told.kept_back += 1;
            return None;
        }
        told.last = now;
        Some(std::mem::take(&mut told.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_told_once_per_interval_with_its_number() {
        let mut notices = Notices::default();
        let (listener, other, start) = (ListenerId(1), ListenerId(2), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(notices.due(listener, Notice::NoChain, at(0)), Some(0));
        assert_eq!(notices.due(listener, Notice::NoChain, at(1)), None);
        assert_eq!(notices.due(listener, Notice::NoChain, at(9)), None);
        assert_eq!(notices.due(listener, Notice::RedirectLoop, at(9)), Some(0));
        assert_eq!(notices.due(other, Notice::NoChain, at(9)), Some(0));
        assert_eq!(notices.due(listener, Notice::NoChain, at(10)), Some(2));
        assert_eq!(notices.due(listener, Notice::NoChain, at(11)), None);
        assert_eq!(notices.due(listener, Notice::NoChain, at(30)), Some(1));
    }
}
