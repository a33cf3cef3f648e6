//! The control loop's end of the ADS stream: protocol state, and the task that carries messages.

use std::{fs, rc::Rc, sync::Arc};

use shika_data::stats::{Registry, Scope, SubscriptionStats};
use shika_xds::{
    Compiler, Reject, Update,
    ads::{Ads, Receipt, Request, TYPES},
    bootstrap::AdsConfig,
    client,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{info, warn};

use crate::state::State;

/// Messages from the control plane that may wait for the loop: one at work, one behind it, so that a slow compile slows the stream down.
const EVENTS: usize = 2;

/// What the loop is told.
#[derive(Debug)]
pub enum Event {
    /// A response.
    Update {
        /// What is in it.
        update: Update,
        /// Identifies it for the answer.
        receipt: Receipt,
    },
    /// The stream came or went, or the message was of no use.
    Nothing,
}

/// An ADS subscription; outlives its streams.
pub struct AdsLink {
    state: Rc<State>,
    config: AdsConfig,
    ads: Ads,
    events: mpsc::Receiver<client::Event>,
    requests: Option<mpsc::Sender<Request>>,
    task: JoinHandle<()>,
    clusters: SubscriptionStats,
    listeners: SubscriptionStats,
    /// The failure was logged and no stream has been open since.
    failing: bool,
}

impl AdsLink {
    /// Subscribes, if the bootstrap has a control plane. Has to run in a [`tokio::task::LocalSet`].
    pub fn start(state: &Rc<State>) -> Option<AdsLink> {
        let config = state.plan.ads.clone()?;
        let ads = Ads::new(&config, state.plan.node.clone());
        let (task, events) = spawn(state, config.clone());
        state.groups.control_plane.connected_state().set(0);
        Some(AdsLink {
            clusters: subscription(&state.registry, "cluster_manager.cds."),
            listeners: subscription(&state.registry, "listener_manager.lds."),
            state: state.clone(),
            config,
            ads,
            events,
            requests: None,
            task,
            failing: false,
        })
    }

    /// What happens next; never, without a control plane.
    pub async fn next(link: &mut Option<AdsLink>) -> Event {
        let Some(link) = link else { return std::future::pending().await };
        match link.events.recv().await {
            Some(event) => link.take(event),
            // The task ends only with its receiver.
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, event: client::Event) -> Event {
        match event {
            client::Event::Connected { requests } => {
                self.ads.connected();
                for stats in [&self.clusters, &self.listeners] {
                    stats.update_attempt().inc();
                }
                self.requests = Some(requests);
                Event::Nothing
            }
            client::Event::Accepted => {
                info!("the control plane {} answers", self.config.cluster);
                self.state.groups.control_plane.connected_state().set(1);
                self.failing = false;
                Event::Nothing
            }
            client::Event::Response(response) => match self.ads.received(response) {
                Some((update, receipt)) => Event::Update { update, receipt },
                None => Event::Nothing,
            },
            client::Event::Disconnected { reason, pause } => {
                self.ads.disconnected();
                self.requests = None;
                self.state.groups.control_plane.connected_state().set(0);
                if !self.failing {
                    warn!(
                        "the control plane {} is away: {reason}; traffic goes on with what is known, next try in {:.1} s",
                        self.config.cluster,
                        pause.as_secs_f64()
                    );
                }
                self.failing = true;
                for stats in [&self.clusters, &self.listeners] {
                    stats.update_attempt().inc();
                    stats.update_failure().inc();
                }
                self.renew_token();
                Event::Nothing
            }
        }
    }

    /// Opens another stream if the token's file holds another token: the control plane should see it before the old one runs out.
    pub fn renew_token(&mut self) {
        let Some(token) = self.state.token_file.as_ref().and_then(|path| fs::read_to_string(path).ok()) else { return };
        let token = token.trim();
        let Some((_, value)) =
            self.config.metadata.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case("authorization"))
        else {
            return;
        };
        if token.is_empty() || value == token {
            return;
        }
        info!("the token has changed; the control plane is shown the new one on a new stream");
        *value = token.to_owned();
        self.task.abort();
        self.ads.disconnected();
        self.requests = None;
        (self.task, self.events) = spawn(&self.state, self.config.clone());
    }

    /// Tells the protocol what is wanted now.
    pub fn want(&mut self, compiler: &Compiler) {
        for type_url in TYPES {
            self.ads.want(type_url, compiler.wanted(type_url));
        }
    }

    /// Answers a response: what it brought is in force but for `rejects`.
    pub fn acknowledge(&mut self, receipt: Receipt, rejects: &[Reject]) {
        self.ads.acknowledge(receipt, rejects);
    }

    /// Sends what there is to send. What the stream does not take now waits for the next call: a control plane that does not read holds up nothing.
    pub fn send(&mut self) {
        let Some(requests) = self.requests.clone() else { return };
        loop {
            let permit = match requests.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return,
                Err(mpsc::error::TrySendError::Closed(())) => {
                    self.requests = None;
                    return;
                }
            };
            match self.ads.next_request() {
                Some(request) => permit.send(request),
                None => return,
            }
        }
    }
}

impl Drop for AdsLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn spawn(state: &Rc<State>, config: AdsConfig) -> (JoinHandle<()>, mpsc::Receiver<client::Event>) {
    let (events, receiver) = mpsc::channel(EVENTS);
    let cluster = {
        let (state, name) = (state.clone(), config.cluster.clone());
        move || state.snapshot.borrow().clusters.iter().flatten().find(|cluster| *cluster.name == *name).map(Arc::clone)
    };
    (tokio::task::spawn_local(client::run(config, cluster, events)), receiver)
}

fn subscription(registry: &Registry, prefix: &str) -> SubscriptionStats {
    SubscriptionStats::new(registry, Scope { prefix: prefix.to_owned(), stem: prefix.to_owned(), tags: Vec::new() })
}
