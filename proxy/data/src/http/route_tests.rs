//! Tables for route matching.

use std::sync::Arc;

use foldhash::HashMap;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::*;
use crate::model::{
    RouteTableId,
    header::HeaderMutations,
    http_filter::FilterSettings,
    matcher::{HeaderMatcher, HeaderRef, HeaderTest, QueryMatcher, full_match_regex},
    route::{DirectResponse, RequireTls, RouteAction},
};

fn route(name: &str, path: PathMatch) -> Route {
    Route {
        name: name.into(),
        path,
        headers: Vec::new(),
        query: Vec::new(),
        grpc_only: false,
        filter_state: Vec::new(),
        fraction: None,
        action: RouteAction::Direct(DirectResponse { status: StatusCode::OK, body: bytes::Bytes::new(), format: None }),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        filters: FilterSettings::default(),
        kri: None,
        tracing: None,
    }
}

fn host(name: &str, routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: name.into(),
        routes,
        require_tls: RequireTls::No,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        rate_limits: None,
        filters: FilterSettings::default(),
    }
}

fn table(domains: &[&str], ignore_port: bool) -> RouteTable {
    let mut index = Domains::default();
    for (at, domain) in domains.iter().enumerate() {
        let at = at as u32;
        if *domain == "*" {
            index.any = Some(at);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            index.suffix.insert(suffix.into(), at);
            index.suffix_lengths.push(suffix.len());
        } else if let Some(prefix) = domain.strip_suffix('*') {
            index.prefix.insert(prefix.into(), at);
            index.prefix_lengths.push(prefix.len());
        } else {
            index.exact.insert((*domain).into(), at);
        }
    }
    index.suffix_lengths.sort_by(|a, b| b.cmp(a));
    index.prefix_lengths.sort_by(|a, b| b.cmp(a));
    RouteTable {
        id: RouteTableId(0),
        name: Arc::from("table"),
        virtual_hosts: domains.iter().map(|domain| host(domain, Vec::new())).collect(),
        domains: index,
        ignore_port,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        most_specific_wins: false,
        filters: FilterSettings::default(),
    }
}

#[test]
fn the_most_specific_domain_wins() {
    let table = table(
        &["a.example.com", "a.example.com:8080", "*.example.com", "*.com", "a.*", "a.example.*", "[::1]", "*"],
        false,
    );
    for (authority, expected) in [
        ("a.example.com", "a.example.com"),
        ("A.Example.COM", "a.example.com"),
        ("a.example.com:8080", "a.example.com:8080"),
        ("a.example.com:9090", "a.example.*"),
        ("b.example.com", "*.example.com"),
        (".example.com", "*.com"),
        ("b.org", "*"),
        ("a.example.org", "a.example.*"),
        ("a.org", "a.*"),
        ("[::1]", "[::1]"),
    ] {
        assert_eq!(table.virtual_host(authority).map(|host| &*host.name), Some(expected), "{authority}");
    }
}

#[test]
fn without_a_wildcard_there_may_be_no_host() {
    let table = table(&["a.example.com"], false);
    assert!(table.virtual_host("b.example.com").is_none());
    assert!(table.virtual_host("a.example.com:80").is_none());
}

#[test]
fn ports_can_be_ignored() {
    let table = table(&["a.example.com", "[::1]"], true);
    for authority in ["a.example.com", "a.example.com:80", "[::1]:80"] {
        assert!(table.virtual_host(authority).is_some(), "{authority}");
    }
}

#[test]
fn ports_are_told_from_ipv6() {
    for (authority, expected) in [
        ("a", "a"),
        ("a:80", "a"),
        ("a:", "a"),
        ("[::1]", "[::1]"),
        ("[::1]:80", "[::1]"),
        ("::1", "::1"),
        ("a:b", "a:b"),
    ] {
        assert_eq!(without_port(authority), expected, "{authority}");
    }
}

#[test]
fn paths_match_by_their_kind() {
    let prefix = |value: &str, ignore_case| PathMatch::Prefix { value: value.into(), ignore_case };
    let exact = |value: &str, ignore_case| PathMatch::Exact { value: value.into(), ignore_case };
    let separated = |value: &str| PathMatch::SeparatedPrefix { value: value.into(), ignore_case: false };
    let regex = |value: &str| PathMatch::Regex(full_match_regex(value).expect("a valid expression"));
    for (path_match, path, expected) in [
        (prefix("/", false), "/a", true),
        (prefix("/a", false), "/ab", true),
        (prefix("/a", false), "/A", false),
        (prefix("/a", true), "/AB", true),
        (exact("/a", false), "/a", true),
        (exact("/a", false), "/a/", false),
        (exact("/a", true), "/A", true),
        (separated("/a"), "/a", true),
        (separated("/a"), "/a/b", true),
        (separated("/a"), "/ab", false),
        (regex("/a[0-9]+"), "/a12", true),
        (regex("/a[0-9]+"), "/a12/b", false),
        (regex("/a|/b"), "/bc", false),
        (PathMatch::Connect, "/a", false),
    ] {
        assert_eq!(path_match.matches(path, false), expected, "{path_match:?} {path}");
    }
    assert!(PathMatch::Connect.matches("", true));
    assert!(!prefix("/", false).matches("/", true));
}

#[test]
fn all_criteria_must_hold_and_the_first_route_wins() {
    let everything = |name| route(name, PathMatch::Prefix { value: "/".into(), ignore_case: false });
    let mut by_header = everything("by-header");
    by_header.headers.push(HeaderMatcher {
        name: HeaderRef::Name(http::HeaderName::from_static("x-kind")),
        test: HeaderTest::Present(true),
        invert: false,
        missing_as_empty: false,
    });
    let mut by_query = everything("by-query");
    by_query.query.push(QueryMatcher {
        name: "v".into(),
        value: Some(StringMatcher::Exact { value: "2%203".into(), ignore_case: false }),
    });
    let mut grpc = everything("grpc");
    grpc.grpc_only = true;
    let mut never = everything("never");
    never.fraction = Some(Fraction { numerator: 0, denominator: 100 });
    let host = host("host", vec![by_header, by_query, grpc, never, everything("rest")]);
    let headers = |pairs: &[(&'static str, &'static str)]| {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect::<HeaderMap>()
    };
    for (path, headers, expected) in [
        ("/", headers(&[]), "rest"),
        ("/", headers(&[("x-kind", "")]), "by-header"),
        ("/?v=2%203", headers(&[]), "by-query"),
        ("/?u&v=2%203#f", headers(&[]), "by-query"),
        ("/?v=4&v=2%203", headers(&[]), "rest"),
        ("/", headers(&[("content-type", "application/grpc+proto")]), "grpc"),
        ("/", headers(&[("content-type", "application/grpc-web")]), "rest"),
    ] {
        let request = RequestView { method: "GET", path, authority: "a", scheme: "http", headers: (&headers).into() };
        let found = host.route(&request, &FilterState::default(), false, &mut || 7);
        assert_eq!(found.map(|route| &*route.name), Some(expected), "{path} {headers:?}");
    }
}

#[test]
fn an_empty_table_has_no_host() {
    let mut table = table(&[], false);
    table.domains.exact = HashMap::default();
    assert!(table.virtual_host("a").is_none());
}
