#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shika_proto::json::Names;

use super::testing::*;
use super::*;
use crate::identity::ca::{self, CertificateAuthority};
use crate::mesh::MeshView;
use crate::plan::{MetricsTls, ProxyFeatures, ProxyPlan, plan};
use crate::resource::{Dataplane, Mesh, MeshTrafficPermission, Meta};

/// The emitted resources of a proxy as Envoy's JSON, keyed by kind and name.
fn emitted(
    mesh: &str,
    mesh_name: &str,
    dataplanes: &[(&str, &str)],
    permission: Option<&str>,
) -> BTreeMap<String, Value> {
    with_features(mesh, mesh_name, dataplanes, permission, "").1
}

/// The plan of a proxy that works in a directory, and what is emitted of it.
fn with_features(
    mesh: &str,
    mesh_name: &str,
    dataplanes: &[(&str, &str)],
    permission: Option<&str>,
    work_dir: &str,
) -> (ProxyPlan, BTreeMap<String, Value>) {
    let mesh: Mesh = serde_yaml_ng::from_str(mesh).unwrap();
    let authority = mesh.enabled_backend().map(|_| {
        let pem = ca::create(mesh_name, 0, ca::DEFAULT_EXPIRATION, chrono::Utc::now()).unwrap();
        Arc::new(CertificateAuthority::from_pem(mesh_name, &pem).unwrap())
    });
    let dataplanes: Vec<(Meta, Arc<Dataplane>)> = dataplanes
        .iter()
        .map(|(name, yaml)| (Meta::new(mesh_name, *name), Arc::new(serde_yaml_ng::from_str(yaml).unwrap())))
        .collect();
    let permissions = permission.map(|yaml| {
        (Meta::new(mesh_name, "p"), Arc::new(serde_yaml_ng::from_str::<MeshTrafficPermission>(yaml).unwrap()))
    });
    let first = dataplanes[0].0.name.clone();
    let mut view = MeshView::new(
        mesh_name,
        Arc::new(mesh),
        dataplanes,
        permissions.into_iter().collect(),
        Ok(authority),
        &BTreeSet::new(),
    );
    view.policies = no_timeouts();
    let features = ProxyFeatures { ipv6: false, work_dir: work_dir.to_owned(), ..ProxyFeatures::default() };
    let plan = plan(&view, &first, features).unwrap();
    let emitted = as_json(&snapshot(&plan, None, &Snapshot::default()));
    (plan, emitted)
}

#[test]
fn outbounds_are_those_of_kuma() {
    let client = "networking: {address: 192.168.0.1, outbound: [{port: 10001, tags: {kuma.io/service: backend}}]}";
    let tcp = [
        ("client", client),
        (
            "a",
            "networking: {address: 192.168.0.4, inbound: [{port: 8004, tags: {kuma.io/service: backend, kuma.io/protocol: tcp, region: eu}}]}",
        ),
        (
            "b",
            "networking: {address: 192.168.0.5, inbound: [{port: 8005, tags: {kuma.io/service: backend, kuma.io/protocol: http, region: us}}]}",
        ),
    ];
    let ours = emitted("{}", "default", &tcp, None);
    let Some(mut theirs) = golden("policy/meshtcproute/basic-no-policies.listeners.yaml") else { return };
    theirs.extend(golden("policy/meshtcproute/basic-no-policies.clusters.yaml").unwrap());
    theirs.extend(golden("policy/meshtcproute/basic-no-policies.endpoints.yaml").unwrap());
    let names =
        [format!("{LISTENER} outbound:127.0.0.1:10001"), format!("{CLUSTER} backend"), format!("{ENDPOINT} backend")];
    assert_same(&ours, &theirs, &names);

    let grpc = [
        ("client", client),
        (
            "a",
            "networking: {address: 192.168.0.4, inbound: [{port: 8084, tags: {kuma.io/service: backend, kuma.io/protocol: grpc, region: us}}]}",
        ),
    ];
    let ours = emitted("{}", "default", &grpc, None);
    let mut theirs = golden("policy/meshhttproute/grpc-service.listeners.yaml").unwrap();
    theirs.extend(golden("policy/meshhttproute/grpc-service.endpoints.yaml").unwrap());
    let listener = format!("{LISTENER} outbound:127.0.0.1:10001");
    // The golden has a MeshHTTPRoute for /v1, of which the catch-all is the last route.
    let path = "/filterChains/0/filters/0/typedConfig/routeConfig/virtualHosts/0/routes";
    let routes = theirs.get_mut(&listener).unwrap().pointer_mut(path).unwrap().as_array_mut().unwrap();
    routes.drain(..routes.len() - 1);
    assert_same(&ours, &theirs, &[listener, format!("{ENDPOINT} backend")]);
}

