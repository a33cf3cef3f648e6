#![allow(clippy::unwrap_used)]

use http::Request;

use super::*;
use crate::model::matcher::{HeaderMatcher, HeaderRef, HeaderTest, QueryMatcher};

fn head(path: &str, headers: &[(&str, &str)]) -> Head {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Head::new(request.body(()).unwrap()).0
}

fn rule(actions: Vec<RateAction>) -> RateLimitRule {
    RateLimitRule { stage: 0, actions, limit: None, hits: None }
}

fn header_action(skip_if_absent: bool) -> RateAction {
    RateAction::Header { name: HeaderRef::Name(HeaderName::from_static("x-user")), key: "user".into(), skip_if_absent }
}

fn present(expect: bool) -> RateAction {
    let matcher = HeaderMatcher {
        name: HeaderRef::Name(HeaderName::from_static("x-user")),
        test: HeaderTest::Present(true),
        invert: false,
        missing_as_empty: false,
    };
    RateAction::HeaderMatch { key: "header_match".into(), value: "v".into(), expect, headers: vec![matcher] }
}

#[test]
fn an_action_without_a_value_takes_the_whole_descriptor_away() {
    let constant = || RateAction::Constant { key: "generic_key".into(), value: "g".into() };
    let query = |skip_if_absent| RateAction::Query { name: "q".into(), key: "k".into(), skip_if_absent };
    let query_match = |expect| RateAction::QueryMatch {
        key: "query_match".into(),
        value: "v".into(),
        expect,
        parameters: vec![QueryMatcher { name: "q".into(), value: None }],
    };
    let (with, without) = (head("/a?q=1&q=2", &[("x-user", "u"), ("x-user", "w")]), head("/a", &[]));
    for (actions, present_text, absent_text) in [
        (vec![constant()], "generic_key=g", "generic_key=g"),
        (vec![RateAction::DestinationCluster], "destination_cluster=c", "destination_cluster=c"),
        (vec![constant(), header_action(false)], "generic_key=g user=u", ""),
        (vec![constant(), header_action(true)], "generic_key=g user=u", "generic_key=g"),
        (vec![header_action(true)], "user=u", ""),
        (vec![query(false)], "k=1", ""),
        (vec![query(true), constant()], "k=1 generic_key=g", "generic_key=g"),
        (vec![present(true)], "header_match=v", ""),
        (vec![present(false)], "", "header_match=v"),
        (vec![query_match(true)], "query_match=v", ""),
        (vec![query_match(false)], "", "query_match=v"),
        (vec![RateAction::RemoteAddress], "remote_address=10.1.2.3", "remote_address=10.1.2.3"),
        (
            vec![RateAction::MaskedRemoteAddress { v4: 16, v6: 64 }],
            "masked_remote_address=10.1.0.0/16",
            "masked_remote_address=10.1.0.0/16",
        ),
    ] {
        let rule = rule(actions);
        for (head, expected) in [(&with, present_text), (&without, absent_text)] {
            let facts = Facts { head, destination: "c", remote: Some("10.1.2.3".parse().unwrap()) };
            let text = describe(&rule, &facts).map_or(String::new(), |descriptor| {
                let entries: Vec<_> = descriptor.entries.iter().map(|(key, value)| format!("{key}={value}")).collect();
                entries.join(" ")
            });
            assert_eq!(text, expected, "{rule:?}");
        }
    }
    let nobody = Facts { head: &with, destination: "c", remote: None };
    assert_eq!(describe(&rule(vec![RateAction::RemoteAddress]), &nobody), None);
}

#[test]
fn a_question_on_the_wire() {
    let descriptor = Descriptor { entries: vec![("k", "v".to_owned())], limit: Some((7, 2)), hits: Some((3, true)) };
    // domain, then the descriptor: entries, limit, hits_addend, is_negative_hits.
    let expected = b"\x0a\x01d\x12\x14\x0a\x06\x0a\x01k\x12\x01v\x12\x04\x08\x07\x10\x02\x1a\x02\x08\x03\x20\x01";
    assert_eq!(question("d", &[descriptor]), expected);
}

#[test]
fn an_answer_from_the_wire() {
    let mut answer = Writer::default();
    answer.number(1, 2);
    for (requests, unit, name, remaining, reset) in [(10, 1, "first", 5, 1), (4, 3, "", 2, 30), (9, 0, "x", 8, 2)] {
        answer.message(2, |status| {
            status.number(1, 1);
            status.message(2, |limit| {
                limit.number(1, requests);
                limit.number(2, unit);
                limit.bytes(3, name);
            });
            status.number(3, remaining);
            status.message(4, |duration| duration.number(1, reset));
        });
    }
    answer.entry(3, "x-a", "1");
    answer.entry(3, "not a name", "1");
    answer.entry(3, "content-length", "1");
    answer.entry(4, "x-b", "2");
    answer.bytes(5, "slow down");
    let verdict = Verdict::read(&answer.finish()).unwrap();
    assert!(verdict.over);
    assert_eq!(verdict.response_headers, [(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))]);
    assert_eq!(verdict.request_headers, [(HeaderName::from_static("x-b"), HeaderValue::from_static("2"))]);
    assert_eq!(verdict.body, "slow down");
    let told: Vec<_> = draft_headers(&verdict.statuses)
        .into_iter()
        .map(|(name, value, _)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        ["x-ratelimit-limit: 4, 10;w=1;name=\"first\", 4;w=3600", "x-ratelimit-remaining: 2", "x-ratelimit-reset: 30"]
    );
    assert!(draft_headers(&[]).is_empty());
    assert_eq!(Verdict::read(b"").unwrap_err(), Malformed, "neither within its limits nor over them");
    assert_eq!(Verdict::read(b"\x08\x03").unwrap_err(), Malformed);
    assert_eq!(Verdict::read(b"\x12\xff").unwrap_err(), Malformed);
}
