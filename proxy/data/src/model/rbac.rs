//! Role-based access control, compiled.
//!
//! Source: Envoy `config.rbac.v3.RBAC`, `filters.network.rbac.v3.RBAC`, `filters.http.rbac.v3.RBAC`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    header_view::HeaderView,
    matcher::{HeaderMatcher, HeaderRef, StringMatcher},
};
use crate::stats::RbacStats;

/// An RBAC filter: what is enforced and what is only watched.
#[derive(Debug)]
pub struct Rbac {
    /// Decides; `None` allows everything.
    pub enforced: Option<Rules>,
    /// Only counted and logged.
    pub shadow: Option<Rules>,
    /// `<stat_prefix>rbac.*`
    pub stats: RbacStats,
}

/// Envoy `config.rbac.v3.RBAC`.
#[derive(Debug)]
pub struct Rules {
    /// What a matching policy means.
    pub action: Action,
    /// In order of name, as Envoy's map has them, or of the matcher's list: the first match names the decision.
    pub policies: Vec<Policy>,
}

/// Envoy `RBAC.Action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Allowed if a policy matches.
    Allow,
    /// Denied if a policy matches.
    Deny,
    /// Allowed always.
    Log,
    /// The matcher form: the first policy that matches says itself (`Policy::allows`); without one, denied.
    ByPolicy,
}

/// Envoy `config.rbac.v3.Policy`: any permission and any principal.
#[derive(Debug)]
pub struct Policy {
    /// Key in the map; appears in logs and code details.
    pub name: Arc<str>,
    /// What is asked for.
    pub permissions: Vec<Permission>,
    /// Who asks.
    pub principals: Vec<Principal>,
    /// What a match means under `Action::ByPolicy`; not looked at otherwise.
    pub allows: bool,
}

/// Envoy `config.rbac.v3.Permission`.
#[derive(Debug)]
pub enum Permission {
    /// `any`
    Any,
    /// `and_rules`
    And(Vec<Permission>),
    /// `or_rules`
    Or(Vec<Permission>),
    /// `not_rule`
    Not(Box<Permission>),
    /// `header`
    Header(HeaderMatcher),
    /// `url_path`: the path without query and fragment.
    UrlPath(StringMatcher),
    /// `destination_ip`
    DestinationIp(IpNet),
    /// `destination_port`, `destination_port_range`: start inclusive, end exclusive.
    DestinationPort(std::ops::Range<u32>),
    /// `requested_server_name`
    ServerName(StringMatcher),
}

/// Envoy `config.rbac.v3.Principal`.
#[derive(Debug)]
pub enum Principal {
    /// `any`
    Any,
    /// `and_ids`
    And(Vec<Principal>),
    /// `or_ids`
    Or(Vec<Principal>),
    /// `not_id`
    Not(Box<Principal>),
    /// `authenticated`: a verified peer certificate, with a name that matches if one is asked for. Compared with each URI SAN, else each DNS SAN, else
    /// the subject.
    Authenticated(Option<StringMatcher>),
    /// `direct_remote_ip`: the peer of the socket.
    DirectRemoteIp(IpNet),
    /// `remote_ip`, `source_ip`: the peer, or what `x-forwarded-for` says of it.
    RemoteIp(IpNet),
    /// `header`
    Header(HeaderMatcher),
    /// `url_path`
    UrlPath(StringMatcher),
    /// The input `UriSanInput` of the matcher form: all URI SANs of the peer, joined by `,`; never holds without a certificate that has one.
    UriSan(StringMatcher),
    /// The input `ServerNameInput` of the matcher form: the SNI; never holds without one.
    ServerName(StringMatcher),
}

/// Names in a verified peer certificate, in the certificate's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNames {
    /// URI SANs.
    pub uris: Vec<Arc<str>>,
    /// DNS SANs.
    pub dns: Vec<Arc<str>>,
    /// Subject, as RFC 2253 text.
    pub subject: Arc<str>,
}

/// What rules are matched against. A network filter has no request.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Names in the peer's certificate; `None` without one.
    pub peer: Option<&'a PeerNames>,
    /// Destination of the connection.
    pub destination: Option<SocketAddr>,
    /// Who asks, by configured trust in `x-forwarded-for`.
    pub remote: Option<SocketAddr>,
    /// The peer of the socket.
    pub direct_remote: Option<SocketAddr>,
    /// SNI, empty without one.
    pub server_name: &'a str,
    /// The request, for the HTTP filter.
    pub request: Option<RequestView<'a>>,
}

/// The parts of a request that matchers look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// `:method`
    pub method: &'a str,
    /// `:path`: path and query.
    pub path: &'a str,
    /// `:authority`
    pub authority: &'a str,
    /// `:scheme`
    pub scheme: &'a str,
    /// All other headers.
    pub headers: HeaderView<'a>,
}

