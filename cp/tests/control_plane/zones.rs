//! A global control plane and those of two zones, as processes.

use std::path::Path;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::process::{PATIENCE, Process};
use crate::support::dataplane;

/// Asks until the answer is as wanted.
async fn until(cp: &Process, path: &str, wanted: impl Fn(StatusCode, &Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = cp.call(Method::GET, path, "").await;
        let body = serde_json::from_str(&reply.body).unwrap_or_default();
        if wanted(reply.status, &body) {
            return body;
        }
        assert!(Instant::now() < deadline, "{path} stays {reply:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_there(cp: &Process, path: &str) -> Value {
    until(cp, path, |status, _| status == StatusCode::OK).await
}

async fn until_gone(cp: &Process, path: &str) {
    until(cp, path, |status, _| status == StatusCode::NOT_FOUND).await;
}

async fn put(cp: &Process, path: &str, body: &Value) {
    let reply = cp.call(Method::PUT, path, &body.to_string()).await;
    assert!(reply.status.is_success(), "{reply:?}");
}

fn global(directory: &Path, port: u16) -> Process {
    let port = port.to_string();
    let arguments = ["--mode", "global", "--kds-auth", "cpToken", "--kds-interface", "127.0.0.1", "--kds-port", &port];
    Process::start(directory, &arguments)
}

/// Starts the control plane of a zone, with a token from `token_of`.
async fn zone(directory: &Path, name: &str, global: &Process) -> Process {
    let body = json!({"zone": name, "scope": ["cp"], "validFor": "1h"});
    let token = global.call(Method::POST, "/tokens/zone", &body.to_string()).await;
    assert_eq!(token.status, StatusCode::OK, "{token:?}");
    let token_file = directory.join("token");
    std::fs::write(&token_file, &token.body).unwrap();
    let ca = global.ports["kdsCaFile"].as_str().unwrap();
    let address = format!("grpcs://localhost:{}", global.ports["kds"]);
    let arguments = [
        "--zone-name",
        name,
        "--kds-global-address",
        &address,
        "--kds-root-ca-file",
        ca,
        "--kds-token-file",
        token_file.to_str().unwrap(),
    ];
    Process::start(directory, &arguments)
}

#[tokio::test]
async fn zones_and_global_keep_each_other_up_to_date() {
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [for_global, for_east, for_west] = directories.each_ref().map(tempfile::TempDir::path);
    let mut cp = global(for_global, 0);
    let east = zone(for_east, "east", &cp).await;
    let west = zone(for_west, "west", &cp).await;

    // Down: the mesh with its keys and its authority, policies under names of their own, the public half of the zone key.
    put(
        &cp,
        "/meshes/default",
        &json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Everywhere"},
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]}}),
    )
    .await;
    let policy = json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "default-timeout-global",
        "spec": {"from": [{"targetRef": {"kind": "Mesh"}, "default": {"action": "Allow"}}]}});
    put(&cp, "/meshes/default/meshtrafficpermissions/default-timeout-global", &policy).await;
    for zone in [&east, &west] {
        let mesh = until(zone, "/meshes/default", |_, mesh| mesh["mtls"]["enabledBackend"] == "ca").await;
        assert_eq!(mesh["labels"], json!({"kuma.io/origin": "global"}));
        let name = "default-timeout-global-54dbd4c66zwbcf9c";
        let found = until_there(zone, &format!("/meshes/default/meshtrafficpermissions/{name}")).await;
        assert_eq!(
            found["labels"],
            json!({"kuma.io/display-name": "default-timeout-global", "kuma.io/origin": "global"})
        );
        for secret in
            ["dataplane-token-signing-key-default-1", "default.ca-builtin-cert-ca", "default.ca-builtin-key-ca"]
        {
            let theirs = until_there(&cp, &format!("/meshes/default/secrets/{secret}")).await;
            let ours = until_there(zone, &format!("/meshes/default/secrets/{secret}")).await;
            assert_eq!(theirs["data"], ours["data"], "{secret}");
        }
        until_there(zone, "/global-secrets/zone-token-signing-public-key-1").await;
        until_gone(zone, "/global-secrets/zone-token-signing-key-1").await;
        // Trap 32: default policies come with the mesh; the zone makes none of its own.
        for (kind, count) in [("meshtimeouts", 2), ("meshcircuitbreakers", 1), ("meshretries", 1)] {
            let list = until(zone, &format!("/meshes/default/{kind}"), |_, list| list["total"] == count).await;
            for item in list["items"].as_array().unwrap() {
                let display_name = item["labels"]["kuma.io/display-name"].as_str().unwrap();
                assert!(display_name.ends_with("-all-default"), "{item}");
                assert_eq!(item["labels"]["kuma.io/origin"], "global", "{item}");
            }
        }
        until(zone, "/hostnamegenerators?name=synced-universal-mesh-service", |_, list| list["total"] == 1).await;
    }

    // Up: what a zone has, under the zone's name, and sideways: its services.
    put(&east, "/meshes/default/dataplanes/web-1", &dataplane("default", "web-1", "web")).await;
    let ingress = json!({"type": "ZoneIngress", "name": "zi", "zone": "east", "networking": {"address": "10.0.0.1",
        "port": 10001, "advertisedAddress": "192.0.2.1", "advertisedPort": 20001}});
    put(&east, "/zoneingresses/zi", &ingress).await;
    let list = until(&cp, "/dataplanes?filter[labels.kuma.io/zone]=east", |_, list| list["total"] == 1).await;
    let found = &list["items"][0];
    assert_eq!(found["labels"]["kuma.io/display-name"], "web-1");
    assert_eq!(found["kri"], "kri_dp_default_east__web-1_");
    assert_eq!(found["networking"]["inbound"][0]["tags"]["kuma.io/zone"], "east");
    let of_kri = until_there(&cp, "/_kri/kri_dp_default_east__web-1_").await;
    assert_eq!(of_kri["name"], found["name"]);
    let services = until(&west, "/meshes/default/meshservices", |_, list| {
        let names = &list["items"][0]["status"]["addresses"];
        list["total"] == 1 && names.as_array().is_some_and(|names| !names.is_empty())
    })
    .await;
    let service = &services["items"][0];
    assert_eq!(service["labels"]["kuma.io/zone"], "east");
    assert_eq!(service["labels"]["kuma.io/origin"], "global");
    assert_eq!(service["spec"]["state"], "Available");
    assert_eq!(service["status"]["addresses"][0]["hostname"], "web.svc.east.mesh.local");
    assert_eq!(service["status"]["vips"], json!([{"ip": "241.0.0.0"}]));
    let ingresses = until(&west, "/zone-ingresses", |_, list| {
        list["items"][0]["availableServices"].as_array().is_some_and(|services| services.len() == 1)
    })
    .await;
    assert_eq!(ingresses["items"][0]["zone"], "east");
    assert_eq!(ingresses["items"][0]["availableServices"][0]["tags"]["kuma.io/zone"], "east");

    // Everybody writes what is theirs.
    for (cp, path, body, status) in [
        (&east, "/meshes/other", json!({"type": "Mesh", "name": "other"}), StatusCode::METHOD_NOT_ALLOWED),
        (&cp, "/meshes/default/dataplanes/d", dataplane("default", "d", "d"), StatusCode::METHOD_NOT_ALLOWED),
        (
            &east,
            "/meshes/default/meshtrafficpermissions/default-timeout-global-54dbd4c66zwbcf9c",
            json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "default-timeout-global-54dbd4c66zwbcf9c",
                "labels": {"kuma.io/display-name": "default-timeout-global", "kuma.io/origin": "global"}, "spec": {}}),
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (
            &east,
            "/meshes/default/meshtrafficpermissions/mine",
            json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "mine", "labels": {"kuma.io/origin": "global"},
                "spec": {}}),
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let reply = cp.call(Method::PUT, path, &body.to_string()).await;
        assert_eq!(reply.status, status, "{path}: {reply:?}");
    }
    let reply = cp.call(Method::DELETE, "/zones/east", "").await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.body.contains("still connected"), "{reply:?}");
    let overview = until(&cp, "/zones/east/_overview", |_, overview| {
        let subscription = &overview["zoneInsight"]["subscriptions"][0];
        subscription["version"].is_object() && overview["zoneInsight"]["healthCheck"].is_object()
    })
    .await;
    let subscription = &overview["zoneInsight"]["subscriptions"][0];
    assert_eq!(overview["zone"]["enabled"], true);
    assert_eq!((&subscription["authTokenProvided"], subscription.get("disconnectTime")), (&json!(true), None));

    // Global is killed. Zones go on, and write what is theirs.
    let port = u16::try_from(cp.ports["kds"].as_u64().unwrap()).unwrap();
    cp.signal("-KILL");
    cp.child.wait().unwrap();
    put(&east, "/meshes/default/dataplanes/web-2", &dataplane("default", "web-2", "web")).await;
    let reply = east.call(Method::DELETE, "/meshes/default/dataplanes/web-1", "").await;
    assert_eq!(reply.status, StatusCode::OK);
    until_there(&west, "/meshes/default/secrets/default.ca-builtin-key-ca").await;
    // It comes back, and everybody catches up.
    let cp = global(for_global, port);
    let reply = cp.call(Method::DELETE, "/meshes/default/meshtrafficpermissions/default-timeout-global", "").await;
    assert_eq!(reply.status, StatusCode::OK);
    until(&cp, "/dataplanes", |_, list| {
        list["total"] == 1 && list["items"][0]["labels"]["kuma.io/display-name"] == "web-2"
    })
    .await;
    for zone in [&east, &west] {
        until_gone(zone, "/meshes/default/meshtrafficpermissions/default-timeout-global-54dbd4c66zwbcf9c").await;
    }
    // A zone that is disabled shares nothing; one that is deleted leaves nothing behind.
    put(&cp, "/zones/east", &json!({"type": "Zone", "name": "east", "enabled": false})).await;
    until(&west, "/meshes/default/meshservices", |_, list| list["total"] == 0).await;
    east.signal("-TERM");
    let mut east = east;
    assert!(east.child.wait().unwrap().success());
    until(&cp, "/zones/east/_overview", |_, overview| {
        let subscriptions = overview["zoneInsight"]["subscriptions"].as_array().cloned().unwrap_or_default();
        !subscriptions.is_empty() && subscriptions.iter().all(|subscription| subscription["disconnectTime"].is_string())
    })
    .await;
    assert_eq!(cp.call(Method::DELETE, "/zones/east", "").await.status, StatusCode::OK);
    until(&cp, "/dataplanes", |_, list| list["total"] == 0).await;
    until(&cp, "/zoneingresses", |_, list| list["total"] == 0).await;
}
