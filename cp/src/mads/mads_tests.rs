#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt as _;
use serde_json::{Value, json};

use super::*;
use crate::mesh::MeshView;
use crate::resource::{Mesh, Resource, documents, parse};

/// What a client is assigned of the meshes in a YAML text, and the warnings.
fn assigned(yaml: &str, client: &str) -> (Value, Vec<String>) {
    let all: Vec<Resource> =
        documents(yaml).unwrap().into_iter().map(|document| parse(document).unwrap().resource).collect();
    let mut meshes = BTreeMap::new();
    for resource in &all {
        let Some(mesh) = resource.mesh() else { continue };
        let name = resource.meta.name.as_str();
        let mesh: Arc<Mesh> = mesh.clone();
        let own = || all.iter().filter(|resource| resource.meta.mesh == name);
        let dataplanes =
            own().filter_map(|resource| Some((resource.meta.clone(), resource.dataplane()?.clone()))).collect();
        let mut view = MeshView::new(name, mesh, dataplanes, Vec::new(), Ok(None), &BTreeSet::new());
        own().for_each(|resource| view.policies.add(resource));
        meshes.insert(name.to_owned(), Arc::new(view));
    }
    let assignments = Assignments::of_zone(&ZoneView { zones: Arc::default(), meshes });
    let mut told: Value = serde_json::from_slice(&assignments.of(client).body).unwrap();
    assert_eq!(told["version_info"], assignments.of(client).version);
    (told["resources"].take(), assignments.warnings)
}

const TYPE: &str = "type.googleapis.com/kuma.observability.v1.MonitoringAssignment";

const LEGACY: &str = "
type: Mesh
name: old
metrics: {enabledBackend: p, backends: [{name: p, type: prometheus, conf: {port: 1234, tls: {mode: providedTLS}}}]}
---
type: Dataplane
mesh: old
name: backend-1
networking:
  address: 10.0.0.1
  inbound:
  - {port: 80, tags: {kuma.io/service: web, env: prod, 'com.x/tag': v1}}
  - {port: 81, tags: {kuma.io/service: api, 'com.x/tag': v2}}
metrics: {type: prometheus, conf: {path: /own}}
---
type: Mesh
name: without
---
type: Dataplane
mesh: without
name: a
networking: {address: 10.0.0.2, inbound: [{port: 80, tags: {kuma.io/service: a}}]}
---
";

#[test]
fn targets_of_a_mesh_with_metrics() {
    let expected = json!([{
        "@type": TYPE,
        "mesh": "old",
        "service": "api",
        "targets": [{
            "name": "backend-1", "scheme": "https", "address": "10.0.0.1:1234", "metrics_path": "/own",
            "labels": {
                "kuma_io_service": "api", "kuma_io_services": ",api,web,", "env": "prod", "envs": ",prod,",
                "com_x_tag": "v1", "com_x_tags": ",v1,v2,",
            },
        }],
    }]);
    assert_eq!(assigned(LEGACY, "whoever"), (expected, Vec::new()));
}

#[test]
fn targets_of_policies() {
    let yaml = format!(
        "{LEGACY}
type: Mesh
name: new
---
type: MeshMetric
mesh: new
name: all
spec: {{default: {{backends: [
  {{type: Prometheus, prometheus: {{clientId: own, port: 1111, path: /own, tls: {{mode: ProvidedTLS}}}}}},
  {{type: Prometheus, prometheus: {{port: 2222}}}},
  {{type: Prometheus, prometheus: {{port: 3333}}}},
  {{type: OpenTelemetry, openTelemetry: {{endpoint: 'otel:4317'}}}}]}}}}
---
type: MeshMetric
mesh: new
name: web
spec: {{targetRef: {{kind: MeshSubset, tags: {{kuma.io/service: web}}}}, default: {{backends: [
  {{type: Prometheus, prometheus: {{clientId: own, port: 4444}}}}]}}}}
---
type: Dataplane
mesh: new
name: web-1
networking: {{address: 10.0.0.3, inbound: [{{port: 80, tags: {{kuma.io/service: web}}}}]}}
---
type: Dataplane
mesh: new
name: six
networking: {{address: 10.0.0.4, advertisedAddress: '2001:db8::6', gateway: {{type: DELEGATED}}}}
"
    );
    let target = |name: &str, service: &str, scheme: &str, address: &str, path: &str| {
        json!({
            "@type": TYPE, "mesh": "new", "service": service,
            "targets": [{"name": name, "scheme": scheme, "address": address, "metrics_path": path}],
        })
    };
    let (own, warnings) = assigned(&yaml, "own");
    // The more specific policy replaces the list of backends.
    let expected = json!([
        target("six", "unknown", "https", "[2001:db8::6]:1111", "/own"),
        target("web-1", "web", "http", "10.0.0.3:4444", "/metrics"),
    ]);
    assert_eq!(own, expected);
    // A client that no policy names. The second backend without a client has no listener.
    assert_eq!(
        assigned(&yaml, "whoever").0,
        json!([target("six", "unknown", "http", "[2001:db8::6]:2222", "/metrics")])
    );
    // As in Kuma, one MeshMetric silences the metrics of every mesh; unlike there, it is said.
    assert!(warnings.len() == 1 && warnings[0].starts_with("mesh \"old\": Prometheus is not told"), "{warnings:?}");
}

