//! The immutable root of what the workers read, published whole.
//!
//! A push is compiled off the path into a new snapshot; parts whose content did not change are the same `Arc`, and with it keep their pools,
//! statistics, health and outlier state. Two things are swapped below the root, because they change most and are consistent alone: the endpoint set of
//! a cluster ([`crate::model::cluster::Cluster::endpoints`]) and the secret in a TLS context ([`crate::model::tls::ServerTls`],
//! [`crate::model::tls::ClientTls`]).

use std::sync::Arc;

use crate::model::{
    ChainId, ClusterId, ListenerId, RouteTableId, cluster::Cluster, listener::FilterChain, listener::Listener,
    route::RouteTable,
};

/// One consistent configuration. Ids are dense indexes, so a request looks nothing up by name.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts publications, from 1; 0 is the empty snapshot that workers start with.
    pub generation: u64,
    /// By [`ListenerId`]; an empty slot is a name that is gone.
    pub listeners: Vec<Option<Arc<Listener>>>,
    /// By [`RouteTableId`]; an empty slot is a table that has not arrived or is gone.
    pub route_tables: Vec<Option<Arc<RouteTable>>>,
    /// By [`ClusterId`]; an empty slot is a cluster that is named by a route but does not exist, or is still warming.
    pub clusters: Vec<Option<Arc<Cluster>>>,
}

impl Snapshot {
    /// The listener with this id, if it still exists.
    pub fn listener(&self, id: ListenerId) -> Option<&Arc<Listener>> {
        self.listeners.get(id.index())?.as_ref()
    }

    /// What the chain that a connection was matched to is now. `None` once the listener or the chain is gone, or its demands on the peer changed.
    pub fn chain(&self, listener: ListenerId, chain: ChainId) -> Option<&Arc<FilterChain>> {
        self.listener(listener)?.chains.by_id(chain)
    }

    /// The route table with this id.
    pub fn route_table(&self, id: RouteTableId) -> Option<&Arc<RouteTable>> {
        self.route_tables.get(id.index())?.as_ref()
    }

    /// The cluster with this id.
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(id.index())?.as_ref()
    }
}
