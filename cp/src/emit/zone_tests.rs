#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};

use super::testing::*;
use super::*;
use crate::identity::ca::{self, CertificateAuthority};
use crate::mesh::{External, ExternalHost, LegacyVips, MeshView, OriginatedTls, Protocol, ZoneView, Zones};
use crate::plan::{PlanError, ProxyFeatures, ProxyPlan, egress, ingress, plan};
use crate::resource::{
    Dataplane, Mesh, MeshExternalService, MeshService, MeshTrafficPermission, Meta, ZoneEgress, ZoneIngress,
};

fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_yaml_ng::from_str(text).unwrap()
}

fn meta(mesh: &str, name: &str, labels: &[(&str, &str)]) -> Meta {
    let mut meta = Meta::new(mesh, name);
    meta.labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
    meta
}

fn zone(name: &str, ingresses: &[(&str, &str)], egresses: &[(&str, &str)]) -> Arc<Zones> {
    let mut zones = Zones::new(name);
    for (name, text) in ingresses {
        zones.ingresses.insert((*name).to_owned(), (Meta::new("", *name), Arc::new(yaml::<ZoneIngress>(text))));
    }
    for (name, text) in egresses {
        zones.egresses.insert((*name).to_owned(), (Meta::new("", *name), Arc::new(yaml::<ZoneEgress>(text))));
    }
    Arc::new(zones)
}

/// What a view is made of.
#[derive(Default)]
struct Parts {
    zone: Arc<Zones>,
    dataplanes: Vec<(Meta, Arc<Dataplane>)>,
    permissions: Vec<(Meta, Arc<MeshTrafficPermission>)>,
    external_services: Vec<External>,
    mesh_services: Vec<(Meta, Arc<MeshService>)>,
    mesh_external_services: Vec<(Meta, Arc<MeshExternalService>, External)>,
    /// Addresses of services by tag, JSON.
    vips: &'static str,
}

fn view(name: &str, mesh: &str, parts: Parts) -> MeshView {
    let mesh: Mesh = yaml(mesh);
    let authority = mesh.enabled_backend().map(|_| {
        let pem = ca::create(name, 0, ca::DEFAULT_EXPIRATION, chrono::Utc::now()).unwrap();
        Arc::new(CertificateAuthority::from_pem(name, &pem).unwrap())
    });
    let nobody = std::collections::BTreeSet::new();
    let mut view = MeshView::new(name, Arc::new(mesh), parts.dataplanes, parts.permissions, Ok(authority), &nobody);
    view.zones = parts.zone;
    view.outside = parts.external_services;
    for (meta, service) in parts.mesh_services {
        view.mesh_services.insert(meta.name.clone(), (meta, service));
    }
    for (meta, service, external) in parts.mesh_external_services {
        view.mesh_outside.insert(meta.name.clone(), external);
        view.mesh_external_services.insert(meta.name.clone(), (meta, service));
    }
    let legacy: LegacyVips = serde_json::from_str(if parts.vips.is_empty() { "{}" } else { parts.vips }).unwrap();
    view.vips = view.addresses(&legacy);
    view.complete();
    view
}

fn all(zone: &Arc<Zones>, views: Vec<MeshView>) -> ZoneView {
    let meshes = views.into_iter().map(|view| (view.name.clone(), Arc::new(view))).collect();
    ZoneView { zones: zone.clone(), meshes }
}

fn no_ipv6() -> ProxyFeatures {
    ProxyFeatures { ipv6: false, ..ProxyFeatures::default() }
}

fn emitted(plan: &ProxyPlan) -> BTreeMap<String, Value> {
    as_json(&snapshot(plan, None, &Snapshot::default()))
}

fn dataplane(mesh: &str, name: &str, text: &str) -> (Meta, Arc<Dataplane>) {
    (Meta::new(mesh, name), Arc::new(yaml(text)))
}

const MTLS: &str = "mtls: {enabledBackend: b, backends: [{name: b, type: builtin}]}";
const MTLS_EGRESS: &str =
    "{mtls: {enabledBackend: b, backends: [{name: b, type: builtin}]}, routing: {zoneEgress: true}}";

