//! The control loop: update → compile → bind → publish → acknowledge.
//!
//! One task on the control thread. Decisions are the compiler's; this file carries them out in order and says what happened.

mod beside;
mod ending;

use std::{
    collections::BTreeSet,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use shika_data::{
    drain::{DrainScope, DrainStrategy},
    listen::{self, BoundListener},
    model::{ListenerId, listener::TrafficDirection},
    worker::Workers,
};
use shika_xds::{Plan, Reject};
use tokio::{sync::mpsc, time};
use tracing::{error, info, warn};

pub use beside::Credentials;

use crate::{
    files::Files,
    health::Health,
    memory,
    overload::OverloadWatch,
    resolve::{Answer, Resolver},
    server_stats,
    sidecar::documents::Documents,
    signals::{Event, Signals},
    state::{Command, State},
    subscriptions::{self, Subscriptions},
};

/// How often levels that nobody sets on change are brought up to date.
const STATS_INTERVAL: Duration = Duration::from_secs(1);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGTERM or SIGINT: drain, then exit.
    Terminate,
    /// `/quitquitquit`: exit.
    Quit,
    /// `--mode init_only`: initialised.
    Initialized,
}

/// Everything the loop owns.
pub struct Control {
    state: Rc<State>,
    workers: Workers,
    /// Listeners whose sockets accept.
    listening: BTreeSet<ListenerId>,
    resolver: Resolver,
    answers: mpsc::Receiver<Answer>,
    subscriptions: Subscriptions,
    files: Files,
    documents: Documents,
    credentials: Credentials,
    health: Health,
    /// [`shika_xds::Compiler::revision`] that has been followed up.
    followed: Option<u64>,
    /// SIGUSR2 came: connections drain already.
    drained: bool,
    /// Connections at rest when the heap was last given back for them, less those that have ended since.
    resting: usize,
    /// The pages of code that the start needed are given back.
    started: bool,
}

impl Control {
    /// A loop that has published nothing yet. Has to be made in a [`tokio::task::LocalSet`].
    pub fn new(state: Rc<State>, workers: Workers, credentials: Credentials) -> Self {
        let (resolver, answers) = Resolver::new();
        let subscriptions = Subscriptions::new(&state);
        Control {
            state,
            workers,
            listening: BTreeSet::new(),
            resolver,
            answers,
            subscriptions,
            files: Files::new(),
            documents: Documents::default(),
            credentials,
            health: Health::default(),
            followed: None,
            drained: false,
            resting: 0,
            started: false,
        }
    }

    /// Publishes the static resources. A listener that cannot be bound ends the start, as in Envoy.
    ///
    /// # Errors
    /// Every listener that cannot be bound, with address and reason.
    pub async fn start(&mut self) -> Result<(), Vec<Reject>> {
        let rejects = self.publish().await;
        if !rejects.is_empty() {
            return Err(rejects);
        }
        self.read_documents();
        self.subscriptions.start();
        self.files.watch(self.state.compiler.borrow().wanted_files());
        self.follow_up();
        Ok(())
    }

    /// Runs until something asks for the end.
    pub async fn run(&mut self, commands: &mut mpsc::Receiver<Command>, signals: &mut Signals, init_only: bool) -> End {
        let mut tick = time::interval(STATS_INTERVAL);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut overload = OverloadWatch::new(self.state.plan.overload.as_ref(), &self.state.registry);
        loop {
            if init_only && self.state.initialized.get() {
                return End::Initialized;
            }
            let deadline = self.state.compiler.borrow().next_tick();
            tokio::select! {
                signal = signals.next() => match signal {
                    // Trap 24: the workload has stopped before, in its own time.
                    Event::Terminate if self.drained => {
                        info!("connections have drained since SIGUSR2: exiting at once");
                        return End::Quit;
                    }
                    Event::Terminate => return End::Terminate,
                    Event::Reopen => {
                        info!("caught SIGUSR1: log files are opened again");
                        self.state.access_logs.reopen();
                        self.state.logging.reopen();
                    }
                    Event::DrainInbound => {
                        info!("caught SIGUSR2: inbound connections drain");
                        self.drained = true;
                        self.workers.drain(DrainScope::Inbound, None, None).await;
                    }
                },
                Some(command) = commands.recv() => {
                    if self.command(command).await {
                        return End::Quit;
                    }
                }
                event = self.subscriptions.next() => self.subscription_event(event).await,
                Some(update) = self.files.next() => self.file_update(update).await,
                Some(answer) = self.answers.recv() => self.resolved(answer).await,
                cluster = self.health.next() => {
                    cluster.drop_removed();
                    self.publish_and_log().await;
                    self.follow_up();
                }
                () = sleep_until(deadline), if deadline.is_some() => {
                    let due = self.state.compiler.borrow_mut().tick(Instant::now());
                    if due {
                        self.publish_and_log().await;
                    }
                    self.follow_up();
                }
                () = OverloadWatch::next(&mut overload) => {
                    if let Some(watch) = &overload {
                        watch.look();
                    }
                }
                _ = tick.tick() => {
                    self.state.connections.set(self.workers.connections());
                    server_stats::refresh(&self.state);
                    self.look_at_credentials();
                    // What a slow stream did not take before.
                    self.subscriptions.send();
                    self.note_resting();
                    self.give_back();
                }
            }
        }
    }

