//! Delta xDS, sans-io.
//!
//! Source: Envoy documentation, "xDS REST and gRPC protocol", incremental xDS.
//!
//! One type's life on a stream:
//!
//! ```text
//!            want                       received                    acknowledge
//!  idle ───────────────► subscribed ───────────────► answering ───────────────────► subscribed
//!   ▲   (names, and on a new stream                                (ACK, or NACK with error_detail)
//!   │    the versions that are held)
//!   └── disconnected: names and versions stay
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use shika_proto::{
    any,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
    google::rpc::Status,
};

use crate::{
    ads::{Receipt, TYPES},
    compiler::{Resource, Update, UpdateKind, Wanted},
    reject::{Reject, summary},
};

/// `INVALID_ARGUMENT`, as Envoy's NACKs have it.
pub(crate) const INVALID_ARGUMENT: i32 = 3;

/// State of all types.
#[derive(Debug)]
pub struct Delta {
    node: Node,
    node_on_first_message_only: bool,
    /// A stream is open.
    open: bool,
    /// The node was sent on this stream.
    node_sent: bool,
    types: BTreeMap<&'static str, TypeState>,
    acks: VecDeque<DeltaDiscoveryRequest>,
}

#[derive(Debug, Default)]
struct TypeState {
    wanted: Wanted,
    /// What this stream has been told; `None`: nothing yet.
    told: Option<Wanted>,
    /// Versions of the resources in force, for `initial_resource_versions`.
    versions: HashMap<String, String>,
    /// What the unacknowledged responses would make of `versions`.
    pending: Vec<(String, Pending)>,
}

#[derive(Debug, Default)]
struct Pending {
    versions: Vec<(String, String)>,
    removed: Vec<String>,
}

impl Delta {
    /// State before the first stream.
    pub fn new(node: Node, node_on_first_message_only: bool) -> Self {
        Delta {
            node,
            node_on_first_message_only,
            open: false,
            node_sent: false,
            types: TYPES.iter().map(|type_url| (*type_url, TypeState::default())).collect(),
            acks: VecDeque::new(),
        }
    }

    /// A new stream is open.
    pub fn connected(&mut self) {
        self.reset();
        self.open = true;
    }

    /// The stream is gone.
    pub fn disconnected(&mut self) {
        self.reset();
        self.open = false;
    }

    fn reset(&mut self) {
        self.node_sent = false;
        self.acks.clear();
        for state in self.types.values_mut() {
            state.told = None;
            state.pending.clear();
        }
    }

    /// What is wanted of a type now. A type without meaning here is passed over.
    pub fn want(&mut self, type_url: &str, wanted: Wanted) {
        let Some(state) = self.types.get_mut(type_url) else { return };
        if state.wanted == wanted {
            return;
        }
        if let Wanted::Names(names) = &wanted {
            // What is no longer subscribed is no longer held: a control plane that is asked again has to send it again.
            state.versions.retain(|name, _| names.contains(name.as_str()));
        }
        state.wanted = wanted;
    }

    /// Takes a response.
    pub fn received(&mut self, response: DeltaDiscoveryResponse) -> Option<(Update, Receipt)> {
        let state = self.types.get_mut(response.type_url.as_str())?;
        state.told.as_ref()?;
        let mut pending = Pending { versions: Vec::new(), removed: response.removed_resources.clone() };
        let mut resources = Vec::with_capacity(response.resources.len());
        for resource in response.resources {
            // A resource without content is a heartbeat of one with a time to live, or a placeholder for an alias.
            if resource.resource.is_none() {
                continue;
            }
            pending.versions.push((resource.name.clone(), resource.version.clone()));
            let (name, version) = (resource.name.clone(), resource.version.clone());
            // With a time to live it stays in its wrapper, so that it is refused for that.
            let content = if resource.ttl.is_some() { Some(any::pack(&resource)) } else { resource.resource };
            resources.extend(content.map(|resource| Resource { name, version, resource }));
        }
        state.pending.push((response.nonce.clone(), pending));
        let update = Update {
            type_url: response.type_url.clone(),
            resources,
            removed: response.removed_resources,
            kind: UpdateKind::Delta,
            version: response.system_version_info.clone(),
        };
        Some((
            update,
            Receipt { type_url: response.type_url, nonce: response.nonce, version: response.system_version_info },
        ))
    }

