//! Load balancing. Each worker balances by itself: a cursor shared by all workers would be one contended cache line per cluster and buy nothing, since
//! every worker's own rotation starts at a random place.
//!
//! Source: Envoy "Load balancing: supported load balancers, priority levels, panic threshold".

pub(crate) mod hashing;
mod priority;
mod schedule;

use std::{
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
};

use foldhash::{HashMap, HashMapExt};

use self::{
    hashing::Table,
    priority::{Availability, Census, Loads},
    schedule::Schedule,
};
use crate::{
    model::{
        cluster::{Balancer, Cluster, Endpoint, EndpointSet, Fallback, Health, Locality, Priority, Subsets},
        hash::Hashing,
        labels::Labels,
    },
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
        let balance =
            self.clusters[index].get_or_insert_with(|| Box::new(Balance::new(cluster, current.clone(), None)));
        if !Arc::ptr_eq(&balance.set, &current) || balance.epoch != epoch(cluster) {
            let originals = std::mem::take(&mut balance.originals);
            **balance = Balance { originals, ..Balance::new(cluster, current.clone(), None) };
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

/// Balancing state of one cluster, or of one of its subsets.
#[derive(Debug)]
pub struct Balance {
    /// What the rest is derived from.
    set: Arc<EndpointSet>,
    /// Of the cluster's outlier detection and health checks at that time.
    epoch: u64,
    levels: Vec<Level>,
    census: Vec<Census>,
    loads: Loads,
    /// By the labels that routes ask for; `None` where no endpoint has them. As many as routes ask for.
    subsets: HashMap<Arc<Labels>, Option<Box<Balance>>>,
    /// Endpoints made of original destinations, as long as somebody uses them.
    originals: HashMap<SocketAddr, Weak<Endpoint>>,
}

/// One priority.
#[derive(Debug)]
struct Level {
    all: Hosts,
    healthy: Group,
    degraded: Group,
    /// Of clusters that hash, made at the first choice.
    table: Option<Arc<Table>>,
}

/// Hosts of like health.
#[derive(Debug)]
struct Group {
    hosts: Hosts,
    /// Where localities have weights.
    localities: Option<Localities>,
}

/// The same by locality.
#[derive(Debug)]
struct Localities {
    hosts: Vec<Hosts>,
    /// Configured weight, less what is not healthy.
    weights: Vec<f64>,
    schedule: Option<Schedule>,
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

/// What a choice is bound to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Labels that the route asks for; heeded by clusters with subsets.
    pub labels: Option<&'a Arc<Labels>>,
    /// For clusters that hash; `None` is a random one.
    pub hash: Option<u64>,
    /// Choices before this one that somebody did not like.
    pub attempt: u32,
    /// Priorities of these endpoints are left out, as long as another has a healthy one.
    pub other_priorities_than: &'a [Arc<Endpoint>],
}

impl Balance {
    /// Of those endpoints that have all labels of `only`.
    fn new(cluster: &Cluster, set: Arc<EndpointSet>, only: Option<&Labels>) -> Self {
        let is_in = |endpoint: &Endpoint| {
            !cluster.excludes(endpoint)
                && only.is_none_or(|only| endpoint.labels.as_ref().map_or(only.is_empty(), |labels| labels.holds(only)))
        };
        let mut levels = Vec::with_capacity(set.priorities.len());
        for priority in &set.priorities {
            let hosts = |wanted: &dyn Fn(&Endpoint) -> bool| Hosts {
                list: priority.endpoints.iter().filter(|e| is_in(e) && wanted(e)).cloned().collect(),
                cursor: None,
                weighted: priority.weighted,
                schedule: None,
            };
            let group = |health: Health| {
                let localities = cluster.selection.by_locality.then(|| {
                    let all = hosts(&|_| true);
                    Localities::new(priority, &all, set.overprovisioning, &|locality: &Locality| {
                        hosts(&|e| e.health() == health && *e.locality == *locality)
                    })
                });
                Group { hosts: hosts(&|e| e.health() == health), localities: localities.flatten() }
            };
            levels.push(Level {
                all: hosts(&|_| true),
                healthy: group(Health::Healthy),
                degraded: group(Health::Degraded),
                table: None,
            });
        }
        let census: Vec<_> = levels
            .iter()
            .map(|level| Census {
                total: level.all.list.len(),
                healthy: level.healthy.hosts.list.len(),
                degraded: level.degraded.hosts.list.len(),
            })
            .collect();
        let loads = Loads::new(&census, set.overprovisioning, cluster.panic_threshold);
        let epoch = epoch(cluster);
        Balance { set, epoch, levels, census, loads, subsets: HashMap::new(), originals: HashMap::new() }
    }

    /// Chooses one endpoint; `None` when there is none to choose. `random` gives uniformly distributed numbers.
    pub fn choose(
        &mut self,
        cluster: &Cluster,
        wanted: &Wanted<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Arc<Endpoint>> {
        match &cluster.selection.subsets {
            None => self.choose_any(cluster, wanted, random),
            Some(subsets) => self.choose_in_subset(cluster, subsets, wanted, random),
        }
    }

    /// Source: Envoy "Load balancer subsets", `SubsetLoadBalancer::chooseHost`.
    fn choose_in_subset(
        &mut self,
        cluster: &Cluster,
        subsets: &Subsets,
        wanted: &Wanted<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Arc<Endpoint>> {
        let asked = wanted.labels.and_then(|labels| {
            let fits = |keys: &[Box<str>]| labels.keys().eq(keys.iter().map(|key| &**key));
            subsets.selectors.iter().find(|(keys, _)| fits(keys)).map(|(_, fallback)| (labels, *fallback))
        });
        if let Some((labels, _)) = asked
            && let Some(subset) = self.subset(cluster, labels)
        {
            return subset.choose_any(cluster, wanted, random);
        }
        match asked.and_then(|(_, fallback)| fallback).unwrap_or(subsets.fallback) {
            Fallback::None => None,
            Fallback::Any => self.choose_any(cluster, wanted, random),
            Fallback::Default => self.subset(cluster, &subsets.default)?.choose_any(cluster, wanted, random),
        }
    }

    fn subset(&mut self, cluster: &Cluster, labels: &Arc<Labels>) -> Option<&mut Balance> {
        if !self.subsets.contains_key(labels) {
            let subset = Balance::new(cluster, self.set.clone(), Some(labels));
            let has_any = subset.census.iter().any(|census| census.total > 0);
            self.subsets.insert(labels.clone(), has_any.then(|| Box::new(subset)));
        }
        self.subsets.get_mut(labels)?.as_deref_mut()
    }

    fn choose_any(
        &mut self,
        cluster: &Cluster,
        wanted: &Wanted<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Arc<Endpoint>> {
        if let Some(hashing) = &cluster.hashing {
            return self.choose_by_hash(cluster, hashing, wanted, random);
        }
        let drawn = random();
        let elsewhere = self.loads_without(cluster, wanted.other_priorities_than).and_then(|loads| loads.choose(drawn));
        let (index, availability) = elsewhere.or_else(|| self.loads.choose(drawn))?;
        let level = self.levels.get_mut(index)?;
        match availability {
            Availability::Panic => {
                cluster.stats.lb_healthy_panic().inc();
                if cluster.selection.fail_on_panic {
                    return None;
                }
                level.all.choose(cluster.balancer, random)
            }
            Availability::Healthy => level.healthy.choose(cluster.balancer, random),
            Availability::Degraded => level.degraded.choose(cluster.balancer, random),
        }
    }

    /// The hash chooses the priority too. Degraded hosts are in no table, and priorities that were tried are not left out: as in Envoy.
    ///
    /// Source: Envoy `ThreadAwareLoadBalancerBase::LoadBalancerImpl::chooseHost`.
    fn choose_by_hash(
        &mut self,
        cluster: &Cluster,
        hashing: &Hashing,
        wanted: &Wanted<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Arc<Endpoint>> {
        let hash = wanted.hash.unwrap_or_else(random);
        let (index, _) = self.loads.choose(hash)?;
        let panic = self.loads.is_in_panic(index);
        if panic {
            cluster.stats.lb_healthy_panic().inc();
        }
        let priority = self.set.priorities.get(index)?;
        let level = self.levels.get_mut(index)?;
        let hosts = if panic { &level.all } else { &level.healthy.hosts };
        let table = level.table.get_or_insert_with(|| {
            hashing.table(Table::of(priority, hosts.list.clone(), cluster.selection.by_locality))
        });
        table.choose(hash, wanted.attempt, hashing.spread).cloned()
    }

    /// Loads as if the priorities of these endpoints had none. `None` when nothing is to be left out, or nothing would be left.
    fn loads_without(&self, cluster: &Cluster, tried: &[Arc<Endpoint>]) -> Option<Loads> {
        if tried.is_empty() {
            return None;
        }
        let mut census = self.census.clone();
        for (level, census) in self.levels.iter().zip(&mut census) {
            if level.all.list.iter().any(|host| tried.iter().any(|tried| Arc::ptr_eq(tried, host))) {
                *census = Census::default();
            }
        }
        let left = census.iter().any(|census| census.healthy + census.degraded > 0);
        left.then(|| Loads::new(&census, self.set.overprovisioning, cluster.panic_threshold))
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

/// Changes with every ejection and every end of one, and with what health checks find.
fn epoch(cluster: &Cluster) -> u64 {
    let ejections = cluster.outlier.as_ref().map_or(0, |outlier| outlier.epoch.load(Relaxed));
    ejections + cluster.health.as_ref().map_or(0, |health| health.epoch.load(Relaxed))
}

impl Group {
    fn choose(&mut self, balancer: Balancer, random: &mut dyn FnMut() -> u64) -> Option<Arc<Endpoint>> {
        match &mut self.localities {
            None => self.hosts.choose(balancer, random),
            Some(localities) => localities.next(random)?.choose(balancer, random),
        }
    }
}

impl Localities {
    /// `None` where no locality of the priority has a weight and a host. A locality's weight counts in full as long as its healthy share times the
    /// overprovisioning factor is a whole.
    ///
    /// Source: Envoy "Locality weighted load balancing", `EdfLoadBalancer` and `HostSetImpl::effectiveLocalityWeight`.
    fn new(
        priority: &Priority,
        all: &Hosts,
        overprovisioning: u32,
        available: &dyn Fn(&Locality) -> Hosts,
    ) -> Option<Self> {
        let (mut hosts, mut weights) = (Vec::new(), Vec::new());
        for (locality, weight) in &priority.localities {
            let total = all.list.iter().filter(|host| *host.locality == **locality).count();
            let part = available(locality);
            if *weight == 0 || part.list.is_empty() {
                continue;
            }
            let share = part.list.len() as f64 / total.max(1) as f64 * f64::from(overprovisioning) / 100.0;
            weights.push(f64::from(*weight) * share.min(1.0));
            hosts.push(part);
        }
        (!hosts.is_empty()).then_some(Localities { hosts, weights, schedule: None })
    }

    fn next(&mut self, random: &mut dyn FnMut() -> u64) -> Option<&mut Hosts> {
        let weights = &self.weights;
        let at = next_of(&mut self.schedule, weights.len(), random, |at| weights.get(at).copied().unwrap_or(1.0))?;
        self.hosts.get_mut(at)
    }
}

/// The next turn of a schedule that is made at the first. Workers and proxies that start together must not all begin with the heaviest.
fn next_of(
    schedule: &mut Option<Schedule>,
    len: usize,
    random: &mut dyn FnMut() -> u64,
    weight: impl Fn(usize) -> f64 + Copy,
) -> Option<usize> {
    if len == 0 {
        return None;
    }
    let schedule = schedule.get_or_insert_with(|| {
        let mut schedule = Schedule::new(len, weight);
        for _ in 0..random() % len as u64 {
            schedule.next(weight);
        }
        schedule
    });
    schedule.next(weight)
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
            // An original-destination cluster never comes here, nor does one that hashes; any other with `CLUSTER_PROVIDED` is refused by the compiler.
            Balancer::Random | Balancer::Hash | Balancer::Provided => self.at_random(random).cloned(),
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
        weight: impl Fn(&Endpoint) -> f64 + Copy,
    ) -> Option<Arc<Endpoint>> {
        let list = &self.list;
        let weight = |at: usize| list.get(at).map_or(1.0, |host| weight(host));
        list.get(next_of(&mut self.schedule, list.len(), random, weight)?).cloned()
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
