#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::testing::*;
use super::*;
use crate::identity::ca::{self, CertificateAuthority};
use crate::mesh::{MeshView, Vip, VipOutbound};
use crate::plan::{AdminEndpoint, ProxyFeatures, Redirection, plan};
use crate::resource::{Dataplane, Mesh, Meta};

/// What the first Dataplane gets, in a mesh `default` with these addresses, and the warnings about it.
fn emitted(
    mesh: &str,
    dataplanes: &[(Meta, &str)],
    vips: Vec<Vip>,
    features: ProxyFeatures,
) -> (BTreeMap<String, Value>, BTreeSet<String>) {
    let mesh: Mesh = serde_yaml_ng::from_str(mesh).unwrap();
    let authority = mesh.enabled_backend().map(|_| {
        let pem = ca::create("default", 0, ca::DEFAULT_EXPIRATION, chrono::Utc::now()).unwrap();
        Arc::new(CertificateAuthority::from_pem("default", &pem).unwrap())
    });
    let name = dataplanes[0].0.name.clone();
    let dataplanes = dataplanes
        .iter()
        .map(|(meta, yaml)| (meta.clone(), Arc::new(serde_yaml_ng::from_str::<Dataplane>(yaml).unwrap())))
        .collect();
    let mut view = MeshView::new("default", Arc::new(mesh), dataplanes, Vec::new(), Ok(authority), &BTreeSet::new());
    view.vips = vips;
    view.policies = no_timeouts();
    let plan = plan(&view, &name, features).unwrap();
    (as_json(&snapshot(&plan, None, &Snapshot::default())), plan.warnings)
}

fn one(yaml: &str) -> [(Meta, &str); 1] {
    [(Meta::new("default", "web-1"), yaml)]
}

