//! The metrics endpoint of `shika-proxy run`: MeshMetric's and `Mesh.metrics`'.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
};

use common::sidecar::{Setup, Sidecar, documents};
use serde_json::json;
use shika_proto::type_url;

/// An application that answers every request with this, and keeps the heads.
struct Application {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

fn application(content_type: &'static str, body: &'static str) -> Application {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = heads.clone();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            kept.lock().unwrap().push(head.to_ascii_lowercase());
            let length = body.len();
            write!(socket, "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}")
                .unwrap();
        }
    });
    Application { address, heads }
}

const SOCKET: &str = "kuma-mh-backend-1-default.sock";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_metric_merges_filters_and_labels() {
    let first = application(
        "text/plain; version=0.0.4",
        "# TYPE app_requests_total counter\napp_requests_total{path=\"/\"} 5\n# TYPE shared gauge\nshared{app=\"first\"} 1\n",
    );
    let second = application(
        "application/openmetrics-text; version=1.0.0",
        "# TYPE shared gauge\nshared{app=\"second\"} 2\n# TYPE jobs counter\njobs_total 3 # {id=\"x\"} 1\n# EOF\n",
    );
    let html = application("text/html", "<html></html>");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut sidecar =
        Sidecar::start(Setup { configuration: json!({"networking": {"address": "127.0.0.1"}}), ..Setup::default() })
            .await;
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    let directory = sidecar.directory.path().to_str().unwrap().to_owned();
    let document = |profile: &str| {
        json!({"observability": {"metrics": {
            "applications": [
                {"name": "first", "path": "/m?x=1", "port": first.address.port(), "address": "127.0.0.1"},
                {"name": "second", "path": "/metrics", "port": second.address.port(), "address": ""},
                {"name": "html", "path": "/", "port": html.address.port(), "address": "127.0.0.1"},
                {"name": "gone", "path": "/", "port": gone.port(), "address": "127.0.0.1"},
            ],
            "backends": [{"type": "Prometheus", "name": null}],
            "sidecar": {"includeUnused": false, "profiles": {"appendProfiles": [{"name": profile}], "include": [{"type": "Exact", "match": "envoy_server_live"}]}},
            "extraLabels": {"mesh": "default", "kuma.workload": "backend"},
        }}})
        .to_string()
    };
    let all = document("All");
    let ack = stream
        .send(type_url::LISTENER, "1", vec![("_kuma:dynamicconfig", documents(&directory, &[("/meshmetric", &all)]))])
        .await;
    assert!(ack.error_detail.is_none(), "{ack:?}");

    let text = sidecar.unix(SOCKET, "GET", "/meshmetric", "accept: text/plain\r\n");
    assert!(text.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", text.head);
    let labels = "mesh=\"default\",kuma_workload=\"backend\"";
    for line in [
        format!("app_requests_total{{path=\"/\",{labels}}} 5"),
        format!("shared{{app=\"first\",{labels}}} 1"),
        format!("shared{{app=\"second\",{labels}}} 2"),
        format!("jobs_total{{{labels}}} 3"),
        format!("envoy_server_live{{{labels}}} 1"),
        "shika_application_metrics_up{application=\"first (127.0.0.1:PORT/m?x=1)\"} 1"
            .replace("PORT", &first.address.port().to_string()),
        format!("shika_application_metrics_up{{application=\"gone (127.0.0.1:{}/)\"}} 0", gone.port()),
    ] {
        assert!(text.body.lines().any(|known| known == line), "{line}\n{}", text.body);
    }
    assert_eq!(text.body.matches("# TYPE shared gauge\n").count(), 1);
    assert!(text.body.contains("\nenvoy_cluster_") && !text.body.contains("upstream_rq_time"));
    assert!(first.heads.lock().unwrap()[0].starts_with("get /m?x=1 http/1.1\r\n"));
    // Once for each outage.
    sidecar.unix(SOCKET, "GET", "/meshmetric", "");
    let log = sidecar.logged();
    assert_eq!(log.matches("no metrics of gone").count(), 1, "{log}");
    assert!(log.contains("no metrics of html") && log.contains("cannot be read: line 1"), "{log}");

    let open = sidecar.unix(
        SOCKET,
        "GET",
        "/meshmetric/x",
        "accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3\r\n",
    );
    assert!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n") && open.body.matches("# EOF").count() == 1);
    assert!(open.body.contains("# TYPE jobs counter\njobs_total{"), "{}", open.body);

    let none = document("None");
    let changed = documents(&directory, &[("/meshmetric", &none)]);
    stream.send(type_url::LISTENER, "2", vec![("_kuma:dynamicconfig", changed)]).await;
    let text = sidecar.unix(SOCKET, "GET", "/meshmetric", "").body;
    assert!(text.contains("envoy_server_live{") && !text.contains("envoy_cluster"), "{text}");
    assert!(text.contains("app_requests_total{"), "{text}");

    let bad = documents(&directory, &[("/meshmetric", "{}")]);
    let nack = stream.send(type_url::LISTENER, "3", vec![("_kuma:dynamicconfig", bad)]).await;
    assert!(nack.error_detail.expect("a refusal").message.contains("/meshmetric: observability.metrics"));
    assert!(sidecar.unix(SOCKET, "GET", "/meshmetric", "").body.contains("app_requests_total{"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bootstraps_applications_are_appended_as_they_are() {
    let app = application("application/openmetrics-text; version=1.0.0", "# TYPE a counter\na_total 1\n# EOF\n");
    let other = application("text/plain", "b 2\n\n\n");
    let entry = |name: &str, app: &Application| json!({"name": name, "address": "127.0.0.1", "port": app.address.port(), "path": "/metrics"});
    let configuration = json!({"metrics": {"aggregate": [entry("app", &app), entry("other", &other)]}});
    let mut sidecar = Sidecar::start(Setup { configuration, ..Setup::default() }).await;
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    let headers = "accept: application/openmetrics-text\r\nuser-agent: Prometheus/3\r\nx-prometheus-scrape-timeout-seconds: 5\r\ncookie: secret\r\n";
    let answer = sidecar.unix(SOCKET, "GET", "/metrics?filter=server.live", headers);
    // The best of what the applications answer in.
    assert!(answer.head.contains("application/openmetrics-text; version=1.0.0"), "{}", answer.head);
    assert!(answer.body.contains("# TYPE envoy_server_live gauge\nenvoy_server_live 1\n"), "{}", answer.body);
    assert!(!answer.body.contains("envoy_cluster"), "the caller's query is the admin interface's: {}", answer.body);
    assert!(answer.body.ends_with("# TYPE a counter\na_total 1\nb 2\n# EOF\n"), "{}", answer.body);
    let head = app.heads.lock().unwrap()[0].clone();
    assert!(head.starts_with("get /metrics http/1.1\r\n"), "{head}");
    assert!(
        head.contains("user-agent: prometheus/3") && head.contains("x-prometheus-scrape-timeout-seconds: 5"),
        "{head}"
    );
    assert!(!head.contains("cookie"), "{head}");
}

/// As Kuma's MeshMetric leads Prometheus there: a listener, a route that rewrites the path, a cluster whose endpoint is the socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_comes_through_a_listener() {
    use shika_proto::{
        any,
        envoy::config::{cluster::v3::Cluster, listener::v3::Listener},
        json,
    };
    let mut sidecar = Sidecar::start(Setup::default()).await;
    let mut stream = sidecar.session().await;
    let cluster: Cluster = json::from_yaml(&format!(
        "{{name: '_kuma:metrics:hijacker', alt_stat_name: _kuma_metrics_hijacker, type: STATIC, connect_timeout: 5s, load_assignment: {{cluster_name: '_kuma:metrics:hijacker', \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {}/{SOCKET}}}}}}}}}]}}]}}}}",
        sidecar.directory.path().display()
    ))
    .unwrap();
    let listener: Listener = json::from_yaml(
        "{name: '_kuma:metrics:prometheus:default-backend', address: {socket_address: {address: 127.0.0.1, port_value: 0}}, traffic_direction: INBOUND, \
         filter_chains: [{filters: [{name: hcm, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: _kuma_metrics_prometheus_default-backend, route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /metrics}, \
         route: {cluster: '_kuma:metrics:hijacker', prefix_rewrite: /meshmetric}}]}]}, \
         http_filters: [{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}",
    )
    .unwrap();
    let ack = stream.send(type_url::CLUSTER, "1", vec![("_kuma:metrics:hijacker", any::pack(&cluster))]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    let name = "_kuma:metrics:prometheus:default-backend";
    let ack = stream.send(type_url::LISTENER, "1", vec![(name, any::pack(&listener))]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    let answer = common::get(&sidecar.listener(name), "/metrics");
    assert_eq!(answer.status, 200);
    // The profile Basic, which leaves out what is the proxy's own business.
    assert!(answer.body.contains("envoy_server_live 1\n") && !answer.body.contains("ads_cluster"), "{}", answer.body);
}
