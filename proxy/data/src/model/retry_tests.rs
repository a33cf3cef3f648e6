#![allow(clippy::unwrap_used)]

use http::HeaderValue;

use super::*;
use crate::model::matcher::HeaderTest;

pub(crate) fn policy(on: &str) -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::parse(on),
        retries: 1,
        per_try_timeout: None,
        base: Duration::from_millis(25),
        longest: Duration::from_millis(250),
        status_codes: vec![418, 451],
        response_headers: vec![HeaderMatcher {
            name: HeaderRef::Name(HeaderName::from_static("x-again")),
            test: HeaderTest::Present(true),
            invert: false,
            missing_as_empty: false,
        }],
        request_headers: Vec::new(),
        reset_headers: vec![
            ResetHeader { name: HeaderName::from_static("retry-after"), is_timestamp: false },
            ResetHeader { name: HeaderName::from_static("x-reset-at"), is_timestamp: true },
        ],
        longest_reset: Duration::from_secs(300),
        other_hosts: false,
        omitted_hosts: Vec::new(),
        reselections: 1,
        other_priorities_after: None,
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// The table of Envoy's documentation, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[test]
fn responses() {
    for (on, status, head, wanted) in [
        ("", 503, &[][..], false),
        ("5xx", 500, &[], true),
        ("5xx", 599, &[], true),
        ("5xx", 499, &[], false),
        ("gateway-error", 502, &[], true),
        ("gateway-error", 504, &[], true),
        ("gateway-error", 500, &[], false),
        ("retriable-4xx", 409, &[], true),
        ("retriable-4xx", 404, &[], false),
        ("retriable-status-codes", 451, &[], true),
        ("retriable-status-codes", 500, &[], false),
        ("retriable-headers", 200, &[("x-again", "")], true),
        ("retriable-headers", 200, &[], false),
        ("reset,connect-failure,refused-stream", 503, &[], false),
        ("cancelled", 200, &[("grpc-status", "1")], true),
        // Kuma's spelling, which Envoy does not know.
        ("canceled", 200, &[("grpc-status", "1")], false),
        ("deadline-exceeded,internal", 200, &[("grpc-status", "13")], true),
        ("unavailable", 200, &[("grpc-status", "14")], true),
        ("unavailable", 200, &[("grpc-status", "13")], false),
        ("unavailable", 200, &[], false),
        // A rate limit of an Envoy is final, unless that is what is retried.
        ("5xx", 503, &[("x-envoy-ratelimited", "true")], false),
        ("5xx, envoy-ratelimited", 429, &[("x-envoy-ratelimited", "true")], true),
    ] {
        assert_eq!(policy(on).wants_after_response(status, &headers(head)), wanted, "{on}: {status} {head:?}");
    }
}

#[test]
fn resets() {
    for (on, [overflow, connect, refused, other]) in [
        ("5xx", [false, true, true, true]),
        ("gateway-error", [false, true, true, true]),
        ("reset", [false, true, true, true]),
        ("reset-before-request", [false, true, false, false]),
        ("connect-failure", [false, true, false, false]),
        ("refused-stream", [false, false, true, false]),
        ("retriable-4xx,retriable-status-codes,unavailable", [false; 4]),
    ] {
        for (reset, wanted) in
            [(Reset::Overflow, overflow), (Reset::Connect, connect), (Reset::Refused, refused), (Reset::Other, other)]
        {
            assert_eq!(policy(on).wants_after_reset(reset), wanted, "{on}: {reset:?}");
        }
    }
}

#[test]
fn pauses_that_responses_ask_for() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    for (head, expected) in [
        (&[][..], None),
        (&[("retry-after", "7")], Some(7)),
        (&[("retry-after", "301")], None),
        (&[("retry-after", "soon")], None),
        (&[("retry-after", "0")], None),
        (&[("x-reset-at", "1000009")], Some(9)),
        (&[("x-reset-at", "999999")], None),
        (&[("x-reset-at", "1000009"), ("retry-after", "3")], Some(3)),
        (&[("x-reset-at", "1000009"), ("retry-after", "400")], Some(9)),
    ] {
        let pause = policy("5xx").asked_pause(&headers(head), now);
        assert_eq!(pause, expected.map(Duration::from_secs), "{head:?}");
    }
}
