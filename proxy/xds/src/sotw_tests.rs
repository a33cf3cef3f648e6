#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use shika_proto::{
    google::protobuf::Any,
    type_url::{CLUSTER, ENDPOINT},
};

use super::*;

fn response(type_url: &str, version: &str, nonce: &str) -> DiscoveryResponse {
    DiscoveryResponse {
        type_url: type_url.into(),
        version_info: version.into(),
        nonce: nonce.into(),
        resources: vec![Any { type_url: type_url.into(), value: Vec::new() }],
        ..Default::default()
    }
}

#[test]
fn the_version_in_force_is_named_in_every_request() {
    let mut state = Sotw::new(Node::default(), false);
    state.want(CLUSTER, Wanted::All);
    state.connected();
    let first = state.next_request().unwrap();
    assert!(first.node.is_some() && first.version_info.is_empty() && first.resource_names.is_empty());
    let (update, receipt) = state.received(response(CLUSTER, "v1", "1")).unwrap();
    assert_eq!(update.kind, UpdateKind::FullState);
    assert_eq!(state.next_request(), None, "nothing is acknowledged before it is in force");
    state.acknowledge(receipt, &[]);
    let ack = state.next_request().unwrap();
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str(), ack.error_detail), ("v1", "1", None));
    let (_, receipt) = state.received(response(CLUSTER, "v2", "2")).unwrap();
    state.acknowledge(receipt, &[Reject::new(CLUSTER, "a", "", "bad")]);
    let nack = state.next_request().unwrap();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "2"));
    assert_eq!(nack.error_detail.unwrap().message, "Cluster \"a\": bad");
    assert_eq!(state.next_request(), None);

    state.disconnected();
    state.connected();
    let again = state.next_request().unwrap();
    assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("v1", ""));
}

#[test]
fn names_are_sent_whole() {
    let mut state = Sotw::new(Node::default(), true);
    state.connected();
    assert_eq!(state.next_request(), None);
    state.want(ENDPOINT, Wanted::Names([Arc::from("b"), Arc::from("a")].into()));
    let request = state.next_request().unwrap();
    assert_eq!((request.resource_names, request.node.is_some()), (vec!["a".to_owned(), "b".to_owned()], true));
    state.want(ENDPOINT, Wanted::Names([Arc::from("b")].into()));
    let request = state.next_request().unwrap();
    assert_eq!((request.resource_names, request.node), (vec!["b".to_owned()], None));
    assert!(state.received(response(CLUSTER, "1", "1")).is_none(), "not asked for");
}
