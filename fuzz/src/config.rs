//! What a control plane or an operator says.

use std::time::Instant;

use prost::{Message, Name};
use shika_proto::{
    any,
    envoy::{
        config::{
            bootstrap::v3::Bootstrap, cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener, route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::DiscoveryResponse,
    },
    google::protobuf::Any,
    json::{self, Names},
    type_url,
};
use shika_xds::{Reject, Resource, Update, UpdateKind};

use crate::memory::compiler;

/// Asks for resources of every type, under the name that its kind has below.
const BASE: &str = include_str!("base.yaml");

/// A bootstrap as text or, behind a zero byte, in protobuf's own form: read, printed and read again it is the same, and loading it names what is wrong.
pub fn bootstrap(data: &[u8]) {
    let bootstrap: Bootstrap = match data.split_first() {
        None => return,
        Some((0, bytes)) => match Bootstrap::decode(bytes) {
            Ok(bootstrap) => bootstrap,
            Err(_) => return,
        },
        Some(_) => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let lenient = json::Options { allow_unknown_fields: true };
            let parsed = if text.starts_with('{') {
                let _ = json::from_json_str_with::<Bootstrap>(text, lenient);
                json::from_json_str(text)
            } else {
                let _ = json::from_yaml_with::<Bootstrap>(text, lenient);
                json::from_yaml(text)
            };
            match parsed {
                Ok(bootstrap) => bootstrap,
                Err(errors) => {
                    assert!(!errors.is_empty() && errors.iter().all(|error| !error.reason.trim().is_empty()));
                    return;
                }
            }
        }
    };
    print_and_read(&bootstrap);
    let mut compiler = compiler();
    match compiler.load_static(&(&bootstrap).into(), Instant::now()) {
        Ok(_) => drop(compiler.build()),
        Err(rejects) => {
            assert!(!rejects.is_empty());
            check(&rejects, false);
        }
    }
}

/// A message that has a JSON form is the same after it has been through it.
fn print_and_read<M: Message + Name + Default>(message: &M) {
    let Ok(value) = json::to_json_value(message, Names::Proto) else { return };
    match json::from_json_value::<M>(&value) {
        Ok(again) => {
            let printed = json::to_json_value(&again, Names::Proto);
            assert_eq!(printed.ok(), Some(value));
        }
        Err(errors) => panic!("cannot read what was printed: {errors:?}\n{value}"),
    }
}

/// Resources: a DiscoveryResponse as text or, behind a byte below 8, one resource of a kind in protobuf's own form. The real compiler takes or refuses each
/// with a path, twice the same, and publishes what it has.
pub fn compile(data: &[u8]) {
    let Some(resources) = resources(data) else { return };
    let outcome = || {
        let mut compiler = compiler();
        let base: Bootstrap = json::from_yaml(BASE).unwrap_or_else(|errors| panic!("{errors:?}"));
        if let Err(rejects) = compiler.load_static(&(&base).into(), Instant::now()) {
            panic!("{rejects:?}");
        }
        let now = Instant::now();
        let mut told = Vec::new();
        for kind in [type_url::CLUSTER, type_url::ENDPOINT, type_url::LISTENER, type_url::ROUTE, type_url::SECRET] {
            let of_kind = resources
                .iter()
                .filter(|resource| type_url::message_name(&resource.type_url) == type_url::message_name(kind));
            let whole = !of_kind.clone().all(can_be_decoded);
            let update = Update {
                type_url: kind.into(),
                resources: of_kind
                    .map(|one| Resource { name: String::new(), version: "1".into(), resource: one.clone() })
                    .collect(),
                removed: Vec::new(),
                kind: UpdateKind::Delta,
                version: "1".into(),
            };
            let first = compiler.apply(update.clone(), now);
            check(&first.rejects, whole);
            drop(compiler.build());
            let second = compiler.apply(update, now);
            assert_eq!(first.rejects, second.rejects, "the second time");
            assert!(!second.changed, "{kind}: what is in force already has changed something");
            drop(compiler.build());
            told.extend(first.rejects);
        }
        told
    };
    assert_eq!(outcome(), outcome(), "the same resources in another compiler");
}

/// Every refusal says what is refused, where and why. `whole`: a resource may be refused as a whole, because it cannot be decoded.
fn check(rejects: &[Reject], whole: bool) {
    for reject in rejects {
        assert!(reject.resource.split_once('/').is_some_and(|(kind, _)| !kind.is_empty()), "{reject:?}");
        assert!(whole || !reject.field_path.is_empty(), "{reject:?}");
        assert!(!reject.reason.trim().is_empty(), "{reject:?}");
    }
}

fn can_be_decoded(resource: &Any) -> bool {
    match type_url::message_name(&resource.type_url).and_then(|name| name.rsplit('.').next()) {
        Some("Cluster") => any::unpack::<Cluster>(resource).is_ok(),
        Some("ClusterLoadAssignment") => any::unpack::<ClusterLoadAssignment>(resource).is_ok(),
        Some("Listener") => any::unpack::<Listener>(resource).is_ok(),
        Some("RouteConfiguration") => any::unpack::<RouteConfiguration>(resource).is_ok(),
        _ => any::unpack::<Secret>(resource).is_ok(),
    }
}

fn resources(data: &[u8]) -> Option<Vec<Any>> {
    let (kind, bytes) = data.split_first()?;
    Some(match kind {
        0 => vec![one::<Listener>(bytes, |listener| listener.name = "listener".into())],
        1 => vec![one::<Cluster>(bytes, |cluster| cluster.name = "cluster".into())],
        2 => vec![one::<RouteConfiguration>(bytes, |routes| routes.name = "routes".into())],
        3 => vec![one::<ClusterLoadAssignment>(bytes, |endpoints| endpoints.cluster_name = "endpoints".into())],
        4 => vec![one::<Secret>(bytes, |secret| secret.name = "secret".into())],
        5..=7 => DiscoveryResponse::decode(bytes).ok()?.resources,
        _ => {
            let text = std::str::from_utf8(data).ok()?;
            let response: DiscoveryResponse = json::from_yaml(text).ok()?;
            print_and_read(&response);
            response.resources
        }
    })
}

/// What cannot be decoded goes in as it is: the compiler must see to it.
fn one<M: Message + Name + Default>(bytes: &[u8], name: impl Fn(&mut M)) -> Any {
    match M::decode(bytes) {
        Ok(mut message) => {
            name(&mut message);
            any::pack(&message)
        }
        Err(_) => Any { type_url: type_url::of::<M>(), value: bytes.to_vec() },
    }
}
