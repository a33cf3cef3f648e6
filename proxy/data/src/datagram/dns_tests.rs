#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use super::*;
use crate::{
    model::dns::Addresses,
    stats::{DnsFilterStats, Registry, Scope},
};

fn table(case_insensitive: bool) -> DnsTable {
    let scope = Scope { prefix: "dns_filter.test.".into(), stem: "dns_filter.".into(), tags: Vec::new() };
    let mut table = DnsTable::new(case_insensitive, DnsFilterStats::new(&Registry::new(1), scope));
    let mut add = |name: &str, v4: &[[u8; 4]], v6: &[&str], ttl: u64| {
        table.add(
            name,
            Addresses {
                v4: v4.iter().map(|ip| (*ip).into()).collect(),
                v6: v6.iter().map(|ip| ip.parse().unwrap()).collect(),
                ttl: Duration::from_secs(ttl),
            },
        );
    };
    add("backend.mesh", &[[240, 0, 0, 0]], &["fd00::1"], 30);
    add("httpbin.mesh", &[[240, 0, 0, 1]], &[], 300);
    add("*.wild.mesh", &[[240, 0, 0, 2]], &[], 40);
    add("Upper.Mesh", &[[240, 0, 0, 3]], &[], 40);
    let many: Vec<[u8; 4]> = (1..=30).map(|last| [10, 0, 0, last]).collect();
    add("many.mesh", &many, &[], 40);
    add("Backend.Mesh", &[[240, 0, 0, 9]], &[], 90);
    table
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.push(0);
    query.extend_from_slice(&kind.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    query
}

/// Code, number of answers, and the last bytes: an address, if there is an answer.
fn ask(query: &[u8]) -> (u8, u8, Vec<u8>) {
    let reply = answer(&table(true), query, 0).unwrap();
    assert_eq!(reply[..2], query[..2]);
    assert!(reply.len() <= MAX_REPLY);
    (reply[3], reply[7], reply[reply.len() - 4..].to_vec())
}

#[test]
fn names() {
    for (name, kind, code, answers, last) in [
        ("backend.mesh", A, NO_ERROR, 2, Some([240, 0, 0, 9])),
        ("backend.mesh", AAAA, NO_ERROR, 1, Some([0, 0, 0, 1])),
        ("BACKEND.mesh", AAAA, NO_ERROR, 1, Some([0, 0, 0, 1])),
        ("httpbin.mesh", AAAA, NAME_ERROR, 0, None),
        ("nope.mesh", A, NAME_ERROR, 0, None),
        ("mesh", A, NAME_ERROR, 0, None),
        ("x.backend.mesh", A, NAME_ERROR, 0, None),
        ("wild.mesh", A, NAME_ERROR, 0, None),
        ("a.wild.mesh", A, NO_ERROR, 1, Some([240, 0, 0, 2])),
        ("a.b.wild.mesh", A, NO_ERROR, 1, Some([240, 0, 0, 2])),
        ("upper.mesh", A, NO_ERROR, 1, Some([240, 0, 0, 3])),
        ("many.mesh", A, NO_ERROR, 8, Some([10, 0, 0, 8])),
        ("backend.mesh", SRV, NAME_ERROR, 0, None),
        ("backend.mesh", 16, NOT_IMPLEMENTED, 0, None),
    ] {
        let (got, count, end) = ask(&query(name, kind));
        assert_eq!((got, count), (code, answers), "{name} {kind}");
        if let Some(last) = last {
            assert_eq!(end, last, "{name} {kind}");
        }
    }
}

#[test]
fn ttl_is_the_names_own() {
    let ttl = |name: &str| {
        let reply = answer(&table(true), &query(name, A), 0).unwrap();
        let at = reply.len() - 10;
        u32::from_be_bytes(*reply[at..].first_chunk().unwrap())
    };
    assert_eq!(ttl("upper.mesh"), 40);
    assert_eq!(ttl("a.wild.mesh"), 300, "as in Envoy, a wildcard's answers have the default");
}

#[test]
fn what_is_no_query_is_called_so() {
    let good = query("backend.mesh", A);
    let with = |at: usize, byte: u8| {
        let mut changed = good.clone();
        changed[at] = byte;
        changed
    };
    let mut pointer = good[..HEADER].to_vec();
    pointer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
    let long = query(&[&"x".repeat(63); 4].map(|label| label.as_str()).join("."), A);
    for bad in [&[][..], &[0, 1, 2], &good[..HEADER], &good[..good.len() - 1], &pointer, &long]
        .into_iter()
        .map(<[u8]>::to_vec)
        .chain([with(5, 2), with(5, 0), with(7, 1), with(9, 1), with(good.len() - 1, 3)])
    {
        let reply = answer(&table(true), &bad, 0).unwrap();
        assert_eq!((reply.len(), reply[3]), (HEADER, FORMAT_ERROR), "{bad:?}");
    }
    assert_eq!(answer(&table(true), &with(2, 0x81), 0), None, "a response is not answered");
    let (code, ..) = ask(&with(11, 1));
    assert_eq!(code, NO_ERROR, "additional records, such as EDNS, are passed over");
}

#[test]
fn every_prefix_and_every_flipped_byte_is_answered() {
    let good = query("backend.mesh", A);
    let table = table(true);
    for length in 0..good.len() {
        assert!(answer(&table, &good[..length], 0).is_some());
    }
    for at in 0..good.len() {
        for byte in 0..=255 {
            let mut changed = good.clone();
            changed[at] = byte;
            let reply = answer(&table, &changed, u64::from(byte));
            assert_eq!(reply.is_none(), changed[2] & 0x80 != 0);
        }
    }
}

#[test]
fn answers_fit_into_a_datagram() {
    let name = format!("{0}.{0}.{0}.{1}", "x".repeat(60), "y".repeat(40));
    let mut table = table(true);
    let v6 = (1..9u16).map(|last| [0xfd00, 0, 0, 0, 0, 0, 0, last].into()).collect();
    table.add(&name, Addresses { v4: Vec::new(), v6, ttl: Duration::from_secs(30) });
    let reply = answer(&table, &query(&name, AAAA), 5).unwrap();
    assert_eq!(reply[7], 1);
    assert!(reply.len() <= MAX_REPLY);
}

#[test]
fn case_counts_unless_it_is_said_not_to() {
    let code = |name: &str| answer(&table(false), &query(name, A), 0).unwrap()[3];
    assert_eq!(code("Upper.Mesh"), NO_ERROR);
    assert_eq!(code("upper.mesh"), NAME_ERROR);
}
