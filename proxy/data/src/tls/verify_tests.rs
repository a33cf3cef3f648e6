use super::*;
use crate::model::{
    matcher::StringMatcher,
    tls::{SanKind, SubjectAltName},
};

#[test]
fn a_clock_that_is_wrong_is_told_by_how_much() {
    let at = |second| UnixTime::since_unix_epoch(Duration::from_secs(second));
    let early = explain(&webpki::Error::CertNotValidYet { time: at(1_000), not_before: at(1_590) });
    assert!(early.contains("is not valid for another 590 s (now 1000, valid from 1590)"), "{early}");
    assert!(early.contains("the clock of this host is behind"), "{early}");
    let late = explain(&webpki::Error::CertExpired { time: at(1_600), not_after: at(1_000) });
    assert!(late.contains("has expired 600 s ago (now 1600, valid until 1000)"), "{late}");
    assert!(late.contains("the clock of this host is ahead"), "{late}");
}

#[test]
fn wildcards_cover_one_label() {
    for (name, presented, expected) in [
        ("a.example", "a.example", true),
        ("A.Example", "a.example", true),
        ("a.example", "b.example", false),
        ("a.example", "*.example", true),
        ("a.b.example", "*.example", false),
        ("example", "*.example", false),
        (".example", "*.example", false),
        ("a.example", "*", false),
    ] {
        assert_eq!(dns_matches(name, presented), expected, "{name} by {presented}");
    }
}

#[test]
fn matchers_look_at_their_kind_only() {
    let exact = |kind, value: &str| SanMatcher {
        kind,
        matcher: StringMatcher::Exact { value: value.into(), ignore_case: false },
    };
    let uri = SubjectAltName::Uri("spiffe://mesh/a".into());
    let ip = SubjectAltName::Ip([10, 0, 0, 1].into());
    for (matcher, name, expected) in [
        (exact(SanKind::Uri, "spiffe://mesh/a"), &uri, true),
        (exact(SanKind::Dns, "spiffe://mesh/a"), &uri, false),
        (exact(SanKind::Uri, "spiffe://mesh/b"), &uri, false),
        (exact(SanKind::Ip, "10.0.0.1"), &ip, true),
        (exact(SanKind::Ip, "10.0.0.2"), &ip, false),
        (
            SanMatcher {
                kind: SanKind::Uri,
                matcher: StringMatcher::Prefix { value: "spiffe://mesh/".into(), ignore_case: false },
            },
            &uri,
            true,
        ),
    ] {
        assert_eq!(san_matches(&matcher, name), expected, "{matcher:?} {name:?}");
    }
}
