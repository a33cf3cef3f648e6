//! The threads and what the control thread asks of them.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::Instant,
};

use super::local::{self, Published, SnapshotRef};
use crate::{
    connection::Connection,
    drain::{DrainScope, DrainStrategy, Phase},
    io::outbox,
    listen::{self, Bound, BoundListener},
    model::ListenerId,
    snapshot::Snapshot,
    stats::{self, ServerStats},
};

/// How workers are started.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Number of threads, at least 1 (`--concurrency`).
    pub count: usize,
    /// `server.*`: a task that panics counts `worker_panic` and ends alone.
    pub server: ServerStats,
    /// `--drain-time-s`; Envoy's default 600 s.
    pub drain_time: Duration,
    /// `--drain-strategy`
    pub drain_strategy: DrainStrategy,
}

/// All workers. Owned by the control thread.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    drain_time: Duration,
    drain_strategy: DrainStrategy,
}

#[derive(Debug)]
struct Worker {
    commands: mpsc::UnboundedSender<(Command, oneshot::Sender<()>)>,
    live: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// Only the control thread sends these, a handful per configuration change and each awaited, so the queue needs no bound.
#[derive(Debug)]
enum Command {
    Publish(Published),
    EndpointsChanged,
    Listen(ListenerId, Vec<Bound>),
    StopListening(ListenerId),
    Drain { scope: DrainScope, strategy: DrainStrategy, close_after: Option<Duration> },
    Resume,
    CloseAll,
    Stop,
}

impl Workers {
    /// Starts the threads. Fails when the system has no thread or no epoll instance left.
    pub fn start(config: WorkerConfig) -> io::Result<Workers> {
        let mut workers = Vec::new();
        for index in 0..config.count.max(1) {
            let (commands, receiver) = mpsc::unbounded_channel();
            let live = Arc::new(AtomicU64::new(0));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn({
                let (config, live) = (config.clone(), live.clone());
                move || {
                    stats::enter_worker(index);
                    local::enter(live);
                    runtime.block_on(run(index, config, receiver));
                    // Connections that outlived the deadline end here, as dropped futures on this thread.
                    drop(runtime);
                }
            })?;
            workers.push(Worker { commands, live, thread });
        }
        Ok(Workers { workers, drain_time: config.drain_time, drain_strategy: config.drain_strategy })
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// Publishes to every worker and returns when all of them use it. Closes live connections that a network RBAC no longer allows, and drains those whose
    /// listener or chain is gone or demands something else of the peer; touches no other.
    pub async fn publish(&self, snapshot: Arc<Snapshot>) {
        let published = Published::new(snapshot);
        self.all(|_| Command::Publish(published.clone())).await;
    }

    /// Has every worker let go of connections to endpoints that are gone, when nothing else has changed. No request picks them any more, and each worker
    /// would find them within a second.
    pub async fn endpoints_changed(&self) {
        self.all(|_| Command::EndpointsChanged).await;
    }

    /// Starts accepting on sockets that are already bound. Publish the listener first: a connection whose listener is not in the snapshot is closed.
    pub async fn listen(&self, bound: BoundListener) {
        let BoundListener { id, mut per_worker, .. } = bound;
        per_worker.resize_with(self.workers.len(), Vec::new);
        per_worker.reverse();
        self.all(|_| Command::Listen(id, per_worker.pop().unwrap_or_default())).await;
    }

    /// Stops accepting for a listener and closes its sockets. Live connections stay; publishing a snapshot without the listener, or [`Workers::drain`],
    /// drains them.
    pub async fn stop_listening(&self, listener: ListenerId) {
        self.all(|_| Command::StopListening(listener)).await;
    }

    /// Begins to drain a scope over the drain time, by `strategy` or the configured one, and returns at once. With `close_after` what is left is closed
    /// after that time. `All` and `Inbound` also hold for connections accepted later, until [`Workers::resume`].
    pub async fn drain(&self, scope: DrainScope, strategy: Option<DrainStrategy>, close_after: Option<Duration>) {
        let strategy = strategy.unwrap_or(self.drain_strategy);
        self.all(|_| Command::Drain { scope, strategy, close_after }).await;
    }

    /// Takes back drains of `All` and `Inbound` (`/healthcheck/ok`). A connection that already told its peer ends nevertheless.
    pub async fn resume(&self) {
        self.all(|_| Command::Resume).await;
    }

    /// Live downstream connections, from the end of their TLS handshake on.
    pub fn connections(&self) -> u64 {
        self.workers.iter().map(|worker| worker.live.load(Ordering::Relaxed)).sum()
    }

    /// `--drain-time-s`
    pub fn drain_time(&self) -> Duration {
        self.drain_time
    }

    /// Waits until no connection is left or the deadline has passed, then ends connections and threads.
    pub async fn shutdown(self, deadline: Instant) {
        // A poll is enough: this runs once in the life of the process.
        while self.connections() > 0 && Instant::now() < deadline {
            let tick = (Instant::now() + Duration::from_millis(20)).min(deadline);
            tokio::time::sleep_until(tick).await;
        }
        self.all(|_| Command::CloseAll).await;
        self.all(|_| Command::Stop).await;
        let threads: Vec<_> = self.workers.into_iter().map(|worker| worker.thread).collect();
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().filter_map(|thread| thread.join().err()).count())
                .await;
        match joined {
            Ok(0) => {}
            Ok(panicked) => tracing::error!(panicked, "worker threads panicked"),
            Err(error) => tracing::error!(%error, "could not wait for the workers"),
        }
    }

