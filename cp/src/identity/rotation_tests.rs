#![allow(clippy::unwrap_used)]

use super::*;

fn request(service: &str) -> LeafRequest {
    LeafRequest {
        mesh: "default".to_owned(),
        backend: "ca-1".to_owned(),
        authority: 7,
        uris: vec![format!("spiffe://default/{service}")],
        lifetime: Duration::from_secs(100),
    }
}

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn leaf(second: i64) -> Leaf {
    Leaf { certificate: String::new(), key: String::new(), issued: at(second), expires: at(second + 100) }
}

/// Trap 9: renewal after 4/5 of the lifetime.
#[test]
fn a_new_proxy_needs_one_now_and_again_after_four_fifths() {
    let mut rotation = Rotation::new();
    assert_eq!(rotation.due(&request("a"), true, at(0)), Due::Now);
    rotation.issued(request("a"), leaf(0));
    assert_eq!(rotation.due(&request("a"), true, at(1)), Due::At(at(80)));
    assert_eq!(rotation.due(&request("a"), true, at(79)), Due::At(at(80)));
    assert_eq!(rotation.due(&request("a"), true, at(80)), Due::Now);
}

/// Trap 9: other tags are other names, which are not waited for.
#[test]
fn another_request_is_due_at_once() {
    let mut rotation = Rotation::new();
    rotation.issued(request("a"), leaf(0));
    assert_eq!(rotation.due(&request("b"), false, at(1)), Due::Now);
}

#[test]
fn failures_back_off_and_keep_what_is_held() {
    let mut rotation = Rotation::new();
    rotation.issued(request("a"), leaf(0));
    let version = rotation.version();
    let pauses: Vec<i64> =
        (0..8).map(|_| (rotation.failed("no entropy".to_owned(), at(80)) - at(80)).num_seconds()).collect();
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(rotation.due(&request("a"), true, at(81)), Due::At(at(380)));
    assert_eq!(rotation.version(), version);
    assert_eq!(rotation.last_error(), Some("no entropy"));
    rotation.issued(request("a"), leaf(380));
    assert_eq!(rotation.last_error(), None);
    assert_eq!(rotation.due(&request("a"), true, at(381)), Due::At(at(460)));
}

#[test]
fn an_adopted_certificate_has_the_version_it_had_and_is_issued_anew_only_for_its_content() {
    let mut before = Rotation::new();
    before.issued(request("a"), leaf(0));
    let mut after = Rotation::new();
    after.adopt(request("a"), at(0));
    assert_eq!(after.version(), before.version());
    assert!(after.leaf().is_none());
    assert_eq!(after.due(&request("a"), false, at(1)), Due::At(at(80)));
    assert_eq!(after.due(&request("a"), true, at(1)), Due::Now);
    after.adopt(request("b"), at(0));
    assert_ne!(after.version(), before.version());
}
