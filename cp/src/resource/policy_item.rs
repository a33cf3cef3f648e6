//! The parts that policies are made of: `to`, `from` and `rules` (Kuma `api/common/v1alpha1`, `core_model.PolicyItem`).

use serde::{Deserialize, Serialize};

use super::{RuleMatch, TargetRef};

/// An entry of `to` or `from`: a setting for some destinations or for some clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "C: Default + Deserialize<'de>"))]
pub struct PolicyItem<C> {
    /// The destinations or clients.
    pub target_ref: TargetRef,
    /// The setting.
    pub default: C,
}

/// An entry of `rules`: a setting for some inbound requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "C: Default + Deserialize<'de>"))]
pub struct PolicyRule<C> {
    /// Any of these must hold; none means every request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RuleMatch>,
    /// The setting.
    pub default: C,
}