#[test]
fn an_ingress_without_services_says_who_it_is() {
    let zone = zone("zone-main", &[("ingress", "networking: {address: 10.0.0.1, port: 10001}")], &[]);
    let plan = ingress(&all(&zone, Vec::new()), "ingress", &no_ipv6()).unwrap();
    let mut ours = emitted(&plan);
    let name = format!("{LISTENER} inbound:10.0.0.1:10001");
    let path = "/filterChains/0/filters/0/typedConfig/response/inlineBytes";
    // {"proxy":".ingress","zone":"zone-main"}; in the golden the proxy has a mesh.
    let answer = ours.get_mut(&name).unwrap().pointer_mut(path).unwrap();
    assert_eq!(*answer, json!("eyJwcm94eSI6Ii5pbmdyZXNzIiwiem9uZSI6InpvbmUtbWFpbiJ9"));
    *answer = json!("eyJwcm94eSI6ImRlZmF1bHQuaW5ncmVzcyIsInpvbmUiOiJ6b25lLW1haW4ifQ==");
    let Some(theirs) = golden("generator/ingress/02.envoy.yaml") else { return };
    assert_same(&ours, &theirs, &[name]);
    assert_eq!(ours.len(), theirs.len());
    assert!(matches!(
        ingress(&all(&zone, Vec::new()), "other", &no_ipv6()),
        Err(PlanError::NoZoneProxy { kind: crate::resource::Kind::ZoneIngress, .. })
    ));
}

/// Trap 10: the server name of a service by tags.
#[test]
fn an_ingress_passes_on_by_server_name_as_that_of_kuma() {
    let ours = "availableServices: [{mesh: mesh1, instances: 2, tags: {kuma.io/service: backend}}, \
        {mesh: mesh1, instances: 2, tags: {kuma.io/service: backend, version: v2}}, \
        {mesh: no-mesh, instances: 1, tags: {kuma.io/service: gone}}]";
    let zone =
        zone("east", &[("ingress", &format!("{{networking: {{address: 10.0.0.1, port: 10001}}, {ours}}}"))], &[]);
    let dataplanes = vec![
        dataplane(
            "mesh1",
            "a",
            "networking: {address: 192.168.0.1, inbound: [{port: 2521, tags: {kuma.io/service: backend, version: v1, region: eu}}]}",
        ),
        dataplane(
            "mesh1",
            "b",
            "networking: {address: 192.168.0.2, inbound: [{port: 2521, tags: {kuma.io/service: backend, version: v2, region: us}}]}",
        ),
        dataplane(
            "mesh1",
            "c",
            "networking: {address: 192.168.0.3, inbound: [{port: 1, state: NotReady, tags: {kuma.io/service: backend}}]}",
        ),
    ];
    let mesh = view("mesh1", MTLS, Parts { zone: zone.clone(), dataplanes, ..Parts::default() });
    let ours = emitted(&ingress(&all(&zone, vec![mesh]), "ingress", &no_ipv6()).unwrap());
    let listener = &ours[&format!("{LISTENER} inbound:10.0.0.1:10001")];
    assert_eq!(listener["filterChains"].as_array().unwrap().len(), 1, "one chain for each server name");
    let Some(theirs) = golden("generator/ingress/03.envoy.yaml") else { return };
    // The golden has routes to subsets, whose chains come first.
    let golden_listener = &theirs[&format!("{LISTENER} inbound:10.0.0.1:10001")];
    assert_eq!(listener["filterChains"][0], golden_listener["filterChains"][2]);
    assert_eq!(listener["listenerFilters"], golden_listener["listenerFilters"]);
    assert_same(&ours, &theirs, &[format!("{ENDPOINT} mesh1:backend")]);
    let mut cluster = theirs[&format!("{CLUSTER} mesh1:backend")].clone();
    cluster.as_object_mut().unwrap().remove("lbSubsetConfig");
    assert_eq!(ours[&format!("{CLUSTER} mesh1:backend")], cluster);
}

#[test]
fn an_ingress_knows_service_resources_as_that_of_kuma() {
    let zone = zone("east", &[("ingress", "networking: {address: 10.0.0.1, port: 10001}")], &[]);
    let backend = || Arc::new(yaml::<MeshService>("{selector: {dataplaneTags: {app: x}}, ports: [{port: 80}]}"));
    let mesh_services = vec![
        (meta("default", "backend", &[("kuma.io/zone", "east")]), backend()),
        (meta("default", "backend2", &[]), backend()),
        (meta("default", "xyz", &[("kuma.io/zone", "west"), ("kuma.io/origin", "global")]), backend()),
    ];
    let mesh = view("default", MTLS, Parts { zone: zone.clone(), mesh_services, ..Parts::default() });
    let ours = emitted(&ingress(&all(&zone, vec![mesh]), "ingress", &no_ipv6()).unwrap());
    let Some(theirs) = golden("generator/ingress/mesh-service.envoy.yaml") else { return };
    // In the golden both have the name of the first one's cluster, although their server names differ.
    let chains = &ours[&format!("{LISTENER} inbound:10.0.0.1:10001")]["filterChains"];
    let golden_chains = &theirs[&format!("{LISTENER} inbound:10.0.0.1:10001")]["filterChains"];
    let names = |chains: &Value| {
        let mut names: Vec<Value> =
            chains.as_array().unwrap().iter().map(|chain| chain["filterChainMatch"].clone()).collect();
        names.sort_by_key(ToString::to_string);
        names
    };
    assert_eq!(names(chains), names(golden_chains));
    let east = "default_backend__east_msvc_80";
    assert_same(&ours, &theirs, &[format!("{CLUSTER} {east}"), format!("{ENDPOINT} {east}")]);
}

