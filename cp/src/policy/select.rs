//! Which policies concern an inbound, and in which order (Kuma `pkg/plugins/policies/core/matchers`).

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use crate::resource::{Dataplane, Inbound, Meta, SERVICE_TAG, TargetRef, TargetRefKind};

/// Marks a policy that is looked at but not applied, with the value `shadow`.
const EFFECT_LABEL: &str = "kuma.io/effect";
const ORIGIN_LABEL: &str = "kuma.io/origin";
const ZONE_LABEL: &str = "kuma.io/zone";
const ROLE_LABEL: &str = "kuma.io/policy-role";
const NAMESPACE_LABEL: &str = "k8s.kuma.io/namespace";
const DISPLAY_NAME_LABEL: &str = "kuma.io/display-name";

/// The proxy that policies are selected for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Name and labels of the Dataplane.
    pub meta: &'a Meta,
    /// The Dataplane.
    pub dataplane: &'a Dataplane,
}

/// Whether a policy with this metadata and top-level reference applies to `inbound` of the proxy.
pub fn selects(policy: &Meta, target_ref: Option<&TargetRef>, target: Target<'_>, inbound: &Inbound) -> bool {
    if policy.labels.get(EFFECT_LABEL).is_some_and(|effect| effect == "shadow") || !same_place(policy, target.meta) {
        return false;
    }
    let Some(target_ref) = target_ref else { return true };
    match target_ref.kind {
        None | Some(TargetRefKind::Mesh) => {
            let proxy_type = if target.dataplane.is_gateway() { "Gateway" } else { "Sidecar" };
            target_ref
                .proxy_types
                .as_deref()
                .is_none_or(|types| types.is_empty() || types.iter().any(|t| t == proxy_type))
        }
        Some(TargetRefKind::Dataplane) => {
            let name = target_ref.name.as_deref().unwrap_or_default();
            let display_name = target.meta.labels.get(DISPLAY_NAME_LABEL).unwrap_or(&target.meta.name);
            let named = name.is_empty() || name == target.meta.name || name == display_name;
            let namespace = target_ref.namespace.as_deref().unwrap_or_default();
            let in_namespace =
                namespace.is_empty() || target.meta.labels.get(NAMESPACE_LABEL).is_some_and(|found| found == namespace);
            let section = target_ref.section_name.as_deref().unwrap_or_default();
            let in_section =
                section.is_empty() || section == inbound.section_name() || section == inbound.port.to_string();
            named && in_namespace && in_section && contains(&target.meta.labels, target_ref.labels.as_ref())
        }
        Some(TargetRefKind::MeshSubset) => contains(&inbound.tags, target_ref.tags.as_ref()),
        Some(TargetRefKind::MeshService | TargetRefKind::MeshServiceSubset) => {
            inbound.tags.get(SERVICE_TAG) == target_ref.name.as_ref()
                && contains(&inbound.tags, target_ref.tags.as_ref())
        }
        Some(
            TargetRefKind::MeshGateway
            | TargetRefKind::MeshExternalService
            | TargetRefKind::MeshMultiZoneService
            | TargetRefKind::MeshHTTPRoute,
        ) => false,
    }
}

/// A policy of a zone concerns that zone, one of a consumer or of a workload's owner its namespace.
fn same_place(policy: &Meta, dataplane: &Meta) -> bool {
    let label = |meta: &Meta, name: &str| meta.labels.get(name).cloned();
    let role = label(policy, ROLE_LABEL).unwrap_or_default();
    if role != "producer" && label(policy, ORIGIN_LABEL).as_deref() == Some("zone") {
        let zones = (label(policy, ZONE_LABEL), label(dataplane, ZONE_LABEL));
        let of_zone = label(dataplane, ORIGIN_LABEL).as_deref() == Some("zone");
        if of_zone && matches!(&zones, (Some(policy), Some(dataplane)) if policy != dataplane) {
            return false;
        }
    }
    match role.as_str() {
        "consumer" | "workload-owner" => label(policy, NAMESPACE_LABEL) == label(dataplane, NAMESPACE_LABEL),
        _ => true,
    }
}

fn contains(all: &BTreeMap<String, String>, wanted: Option<&BTreeMap<String, String>>) -> bool {
    wanted.into_iter().flatten().all(|(key, value)| all.get(key) == Some(value))
}

/// Order of two policies of one kind: the later one outranks the earlier one. By kind of the top-level reference, then references to a
/// Dataplane by labels before those by name, without section before with one, then origin, then role; of two that are equal in all
/// this, the lexicographically smaller name outranks.
pub fn order(a: (&Meta, Option<&TargetRef>), b: (&Meta, Option<&TargetRef>)) -> Ordering {
    rank(a).cmp(&rank(b))
}

fn rank<'a>((meta, target_ref): (&'a Meta, Option<&'a TargetRef>)) -> impl Ord + use<'a> {
    let kind = target_ref.and_then(|target_ref| target_ref.kind).unwrap_or(TargetRefKind::Mesh);
    let some = |text: Option<&String>| text.is_some_and(|text| !text.is_empty());
    let named = kind == TargetRefKind::Dataplane && some(target_ref.and_then(|target_ref| target_ref.name.as_ref()));
    let section = some(target_ref.and_then(|target_ref| target_ref.section_name.as_ref()));
    let origin = match meta.labels.get(ORIGIN_LABEL).map(String::as_str) {
        Some("global") => 0,
        Some("zone") => 2,
        _ => 1,
    };
    let role = match meta.labels.get(ROLE_LABEL).map(String::as_str) {
        Some("producer") => 1,
        Some("consumer") => 2,
        Some("workload-owner") => 3,
        _ => 0,
    };
    let name = meta.labels.get(DISPLAY_NAME_LABEL).unwrap_or(&meta.name);
    (kind, named, section, origin, role, Reverse(name))
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
