//! Which policies concern a proxy or one of its inbounds, and in which order (Kuma `pkg/plugins/policies/core/matchers`).

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::id::ResourceId;
use crate::resource::{Dataplane, GatewayType, Inbound, MeshHTTPRoute, Meta, SERVICE_TAG, TargetRef, TargetRefKind};

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

/// Whether a policy with this metadata and top-level reference applies to `inbound` of the proxy. A reference to a MeshHTTPRoute is
/// about calls that a proxy makes and selects no inbound.
pub fn selects(policy: &Meta, target_ref: Option<&TargetRef>, target: Target<'_>, inbound: &Inbound) -> bool {
    !is_shadow(policy) && same_place(policy, target.meta) && names_inbound(policy, target_ref, target, inbound)
}

/// Whether a policy with this metadata and top-level reference applies to the proxy at all: to an inbound of it, or to the delegated
/// gateway that it is. A reference to a MeshHTTPRoute stands for the one that the route itself has at its top.
pub fn selects_proxy(
    policy: &Meta,
    target_ref: Option<&TargetRef>,
    target: Target<'_>,
    routes: &[(Meta, Arc<MeshHTTPRoute>)],
) -> bool {
    if is_shadow(policy) || !same_place(policy, target.meta) {
        return false;
    }
    let (policy, target_ref) = match target_ref {
        Some(found) if found.kind == Some(TargetRefKind::MeshHTTPRoute) => {
            let Some((meta, route)) = named_route(policy, found, routes) else { return false };
            if !same_place(meta, target.meta) {
                return false;
            }
            (meta, route.target_ref.as_ref())
        }
        other => (policy, other),
    };
    let inbounds = target.dataplane.inbounds();
    inbounds.iter().any(|inbound| names_inbound(policy, target_ref, target, inbound))
        || names_other_parts(policy, target_ref, target)
}

/// The route that a top-level reference of kind MeshHTTPRoute names.
pub(super) fn named_route<'a>(
    policy: &Meta,
    target_ref: &TargetRef,
    routes: &'a [(Meta, Arc<MeshHTTPRoute>)],
) -> Option<&'a (Meta, Arc<MeshHTTPRoute>)> {
    let name = target_ref.name.as_ref().filter(|name| !name.is_empty())?;
    routes.iter().find(|(meta, _)| meta.mesh == policy.mesh && (meta.name == *name || display_name(meta) == name))
}

fn is_shadow(policy: &Meta) -> bool {
    policy.labels.get(EFFECT_LABEL).is_some_and(|effect| effect == "shadow")
}

fn names_inbound(policy: &Meta, target_ref: Option<&TargetRef>, target: Target<'_>, inbound: &Inbound) -> bool {
    let Some(target_ref) = target_ref else { return true };
    match target_ref.kind {
        None | Some(TargetRefKind::Mesh) => has_type(target_ref, target.dataplane),
        Some(TargetRefKind::Dataplane) => {
            let section = target_ref.section_name.as_deref().unwrap_or_default();
            let in_section =
                section.is_empty() || section == inbound.section_name() || section == inbound.port.to_string();
            in_section && names_dataplane(policy, target_ref, target)
        }
        Some(TargetRefKind::MeshSubset) => {
            has_type(target_ref, target.dataplane) && contains(&inbound.tags, target_ref.tags.as_ref())
        }
        Some(TargetRefKind::MeshService | TargetRefKind::MeshServiceSubset) => of_service(&inbound.tags, target_ref),
        Some(
            TargetRefKind::MeshGateway
            | TargetRefKind::MeshExternalService
            | TargetRefKind::MeshMultiZoneService
            | TargetRefKind::MeshHTTPRoute,
        ) => false,
    }
}

