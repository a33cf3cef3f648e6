//! What this control plane is and which resources it has.

use serde_json::{Value, json};

use super::{Api, KUMA_VERSION, PRODUCT};
use crate::resource::Kind;

/// `GET /`.
pub(super) fn index(api: &Api) -> Value {
    json!({
        "hostname": api.hostname,
        "product": PRODUCT,
        "version": KUMA_VERSION,
        "instanceId": api.instance_id,
        "clusterId": api.cluster_id,
        "gui": "The gui is not part of this control plane",
        "implementation": format!("Shika {}", env!("CARGO_PKG_VERSION")),
    })
}

/// Singular and plural name for people.
fn display(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Mesh => ("Mesh", "Meshes"),
        Kind::Dataplane => ("Dataplane", "Dataplanes"),
        Kind::DataplaneInsight => ("Dataplane Insight", "Dataplane Insights"),
        Kind::MeshTrafficPermission => ("Mesh Traffic Permission", "Mesh Traffic Permissions"),
        Kind::Secret => ("Secret", "Secrets"),
        Kind::GlobalSecret => ("Global Secret", "Global Secrets"),
    }
}

/// `GET /_resources`.
pub(super) fn resources() -> Value {
    let mut kinds = Kind::ALL;
    kinds.sort_by_key(|kind| kind.name());
    let description = |kind: Kind| {
        let (singular, plural) = display(kind);
        let mut description = json!({
            "includeInFederation": !matches!(kind, Kind::Dataplane | Kind::DataplaneInsight),
            "name": kind.name(),
            "path": kind.path(),
            "pluralDisplayName": plural,
            "readOnly": kind.read_only(),
            "scope": if kind.in_mesh() { "Mesh" } else { "Global" },
            "shortName": kind.short().unwrap_or_default(),
            "singularDisplayName": singular,
        });
        if kind == Kind::MeshTrafficPermission {
            description["policy"] = json!({
                "hasFromTargetRef": true,
                "hasRulesTargetRef": true,
                "hasToTargetRef": false,
                "isFromAsRules": false,
                "isTargetRef": true,
            });
        }
        description
    };
    json!({"resources": kinds.into_iter().map(description).collect::<Vec<_>>()})
}

/// `GET /policies`.
pub(super) fn policies() -> Value {
    let (singular, plural) = display(Kind::MeshTrafficPermission);
    json!({"policies": [{
        "name": Kind::MeshTrafficPermission.name(),
        "readOnly": false,
        "path": Kind::MeshTrafficPermission.path(),
        "singularDisplayName": singular,
        "pluralDisplayName": plural,
        "isExperimental": false,
        "isTargetRefBased": true,
        "isInbound": true,
        "isOutbound": false,
    }]})
}
