#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::{
    model::{
        cluster::{EndpointAddress, Selection},
        labels::Label,
    },
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
    (0..n).map(|_| port(&balances.of(cluster).choose(cluster, &Wanted::default(), &mut random).unwrap())).collect()
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
    let priority = |hosts| Priority { endpoints: hosts, weighted: false, localities: Vec::new() };
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
    assert_eq!(port(&balances.of(&c).choose(&c, &Wanted::default(), &mut random).unwrap()), 1);
    c.endpoints.store(Arc::new(EndpointSet {
        priorities: vec![Priority {
            endpoints: vec![host(2, 1, Health::Healthy)],
            weighted: false,
            localities: Vec::new(),
        }],
        overprovisioning: 140,
    }));
    assert_eq!(port(&balances.of(&c).choose(&c, &Wanted::default(), &mut random).unwrap()), 2);
    c.endpoints.store(Arc::default());
    assert!(balances.of(&c).choose(&c, &Wanted::default(), &mut random).is_none());
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

fn labels(pairs: &[(&str, &str)]) -> Arc<Labels> {
    Arc::new(Labels::new(pairs.iter().map(|(key, value)| ((*key).into(), Label::Text((*value).into())))))
}

fn labelled(port: u16, pairs: &[(&str, &str)]) -> Arc<Endpoint> {
    let endpoint = Arc::into_inner(host(port, 1, Health::Healthy)).unwrap();
    Arc::new(Endpoint { labels: Some(labels(pairs)), ..endpoint })
}

#[test]
fn subsets_are_chosen_by_the_labels_that_a_route_asks_for() {
    let registry = Registry::new(1);
    let hosts = || {
        vec![
            labelled(1, &[("version", "v1"), ("region", "eu")]),
            labelled(2, &[("version", "v2"), ("region", "eu")]),
            labelled(3, &[("version", "v2"), ("region", "us")]),
            host(4, 1, Health::Healthy),
        ]
    };
    let selectors =
        vec![(vec!["version".into()], Some(Fallback::None)), (vec!["region".into(), "version".into()], None)];
    for (fallback, asked, expected) in [
        (Fallback::None, &[("version", "v1")][..], &[1][..]),
        (Fallback::None, &[("version", "v2")], &[2, 3]),
        (Fallback::None, &[("region", "us"), ("version", "v2")], &[3]),
        // Nobody has these: the selector's own rule, else the cluster's.
        (Fallback::Any, &[("version", "v3")], &[]),
        (Fallback::Any, &[("region", "us"), ("version", "v1")], &[1, 2, 3, 4]),
        (Fallback::Default, &[("region", "us"), ("version", "v1")], &[1, 2]),
        // No selector has just these keys.
        (Fallback::None, &[("region", "eu")], &[]),
        (Fallback::Any, &[("region", "eu")], &[1, 2, 3, 4]),
        // Nothing is asked for.
        (Fallback::Default, &[], &[1, 2]),
        (Fallback::None, &[], &[]),
    ] {
        let mut c = cluster(&registry, 0, "c", hosts());
        c.selection = Selection {
            subsets: Some(Subsets { selectors: selectors.clone(), fallback, default: labels(&[("region", "eu")]) }),
            ..Default::default()
        };
        let mut balances = Balances::default();
        let mut random = sequence();
        let asked_labels = labels(asked);
        let wanted = Wanted { labels: (!asked.is_empty()).then_some(&asked_labels), ..Default::default() };
        let mut seen: Vec<_> =
            (0..40).filter_map(|_| balances.of(&c).choose(&c, &wanted, &mut random)).map(|e| port(&e)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, expected, "{fallback:?} {asked:?}");
    }
}

#[test]
fn localities_share_by_weight_and_health() {
    let registry = Registry::new(1);
    let placed = |port: u16, zone: &str, health: Health| {
        let endpoint = Arc::into_inner(host(port, 1, health)).unwrap();
        Arc::new(Endpoint { locality: Arc::new(Locality { zone: zone.into(), ..Default::default() }), ..endpoint })
    };
    use Health::{Healthy, Unhealthy};
    for (hosts, expected) in [
        // Weights 1 to 3, however many hosts.
        (vec![placed(1, "a", Healthy), placed(2, "b", Healthy), placed(3, "b", Healthy)], [200, 300, 300]),
        // Half of b is healthy: 140 percent of a half of 3 against 1.
        (vec![placed(1, "a", Healthy), placed(2, "b", Healthy), placed(3, "b", Unhealthy)], [258, 542, 0]),
        // A locality without weight takes nothing.
        (vec![placed(1, "a", Healthy), placed(2, "b", Healthy), placed(3, "c", Healthy)], [200, 600, 0]),
    ] {
        let mut c = cluster(&registry, 0, "c", Vec::new());
        c.selection.by_locality = true;
        let place = |zone: &str| Arc::new(Locality { zone: zone.into(), ..Default::default() });
        let localities = vec![(place("a"), 1), (place("b"), 3), (place("c"), 0)];
        c.endpoints.store(Arc::new(EndpointSet {
            priorities: vec![Priority { endpoints: hosts, weighted: false, localities }],
            overprovisioning: 140,
        }));
        let turns = turns(&c, 800);
        for (port, share) in (1..).zip(expected) {
            let count = turns.iter().filter(|turn| **turn == port).count();
            assert!(count.abs_diff(share) <= 3, "{port}: {count} of {expected:?}");
        }
    }
}

#[test]
fn other_priorities_are_taken_while_they_have_healthy_hosts() {
    let registry = Registry::new(1);
    let c = cluster(&registry, 0, "c", Vec::new());
    let priority = |hosts| Priority { endpoints: hosts, weighted: false, localities: Vec::new() };
    let (first, second) = (host(1, 1, Health::Healthy), host(2, 1, Health::Healthy));
    c.endpoints.store(Arc::new(EndpointSet {
        priorities: vec![priority(vec![first.clone()]), priority(vec![second.clone()])],
        overprovisioning: 140,
    }));
    let mut balances = Balances::default();
    for (tried, expected) in [(vec![], 1), (vec![first.clone()], 2), (vec![first, second], 1)] {
        let wanted = Wanted { other_priorities_than: &tried, ..Default::default() };
        assert_eq!(port(&balances.of(&c).choose(&c, &wanted, &mut sequence()).unwrap()), expected);
    }
}

#[test]
fn panic_may_be_nothing() {
    let registry = Registry::new(1);
    let hosts = vec![host(1, 1, Health::Healthy), host(2, 1, Health::Unhealthy), host(3, 1, Health::Unhealthy)];
    let mut c = cluster(&registry, 0, "c", hosts);
    c.selection.fail_on_panic = true;
    assert!(Balances::default().of(&c).choose(&c, &Wanted::default(), &mut sequence()).is_none());
}
