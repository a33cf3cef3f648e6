//! Control planes of zones, and proxies for them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use shika_cp::dp::DpConfig;
use shika_cp::store::Store;
use tokio::process::{Child, Command};

use super::envoy;
use super::support::Cp;

/// The program under test, built beside this test.
fn proxy() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_shika-loadtest")).with_file_name("shika-proxy");
    assert!(path.is_file(), "{} is not there; build it first: cargo build --workspace --bins", path.display());
    path
}

/// How long tokens are valid.
pub const HOUR: Duration = Duration::from_secs(3600);

/// Who plays a part.
#[derive(Clone, Copy, PartialEq)]
pub enum Player {
    Envoy,
    Shika,
}

/// A proxy of a zone.
pub struct Part<'a> {
    pub cp: &'a Cp,
    pub name: &'a str,
    pub proxy_type: &'a str,
    pub token: String,
    /// Port of its admin interface, which its resource names.
    pub admin: u16,
}

pub struct Stage {
    pub dir: tempfile::TempDir,
    pub envoy: Option<PathBuf>,
    pub running: Vec<Child>,
}

impl Stage {
    /// With that Envoy, if one is needed.
    pub fn new(envoy: Option<PathBuf>) -> Stage {
        Stage { dir: tempfile::tempdir().unwrap(), envoy, running: Vec::new() }
    }

    /// What a proxy has logged.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap()
    }

    /// Ends every proxy.
    pub async fn end(&mut self) {
        for mut child in self.running.drain(..) {
            child.kill().await.unwrap();
        }
    }

    /// Starts a proxy. The port is that of its admin interface.
    pub async fn start(&mut self, player: Player, part: Part<'_>) -> u16 {
        let (child, admin) = match player {
            Player::Envoy => {
                let request = json!({"mesh": "default", "name": part.name, "proxyType": part.proxy_type, "dataplaneToken": part.token,
                    "features": ["feature-reuse-port"]});
                let envoy = self.envoy.as_deref().expect("was looked for");
                envoy::start(part.cp, envoy, self.dir.path(), request).await
            }
            Player::Shika => (shika(&part, self.dir.path()), part.admin),
        };
        self.running.push(child);
        admin
    }
}

pub fn shika(part: &Part<'_>, dir: &Path) -> Child {
    let work_dir = dir.join(part.name);
    std::fs::create_dir_all(&work_dir).unwrap();
    let (ca, token) = (work_dir.join("ca.pem"), work_dir.join("token"));
    std::fs::write(&ca, &part.cp.ca).unwrap();
    std::fs::write(&token, &part.token).unwrap();
    let log = std::fs::File::create(dir.join(format!("{}.log", part.name))).unwrap();
    let mut command = Command::new(proxy());
    command.args(["run", "--concurrency", "1", "--readiness-port", "0", "--log-level", "debug", "--name", part.name]);
    if part.proxy_type == "dataplane" {
        command.args(["--mesh", "default"]);
    }
    command
        .args(["--proxy-type", part.proxy_type, "--cp-address", &format!("https://127.0.0.1:{}", part.cp.port)])
        .arg("--ca-cert-file")
        .arg(&ca)
        .arg("--dataplane-token-file")
        .arg(&token)
        .arg("--work-dir")
        .arg(&work_dir)
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

pub async fn zone(name: &str, dir: &Path) -> Cp {
    let config = DpConfig { zone: name.to_owned(), ..DpConfig::new(dir.join(name)) };
    Cp::start_with(Store::memory(), config).await
}

pub fn nothing_was_refused(cp: &Cp) {
    for (_, stream) in cp.stats.streams() {
        assert_eq!(stream.rejected, [0; 5], "{}: {:?}", stream.name, stream.last_rejection);
    }
}

pub const MESH: &str = "
type: Mesh
name: default
mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}
routing: {zoneEgress: true}
---
type: MeshTrafficPermission
mesh: default
name: everyone
spec: {from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]}
";
