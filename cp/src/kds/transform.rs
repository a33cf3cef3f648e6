//! What is sent to the other control plane, and how it looks there (Kuma `pkg/kds/context`, `pkg/kds/v2/store`).

use std::sync::Arc;

use super::{DISPLAY_NAME, Direction, ORIGIN, ZONE, hashed_name, is_local};
use crate::auth::{ZONE_PUBLIC_KEY_PREFIX, ZONE_SIGNING_KEY_PREFIX, public_of_private};
use crate::resource::{Kind, Resource, Secret, Spec, Subscription, set_status};

/// The Kubernetes namespace in which a resource was created.
const NAMESPACE: &str = "k8s.kuma.io/namespace";
/// Who gave a resource to whom.
const ROLE: &str = "kuma.io/policy-role";
/// GlobalSecrets that are each control plane's own.
const OWN_SECRETS: [&str; 4] = ["envoy-admin-ca", "admin-user-token", "inter-cp-ca", "user-token-revocations"];
/// Begins the names of more of them.
const OWN_SECRET_PREFIX: &str = "user-token-signing-key";

/// What the other side gets of a resource; `None` when it gets nothing. `enabled` tells whether a zone of that name shares what it
/// has with others.
pub(super) fn outgoing(
    direction: &Direction,
    resource: &Resource,
    enabled: impl Fn(&str) -> bool,
) -> Result<Option<Resource>, String> {
    match direction {
        Direction::ToZone(zone) => {
            if !goes_to_zone(zone, resource, enabled) {
                Ok(None)
            } else {
                to_zone(resource).map(Some)
            }
        }
        Direction::ToGlobal(zone) => Ok(goes_to_global(resource).then(|| to_global(zone, resource))),
    }
}

/// Whether a label asks for a resource to stay where it is; by default Configs stay.
fn stays(resource: &Resource) -> bool {
    match resource.meta.labels.get("kuma.io/kds-sync").map(String::as_str) {
        Some("enabled") => false,
        Some("disabled") => true,
        _ => resource.kind() == Kind::Config,
    }
}

fn goes_to_zone(zone: &str, resource: &Resource, enabled: impl Fn(&str) -> bool) -> bool {
    let (kind, labels) = (resource.kind(), &resource.meta.labels);
    let name = resource.meta.name.as_str();
    let own = kind == Kind::GlobalSecret && (OWN_SECRETS.contains(&name) || name.starts_with(OWN_SECRET_PREFIX));
    if stays(resource) || own {
        return false;
    }
    if is_local(labels, true) {
        return kind.sync().to_zones;
    }
    let from = labels.get(ZONE).map(String::as_str).unwrap_or_default();
    // Of policies, only those that a service's owner made for whoever calls it go to other zones.
    let shared = kind.policy().is_none() || labels.get(ROLE).is_some_and(|role| role == "producer");
    kind.sync().across_zones && shared && from != zone && enabled(from)
}

fn to_zone(resource: &Resource) -> Result<Resource, String> {
    let mut sent = resource.clone();
    sent.meta.labels.insert(ORIGIN.to_owned(), "global".to_owned());
    // Each zone finds out for itself what the status says.
    set_status(&mut sent.spec, serde_json::json!({})).map_err(|e| e.to_string())?;
    if resource.kind() == Kind::GlobalSecret
        && let Some(number) = resource.meta.name.strip_prefix(ZONE_SIGNING_KEY_PREFIX)
    {
        // Zones check tokens, global makes them.
        let private = resource.secret().map(|secret| secret.data.as_slice()).unwrap_or_default();
        let public = public_of_private(private).map_err(|e| format!("{} is no signing key: {e}", resource.key()))?;
        keep_display_name(&mut sent);
        sent.meta.name = format!("{ZONE_PUBLIC_KEY_PREFIX}{number}");
        sent.spec = Spec::GlobalSecret(Arc::new(Secret::new(public)));
    }
    rename(&mut sent);
    Ok(sent)
}

