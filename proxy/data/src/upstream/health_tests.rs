#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::SocketAddr, sync::atomic::AtomicU64, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
};

use super::*;
use crate::{
    model::{
        cluster::{EndpointSet, Health, Priority},
        health::{Ask, HttpAsk},
    },
    stats::{HealthCheckStats, Registry},
    testing,
};

const SOON: Duration = Duration::from_millis(5);

fn cluster(registry: &Registry, ask: Ask, addresses: &[SocketAddr]) -> Arc<Cluster> {
    let mut cluster = testing::cluster(registry, 0, "c", Vec::new());
    cluster.health = Some(Box::new(HealthCheck {
        ask,
        timeout: Duration::from_secs(5),
        interval: SOON,
        unhealthy_interval: SOON,
        unhealthy_edge_interval: SOON,
        healthy_edge_interval: SOON,
        no_traffic_interval: SOON,
        no_traffic_healthy_interval: SOON,
        initial_jitter: Duration::ZERO,
        jitter: Duration::ZERO,
        jitter_percent: 0,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        reuse_connection: true,
        ignore_new: false,
        removes_healthy: true,
        events: None,
        always_log_failures: false,
        always_log_successes: false,
        stats: HealthCheckStats::new(registry, testing::scope("cluster.c.health_check.")),
        epoch: AtomicU64::new(0),
        changed: Notify::new(),
    }));
    put(&cluster, addresses);
    Arc::new(cluster)
}

fn put(cluster: &Cluster, addresses: &[SocketAddr]) {
    let endpoints = addresses.iter().map(|address| testing::endpoint(*address)).collect();
    let priority = Priority { endpoints, ..Priority::default() };
    cluster.put_endpoints(EndpointSet { priorities: vec![priority], overprovisioning: 140 });
}

fn health(cluster: &Cluster) -> Vec<Health> {
    cluster.endpoints.load().all().map(|endpoint| endpoint.health()).collect()
}

/// Waits for news until the endpoints are as they should be.
async fn until(cluster: &Cluster, events: &mut mpsc::UnboundedReceiver<Arc<Cluster>>, wanted: &[Health]) {
    while health(cluster) != wanted || cluster.awaits_checks() {
        let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await;
        assert!(event.is_ok(), "no news: {:?} instead of {wanted:?}", health(cluster));
    }
}

#[tokio::test]
async fn an_endpoint_that_takes_connections_is_healthy() {
    let registry = Registry::new(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster =
        cluster(&registry, Ask::Tcp { send: Bytes::new(), receive: Vec::new() }, &[listener.local_addr().unwrap()]);
    assert_eq!(health(&cluster), [Health::Unhealthy], "until it was checked");
    assert!(cluster.awaits_checks());
    let (checks, mut events) = HealthChecks::start().unwrap();
    checks.check(vec![cluster.clone()]);
    until(&cluster, &mut events, &[Health::Healthy]).await;
    assert_eq!(cluster.stats.membership_healthy().value(), 1);
    drop(listener);
    until(&cluster, &mut events, &[Health::Unhealthy]).await;
    let stats = &cluster.health.as_ref().unwrap().stats;
    assert!(stats.network_failure().total() > 0 && stats.success().total() > 0);
    assert_eq!(cluster.stats.upstream_cx_total().total(), 0, "checks are not counted as traffic");
}

/// Answers every request on every connection with what `answer` makes of its head.
fn serve(listener: TcpListener, answer: impl Fn(&str) -> String + Clone + Send + 'static) {
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while socket.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {
                    if seen.ends_with(b"\r\n\r\n") {
                        let reply = answer(&String::from_utf8_lossy(&seen));
                        seen.clear();
                        let _ = socket.write_all(reply.as_bytes()).await;
                    }
                }
            });
        }
    });
}

#[tokio::test]
async fn an_answer_says_how_the_endpoint_is() {
    let registry = Registry::new(1);
    let mut addresses = Vec::new();
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let at = addresses.len();
        serve(listener, move |head| {
            let asked = head.starts_with("GET /ready?x HTTP/1.1\r\n")
                && head.contains("host: checked.example\r\n")
                && head.contains("user-agent: Envoy/HC\r\n")
                && head.contains("x-kuma-tags: &a=b&\r\n");
            let code = if asked && at != 2 { 201 } else { 503 };
            let degraded = if at == 3 { "x-envoy-degraded: true\r\n" } else { "" };
            format!("HTTP/1.1 {code} X\r\n{degraded}content-length: 2\r\n\r\nok")
        });
    }
    let ask = HttpAsk {
        http2: false,
        method: Method::GET,
        path: "/ready?x".into(),
        host: HeaderValue::from_static("checked.example"),
        headers: vec![(http::HeaderName::from_static("x-kuma-tags"), Some(HeaderValue::from_static("&a=b&")))],
        expected: vec![200..202, 204..205],
        retriable: Vec::new(),
    };
    let cluster = cluster(&registry, Ask::Http(Box::new(ask)), &addresses);
    let (checks, mut events) = HealthChecks::start().unwrap();
    checks.check(vec![cluster.clone()]);
    until(&cluster, &mut events, &[Health::Healthy, Health::Unhealthy, Health::Degraded]).await;
    let stats = &cluster.health.as_ref().unwrap().stats;
    assert_eq!((stats.healthy().value(), stats.degraded().value(), stats.network_failure().total()), (2, 1, 0));
}

#[tokio::test]
async fn new_endpoints_are_checked_and_old_ones_no_longer() {
    let registry = Registry::new(1);
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ask = Ask::Tcp { send: Bytes::from_static(b"ping"), receive: vec![Bytes::from_static(b"pong")] };
    let addresses = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    for listener in [first, second] {
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut ping = [0; 4];
                    while socket.read_exact(&mut ping).await.is_ok() {
                        let _ = socket.write_all(b"-pong-").await;
                    }
                });
            }
        });
    }
    let cluster = cluster(&registry, ask, &addresses[..1]);
    let (checks, mut events) = HealthChecks::start().unwrap();
    checks.check(vec![cluster.clone()]);
    until(&cluster, &mut events, &[Health::Healthy]).await;
    put(&cluster, &addresses[1..]);
    until(&cluster, &mut events, &[Health::Healthy]).await;
}

#[tokio::test]
async fn a_healthy_endpoint_stays_until_a_check_fails() {
    let registry = Registry::new(1);
    let mut cluster = Arc::into_inner(cluster(
        &registry,
        Ask::Tcp { send: Bytes::new(), receive: Vec::new() },
        &[([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()],
    ))
    .unwrap();
    cluster.health.as_mut().unwrap().removes_healthy = false;
    let set = cluster.endpoints.load_full();
    let endpoints: Vec<_> = set.all().collect();
    endpoints[0].checked.found(false, false, false);
    cluster.put_endpoints(EndpointSet { priorities: Vec::new(), overprovisioning: 140 });
    assert_eq!(health(&cluster), [Health::Healthy], "the unhealthy one went");
    assert!(endpoints[0].checked.is_removed());
    cluster.drop_removed();
    assert_eq!(health(&cluster), [Health::Healthy]);
    endpoints[0].checked.found(true, false, false);
    cluster.drop_removed();
    assert_eq!(health(&cluster), []);
}
