//! Which filter chain takes a connection.
//!
//! Source: Envoy `config.listener.v3.FilterChainMatch`. Levels, each narrowing the set: destination port, destination IP (longest prefix), server name
//! (exact, then longest wildcard, then unspecified), transport protocol, application protocol, directly connected source IP, source type, source IP,
//! source port. Within a level the most specific entry that fits is taken and "unspecified" only if no specific entry fits; there is no backtracking
//! to a less specific entry when a later level fails.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use foldhash::HashMap;
use ipnet::IpNet;

use super::{ChainId, listener::FilterChain};

/// What is known about a connection when its chain is chosen.
#[derive(Clone, Debug)]
pub struct ConnectionFacts<'a> {
    /// Destination: the restored original one, else the socket's local address. `None` for Unix sockets.
    pub destination: Option<SocketAddr>,
    /// Source as configured to be trusted (PROXY protocol), else the socket's peer. `None` for Unix sockets.
    pub source: Option<SocketAddr>,
    /// The peer of the socket itself.
    pub direct_source: Option<SocketAddr>,
    /// SNI in lower case; empty when there is none.
    pub server_name: &'a str,
    /// From the inspectors; `RawBuffer` without a TLS inspector.
    pub transport: TransportProtocol,
    /// ALPN offers, or what the HTTP inspector saw.
    pub application_protocols: &'a [Box<str>],
}

/// Envoy's detected transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportProtocol {
    /// `raw_buffer`
    RawBuffer,
    /// `tls`
    Tls,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceType {
    /// Source and destination address are equal, or the source is 127.0.0.1 or ::1.
    SameIpOrLoopback,
    /// Anything else.
    External,
}

/// One chain's criteria; an empty list or `None` means "any".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ChainMatch {
    /// `destination_port`
    pub destination_port: Option<u16>,
    /// `prefix_ranges`
    pub destination_ips: Vec<IpNet>,
    /// `server_names`: lower case, exact or `*.suffix`.
    pub server_names: Vec<Box<str>>,
    /// `transport_protocol`; any other text than Envoy's two never matches.
    pub transport_protocol: Option<Box<str>>,
    /// `application_protocols`
    pub application_protocols: Vec<Box<str>>,
    /// `direct_source_prefix_ranges`
    pub direct_source_ips: Vec<IpNet>,
    /// `source_type`
    pub source_type: Option<SourceType>,
    /// `source_prefix_ranges`
    pub source_ips: Vec<IpNet>,
    /// `source_ports`
    pub source_ports: Vec<u16>,
}

/// Two chains of one listener have an entry in common, which Envoy refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter chain '{second}' has the same matching rules as '{first}'")]
pub struct DuplicateMatch {
    /// Name of the earlier chain.
    pub first: String,
    /// Name of the later chain.
    pub second: String,
}

/// The chains of a listener and the index over their criteria.
#[derive(Debug, Default)]
pub struct ChainTable {
    chains: Vec<(ChainMatch, Arc<FilterChain>)>,
    by_id: Vec<Option<u32>>,
    default: Option<Arc<FilterChain>>,
    root: ByPort,
}

type ChainIndex = u32;

#[derive(Debug, Default)]
struct ByPort {
    exact: HashMap<u16, ByIp>,
    any: Option<Box<ByIp>>,
}

/// Longest prefix first; `None` stands for "any" and comes last.
#[derive(Debug, Default)]
struct ByIp {
    prefixes: Vec<(Option<IpNet>, ByName)>,
}

#[derive(Debug, Default)]
struct ByName {
    exact: HashMap<Box<str>, ByTransport>,
    /// Key is the suffix with its leading dot.
    wildcard: HashMap<Box<str>, ByTransport>,
    any: Option<Box<ByTransport>>,
}

#[derive(Debug, Default)]
struct ByTransport {
    entries: HashMap<Box<str>, ByApplication>,
    any: Option<Box<ByApplication>>,
}

#[derive(Debug, Default)]
struct ByApplication {
    entries: HashMap<Box<str>, BySource>,
    any: Option<Box<BySource>>,
}

#[derive(Debug, Default)]
struct BySource {
    direct: Vec<(Option<IpNet>, BySourceType)>,
}

#[derive(Debug, Default)]
struct BySourceType {
    entries: Vec<(Option<SourceType>, BySourceIp)>,
}

#[derive(Debug, Default)]
struct BySourceIp {
    prefixes: Vec<(Option<IpNet>, BySourcePort)>,
}

#[derive(Debug, Default)]
struct BySourcePort {
    exact: HashMap<u16, ChainIndex>,
    any: Option<ChainIndex>,
}