#[test]
fn a_strict_mesh_is_that_of_kuma() {
    let mesh = "mtls: {enabledBackend: builtin, backends: [{name: builtin, type: builtin}]}";
    let dataplanes = [
        (
            "backend",
            "networking: {address: 192.168.0.1, inbound: [{port: 80, servicePort: 8080, tags: {kuma.io/service: backend}}], \
             outbound: [{port: 54321, tags: {kuma.io/service: db}}]}",
        ),
        (
            "db",
            "networking: {address: 192.168.0.3, inbound: [{port: 5432, tags: {kuma.io/service: db, role: master}}]}",
        ),
    ];
    let ours = emitted(mesh, "demo", &dataplanes, None);
    let Some(mut theirs) = golden("generator/profile-source/1-envoy-config.yaml") else { return };
    // The golden has a MeshCircuitBreaker and a MeshTimeout, or their legacy forms.
    for cluster in ["localhost:8080", "db"] {
        let cluster = theirs.get_mut(&format!("{CLUSTER} {cluster}")).unwrap().as_object_mut().unwrap();
        cluster.remove("circuitBreakers");
    }
    theirs.get_mut(&format!("{CLUSTER} db")).unwrap().as_object_mut().unwrap().remove("connectTimeout");
    let names = [
        format!("{CLUSTER} localhost:8080"),
        format!("{CLUSTER} db"),
        format!("{ENDPOINT} db"),
        format!("{LISTENER} inbound:192.168.0.1:80"),
    ];
    assert_same(&ours, &theirs, &names);
}

