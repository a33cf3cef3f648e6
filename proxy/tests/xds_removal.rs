//! What is taken away, and what waits before it is in force, however the proxy is subscribed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    fs,
    io::{BufReader, Read, Write},
    net::TcpStream,
    time::Instant,
};

use common::{
    LIMIT, Proxy, answer, eventually, get, http_listener,
    planes::{
        Variant, answers, by_rds, cluster, eds_cluster, endpoints, inline, leads_to, listener, listener_of,
        named_listener, routes,
    },
    upstream::Upstream,
};
use shika_proto::type_url;

/// A connection that stays.
struct Kept(BufReader<TcpStream>);

impl Kept {
    fn connect(address: &str) -> Kept {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Kept(BufReader::new(socket))
    }

    fn ask(&mut self, path: &str) {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    }

    fn answer(&mut self) -> common::Answer {
        answer(&mut self.0)
    }
}

/// Routes that lie in the listener and lead to a cluster.
fn inline_to(cluster: &str) -> shika_proto::google::protobuf::Any {
    listener(&format!("route_config: {{virtual_hosts: [{}]}}", leads_to(cluster)))
}

async fn listener_removal(variant: Variant) {
    let upstream = Upstream::start("up");
    let (proxy, mut streams) = variant.start("", &["--drain-time-s", "1", "--drain-strategy", "immediate"]).await;
    streams.send(type_url::CLUSTER, "1", vec![("backend", cluster("backend", upstream.address))]).await;
    let other = named_listener("other", &format!("route_config: {{virtual_hosts: [{}]}}", answers("other")));
    let ack = streams.send(type_url::LISTENER, "1", vec![("web", inline_to("backend")), ("other", other)]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let (web, other) = (proxy.listener("web"), proxy.listener("other"));
    let (mut busy, mut idle, mut bystander) = (Kept::connect(&web), Kept::connect(&web), Kept::connect(&other));
    for kept in [&mut idle, &mut bystander] {
        kept.ask("/");
        assert!(!kept.answer().head.contains("connection: close"), "{variant:?}");
    }
    busy.ask("/held");
    eventually("the request upstream", || {
        (upstream.requests.load(std::sync::atomic::Ordering::Relaxed) == 2).then_some(())
    });

    let removed = Instant::now();
    let ack = streams.remove(type_url::LISTENER, "2", &["web"]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    // Acknowledged: nobody new comes in.
    assert!(TcpStream::connect(&web).is_err(), "{variant:?}: {web} still accepts");
    assert!(!get(&proxy.admin, "/listeners").body.contains("web::"), "{variant:?}");
    // What was under way is finished, and the client told to go.
    upstream.release();
    let last = busy.answer();
    assert_eq!((last.status, last.body.as_str()), (200, "up"), "{variant:?}");
    assert!(last.head.contains("connection: close"), "{variant:?} {last:?}");
    // What does nothing is closed, at the latest when the drain time is over.
    assert_eq!(idle.0.read(&mut [0; 1]).unwrap(), 0, "{variant:?}");
    assert!(removed.elapsed() < LIMIT);
    bystander.ask("/");
    let untouched = bystander.answer();
    assert_eq!(untouched.body, "other", "{variant:?}");
    assert!(!untouched.head.contains("connection: close"), "{variant:?} {untouched:?}");
    assert_eq!(proxy.stat("listener_manager.listener_removed"), 1, "{variant:?}");
    // It may come back.
    let ack = streams.send(type_url::LISTENER, "3", vec![("web", inline("back"))]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    assert_eq!(get(&proxy.listener("web"), "/").body, "back", "{variant:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_listener_drains_and_takes_nobody_new() {
    for variant in Variant::ALL {
        listener_removal(variant).await;
    }
}

async fn route_removal(variant: Variant) {
    let (proxy, mut streams) = variant.start("", &[]).await;
    streams.send(type_url::CLUSTER, "1", vec![]).await;
    streams.send(type_url::LISTENER, "1", vec![("web", by_rds(variant, "r", "0s"))]).await;
    streams.asked_for(type_url::ROUTE, "r").await;
    streams.send(type_url::ROUTE, "1", vec![("r", routes("r", &answers("one")))]).await;
    let web = proxy.listener("web");
    assert_eq!(get(&web, "/").body, "one", "{variant:?}");
    // As in Envoy: a table that something uses stays, whether it is named as removed or is not in the state any more.
    let ack = streams.remove(type_url::ROUTE, "2", &["r"]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    assert_eq!(get(&web, "/").body, "one", "{variant:?}");
    // Another table is asked for, and the old one no more; the listener waits and serves as before.
    streams.send(type_url::LISTENER, "2", vec![("web", by_rds(variant, "s", "0s"))]).await;
    streams.asked_for(type_url::ROUTE, "s").await;
    assert_eq!(get(&web, "/").body, "one", "{variant:?}");
    let mut ended = streams.send(type_url::ROUTE, "3", vec![("s", routes("s", &answers("two")))]).await;
    eventually("the new table", || (get(&proxy.listener("web"), "/").body == "two").then_some(()));
    while ended.unsubscribed != ["r"] && ended.names != ["s"] {
        ended = streams.request(type_url::ROUTE).await;
    }
    // The old one again: it has to be sent anew, and until then the listener waits.
    streams.send(type_url::LISTENER, "3", vec![("web", by_rds(variant, "r", "0s"))]).await;
    streams.asked_for(type_url::ROUTE, "r").await;
    assert_eq!(get(&proxy.listener("web"), "/").body, "two", "{variant:?}");
    streams.send(type_url::ROUTE, "4", vec![("r", routes("r", &answers("three")))]).await;
    eventually("the first table", || (get(&proxy.listener("web"), "/").body == "three").then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_stay_until_nothing_uses_them() {
    for variant in Variant::ALL {
        route_removal(variant).await;
    }
}

async fn cluster_removal(variant: Variant) {
    let upstream = Upstream::start("up");
    let log = tempfile::NamedTempFile::new().unwrap();
    let (proxy, mut streams) = variant.start("", &[]).await;
    let eds = eds_cluster(variant, "backend", "service", "0s", "");
    streams
        .send(type_url::CLUSTER, "1", vec![("backend", eds.clone()), ("other", cluster("other", upstream.address))])
        .await;
    streams.asked_for(type_url::ENDPOINT, "service").await;
    streams.send(type_url::ENDPOINT, "1", vec![("service", endpoints("service", upstream.address))]).await;
    let web = listener(&format!(
        "access_log: [{{name: file, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, \
         log_format: {{text_format_source: {{inline_string: \"%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\\n\"}}}}}}}}]
          route_config: {{virtual_hosts: [{}]}}",
        log.path().display(),
        leads_to("backend")
    ));
    let ack = streams.send(type_url::LISTENER, "1", vec![("web", web)]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let web = proxy.listener("web");
    assert_eq!(get(&web, "/").body, "up", "{variant:?}");
    // Endpoints that are in a response no more stay.
    let ack = streams.remove(type_url::ENDPOINT, "2", &["service"]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    assert_eq!(get(&web, "/").body, "up", "{variant:?}");
    // A request is under way when its cluster goes.
    let mut busy = Kept::connect(&web);
    busy.ask("/held");
    eventually("the request upstream", || {
        (upstream.requests.load(std::sync::atomic::Ordering::Relaxed) == 3).then_some(())
    });
    let ack = streams.remove(type_url::CLUSTER, "2", &["backend"]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let gone = get(&web, "/");
    assert_eq!(gone.status, 503, "{variant:?} {gone:?}");
    upstream.release();
    assert_eq!(busy.answer().body, "up", "{variant:?}");
    eventually("the log", || {
        let text = fs::read_to_string(log.path()).unwrap();
        text.lines().any(|line| line == "503 NC cluster_not_found").then_some(())
    });
    let left = get(&proxy.admin, "/clusters").body;
    assert!(!left.contains("backend::") && left.contains("other::"), "{variant:?} {left}");
    assert_eq!(proxy.stat("cluster_manager.cluster_removed"), 1, "{variant:?}");
    // It may come back; its endpoints are asked for again, on another stream where it was theirs alone.
    streams.ended(type_url::ENDPOINT).await;
    streams.send(type_url::CLUSTER, "3", vec![("backend", eds)]).await;
    streams.asked_for(type_url::ENDPOINT, "service").await;
    streams.send(type_url::ENDPOINT, "3", vec![("service", endpoints("service", upstream.address))]).await;
    assert_eq!(get(&web, "/").body, "up", "{variant:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_cluster_finishes_what_it_has() {
    for variant in Variant::ALL {
        cluster_removal(variant).await;
    }
}

async fn warming(variant: Variant) {
    let (first, second) = (Upstream::start("first"), Upstream::start("second"));
    let (proxy, mut streams) = variant.start("", &[]).await;
    // LDS is asked for when the clusters are warm, and not before.
    streams.send(type_url::CLUSTER, "1", vec![("backend", eds_cluster(variant, "backend", "a", "0s", ""))]).await;
    streams.asked_for(type_url::ENDPOINT, "a").await;
    assert_eq!(clusters_waiting(&proxy), 1, "{variant:?}");
    assert!(get(&proxy.admin, "/init_dump").body.contains("ClusterLoadAssignment/a"), "{variant:?}");
    streams.send(type_url::ENDPOINT, "1", vec![("a", endpoints("a", first.address))]).await;
    streams.send(type_url::LISTENER, "1", vec![("web", inline_to("backend"))]).await;
    let web = proxy.listener("web");
    assert_eq!(get(&web, "/").body, "first", "{variant:?}");
    assert_eq!(clusters_waiting(&proxy), 0, "{variant:?}");
    // A new version of the cluster waits for its endpoints; the old one serves.
    streams.send(type_url::CLUSTER, "2", vec![("backend", eds_cluster(variant, "backend", "b", "0s", ""))]).await;
    streams.asked_for(type_url::ENDPOINT, "b").await;
    assert_eq!(get(&web, "/").body, "first", "{variant:?}");
    assert_eq!(clusters_waiting(&proxy), 1, "{variant:?}");
    streams.send(type_url::ENDPOINT, "2", vec![("b", endpoints("b", second.address))]).await;
    assert_eq!(get(&web, "/").body, "second", "{variant:?}");
    // A version that changes nothing about the endpoints needs no new ones.
    let other = eds_cluster(variant, "backend", "b", "0s", "    lb_policy: LEAST_REQUEST\n");
    streams.send(type_url::CLUSTER, "3", vec![("backend", other)]).await;
    assert_eq!(get(&web, "/").body, "second", "{variant:?}");
    assert_eq!(clusters_waiting(&proxy), 0, "{variant:?}");
    // A new version of the listener waits for its routes; the old one serves.
    streams.send(type_url::LISTENER, "2", vec![("web", by_rds(variant, "r", "0s"))]).await;
    streams.asked_for(type_url::ROUTE, "r").await;
    assert_eq!(proxy.stat("listener_manager.total_listeners_warming"), 1, "{variant:?}");
    assert_eq!(get(&web, "/").body, "second", "{variant:?}");
    streams.send(type_url::ROUTE, "1", vec![("r", routes("r", &answers("routes")))]).await;
    assert_eq!(get(&proxy.listener("web"), "/").body, "routes", "{variant:?}");
    assert_eq!(proxy.stat("listener_manager.total_listeners_warming"), 0, "{variant:?}");
}

fn clusters_waiting(proxy: &Proxy) -> u64 {
    proxy.stat("cluster_manager.warming_clusters")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_lets_the_old_version_serve() {
    for variant in Variant::ALL {
        warming(variant).await;
    }
}

async fn waiting_ends(variant: Variant) {
    let (proxy, mut streams) = variant.start("", &[]).await;
    // Nothing but the listener and the cluster ever comes.
    streams.send(type_url::CLUSTER, "1", vec![("backend", eds_cluster(variant, "backend", "a", "0.2s", ""))]).await;
    let silent = format!("rds: {{route_config_name: never, config_source: {}}}", variant.source("0.2s"));
    let silent = named_listener("silent", &silent);
    let plain = http_listener("locked", "127.0.0.1:0", &format!("route_config: {{virtual_hosts: [{}]}}", answers("x")));
    let locked = listener_of(&format!(
        "{plain}      transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: never, sds_config: {}}}]}}}}}}\n",
        variant.source("0.2s")
    ));
    let ack = streams
        .send(type_url::LISTENER, "1", vec![("web", inline_to("backend")), ("silent", silent), ("locked", locked)])
        .await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let no_host = get(&proxy.listener("web"), "/");
    assert_eq!((no_host.status, no_host.body.as_str()), (503, "no healthy upstream"), "{variant:?}");
    assert_eq!(get(&proxy.listener("silent"), "/").status, 404, "{variant:?}");
    // Without its certificate a listener accepts and closes, and says nothing in plain text.
    let mut refused = Kept::connect(&proxy.listener("locked"));
    assert_eq!(refused.0.read(&mut [0; 1]).unwrap_or(0), 0, "{variant:?}");
    eventually("LIVE", || (get(&proxy.admin, "/ready").status == 200).then_some(()));
    // What comes late is taken all the same.
    streams.send(type_url::ROUTE, "1", vec![("never", routes("never", &answers("late")))]).await;
    assert_eq!(get(&proxy.listener("silent"), "/").body, "late", "{variant:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_with_initial_fetch_timeout() {
    for variant in Variant::ALL {
        waiting_ends(variant).await;
    }
}
