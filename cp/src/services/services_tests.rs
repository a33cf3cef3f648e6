#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;
use crate::mesh::LegacyVips;
use crate::resource::{DataplaneInsight, MtlsInsight, Subscription, documents, parse};

const DATAPLANES: &str = "
type: Mesh
name: default
meshServices: {mode: Everywhere}
---
type: Dataplane
mesh: default
name: web-1
networking:
  address: 10.0.0.1
  inbound:
  - {port: 80, name: http, tags: {kuma.io/service: web, kuma.io/protocol: http}}
  - {port: 81, tags: {kuma.io/service: web}}
  - {port: 82, tags: {kuma.io/service: web_shop_svc_82}}
---
type: Dataplane
mesh: default
name: web-2
networking:
  address: 10.0.0.2
  inbound:
  - {port: 80, name: http, tags: {kuma.io/service: web, kuma.io/protocol: http}}
  - {port: 81, state: NotReady, tags: {kuma.io/service: web}}
";

async fn apply(store: &Store, yaml: &str) {
    for document in documents(yaml).unwrap() {
        store.put(parse(document).unwrap().resource, Expect::Any).await.unwrap();
    }
}

async fn fresh(yaml: &str) -> (Store, Services) {
    let store = Store::memory();
    apply(&store, yaml).await;
    crate::defaults::ensure_zone_names(&store).await.unwrap();
    let services = Services::new(store.clone(), Settings::new("east"));
    (store, services)
}

impl Services {
    async fn all(&mut self) -> Option<DateTime<Utc>> {
        self.round(&mut Dirty { all: true, ..Dirty::default() }).await.unwrap()
    }
}

async fn document(store: &Store, kind: Kind, name: &str) -> Option<Value> {
    let mesh = if kind.in_mesh() { "default" } else { "" };
    store.get(&ResourceKey::new(kind, mesh, name)).await.unwrap().map(|resource| resource.to_document())
}

async fn online(store: &Store, name: &str, backend: &str) {
    let subscription = Subscription { id: "1".to_owned(), ..Subscription::default() };
    let mtls = MtlsInsight { issued_backend: backend.to_owned(), ..MtlsInsight::default() };
    let insight = DataplaneInsight { subscriptions: vec![subscription], mtls: Some(mtls), metadata: None };
    let insight = Resource::new(Meta::new("default", name), Spec::DataplaneInsight(Arc::new(insight)));
    store.put(insight, Expect::Any).await.unwrap();
}

