#![allow(clippy::unwrap_used)]

use super::*;
use crate::identity::IdentityError;
use crate::resource::{Dataplane, Meta, SERVICE_TAG, Secret, Spec, documents, parse, set_status};
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
    let views = MeshViews::new("east", false);
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
    let others = MeshViews::new("east", false);
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
    let (made, _) = authority(&store, "default", mesh, None, true).await.unwrap();
    assert!(made.unwrap().is_some());
    store.put(secret("default.ca-builtin-key-ca-1"), Expect::Any).await.unwrap();
    let (broken, _) = authority(&store, "default", mesh, None, true).await.unwrap();
    assert!(matches!(broken, Err(IdentityError::BadPem { .. })));
}

#[tokio::test]
async fn services_of_all_kinds_have_their_addresses_and_zones_their_proxies() {
    let store = Store::memory();
    let views = MeshViews::new("east", false);
    tokio::spawn(views.clone().run(store.clone()));
    let base = "
type: Mesh
name: default
meshServices: {mode: Everywhere}
---
type: MeshService
mesh: default
name: web
spec: {ports: [{port: 80, appProtocol: http}, {port: 81}]}
---
type: MeshExternalService
mesh: default
name: mes
spec: {match: {port: 443, protocol: tcp}}
---
type: ExternalService
mesh: default
name: es
networking: {address: 'example.com:443'}
tags: {kuma.io/service: es}
---
type: ZoneIngress
name: west-1
zone: west
networking: {address: 10.0.0.1, port: 10001, advertisedAddress: 127.0.0.1, advertisedPort: 20001}
---
type: ZoneIngress
name: unknown-address
zone: west
networking: {address: 10.0.0.1, port: 10001}
---
type: ZoneIngress
name: east-1
zone: east
networking: {address: 10.0.0.2, port: 10001, advertisedAddress: 127.0.0.1, advertisedPort: 20001}
---
type: ZoneEgress
name: east-egress
zone: east
networking: {address: 10.0.0.3, port: 10002}
";
    apply(&store, base).await;
    for (kind, name, status) in [
        (Kind::MeshService, "web", "{vips: [{ip: 241.0.0.7}], addresses: [{hostname: web.svc.mesh.local}]}"),
        (Kind::MeshExternalService, "mes", "{vip: {ip: 242.0.0.0}, addresses: [{hostname: mes.extsvc.mesh.local}]}"),
    ] {
        let mut resource = store.get(&ResourceKey::new(kind, "default", name)).await.unwrap().unwrap();
        set_status(&mut resource.spec, documents(status).unwrap().remove(0)).unwrap();
        store.put(resource, Expect::Any).await.unwrap();
    }
    let legacy = "{\"0:web_shop\": {\"address\": \"240.0.0.0\", \"outbounds\": [{\"TagSet\": {\"kuma.io/service\": \"web_shop\"}}]},
        \"1:example.com\": {\"address\": \"240.0.0.1\", \"outbounds\": [{\"Port\": 443, \"TagSet\": {\"kuma.io/service\": \"es\"}}]},
        \"0:gone\": {\"address\": \"240.0.0.2\"}}";
    let config = crate::resource::Config { config: legacy.to_owned() };
    let config = Resource::new(Meta::new("", legacy_config("default").name), Spec::Config(Arc::new(config)));
    store.put(config, Expect::Absent).await.unwrap();

    let mut view = views.follow_soon("default", Duration::from_secs(60)).await.unwrap();
    let complete = |view: &Arc<MeshView>| view.vips.len() == 4 && view.zones.ingresses.len() == 3;
    let view = tokio::time::timeout(Duration::from_secs(60), view.wait_for(complete)).await.unwrap().unwrap().clone();
    let shown = |vip: &Vip| {
        let outbound = |outbound: &VipOutbound| match &outbound.backend_ref {
            Some(to) => format!("{}={}/{}", outbound.port, to.kind, to.name),
            None => format!("{}={}", outbound.port, outbound.tags[SERVICE_TAG]),
        };
        let outbounds: Vec<String> = vip.outbounds.iter().map(outbound).collect();
        format!("{} {} {}", vip.address, vip.names.join(","), outbounds.join(","))
    };
    assert_eq!(
        view.vips.iter().map(shown).collect::<Vec<_>>(),
        [
            "240.0.0.0 web_shop.mesh,web.shop.mesh 80=web_shop",
            "240.0.0.1 example.com 443=es,80=es",
            "241.0.0.7 web.svc.mesh.local 80=MeshService/web,81=MeshService/web",
            "242.0.0.0 mes.extsvc.mesh.local 443=MeshExternalService/mes",
        ]
    );
    let remote: Vec<_> = view.zones.remote_ingresses().map(|ingress| ingress.advertised()).collect();
    assert_eq!(remote, [Some(("127.0.0.1", 20001))]);
    assert_eq!(view.zones.local_egresses().count(), 1);
    assert!(view.zones.is_local(&view.mesh_services["web"].0));

    // Exclusive: services by tag have no address any more. A disabled zone is not reached any more.
    let mut zone = views.follow_zone();
    apply(
        &store,
        "{type: Mesh, name: default, meshServices: {mode: Exclusive}}\n---\n{type: Zone, name: west, enabled: false}",
    )
    .await;
    let complete = |view: &Arc<ZoneView>| {
        view.zones.remote_ingresses().count() == 0
            && view.meshes.get("default").is_some_and(|view| view.vips.len() == 2)
    };
    tokio::time::timeout(Duration::from_secs(60), zone.wait_for(complete)).await.unwrap().unwrap();
}
