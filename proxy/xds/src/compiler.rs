//! The state between xDS and the workers: what is accepted, what waits for what, what is published.
//!
//! Lives on the control thread. Pure: no sockets, and time is passed in (the wall clock only stamps what is stored); files that a resource names, such as
//! certificates, are read when it is compiled. The order of use:
//!
//! 1. [`Compiler::load_static`] once, then for each response or file [`Compiler::apply`];
//! 2. [`Compiler::build`]; bind what the plan lists; for each failure [`Compiler::bind_failed`], then `build` again: its snapshot replaces the first,
//!    what was bound stays bound;
//! 3. publish the snapshot, start and stop listeners;
//! 4. acknowledge with the refusals of `apply` and of `bind_failed`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use shika_data::{
    model::{ChainId, ListenerId, RouteTableId, cluster::Cluster, route::RouteTable},
    snapshot::Snapshot,
    stats::{ClusterManagerStats, ListenerManagerStats, Registry, Scope, SubscriptionStats},
};
use shika_proto::type_url;

pub use crate::update::*;
use crate::{
    bootstrap::Source,
    clusters::Clusters,
    compile::{ClusterIds, config_source::Servers, endpoints::Assignment, tls::Secrets},
    harmless::HarmlessSeen,
    reject::Reject,
    runtime::Runtime,
    store::Store,
    subscription,
    warm::{Arrived, ListenerSlot, Sockets},
};

/// A type that arrives as a whole: CDS or LDS.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    /// Where it comes from; `None`: static resources only.
    pub source: Option<Source>,
    /// The first response has arrived, or is no longer waited for.
    pub arrived: bool,
    /// When the first response is no longer waited for.
    pub deadline: Option<Instant>,
    /// Everything of the first response is in force; stays true.
    pub settled: bool,
}

/// Which route table an id stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RouteKey {
    /// From RDS, by name.
    Rds(Arc<str>),
    /// Inline, in this chain.
    Inline(ListenerId, ChainId),
}

/// See the module.
pub struct Compiler {
    pub(crate) registry: Arc<Registry>,
    pub(crate) options: CompileOptions,
    pub(crate) store: Store,
    pub(crate) harmless: HarmlessSeen,
    pub(crate) cluster_ids: ClusterIds,
    /// `cluster_manager.upstream_bind_config` of the bootstrap.
    pub(crate) bind_source: Option<IpAddr>,
    /// What of the bootstrap sources of resources may lead to.
    pub(crate) servers: Servers,
    /// `node.cluster` of the bootstrap.
    pub(crate) local_cluster: String,
    pub(crate) route_ids: HashMap<RouteKey, RouteTableId>,
    pub(crate) clusters: Clusters,
    pub(crate) listeners: BTreeMap<Arc<str>, ListenerSlot>,
    /// Listeners of which a version waits.
    pub(crate) waiting_listeners: BTreeSet<Arc<str>>,
    /// Listeners that the last plan has put in force: their slots hold what was there before.
    replaced: Vec<Arc<str>>,
    /// Route tables that only those ask for.
    set_aside: HashMap<Arc<str>, Arc<RouteTable>>,
    pub(crate) assignments: HashMap<Arc<str>, Assignment>,
    pub(crate) tables: HashMap<Arc<str>, Arc<RouteTable>>,
    pub(crate) secrets: Secrets,
    /// `sds.<name>.` of secrets that something asks for.
    pub(crate) sds: BTreeMap<Arc<str>, SubscriptionStats>,
    pub(crate) runtime: Runtime,
    pub(crate) cds: Whole,
    pub(crate) lds: Whole,
    pub(crate) stats: ManagerStats,
    /// Something is to be published.
    pub(crate) changed: bool,
    /// See [`Self::revision`].
    pub(crate) revision: u64,
    /// The revision when last what nothing asks for was forgotten.
    forgotten: u64,
    published: Arc<Snapshot>,
    initialized: bool,
}

/// Statistics that the compiler keeps.
pub(crate) struct ManagerStats {
    /// `cluster_manager.`
    pub clusters: ClusterManagerStats,
    /// `listener_manager.`
    pub listeners: ListenerManagerStats,
    /// `cluster_manager.cds.`
    pub cds: SubscriptionStats,
    /// `listener_manager.lds.`
    pub lds: SubscriptionStats,
}

