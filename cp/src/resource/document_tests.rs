#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::resource::{GatewayType, InboundState, MtlsMode};

fn one(yaml: &str) -> Result<Parsed, ParseError> {
    let mut values = documents(yaml)?;
    assert_eq!(values.len(), 1, "{yaml}");
    parse(values.remove(0))
}

#[test]
fn kumas_examples_are_read() {
    let parsed = one(
        "type: Dataplane\nmesh: demo\nname: web-1\nlabels: {kuma.io/workload: web}\nnetworking:\n  address: 10.0.0.5\n  \
         advertisedAddress: 1.2.3.4\n  inbound:\n  - {name: http, port: 8080, servicePort: '80', state: NotReady, health: \
         {ready: true}, tags: {kuma.io/service: web, kuma.io/protocol: HTTP}}\n  outbound:\n  - {port: 10001, tags: \
         {kuma.io/service: db}}\n  admin: {port: 9901}\n",
    )
    .unwrap();
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    assert_eq!((parsed.resource.meta.mesh.as_str(), parsed.resource.meta.name.as_str()), ("demo", "web-1"));
    let dataplane = parsed.resource.dataplane().unwrap();
    let inbound = &dataplane.inbounds()[0];
    assert_eq!((inbound.port, inbound.service_port, inbound.application_port()), (8080, 80, 80));
    assert_eq!((inbound.state, inbound.is_healthy()), (InboundState::NotReady, false));
    assert_eq!(
        (inbound.service(), inbound.protocol().as_str(), inbound.section_name().as_str()),
        (Some("web"), "http", "http")
    );
    assert_eq!(dataplane.outbounds()[0].listen_address(), "127.0.0.1");

    let parsed = one(
        "type: Mesh\nname: default\nmtls:\n  enabledBackend: ca-1\n  backends:\n  - name: ca-1\n    type: builtin\n    mode: \
         PERMISSIVE\n    dpCert: {rotation: {expiration: 1d}, requestTimeout: 10s}\n    conf: {caCert: {RSAbits: 4096, \
         expiration: 1y}}\nconstraints: {dataplaneProxy: {requirements: [{tags: {team: '*'}}]}}\n",
    )
    .unwrap();
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    let backend = parsed.resource.mesh().unwrap().enabled_backend().unwrap();
    assert_eq!((backend.mode, backend.certificate_lifetime().as_secs()), (MtlsMode::Permissive, 86_400));
    let conf = backend.builtin_conf().unwrap();
    assert_eq!((conf.rsa_bits, conf.expiration.as_secs()), (4096, 365 * 86_400));

    let parsed =
        one("type: MeshTrafficPermission\nname: allow\nmesh: default\nspec:\n  targetRef: {kind: MeshSubset, tags: \
         {kuma.io/service: db}}\n  from:\n  - targetRef: {kind: MeshService, name: web}\n    default: {action: \
         AllowWithShadowDeny}\n")
        .unwrap();
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    let permission = parsed.resource.permission().unwrap();
    assert_eq!(permission.from[0].default.action, Some(crate::resource::Action::AllowWithShadowDeny));

    let secret = one("type: Secret\nname: s\nmesh: default\ndata: aGVsbG8=\n").unwrap();
    assert_eq!(secret.resource.secret().unwrap().data, b"hello");
    assert_eq!(format!("{:?}", secret.resource.secret().unwrap()), "Secret(5 bytes)", "secrets stay out of logs");

    let gateway =
        one("type: Dataplane\nname: g\nnetworking: {address: 1.1.1.1, gateway: {type: BUILTIN, tags: {a: b}}}")
            .unwrap();
    let networking = gateway.resource.dataplane().unwrap().networking.clone().unwrap();
    assert_eq!(networking.gateway.unwrap().kind, GatewayType::Builtin);
    assert_eq!(gateway.resource.meta.mesh, "default", "a resource without mesh is of the default mesh");
}

