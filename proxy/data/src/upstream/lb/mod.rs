//! Load balancing. Each worker balances by itself: a cursor shared by all workers would be one contended cache line per cluster and buy nothing, since
//! every worker's own rotation starts at a random place.
//!
//! Source: Envoy "Load balancing: supported load balancers, priority levels, panic threshold".

mod priority;
mod schedule;

use std::{
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
};

use foldhash::{HashMap, HashMapExt};

use self::{
    priority::{Availability, Census, Loads},
    schedule::Schedule,
};
use crate::{
    model::cluster::{Balancer, Cluster, Endpoint, EndpointSet, Health},
    snapshot::Snapshot,
};

/// [`Health::Healthy`] as stored.
pub(super) const HEALTHY: u8 = Health::Healthy as u8;

/// Balancing state of all clusters, of one worker.
#[derive(Debug, Default)]
pub struct Balances {
    /// By cluster id.
    clusters: Vec<Option<Box<Balance>>>,
}

impl Balances {
    /// The state of one cluster, brought up to date with its endpoints. Whoever changes an endpoint's health swaps the set afterwards, because what is
    /// derived here is derived once per set.
    pub fn of(&mut self, cluster: &Cluster) -> &mut Balance {
        let index = cluster.id.index();
        if self.clusters.len() <= index {
            self.clusters.resize_with(index + 1, || None);
        }
        let current = cluster.endpoints.load();
        let balance = self.clusters[index].get_or_insert_with(|| Box::new(Balance::new(cluster, current.clone())));
        if !Arc::ptr_eq(&balance.set, &current) {
            let originals = std::mem::take(&mut balance.originals);
            **balance = Balance { originals, ..Balance::new(cluster, current.clone()) };
        }
        balance
    }

    /// Forgets clusters that are gone.
    pub fn retain(&mut self, snapshot: &Snapshot) {
        self.clusters.truncate(snapshot.clusters.len());
        for (slot, cluster) in self.clusters.iter_mut().zip(&snapshot.clusters) {
            if cluster.is_none() {
                *slot = None;
            }
        }
    }
}

/// Balancing state of one cluster.
#[derive(Debug)]
pub struct Balance {
    /// What the rest is derived from.
    set: Arc<EndpointSet>,
    levels: Vec<Level>,
    loads: Loads,
    /// Endpoints made of original destinations, as long as somebody uses them.
    originals: HashMap<SocketAddr, Weak<Endpoint>>,
}

/// One priority.
#[derive(Debug)]
struct Level {
    all: Hosts,
    healthy: Hosts,
    degraded: Hosts,
}

/// Hosts between which the policy chooses.
#[derive(Debug)]
struct Hosts {
    list: Vec<Arc<Endpoint>>,
    /// Next in unweighted rotation; `None` before the first choice.
    cursor: Option<usize>,
    weighted: bool,
    /// Made at the first weighted choice.
    schedule: Option<Schedule>,
}

impl Balance {
    fn new(cluster: &Cluster, set: Arc<EndpointSet>) -> Self {
        let levels: Vec<Level> = set
            .priorities
            .iter()
            .map(|priority| {
                let hosts = |wanted: Option<Health>| Hosts {
                    list: priority
                        .endpoints
                        .iter()
                        .filter(|e| wanted.is_none_or(|health| e.health() == health))
                        .cloned()
                        .collect(),
                    cursor: None,
                    weighted: priority.weighted,
                    schedule: None,
                };
                Level {
                    all: hosts(None),
                    healthy: hosts(Some(Health::Healthy)),
                    degraded: hosts(Some(Health::Degraded)),
                }
            })
            .collect();
        let census: Vec<_> = levels
            .iter()
            .map(|level| Census {
                total: level.all.list.len(),
                healthy: level.healthy.list.len(),
                degraded: level.degraded.list.len(),
            })
            .collect();
        let loads = Loads::new(&census, set.overprovisioning, cluster.panic_threshold);
        Balance { set, levels, loads, originals: HashMap::new() }
    }