fn vip(address: &str, service: &str, names: &[&str]) -> Vip {
    Vip {
        address: address.parse().unwrap(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        outbounds: vec![VipOutbound {
            port: 80,
            tags: BTreeMap::from([("kuma.io/service".to_owned(), service.to_owned())]),
            backend_ref: None,
        }],
    }
}

fn no_ipv6() -> ProxyFeatures {
    ProxyFeatures { ipv6: false, ..ProxyFeatures::default() }
}

const STRICT: &str = "mtls: {enabledBackend: b, backends: [{name: b, type: builtin}]}";
const REDIRECTED: &str = "transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001}";

#[test]
fn redirected_traffic_is_taken_in_as_by_kuma() {
    let dataplane = format!("networking: {{{REDIRECTED}}}");
    let (ours, _) = emitted("{}", &one(&dataplane), Vec::new(), no_ipv6());
    let Some(theirs) = golden("generator/transparent-proxy/02.envoy.yaml") else { return };
    assert_same(&ours, &theirs, &theirs.keys().cloned().collect::<Vec<_>>());
    assert_eq!(ours.len(), theirs.len());
}

/// Trap 7: the features that a proxy announces change what it gets.
#[test]
fn what_a_proxy_announces_outranks_its_dataplane() {
    let announced = |redirection| ProxyFeatures { redirection: Some(redirection), ..no_ipv6() };
    let capture = |family: &str| format!("{LISTENER} outbound:passthrough:{family}");
    let dataplane = "networking: {address: 10.0.0.1}";
    let v4_only = Redirection { ipv6: false, ..Redirection::default() };
    let (ours, _) = emitted("{}", &one(dataplane), Vec::new(), announced(v4_only));
    assert!(ours.contains_key(&capture("ipv4")) && !ours.contains_key(&capture("ipv6")), "{ours:#?}");

    let declared = format!("networking: {{address: 10.0.0.1, {REDIRECTED}}}");
    let none = Redirection { inbound: 0, outbound: 0, ipv6: true };
    let (ours, _) = emitted("{}", &one(&declared), Vec::new(), announced(none));
    assert_eq!(ours, BTreeMap::new());

    // IPv4 alone is redirected, and the proxy has an IPv6 address: nothing is.
    let (ours, _) = emitted("{}", &one("networking: {address: '2001:db8::1'}"), Vec::new(), announced(v4_only));
    assert_eq!(ours, BTreeMap::new());
}

#[test]
fn passthrough_is_up_to_the_mesh() {
    let dataplane = format!("networking: {{address: 10.0.0.1, {REDIRECTED}}}");
    let mesh = "networking: {outbound: {passthrough: false}}";
    let (ours, _) = emitted(mesh, &one(&dataplane), Vec::new(), no_ipv6());
    assert!(!ours.contains_key(&format!("{CLUSTER} outbound:passthrough:ipv4")));
    assert!(ours.contains_key(&format!("{CLUSTER} inbound:passthrough:ipv4")));
    // The listener stays, in front of a cluster that does not exist: connections are reset.
    let listener = &ours[&format!("{LISTENER} outbound:passthrough:ipv4")];
    let cluster = "/filterChains/1/filters/0/typedConfig/cluster";
    assert_eq!(listener.pointer(cluster), Some(&json!("outbound:passthrough:ipv4")));
}

/// One redirection is enough: what arrives with outbound traffic for the proxy's own addresses is inbound.
#[test]
fn inbound_traffic_on_the_outbound_port_is_told_apart() {
    let yaml = |mode: &str| {
        format!(
            "networking: {{address: 10.0.0.1, {REDIRECTED}, inbound: [{{port: 80, servicePort: 8080, tags: {{kuma.io/service: a}}}}, \
             {{port: 81, address: '2001:db8::1', tags: {{kuma.io/service: b}}}}]}}\n# {mode}"
        )
    };
    let own = |ours: &BTreeMap<String, Value>, family: &str| {
        let chain = ours[&format!("{LISTENER} outbound:passthrough:{family}")]["filterChains"][0].clone();
        (chain["filterChainMatch"].clone(), chain["filters"][0]["typedConfig"]["cluster"].clone())
    };
    let range = |ip: &str, length: u32| json!({"prefixRanges": [{"addressPrefix": ip, "prefixLen": length}]});
    let (ours, _) = emitted(STRICT, &one(&yaml("open")), Vec::new(), no_ipv6());
    assert_eq!(own(&ours, "ipv4"), (range("10.0.0.1", 32), json!("inbound:passthrough:ipv4")));
    assert_eq!(own(&ours, "ipv6"), (range("2001:db8::1", 128), json!("inbound:passthrough:ipv6")));
    // Where an inbound is, its listener has the connection, on whatever port it was redirected to.
    let inbound = &ours[&format!("{LISTENER} inbound:10.0.0.1:80")];
    assert_eq!(inbound["bindToPort"], json!(false));

    // Strict ports: what no inbound declares goes nowhere.
    let strict = ProxyFeatures { strict_inbound_ports: true, ..no_ipv6() };
    let (ours, _) = emitted(STRICT, &one(&yaml("strict")), Vec::new(), strict);
    assert_eq!(own(&ours, "ipv4").1, json!("self_transparentproxy_no_destination_inbound"));

    // Both redirections lead to one port: there is one listener.
    let shared = Redirection { inbound: 15001, ..Redirection::default() };
    let features = ProxyFeatures { redirection: Some(shared), ..no_ipv6() };
    let (ours, _) = emitted("{}", &one(&yaml("shared")), Vec::new(), features);
    assert!(!ours.contains_key(&format!("{LISTENER} inbound:passthrough:ipv4")));
    assert_eq!(own(&ours, "ipv4").1, json!("inbound:passthrough:ipv4"));
}

#[test]
fn strict_ports_are_those_of_kuma() {
    let yaml = "networking: {address: 127.0.0.1, transparentProxying: {redirectPortInbound: 15001, redirectPortOutbound: 15002}, \
        inbound: [{port: 17777, tags: {kuma.io/service: backend}}, {port: 17778, tags: {kuma.io/service: frontend}}]}";
    let strict = ProxyFeatures { strict_inbound_ports: true, ..no_ipv6() };
    let (ours, _) = emitted(STRICT, &one(yaml), Vec::new(), strict.clone());
    let Some(theirs) = golden("policy/meshtls/strict-with-feature-strict-inbound-ports.listeners.yaml") else { return };
    let names = theirs.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_same(&ours, &theirs, &names);

    // The port that stands for none leads nowhere; without mutual TLS every port is open.
    let yaml = format!(
        "networking: {{address: 10.0.0.1, {REDIRECTED}, inbound: [{{port: 49151, tags: {{kuma.io/service: a}}}}]}}"
    );
    let chains = |mesh: &str| {
        let (ours, _) = emitted(mesh, &one(&yaml), Vec::new(), strict.clone());
        assert!(!ours.contains_key(&format!("{LISTENER} inbound:10.0.0.1:49151")));
        ours[&format!("{LISTENER} inbound:passthrough:ipv4")]["filterChains"].clone()
    };
    let chain = &chains(STRICT)[0];
    assert_eq!(chain["filterChainMatch"], json!({"destinationPort": 49151}));
    let cluster = &chain["filters"][0]["typedConfig"]["cluster"];
    assert_eq!(cluster, &json!("self_transparentproxy_no_destination_inbound"));
    assert_eq!(chains("{}")[0].get("filterChainMatch"), None);
}

/// Trap 28: connections to the workload come from addresses that are not redirected.
#[test]
fn workloads_are_reached_from_exempt_addresses() {
    let source = |service_address: &str| {
        let yaml = format!(
            "networking: {{address: 10.0.0.1, {REDIRECTED}, inbound: [{{port: 80, serviceAddress: '{service_address}', tags: {{kuma.io/service: a}}}}]}}"
        );
        let (ours, _) = emitted("{}", &one(&yaml), Vec::new(), no_ipv6());
        ours[&format!("{CLUSTER} localhost:80")].pointer("/upstreamBindConfig/sourceAddress/address").cloned()
    };
    for (address, expected) in [
        ("10.0.0.1", Some("127.0.0.6")),
        ("2001:db8::1", Some("::6")),
        ("127.0.0.1", None),
        ("::1", None),
        ("127.0.0.2", Some("127.0.0.6")),
    ] {
        assert_eq!(source(address), expected.map(Value::from), "{address}");
    }
    let plain = "networking: {address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: a}}]}";
    let (ours, _) = emitted("{}", &one(plain), Vec::new(), no_ipv6());
    assert_eq!(ours[&format!("{CLUSTER} localhost:80")].get("upstreamBindConfig"), None);
    assert_eq!(ours[&format!("{LISTENER} inbound:10.0.0.1:80")].get("bindToPort"), None);
}

#[test]
fn destinations_have_listeners_on_their_addresses() {
    let vips = || vec![vip("240.0.0.0", "backend", &["backend.mesh"]), vip("240.0.0.1", "db", &["db.mesh"])];
    let yaml =
        |more: &str| format!("networking: {{address: 10.0.0.1, {}}}", REDIRECTED.replace('}', &format!("{more}}}")));
    let listener =
        |ours: &BTreeMap<String, Value>, address: &str| ours.get(&format!("{LISTENER} outbound:{address}")).cloned();

    let (ours, _) = emitted("{}", &one(&yaml("")), vips(), no_ipv6());
    let backend = listener(&ours, "240.0.0.0:80").unwrap();
    assert_eq!(backend["bindToPort"], json!(false));
    assert_eq!(backend.pointer("/filterChains/0/filters/0/typedConfig/cluster"), Some(&json!("backend")));
    assert!(listener(&ours, "240.0.0.1:80").is_some() && ours.contains_key(&format!("{CLUSTER} db")));

    let (ours, _) = emitted("{}", &one(&yaml(", reachableServices: [db]")), vips(), no_ipv6());
    assert!(listener(&ours, "240.0.0.0:80").is_none() && listener(&ours, "240.0.0.1:80").is_some());

    // An own inbound on the same address is in the way.
    let inbound = "networking: {address: 240.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: a}}], \
        transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001}}";
    let (ours, _) = emitted("{}", &one(inbound), vips(), no_ipv6());
    assert!(listener(&ours, "240.0.0.0:80").is_some() && listener(&ours, "240.0.0.1:80").is_none());

    // Without redirection outbounds can be bound, which takes a proxy that says so.
    let bound = ProxyFeatures { bind_outbounds: true, dns_port: 15053, ..no_ipv6() };
    let (ours, _) = emitted("{}", &one("networking: {address: 10.0.0.1}"), vips(), bound);
    assert_eq!(listener(&ours, "240.0.0.0:80").unwrap().get("bindToPort"), None);
    assert!(!ours.keys().any(|name| name.contains("passthrough") || name.contains("dns")), "{:?}", ours.keys());
    let (ours, _) = emitted("{}", &one("networking: {address: 10.0.0.1}"), vips(), no_ipv6());
    assert_eq!(ours, BTreeMap::new());
}

#[test]
fn direct_access_is_that_of_kuma() {
    let yaml = "networking: {address: 192.168.0.1, transparentProxying: \
        {redirectPortOutbound: 15001, redirectPortInbound: 15006, directAccessServices: [backend]}}";
    let other = |name: &str, address: &str, service: &str| {
        let yaml = format!(
            "networking: {{address: {address}, inbound: [{{port: 1234, tags: {{kuma.io/service: {service}}}}}]}}"
        );
        (Meta::new("default", name), yaml)
    };
    let others = [
        other("b-1", "192.168.0.2", "backend"),
        other("b-2", "192.168.0.3", "backend"),
        other("db", "192.168.0.5", "db"),
    ];
    let with = |first| {
        let others = others.iter().map(|(meta, yaml)| (meta.clone(), yaml.as_str()));
        [(Meta::new("default", "web-1"), first)].into_iter().chain(others).collect::<Vec<_>>()
    };
    let (ours, _) = emitted("{}", &with(yaml), Vec::new(), no_ipv6());
    let direct = |ours: &BTreeMap<String, Value>| ours.keys().filter(|name| name.contains("direct_access")).count();
    assert_eq!(direct(&ours), 3);
    let all = yaml.replace("[backend]", "['*']");
    let (every, _) = emitted(STRICT, &with(&all), Vec::new(), no_ipv6());
    assert_eq!(direct(&every), 4);
    let tls =
        every[&format!("{CLUSTER} direct_access")].pointer("/transportSocket/typedConfig/commonTlsContext").unwrap();
    let names = "/combinedValidationContext/defaultValidationContext/matchTypedSubjectAltNames/0/matcher/prefix";
    assert_eq!(tls.pointer(names), Some(&json!("spiffe://default/")));

    let Some(theirs) = golden("../kuma-xds-corpus/generator/direct-access/04.envoy-config.yaml") else { return };
    let names = ["192.168.0.2", "192.168.0.3"].map(|ip| format!("{LISTENER} direct_access_{ip}:1234"));
    assert_same(&ours, &theirs, &names);
    assert_same(&ours, &theirs, &[format!("{CLUSTER} direct_access")]);
}

fn golden_vips() -> Vec<Vip> {
    vec![
        vip("240.0.0.1", "httpbin", &["httpbin.mesh"]),
        vip(
            "240.0.0.0",
            "backend_test-ns_svc_8080",
            &["backend.test-ns.svc.8080.mesh", "backend_test-ns_svc_8080.mesh"],
        ),
        // Nothing is reached there, so it has no names.
        Vip { outbounds: Vec::new(), ..vip("2001:db8::ff00:42:8329", "frontend", &["frontend.mesh"]) },
    ]
}

#[test]
fn names_come_as_kuma_s_document() {
    let mut meta = Meta::new("default", "web-1");
    for (label, value) in [
        ("kuma.io/workload", "backend"),
        ("k8s.kuma.io/namespace", "test-ns"),
        ("kuma.io/zone", "zone-1"),
        ("other", "value"),
    ] {
        meta.labels.insert(label.to_owned(), value.to_owned());
    }
    let yaml = format!("networking: {{{REDIRECTED}}}");
    let features = ProxyFeatures { embedded_dns: true, dns_port: 15053, ..no_ipv6() };
    let (ours, warnings) = emitted("{}", &[(meta, &yaml)], golden_vips(), features.clone());
    assert_eq!(warnings, BTreeSet::new());
    assert!(!ours.contains_key(&format!("{LISTENER} kuma:dns")));
    // Nothing is answered where nothing is asked.
    let (silent, _) = emitted("{}", &one(&yaml), golden_vips(), ProxyFeatures { dns_port: 0, ..features });
    assert!(!silent.contains_key(&format!("{LISTENER} _kuma:dynamicconfig")));

    let Some(theirs) = golden("generator/dns/4-envoy-config.yaml") else { return };
    assert_same(&ours, &theirs, &[format!("{LISTENER} _kuma:dynamicconfig")]);
}

#[test]
fn names_come_as_kuma_s_filter_to_proxies_that_do_not_answer_dns() {
    let yaml = format!("networking: {{{REDIRECTED}}}");
    let features = ProxyFeatures { dns_port: 53001, ..no_ipv6() };
    let (ours, warnings) = emitted("{}", &one(&yaml), golden_vips(), features);
    assert!(warnings.iter().any(|warning| warning.contains("feature-embedded-dns")), "{warnings:?}");
    let Some(theirs) = golden("generator/dns/1-envoy-config.yaml") else { return };
    assert_same(&ours, &theirs, &[format!("{LISTENER} kuma:dns")]);
}

/// Trap 23: the admin interface is on a socket or on TCP; on the address of the proxy only its readiness is open.
#[test]
fn readiness_is_offered_on_the_proxy_s_address() {
    let features = |address: &str, socket: &str| ProxyFeatures {
        admin: Some(AdminEndpoint { address: address.to_owned(), port: 9901, socket: socket.to_owned() }),
        readiness_port: 9902,
        ..ProxyFeatures::default()
    };
    let on = |dataplane: &str, features| {
        let yaml = format!("networking: {{address: {dataplane}}}");
        emitted("{}", &one(&yaml), Vec::new(), features)
    };
    let (ours, _) = on("192.168.0.1", features("127.0.0.1", ""));
    let listener = ours[&format!("{LISTENER} kuma:envoy:admin")].clone();
    let routes = listener.pointer("/filterChains/0/filters/0/typedConfig/routeConfig/virtualHosts/0/routes").unwrap();
    assert_eq!(routes.as_array().unwrap().len(), 1, "nothing but readiness is open to everyone");
    if let Some(theirs) = golden("generator/admin/01.envoy-config.yaml") {
        assert_same(&ours, &theirs, &[format!("{CLUSTER} kuma:envoy:admin"), format!("{CLUSTER} kuma:readiness")]);
        let theirs = &theirs[&format!("{LISTENER} kuma:envoy:admin")];
        for path in ["/address", "/enableReusePort", "/trafficDirection", "/filterChains/0"] {
            assert_eq!(listener.pointer(path), theirs.pointer(path), "{path}");
        }
    }

    let (ours, _) = on("192.168.0.1", features("", "/run/admin.sock"));
    let pipe = "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address/pipe/path";
    assert_eq!(ours[&format!("{CLUSTER} kuma:envoy:admin")].pointer(pipe), Some(&json!("/run/admin.sock")));
    // The admin interface is on the very address.
    let (ours, _) = on("127.0.0.1", features("127.0.0.1", ""));
    assert!(!ours.contains_key(&format!("{LISTENER} kuma:envoy:admin")));
    // A proxy cannot make another host's port look like its own admin interface.
    let (ours, warnings) = on("192.168.0.1", features("192.168.0.9", ""));
    assert_eq!(ours, BTreeMap::new());
    assert!(warnings.iter().any(|warning| warning.contains("dataplane.admin.address")), "{warnings:?}");
}

#[test]
fn virtual_probes_are_those_of_kuma() {
    let probes = "probes: {port: 9000, endpoints: [{inboundPort: 8080, inboundPath: '/healthz/probe?q=1', path: '/8080/healthz/probe?q=1'}]}";
    let emit = |inbound: &str, features: ProxyFeatures| {
        let yaml = format!("{{networking: {{address: 10.0.0.1, inbound: [{inbound}]}}, {probes}}}");
        let (mut ours, _) = emitted("{}", &one(&yaml), Vec::new(), features);
        // Kuma's test has no address.
        let listener = ours.get_mut(&format!("{LISTENER} probe:listener"))?;
        listener["address"]["socketAddress"].as_object_mut().unwrap().remove("address");
        Some(ours)
    };
    let inbound = "{port: 80, servicePort: 8080, tags: {kuma.io/service: a}}";
    let with = emit(inbound, ProxyFeatures::default()).unwrap();
    let without = emit("", ProxyFeatures::default()).unwrap();
    let own = ProxyFeatures { app_probe_proxy: true, ..ProxyFeatures::default() };
    assert!(emit(inbound, own).is_none(), "a proxy with a probe proxy of its own does not need them");
    let name = [format!("{LISTENER} probe:listener")];
    let Some(theirs) = golden("generator/probe/04.envoy.yaml") else { return };
    assert_same(&with, &theirs, &name);
    assert_same(&without, &golden("generator/probe/03.envoy.yaml").unwrap(), &name);
}
