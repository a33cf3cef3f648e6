#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    model::{cluster::Health, labels::Labels},
    stats::Registry,
    testing::{scope, weighted_endpoint},
};

fn hosts(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    let host = |(index, weight): (usize, &u32)| {
        weighted_endpoint(([127, 0, 0, 1], 90 + index as u16).into(), *weight, Health::Healthy)
    };
    weights.iter().enumerate().map(host).collect()
}

fn hashing(spread: Spread) -> Hashing {
    Hashing::new(&Registry::new(1), &scope("cluster.c."), spread, false)
}

fn table(hashing: &Hashing, hosts: Vec<Arc<Endpoint>>) -> Arc<Table> {
    hashing.table(Table::of(&Priority::default(), hosts, false))
}

fn port(host: &Endpoint) -> u16 {
    match &host.address {
        crate::model::cluster::EndpointAddress::Ip(address) => address.port(),
        crate::model::cluster::EndpointAddress::Unix(_) => 0,
    }
}

/// The ring of Envoy's own test `RingHashLoadBalancerTest.Basic`: six hosts, 12 entries.
#[test]
fn a_ring_is_envoys() {
    let hashing = hashing(Spread::Ring { smallest: 12, largest: 1 << 23, function: RingFunction::Xx });
    let table = table(&hashing, hosts(&[1; 6]));
    for (hash, wanted) in [(0, 94), (3_551_244_743_356_806_947, 95), (3_551_244_743_356_806_948, 93), (u64::MAX, 94)] {
        assert_eq!(port(table.choose(hash, 0, hashing.spread).unwrap()), wanted, "{hash}");
    }
    let HashStats::Ring(stats) = &hashing.stats else { return };
    assert_eq!(
        (stats.size().value(), stats.min_hashes_per_host().value(), stats.max_hashes_per_host().value()),
        (12, 2, 2)
    );
}

#[test]
fn the_next_attempt_takes_the_next_entry() {
    let hashing = hashing(Spread::Ring { smallest: 12, largest: 1 << 23, function: RingFunction::Xx });
    let table = table(&hashing, hosts(&[1; 6]));
    let ring: Vec<u16> = (0..12).map(|attempt| port(table.choose(0, attempt, hashing.spread).unwrap())).collect();
    let names: Vec<u16> = table.entries.iter().map(|entry| 90 + *entry as u16).collect();
    assert_eq!(ring, names);
}

#[test]
fn weights_are_shares_of_entries() {
    for spread in [
        Spread::Ring { smallest: 1024, largest: 1 << 23, function: RingFunction::Murmur2 },
        Spread::Maglev { size: 65_537 },
    ] {
        let hashing = hashing(spread);
        let table = table(&hashing, hosts(&[1, 2, 5]));
        let total = table.entries.len() as f64;
        for (index, share) in [0.125, 0.25, 0.625].into_iter().enumerate() {
            let count = table.entries.iter().filter(|entry| **entry == index as u32).count() as f64;
            assert!((count / total - share).abs() < 0.001, "{spread:?} {index}: {count} of {total}");
        }
    }
}

/// Envoy's `MaglevLoadBalancerTest.Basic`: six hosts, seven entries.
#[test]
fn a_maglev_table_is_envoys() {
    let hashing = hashing(Spread::Maglev { size: 7 });
    let table = table(&hashing, hosts(&[1; 6]));
    let ports: Vec<u16> = (0..7).map(|hash| port(table.choose(hash, 0, hashing.spread).unwrap())).collect();
    assert_eq!(ports, [92, 94, 90, 91, 95, 90, 93]);
}

#[test]
fn few_hashes_move_when_a_host_goes() {
    // With fewer hosts each has more entries on a ring, and a few of those take from other hosts.
    for (spread, few) in [
        (Spread::Ring { smallest: 1024, largest: 1 << 23, function: RingFunction::Xx }, 150),
        (Spread::Maglev { size: 65_537 }, 40),
    ] {
        let hashing = hashing(spread);
        let all = hosts(&[1; 10]);
        let before = table(&hashing, all.clone());
        let after = table(&hashing, all[..9].to_vec());
        let moved = (0..1000u64)
            .map(|n| hash(&n.to_le_bytes()))
            .filter(|hash| {
                let old = before.choose(*hash, 0, spread).unwrap();
                port(old) != 99 && !Arc::ptr_eq(old, after.choose(*hash, 0, spread).unwrap())
            })
            .count();
        assert!(moved < few, "{spread:?}: {moved}");
    }
}

#[test]
fn workers_with_the_same_hosts_share_a_table() {
    let hashing = hashing(Spread::Maglev { size: 7 });
    let all = hosts(&[1; 3]);
    let (first, second) = (table(&hashing, all.clone()), table(&hashing, all.clone()));
    assert!(Arc::ptr_eq(&first, &second));
    let other = table(&hashing, all[..2].to_vec());
    assert!(!Arc::ptr_eq(&first, &other));
    drop((first, second, other));
    table(&hashing, all);
    assert_eq!(hashing.tables.lock().len(), 1, "tables that nobody has are forgotten");
}

#[test]
fn localities_share_by_their_weights() {
    let mut all = Vec::new();
    let mut localities = Vec::new();
    for (at, weight) in [3u32, 1, 0].into_iter().enumerate() {
        let locality = Arc::new(Locality { zone: format!("z{at}").into(), ..Locality::default() });
        for host in 0..4 {
            let mut one =
                Arc::into_inner(weighted_endpoint(([127, 0, at as u8, 1], 90 + host).into(), 1, Health::Healthy))
                    .unwrap();
            one.locality = locality.clone();
            all.push(Arc::new(one));
        }
        localities.push((locality, weight));
    }
    let priority = Priority { localities, ..Priority::default() };
    let table = Table::of(&priority, all, true);
    assert_eq!(table.shares, [[0.1875; 4], [0.0625; 4]].concat());
}

#[test]
fn no_host_is_no_choice() {
    let hashing = hashing(Spread::Maglev { size: 7 });
    assert!(table(&hashing, Vec::new()).choose(5, 0, hashing.spread).is_none());
}

#[test]
fn a_host_lies_where_its_key_says() {
    let mut host = Arc::into_inner(weighted_endpoint(([127, 0, 0, 1], 90).into(), 1, Health::Healthy)).unwrap();
    host.hostname = Some("name".into());
    let key = |host: &Endpoint, by_hostname| {
        let mut key = String::new();
        push_key(&mut key, host, by_hostname);
        key
    };
    assert_eq!((key(&host, false).as_str(), key(&host, true).as_str()), ("127.0.0.1:90", "name"));
    host.labels = Some(Arc::new(Labels::new([(HASH_KEY.into(), Label::Text("own".into()))])));
    assert_eq!((key(&host, false).as_str(), key(&host, true).as_str()), ("own", "own"));
}
