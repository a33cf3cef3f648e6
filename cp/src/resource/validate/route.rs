//! Rules for a MeshHTTPRoute (Kuma `meshhttproute/api/v1alpha1/validation.go`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::policy::At;
use super::target_ref::{target_ref, top_kinds, top_without_effect};
use super::{Violation, is_subdomain};
use crate::resource::{
    HeaderMatch, HeaderMatchType, HeaderModifier, MeshHTTPRoute, Meta, PathMatchType, PathRewrite, PathRewriteType,
    QueryMatch, QueryMatchType, RouteBackendRef, RouteConf, RouteFilter, RouteFilterType, RouteMatch, RouteRule,
    RouteTo, TargetRefKind,
};

const NOT_DEFINED: &str = "must not be defined";
const DEFINED: &str = "must be defined";
/// Kuma's schema allows that many entries in a list of header changes.
const MOST_HEADERS: usize = 16;

pub(super) fn route(policy: &MeshHTTPRoute, meta: &Meta, violations: &mut Vec<Violation>) {
    let MeshHTTPRoute { target_ref: top, to } = policy;
    if let Some(top) = top {
        target_ref("spec.targetRef", top, &top_kinds(meta, false), false, violations);
    }
    let gateway = top.as_ref().and_then(|top| top.kind) == Some(TargetRefKind::MeshGateway);
    let kinds: &[TargetRefKind] = if gateway {
        &[TargetRefKind::Mesh]
    } else {
        &[TargetRefKind::MeshService, TargetRefKind::MeshExternalService, TargetRefKind::MeshMultiZoneService]
    };
    for (index, RouteTo { hostnames, target_ref: destination, rules }) in to.iter().enumerate() {
        let at = format!("spec.to[{index}]");
        target_ref(&format!("{at}.targetRef"), destination, kinds, false, violations);
        for (index, rule) in rules.iter().enumerate() {
            self::rule(rule, gateway, At::new(format!("{at}.rules[{index}]"), violations));
        }
        if !gateway && hostnames.as_ref().is_some_and(|names| !names.is_empty()) {
            violations.push(Violation::new(format!("{at}.hostnames"), NOT_DEFINED));
        }
    }
}

pub(super) fn without_effect(policy: &MeshHTTPRoute) -> Vec<String> {
    top_without_effect(policy.target_ref.as_ref()).into_iter().collect()
}

fn rule(rule: &RouteRule, gateway: bool, mut at: At<'_>) {
    let RouteRule { matches, default: RouteConf { filters, backend_refs } } = rule;
    if matches.is_empty() {
        // Kuma's schema asks for one; without any the rule would match nothing.
        at.wrong_field("matches", "must not be empty");
    }
    for (index, found) in matches.iter().enumerate() {
        self::condition(found, at.entry("matches", index));
    }
    let filters = filters.as_deref().unwrap_or_default();
    for (index, filter) in filters.iter().enumerate() {
        self::filter(filter, matches, gateway, at.field("default").entry("filters", index));
    }
    let redirects = filters.iter().any(|filter| filter.kind == RouteFilterType::RequestRedirect);
    let backends = backend_refs.as_deref().unwrap_or_default();
    if gateway && backends.is_empty() && !redirects {
        at.wrong_field("default.backendRefs", "must not be empty");
    }
    for (index, backend) in backends.iter().enumerate() {
        self::backend(backend, at.field("default").entry("backendRefs", index));
    }
}

fn condition(found: &RouteMatch, mut at: At<'_>) {
    let RouteMatch { path, method: _, query_params, headers } = found;
    if let Some(path) = path {
        let mut at = at.field("path");
        if path.value.is_empty() {
            at.wrong_field("value", "must not be empty");
        }
        let absolute = path.value.starts_with('/');
        match path.kind {
            PathMatchType::RegularExpression => at.expression("value", &path.value),
            PathMatchType::PathPrefix if path.value == "/" => {}
            PathMatchType::PathPrefix => {
                if path.value.ends_with('/') {
                    at.wrong_field(
                        "value",
                        "does not need a trailing slash because only a `/`-separated prefix or an entire path is matched",
                    );
                }
                if !absolute {
                    at.wrong_field("value", "must be an absolute path");
                }
            }
            PathMatchType::Exact if !absolute => at.wrong_field("value", "must be an absolute path"),
            PathMatchType::Exact => {}
        }
    }
    let mut names = BTreeSet::new();
    for (index, QueryMatch { kind, name, value }) in query_params.iter().flatten().enumerate() {
        let mut at = at.entry("queryParams", index);
        if !names.insert(name) {
            at.wrong_field("name", format!("multiple entries for name {name}"));
        }
        if *kind == QueryMatchType::RegularExpression {
            at.expression("value", value);
        }
    }
    for (index, HeaderMatch { kind, name: _, value }) in headers.iter().flatten().enumerate() {
        let mut at = at.entry("headers", index);
        match kind {
            HeaderMatchType::Present | HeaderMatchType::Absent if !value.is_empty() => {
                at.wrong_field("value", NOT_DEFINED);
            }
            HeaderMatchType::RegularExpression => at.expression("value", value),
            HeaderMatchType::Exact | HeaderMatchType::Present | HeaderMatchType::Absent | HeaderMatchType::Prefix => {}
        }
    }
}

