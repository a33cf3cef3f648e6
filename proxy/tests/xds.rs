//! The real proxy under a scripted delta control plane; the test holds every sender.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use common::{
    LIMIT, Proxy, answer, cluster,
    control_plane::{control_plane, session},
    eventually, get, http_listener,
};
use shika_proto::{
    any,
    envoy::config::{bootstrap::v3::bootstrap::StaticResources, listener::v3::Listener, route::v3::RouteConfiguration},
    google::protobuf::Any,
    json, type_url,
};

fn bootstrap(ads: SocketAddr) -> String {
    format!(
        "node: {{id: mesh.proxy, cluster: test}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{{envoy_grpc: {{cluster_name: ads}}}}]}}
  cds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  lds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
static_resources:
  clusters:
  - name: ads
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: ads, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}
",
        ads.port()
    )
}

fn listener(routes: &str) -> Any {
    let text = format!("listeners:{}", http_listener("web", "127.0.0.1:0", routes));
    let resources: StaticResources = json::from_yaml(&text).unwrap();
    any::pack::<Listener>(&resources.listeners[0])
}

fn inline(body: &str) -> Any {
    listener(&format!(
        "route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}]}}"
    ))
}

fn by_rds() -> Any {
    listener(
        "rds: {route_config_name: r, config_source: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}}
          upgrade_configs: [{upgrade_type: websocket}]",
    )
}

/// Routes whose `/ws` leads to the cluster `echo` and whose rest answers with `body`; all of it changes with `body`.
fn routes_and_echo(body: &str) -> Any {
    let text = format!(
        "name: r\nvirtual_hosts: [{{name: v, domains: ['*'], response_headers_to_add: [{{header: {{key: x-version, value: {body}}}}}], routes: \
         [{{match: {{prefix: /ws}}, route: {{cluster: echo, timeout: 0s}}}}, {{match: {{prefix: /}}, direct_response: {{status: 200, body: \
         {{inline_string: {body}}}}}}}]}}]"
    );
    any::pack(&json::from_yaml::<RouteConfiguration>(&text).unwrap())
}

/// Takes every upgrade and sends back what it gets.
fn echo_upstream() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || {
                let mut socket = socket.unwrap();
                let mut reader = BufReader::new(socket.try_clone().unwrap());
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                }
                socket
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                    .unwrap();
                // Ends with the connection; what then cannot be sent is nobody's.
                let _ = std::io::copy(&mut reader, &mut socket);
            });
        }
    });
    address
}

/// A long connection that left HTTP: sends and gets back, over and over, until told to stop. Gives the number of exchanges.
fn long_connection(web: &str, stop: &AtomicBool) -> u64 {
    let mut socket = TcpStream::connect(web).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.write_all(b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").unwrap();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 101"), "{line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let mut exchanges = 0;
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(b"ping").unwrap();
        let mut back = [0; 4];
        reader.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"ping");
        exchanges += 1;
    }
    exchanges
}