#[tokio::test]
async fn a_service_by_tag_becomes_a_mesh_service_with_address_name_and_state() {
    let (store, mut services) = fresh(DATAPLANES).await;
    online(&store, "web-1", "").await;
    services.all().await;
    let found = store.list(Kind::MeshService, None).await.unwrap();
    assert_eq!(found.len(), 1, "what cannot be a label of a host name gets none");
    let service = found[0].to_document();
    assert_eq!(
        service["labels"],
        json!({"kuma.io/display-name": "web", "kuma.io/env": "universal", "kuma.io/managed-by": "meshservice-generator",
            "kuma.io/mesh": "default", "kuma.io/origin": "zone", "kuma.io/zone": "east"})
    );
    assert_eq!(service["kri"], "kri_msvc_default_east__web_");
    assert_eq!(
        service["spec"],
        json!({
            "state": "Available",
            "selector": {"dataplaneTags": {"kuma.io/service": "web"}},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 80, "appProtocol": "http"},
                {"name": "81", "port": 81, "targetPort": 81, "appProtocol": "tcp"},
            ],
            "identities": [
                {"type": "ServiceTag", "value": "web"},
                {"type": "ServiceTag", "value": "web_shop_svc_82"},
            ],
        })
    );
    assert_eq!(
        service["status"],
        json!({
            "addresses": [{"hostname": "web.svc.mesh.local", "origin": "HostnameGenerator",
                "hostnameGeneratorRef": {"coreName": "local-universal-mesh-service"}}],
            "vips": [{"ip": "241.0.0.0"}],
            "tls": {"status": "NotReady"},
            "hostnameGenerators": [{"hostnameGeneratorRef": {"coreName": "local-universal-mesh-service"},
                "conditions": [{"type": "Generated", "status": "True", "reason": "Generated", "message": ""}]}],
            "dataplaneProxies": {"connected": 1, "healthy": 1, "total": 2},
        })
    );
    // A round with nothing to do writes nothing.
    let mut watch = store.watch();
    services.all().await;
    store.delete(&ResourceKey::new(Kind::DataplaneInsight, "default", "web-1")).await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), Event::Deleted(key) if key.kind == Kind::DataplaneInsight));

    // With mutual TLS it is ready once every instance has a certificate, and stays so.
    apply(&store, "{type: Mesh, name: default, meshServices: {mode: Everywhere}, mtls: {enabledBackend: b, backends: [{name: b, type: builtin}]}}").await;
    let tls = async || document(&store, Kind::MeshService, "web").await.unwrap()["status"]["tls"]["status"].clone();
    online(&store, "web-1", "b").await;
    services.all().await;
    assert_eq!(tls().await, "NotReady");
    online(&store, "web-2", "b").await;
    services.all().await;
    assert_eq!(tls().await, "Ready");
    online(&store, "web-2", "").await;
    services.all().await;
    assert_eq!(tls().await, "Ready");
}