fn external(name: &str, protocol: Protocol, host: (&str, u32), tls: Option<OriginatedTls>) -> External {
    let mut tags = BTreeMap::from([("kuma.io/protocol".to_owned(), protocol.name().to_owned())]);
    if tls.is_some() {
        tags.insert("kuma.io/external-service-name".to_owned(), name.to_owned());
    }
    External {
        name: name.to_owned(),
        service: name.to_owned(),
        tags,
        protocol,
        hosts: vec![ExternalHost { host: host.0.to_owned(), port: host.1, priority: 0 }],
        tls,
    }
}

fn egress_parts(zone: &Arc<Zones>) -> Parts {
    let tls = OriginatedTls { ca: Some(b"xyz".to_vec()), ..OriginatedTls::default() };
    Parts {
        zone: zone.clone(),
        external_services: vec![
            external("externalservice-1", Protocol::Http, ("kuma.io", 80), None),
            external("externalservice-2", Protocol::Http2, ("httpbin.io", 443), Some(tls)),
        ],
        permissions: vec![(
            Meta::new("mesh-1", "everyone"),
            Arc::new(yaml::<MeshTrafficPermission>("from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]")),
        )],
        ..Parts::default()
    }
}

const OTHER_ZONE: &str = "{zone: zone-2, networking: {address: 10.0.0.254, advertisedAddress: 10.0.0.254, port: 10001, advertisedPort: 10001}, \
    availableServices: [{mesh: mesh-1, instances: 3, tags: {kuma.io/service: service-1-zone-2, kuma.io/protocol: http}}, \
    {mesh: mesh-1, instances: 30, tags: {kuma.io/service: service-2-zone-2, kuma.io/protocol: http2}}]}";

#[test]
fn an_egress_is_that_of_kuma() {
    let zone = zone(
        "zone-1",
        &[("zone-2-zoneingress-1", OTHER_ZONE)],
        &[("zoneegress-1", "{zone: zone-1, networking: {address: 192.168.0.1, port: 10002}}")],
    );
    let mesh = view("mesh-1", MTLS_EGRESS, egress_parts(&zone));
    let plan = egress(&all(&zone, vec![mesh]), "zoneegress-1", &no_ipv6()).unwrap();
    assert_eq!(plan.mtls[0].leaf.uris, ["spiffe://mesh-1/zone-egress"]);
    let mut ours = emitted(&plan);
    assert!(ours.contains_key("envoy.extensions.transport_sockets.tls.v3.Secret mesh_ca:secret:mesh-1"));
    let Some(mut theirs) = golden("generator/egress/03.mixed-services.yaml") else { return };

    for service in ["externalservice-1", "externalservice-2", "service-1-zone-2", "service-2-zone-2"] {
        let name = format!("{CLUSTER} mesh-1:{service}");
        // Circuit breakers are those of policies. The one TLS of all endpoints is that of the only match.
        let golden = theirs.get_mut(&name).unwrap().as_object_mut().unwrap();
        golden.remove("circuitBreakers");
        if let Some(mut matches) = golden.remove("transportSocketMatches") {
            golden.insert("transportSocket".to_owned(), matches[0]["transportSocket"].take());
        }
        assert_same(&ours, &theirs, &[name]);
    }
    for service in ["service-1-zone-2", "service-2-zone-2"] {
        assert_same(&ours, &theirs, &[format!("{ENDPOINT} mesh-1:{service}")]);
    }
    // In the golden legacy TrafficPermissions are network filters; MeshTrafficPermissions are HTTP filters, as in inbounds.
    let name = format!("{LISTENER} inbound:192.168.0.1:10002");
    let chains = |resources: &mut BTreeMap<String, Value>| {
        let chains = resources.get_mut(&name).unwrap()["filterChains"].as_array_mut().unwrap();
        for chain in chains.iter_mut() {
            let filters = chain["filters"].as_array_mut().unwrap();
            filters.retain(|filter| filter["name"] != "envoy.filters.network.rbac");
            for filter in filters {
                if let Some(http) = filter["typedConfig"].get_mut("httpFilters") {
                    http.as_array_mut().unwrap().retain(|filter| filter["name"] != "envoy.filters.http.rbac");
                }
            }
        }
        chains.clone()
    };
    let listener = ours[&name].clone();
    assert_eq!(chains(&mut ours), chains(&mut theirs));
    let first = "/filterChains/2/filters/0/typedConfig/httpFilters/0/typedConfig/rules/policies/MeshTrafficPermission/principals";
    assert_eq!(listener.pointer(first), Some(&json!([{"any": true}])));
}