    /// Chooses one endpoint; `None` when there is none to choose. `random` gives uniformly distributed numbers.
    pub fn choose(&mut self, cluster: &Cluster, random: &mut dyn FnMut() -> u64) -> Option<Arc<Endpoint>> {
        let (index, availability) = self.loads.choose(random())?;
        let level = self.levels.get_mut(index)?;
        let hosts = match availability {
            Availability::Panic => {
                cluster.stats.lb_healthy_panic().inc();
                &mut level.all
            }
            Availability::Healthy => &mut level.healthy,
            Availability::Degraded => &mut level.degraded,
        };
        hosts.choose(cluster.balancer, random)
    }

    /// The endpoint for an original destination: the one in use if there is one, so that its counters and pools are shared.
    pub fn original(&mut self, address: SocketAddr, make: impl FnOnce() -> Arc<Endpoint>) -> Arc<Endpoint> {
        if let Some(endpoint) = self.originals.get(&address).and_then(Weak::upgrade) {
            return endpoint;
        }
        if self.originals.len() >= 64 && self.originals.len() == self.originals.capacity() {
            self.originals.retain(|_, endpoint| endpoint.strong_count() > 0);
        }
        let endpoint = make();
        self.originals.insert(address, Arc::downgrade(&endpoint));
        endpoint
    }
}

impl Hosts {
    fn choose(&mut self, balancer: Balancer, random: &mut dyn FnMut() -> u64) -> Option<Arc<Endpoint>> {
        match balancer {
            Balancer::RoundRobin if self.weighted => self.scheduled(random, |host| f64::from(host.weight)),
            Balancer::RoundRobin => self.rotate(random),
            Balancer::LeastRequest { bias, .. } if self.weighted => self.scheduled(random, |host| {
                let active = host.stats.rq_active.load(Relaxed) as f64 + 1.0;
                f64::from(host.weight) / if bias == 1.0 { active } else { active.powf(bias) }
            }),
            Balancer::LeastRequest { choices, .. } => self.least_of(choices, random),
            // An original-destination cluster never comes here; any other with `CLUSTER_PROVIDED` is refused by the compiler.
            Balancer::Random | Balancer::Provided => self.at_random(random).cloned(),
        }
    }

    fn rotate(&mut self, random: &mut dyn FnMut() -> u64) -> Option<Arc<Endpoint>> {
        let len = self.list.len();
        if len == 0 {
            return None;
        }
        let at = self.cursor.unwrap_or_else(|| (random() % len as u64) as usize);
        self.cursor = Some((at + 1) % len);
        self.list.get(at).cloned()
    }

    fn scheduled(
        &mut self,
        random: &mut dyn FnMut() -> u64,
        weight: impl Fn(&Endpoint) -> f64,
    ) -> Option<Arc<Endpoint>> {
        let list = &self.list;
        if list.is_empty() {
            return None;
        }
        let weight = |at: usize| list.get(at).map_or(1.0, |host| weight(host));
        let schedule = self.schedule.get_or_insert_with(|| {
            let mut schedule = Schedule::new(list.len(), weight);
            // Workers and proxies that start together must not all begin with the heaviest host.
            for _ in 0..random() % list.len() as u64 {
                schedule.next(weight);
            }
            schedule
        });
        list.get(schedule.next(weight)?).cloned()
    }

    /// The least loaded of `choices` hosts drawn at random (power of two choices).
    fn least_of(&mut self, choices: u32, random: &mut dyn FnMut() -> u64) -> Option<Arc<Endpoint>> {
        let mut best = self.at_random(random)?;
        for _ in 1..choices.max(1) {
            let other = self.at_random(random)?;
            if other.stats.rq_active.load(Relaxed) < best.stats.rq_active.load(Relaxed) {
                best = other;
            }
        }
        Some(best.clone())
    }

    fn at_random(&self, random: &mut dyn FnMut() -> u64) -> Option<&Arc<Endpoint>> {
        let len = self.list.len() as u64;
        if len == 0 { None } else { self.list.get((random() % len) as usize) }
    }
}

#[cfg(test)]
#[path = "lb_tests.rs"]
mod tests;
