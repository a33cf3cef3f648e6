//! Zone ingress and zone egress between sidecars, fed by the control plane: this proxy and the real Envoy in each place. Traffic crosses zones
//! and leaves the mesh, and is allowed or refused on the way, whoever stands where.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

#[path = "../../cp/tests/dp/envoy.rs"]
mod envoy;
#[path = "../../cp/tests/dp/support.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use envoy::{application, until};
use serde_json::json;
use shika_cp::auth::ZoneScope;
use shika_cp::dp::DpConfig;
use shika_cp::resource::{Kind, ResourceKey};
use shika_cp::store::{Expect, Store};
use support::{Cp, free_port};
use tokio::process::{Child, Command};

/// The program under test.
const PROXY: &str = env!("CARGO_BIN_EXE_shika-proxy");
const HOUR: Duration = Duration::from_secs(3600);

/// Who plays a part.
#[derive(Clone, Copy, PartialEq)]
enum Player {
    Envoy,
    Shika,
}
use Player::{Envoy, Shika};

/// The proxies that a call from one zone to the other passes, in order.
struct Cast {
    client: Player,
    egress: Player,
    ingress: Player,
    server: Player,
}

/// A proxy of a zone.
struct Part<'a> {
    cp: &'a Cp,
    name: &'a str,
    proxy_type: &'a str,
    token: String,
    /// Port of its admin interface, which its resource names.
    admin: u16,
}

struct Stage {
    dir: tempfile::TempDir,
    envoy: Option<PathBuf>,
    running: Vec<Child>,
}

impl Stage {
    /// Starts a proxy. The port is that of its admin interface.
    async fn start(&mut self, player: Player, part: Part<'_>) -> u16 {
        let (child, admin) = match player {
            Envoy => {
                let request = json!({"mesh": "default", "name": part.name, "proxyType": part.proxy_type, "dataplaneToken": part.token,
                    "features": ["feature-reuse-port"]});
                let envoy = self.envoy.as_deref().expect("was looked for");
                envoy::start(part.cp, envoy, self.dir.path(), request).await
            }
            Shika => (shika(&part, self.dir.path()), part.admin),
        };
        self.running.push(child);
        admin
    }
}

