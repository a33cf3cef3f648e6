//! MeshTrafficPermission: who may call an inbound.
//!
//! The `from` entries of all policies that select an inbound form one list, ordered so that a later entry outranks an earlier one. For a
//! client the last entry that matches it decides; if none matches, it is denied. [`Permission`] is that list; [`Permission::allowed`]
//! turns it into disjoint conditions for a filter that only knows "allowed if any of these holds".
//!
//! Where Kuma enumerates every combination of tags and negated tags (2ⁿ of them), the conditions here are "the tags of the entry, but
//! none of the later entries that deny": equal for the usual policies, and right also where two denials do not overlap. For
//! `Mesh: Allow, a: Deny, b: Deny` Kuma 2.14 emits "not a, or not b", which lets both through; here it is "not a, and not b".

use std::collections::BTreeMap;

use super::select::{Target, order, selects};
use crate::resource::{Action, Inbound, MeshTrafficPermission, Meta, SERVICE_TAG, TargetRef, TargetRefKind};

/// One condition: the client has this tag with this value, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagMatch {
    /// Tag, such as `kuma.io/service`.
    pub tag: String,
    /// Value.
    pub value: String,
}

/// One `from` entry of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Name of the MeshTrafficPermission.
    pub policy: String,
    /// Position in its `from` list.
    pub index: usize,
    /// What happens to the clients.
    pub action: Action,
    /// All of these must hold; none means every client. Sorted by tag.
    pub clients: Vec<TagMatch>,
}

/// A set of clients: those with all of `all`, but without those that have all of any of `except`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Clients {
    /// All must hold.
    pub all: Vec<TagMatch>,
    /// None of these sets may hold completely.
    pub except: Vec<Vec<TagMatch>>,
}

/// What the MeshTrafficPermissions say about one inbound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Permission {
    /// Every entry that concerns the inbound, a later one outranking an earlier one.
    pub entries: Vec<Entry>,
}

/// What happens to one client, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// The entry decides.
    By(&'a Entry),
    /// No entry matches: denied by default.
    DefaultDeny,
}

/// Collects what concerns `inbound`. `warnings` gets one text for everything that a policy says and this control plane does not apply.
pub fn permission<'a>(
    policies: impl Iterator<Item = (&'a Meta, &'a MeshTrafficPermission)>,
    target: Target<'_>,
    inbound: &Inbound,
    warnings: &mut Vec<String>,
) -> Permission {
    let mut selected: Vec<(&Meta, &MeshTrafficPermission)> =
        policies.filter(|(meta, policy)| selects(meta, policy.target_ref.as_ref(), target, inbound)).collect();
    selected.sort_by(|a, b| order((a.0, a.1.target_ref.as_ref()), (b.0, b.1.target_ref.as_ref())));
    let mut entries = Vec::new();
    for (meta, policy) in selected {
        let MeshTrafficPermission { target_ref: _, from, rules } = policy;
        if rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
            warnings.push(format!(
                "MeshTrafficPermission {:?}: spec.rules match SPIFFE IDs, which only proxies with a MeshIdentity have; \
                 they have no effect on inbound {}, use spec.from",
                meta.name,
                inbound.section_name()
            ));
        }
        for (index, item) in from.iter().enumerate() {
            match (item.default.action, clients(&item.target_ref)) {
                (Some(action), Some(clients)) => {
                    entries.push(Entry { policy: meta.name.clone(), index, action, clients });
                }
                (None, _) => warnings.push(format!(
                    "MeshTrafficPermission {:?}: spec.from[{index}].default.action is missing; the entry has no effect",
                    meta.name
                )),
                (_, None) => warnings.push(format!(
                    "MeshTrafficPermission {:?}: spec.from[{index}].targetRef.kind does not name clients; \
                     the entry has no effect",
                    meta.name
                )),
            }
        }
    }
    Permission { entries }
}

/// The clients of a `from` entry as tags, or `None` for kinds that are no clients.
fn clients(target_ref: &TargetRef) -> Option<Vec<TagMatch>> {
    let service = match target_ref.kind? {
        TargetRefKind::Mesh => return Some(Vec::new()),
        TargetRefKind::MeshSubset => None,
        TargetRefKind::MeshService | TargetRefKind::MeshServiceSubset => Some(target_ref.name.clone()?),
        TargetRefKind::Dataplane
        | TargetRefKind::MeshGateway
        | TargetRefKind::MeshExternalService
        | TargetRefKind::MeshMultiZoneService
        | TargetRefKind::MeshHTTPRoute => return None,
    };
    let mut tags: BTreeMap<String, String> = target_ref.tags.clone().unwrap_or_default();
    if let Some(service) = service {
        tags.insert(SERVICE_TAG.to_owned(), service);
    }
    Some(tags.into_iter().map(|(tag, value)| TagMatch { tag, value }).collect())
}

impl Permission {
    /// What happens to a client with these tags.
    pub fn decide(&self, client: &BTreeMap<String, String>) -> Decision<'_> {
        let matches = |entry: &&Entry| entry.clients.iter().all(|m| client.get(&m.tag) == Some(&m.value));
        self.entries.iter().rev().find(matches).map_or(Decision::DefaultDeny, Decision::By)
    }

    /// The clients that are let through, as alternatives: those with `Allow`, then those with `AllowWithShadowDeny`. In Kuma's order,
    /// entries with more tags first, then later entries first.
    pub fn allowed(&self) -> Vec<Clients> {
        let allow = self.alternatives(Action::Allow, &[Action::Deny]);
        let shadow = self.alternatives(Action::AllowWithShadowDeny, &[Action::Deny]);
        allow.into_iter().chain(shadow).collect()
    }

    /// The clients that are let through, but would be denied if the shadow were in force.
    pub fn shadow_denied(&self) -> Vec<Clients> {
        self.alternatives(Action::AllowWithShadowDeny, &[Action::Deny, Action::Allow])
    }

    fn alternatives(&self, action: Action, overriding: &[Action]) -> Vec<Clients> {
        let mut found = Vec::new();
        for (position, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.action == action) {
            let later = &self.entries[position + 1..];
            if later.iter().any(|other| other.action == action && other.clients.is_empty()) {
                // A later entry says the same of every client.
                continue;
            }
            let mut except = Vec::new();
            let mut nothing_left = false;
            for other in later.iter().filter(|other| overriding.contains(&other.action)) {
                if disjoint(&entry.clients, &other.clients) {
                    continue;
                }
                // What the entry already demands need not be negated.
                let rest: Vec<TagMatch> =
                    other.clients.iter().filter(|tag| !entry.clients.contains(tag)).cloned().collect();
                nothing_left |= rest.is_empty();
                if !except.contains(&rest) {
                    except.push(rest);
                }
            }
            let clients = Clients { all: entry.clients.clone(), except };
            if !nothing_left && !found.contains(&clients) {
                found.push(clients);
            }
        }
        found.reverse();
        found.sort_by_key(|clients| std::cmp::Reverse(clients.all.len()));
        found
    }
}

/// Whether no client can match both: they ask for different values of one tag.
fn disjoint(a: &[TagMatch], b: &[TagMatch]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.tag == y.tag && x.value != y.value))
}

#[cfg(test)]
#[path = "permission_tests.rs"]
mod tests;
