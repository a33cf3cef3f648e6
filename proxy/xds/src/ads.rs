//! One subscription's protocol, delta or state of the world, behind one surface: ADS, or a single type of resource.
//!
//! Sans-io: what was received goes in, requests come out. The order of use:
//!
//! ```text
//! connected ─► want(type, names)… ─► next_request… ─► received ─► (apply, build, publish) ─► acknowledge ─► next_request…
//!     ▲                                                                                                        │
//!     └──────────────────────────────────── disconnected ◄─────────────────────────────────────────────────────┘
//! ```

use shika_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
};

use crate::{
    bootstrap::{ApiConfig, ApiType},
    compiler::{Update, Wanted},
    delta::Delta,
    reject::Reject,
    sotw::Sotw,
};

/// The types asked for over ADS, in the order in which they are asked for.
pub const TYPES: [&str; 6] = [
    shika_proto::type_url::RUNTIME,
    shika_proto::type_url::CLUSTER,
    shika_proto::type_url::ENDPOINT,
    shika_proto::type_url::SECRET,
    shika_proto::type_url::LISTENER,
    shika_proto::type_url::ROUTE,
];

/// To the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Delta.
    Delta(DeltaDiscoveryRequest),
    /// State of the world.
    Sotw(DiscoveryRequest),
}

/// From the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// Delta.
    Delta(DeltaDiscoveryResponse),
    /// State of the world.
    Sotw(DiscoveryResponse),
}

/// Identifies a response that is to be acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a response that is not acknowledged stalls its type"]
pub struct Receipt {
    /// Type of the response.
    pub type_url: String,
    /// Its nonce.
    pub nonce: String,
    /// Its version (state of the world).
    pub version: String,
}

/// Protocol state of one subscription; outlives its streams.
#[derive(Debug)]
pub enum Ads {
    /// Delta.
    Delta(Box<Delta>),
    /// State of the world.
    Sotw(Box<Sotw>),
}

impl Ads {
    /// State before the first stream.
    pub fn new(config: &ApiConfig, node: Node) -> Self {
        match config.api_type {
            ApiType::DeltaGrpc => Ads::Delta(Box::new(Delta::new(node, config.node_on_first_message_only))),
            ApiType::Grpc => Ads::Sotw(Box::new(Sotw::new(node, config.node_on_first_message_only))),
            // Each question stands alone.
            ApiType::Rest { .. } => Ads::Sotw(Box::new(Sotw::new(node, false))),
        }
    }

    /// A new stream is open: everything wanted is asked for again, with the versions that are held.
    pub fn connected(&mut self) {
        match self {
            Ads::Delta(state) => state.connected(),
            Ads::Sotw(state) => state.connected(),
        }
    }

    /// The stream is gone; nothing is sent until the next.
    pub fn disconnected(&mut self) {
        match self {
            Ads::Delta(state) => state.disconnected(),
            Ads::Sotw(state) => state.disconnected(),
        }
    }

    /// What is wanted of a type now. Call it for each of [`TYPES`] after every change; equal calls cost nothing.
    pub fn want(&mut self, type_url: &str, wanted: Wanted) {
        match self {
            Ads::Delta(state) => state.want(type_url, wanted),
            Ads::Sotw(state) => state.want(type_url, wanted),
        }
    }

    /// Takes a response. `None`: it is of no use (another protocol, a type that was not asked for) and is passed over.
    pub fn received(&mut self, response: Response) -> Option<(Update, Receipt)> {
        match (self, response) {
            (Ads::Delta(state), Response::Delta(response)) => state.received(response),
            (Ads::Sotw(state), Response::Sotw(response)) => state.received(response),
            (Ads::Delta(_), Response::Sotw(_)) | (Ads::Sotw(_), Response::Delta(_)) => None,
        }
    }

    /// Everything in the response but `rejects` is in force. Queues ACK or NACK.
    pub fn acknowledge(&mut self, receipt: Receipt, rejects: &[Reject]) {
        match self {
            Ads::Delta(state) => state.acknowledge(receipt, rejects),
            Ads::Sotw(state) => state.acknowledge(receipt, rejects),
        }
    }

    /// The next request to send; `None` when there is nothing to say.
    pub fn next_request(&mut self) -> Option<Request> {
        match self {
            Ads::Delta(state) => state.next_request().map(Request::Delta),
            Ads::Sotw(state) => state.next_request().map(Request::Sotw),
        }
    }
}
