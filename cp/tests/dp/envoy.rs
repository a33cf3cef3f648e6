//! The real Envoy, fed by a data-plane server.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::support::{Cp, PATIENCE, free_port};

/// Status and body of `GET path`; `None` if the connection fails or is closed without an answer.
pub async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split_whitespace().nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

/// Asks until the answer is what is waited for; the last answer if it never is.
pub async fn until(port: u16, path: &str, wanted: impl Fn(u16, &str) -> bool) -> (u16, String) {
    let mut last = None;
    let search = async {
        loop {
            if let Some((status, body)) = get(port, path).await {
                if wanted(status, &body) {
                    return (status, body);
                }
                last = Some((status, body));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, search).await;
    found.unwrap_or_else(|_| panic!("{path} on {port} is still {last:?}"))
}

/// An application that answers every request with its headers.
pub async fn application() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut chunk = [0; 4096];
                while let Ok(read @ 1..) = socket.read(&mut chunk).await {
                    request.extend_from_slice(&chunk[..read]);
                    if request.ends_with(b"\r\n\r\n") {
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.len());
                        socket.write_all(head.as_bytes()).await.unwrap();
                        socket.write_all(&request).await.unwrap();
                        request.clear();
                    }
                }
            });
        }
    });
    port
}

/// Starts Envoy as the sidecar `name`.
pub async fn start_envoy(cp: &Cp, envoy: &Path, dir: &Path, name: &str, delta: bool) -> (Child, u16) {
    let features = if delta { json!(["feature-delta-grpc"]) } else { json!([]) };
    let request =
        json!({"mesh": "default", "name": name, "dataplaneToken": cp.token(name).await, "features": features});
    start(cp, envoy, dir, request).await
}

/// Starts Envoy with the bootstrap that this request gets.
pub async fn start(cp: &Cp, envoy: &Path, dir: &Path, mut request: Value) -> (Child, u16) {
    let admin = free_port();
    let name = request["name"].as_str().unwrap().to_owned();
    let work_dir = dir.join(&name);
    std::fs::create_dir_all(&work_dir).unwrap();
    request["workdir"] = json!(work_dir);
    request["version"] = json!({"envoy": {"version": "1.40.0"}});
    let (status, _, yaml) = cp.bootstrap("*/*", &request.to_string()).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&yaml));
    let yaml = String::from_utf8(yaml).unwrap();
    let mut bootstrap: Value = serde_yaml_ng::from_str(&yaml).unwrap();
    // Two Envoys on one machine need two admin ports.
    bootstrap["admin"]["address"]["socketAddress"]["portValue"] = json!(admin);
    let file = dir.join(format!("{name}.json"));
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    let log = std::fs::File::create(dir.join(format!("{name}.log"))).unwrap();
    let child = Command::new(envoy)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warning", "-c"])
        .arg(&file)
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (child, admin)
}
