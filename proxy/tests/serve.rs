//! A static bootstrap: traffic, the admin interface, logs, drain.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use common::{Proxy, answer, cluster, eventually, get, http_listener, post};

fn bootstrap(upstream: &str) -> String {
    let routes = "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /up}, route: {cluster: up, timeout: 0s}}, \
                  {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hi}}}]}]}";
    format!(
        "static_resources:\n  listeners:{}  - name: raw\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    filter_chains: [{{filters: [{{name: tcp, \
         typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: raw, cluster: up}}}}]}}]\n  clusters:{}",
        http_listener("web", "127.0.0.1:0", routes),
        cluster("up", upstream)
    )
}

#[test]
fn http_tcp_and_the_admin_interface() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(&bootstrap(&upstream.local_addr().unwrap().to_string()), &[]).live();
    let direct = get(&proxy.listener("web"), "/");
    assert_eq!((direct.status, direct.body.as_str()), (200, "hi"));

    let mut raw = TcpStream::connect(proxy.listener("raw")).unwrap();
    raw.write_all(b"ping").unwrap();
    let mut peer = upstream.accept().unwrap().0;
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    peer.write_all(b"pong").unwrap();
    raw.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");

    let admin = &proxy.admin;
    for (path, content_type, needle) in [
        ("/help", "text/plain", "admin commands are:"),
        ("/", "text/html", "<h1>Shika</h1>"),
        ("/ready", "text/plain", "LIVE\n"),
        ("/server_info", "application/json", "\"state\": \"LIVE\""),
        ("/stats", "text/plain", "http.web.downstream_rq_2xx: 1\n"),
        ("/stats?usedonly&filter=^http.web.rq_direct", "text/plain", "http.web.rq_direct_response: 1\n"),
        ("/stats?format=json", "application/json", "{\"name\":\"http.web.downstream_rq_2xx\",\"value\":1}"),
        (
            "/stats/prometheus",
            "text/plain",
            "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"web\"} 1\n",
        ),
        (
            "/stats?format=prometheus&usedonly&text_readouts",
            "text/plain",
            "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n",
        ),
        ("/config_dump", "application/json", "\"@type\": \"type.googleapis.com/envoy.admin.v3.ListenersConfigDump\""),
        ("/config_dump?resource=static_clusters&mask=cluster.name", "application/json", "\"name\": \"up\""),
        ("/config_dump?include_eds", "application/json", "\"static_endpoint_configs\": ["),
        ("/clusters", "text/plain", "up::default_priority::max_connections::1024\n"),
        ("/clusters?format=json", "application/json", "\"eds_health_status\": \"HEALTHY\""),
        ("/listeners", "text/plain", "raw::127.0.0.1:"),
        ("/listeners?format=json", "application/json", "\"listener_statuses\": ["),
        ("/certs", "application/json", "\"certificates\": []"),
        ("/memory", "application/json", "\"total_physical_bytes\": \""),
        ("/runtime", "application/json", "\"layers\": []"),
        ("/init_dump", "application/json", "{}"),
        ("/unsupported", "application/json", "\"ignored_fields\""),
        ("/hot_restart_version", "text/plain", "disabled"),
    ] {
        let found = get(admin, path);
        assert_eq!(found.status, 200, "{path}");
        assert!(found.head.contains(&format!("content-type: {content_type}")), "{path}: {}", found.head);
        assert!(found.head.contains("cache-control: no-cache, max-age=0"), "{path}");
        assert!(found.body.contains(needle), "{path}: {needle} is not in {}", found.body);
    }
    for path in ["/stats?format=json", "/config_dump", "/config_dump?include_eds", "/clusters?format=json"] {
        serde_json::from_str::<serde_json::Value>(&get(admin, path).body)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    for path in ["/logging", "/quitquitquit", "/reset_counters", "/healthcheck/fail", "/drain_listeners"] {
        let found = get(admin, path);
        assert_eq!((found.status, found.body.as_str()), (405, "Method GET not allowed, POST required."), "{path}");
    }
    for (path, status) in
        [("/nonsense", 404), ("/stats?filter=(", 400), ("/stats?format=bad", 400), ("/config_dump?resource=foo", 404)]
    {
        assert_eq!(get(admin, path).status, status, "{path}");
    }
    assert!(post(admin, "/logging?http=debug").body.contains("  http: debug\n"));
    let bad = post(admin, "/logging?nope=debug");
    assert!(bad.status == 400 && bad.body.starts_with("error: unknown logger name\n"), "{bad:?}");
    assert_eq!(post(admin, "/reset_counters").body, "OK\n");
    assert_eq!(proxy.stat("http.web.rq_direct_response"), 0);
    assert_eq!(post(admin, "/healthcheck/fail").body, "OK\n");
    let ready = get(admin, "/ready");
    assert_eq!((ready.status, ready.body.as_str()), (503, "DRAINING\n"));
    assert!(get(&proxy.listener("web"), "/").head.contains("connection: close"));
    assert_eq!(post(admin, "/healthcheck/ok").body, "OK\n");
    assert_eq!(get(admin, "/ready").status, 200);
}