impl ManagerStats {
    fn new(registry: &Registry) -> Self {
        let scope = |prefix: &str| Scope { prefix: prefix.into(), stem: prefix.into(), tags: Vec::new() };
        ManagerStats {
            clusters: ClusterManagerStats::new(registry, scope("cluster_manager.")),
            listeners: ListenerManagerStats::new(registry, scope("listener_manager.")),
            cds: SubscriptionStats::new(registry, scope("cluster_manager.cds.")),
            lds: SubscriptionStats::new(registry, scope("listener_manager.lds.")),
        }
    }
}

impl Compiler {
    /// A compiler that holds nothing.
    pub fn new(registry: Arc<Registry>, options: CompileOptions) -> Self {
        Compiler {
            stats: ManagerStats::new(&registry),
            registry,
            options,
            store: Store::default(),
            harmless: HarmlessSeen::default(),
            cluster_ids: ClusterIds::default(),
            bind_source: None,
            servers: Servers::default(),
            local_cluster: String::new(),
            route_ids: HashMap::new(),
            clusters: Clusters::default(),
            listeners: BTreeMap::new(),
            waiting_listeners: BTreeSet::new(),
            replaced: Vec::new(),
            set_aside: HashMap::new(),
            assignments: HashMap::new(),
            tables: HashMap::new(),
            secrets: Secrets::default(),
            sds: BTreeMap::new(),
            runtime: Runtime::default(),
            cds: Whole::default(),
            lds: Whole::default(),
            changed: false,
            revision: 1,
            forgotten: 0,
            published: Arc::default(),
            initialized: false,
        }
    }

    /// What to publish after changes; `None` if there is nothing new.
    pub fn build(&mut self) -> Option<Plan> {
        for name in std::mem::take(&mut self.replaced) {
            if let Some(slot) = self.listeners.get_mut(&name) {
                slot.previous = None;
            }
        }
        self.set_aside.clear();
        self.settle();
        if std::mem::replace(&mut self.forgotten, self.revision) != self.revision {
            self.forget_unwanted();
        }
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let snapshot = Arc::new(self.snapshot());
        self.published = snapshot.clone();
        let (mut bind, mut unbind) = (Vec::new(), Vec::new());
        for slot in self.listeners.values_mut() {
            let wanted = slot.active.as_ref().and_then(|state| Sockets::of(&state.compiled.listener));
            if wanted == slot.bound {
                continue;
            }
            if let Some((_, sockets)) = &mut slot.previous {
                sockets.clone_from(&slot.bound);
            }
            match &wanted {
                Some(_) => bind.push(slot.id),
                None => unbind.push(slot.id),
            }
            slot.bound = wanted;
        }
        let warming = self.warming();
        self.count(&warming);
        Some(Plan { snapshot, bind, unbind, warming })
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot { generation: self.published.generation + 1, ..Default::default() };
        snapshot.clusters.resize_with(self.cluster_ids.len(), || None);
        snapshot.route_tables.resize_with(self.route_ids.len(), || None);
        snapshot.listeners.resize_with(self.listeners.len(), || None);
        for state in self.clusters.slots().filter_map(|slot| slot.active.as_ref()) {
            let cluster = &state.compiled.cluster;
            if let Some(place) = snapshot.clusters.get_mut(cluster.id.index()) {
                *place = Some(cluster.clone());
            }
        }
        let inline =
            self.listeners.values().filter_map(|slot| slot.active.as_ref()).flat_map(|state| state.inline_tables());
        for table in inline.chain(self.tables.values()) {
            if let Some(place) = snapshot.route_tables.get_mut(table.id.index()) {
                *place = Some(table.clone());
            }
        }
        for slot in self.listeners.values() {
            if let (Some(state), Some(place)) = (&slot.active, snapshot.listeners.get_mut(slot.id.index())) {
                *place = Some(state.compiled.listener.clone());
            }
        }
        snapshot
    }