fn routes(body: &str) -> Any {
    let text = format!(
        "name: r\nvirtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}]"
    );
    any::pack(&json::from_yaml::<RouteConfiguration>(&text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_update_keeps_the_last_good_one_and_a_new_stream_tells_what_is_held() {
    let (address, mut sessions) = control_plane().await;
    let proxy = Proxy::start(&bootstrap(address), &[]);
    let mut stream = session(&mut sessions).await;
    let first = stream.request(type_url::CLUSTER).await;
    assert_eq!(first.node.as_ref().unwrap().id, "mesh.proxy");
    assert_eq!(get(&proxy.admin, "/ready").body, "PRE_INITIALIZING\n");
    let ack = stream.send(type_url::CLUSTER, "1", vec![]).await;
    assert!(ack.error_detail.is_none() && ack.node.is_none());
    let subscribed = stream.request(type_url::LISTENER).await;
    assert!(subscribed.initial_resource_versions.is_empty());
    let ack = stream.send(type_url::LISTENER, "1", vec![("web", inline("one"))]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    let web = proxy.listener("web");
    assert_eq!(get(&web, "/").body, "one");
    eventually("LIVE", || (get(&proxy.admin, "/ready").status == 200).then_some(()));

    let bad = listener(
        "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {safe_regex: {regex: '('}}, direct_response: {status: 200}}]}]}",
    );
    let nack = stream.send(type_url::LISTENER, "2", vec![("web", bad)]).await;
    let detail = nack.error_detail.expect("a refusal").message;
    assert!(detail.starts_with("Listener \"web\": filter_chains[0].filters[0].typed_config"), "{detail}");
    assert!(detail.contains("safe_regex"), "{detail}");
    assert_eq!(get(&web, "/").body, "one");
    assert_eq!(proxy.stat("listener_manager.lds.update_rejected"), 1);
    let dump = get(&proxy.admin, "/config_dump?resource=dynamic_listeners").body;
    assert!(dump.contains("\"error_state\"") && dump.contains("\"version_info\": \"1\""), "{dump}");

    drop(stream);
    let mut again = session(&mut sessions).await;
    let clusters = again.request(type_url::CLUSTER).await;
    assert!(clusters.node.is_some() && clusters.response_nonce.is_empty());
    let held = again.request(type_url::LISTENER).await;
    assert_eq!(held.initial_resource_versions.get("web").map(String::as_str), Some("1"));
    assert_eq!(get(&web, "/").body, "one");
    let ack = again.send(type_url::LISTENER, "3", vec![("web", inline("three"))]).await;
    assert!(ack.error_detail.is_none());
    assert_eq!(get(&proxy.listener("web"), "/").body, "three");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_waits_for_its_routes() {
    let (address, mut sessions) = control_plane().await;
    let proxy = Proxy::start(&bootstrap(address), &[]);
    let mut stream = session(&mut sessions).await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    let ack = stream.send(type_url::LISTENER, "1", vec![("web", by_rds())]).await;
    assert!(ack.error_detail.is_none());
    let wanted = stream.request(type_url::ROUTE).await;
    assert_eq!(wanted.names, ["r"]);
    assert_eq!(get(&proxy.admin, "/ready").body, "INITIALIZING\n");
    assert_eq!(get(&proxy.admin, "/listeners").body, "");
    assert!(get(&proxy.admin, "/init_dump").body.contains("web"));
    stream.send(type_url::ROUTE, "1", vec![("r", routes("late"))]).await;
    assert_eq!(get(&proxy.listener("web"), "/").body, "late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_route_updates_close_no_connection_and_fail_no_request() {
    let (address, mut sessions) = control_plane().await;
    let proxy = Proxy::start(&bootstrap(address), &[]);
    let mut stream = session(&mut sessions).await;
    let echo = cluster("echo", &echo_upstream().to_string());
    let echo: StaticResources = json::from_yaml(&format!("clusters:{echo}")).unwrap();
    stream.send(type_url::CLUSTER, "1", vec![("echo", any::pack(&echo.clusters[0]))]).await;
    stream.send(type_url::LISTENER, "1", vec![("web", by_rds())]).await;
    stream.send(type_url::ROUTE, "0", vec![("r", routes_and_echo("v0"))]).await;
    let web = proxy.listener("web");
    let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (web, stop, requests) = (web.clone(), stop.clone(), requests.clone());
            std::thread::spawn(move || {
                let mut socket = TcpStream::connect(web).unwrap();
                socket.set_read_timeout(Some(LIMIT)).unwrap();
                let mut reader = BufReader::new(socket.try_clone().unwrap());
                while !stop.load(Ordering::Relaxed) {
                    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
                    let found = answer(&mut reader);
                    assert!(found.status == 200 && found.body.starts_with('v'), "{found:?}");
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let long: Vec<_> = (0..4)
        .map(|_| {
            let (web, stop) = (web.clone(), stop.clone());
            std::thread::spawn(move || long_connection(&web, &stop))
        })
        .collect();
    eventually("upgrades", || (proxy.stat("http.web.downstream_cx_upgrades_active") == 4).then_some(()));
    eventually("requests", || (requests.load(Ordering::Relaxed) > 100).then_some(()));
    for version in 1..=1000 {
        let ack = stream
            .send(type_url::ROUTE, &version.to_string(), vec![("r", routes_and_echo(&format!("v{version}")))])
            .await;
        assert!(ack.error_detail.is_none(), "{ack:?}");
    }
    // Acknowledged means in force.
    assert_eq!(get(&web, "/").body, "v1000");
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let exchanges: u64 = long.into_iter().map(|long| long.join().unwrap()).sum();
    eprintln!(
        "{} requests, {exchanges} exchanges on long connections during 1000 updates",
        requests.load(Ordering::Relaxed)
    );
    // Four clients, four long connections and the request above: nobody had to connect again.
    assert_eq!(proxy.stat("http.web.downstream_cx_total"), 9);
    assert_eq!(proxy.stat("http.web.downstream_cx_drain_close"), 0);
}
