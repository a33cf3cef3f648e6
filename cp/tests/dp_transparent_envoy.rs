//! The real Envoy with redirected traffic: it takes what the data-plane server sends, whichever way it answers DNS and says what its host
//! redirects.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

#[path = "dp/envoy.rs"]
mod envoy;
#[path = "dp/support.rs"]
mod support;

use envoy::{start, until};
use serde_json::json;
use shika_cp::store::Store;
use support::{Cp, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn a_transparent_sidecar_takes_everything() {
    let Some(envoy) = support::envoy() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    cp.apply(
        "
type: Mesh
name: default
mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}
meshServices: {mode: Everywhere}
",
    )
    .await;
    let mut children = Vec::new();
    // One proxy answers DNS itself, the other one has CoreDNS in front of it; one announces what its host does, the Dataplane of the other
    // one does.
    let variants = [("embedded", true), ("filter", false)];
    for (name, embedded) in variants {
        let [inbound, to_inbound, to_outbound, dns, readiness] = std::array::from_fn(|_| free_port());
        let declared = format!(
            "transparentProxying: {{redirectPortInbound: {to_inbound}, redirectPortOutbound: {to_outbound}, directAccessServices: ['*']}}"
        );
        let settings = if embedded { "transparentProxying: {directAccessServices: ['*']}" } else { declared.as_str() };
        cp.apply(&format!(
            "
type: Dataplane
mesh: default
name: {name}
networking:
  address: 127.0.0.2
  inbound: [{{port: {inbound}, serviceAddress: 127.0.0.1, tags: {{kuma.io/service: {name}, kuma.io/protocol: http}}}}]
  {settings}
"
        ))
        .await;
        let mut features = vec!["feature-strict-inbound-ports", "feature-reuse-port"];
        let mut request = json!({
            "mesh": "default", "name": name, "dataplaneToken": cp.token(name).await, "dnsPort": dns, "readinessPort": readiness,
            "ipv6Enabled": true,
        });
        if embedded {
            features.extend([
                "feature-embedded-dns",
                "feature-transparent-proxy-in-dataplane-metadata",
                "feature-delta-grpc",
            ]);
            request["dataplaneConfig"] = json!({"ipFamilyMode": "dualstack", "redirect": {
                "inbound": {"enabled": true, "port": to_inbound}, "outbound": {"enabled": true, "port": to_outbound},
            }});
        }
        request["features"] = json!(features);
        let (child, admin) = start(&cp, &envoy, dir.path(), request).await;
        children.push(child);
        let names = if embedded { "_kuma:dynamicconfig" } else { "kuma:dns" };
        for listener in [
            "outbound:passthrough:ipv4",
            "outbound:passthrough:ipv6",
            "inbound:passthrough:ipv4",
            "inbound:passthrough:ipv6",
            "kuma:envoy:admin",
            names,
        ] {
            // Listeners without a socket are not in this list, those with one are there once they work.
            until(admin, "/listeners", |_, body| body.contains(listener)).await;
        }
        let inbound = format!("inbound:127.0.0.2:{inbound}");
        until(admin, "/config_dump?resource=dynamic_listeners", |_, body| body.contains(&inbound)).await;
    }
    for (_, stream) in cp.stats.streams() {
        assert_eq!(stream.rejected, [0; 5], "{}: {:?}", stream.name, stream.last_rejection);
    }
    for mut child in children {
        child.kill().await.unwrap();
    }
    cp.stop().await;
}