#[test]
fn a_permissive_mesh_is_that_of_kuma() {
    let mesh = "mtls: {enabledBackend: builtin, backends: [{name: builtin, type: builtin, mode: PERMISSIVE}]}";
    let dataplane = "networking: {address: 192.168.0.1, inbound: [\
         {port: 80, servicePort: 8080, tags: {kuma.io/service: backend1, kuma.io/protocol: http}}, \
         {port: 443, servicePort: 8443, tags: {kuma.io/service: backend2}}]}";
    let ours = emitted(mesh, "default", &[("d", dataplane)], None);
    let Some(theirs) = golden("generator/inbound-proxy/5-envoy-config.yaml") else { return };
    assert_same(&ours, &theirs, &[format!("{LISTENER} inbound:192.168.0.1:443")]);
    // The HTTP inbound of the golden has fault injection and rate limits; compare what is around them.
    let http = &ours[&format!("{LISTENER} inbound:192.168.0.1:80")];
    let golden = &theirs[&format!("{LISTENER} inbound:192.168.0.1:80")];
    for path in [
        "/name",
        "/listenerFilters",
        "/metadata",
        "/enableReusePort",
        "/filterChains/0/filterChainMatch",
        "/filterChains/1/filterChainMatch",
        "/filterChains/2/filterChainMatch",
        "/filterChains/2/transportSocket",
        "/filterChains/0/filters/0/typedConfig/commonHttpProtocolOptions",
        "/filterChains/0/filters/0/typedConfig/forwardClientCertDetails",
        "/filterChains/0/filters/0/typedConfig/setCurrentClientCertDetails",
        "/filterChains/0/filters/0/typedConfig/statPrefix",
        "/filterChains/0/filters/0/typedConfig/streamIdleTimeout",
        "/filterChains/0/filters/0/typedConfig/routeConfig/name",
        "/filterChains/0/filters/0/typedConfig/routeConfig/requestHeadersToRemove",
        "/filterChains/0/filters/0/typedConfig/routeConfig/validateClusters",
        "/filterChains/0/filters/0/typedConfig/routeConfig/virtualHosts/0/name",
    ] {
        assert!(http.pointer(path).is_some(), "{path}");
        assert_eq!(http.pointer(path), golden.pointer(path), "{path}");
    }
    let routes = |listener: &Value| {
        let path = "/filterChains/0/filters/0/typedConfig/routeConfig/virtualHosts/0/routes";
        listener.pointer(path).unwrap().as_array().unwrap().last().unwrap().clone()
    };
    assert_eq!(routes(http), routes(golden));
    let filters = |chain: usize| {
        let path = format!("/filterChains/{chain}/filters/0/typedConfig/httpFilters");
        let filters = http.pointer(&path).unwrap().as_array().unwrap().clone();
        filters.iter().map(|filter| filter["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(filters(0), ["envoy.filters.http.router"]);
    assert_eq!(filters(2), ["envoy.filters.http.rbac", "envoy.filters.http.router"]);
}

/// Trap 8: proxies of a mesh offer and expect the ALPN `kuma` alone and speak HTTP/2 whatever the workloads speak; a permissive inbound tells
/// them from others by that ALPN; permissions are checked on mutual TLS alone.
#[test]
fn mesh_traffic_is_known_by_its_alpn() {
    let mesh =
        |mode: &str| format!("mtls: {{enabledBackend: b, backends: [{{name: b, type: builtin, mode: {mode}}}]}}");
    let web = "networking: {address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: web, kuma.io/protocol: http}}, \
        {port: 81, tags: {kuma.io/service: tcp}}], outbound: [{port: 1, tags: {kuma.io/service: backend}}]}";
    let backend = "networking: {address: 10.0.0.2, inbound: [{port: 80, tags: {kuma.io/service: backend, kuma.io/protocol: http}}]}";
    let ours = emitted(&mesh("STRICT"), "m", &[("web", web), ("backend", backend)], None);
    let cluster = &ours[&format!("{CLUSTER} backend")];
    let offered = cluster.pointer("/transportSocket/typedConfig/commonTlsContext/alpnProtocols");
    assert_eq!(offered, Some(&json!(["kuma"])), "{cluster:#}");
    let options = "/typedExtensionProtocolOptions/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let version = cluster.pointer(&format!("{options}/explicitHttpConfig"));
    assert_eq!(version, Some(&json!({"http2ProtocolOptions": {}})), "{cluster:#}");

    for (mode, port, rbac) in [
        ("STRICT", 80, "envoy.filters.http.rbac"),
        ("STRICT", 81, "envoy.filters.network.rbac"),
        ("PERMISSIVE", 80, "envoy.filters.http.rbac"),
        ("PERMISSIVE", 81, "envoy.filters.network.rbac"),
    ] {
        let ours = emitted(&mesh(mode), "m", &[("web", web)], None);
        let listener = &ours[&format!("{LISTENER} inbound:10.0.0.1:{port}")];
        let chains = listener["filterChains"].as_array().unwrap();
        assert_eq!(chains.len(), if mode == "STRICT" { 1 } else { 3 }, "{listener:#}");
        for chain in chains {
            let is_mesh = chain.get("transportSocket").is_some();
            assert_eq!(chain.to_string().contains(rbac), is_mesh, "{mode} {port}: {chain:#}");
            let by_alpn = chain.pointer("/filterChainMatch/applicationProtocols");
            let expected = (is_mesh && mode == "PERMISSIVE").then(|| json!(["kuma"]));
            assert_eq!(by_alpn, expected.as_ref(), "{mode} {port}: {chain:#}");
        }
    }
}

#[test]
fn permissions_become_principals() {
    let mesh = "mtls: {enabledBackend: b, backends: [{name: b, type: builtin}]}";
    let dataplane = "networking: {address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: s}}]}";
    let permission = "from: [{targetRef: {kind: MeshService, name: backend}, default: {action: Allow}}, \
        {targetRef: {kind: MeshServiceSubset, name: backend, tags: {version: v2}}, default: {action: Deny}}]";
    let ours = emitted(mesh, "m", &[("d", dataplane)], Some(permission));
    let path = "/filterChains/0/filters/0/typedConfig/rules";
    let expected = json!({"policies": {"MeshTrafficPermission": {
        "permissions": [{"any": true}],
        "principals": [{"andIds": {"ids": [
            {"authenticated": {"principalName": {"exact": "spiffe://m/backend"}}},
            {"notId": {"authenticated": {"principalName": {"exact": "kuma://version/v2"}}}},
        ]}}],
    }}});
    assert_eq!(ours[&format!("{LISTENER} inbound:10.0.0.1:80")].pointer(path), Some(&expected));
}

/// Trap 14: without any permission everyone is denied, which is said with its reason.
#[test]
fn permissions_are_explained_where_they_are_checked() {
    let mesh: Mesh =
        serde_yaml_ng::from_str("mtls: {enabledBackend: b, backends: [{name: b, type: builtin}]}").unwrap();
    let dataplane = "networking: {address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: s}}]}";
    let dataplane = (Meta::new("m", "d"), Arc::new(serde_yaml_ng::from_str(dataplane).unwrap()));
    let pem = ca::create("m", 0, ca::DEFAULT_EXPIRATION, chrono::Utc::now()).unwrap();
    let authority = Arc::new(CertificateAuthority::from_pem("m", &pem).unwrap());
    let explained = |permission: Option<&str>| {
        let permissions = permission.map(|yaml| {
            (Meta::new("m", "some-callers"), Arc::new(serde_yaml_ng::from_str::<MeshTrafficPermission>(yaml).unwrap()))
        });
        let view = MeshView::new(
            "m",
            Arc::new(mesh.clone()),
            vec![dataplane.clone()],
            permissions.into_iter().collect(),
            Ok(Some(authority.clone())),
            &BTreeSet::new(),
        );
        let snapshot = snapshot(&plan(&view, "d", ProxyFeatures::default()).unwrap(), None, &Snapshot::default());
        let listener = &snapshot.resources(ResourceType::Listener)["inbound:10.0.0.1:80"];
        let body = &listener.body.as_ref().unwrap().value;
        let json = shika_proto::json::wire_to_json_value(LISTENER, body, Names::LowerCamelCase).unwrap();
        json["filterChains"][0]["metadata"]["filterMetadata"][POLICY_METADATA].clone()
    };
    assert_eq!(
        explained(None),
        json!({"rules": [], "otherwise": "Deny: no MeshTrafficPermission of mesh m selects this inbound"})
    );
    let permission = "from: [{targetRef: {kind: Mesh}, default: {action: Allow}}, \
        {targetRef: {kind: MeshServiceSubset, name: backend, tags: {version: v2}}, default: {action: Deny}}]";
    assert_eq!(
        explained(Some(permission)),
        json!({
            "rules": [
                {"rule": "MeshTrafficPermission some-callers spec.from[0]: Allow every client of the mesh", "uris": []},
                {
                    "rule": "MeshTrafficPermission some-callers spec.from[1]: Deny kuma.io/service=backend,version=v2",
                    "uris": ["spiffe://m/backend", "kuma://version/v2"],
                },
            ],
            "otherwise": "Deny: no rule matches the client",
        })
    );
}

#[test]
fn unchanged_parts_are_taken_over() {
    let mesh: Mesh = serde_yaml_ng::from_str("{}").unwrap();
    let view = |tags: &str| {
        let yaml = format!(
            "networking: {{address: 10.0.0.1, inbound: [{{port: 80, servicePort: 1, tags: {{kuma.io/service: s{tags}}}}}, {{port: 81, servicePort: 2, tags: {{kuma.io/service: t}}}}]}}"
        );
        let dataplane = (Meta::new("m", "d"), Arc::new(serde_yaml_ng::from_str(&yaml).unwrap()));
        MeshView::new("m", Arc::new(mesh.clone()), vec![dataplane], Vec::new(), Ok(None), &BTreeSet::new())
    };
    let make = |view: &MeshView, before: &Snapshot| {
        snapshot(&plan(view, "d", ProxyFeatures::default()).unwrap(), None, before)
    };
    let first = make(&view(""), &Snapshot::default());
    let second = make(&view(", version: v1"), &first);
    let same =
        |kind: ResourceType, name: &str| Arc::ptr_eq(&first.resources(kind)[name], &second.resources(kind)[name]);
    assert!(same(ResourceType::Listener, "inbound:10.0.0.1:81"));
    assert!(same(ResourceType::Cluster, "localhost:1"));
    assert!(!same(ResourceType::Listener, "inbound:10.0.0.1:80"));
    let third = make(&view(""), &second);
    let version = |snapshot: &Snapshot| snapshot.resources(ResourceType::Listener)["inbound:10.0.0.1:80"].version;
    assert_eq!(version(&first), version(&third), "equal content has an equal version");
    assert_ne!(version(&first), version(&second));
}

#[test]
fn two_applications_on_one_port_stay_two() {
    let dataplane = "networking: {address: 10.0.0.1, inbound: [\
        {port: 80, servicePort: 8080, serviceAddress: 127.0.0.1, tags: {kuma.io/service: a}}, \
        {port: 81, servicePort: 8080, serviceAddress: 127.0.0.2, tags: {kuma.io/service: b}}, \
        {port: 82, servicePort: 8080, serviceAddress: 127.0.0.1, tags: {kuma.io/service: c, kuma.io/protocol: http}}]}";
    let ours = emitted("{}", "m", &[("d", dataplane)], None);
    for (cluster, address) in
        [("localhost:8080", "127.0.0.1"), ("127.0.0.2:8080", "127.0.0.2"), ("localhost:8080:http", "127.0.0.1")]
    {
        let path = "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address/socketAddress/address";
        assert_eq!(ours[&format!("{CLUSTER} {cluster}")].pointer(path), Some(&json!(address)), "{cluster}");
    }
}

/// `metrics` of a mesh, `pkg/xds/generator/testdata/prometheus-endpoint`.
#[test]
fn metrics_of_a_mesh_are_those_of_kuma() {
    let mesh =
        |conf: &str| format!("metrics: {{enabledBackend: p, backends: [{{name: p, type: prometheus, conf: {conf}}}]}}");
    let mtls = "mtls: {enabledBackend: ca, backends: [{name: ca, type: builtin}]}";
    let dataplane = "networking: {address: 192.168.0.1, inbound: [{port: 80, tags: {kuma.io/service: backend}}]}";
    let own = format!(
        "{dataplane}\nmetrics: {{type: prometheus, conf: {{port: 8765, path: /even-more-non-standard-path, \
         envoy: {{filterRegex: '123.*', usedOnly: true}}}}}}"
    );
    let with_mtls = format!("{}\n{mtls}", mesh("{port: 1234, path: /non-standard-path}"));
    let disabled = format!("{}\n{mtls}", mesh("{port: 1234, path: /non-standard-path, tls: {mode: disabled}}"));
    for (file, mesh, dataplane) in [
        ("custom", mesh("{port: 1234}"), own.as_str()),
        ("default-mtls", with_mtls, dataplane),
        ("disabled-tls", disabled, dataplane),
    ] {
        let Some(theirs) = golden(&format!("generator/prometheus-endpoint/{file}.envoy-config.yaml")) else { return };
        let (plan, ours) = with_features(&mesh, "demo", &[("backend-01", dataplane)], None, "/tmp");
        assert!(!plan.warnings.iter().any(|warning| warning.contains("metrics")), "{:?}", plan.warnings);
        assert_same(&ours, &theirs, &theirs.keys().cloned().collect::<Vec<_>>());
    }
}

#[test]
fn metrics_of_a_mesh_that_cannot_be_offered_are_named() {
    let mesh =
        |conf: &str| format!("metrics: {{enabledBackend: p, backends: [{{name: p, type: prometheus, conf: {conf}}}]}}");
    let dataplane = "networking: {address: 192.168.0.1, inbound: [{port: 80, tags: {kuma.io/service: backend}}]}";
    let given = |conf: &str| with_features(&mesh(conf), "demo", &[("d", dataplane)], None, "").0;
    let taken = given("{port: 80}");
    assert!(
        taken.metrics.is_none()
            && taken.warnings.first().unwrap().contains("port 80 of the metrics is that of an inbound")
    );
    let provided = given("{tls: {mode: providedTLS}}");
    assert_eq!(provided.metrics.unwrap().listeners[0].tls, MetricsTls::None);
    assert!(provided.warnings.first().unwrap().contains("ask for providedTLS"));
}
