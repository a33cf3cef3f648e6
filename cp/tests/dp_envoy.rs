//! The real Envoy as sidecar on both sides: it takes what the data-plane server sends, in both variants of ADS, and enforces it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

#[path = "dp/envoy.rs"]
mod envoy;
#[path = "dp/support.rs"]
mod support;

use envoy::{application, get, start_envoy, until};
use shika_cp::resource::{Kind, ResourceKey};
use shika_cp::store::Store;
use shika_cp::xds::ResourceType;
use support::{Cp, free_port, two_services};

#[tokio::test(flavor = "multi_thread")]
async fn two_envoys_call_each_other_and_obey_permissions() {
    let Some(envoy) = support::envoy() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    let (inbound, outbound, client_inbound) = (free_port(), free_port(), free_port());
    let app = application().await;
    cp.apply(&two_services(inbound, app, outbound, client_inbound)).await;

    let (mut server, server_admin) = start_envoy(&cp, &envoy, dir.path(), "server-1", false).await;
    let (mut client, client_admin) = start_envoy(&cp, &envoy, dir.path(), "web-1", true).await;
    for admin in [server_admin, client_admin] {
        until(admin, "/ready", |status, _| status == 200).await;
    }
    let listener = format!("inbound:127.0.0.1:{inbound}");
    until(server_admin, "/listeners", |_, body| body.contains(&listener)).await;
    let listener = format!("outbound:127.0.0.1:{outbound}");
    until(client_admin, "/listeners", |_, body| body.contains(&listener)).await;

    let (_, echoed) = until(outbound, "/hello", |status, _| status == 200).await;
    assert!(echoed.starts_with("GET /hello HTTP/1.1"), "{echoed}");
    let xfcc = "x-forwarded-client-cert: By=spiffe://default/server";
    assert!(echoed.contains(xfcc) && echoed.contains("URI=spiffe://default/web"), "{echoed}");

    // The permission is taken away: the same call is refused, by the server's sidecar.
    let permission = ResourceKey::new(Kind::MeshTrafficPermission, "default", "web-to-server");
    let stored = cp.store.get(&permission).await.unwrap().unwrap();
    cp.store.delete(&permission).await.unwrap();
    let (_, body) = until(outbound, "/hello", |status, _| status == 403).await;
    assert!(body.contains("RBAC: access denied"), "{body}");
    let (_, dump) = get(server_admin, "/config_dump").await.unwrap();
    assert!(dump.contains("no MeshTrafficPermission of mesh default selects this inbound"), "the denial is explained");
    cp.store.put(stored, shika_cp::store::Expect::Absent).await.unwrap();
    until(outbound, "/hello", |status, _| status == 200).await;

    // Mutual TLS is switched off and on again: cluster and listener change kind, calls go on.
    cp.apply("{type: Mesh, name: default}").await;
    let plain = |status: u16, body: &str| status == 200 && !body.contains("x-forwarded-client-cert");
    until(outbound, "/plain", plain).await;
    cp.apply("{type: Mesh, name: default, mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}}")
        .await;
    until(outbound, "/tls", |status, body| status == 200 && body.contains("x-forwarded-client-cert")).await;

    let mut variants = Vec::new();
    for (_, stream) in cp.stats.streams() {
        assert_eq!(stream.rejected, [0; 5], "{}: {:?}", stream.name, stream.last_rejection);
        assert!(stream.resources_sent(ResourceType::Listener) > 0, "{stream:?}");
        variants.push(stream.delta);
    }
    variants.sort_unstable();
    assert_eq!(variants, [false, true]);
    for child in [&mut server, &mut client] {
        child.kill().await.unwrap();
    }
    cp.stop().await;
}
