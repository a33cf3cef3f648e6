#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    model::cluster::Health,
    stats::{OutlierStats, Registry},
    testing::{self, endpoint},
};

fn cluster(hosts: u16, config: OutlierConfig) -> Arc<Cluster> {
    let registry = Registry::new(1);
    let endpoints = (1..=hosts).map(|port| endpoint(([127, 0, 0, 1], port).into())).collect();
    let mut cluster = testing::cluster(&registry, 0, "c", endpoints);
    cluster.outlier = Some(Box::new(Outlier {
        config,
        stats: OutlierStats::new(&registry, testing::scope("cluster.c.outlier_detection.")),
        epoch: Default::default(),
        next: Default::default(),
    }));
    Arc::new(cluster)
}

fn host(cluster: &Cluster, at: usize) -> Arc<Endpoint> {
    cluster.endpoints.load().all().nth(at).unwrap().clone()
}

fn half() -> OutlierConfig {
    OutlierConfig { most_ejected: 50, ..Default::default() }
}

#[test]
fn rows_of_failures_eject() {
    let split = OutlierConfig { split: true, enforce_gateway: 100, ..half() };
    let never = OutlierConfig { enforce_5xx: 0, ..half() };
    let gateway = OutlierConfig { consecutive_gateway: 2, enforce_gateway: 100, ..half() };
    let five = |report| vec![report; 5];
    for (config, reports, ejected) in [
        (half(), five(Report::Response(500)), true),
        (half(), five(Report::Response(404)), false),
        (half(), vec![Report::Response(500); 4], false),
        (
            half(),
            [vec![Report::Response(500); 4], vec![Report::Response(200)], vec![Report::Response(500); 4]].concat(),
            false,
        ),
        (never, five(Report::Response(500)), false),
        // Without a split, what fails here is a gateway's error there.
        (half(), five(Report::Failed), true),
        (half(), five(Report::TimedOut), true),
        (half(), [vec![Report::Failed; 4], vec![Report::Connected, Report::Failed]].concat(), true),
        (half(), [vec![Report::Failed; 4], vec![Report::ConnectedFinally, Report::Failed]].concat(), false),
        (gateway.clone(), vec![Report::Response(502), Report::Response(504)], true),
        (gateway, vec![Report::Response(502), Report::Response(500), Report::Response(502)], false),
        // With one, connections have a row of their own.
        (split.clone(), five(Report::Failed), true),
        (split.clone(), [vec![Report::Failed; 4], vec![Report::Connected, Report::Failed]].concat(), false),
        (split, [vec![Report::Failed; 4], vec![Report::Response(503); 4]].concat(), false),
    ] {
        let cluster = cluster(2, config);
        let host = host(&cluster, 0);
        for one in &reports {
            report(&cluster, &host, *one);
        }
        assert_eq!(host.is_ejected(), ejected, "{reports:?}");
        assert_eq!(host.health() == Health::Unhealthy, ejected);
    }
}

#[test]
fn no_more_than_the_share_is_ejected_and_one_if_asked_for() {
    for (most_ejected, always_one, expected) in
        [(50, false, 2), (10, false, 0), (10, true, 1), (100, false, 4), (25, false, 1)]
    {
        let cluster = cluster(4, OutlierConfig { most_ejected, always_one, ..Default::default() });
        for at in 0..4 {
            for _ in 0..5 {
                report(&cluster, &host(&cluster, at), Report::Response(500));
            }
        }
        let stats = &cluster.outlier.as_ref().unwrap().stats;
        assert_eq!(stats.ejections_active().value(), expected, "{most_ejected} {always_one}");
        assert_eq!(stats.ejections_enforced_consecutive_5xx().total(), expected);
        assert_eq!(stats.ejections_detected_consecutive_5xx().total(), 4);
        assert_eq!(stats.ejections_overflow().total(), 4 - expected);
        assert_eq!(cluster.stats.membership_healthy().value(), if expected == 0 { 0 } else { 4 - expected });
    }
}

#[test]
fn ejections_end_and_grow_while_they_repeat() {
    let cluster = cluster(2, half());
    let host = host(&cluster, 0);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let eject = |now| {
        let outlier = cluster.outlier.as_deref().unwrap();
        detected(&cluster, outlier, &host, Offence::Consecutive5xx, now);
        assert!(host.is_ejected());
    };
    tick(&cluster, at(0));
    eject(at(1));
    let epoch = cluster.outlier.as_ref().unwrap().epoch.load(Relaxed);
    tick(&cluster, at(10));
    tick(&cluster, at(30));
    assert!(host.is_ejected(), "29 s are not 30");
    tick(&cluster, at(41));
    assert!(!host.is_ejected());
    assert!(cluster.outlier.as_ref().unwrap().epoch.load(Relaxed) > epoch, "whoever balances is told");
    assert_eq!(cluster.outlier.as_ref().unwrap().stats.ejections_active().value(), 0);

    // The interval in which it came back has taken one off, so it begins at the base again.
    eject(at(42));
    tick(&cluster, at(60));
    tick(&cluster, at(73));
    assert!(!host.is_ejected());
    // Twice within one interval lasts twice as long.
    host.monitor().ejection.lock().multiplier = 1;
    eject(at(74));
    tick(&cluster, at(110));
    assert!(host.is_ejected());
    tick(&cluster, at(134));
    assert!(!host.is_ejected());
    // However often, there is a longest.
    host.monitor().ejection.lock().multiplier = 1000;
    eject(at(140));
    tick(&cluster, at(439));
    assert!(host.is_ejected());
    tick(&cluster, at(450));
    assert!(!host.is_ejected());
}

#[test]
fn rates_are_compared() {
    let config = OutlierConfig {
        success_rate: crate::model::outlier::SuccessRate {
            minimum_hosts: 5,
            minimum_requests: 100,
            factor: 1900,
            enforce: 100,
            enforce_local: 100,
        },
        ..Default::default()
    };
    let counts = |rates: &[(u64, f64)]| -> Vec<(usize, u64, f64)> {
        rates.iter().enumerate().map(|(at, (requests, rate))| (at, *requests, *rate)).collect()
    };
    for (rates, slow, bad) in [
        // Mean 90, deviation 20: the last is below 52.
        (vec![(100, 100.0), (100, 100.0), (100, 100.0), (100, 100.0), (100, 50.0)], vec![4], vec![]),
        (vec![(100, 100.0), (100, 100.0), (100, 100.0), (100, 100.0), (99, 50.0)], vec![], vec![]),
        (vec![(100, 100.0), (100, 100.0), (100, 100.0), (100, 50.0)], vec![], vec![]),
        (vec![(100, 90.0), (100, 95.0), (100, 92.0), (100, 91.0), (100, 94.0)], vec![], vec![]),
        // Failures of 85 percent, whatever the others do; enough hosts and requests needed.
        (vec![(50, 15.0), (50, 10.0), (50, 16.0), (50, 100.0), (50, 100.0)], vec![], vec![0, 1]),
        (vec![(50, 15.0), (49, 10.0), (50, 16.0), (50, 100.0), (50, 100.0)], vec![], vec![]),
    ] {
        assert_eq!(outliers(&config, &counts(&rates)), (slow, bad), "{rates:?}");
    }
}
