#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use serde_json::json;
use shika_proto::envoy::service::discovery::v3::Resource as WireResource;
use shika_proto::google::protobuf::Any;
use shika_proto::kuma::mesh::v1alpha1::KumaResource;

use super::inbox::{Inbox, InboxError};
use super::outbox::Outbox;
use super::transform::{came_from, from_zone, outgoing};
use super::wire::{key_of_wire, pack, unpack, wire_name};
use super::*;
use crate::resource::{Resource, ResourceKey, Spec, documents, parse, set_status};
use crate::store::Store;

fn resource(yaml: &str) -> Resource {
    parse(documents(yaml).unwrap().remove(0)).unwrap().resource
}

fn sent(direction: &Direction, resource: &Resource) -> Option<Resource> {
    outgoing(direction, resource, |zone| zone != "off").unwrap()
}

#[test]
fn what_goes_to_a_zone() {
    let to_west = Direction::ToZone("west".to_owned());
    for (yaml, expected) in [
        ("{type: Mesh, name: default}", Some("default")),
        (
            "{type: MeshTrafficPermission, mesh: default, name: default-timeout-global, spec: {}}",
            Some("default-timeout-global-54dbd4c66zwbcf9c"),
        ),
        ("{type: Secret, mesh: default, name: s, data: QQ==}", Some("s")),
        ("{type: GlobalSecret, name: other, data: QQ==}", Some("other")),
        ("{type: GlobalSecret, name: admin-user-token, data: QQ==}", None),
        ("{type: GlobalSecret, name: user-token-signing-key-1, data: QQ==}", None),
        ("{type: GlobalSecret, name: user-token-revocations, data: QQ==}", None),
        ("{type: Zone, name: west}", None),
        ("{type: Mesh, name: default, labels: {kuma.io/kds-sync: disabled}}", None),
        ("{type: Dataplane, mesh: default, name: d, labels: {kuma.io/origin: zone, kuma.io/zone: east}}", None),
        ("{type: ZoneEgress, name: e, labels: {kuma.io/origin: zone, kuma.io/zone: east}}", None),
        // What a zone shares goes to every other zone, if that zone is not disabled.
        (
            "{type: MeshService, mesh: default, name: x, labels: {kuma.io/origin: zone, kuma.io/zone: zone-1, kuma.io/display-name: redis-zone-1}}",
            Some("redis-zone-1-2v6wfvvcvbc9f55d"),
        ),
        ("{type: MeshService, mesh: default, name: x, labels: {kuma.io/origin: zone, kuma.io/zone: west}}", None),
        ("{type: MeshService, mesh: default, name: x, labels: {kuma.io/origin: zone, kuma.io/zone: off}}", None),
        (
            "{type: MeshTrafficPermission, mesh: default, name: x, labels: {kuma.io/origin: zone, kuma.io/zone: east}}",
            None,
        ),
    ] {
        let found = sent(&to_west, &resource(yaml));
        assert_eq!(found.as_ref().map(|found| found.meta.name.as_str()), expected, "{yaml}");
        // Trap 11: whatever comes from global is global's, also what another zone gave it.
        assert!(found.is_none_or(|found| found.meta.labels[ORIGIN] == "global"), "{yaml}");
    }
}

/// Trap 11: global keeps its status and its private keys.
#[test]
fn what_global_keeps_for_itself() {
    let to_west = Direction::ToZone("west".to_owned());
    let mut service =
        resource("{type: MeshService, mesh: default, name: x, labels: {kuma.io/origin: zone, kuma.io/zone: east}}");
    set_status(&mut service.spec, json!({"vips": [{"ip": "241.0.0.1"}]})).unwrap();
    let found = sent(&to_west, &service).unwrap();
    assert_eq!(found.mesh_service().unwrap().status, Default::default());
    let key = crate::auth::new_signing_key().unwrap();
    let secret = crate::resource::Secret::new(key.clone());
    let secret =
        Resource::new(crate::resource::Meta::new("", "zone-token-signing-key-7"), Spec::GlobalSecret(Arc::new(secret)));
    let found = sent(&to_west, &secret).unwrap();
    assert_eq!(found.meta.name, "zone-token-signing-public-key-7");
    assert_eq!(found.secret().unwrap().data, crate::auth::public_of_private(&key).unwrap());
}

