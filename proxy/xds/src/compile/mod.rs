//! From protobuf to the model, message by message.
//!
//! Which fields are read at all is decided in one table, [`crate::harmless`]: a resource is checked against it before it comes here, so that a set field
//! that no function below reads has either been refused or is known to be harmless.

pub(crate) mod access_log;
pub(crate) mod address;
pub(crate) mod cluster;
pub(crate) mod config_source;
mod datagram;
pub(crate) mod denials;
pub(crate) mod endpoints;
pub(crate) mod filter;
pub(crate) mod format;
pub(crate) mod hash;
pub(crate) mod header;
pub(crate) mod health;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod labels;
pub(crate) mod listener;
mod listener_filters;
pub(crate) mod matcher;
pub(crate) mod outlier;
pub(crate) mod proxy_protocol;
pub(crate) mod retry;
pub(crate) mod route;
pub(crate) mod secret;
pub(crate) mod source;
pub(crate) mod tls;
pub(crate) mod tracing;
pub(crate) mod upstream_http;

use std::{fmt, sync::Arc, time::Duration};

use foldhash::{HashMap, HashMapExt};
use prost::{Message, Name};
use shika_data::{
    model::{
        ClusterId,
        access_log::{LogCollector, LogSink},
        listener::{ConnectionLimit, TrafficDirection},
        tracing::{Collector, SpanSink},
    },
    stats::Registry,
};
use shika_proto::{any, google::protobuf::Any};

/// What is wrong, and where below the message that is being compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Field path from the message outwards; empty for the message itself.
    pub path: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// The outcome of compiling a part.
pub(crate) type Compiled<T> = Result<T, Fault>;

impl Fault {
    /// Something wrong with `field` of the message at hand; an empty field is the message itself.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Fault { path: field.into(), reason: reason.into() }
    }

    fn prefixed(mut self, prefix: fmt::Arguments<'_>) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{prefix}{dot}{}", self.path);
        self
    }
}

/// Puts the way to a part before the path of its fault.
pub(crate) trait Within {
    /// The part is the value of `field`.
    fn within(self, field: &str) -> Self;
    /// The part is an item of the list `field`.
    fn at(self, field: &str, index: usize) -> Self;
    /// The part is the value of `key` in the map `field`.
    fn at_key(self, field: &str, key: &str) -> Self;
}

impl<T> Within for Compiled<T> {
    fn within(self, field: &str) -> Self {
        self.map_err(|fault| fault.prefixed(format_args!("{field}")))
    }

    fn at(self, field: &str, index: usize) -> Self {
        self.map_err(|fault| fault.prefixed(format_args!("{field}[{index}]")))
    }

    fn at_key(self, field: &str, key: &str) -> Self {
        self.map_err(|fault| fault.prefixed(format_args!("{field}[{key:?}]")))
    }
}

/// What compiling reads and fills besides the message.
pub(crate) struct Context<'a> {
    /// Gives the statistics.
    pub registry: &'a Registry,
    /// Gives the sinks of access logs.
    pub log_sink: &'a mut (dyn FnMut(&str) -> LogSink + Send),
    /// Gives the sinks of spans.
    pub span_sink: &'a mut (dyn FnMut(&Collector) -> SpanSink + Send),
    /// Gives the sinks of access logs that are sent to collectors.
    pub log_collector: &'a mut (dyn FnMut(&LogCollector) -> LogSink + Send),
    /// The listener at hand is one for traffic that leaves the workload.
    pub direction: TrafficDirection,
    /// `%HOSTNAME%`
    pub hostname: &'a str,
    /// `node.cluster`
    pub local_cluster: &'a str,
    /// Source address of upstream connections of clusters that name none.
    pub bind_source: Option<std::net::IpAddr>,
    /// Ids of clusters by name; a new name gets one.
    pub clusters: &'a mut ClusterIds,
    /// The limit on connections of a listener, by its name.
    pub connection_limit: &'a mut dyn FnMut(&str) -> Arc<ConnectionLimit>,
    /// Whether a cluster of this name exists, warming ones included.
    pub cluster_exists: &'a dyn Fn(&str) -> bool,
    /// Where sources of resources may lead to.
    pub servers: &'a config_source::Servers,
    /// Whether the bootstrap has a secret of this name.
    pub static_secret_exists: &'a dyn Fn(&str) -> bool,
}

