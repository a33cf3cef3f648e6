#![allow(clippy::unwrap_used)]

use std::time::Duration;

use shika_proto::google::protobuf::Any;

use super::super::{NACK_BACKOFF, Version};
use super::*;

fn snapshot(resources: &[(ResourceType, &str, u32)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (kind, name, content) in resources {
        let body = Any { type_url: kind.url().to_owned(), value: content.to_be_bytes().to_vec() };
        let resource = Resource { version: Version::of(content), body: Some(body) };
        snapshot.insert(*kind, (*name).to_owned(), Arc::new(resource));
    }
    snapshot
}

fn subscribe(names: &[&str]) -> DeltaRequest {
    DeltaRequest { subscribe: names.iter().map(|name| (*name).to_owned()).collect(), ..DeltaRequest::default() }
}

fn ack(response: &DeltaResponse) -> DeltaRequest {
    DeltaRequest { nonce: response.nonce.clone(), ..DeltaRequest::default() }
}

fn nack(response: &DeltaResponse) -> DeltaRequest {
    DeltaRequest { error: Some("no".to_owned()), ..ack(response) }
}

fn names(response: &DeltaResponse) -> Vec<&str> {
    response.resources.iter().map(|(name, _)| name.as_str()).collect()
}

use ResourceType::{Cluster, Endpoint, Listener, Secret};

#[test]
fn wildcard_gets_everything_in_order_and_then_only_what_changed() {
    let now = Instant::now();
    let mut stream = DeltaStream::new();
    let first = snapshot(&[(Listener, "l", 1), (Cluster, "a", 1), (Cluster, "b", 1), (Endpoint, "a", 1)]);
    stream.request(Listener, subscribe(&[]), now).unwrap();
    stream.request(Cluster, subscribe(&[]), now).unwrap();

    let clusters = stream.next(&first, now).unwrap();
    assert_eq!((clusters.kind, names(&clusters)), (Cluster, vec!["a", "b"]));
    let listeners = stream.next(&first, now).unwrap();
    assert_eq!((listeners.kind, names(&listeners)), (Listener, vec!["l"]));
    assert_ne!(clusters.nonce, listeners.nonce);
    assert!(stream.next(&first, now).is_none());

    assert_eq!(stream.request(Cluster, ack(&clusters), now).unwrap(), Answer::Acknowledged(Cluster));
    assert_eq!(stream.request(Cluster, ack(&clusters), now).unwrap(), Answer::None, "a nonce is settled once");
    let second = snapshot(&[(Listener, "l", 1), (Cluster, "b", 2)]);
    let changed = stream.next(&second, now).unwrap();
    assert_eq!((names(&changed), changed.removed.clone()), (vec!["b"], vec!["a".to_owned()]));
    assert!(stream.next(&second, now).is_none());
}

#[test]
fn what_the_proxy_says_it_holds_is_not_sent_again() {
    let now = Instant::now();
    let current = snapshot(&[(Cluster, "a", 1), (Cluster, "b", 2), (Endpoint, "a", 1)]);
    let versions = |pairs: &[(&str, u32)]| {
        pairs.iter().map(|(name, content)| ((*name).to_owned(), Version::of(content).to_string())).collect()
    };
    let mut stream = DeltaStream::new();
    let held = DeltaRequest { initial_versions: versions(&[("a", 1), ("b", 1), ("gone", 1)]), ..subscribe(&[]) };
    stream.request(Cluster, held, now).unwrap();
    let held = DeltaRequest { initial_versions: versions(&[("a", 1)]), ..subscribe(&["a"]) };
    stream.request(Endpoint, held, now).unwrap();
    let response = stream.next(&current, now).unwrap();
    assert_eq!((names(&response), response.removed.clone()), (vec!["b"], vec!["gone".to_owned()]));
    assert!(stream.next(&current, now).is_none(), "endpoints of a are held");
}

#[test]
fn an_unchanged_proxy_that_reconnects_is_sent_nothing_at_all() {
    let now = Instant::now();
    let current = snapshot(&[(Cluster, "a", 1)]);
    let mut stream = DeltaStream::new();
    let version = Version::of(&1u32).to_string();
    let held = DeltaRequest { initial_versions: [("a".to_owned(), version)].into(), ..subscribe(&[]) };
    stream.request(Cluster, held, now).unwrap();
    assert!(stream.next(&current, now).is_none());
}

#[test]
fn a_first_wildcard_is_answered_even_if_there_is_nothing() {
    let now = Instant::now();
    let mut stream = DeltaStream::new();
    stream.request(Listener, subscribe(&["*"]), now).unwrap();
    stream.request(Endpoint, subscribe(&["a"]), now).unwrap();
    let response = stream.next(&Snapshot::default(), now).unwrap();
    assert_eq!((response.kind, response.resources.len()), (Listener, 0));
    assert!(stream.next(&Snapshot::default(), now).is_none(), "an unknown name gets no answer until it exists");
}

#[test]
fn names_come_and_go() {
    let now = Instant::now();
    let current = snapshot(&[(Endpoint, "a", 1), (Endpoint, "b", 1)]);
    let mut stream = DeltaStream::new();
    stream.request(Endpoint, subscribe(&["a"]), now).unwrap();
    assert_eq!(names(&stream.next(&current, now).unwrap()), ["a"]);
    stream.request(Endpoint, subscribe(&["b"]), now).unwrap();
    assert_eq!(names(&stream.next(&current, now).unwrap()), ["b"]);
    stream.request(Endpoint, subscribe(&["a"]), now).unwrap();
    assert_eq!(names(&stream.next(&current, now).unwrap()), ["a"], "subscribed again is sent again");
    let drop_a = DeltaRequest { unsubscribe: vec!["a".to_owned()], ..DeltaRequest::default() };
    stream.request(Endpoint, drop_a, now).unwrap();
    let changed = snapshot(&[(Endpoint, "a", 2), (Endpoint, "b", 1)]);
    assert!(stream.next(&changed, now).is_none());
}

#[test]
fn a_changed_cluster_gets_its_endpoints_again() {
    let now = Instant::now();
    let mut stream = DeltaStream::new();
    stream.request(Cluster, subscribe(&[]), now).unwrap();
    stream.request(Endpoint, subscribe(&["a", "b"]), now).unwrap();
    let first = snapshot(&[(Cluster, "a", 1), (Cluster, "b", 1), (Endpoint, "a", 1), (Endpoint, "b", 1)]);
    while stream.next(&first, now).is_some() {}
    let second = snapshot(&[(Cluster, "a", 2), (Cluster, "b", 1), (Endpoint, "a", 1), (Endpoint, "b", 1)]);
    let clusters = stream.next(&second, now).unwrap();
    assert_eq!((clusters.kind, names(&clusters)), (Cluster, vec!["a"]));
    let endpoints = stream.next(&second, now).unwrap();
    assert_eq!((endpoints.kind, names(&endpoints)), (Endpoint, vec!["a"]));
    assert!(stream.next(&second, now).is_none());
}

#[test]
fn refused_content_is_tried_again_later_and_other_types_go_on() {
    let now = Instant::now();
    let current = snapshot(&[(Listener, "l", 1), (Cluster, "a", 1)]);
    let mut stream = DeltaStream::new();
    stream.request(Listener, subscribe(&[]), now).unwrap();
    let mut later = now;
    for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
        let listeners = stream.next(&current, later).unwrap();
        assert_eq!(names(&listeners), ["l"]);
        let answer = stream.request(Listener, nack(&listeners), later).unwrap();
        assert_eq!(answer, Answer::Rejected(Listener, "no".to_owned()));
        assert!(stream.next(&current, later).is_none());
        let until = later + Duration::from_secs(pause);
        assert_eq!(stream.wake_at(), Some(until));
        later = until;
    }
    stream.request(Cluster, subscribe(&[]), now).unwrap();
    assert_eq!(stream.next(&current, now).unwrap().kind, Cluster, "another type does not wait");
    let listeners = stream.next(&current, later).unwrap();
    stream.request(Listener, ack(&listeners), later).unwrap();
    assert_eq!(stream.wake_at(), None);
    let changed = stream.next(&snapshot(&[(Listener, "l", 2), (Cluster, "a", 1)]), later).unwrap();
    stream.request(Listener, nack(&changed), later).unwrap();
    assert_eq!(stream.wake_at(), Some(later + NACK_BACKOFF), "an acceptance starts the pauses anew");
}

