#![allow(clippy::unwrap_used)]

use super::authority::authority;
use super::*;
use crate::identity::IdentityError;
use crate::resource::{Meta, SERVICE_TAG, Secret, Spec, documents, parse};
use crate::store::Expect;

async fn apply(store: &Store, yaml: &str) {
    for document in documents(yaml).unwrap() {
        store.put(parse(document).unwrap().resource, Expect::Any).await.unwrap();
    }
}

const MESH: &str = "
type: Mesh
name: default
mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}
";

#[test]
fn common_protocols() {
    use Protocol::{Grpc, Http, Http2, Tcp};
    for (a, b, common) in
        [(Grpc, Http2, Http2), (Http, Http2, Tcp), (Http, Http, Http), (Tcp, Http, Tcp), (Grpc, Grpc, Grpc)]
    {
        assert_eq!((a.common(b), b.common(a)), (common, common));
    }
    assert_eq!(Protocol::parse("gRPC"), Grpc);
    assert_eq!(Protocol::parse("mysql"), Tcp);
}

#[test]
fn services_have_healthy_endpoints_only() {
    let dataplane = |name: &str, yaml: &str| {
        (Meta::new("default", name), Arc::new(serde_yaml_ng::from_str::<Dataplane>(yaml).unwrap()))
    };
    let dataplanes = [
        dataplane(
            "a",
            "networking: {address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: s, kuma.io/protocol: http, version: v1}}]}",
        ),
        dataplane(
            "b",
            "networking: {address: 10.0.0.2, advertisedAddress: 1.1.1.1, inbound: [{port: 81, tags: {kuma.io/service: s, kuma.io/protocol: http}}]}",
        ),
        dataplane(
            "c",
            "networking: {address: 10.0.0.3, inbound: [{port: 82, state: NotReady, tags: {kuma.io/service: s, kuma.io/protocol: http}}]}",
        ),
        dataplane(
            "d",
            "networking: {address: does.not.resolve, inbound: [{port: 83, tags: {kuma.io/service: s, kuma.io/protocol: http}}]}",
        ),
        dataplane(
            "e",
            "networking: {address: 10.0.0.5, inbound: [{port: 84, health: {ready: false}, tags: {kuma.io/service: sick}}]}",
        ),
    ];
    let with_certificate = BTreeSet::from(["a".to_owned()]);
    let view = MeshView::new("default", Arc::default(), dataplanes.to_vec(), Vec::new(), Ok(None), &with_certificate);
    let services = view.services;
    let found: Vec<(&str, u32)> = services["s"].endpoints.iter().map(|e| (e.address.as_str(), e.port)).collect();
    assert_eq!(found, [("1.1.1.1", 81), ("10.0.0.1", 80)]);
    assert_eq!(services["s"].protocol, Protocol::Http);
    assert!(!services["s"].tls_ready);
    assert!(services["s"].endpoints.iter().all(|e| !e.tags.contains_key(SERVICE_TAG)));
    assert!(services["sick"].endpoints.is_empty());
}

#[tokio::test]
async fn views_follow_the_store_and_the_authority_is_made_once() {
    let store = Store::memory();
    let views = MeshViews::new("");
    let run = tokio::spawn(views.clone().run(store.clone()));
    apply(&store, MESH).await;
    let patience = Duration::from_secs(60);
    let mut view = views.follow_soon("default", patience).await.unwrap();
    let first = view.borrow_and_update().authority.clone().unwrap().unwrap();
    assert!(
        store.get(&ResourceKey::new(Kind::Secret, "default", "default.ca-builtin-key-ca-1")).await.unwrap().is_some()
    );

    apply(&store, "{type: Dataplane, mesh: default, name: a, networking: {address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: s}}]}}").await;
    let wait = view.wait_for(|view| view.services.contains_key("s"));
    tokio::time::timeout(patience, wait).await.unwrap().unwrap();
    let second = view.borrow().authority.clone().unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &second), "unchanged Secrets are not read again");

    // Another process over the same store uses the same authority.
    let others = MeshViews::new("");
    let other_run = tokio::spawn(others.clone().run(store.clone()));
    let other = others.follow_soon("default", patience).await.unwrap();
    assert_eq!(other.borrow().authority.clone().unwrap().unwrap().fingerprint(), first.fingerprint());

    store.delete(&ResourceKey::global(Kind::Mesh, "default")).await.unwrap();
    let closed = async { while view.changed().await.is_ok() {} };
    tokio::time::timeout(patience, closed).await.unwrap();
    assert!(views.follow("default").is_none());
    run.abort();
    other_run.abort();
}

#[tokio::test]
async fn half_an_authority_is_completed_and_a_broken_one_is_reported() {
    let store = Store::memory();
    apply(&store, MESH).await;
    let secret = |name: &str| Resource::new(Meta::new("default", name), Spec::Secret(Arc::new(Secret::new("junk"))));
    store.put(secret("default.ca-builtin-key-ca-1"), Expect::Absent).await.unwrap();
    let mesh = store.get(&ResourceKey::global(Kind::Mesh, "default")).await.unwrap().unwrap();
    let mesh = mesh.mesh().unwrap();
    let (made, _) = authority(&store, "default", mesh, None).await.unwrap();
    assert!(made.unwrap().is_some());
    store.put(secret("default.ca-builtin-key-ca-1"), Expect::Any).await.unwrap();
    let (broken, _) = authority(&store, "default", mesh, None).await.unwrap();
    assert!(matches!(broken, Err(IdentityError::BadPem { .. })));
}