impl ChainTable {
    /// Builds the index. `default` is Envoy's `default_filter_chain`, taken when nothing else matches.
    pub fn new(
        chains: Vec<(ChainMatch, Arc<FilterChain>)>,
        default: Option<Arc<FilterChain>>,
    ) -> Result<Self, DuplicateMatch> {
        let mut table = ChainTable { root: ByPort::default(), by_id: Vec::new(), default, chains };
        for index in 0..table.chains.len() {
            let (criteria, chain) = &table.chains[index];
            let id = chain.id.index();
            if table.by_id.len() <= id {
                table.by_id.resize(id + 1, None);
            }
            table.by_id[id] = Some(index as u32);
            if let Err(first) = table.root.insert(criteria, index as ChainIndex) {
                return Err(DuplicateMatch {
                    first: table.chains[first as usize].1.name.to_string(),
                    second: chain.name.to_string(),
                });
            }
        }
        for (_, entry) in table.root.exact.iter_mut() {
            entry.sort();
        }
        if let Some(entry) = &mut table.root.any {
            entry.sort();
        }
        Ok(table)
    }

    /// The chain for a connection, or `None`: close it and count `no_filter_chain_match`.
    pub fn find(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        match self.root.find(facts) {
            Some(index) => self.chains.get(index as usize).map(|(_, chain)| chain),
            None => self.default.as_ref(),
        }
    }

    /// The chain that has this id now.
    pub fn by_id(&self, id: ChainId) -> Option<&Arc<FilterChain>> {
        if let Some(default) = &self.default
            && default.id == id
        {
            return Some(default);
        }
        let index = (*self.by_id.get(id.index())?)?;
        self.chains.get(index as usize).map(|(_, chain)| chain)
    }

    /// All chains with their criteria, in configured order; the default chain is not among them.
    pub fn iter(&self) -> impl Iterator<Item = (&ChainMatch, &Arc<FilterChain>)> {
        self.chains.iter().map(|(criteria, chain)| (criteria, chain))
    }

    /// Envoy's `default_filter_chain`.
    pub fn default_chain(&self) -> Option<&Arc<FilterChain>> {
        self.default.as_ref()
    }
}

/// Each value once, or a single "any" when the list is empty.
fn each<T: Clone>(values: &[T]) -> Vec<Option<T>> {
    if values.is_empty() { vec![None] } else { values.iter().cloned().map(Some).collect() }
}

fn prefix_slot<T: Default>(entries: &mut Vec<(Option<IpNet>, T)>, prefix: Option<IpNet>) -> &mut T {
    let prefix = prefix.map(|p| p.trunc());
    let at = match entries.iter().position(|(p, _)| *p == prefix) {
        Some(at) => at,
        None => {
            entries.push((prefix, T::default()));
            entries.len() - 1
        }
    };
    &mut entries[at].1
}

fn longest_first<T>(entries: &mut [(Option<IpNet>, T)]) {
    entries.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.map_or(-1, |p| i16::from(p.prefix_len()))));
}

fn longest_prefix<T>(entries: &[(Option<IpNet>, T)], ip: Option<IpAddr>) -> Option<&T> {
    entries
        .iter()
        .find(|(prefix, _)| match (prefix, ip) {
            (None, _) => true,
            (Some(prefix), Some(ip)) => prefix.contains(&ip),
            (Some(_), None) => false,
        })
        .map(|(_, entry)| entry)
}

impl ByPort {
    fn insert(&mut self, criteria: &ChainMatch, chain: ChainIndex) -> Result<(), ChainIndex> {
        let by_ip = match criteria.destination_port {
            Some(port) => self.exact.entry(port).or_default(),
            None => self.any.get_or_insert_default(),
        };
        for ip in each(&criteria.destination_ips) {
            let by_name = prefix_slot(&mut by_ip.prefixes, ip);
            for name in each(&criteria.server_names) {
                let by_transport = by_name.slot(name.as_deref());
                let by_application = match &criteria.transport_protocol {
                    Some(transport) => by_transport.entries.entry(transport.clone()).or_default(),
                    None => by_transport.any.get_or_insert_default(),
                };
                for application in each(&criteria.application_protocols) {
                    let by_source = match application {
                        Some(application) => by_application.entries.entry(application).or_default(),
                        None => by_application.any.get_or_insert_default(),
                    };
                    by_source.insert(criteria, chain)?;
                }
            }
        }
        Ok(())
    }

