#![allow(clippy::unwrap_used, clippy::panic)]

use shika_proto::{
    envoy::service::discovery::v3::Resource as ProtoResource,
    google::protobuf::Any,
    type_url::{CLUSTER, ENDPOINT, LISTENER},
};

use super::*;

fn state() -> Delta {
    Delta::new(Node { id: "n".into(), ..Default::default() }, true)
}

fn names(list: &[&str]) -> Wanted {
    Wanted::Names(list.iter().map(|name| Arc::from(*name)).collect())
}

fn response(type_url: &str, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: resources
            .iter()
            .map(|(name, version)| ProtoResource {
                name: (*name).into(),
                version: (*version).into(),
                resource: Some(Any { type_url: type_url.into(), value: Vec::new() }),
                ..Default::default()
            })
            .collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

#[test]
fn subscribes_acknowledges_and_names_the_node_once() {
    let mut state = state();
    state.want(CLUSTER, Wanted::All);
    assert_eq!(state.next_request(), None, "no stream yet");
    state.connected();
    let first = state.next_request().unwrap();
    assert_eq!((first.type_url.as_str(), first.node.unwrap().id.as_str()), (CLUSTER, "n"));
    assert!(first.resource_names_subscribe.is_empty(), "a wildcard");
    assert_eq!(state.next_request(), None);

    let (update, receipt) = state.received(response(CLUSTER, "1", &[("a", "v1")], &[])).unwrap();
    assert_eq!(update.resources[0].version, "v1");
    assert_eq!(state.next_request(), None, "nothing is acknowledged before it is in force");
    state.acknowledge(receipt, &[]);
    let ack = state.next_request().unwrap();
    assert_eq!((ack.response_nonce.as_str(), &ack.error_detail, &ack.node), ("1", &None, &None));

    state.want(ENDPOINT, names(&["a", "b"]));
    assert_eq!(state.next_request().unwrap().resource_names_subscribe, ["a", "b"]);
    state.want(ENDPOINT, names(&["b", "c"]));
    let change = state.next_request().unwrap();
    assert_eq!(change.resource_names_subscribe, ["c"]);
    assert_eq!(change.resource_names_unsubscribe, ["a"]);
    state.want(ENDPOINT, names(&["b", "c"]));
    assert_eq!(state.next_request(), None);
}

#[test]
fn a_refusal_keeps_the_old_version() {
    let mut state = state();
    state.want(CLUSTER, Wanted::All);
    state.connected();
    state.next_request().unwrap();
    let (_, receipt) = state.received(response(CLUSTER, "1", &[("a", "v1"), ("b", "v1")], &[])).unwrap();
    state.acknowledge(receipt, &[]);
    state.next_request().unwrap();
    let (_, receipt) = state.received(response(CLUSTER, "2", &[("a", "v2"), ("b", "v2")], &[])).unwrap();
    state.acknowledge(receipt, &[Reject::new(CLUSTER, "a", "name", "bad")]);
    let nack = state.next_request().unwrap();
    let detail = nack.error_detail.unwrap();
    assert_eq!((detail.code, detail.message.as_str()), (INVALID_ARGUMENT, "Cluster \"a\": name: bad"));
    assert_eq!(nack.response_nonce, "2");

    // A new stream says what is held, so only what differs is sent.
    state.disconnected();
    assert_eq!(state.next_request(), None);
    state.connected();
    let again = state.next_request().unwrap();
    assert!(again.node.is_some());
    let held: BTreeMap<_, _> = again.initial_resource_versions.into_iter().collect();
    assert_eq!(held, BTreeMap::from([("a".to_owned(), "v1".to_owned()), ("b".to_owned(), "v2".to_owned())]));
}

#[test]
fn what_is_removed_or_no_longer_wanted_is_not_held() {
    let mut state = state();
    state.want(ENDPOINT, names(&["a", "b", "c"]));
    state.connected();
    state.next_request().unwrap();
    let (_, receipt) = state.received(response(ENDPOINT, "1", &[("a", "1"), ("b", "1"), ("c", "1")], &[])).unwrap();
    state.acknowledge(receipt, &[]);
    let (update, receipt) = state.received(response(ENDPOINT, "2", &[], &["b"])).unwrap();
    assert_eq!(update.removed, ["b"]);
    state.acknowledge(receipt, &[]);
    state.want(ENDPOINT, names(&["a", "b"]));
    state.connected();
    let again = state.next_request().unwrap();
    assert_eq!(again.resource_names_subscribe, ["a", "b"]);
    assert_eq!(again.initial_resource_versions.into_keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn passes_over_what_is_not_for_it() {
    let mut state = state();
    state.connected();
    assert!(state.received(response(LISTENER, "1", &[], &[])).is_none(), "not asked for");
    assert!(state.received(response("type.googleapis.com/x.Y", "1", &[], &[])).is_none());
    state.want(LISTENER, Wanted::All);
    state.next_request().unwrap();
    let (_, receipt) = state.received(response(LISTENER, "1", &[("l", "1")], &[])).unwrap();
    state.connected();
    state.acknowledge(receipt, &[]);
    let request = state.next_request().unwrap();
    assert_eq!(request.response_nonce, "", "a receipt of the stream before is not sent on this one");
    assert!(request.initial_resource_versions.is_empty());
}

#[test]
fn what_nothing_asks_for_is_not_held() {
    let mut state = state();
    state.want(ENDPOINT, names(&["a"]));
    state.connected();
    state.next_request().unwrap();
    let (_, receipt) = state.received(response(ENDPOINT, "1", &[("a", "1"), ("b", "1")], &[])).unwrap();
    state.acknowledge(receipt, &[]);
    // Asked for later, on another stream: it has never been taken, and has to be sent.
    state.want(ENDPOINT, names(&["a", "b"]));
    state.disconnected();
    state.connected();
    let again = state.next_request().unwrap();
    assert_eq!(again.initial_resource_versions.into_keys().collect::<Vec<_>>(), ["a"]);
}