#[test]
fn what_goes_to_global() {
    let from_east = Direction::ToGlobal("east".to_owned());
    for (yaml, goes) in [
        ("{type: Mesh, name: default}", false),
        ("{type: Secret, mesh: default, name: s, data: QQ==}", false),
        ("{type: Dataplane, mesh: default, name: d}", true),
        ("{type: ZoneIngress, name: d}", true),
        ("{type: MeshTrafficPermission, mesh: default, name: p, spec: {}}", true),
        ("{type: MeshService, mesh: default, name: s, labels: {kuma.io/origin: zone}}", true),
        ("{type: MeshService, mesh: default, name: s, labels: {kuma.io/origin: global, kuma.io/zone: west}}", false),
        ("{type: HostnameGenerator, name: s, labels: {kuma.io/kds-sync: disabled}, spec: {}}", false),
    ] {
        let found = sent(&from_east, &resource(yaml));
        assert_eq!(found.is_some(), goes, "{yaml}");
        if let Some(found) = found {
            assert_eq!((found.meta.labels[ORIGIN].as_str(), found.meta.labels[ZONE].as_str()), ("zone", "east"));
            assert!(came_from(&from_east, &found));
            assert!(!came_from(&Direction::ToGlobal("west".to_owned()), &found));
        }
    }
    let mut service = resource(
        "{type: MeshService, mesh: default, name: redis-zone-1, labels: {team: db, \
         kuma.io/deletion-grace-period-started-at: x}}",
    );
    set_status(&mut service.spec, json!({"vips": [{"ip": "241.0.0.1"}]})).unwrap();
    let found = sent(&Direction::ToGlobal("zone-1".to_owned()), &service).unwrap();
    assert_eq!(found.meta.name, "redis-zone-1-2v6wfvvcvbc9f55d");
    assert_eq!(
        json!(found.meta.labels),
        json!({"kuma.io/display-name": "redis-zone-1", "kuma.io/origin": "zone", "kuma.io/zone": "zone-1", "team": "db"})
    );
    assert_eq!(found.mesh_service().unwrap().status.vips[0].ip, "241.0.0.1", "the zone's status is shown at global");
}

/// Whatever a zone says, what it sends is its own.
#[test]
fn a_zone_speaks_for_itself_only() {
    let mut ingress = resource(
        "{type: ZoneIngress, name: zi, zone: west, labels: {kuma.io/zone: west, kuma.io/origin: global}, availableServices: \
         [{tags: {kuma.io/service: a, kuma.io/zone: west}}, {tags: {kuma.io/service: b}}]}",
    );
    from_zone("east", &mut ingress);
    assert_eq!((ingress.meta.labels[ZONE].as_str(), ingress.meta.labels[ORIGIN].as_str()), ("east", "zone"));
    let spec = ingress.zone_ingress().unwrap();
    assert_eq!((spec.zone.as_str(), spec.available_services[0].tags[ZONE].as_str()), ("east", "east"));
    assert!(!spec.available_services[1].tags.contains_key(ZONE));
}

/// Trap 11: a name on the wire is split at its last dot.
#[test]
fn names_on_the_wire() {
    for (kind, mesh, name, wire) in [
        (Kind::Dataplane, "default", "web.shop-1", "web.shop-1.default"),
        (Kind::ZoneIngress, "", "zi", "zi."),
        (Kind::Mesh, "", "default", "default."),
    ] {
        let key = ResourceKey::new(kind, mesh, name);
        assert_eq!(wire_name(&key), wire);
        assert_eq!(key_of_wire(kind, wire), key);
    }
}

fn over_the_wire(resource: &Resource) -> Resource {
    let content = pack(resource).unwrap();
    assert_eq!(content, pack(resource).unwrap(), "packing is the same every time");
    let wire = WireResource { name: wire_name(&resource.key()), resource: Some(content), ..WireResource::default() };
    unpack(resource.kind(), &wire).unwrap()
}

