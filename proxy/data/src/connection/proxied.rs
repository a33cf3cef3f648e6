//! What another proxy says of a connection that it passes on.
//!
//! Source: Envoy listener filter `proxy_protocol`.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;

use super::Connection;
use crate::{
    inspect::InspectError,
    io::Socket,
    model::proxy_protocol::{ProxyProtocol, TlvRule},
    proxy_protocol::{Header, Parser, Progress, Tlv, Version},
};

/// Room for the first bytes: more than any header without TLVs takes.
const FIRST_BYTES: usize = 512;

/// What a header said besides the addresses. Connections without a header have none.
#[derive(Debug, Default)]
pub struct Proxied {
    /// Metadata from TLVs: namespace, key, value.
    metadata: Vec<(Arc<str>, Arc<str>, String)>,
    /// What is kept for upstreams that speak the protocol.
    pub tlvs: Vec<Tlv>,
}

impl Proxied {
    /// The metadata under a key.
    pub fn metadata(&self, namespace: &str, key: &str) -> Option<&str> {
        let found = self.metadata.iter().find(|(space, name, _)| **space == *namespace && **name == *key);
        found.map(|(_, _, value)| value.as_str())
    }

    /// The first TLV of a rule counts, as in Envoy.
    fn note(&mut self, rule: &TlvRule, value: &[u8]) {
        if self.metadata(&rule.namespace, &rule.key).is_none() {
            self.metadata.push((rule.namespace.clone(), rule.key.clone(), sanitized(value)));
        }
    }
}

/// As text: every byte that is no UTF-8 becomes `!`. Source: Envoy `MessageUtil::sanitizeUtf8String`.
fn sanitized(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

/// Reads the header of a new connection, and applies it. What follows it is left in `head`.
pub(super) async fn read(
    socket: &mut Socket,
    head: &mut BytesMut,
    filter: &ProxyProtocol,
    connection: &mut Connection,
) -> Result<(), InspectError> {
    let mut parser = Parser::default();
    loop {
        head.reserve(if head.is_empty() { FIRST_BYTES } else { head.len() });
        if socket.read_buf(head).await? == 0 {
            return Err(InspectError::Closed);
        }
        match parser.parse(head, filter.accepts) {
            Progress::More => {}
            Progress::Nothing => {
                filter.stats.not_found_allowed().inc();
                return Ok(());
            }
            Progress::Header(header) => {
                filter.of(header.version).found().inc();
                head.advance(header.length);
                apply(header, filter, connection);
                return Ok(());
            }
            Progress::Disallowed(version) => {
                let stats = filter.of(version);
                stats.found().inc();
                stats.disallowed().inc();
                return Err(InspectError::ProxyProtocol);
            }
            Progress::Malformed(version) => {
                match version {
                    Some(version) => filter.of(version).error().inc(),
                    None => filter.stats.not_found_disallowed().inc(),
                }
                filter.errors.downstream_cx_proxy_proto_error().inc();
                return Err(InspectError::ProxyProtocol);
            }
        }
    }
}

impl ProxyProtocol {
    fn of(&self, version: Version) -> &crate::stats::ProxyProtocolVersionStats {
        match version {
            Version::V1 => &self.v1,
            Version::V2 => &self.v2,
        }
    }
}

fn apply(header: Header, filter: &ProxyProtocol, connection: &mut Connection) {
    if let Some(addresses) = header.addresses {
        // A destination of its own is as good as a restored one.
        connection.restored |= connection.local != Some(addresses.destination);
        connection.local = Some(addresses.destination);
        connection.remote = Some(addresses.source);
    }
    let mut proxied = Proxied::default();
    for tlv in header.tlvs {
        if let Some(rule) = filter.rules.iter().find(|rule| rule.kind == tlv.kind) {
            proxied.note(rule, &tlv.value);
        }
        if filter.pass_through.includes(tlv.kind) {
            proxied.tlvs.push(tlv);
        }
    }
    if !proxied.metadata.is_empty() || !proxied.tlvs.is_empty() {
        connection.filter_state.set_proxied(proxied);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tlv_of_a_rule_counts_and_is_text() {
        let rule = |key: &str| TlvRule { kind: 1, namespace: "n".into(), key: key.into() };
        let mut proxied = Proxied::default();
        proxied.note(&rule("a"), b"one");
        proxied.note(&rule("a"), b"two");
        proxied.note(&rule("b"), b"x\xff\xe2\x82y\xc3\xa9");
        assert_eq!(proxied.metadata("n", "a"), Some("one"));
        assert_eq!(proxied.metadata("n", "b"), Some("x!!!y\u{e9}"));
        assert_eq!(proxied.metadata("m", "a"), None);
    }
}