/// Trap 26: unknown fields are ignored, though not in silence.
#[test]
fn what_is_ignored_is_named() {
    for (yaml, expected) in [
        ("type: Mesh\nname: m\nmtls: {enabledBakend: ca}\n", vec!["mtls.enabledBakend: unknown field, ignored"]),
        (
            "type: Dataplane\nname: d\nnetworking: {inbound: [{port: 1}, {port: 2, tgas: {a: b}}], adress: x}\n",
            vec!["networking.inbound[1].tgas: unknown field, ignored", "networking.adress: unknown field, ignored"],
        ),
        (
            "type: MeshTrafficPermission\nname: p\nfrom: []\nspec: {from: [{targetRef: {kind: Mesh}, defualt: {}}]}\n",
            vec![
                "from: unknown field of MeshTrafficPermission, ignored",
                "spec.from[0].defualt: unknown field, ignored",
            ],
        ),
        (
            "type: GlobalSecret\nname: s\nmesh: default\ndata: ''\n",
            vec!["mesh: ignored, a GlobalSecret does not belong to a mesh"],
        ),
        // What the control plane itself writes into documents is no surprise when it comes back.
        ("type: Mesh\nname: m\ncreationTime: '2020-01-01T00:00:00Z'\nkri: kri_m____m_\nrouting: null\n", vec![]),
        // Protobuf's own names of fields are read like the JSON ones.
        ("type: Mesh\nname: m\nmtls: {enabled_backend: ca}\n", vec![]),
    ] {
        assert_eq!(one(yaml).unwrap().warnings, expected, "{yaml}");
    }
}

#[test]
fn what_cannot_be_read_says_where() {
    for (yaml, expected) in [
        (
            "type: Dataplane\nname: d\nnetworking: {inbound: [{port: many}]}",
            "networking.inbound[0].port: expected a whole number",
        ),
        (
            "type: Dataplane\nname: d\nnetworking: {inbound: [{port: 4294967296}]}",
            "networking.inbound[0].port: 4294967296 does not fit",
        ),
        (
            "type: Dataplane\nname: d\nnetworking: {inbound: [{port: -1}]}",
            "networking.inbound[0].port: expected a whole number",
        ),
        ("type: Dataplane\nname: d\nnetworking: {inbound: {port: 1}}", "networking.inbound: invalid type: map"),
        (
            "type: Dataplane\nname: d\nnetworking: {inbound: [{state: Gone}]}",
            "networking.inbound[0].state: unknown variant `Gone`",
        ),
        ("type: Mesh\nname: m\nmtls: {backends: [{mode: strict}]}", "mtls.backends[0].mode: unknown variant `strict`"),
        ("type: Mesh\nname: m\nlabels: [a]", "labels: invalid type: sequence"),
        ("type: Mesh\nname: [a]", "name: expected a string"),
        ("type: Secret\nname: s\ndata: '***'", "data: expected base64"),
        (
            "type: MeshTrafficPermission\nname: p\nspec: {from: [{targetRef: {kind: Mesh}, default: {action: ALLOW}}]}",
            "spec.from[0].default.action: unknown variant `ALLOW`",
        ),
        ("name: x", "type: cannot be empty"),
        ("type: TrafficRoute\nname: x", "type: unknown resource type \"TrafficRoute\"; known: Mesh, Dataplane"),
        ("apiVersion: kuma.io/v1alpha1\nkind: Mesh\nmetadata: {name: x}", "kind: this is a Kubernetes document"),
        ("- a", "expected a resource"),
    ] {
        let error = one(yaml).err().unwrap_or_else(|| panic!("accepted: {yaml}")).to_string();
        assert!(error.starts_with(expected) || error.contains(expected), "{expected:?} expected, found {error:?}");
    }
    for broken in ["type: Mesh\n  name: x", "a: [", "type: Mesh\nname: a\nname: b\n", "{\"type\": \"}"] {
        assert!(matches!(documents(broken), Err(ParseError::Syntax(_))), "{broken}");
    }
}

