//! Signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM, SIGINT.
    Terminate,
    /// SIGUSR1: logs were rotated.
    Reopen,
    /// SIGUSR2: drain inbound listeners (kuma-dp's meaning).
    DrainInbound,
}

/// The signals that are listened to.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
    drain: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// The system refuses one.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reopen: signal(SignalKind::user_defined1())?,
            drain: signal(SignalKind::user_defined2())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGTERM or SIGINT; others are passed over.
    pub async fn terminated(&mut self) {
        while self.next().await != Event::Terminate {}
    }

    /// The next one. SIGHUP is taken and means nothing, so that a closed terminal does not end the process.
    pub async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Event::Terminate,
                _ = self.interrupt.recv() => return Event::Terminate,
                _ = self.reopen.recv() => return Event::Reopen,
                _ = self.drain.recv() => return Event::DrainInbound,
                _ = self.hangup.recv() => {}
            }
        }
    }
}