#[test]
fn a_slow_proxy_does_not_pile_up_responses() {
    let now = Instant::now();
    let mut stream = DeltaStream::new();
    stream.request(Cluster, subscribe(&[]), now).unwrap();
    let mut last = None;
    for content in 0..100 {
        last = stream.next(&snapshot(&[(Cluster, "a", content)]), now).or(last);
    }
    let last = last.unwrap();
    assert_eq!(last.nonce, MAX_IN_FLIGHT.to_string());
    assert_eq!(stream.request(Cluster, ack(&last), now).unwrap(), Answer::Acknowledged(Cluster));
    assert!(stream.next(&snapshot(&[(Cluster, "a", 99)]), now).is_some(), "the newest content is sent after the pause");
}

#[test]
fn content_that_is_not_here_is_reported_only_if_it_is_needed() {
    let now = Instant::now();
    let mut current = Snapshot::default();
    let version = Version::of(&1u32);
    current.insert(Secret, "s".to_owned(), Arc::new(Resource { version, body: None }));
    let mut stream = DeltaStream::new();
    let held = DeltaRequest { initial_versions: [("s".to_owned(), version.to_string())].into(), ..subscribe(&["s"]) };
    stream.request(Secret, held, now).unwrap();
    assert!(stream.next(&current, now).is_none());
    assert!(!stream.take_missing_content());
    stream.request(Secret, subscribe(&["s"]), now).unwrap();
    assert!(stream.next(&current, now).is_none());
    assert!(stream.take_missing_content());
    assert!(!stream.take_missing_content());
}

#[test]
fn too_many_names_end_the_stream() {
    let mut stream = DeltaStream::new();
    let request =
        DeltaRequest { subscribe: (0..=MAX_NAMES).map(|n| n.to_string()).collect(), ..DeltaRequest::default() };
    assert!(stream.request(Endpoint, request, Instant::now()).is_err());
}
