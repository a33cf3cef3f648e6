//! Active health checks, on a thread of their own: one task for each endpoint that mostly sleeps, and as many checks under way as [`MOST_AT_ONCE`].
//!
//! ```text
//! control thread ── clusters ──▶ HealthChecks ──▶ a task per cluster ──▶ a task per endpoint
//!        ▲                                                                     │
//!        └────────────── a cluster whose endpoints changed their health ◀──────┘
//! ```
//!
//! Source: Envoy "Health checking", `HealthCheckerImplBase`, `HttpHealthCheckerImpl`, `TcpHealthCheckerImpl`, `GrpcHealthCheckerImpl`.

mod ask;

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use foldhash::{HashMap, HashMapExt};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use self::ask::Asker;
use super::outlier;
use crate::{
    model::{
        cluster::{Cluster, Endpoint, EndpointAddress},
        health::{Answer, HealthCheck, Judgement, Streak},
    },
    worker,
};

/// Checks under way at once, in the whole process. Ten thousand endpoints that are checked for the first time do not make ten thousand connections.
const MOST_AT_ONCE: usize = 256;

/// The checks of the process. They end when this is dropped.
#[derive(Debug)]
pub struct HealthChecks {
    clusters: mpsc::UnboundedSender<Vec<Arc<Cluster>>>,
}

/// A task that ends with its handle.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What all checks share.
struct Shared {
    gate: Semaphore,
    /// One event per change of health, and what waits is bounded by the number of endpoints.
    changed: mpsc::UnboundedSender<Arc<Cluster>>,
}

impl HealthChecks {
    /// Starts the thread. The receiver tells of clusters whose endpoints have changed their health, or have been checked for the first time.
    ///
    /// # Errors
    /// The system has no thread or no epoll instance left.
    pub fn start() -> io::Result<(HealthChecks, mpsc::UnboundedReceiver<Arc<Cluster>>)> {
        let (clusters, mut wanted) = mpsc::unbounded_channel::<Vec<Arc<Cluster>>>();
        let (changed, events) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("health-check".into()).spawn(move || {
            runtime.block_on(async move {
                let shared = Arc::new(Shared { gate: Semaphore::new(MOST_AT_ONCE), changed });
                let mut running: HashMap<usize, Task> = HashMap::new();
                while let Some(clusters) = wanted.recv().await {
                    running.retain(|cluster, _| clusters.iter().any(|wanted| Arc::as_ptr(wanted).addr() == *cluster));
                    for cluster in clusters {
                        let key = Arc::as_ptr(&cluster).addr();
                        running
                            .entry(key)
                            .or_insert_with(|| Task(tokio::spawn(check_cluster(cluster, shared.clone()))));
                    }
                }
            });
        })?;
        Ok((HealthChecks { clusters }, events))
    }

    /// Checks these clusters, and no others. Those that were checked before go on as they are.
    pub fn check(&self, clusters: Vec<Arc<Cluster>>) {
        // The thread ends only with its handle.
        let _ = self.clusters.send(clusters);
    }
}

/// Keeps a task for each endpoint of a cluster.
async fn check_cluster(cluster: Arc<Cluster>, shared: Arc<Shared>) {
    let Some(check) = &cluster.health else { return };
    let mut running: HashMap<usize, (Arc<Endpoint>, Task)> = HashMap::new();
    loop {
        update(&cluster, &mut running, &shared);
        check.changed.notified().await;
    }
}

/// Starts tasks for endpoints that are new, and ends those of endpoints that are gone.
fn update(cluster: &Arc<Cluster>, running: &mut HashMap<usize, (Arc<Endpoint>, Task)>, shared: &Arc<Shared>) {
    let set = cluster.endpoints.load();
    let wanted: HashMap<usize, &Arc<Endpoint>> = set
        .all()
        .filter(|endpoint| endpoint.check.as_ref().is_none_or(|check| !check.disabled))
        .map(|endpoint| (Arc::as_ptr(endpoint).addr(), endpoint))
        .collect();
    running.retain(|key, _| wanted.contains_key(key));
    for (key, endpoint) in wanted {
        running.entry(key).or_insert_with(|| {
            let task = tokio::spawn(check_endpoint(cluster.clone(), endpoint.clone(), shared.clone()));
            (endpoint.clone(), Task(task))
        });
    }
}

