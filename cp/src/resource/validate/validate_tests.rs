#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::resource::{DataplaneInsight, DpStatus, Subscription, documents, parse};

fn read(yaml: &str) -> Resource {
    parse(documents(yaml).unwrap().remove(0)).unwrap().resource
}

fn violations(yaml: &str) -> Vec<String> {
    super::resource(&read(yaml)).iter().map(ToString::to_string).collect()
}

fn check(yaml: &str, expected: &[&str]) {
    assert_eq!(violations(yaml), expected, "{yaml}");
}

fn dataplane(networking: &str) -> String {
    format!("type: Dataplane\nmesh: default\nname: d\nnetworking: {{{networking}}}")
}

const PORT: &str = "port must be in the range [1, 65535]";

#[test]
fn dataplanes() {
    let inbound = |fields: &str| {
        dataplane(&format!("address: 10.0.0.1, inbound: [{{port: 80, tags: {{kuma.io/service: a}}, {fields}}}]"))
    };
    let port = |field: &str| format!("networking.{field}: {PORT}");
    let good = "address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: a, version: v1}}]";
    check(&dataplane(good), &[]);
    check(&dataplane(&format!("{good}, outbound: [{{port: 1, tags: {{kuma.io/service: b}}}}]")), &[]);
    check(&dataplane("address: '::1', inbound: [{port: 80, tags: {kuma.io/service: a}}]"), &[]);
    check(&dataplane("address: web.example.com, inbound: [{port: 80, tags: {kuma.io/service: a}}]"), &[]);
    check("type: Dataplane\nname: d", &["networking: must be defined"]);
    check(&dataplane("address: 10.0.0.1"), &["networking: has to contain at least one inbound interface or gateway"]);
    for (address, message) in [
        ("''", "address can't be empty"),
        ("0.0.0.0", "must not be 0.0.0.0 or ::"),
        ("'::'", "must not be 0.0.0.0 or ::"),
        ("'..'", "address has to be valid IP address or domain name"),
        ("10.0.0.256", "address has to be valid IP address or domain name"),
        ("'a b'", "address has to be valid IP address or domain name"),
    ] {
        let yaml = dataplane(&format!("address: {address}, inbound: [{{port: 80, tags: {{kuma.io/service: a}}}}]"));
        check(&yaml, &[&format!("networking.address: {message}")]);
    }
    check(&dataplane("address: 10.0.0.1, inbound: [{tags: {kuma.io/service: a}}]"), &[&port("inbound[0].port")]);
    check(
        &dataplane("address: 10.0.0.1, inbound: [{port: 70000, tags: {kuma.io/service: a}}]"),
        &[&port("inbound[0].port")],
    );
    check(&inbound("servicePort: 65536"), &[&port("inbound[0].servicePort")]);
    check(
        &inbound("serviceAddress: x"),
        &["networking.inbound[0].serviceAddress: serviceAddress has to be valid IP address"],
    );
    check(&inbound("address: x"), &["networking.inbound[0].address: address has to be valid IP address"]);
    let differ =
        "networking.inbound[0].serviceAddress: serviceAddress and servicePort has to differ from address and port";
    check(&inbound("serviceAddress: 10.0.0.1"), &[differ]);
    check(&inbound("serviceAddress: 10.0.0.1, servicePort: 81"), &[]);
    check(&inbound("serviceAddress: 10.0.0.1, address: 127.0.0.1"), &[]);
    check(
        &dataplane("address: 10.0.0.1, inbound: [{port: 80, tags: {version: v1}}]"),
        &["networking.inbound[0].tags[\"kuma.io/service\"]: tag has to exist"],
    );
    check(
        &dataplane(
            "address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: '', 'a b': c, d: 'e f', kuma.io/protocol: ftp}}]",
        ),
        &[
            "networking.inbound[0].tags[\"kuma.io/protocol\"]: tag \"kuma.io/protocol\" has an invalid value \"ftp\". Allowed \
             values: grpc, http, http2, kafka, tcp",
            "networking.inbound[0].tags[\"a b\"]: tag name must consist of alphanumeric characters, dots, dashes, slashes and \
             underscores",
            "networking.inbound[0].tags[\"d\"]: tag value must consist of alphanumeric characters, dots, dashes and underscores",
            "networking.inbound[0].tags[\"kuma.io/service\"]: tag value must be non-empty",
        ],
    );
    check(
        &inbound("protocol: gopher"),
        &[
            "networking.inbound[0].protocol: has an invalid value \"gopher\". Allowed values: grpc, http, http2, kafka, tcp",
        ],
    );
    check(
        &dataplane(
            "address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: a}}, {port: 80, tags: {kuma.io/service: b}}]",
        ),
        &["networking.inbound[1].port: address and port 10.0.0.1:80 are already used by another inbound"],
    );
    check(
        &dataplane(&format!("{good}, outbound: [{{port: 1}}, {{port: 1, address: x, tags: {{version: v1}}}}]")),
        &[
            "networking.outbound[0].tags: mandatory tag \"kuma.io/service\" is missing",
            "networking.outbound[1].address: address has to be valid IP address",
            "networking.outbound[1].tags: mandatory tag \"kuma.io/service\" is missing",
        ],
    );
    check(
        &dataplane(&format!(
            "{good}, outbound: [{{port: 1, tags: {{kuma.io/service: b}}}}, {{port: 1, address: 127.0.0.1, tags: {{kuma.io/service: c}}}}]"
        )),
        &["networking.outbound[1].port: address and port 127.0.0.1:1 are already used by another outbound"],
    );
    check(
        &dataplane(&format!("{good}, outbound: [{{port: 2, backendRef: {{kind: Pod}}, tags: {{a: b}}}}]")),
        &[
            "networking.outbound[0].backendRef.kind: invalid value. Available values are: \
             MeshExternalService,MeshMultiZoneService,MeshService",
            "networking.outbound[0].backendRef: either 'name' or 'labels' should be specified",
            &port("outbound[0].backendRef.port"),
            "networking.outbound[0].backendRef: both backendRef and tags/service cannot be defined",
        ],
    );
    let admin = |address: &str| {
        dataplane(&format!(
            "address: {address}, admin: {{port: 80}}, inbound: [{{port: 80, tags: {{kuma.io/service: a}}}}]"
        ))
    };
    check(&admin("127.0.0.1"), &["networking.admin.port: must differ from inbound"]);
    check(&admin("10.0.0.1"), &[]);
    check(
        &dataplane(&format!("{good}, admin: {{port: 81}}, outbound: [{{port: 81, tags: {{kuma.io/service: b}}}}]")),
        &["networking.admin.port: must differ from outbound"],
    );
    check(&dataplane("address: 10.0.0.1, gateway: {tags: {kuma.io/service: g}}"), &[]);
    check(
        &dataplane(&format!("{good}, gateway: {{tags: {{version: v1, kuma.io/protocol: http}}}}")),
        &[
            "networking.inbound: inbound cannot be defined for delegated gateways",
            "networking.gateway.tags[\"kuma.io/protocol\"]: other values than tcp are not allowed, provided value \"http\"",
            "networking.gateway.tags: mandatory tag \"kuma.io/service\" is missing",
        ],
    );
    check(
        "type: Dataplane\nname: Web_1\nlabels: {kuma.io/workload: Shop, 'a b': c, d: '-'}\nnetworking: {address: 10.0.0.1, inbound: \
         [{port: 80, tags: {kuma.io/service: a}}]}",
        &[
            &format!("name: {SUBDOMAIN_MESSAGE}"),
            "labels[\"a b\"]: label name must consist of alphanumeric characters, '-', '_' or '.', start and end with an \
             alphanumeric character, be at most 63 characters long, with an optional DNS subdomain prefix and '/'",
            "labels[\"d\"]: label value must be empty or consist of at most 63 alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            "labels[\"kuma.io/workload\"]: must be a valid DNS-1035 label (at most 63 characters, matching regex \
             [a-z]([-a-z0-9]*[a-z0-9])?)",
        ],
    );
    check(
        &inbound("serviceProbe: {interval: 0s, timeout: soon, healthyThreshold: 0}"),
        &[
            "networking.inbound[0].serviceProbe.interval: must have a positive value",
            "networking.inbound[0].serviceProbe.timeout: must have a valid value, such as 10s",
            "networking.inbound[0].serviceProbe.healthyThreshold: must have a positive value",
        ],
    );
}

#[test]
fn meshes() {
    let mtls = |mtls: &str| format!("type: Mesh\nname: m\nmtls: {{{mtls}}}");
    check("type: Mesh\nname: m", &[]);
    check(&mtls("enabledBackend: a, backends: [{name: a, type: builtin}]"), &[]);
    check(&mtls("backends: [{name: a, type: builtin, dpCert: {rotation: {expiration: 5m}}}]"), &[]);
    check(
        &mtls("enabledBackend: b, backends: [{name: a, type: builtin}]"),
        &["mtls.enabledBackend: has to be set to one of the backends in the mesh"],
    );
    check(
        &mtls("backends: [{name: a, type: builtin}, {name: a, type: builtin}]"),
        &[
            "mtls.backends: cannot have more than 1 backends",
            "mtls.backends[1].name: \"a\" name is already used for another backend",
        ],
    );
    check(&mtls("backends: [{type: builtin}]"), &["mtls.backends[0].name: cannot be empty"]);
    for kind in ["provided", "vault", "acmpca", "certmanager"] {
        let expected =
            format!("mtls.backends[0].type: {kind:?} is not supported by this version of shika-cp; use \"builtin\"");
        check(&mtls(&format!("backends: [{{name: a, type: {kind}}}]")), &[&expected]);
    }
    check(
        &mtls("backends: [{name: a, type: biultin}]"),
        &["mtls.backends[0].type: could not find installed plugin for this type \"biultin\"; use \"builtin\""],
    );
    for expiration in ["5 minutes", "1d12h", "''", "0"] {
        check(
            &mtls(
                &format!(
                    "backends: [{{name: a, type: builtin, dpCert: {{rotation: {{expiration: {expiration:?}}}}}}}]"
                )
                .replace("\"''\"", "''"),
            ),
            &["mtls.dpcert.rotation.expiration: has to be a valid format"],
        );
    }
    check(
        &mtls("backends: [{name: a, type: builtin, conf: {caCert: {RSAbits: 1024}}}]"),
        &["mtls.backends[0].conf.caCert.RSAbits: 1024 is not supported; use 2048, 3072 or 4096"],
    );
    check(
        &mtls("backends: [{name: a, type: builtin, conf: {caCert: {expiration: soon}}}]"),
        &[
            "mtls.backends[0].conf: caCert.expiration: not a valid duration string: \"soon\"; write one number and one of y, w, d, h, \
           m, s, ms, such as 24h",
        ],
    );
    check("type: Mesh\nname: m\nrouting: {zoneEgress: true}", &["mtls: has to be set when zoneEgress enabled"]);
    check(
        "type: Mesh\nname: m\nconstraints: {dataplaneProxy: {requirements: [{}], restrictions: [{tags: {a: 'b c'}}]}}",
        &[
            "constraints.dataplaneProxy.requirements[0].tags: must have at least one tag",
            "constraints.dataplaneProxy.restrictions[0].tags[\"a\"]: tag value must consist of alphanumeric characters, dots, \
             dashes, slashes and underscores or be \"*\"",
        ],
    );
    check(&format!("type: Mesh\nname: {}", "m".repeat(64)), &["name: cannot be longer than 63 characters"]);
}

#[test]
fn the_ca_cannot_be_exchanged_while_it_is_trusted() {
    let mesh = |mtls: &str| read(&format!("type: Mesh\nname: m\nmtls: {{{mtls}}}")).mesh().unwrap().clone();
    let (a, b) = (mesh("enabledBackend: a, backends: [{name: a}]"), mesh("enabledBackend: b, backends: [{name: b}]"));
    let skip = mesh("enabledBackend: b, skipValidation: true, backends: [{name: b}]");
    let off = mesh("backends: [{name: b}]");
    for (old, new, refused) in
        [(&a, &b, true), (&a, &a, false), (&a, &off, false), (&off, &b, false), (&a, &skip, false)]
    {
        assert_eq!(!mesh_update(old, new).is_empty(), refused, "{old:?} to {new:?}");
    }
    let expected =
        "mtls.enabledBackend: Changing CA when mTLS is enabled is forbidden. Disable mTLS first and then change the CA";
    assert_eq!(mesh_update(&a, &b)[0].to_string(), expected);
}

#[test]
fn permissions() {
    let spec = |spec: &str| format!("type: MeshTrafficPermission\nname: p\nspec: {{{spec}}}");
    let from = |target: &str| spec(&format!("from: [{{targetRef: {{{target}}}, default: {{action: Allow}}}}]"));
    let top = |target: &str| {
        spec(&format!("targetRef: {{{target}}}, from: [{{targetRef: {{kind: Mesh}}, default: {{action: Deny}}}}]"))
    };
    for good in [
        from("kind: Mesh"),
        from("kind: MeshSubset, tags: {team: a}"),
        from("kind: MeshService, name: web"),
        from("kind: MeshServiceSubset, name: web, tags: {version: v1}"),
        top("kind: Mesh, proxyTypes: [Sidecar]"),
        top("kind: Dataplane"),
        top("kind: Dataplane, name: d, sectionName: http"),
        top("kind: Dataplane, labels: {app: web}"),
        spec("rules: [{default: {allow: [{spiffeID: {type: Exact, value: 'spiffe://m/web'}}]}}]"),
        spec(
            "rules: [{default: {deny: [{spiffeID: {type: Prefix, value: 'spiffe://m/'}, sni: {type: Exact, value: a.b}}]}}]",
        ),
    ] {
        check(&good, &[]);
    }
    check(&spec(""), &["spec: at least one of 'from' or 'rules' has to be defined"]);
    check(
        &spec(
            "from: [{targetRef: {kind: Mesh}, default: {action: Allow}}], rules: [{default: {allow: [{sni: {type: Exact, value: a}}]}}]",
        ),
        &["spec: field 'from' must be empty when 'rules' is defined"],
    );
    check(&spec("from: [{targetRef: {kind: Mesh}}]"), &["spec.from[0].default.action: must be defined"]);
    check(&spec("from: [{default: {action: Allow}}]"), &["spec.from[0].targetRef.kind: must be defined"]);
    check(&from("kind: Dataplane"), &["spec.from[0].targetRef.kind: value 'Dataplane' is not supported"]);
    check(&top("kind: MeshGateway, name: g"), &["spec.targetRef.kind: value 'MeshGateway' is not supported"]);
    check(
        &from("kind: Mesh, name: m, tags: {a: b}, mesh: other, proxyTypes: []"),
        &[
            "spec.from[0].targetRef.mesh: must not be set with kind Mesh",
            "spec.from[0].targetRef.tags: must not be set with kind Mesh",
            "spec.from[0].targetRef.name: using name with kind Mesh is not yet supported",
            "spec.from[0].targetRef.proxyTypes: must be undefined or have at least one element",
        ],
    );
    check(&from("kind: MeshService"), &["spec.from[0].targetRef: name or labels must be set when kind is MeshService"]);
    check(
        &from("kind: MeshServiceSubset"),
        &["spec.from[0].targetRef.name: must be set when kind is MeshServiceSubset"],
    );
    check(
        &from("kind: MeshService, name: Web"),
        &[
            "spec.from[0].targetRef.name: invalid characters: must consist of lower case alphanumeric characters, '-', '.' and '_'.",
        ],
    );
    check(
        &top("kind: Dataplane, name: d, labels: {a: b}"),
        &["spec.targetRef.labels: either labels or name and namespace must be specified"],
    );
    check(
        &spec("rules: [{default: {}}]"),
        &["spec.rules[0]: at least one of 'allow', 'allowWithShadowDeny', 'deny' has to be defined"],
    );
    check(
        &spec(
            "rules: [{default: {allow: [{}, {spiffeID: {type: Exact, value: 'https://m'}}, {sni: {type: Suffix, value: 'A b'}}]}}]",
        ),
        &[
            "spec.rules[0].allow[0]: at least one of 'spiffeID', 'sni' has to be defined",
            "spec.rules[0].allow[1].spiffeID: must be a valid Spiffe ID: scheme is missing or invalid",
            "spec.rules[0].allow[2].sni.type: unrecognized type \"Suffix\", supported values are: Exact",
            "spec.rules[0].allow[2].sni.value: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
             '-' or '.', and must start and end with an alphanumeric character",
        ],
    );
}

#[test]
fn who_may_join_a_mesh() {
    let mesh = read(
        "type: Mesh\nname: m\nconstraints: {dataplaneProxy: {requirements: [{tags: {team: '*'}}, {tags: {kuma.io/service: a}}], \
         restrictions: [{tags: {team: red}}]}}",
    );
    let join = |tags: &str| {
        let dataplane = read(&dataplane(&format!("address: 10.0.0.1, inbound: [{{port: 80, tags: {{{tags}}}}}]")));
        membership("m", mesh.mesh().unwrap(), dataplane.dataplane().unwrap())
    };
    assert_eq!(join("kuma.io/service: a"), Ok(()));
    assert_eq!(join("kuma.io/service: b, team: blue"), Ok(()));
    assert_eq!(
        join("kuma.io/service: b"),
        Err("dataplane cannot be a member of mesh \"m\" because its tags \"kuma.io/service=b\" does not fulfill any requirements \
             defined on the Mesh"
            .to_owned())
    );
    assert!(join("kuma.io/service: b, team: red").unwrap_err().contains("matches restricted tags \"team=red\""));
}

#[test]
fn metrics_backends() {
    let mesh = |metrics: &str, expected: &[&str]| check(&format!("type: Mesh\nname: m\nmetrics: {metrics}"), expected);
    mesh(
        "{enabledBackend: p, backends: [{name: p, type: prometheus, conf: {port: 1234, path: /m, tags: {a: b}, envoy: {filterRegex: 'a.*', \
         usedOnly: true}, aggregate: [{name: a, port: 80, path: /x, enabled: false, address: '::1'}], tls: {mode: providedTLS}}}]}",
        &[],
    );
    mesh("{enabledBackend: p, backends: [{name: p, type: prometheus}]}", &[]);
    mesh("{backends: [{name: p, type: prometheus, conf: {skipMTLS: true, tls: {mode: disabled}}}]}", &[]);
    mesh("{enabledBackend: q}", &["metrics.enabledBackend: has to be set to one of the backends in the mesh"]);
    mesh(
        "{backends: [{name: p, type: prometheus}, {name: p, type: statsd}]}",
        &[
            "metrics.backends[1].name: \"p\" name is already used for another backend",
            "metrics.backends[1].type: unknown backend type. Available backends: \"prometheus\"",
        ],
    );
    mesh(
        "{backends: [{name: p, type: prometheus, conf: {skipMTLS: true, tls: {mode: providedTLS}, aggregate: [{name: a}, {name: a}]}}]}",
        &[
            "metrics.backends[0].conf: skipMTLS and tls configuration cannot be defined together",
            "metrics.backends[0].conf.aggregate[1].name: duplicate entry: a, values have to be unique",
        ],
    );
    let found = violations(
        "type: Mesh\nname: m\nmetrics: {backends: [{name: p, type: prometheus, conf: {envoy: {filterRegex: '('}}}]}",
    );
    assert!(
        found[0].starts_with("metrics.backends[0].conf.envoy.filterRegex: provided regexp isn't correct"),
        "{found:?}"
    );
    for (conf, place) in [("{prot: 1}", "conf.prot: "), ("{tls: {mode: some}}", "conf.tls.mode: ")] {
        let yaml = format!("type: Mesh\nname: m\nmetrics: {{backends: [{{name: p, type: prometheus, conf: {conf}}}]}}");
        let found = violations(&yaml);
        let expected = format!("metrics.backends[0].conf: could not parse config: {place}");
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{found:?}");
    }
    let found = violations(
        "type: Dataplane\nname: d\nnetworking: {address: 10.0.0.1, inbound: [{port: 1, tags: {kuma.io/service: a}}]}\nmetrics: {type: otel}",
    );
    assert_eq!(found, ["metrics.type: unknown backend type. Available backends: \"prometheus\""]);
}

#[test]
fn settings_without_effect_are_named() {
    for (yaml, expected) in [
        (
            "type: Mesh\nname: m\nlogging: {defaultBackend: l}\ntracing: {}\nrouting: {localityAwareLoadBalancing: true}\nmeshServices: {mode: Exclusive}",
            vec!["logging", "tracing"],
        ),
        ("type: Mesh\nname: m\nmtls: {backends: [{name: a, type: builtin}]}", vec![]),
        (
            "type: Dataplane\nname: d\nnetworking: {transparentProxying: {redirectPortInbound: 15006}, listeners: [{port: 1}], outbound: [{backendRef: {kind: MeshService}}]}",
            vec!["networking.listeners"],
        ),
        ("type: MeshTrafficPermission\nname: p\nspec: {rules: [{default: {}}]}", vec!["spec.rules"]),
    ] {
        let found = without_effect(&read(yaml));
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(&format!("{expected}: stored, but without effect")), "{found}");
        }
    }
}

