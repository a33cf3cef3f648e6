//! Rules for a MeshTrafficPermission (Kuma `meshtrafficpermission/api/v1alpha1/validator.go`).

use super::target_ref::target_ref;
use super::{Violation, is_subdomain};
use crate::resource::{MeshTrafficPermission, RuleMatch, SpiffeIdMatchType, TargetRefKind};

const TOP: [TargetRefKind; 5] = [
    TargetRefKind::Mesh,
    TargetRefKind::MeshSubset,
    TargetRefKind::MeshService,
    TargetRefKind::MeshServiceSubset,
    TargetRefKind::Dataplane,
];
const FROM: [TargetRefKind; 4] =
    [TargetRefKind::Mesh, TargetRefKind::MeshSubset, TargetRefKind::MeshService, TargetRefKind::MeshServiceSubset];

pub(super) fn permission(permission: &MeshTrafficPermission, violations: &mut Vec<Violation>) {
    let rules = permission.rules.as_deref().unwrap_or_default();
    if let Some(top) = &permission.target_ref {
        // Only a policy about inbounds may name a section; `from` and `rules` both are about inbounds.
        let inbounds = !permission.from.is_empty() || !rules.is_empty();
        target_ref("spec.targetRef", top, &TOP, inbounds, violations);
    }
    match (permission.from.is_empty(), rules.is_empty()) {
        (false, false) => {
            violations.push(Violation::new("spec", "field 'from' must be empty when 'rules' is defined"));
        }
        (true, true) => violations.push(Violation::new("spec", "at least one of 'from' or 'rules' has to be defined")),
        (true, false) | (false, true) => {}
    }
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let lists = [
            ("allow", &rule.default.allow),
            ("allowWithShadowDeny", &rule.default.allow_with_shadow_deny),
            ("deny", &rule.default.deny),
        ];
        if lists.iter().all(|(_, list)| list.as_ref().is_none_or(Vec::is_empty)) {
            let message = "at least one of 'allow', 'allowWithShadowDeny', 'deny' has to be defined";
            violations.push(Violation::new(&at, message));
        }
        for (name, list) in lists {
            for (index, found) in list.iter().flatten().enumerate() {
                let empty = "at least one of 'spiffeID', 'sni' has to be defined";
                rule_match(&format!("{at}.{name}[{index}]"), found, empty, violations);
            }
        }
    }
    for (index, from) in permission.from.iter().enumerate() {
        let at = format!("spec.from[{index}]");
        target_ref(&format!("{at}.targetRef"), &from.target_ref, &FROM, false, violations);
        if from.default.action.is_none() {
            violations.push(Violation::new(format!("{at}.default.action"), "must be defined"));
        }
    }
}

pub(super) fn without_effect(permission: &MeshTrafficPermission) -> Vec<String> {
    let mut notes = Vec::new();
    if permission.rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
        notes.push(
            "spec.rules: stored, but without effect: rules apply to proxies whose identity comes from a MeshIdentity, which \
             this version does not have; use spec.from"
                .to_owned(),
        );
    }
    notes
}

/// Checks a match of a request; `empty` is said of one without any part.
pub(super) fn rule_match(at: &str, found: &RuleMatch, empty: &str, violations: &mut Vec<Violation>) {
    if found.spiffe_id.is_none() && found.sni.is_none() {
        violations.push(Violation::new(at, empty));
    }
    if let Some(id) = &found.spiffe_id {
        // A prefix may end with a slash, an identity may not.
        let value = match id.kind {
            SpiffeIdMatchType::Exact => id.value.as_str(),
            SpiffeIdMatchType::Prefix => id.value.strip_suffix('/').unwrap_or(&id.value),
        };
        if let Err(reason) = spiffe_id(value) {
            let message = format!("must be a valid Spiffe ID: {reason}");
            violations.push(Violation::new(format!("{at}.spiffeID"), message));
        }
    }
    if let Some(sni) = &found.sni {
        if sni.kind != "Exact" {
            let message = format!("unrecognized type {:?}, supported values are: Exact", sni.kind);
            violations.push(Violation::new(format!("{at}.sni.type"), message));
        }
        if sni.value.is_empty() {
            violations.push(Violation::new(format!("{at}.sni.value"), "must be set"));
        } else if sni.value.len() > 253 || !is_subdomain(&sni.value) {
            let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                           must start and end with an alphanumeric character";
            violations.push(Violation::new(format!("{at}.sni.value"), message));
        }
    }
}

/// Checks a SPIFFE identity (SPIFFE-ID standard, section 2).
fn spiffe_id(id: &str) -> Result<(), &'static str> {
    let rest = id.strip_prefix("spiffe://").ok_or("scheme is missing or invalid")?;
    let (domain, path) = match rest.split_once('/') {
        None => (rest, None),
        Some((domain, path)) => (domain, Some(path)),
    };
    if domain.is_empty() {
        return Err("trust domain is missing");
    }
    if !domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_')) {
        return Err("trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores");
    }
    for segment in path.map(|path| path.split('/')).into_iter().flatten() {
        match segment {
            "" => return Err("path cannot contain empty segments, and cannot have a trailing slash"),
            "." | ".." => return Err("path cannot contain dot segments"),
            segment if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) => {
                return Err("path segment characters are limited to letters, numbers, dots, dashes, and underscores");
            }
            _ => {}
        }
    }
    Ok(())
}
