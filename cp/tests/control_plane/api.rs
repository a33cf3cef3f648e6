//! The REST API, over connections, on every store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use shika_cp::auth::{DataplaneIdentity, DataplaneTokens, User, UserTokens, ZoneScope, ZoneTokens};
use shika_cp::resource::{
    DataplaneInsight, Kind, Meta, MtlsInsight, Resource, ResourceKey, Spec, Subscription, Vip, ZoneProxyInsight,
};
use shika_cp::store::{Expect, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Server, call, dataplane, on_each_store};

#[tokio::test]
async fn a_resource_is_created_changed_listed_and_deleted() {
    on_each_store(async |cp| {
        let path = "/meshes/default/dataplanes/web-1";
        let created = cp.put(path, &dataplane("default", "web-1", "web")).await;
        assert_eq!((created.status, created.json()), (StatusCode::CREATED, json!({})), "{created:?}");
        let updated = cp.put(path, &dataplane("default", "web-1", "api")).await;
        assert_eq!((updated.status, updated.json()), (StatusCode::OK, json!({})));
        let found = cp.get(path).await.json();
        assert_eq!(found["type"], "Dataplane");
        assert_eq!(found["kri"], "kri_dp_default___web-1_");
        assert_eq!(found["networking"]["inbound"], json!([{"port": 80, "tags": {"kuma.io/service": "api"}}]));
        assert!(found["creationTime"].as_str().unwrap() < found["modificationTime"].as_str().unwrap());
        // What was served can be applied again as it is.
        assert_eq!(cp.put(path, &found).await.json(), json!({}));
        let list = cp.get("/meshes/default/dataplanes").await.json();
        assert_eq!((list["total"].as_u64(), &list["next"]), (Some(1), &json!(null)));
        assert_eq!(list["items"][0]["name"], "web-1");
        assert_eq!(cp.delete(path).await.json(), json!({}));
        let gone = cp.get(path).await;
        assert_eq!(
            (gone.status, gone.json()),
            (
                StatusCode::NOT_FOUND,
                json!({"type": "/std-errors", "status": 404, "title": "Could not retrieve a resource", "detail": "Not found", "details": "Not found"})
            )
        );
        assert_eq!(cp.delete(path).await.status, StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test]
async fn a_fresh_control_plane_has_the_default_mesh_and_every_new_mesh_a_signing_key() {
    on_each_store(async |cp| {
        let key = |mesh: &str| format!("/meshes/{mesh}/secrets/dataplane-token-signing-key-{mesh}-1");
        assert_eq!(cp.get(&key("default")).await.status, StatusCode::OK);
        assert_eq!(cp.put("/meshes/demo", &json!({"type": "Mesh", "name": "demo"})).await.status, StatusCode::CREATED);
        assert_eq!(cp.get(&key("demo")).await.status, StatusCode::OK);
        for secret in ["user-token-signing-key-1", "admin-user-token"] {
            assert_eq!(cp.get(&format!("/globalsecrets/{secret}")).await.status, StatusCode::OK);
        }
        let names = |list: serde_json::Value| {
            list["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["name"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(cp.get("/meshes").await.json()), ["default", "demo"]);
        // A mesh takes its secrets with it.
        assert_eq!(cp.delete("/meshes/demo").await.status, StatusCode::OK);
        assert!(cp.store.list(Kind::Secret, Some("demo")).await.unwrap().is_empty());
    })
    .await;
}

/// Traps 14 and 32: default policies are made with the mesh and are resources like others; no permission is among them.
#[tokio::test]
async fn a_new_mesh_starts_with_policies_that_can_be_changed_and_deleted_for_good() {
    on_each_store(async |cp| {
        let names = async |mesh: &str| {
            let mut found = Vec::new();
            for kind in ["meshtimeouts", "meshcircuitbreakers", "meshretries", "meshtrafficpermissions"] {
                let list = cp.get(&format!("/meshes/{mesh}/{kind}")).await.json();
                let items = list["items"].as_array().unwrap().clone();
                found.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
            }
            found
        };
        let all = |mesh: &str| {
            ["mesh-gateways-timeout-all", "mesh-timeout-all", "mesh-circuit-breaker-all", "mesh-retry-all"]
                .map(|name| format!("{name}-{mesh}"))
        };
        assert_eq!(names("default").await, all("default"));
        for (mesh, skipped, left) in [
            ("demo", json!([]), all("demo").to_vec()),
            ("some", json!(["MeshTimeout"]), all("some")[2..].to_vec()),
            ("none", json!(["*"]), Vec::new()),
        ] {
            let body = json!({"type": "Mesh", "name": mesh, "skipCreatingInitialPolicies": skipped});
            assert_eq!(cp.put(&format!("/meshes/{mesh}"), &body).await.status, StatusCode::CREATED);
            assert_eq!(names(mesh).await, left, "{mesh}");
        }
        let path = "/meshes/demo/meshtimeouts/mesh-timeout-all-demo";
        let mut policy = cp.get(path).await.json();
        assert_eq!(policy["spec"]["to"][0]["default"]["http"]["requestTimeout"], "15s");
        policy["spec"]["to"][0]["default"]["http"]["requestTimeout"] = json!("20s");
        assert_eq!(cp.put(path, &policy).await.status, StatusCode::OK);
        assert_eq!(cp.delete("/meshes/demo/meshretries/mesh-retry-all-demo").await.status, StatusCode::OK);
        // Neither a change of the mesh nor a restart of the control plane brings anything back.
        assert_eq!(cp.put("/meshes/demo", &json!({"type": "Mesh", "name": "demo"})).await.status, StatusCode::OK);
        shika_cp::defaults::ensure(&cp.store, false).await.unwrap();
        assert_eq!(names("demo").await, all("demo")[..3]);
        assert_eq!(cp.get(path).await.json()["spec"]["to"][0]["default"]["http"]["requestTimeout"], "20s");
        // The mesh takes them along.
        assert_eq!(cp.delete("/meshes/demo").await.status, StatusCode::OK);
        assert!(cp.store.list(Kind::MeshTimeout, Some("demo")).await.unwrap().is_empty());
    })
    .await;
}

/// Trap 27: the GUI and kumactl ask for resources as Kubernetes has them.
#[tokio::test]
async fn resources_are_served_as_kubernetes_objects() {
    let cp = Server::start(Store::memory()).await;
    let mesh = json!({"type": "Mesh", "name": "m", "meshServices": {"mode": "Everywhere"}});
    cp.put("/meshes/m", &mesh).await;
    cp.put("/meshes/m/dataplanes/d", &dataplane("m", "d", "web")).await;
    let get = async |path: &str| {
        let mut object = cp.get(path).await.json();
        let created = object["metadata"]["creationTimestamp"].take();
        assert!(created.as_str().is_some_and(|time| time.len() == "2026-01-01T00:00:00Z".len()), "{path}: {created}");
        object["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
        object
    };
    assert_eq!(
        get("/meshes/m?format=k8s").await,
        json!({"apiVersion": "kuma.io/v1alpha1", "kind": "Mesh", "metadata": {"name": "m"},
            "spec": {"meshServices": {"mode": "Everywhere"}}})
    );
    // Kinds that are protobuf in Kuma have a field for their mesh, the others a label.
    let found = get("/meshes/m/dataplanes/d?format=kubernetes&namespace=shop").await;
    assert_eq!((&found["mesh"], &found["metadata"]), (&json!("m"), &json!({"name": "d", "namespace": "shop"})));
    assert_eq!(found["spec"], json!({"networking": dataplane("m", "d", "web")["networking"]}));
    let found = get("/meshes/m/meshretries/mesh-retry-all-m?format=k8s").await;
    let metadata = json!({"name": "mesh-retry-all-m", "namespace": "kuma-system", "labels": {"kuma.io/mesh": "m"}});
    assert_eq!((found.get("mesh"), &found["metadata"]), (None, &metadata));
    assert_eq!(found["spec"]["to"][0]["default"]["tcp"], json!({"maxConnectAttempt": 5}));
    for (path, of_type, labels) in [
        ("/meshes/m/secrets/dataplane-token-signing-key-m-1", "secret", json!({"kuma.io/mesh": "m"})),
        ("/global-secrets/user-token-signing-key-1", "global-secret", Value::Null),
    ] {
        let found = get(&format!("{path}?format=k8s")).await;
        assert_eq!((&found["apiVersion"], &found["kind"]), (&json!("v1"), &json!("Secret")));
        assert_eq!(found["type"], format!("system.kuma.io/{of_type}"));
        assert_eq!(found["metadata"]["labels"], labels);
        assert_eq!(found["data"]["value"], cp.get(path).await.json()["data"]);
    }
    let reply = cp.get("/meshes/m?format=helm").await;
    assert_eq!(reply.refused(), ["format: must be one of k8s, kubernetes, universal"]);
}

#[tokio::test]
async fn broken_rules_are_refused_with_field_and_reason_and_change_nothing() {
    on_each_store(async |cp| {
        let mut no_inbound = dataplane("default", "d", "a");
        no_inbound["networking"]["inbound"] = json!([]);
        let mut no_port = dataplane("default", "d", "a");
        no_port["networking"]["inbound"][0]["port"] = json!(0);
        let url = "/meshes/default/dataplanes/d";
        for (path, body, title, expected) in [
            (url, no_inbound, "Failed to create a resource", vec!["networking: has to contain at least one inbound interface or gateway"]),
            (url, no_port, "Failed to create a resource", vec!["networking.inbound[0].port: port must be in the range [1, 65535]"]),
            (url, dataplane("default", "e", "a"), "Could not process a resource", vec!["name: name from the URL has to be the same as in body"]),
            (url, dataplane("other", "d", "a"), "Could not process a resource", vec!["mesh: mesh from the URL has to be the same as in body"]),
            (url, json!({"type": "Secret", "mesh": "default", "name": "d", "data": ""}), "Could not process a resource", vec!["type: type from the URL has to be the same as in body"]),
            ("/meshes/default/dataplanes/D", dataplane("default", "D", "a"), "Could not process a resource", vec!["name: invalid characters. A lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"]),
            ("/meshes/m", json!({"type": "Mesh", "name": "m", "mtls": {"enabledBackend": "x"}}), "Failed to create a resource", vec!["mtls.enabledBackend: has to be set to one of the backends in the mesh"]),
        ] {
            let reply = cp.put(path, &body).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{reply:?}");
            assert_eq!(reply.json()["title"], title);
            assert_eq!(reply.json()["detail"], "Resource is not valid");
            assert_eq!(reply.refused(), expected);
        }
        for body in ["", "{", "[]", "{\"type\": \"Dataplane\", \"name\": \"d\", \"networking\": 1}", "{\"type\": \"Nothing\"}"] {
            let reply = call(cp.address, Method::PUT, url, &[], body).await;
            assert_eq!((reply.status, reply.json()["title"].as_str()), (StatusCode::BAD_REQUEST, Some("Bad Request")), "{body}");
        }
        assert!(cp.store.list(Kind::Dataplane, None).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn ignored_fields_and_settings_without_effect_are_warned_about() {
    let cp = Server::start(Store::memory()).await;
    let body = json!({"type": "Mesh", "name": "m", "mtls": {"enabledBakend": "a"}, "logging": {"defaultBackend": "l"}});
    let reply = cp.put("/meshes/m", &body).await;
    assert_eq!(
        reply.json(),
        json!({"warnings": ["mtls.enabledBakend: unknown field, ignored", "logging: stored, but without effect in this version"]})
    );
    assert_eq!(cp.get("/meshes/m").await.json()["logging"], json!({"defaultBackend": "l"}));
}

#[tokio::test]
async fn a_mesh_with_dataplanes_stays_and_its_ca_is_not_exchanged() {
    on_each_store(async |cp| {
        let mesh = |ca: &str| {
            json!({"type": "Mesh", "name": "m", "mtls": {"enabledBackend": ca, "backends": [{"name": ca, "type": "builtin"}]}})
        };
        cp.put("/meshes/m", &mesh("ca-1")).await;
        let reply = cp.put("/meshes/m", &mesh("ca-2")).await;
        assert_eq!(
            reply.refused(),
            ["mtls.enabledBackend: Changing CA when mTLS is enabled is forbidden. Disable mTLS first and then change the CA"]
        );
        cp.put("/meshes/m/dataplanes/d", &dataplane("m", "d", "a")).await;
        let reply = cp.delete("/meshes/m").await;
        assert_eq!(reply.refused(), ["mesh: unable to delete mesh, there are still some dataplanes attached"]);
        cp.delete("/meshes/m/dataplanes/d").await;
        assert_eq!(cp.delete("/meshes/m").await.status, StatusCode::OK);
        let reply = cp.put("/meshes/m/dataplanes/d", &dataplane("m", "d", "a")).await;
        assert_eq!((reply.status, reply.json()["title"].as_str()), (StatusCode::NOT_FOUND, Some("Failed to retrieve Mesh")));
    })
    .await;
}

#[tokio::test]
async fn who_may_join_is_decided_by_the_mesh() {
    let cp = Server::start(Store::memory()).await;
    let constraints = json!({"dataplaneProxy": {"requirements": [{"tags": {"kuma.io/service": "web"}}]}});
    cp.put("/meshes/m", &json!({"type": "Mesh", "name": "m", "constraints": constraints})).await;
    assert_eq!(cp.put("/meshes/m/dataplanes/w", &dataplane("m", "w", "web")).await.status, StatusCode::CREATED);
    let reply = cp.put("/meshes/m/dataplanes/d", &dataplane("m", "d", "db")).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.json()["detail"].as_str().unwrap().contains("does not fulfill any requirements"), "{reply:?}");
}

/// Trap 26: a page has at most 1000 items, and errors name what is wrong in both of Kuma's forms (see [`Reply::refused`]).
#[tokio::test]
async fn lists_have_pages_and_filters() {
    on_each_store(async |cp| {
        cp.put("/meshes/other", &json!({"type": "Mesh", "name": "other"})).await;
        for number in 0..5 {
            let mut body = dataplane("default", &format!("d-{number}"), if number < 3 { "web" } else { "db" });
            body["labels"] = json!({"even": if number % 2 == 0 { "yes" } else { "no" }});
            cp.put(&format!("/meshes/default/dataplanes/d-{number}"), &body).await;
        }
        cp.put("/meshes/other/dataplanes/x", &dataplane("other", "x", "web")).await;
        let mut gateway = dataplane("other", "g", "");
        gateway["networking"] = json!({"address": "10.0.0.2", "gateway": {"tags": {"kuma.io/service": "gw"}}});
        cp.put("/meshes/other/dataplanes/g", &gateway).await;

        let mut seen = Vec::new();
        let mut path = "/meshes/default/dataplanes?size=2".to_owned();
        loop {
            let page = cp.get(&path).await.json();
            assert_eq!(page["total"], 5);
            seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            path = next.strip_prefix(&cp.url()).unwrap_or_else(|| panic!("{next} leads elsewhere")).to_owned();
        }
        assert_eq!(seen, ["d-0", "d-1", "d-2", "d-3", "d-4"]);

        for (path, expected) in [
            ("/dataplanes", 7),
            ("/dataplanes?name=d-", 5),
            ("/dataplanes?gateway=true", 1),
            ("/dataplanes?gateway=delegated", 1),
            ("/dataplanes?gateway=builtin", 0),
            ("/dataplanes?gateway=false", 6),
            ("/dataplanes?tag=kuma.io%2Fservice:we", 4),
            ("/dataplanes?tag=kuma.io/service:db&tag=version:v1", 0),
            ("/dataplanes?filter%5Blabels.even%5D=yes", 3),
            ("/dataplanes?filter[labels.even]=yes&name=4", 1),
            ("/dataplanes/_overview?tag=kuma.io/service:db", 2),
            ("/meshes/default/dataplanes?offset=100", 5),
        ] {
            let list = cp.get(path).await.json();
            assert_eq!(list["total"], expected, "{path}: {list}");
        }
        for (path, expected) in [
            ("/dataplanes?size=0", "size: must be greater than 0"),
            ("/dataplanes?size=x", "size: invalid format"),
            ("/dataplanes?size=1001", "size: invalid page size of 1001. Maximum page size is 1000"),
            ("/dataplanes?filter[name]=x", "/dataplanes.filter[name]: filters are only supported on labels"),
            (
                "/dataplanes?gateway=maybe",
                "/dataplanes.gateway: should use 'true', 'false', 'builtin' or 'delegated' instead of maybe",
            ),
        ] {
            let reply = cp.get(path).await;
            assert_eq!((reply.status, reply.refused()), (StatusCode::BAD_REQUEST, vec![expected.to_owned()]), "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn overviews_show_dataplane_and_insight_together() {
    on_each_store(async |cp| {
        for name in ["connected", "silent"] {
            cp.put(&format!("/meshes/default/dataplanes/{name}"), &dataplane("default", name, "web")).await;
        }
        let insight = DataplaneInsight {
            subscriptions: vec![Subscription {
                id: "stream-1".to_owned(),
                control_plane_instance_id: "cp-1".to_owned(),
                connect_time: Some("2026-11-22T00:00:00Z".parse().unwrap()),
                ..Subscription::default()
            }],
            mtls: Some(MtlsInsight { issued_backend: "ca-1".to_owned(), ..MtlsInsight::default() }),
            ..DataplaneInsight::default()
        };
        let insight = Resource::new(Meta::new("default", "connected"), Spec::DataplaneInsight(Arc::new(insight)));
        cp.store.put(insight, Expect::Any).await.unwrap();
        for list in
            ["/meshes/default/dataplanes/_overview", "/meshes/default/dataplanes+insights", "/dataplanes/_overview"]
        {
            let list = cp.get(list).await.json();
            let [connected, silent] = list["items"].as_array().unwrap().as_slice() else {
                panic!("two expected: {list}")
            };
            assert_eq!(connected["type"], "DataplaneOverview");
            assert_eq!(connected["dataplane"]["networking"]["address"], "10.0.0.1");
            assert_eq!(connected["dataplaneInsight"]["subscriptions"][0]["connectTime"], "2026-11-22T00:00:00Z");
            assert_eq!(connected["dataplaneInsight"]["mTLS"]["issuedBackend"], "ca-1");
            assert!(connected.get("networking").is_none());
            assert!(silent.get("dataplaneInsight").is_none());
        }
        for one in ["/meshes/default/dataplanes/connected/_overview", "/meshes/default/dataplanes+insights/connected"] {
            assert_eq!(cp.get(one).await.json()["dataplaneInsight"]["subscriptions"][0]["id"], "stream-1");
        }
        assert_eq!(
            cp.get("/meshes/default/dataplane-insights/connected").await.json()["mTLS"]["issuedBackend"],
            "ca-1"
        );
        let reply = cp.put("/meshes/default/dataplane-insights/connected", &json!({})).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
        cp.delete("/meshes/default/dataplanes/connected").await;
        let key = ResourceKey::new(Kind::DataplaneInsight, "default", "connected");
        assert_eq!(cp.store.get(&key).await.unwrap(), None, "the insight goes with its Dataplane");
    })
    .await;
}

#[tokio::test]
async fn dataplane_tokens_are_issued_for_what_was_asked() {
    on_each_store(async |cp| {
        let body = json!({"name": "web-1", "mesh": "default", "tags": {"kuma.io/service": ["web"]}, "validFor": "1h"});
        let reply = cp.post("/tokens/dataplane", &body).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        let tokens = DataplaneTokens::new(cp.store.clone());
        let tags = BTreeMap::from([("kuma.io/service".to_owned(), ["web".to_owned()].into())]);
        let claims = tokens.validate(&reply.body, "default", "web-1", &tags, None).await.unwrap();
        assert_eq!(claims.exp - claims.iat, 3605);
        assert!(tokens.validate(&reply.body, "default", "web-2", &tags, None).await.is_err());
        let forever = cp.post("/tokens/dataplane", &json!({"mesh": "default"})).await;
        let claims = tokens.validate(&forever.body, "default", "any", &tags, None).await.unwrap();
        assert_eq!(claims.exp - claims.iat, 10 * 365 * 86_400 + 5, "ten years unless asked otherwise");
        for (body, expected) in [
            (json!({"name": "x"}), "mesh: cannot be empty"),
            (json!({"mesh": "default", "validFor": "soon"}), "validFor: is invalid"),
            (json!({"mesh": "default", "type": "ingress"}), "type: a zone ingress joins with a zone token"),
            (json!({"mesh": "default", "type": "robot"}), "type: unknown proxy type \"robot\""),
        ] {
            let reply = cp.post("/tokens/dataplane", &body).await;
            assert_eq!(
                (reply.status, reply.json()["title"].as_str()),
                (StatusCode::BAD_REQUEST, Some("Invalid request"))
            );
            assert!(reply.refused()[0].starts_with(expected), "{reply:?}");
        }
        let reply = cp.post("/tokens/dataplane", &json!({"mesh": "nowhere"})).await;
        assert_eq!(
            (reply.status, reply.json()["title"].as_str()),
            (StatusCode::NOT_FOUND, Some("Signing Key not found"))
        );
    })
    .await;
}

#[tokio::test]
async fn zone_tokens_are_issued_for_a_zone_and_scopes() {
    on_each_store(async |cp| {
        let body = json!({"zone": "east", "scope": ["ingress", "cp"], "validFor": "1h"});
        let reply = cp.post("/tokens/zone", &body).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        let tokens = ZoneTokens::new(cp.store.clone());
        let claims = tokens.validate(&reply.body, "east", ZoneScope::Ingress).await.unwrap();
        assert_eq!((claims.exp - claims.iat, claims.scope), (3605, Some(vec!["ingress".to_owned(), "cp".to_owned()])));
        assert!(tokens.validate(&reply.body, "east", ZoneScope::Egress).await.is_err());
        assert!(tokens.validate(&reply.body, "west", ZoneScope::Ingress).await.is_err());
        for (body, expected) in [
            (json!({"zone": "east"}), "scope: cannot be empty"),
            (json!({"zone": "east", "scope": []}), "scope: cannot be empty"),
            (json!({"zone": "east", "scope": ["egress", "robot"]}), "scope[1]: unknown scope \"robot\""),
            (json!({"zone": "east", "scope": ["egress"], "validFor": "soon"}), "validFor: is invalid"),
        ] {
            let reply = cp.post("/tokens/zone", &body).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            assert!(reply.refused()[0].starts_with(expected), "{reply:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn zones_and_their_proxies_have_overviews() {
    on_each_store(async |cp| {
        let zone = json!({"type": "Zone", "name": "east", "enabled": true});
        assert_eq!(cp.put("/zones/east", &zone).await.status, StatusCode::CREATED);
        let ingress = json!({"type": "ZoneIngress", "name": "zi-1", "networking": {"address": "10.0.0.1", "port": 10001}});
        // Trap 27: both spellings write the same resource.
        assert_eq!(cp.put("/zone-ingresses/zi-1", &ingress).await.status, StatusCode::CREATED);
        assert_eq!(cp.put("/zoneingresses/zi-1", &ingress).await.status, StatusCode::OK);
        let egress = json!({"type": "ZoneEgress", "name": "ze-1", "networking": {"address": "10.0.0.1", "port": 10002}});
        assert_eq!(cp.put("/zoneegresses/ze-1", &egress).await.status, StatusCode::CREATED);
        let insight = ZoneProxyInsight {
            subscriptions: vec![Subscription { id: "s".to_owned(), ..Subscription::default() }],
            ..ZoneProxyInsight::default()
        };
        let insight = Resource::new(Meta::new("", "zi-1"), Spec::ZoneIngressInsight(Arc::new(insight)));
        cp.store.put(insight, Expect::Absent).await.unwrap();
        for path in ["/zone-ingresses/_overview", "/zoneingresses+insights"] {
            let list = cp.get(path).await.json();
            assert_eq!(list["total"], 1, "{list}");
            let overview = &list["items"][0];
            assert_eq!((&overview["type"], &overview["kri"]), (&json!("ZoneIngressOverview"), &json!("kri_zi____zi-1_")));
            assert_eq!(overview["zoneIngress"]["networking"]["port"], 10001);
            assert_eq!(overview["zoneIngressInsight"]["subscriptions"][0]["id"], "s");
        }
        for (path, kind, field) in [
            ("/zones/east/_overview", "ZoneOverview", "zone"),
            ("/zones+insights/east", "ZoneOverview", "zone"),
            ("/zoneegresses/ze-1/_overview", "ZoneEgressOverview", "zoneEgress"),
        ] {
            let overview = cp.get(path).await.json();
            assert_eq!(overview["type"], kind);
            assert!(overview[field].is_object(), "{overview}");
            assert!(overview.get(format!("{field}Insight")).is_none(), "{overview}");
        }
        // What the control plane writes is not taken from a document.
        let mut service = json!({"type": "MeshService", "mesh": "default", "name": "web", "spec": {"ports": [{"port": 80}]},
            "status": {"vips": [{"ip": "1.2.3.4"}]}});
        let path = "/meshes/default/meshservices/web";
        assert_eq!(cp.put(path, &service).await.status, StatusCode::CREATED);
        assert!(cp.get(path).await.json().get("status").is_none());
        let mut stored = cp.store.get(&ResourceKey::new(Kind::MeshService, "default", "web")).await.unwrap().unwrap();
        if let Spec::MeshService(service) = &mut stored.spec {
            Arc::make_mut(service).status.vips = vec![Vip { ip: "241.0.0.0".to_owned() }];
        }
        cp.store.put(stored, Expect::Any).await.unwrap();
        service["spec"]["ports"][0]["port"] = json!(81);
        assert_eq!(cp.put(path, &service).await.status, StatusCode::OK);
        let found = cp.get(path).await.json();
        assert_eq!((&found["spec"]["ports"][0]["port"], &found["status"]["vips"][0]["ip"]), (&json!(81), &json!("241.0.0.0")));
    })
    .await;
}

#[tokio::test]
async fn secrets_and_tokens_are_for_administrators() {
    let cp = Server::start_with(Store::memory(), false).await;
    let users = UserTokens::new(cp.store.clone());
    let token = async |group: &str| {
        let user = User { name: "jane".to_owned(), groups: vec![group.to_owned()] };
        format!("Bearer {}", users.issue(&user, Duration::from_secs(60)).await.unwrap())
    };
    let (admin, member) = (token("mesh-system:admin").await, token("team-a").await);
    let secrets = [
        (Method::GET, "/meshes/default/secrets", ""),
        (Method::GET, "/meshes/default/secrets/dataplane-token-signing-key-default-1", ""),
        (Method::GET, "/secrets", ""),
        (Method::GET, "/globalsecrets", ""),
        (Method::GET, "/global-secrets/admin-user-token", ""),
        (Method::PUT, "/meshes/default/secrets/s", r#"{"type": "Secret", "mesh": "default", "name": "s", "data": ""}"#),
        (Method::DELETE, "/meshes/default/secrets/s", ""),
        (Method::POST, "/tokens/dataplane", r#"{"mesh": "default"}"#),
        (Method::POST, "/tokens/user", r#"{"name": "x", "validFor": "1h"}"#),
    ];
    for (method, path, body) in &secrets {
        for headers in [&[][..], &[("authorization", member.as_str())]] {
            let reply = call(cp.address, method.clone(), path, headers, body).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{method} {path}: {reply:?}");
            assert_eq!(reply.json()["title"], "Access Denied");
        }
        let wrong = call(cp.address, method.clone(), path, &[("authorization", "Bearer x.y.z")], body).await;
        assert_eq!(
            (wrong.status, wrong.json()["title"].as_str()),
            (StatusCode::UNAUTHORIZED, Some("Invalid authentication data"))
        );
        let reply = call(cp.address, method.clone(), path, &[("authorization", &admin)], body).await;
        assert!(reply.status.is_success(), "{method} {path}: {reply:?}");
    }
    // Everything else is open, as Kuma's is.
    assert_eq!(cp.get("/meshes").await.status, StatusCode::OK);
    let me = call(cp.address, Method::GET, "/who-am-i", &[("authorization", &member)], "").await.json();
    assert_eq!(me, json!({"name": "jane", "groups": ["team-a", "mesh-system:authenticated"]}));
    assert_eq!(cp.get("/who-am-i").await.json()["name"], "mesh-system:anonymous");
    // A data plane's token is no user's token.
    let proxy = DataplaneIdentity { mesh: "default".to_owned(), ..DataplaneIdentity::default() };
    let proxy = DataplaneTokens::new(cp.store.clone()).issue(&proxy, Duration::from_secs(60)).await.unwrap();
    let reply =
        call(cp.address, Method::GET, "/globalsecrets", &[("authorization", &format!("Bearer {proxy}"))], "").await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_garbage_does_no_harm() {
    let cp = Server::start(Store::memory()).await;
    let large = "x".repeat(4 * 1024 * 1024 + 1);
    let reply = call(cp.address, Method::PUT, "/meshes/m", &[], &large).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    // Nested deeper than anybody writes: refused by the parser, not by the stack.
    let deep =
        format!("{{\"type\": \"Mesh\", \"name\": \"m\", \"metrics\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let reply = call(cp.address, Method::PUT, "/meshes/m", &[], &deep).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    for garbage in ["\0\0\0\0", "GET / HTTP/9.9\r\n\r\n", "GET /\u{7f} HTTP/1.1\r\n\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(cp.address).await.unwrap();
        stream.write_all(garbage.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Refused or closed; either way the connection ends.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(cp.get("/meshes").await.status, StatusCode::OK);
}