#[test]
fn every_kind_survives_the_wire() {
    for yaml in [
        "{type: Mesh, name: default, mtls: {enabledBackend: b, backends: [{name: b, type: builtin, mode: PERMISSIVE, dpCert: \
         {rotation: {expiration: 1d}, requestTimeout: 10s}, conf: {caCert: {RSAbits: 4096, expiration: 1y}}}]}, networking: \
         {outbound: {passthrough: false}}, routing: {zoneEgress: true}, constraints: {dataplaneProxy: {requirements: [{tags: {a: \
         b}}]}}, meshServices: {mode: Exclusive}, skipCreatingInitialPolicies: ['*'], tracing: {defaultBackend: t, backends: \
         [{name: t, type: zipkin, sampling: 12.5, conf: {url: u}}]}}",
        "{type: Dataplane, mesh: default, name: web-1, labels: {a: b}, networking: {address: 10.0.0.1, advertisedAddress: 1.1.1.1, \
         inbound: [{port: 80, servicePort: 81, serviceAddress: 127.0.0.1, name: http, protocol: http, state: NotReady, health: \
         {ready: true}, serviceProbe: {interval: 10s, healthyThreshold: 3, tcp: {}}, tags: {kuma.io/service: web}}], outbound: \
         [{port: 1, tags: {kuma.io/service: db}}, {port: 2, backendRef: {kind: MeshService, name: db, port: 5432}}], \
         transparentProxying: {redirectPortInbound: 15006, ipFamilyMode: DualStack, reachableServices: [a], reachableBackends: \
         {refs: [{kind: MeshService, name: x, port: 80}]}}, admin: {port: 9901}, listeners: [{type: ZoneIngress, address: 1.1.1.1, \
         port: 1}]}, probes: {port: 9000, endpoints: [{inboundPort: 80, path: /a}]}}",
        "{type: Dataplane, mesh: default, name: gw, networking: {address: 10.0.0.1, gateway: {type: BUILTIN, tags: \
         {kuma.io/service: gw}}}}",
        "{type: ZoneIngress, name: zi, zone: east, networking: {address: 10.0.0.1, port: 10001, advertisedAddress: x.org, \
         advertisedPort: 2, admin: {port: 1}}, availableServices: [{tags: {kuma.io/service: a}, instances: 2, mesh: default, \
         externalService: true}]}",
        "{type: ZoneEgress, name: ze, zone: east, networking: {address: 10.0.0.1, port: 10002}}",
        "{type: ExternalService, mesh: default, name: es, networking: {address: 'x.org:1', disableHostDNSEntry: true, tls: \
         {enabled: true, caCert: {inline: QQ==}, clientKey: {secret: k}, allowRenegotiation: true, serverName: y, \
         skipHostnameVerification: false}}, tags: {kuma.io/service: es}}",
        "{type: Secret, mesh: default, name: s, data: AAECAw==}",
        "{type: GlobalSecret, name: s, data: AAECAw==}",
        "{type: MeshService, mesh: default, name: web, labels: {kuma.io/zone: east}, spec: {state: Available, selector: \
         {dataplaneTags: {a: b}}, ports: [{port: 80, targetPort: http, appProtocol: http}], identities: [{type: ServiceTag, value: \
         web}]}}",
        "{type: MeshTrafficPermission, mesh: default, name: p, spec: {targetRef: {kind: Mesh}, from: [{targetRef: {kind: Mesh}, \
         default: {action: Allow}}]}}",
        "{type: HostnameGenerator, name: h, spec: {selector: {meshService: {matchLabels: {a: b}}}, template: x}}",
        "{type: MeshExternalService, mesh: default, name: mes, spec: {match: {type: HostnameGenerator, port: 1, protocol: tcp}, \
         endpoints: [{address: x.org, port: 1}]}}",
        "{type: MeshMultiZoneService, mesh: default, name: m, spec: {selector: {meshService: {matchLabels: {a: b}}}, ports: [{port: \
         1, appProtocol: tcp}]}}",
    ] {
        let resource = resource(yaml);
        assert_eq!(over_the_wire(&resource), resource, "{yaml}");
    }
    let mut service = resource("{type: MeshService, mesh: default, name: web}");
    set_status(&mut service.spec, json!({"vips": [{"ip": "241.0.0.1"}], "tls": {"status": "Ready"}})).unwrap();
    assert_eq!(over_the_wire(&service), service);
    let insight = json!({
        "type": "DataplaneInsight", "mesh": "default", "name": "web-1",
        "subscriptions": [{
            "id": "1", "controlPlaneInstanceId": "cp", "connectTime": "2026-11-22T05:00:00.123456Z",
            "status": {"lastUpdateTime": "2026-11-22T05:00:01Z", "total": {"responsesSent": "5"}, "cds": {"responsesRejected": "1"}},
            "version": {"kumaDp": {"version": "2.14.0", "kumaCpCompatible": true}, "envoy": {"version": "1.40.0"}, "dependencies": {"a": "1"}},
        }],
        "mTLS": {"certificateExpirationTime": "2026-11-23T05:00:00Z", "certificateRegenerations": 2, "issuedBackend": "b", "supportedBackends": ["b"]},
        "metadata": {"dataplane.admin.port": "9901", "features": ["a"], "version": {"x": null, "y": 1.5}},
    });
    for kind in ["DataplaneInsight", "ZoneIngressInsight", "ZoneEgressInsight"] {
        let mut insight = insight.clone();
        insight["type"] = json!(kind);
        if kind != "DataplaneInsight" {
            insight["mesh"] = json!("");
            insight.as_object_mut().unwrap().remove("mTLS");
        }
        let resource = parse(insight).unwrap().resource;
        assert_eq!(over_the_wire(&resource), resource, "{kind}");
    }
}

