//! Monitoring assignments, asked for as Prometheus does: `kuma_sd_configs` sends a DiscoveryRequest as JSON, keeps version and nonce of the
//! answer and sends them the next time.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::process::Process;
use crate::support::{Reply, call, dataplane};

const TYPE: &str = "type.googleapis.com/kuma.observability.v1.MonitoringAssignment";

/// One Prometheus.
struct Prometheus<'a> {
    cp: &'a Process,
    id: &'static str,
    version: String,
    nonce: String,
}

impl<'a> Prometheus<'a> {
    fn new(cp: &'a Process, id: &'static str) -> Self {
        Prometheus { cp, id, version: String::new(), nonce: String::new() }
    }

    /// Names and addresses of the targets, or `None` when nothing changed.
    async fn fetch(&mut self, timeout: &str) -> Option<Vec<String>> {
        let request = json!({
            "version_info": self.version, "node": {"id": self.id}, "type_url": TYPE, "response_nonce": self.nonce,
        });
        let path = format!("/v3/discovery:monitoringassignments?fetch-timeout={timeout}");
        let headers = [("content-type", "application/json"), ("accept", "application/json")];
        let reply = call(self.cp.address("mads"), Method::POST, &path, &headers, &request.to_string()).await;
        if reply.status == StatusCode::NOT_MODIFIED {
            assert_eq!(reply.body, "");
            return None;
        }
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        let answer = reply.json();
        assert_eq!(answer["type_url"], TYPE);
        let text = |field: &str| answer[field].as_str().unwrap().to_owned();
        (self.version, self.nonce) = (text("version_info"), text("nonce"));
        let target = |assignment: &Value| {
            assert_eq!(assignment["@type"], TYPE);
            let target = &assignment["targets"][0];
            let part = |field: &str| target[field].as_str().unwrap().to_owned();
            format!("{} {}://{}{}", part("name"), part("scheme"), part("address"), part("metrics_path"))
        };
        Some(answer["resources"].as_array().unwrap().iter().map(target).collect())
    }
}

async fn put(cp: &Process, path: &str, body: Value) {
    let reply = cp.call(Method::PUT, path, &body.to_string()).await;
    assert!(reply.status.is_success(), "{path}: {}", reply.body);
}

fn policy(backends: &Value) -> Value {
    json!({"type": "MeshMetric", "mesh": "default", "name": "metrics", "spec": {"default": {"backends": backends}}})
}

#[tokio::test]
async fn a_prometheus_is_told_of_every_change_once() {
    let directory = tempfile::tempdir().unwrap();
    let cp = Process::start(directory.path(), &[]);
    let mut prometheus = Prometheus::new(&cp, "prometheus");
    assert_eq!(prometheus.fetch("0s").await, Some(vec![]), "no targets, and a version of it");
    assert_eq!(prometheus.fetch("0s").await, None);
    assert_eq!(prometheus.fetch("300ms").await, None, "waited for nothing");

    let backend = json!([{"type": "Prometheus", "prometheus": {"port": 5670, "path": "/metrics"}}]);
    put(&cp, "/meshes/default/meshmetrics/metrics", policy(&backend)).await;
    // Waits while the change comes.
    let (told, ()) = tokio::join!(
        prometheus.fetch("60s"),
        put(&cp, "/meshes/default/dataplanes/web-1", dataplane("default", "web-1", "web"))
    );
    assert_eq!(told, Some(vec!["web-1 http://10.0.0.1:5670/metrics".to_owned()]));
    assert_eq!(prometheus.fetch("0s").await, None);

    // After a restart the same targets are no change, and nobody is told in between that there are none.
    let (version, nonce) = (prometheus.version, prometheus.nonce);
    cp.signal("-KILL");
    drop(cp);
    let cp = Process::start(directory.path(), &[]);
    let mut prometheus = Prometheus { cp: &cp, id: "prometheus", version, nonce };
    assert_eq!(prometheus.fetch("0s").await, None);
}

#[tokio::test]
async fn each_client_has_its_backend() {
    let directory = tempfile::tempdir().unwrap();
    let cp = Process::start(directory.path(), &["--store", "memory"]);
    put(&cp, "/meshes/default/dataplanes/web-1", dataplane("default", "web-1", "web")).await;
    let backends = json!([
        {"type": "Prometheus", "prometheus": {"clientId": "east", "port": 1111}},
        {"type": "Prometheus", "prometheus": {"port": 2222, "tls": {"mode": "ProvidedTLS"}}},
    ]);
    put(&cp, "/meshes/default/meshmetrics/metrics", policy(&backends)).await;
    for (client, expected) in
        [("east", "web-1 http://10.0.0.1:1111/metrics"), ("who", "web-1 https://10.0.0.1:2222/metrics")]
    {
        let mut prometheus = Prometheus::new(&cp, client);
        // The first answer may be from before the policy was noticed.
        let mut told = prometheus.fetch("0s").await;
        if told == Some(vec![]) {
            told = prometheus.fetch("60s").await;
        }
        assert_eq!(told, Some(vec![expected.to_owned()]), "{client}");
    }
}

/// `metrics` of a mesh: targets, and no note that it is without effect.
#[tokio::test]
async fn a_mesh_with_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let cp = Process::start(directory.path(), &["--store", "memory"]);
    let mesh = json!({"type": "Mesh", "name": "default", "metrics": {
        "enabledBackend": "p", "backends": [{"name": "p", "type": "prometheus", "conf": {"skipMTLS": true}}],
    }});
    let reply = cp.call(Method::PUT, "/meshes/default", &mesh.to_string()).await;
    assert!(reply.status.is_success() && !reply.body.contains("without effect"), "{}", reply.body);
    let mut prometheus = Prometheus::new(&cp, "prometheus");
    assert_eq!(prometheus.fetch("0s").await, Some(vec![]));
    let (told, ()) = tokio::join!(
        prometheus.fetch("60s"),
        put(&cp, "/meshes/default/dataplanes/web-1", dataplane("default", "web-1", "web"))
    );
    assert_eq!(told, Some(vec!["web-1 http://10.0.0.1:5670/metrics".to_owned()]));
}

#[tokio::test]
async fn what_is_not_understood_is_refused_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let cp = Process::start(directory.path(), &["--store", "memory"]);
    let ask = async |method: Method, path: &str, body: &str| -> Reply {
        tokio::time::timeout(Duration::from_secs(60), call(cp.address("mads"), method, path, &[], body)).await.unwrap()
    };
    let path = "/v3/discovery:monitoringassignments";
    for (method, path, body, status, title) in [
        (Method::POST, path, "{", 400, "Could not parse request body"),
        (Method::POST, path, r#"{"node": 1}"#, 400, "Could not parse request body"),
        (
            Method::POST,
            "/v3/discovery:monitoringassignments?fetch-timeout=soon",
            "{}",
            400,
            "Could not parse fetch-timeout",
        ),
        (Method::GET, path, "", 405, "Method not Allowed"),
        (Method::POST, "/v2/discovery:monitoringassignments", "{}", 404, "there is only POST"),
    ] {
        let reply = ask(method, path, body).await;
        assert_eq!(reply.status.as_u16(), status, "{path} {body}: {}", reply.body);
        assert!(reply.json()["title"].as_str().unwrap().starts_with(title), "{}", reply.body);
    }
    // Without the server no port is taken.
    drop(cp);
    let cp = Process::start(directory.path(), &["--store", "memory", "--mads-enabled=false"]);
    assert!(cp.ports["mads"].is_null());
}
