#![allow(clippy::unwrap_used)]

use super::*;
use crate::{model::listener::Terminal, testing};

fn table(criteria: Vec<ChainMatch>, default: bool) -> Result<ChainTable, DuplicateMatch> {
    let chain = |id: usize| Arc::new(testing::chain(id as u32, Terminal::Close));
    let default = default.then(|| chain(criteria.len()));
    ChainTable::new(criteria.into_iter().enumerate().map(|(id, criteria)| (criteria, chain(id))).collect(), default)
}

fn names(names: &[&str]) -> Vec<Box<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

fn nets(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}

fn any() -> ChainMatch {
    ChainMatch::default()
}

/// A connection: destination, source, server name, TLS, application protocols.
fn find(
    table: &ChainTable,
    destination: &str,
    source: &str,
    server_name: &str,
    tls: bool,
    protocols: &[&str],
) -> Option<u32> {
    let source = source.parse().ok();
    let facts = ConnectionFacts {
        destination: destination.parse().ok(),
        source,
        direct_source: source,
        server_name,
        transport: if tls { TransportProtocol::Tls } else { TransportProtocol::RawBuffer },
        application_protocols: &names(protocols),
    };
    table.find(&facts).map(|chain| chain.id.0)
}

const FROM: &str = "10.9.9.9:50000";

#[test]
fn the_most_specific_entry_of_each_level_wins() {
    let table = table(
        vec![
            any(),
            ChainMatch { destination_port: Some(80), ..any() },
            ChainMatch { destination_ips: nets(&["10.0.0.0/8"]), ..any() },
            ChainMatch { destination_ips: nets(&["10.1.0.0/16", "fd00::/8"]), ..any() },
            ChainMatch { destination_ips: nets(&["10.1.0.0/16"]), server_names: names(&["a.example"]), ..any() },
            ChainMatch { destination_ips: nets(&["10.1.0.0/16"]), server_names: names(&["*.example"]), ..any() },
            ChainMatch { destination_ips: nets(&["10.1.0.0/16"]), server_names: names(&["*.b.example"]), ..any() },
        ],
        false,
    )
    .unwrap();
    for (destination, name, expected) in [
        ("192.0.2.1:1", "", 0),
        ("192.0.2.1:80", "", 1),
        // The port is asked first: what has port 80 never sees the chains by address.
        ("10.1.0.1:80", "a.example", 1),
        ("10.2.0.1:1", "", 2),
        ("10.1.0.1:1", "", 3),
        ("[fd00::1]:1", "", 3),
        ("[::ffff:10.1.0.1]:1", "", 3),
        ("10.1.0.1:1", "a.example", 4),
        ("10.1.0.1:1", "c.example", 5),
        ("10.1.0.1:1", "x.y.example", 5),
        ("10.1.0.1:1", "x.b.example", 6),
        ("10.1.0.1:1", "example", 3),
    ] {
        assert_eq!(find(&table, destination, FROM, name, true, &[]), Some(expected), "{destination} {name}");
    }
}

#[test]
fn transport_and_application_protocols() {
    let table = table(
        vec![
            ChainMatch { transport_protocol: Some("tls".into()), ..any() },
            ChainMatch { transport_protocol: Some("tls".into()), application_protocols: names(&["kuma"]), ..any() },
            ChainMatch {
                transport_protocol: Some("raw_buffer".into()),
                application_protocols: names(&["h2c", "http/1.1"]),
                ..any()
            },
        ],
        false,
    )
    .unwrap();
    for (tls, protocols, expected) in [
        (true, &[][..], Some(0)),
        (true, &["h2"], Some(0)),
        (true, &["h2", "kuma"], Some(1)),
        (false, &["http/1.1"], Some(2)),
        (false, &["http/1.0"], None),
        (false, &[], None),
    ] {
        assert_eq!(find(&table, "10.0.0.1:1", FROM, "", tls, protocols), expected, "{tls} {protocols:?}");
    }
}

#[test]
fn sources() {
    let table = table(
        vec![
            any(),
            ChainMatch { source_type: Some(SourceType::SameIpOrLoopback), ..any() },
            ChainMatch {
                source_type: Some(SourceType::External),
                source_ips: nets(&["10.0.0.0/8"]),
                source_ports: vec![7],
                ..any()
            },
            ChainMatch { source_type: Some(SourceType::External), source_ips: nets(&["172.16.0.0/12"]), ..any() },
            ChainMatch { direct_source_ips: nets(&["203.0.113.0/24"]), ..any() },
        ],
        true,
    )
    .unwrap();
    for (source, expected) in [
        ("127.0.0.1:1", 1),
        ("192.0.2.1:1", 1),
        ("10.0.0.1:7", 2),
        // No way back: the prefix fits, the port does not, so it is the default chain and not chain 0.
        ("10.0.0.1:8", 5),
        ("172.16.3.4:1", 3),
        ("203.0.113.9:1", 4),
        ("198.51.100.1:1", 5),
    ] {
        assert_eq!(find(&table, "192.0.2.1:443", source, "", false, &[]), Some(expected), "{source}");
    }
}

#[test]
fn a_unix_connection_takes_what_asks_for_no_address() {
    let table = table(vec![ChainMatch { destination_port: Some(80), ..any() }, any()], false).unwrap();
    assert_eq!(find(&table, "", "", "", false, &[]), Some(1));
}

#[test]
fn two_chains_with_a_common_entry_are_refused() {
    let web = || ChainMatch { server_names: names(&["a", "b"]), ..any() };
    let error = table(vec![web(), ChainMatch { server_names: names(&["b", "c"]), ..any() }], false).unwrap_err();
    assert_eq!(error.to_string(), "filter chain 'chain-1' has the same matching rules as 'chain-0'");
    // Prefixes are compared without their host bits.
    let net = |net| ChainMatch { destination_ips: nets(&[net]), ..any() };
    assert!(table(vec![net("10.0.0.1/8"), net("10.2.0.0/8")], false).is_err());
    assert!(table(vec![web(), any()], false).is_ok());
}

#[test]
fn chains_are_found_by_id() {
    let table = table(vec![any(), ChainMatch { destination_port: Some(1), ..any() }], true).unwrap();
    for id in 0..3 {
        assert_eq!(table.by_id(ChainId(id)).map(|chain| chain.id), Some(ChainId(id)));
    }
    assert!(table.by_id(ChainId(3)).is_none());
}
