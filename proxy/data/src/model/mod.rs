//! What the path reads: plain structs and closed enums, built once by the compiler in `shika-xds`; no I/O, no clock, no async.
//!
//! Durations: `None` means "no limit" everywhere in this module. The compiler has already applied Envoy's defaults and turned Envoy's "`0s` disables"
//! into `None`.

pub mod access_log;
pub mod chain_match;
pub mod cluster;
pub mod dns;
pub mod ext_authz;
pub mod format;
pub mod hash;
pub mod header;
pub mod header_view;
pub mod health;
pub mod http;
pub mod http_filter;
pub mod labels;
pub mod listener;
pub mod matcher;
pub mod outlier;
pub mod proxy_protocol;
pub mod ratelimit;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod tls;
pub mod tracing;

macro_rules! dense_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            /// The position in the snapshot's table.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

dense_id!(
    /// Position of a listener in [`crate::snapshot::Snapshot::listeners`]. Stable for a listener name as long as the name lives.
    ListenerId
);
dense_id!(
    /// Position of a filter chain within its listener. Stable for a chain match as long as the listener lives, so a connection can find what its
    /// chain has become after an update.
    ChainId
);

impl ChainId {
    /// No chain.
    pub const NONE: ChainId = ChainId(u32::MAX);
}

dense_id!(
    /// Position of a cluster in [`crate::snapshot::Snapshot::clusters`]. Stable for a cluster name: a route may name a cluster that does not exist
    /// (yet), its slot is then empty.
    ClusterId
);
dense_id!(
    /// Position of a route table in [`crate::snapshot::Snapshot::route_tables`].
    RouteTableId
);
