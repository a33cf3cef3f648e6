//! The whole process: start, kill, start again.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Reply, call, dataplane};

/// Longest that a start may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Process {
    pub child: Child,
    pub ports: Value,
}

impl Process {
    pub fn start(directory: &Path, arguments: &[&str]) -> Process {
        let ports = directory.join("ports.json");
        let _ = std::fs::remove_file(&ports);
        let mut child = command(directory).args(arguments).arg("--ports-file").arg(&ports).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(&ports) {
                return Process { child, ports: serde_json::from_str(&text).unwrap() };
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("shika-cp ended with {status}");
            }
            assert!(Instant::now() < deadline, "shika-cp does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn address(&self, port: &str) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(self.ports[port].as_u64().unwrap()).unwrap()))
    }

    pub async fn call(&self, method: Method, path: &str, body: &str) -> Reply {
        call(self.address("apiHttp"), method, path, &[], body).await
    }

    pub fn signal(&self, signal: &str) {
        // The shell's own: the program is missing on small systems.
        let status = Command::new("sh").args(["-c", &format!("kill {signal} {}", self.child.id())]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shika-cp"));
    command
        .arg("run")
        .args([
            "--api-http-interface",
            "127.0.0.1",
            "--dp-server-interface",
            "127.0.0.1",
            "--diagnostics-interface",
            "127.0.0.1",
            "--mads-interface",
            "127.0.0.1",
        ])
        .args(["--api-http-port", "0", "--dp-server-port", "0", "--diagnostics-port", "0", "--mads-port", "0"])
        .args(["--log-level", "warn"])
        .arg("--work-dir")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Asks the data-plane server for a bootstrap, over TLS that trusts only its authority.
async fn bootstrap(address: SocketAddr, ca: &str, body: &str) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    let length = body.len();
    let request = format!(
        "POST /bootstrap HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Some servers end the connection without TLS's own goodbye.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let cp = Process::start(directory.path(), &[]);
    let before = cp.call(Method::GET, "/", "").await.json();
    assert_eq!((before["product"].as_str(), before["version"].as_str()), (Some("Kuma"), Some("2.14.0")));
    // Trap 31: a zone, unless it is told to be something else. Unlike Kuma's, it keeps what it has in a file.
    let config = cp.call(Method::GET, "/config", "").await.json();
    assert_eq!((&config["mode"], &config["multizone"]["zone"]["name"]), (&json!("zone"), &json!("default")));
    assert_eq!(config["store"]["type"], "sqlite");
    let key = "/meshes/default/secrets/dataplane-token-signing-key-default-1";
    let signing_key = cp.call(Method::GET, key, "").await.json();
    for number in 0..20 {
        let name = format!("d-{number}");
        let body = dataplane("default", &name, "web").to_string();
        let reply = cp.call(Method::PUT, &format!("/meshes/default/dataplanes/{name}"), &body).await;
        assert_eq!(reply.status, StatusCode::CREATED);
    }
    cp.signal("-KILL");
    drop(cp);

    let mut cp = Process::start(directory.path(), &["--envoy-admin-unix-socket", "true"]);
    assert_eq!(cp.call(Method::GET, "/dataplanes", "").await.json()["total"], 20);
    assert_eq!(cp.call(Method::GET, key, "").await.json(), signing_key, "tokens stay valid");
    let after = cp.call(Method::GET, "/", "").await.json();
    assert_eq!(after["clusterId"], before["clusterId"]);
    assert_ne!(after["instanceId"], before["instanceId"]);
    assert_eq!(cp.call(Method::GET, "/config", "").await.json()["store"]["type"], "sqlite");

    let diagnostics = cp.address("diagnostics");
    for path in ["/healthy", "/ready"] {
        assert_eq!(call(diagnostics, Method::GET, path, &[], "").await.status, StatusCode::OK);
    }
    let metrics = call(diagnostics, Method::GET, "/metrics", &[], "").await.body;
    assert!(metrics.contains("resources_count{resource_type=\"Dataplane\"} 20\n"), "{metrics}");
    assert!(metrics.contains("# TYPE shika_"), "the data-plane server counts too: {metrics}");
    assert!(metrics.contains("shika_dataplanes{mesh=\"default\",status=\"Offline\"} 20\n"), "{metrics}");

    let ca = std::fs::read_to_string(cp.ports["dpServerCaFile"].as_str().unwrap()).unwrap();
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"), "{ca}");
    let reply = bootstrap(cp.address("dpServer"), &ca, "{}").await;
    assert!(reply.starts_with("HTTP/1.1 4"), "reached over TLS, and not answered without a Dataplane: {reply}");
    // Trap 23: the admin interface is on a socket where the control plane is told so.
    let token = json!({"name": "d-1", "mesh": "default", "tags": {}, "validFor": "1h"}).to_string();
    let token = cp.call(Method::POST, "/tokens/dataplane", &token).await.body;
    let request = json!({"mesh": "default", "name": "d-1", "dataplaneToken": token, "workdir": "/run/d"}).to_string();
    let reply = bootstrap(cp.address("dpServer"), &ca, &request).await;
    assert!(reply.contains("/run/d/kuma-envoy-admin.sock"), "{reply}");

    cp.signal("-TERM");
    assert!(cp.child.wait().unwrap().success(), "SIGTERM ends it in order");
}

#[tokio::test]
async fn a_deleted_default_mesh_and_a_skipped_one() {
    let directory = tempfile::tempdir().unwrap();
    let cp = Process::start(directory.path(), &["--store", "memory", "--skip-mesh-creation"]);
    assert_eq!(cp.call(Method::GET, "/meshes", "").await.json(), json!({"total": 0, "items": [], "next": null}));
    assert!(!directory.path().join("shika.db").exists(), "a store in memory leaves no file");
}

#[test]
fn what_is_not_there_yet_and_what_cannot_be_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--store", "postgres"], 1, "--store postgres is not available in this version; use --store sqlite"),
        (&["--mode", "global", "--kds-global-address", "grpc://x:1"], 1, "--kds-global-address is for a zone"),
        (&["--kds-global-address", "http://x:1"], 1, "unsupported scheme \"http\""),
        (&["--kds-global-address", "grpcs://x:1"], 1, "needs --kds-root-ca-file"),
        (&["--zone-name", "East"], 2, "use at most 63 lower case letters"),
        (&["--mode", "local"], 2, "invalid value 'local'"),
        (&["--store", "mongodb"], 2, "invalid value 'mongodb'"),
        (&["--dp-tls-cert", "/x.pem"], 2, "--dp-tls-key <FILE>"),
        (&["--store-path", "/proc/nowhere/x.db"], 1, "cannot open /proc/nowhere/x.db"),
    ];
    for (arguments, code, expected) in cases {
        let output = command(directory.path()).args(arguments).stderr(Stdio::piped()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
    let mut busy = Command::new(env!("CARGO_BIN_EXE_shika-cp"));
    busy.args(["run", "--store", "memory", "--api-http-interface", "127.0.0.1", "--api-http-port", &port])
        .arg("--work-dir")
        .arg(directory.path());
    let output = busy.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors.contains(&format!(
            "cannot listen on 127.0.0.1:{port} for the REST API; choose another port with --api-http-port"
        )),
        "{errors}"
    );
}