/// Dense ids of clusters by name. A name keeps its id for the life of the process.
#[derive(Debug, Default)]
pub(crate) struct ClusterIds {
    ids: HashMap<Arc<str>, ClusterId>,
    /// The same map as routes by `cluster_header` hold it; made anew when a name is added.
    shared: Option<Arc<HashMap<Arc<str>, ClusterId>>>,
}

impl ClusterIds {
    /// The id of a name, and the name as shared text.
    pub fn intern(&mut self, name: &str) -> (ClusterId, Arc<str>) {
        if let Some((name, id)) = self.ids.get_key_value(name) {
            return (*id, name.clone());
        }
        let id = ClusterId(self.ids.len() as u32);
        let name: Arc<str> = name.into();
        self.ids.insert(name.clone(), id);
        self.shared = None;
        (id, name)
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// All names, for routes that take the cluster's name from a header.
    pub fn shared(&mut self) -> Arc<HashMap<Arc<str>, ClusterId>> {
        let ids = &self.ids;
        self.shared
            .get_or_insert_with(|| {
                let mut copy = HashMap::with_capacity(ids.len());
                copy.extend(ids.iter().map(|(name, id)| (name.clone(), *id)));
                Arc::new(copy)
            })
            .clone()
    }
}

/// Opens an `Any` as the message `M`.
pub(crate) fn unpack<M: Message + Name + Default>(content: &Any) -> Compiled<M> {
    any::unpack(content).map_err(|error| Fault::new("", error.to_string()))
}

/// The content of a required field.
pub(crate) fn required<'a, T>(value: &'a Option<T>, field: &str) -> Compiled<&'a T> {
    value.as_ref().ok_or_else(|| Fault::new(field, "value is required"))
}

/// A text that may not be empty.
pub(crate) fn non_empty<'a>(value: &'a str, field: &str) -> Compiled<&'a str> {
    if value.is_empty() { Err(Fault::new(field, "value length must be at least 1 characters")) } else { Ok(value) }
}

/// A value of an enum by its number.
pub(crate) fn enumeration<E: TryFrom<i32>>(number: i32, field: &str) -> Compiled<E> {
    E::try_from(number)
        .map_err(|_| Fault::new(field, format!("value must be one of the defined enum values, not {number}")))
}

/// An optional wrapped number.
pub(crate) fn wrapped(value: &Option<shika_proto::google::protobuf::UInt32Value>) -> Option<u32> {
    value.as_ref().map(|wrapper| wrapper.value)
}

/// An optional wrapped boolean with its default.
pub(crate) fn flag(value: &Option<shika_proto::google::protobuf::BoolValue>, default: bool) -> bool {
    value.as_ref().map_or(default, |wrapper| wrapper.value)
}

/// Longest duration that protobuf allows, seconds (about 10,000 years).
const LONGEST: i64 = 315_576_000_000;

/// A duration that may be zero but not negative; `None` when unset.
pub(crate) fn duration(
    value: &Option<shika_proto::google::protobuf::Duration>,
    field: &str,
) -> Compiled<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    if value.seconds < 0 || value.nanos < 0 || value.nanos > 999_999_999 || value.seconds > LONGEST {
        return Err(Fault::new(
            field,
            format!("invalid duration of {} seconds and {} nanoseconds", value.seconds, value.nanos),
        ));
    }
    // A century is as good as ten millennia, and an instant plus a century still exists.
    let seconds = u64::try_from(value.seconds).unwrap_or(0).min(100 * 365 * 86_400);
    Ok(Some(Duration::new(seconds, u32::try_from(value.nanos).unwrap_or(0))))
}

/// A duration that has to be longer than zero.
pub(crate) fn positive(
    value: &Option<shika_proto::google::protobuf::Duration>,
    field: &str,
) -> Compiled<Option<Duration>> {
    match duration(value, field)? {
        Some(Duration::ZERO) => Err(Fault::new(field, "value must be greater than 0s")),
        other => Ok(other),
    }
}

/// A bound where `0s` turns it off and unset is `default`.
pub(crate) fn bound(
    value: &Option<shika_proto::google::protobuf::Duration>,
    field: &str,
    default: Option<Duration>,
) -> Compiled<Option<Duration>> {
    Ok(match duration(value, field)? {
        None => default,
        Some(Duration::ZERO) => None,
        Some(limit) => Some(limit),
    })
}

#[cfg(test)]
pub(crate) mod testing;