#[test]
fn an_egress_lets_nobody_out_by_default() {
    let zone = zone("zone-1", &[], &[("egress", "networking: {address: 192.168.0.1, port: 10002}")]);
    let rules = |permission: Option<&str>| {
        let mut parts = egress_parts(&zone);
        parts.permissions = permission
            .map(|text| (Meta::new("mesh-1", "p"), Arc::new(yaml::<MeshTrafficPermission>(text))))
            .into_iter()
            .collect();
        // An opaque one too: its check is a network filter.
        parts.external_services.push(external("tcp", Protocol::Tcp, ("10.9.9.9", 3306), None));
        let plan = egress(&all(&zone, vec![view("mesh-1", MTLS, parts)]), "egress", &no_ipv6()).unwrap();
        let ours = emitted(&plan);
        assert_eq!(ours[&format!("{CLUSTER} mesh-1:tcp")]["type"], json!("STATIC"));
        let listener = ours[&format!("{LISTENER} inbound:192.168.0.1:10002")].clone();
        let http = listener.pointer("/filterChains/0/filters/0/typedConfig/httpFilters/0").unwrap();
        assert_eq!(http["name"], json!("envoy.filters.http.rbac"));
        let tcp = listener.pointer("/filterChains/2/filters/0").unwrap();
        assert_eq!(tcp["name"], json!("envoy.filters.network.rbac"));
        assert_eq!(tcp["typedConfig"]["statPrefix"], json!("inbound_192_168_0_1_10002."));
        assert_eq!(http["typedConfig"]["rules"], tcp["typedConfig"]["rules"]);
        http["typedConfig"]["rules"].clone()
    };
    assert_eq!(rules(None), json!({}), "no policies: everyone is denied");
    let all = json!([{"any": true}]);
    let allowed = rules(Some("from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]"));
    assert_eq!(allowed["policies"]["MeshTrafficPermission"]["principals"], all);
    let one =
        "{targetRef: {kind: Mesh}, from: [{targetRef: {kind: MeshService, name: web}, default: {action: Allow}}]}";
    let web = json!([{"authenticated": {"principalName": {"exact": "spiffe://mesh-1/web"}}}]);
    assert_eq!(rules(Some(one))["policies"]["MeshTrafficPermission"]["principals"], web);
    // A policy for Dataplanes is none for an egress.
    let other = "{targetRef: {kind: Dataplane}, from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]}";
    assert_eq!(rules(Some(other)), json!({}));
}

fn mesh_external(forbid: bool) -> BTreeMap<String, Value> {
    let zone = zone("zone-1", &[], &[("egress", "networking: {address: 127.0.0.1, port: 10002}")]);
    let spec: MeshExternalService =
        yaml("{match: {port: 9090, protocol: http}, endpoints: [{address: example.com, port: 80}]}");
    let reached = External {
        name: "example".to_owned(),
        service: String::new(),
        tags: BTreeMap::new(),
        protocol: Protocol::Http,
        hosts: vec![
            ExternalHost { host: "example.com".to_owned(), port: 80, priority: 0 },
            ExternalHost { host: "10.1.1.1".to_owned(), port: 80, priority: 1 },
        ],
        tls: Some(OriginatedTls { system_ca: true, ..OriginatedTls::default() }),
    };
    let routing = if forbid { ", routing: {defaultForbidMeshExternalServiceAccess: true}" } else { "" };
    let parts = Parts {
        zone: zone.clone(),
        mesh_external_services: vec![(Meta::new("default", "example"), Arc::new(spec), reached)],
        ..Parts::default()
    };
    let features = ProxyFeatures { system_ca_path: "/etc/ssl/ca.pem".to_owned(), ..no_ipv6() };
    let mesh = view("default", &format!("{{{MTLS}{routing}}}"), parts);
    emitted(&egress(&all(&zone, vec![mesh]), "egress", &features).unwrap())
}

