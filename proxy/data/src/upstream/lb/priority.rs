//! How load is spread over priorities.
//!
//! Source: Envoy "Priority levels", "Degraded endpoints", "Panic threshold" and `LoadBalancerBase::recalculatePerPriorityState`.

/// Hosts of one priority.
#[derive(Clone, Copy, Debug, Default)]
pub struct Census {
    /// All of them.
    pub total: usize,
    /// Of these, healthy.
    pub healthy: usize,
    /// Of these, degraded.
    pub degraded: usize,
}

/// Which hosts of a priority are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// The healthy ones.
    Healthy,
    /// The degraded ones.
    Degraded,
    /// All of them: too few are healthy for health to mean anything.
    Panic,
}

/// Shares of load, in percent. They add up to 100, or are all 0 when there is nothing to choose.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loads {
    healthy: Vec<u32>,
    degraded: Vec<u32>,
    panic: Vec<bool>,
}

impl Loads {
    /// `overprovisioning` and `panic_threshold` are in percent.
    pub fn new(census: &[Census], overprovisioning: u32, panic_threshold: u8) -> Self {
        let percent = |part: usize, of: Census| match of.total {
            0 => 0,
            total => {
                u64::from(overprovisioning).saturating_mul(part as u64).checked_div(total as u64).unwrap_or(0).min(100)
                    as u32
            }
        };
        let health: Vec<u32> = census.iter().map(|c| percent(c.healthy, *c)).collect();
        let degradation: Vec<u32> = census.iter().map(|c| percent(c.degraded, *c)).collect();
        let available = (health.iter().sum::<u32>().saturating_add(degradation.iter().sum())).min(100);
        if available == 0 {
            return if panic_threshold > 0 { Self::total_panic(census) } else { Loads::default() };
        }

        let mut left = 100;
        let mut share = |of: &Vec<u32>| -> Vec<u32> {
            of.iter()
                .map(|value| {
                    let load = left.min(value * 100 / available);
                    left -= load;
                    load
                })
                .collect()
        };
        let mut healthy = share(&health);
        let mut degraded = share(&degradation);
        give_rest(left, healthy.iter_mut().chain(&mut degraded));

        let panic = census
            .iter()
            .map(|c| {
                available != 100
                    && ((c.healthy + c.degraded) * 100).checked_div(c.total).unwrap_or(0) < usize::from(panic_threshold)
            })
            .collect();
        Loads { healthy, degraded, panic }
    }

    /// No host is healthy: load goes by number of hosts.
    fn total_panic(census: &[Census]) -> Self {
        let total: usize = census.iter().map(|c| c.total).sum();
        if total == 0 {
            return Loads::default();
        }
        let mut healthy: Vec<u32> = census.iter().map(|c| (c.total * 100 / total) as u32).collect();
        let left = 100 - healthy.iter().sum::<u32>();
        if let Some(first) = census.iter().position(|c| c.total > 0) {
            healthy[first] += left;
        }
        Loads { degraded: vec![0; healthy.len()], panic: vec![true; healthy.len()], healthy }
    }

    /// Whether too few hosts of a priority are healthy for health to mean anything.
    pub fn is_in_panic(&self, priority: usize) -> bool {
        self.panic.get(priority).copied().unwrap_or(false)
    }

    /// The priority for a random number, and which of its hosts.
    pub fn choose(&self, random: u64) -> Option<(usize, Availability)> {
        let drawn = (random % 100) as u32 + 1;
        let mut sum = 0;
        let shares = self.healthy.iter().map(|load| (load, Availability::Healthy)).enumerate();
        let shares = shares.chain(self.degraded.iter().map(|load| (load, Availability::Degraded)).enumerate());
        for (index, (load, availability)) in shares {
            sum += load;
            if drawn <= sum {
                return Some((index, if self.is_in_panic(index) { Availability::Panic } else { availability }));
            }
        }
        None
    }
}

/// What rounding left over goes to the first that has a share.
fn give_rest<'a>(left: u32, mut loads: impl Iterator<Item = &'a mut u32>) {
    if let Some(load) = loads.find(|load| **load > 0) {
        *load += left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(hosts: &[(usize, usize, usize)]) -> Vec<Census> {
        hosts
            .iter()
            .map(|(total, healthy, degraded)| Census { total: *total, healthy: *healthy, degraded: *degraded })
            .collect()
    }

    /// The tables of Envoy's documentation "Priority levels" and "Degraded endpoints", overprovisioning 1.4.
    #[test]
    fn loads_follow_the_documentation() {
        for (hosts, healthy, degraded, panic) in [
            // P0 healthy share, P1 all healthy.
            (&[(100, 100, 0), (100, 100, 0)][..], &[100, 0][..], &[0, 0][..], &[false, false][..]),
            (&[(100, 72, 0), (100, 72, 0)], &[100, 0], &[0, 0], &[false, false]),
            (&[(100, 71, 0), (100, 71, 0)], &[99, 1], &[0, 0], &[false, false]),
            (&[(100, 50, 0), (100, 60, 0)], &[70, 30], &[0, 0], &[false, false]),
            (&[(100, 25, 0), (100, 100, 0)], &[35, 65], &[0, 0], &[false, false]),
            (&[(100, 0, 0), (100, 100, 0)], &[0, 100], &[0, 0], &[false, false]),
            (&[(100, 72, 0), (100, 0, 0)], &[100, 0], &[0, 0], &[false, false]),
            (&[(100, 25, 0), (100, 25, 0)], &[50, 50], &[0, 0], &[true, true]),
            (&[(100, 20, 0), (100, 20, 0), (100, 10, 0)], &[40, 40, 20], &[0, 0, 0], &[true, true, true]),
            // Degraded hosts of P0 take what the healthy ones leave.
            (&[(100, 0, 100), (0, 0, 0)], &[0, 0], &[100, 0], &[false, false]),
            (&[(100, 50, 50), (100, 20, 0)], &[70, 28], &[2, 0], &[false, false]),
            // Nobody is healthy: all by number of hosts.
            (&[(30, 0, 0), (10, 0, 0)], &[75, 25], &[0, 0], &[true, true]),
            (&[(1, 1, 0)], &[100], &[0], &[false]),
        ] {
            let loads = Loads::new(&census(hosts), 140, 50);
            assert_eq!(
                (&loads.healthy[..], &loads.degraded[..], &loads.panic[..]),
                (healthy, degraded, panic),
                "{hosts:?}"
            );
        }
    }

    #[test]
    fn no_panic_and_no_health_is_nothing() {
        assert_eq!(Loads::new(&census(&[(10, 0, 0)]), 140, 0).choose(3), None);
        assert_eq!(Loads::new(&[], 140, 50).choose(3), None);
        assert_eq!(Loads::new(&census(&[(0, 0, 0)]), 140, 50).choose(3), None);
    }

    #[test]
    fn every_draw_lands() {
        let loads = Loads::new(&census(&[(3, 1, 1), (7, 2, 0), (5, 4, 0)]), 140, 0);
        for draw in 0..100 {
            assert!(loads.choose(draw).is_some(), "{draw}: {loads:?}");
        }
    }
}
