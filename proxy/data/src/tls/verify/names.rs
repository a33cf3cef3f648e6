//! Names in certificates, and what is asked of them.

use rustls_pki_types::CertificateDer;

use crate::{
    model::{
        matcher::StringMatcher,
        tls::{SanKind, SanMatcher, SubjectAltName},
    },
    tls::info,
};

/// The trust domain of a certificate's SPIFFE ID; `None` unless it has exactly one URI name and that is a SPIFFE ID (X.509-SVID section 2).
pub(super) fn trust_domain(leaf: &CertificateDer<'_>) -> Option<String> {
    let names = info::subject_alt_names(leaf).ok()?;
    let mut uris = names.iter().filter_map(|name| match name {
        SubjectAltName::Uri(uri) => Some(uri),
        SubjectAltName::Dns(_) | SubjectAltName::Ip(_) | SubjectAltName::Email(_) => None,
    });
    let (uri, None) = (uris.next()?, uris.next()) else { return None };
    let rest = uri.strip_prefix("spiffe://")?;
    let domain = rest.split('/').next()?;
    (!domain.is_empty()).then(|| domain.to_owned())
}

/// Whether a name is one that is asked for.
pub(super) fn san_matches(matcher: &SanMatcher, name: &SubjectAltName) -> bool {
    match (matcher.kind, name) {
        (SanKind::Uri, SubjectAltName::Uri(text)) | (SanKind::Email, SubjectAltName::Email(text)) => {
            matcher.matcher.matches(text)
        }
        (SanKind::Dns, SubjectAltName::Dns(text)) => match &matcher.matcher {
            StringMatcher::Exact { value, .. } => dns_matches(value, text),
            other => other.matches(text),
        },
        (SanKind::Ip, SubjectAltName::Ip(ip)) => matcher.matcher.matches(&ip.to_string()),
        (SanKind::Dns | SanKind::Uri | SanKind::Ip | SanKind::Email, _) => false,
    }
}

/// Whether a certificate's DNS name, which may have a wildcard as its whole first label, covers `name` (RFC 6125 section 6.4).
pub fn dns_matches(name: &str, presented: &str) -> bool {
    match presented.strip_prefix("*.") {
        Some(suffix) => {
            name.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest.eq_ignore_ascii_case(suffix))
        }
        None => name.eq_ignore_ascii_case(presented),
    }
}

/// For messages: `DNS:a.example`.
pub(super) fn describe_matcher(matcher: &SanMatcher) -> String {
    let kind = match matcher.kind {
        SanKind::Dns => "DNS",
        SanKind::Uri => "URI",
        SanKind::Ip => "IP",
        SanKind::Email => "email",
    };
    match &matcher.matcher {
        StringMatcher::Exact { value, .. } => format!("{kind}:{value}"),
        StringMatcher::Prefix { value, .. } => format!("{kind}:{value}*"),
        StringMatcher::Suffix { value, .. } => format!("{kind}:*{value}"),
        StringMatcher::Contains { value, .. } => format!("{kind}:*{value}*"),
        StringMatcher::Regex(regex) => format!("{kind}:/{}/", regex.as_str()),
    }
}