#[test]
fn an_egress_reaches_mesh_external_services() {
    let key = "default_example___extsvc_9090";
    let ours = mesh_external(false);
    let listener = &ours[&format!("{LISTENER} inbound:127.0.0.1:10002")];
    let chain = &listener["filterChains"][0];
    assert_eq!(chain["filterChainMatch"]["serverNames"], json!(["afce62f771ed74b78.example.9090.default.mes"]));
    assert_eq!(chain["name"], json!(key));
    let http = chain.pointer("/filters/0/typedConfig").unwrap();
    assert_eq!(http["routeConfig"]["name"], json!(key));
    let route = http.pointer("/routeConfig/virtualHosts/0/routes/0/route").unwrap();
    assert_eq!(*route, json!({"autoHostRewrite": true, "cluster": key, "timeout": "0s"}));
    let rules = "/httpFilters/0/typedConfig/rules/policies/MeshTrafficPermission/principals";
    assert_eq!(http.pointer(rules), Some(&json!([{"any": true}])));

    let cluster = &ours[&format!("{CLUSTER} {key}")];
    assert_eq!((&cluster["type"], &cluster["dnsLookupFamily"]), (&json!("STRICT_DNS"), &json!("V4_ONLY")));
    let endpoints = cluster.pointer("/loadAssignment/endpoints").unwrap();
    assert_eq!(endpoints[1]["priority"], json!(1));
    assert_eq!(endpoints[0]["locality"], json!({"subZone": "priority-0"}));
    // Hosts by name and by address need different names in their certificates.
    let matches = cluster["transportSocketMatches"].as_array().unwrap();
    let context = &matches[0]["transportSocket"]["typedConfig"];
    assert_eq!(context["sni"], json!("example.com"));
    let validation = &context["commonTlsContext"]["validationContext"];
    assert_eq!(validation["trustedCa"], json!({"filename": "/etc/ssl/ca.pem"}));
    assert_eq!(validation["matchTypedSubjectAltNames"].as_array().unwrap().len(), 2);

    let ours = mesh_external(true);
    let listener = &ours[&format!("{LISTENER} inbound:127.0.0.1:10002")];
    let rules = "/filterChains/0/filters/0/typedConfig/httpFilters/0/typedConfig/rules";
    assert_eq!(listener.pointer(rules), Some(&json!({})));
}