#[test]
fn a_policy_for_one_client_leaves_the_others_without_targets() {
    let yaml = format!(
        "{LEGACY}
type: MeshMetric
mesh: without
name: all
spec: {{default: {{backends: [{{type: Prometheus, prometheus: {{clientId: own}}}}]}}}}
"
    );
    assert_eq!(assigned(&yaml, "whoever").0, json!([]));
    assert_eq!(assigned(&yaml, "own").0.as_array().unwrap().len(), 1);
}

#[test]
fn what_prometheus_sends() {
    // As written by protojson in Prometheus' `discovery/xds`, and in lower camel case.
    for body in [
        r#"{"version_info":"v","node":{"id":"prometheus"},"type_url":"t","response_nonce":"n","new_field":1}"#,
        r#"{"versionInfo":"v","node":{"id":"prometheus"},"resourceNames":[]}"#,
    ] {
        let request = discovery(body.as_bytes()).unwrap();
        assert_eq!((request.version_info.as_str(), request.node.unwrap().id.as_str()), ("v", "prometheus"));
    }
    for (body, part) in [("", ""), ("[1", ""), (r#"{"node":{"id":1}}"#, "node.id"), ("\u{7f}", "")] {
        assert!(discovery(body.as_bytes()).unwrap_err().contains(part), "{body}");
    }
    assert!(discovery(&[0xff]).is_err());
}

#[test]
fn fetch_timeouts() {
    let seconds = |text| fetch_timeout(text).map(|timeout| timeout.as_secs());
    for (text, expected) in [
        (None, 30),
        (Some(""), 30),
        (Some("0s"), 0),
        (Some("0"), 0),
        (Some("-5s"), 0),
        (Some("2m"), 120),
        (Some("2m0s"), 120),
        (Some("24h"), 600),
    ] {
        assert_eq!(seconds(text), Ok(expected), "{text:?}");
    }
    for text in ["x", "-", "-x", "5", "-+5s"] {
        assert!(fetch_timeout(Some(text)).is_err(), "{text}");
    }
}

/// A DiscoveryRequest to wait ten minutes for another version than this.
fn waiting(version: &str) -> Request {
    Request {
        method: Method::POST,
        uri: format!("{PATH}?fetch-timeout=10m").parse().unwrap(),
        headers: http::HeaderMap::new(),
        peer: crate::api::Peer::new([127, 0, 0, 1].into(), 1),
        body: json!({"version_info": version}).to_string().into(),
    }
}

#[tokio::test]
async fn nobody_waits_for_a_server_that_stops() {
    let views = MeshViews::new("default", false);
    let running = tokio::spawn(views.clone().run(crate::store::Store::memory()));
    let mads = Mads::new(views);
    let (stop, stopped) = watch::channel(false);
    let answer = mads.answer(waiting(""), stopped.clone()).await;
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    stop.send_replace(true);
    let answer = mads.answer(waiting(body["version_info"].as_str().unwrap()), stopped).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_MODIFIED, 0));
    running.abort();
}

/// No targets would be an answer, and a wrong one: a Prometheus drops those it knew.
#[tokio::test]
async fn before_the_store_was_read_there_is_no_answer() {
    let views = MeshViews::new("default", false);
    let mads = Mads::new(views.clone());
    let (_stop, stopped) = watch::channel(false);
    assert!(mads.answer(waiting(""), stopped.clone()).now_or_never().is_none());
    let running = tokio::spawn(views.run(crate::store::Store::memory()));
    assert_eq!(mads.answer(waiting(""), stopped).await.status, StatusCode::OK);
    running.abort();
}
