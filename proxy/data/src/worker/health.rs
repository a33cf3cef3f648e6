//! Whether this process fails the health checks that it answers.

use std::sync::atomic::{AtomicBool, Ordering};

/// One for the process, as is the admin interface that sets it.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Set by `/healthcheck/fail`, unset by `/healthcheck/ok`.
pub fn set_health_failed(failed: bool) {
    FAILED.store(failed, Ordering::Relaxed);
}

/// Whether health checks are to fail.
pub fn health_failed() -> bool {
    FAILED.load(Ordering::Relaxed)
}