/// Whether a reference is about the delegated gateway that the proxy is, or about its listeners for other zones.
fn names_other_parts(policy: &Meta, target_ref: Option<&TargetRef>, target: Target<'_>) -> bool {
    let Some(networking) = &target.dataplane.networking else { return false };
    let gateway = networking.gateway.as_ref().filter(|gateway| gateway.kind == GatewayType::Delegated);
    let Some(target_ref) = target_ref else { return gateway.is_some() || !networking.listeners.is_empty() };
    match target_ref.kind {
        None | Some(TargetRefKind::Mesh) => {
            (gateway.is_some() || !networking.listeners.is_empty()) && has_type(target_ref, target.dataplane)
        }
        Some(TargetRefKind::Dataplane) => {
            (gateway.is_some() || !networking.listeners.is_empty()) && names_dataplane(policy, target_ref, target)
        }
        Some(TargetRefKind::MeshSubset) => {
            has_type(target_ref, target.dataplane)
                && gateway.is_some_and(|gateway| contains(&gateway.tags, target_ref.tags.as_ref()))
        }
        Some(TargetRefKind::MeshService | TargetRefKind::MeshServiceSubset) => {
            gateway.is_some_and(|gateway| of_service(&gateway.tags, target_ref))
        }
        Some(
            TargetRefKind::MeshGateway
            | TargetRefKind::MeshExternalService
            | TargetRefKind::MeshMultiZoneService
            | TargetRefKind::MeshHTTPRoute,
        ) => false,
    }
}

/// A reference to Dataplanes: all of them, one by name, or some by labels. A name is looked up where the policy comes from: in its zone
/// and, unless the reference says otherwise, its namespace.
fn names_dataplane(policy: &Meta, target_ref: &TargetRef, target: Target<'_>) -> bool {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if !set(&target_ref.name) && !set(&target_ref.namespace) && target_ref.labels.is_none() {
        return true;
    }
    let by_name = set(&target_ref.name)
        && ResourceId::referred(TargetRefKind::Dataplane, policy, target_ref)
            == ResourceId::of(TargetRefKind::Dataplane, target.meta);
    by_name || target_ref.labels.as_ref().is_some_and(|labels| contains(&target.meta.labels, Some(labels)))
}

fn has_type(target_ref: &TargetRef, dataplane: &Dataplane) -> bool {
    let proxy_type = if dataplane.is_gateway() { "Gateway" } else { "Sidecar" };
    target_ref
        .proxy_types
        .as_deref()
        .is_none_or(|types| types.is_empty() || types.iter().any(|found| found == proxy_type))
}

fn of_service(tags: &BTreeMap<String, String>, target_ref: &TargetRef) -> bool {
    tags.get(SERVICE_TAG) == target_ref.name.as_ref() && contains(tags, target_ref.tags.as_ref())
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
        "consumer" | "workload-owner" => {
            let namespace = label(policy, NAMESPACE_LABEL);
            namespace.is_some() && namespace == label(dataplane, NAMESPACE_LABEL)
        }
        _ => true,
    }
}

pub(super) fn contains(all: &BTreeMap<String, String>, wanted: Option<&BTreeMap<String, String>>) -> bool {
    wanted.into_iter().flatten().all(|(key, value)| all.get(key) == Some(value))
}

/// The name under which users know a resource, wherever it was synchronised to.
pub(super) fn display_name(meta: &Meta) -> &String {
    meta.labels.get(DISPLAY_NAME_LABEL).unwrap_or(&meta.name)
}

/// Order of two policies of one kind: the later one outranks the earlier one. First the [`attributes`]; of two that are equal in these,
/// the lexicographically smaller name outranks.
pub fn order(a: (&Meta, Option<&TargetRef>), b: (&Meta, Option<&TargetRef>)) -> Ordering {
    let rank = |(meta, target_ref)| (attributes(meta, target_ref), Reverse(display_name(meta)));
    rank(a).cmp(&rank(b))
}

/// What a policy is ranked by before its name: kind of the top-level reference, then references to a Dataplane by labels before those by
/// name, without section before with one, then origin, then role.
///
/// Kuma calls a reference to every Dataplane equal to one by name and to one by labels, which is no order; here it ranks with labels.
pub(super) fn attributes(meta: &Meta, target_ref: Option<&TargetRef>) -> impl Ord + use<> {
    let kind = target_ref.and_then(|target_ref| target_ref.kind).unwrap_or(TargetRefKind::Mesh);
    let some = |text: Option<&String>| kind == TargetRefKind::Dataplane && text.is_some_and(|text| !text.is_empty());
    let named = some(target_ref.and_then(|target_ref| target_ref.name.as_ref()));
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
    (kind, named, section, origin, role)
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