fn shika(part: &Part<'_>, dir: &Path) -> Child {
    let work_dir = dir.join(part.name);
    std::fs::create_dir_all(&work_dir).unwrap();
    let (ca, token) = (work_dir.join("ca.pem"), work_dir.join("token"));
    std::fs::write(&ca, &part.cp.ca).unwrap();
    std::fs::write(&token, &part.token).unwrap();
    let log = std::fs::File::create(dir.join(format!("{}.log", part.name))).unwrap();
    let mut command = Command::new(PROXY);
    command.args(["run", "--concurrency", "1", "--readiness-port", "0", "--name", part.name]);
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

async fn zone(name: &str, dir: &Path) -> Cp {
    let config = DpConfig { zone: name.to_owned(), ..DpConfig::new(dir.join(name)) };
    Cp::start_with(Store::memory(), config).await
}

fn nothing_was_refused(cp: &Cp) {
    for (_, stream) in cp.stats.streams() {
        assert_eq!(stream.rejected, [0; 5], "{}: {:?}", stream.name, stream.last_rejection);
    }
}

const MESH: &str = "
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

/// The authority of the mesh, once it was made.
async fn copy_authority(from: &Store, to: &Store) {
    for half in ["key", "cert"] {
        let key = ResourceKey::new(Kind::Secret, "default", format!("default.ca-builtin-{half}-ca-1"));
        let found = async {
            loop {
                if let Some(found) = from.get(&key).await.unwrap() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let mut found = tokio::time::timeout(support::PATIENCE, found).await.unwrap();
        found.meta.version = 0;
        to.put(found, Expect::Any).await.unwrap();
    }
}

/// Ports of both zones.
struct Ports {
    inbound: u16,
    outbound: u16,
    client: u16,
    ingress: u16,
    egress: u16,
    outside: u16,
    admin: [u16; 4],
}

const AVAILABLE: &str =
    "[{mesh: default, instances: 1, tags: {kuma.io/service: server, kuma.io/protocol: http, kuma.io/zone: west}}]";

fn west(ports: &Ports, app: u16) -> String {
    let Ports { inbound, ingress, admin: [_, _, ingress_admin, server_admin], .. } = ports;
    format!(
        "
type: Dataplane
mesh: default
name: server-1
networking:
  address: 127.0.0.1
  admin: {{port: {server_admin}}}
  inbound: [{{port: {inbound}, servicePort: {app}, tags: {{kuma.io/service: server, kuma.io/protocol: http, kuma.io/zone: west}}}}]
---
type: ZoneIngress
name: west-ingress
zone: west
networking: {{address: 127.0.0.1, port: {ingress}, advertisedAddress: 127.0.0.1, advertisedPort: {ingress}, admin: {{port: {ingress_admin}}}}}
availableServices: {AVAILABLE}
"
    )
}

fn east(ports: &Ports, elsewhere: u16, available: &str) -> String {
    let Ports { outbound, client, ingress, egress, outside, admin: [client_admin, egress_admin, ..], .. } = ports;
    format!(
        "
type: Dataplane
mesh: default
name: web-1
networking:
  address: 127.0.0.1
  admin: {{port: {client_admin}}}
  inbound: [{{port: {client}, servicePort: 1, tags: {{kuma.io/service: web}}}}]
  outbound: [{{port: {outbound}, tags: {{kuma.io/service: server}}}}, {{port: {outside}, tags: {{kuma.io/service: elsewhere}}}}]
---
type: ZoneIngress
name: west-ingress
zone: west
networking: {{address: 10.0.0.1, port: 10001, advertisedAddress: 127.0.0.1, advertisedPort: {ingress}}}
availableServices: {available}
---
type: ZoneEgress
name: east-egress
zone: east
networking: {{address: 127.0.0.1, port: {egress}, admin: {{port: {egress_admin}}}}}
---
type: ExternalService
mesh: default
name: elsewhere
networking: {{address: 'localhost:{elsewhere}'}}
tags: {{kuma.io/service: elsewhere, kuma.io/protocol: http}}
"
    )
}

/// A call from the east to the west and one out of the mesh, by these proxies.
async fn play(cast: Cast) {
    let Cast { client, egress, ingress, server } = cast;
    let envoy = if [client, egress, ingress, server].contains(&Envoy) {
        let Some(envoy) = support::envoy() else { return };
        Some(envoy)
    } else {
        None
    };
    let mut stage = Stage { dir: tempfile::tempdir().unwrap(), envoy, running: Vec::new() };
    let (east_cp, west_cp) = (zone("east", stage.dir.path()).await, zone("west", stage.dir.path()).await);
    let [inbound, outbound, client_inbound, ingress_port, egress_port, outside] = std::array::from_fn(|_| free_port());
    let ports = Ports {
        inbound,
        outbound,
        client: client_inbound,
        ingress: ingress_port,
        egress: egress_port,
        outside,
        admin: std::array::from_fn(|_| free_port()),
    };
    let (app, elsewhere) = (application().await, application().await);

    // Both zones have the mesh and its authority, as from one global control plane.
    west_cp.apply("{type: Mesh, name: default}").await;
    east_cp.apply(MESH).await;
    copy_authority(&east_cp.store, &west_cp.store).await;
    west_cp.apply(MESH).await;
    west_cp.apply(&west(&ports, app)).await;
    east_cp.apply(&east(&ports, elsewhere, AVAILABLE)).await;

    let [client_admin, egress_admin, ingress_admin, server_admin] = ports.admin;
    let token = west_cp.token("server-1").await;
    let part = Part { cp: &west_cp, name: "server-1", proxy_type: "dataplane", token, admin: server_admin };
    stage.start(server, part).await;
    let token = west_cp.zone_token("west", &[ZoneScope::Ingress], HOUR).await;
    let part = Part { cp: &west_cp, name: "west-ingress", proxy_type: "ingress", token, admin: ingress_admin };
    let ingress_admin = stage.start(ingress, part).await;
    let token = east_cp.zone_token("east", &[ZoneScope::Egress], HOUR).await;
    let part = Part { cp: &east_cp, name: "east-egress", proxy_type: "egress", token, admin: egress_admin };
    let egress_admin = stage.start(egress, part).await;
    let token = east_cp.token("web-1").await;
    let part = Part { cp: &east_cp, name: "web-1", proxy_type: "dataplane", token, admin: client_admin };
    stage.start(client, part).await;

    let (_, echoed) = until(outbound, "/across", |status, _| status == 200).await;
    // Mutual TLS goes from sidecar to sidecar: nothing on the way knows more than the server name.
    assert!(echoed.contains("By=spiffe://default/server") && echoed.contains("URI=spiffe://default/web"), "{echoed}");
    for (admin, way) in [(egress_admin, "egress"), (ingress_admin, "ingress")] {
        let connections = "cluster.default_server.upstream_cx_total";
        let passed = |_: u16, stats: &str| stats.lines().any(|l| l.starts_with(connections) && !l.ends_with(" 0"));
        let (status, _) = until(admin, "/stats?filter=default_server.upstream_cx_total", passed).await;
        assert_eq!(status, 200, "{way}");
    }

    // Out of the mesh: the egress ends mutual TLS, and asks by the name of the host.
    let (_, echoed) = until(outside, "/outside", |status, _| status == 200).await;
    assert!(echoed.to_lowercase().contains("host: localhost"), "{echoed}");
    let permission = ResourceKey::new(Kind::MeshTrafficPermission, "default", "everyone");
    let stored = east_cp.store.get(&permission).await.unwrap().unwrap();
    east_cp.store.delete(&permission).await.unwrap();
    let (_, denied) = until(outside, "/outside", |status, _| status == 403).await;
    assert!(denied.contains("RBAC: access denied"), "{denied}");
    east_cp.store.put(stored.clone(), Expect::Absent).await.unwrap();
    until(outside, "/outside", |status, _| status == 200).await;

    // Into the other zone: the sidecar of the destination decides.
    west_cp.store.delete(&permission).await.unwrap();
    let (_, denied) = until(outbound, "/across", |status, _| status == 403).await;
    assert!(denied.contains("RBAC: access denied"), "{denied}");
    west_cp.store.put(stored, Expect::Absent).await.unwrap();
    until(outbound, "/across", |status, _| status == 200).await;

    // The other zone has no instance any more.
    east_cp.apply(&east(&ports, elsewhere, &AVAILABLE.replace("instances: 1", "instances: 0"))).await;
    until(outbound, "/across", |status, _| status == 503).await;
    east_cp.apply(&east(&ports, elsewhere, AVAILABLE)).await;
    until(outbound, "/across", |status, _| status == 200).await;

    for cp in [&east_cp, &west_cp] {
        nothing_was_refused(cp);
    }
    for mut child in stage.running {
        child.kill().await.unwrap();
    }
    east_cp.stop().await;
    west_cp.stop().await;
}

/// What the others are compared with.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_alone() {
    play(Cast { client: Envoy, egress: Envoy, ingress: Envoy, server: Envoy }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shika_alone() {
    play(Cast { client: Shika, egress: Shika, ingress: Shika, server: Shika }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zone_proxies_are_envoys() {
    play(Cast { client: Shika, egress: Envoy, ingress: Envoy, server: Shika }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_are_envoys() {
    play(Cast { client: Envoy, egress: Shika, ingress: Shika, server: Envoy }).await;
}

/// Either one has the other one before and behind it.
#[tokio::test(flavor = "multi_thread")]
async fn they_take_turns() {
    play(Cast { client: Shika, egress: Envoy, ingress: Shika, server: Envoy }).await;
    play(Cast { client: Envoy, egress: Shika, ingress: Envoy, server: Shika }).await;
}