#[tokio::test]
async fn the_oldest_dataplane_says_which_ports_until_nobody_has_them() {
    let (store, mut services) = fresh(DATAPLANES).await;
    services.all().await;
    let ports = async |store: &Store| {
        let service = document(store, Kind::MeshService, "web").await.unwrap();
        let ports = service["spec"]["ports"].as_array().unwrap().clone();
        ports.iter().map(|port| port["port"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ports(&store).await, [80, 81]);
    let other = "{type: Dataplane, mesh: default, name: web-1, networking: {address: 10.0.0.1, inbound: [{port: 90, tags: {kuma.io/service: web}}]}}";
    apply(&store, other).await;
    services.all().await;
    assert_eq!(ports(&store).await, [80, 81], "web-2 has them still");
    store.delete(&ResourceKey::new(Kind::Dataplane, "default", "web-2")).await.unwrap();
    services.all().await;
    assert_eq!(ports(&store).await, [90]);
}

#[tokio::test]
async fn a_service_without_dataplanes_goes_after_a_time_of_grace() {
    let (store, mut services) = fresh(DATAPLANES).await;
    services.all().await;
    for name in ["web-1", "web-2"] {
        store.delete(&ResourceKey::new(Kind::Dataplane, "default", name)).await.unwrap();
    }
    let deadline = services.all().await.unwrap();
    assert!(deadline > Utc::now() + chrono::TimeDelta::minutes(59), "{deadline}");
    let service = document(&store, Kind::MeshService, "web").await.unwrap();
    assert!(service["labels"]["kuma.io/deletion-grace-period-started-at"].is_string());
    assert_eq!(service["spec"]["state"], "Unavailable");
    // Back in time: it keeps its address.
    apply(&store, DATAPLANES).await;
    assert_eq!(services.all().await, None);
    let service = document(&store, Kind::MeshService, "web").await.unwrap();
    assert!(service["labels"].get("kuma.io/deletion-grace-period-started-at").is_none());
    assert_eq!(service["status"]["vips"], json!([{"ip": "241.0.0.0"}]));
    // Not back in time: gone, and its address is never given out again, not by another process either.
    for name in ["web-1", "web-2"] {
        store.delete(&ResourceKey::new(Kind::Dataplane, "default", name)).await.unwrap();
    }
    services.settings.grace = Duration::ZERO;
    services.all().await;
    services.all().await;
    assert_eq!(document(&store, Kind::MeshService, "web").await, None);
    apply(&store, DATAPLANES).await;
    let mut again = Services::new(store.clone(), Settings::new("east"));
    again.all().await;
    let service = document(&store, Kind::MeshService, "web").await.unwrap();
    assert_eq!(service["status"]["vips"], json!([{"ip": "241.0.0.1"}]));
    // Without the note of what was given out, what is in use counts.
    store.delete(&config_key("shika-vips")).await.unwrap();
    apply(&store, "{type: MeshService, mesh: default, name: other, spec: {ports: [{port: 1}]}}").await;
    let mut again = Services::new(store.clone(), Settings::new("east"));
    again.all().await;
    assert_eq!(
        document(&store, Kind::MeshService, "other").await.unwrap()["status"]["vips"],
        json!([{"ip": "241.0.0.2"}])
    );
}

#[tokio::test]
async fn modes_say_which_services_there_are() {
    let (store, mut services) = fresh(DATAPLANES).await;
    let count = async || store.list(Kind::MeshService, None).await.unwrap().len();
    for (mode, expected) in
        [("Disabled", 0), ("Everywhere", 1), ("ReachableBackends", 1), ("Exclusive", 1), ("Disabled", 0)]
    {
        apply(&store, &format!("{{type: Mesh, name: default, meshServices: {{mode: {mode}}}}}")).await;
        services.all().await;
        assert_eq!(count().await, expected, "{mode}");
    }
    // What a user made, and what came from another zone, is not touched.
    apply(
        &store,
        "{type: MeshService, mesh: default, name: mine, spec: {ports: [{port: 1}]}}\n---\n\
         {type: MeshService, mesh: default, name: web-x, labels: {kuma.io/origin: global, kuma.io/zone: west, \
         kuma.io/managed-by: meshservice-generator, kuma.io/display-name: web}, spec: {state: Available, ports: [{port: 1}]}}",
    )
    .await;
    services.all().await;
    assert_eq!(count().await, 2);
    let other = document(&store, Kind::MeshService, "web-x").await.unwrap();
    assert_eq!(other["spec"]["state"], "Available", "its own zone knows its state");
    assert_eq!(other["status"]["vips"][0]["ip"], "241.0.0.2", "but the address is of this zone");
}

#[tokio::test]
async fn names_of_services_and_what_they_collide_with() {
    let (store, mut services) = fresh(DATAPLANES).await;
    crate::defaults::ensure_global_names(&store).await.unwrap();
    apply(
        &store,
        "{type: MeshService, mesh: default, name: web-x, labels: {kuma.io/origin: global, kuma.io/zone: west, kuma.io/env: \
         universal, kuma.io/display-name: web}, spec: {ports: [{port: 1}]}}\n---\n\
         {type: MeshService, mesh: default, name: kube, labels: {kuma.io/origin: global, kuma.io/zone: west, kuma.io/env: \
         kubernetes, k8s.kuma.io/is-headless-service: 'false', k8s.kuma.io/namespace: shop, kuma.io/display-name: cart}, spec: \
         {ports: [{port: 1}]}}\n---\n\
         {type: MeshExternalService, mesh: default, name: mes, spec: {match: {port: 443, protocol: tcp}}}\n---\n\
         {type: MeshMultiZoneService, mesh: default, name: all, labels: {kuma.io/origin: global}, spec: {selector: \
         {meshService: {matchLabels: {kuma.io/display-name: web}}}, ports: [{port: 1, appProtocol: tcp}]}}\n---\n\
         {type: HostnameGenerator, name: same-for-all, spec: {selector: {meshService: {matchLabels: {kuma.io/origin: global}}}, \
         template: everything.mesh}}\n---\n\
         {type: HostnameGenerator, name: with-label, spec: {selector: {meshExternalService: {}}, template: '{{ label \"team\" \
         }}.mesh'}}",
    )
    .await;
    services.all().await;
    services.all().await;
    let names = async |kind, name: &str| {
        let addresses = document(&store, kind, name).await.unwrap()["status"]["addresses"].clone();
        let addresses = addresses.as_array().cloned().unwrap_or_default();
        addresses.iter().map(|address| address["hostname"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(Kind::MeshService, "web").await, ["web.svc.mesh.local"]);
    assert_eq!(names(Kind::MeshService, "web-x").await, ["everything.mesh", "web.svc.west.mesh.local"]);
    assert_eq!(names(Kind::MeshService, "kube").await, ["cart.shop.svc.west.mesh.local"]);
    assert_eq!(names(Kind::MeshExternalService, "mes").await, ["mes.extsvc.mesh.local"]);
    assert_eq!(names(Kind::MeshMultiZoneService, "all").await, ["all.mzsvc.mesh.local"]);
    let condition = |document: &Value, generator: &str| {
        let statuses = document["status"]["hostnameGenerators"].as_array().unwrap().clone();
        let of = |status: &&Value| status["hostnameGeneratorRef"]["coreName"] == generator;
        statuses.iter().find(of).unwrap()["conditions"][0].clone()
    };
    let kube = document(&store, Kind::MeshService, "kube").await.unwrap();
    assert_eq!(
        condition(&kube, "same-for-all"),
        json!({"type": "Generated", "status": "False", "reason": "Collision", "message": "Hostname collision with MeshService: web-x"})
    );
    let mes = document(&store, Kind::MeshExternalService, "mes").await.unwrap();
    assert_eq!(mes["status"]["vip"]["ip"], "242.0.0.0");
    assert_eq!(
        condition(&mes, "with-label"),
        json!({"type": "Generated", "status": "False", "reason": "TemplateError", "message": "label team not found"})
    );
    let all = document(&store, Kind::MeshMultiZoneService, "all").await.unwrap();
    assert_eq!(all["status"]["vips"], json!([{"ip": "243.0.0.0"}]));
    assert_eq!(
        all["status"]["meshServices"],
        json!([{"name": "web", "namespace": "", "zone": "east", "mesh": "default"},
            {"name": "web", "namespace": "", "zone": "west", "mesh": "default"}])
    );
}

/// Trap 21: an address is never given to another one.
#[tokio::test]
async fn services_by_tag_have_addresses_that_stay() {
    let (store, mut services) = fresh(DATAPLANES).await;
    apply(
        &store,
        "{type: ExternalService, mesh: default, name: es-1, networking: {address: 'example.com:443'}, tags: {kuma.io/service: es}}\n---\n\
         {type: ExternalService, mesh: default, name: es-2, networking: {address: 'quiet.org:80', disableHostDNSEntry: true}, tags: {kuma.io/service: es-2}}\n---\n\
         {type: ZoneIngress, name: zi, zone: west, networking: {port: 1}, availableServices: [{tags: {kuma.io/service: far}, instances: 1, mesh: default}, {tags: {kuma.io/service: else}, instances: 1, mesh: other}]}",
    )
    .await;
    services.all().await;
    let view = async || {
        let (vips, _) = LegacyVips::read(&store, "default").await.unwrap();
        let text = |(entry, vip): (&String, &crate::mesh::LegacyVip)| {
            let ports: Vec<String> = vip.outbounds.iter().map(|outbound| outbound.port.to_string()).collect();
            format!("{entry} {} {}", vip.address, ports.join(","))
        };
        vips.0.iter().map(text).collect::<Vec<_>>()
    };
    let first = [
        "0:es 240.0.0.0 443",
        "0:es-2 240.0.0.1 80",
        "0:far 240.0.0.2 0",
        "0:web 240.0.0.3 0",
        "0:web_shop_svc_82 240.0.0.4 0",
        "1:example.com 240.0.0.5 443",
    ];
    assert_eq!(view().await, first);
    // Gone, and back again, with another one in between.
    store.delete(&ResourceKey::new(Kind::ExternalService, "default", "es-2")).await.unwrap();
    services.all().await;
    assert_eq!(view().await[1], "0:es-2 240.0.0.1 ");
    apply(&store, "{type: ExternalService, mesh: default, name: a, networking: {address: '192.0.2.1:1'}, tags: {kuma.io/service: a}}").await;
    services.all().await;
    assert_eq!(view().await[0], "0:a 240.0.0.6 1");
    apply(&store, "{type: ExternalService, mesh: default, name: es-2, networking: {address: 'quiet.org:80', disableHostDNSEntry: true}, tags: {kuma.io/service: es-2}}").await;
    services.all().await;
    assert_eq!(view().await[2], "0:es-2 240.0.0.1 80");
}

#[tokio::test]
async fn zone_ingresses_offer_what_their_zone_has() {
    let (store, mut services) = fresh(DATAPLANES).await;
    apply(
        &store,
        "{type: ZoneIngress, name: mine, zone: east, networking: {port: 1}}\n---\n\
         {type: ZoneIngress, name: theirs, zone: west, networking: {port: 1}}\n---\n\
         {type: ExternalService, mesh: default, name: es, networking: {address: 'x.org:1'}, tags: {kuma.io/service: es, kuma.io/zone: east}}\n---\n\
         {type: ExternalService, mesh: default, name: es2, networking: {address: 'x.org:2'}, tags: {kuma.io/service: es2}}",
    )
    .await;
    services.all().await;
    let offered =
        async |name: &str| document(&store, Kind::ZoneIngress, name).await.unwrap().get("availableServices").cloned();
    let web = json!({"kuma.io/service": "web", "kuma.io/zone": "east", "kuma.io/protocol": "http"});
    let mine = offered("mine").await.unwrap();
    assert_eq!(mine.as_array().unwrap().len(), 3, "{mine}");
    let found = mine.as_array().unwrap().iter().find(|service| service["tags"] == web).unwrap();
    assert_eq!(found, &json!({"tags": web, "instances": 2, "mesh": "default"}));
    assert_eq!(offered("theirs").await, None);
    // ExternalServices of this zone alone are offered when a zone egress takes the traffic out.
    let mtls = "mtls: {enabledBackend: b, backends: [{name: b, type: builtin}]}";
    apply(&store, &format!("{{type: Mesh, name: default, routing: {{zoneEgress: true}}, {mtls}}}")).await;
    services.all().await;
    let mine = offered("mine").await.unwrap();
    let external: Vec<_> =
        mine.as_array().unwrap().iter().filter(|service| service["externalService"] == true).collect();
    assert_eq!(
        external,
        [
            &json!({"tags": {"kuma.io/service": "es", "kuma.io/zone": "east"}, "instances": 1, "mesh": "default", "externalService": true})
        ]
    );
    // Other zones reach MeshServices by name in this mode.
    apply(&store, "{type: Mesh, name: default, meshServices: {mode: Exclusive}}").await;
    services.all().await;
    assert_eq!(offered("mine").await, None);
}

#[tokio::test]
async fn changes_in_the_store_are_followed() {
    let (store, services) = fresh("{type: Mesh, name: default, meshServices: {mode: Everywhere}}").await;
    let mut watch = store.watch();
    let task = tokio::spawn(services.run());
    apply(&store, DATAPLANES).await;
    let service = ResourceKey::new(Kind::MeshService, "default", "web");
    let wait = async |watch: &mut crate::store::Watch, until: fn(&Event, &ResourceKey) -> bool| {
        let search = async { while !until(&watch.next().await.unwrap(), &service) {} };
        tokio::time::timeout(Duration::from_secs(60), search).await.unwrap();
    };
    wait(&mut watch, |event, key| *event == Event::Changed(key.clone())).await;
    apply(&store, "{type: Mesh, name: default}").await;
    wait(&mut watch, |event, key| *event == Event::Deleted(key.clone())).await;
    task.abort();
}