#[test]
fn one_egress_serves_many_meshes() {
    let zone = zone("zone-1", &[], &[("egress", "networking: {address: 192.168.0.1, port: 10002}")]);
    let with = |name: &str, mesh: &str| {
        let parts = Parts {
            zone: zone.clone(),
            external_services: vec![external("es", Protocol::Tcp, ("10.9.9.9", 1), None)],
            ..Parts::default()
        };
        view(name, mesh, parts)
    };
    let broken = || {
        let error =
            crate::identity::IdentityError::AuthorityMissing { mesh: "broken".to_owned(), secret: "s".to_owned() };
        let mut view = view("broken", MTLS, Parts { zone: zone.clone(), ..Parts::default() });
        view.authority = Err(error);
        view
    };
    let meshes = all(&zone, vec![with("a", MTLS), with("b", MTLS), with("plain", "{}"), broken()]);
    let plan = egress(&meshes, "egress", &no_ipv6()).unwrap();
    assert_eq!(plan.mtls.iter().map(|mtls| mtls.mesh.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(plan.warnings.iter().any(|warning| warning.contains("\"broken\"")), "{:?}", plan.warnings);
    let ours = emitted(&plan);
    let chains = ours[&format!("{LISTENER} inbound:192.168.0.1:10002")]["filterChains"].as_array().unwrap();
    let names: Vec<&Value> = chains.iter().map(|chain| &chain["filterChainMatch"]["serverNames"][0]).collect();
    assert_eq!(names, [&json!("es{mesh=a}"), &json!("es{mesh=b}")]);
    // Without anything to do there is no listener: Envoy refuses one without chains.
    let idle = egress(&all(&zone, Vec::new()), "egress", &no_ipv6()).unwrap();
    assert_eq!(emitted(&idle), BTreeMap::new());
}

/// What a sidecar gets of a service with instances here and in two other zones.
fn endpoints(mesh: &str, own_egress: bool) -> Value {
    let remote = |zone: &str, ip: &str, instances: u32| {
        format!(
            "{{zone: {zone}, networking: {{address: 10.0.0.1, port: 1, advertisedAddress: {ip}, advertisedPort: 10001}}, availableServices: \
             [{{mesh: default, instances: {instances}, tags: {{kuma.io/service: backend, kuma.io/zone: {zone}, kuma.io/protocol: http}}}}]}}"
        )
    };
    let (two, three) = (remote("zone-2", "1.1.1.2", 5), remote("zone-3", "1.1.1.3", 2));
    let behind_the_same = remote("zone-2", "1.1.1.2", 5);
    let own = remote("zone-1", "1.1.1.1", 1);
    let egress = [("egress", "{zone: zone-1, networking: {address: 10.0.0.9, port: 10002}}")];
    let zone = zone(
        "zone-1",
        &[("own", own.as_str()), ("z2-a", &two), ("z2-b", &behind_the_same), ("z3", &three)],
        if own_egress { &egress } else { &[] },
    );
    let dataplanes = vec![
        dataplane(
            "default",
            "web",
            "networking: {address: 10.0.0.2, outbound: [{port: 1, tags: {kuma.io/service: backend}}]}",
        ),
        dataplane(
            "default",
            "b",
            "networking: {address: 10.0.0.3, inbound: [{port: 80, tags: {kuma.io/service: backend, kuma.io/zone: zone-1, kuma.io/protocol: http}}]}",
        ),
    ];
    let mesh = view("default", mesh, Parts { zone, dataplanes, ..Parts::default() });
    let ours = emitted(&plan(&mesh, "web", no_ipv6()).unwrap());
    let assignment = &ours[&format!("{ENDPOINT} backend")]["endpoints"];
    let found = assignment.as_array().unwrap().iter().flat_map(|locality| {
        let priority = locality.get("priority").and_then(Value::as_u64).unwrap_or_default();
        locality["lbEndpoints"].as_array().unwrap().iter().map(move |endpoint| {
            let address = endpoint.pointer("/endpoint/address/socketAddress/address").unwrap().as_str().unwrap();
            json!([locality["locality"]["zone"], address, endpoint["loadBalancingWeight"], priority])
        })
    });
    found.collect()
}

#[test]
fn instances_in_other_zones_are_reached_through_their_ingresses() {
    let own = |weight: u32| json!(["zone-1", "10.0.0.3", weight, 0]);
    // Without mutual TLS there is no way to other zones.
    assert_eq!(endpoints("{}", false), json!([own(1)]));
    // Two ingresses: what is here counts as often as what is there.
    let expected =
        |priority: u32| json!([own(2), ["zone-2", "1.1.1.2", 5, priority], ["zone-3", "1.1.1.3", 2, priority]]);
    assert_eq!(endpoints(MTLS, false), expected(0));
    let local_first = format!("{{{MTLS}, routing: {{localityAwareLoadBalancing: true}}}}");
    assert_eq!(endpoints(&local_first, false), expected(1));
    let through = json!([own(2), ["zone-2", "10.0.0.9", 1, 0], ["zone-3", "10.0.0.9", 1, 0]]);
    assert_eq!(endpoints(MTLS_EGRESS, true), through);
    assert_eq!(endpoints(MTLS_EGRESS, false), json!([own(2)]), "no egress, no way");
    // Clients of a permissive mesh speak plain text as long as not everyone has a certificate; no way either.
    let permissive = "mtls: {enabledBackend: b, backends: [{name: b, type: builtin, mode: PERMISSIVE}]}";
    assert_eq!(endpoints(permissive, false), json!([own(2)]));
}

/// Trap 21: instances of a MeshService in another zone come second, whatever the mesh says of localities.
#[test]
fn service_resources_of_other_zones_come_second() {
    let ingress =
        "{zone: zone-2, networking: {address: 10.0.0.1, port: 1, advertisedAddress: 1.1.1.2, advertisedPort: 10001}}";
    let egress = ("egress", "{zone: zone-1, networking: {address: 10.0.0.9, port: 10002}}");
    let zone = zone("zone-1", &[("z2", ingress)], &[egress]);
    for (mesh, address) in [
        (MTLS.to_owned(), "1.1.1.2"),
        (format!("{{{MTLS}, routing: {{localityAwareLoadBalancing: true}}}}"), "1.1.1.2"),
        (MTLS_EGRESS.to_owned(), "10.0.0.9"),
    ] {
        let labels = [("kuma.io/origin", "global"), ("kuma.io/zone", "zone-2"), ("kuma.io/display-name", "backend")];
        let service = Arc::new(yaml::<MeshService>("{ports: [{port: 80, appProtocol: http}]}"));
        let mesh_services = vec![(meta("default", "backend-x", &labels), service)];
        let view = view("default", &mesh, Parts { zone: zone.clone(), mesh_services, ..Parts::default() });
        let (_, backend) = view.backend("MeshService", "backend-x", 80).unwrap();
        let found: Vec<_> = backend.endpoints.iter().map(|e| (e.address.as_str(), e.priority, e.weight)).collect();
        assert_eq!(found, [(address, 1, 1)], "{mesh}");
    }
}

#[test]
fn service_resources_have_listeners_as_those_of_kuma() {
    let zone = zone("zone-1", &[], &[("egress", "{zone: zone-1, networking: {address: 127.0.0.1, port: 10002}}")]);
    let spec = |more: &str| {
        let service = format!(
            "{{selector: {{dataplaneTags: {{app: backend}}}}, ports: [{{port: 80, name: test-port, targetPort: 8084, appProtocol: http}}]{more}}}"
        );
        Arc::new(yaml::<MeshService>(&service))
    };
    let mut service = spec("");
    Arc::make_mut(&mut service).status =
        yaml("{vips: [{ip: 241.0.0.1}], addresses: [{hostname: backend.svc.mesh.local}]}");
    let mut example: MeshExternalService =
        yaml("{match: {port: 9090, protocol: http}, endpoints: [{address: example.com, port: 80}]}");
    example.status = yaml("{vip: {ip: 242.0.0.1}, addresses: [{hostname: example.extsvc.mesh.local}]}");
    let reached = External {
        service: String::new(),
        tags: BTreeMap::new(),
        ..external("example", Protocol::Http, ("example.com", 80), None)
    };
    let parts = |mesh: &str, transparent: &str| {
        let dataplanes = vec![
            dataplane("default", "web", &format!("networking: {{address: 10.0.0.2, {transparent}}}")),
            dataplane(
                "default",
                "b",
                "networking: {address: 192.168.0.4, inbound: [{port: 8084, tags: {kuma.io/service: backend, kuma.io/protocol: http, app: backend}}]}",
            ),
        ];
        let parts = Parts {
            zone: zone.clone(),
            dataplanes,
            mesh_services: vec![(Meta::new("default", "backend"), service.clone())],
            mesh_external_services: vec![(Meta::new("default", "example"), Arc::new(example.clone()), reached.clone())],
            vips: r#"{"0:backend": {"address": "240.0.0.1", "outbounds": [{"TagSet": {"kuma.io/service": "backend"}}]}}"#,
            ..Parts::default()
        };
        let view = view("default", mesh, parts);
        emitted(&plan(&view, "web", no_ipv6()).unwrap())
    };
    let redirected = "transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001}";
    let with = |more: &str| redirected.replace('}', &format!(", {more}}}"));
    let has = |ours: &BTreeMap<String, Value>| {
        ["240.0.0.1:80", "241.0.0.1:80", "242.0.0.1:9090"]
            .map(|at| ours.contains_key(&format!("{LISTENER} outbound:{at}")))
    };
    let mode = |mode: &str| format!("{{{MTLS}, meshServices: {{mode: {mode}}}}}");

    let ours = parts(&mode("Everywhere"), redirected);
    assert_eq!(has(&ours), [true, true, true]);
    assert_eq!(has(&parts(&mode("Exclusive"), redirected)), [false, true, true]);
    assert_eq!(has(&parts(&mode("ReachableBackends"), redirected)), [true, false, false]);
    let refs = with("reachableBackends: {refs: [{kind: MeshService, name: backend}]}");
    assert_eq!(has(&parts(&mode("ReachableBackends"), &refs)), [true, true, false]);
    assert_eq!(has(&parts(&mode("Everywhere"), &refs)), [true, true, false]);
    assert_eq!(has(&parts(&mode("Everywhere"), &with("reachableServices: [backend]"))), [true, false, false]);
    let none = with("reachableBackends: {}");
    assert_eq!(has(&parts(&mode("Exclusive"), &none)), [false, false, false]);
    // Listed in the Dataplane, without redirection.
    let listed = "outbound: [{port: 10001, backendRef: {kind: MeshService, name: backend, port: 80}}, {port: 10002, backendRef: {kind: MeshService, name: no}}]";
    let bound = parts(MTLS, listed);
    assert_eq!(bound[&format!("{LISTENER} outbound:127.0.0.1:10001")].get("bindToPort"), None);
    assert!(!bound.contains_key(&format!("{LISTENER} outbound:127.0.0.1:10002")));

    let plain = parts("{meshServices: {mode: Everywhere}}", redirected);
    let key = "default_backend___msvc_80";
    let Some(theirs) = golden("policy/meshhttproute/basic-real-meshservice.clusters.yaml") else { return };
    assert_same(&plain, &theirs, &[format!("{CLUSTER} {key}")]);
    let theirs = golden("policy/meshhttproute/basic-real-meshservice.endpoints.yaml").unwrap();
    assert_same(&plain, &theirs, &[format!("{ENDPOINT} {key}")]);
    let theirs = golden("policy/meshhttproute/basic-real-meshservice.listeners.yaml").unwrap();
    let golden_listener = &theirs[&format!("{LISTENER} outbound:127.0.0.1:10001")];
    let listener = &plain[&format!("{LISTENER} outbound:241.0.0.1:80")];
    for path in [
        "/metadata",
        "/filterChains/0/filters/0/typedConfig/statPrefix",
        "/filterChains/0/filters/0/typedConfig/routeConfig/name",
        "/filterChains/0/filters/0/typedConfig/routeConfig/virtualHosts/0/name",
    ] {
        assert_eq!(listener.pointer(path), golden_listener.pointer(path), "{path}");
    }
    let theirs = golden("policy/meshhttproute/meshexternalservice-with-tls.clusters.yaml").unwrap();
    let example = "default_example___extsvc_9090";
    assert_same(&ours, &theirs, &[format!("{CLUSTER} {example}")]);
    let theirs = golden("policy/meshhttproute/meshexternalservice-with-tls.endpoints.yaml").unwrap();
    assert_same(&ours, &theirs, &[format!("{ENDPOINT} {example}")]);
    let theirs = golden("policy/meshhttproute/meshexternalservice-with-tls.listeners.yaml").unwrap();
    let chain = "/filterChains/0/filters/0/typedConfig/routeConfig/virtualHosts";
    let golden_listener = &theirs[&format!("{LISTENER} outbound:10.20.20.1:9090")];
    let listener = &ours[&format!("{LISTENER} outbound:242.0.0.1:9090")];
    // The golden is of Kuma's route plugin alone; its plugin for timeouts puts its defaults in afterwards.
    let untimed = |listener: &Value| {
        let mut hosts = listener.pointer(chain).unwrap().clone();
        let route = hosts.pointer_mut("/0/routes/0/route").and_then(Value::as_object_mut).unwrap();
        route.retain(|field, _| !["timeout", "idleTimeout"].contains(&field.as_str()));
        hosts
    };
    assert_eq!(untimed(listener), untimed(golden_listener));
}

#[test]
fn external_services_are_reached_directly_or_through_an_egress() {
    let cluster = |mesh: &str| {
        let zone = zone("zone-1", &[], &[("egress", "{zone: zone-1, networking: {address: 10.0.0.9, port: 10002}}")]);
        let dataplanes = vec![dataplane(
            "default",
            "web",
            "networking: {address: 10.0.0.2, outbound: [{port: 1, tags: {kuma.io/service: httpbin}}]}",
        )];
        let external_services = vec![external("httpbin", Protocol::Http, ("httpbin.org", 80), None)];
        let parts = Parts { zone, dataplanes, external_services, ..Parts::default() };
        let mesh = view("default", mesh, parts);
        let ours = emitted(&plan(&mesh, "web", no_ipv6()).unwrap());
        let route = "/filterChains/0/filters/0/typedConfig/routeConfig/virtualHosts/0/routes/0/route/autoHostRewrite";
        let listener = &ours[&format!("{LISTENER} outbound:127.0.0.1:1")];
        assert_eq!(listener.pointer(route), Some(&json!(true)), "{listener:#}");
        ours[&format!("{CLUSTER} httpbin")].clone()
    };
    let direct = cluster(MTLS);
    assert_eq!((&direct["type"], direct.get("transportSocket")), (&json!("STRICT_DNS"), None));
    let options =
        "/typedExtensionProtocolOptions/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicitHttpConfig";
    assert_eq!(direct.pointer(options), Some(&json!({"httpProtocolOptions": {}})));
    let through = cluster(MTLS_EGRESS);
    assert_eq!(through["type"], json!("EDS"));
    let tls = &through["transportSocket"]["typedConfig"];
    assert_eq!(tls["sni"], json!("httpbin{mesh=default}"));
    let name = "/commonTlsContext/combinedValidationContext/defaultValidationContext/matchTypedSubjectAltNames/0/matcher/exact";
    assert_eq!(tls.pointer(name), Some(&json!("spiffe://default/zone-egress")));
}