/// Checks one endpoint again and again.
async fn check_endpoint(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>, shared: Arc<Shared>) {
    let Some(check) = &cluster.health else { return };
    let mut streak = Streak::new(endpoint.checked.has_failed(), endpoint.checked.is_awaited());
    let mut asker = Asker::default();
    tokio::time::sleep(check.first_pause(&mut worker::random)).await;
    loop {
        let answer = {
            let _permit = shared.gate.acquire().await;
            check.stats.attempt().inc();
            // Boxed: a task that sleeps must not be as large as one that shakes hands.
            match tokio::time::timeout(check.timeout, Box::pin(asker.ask(&cluster, check, &endpoint))).await {
                Ok(answer) => answer,
                Err(_) => {
                    asker = Asker::default();
                    Answer::Timeout
                }
            }
        };
        if !check.reuse_connection || answer == Answer::Network {
            asker = Asker::default();
        }
        let judged = streak.judge(check, answer);
        take(&cluster, check, &endpoint, answer, judged, &shared);
        let healthy = matches!(answer, Answer::Healthy { .. });
        let traffic = cluster.stats.upstream_cx_total().total() > 0;
        tokio::time::sleep(check.pause(healthy, judged, traffic, &mut worker::random)).await;
    }
}

/// Counts an answer, and puts in force what it changes.
fn take(
    cluster: &Arc<Cluster>,
    check: &HealthCheck,
    endpoint: &Endpoint,
    answer: Answer,
    judged: Judgement,
    shared: &Shared,
) {
    match answer {
        Answer::Healthy { .. } => check.stats.success().inc(),
        Answer::Unwell | Answer::Retriable => check.stats.failure().inc(),
        Answer::Network | Answer::Timeout => {
            check.stats.failure().inc();
            check.stats.network_failure().inc();
        }
    }
    let degraded = matches!(answer, Answer::Healthy { degraded: true });
    let news = endpoint.checked.found(judged.failed, answer == Answer::Timeout, degraded);
    if matches!(answer, Answer::Healthy { .. }) && !judged.failed {
        outlier::passed_check(cluster, endpoint);
    }
    if judged.changed && judged.failed {
        cluster.endpoint_failed(endpoint);
    }
    if judged.changed {
        let now = if judged.failed { "unhealthy" } else { "healthy" };
        tracing::info!(cluster = %cluster.name, endpoint = %endpoint.address, ?answer, "endpoint is {now}");
    }
    if let Some(events) = &check.events {
        let healthy = matches!(answer, Answer::Healthy { .. });
        let logged = judged.changed
            || if healthy { check.always_log_successes } else { check.always_log_failures || judged.first };
        if logged {
            events.write(event(cluster, check, endpoint, answer, judged, SystemTime::now()).into());
        }
    }
    if news {
        check.epoch.fetch_add(1, Relaxed);
        cluster.count_membership();
        // The control thread may be gone, at the end.
        let _ = shared.changed.send(cluster.clone());
    }
}

/// A line of the event log.
///
/// Source: Envoy `data.core.v3.HealthCheckEvent`, in JSON.
fn event(
    cluster: &Cluster,
    check: &HealthCheck,
    endpoint: &Endpoint,
    answer: Answer,
    judged: Judgement,
    now: SystemTime,
) -> String {
    let quoted = |text: &str| {
        let mut quoted = String::new();
        crate::record::quote(text, &mut quoted);
        quoted
    };
    let host = match &endpoint.address {
        EndpointAddress::Ip(address) => format!(
            "{{\"socket_address\":{{\"protocol\":\"TCP\",\"address\":\"{}\",\"port_value\":{},\"resolver_name\":\"\",\"ipv4_compat\":false,\"network_namespace_filepath\":\"\"}}}}",
            address.ip(),
            address.port()
        ),
        EndpointAddress::Unix(path) => {
            format!("{{\"pipe\":{{\"path\":{},\"mode\":0}}}}", quoted(&path.display().to_string()))
        }
    };
    let failure = match answer {
        Answer::Timeout => "NETWORK_TIMEOUT",
        Answer::Network => "NETWORK",
        Answer::Healthy { .. } | Answer::Unwell | Answer::Retriable => "ACTIVE",
    };
    let first = judged.first;
    let what = match (matches!(answer, Answer::Healthy { .. }), judged.changed) {
        (true, true) => format!("\"add_healthy_event\":{{\"first_check\":{first}}}"),
        (true, false) => "\"successful_health_check_event\":{}".to_owned(),
        (false, true) => format!("\"eject_unhealthy_event\":{{\"failure_type\":\"{failure}\"}}"),
        (false, false) => {
            format!("\"health_check_failure_event\":{{\"failure_type\":\"{failure}\",\"first_check\":{first}}}")
        }
    };
    let time: chrono::DateTime<chrono::Utc> = now.into();
    let locality = &endpoint.locality;
    format!(
        "{{\"health_checker_type\":\"{}\",\"host\":{host},\"cluster_name\":{},{what},\"timestamp\":\"{}\",\
         \"locality\":{{\"region\":{},\"zone\":{},\"sub_zone\":{}}}}}\n",
        check.ask.kind(),
        quoted(&cluster.name),
        time.format("%Y-%m-%dT%H:%M:%S%.3fZ"),
        quoted(&locality.region),
        quoted(&locality.zone),
        quoted(&locality.sub_zone),
    )
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