    /// Puts in force what has all it needs.
    fn settle(&mut self) {
        let arrived = Arrived { assignments: &self.assignments, tables: &self.tables };
        let store = &mut self.store;
        let mut promoted = self.clusters.promote(&arrived, |name| store.warmed(type_url::CLUSTER, name));
        let (listeners, replaced) = (&mut self.listeners, &mut self.replaced);
        self.waiting_listeners.retain(|name| {
            let Some(slot) = listeners.get_mut(name) else { return false };
            if slot.warming.as_ref().is_some_and(|state| !state.waits_for(&arrived).is_empty()) {
                return true;
            }
            slot.previous = Some((slot.active.take(), slot.bound.clone()));
            slot.active = slot.warming.take();
            replaced.push(name.clone());
            store.warmed(type_url::LISTENER, name);
            promoted = true;
            false
        });
        if promoted {
            self.changed = true;
            self.asks_changed();
        }
        let clusters_warm = self.clusters.waiting().all(|(_, slot)| slot.active.is_some());
        let listeners_warm =
            self.waiting_listeners.iter().filter_map(|name| self.listeners.get(name)).all(|slot| slot.active.is_some());
        let before = (self.cds.settled, self.lds.settled);
        self.cds.settled |= (self.cds.arrived || self.cds.source.is_none()) && clusters_warm;
        self.lds.settled |= (self.lds.arrived || self.lds.source.is_none()) && listeners_warm && self.cds.settled;
        if before != (self.cds.settled, self.lds.settled) {
            self.asks_changed();
        }
        self.initialized |= self.cds.settled && self.lds.settled;
    }

    fn warming(&self) -> Vec<Warming> {
        let arrived = Arrived { assignments: &self.assignments, tables: &self.tables };
        let clusters = self.clusters.waiting().filter_map(|(name, slot)| {
            let waits_for = slot.warming.as_ref()?.waits_for(&arrived);
            Some(Warming { type_url: type_url::CLUSTER, name: name.clone(), waits_for })
        });
        let listeners = self.waiting_listeners.iter().filter_map(|name| {
            let waits_for = self.listeners.get(name)?.warming.as_ref()?.waits_for(&arrived);
            Some(Warming { type_url: type_url::LISTENER, name: name.clone(), waits_for })
        });
        clusters.chain(listeners).collect()
    }

    fn count(&self, warming: &[Warming]) {
        let waiting = |type_url: &str| warming.iter().filter(|one| one.type_url == type_url).count() as u64;
        let clusters = &self.stats.clusters;
        let inactive = self.clusters.waiting().filter(|(_, slot)| slot.active.is_none()).count();
        clusters.active_clusters().set(self.clusters.len().saturating_sub(inactive) as u64);
        clusters.warming_clusters().set(waiting(type_url::CLUSTER));
        let listeners = &self.stats.listeners;
        listeners
            .total_listeners_active()
            .set(self.listeners.values().filter(|slot| slot.active.is_some()).count() as u64);
        listeners.total_listeners_warming().set(waiting(type_url::LISTENER));
    }

    /// Drops what nothing asks for any more, so that it is taken anew when it is asked for again.
    fn forget_unwanted(&mut self) {
        let clusters = &self.clusters;
        self.assignments.retain(|name, _| clusters.ask_for(name));
        self.store.retain(type_url::ENDPOINT, |name| clusters.ask_for(name));
        let wanted = self.names(type_url::ROUTE);
        // A listener that cannot be bound makes way for the one before it, which needs what it had.
        let previous = self.listeners.values().filter_map(|slot| slot.previous.as_ref()?.0.as_ref());
        let unwanted = previous.flat_map(|state| state.route_names()).filter(|(name, _)| !wanted.contains(*name));
        self.set_aside = unwanted
            .filter_map(|(name, _)| self.tables.get_key_value(name))
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect();
        self.tables.retain(|name, _| wanted.contains(name));
        self.store.retain(type_url::ROUTE, |name| wanted.contains(name));
        let listeners = &self.listeners;
        self.runtime.retain(|name| listeners.contains_key(name));
        let wanted = self.names(type_url::SECRET);
        self.sds.retain(|name, _| wanted.contains(name));
        for name in &wanted {
            let stats = || subscription::secret(&self.registry, name);
            self.sds.entry(name.clone()).or_insert_with(stats);
        }
        self.secrets.dynamic.retain(|name, _| wanted.contains(name));
        self.store.retain(type_url::SECRET, |name| wanted.contains(name));
    }

