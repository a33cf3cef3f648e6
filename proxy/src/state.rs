//! What the control thread's tasks share. Lives on that thread alone: borrows last for one synchronous step and never across an `await`.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

use prost::Message;
use shika_data::{
    listen::BoundListener,
    model::{ListenerId, listener::BindAddress},
    snapshot::Snapshot,
    stats::Registry,
};
use shika_proto::{bootstrap::EncodedBootstrap, envoy::config::bootstrap::v3::Bootstrap, type_url};
use shika_xds::{BootstrapPlan, Compiler, Wanted, Warming};
use tokio::sync::{mpsc, oneshot};

use crate::{
    admin::tags::Tags,
    dns::Dns,
    export::{access_log::AccessLogs, telemetry::Telemetry},
    logging::Logging,
    options::Options,
    server_stats::ServerGroups,
    sidecar::metrics::Metrics,
};

/// Everything that admin, readiness and the control loop look at.
pub struct State {
    /// The command line.
    pub options: Options,
    /// The bootstrap as it was encoded; see [`State::bootstrap`].
    pub encoded_bootstrap: EncodedBootstrap,
    /// What the bootstrap asks for.
    pub plan: BootstrapPlan,
    /// Resources and what they were compiled to.
    pub compiler: RefCell<Compiler>,
    /// What the workers use.
    pub snapshot: RefCell<Arc<Snapshot>>,
    /// Actual addresses of bound listeners.
    pub bound: RefCell<BTreeMap<ListenerId, Vec<BindAddress>>>,
    /// File with the token that the control plane is shown, where it may change.
    pub token_file: Option<PathBuf>,
    /// The DNS server, where there is one.
    pub dns: Option<Arc<Dns>>,
    /// The metrics endpoint, where there is one.
    pub metrics: Option<Rc<Metrics>>,
    /// All statistics.
    pub registry: Arc<Registry>,
    /// The server's own among them.
    pub groups: ServerGroups,
    /// How names become labels.
    pub tags: Rc<Tags>,
    /// The process's log.
    pub logging: Logging,
    /// Access logs.
    pub access_logs: AccessLogs,
    /// Spans and logs on their way to collectors.
    pub telemetry: Telemetry,
    /// When the process started.
    pub start: Instant,
    /// The same, by the clock.
    pub start_time: SystemTime,
    /// Everything that was to be waited for at the start is there.
    pub initialized: Cell<bool>,
    /// `/healthcheck/fail` was called, or the process is shutting down.
    pub health_failed: Cell<bool>,
    /// The process is shutting down.
    pub terminating: Cell<bool>,
    /// Readiness does not wait for the DNS configuration any longer.
    pub dns_wait_over: Cell<bool>,
    /// What is waited for, as of the last build.
    pub warming: RefCell<Vec<Warming>>,
    /// Live downstream connections.
    pub connections: Cell<u64>,
    /// Much memory was in use for a moment: see [`crate::heap`].
    pub heap_used: Cell<bool>,
    /// To the control loop.
    pub commands: mpsc::Sender<Command>,
}

impl State {
    /// The bootstrap with the node that it became. Decoded whenever it is asked for: as a message it has some ten times the size of its bytes.
    pub fn bootstrap(&self) -> Bootstrap {
        // It was compiled, and so it can be decoded.
        let mut bootstrap = Bootstrap::decode(self.encoded_bootstrap.bytes()).unwrap_or_default();
        bootstrap.node = Some(self.plan.node.clone());
        bootstrap
    }
}

/// Envoy's `ServerInfo.State`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Serves.
    Live,
    /// Health checks are failed on purpose.
    Draining,
    /// Waits for its first clusters.
    PreInitializing,
    /// Waits for its first listeners.
    Initializing,
}

impl ServerState {
    /// As in `/ready` and `/server_info`.
    pub fn name(self) -> &'static str {
        match self {
            ServerState::Live => "LIVE",
            ServerState::Draining => "DRAINING",
            ServerState::PreInitializing => "PRE_INITIALIZING",
            ServerState::Initializing => "INITIALIZING",
        }
    }

    /// The value of `server.state`.
    pub fn number(self) -> u64 {
        match self {
            ServerState::Live => 0,
            ServerState::Draining => 1,
            ServerState::PreInitializing => 2,
            ServerState::Initializing => 3,
        }
    }
}

/// What the admin interface asks of the control loop. Each is answered when it is done.
#[derive(Debug)]
pub enum Command {
    /// `/healthcheck/fail`
    FailHealthCheck(oneshot::Sender<()>),
    /// `/healthcheck/ok`
    PassHealthCheck(oneshot::Sender<()>),
    /// `/drain_listeners`
    DrainListeners {
        /// Only listeners with direction INBOUND.
        inbound_only: bool,
        /// Drain for the drain time before the listeners stop.
        graceful: bool,
        /// Drain connections and never stop the listeners.
        skip_exit: bool,
        /// Answer.
        done: oneshot::Sender<()>,
    },
    /// The drain time of a graceful `/drain_listeners` is over.
    StopListeners(Vec<ListenerId>),
    /// `/quitquitquit`: exit without drain.
    Quit,
}

impl State {
    /// What `/ready` says.
    pub fn server_state(&self) -> ServerState {
        if self.health_failed.get() {
            ServerState::Draining
        } else if self.initialized.get() {
            ServerState::Live
        } else if self.plan.cds.is_some() && self.compiler.borrow().wanted(type_url::LISTENER) == Wanted::None {
            // Listeners are asked for once the clusters are there.
            ServerState::PreInitializing
        } else {
            ServerState::Initializing
        }
    }

    /// Notes where a listener really listens.
    pub fn listening(&self, bound: &BoundListener, configured: &[BindAddress]) {
        let actual = configured
            .iter()
            .zip(bound.addresses.iter())
            .map(|(configured, actual)| match (configured, actual) {
                (BindAddress::Ip { ipv4_compat, .. }, Some(address)) => {
                    BindAddress::Ip { address: *address, ipv4_compat: *ipv4_compat }
                }
                (BindAddress::Udp(_), Some(address)) => BindAddress::Udp(*address),
                (BindAddress::Ip { .. } | BindAddress::Udp(_) | BindAddress::Unix { .. }, _) => configured.clone(),
            })
            .collect();
        self.bound.borrow_mut().insert(bound.id, actual);
    }

    /// Name and addresses of every listener, by name; configured addresses where nothing is bound.
    pub fn listeners(&self) -> Vec<(Arc<str>, Vec<BindAddress>)> {
        let snapshot = self.snapshot.borrow();
        let bound = self.bound.borrow();
        let mut listeners: Vec<_> = snapshot
            .listeners
            .iter()
            .flatten()
            .map(|listener| {
                (listener.name.clone(), bound.get(&listener.id).cloned().unwrap_or_else(|| listener.addresses.clone()))
            })
            .collect();
        listeners.sort_by(|a, b| a.0.cmp(&b.0));
        listeners
    }
}