#[test]
fn several_documents_are_split() {
    let values = documents("---\ntype: Mesh\nname: a\n---\n---\n# nothing\n---\ntype: Mesh\nname: b\n").unwrap();
    assert_eq!(values.iter().map(|value| value["name"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(documents("").unwrap().is_empty());
    assert_eq!(documents("{\"type\": \"Mesh\", \"name\": \"a\"}").unwrap().len(), 1);
}

#[test]
fn a_document_is_written_as_kuma_writes_it_and_read_back() {
    let yaml = "type: MeshTrafficPermission\nmesh: default\nname: p\nlabels: {team: a}\nspec:\n  from:\n  - targetRef: {kind: Mesh}\n    \
                default: {action: Deny}\n";
    let mut resource = one(yaml).unwrap().resource;
    resource.meta.creation_time = "2018-07-17T16:05:36.995Z".parse().unwrap();
    resource.meta.modification_time = "2018-07-17T16:05:37Z".parse().unwrap();
    let expected = json!({
        "type": "MeshTrafficPermission",
        "mesh": "default",
        "name": "p",
        "creationTime": "2018-07-17T16:05:36.995Z",
        "modificationTime": "2018-07-17T16:05:37Z",
        "labels": {"team": "a"},
        "kri": "kri_mtp_default___p_",
        "spec": {"from": [{"targetRef": {"kind": "Mesh"}, "default": {"action": "Deny"}}]},
    });
    assert_eq!(resource.to_document(), expected);
    let again = parse(resource.to_document()).unwrap();
    assert_eq!((again.resource.spec, again.warnings), (resource.spec, Vec::new()));
}

/// Trap 26: 64-bit numbers are text.
#[test]
fn an_insight_has_its_numbers_as_text() {
    let insight = json!({
        "type": "DataplaneInsight", "mesh": "default", "name": "d",
        "subscriptions": [{
            "id": "1", "controlPlaneInstanceId": "cp-1", "connectTime": "2019-07-01T00:00:00Z",
            "status": {
                "total": {"responsesSent": "5", "responsesAcknowledged": "5"},
                "cds": {}, "eds": {}, "lds": {}, "rds": {},
            },
        }],
        "mTLS": {"certificateExpirationTime": "2019-07-02T00:00:00Z", "issuedBackend": "ca-1", "supportedBackends": ["ca-1"]},
    });
    let parsed = parse(insight.clone()).unwrap();
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    let read = parsed.resource.insight().unwrap();
    assert!(read.is_online());
    assert_eq!(read.subscriptions[0].status.total.responses_sent, 5);
    let written = parsed.resource.to_document();
    assert_eq!(written["subscriptions"], insight["subscriptions"]);
    assert_eq!(written["mTLS"], insight["mTLS"]);
}

#[test]
fn kinds_have_names_of_their_own() {
    let mut paths = std::collections::BTreeSet::new();
    let mut shorts = std::collections::BTreeSet::new();
    for kind in Kind::in_api() {
        assert_eq!(Kind::from_name(kind.name()), Some(kind));
        assert_eq!(Kind::from_path(kind.path()), Some(kind));
        assert!(!kind.singular().is_empty() && !kind.display().0.is_empty(), "{kind}");
        assert!(paths.insert(kind.path()), "{kind}");
        assert!(kind.short().is_none_or(|short| shorts.insert(short)), "{kind}");
        assert!(
            kind.insight().is_none_or(|insight| insight.in_mesh() == kind.in_mesh() && insight.read_only()),
            "{kind}"
        );
    }
    // Trap 27: these are the spellings of the GUI.
    assert_eq!(Kind::from_path("zone-ingresses"), Some(Kind::ZoneIngress));
    assert_eq!(Kind::from_path("global-secrets"), Some(Kind::GlobalSecret));
    assert_eq!(Kind::from_path(""), None);
}

#[test]
fn zones_and_services_are_read_and_written() {
    // Documents of Kuma 2.14, with what Kuma writes as `spec` and `status`.
    for (yaml, checks) in [
        ("type: Zone\nname: east\nenabled: false\n", vec![("/enabled", json!(false))]),
        (
            "type: ZoneIngress\nname: zi-1\nzone: east\nnetworking: {address: 10.0.0.1, advertisedAddress: 192.0.2.1, port: \
             10001, advertisedPort: '20001', admin: {port: 9901}}\navailableServices:\n- {tags: {kuma.io/service: web, v: \
             '1'}, instances: 2, mesh: default}\n",
            vec![("/networking/advertisedPort", json!(20001)), ("/availableServices/0/instances", json!(2))],
        ),
        (
            "type: ZoneEgress\nname: ze-1\nnetworking: {address: 10.0.0.1, port: 10002}\n",
            vec![("/networking/port", json!(10002))],
        ),
        (
            "type: ExternalService\nmesh: default\nname: es\nnetworking: {address: 'httpbin.org:443', tls: {enabled: true, \
             caCert: {inlineString: x}, allowRenegotiation: false, serverName: h}, disableHostDNSEntry: true}\ntags: \
             {kuma.io/service: httpbin, kuma.io/protocol: http}\n",
            vec![("/networking/disableHostDNSEntry", json!(true)), ("/networking/tls/caCert/inlineString", json!("x"))],
        ),
        (
            "type: MeshService\nmesh: default\nname: web\nlabels: {kuma.io/zone: east}\nspec:\n  state: Available\n  selector: \
             {dataplaneTags: {kuma.io/service: web}}\n  ports: [{port: 80, targetPort: 8080, appProtocol: http}, {port: 81, \
             targetPort: admin, name: admin}]\n  identities: [{type: ServiceTag, value: web}, {type: SpiffeID, value: \
             'spiffe://a/b'}]\n",
            vec![("/spec/ports/1/targetPort", json!("admin")), ("/spec/identities/1/type", json!("SpiffeID"))],
        ),
        (
            "type: MeshExternalService\nmesh: default\nname: mes\nspec:\n  match: {type: HostnameGenerator, port: 443, protocol: \
             tcp}\n  endpoints: [{address: 192.0.2.7, port: 443, priority: 1}]\n  tls: {enabled: true, version: {min: TLS12}, \
             verification: {mode: SkipCA, serverName: x.org, subjectAltNames: [{type: Prefix, value: a}], caCert: {inline: \
             QQ==}}}\n",
            vec![("/spec/match/port", json!(443)), ("/spec/tls/verification/mode", json!("SkipCA"))],
        ),
        (
            "type: MeshMultiZoneService\nmesh: default\nname: all\nspec:\n  selector: {meshService: {matchLabels: \
             {kuma.io/display-name: web}}}\n  ports: [{port: 80, appProtocol: http}]\n",
            vec![("/spec/selector/meshService/matchLabels/kuma.io~1display-name", json!("web"))],
        ),
        (
            "type: HostnameGenerator\nname: local\nspec:\n  selector: {meshService: {matchLabels: {kuma.io/origin: zone}}}\n  \
             template: '{{ .DisplayName }}.svc.mesh.local'\n",
            vec![("/spec/template", json!("{{ .DisplayName }}.svc.mesh.local"))],
        ),
    ] {
        let parsed = one(yaml).unwrap();
        assert!(parsed.warnings.is_empty(), "{yaml}: {:?}", parsed.warnings);
        let violations = crate::resource::validate::resource(&parsed.resource);
        assert!(violations.is_empty(), "{yaml}: {violations:?}");
        let document = parsed.resource.to_document();
        for (pointer, expected) in checks {
            assert_eq!(document.pointer(pointer), Some(&expected), "{document}");
        }
        let again = parse(document).unwrap();
        assert!(again.warnings.is_empty(), "{:?}", again.warnings);
        assert_eq!(again.resource.spec, parsed.resource.spec);
    }
}

#[test]
fn a_status_is_served_but_not_taken() {
    let yaml =
        "type: MeshService\nmesh: default\nname: web\nspec: {ports: [{port: 80}]}\nstatus: {vips: [{ip: 1.2.3.4}]}\n";
    let mut resource = one(yaml).unwrap().resource;
    assert_eq!(resource.mesh_service().unwrap().status, Default::default());
    assert_eq!(resource.to_document().get("status"), None);
    let status = json!({
        "addresses": [{"hostname": "web.svc.mesh.local", "origin": "HostnameGenerator",
            "hostnameGeneratorRef": {"coreName": "local"}}],
        "vips": [{"ip": "241.0.0.1"}],
        "tls": {"status": "NotReady"},
        "dataplaneProxies": {"connected": 1, "total": 2},
    });
    set_status(&mut resource.spec, status.clone()).unwrap();
    assert_eq!(resource.to_document().get("status"), Some(&status));
    assert_eq!(status_to_value(&resource.spec), Some(status));
}
