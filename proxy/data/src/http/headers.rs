//! Header names, and what routes do to headers.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::present::Present;
use crate::{
    model::header::{AppendAction, HeaderAdd, HeaderMutations},
    record::{self, Record},
    worker,
};

macro_rules! names {
    ($($name:ident = $text:literal;)*) => {
        $(pub const $name: HeaderName = HeaderName::from_static($text);)*
    };
}

names! {
    CLIENT_CERT = "x-forwarded-client-cert";
    CLIENT_TRACE_ID = "x-client-trace-id";
    DECORATOR_OPERATION = "x-envoy-decorator-operation";
    DOWNSTREAM_CLUSTER = "x-envoy-downstream-service-cluster";
    ENVOY_ATTEMPT_TIMEOUT = "x-envoy-expected-rq-timeout-ms";
    ENVOY_EXTERNAL_ADDRESS = "x-envoy-external-address";
    ENVOY_INTERNAL = "x-envoy-internal";
    ENVOY_ORIGINAL_HOST = "x-envoy-original-host";
    ENVOY_ORIGINAL_PATH = "x-envoy-original-path";
    ENVOY_OVERLOADED = "x-envoy-overloaded";
    ENVOY_TIMEOUT = "x-envoy-upstream-rq-timeout-ms";
    ENVOY_UPSTREAM_TIME = "x-envoy-upstream-service-time";
    FORCE_TRACE = "x-envoy-force-trace";
    FORWARDED_FOR = "x-forwarded-for";
    FORWARDED_HOST = "x-forwarded-host";
    FORWARDED_PROTO = "x-forwarded-proto";
    KEEP_ALIVE = "keep-alive";
    PROXY_CONNECTION = "proxy-connection";
    REQUEST_ID = "x-request-id";
    GRPC_STATUS = "grpc-status";
    GRPC_MESSAGE = "grpc-message";
    GRPC_TIMEOUT = "grpc-timeout";
}

/// Control headers that only requests from inside may carry.
pub static INTERNAL_ONLY: [HeaderName; 14] = [
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    ENVOY_TIMEOUT,
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    ENVOY_ATTEMPT_TIMEOUT,
    FORCE_TRACE,
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
];

/// Those of them that the router acts on or ignores, and never passes on.
pub static ROUTER_ONLY: [HeaderName; 11] = [
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    ENVOY_TIMEOUT,
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    ENVOY_ATTEMPT_TIMEOUT,
];

/// Headers that are also dropped where the mesh meets the outside (`use_remote_address`).
pub static EDGE_ONLY: [HeaderName; 5] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-downstream-service-cluster"),
    HeaderName::from_static("x-envoy-downstream-service-node"),
    ENVOY_ORIGINAL_PATH,
    ENVOY_ORIGINAL_HOST,
];

/// Removes those of `names`, which all begin with `x-envoy-`, that are there. One pass over what is there finds them: almost no request has one, and asking
/// for each costs more.
pub fn remove_envoy(headers: &mut HeaderMap, names: &[HeaderName]) {
    let is_there = |name: &&HeaderName| name.as_str().starts_with("x-envoy-") && names.contains(name);
    while let Some(name) = headers.keys().find(is_there).cloned() {
        headers.remove(name);
    }
}

/// A fresh `x-request-id`: a UUID of version 4. Marked so that no table of HPACK takes it up (RFC 7541 section 6.2.3): it never comes again, and would
/// put out of the table what does.
pub fn new_request_id() -> HeaderValue {
    let bits = u128::from(worker::random()) << 64 | u128::from(worker::random());
    let id = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let mut id =
        HeaderValue::from_str(id.as_hyphenated().encode_lower(&mut text)).unwrap_or(HeaderValue::from_static(""));
    id.set_sensitive(true);
    id
}

/// Whether a name is none. Over HTTP/2 the crate `http` takes a double quote in it, which RFC 9110 section 5.6.2 does not: a peer over HTTP/1 would
/// take the line for anything. Every other byte is checked as it is read.
pub fn has_bad_name(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().contains('"'))
}

/// Decimal digits of 0 to 99, two for each.
static DIGITS: [u8; 200] = {
    let mut digits = [0; 200];
    let mut n = 0;
    while n < 100 {
        digits[2 * n] = b'0' + (n / 10) as u8;
        digits[2 * n + 1] = b'0' + (n % 10) as u8;
        n += 1;
    }
    digits
};