fn filter(filter: &RouteFilter, matches: &[RouteMatch], gateway: bool, mut at: At<'_>) {
    let RouteFilter {
        kind,
        request_header_modifier,
        response_header_modifier,
        request_redirect,
        url_rewrite,
        request_mirror,
    } = filter;
    let modifier = |modifier: &Option<HeaderModifier>, name: &str, at: &mut At<'_>| match modifier {
        None => at.wrong_field(name, DEFINED),
        Some(modifier) => header_modifier(modifier, at.field(name)),
    };
    match kind {
        RouteFilterType::RequestHeaderModifier => modifier(request_header_modifier, "requestHeaderModifier", &mut at),
        RouteFilterType::ResponseHeaderModifier => {
            modifier(response_header_modifier, "responseHeaderModifier", &mut at);
        }
        RouteFilterType::RequestRedirect => {
            let Some(redirect) = request_redirect else {
                at.wrong_field("requestRedirect", DEFINED);
                return;
            };
            let mut at = at.field("requestRedirect");
            path_rewrite(redirect.path.as_ref(), matches, &mut at);
            hostname(redirect.hostname.as_deref(), &mut at);
            // The rest is in Kuma's schema.
            if !matches!(redirect.status_code, 301 | 302 | 303 | 307 | 308) {
                at.wrong_field("statusCode", "must be one of: 301, 302, 303, 307, 308");
            }
            if redirect.scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
                at.wrong_field("scheme", "must be one of: http, https");
            }
            if redirect.port.is_some_and(|port| !(1..=65535).contains(&port)) {
                at.wrong_field("port", "must be in inclusive range [1, 65535]");
            }
        }
        RouteFilterType::URLRewrite => {
            let Some(rewrite) = url_rewrite else {
                at.wrong_field("urlRewrite", DEFINED);
                return;
            };
            let mut at = at.field("urlRewrite");
            path_rewrite(rewrite.path.as_ref(), matches, &mut at);
            hostname(rewrite.hostname.as_deref(), &mut at);
            if rewrite.host_to_backend_hostname == Some(true) {
                if !gateway {
                    at.wrong_field("hostToBackendHostname", "can only be set with MeshGateway");
                }
                if rewrite.hostname.is_some() {
                    at.wrong_field("hostToBackendHostname", "cannot be set together with hostname");
                }
            }
        }
        RouteFilterType::RequestMirror => {
            let Some(mirror) = request_mirror else {
                at.wrong_field("requestMirror", DEFINED);
                return;
            };
            let mut at = at.field("requestMirror");
            at.decimal_percentage("percentage", mirror.percentage.as_ref());
            let path = at.field("backendRef").path().to_owned();
            let kinds = [TargetRefKind::MeshService, TargetRefKind::MeshServiceSubset];
            target_ref(&path, &mirror.backend_ref.target_ref(), &kinds, false, at.list());
        }
    }
}

fn path_rewrite(path: Option<&PathRewrite>, matches: &[RouteMatch], at: &mut At<'_>) {
    let Some(PathRewrite { kind, replace_full_path, replace_prefix_match }) = path else { return };
    let prefix = |found: &RouteMatch| found.path.as_ref().is_some_and(|path| path.kind == PathMatchType::PathPrefix);
    if replace_prefix_match.is_some() && !matches.iter().all(prefix) {
        at.wrong_field("path.replacePrefixMatch", "can only appear if all matches match a path prefix");
    }
    let (missing, name) = match kind {
        PathRewriteType::ReplaceFullPath => (replace_full_path.is_none(), "path.replaceFullPath"),
        PathRewriteType::ReplacePrefixMatch => (replace_prefix_match.is_none(), "path.replacePrefixMatch"),
    };
    if missing {
        at.wrong_field(name, DEFINED);
    }
}

fn hostname(name: Option<&str>, at: &mut At<'_>) {
    let Some(name) = name else { return };
    if name.parse::<IpAddr>().is_ok() {
        at.wrong_field("hostname", "cannot be an IP address");
    } else if name.len() > 253 || !is_subdomain(name) {
        at.wrong_field(
            "hostname",
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
             and end with an alphanumeric character",
        );
    }
}

fn header_modifier(modifier: &HeaderModifier, mut at: At<'_>) {
    let HeaderModifier { set, add, remove } = modifier;
    if set.is_none() && add.is_none() && remove.is_none() {
        at.wrong("must have at least one defined: set, add, remove");
        return;
    }
    let names = |list: &Option<Vec<crate::resource::HeaderKeyValue>>| -> Vec<String> {
        list.iter().flatten().map(|header| header.name.clone()).collect()
    };
    let lists = [("set", names(set)), ("add", names(add)), ("remove", remove.clone().unwrap_or_default())];
    let mut seen = BTreeSet::new();
    for (list, names) in lists {
        if names.len() > MOST_HEADERS {
            at.wrong_field(list, format!("must have at most {MOST_HEADERS} items"));
        }
        for (index, name) in names.into_iter().enumerate() {
            if !seen.insert(name) {
                at.wrong_field(&format!("{list}[{index}].name"), "duplicate header name");
            }
        }
    }
}

fn backend(backend: &RouteBackendRef, mut at: At<'_>) {
    let kinds = [
        TargetRefKind::MeshService,
        TargetRefKind::MeshServiceSubset,
        TargetRefKind::MeshExternalService,
        TargetRefKind::MeshMultiZoneService,
    ];
    let path = at.path().to_owned();
    target_ref(&path, &backend.target_ref(), &kinds, false, at.list());
    if backend.kind == Some(TargetRefKind::MeshMultiZoneService) && backend.port.is_none() {
        at.wrong_field("port", "must be defined with kind MeshMultiZoneService");
    }
}
