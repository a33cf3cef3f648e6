//! The sending side: follows the store and sends what the other side lacks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use shika_proto::envoy::config::core::v3::ControlPlane;
use shika_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::transform::outgoing;
use super::wire::{pack, wire_name};
use super::{Direction, ZoneNode, last_word};
use crate::resource::{Kind, Resource, ResourceKey};
use crate::store::{Event, Store, StoreError};
use crate::xds::Version;

/// Changes that come closer together than this are sent together. Proxies wait for them, so that it is short.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Pause before what was refused is sent again (Kuma's NACK backoff).
const NACK_PAUSE: Duration = Duration::from_secs(5);
/// Pause before a store that failed is asked again.
const RETRY: Duration = Duration::from_secs(2);

/// What happens on a stream, for those who keep account of it.
#[derive(Debug)]
pub(super) enum Happened {
    /// The other side said who it is.
    Node(ZoneNode),
    /// A response was sent.
    Sent(Kind),
    /// It was accepted.
    Accepted(Kind),
    /// It was refused.
    Refused(Kind),
}

/// One kind on one stream.
#[derive(Debug, Default)]
struct KindState {
    /// What the other side was sent: by the resource here, the name there and a hash of the content, or no hash when it was refused.
    sent: HashMap<ResourceKey, (String, Option<Version>)>,
    /// A response that was not answered yet.
    waits_for: Option<String>,
    /// Everything has to be looked at.
    all: bool,
    /// These have to be looked at.
    dirty: BTreeSet<ResourceKey>,
    /// The first response is sent even if there is nothing in it.
    first: bool,
    /// What was refused is not sent again before.
    not_before: Option<Instant>,
}

impl KindState {
    fn is_due(&self, now: Instant) -> bool {
        self.waits_for.is_none()
            && (self.all || self.first || !self.dirty.is_empty())
            && self.not_before.is_none_or(|at| at <= now)
    }
}

/// The sending side of one stream.
#[derive(Debug)]
pub(super) struct Outbox {
    store: Store,
    direction: Direction,
    identifier: String,
    kinds: BTreeMap<Kind, KindState>,
    nonce: u64,
    unknown: BTreeSet<String>,
}

impl Outbox {
    /// For one stream. `identifier` names the sender: the zone, or the instance of global.
    pub(super) fn new(store: Store, direction: Direction, identifier: &str) -> Outbox {
        Outbox {
            store,
            direction,
            identifier: identifier.to_owned(),
            kinds: BTreeMap::new(),
            nonce: 0,
            unknown: BTreeSet::new(),
        }
    }

