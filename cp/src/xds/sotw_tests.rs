#![allow(clippy::unwrap_used)]

use std::time::Duration;

use shika_proto::google::protobuf::Any;

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

fn ask(names: &[&str]) -> SotwRequest {
    SotwRequest { names: names.iter().map(|name| (*name).to_owned()).collect(), ..SotwRequest::default() }
}

fn ack(response: &SotwResponse, names: &[&str]) -> SotwRequest {
    SotwRequest { version: response.version.clone(), nonce: response.nonce.clone(), ..ask(names) }
}

fn names(response: &SotwResponse) -> Vec<&str> {
    response.resources.iter().map(|(name, _)| name.as_str()).collect()
}

use ResourceType::{Cluster, Endpoint, Listener, Secret};

#[test]
fn a_response_carries_everything_and_waits_for_its_answer() {
    let now = Instant::now();
    let mut stream = SotwStream::new();
    stream.request(Cluster, ask(&[]), now).unwrap();
    let first = snapshot(&[(Cluster, "a", 1), (Cluster, "b", 1)]);
    let response = stream.next(&first, now).unwrap();
    assert_eq!(names(&response), ["a", "b"]);
    let second = snapshot(&[(Cluster, "a", 1), (Cluster, "b", 2)]);
    assert!(stream.next(&second, now).is_none());
    assert_eq!(stream.request(Cluster, ack(&response, &[]), now).unwrap(), Answer::Acknowledged(Cluster));
    let response = stream.next(&second, now).unwrap();
    assert_eq!(names(&response), ["a", "b"]);
    let stale = SotwRequest { nonce: "0".to_owned(), ..ask(&["x"]) };
    assert_eq!(stream.request(Cluster, stale, now).unwrap(), Answer::None);
    assert_eq!(stream.request(Cluster, ack(&response, &[]), now).unwrap(), Answer::Acknowledged(Cluster));
    assert!(stream.next(&second, now).is_none());
}

#[test]
fn a_proxy_that_reconnects_with_the_current_version_is_sent_nothing() {
    let now = Instant::now();
    let current = snapshot(&[(Cluster, "a", 1), (Endpoint, "a", 1), (Endpoint, "b", 1)]);
    let mut before = SotwStream::new();
    before.request(Cluster, ask(&[]), now).unwrap();
    before.request(Endpoint, ask(&["a"]), now).unwrap();
    let clusters = before.next(&current, now).unwrap().version;
    let endpoints = before.next(&current, now).unwrap().version;

    let mut after = SotwStream::new();
    after.request(Cluster, SotwRequest { version: clusters, ..ask(&[]) }, now).unwrap();
    after.request(Endpoint, SotwRequest { version: endpoints.clone(), ..ask(&["a"]) }, now).unwrap();
    assert!(after.next(&current, now).is_none());

    let mut other = SotwStream::new();
    other.request(Endpoint, SotwRequest { version: endpoints, ..ask(&["a", "b"]) }, now).unwrap();
    assert_eq!(names(&other.next(&current, now).unwrap()), ["a", "b"], "other names are another version");
}

#[test]
fn an_empty_world_is_an_answer_for_wildcards_only() {
    let now = Instant::now();
    let mut stream = SotwStream::new();
    stream.request(Listener, ask(&[]), now).unwrap();
    stream.request(Endpoint, ask(&["a"]), now).unwrap();
    let response = stream.next(&Snapshot::default(), now).unwrap();
    assert_eq!((response.kind, response.resources.len()), (Listener, 0));
    assert!(stream.next(&Snapshot::default(), now).is_none());
}

#[test]
fn added_names_are_answered_although_nothing_changed() {
    let now = Instant::now();
    let current = snapshot(&[(Endpoint, "a", 1)]);
    let mut stream = SotwStream::new();
    stream.request(Endpoint, ask(&["a"]), now).unwrap();
    let response = stream.next(&current, now).unwrap();
    stream.request(Endpoint, ack(&response, &["a", "b"]), now).unwrap();
    assert!(stream.next(&current, now).is_some());
    let mut dropped = SotwStream::new();
    dropped.request(Endpoint, ask(&["a", "b"]), now).unwrap();
    let response = dropped.next(&current, now).unwrap();
    dropped.request(Endpoint, ack(&response, &["a"]), now).unwrap();
    assert!(dropped.next(&current, now).is_none());
}

#[test]
fn a_changed_cluster_gets_its_endpoints_again() {
    let now = Instant::now();
    let mut stream = SotwStream::new();
    stream.request(Cluster, ask(&[]), now).unwrap();
    let first = snapshot(&[(Cluster, "a", 1), (Endpoint, "a", 1)]);
    let response = stream.next(&first, now).unwrap();
    stream.request(Cluster, ack(&response, &[]), now).unwrap();
    stream.request(Endpoint, ask(&["a"]), now).unwrap();
    let response = stream.next(&first, now).unwrap();
    stream.request(Endpoint, ack(&response, &["a"]), now).unwrap();
    assert!(stream.next(&first, now).is_none());
    let second = snapshot(&[(Cluster, "a", 2), (Endpoint, "a", 1)]);
    assert_eq!(stream.next(&second, now).unwrap().kind, Cluster);
    assert_eq!(stream.next(&second, now).unwrap().kind, Endpoint);
    assert!(stream.next(&second, now).is_none());
}

#[test]
fn refused_content_is_tried_again_after_a_pause() {
    let now = Instant::now();
    let current = snapshot(&[(Listener, "l", 1)]);
    let mut stream = SotwStream::new();
    stream.request(Listener, ask(&[]), now).unwrap();
    let response = stream.next(&current, now).unwrap();
    let nack = SotwRequest { nonce: response.nonce, error: Some("no".to_owned()), ..SotwRequest::default() };
    assert_eq!(stream.request(Listener, nack, now).unwrap(), Answer::Rejected(Listener, "no".to_owned()));
    assert!(stream.next(&current, now).is_none());
    let until = now + Duration::from_secs(5);
    assert_eq!(stream.wake_at(), Some(until));
    assert!(stream.next(&current, until).is_some());
}

#[test]
fn content_that_is_not_here_is_reported_only_if_it_is_needed() {
    let now = Instant::now();
    let mut current = Snapshot::default();
    let version = Version::of(&1u32);
    current.insert(Secret, "s".to_owned(), Arc::new(Resource { version, body: None }));
    let held = Version::of(&[("s", version)][..]).to_string();
    let mut stream = SotwStream::new();
    stream.request(Secret, SotwRequest { version: held, ..ask(&["s"]) }, now).unwrap();
    assert!(stream.next(&current, now).is_none());
    assert!(!stream.take_missing_content());
    let mut stream = SotwStream::new();
    stream.request(Secret, ask(&["s"]), now).unwrap();
    assert!(stream.next(&current, now).is_none());
    assert!(stream.take_missing_content());
}