/// A number as a header's value. Small ones, and the last large one of this worker, cost no allocation: times that upstreams take are small, and a route's
/// timeout is the same for each request.
pub fn number(n: u64) -> HeaderValue {
    let at = 2 * usize::try_from(n).unwrap_or(usize::MAX).min(100);
    let digits = if n < 10 { DIGITS.get(at + 1..at + 2) } else { DIGITS.get(at..at + 2) };
    match digits.and_then(|digits| std::str::from_utf8(digits).ok()) {
        Some(digits) => HeaderValue::from_static(digits),
        None => worker::number(n),
    }
}

/// Removes what belongs to one hop from a response.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if Present::of(headers).has(Present::CONNECTION.or(Present::HOP).or(Present::UPGRADE)) {
        for name in [&header::CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &header::TRANSFER_ENCODING, &header::UPGRADE]
        {
            headers.remove(name);
        }
    }
}

/// The values that one level's additions have now, in order. They are worked out before any of them is applied, because they may quote the headers that
/// they will be added to.
pub fn values(mutations: &HeaderMutations, record: &Record<'_>) -> Vec<Option<HeaderValue>> {
    let value = |add: &HeaderAdd| {
        let mut value = String::new();
        record::render_header(&add.value, record, &mut value);
        (add.keep_empty || !value.is_empty()).then(|| HeaderValue::from_str(&value).ok()).flatten()
    };
    mutations.add.iter().map(value).collect()
}

/// Carries out one level's mutations: additions, then removals.
pub fn mutate(headers: &mut HeaderMap, mutations: &HeaderMutations, values: Vec<Option<HeaderValue>>) {
    for (add, value) in mutations.add.iter().zip(values) {
        if let Some(value) = value {
            put(headers, &add.name, value, add.append);
        }
    }
    for name in &mutations.remove {
        headers.remove(name);
    }
}

/// Adds one header.
pub fn put(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, append: AppendAction) {
    let exists = headers.contains_key(name);
    match append {
        AppendAction::AppendIfExistsOrAdd => {
            headers.append(name, value);
        }
        AppendAction::AddIfAbsent if exists => {}
        AppendAction::OverwriteIfExists if !exists => {}
        AppendAction::AddIfAbsent | AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists => {
            headers.insert(name, value);
        }
    }
}

/// All values of a header joined by `,`; empty if there is none.
pub fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let mut text = String::new();
    for value in headers.get_all(name) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(value.to_str().unwrap_or(""));
    }
    text
}

/// Appends to the last value of a header, or adds it.
pub fn append(headers: &mut HeaderMap, name: HeaderName, value: &str, separator: &str) {
    let old = joined(headers, &name);
    let new = if old.is_empty() { value.to_owned() } else { format!("{old}{separator}{value}") };
    if let Ok(new) = HeaderValue::from_str(&new) {
        headers.insert(name, new);
    }
}

/// HTTP/2 clients may split cookies (RFC 9113 section 8.2.3); everybody else gets them in one piece.
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let parts: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_makes_no_name() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("a\"b"));
        headers.insert("x-!#$%&'*+.^_`|~0", HeaderValue::from_static(""));
        assert!(!has_bad_name(&headers));
        let quoted =
            HeaderName::from_lowercase(b"x-\"").expect("http takes it; once it does not, this check is not needed");
        headers.insert(quoted, HeaderValue::from_static(""));
        assert!(has_bad_name(&headers));
    }

    #[test]
    fn every_name_that_is_listed_goes_and_no_other() {
        for list in [&INTERNAL_ONLY[..], &ROUTER_ONLY, &EDGE_ONLY] {
            let others = [header::HOST, ENVOY_INTERNAL, REQUEST_ID];
            let mut headers = HeaderMap::new();
            for name in list.iter().chain(&others).chain(list) {
                assert!(!list.contains(name) || name.as_str().starts_with("x-envoy-"), "{name}");
                headers.append(name, HeaderValue::from_static("1"));
            }
            remove_envoy(&mut headers, list);
            assert_eq!(headers.keys().collect::<Vec<_>>().len(), others.len());
            assert!(others.iter().all(|name| headers.contains_key(name)));
        }
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for n in (0..=101).chain([999, 15_000, 15_000, 7, 15_001, 15_000, u64::MAX]) {
            assert_eq!(number(n), n.to_string());
        }
    }
}
