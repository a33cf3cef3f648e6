//! What goes into the compiler and what comes out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use prost::{Message, Name};
use shika_data::{
    model::{
        ListenerId,
        access_log::{LogCollector, LogSink},
        tracing::{Collector, SpanSink},
    },
    snapshot::Snapshot,
};
use shika_proto::{
    any,
    envoy::{
        config::{
            cluster::v3 as clusters, endpoint::v3::ClusterLoadAssignment, listener::v3 as listeners,
            route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
        service::{discovery::v3::Resource as Wrapper, runtime::v3::Runtime},
    },
    google::protobuf::Any,
    type_url,
};

use crate::{compile::Fault, reject::Reject};

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

impl Resource {
    /// A resource without its wrapper, which it may have in state of the world too. Refusals come with the wrapper's name.
    pub(crate) fn unwrapped(self) -> Result<Resource, (String, Fault)> {
        if !any::is::<Wrapper>(&self.resource) {
            return Ok(self);
        }
        let wrapper: Wrapper =
            any::unpack(&self.resource).map_err(|error| (self.name, Fault::new("", error.to_string())))?;
        if wrapper.ttl.is_some() {
            return Err((wrapper.name, Fault::new("ttl", "resources with a time to live are not supported")));
        }
        match wrapper.resource {
            Some(content) => {
                let version = if wrapper.version.is_empty() { self.version } else { wrapper.version };
                Ok(Resource { name: wrapper.name, version, resource: content })
            }
            None => Err((wrapper.name, Fault::new("resource", "value is required"))),
        }
    }

    /// The name in the resource, which has to be that of its wrapper.
    pub(crate) fn own_name(&self, kind: &str) -> Result<String, Fault> {
        fn field<M: Message + Name + Default>(resource: &Any, name: fn(M) -> String) -> Result<String, Fault> {
            any::unpack::<M>(resource).map(name).map_err(|error| Fault::new("", error.to_string()))
        }
        let any = &self.resource;
        let (name, path) = match kind {
            type_url::CLUSTER => (field::<clusters::Cluster>(any, |cluster| cluster.name)?, "name"),
            type_url::LISTENER => (field::<listeners::Listener>(any, |listener| listener.name)?, "name"),
            type_url::ENDPOINT => {
                (field::<ClusterLoadAssignment>(any, |assignment| assignment.cluster_name)?, "cluster_name")
            }
            type_url::ROUTE => (field::<RouteConfiguration>(any, |table| table.name)?, "name"),
            type_url::RUNTIME => (field::<Runtime>(any, |layer| layer.name)?, "name"),
            _ => (field::<Secret>(any, |secret| secret.name)?, "name"),
        };
        // A listener may leave its name to the wrapper.
        match (name.as_str(), self.name.as_str()) {
            ("", "") => Err(Fault::new(path, "value length must be at least 1 characters")),
            ("", wrapper) if kind == type_url::LISTENER => Ok(wrapper.to_owned()),
            ("", _) => Err(Fault::new(path, "value length must be at least 1 characters")),
            (_, "") => Ok(name),
            (own, wrapper) if own == wrapper => Ok(name),
            (own, wrapper) => {
                Err(Fault::new(path, format!("{own:?} is not the name that it was sent under, {wrapper:?}")))
            }
        }
    }
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
