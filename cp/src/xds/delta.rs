//! One delta ADS stream (`DeltaAggregatedResources`).
//!
//! For each type the state knows which names the proxy subscribed to and which version of each resource it has been sent. A response
//! carries only what differs between that and the snapshot:
//!
//! ```text
//!   subscribe a ──▶ unknown ──response──▶ held(version) ──snapshot changes──▶ response ──▶ held(new version)
//!        initial_resource_versions ──────▶ held(version)
//!   ACK: nothing changes.  NACK: what the response carried is unknown again, and nothing of the type is sent for a while.
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::{Answer, Backoff, MAX_NAMES, Resource, ResourceType, Snapshot, StreamError};

/// Responses of one type that may wait for their answer. Envoy delays answers while clusters warm, so one is too few.
const MAX_IN_FLIGHT: usize = 8;

/// A request as the state sees it.
#[derive(Clone, Debug, Default)]
pub struct DeltaRequest {
    /// Names to add; `*` is everything.
    pub subscribe: Vec<String>,
    /// Names to drop.
    pub unsubscribe: Vec<String>,
    /// What the proxy holds from an earlier stream: name to version. Only in the first request of a type.
    pub initial_versions: HashMap<String, String>,
    /// Nonce of the response that this answers; empty if it answers none.
    pub nonce: String,
    /// The proxy's message if it refuses the response.
    pub error: Option<String>,
}

/// A response to send.
#[derive(Clone, Debug)]
pub struct DeltaResponse {
    /// Type of everything in it.
    pub kind: ResourceType,
    /// New and changed resources by name.
    pub resources: Vec<(String, Arc<Resource>)>,
    /// Names that are no more.
    pub removed: Vec<String>,
    /// Nonce, unique in the stream.
    pub nonce: String,
}

/// State of one stream.
#[derive(Debug, Default)]
pub struct DeltaStream {
    types: [Option<TypeState>; 5],
    nonce: u64,
    /// Names of secrets without content that the proxy does need.
    missing_content: bool,
}

#[derive(Debug, Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Version text, as the proxy may name one that this process never made.
    held: BTreeMap<String, String>,
    in_flight: VecDeque<InFlight>,
    /// A proxy that asks for everything and has nothing starts only once it is told that nothing is what there is.
    first_answer_due: bool,
    backoff: Backoff,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    sent: Vec<(String, String)>,
}

impl TypeState {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

impl DeltaStream {
    /// The state of a stream that just opened.
    pub fn new() -> Self {
        DeltaStream::default()
    }

    /// Takes in a request of the proxy.
    ///
    /// # Errors
    /// When the proxy subscribes to more than [`MAX_NAMES`] names.
    pub fn request(&mut self, kind: ResourceType, request: DeltaRequest, now: Instant) -> Result<Answer, StreamError> {
        let slot = &mut self.types[kind.index()];
        let first = slot.is_none();
        let state = slot.get_or_insert_with(TypeState::default);

        if first {
            state.wildcard = request.subscribe.is_empty() && kind.is_wildcard_by_default();
            let everything = state.wildcard || request.subscribe.iter().any(|name| name == "*");
            state.first_answer_due = everything && request.initial_versions.is_empty();
            for (name, version) in &request.initial_versions {
                if state.held.len() < MAX_NAMES {
                    state.held.insert(name.clone(), version.clone());
                }
            }
        }
        for name in request.subscribe {
            if name == "*" {
                state.wildcard = true;
                continue;
            }
            // A name that is subscribed to again is sent again, unless this very request says that the proxy has it.
            if !request.initial_versions.contains_key(&name) {
                state.held.remove(&name);
            }
            state.names.insert(name);
            if state.names.len() > MAX_NAMES {
                return Err(StreamError::TooManyNames { type_url: kind.url() });
            }
        }
        for name in request.unsubscribe {
            if name == "*" {
                state.wildcard = false;
            } else {
                state.names.remove(&name);
            }
        }
        if !state.wildcard {
            let names = &state.names;
            state.held.retain(|name, _| names.contains(name));
        }
        Ok(state.answer(kind, &request.nonce, request.error, now))
    }

    /// The next response that the snapshot asks for, if any. Call it until it returns `None`.
    pub fn next(&mut self, snapshot: &Snapshot, now: Instant) -> Option<DeltaResponse> {
        ResourceType::ORDER.into_iter().find_map(|kind| self.next_of(kind, snapshot, now))
    }

    fn next_of(&mut self, kind: ResourceType, snapshot: &Snapshot, now: Instant) -> Option<DeltaResponse> {
        let state = self.types[kind.index()].as_mut()?;
        if !state.backoff.open(now) || state.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let mut resources = Vec::new();
        for (name, resource) in snapshot.resources(kind) {
            let version = resource.version.to_string();
            if !state.wants(name) || state.held.get(name) == Some(&version) {
                continue;
            }
            if resource.body.is_none() {
                self.missing_content = true;
                continue;
            }
            resources.push((name.clone(), resource.clone()));
        }
        let current = snapshot.resources(kind);
        let removed: Vec<String> = state.held.keys().filter(|name| !current.contains_key(*name)).cloned().collect();
        if resources.is_empty() && removed.is_empty() && !state.first_answer_due {
            return None;
        }
        state.first_answer_due = false;

        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let sent: Vec<(String, String)> =
            resources.iter().map(|(name, resource)| (name.clone(), resource.version.to_string())).collect();
        for (name, version) in &sent {
            state.held.insert(name.clone(), version.clone());
        }
        for name in &removed {
            state.held.remove(name);
        }
        state.in_flight.push_back(InFlight { nonce: nonce.clone(), sent });
        if kind == ResourceType::Cluster {
            self.clusters_sent(&resources);
        }
        Some(DeltaResponse { kind, resources, removed, nonce })
    }

    /// Envoy replaces a cluster that changed by a new one, which needs its endpoints again although they did not change.
    fn clusters_sent(&mut self, clusters: &[(String, Arc<Resource>)]) {
        if let Some(endpoints) = self.types[ResourceType::Endpoint.index()].as_mut() {
            for (name, _) in clusters {
                endpoints.held.remove(name);
            }
        }
    }

    /// Whether the proxy needs the content of a resource that [`Resource::body`] lacks. Resets the mark.
    pub fn take_missing_content(&mut self) -> bool {
        std::mem::take(&mut self.missing_content)
    }

    /// When [`next`](Self::next) may return more although nothing else happens: the end of the nearest back-off.
    pub fn wake_at(&self) -> Option<Instant> {
        self.types.iter().flatten().filter_map(|state| state.backoff.until()).min()
    }
}

impl TypeState {
    fn answer(&mut self, kind: ResourceType, nonce: &str, error: Option<String>, now: Instant) -> Answer {
        let Some(position) = self.in_flight.iter().position(|sent| sent.nonce == nonce) else {
            return Answer::None;
        };
        // Answers come in order; what was sent before the answered response is settled with it.
        let mut settled = self.in_flight.drain(..=position);
        let last = settled.next_back();
        drop(settled);
        match error {
            None => {
                self.backoff.acknowledged();
                Answer::Acknowledged(kind)
            }
            Some(message) => {
                for (name, version) in last.into_iter().flat_map(|sent| sent.sent) {
                    // A later response may have replaced it already.
                    if self.held.get(&name) == Some(&version) {
                        self.held.remove(&name);
                    }
                }
                self.backoff.rejected(now);
                Answer::Rejected(kind, message)
            }
        }
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
