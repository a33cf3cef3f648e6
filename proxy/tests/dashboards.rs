//! The dashboards in docs/grafana ask for metrics that the running proxy has.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use common::{Proxy, cluster, get, http_listener};

/// Everything in a text that looks like a metric of the proxy, histograms by their base name.
fn metrics(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("envoy_"))
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

/// An upstream that answers one request with 204.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    });
    address
}

/// Trap 25.
#[test]
fn metrics_of_the_dashboards_exist() {
    let listener = http_listener(
        "web",
        "127.0.0.1:0",
        "route_config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: web}}]}]}",
    );
    let rbac = "          http_filters:
          - name: rbac
            typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {policies: {all: {permissions: [{any: true}], principals: [{any: true}]}}}}
";
    let network = "    - filters:
      - name: rbac
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: web., rules: {policies: {all: {permissions: [{any: true}], principals: [{any: true}]}}}}
";
    let listener = listener.replace("          http_filters:\n", rbac).replace("    - filters:\n", network);
    let bootstrap =
        format!("static_resources:\n  listeners:{listener}\n  clusters:{}", cluster("web", &upstream().to_string()));
    let proxy = Proxy::start(&bootstrap, &[]).live();
    // A response, so that there are classes of responses and their times.
    assert_eq!(get(&proxy.listener("web"), "/").status, 204);
    // Counted by the worker, which may be a moment behind its answer.
    let mut text = String::new();
    let until = Instant::now() + Duration::from_secs(10);
    while !text.contains("# TYPE envoy_cluster_upstream_rq_time ") && Instant::now() < until {
        text = get(&proxy.admin, "/stats/prometheus").body;
    }
    let exported: BTreeSet<String> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect();
    // Labels, not metrics.
    let labels = ["envoy_cluster_name", "envoy_response_code_class"];
    for dashboard in ["shika-proxy.json", "shika-mesh.json"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana").join(dashboard);
        let text = fs::read_to_string(path).unwrap();
        let _: serde_json::Value = serde_json::from_str(&text).unwrap();
        let asked = metrics(&text);
        assert!(asked.len() > 10, "{dashboard}: {asked:?}");
        let missing: Vec<_> =
            asked.iter().filter(|name| !exported.contains(*name) && !labels.contains(&name.as_str())).collect();
        assert!(missing.is_empty(), "{dashboard} asks for {missing:?}");
    }
}
