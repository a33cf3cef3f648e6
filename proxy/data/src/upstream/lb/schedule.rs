//! Earliest deadline first: weighted rotation in which a host of weight 3 comes three times as often, evenly spread.
//!
//! Source: Envoy "Weighted round robin", `EdfScheduler`.

use std::{cmp::Ordering, collections::BinaryHeap};

/// A schedule over hosts by position. Each host's deadline moves on by the inverse of its weight when it is taken.
#[derive(Debug)]
pub struct Schedule {
    heap: BinaryHeap<Entry>,
    now: f64,
    order: u64,
}

#[derive(Debug)]
struct Entry {
    deadline: f64,
    /// Breaks ties first in, first out.
    order: u64,
    host: usize,
}

impl Schedule {
    /// Over hosts `0..len`.
    pub fn new(len: usize, weight: impl Fn(usize) -> f64) -> Self {
        let mut schedule = Schedule { heap: BinaryHeap::with_capacity(len), now: 0.0, order: 0 };
        for host in 0..len {
            schedule.push(host, weight(host));
        }
        schedule
    }

    /// The next host. Its weight is asked again, so weights may change between turns. `None` without hosts.
    pub fn next(&mut self, weight: impl Fn(usize) -> f64) -> Option<usize> {
        let entry = self.heap.pop()?;
        self.now = entry.deadline;
        self.push(entry.host, weight(entry.host));
        Some(entry.host)
    }

    fn push(&mut self, host: usize, weight: f64) {
        let step = 1.0 / if weight > 0.0 { weight } else { f64::MIN_POSITIVE.sqrt() };
        self.order += 1;
        self.heap.push(Entry { deadline: self.now + step, order: self.order, host });
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first: the earliest deadline is the greatest.
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights_and_are_spread() {
        let weights = [5.0, 1.0, 2.0];
        let mut schedule = Schedule::new(3, |host| weights[host]);
        let turns: Vec<_> = (0..80).filter_map(|_| schedule.next(|host| weights[host])).collect();
        let count = |host| turns.iter().filter(|h| **h == host).count();
        assert_eq!((count(0), count(1), count(2)), (50, 10, 20));
        assert!(turns.windows(6).all(|window| window.contains(&2) || window.contains(&1)), "{turns:?}");
    }

    #[test]
    fn a_weight_that_falls_counts_from_the_next_turn() {
        let mut schedule = Schedule::new(2, |_| 1.0);
        let turns: Vec<_> = (0..100).filter_map(|_| schedule.next(|host| if host == 0 { 0.1 } else { 1.0 })).collect();
        let first = turns.iter().filter(|h| **h == 0).count();
        assert!((9..=12).contains(&first), "{first}");
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(Schedule::new(0, |_| 1.0).next(|_| 1.0), None);
        assert!(Schedule::new(1, |_| 0.0).next(|_| 0.0).is_some());
    }
}