impl<'a> RequestView<'a> {
    /// The first value of a header.
    pub fn first_value(&self, name: &HeaderRef) -> Option<&'a str> {
        match name {
            HeaderRef::Method => Some(self.method),
            HeaderRef::Path => Some(self.path),
            HeaderRef::Authority => Some(self.authority),
            HeaderRef::Scheme => Some(self.scheme),
            HeaderRef::Protocol | HeaderRef::Status => None,
            HeaderRef::Name(name) => self.headers.get(name)?.to_str().ok(),
        }
    }

    /// Whether a header matcher holds for this request.
    pub fn header_matches(&self, matcher: &HeaderMatcher) -> bool {
        match &matcher.name {
            HeaderRef::Method => matcher.matches(Some(self.method)),
            HeaderRef::Path => matcher.matches(Some(self.path)),
            HeaderRef::Authority => matcher.matches(Some(self.authority)),
            HeaderRef::Scheme => matcher.matches(Some(self.scheme)),
            HeaderRef::Protocol | HeaderRef::Status => matcher.matches(None),
            HeaderRef::Name(name) => matcher.matches_any(self.headers.get_all(name)),
        }
    }

    fn path_only(&self) -> &str {
        self.path.split(['?', '#']).next().unwrap_or(self.path)
    }
}

/// The outcome for one set of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// May go on.
    pub allowed: bool,
    /// The policy that matched, if one did; a denial without one is "no policy allows it".
    pub policy: Option<Arc<str>>,
}

impl Rules {
    /// Decides for one subject.
    pub fn decide(&self, subject: &Subject<'_>) -> Decision {
        let matched = self.policies.iter().find(|policy| policy.matches(subject));
        let allowed = match self.action {
            Action::Allow => matched.is_some(),
            Action::Deny => matched.is_none(),
            Action::Log => true,
            Action::ByPolicy => matched.is_some_and(|policy| policy.allows),
        };
        Decision { allowed, policy: matched.map(|policy| policy.name.clone()) }
    }
}

impl Policy {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.permissions.iter().any(|permission| permission.matches(subject))
            && self.principals.iter().any(|principal| principal.matches(subject))
    }
}

impl Permission {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|one| one.matches(subject)),
            Self::Or(any) => any.iter().any(|one| one.matches(subject)),
            Self::Not(not) => !not.matches(subject),
            Self::Header(matcher) => subject.request.is_some_and(|request| request.header_matches(matcher)),
            Self::UrlPath(matcher) => subject.request.is_some_and(|request| matcher.matches(request.path_only())),
            Self::DestinationIp(net) => contains(net, subject.destination),
            Self::DestinationPort(range) => subject.destination.is_some_and(|d| range.contains(&u32::from(d.port()))),
            Self::ServerName(matcher) => matcher.matches(subject.server_name),
        }
    }
}

impl Principal {
    /// Whether it holds of a subject.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|one| one.matches(subject)),
            Self::Or(any) => any.iter().any(|one| one.matches(subject)),
            Self::Not(not) => !not.matches(subject),
            Self::Authenticated(None) => subject.peer.is_some(),
            Self::Authenticated(Some(matcher)) => subject.peer.is_some_and(|peer| peer.any_name_matches(matcher)),
            Self::DirectRemoteIp(net) => contains(net, subject.direct_remote),
            Self::RemoteIp(net) => contains(net, subject.remote),
            Self::Header(matcher) => subject.request.is_some_and(|request| request.header_matches(matcher)),
            Self::UrlPath(matcher) => subject.request.is_some_and(|request| matcher.matches(request.path_only())),
            Self::UriSan(matcher) => match subject.peer.map(|peer| peer.uris.as_slice()) {
                None | Some([]) => false,
                Some([one]) => matcher.matches(one),
                Some(several) => matcher.matches(&several.join(",")),
            },
            Self::ServerName(matcher) => !subject.server_name.is_empty() && matcher.matches(subject.server_name),
        }
    }
}

impl PeerNames {
    /// Envoy's order for `authenticated.principal_name`: URI SANs if there are any, else DNS SANs if there are any, else the subject.
    fn any_name_matches(&self, matcher: &StringMatcher) -> bool {
        if !self.uris.is_empty() && self.uris.iter().any(|uri| matcher.matches(uri)) {
            return true;
        }
        if !self.dns.is_empty() && self.dns.iter().any(|dns| matcher.matches(dns)) {
            return true;
        }
        matcher.matches(&self.subject)
    }
}

fn contains(net: &IpNet, address: Option<SocketAddr>) -> bool {
    address.is_some_and(|address| {
        let ip: IpAddr = address.ip().to_canonical();
        net.contains(&ip)
    })
}

#[cfg(test)]
#[path = "rbac_tests.rs"]
mod tests;
