//! The control loop's end of the subscriptions: ADS, and servers that give a single type of resource. Each has its protocol state, and a task that
//! carries messages.

use std::{collections::BTreeMap, fs, rc::Rc, sync::Arc, task::Poll};

use shika_data::stats::{Registry, Scope, SubscriptionStats};
use shika_proto::type_url;
use shika_xds::{
    Compiler, Reject, Update, Wanted,
    ads::{Ads, Receipt, Request, TYPES},
    bootstrap::ApiConfig,
    client,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{info, warn};

use crate::state::State;

/// Messages from a control plane that may wait for the loop: one at work, one behind it, so that a slow compile slows the stream down.
const EVENTS: usize = 2;

/// What the loop is told.
#[derive(Debug)]
pub enum Event {
    /// A response.
    Update {
        /// What is in it.
        update: Update,
        /// Identifies it for the answer.
        receipt: Answer,
    },
    /// A stream came or went, or the message was of no use.
    Nothing,
}

/// Identifies a response among those of all subscriptions.
#[derive(Debug)]
#[must_use = "a response that is not acknowledged stalls its type"]
pub struct Answer {
    subscription: u64,
    receipt: Receipt,
}

/// All subscriptions there are.
pub struct Subscriptions {
    state: Rc<State>,
    /// In the order in which they were made: ADS, if there is any, is the first.
    all: Vec<Subscription>,
    made: u64,
    clusters: Rc<SubscriptionStats>,
    listeners: Rc<SubscriptionStats>,
}

/// One subscription; outlives its streams.
struct Subscription {
    id: u64,
    /// The type of resource that it is for; `None`: ADS.
    only: Option<&'static str>,
    /// As configured.
    api: Arc<ApiConfig>,
    /// As used: with the token as it is now.
    config: ApiConfig,
    ads: Ads,
    events: mpsc::Receiver<client::Event>,
    requests: Option<mpsc::Sender<Request>>,
    task: JoinHandle<()>,
    /// The failure was logged and no stream has been open since.
    failing: bool,
}

impl Subscriptions {
    /// None yet.
    pub fn new(state: &Rc<State>) -> Subscriptions {
        Subscriptions {
            state: state.clone(),
            all: Vec::new(),
            made: 0,
            clusters: subscription(&state.registry, "cluster_manager.cds."),
            listeners: subscription(&state.registry, "listener_manager.lds."),
        }
    }

    /// Begins ADS, if the bootstrap has it. Has to run in a [`tokio::task::LocalSet`].
    pub fn start(&mut self) {
        let state = self.state.clone();
        if let Some(config) = &state.plan.ads {
            state.groups.control_plane.connected_state().set(0);
            self.add(Arc::new(config.clone()), None);
        }
    }

    fn add(&mut self, api: Arc<ApiConfig>, only: Option<&'static str>) {
        let config = ApiConfig::clone(&api);
        let (task, events) = spawn(&self.state, config.clone(), only);
        self.made += 1;
        self.all.push(Subscription {
            id: self.made,
            only,
            ads: Ads::new(&config, self.state.plan.node.clone()),
            api,
            config,
            events,
            requests: None,
            task,
            failing: false,
        });
    }

    /// What happens next on any of them; never, without a control plane.
    pub async fn next(&mut self) -> Event {
        let (at, event) = std::future::poll_fn(|cx| {
            for (at, subscription) in self.all.iter_mut().enumerate() {
                // A task ends only with its receiver.
                if let Poll::Ready(Some(event)) = subscription.events.poll_recv(cx) {
                    return Poll::Ready((at, event));
                }
            }
            Poll::Pending
        })
        .await;
        self.take(at, event)
    }

    fn take(&mut self, at: usize, event: client::Event) -> Event {
        let Some(subscription) = self.all.get_mut(at) else { return Event::Nothing };
        match event {
            client::Event::Connected { requests } => {
                subscription.ads.connected();
                subscription.requests = Some(requests);
                // A stream begins with a request.
                for (type_url, stats) in [(type_url::CLUSTER, &self.clusters), (type_url::LISTENER, &self.listeners)] {
                    if subscription.only.is_none_or(|only| only == type_url) {
                        stats.update_attempt().inc();
                    }
                }
            }
            client::Event::Accepted => {
                info!("the control plane {} answers", subscription.config.cluster);
                if subscription.only.is_none() {
                    self.state.groups.control_plane.connected_state().set(1);
                }
                subscription.failing = false;
            }
            client::Event::Response(response) => {
                if let Some((update, receipt)) = subscription.ads.received(response) {
                    return Event::Update { update, receipt: Answer { subscription: subscription.id, receipt } };
                }
            }
            client::Event::Disconnected { reason, pause } => {
                subscription.ads.disconnected();
                subscription.requests = None;
                if subscription.only.is_none() {
                    self.state.groups.control_plane.connected_state().set(0);
                }
                if !subscription.failing {
                    warn!(
                        "the control plane {} is away: {reason}; traffic goes on with what is known, next try in {:.1} s",
                        subscription.config.cluster,
                        pause.as_secs_f64()
                    );
                }
                subscription.failing = true;
                for (type_url, stats) in [(type_url::CLUSTER, &self.clusters), (type_url::LISTENER, &self.listeners)] {
                    if subscription.only.is_none_or(|only| only == type_url) {
                        stats.update_attempt().inc();
                        stats.update_failure().inc();
                    }
                }
                subscription.renew_token(&self.state);
            }
        }
        Event::Nothing
    }

    /// Opens other streams if the token's file holds another token: a control plane should see it before the old one runs out.
    pub fn renew_token(&mut self) {
        for subscription in &mut self.all {
            subscription.renew_token(&self.state);
        }
    }

    /// Tells the protocols what is wanted now; begins subscriptions that are new and ends those that nothing asks for any more.
    pub fn want(&mut self, compiler: &Compiler) {
        let mut apis = compiler.wanted_apis();
        self.all.retain_mut(|subscription| {
            let Some(only) = subscription.only else {
                for type_url in TYPES {
                    subscription.ads.want(type_url, compiler.wanted(type_url));
                }
                return true;
            };
            match apis.remove(&(subscription.api.clone(), only)) {
                Some(wanted) => {
                    subscription.ads.want(only, wanted);
                    true
                }
                None => false,
            }
        });
        self.begin(apis);
    }

    fn begin(&mut self, apis: BTreeMap<(Arc<ApiConfig>, &'static str), Wanted>) {
        for ((api, type_url), wanted) in apis {
            self.add(api, Some(type_url));
            if let Some(added) = self.all.last_mut() {
                added.ads.want(type_url, wanted);
            }
        }
    }

    /// Answers a response: what it brought is in force but for `rejects`.
    pub fn acknowledge(&mut self, answer: Answer, rejects: &[Reject]) {
        if let Some(subscription) = self.all.iter_mut().find(|subscription| subscription.id == answer.subscription) {
            subscription.ads.acknowledge(answer.receipt, rejects);
        }
    }

    /// Sends what there is to send. What a stream does not take now waits for the next call: a control plane that does not read holds up nothing.
    pub fn send(&mut self) {
        for subscription in &mut self.all {
            subscription.send();
        }
    }
}

impl Subscription {
    fn renew_token(&mut self, state: &Rc<State>) {
        // The token is the mesh's control plane's: no other server is shown it.
        if self.only.is_some() || !renewed(state, &mut self.config) {
            return;
        }
        info!("the token has changed; the control plane is shown the new one on a new stream");
        self.task.abort();
        self.ads.disconnected();
        self.requests = None;
        (self.task, self.events) = spawn(state, self.config.clone(), self.only);
    }

    fn send(&mut self) {
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

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Puts the token that the token's file holds in the metadata; whether it is another.
fn renewed(state: &State, config: &mut ApiConfig) -> bool {
    let Some(token) = state.token_file.as_ref().and_then(|path| fs::read_to_string(path).ok()) else { return false };
    let token = token.trim();
    let value = config.metadata.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    match value {
        Some((_, value)) if !token.is_empty() && value != token => {
            *value = token.to_owned();
            true
        }
        Some(_) | None => false,
    }
}

fn spawn(
    state: &Rc<State>,
    config: ApiConfig,
    only: Option<&'static str>,
) -> (JoinHandle<()>, mpsc::Receiver<client::Event>) {
    let (events, receiver) = mpsc::channel(EVENTS);
    let cluster = {
        let (state, name) = (state.clone(), config.cluster.clone());
        move || state.snapshot.borrow().clusters.iter().flatten().find(|cluster| *cluster.name == *name).map(Arc::clone)
    };
    (tokio::task::spawn_local(client::run(config, only, cluster, events)), receiver)
}

fn subscription(registry: &Registry, prefix: &str) -> Rc<SubscriptionStats> {
    Rc::new(SubscriptionStats::new(
        registry,
        Scope { prefix: prefix.to_owned(), stem: prefix.to_owned(), tags: Vec::new() },
    ))
}