    async fn subscription_event(&mut self, event: subscriptions::Event) {
        match event {
            subscriptions::Event::Update { update, receipt } => {
                self.note_size(&update);
                let applied = self.state.compiler.borrow_mut().apply(update, Instant::now());
                let mut rejects = applied.rejects;
                for reject in &rejects {
                    warn!("delta config rejected: {reject}");
                }
                if applied.changed {
                    rejects.extend(self.put_in_force().await);
                }
                // Acknowledged last: what the control plane takes for accepted is in force on every worker.
                self.subscriptions.acknowledge(receipt, &rejects);
            }
            subscriptions::Event::Nothing => {}
        }
        self.follow_up();
    }

    async fn file_update(&mut self, update: shika_xds::Update) {
        self.note_size(&update);
        let applied = self.state.compiler.borrow_mut().apply(update, Instant::now());
        for reject in &applied.rejects {
            warn!("file config rejected: {reject}");
        }
        if applied.changed {
            self.put_in_force().await;
        }
        self.follow_up();
    }

    /// Publishes what an update has changed; endpoints alone need no more than that workers let go of those that are gone.
    async fn put_in_force(&mut self) -> Vec<Reject> {
        let before = self.state.snapshot.borrow().generation;
        let rejects = self.publish_and_log().await;
        if self.state.snapshot.borrow().generation == before {
            self.workers.endpoints_changed().await;
        }
        rejects
    }

    /// Many connections that have come to rest leave their buffers behind, between what they keep.
    fn note_resting(&mut self) {
        let resting = shika_data::http::connection::resting();
        if resting >= self.resting + memory::CROWD {
            self.state.heap_used.set(true);
        }
        if resting < self.resting || resting >= self.resting + memory::CROWD {
            self.resting = resting;
        }
    }

    /// What the start and large changes have left behind, once they are over.
    fn give_back(&mut self) {
        if !self.state.initialized.get() {
            return;
        }
        if self.state.heap_used.take() {
            memory::give_back_heap();
        }
        if !std::mem::replace(&mut self.started, true) {
            memory::give_back_code();
        }
    }

    /// Reading a large update takes some twenty times its size for a moment.
    fn note_size(&self, update: &shika_xds::Update) {
        let bytes: usize = update.resources.iter().map(|resource| resource.resource.value.len()).sum();
        if bytes >= memory::LARGE {
            self.state.heap_used.set(true);
        }
    }

    async fn resolved(&mut self, answer: Answer) {
        self.state.compiler.borrow_mut().set_dns(&answer.cluster, &answer.hostname, answer.addresses.as_deref());
        self.publish_and_log().await;
        self.follow_up();
    }

    /// What has to be asked for after a change: names, files, resources.
    fn follow_up(&mut self) {
        let compiler = self.state.compiler.borrow();
        // Endpoints come many times as often as anything that changes what is asked for.
        if self.followed.replace(compiler.revision()) != Some(compiler.revision()) {
            self.resolver.update(compiler.dns_targets());
            self.files.watch(compiler.wanted_files());
            self.health.check(compiler.health_targets());
            self.subscriptions.want(&compiler);
        }
        let initialized = compiler.initialized();
        drop(compiler);
        if initialized && !self.state.initialized.replace(true) {
            let took = self.state.start.elapsed();
            self.state.groups.server.initialization_time_ms().record(took.as_millis() as u64);
            self.state.groups.listeners.workers_started().set(1);
            info!("all dependencies initialized after {} ms", took.as_millis());
        }
        self.subscriptions.send();
    }

    async fn publish_and_log(&mut self) -> Vec<Reject> {
        let mut rejects = self.publish().await;
        for reject in &rejects {
            error!("{reject}");
        }
        rejects.extend(self.read_documents());
        rejects
    }

