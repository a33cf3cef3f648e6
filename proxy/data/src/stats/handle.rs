//! Handles of single statistics: what is done to one, by its kind.

use std::sync::atomic::Ordering::Relaxed;

use super::{BUCKETS, Group};

/// A counter's handle.
#[derive(Clone, Copy, Debug)]
pub struct Counter<'a>(pub(super) &'a Group, pub(super) usize);

impl Counter<'_> {
    /// Adds one.
    pub fn inc(self) {
        self.0.add(self.1, 1);
    }

    /// Adds `n`.
    pub fn add(self, n: u64) {
        self.0.add(self.1, n);
    }

    /// Sum over all workers, before any reset.
    pub fn total(self) -> u64 {
        self.0.sum(self.1)
    }
}

/// A gauge's handle.
#[derive(Clone, Copy, Debug)]
pub struct Gauge<'a>(pub(super) &'a Group, pub(super) usize);

impl Gauge<'_> {
    /// Adds one.
    pub fn inc(self) {
        self.0.add(self.1, 1);
    }

    /// Takes one away.
    pub fn dec(self) {
        self.0.add(self.1 + 1, 1);
    }

    /// Adds `n`.
    pub fn add(self, n: u64) {
        self.0.add(self.1, n);
    }

    /// Takes `n` away.
    pub fn sub(self, n: u64) {
        self.0.add(self.1 + 1, n);
    }

    /// Its value now.
    pub fn value(self) -> u64 {
        self.0.sum(self.1).saturating_sub(self.0.sum(self.1 + 1))
    }
}

/// The handle of a counter that only changes of the configuration raise.
#[derive(Clone, Copy, Debug)]
pub struct Tally<'a>(pub(super) &'a Group, pub(super) usize);

impl Tally<'_> {
    /// Adds one.
    pub fn inc(self) {
        if let Some(cell) = self.0.apart(self.1) {
            cell.fetch_add(1, Relaxed);
        }
    }

    /// Its value, before any reset.
    pub fn total(self) -> u64 {
        self.0.level(self.1)
    }
}

/// A level's handle: one value for the whole process, set by whoever knows it.
#[derive(Clone, Copy, Debug)]
pub struct Level<'a>(pub(super) &'a Group, pub(super) usize);

impl Level<'_> {
    /// Sets it.
    pub fn set(self, value: u64) {
        for (at, value) in [(self.1, value), (self.1 + 1, 1)] {
            if let Some(cell) = self.0.apart(at) {
                cell.store(value, Relaxed);
            }
        }
    }

    /// Its value now.
    pub fn value(self) -> u64 {
        self.0.level(self.1)
    }

    /// Whether it was ever set.
    pub fn is_set(self) -> bool {
        self.0.level(self.1 + 1) > 0
    }
}

/// A histogram's handle.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<'a>(pub(super) &'a Group, pub(super) usize);

impl Histogram<'_> {
    /// Records one value, in the histogram's unit (milliseconds for all times).
    pub fn record(self, value: u64) {
        self.0.cells.record(self.1, value);
    }

    /// How many values were recorded, over all workers.
    pub fn count(self) -> u64 {
        (0..=BUCKETS.len()).map(|bucket| self.0.sum(self.1 + bucket)).sum()
    }
}
