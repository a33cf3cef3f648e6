#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::{
    model::cluster::{EndpointAddress, Priority},
    stats::Registry,
    testing::{cluster, weighted_endpoint},
};

fn host(port: u16, weight: u32, health: Health) -> Arc<Endpoint> {
    weighted_endpoint(([127, 0, 0, 1], port).into(), weight, health)
}

fn port(endpoint: &Endpoint) -> u16 {
    match &endpoint.address {
        EndpointAddress::Ip(address) => address.port(),
        EndpointAddress::Unix(_) => 0,
    }
}

/// A sequence instead of chance.
fn sequence() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn turns(cluster: &Cluster, n: usize) -> Vec<u16> {
    let mut balances = Balances::default();
    let mut random = sequence();
    (0..n).map(|_| port(&balances.of(cluster).choose(cluster, &mut random).unwrap())).collect()
}

#[test]
fn round_robin_takes_turns() {
    let hosts = (1..=3).map(|port| host(port, 1, Health::Healthy)).collect();
    let turns = turns(&cluster(&Registry::new(1), 0, "c", hosts), 30);
    for window in turns.windows(3) {
        let mut window = window.to_vec();
        window.sort_unstable();
        assert_eq!(window, [1, 2, 3]);
    }
}

#[test]
fn weights_are_shares() {
    let hosts = vec![host(1, 1, Health::Healthy), host(2, 3, Health::Healthy), host(3, 4, Health::Healthy)];
    let turns = turns(&cluster(&Registry::new(1), 0, "c", hosts), 800);
    for (port, share) in [(1, 100), (2, 300), (3, 400)] {
        let count = turns.iter().filter(|turn| **turn == port).count();
        assert!(count.abs_diff(share) <= 2, "{port}: {count}");
    }
}

#[test]
fn unhealthy_hosts_are_left_out_until_panic() {
    let registry = Registry::new(1);
    let hosts = vec![host(1, 1, Health::Healthy), host(2, 1, Health::Healthy), host(3, 1, Health::Unhealthy)];
    let c = cluster(&registry, 0, "c", hosts);
    assert!(turns(&c, 50).iter().all(|port| *port != 3));
    assert_eq!(c.stats.lb_healthy_panic().total(), 0);

    let hosts = vec![host(1, 1, Health::Healthy), host(2, 1, Health::Unhealthy), host(3, 1, Health::Unhealthy)];
    let c = cluster(&registry, 0, "d", hosts);
    let turns = turns(&c, 30);
    assert!([1, 2, 3].iter().all(|port| turns.contains(port)));
    assert_eq!(c.stats.lb_healthy_panic().total(), 30);
}

#[test]
fn the_next_priority_takes_over() {
    let registry = Registry::new(1);
    let c = cluster(&registry, 0, "c", Vec::new());
    let priority = |hosts| Priority { endpoints: hosts, weighted: false };
    c.endpoints.store(Arc::new(EndpointSet {
        priorities: vec![priority(vec![host(1, 1, Health::Unhealthy)]), priority(vec![host(2, 1, Health::Healthy)])],
        overprovisioning: 140,
    }));
    assert_eq!(turns(&c, 3), [2, 2, 2]);
}

#[test]
fn least_request_prefers_the_idle() {
    let registry = Registry::new(1);
    let busy = host(1, 1, Health::Healthy);
    busy.stats.rq_active.store(10, Relaxed);
    let mut c = cluster(&registry, 0, "c", vec![busy.clone(), host(2, 1, Health::Healthy)]);
    c.balancer = Balancer::LeastRequest { choices: 2, bias: 1.0 };
    let count = turns(&c, 400).iter().filter(|port| **port == 1).count();
    // Only when both draws hit the busy host: a quarter.
    assert!((60..=140).contains(&count), "{count}");

    let mut c = cluster(&registry, 0, "d", vec![busy, host(2, 2, Health::Healthy)]);
    c.balancer = Balancer::LeastRequest { choices: 2, bias: 1.0 };
    let count = turns(&c, 230).iter().filter(|port| **port == 1).count();
    // Weights 1/11 against 2.
    assert!((5..=15).contains(&count), "{count}");
}

#[test]
fn a_new_set_is_seen_and_an_empty_one_gives_nothing() {
    let c = cluster(&Registry::new(1), 0, "c", vec![host(1, 1, Health::Healthy)]);
    let mut balances = Balances::default();
    let mut random = sequence();
    assert_eq!(port(&balances.of(&c).choose(&c, &mut random).unwrap()), 1);
    c.endpoints.store(Arc::new(EndpointSet {
        priorities: vec![Priority { endpoints: vec![host(2, 1, Health::Healthy)], weighted: false }],
        overprovisioning: 140,
    }));
    assert_eq!(port(&balances.of(&c).choose(&c, &mut random).unwrap()), 2);
    c.endpoints.store(Arc::default());
    assert!(balances.of(&c).choose(&c, &mut random).is_none());
}

#[test]
fn original_destinations_are_shared_while_in_use_and_forgotten_after() {
    let c = cluster(&Registry::new(1), 0, "c", Vec::new());
    let mut balances = Balances::default();
    let balance = balances.of(&c);
    let first = balance.original(([10, 0, 0, 1], 80).into(), || host(80, 1, Health::Healthy));
    let again = balance.original(([10, 0, 0, 1], 80).into(), || host(80, 1, Health::Healthy));
    assert!(Arc::ptr_eq(&first, &again));
    for n in 0..10_000u32 {
        balance.original((std::net::Ipv4Addr::from(n), 80).into(), || host(80, 1, Health::Healthy));
    }
    assert!(balance.originals.len() < 1000, "{}", balance.originals.len());
}