    /// Sends every worker a command and waits until all have carried it out. A worker that is gone does not answer and is not waited for.
    async fn all(&self, mut command: impl FnMut(usize) -> Command) {
        let answers: Vec<_> = self
            .workers
            .iter()
            .enumerate()
            .map(|(index, worker)| {
                let (done, answer) = oneshot::channel();
                if worker.commands.send((command(index), done)).is_err() {
                    tracing::error!(worker = index, "worker is gone");
                }
                answer
            })
            .collect();
        for answer in answers {
            let _ = answer.await;
        }
    }
}

/// How often a worker looks for upstream connections that are idle or belong to endpoints that are gone.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How exactly the intervals of outlier detection are kept.
const OUTLIER_TICK: Duration = Duration::from_millis(100);

/// One worker's own task: carries out commands in order.
async fn run(
    index: usize,
    config: WorkerConfig,
    mut commands: mpsc::UnboundedReceiver<(Command, oneshot::Sender<()>)>,
) {
    tokio::spawn(outbox::serve());
    let mut accepting: Vec<(ListenerId, AbortHandle)> = Vec::new();
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut outliers = tokio::time::interval(OUTLIER_TICK);
    outliers.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (command, done) = tokio::select! {
            command = commands.recv() => match command {
                Some(command) => command,
                None => break,
            },
            _ = housekeeping.tick() => {
                local::housekeep();
                continue;
            }
            // One worker looks for all: what is counted is the endpoints' own.
            _ = outliers.tick(), if index == 0 && local::detects_outliers() => {
                local::look_for_outliers();
                continue;
            }
        };
        match command {
            Command::Publish(published) => {
                let drained = local::take(SnapshotRef::new(&published));
                if !drained.is_empty() {
                    tokio::spawn(drain(
                        drained,
                        config.drain_time,
                        config.drain_strategy,
                        Some(config.drain_time),
                        None,
                    ));
                }
            }
            Command::EndpointsChanged => local::let_go(),
            Command::Listen(id, sockets) => {
                for socket in sockets {
                    let server = config.server.clone();
                    match listen::start(id, socket, server) {
                        Ok(task) => accepting.push((id, task)),
                        Err(error) => tracing::error!(listener = id.0, %error, "cannot serve a bound socket"),
                    }
                }
            }
            Command::StopListening(id) => {
                accepting.retain(|(listener, task)| {
                    if *listener == id {
                        task.abort();
                    }
                    *listener != id
                });
                // An aborted task gives its socket back when the runtime gets to it; after this answer the address can be bound again.
                tokio::task::yield_now().await;
            }
            Command::Drain { scope, strategy, close_after } => {
                let members = local::members(scope);
                let standing = matches!(scope, DrainScope::All | DrainScope::Inbound);
                if standing {
                    local::begin_standing(scope);
                }
                tokio::spawn(drain(members, config.drain_time, strategy, close_after, standing.then_some(scope)));
            }
            Command::Resume => local::end_standing(),
            Command::CloseAll => {
                for connection in local::members(DrainScope::All).iter().filter_map(Weak::upgrade) {
                    connection.drain.set(Phase::Closing);
                }
                // Lets each connection's task see it, write its log line and count down.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
            }
            Command::Stop => {
                let _ = done.send(());
                return;
            }
        }
        let _ = done.send(());
    }
}

/// Steps in which a gradual drain moves.
const DRAIN_STEPS: u32 = 64;

/// Drains a fixed set of connections. Stops when the standing drain that it belongs to has been taken back.
async fn drain(
    members: Vec<Weak<Connection>>,
    window: Duration,
    strategy: DrainStrategy,
    close_after: Option<Duration>,
    standing: Option<DrainScope>,
) {
    let begin = Instant::now();
    let taken_back = || standing.is_some_and(|scope| !local::stands(scope));
    let set = |phase: Phase, chosen: &dyn Fn(&Connection) -> bool| {
        for connection in members.iter().filter_map(Weak::upgrade).filter(|connection| chosen(connection)) {
            if connection.drain.phase() < phase {
                connection.drain.set(phase);
            }
        }
    };
    if strategy == DrainStrategy::Gradual {
        for step in 0..=DRAIN_STEPS {
            tokio::time::sleep_until(begin + window * step / DRAIN_STEPS).await;
            if taken_back() {
                return;
            }
            let elapsed = begin.elapsed();
            set(Phase::Draining, &|connection| connection.drain.turn_has_come(elapsed, window));
            if close_after.is_some_and(|close_after| elapsed >= close_after) {
                break;
            }
        }
    }
    set(Phase::Draining, &|_| true);
    if let Some(close_after) = close_after {
        tokio::time::sleep_until(begin + close_after).await;
        if !taken_back() {
            set(Phase::Closing, &|_| true);
        }
    }
}
