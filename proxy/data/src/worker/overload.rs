//! What the overload manager has decided, for all workers.
//!
//! Source: Envoy documentation, "Overload manager"; `extensions.resource_monitors.downstream_connections.v3`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Most downstream connections of the process at a time.
static MOST_CONNECTIONS: AtomicU64 = AtomicU64::new(u64::MAX);
/// Those there are; counted only while there is a limit.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
static STOP_REQUESTS: AtomicBool = AtomicBool::new(false);

/// Limits the downstream connections of the process, listeners apart that ignore it. To be set before the first one is accepted.
pub fn set_connection_limit(most: u64) {
    MOST_CONNECTIONS.store(most, Ordering::Relaxed);
}

/// `envoy.overload_actions.stop_accepting_requests`: requests are answered with 503 while it is set.
pub fn set_stop_requests(stop: bool) {
    STOP_REQUESTS.store(stop, Ordering::Relaxed);
}

/// Whether requests are turned away.
pub(crate) fn stops_requests() -> bool {
    STOP_REQUESTS.load(Ordering::Relaxed)
}

/// A place among the connections of the process; given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Place {
    counted: bool,
}

/// Takes a place. `None`: all are taken.
pub(crate) fn place() -> Option<Place> {
    let most = MOST_CONNECTIONS.load(Ordering::Relaxed);
    if most == u64::MAX {
        return Some(Place::default());
    }
    let one_more = |there: u64| (there < most).then_some(there + 1);
    CONNECTIONS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok().then_some(Place { counted: true })
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.counted {
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
