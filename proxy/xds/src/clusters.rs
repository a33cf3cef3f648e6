//! The clusters by name, and what is asked of them so often that not each of ten thousand can be looked at for it: which wait, and which take their
//! endpoints from an assignment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::warm::{Arrived, ClusterState};

/// A cluster's versions: at least one.
#[derive(Debug, Default)]
pub(crate) struct ClusterSlot {
    /// From the bootstrap: cannot be changed.
    pub fixed: bool,
    /// In force. Boxed, as the other: most slots hold one of the two.
    pub active: Option<Box<ClusterState>>,
    /// Waits.
    pub warming: Option<Box<ClusterState>>,
}

impl ClusterSlot {
    /// The version in force, then the one that waits.
    pub fn states(&self) -> impl Iterator<Item = &ClusterState> {
        self.active.iter().chain(&self.warming).map(|state| &**state)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    slots: BTreeMap<Arc<str>, ClusterSlot>,
    /// Those of which a version waits.
    waiting: BTreeSet<Arc<str>>,
    /// By the name of an assignment those of which a version takes its endpoints from it.
    by_assignment: HashMap<Arc<str>, Vec<Arc<str>>>,
}

impl Clusters {
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.slots.contains_key(name)
    }

    pub fn slot(&self, name: &str) -> Option<&ClusterSlot> {
        self.slots.get(name)
    }

    /// All of them, by name.
    pub fn slots(&self) -> impl Iterator<Item = &ClusterSlot> {
        self.slots.values()
    }

    /// Every version of every cluster.
    pub fn states(&self) -> impl Iterator<Item = &ClusterState> {
        self.slots.values().flat_map(ClusterSlot::states)
    }

    /// Those of which a version waits, by name.
    pub fn waiting(&self) -> impl Iterator<Item = (&Arc<str>, &ClusterSlot)> {
        self.waiting.iter().filter_map(|name| self.slots.get_key_value(name))
    }

    /// The versions that wait.
    pub fn waiting_states(&mut self) -> impl Iterator<Item = &mut ClusterState> {
        // Most of the time none does: then nothing is looked at.
        let slots = (!self.waiting.is_empty()).then(|| self.slots.values_mut());
        slots.into_iter().flatten().filter_map(|slot| slot.warming.as_deref_mut())
    }

    /// The versions of one cluster, to tell them what its names stand for.
    pub fn states_of(&mut self, name: &str) -> Option<(Option<&mut ClusterState>, Option<&mut ClusterState>)> {
        let slot = self.slots.get_mut(name)?;
        Some((slot.active.as_deref_mut(), slot.warming.as_deref_mut()))
    }

    /// Whether a version takes its endpoints from this assignment.
    pub fn ask_for(&self, assignment: &str) -> bool {
        self.by_assignment.contains_key(assignment)
    }

    /// The versions that take their endpoints from this assignment.
    pub fn that_ask_for(&self, assignment: &str) -> impl Iterator<Item = &ClusterState> {
        let names = self.by_assignment.get(assignment).into_iter().flatten();
        let states = names.filter_map(|name| self.slots.get(name)).flat_map(ClusterSlot::states);
        states.filter(move |state| state.assignment().is_some_and(|wanted| **wanted == *assignment))
    }

    /// Takes a version, which waits from now on in the place of one that did.
    pub fn accept(&mut self, name: Arc<str>, fixed: bool, state: Box<ClusterState>) {
        let asks_for = state.assignment().cloned();
        let slot = self.slots.entry(name.clone()).or_default();
        slot.fixed = fixed;
        let replaced = slot.warming.replace(state);
        if let Some(assignment) = asks_for {
            let asking = self.by_assignment.entry(assignment).or_insert_with(|| Vec::with_capacity(1));
            if !asking.contains(&name) {
                asking.push(name.clone());
            }
        }
        self.leave(&name, replaced);
        self.waiting.insert(name);
    }

    /// Puts what has all it needs in force; `note` is told of each by name. Returns whether there was any.
    pub fn promote(&mut self, arrived: &Arrived<'_>, mut note: impl FnMut(&str)) -> bool {
        let ready = |name: &Arc<str>| {
            let waits = self.slots.get(name).and_then(|slot| slot.warming.as_ref());
            waits.is_none_or(|state| state.waits_for(arrived).is_empty())
        };
        let ready: Vec<Arc<str>> = self.waiting.iter().filter(|name| ready(name)).cloned().collect();
        for name in &ready {
            self.waiting.remove(name);
            let Some(slot) = self.slots.get_mut(name) else { continue };
            let Some(next) = slot.warming.take() else { continue };
            let replaced = slot.active.replace(next);
            self.leave(name, replaced);
            note(name);
        }
        !ready.is_empty()
    }

    /// Forgets a cluster.
    pub fn remove(&mut self, name: &str) {
        let Some((name, slot)) = self.slots.remove_entry(name) else { return };
        self.waiting.remove(&name);
        self.leave(&name, slot.active);
        self.leave(&name, slot.warming);
    }

    /// A version of a cluster is no more: nor does it ask for its assignment, unless another version does.
    fn leave(&mut self, name: &Arc<str>, state: Option<Box<ClusterState>>) {
        let Some(state) = state else { return };
        let Some(assignment) = state.assignment() else { return };
        let still = self.slots.get(name).is_some_and(|slot| slot.states().any(|s| s.assignment() == Some(assignment)));
        if still {
            return;
        }
        if let Some(asking) = self.by_assignment.get_mut(assignment) {
            asking.retain(|other| other != name);
            if asking.is_empty() {
                self.by_assignment.remove(assignment);
            }
        }
    }
}

#[cfg(test)]
#[path = "clusters_tests.rs"]
mod tests;
