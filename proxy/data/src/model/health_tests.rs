use super::*;
use crate::{stats::Registry, testing};

const S: fn(u64) -> Duration = Duration::from_secs;

fn check(unhealthy_threshold: u32, healthy_threshold: u32) -> HealthCheck {
    HealthCheck {
        ask: Ask::Tcp { send: Bytes::new(), receive: Vec::new() },
        timeout: S(1),
        interval: S(10),
        unhealthy_interval: S(20),
        unhealthy_edge_interval: S(30),
        healthy_edge_interval: S(40),
        no_traffic_interval: S(60),
        no_traffic_healthy_interval: S(70),
        initial_jitter: Duration::ZERO,
        jitter: Duration::ZERO,
        jitter_percent: 0,
        unhealthy_threshold,
        healthy_threshold,
        reuse_connection: true,
        ignore_new: false,
        removes_healthy: true,
        events: None,
        always_log_failures: false,
        always_log_successes: false,
        stats: HealthCheckStats::new(&Registry::new(1), testing::scope("cluster.c.health_check.")),
        epoch: AtomicU64::new(0),
        changed: Notify::new(),
    }
}

const GOOD: Answer = Answer::Healthy { degraded: false };

#[test]
fn thresholds_count_answers_in_a_row() {
    use Answer::{Network, Retriable, Timeout, Unwell};
    for (answers, failed) in [
        // One success is enough at the very first check, one failure leaves it failed.
        (&[GOOD][..], &[false][..]),
        (&[Network, GOOD, GOOD, GOOD], &[true, true, true, false]),
        (&[Network, GOOD, GOOD, Network, GOOD, GOOD, GOOD], &[true, true, true, true, true, true, false]),
        // No answer twice in a row.
        (&[GOOD, Network, GOOD, Timeout, Network], &[false, false, false, false, true]),
        (&[GOOD, Retriable, Retriable], &[false, false, true]),
        // A clear answer at once.
        (&[GOOD, Unwell], &[false, true]),
    ] {
        let check = check(2, 3);
        let mut streak = Streak::new(true, true);
        let seen: Vec<bool> = answers.iter().map(|answer| streak.judge(&check, *answer).failed).collect();
        assert_eq!(seen, failed, "{answers:?}");
    }
}

#[test]
fn what_changes_is_told_once() {
    let check = check(2, 1);
    let mut streak = Streak::new(true, true);
    let judged = [GOOD, GOOD, Answer::Network, Answer::Network, Answer::Network, GOOD].map(|answer| {
        let Judgement { failed, changed, pending, first } = streak.judge(&check, answer);
        (failed, changed, pending, first)
    });
    assert_eq!(
        judged,
        [
            (false, true, false, true),
            (false, false, false, false),
            (false, false, true, false),
            (true, true, false, false),
            (true, false, false, false),
            (false, true, false, false),
        ]
    );
}

#[test]
fn pauses_depend_on_health_and_traffic() {
    let judged = |pending| Judgement { failed: false, changed: false, pending, first: false };
    let check = check(1, 1);
    for (healthy, pending, traffic, seconds) in [
        (true, false, true, 10),
        (true, true, true, 40),
        (false, false, true, 20),
        (false, true, true, 30),
        (true, false, false, 70),
        (false, true, false, 60),
    ] {
        assert_eq!(
            check.pause(healthy, judged(pending), traffic, &mut || 5),
            S(seconds),
            "{healthy} {pending} {traffic}"
        );
    }
    let jittered = HealthCheck { jitter: S(2), jitter_percent: 10, initial_jitter: S(3), ..check };
    // 10 s, up to 1 s for the percentage and up to 2 s on top.
    assert_eq!(jittered.pause(true, judged(false), true, &mut || 1_999), Duration::from_millis(10_000 + 999 + 1_999));
    assert_eq!(jittered.first_pause(&mut || 2_999), Duration::from_millis(2_999));
}

#[test]
fn an_endpoint_is_unhealthy_until_it_was_checked() {
    let checked = Checked::default();
    assert!(!checked.has_failed() && !checked.is_awaited());
    checked.await_first();
    assert!(checked.has_failed() && checked.is_awaited());
    assert!(checked.found(false, false, false));
    assert!(!checked.has_failed() && !checked.is_awaited());
    // An update of the endpoints does not forget.
    checked.await_first();
    assert!(!checked.has_failed() && !checked.is_awaited());
    assert!(!checked.found(false, false, false), "no news");
    assert!(checked.found(true, true, false) && checked.has_timed_out());
    checked.forget();
    assert!(!checked.has_failed() && !checked.has_timed_out());
}