#[test]
fn labels_that_cannot_change() {
    let meta = |label: Option<&str>| {
        let mut meta = Meta::new("", "m");
        meta.labels.extend(label.map(|value| ("kuma.io/zone".to_owned(), value.to_owned())));
        meta
    };
    assert!(immutable_labels(&meta(None), &meta(Some("a"))).is_empty());
    assert!(immutable_labels(&meta(Some("a")), &meta(Some("a"))).is_empty());
    let changed = immutable_labels(&meta(Some("a")), &meta(Some("b")));
    assert_eq!(changed[0].to_string(), "labels[\"kuma.io/zone\"]: is immutable, cannot be changed from \"a\" to \"b\"");
    let removed = immutable_labels(&meta(Some("a")), &meta(None));
    assert_eq!(removed[0].to_string(), "labels[\"kuma.io/zone\"]: is immutable, cannot be removed (was \"a\")");
}

#[test]
fn the_status_of_a_proxy() {
    let connected = DataplaneInsight { subscriptions: vec![Subscription::default()], ..DataplaneInsight::default() };
    let gone = DataplaneInsight {
        subscriptions: vec![Subscription {
            disconnect_time: Some(chrono::DateTime::UNIX_EPOCH),
            ..Subscription::default()
        }],
        ..DataplaneInsight::default()
    };
    let inbound = |state: &str| format!("{{port: 80, state: {state}, tags: {{kuma.io/service: a}}}}");
    for (networking, insight, expected, notes) in [
        (format!("inbound: [{}]", inbound("Ready")), Some(&connected), DpStatus::Online, 0),
        (format!("inbound: [{}]", inbound("Ready")), Some(&gone), DpStatus::Offline, 0),
        (format!("inbound: [{}]", inbound("Ready")), None, DpStatus::Offline, 0),
        (
            format!("inbound: [{}, {}]", inbound("Ready"), inbound("NotReady")),
            Some(&connected),
            DpStatus::PartiallyDegraded,
            1,
        ),
        (format!("inbound: [{}]", inbound("NotReady")), Some(&connected), DpStatus::Offline, 1),
        (format!("inbound: [{}]", inbound("Ignored")), Some(&connected), DpStatus::Online, 0),
        ("gateway: {}".to_owned(), Some(&connected), DpStatus::Online, 0),
        (String::new(), Some(&connected), DpStatus::Offline, 0),
    ] {
        let resource = read(&dataplane(&networking));
        let (status, found) = DpStatus::of(resource.dataplane().unwrap(), insight);
        assert_eq!((status, found.len()), (expected, notes), "{networking} {found:?}");
    }
}