    /// A listener of the last plan could not be bound: it is refused and the one before it, if any, is kept. Call [`Self::build`] again.
    pub fn bind_failed(&mut self, listener: ListenerId, reason: &str) -> Reject {
        self.changed = true;
        self.asks_changed();
        self.stats.listeners.listener_create_failure().inc();
        let Some((name, slot)) = self.listeners.iter_mut().find(|(_, slot)| slot.id == listener) else {
            return Reject::new(type_url::LISTENER, "", "address", reason);
        };
        let reject = Reject::new(type_url::LISTENER, name, "address", format!("cannot bind: {reason}"));
        let (previous, sockets) = slot.previous.take().unwrap_or_default();
        let refused = std::mem::replace(&mut slot.active, previous);
        slot.bound = sockets;
        for (route, _) in slot.active.iter().flat_map(|state| state.route_names()) {
            if let Some(table) = self.set_aside.get(route) {
                self.tables.entry(route.clone()).or_insert_with(|| table.clone());
            }
        }
        let stored = refused.map(|state| state.stored);
        let kept = slot.active.as_ref().map(|state| state.stored.clone());
        self.store.roll_back(type_url::LISTENER, name, kept, stored, &reject);
        reject
    }

    /// Lets what waited longer than its `initial_fetch_timeout` go on. Returns whether there is something to build.
    pub fn tick(&mut self, now: Instant) -> bool {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let mut any = false;
        for state in self.clusters.waiting_states() {
            // Names are looked up by the control thread, which answers with failures too: there is always an answer to wait for.
            if !state.timed_out && due(state.deadline) && (state.compiled.eds.is_some() || !state.secrets().is_empty())
            {
                state.timed_out = true;
                if let Some(stats) = &state.compiled.eds_stats {
                    stats.init_fetch_timeout().inc();
                }
                any = true;
            }
        }
        for state in self.listeners.values_mut().filter_map(|slot| slot.warming.as_mut()) {
            if !state.timed_out && due(state.deadline) {
                state.timed_out = true;
                any = true;
            }
        }
        for (whole, stats) in [(&mut self.cds, &self.stats.cds), (&mut self.lds, &self.stats.lds)] {
            if !whole.arrived && due(whole.deadline) {
                whole.arrived = true;
                stats.init_fetch_timeout().inc();
                any = true;
            }
        }
        any
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_tick(&self) -> Option<Instant> {
        let clusters = self
            .clusters
            .waiting()
            .filter_map(|(_, slot)| slot.warming.as_ref())
            .filter(|state| !state.timed_out && (state.compiled.eds.is_some() || !state.secrets().is_empty()))
            .filter_map(|state| state.deadline);
        let listeners = self
            .waiting_listeners
            .iter()
            .filter_map(|name| self.listeners.get(name)?.warming.as_ref())
            .filter(|state| !state.timed_out)
            .filter_map(|state| state.deadline);
        let wholes =
            [&self.cds, &self.lds].into_iter().filter(|whole| !whole.arrived).filter_map(|whole| whole.deadline);
        clusters.chain(listeners).chain(wholes).min()
    }

    /// The addresses of a name; an empty list counts as an answer, `None` as a failure, which keeps what was there. Endpoints change at once. Returns
    /// whether a cluster was waiting for it: then there is something to [`Self::build`].
    pub fn set_dns(&mut self, cluster: &str, hostname: &str, addresses: Option<&[IpAddr]>) -> bool {
        let Some((mut active, warming)) = self.clusters.states_of(cluster) else { return false };
        if let Some(state) = active.as_deref().or(warming.as_deref()) {
            let stats = &state.compiled.cluster.stats;
            stats.update_attempt().inc();
            match addresses {
                Some(_) => stats.update_success().inc(),
                None => stats.update_failure().inc(),
            }
        }
        if let Some(state) = &mut active {
            state.answer(hostname, addresses);
        }
        warming.is_some_and(|state| state.answer(hostname, addresses))
    }

    /// The cluster of this name in force: the control plane's, for the ADS client.
    pub fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.clusters.slot(name)?.active.as_ref().map(|state| state.compiled.cluster.clone())
    }

    /// Static resources and the first responses of CDS and LDS are in force: the server is LIVE.
    pub fn initialized(&self) -> bool {
        self.initialized
    }

    /// The resources as accepted and refused, for `/config_dump`. Secrets are in it as received: redact them.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Harmless fields seen so far, for `/unsupported`.
    pub fn harmless(&self) -> &HarmlessSeen {
        &self.harmless
    }
}

#[cfg(test)]
#[path = "compiler_tests.rs"]
mod tests;
