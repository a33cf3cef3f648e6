//! What is taken of the PROXY protocol from downstreams, and what is said to upstreams.
//!
//! Source: Envoy `extensions.filters.listener.proxy_protocol.v3`, `extensions.transport_sockets.proxy_protocol.v3`, `config.core.v3.ProxyProtocolConfig`.

use std::sync::Arc;

use crate::{
    connection::Connection,
    proxy_protocol::{Accepts, Addresses, Tlv, Version, write},
    stats::{ProxyProtocolErrorStats, ProxyProtocolStats, ProxyProtocolVersionStats, UpstreamProxyProtocolStats},
};

/// Namespace of metadata whose rule names none: the filter's own.
pub const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

/// Envoy `filters.listener.proxy_protocol.v3.ProxyProtocol`: connections begin with a header that says who they are from.
#[derive(Debug)]
pub struct ProxyProtocol {
    /// `disallowed_versions` and `allow_requests_without_proxy_protocol`
    pub accepts: Accepts,
    /// `rules`: TLVs that become metadata of the connection.
    pub rules: Vec<TlvRule>,
    /// `pass_through_tlvs`: what is kept for upstreams that speak the protocol.
    pub pass_through: PassThrough,
    /// `proxy_proto.<stat_prefix>.*`
    pub stats: ProxyProtocolStats,
    /// `proxy_proto.<stat_prefix>.versions.v1.*`
    pub v1: ProxyProtocolVersionStats,
    /// `proxy_proto.<stat_prefix>.versions.v2.*`
    pub v2: ProxyProtocolVersionStats,
    /// `downstream_cx_proxy_proto_error`
    pub errors: ProxyProtocolErrorStats,
}

/// Envoy `ProxyProtocol.Rule`
#[derive(Clone, Debug)]
pub struct TlvRule {
    /// Type of the TLV; one rule each.
    pub kind: u8,
    /// Namespace of the metadata.
    pub namespace: Arc<str>,
    /// Key within it.
    pub key: Arc<str>,
}

/// Envoy `ProxyProtocolPassThroughTLVs`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PassThrough {
    /// No TLV.
    #[default]
    None,
    /// `INCLUDE_ALL`
    All,
    /// `INCLUDE`: those of these types.
    These(Vec<u8>),
}

impl PassThrough {
    /// Whether TLVs of this type are meant.
    pub fn includes(&self, kind: u8) -> bool {
        match self {
            PassThrough::None => false,
            PassThrough::All => true,
            PassThrough::These(kinds) => kinds.contains(&kind),
        }
    }
}

/// Envoy `transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport`: connections to the cluster begin with a header that says who they are from.
#[derive(Debug)]
pub struct UpstreamProxyProtocol {
    /// `version`
    pub version: Version,
    /// `pass_through_tlvs`: which of the downstream's TLVs are passed on.
    pub pass_through: PassThrough,
    /// `added_tlvs`, which take the place of the downstream's of the same types.
    pub added: Vec<Tlv>,
    /// `cluster.<name>.upstream.proxyprotocol.*`
    pub stats: UpstreamProxyProtocolStats,
}

impl UpstreamProxyProtocol {
    /// The header of a connection that is made for `downstream`. One that is made for nobody (`None`) speaks for itself; version 1 then names its `own` ends.
    pub fn header(&self, downstream: Option<&Connection>, own: Option<Addresses>) -> Vec<u8> {
        let mut header = Vec::with_capacity(64);
        let addresses = match downstream {
            Some(Connection { remote: Some(source), local: Some(destination), .. }) => {
                Some(Addresses { source: *source, destination: *destination })
            }
            Some(_) => None,
            None => own.filter(|_| self.version == Version::V1),
        };
        let tlvs = match self.version {
            Version::V1 => Vec::new(),
            Version::V2 => {
                let passed = downstream.and_then(|connection| connection.filter_state.proxied());
                let passed = passed.map(|proxied| proxied.tlvs.as_slice()).unwrap_or_default().iter();
                let wanted = |tlv: &&Tlv| {
                    self.pass_through.includes(tlv.kind) && !self.added.iter().any(|added| added.kind == tlv.kind)
                };
                self.added.iter().chain(passed.filter(wanted)).cloned().collect()
            }
        };
        if !write(self.version, addresses, &tlvs, &mut header) {
            self.stats.v2_tlvs_exceed_max_length().inc();
        }
        header
    }
}