    /// Builds, binds and publishes what changed; returns the listeners that could not be bound.
    async fn publish(&mut self) -> Vec<Reject> {
        let mut rejects = Vec::new();
        let Some(mut plan) = self.state.compiler.borrow_mut().build() else { return rejects };
        let mut bound: Vec<BoundListener> = Vec::new();
        let mut unbind: BTreeSet<ListenerId> = BTreeSet::new();
        loop {
            unbind.extend(plan.unbind.iter().copied());
            let failed = self.bind(&plan, &mut unbind, &mut bound).await;
            if failed.is_empty() {
                break;
            }
            let mut compiler = self.state.compiler.borrow_mut();
            for (id, reason) in failed {
                self.state.groups.listeners.listener_create_failure().inc();
                rejects.push(compiler.bind_failed(id, &reason));
            }
            match compiler.build() {
                Some(next) => plan = next,
                None => break,
            }
        }
        // Before the snapshot: whoever looks meanwhile is not shown a port 0.
        for bound in &bound {
            if let Some(listener) = plan.snapshot.listener(bound.id) {
                self.state.listening(bound, &listener.addresses);
            }
        }
        *self.state.snapshot.borrow_mut() = plan.snapshot.clone();
        self.state.telemetry.publish(plan.snapshot.clone());
        self.workers.publish(plan.snapshot.clone()).await;
        for id in unbind {
            self.stop(id).await;
        }
        for bound in bound {
            let id = bound.id;
            // New sockets are bound already: the old ones may close, and no connection is refused between.
            if self.listening.contains(&id) {
                self.workers.stop_listening(id).await;
            }
            self.workers.listen(bound).await;
            self.state.groups.listeners.listener_create_success().inc();
            self.listening.insert(id);
        }
        self.state.groups.listeners.total_listeners_warming().set(warming(&plan, shika_proto::type_url::LISTENER));
        self.state.groups.clusters.warming_clusters().set(warming(&plan, shika_proto::type_url::CLUSTER));
        *self.state.warming.borrow_mut() = plan.warming;
        rejects
    }

    /// Binds what the plan lists. An address that only an old listener of ours holds is freed first.
    async fn bind(
        &mut self,
        plan: &Plan,
        unbind: &mut BTreeSet<ListenerId>,
        bound: &mut Vec<BoundListener>,
    ) -> Vec<(ListenerId, String)> {
        let mut failed = Vec::new();
        for id in &plan.bind {
            let Some(listener) = plan.snapshot.listener(*id) else { continue };
            let mut result = listen::bind(listener, self.workers.count());
            if matches!(&result, Err(error) if error.source.kind() == io::ErrorKind::AddrInUse) {
                for old in std::mem::take(unbind) {
                    self.stop(old).await;
                }
                if self.listening.contains(id) {
                    self.stop(*id).await;
                }
                result = listen::bind(listener, self.workers.count());
            }
            match result {
                Ok(sockets) => bound.push(sockets),
                Err(error) => failed.push((*id, error.to_string())),
            }
        }
        failed
    }

    async fn stop(&mut self, id: ListenerId) {
        if self.listening.remove(&id) {
            self.workers.stop_listening(id).await;
            self.state.bound.borrow_mut().remove(&id);
            self.state.groups.listeners.listener_stopped().inc();
        }
    }

    /// Carries out what the admin interface asks for; `true` ends the loop.
    async fn command(&mut self, command: Command) -> bool {
        match command {
            Command::FailHealthCheck(done) => {
                self.state.health_failed.set(true);
                shika_data::worker::set_health_failed(true);
                // At once, as in Envoy: the next answer on any connection says so.
                self.workers.drain(DrainScope::All, Some(DrainStrategy::Immediate), None).await;
                // The other end is a request that may have been given up.
                let _ = done.send(());
            }
            Command::PassHealthCheck(done) => {
                self.state.health_failed.set(false);
                shika_data::worker::set_health_failed(false);
                self.workers.resume().await;
                let _ = done.send(());
            }
            Command::DrainListeners { inbound_only, graceful, skip_exit, done } => {
                self.drain_listeners(inbound_only, graceful, skip_exit).await;
                let _ = done.send(());
            }
            Command::Quit => return true,
            Command::StopListeners(ids) => {
                for id in ids {
                    self.stop(id).await;
                }
            }
        }
        false
    }

    async fn drain_listeners(&mut self, inbound_only: bool, graceful: bool, skip_exit: bool) {
        let scope = if inbound_only { DrainScope::Inbound } else { DrainScope::All };
        let ids: Vec<ListenerId> = self
            .state
            .snapshot
            .borrow()
            .listeners
            .iter()
            .flatten()
            .filter(|listener| !inbound_only || listener.direction == TrafficDirection::Inbound)
            .map(|listener| listener.id)
            .collect();
        if skip_exit {
            self.workers.drain(scope, None, None).await;
        } else if graceful {
            self.workers.drain(scope, None, Some(self.workers.drain_time())).await;
            let (commands, wait) = (self.state.commands.clone(), self.workers.drain_time());
            tokio::task::spawn_local(async move {
                time::sleep(wait).await;
                // A loop that has ended has closed them already.
                let _ = commands.send(Command::StopListeners(ids)).await;
            });
        } else {
            for id in ids {
                self.stop(id).await;
            }
        }
    }
}

fn warming(plan: &Plan, type_url: &str) -> u64 {
    plan.warming.iter().filter(|warming| warming.type_url == type_url).count() as u64
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        time::sleep_until(deadline.into()).await;
    }
}