/// Trap 11: kinds that Kuma calls plugins are JSON without a type.
#[test]
fn the_forms_are_those_of_kuma() {
    let unpacked = |yaml: &str| {
        let content = pack(&resource(yaml)).unwrap();
        assert_eq!(content.type_url, "type.googleapis.com/kuma.mesh.v1alpha1.KumaResource");
        let packed: KumaResource = prost::Message::decode(content.value.as_slice()).unwrap();
        (packed.spec.unwrap(), packed.status)
    };
    let (spec, status) = unpacked("{type: MeshService, mesh: default, name: web, spec: {ports: [{port: 80}]}}");
    assert_eq!((spec.type_url.as_str(), spec.value.as_slice()), ("", &b"{\"ports\":[{\"port\":80}]}"[..]));
    assert_eq!(status.unwrap().value, b"{}");
    let (spec, status) = unpacked("{type: ZoneEgress, name: ze, zone: east}");
    assert_eq!(spec.type_url, "type.googleapis.com/kuma.mesh.v1alpha1.ZoneEgress");
    assert_eq!(spec.value, b"\x0a\x04east");
    assert!(status.is_none());
    let (spec, _) = unpacked("{type: GlobalSecret, name: s, data: QQ==}");
    assert_eq!(spec.type_url, "type.googleapis.com/kuma.system.v1alpha1.Secret");
    assert_eq!(spec.value, b"\x0a\x03\x0a\x01A");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_name() {
    let of = |name: &str, spec: Any| {
        let meta = shika_proto::kuma::mesh::v1alpha1::kuma_resource::Meta {
            name: name.to_owned(),
            mesh: "default".to_owned(),
            ..Default::default()
        };
        let packed = KumaResource { meta: Some(meta), spec: Some(spec), status: None };
        let value = prost::Message::encode_to_vec(&packed);
        WireResource {
            name: format!("{name}.default"),
            resource: Some(Any { type_url: String::new(), value }),
            ..Default::default()
        }
    };
    let any = |type_url: &str, value: &[u8]| Any { type_url: type_url.to_owned(), value: value.to_vec() };
    let dataplane = "type.googleapis.com/kuma.mesh.v1alpha1.Dataplane";
    for (kind, wire, expected) in [
        (Kind::Dataplane, WireResource { name: "a.b.m".to_owned(), ..Default::default() }, "has no content"),
        (Kind::Dataplane, WireResource { resource: Some(any("", b"\xff")), ..Default::default() }, "no KumaResource"),
        (Kind::Dataplane, of("web", any(dataplane, b"\xff")), "cannot be read"),
        (Kind::Dataplane, of("web", any("type.googleapis.com/kuma.mesh.v1alpha1.Mesh", b"\x0a\x00")), "is expected"),
        (Kind::Dataplane, of("Web!", any(dataplane, b"")), "name: invalid characters"),
        (Kind::MeshService, of("web", any("", b"{")), "no JSON"),
        (Kind::MeshService, of("web", any("", b"{\"ports\": 1}")), "spec.ports"),
        (Kind::MeshService, of("web", any(dataplane, b"{}")), "JSON without a type is expected"),
    ] {
        let (_, reason) = unpack(kind, &wire).unwrap_err();
        assert!(reason.contains(expected), "{expected:?} expected, found: {reason}");
    }
}

#[test]
fn a_zone_says_who_it_is() {
    let node = ZoneNode {
        zone: "east".to_owned(),
        instance: "cp-1".to_owned(),
        version: "2.14.0".to_owned(),
        config: "{}".to_owned(),
    };
    let found = ZoneNode::of_node(&node.to_node());
    assert_eq!((found.zone, found.instance, found.version), (node.zone, node.instance, node.version));
    let now = unix_time();
    assert_eq!(skew(&now.to_string()), None);
    assert!(skew(&(now + 600).to_string()).is_some_and(|ahead| (595..=605).contains(&ahead)));
    assert!(skew(&(now - 600).to_string()).is_some_and(|ahead| (-605..=-595).contains(&ahead)));
    assert_eq!(skew("soon"), None);
}

/// The end of what is sent is seen before the status that says why.
#[tokio::test]
async fn a_stream_that_is_refused_says_why() {
    fn refused<T>() -> impl Stream<Item = Result<T, tonic::Status>> + Unpin {
        Box::pin(futures_util::stream::once(async {
            tokio::task::yield_now().await;
            Err(tonic::Status::already_exists("one of that name is here"))
        }))
    }
    let direction = Direction::ToGlobal("west".to_owned());
    let (responses, gone) = tokio::sync::mpsc::channel(1);
    drop(gone);
    let outbox = Outbox::new(Store::memory(), direction.clone(), "west");
    let status = outbox.run(refused(), responses, |_| {}).await.unwrap_err();
    assert_eq!(status.message(), "one of that name is here");
    let (requests, gone) = tokio::sync::mpsc::channel(1);
    drop(gone);
    let inbox = Inbox::new(Store::memory(), direction, &ZoneNode::default());
    let Err(InboxError::Stream(status)) = inbox.run(refused(), requests).await else { panic!("no status") };
    assert_eq!(status.message(), "one of that name is here");
}
