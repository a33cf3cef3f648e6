//! Rules for a MeshTrafficPermission (Kuma `meshtrafficpermission/api/v1alpha1/validator.go`, `ValidateTargetRef`).

use super::{TagValues, Violation, is_subdomain, tags};
use crate::resource::{MeshTrafficPermission, RuleMatch, SpiffeIdMatchType, TargetRef, TargetRefKind};

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
                rule_match(&format!("{at}.{name}[{index}]"), found, violations);
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

fn rule_match(at: &str, found: &RuleMatch, violations: &mut Vec<Violation>) {
    if found.spiffe_id.is_none() && found.sni.is_none() {
        violations.push(Violation::new(at, "at least one of 'spiffeID', 'sni' has to be defined"));
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

fn target_ref(
    at: &str,
    target: &TargetRef,
    supported: &[TargetRefKind],
    sections: bool,
    violations: &mut Vec<Violation>,
) {
    let TargetRef { kind, name, tags: found_tags, mesh, proxy_types, namespace, labels, section_name } = target;
    let Some(kind) = *kind else {
        violations.push(Violation::new(format!("{at}.kind"), "must be defined"));
        return;
    };
    if !supported.contains(&kind) {
        violations.push(Violation::new(format!("{at}.kind"), format!("value '{kind:?}' is not supported")));
        return;
    }
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let has_labels = labels.as_ref().is_some_and(|labels| !labels.is_empty());
    let has_tags = found_tags.as_ref().is_some_and(|tags| !tags.is_empty());
    let mut refuse = |present: bool, field: &str| {
        if present {
            violations.push(Violation::new(format!("{at}.{field}"), format!("must not be set with kind {kind:?}")));
        }
    };
    refuse(set(mesh), "mesh");
    match kind {
        TargetRefKind::Mesh => {
            refuse(has_tags, "tags");
            refuse(has_labels, "labels");
            refuse(set(namespace), "namespace");
            refuse(set(section_name), "sectionName");
            if set(name) {
                let message = "using name with kind Mesh is not yet supported";
                violations.push(Violation::new(format!("{at}.name"), message));
            }
            types_of_proxy(at, proxy_types.as_deref(), violations);
        }
        TargetRefKind::Dataplane => {
            refuse(has_tags, "tags");
            refuse(proxy_types.is_some(), "proxyTypes");
            labels_or_name(at, has_labels, set(name) || set(namespace), violations);
            if set(section_name) && !sections {
                let message = "can only be used with inbound policies";
                violations.push(Violation::new(format!("{at}.sectionName"), message));
            }
        }
        TargetRefKind::MeshSubset => {
            refuse(set(name), "name");
            refuse(has_labels, "labels");
            refuse(set(namespace), "namespace");
            refuse(set(section_name), "sectionName");
            tags(&format!("{at}.tags"), &found_tags.clone().unwrap_or_default(), TagValues::Plain, violations);
            types_of_proxy(at, proxy_types.as_deref(), violations);
        }
        TargetRefKind::MeshService => {
            refuse(has_tags, "tags");
            refuse(proxy_types.is_some(), "proxyTypes");
            name_characters(at, name.as_deref(), violations);
            if !has_labels && !set(name) {
                violations.push(Violation::new(at, "name or labels must be set when kind is MeshService"));
            }
            labels_or_name(at, has_labels, set(name) || set(namespace), violations);
        }
        TargetRefKind::MeshServiceSubset => {
            refuse(proxy_types.is_some(), "proxyTypes");
            refuse(has_labels, "labels");
            refuse(set(namespace), "namespace");
            refuse(set(section_name), "sectionName");
            if !set(name) {
                violations.push(Violation::new(format!("{at}.name"), "must be set when kind is MeshServiceSubset"));
            }
            name_characters(at, name.as_deref(), violations);
            tags(&format!("{at}.tags"), &found_tags.clone().unwrap_or_default(), TagValues::Selector, violations);
        }
        // Not supported at either place, and refused above.
        TargetRefKind::MeshGateway
        | TargetRefKind::MeshExternalService
        | TargetRefKind::MeshMultiZoneService
        | TargetRefKind::MeshHTTPRoute => {}
    }
}

fn labels_or_name(at: &str, labels: bool, name: bool, violations: &mut Vec<Violation>) {
    if labels && name {
        let message = "either labels or name and namespace must be specified";
        violations.push(Violation::new(format!("{at}.labels"), message));
    }
}

fn name_characters(at: &str, name: Option<&str>, violations: &mut Vec<Violation>) {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if name.is_some_and(|name| !name.bytes().all(valid)) {
        let message = "invalid characters: must consist of lower case alphanumeric characters, '-', '.' and '_'.";
        violations.push(Violation::new(format!("{at}.name"), message));
    }
}

fn types_of_proxy(at: &str, types: Option<&[String]>, violations: &mut Vec<Violation>) {
    let Some(types) = types else { return };
    let valid = |kind: &String| kind == "Sidecar" || kind == "Gateway";
    if types.is_empty() {
        violations.push(Violation::new(format!("{at}.proxyTypes"), "must be undefined or have at least one element"));
    } else if !types.iter().all(valid) {
        violations.push(Violation::new(format!("{at}.proxyTypes"), "must be one of: Sidecar, Gateway"));
    }
}
