//! The hash of a request, by its route's policies.
//!
//! Source: Envoy `Http::HashPolicyImpl`.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, header};

use super::{exchange::Exchange, head::Head};
use crate::{
    connection::Connection,
    model::{
        hash::{HashCookie, HashPolicy, HashSource, combine, hash, hash_all},
        matcher::HeaderRef,
        rbac::RequestView,
    },
};

/// The hash, if any policy finds something to hash. A cookie that a policy makes is left with the exchange, for the response.
pub(super) fn of_request(policies: &[HashPolicy], head: &Head, exchange: &mut Exchange) -> Option<u64> {
    let mut so_far = None;
    for policy in policies {
        let found = match &policy.source {
            HashSource::Header { name, rewrite } => {
                let mut values = header_values(&head.view(), name);
                if let Some((pattern, substitution)) = rewrite {
                    for value in &mut values {
                        if let Cow::Owned(changed) = pattern.replace_all(value, &**substitution) {
                            *value = changed.into();
                        }
                    }
                }
                values.sort_unstable();
                (!values.is_empty()).then(|| hash_all(values.iter().map(|value| &**value)))
            }
            HashSource::Cookie(wanted) => match cookie(&head.headers, &wanted.name) {
                Some(value) if !value.is_empty() => Some(hash(value.as_bytes())),
                _ => wanted.lifetime.map(|_| make(wanted, exchange)),
            },
            HashSource::SourceIp => head.remote.map(|remote| hash(remote.ip().to_string().as_bytes())),
            HashSource::Query(name) => parameter(head.path.as_str(), name).map(|value| hash(value.as_bytes())),
        };
        if let Some(found) = found {
            so_far = Some(combine(so_far, found));
        }
        if policy.terminal && so_far.is_some() {
            break;
        }
    }
    so_far
}

/// All values of a header. One that is not UTF-8 is hashed in a form that is.
fn header_values<'a>(request: &RequestView<'a>, name: &HeaderRef) -> Vec<Cow<'a, str>> {
    let pseudo = |value: &'a str| if value.is_empty() { Vec::new() } else { vec![value.into()] };
    match name {
        HeaderRef::Method => pseudo(request.method),
        HeaderRef::Path => pseudo(request.path),
        HeaderRef::Authority => pseudo(request.authority),
        HeaderRef::Scheme => pseudo(request.scheme),
        HeaderRef::Protocol | HeaderRef::Status => Vec::new(),
        HeaderRef::Name(name) => {
            request.headers.get_all(name).map(|value| String::from_utf8_lossy(value.as_bytes())).collect()
        }
    }
}

/// Makes a cookie, for the response, and returns its hash. All requests of one connection get the same, so that those that come at once agree.
fn make(wanted: &HashCookie, exchange: &mut Exchange) -> u64 {
    let Connection { direct_remote, local, .. } = &*exchange.connection;
    let remote = exchange.remote.or(*direct_remote);
    let ends: String = [remote, *local].into_iter().flatten().map(|address| address.to_string()).collect();
    let value = format!("{:016x}", hash(ends.as_bytes()));
    if let Ok(cookie) = HeaderValue::from_str(&wanted.set(&value)) {
        exchange.set_cookies.push(cookie);
    }
    hash(value.as_bytes())
}

/// The first cookie of this name, without quotes.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(found, _)| found.trim() == name)?;
    let value = value.trim();
    let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Some(unquoted.unwrap_or(value))
}

/// The first value of a query parameter, as written.
fn parameter<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = path.split_once('?')?;
    let query = query.split('#').next().unwrap_or(query);
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| *key == name)
        .map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_name() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; sticky=\"x y\";b"));
        headers.append(header::COOKIE, HeaderValue::from_static("sticky=2; c = 3"));
        for (name, value) in [("a", Some("1")), ("sticky", Some("x y")), ("b", None), ("c", Some("3")), ("d", None)] {
            assert_eq!(cookie(&headers, name), value, "{name}");
        }
    }

    #[test]
    fn parameters_are_found_by_name() {
        for (path, value) in [
            ("/?key=1&key=2", Some("1")),
            ("/?a=b&key", Some("")),
            ("/?a=b&key=%20#key=3", Some("%20")),
            ("/key=1", None),
            ("/?akey=1", None),
        ] {
            assert_eq!(parameter(path, "key"), value, "{path}");
        }
    }
}
