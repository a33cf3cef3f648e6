//! State-of-the-world xDS, sans-io.
//!
//! Source: Envoy documentation, "xDS REST and gRPC protocol", "ACK/NACK and resource type instance version". A request always carries the whole list
//! of names, the version in force and the nonce of the last response of its type.

use std::collections::BTreeMap;

use shika_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
};

use crate::{
    ads::{Receipt, TYPES},
    compiler::{Resource, Update, UpdateKind, Wanted},
    delta::error_detail,
    reject::Reject,
};

/// State of all types.
#[derive(Debug)]
pub struct Sotw {
    node: Node,
    node_on_first_message_only: bool,
    open: bool,
    node_sent: bool,
    types: BTreeMap<&'static str, TypeState>,
}

#[derive(Debug, Default)]
struct TypeState {
    wanted: Wanted,
    /// What this stream has been told; `None`: nothing yet.
    told: Option<Wanted>,
    /// Version in force; survives the stream.
    version: String,
    /// Of the last response on this stream.
    nonce: String,
    /// A response has been decided on: `Some(refusals)`.
    answer: Option<Option<shika_proto::google::rpc::Status>>,
}

impl Sotw {
    /// State before the first stream.
    pub fn new(node: Node, node_on_first_message_only: bool) -> Self {
        Sotw {
            node,
            node_on_first_message_only,
            open: false,
            node_sent: false,
            types: TYPES.iter().map(|type_url| (*type_url, TypeState::default())).collect(),
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
        for state in self.types.values_mut() {
            state.told = None;
            state.nonce.clear();
            state.answer = None;
        }
    }

    /// What is wanted of a type now.
    pub fn want(&mut self, type_url: &str, wanted: Wanted) {
        if let Some(state) = self.types.get_mut(type_url) {
            state.wanted = wanted;
        }
    }

    /// Takes a response.
    pub fn received(&mut self, response: DiscoveryResponse) -> Option<(Update, Receipt)> {
        let state = self.types.get_mut(response.type_url.as_str())?;
        state.told.as_ref()?;
        state.nonce.clone_from(&response.nonce);
        let version = response.version_info;
        let update = Update {
            type_url: response.type_url.clone(),
            resources: response
                .resources
                .into_iter()
                .map(|resource| Resource { name: String::new(), version: version.clone(), resource })
                .collect(),
            removed: Vec::new(),
            kind: UpdateKind::FullState,
            version: version.clone(),
        };
        Some((update, Receipt { type_url: response.type_url, nonce: response.nonce, version }))
    }

    /// Queues ACK or NACK. A receipt of an earlier stream, or one that a later response has overtaken, is passed over.
    pub fn acknowledge(&mut self, receipt: Receipt, rejects: &[Reject]) {
        let Some(state) = self.types.get_mut(receipt.type_url.as_str()) else { return };
        if rejects.is_empty() {
            state.version = receipt.version;
        }
        if state.told.is_some() && state.nonce == receipt.nonce {
            state.answer = Some(error_detail(rejects));
        }
    }

    /// The next request to send, in the order of [`TYPES`].
    pub fn next_request(&mut self) -> Option<DiscoveryRequest> {
        if !self.open {
            return None;
        }
        let mut request = TYPES.iter().find_map(|type_url| self.types.get_mut(type_url)?.request(type_url))?;
        if !self.node_sent || !self.node_on_first_message_only {
            request.node = Some(self.node.clone());
            self.node_sent = true;
        }
        Some(request)
    }
}

impl TypeState {
    fn request(&mut self, type_url: &str) -> Option<DiscoveryRequest> {
        let subscribed = self.told.as_ref() == Some(&self.wanted) || (self.told.is_none() && self.wanted.is_empty());
        if subscribed && self.answer.is_none() {
            return None;
        }
        // The last name went away: an empty list would be a wildcard for LDS and CDS and is sent for the others only.
        self.told = Some(self.wanted.clone());
        Some(DiscoveryRequest {
            type_url: type_url.to_owned(),
            version_info: self.version.clone(),
            resource_names: self.wanted.names().into_iter().flatten().map(|name| name.to_string()).collect(),
            response_nonce: self.nonce.clone(),
            error_detail: self.answer.take().flatten(),
            ..Default::default()
        })
    }
}

#[cfg(test)]
#[path = "sotw_tests.rs"]
mod tests;
