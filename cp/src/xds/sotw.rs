//! One state-of-the-world ADS stream (`StreamAggregatedResources`).
//!
//! A response carries every resource that the proxy subscribed to, and one version for all of them: the hash of their names and
//! versions. A proxy that reconnects with that version is therefore sent nothing until something changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::{Answer, Backoff, MAX_NAMES, Resource, ResourceType, Snapshot, StreamError, Version};

/// A request as the state sees it.
#[derive(Clone, Debug, Default)]
pub struct SotwRequest {
    /// Version that the proxy accepted last; empty if none.
    pub version: String,
    /// All names it wants; `*` or, for LDS and CDS, an empty first list is everything.
    pub names: Vec<String>,
    /// Nonce of the response that this answers; empty if it answers none.
    pub nonce: String,
    /// The proxy's message if it refuses the response.
    pub error: Option<String>,
}

/// A response to send.
#[derive(Clone, Debug)]
pub struct SotwResponse {
    /// Type of everything in it.
    pub kind: ResourceType,
    /// Everything the proxy should have of this type, by name.
    pub resources: Vec<(String, Arc<Resource>)>,
    /// Version of the whole.
    pub version: String,
    /// Nonce, unique in the stream.
    pub nonce: String,
}

/// State of one stream.
#[derive(Debug, Default)]
pub struct SotwStream {
    types: [Option<TypeState>; 5],
    nonce: u64,
    missing_content: bool,
}

#[derive(Debug, Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Version that the proxy has or is being sent.
    version: String,
    nonce: String,
    waiting: bool,
    /// Send even if the version is the same.
    force: bool,
    /// Versions of the clusters that were sent, to tell which of them changed.
    clusters: Vec<(String, Version)>,
    backoff: Backoff,
}

impl SotwStream {
    /// The state of a stream that just opened.
    pub fn new() -> Self {
        SotwStream::default()
    }

    /// Takes in a request of the proxy.
    ///
    /// # Errors
    /// When the proxy subscribes to more than [`MAX_NAMES`] names.
    pub fn request(&mut self, kind: ResourceType, request: SotwRequest, now: Instant) -> Result<Answer, StreamError> {
        if request.names.len() > MAX_NAMES {
            return Err(StreamError::TooManyNames { type_url: kind.url() });
        }
        let slot = &mut self.types[kind.index()];
        let first = slot.is_none();
        let state = slot.get_or_insert_with(TypeState::default);
        if !first && request.nonce != state.nonce {
            // It answers an older response; the proxy repeats its names with the answer to the newest.
            return Ok(Answer::None);
        }
        let mut names: BTreeSet<String> = request.names.into_iter().collect();
        let star = names.remove("*");
        if first {
            state.wildcard = star || (names.is_empty() && kind.is_wildcard_by_default());
            state.version.clone_from(&request.version);
        } else {
            state.wildcard = star || (names.is_empty() && state.wildcard);
            // The proxy waits for an answer to names that it adds, even if the content is what it already has.
            state.force |= !names.is_subset(&state.names);
        }
        state.names = names;
        if first || !state.waiting {
            return Ok(Answer::None);
        }
        state.waiting = false;
        match request.error {
            None => {
                state.backoff.acknowledged();
                Ok(Answer::Acknowledged(kind))
            }
            Some(message) => {
                state.version = request.version;
                state.force = true;
                state.backoff.rejected(now);
                Ok(Answer::Rejected(kind, message))
            }
        }
    }

    /// The next response that the snapshot asks for, if any. Call it until it returns `None`.
    pub fn next(&mut self, snapshot: &Snapshot, now: Instant) -> Option<SotwResponse> {
        ResourceType::ORDER.into_iter().find_map(|kind| self.next_of(kind, snapshot, now))
    }

    fn next_of(&mut self, kind: ResourceType, snapshot: &Snapshot, now: Instant) -> Option<SotwResponse> {
        let state = self.types[kind.index()].as_mut()?;
        if !state.backoff.open(now) || state.waiting {
            return None;
        }
        let resources: Vec<(String, Arc<Resource>)> = snapshot
            .resources(kind)
            .iter()
            .filter(|(name, _)| state.wildcard || state.names.contains(*name))
            .map(|(name, resource)| (name.clone(), resource.clone()))
            .collect();
        if resources.is_empty() && !state.wildcard {
            // Nothing that it asked for exists yet. It gets an answer when something does.
            return None;
        }
        let versions: Vec<(&str, Version)> =
            resources.iter().map(|(name, resource)| (name.as_str(), resource.version)).collect();
        let version = Version::of(&versions).to_string();
        if version == state.version && !state.force {
            return None;
        }
        if resources.iter().any(|(_, resource)| resource.body.is_none()) {
            self.missing_content = true;
            return None;
        }

        self.nonce += 1;
        state.nonce = self.nonce.to_string();
        state.version.clone_from(&version);
        state.waiting = true;
        state.force = false;
        let response = SotwResponse { kind, resources, version, nonce: state.nonce.clone() };
        if kind == ResourceType::Cluster {
            self.clusters_sent(&response);
        }
        Some(response)
    }

    /// Envoy replaces a cluster that changed by a new one, which needs its endpoints again although they did not change.
    fn clusters_sent(&mut self, response: &SotwResponse) {
        let sent: Vec<(String, Version)> =
            response.resources.iter().map(|(name, resource)| (name.clone(), resource.version)).collect();
        let Some(clusters) = self.types[ResourceType::Cluster.index()].as_mut() else { return };
        let before = std::mem::replace(&mut clusters.clusters, sent.clone());
        if let Some(endpoints) = self.types[ResourceType::Endpoint.index()].as_mut() {
            let changed = sent.iter().filter(|cluster| !before.contains(cluster));
            endpoints.force |= changed.into_iter().any(|(name, _)| endpoints.names.contains(name));
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

#[cfg(test)]
#[path = "sotw_tests.rs"]
mod tests;