    /// Serves the stream until the other side or the store is gone. `noted` is told what happens.
    pub(super) async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<DeltaDiscoveryRequest, tonic::Status>> + Unpin,
        responses: mpsc::Sender<DeltaDiscoveryResponse>,
        mut noted: impl FnMut(Happened),
    ) -> Result<(), tonic::Status> {
        let mut watch = self.store.watch();
        let mut due: Option<Instant> = None;
        loop {
            let retry = self
                .kinds
                .values()
                .filter(|state| state.waits_for.is_none())
                .filter_map(|state| state.not_before)
                .min();
            let alarm = async {
                match [due, retry].into_iter().flatten().min() {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = responses.closed() => return last_word(&mut requests).await.map_or(Ok(()), Err),
                request = requests.next() => {
                    let Some(request) = request else { return Ok(()) };
                    if self.take(request?, &mut noted) {
                        due = Some(Instant::now());
                    }
                }
                event = watch.next() => {
                    let Some(event) = event else { return Ok(()) };
                    if self.note(event) {
                        due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                    }
                }
                () = alarm => {
                    due = None;
                    if let Err(error) = self.send(&responses, &mut noted).await {
                        match error {
                            SendError::Gone => return last_word(&mut requests).await.map_or(Ok(()), Err),
                            SendError::Store(error) => {
                                tracing::error!(%error, zone = self.direction.zone(), "cannot read what has to be sent");
                                due = Some(Instant::now() + RETRY);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes in a request; true if there may be something to send.
    fn take(&mut self, request: DeltaDiscoveryRequest, noted: &mut impl FnMut(Happened)) -> bool {
        if let Some(node) = request.node.as_ref().filter(|node| node.metadata.is_some()) {
            noted(Happened::Node(ZoneNode::of_node(node)));
        }
        let Some(kind) = self.direction.kinds().find(|kind| kind.name() == request.type_url) else {
            // Answered with nothing, the other side would delete what it has of that kind.
            if self.unknown.len() < 64 && self.unknown.insert(request.type_url.clone()) {
                let (zone, kind) = (self.direction.zone(), request.type_url);
                tracing::warn!(
                    zone,
                    kind,
                    "the other control plane asks for a kind that is not known here; it gets no answer"
                );
            }
            return false;
        };
        let state = self.kinds.entry(kind).or_default();
        if request.response_nonce.is_empty() {
            *state = KindState { all: true, first: true, ..KindState::default() };
            return true;
        }
        if state.waits_for.as_ref() != Some(&request.response_nonce) {
            return false;
        }
        state.waits_for = None;
        match request.error_detail {
            None => noted(Happened::Accepted(kind)),
            Some(error) => {
                tracing::warn!(
                    zone = self.direction.zone(),
                    %kind,
                    reason = error.message,
                    "the other control plane refused resources; they are sent again"
                );
                // Names are kept: what is deleted before the next attempt has to be deleted there too.
                state.sent.values_mut().for_each(|(_, version)| *version = None);
                state.all = true;
                state.not_before = Some(Instant::now() + NACK_PAUSE);
                noted(Happened::Refused(kind));
            }
        }
        true
    }

    /// Marks what an event concerns; true if there may be something to send.
    fn note(&mut self, event: Event) -> bool {
        let key = match event {
            Event::Changed(key) | Event::Deleted(key) => key,
            Event::Resync => {
                self.kinds.values_mut().for_each(|state| state.all = true);
                return true;
            }
        };
        if key.kind == Kind::Zone {
            // What a zone shares depends on whether it is enabled.
            let shared = self.kinds.iter_mut().filter(|(kind, _)| kind.sync().across_zones);
            shared.for_each(|(_, state)| state.all = true);
            return true;
        }
        match self.kinds.get_mut(&key.kind) {
            Some(state) => {
                state.dirty.insert(key);
                true
            }
            None => false,
        }
    }

    /// Sends a response for each kind that has something to send and that waits for no answer.
    async fn send(
        &mut self,
        responses: &mpsc::Sender<DeltaDiscoveryResponse>,
        noted: &mut impl FnMut(Happened),
    ) -> Result<(), SendError> {
        let now = Instant::now();
        let zones = self.store.list(Kind::Zone, None).await?;
        let disabled: BTreeSet<&str> = zones
            .iter()
            .filter(|resource| resource.zone().is_some_and(|zone| !zone.is_enabled()))
            .map(|resource| resource.meta.name.as_str())
            .collect();
        for (kind, state) in &mut self.kinds {
            if !state.is_due(now) {
                continue;
            }
            state.not_before = None;
            let found: Vec<(ResourceKey, Option<Resource>)> = if state.all {
                let stored = self.store.list(*kind, None).await?;
                let mut found: BTreeMap<ResourceKey, Option<Resource>> =
                    state.sent.keys().map(|key| (key.clone(), None)).collect();
                found.extend(stored.into_iter().map(|resource| (resource.key(), Some(resource))));
                found.into_iter().collect()
            } else {
                let mut found = Vec::new();
                for key in &state.dirty {
                    found.push((key.clone(), self.store.get(key).await?));
                }
                found
            };
            let (resources, removed) = changes(&self.direction, state, found, &disabled);
            (state.all, state.dirty) = (false, BTreeSet::new());
            if resources.is_empty() && removed.is_empty() && !state.first {
                continue;
            }
            state.first = false;
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            state.waits_for = Some(nonce.clone());
            let response = DeltaDiscoveryResponse {
                system_version_info: nonce.clone(),
                resources,
                type_url: kind.name().to_owned(),
                removed_resources: removed,
                nonce,
                control_plane: Some(ControlPlane { identifier: self.identifier.clone() }),
                ..DeltaDiscoveryResponse::default()
            };
            responses.send(response).await.map_err(|_| SendError::Gone)?;
            noted(Happened::Sent(*kind));
        }
        Ok(())
    }
}

/// Why nothing was sent.
enum SendError {
    Gone,
    Store(StoreError),
}

impl From<StoreError> for SendError {
    fn from(error: StoreError) -> SendError {
        SendError::Store(error)
    }
}

/// What the other side has to be sent, and what it has to delete, to have what was found.
fn changes(
    direction: &Direction,
    state: &mut KindState,
    found: Vec<(ResourceKey, Option<Resource>)>,
    disabled: &BTreeSet<&str>,
) -> (Vec<WireResource>, Vec<String>) {
    let (mut resources, mut removed) = (Vec::new(), Vec::new());
    for (key, resource) in found {
        let sent = resource.as_ref().map_or(Ok(None), |resource| {
            let sent = outgoing(direction, resource, |zone| !disabled.contains(zone))?;
            sent.map(|sent| Ok::<_, String>((wire_name(&sent.key()), pack(&sent)?))).transpose()
        });
        match sent {
            Err(reason) => tracing::error!(resource = %key, reason, "cannot be sent to the other control plane"),
            Ok(Some((name, content))) => {
                let version = Version::of(&content.value);
                match state.sent.get(&key) {
                    Some((old, same)) if *old == name && *same == Some(version) => continue,
                    Some((old, _)) if *old != name => removed.push(old.clone()),
                    _ => {}
                }
                resources.push(WireResource {
                    name: name.clone(),
                    version: version.to_string(),
                    resource: Some(content),
                    ..WireResource::default()
                });
                state.sent.insert(key, (name, Some(version)));
            }
            Ok(None) => {
                if let Some((name, _)) = state.sent.remove(&key) {
                    removed.push(name);
                }
            }
        }
    }
    (resources, removed)
}
