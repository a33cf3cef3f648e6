//! Rules for references (Kuma `ValidateTargetRef` in `pkg/core/resources/apis/mesh/validators.go`).

use super::{TagValues, Violation, tags};
use crate::resource::{Meta, TargetRef, TargetRefKind};

/// The kinds at the top of a policy, by the role of the policy: only one of the whole system may be about gateways and routes.
pub(super) fn top_kinds(meta: &Meta, routes: bool) -> Vec<TargetRefKind> {
    let mut kinds = vec![
        TargetRefKind::Mesh,
        TargetRefKind::Dataplane,
        TargetRefKind::MeshSubset,
        TargetRefKind::MeshService,
        TargetRefKind::MeshServiceSubset,
    ];
    if meta.labels.get("kuma.io/policy-role").is_none_or(|role| role.is_empty() || role == "system") {
        kinds.push(TargetRefKind::MeshGateway);
        if routes {
            kinds.push(TargetRefKind::MeshHTTPRoute);
        }
    }
    kinds
}

/// What a user should know of a reference at the top of a policy.
pub(super) fn top_without_effect(target: Option<&TargetRef>) -> Option<String> {
    (target?.kind? == TargetRefKind::MeshGateway).then(|| {
        "spec.targetRef.kind: MeshGateway: stored, but without effect: this version has no builtin gateways".to_owned()
    })
}

/// Checks a reference. `sections`: whether one to a Dataplane may name an inbound.
pub(super) fn target_ref(
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
            name_or_labels(at, kind, has_labels || set(name), violations);
            labels_or_name(at, has_labels, set(name) || set(namespace), violations);
        }
        TargetRefKind::MeshHTTPRoute | TargetRefKind::MeshExternalService => {
            refuse(has_tags, "tags");
            refuse(proxy_types.is_some(), "proxyTypes");
            refuse(set(section_name), "sectionName");
            name_characters(at, name.as_deref(), violations);
            name_or_labels(at, kind, has_labels || set(name), violations);
            if kind == TargetRefKind::MeshHTTPRoute {
                labels_or_name(at, has_labels, set(name) || set(namespace), violations);
            } else if has_labels && (set(name) || set(namespace)) {
                let message = "either labels or name must be specified";
                violations.push(Violation::new(format!("{at}.labels"), message));
            }
        }
        TargetRefKind::MeshServiceSubset | TargetRefKind::MeshGateway => {
            refuse(proxy_types.is_some(), "proxyTypes");
            refuse(has_labels, "labels");
            refuse(set(namespace), "namespace");
            refuse(set(section_name), "sectionName");
            if !set(name) {
                violations.push(Violation::new(format!("{at}.name"), format!("must be set when kind is {kind:?}")));
            }
            name_characters(at, name.as_deref(), violations);
            tags(&format!("{at}.tags"), &found_tags.clone().unwrap_or_default(), TagValues::Selector, violations);
        }
        // Kuma checks nothing of it.
        TargetRefKind::MeshMultiZoneService => {}
    }
}

fn name_or_labels(at: &str, kind: TargetRefKind, either: bool, violations: &mut Vec<Violation>) {
    if !either {
        violations.push(Violation::new(at, format!("name or labels must be set when kind is {kind:?}")));
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
