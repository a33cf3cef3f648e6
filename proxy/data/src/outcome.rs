//! How a connection ended.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::{
    connection::Connection,
    error::ResponseFlags,
    model::{
        access_log::AccessLog,
        cluster::{Cluster, Endpoint},
    },
    record::{self, Record},
};

/// What a connection's log line says beyond what the connection knows of itself.
#[derive(Debug, Default)]
pub struct Outcome {
    /// `%RESPONSE_FLAGS%`
    pub flags: ResponseFlags,
    /// `%CONNECTION_TERMINATION_DETAILS%`
    pub details: Option<String>,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`
    pub downstream_failure: Option<String>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`
    pub upstream_failure: Option<String>,
    /// `%UPSTREAM_CLUSTER%`
    pub cluster: Option<Arc<Cluster>>,
    /// `%UPSTREAM_HOST%`
    pub endpoint: Option<Arc<Endpoint>>,
    /// `%UPSTREAM_LOCAL_ADDRESS%`
    pub upstream_local: Option<SocketAddr>,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`
    pub attempts: u32,
    /// So far the upstream is connected, no more.
    pub only_connected: bool,
}

impl Outcome {
    /// Writes a line to each log that wants it.
    pub(crate) fn write(&self, logs: &[AccessLog], connection: &Connection) {
        if logs.is_empty() {
            return;
        }
        let Outcome {
            flags,
            details,
            downstream_failure,
            upstream_failure,
            cluster,
            endpoint,
            upstream_local,
            attempts,
            only_connected,
        } = self;
        let line = Record {
            flags: *flags,
            termination: details.as_deref(),
            downstream_failure: downstream_failure.as_deref(),
            upstream_failure: upstream_failure.as_deref(),
            cluster: cluster.as_deref(),
            endpoint: endpoint.as_deref(),
            upstream_local: *upstream_local,
            attempts: *attempts,
            only_connected: *only_connected,
            bytes_received: connection.received.load(Relaxed),
            bytes_sent: connection.sent.load(Relaxed),
            ..Record::of_connection(connection)
        };
        record::write(logs, &line);
    }
}
