//! Outlier detection: an endpoint that fails while others do not is left out for a while.
//!
//! Source: Envoy "Outlier detection", `DetectorImpl`. What a worker sees of a request is counted in the endpoint itself; whoever reaches a threshold ejects
//! at once, on its own thread. One worker looks at all endpoints once per interval.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    model::{
        cluster::{Cluster, Endpoint},
        outlier::{Ejection, Monitor, Outlier, OutlierConfig, Tally},
    },
    worker,
};

/// What became of a request or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A response with this code.
    Response(u16),
    /// A connection was made for a request that is still to be answered.
    Connected,
    /// A connection was made, and nothing more will be known of it.
    ConnectedFinally,
    /// No connection could be made, or it broke.
    Failed,
    /// It took too long.
    TimedOut,
}

/// What an endpoint is ejected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offence {
    Consecutive5xx,
    ConsecutiveGateway,
    ConsecutiveLocal,
    SuccessRate { local: bool },
    FailurePercentage { local: bool },
}

/// Takes note of an outcome. Costs a look at the cluster where nothing is to be detected.
pub(crate) fn report(cluster: &Cluster, endpoint: &Endpoint, report: Report) {
    if let Some(outlier) = &cluster.outlier {
        let offence = count(&outlier.config, endpoint.monitor(), report);
        for offence in offence.into_iter().flatten() {
            detected(cluster, outlier, endpoint, offence, Instant::now());
        }
    }
}

/// Counts, and tells which thresholds have just been reached.
fn count(config: &OutlierConfig, monitor: &Monitor, report: Report) -> [Option<Offence>; 2] {
    let local = |good: bool| {
        monitor.local.count(good);
        if good {
            monitor.consecutive_local.store(0, Relaxed);
            return [None, None];
        }
        let reached = monitor.consecutive_local.fetch_add(1, Relaxed) + 1 == config.consecutive_local;
        [reached.then_some(Offence::ConsecutiveLocal), None]
    };
    let response = |code: u16| {
        let failed = (500..600).contains(&code);
        monitor.external.count(!failed);
        if !failed {
            monitor.consecutive_5xx.store(0, Relaxed);
            monitor.consecutive_gateway.store(0, Relaxed);
            return [None, None];
        }
        let mut gateway = false;
        if (502..=504).contains(&code) {
            gateway = monitor.consecutive_gateway.fetch_add(1, Relaxed) + 1 == config.consecutive_gateway;
        } else {
            monitor.consecutive_gateway.store(0, Relaxed);
        }
        let any = monitor.consecutive_5xx.fetch_add(1, Relaxed) + 1 == config.consecutive_5xx;
        [gateway.then_some(Offence::ConsecutiveGateway), any.then_some(Offence::Consecutive5xx)]
    };
    match (report, config.split) {
        (Report::Response(code), _) => response(code),
        (Report::Connected | Report::ConnectedFinally, true) => local(true),
        (Report::Failed | Report::TimedOut, true) => local(false),
        (Report::Connected, false) => [None, None],
        (Report::ConnectedFinally, false) => response(200),
        (Report::Failed, false) => response(503),
        (Report::TimedOut, false) => response(504),
    }
}

