//! What goes into the compiler and what comes out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shika_data::{
    model::{
        ListenerId,
        access_log::{LogCollector, LogSink},
        tracing::{Collector, SpanSink},
    },
    snapshot::Snapshot,
};
use shika_proto::google::protobuf::Any;

use crate::reject::Reject;

/// What the compiler needs to know of the process.
pub struct CompileOptions {
    /// `%HOSTNAME%`
    pub hostname: String,
    /// Number of workers.
    pub concurrency: usize,
    /// Fields unknown to the schema refuse a dynamic resource (`--reject-unknown-dynamic-fields`); otherwise they are counted.
    pub reject_unknown_dynamic_fields: bool,
    /// Gives the sink of an access log by path, the same one each time.
    pub log_sink: Box<dyn FnMut(&str) -> LogSink + Send>,
    /// Gives the sink of spans by collector, the same one each time.
    pub span_sink: Box<dyn FnMut(&Collector) -> SpanSink + Send>,
    /// Gives the sink of an access log that is sent to a collector, the same one each time.
    pub log_collector: Box<dyn FnMut(&LogCollector) -> LogSink + Send>,
}

/// How a set of resources is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateKind {
    /// Only what changed; removals are listed.
    Delta,
    /// State of the world or a file: a listener or cluster that is not in it is gone.
    FullState,
}

/// One resource as received.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Name; empty if the wrapper had none, it is then read from the resource.
    pub name: String,
    /// The control plane's version of it.
    pub version: String,
    /// The resource.
    pub resource: Any,
}

/// One xDS response, or the content of one file.
#[derive(Clone, Debug)]
pub struct Update {
    /// Type of all resources.
    pub type_url: String,
    /// New and changed resources.
    pub resources: Vec<Resource>,
    /// Names that are gone ([`UpdateKind::Delta`]).
    pub removed: Vec<String>,
    /// How it is meant.
    pub kind: UpdateKind,
    /// Version of the whole.
    pub version: String,
}

/// What became of an update.
#[derive(Debug, Default)]
pub struct Applied {
    /// Refused resources; all others are in.
    pub rejects: Vec<Reject>,
    /// Something differs from before: call [`Compiler::build`].
    pub changed: bool,
    /// Resources that were in force already with the same content.
    pub unchanged: usize,
}

/// What to publish.
#[derive(Debug)]
pub struct Plan {
    /// The configuration; parts that did not change are the same `Arc`.
    pub snapshot: Arc<Snapshot>,
    /// Listeners whose sockets are to be bound: new ones, and those whose addresses or socket options changed.
    pub bind: Vec<ListenerId>,
    /// Listeners to stop: gone, or no longer bound to a port.
    pub unbind: Vec<ListenerId>,
    /// What still waits, and for what.
    pub warming: Vec<Warming>,
}

/// A resource that is accepted but not in force yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warming {
    /// Its type URL.
    pub type_url: &'static str,
    /// Its name.
    pub name: Arc<str>,
    /// What it waits for, such as `ClusterLoadAssignment/backend`.
    pub waits_for: Vec<String>,
}

/// Which resources of a type are wanted on the ADS stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// None (yet).
    #[default]
    None,
    /// All of them (`*`).
    All,
    /// These.
    Names(BTreeSet<Arc<str>>),
}

/// A name to resolve for a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsTarget {
    /// Cluster.
    pub cluster: Arc<str>,
    /// Host name.
    pub hostname: Arc<str>,
    /// `dns_lookup_family`
    pub family: LookupFamily,
    /// `dns_refresh_rate`. Envoy's default 5 s.
    pub refresh: Duration,
    /// `respect_dns_ttl`: the answer's TTL takes the place of `refresh`.
    pub respect_ttl: bool,
}

/// Envoy `DnsLookupFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupFamily {
    /// IPv6 if there is any such address, else IPv4.
    Auto,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// IPv4 if there is any such address, else IPv6.
    V4Preferred,
    /// Both.
    All,
}
