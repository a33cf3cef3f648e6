//! How the service ends.

use std::time::Duration;

use shika_data::{
    drain::{DrainScope, DrainStrategy},
    worker::Workers,
};
use tokio::{sync::mpsc, time};
use tracing::info;

use super::Control;
use crate::{
    signals::{Event, Signals},
    state::Command,
};

/// How often it is looked whether connections are left.
const QUIET_STEP: Duration = Duration::from_millis(100);

impl Control {
    /// Ends the service: fails health checks, lets what is in flight finish, and closes what is left when the drain time is over or a second signal comes.
    ///
    /// Kuma's order: readiness and health checks fail, connections drain, listeners close last. `keep_accepting` is how long listeners stay open after the
    /// last connection: a sidecar's peers need a moment to learn that it is going.
    pub async fn shut_down(
        mut self,
        signals: &mut Signals,
        commands: &mut mpsc::Receiver<Command>,
        keep_accepting: Duration,
    ) {
        self.state.terminating.set(true);
        self.state.health_failed.set(true);
        shika_data::worker::set_health_failed(true);
        let drain_time = self.workers.drain_time();
        let deadline = time::Instant::now() + drain_time;
        info!("shutting down: {} connections drain for at most {} s", self.workers.connections(), drain_time.as_secs());
        self.workers.drain(DrainScope::All, Some(DrainStrategy::Immediate), None).await;
        tokio::select! {
            () = quiet(&self.workers, keep_accepting, deadline) => {}
            () = insisted(signals, commands) => return info!("exiting at once"),
        }
        for id in std::mem::take(&mut self.listening) {
            self.workers.stop_listening(id).await;
        }
        tokio::select! {
            () = self.workers.shutdown(deadline) => {}
            () = insisted(signals, commands) => info!("exiting at once"),
        }
    }

    /// `/quitquitquit`: every connection is closed now, and says in its log how far it had come.
    pub async fn quit(self, signals: &mut Signals, commands: &mut mpsc::Receiver<Command>) {
        tokio::select! {
            () = self.workers.shutdown(time::Instant::now()) => {}
            () = insisted(signals, commands) => info!("exiting at once"),
        }
    }
}

/// Waits until there has been no connection for `time`, or until the deadline.
async fn quiet(workers: &Workers, time: Duration, deadline: time::Instant) {
    let mut since = time::Instant::now();
    loop {
        let now = time::Instant::now();
        if workers.connections() > 0 {
            since = now;
        }
        let end = (since + time).min(deadline);
        if now >= end {
            return;
        }
        time::sleep_until(end.min(now + QUIET_STEP)).await;
    }
}

/// A second SIGTERM, or `/quitquitquit`. Other requests of the admin interface are answered meanwhile.
async fn insisted(signals: &mut Signals, commands: &mut mpsc::Receiver<Command>) {
    loop {
        tokio::select! {
            event = signals.next() => if event == Event::Terminate { return },
            command = commands.recv() => match command {
                None | Some(Command::Quit) => return,
                Some(Command::FailHealthCheck(done) | Command::PassHealthCheck(done) | Command::DrainListeners { done, .. }) => {
                    let _ = done.send(());
                }
                Some(Command::StopListeners(_)) => {}
            }
        }
    }
}