/// Ejects an endpoint, if the share of endpoints and of detections that may be allows it.
fn detected(cluster: &Cluster, outlier: &Outlier, endpoint: &Endpoint, offence: Offence, now: Instant) {
    // Whoever decides is alone: the share of ejected endpoints must not be overrun.
    let _alone = outlier.next.lock();
    let monitor = endpoint.monitor();
    if monitor.ejected.load(Relaxed) {
        return;
    }
    let (config, stats) = (&outlier.config, &outlier.stats);
    let (enforce, found, enforced) = match offence {
        Offence::Consecutive5xx => {
            monitor.consecutive_5xx.store(0, Relaxed);
            (config.enforce_5xx, stats.ejections_detected_consecutive_5xx(), stats.ejections_enforced_consecutive_5xx())
        }
        Offence::ConsecutiveGateway => {
            monitor.consecutive_gateway.store(0, Relaxed);
            (
                config.enforce_gateway,
                stats.ejections_detected_consecutive_gateway_failure(),
                stats.ejections_enforced_consecutive_gateway_failure(),
            )
        }
        Offence::ConsecutiveLocal => {
            monitor.consecutive_local.store(0, Relaxed);
            (
                config.enforce_local,
                stats.ejections_detected_consecutive_local_origin_failure(),
                stats.ejections_enforced_consecutive_local_origin_failure(),
            )
        }
        Offence::SuccessRate { local: false } => (
            config.success_rate.enforce,
            stats.ejections_detected_success_rate(),
            stats.ejections_enforced_success_rate(),
        ),
        Offence::SuccessRate { local: true } => (
            config.success_rate.enforce_local,
            stats.ejections_detected_local_origin_success_rate(),
            stats.ejections_enforced_local_origin_success_rate(),
        ),
        Offence::FailurePercentage { local: false } => (
            config.failure_percentage.enforce,
            stats.ejections_detected_failure_percentage(),
            stats.ejections_enforced_failure_percentage(),
        ),
        Offence::FailurePercentage { local: true } => (
            config.failure_percentage.enforce_local,
            stats.ejections_detected_local_origin_failure_percentage(),
            stats.ejections_enforced_local_origin_failure_percentage(),
        ),
    };
    found.inc();
    let (total, ejected) = census(cluster);
    let fits = (ejected + 1) * 100 <= u64::from(config.most_ejected.min(100)) * total.max(1);
    if !(fits || config.always_one && ejected == 0) {
        stats.ejections_overflow().inc();
        return;
    }
    if worker::random() % 100 >= u64::from(enforce) {
        return;
    }
    if matches!(offence, Offence::Consecutive5xx | Offence::SuccessRate { .. }) {
        stats.ejections_total().inc();
    }
    stats.ejections_enforced_total().inc();
    enforced.inc();
    stats.ejections_active().set(ejected + 1);
    let jitter = Duration::from_millis(worker::random() % (config.jitter.as_millis() as u64 + 1));
    let mut ejection = monitor.ejection.lock();
    ejection.since = Some((now, jitter));
    if config.base_ejection * ejection.multiplier < config.longest_ejection + config.base_ejection {
        ejection.multiplier += 1;
    }
    monitor.ejected.store(true, Relaxed);
    cluster.endpoint_failed(endpoint);
    outlier.epoch.fetch_add(1, Relaxed);
    cluster.count_membership();
    tracing::info!(cluster = %cluster.name, endpoint = %endpoint.address, ?offence, "endpoint ejected: it fails where others do not");
}

/// All endpoints, and those ejected.
fn census(cluster: &Cluster) -> (u64, u64) {
    cluster
        .endpoints
        .load()
        .all()
        .fold((0, 0), |(all, ejected), endpoint| (all + 1, ejected + u64::from(endpoint.is_ejected())))
}

/// Looks at all endpoints of a cluster if its interval is over: ends ejections, and compares what was counted.
pub(crate) fn tick(cluster: &Arc<Cluster>, now: Instant) {
    let Some(outlier) = &cluster.outlier else { return };
    {
        let mut next = outlier.next.lock();
        let due = next.is_some_and(|next| next <= now);
        if due || next.is_none() {
            *next = Some(now + outlier.config.interval);
        }
        if !due {
            return;
        }
    }
    let endpoints: Vec<_> = cluster.endpoints.load().all().cloned().collect();
    let mut ended = false;
    for endpoint in &endpoints {
        let monitor = endpoint.monitor();
        let mut ejection = monitor.ejection.lock();
        if is_over(&ejection, &outlier.config, now) {
            ejection.since = None;
            monitor.consecutive_5xx.store(0, Relaxed);
            monitor.consecutive_gateway.store(0, Relaxed);
            monitor.consecutive_local.store(0, Relaxed);
            monitor.ejected.store(false, Relaxed);
            ended = true;
            tracing::info!(cluster = %cluster.name, endpoint = %endpoint.address, "endpoint takes traffic again");
        }
    }
    compare(cluster, outlier, &endpoints, false, now);
    if outlier.config.split {
        compare(cluster, outlier, &endpoints, true, now);
    }
    for endpoint in endpoints.iter().filter(|endpoint| !endpoint.is_ejected()) {
        let mut ejection = endpoint.monitor().ejection.lock();
        ejection.multiplier = ejection.multiplier.saturating_sub(1);
    }
    // Endpoints that went away while they were ejected no longer count.
    outlier.stats.ejections_active().set(census(cluster).1);
    if ended {
        outlier.epoch.fetch_add(1, Relaxed);
        cluster.count_membership();
    }
}