#[test]
fn quitquitquit_exits_with_zero() {
    let mut proxy = Proxy::start(&bootstrap("127.0.0.1:9"), &[]).live();
    assert_eq!(post(&proxy.admin, "/quitquitquit").body, "OK\n");
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn sigterm_lets_a_request_in_flight_finish() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy =
        Proxy::start(&bootstrap(&upstream.local_addr().unwrap().to_string()), &["--drain-time-s", "60"]).live();
    let web = proxy.listener("web");
    let mut client = TcpStream::connect(&web).unwrap();
    client.write_all(b"GET /up HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut peer = upstream.accept().unwrap().0;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        peer.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    proxy.signal("TERM");
    eventually("the listener to close", || TcpStream::connect(&web).is_err().then_some(()));
    assert!(proxy.child.try_wait().unwrap().is_none(), "it waits for the request");
    peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").unwrap();
    let found = answer(&mut BufReader::new(client));
    assert_eq!((found.status, found.body.as_str()), (200, "done"));
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn a_second_sigterm_exits_at_once() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy = Proxy::start(&bootstrap(&upstream.local_addr().unwrap().to_string()), &[]).live();
    let web = proxy.listener("web");
    let mut client = TcpStream::connect(&web).unwrap();
    client.write_all(b"GET /up HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let _held = upstream.accept().unwrap().0;
    proxy.signal("TERM");
    eventually("the listener to close", || TcpStream::connect(&web).is_err().then_some(()));
    proxy.signal("TERM");
    assert_eq!(proxy.exit_code(), Some(0));
    assert!(proxy.logged().contains("exiting at once"));
}

/// Answers health checks as it is told, until the test ends.
fn health_endpoint(healthy: &Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let healthy = healthy.clone();
    thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            let _ = BufReader::new(socket.try_clone().unwrap()).read_line(&mut line);
            let status = if healthy.load(Ordering::Relaxed) { "200 OK" } else { "503 Gone" };
            let _ = write!(socket, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    port
}

#[test]
fn a_failed_check_ends_tcp_connections_where_that_is_asked_for() {
    for (flag, ends) in [("", false), ("    close_connections_on_host_health_failure: true\n", true)] {
        let healthy = Arc::new(AtomicBool::new(true));
        let check = health_endpoint(&healthy);
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut text = bootstrap(&upstream.local_addr().unwrap().to_string());
        text = text
            .replace("}}}}]}]}\n", &format!("}}}}, health_check_config: {{port_value: {check}}}}}}}]}}]}}\n{flag}"));
        text += "    health_checks: [{timeout: 5s, interval: 0.05s, no_traffic_interval: 0.05s, unhealthy_threshold: 1, healthy_threshold: 1, \
                 http_health_check: {path: /}}]\n";
        let proxy = Proxy::start(&text, &[]).live();
        let mut client = TcpStream::connect(proxy.listener("raw")).unwrap();
        client.set_read_timeout(Some(common::LIMIT)).unwrap();
        let mut peer = upstream.accept().unwrap().0;
        client.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        peer.read_exact(&mut bytes).unwrap();
        healthy.store(false, Ordering::Relaxed);
        eventually("the failed check", || (proxy.stat("cluster.up.membership_healthy") == 0).then_some(()));
        if ends {
            assert_eq!(client.read(&mut bytes).unwrap(), 0, "the connection ends");
        } else {
            peer.write_all(b"pong").unwrap();
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"pong");
        }
    }
}
