#![allow(clippy::unwrap_used)]

use http::{HeaderMap, HeaderValue};

use super::*;
use crate::{
    model::{
        access_log::Relation,
        matcher::{HeaderRef, StringMatcher},
        rbac::RequestView,
        route::Fraction,
    },
    testing,
};

fn exact(value: &str) -> StringMatcher {
    StringMatcher::Exact { value: value.into(), ignore_case: false }
}

#[tokio::test]
async fn what_is_not_there_is_neither_true_nor_false() {
    let connection = testing::connection();
    let headers = HeaderMap::new();
    let request =
        RequestView { method: "GET", path: "/a?b=c", authority: "x", scheme: "http", headers: (&headers).into() };
    let record = Record { request: Some(request), status: 503, ..Record::of_connection(&connection) };
    let path = |wanted: &str| Expression::Text(Attribute::UrlPath, exact(wanted));
    let missing = || Expression::Text(Attribute::PeerUriSan, exact("spiffe://x"));
    for (expression, outcome) in [
        (path("/a"), Some(true)),
        (path("/b"), Some(false)),
        (missing(), None),
        (Expression::Not(Box::new(missing())), None),
        (Expression::Or(vec![missing(), path("/a")]), Some(true)),
        (Expression::Or(vec![missing(), path("/b")]), None),
        (Expression::And(vec![missing(), path("/b")]), Some(false)),
        (Expression::And(vec![path("/a"), missing()]), None),
        (Expression::Text(Attribute::RequestedServerName, exact("")), Some(true)),
        (Expression::Text(Attribute::Header(HeaderRef::Path), exact("/a?b=c")), Some(true)),
        (Expression::Number(NumberAttribute::ResponseCode, Relation::AtLeast, 500), Some(true)),
        (Expression::Number(NumberAttribute::ResponseCode, Relation::Less, 500), Some(false)),
    ] {
        assert_eq!(holds(&expression, &record), outcome, "{expression:?}");
        assert_eq!(passes(&LogFilter::Expression(expression), &record), outcome == Some(true));
    }
}

#[tokio::test]
async fn metadata_of_a_route_is_compared() {
    let connection = testing::connection();
    let filter = |value: Option<&str>, if_missing| LogFilter::RouteKri { value: value.map(exact), if_missing };
    for (kri, value, if_missing, outcome) in [
        (Some("a"), Some("a"), false, true),
        (Some("b"), Some("a"), true, false),
        (None, Some("a"), false, false),
        (None, Some("a"), true, true),
        (Some("a"), None, true, false),
        (None, None, true, true),
    ] {
        let record = Record { route_kri: kri, ..Record::of_connection(&connection) };
        assert_eq!(passes(&filter(value, if_missing), &record), outcome, "{kri:?} {value:?} {if_missing}");
    }
}

#[tokio::test]
async fn a_request_id_decides_over_a_share() {
    let connection = testing::connection();
    let half = LogFilter::Share { share: Fraction { numerator: 50, denominator: 100 }, independent: false };
    for (id, outcome) in [("00000031-0000", true), ("00000032-0000", false), ("00000064-0000", true)] {
        let headers: HeaderMap =
            [("x-request-id".parse().unwrap(), HeaderValue::from_static(id))].into_iter().collect();
        let request =
            RequestView { method: "GET", path: "/", authority: "x", scheme: "http", headers: (&headers).into() };
        let record = Record { request: Some(request), ..Record::of_connection(&connection) };
        assert_eq!(passes(&half, &record), outcome, "{id}");
    }
}

#[tokio::test]
async fn statuses_of_grpc_and_kinds_of_lines() {
    let connection = testing::connection();
    let trailers: HeaderMap = [("grpc-status".parse().unwrap(), HeaderValue::from_static("5"))].into_iter().collect();
    for (trailers, status, code) in [(Some(&trailers), 200, 5), (None, 200, 2), (None, 503, 14), (None, 404, 12)] {
        let record = Record { trailers, status, ..Record::of_connection(&connection) };
        for exclude in [false, true] {
            assert_eq!(passes(&LogFilter::GrpcStatus { codes: vec![code], exclude }, &record), !exclude, "{status}");
        }
    }
    let filter = LogFilter::LogType { request_end: false, connection_end: false, connected: true };
    for only_connected in [false, true] {
        let record = Record { only_connected, ..Record::of_connection(&connection) };
        assert_eq!(passes(&filter, &record), only_connected);
    }
}
