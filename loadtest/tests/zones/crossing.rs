//! Calls from one zone to the other, and out of the mesh, by every combination of proxies.

use std::time::Duration;

use shika_cp::auth::ZoneScope;
use shika_cp::resource::{Kind, ResourceKey};
use shika_cp::store::{Expect, Store};

use super::envoy::{application, until};
use super::stage::Player::{self, Envoy, Shika};
use super::stage::{HOUR, MESH, Part, Stage, nothing_was_refused, zone};
use super::support::{self, free_port};

/// The proxies that a call from one zone to the other passes, in order.
struct Cast {
    client: Player,
    egress: Player,
    ingress: Player,
    server: Player,
}

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
    let mut stage = Stage::new(envoy);
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
    stage.end().await;
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
