//! From a request's head to its route.
//!
//! Source: Envoy "Route matching", `config.route.v3.RouteMatch`.

use http::{HeaderValue, header};

use crate::{
    connection::FilterState,
    model::{
        header_view::HeaderView,
        matcher::{QueryMatcher, StringMatcher},
        rbac::RequestView,
        route::{Domains, Fraction, PathMatch, Route, RouteTable, VirtualHost},
    },
};

impl RouteTable {
    /// The virtual host for an authority: exact, longest `*.suffix`, longest `prefix.*`, `*`.
    pub fn virtual_host(&self, authority: &str) -> Option<&VirtualHost> {
        let domains = &self.domains;
        let only_any = domains.exact.is_empty() && domains.suffix.is_empty() && domains.prefix.is_empty();
        let index = if only_any { domains.any? } else { domains.find(authority, self.ignore_port)? };
        self.virtual_hosts.get(index as usize)
    }
}

impl Domains {
    fn find(&self, authority: &str, ignore_port: bool) -> Option<u32> {
        let mut host = authority.to_ascii_lowercase();
        if ignore_port {
            host.truncate(without_port(&host).len());
        }
        if let Some(index) = self.exact.get(host.as_str()) {
            return Some(*index);
        }
        // A wildcard stands for at least one character.
        for length in self.suffix_lengths.iter().filter(|length| **length < host.len()) {
            if let Some(index) = host.get(host.len() - length..).and_then(|suffix| self.suffix.get(suffix)) {
                return Some(*index);
            }
        }
        for length in self.prefix_lengths.iter().filter(|length| **length < host.len()) {
            if let Some(index) = host.get(..*length).and_then(|prefix| self.prefix.get(prefix)) {
                return Some(*index);
            }
        }
        self.any
    }
}

/// An authority without its port; IPv6 literals keep their brackets.
pub fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if authority[at + 1..].bytes().all(|b| b.is_ascii_digit()) && !authority[at..].contains(']') => {
            match authority.find(']') {
                Some(bracket) if bracket + 1 != at => authority,
                None if authority[..at].contains(':') => authority,
                _ => &authority[..at],
            }
        }
        _ => authority,
    }
}

impl VirtualHost {
    /// The first route that matches. `random` draws for routes that take only a share.
    pub fn route(
        &self,
        request: &RequestView<'_>,
        state: &FilterState,
        connect: bool,
        random: &mut impl FnMut() -> u64,
    ) -> Option<&Route> {
        let path = path_only(request.path);
        self.routes.iter().find(|route| {
            route.path.matches(path, connect)
                && route.headers.iter().all(|matcher| request.header_matches(matcher))
                && (route.query.is_empty() || query_matches(route, request.path))
                && (!route.grpc_only || is_grpc(request.headers))
                && route
                    .filter_state
                    .iter()
                    .all(|wanted| state.value(&wanted.key).is_some_and(|value| wanted.value.matches(value)))
                && route.fraction.is_none_or(|fraction| fraction.holds(random()))
        })
    }
}

/// A path without query and fragment.
pub fn path_only(path: &str) -> &str {
    match path.bytes().position(|b| b == b'?' || b == b'#') {
        Some(at) => &path[..at],
        None => path,
    }
}

/// `content-type: application/grpc`, alone or followed by `+` or `;`.
pub fn is_grpc<'a>(headers: impl Into<HeaderView<'a>>) -> bool {
    headers.into().get(&header::CONTENT_TYPE).map(HeaderValue::as_bytes).is_some_and(|value| {
        value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

impl Fraction {
    /// Whether a draw falls into the share.
    pub fn holds(self, draw: u64) -> bool {
        draw % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

impl PathMatch {
    /// `path` is without query and fragment.
    pub fn matches(&self, path: &str, connect: bool) -> bool {
        if connect != matches!(self, PathMatch::Connect) {
            return false;
        }
        match self {
            PathMatch::Connect => true,
            PathMatch::Prefix { value, ignore_case } => starts_with(path, value, *ignore_case),
            PathMatch::Exact { value, ignore_case: false } => path == &**value,
            PathMatch::Exact { value, ignore_case: true } => path.eq_ignore_ascii_case(value),
            PathMatch::SeparatedPrefix { value, ignore_case } => {
                starts_with(path, value, *ignore_case) && matches!(path.as_bytes().get(value.len()), None | Some(b'/'))
            }
            PathMatch::Regex(regex) => regex.is_match(path),
        }
    }
}

fn starts_with(path: &str, prefix: &str, ignore_case: bool) -> bool {
    path.as_bytes().get(..prefix.len()).is_some_and(|head| {
        if ignore_case { head.eq_ignore_ascii_case(prefix.as_bytes()) } else { head == prefix.as_bytes() }
    })
}

fn query_matches(route: &Route, path: &str) -> bool {
    query_holds(&route.query, path)
}

/// Whether all of the matchers hold of the path's query.
pub(super) fn query_holds(matchers: &[QueryMatcher], path: &str) -> bool {
    matchers.iter().all(|matcher| match (&matcher.value, parameter(path, &matcher.name)) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(test), Some(value)) => StringMatcher::matches(test, value),
    })
}

/// A parameter of the path's query, as it is written. The first of several values counts, as in Envoy.
pub(super) fn parameter<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let query = path.split_once('?')?.1;
    let query = query.split('#').next().unwrap_or("");
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
