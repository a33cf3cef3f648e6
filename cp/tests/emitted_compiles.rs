//! What the control plane emits compiles in the proxy: sidecars with and without redirection, zone ingress, zone egress.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use shika_cp::emit;
use shika_cp::identity::ca::{self, CertificateAuthority};
use shika_cp::mesh::{External, ExternalHost, MeshView, OriginatedTls, Protocol, Vip, VipOutbound, ZoneView, Zones};
use shika_cp::plan::{AdminEndpoint, ProxyFeatures, ProxyPlan, Redirection, egress, ingress, plan};
use shika_cp::policy::Policies;
use shika_cp::resource::{BackendRef, Dataplane, Mesh, MeshService, Meta};
use shika_cp::store::Store;
use shika_cp::xds::{ResourceType, Snapshot};
use shika_data::model::{access_log::LogSink, tracing::SpanSink};
use shika_data::stats::Registry;
use shika_xds::{CompileOptions, Compiler, Resource, Update, UpdateKind};

fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_yaml_ng::from_str(text).unwrap()
}

/// What the proxy refuses of a plan, by resource.
fn refused(plan: &ProxyPlan) -> BTreeMap<String, Vec<String>> {
    let snapshot = emit::snapshot(plan, None, &Snapshot::default());
    let options = CompileOptions {
        hostname: String::new(),
        concurrency: 1,
        reject_unknown_dynamic_fields: true,
        log_sink: Box::new(|path| LogSink::new(path, 1).0),
        span_sink: Box::new(|_| SpanSink::new(1).0),
        log_collector: Box::new(|_| LogSink::new("", 1).0),
    };
    let mut compiler = Compiler::new(Registry::new(1), options);
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kind in ResourceType::ORDER {
        for (name, resource) in snapshot.resources(kind) {
            let update = Update {
                type_url: kind.url().into(),
                resources: vec![Resource {
                    name: name.as_str().into(),
                    version: "1".into(),
                    resource: resource.body.clone().unwrap(),
                }],
                removed: Vec::new(),
                kind: UpdateKind::Delta,
                version: "1".into(),
            };
            for reject in compiler.apply(update, Instant::now()).rejects {
                refused.entry(name.clone()).or_default().push(format!("{}: {}", reject.field_path, reject.reason));
            }
        }
    }
    refused
}

fn external(name: &str, service: &str, host: &str, protocol: Protocol) -> External {
    let pem = ca::create("outside", 0, ca::DEFAULT_EXPIRATION, chrono::Utc::now()).unwrap();
    External {
        name: name.to_owned(),
        service: service.to_owned(),
        tags: BTreeMap::new(),
        protocol,
        hosts: vec![ExternalHost { host: host.to_owned(), port: 443, priority: 0 }],
        tls: Some(OriginatedTls { ca: Some(pem.certificate.into_bytes()), ..OriginatedTls::default() }),
    }
}

/// The policies that a new mesh starts with.
async fn default_policies() -> Policies {
    let store = Store::memory();
    shika_cp::defaults::ensure(&store, false).await.unwrap();
    let mut policies = Policies::default();
    for kind in Policies::KINDS {
        store.list(kind, Some("default")).await.unwrap().iter().for_each(|resource| policies.add(resource));
    }
    assert_eq!((policies.timeouts.len(), policies.retries.len(), policies.circuit_breakers.len()), (2, 1, 1));
    policies
}