/// An endpoint has passed a health check: that ends an ejection, unless the configuration says otherwise.
///
/// Source: Envoy `successful_active_health_check_uneject_host`.
pub(crate) fn passed_check(cluster: &Cluster, endpoint: &Endpoint) {
    let Some(outlier) = cluster.outlier.as_ref().filter(|outlier| outlier.config.check_ends_ejection) else { return };
    if !endpoint.is_ejected() {
        return;
    }
    let monitor = endpoint.monitor();
    monitor.ejection.lock().since = None;
    monitor.consecutive_5xx.store(0, Relaxed);
    monitor.consecutive_gateway.store(0, Relaxed);
    monitor.consecutive_local.store(0, Relaxed);
    monitor.ejected.store(false, Relaxed);
    outlier.stats.ejections_active().set(census(cluster).1);
    outlier.epoch.fetch_add(1, Relaxed);
    cluster.count_membership();
    tracing::info!(cluster = %cluster.name, endpoint = %endpoint.address, "endpoint takes traffic again: it passed a health check");
}

fn is_over(ejection: &Ejection, config: &OutlierConfig, now: Instant) -> bool {
    ejection.since.is_some_and(|(since, jitter)| {
        let length = (config.base_ejection * ejection.multiplier).min(config.longest_ejection);
        now.saturating_duration_since(since) >= length + jitter
    })
}

/// Ejects those whose share of failures is far off the others', or simply too high.
fn compare(cluster: &Cluster, outlier: &Outlier, endpoints: &[Arc<Endpoint>], local: bool, now: Instant) {
    let tally = |endpoint: &'_ Endpoint| -> (u64, u64) {
        let monitor = endpoint.monitor();
        let tally: &Tally = if local { &monitor.local } else { &monitor.external };
        tally.take()
    };
    let counts: Vec<(usize, u64, f64)> = endpoints
        .iter()
        .enumerate()
        .map(|(at, endpoint)| (at, tally(endpoint)))
        .filter(|(at, _)| endpoints.get(*at).is_some_and(|endpoint| !endpoint.is_ejected()))
        .map(|(at, (total, good))| (at, total, if total == 0 { 0.0 } else { good as f64 * 100.0 / total as f64 }))
        .collect();
    let (slow, bad) = outliers(&outlier.config, &counts);
    let offences = slow.into_iter().map(|at| (at, Offence::SuccessRate { local }));
    for (at, offence) in offences.chain(bad.into_iter().map(|at| (at, Offence::FailurePercentage { local }))) {
        if let Some(endpoint) = endpoints.get(at) {
            detected(cluster, outlier, endpoint, offence, now);
        }
    }
}

/// Those below the mean by too many standard deviations, and those with too many failures. `counts` has position, requests, and success in percent.
fn outliers(config: &OutlierConfig, counts: &[(usize, u64, f64)]) -> (Vec<usize>, Vec<usize>) {
    let enough = |least: u32| counts.iter().filter(move |(_, requests, _)| *requests >= u64::from(least).max(1));
    let rule = &config.success_rate;
    let rates: Vec<_> = enough(rule.minimum_requests).collect();
    let mut slow = Vec::new();
    if !rates.is_empty() && rates.len() >= rule.minimum_hosts as usize {
        let number = rates.len() as f64;
        let mean = rates.iter().map(|(.., rate)| rate).sum::<f64>() / number;
        let variance = rates.iter().map(|(.., rate)| (rate - mean).powi(2)).sum::<f64>() / number;
        let floor = mean - f64::from(rule.factor) / 1000.0 * variance.sqrt();
        slow.extend(rates.iter().filter(|(.., rate)| *rate < floor).map(|(at, ..)| *at));
    }
    let rule = &config.failure_percentage;
    let rates: Vec<_> = enough(rule.minimum_requests).collect();
    let mut bad = Vec::new();
    if !rates.is_empty() && rates.len() >= rule.minimum_hosts as usize {
        bad.extend(rates.iter().filter(|(.., rate)| 100.0 - rate >= f64::from(rule.threshold)).map(|(at, ..)| *at));
    }
    (slow, bad)
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
