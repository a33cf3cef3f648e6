//! What this control plane is and which resources it has.

use serde_json::{Value, json};

use super::{Api, KUMA_VERSION, PRODUCT};
use crate::resource::{Kind, PolicyRefs};

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

/// `GET /_resources`.
pub(super) fn resources() -> Value {
    let mut kinds: Vec<Kind> = Kind::in_api().collect();
    kinds.sort_by_key(|kind| kind.name());
    let description = |kind: Kind| {
        let (singular, plural) = kind.display();
        let mut description = json!({
            "includeInFederation": kind.sync().by_global,
            "name": kind.name(),
            "path": kind.path(),
            "pluralDisplayName": plural,
            "readOnly": kind.read_only(),
            "scope": if kind.in_mesh() { "Mesh" } else { "Global" },
            "shortName": kind.short().unwrap_or_default(),
            "singularDisplayName": singular,
        });
        if let Some(refs) = kind.policy() {
            description["policy"] = json!({
                "hasFromTargetRef": refs.from,
                "hasRulesTargetRef": refs.rules,
                "hasToTargetRef": refs.to,
                "isFromAsRules": refs.from_as_rules,
                "isTargetRef": true,
            });
        }
        description
    };
    json!({"resources": kinds.into_iter().map(description).collect::<Vec<_>>()})
}

/// `GET /policies`.
pub(super) fn policies() -> Value {
    let description = |(kind, refs): (Kind, PolicyRefs)| {
        let (singular, plural) = kind.display();
        json!({
            "name": kind.name(),
            "readOnly": false,
            "path": kind.path(),
            "singularDisplayName": singular,
            "pluralDisplayName": plural,
            "isExperimental": false,
            "isTargetRefBased": true,
            "isInbound": refs.from || refs.rules,
            "isOutbound": refs.to,
        })
    };
    let policies = Kind::ALL.into_iter().filter_map(|kind| kind.policy().map(|refs| (kind, refs)));
    json!({"policies": policies.map(description).collect::<Vec<_>>()})
}
