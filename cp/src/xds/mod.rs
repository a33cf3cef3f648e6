//! The xDS protocol, without I/O: what a stream was sent, what it answered, what it needs next.
//!
//! A [`Snapshot`] is everything one proxy should have. [`delta::DeltaStream`] and [`sotw::SotwStream`] hold the state of one ADS stream
//! in the two variants of the protocol; the data-plane server feeds them requests and snapshots and sends what they return. Rules:
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.

pub mod delta;
pub mod sotw;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shika_proto::google::protobuf::Any;
use shika_proto::type_url;
use xxhash_rust::xxh64::Xxh64;

/// Pause before something that the proxy refused is sent again (Kuma `KUMA_XDS_SERVER_NACK_BACKOFF`). It doubles with every refusal of
/// unchanged content, up to [`LONGEST_NACK_BACKOFF`].
pub const NACK_BACKOFF: Duration = Duration::from_secs(5);
/// Longest pause before unchanged content is sent again after a refusal.
pub const LONGEST_NACK_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// Names that one stream may subscribe to in one type. A proxy asks for its own clusters and secrets; far more is an attack or a bug.
pub const MAX_NAMES: usize = 100_000;

/// Changes whenever the same plan is emitted differently, so that proxies are sent the new form. Part of every [`Version`].
const EMIT_REVISION: u32 = 1;

/// Version of a resource: xxHash64 of what it was made from, written as 16 hexadecimal digits. Equal content has an equal version on
/// every instance and after every restart, so a proxy that reconnects is sent nothing that it already has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// The version of something made from `content`.
    pub fn of<T: Hash + ?Sized>(content: &T) -> Self {
        let mut hasher = Xxh64::new(0);
        (env!("CARGO_PKG_VERSION"), EMIT_REVISION).hash(&mut hasher);
        content.hash(&mut hasher);
        Version(hasher.finish())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The resource types of ADS, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoint,
    /// `envoy.config.listener.v3.Listener`.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`.
    Route,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`.
    Secret,
}

impl ResourceType {
    /// Every type, in the order of sending.
    pub const ORDER: [ResourceType; 5] = [
        ResourceType::Cluster,
        ResourceType::Endpoint,
        ResourceType::Listener,
        ResourceType::Route,
        ResourceType::Secret,
    ];

    /// The type URL.
    pub fn url(self) -> &'static str {
        match self {
            ResourceType::Cluster => type_url::CLUSTER,
            ResourceType::Endpoint => type_url::ENDPOINT,
            ResourceType::Listener => type_url::LISTENER,
            ResourceType::Route => type_url::ROUTE,
            ResourceType::Secret => type_url::SECRET,
        }
    }

    /// The type of a type URL, if it is one of these.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ORDER.into_iter().find(|kind| kind.url() == url)
    }

    /// Whether a first request without names subscribes to everything (LDS and CDS).
    pub fn is_wildcard_by_default(self) -> bool {
        matches!(self, ResourceType::Cluster | ResourceType::Listener)
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// One resource as it goes over the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Version of the content.
    pub version: Version,
    /// The content. Absent for a certificate that an earlier instance issued: the proxy may hold it, this process cannot send it.
    pub body: Option<Any>,
}

/// Everything that one proxy should have. Cheap to clone; unchanged resources are shared with the snapshot before.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    types: [BTreeMap<String, Arc<Resource>>; 5],
}

impl Snapshot {
    /// The resources of a type by name.
    pub fn resources(&self, kind: ResourceType) -> &BTreeMap<String, Arc<Resource>> {
        &self.types[kind.index()]
    }

    /// Adds or replaces a resource.
    pub fn insert(&mut self, kind: ResourceType, name: String, resource: Arc<Resource>) {
        self.types[kind.index()].insert(name, resource);
    }
}

/// What became of a response that the proxy answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was a subscription change, or an answer to something already settled.
    None,
    /// The response was accepted.
    Acknowledged(ResourceType),
    /// The response was refused, with the proxy's message.
    Rejected(ResourceType, String),
}

/// Why a stream must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// More names than [`MAX_NAMES`].
    #[error("{type_url}: a stream may subscribe to at most {MAX_NAMES} names")]
    TooManyNames {
        /// Type of the subscription.
        type_url: &'static str,
    },
}

/// Paces what is sent again after a refusal.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    rejections: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Whether sending is allowed now.
    pub(crate) fn open(&mut self, now: Instant) -> bool {
        match self.until {
            Some(until) if until > now => false,
            _ => {
                self.until = None;
                true
            }
        }
    }

    /// When sending is allowed again, if it is not now.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(crate) fn rejected(&mut self, now: Instant) {
        let pause = NACK_BACKOFF.saturating_mul(1 << self.rejections.min(16)).min(LONGEST_NACK_BACKOFF);
        self.rejections = self.rejections.saturating_add(1);
        self.until = Some(now + pause);
    }

    pub(crate) fn acknowledged(&mut self) {
        *self = Backoff::default();
    }
}