fn goes_to_global(resource: &Resource) -> bool {
    !stays(resource) && resource.kind().sync().to_global && is_local(&resource.meta.labels, false)
}

fn to_global(zone: &str, resource: &Resource) -> Resource {
    let mut sent = resource.clone();
    let labels = &mut sent.meta.labels;
    labels.insert(ORIGIN.to_owned(), "zone".to_owned());
    labels.insert(ZONE.to_owned(), zone.to_owned());
    labels.remove("kuma.io/deletion-grace-period-started-at");
    // This counts writes, and every one of them would be a change.
    let reset = |subscriptions: &mut Vec<Subscription>| subscriptions.iter_mut().for_each(|s| s.generation = 0);
    match &mut sent.spec {
        Spec::DataplaneInsight(insight) => reset(&mut Arc::make_mut(insight).subscriptions),
        Spec::ZoneIngressInsight(insight) | Spec::ZoneEgressInsight(insight) => {
            reset(&mut Arc::make_mut(insight).subscriptions);
        }
        Spec::ZoneIngress(ingress) if ingress.zone.is_empty() => Arc::make_mut(ingress).zone = zone.to_owned(),
        Spec::ZoneEgress(egress) if egress.zone.is_empty() => Arc::make_mut(egress).zone = zone.to_owned(),
        _ => {}
    }
    rename(&mut sent);
    sent
}

fn keep_display_name(resource: &mut Resource) {
    let name = resource.meta.name.clone();
    resource.meta.labels.entry(DISPLAY_NAME.to_owned()).or_insert(name);
}

/// Gives a resource the name that it has on the other side.
fn rename(resource: &mut Resource) {
    if !resource.kind().sync().hashed {
        return;
    }
    keep_display_name(resource);
    let labels = &resource.meta.labels;
    let parts: Vec<&str> =
        [ZONE, NAMESPACE].iter().filter_map(|label| labels.get(*label)).map(String::as_str).collect();
    let display_name = labels.get(DISPLAY_NAME).map(String::as_str).unwrap_or_default();
    resource.meta.name = hashed_name(&resource.meta.mesh, display_name, &parts);
}

/// What a global control plane makes of what a zone sends: whatever it says, it is of that zone.
pub(super) fn from_zone(zone: &str, resource: &mut Resource) {
    resource.meta.labels.insert(ORIGIN.to_owned(), "zone".to_owned());
    resource.meta.labels.insert(ZONE.to_owned(), zone.to_owned());
    let pin = |tags: &mut std::collections::BTreeMap<String, String>| {
        if let Some(tag) = tags.get_mut(ZONE) {
            zone.clone_into(tag);
        }
    };
    match &mut resource.spec {
        Spec::ZoneIngress(ingress) => {
            let ingress = Arc::make_mut(ingress);
            zone.clone_into(&mut ingress.zone);
            ingress.available_services.iter_mut().for_each(|service| pin(&mut service.tags));
        }
        Spec::ZoneEgress(egress) => zone.clone_into(&mut Arc::make_mut(egress).zone),
        Spec::Dataplane(dataplane) => {
            if let Some(networking) = &mut Arc::make_mut(dataplane).networking {
                networking.inbound.iter_mut().for_each(|inbound| pin(&mut inbound.tags));
                if let Some(gateway) = &mut networking.gateway {
                    pin(&mut gateway.tags);
                }
            }
        }
        _ => {}
    }
}

/// Whether a stored resource came from the other side, and is therefore changed and deleted with what the other side has.
pub(super) fn came_from(direction: &Direction, resource: &Resource) -> bool {
    match direction {
        // What zones may not write is global's, wherever it came from: a zone that joins gives it up.
        Direction::ToZone(_) => !resource.kind().sync().by_zone || !is_local(&resource.meta.labels, false),
        Direction::ToGlobal(zone) => {
            resource.meta.labels.get(ZONE) == Some(zone) && !is_local(&resource.meta.labels, true)
        }
    }
}