    fn find(&self, facts: &ConnectionFacts<'_>) -> Option<ChainIndex> {
        let port = facts.destination.map(|d| d.port());
        let by_ip = port.and_then(|port| self.exact.get(&port)).or(self.any.as_deref())?;
        let by_name = longest_prefix(&by_ip.prefixes, facts.destination.map(|d| d.ip().to_canonical()))?;
        let by_transport = by_name.find(facts.server_name)?;
        let transport = match facts.transport {
            TransportProtocol::RawBuffer => "raw_buffer",
            TransportProtocol::Tls => "tls",
        };
        let by_application = by_transport.entries.get(transport).or(by_transport.any.as_deref())?;
        let by_source = facts
            .application_protocols
            .iter()
            .find_map(|application| by_application.entries.get(application))
            .or(by_application.any.as_deref())?;
        by_source.find(facts)
    }
}

impl ByIp {
    fn sort(&mut self) {
        longest_first(&mut self.prefixes);
        for (_, by_name) in &mut self.prefixes {
            let transports =
                by_name.exact.values_mut().chain(by_name.wildcard.values_mut()).chain(by_name.any.as_deref_mut());
            for by_transport in transports {
                for by_application in by_transport.entries.values_mut().chain(by_transport.any.as_deref_mut()) {
                    for by_source in by_application.entries.values_mut().chain(by_application.any.as_deref_mut()) {
                        by_source.sort();
                    }
                }
            }
        }
    }
}

impl ByName {
    fn slot(&mut self, name: Option<&str>) -> &mut ByTransport {
        match name {
            None => self.any.get_or_insert_default(),
            Some(name) => match name.strip_prefix('*') {
                Some(suffix) => self.wildcard.entry(suffix.into()).or_default(),
                None => self.exact.entry(name.into()).or_default(),
            },
        }
    }

    fn find(&self, name: &str) -> Option<&ByTransport> {
        if !name.is_empty() {
            if let Some(found) = self.exact.get(name) {
                return Some(found);
            }
            if !self.wildcard.is_empty() {
                let longest = name.match_indices('.').find_map(|(at, _)| self.wildcard.get(&name[at..]));
                if longest.is_some() {
                    return longest;
                }
            }
        }
        self.any.as_deref()
    }
}

impl BySource {
    fn insert(&mut self, criteria: &ChainMatch, chain: ChainIndex) -> Result<(), ChainIndex> {
        for direct in each(&criteria.direct_source_ips) {
            let by_type = prefix_slot(&mut self.direct, direct);
            let at = match by_type.entries.iter().position(|(kind, _)| *kind == criteria.source_type) {
                Some(at) => at,
                None => {
                    by_type.entries.push((criteria.source_type, BySourceIp::default()));
                    by_type.entries.len() - 1
                }
            };
            let by_ip = &mut by_type.entries[at].1;
            for ip in each(&criteria.source_ips) {
                let by_port = prefix_slot(&mut by_ip.prefixes, ip);
                for port in each(&criteria.source_ports) {
                    let earlier = match port {
                        Some(port) => by_port.exact.insert(port, chain),
                        None => by_port.any.replace(chain),
                    };
                    if let Some(earlier) = earlier.filter(|earlier| *earlier != chain) {
                        return Err(earlier);
                    }
                }
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        longest_first(&mut self.direct);
        for (_, by_type) in &mut self.direct {
            by_type.entries.sort_by_key(|(kind, _)| std::cmp::Reverse(*kind));
            for (_, by_ip) in &mut by_type.entries {
                longest_first(&mut by_ip.prefixes);
            }
        }
    }

    fn find(&self, facts: &ConnectionFacts<'_>) -> Option<ChainIndex> {
        let by_type = longest_prefix(&self.direct, facts.direct_source.map(|s| s.ip().to_canonical()))?;
        let source = facts.source.map(|s| s.ip().to_canonical());
        let local = match (source, facts.destination) {
            (Some(source), Some(destination)) => {
                matches!(source, IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST))
                    || source == destination.ip().to_canonical()
            }
            _ => true,
        };
        let kind = if local { SourceType::SameIpOrLoopback } else { SourceType::External };
        let specific = by_type.entries.iter().find(|(entry, _)| *entry == Some(kind));
        let (_, by_ip) = specific.or_else(|| by_type.entries.iter().find(|(entry, _)| entry.is_none()))?;
        let by_port = longest_prefix(&by_ip.prefixes, source)?;
        let port = facts.source.map(|s| s.port());
        port.and_then(|port| by_port.exact.get(&port).copied()).or(by_port.any)
    }
}

#[cfg(test)]
#[path = "chain_match_tests.rs"]
mod tests;
