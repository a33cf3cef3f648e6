//! The Kuma Discovery Service: how the global control plane and those of the zones keep each other up to date (Kuma `pkg/kds`,
//! delta variant, version 3).
//!
//! Both directions are the same protocol between an [`outbox`], which follows the store and sends what changed, and an [`inbox`],
//! which stores what it is sent. [`transform`] says what is sent and how it looks on the other side, [`wire`] puts it into Kuma's
//! messages. [`global`] serves the streams, [`zone`] opens them and opens them again when they break: a zone that cannot reach
//! global goes on with what it has.

pub mod global;
mod inbox;
mod insight;
mod name;
mod outbox;
mod transform;
mod wire;
pub mod zone;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use serde_json::Value;
use shika_proto::envoy::config::core::v3::Node;
use shika_proto::google::protobuf::value::Kind as ProtoKind;
use shika_proto::google::protobuf::{ListValue, Struct, Value as ProtoValue};

use tokio::sync::watch;

use crate::resource::Kind;

pub use name::hashed_name;

/// Metadata: the name of the zone.
const CLIENT_ID: &str = "client-id";
/// Metadata: the version of the protocol, and its value.
const KDS_VERSION: (&str, &str) = ("kds-version", "v3");
/// Metadata: what the zone can do; given once for each feature.
const FEATURES: &str = "features";
/// Metadata: the instance of the zone control plane. Kuma sends it in the first message only.
const INSTANCE: &str = "control-plane-id";
/// Metadata: the time of the sender, seconds since 1970. Not Kuma's; by it clocks that differ are noticed.
const TIME: &str = "shika-time";
/// Clocks that differ by more than this are complained of: certificates and tokens fail next.
const MAX_SKEW: u64 = 60;
/// Features that a zone announces in its first message (Kuma `pkg/kds/features.go`).
const NODE_FEATURES: [&str; 5] =
    ["zone-token", "hash-suffix", "hg-mz-selector", "producer-policy-flow", "optional-top-level-target-ref"];
/// Largest message. The first one of a kind has all its resources, which the protocol does not allow to be split.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Label of where a resource was created: `global` or `zone`.
const ORIGIN: &str = "kuma.io/origin";
/// Label of the zone in which a resource was created.
const ZONE: &str = "kuma.io/zone";
/// Label of the name that a resource had where it was created.
const DISPLAY_NAME: &str = "kuma.io/display-name";

/// Which way resources go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Direction {
    /// From global to the zone of that name.
    ToZone(String),
    /// From the zone of that name to global.
    ToGlobal(String),
}

impl Direction {
    /// The kinds that are sent, meshes first: what is in a mesh can only be stored after it.
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let to_zone = matches!(self, Direction::ToZone(_));
        Kind::ALL.into_iter().filter(move |kind| {
            let sync = kind.sync();
            if to_zone { sync.to_zones || sync.across_zones } else { sync.to_global }
        })
    }

    /// The zone.
    fn zone(&self) -> &str {
        match self {
            Direction::ToZone(zone) | Direction::ToGlobal(zone) => zone,
        }
    }
}

/// Whether a resource with these labels was created here: at global if `at_global`, else in the zone.
fn is_local(labels: &BTreeMap<String, String>, at_global: bool) -> bool {
    let here = if at_global { "global" } else { "zone" };
    labels.get(ORIGIN).is_none_or(|origin| origin == here)
}

/// What a zone control plane says of itself.
#[derive(Clone, Debug, Default)]
pub struct ZoneNode {
    /// Name of the zone.
    pub zone: String,
    /// Unique identifier of the process.
    pub instance: String,
    /// Version of the control plane.
    pub version: String,
    /// Its configuration, JSON without secrets.
    pub config: String,
}

impl ZoneNode {
    fn to_node(&self) -> Node {
        let text = |text: &str| ProtoValue { kind: Some(ProtoKind::StringValue(text.to_owned())) };
        let object = |fields: Vec<(&str, ProtoValue)>| ProtoValue {
            kind: Some(ProtoKind::StructValue(Struct {
                fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            })),
        };
        let features = ListValue { values: NODE_FEATURES.map(text).into() };
        let metadata = [
            ("version", object(vec![("kumaCp", object(vec![("version", text(&self.version))]))])),
            ("config", text(&self.config)),
            ("control-plane-id", text(&self.instance)),
            ("features", ProtoValue { kind: Some(ProtoKind::ListValue(features)) }),
        ];
        let fields = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Node { id: self.zone.clone(), metadata: Some(Struct { fields }), ..Node::default() }
    }

    /// Reads the node of a zone's first message.
    fn of_node(node: &Node) -> ZoneNode {
        let field = |key: &str| node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
        let text = |value: Option<&ProtoValue>| match value.and_then(|value| value.kind.as_ref()) {
            Some(ProtoKind::StringValue(text)) => text.clone(),
            _ => String::new(),
        };
        let inside = |value: Option<&ProtoValue>, key: &str| match value.and_then(|value| value.kind.as_ref()) {
            Some(ProtoKind::StructValue(fields)) => fields.fields.get(key).cloned(),
            _ => None,
        };
        let version = inside(field("version"), "kumaCp");
        ZoneNode {
            zone: node.id.clone(),
            instance: text(field("control-plane-id")),
            version: text(inside(version.as_ref(), "version").as_ref()),
            config: text(field("config")),
        }
    }

    /// As a ZoneInsight shows it.
    fn version_json(&self) -> Value {
        serde_json::json!({"kumaCp": {"version": self.version, "kumaCpGlobalCompatible": true}})
    }
}

/// Completes when the control plane stops, or is gone.
async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// How long the reason for the end of a stream may take once its other half is gone.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Why the other side ended a stream, if it says so. A refused call drops what is sent before its status is read, so that the end of
/// one half is seen first.
async fn last_word<T>(messages: &mut (impl Stream<Item = Result<T, tonic::Status>> + Unpin)) -> Option<tonic::Status> {
    let word = async {
        loop {
            match messages.next().await? {
                Ok(_) => {}
                Err(status) => return Some(status),
            }
        }
    };
    tokio::time::timeout(LAST_WORD, word).await.ok().flatten()
}

/// Seconds since 1970, by the clock of this host.
fn unix_time() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map(|since| since.as_secs()).unwrap_or_default()
}

/// How far another clock is ahead (positive) or behind, in seconds, if that is too far.
fn skew(theirs: &str) -> Option<i64> {
    let theirs: u64 = theirs.parse().ok()?;
    let ours = unix_time();
    let ahead = i64::try_from(theirs.abs_diff(ours)).ok()?;
    (theirs.abs_diff(ours) > MAX_SKEW).then_some(if theirs > ours { ahead } else { -ahead })
}

#[cfg(test)]
#[path = "kds_tests.rs"]
mod tests;