    /// Queues ACK or NACK. A receipt of an earlier stream is passed over.
    pub fn acknowledge(&mut self, receipt: Receipt, rejects: &[Reject]) {
        let Some(state) = self.types.get_mut(receipt.type_url.as_str()) else { return };
        let Some(at) = state.pending.iter().position(|(nonce, _)| *nonce == receipt.nonce) else { return };
        let (_, pending) = state.pending.remove(at);
        for (name, version) in pending.versions {
            // A refused resource keeps the version of the one in force, so that a new stream is sent the refused one again. One that nothing asks for was
            // passed over.
            let wanted = state.wanted.names().is_none_or(|names| names.contains(name.as_str()));
            if wanted && !rejects.iter().any(|reject| reject.name == name) {
                state.versions.insert(name, version);
            }
        }
        for name in pending.removed {
            state.versions.remove(&name);
        }
        self.acks.push_back(DeltaDiscoveryRequest {
            type_url: receipt.type_url,
            response_nonce: receipt.nonce,
            error_detail: error_detail(rejects),
            ..Default::default()
        });
    }

    /// The next request to send: acknowledgements first, then subscriptions in the order of [`TYPES`].
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.open {
            return None;
        }
        let mut request = match self.acks.pop_front() {
            Some(ack) => ack,
            None => TYPES.iter().find_map(|type_url| self.types.get_mut(type_url)?.subscription(type_url))?,
        };
        if !self.node_sent || !self.node_on_first_message_only {
            request.node = Some(self.node.clone());
            self.node_sent = true;
        }
        Some(request)
    }
}

impl TypeState {
    fn subscription(&mut self, type_url: &str) -> Option<DeltaDiscoveryRequest> {
        if self.told.as_ref() == Some(&self.wanted) || (self.told.is_none() && self.wanted.is_empty()) {
            return None;
        }
        let first = self.told.is_none();
        let told = self.told.replace(self.wanted.clone()).unwrap_or_default();
        let none = BTreeSet::new();
        let (old, new) = (told.names().unwrap_or(&none), self.wanted.names().unwrap_or(&none));
        let mut subscribe: Vec<String> = new.difference(old).map(|name| name.to_string()).collect();
        let mut unsubscribe: Vec<String> = old.difference(new).map(|name| name.to_string()).collect();
        match (&told, &self.wanted) {
            // The first request of a stream without any name is a wildcard; later it has to be named.
            (Wanted::None | Wanted::Names(_), Wanted::All) if !first => subscribe.push("*".into()),
            (Wanted::All, Wanted::None | Wanted::Names(_)) => unsubscribe.push("*".into()),
            _ => {}
        }
        let initial_resource_versions = if first { self.versions.clone() } else { HashMap::new() };
        Some(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions,
            ..Default::default()
        })
    }
}

impl Wanted {
    /// The names, if it is a list of names.
    pub fn names(&self) -> Option<&BTreeSet<Arc<str>>> {
        match self {
            Wanted::Names(names) => Some(names),
            Wanted::None | Wanted::All => None,
        }
    }

    /// Nothing is wanted.
    pub fn is_empty(&self) -> bool {
        match self {
            Wanted::None => true,
            Wanted::All => false,
            Wanted::Names(names) => names.is_empty(),
        }
    }
}

pub(crate) fn error_detail(rejects: &[Reject]) -> Option<Status> {
    if rejects.is_empty() {
        return None;
    }
    Some(Status { code: INVALID_ARGUMENT, message: summary(rejects), details: Vec::new() })
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
