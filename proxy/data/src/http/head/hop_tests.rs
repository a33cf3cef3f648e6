#![allow(clippy::unwrap_used)]

use http::{HeaderMap, Request};

use super::*;

/// A head with these lines.
fn head(version: Version, lines: &[(&str, &str)]) -> Head {
    let mut request = Request::builder().version(version).uri("/");
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    Head::new(request.body(()).unwrap()).0
}

fn lines(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

#[test]
fn all_lines_of_connection_are_one_list() {
    let (secret, forwarded) = (("x-secret", "1"), ("x-forwarded-for", "192.0.2.1"));
    for (given, left, upgrade) in [
        (&[("connection", "x-secret"), secret][..], Some(&[][..]), None),
        (&[("connection", "keep-alive"), ("connection", "x-secret"), secret], Some(&[]), None),
        (&[("connection", "close, , X-Secret,, te"), secret, secret], Some(&[]), None),
        (&[("connection", "a,b,c,d"), ("connection", "e,f,g,h,x-secret"), secret], Some(&[]), None),
        (&[("connection", "a,b,c,d"), ("connection", "e,f,g,h,i,x-secret"), secret], None, None),
        (&[("connection", " , , , , , , , , , x-secret"), secret], None, None),
        (&[("connection", "x-forwarded-for"), forwarded], None, None),
        (&[("connection", "keep-alive"), ("connection", "X-Forwarded-For"), forwarded], None, None),
        (&[("connection", "x-forwarded-proto")], None, None),
        (&[("connection", ":path")], None, None),
        (&[("connection", "no name")], Some(&[]), None),
        (&[("upgrade", "websocket")], Some(&[]), None),
        (&[("connection", "Upgrade"), ("upgrade", "WebSocket")], Some(&[]), Some("websocket")),
        (
            &[("connection", "keep-alive"), ("connection", "upgrade"), ("upgrade", "websocket")],
            Some(&[]),
            Some("websocket"),
        ),
        (&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "a")], Some(&[]), Some("websocket,a")),
        (&[("connection", "upgrade"), ("upgrade", "h2c"), ("upgrade", "a")], Some(&[]), Some("h2c,a")),
        (&[("connection", "upgrade, http2-settings"), ("upgrade", "H2C"), ("http2-settings", "a")], Some(&[]), None),
    ] {
        let mut head = head(Version::HTTP_11, given);
        let outcome = head.take_connection();
        assert_eq!(outcome.is_ok(), left.is_some(), "{given:?}");
        match (outcome, left) {
            (Err(refusal), _) => assert_eq!(refusal.details, "http1.connection_header_rejected", "{given:?}"),
            (Ok(()), left) => assert_eq!(lines(&head.headers), left.unwrap_or_default(), "{given:?}"),
        }
        assert_eq!(head.upgrade.as_deref(), upgrade, "{given:?}");
    }
    let mut old = head(Version::HTTP_10, &[("connection", "upgrade"), ("upgrade", "websocket")]);
    assert!(old.take_connection().is_ok() && old.upgrade.is_none(), "HTTP/1.0 knows no upgrade");
}

#[test]
fn what_connection_took_away_is_looked_for_no_more() {
    let mut head =
        head(Version::HTTP_11, &[("connection", "te, expect, x-request-id"), ("expect", "a"), ("x-request-id", "b")]);
    assert!(head.present.has(Present::EXPECT) && head.present.has(Present::REQUEST_ID));
    assert!(head.take_connection().is_ok());
    assert_eq!(head.present, Present::default());
}

#[test]
fn only_trailers_is_left_of_te() {
    for (values, left) in [
        (&["trailers"][..], Some("trailers")),
        (&["trailers", "gzip"], Some("trailers")),
        (&["gzip", "trailers"], Some("trailers")),
        (&["gzip;q=1, trailers ,deflate"], Some("trailers")),
        (&["trailers", "trailers"], Some("trailers")),
        (&["gzip"], None),
        (&["gzip", "deflate"], None),
        (&["Trailers"], None),
        (&["trailers;q=1"], None),
        (&[""], None),
    ] {
        let given: Vec<_> = values.iter().map(|value| ("te", *value)).collect();
        let mut head = head(Version::HTTP_11, &given);
        head.take_te();
        assert_eq!(lines(&head.headers), left.map(|left| ("te", left)).into_iter().collect::<Vec<_>>(), "{values:?}");
    }
}

#[test]
fn what_hyper_answers_is_expected_of_nobody_else() {
    for (values, left) in [
        (&["100-continue"][..], &[][..]),
        (&["100-Continue", "100-continue"], &[]),
        (&["x", "100-continue"], &["x"]),
        (&["100-continue", "x", "y"], &["x", "y"]),
        (&["x"], &["x"]),
    ] {
        let given: Vec<_> = values.iter().map(|value| ("expect", *value)).collect();
        let mut head = head(Version::HTTP_11, &given);
        head.take_expect();
        assert_eq!(lines(&head.headers), left.iter().map(|left| ("expect", *left)).collect::<Vec<_>>(), "{values:?}");
    }
}
