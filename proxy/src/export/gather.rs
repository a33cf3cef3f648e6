//! Time for lines and spans to gather, so that their writer is not woken for each: a wake-up of another thread costs a worker more than the line itself.

use std::time::Duration;

use tokio::time::Instant;

/// How long a queue that was just emptied is left alone. Queues hold 16 Ki lines; those that come meanwhile wake nobody.
const PAUSE: Duration = Duration::from_millis(10);

/// Whether the queue is left alone now.
#[derive(Debug, Default)]
pub struct Gather {
    until: Option<Instant>,
}

impl Gather {
    /// The queue was emptied.
    pub fn begin(&mut self) {
        self.until = Some(Instant::now() + PAUSE);
    }

    /// The queue is not to be looked at before [`Self::over`].
    pub fn goes_on(&self) -> bool {
        self.until.is_some()
    }

    /// Waits for the end of the pause; for ever when there is none. Cancel safe.
    pub async fn over(&mut self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
        self.until = None;
    }
}