/// A zone with another one beside it, and a mesh that has everything.
async fn zone(mode: &str) -> ZoneView {
    let mut zones = Zones::new("east");
    let remote = "{zone: west, networking: {address: 10.0.0.1, port: 10001, advertisedAddress: 1.2.3.4, advertisedPort: 10001}, \
        availableServices: [{mesh: default, instances: 2, tags: {kuma.io/service: backend, kuma.io/zone: west, kuma.io/protocol: http}}]}";
    let own = "{zone: east, networking: {address: 10.0.0.1, port: 10001, advertisedAddress: 1.2.3.5, advertisedPort: 10001}, \
        availableServices: [{mesh: default, instances: 1, tags: {kuma.io/service: backend, kuma.io/zone: east, kuma.io/protocol: http}}]}";
    for (name, text) in [("west", remote), ("own", own)] {
        zones.ingresses.insert(name.to_owned(), (Meta::new("", name), Arc::new(yaml(text))));
    }
    let egress = "{zone: east, networking: {address: 10.0.0.9, port: 10002}}";
    zones.egresses.insert("egress".to_owned(), (Meta::new("", "egress"), Arc::new(yaml(egress))));

    let mesh: Mesh = yaml(&format!(
        "mtls: {{enabledBackend: b, backends: [{{name: b, type: builtin, mode: {mode}}}]}}\n\
         routing: {{zoneEgress: true, localityAwareLoadBalancing: true}}\nmeshServices: {{mode: Everywhere}}"
    ));
    let pem = ca::create("default", 0, ca::DEFAULT_EXPIRATION, chrono::Utc::now()).unwrap();
    let authority = Arc::new(CertificateAuthority::from_pem("default", &pem).unwrap());
    let dataplane = |name: &str, text: &str| (Meta::new("default", name), Arc::new(yaml::<Dataplane>(text)));
    let dataplanes = vec![
        dataplane(
            "web",
            "networking: {address: 10.1.0.1, transparentProxying: {directAccessServices: ['*']}, inbound: [\
             {port: 80, servicePort: 8080, tags: {kuma.io/service: web, kuma.io/protocol: http}}, \
             {port: 81, servicePort: 8081, tags: {kuma.io/service: web-tcp}}, \
             {port: 82, servicePort: 8082, serviceAddress: 127.0.0.1, tags: {kuma.io/service: web-grpc, kuma.io/protocol: grpc}}]}",
        ),
        dataplane(
            "backend",
            "networking: {address: 10.1.0.2, inbound: [{port: 80, tags: {kuma.io/service: backend, kuma.io/protocol: http, kuma.io/zone: east}}]}",
        ),
    ];
    let everyone = BTreeSet::from(["web".to_owned(), "backend".to_owned()]);
    let mut view = MeshView::new("default", Arc::new(mesh), dataplanes, Vec::new(), Ok(Some(authority)), &everyone);
    view.zones = Arc::new(zones);
    view.policies = default_policies().await;
    view.outside = vec![
        external("es", "es", "example.com", Protocol::Http),
        external("es-tcp", "es-tcp", "10.9.9.9", Protocol::Tcp),
    ];
    let service: MeshService =
        yaml("{selector: {dataplaneTags: {kuma.io/service: backend}}, ports: [{port: 80, appProtocol: http}]}");
    view.mesh_services.insert("backend".to_owned(), (Meta::new("default", "backend"), Arc::new(service)));
    view.mesh_outside.insert("mes".to_owned(), external("mes", "", "example.org", Protocol::Http2));
    let mes = (
        Meta::new("default", "mes"),
        Arc::new(yaml("{match: {port: 443, protocol: http2}, endpoints: [{address: example.org, port: 443}]}")),
    );
    view.mesh_external_services.insert("mes".to_owned(), mes);
    let by_tag = |address: &str, service: &str| Vip {
        address: address.parse().unwrap(),
        names: vec![format!("{service}.mesh")],
        outbounds: vec![VipOutbound {
            port: 80,
            tags: BTreeMap::from([("kuma.io/service".to_owned(), service.to_owned())]),
            backend_ref: None,
        }],
    };
    let by_reference = |address: &str, kind: &str, name: &str, port: u32| Vip {
        address: address.parse().unwrap(),
        names: vec![format!("{name}.svc.mesh.local")],
        outbounds: vec![VipOutbound {
            port,
            tags: BTreeMap::new(),
            backend_ref: Some(BackendRef {
                kind: kind.to_owned(),
                name: name.to_owned(),
                port,
                ..BackendRef::default()
            }),
        }],
    };
    view.vips = vec![
        by_tag("240.0.0.1", "backend"),
        by_tag("240.0.0.2", "es"),
        by_tag("240.0.0.3", "es-tcp"),
        by_reference("241.0.0.1", "MeshService", "backend", 80),
        by_reference("242.0.0.1", "MeshExternalService", "mes", 443),
    ];
    view.complete();
    ZoneView { zones: view.zones.clone(), meshes: BTreeMap::from([("default".to_owned(), Arc::new(view))]) }
}

fn features(embedded_dns: bool) -> ProxyFeatures {
    ProxyFeatures {
        reuse_port: true,
        strict_inbound_ports: true,
        embedded_dns,
        dns_port: 15053,
        work_dir: "/run/shika".to_owned(),
        redirection: Some(Redirection::default()),
        admin: Some(AdminEndpoint { address: String::new(), port: 9901, socket: String::new() }),
        readiness_port: 9902,
        ..ProxyFeatures::default()
    }
}

fn assert_compiles(what: &str, plan: &ProxyPlan) {
    assert_eq!(refused(plan), BTreeMap::new(), "{what}");
}

#[tokio::test]
async fn sidecars() {
    for mode in ["STRICT", "PERMISSIVE"] {
        let zone = zone(mode).await;
        let view = &zone.meshes["default"];
        let redirected = plan(view, "web", features(true)).unwrap();
        assert_eq!(redirected.outbounds.len(), 5, "{:?}", redirected.warnings);
        assert!(redirected.dynamic.is_some() && redirected.direct_access.is_some() && redirected.captures.len() == 2);
        assert_compiles(mode, &redirected);
        let bound = plan(view, "web", ProxyFeatures { bind_outbounds: true, ..features(true) }).unwrap();
        assert_eq!(bound.outbounds.len(), 5);
        assert_compiles(mode, &bound);
        // Envoy's DNS filter is for proxies that do not answer DNS themselves.
        assert_compiles("DNS filter", &plan(view, "web", features(false)).unwrap());
        assert_compiles(mode, &plan(view, "backend", ProxyFeatures::default()).unwrap());
    }
}

#[tokio::test]
async fn zone_proxies() {
    let zone = zone("STRICT").await;
    let out = egress(&zone, "egress", &features(true)).unwrap();
    assert_eq!(out.zone_proxy.as_ref().unwrap().chains.len(), 4, "{out:?}");
    assert_compiles("egress", &out);
    let way_in = ingress(&zone, "own", &features(true)).unwrap();
    assert_eq!(way_in.zone_proxy.as_ref().unwrap().chains.len(), 2, "{way_in:?}");
    assert_compiles("ingress", &way_in);
    let empty = ZoneView { zones: zone.zones.clone(), meshes: BTreeMap::new() };
    assert_compiles("ingress without services", &ingress(&empty, "own", &features(true)).unwrap());
}
