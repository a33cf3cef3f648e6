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
    bootstrap::{ApiConfig, Source},
    compile::{
        ClusterIds,
        config_source::Servers,
        endpoints::Assignment,
        tls::{SecretRef, Secrets},
    },
    harmless::HarmlessSeen,
    reject::Reject,
    runtime::{Layer, Runtime},
    store::Store,
    subscription,
    warm::{Arrived, ClusterSlot, ListenerSlot, Sockets},
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
    pub(crate) clusters: BTreeMap<Arc<str>, ClusterSlot>,
    pub(crate) listeners: BTreeMap<Arc<str>, ListenerSlot>,
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
            clusters: BTreeMap::new(),
            listeners: BTreeMap::new(),
            assignments: HashMap::new(),
            tables: HashMap::new(),
            secrets: Secrets::default(),
            sds: BTreeMap::new(),
            runtime: Runtime::default(),
            cds: Whole::default(),
            lds: Whole::default(),
            changed: false,
            published: Arc::default(),
            initialized: false,
        }
    }

    /// What to publish after changes; `None` if there is nothing new.
    pub fn build(&mut self) -> Option<Plan> {
        for slot in self.listeners.values_mut() {
            slot.previous = None;
        }
        self.settle();
        self.forget_unwanted();
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
        for state in self.clusters.values().filter_map(|slot| slot.active.as_ref()) {
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
        for (name, slot) in &mut self.clusters {
            if slot.warming.as_ref().is_some_and(|state| state.waits_for(&arrived).is_empty()) {
                slot.active = slot.warming.take();
                self.store.warmed(type_url::CLUSTER, name);
                self.changed = true;
            }
        }
        for (name, slot) in &mut self.listeners {
            if slot.warming.as_ref().is_some_and(|state| state.waits_for(&arrived).is_empty()) {
                slot.previous = Some((slot.active.take(), slot.bound.clone()));
                slot.active = slot.warming.take();
                self.store.warmed(type_url::LISTENER, name);
                self.changed = true;
            }
        }
        let clusters_warm = self.clusters.values().all(|slot| slot.warming.is_none() || slot.active.is_some());
        let listeners_warm = self.listeners.values().all(|slot| slot.warming.is_none() || slot.active.is_some());
        self.cds.settled |= (self.cds.arrived || self.cds.source.is_none()) && clusters_warm;
        self.lds.settled |= (self.lds.arrived || self.lds.source.is_none()) && listeners_warm && self.cds.settled;
        self.initialized |= self.cds.settled && self.lds.settled;
    }

    fn warming(&self) -> Vec<Warming> {
        let arrived = Arrived { assignments: &self.assignments, tables: &self.tables };
        let clusters = self.clusters.iter().filter_map(|(name, slot)| {
            let waits_for = slot.warming.as_ref()?.waits_for(&arrived);
            Some(Warming { type_url: type_url::CLUSTER, name: name.clone(), waits_for })
        });
        let listeners = self.listeners.iter().filter_map(|(name, slot)| {
            let waits_for = slot.warming.as_ref()?.waits_for(&arrived);
            Some(Warming { type_url: type_url::LISTENER, name: name.clone(), waits_for })
        });
        clusters.chain(listeners).collect()
    }

    fn count(&self, warming: &[Warming]) {
        let waiting = |type_url: &str| warming.iter().filter(|one| one.type_url == type_url).count() as u64;
        let clusters = &self.stats.clusters;
        clusters.active_clusters().set(self.clusters.values().filter(|slot| slot.active.is_some()).count() as u64);
        clusters.warming_clusters().set(waiting(type_url::CLUSTER));
        let listeners = &self.stats.listeners;
        listeners
            .total_listeners_active()
            .set(self.listeners.values().filter(|slot| slot.active.is_some()).count() as u64);
        listeners.total_listeners_warming().set(waiting(type_url::LISTENER));
    }

    /// Drops what nothing asks for any more, so that it is taken anew when it is asked for again.
    fn forget_unwanted(&mut self) {
        let wanted = self.names(type_url::ENDPOINT);
        self.assignments.retain(|name, _| wanted.contains(name));
        self.store.retain(type_url::ENDPOINT, |name| wanted.contains(name));
        let wanted = self.names(type_url::ROUTE);
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
        self.stats.listeners.listener_create_failure().inc();
        let Some((name, slot)) = self.listeners.iter_mut().find(|(_, slot)| slot.id == listener) else {
            return Reject::new(type_url::LISTENER, "", "address", reason);
        };
        let reject = Reject::new(type_url::LISTENER, name, "address", format!("cannot bind: {reason}"));
        let (previous, sockets) = slot.previous.take().unwrap_or_default();
        let refused = std::mem::replace(&mut slot.active, previous);
        slot.bound = sockets;
        let stored = refused.map(|state| state.stored);
        let kept = slot.active.as_ref().map(|state| state.stored.clone());
        self.store.roll_back(type_url::LISTENER, name, kept, stored, &reject);
        reject
    }

    /// Lets what waited longer than its `initial_fetch_timeout` go on. Returns whether there is something to build.
    pub fn tick(&mut self, now: Instant) -> bool {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let mut any = false;
        for state in self.clusters.values_mut().filter_map(|slot| slot.warming.as_mut()) {
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
            .values()
            .filter_map(|slot| slot.warming.as_ref())
            .filter(|state| !state.timed_out && (state.compiled.eds.is_some() || !state.secrets().is_empty()))
            .filter_map(|state| state.deadline);
        let listeners = self
            .listeners
            .values()
            .filter_map(|slot| slot.warming.as_ref())
            .filter(|state| !state.timed_out)
            .filter_map(|state| state.deadline);
        let wholes =
            [&self.cds, &self.lds].into_iter().filter(|whole| !whole.arrived).filter_map(|whole| whole.deadline);
        clusters.chain(listeners).chain(wholes).min()
    }

    /// Which resources of a type are wanted on the ADS stream now. LDS waits until the first CDS response is warm.
    pub fn wanted(&self, type_url: &str) -> Wanted {
        let ads = |source: &Source| matches!(source, Source::Ads { .. });
        match type_url {
            type_url::CLUSTER if self.cds.source.as_ref().is_some_and(ads) => Wanted::All,
            type_url::LISTENER if self.cds.settled && self.lds.source.as_ref().is_some_and(ads) => Wanted::All,
            type_url::ENDPOINT | type_url::ROUTE | type_url::SECRET | type_url::RUNTIME => {
                Wanted::Names(self.sources(type_url).filter(|(_, source)| ads(source)).map(|(name, _)| name).collect())
            }
            _ => Wanted::None,
        }
    }

    /// What is wanted now of servers of single types (`api_config_source`), by server and type; LDS waits as in [`Self::wanted`].
    pub fn wanted_apis(&self) -> BTreeMap<(Arc<ApiConfig>, &'static str), Wanted> {
        let mut wanted = BTreeMap::new();
        for (type_url, whole) in [(type_url::CLUSTER, &self.cds), (type_url::LISTENER, &self.lds)] {
            if let Some(Source::Api { api, .. }) = &whole.source
                && (type_url == type_url::CLUSTER || self.cds.settled)
            {
                wanted.insert((api.clone(), type_url), Wanted::All);
            }
        }
        for type_url in [type_url::ENDPOINT, type_url::ROUTE, type_url::SECRET, type_url::RUNTIME] {
            for (name, source) in self.sources(type_url) {
                let Source::Api { api, .. } = source else { continue };
                let names = wanted.entry((api, type_url)).or_insert_with(|| Wanted::Names(BTreeSet::new()));
                if let Wanted::Names(names) = names {
                    names.insert(name);
                }
            }
        }
        wanted
    }

    /// Files to watch, with the type of what is in them.
    pub fn wanted_files(&self) -> Vec<(String, Source)> {
        let wholes = [(type_url::CLUSTER, &self.cds), (type_url::LISTENER, &self.lds)];
        let mut files: Vec<(String, Source)> = wholes
            .into_iter()
            .filter_map(|(type_url, whole)| Some((type_url.to_owned(), whole.source.clone()?)))
            .chain(
                [type_url::ENDPOINT, type_url::ROUTE, type_url::SECRET, type_url::RUNTIME]
                    .into_iter()
                    .flat_map(|type_url| self.sources(type_url).map(move |(_, source)| (type_url.to_owned(), source))),
            )
            .filter(|(_, source)| matches!(source, Source::File { .. }))
            .collect();
        files.dedup();
        files
    }

    /// Names of a type that are asked for, wherever from.
    pub(crate) fn names(&self, type_url: &str) -> BTreeSet<Arc<str>> {
        self.sources(type_url).map(|(name, _)| name).collect()
    }

    /// Everything that clusters and listeners, active and warming, ask for.
    fn sources(&self, type_url: &str) -> Box<dyn Iterator<Item = (Arc<str>, Source)> + '_> {
        let clusters = self.clusters.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        let listeners = self.listeners.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        match type_url {
            type_url::ENDPOINT => Box::new(clusters.filter_map(|state| state.compiled.eds.clone())),
            type_url::ROUTE => Box::new(
                listeners.flat_map(|state| state.route_names()).map(|(name, source)| (name.clone(), source.clone())),
            ),
            type_url::RUNTIME => Box::new(self.runtime.layers.iter().filter_map(|layer| layer.rtds.clone())),
            type_url::SECRET => {
                let secrets: BTreeSet<SecretRef> = clusters
                    .flat_map(|state| state.secrets())
                    .chain(listeners.flat_map(|state| state.secrets()))
                    .collect();
                Box::new(secrets.into_iter().filter_map(|secret| Some((secret.name, secret.source?))))
            }
            _ => Box::new(std::iter::empty()),
        }
    }

    /// The layers of runtime values, as they are now.
    pub fn runtime_layers(&self) -> &[Layer] {
        &self.runtime.layers
    }

    /// Clusters whose endpoints are to be checked: those that wait for it too.
    pub fn health_targets(&self) -> Vec<Arc<Cluster>> {
        let slots = self.clusters.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        slots.map(|state| &state.compiled.cluster).filter(|cluster| cluster.health.is_some()).cloned().collect()
    }

    /// Names to resolve.
    pub fn dns_targets(&self) -> Vec<DnsTarget> {
        let mut targets = Vec::new();
        for state in self.clusters.values().filter_map(|slot| slot.warming.as_ref().or(slot.active.as_ref())) {
            let Some(dns) = &state.compiled.dns else { continue };
            for hostname in state.compiled.assignment.names().collect::<BTreeSet<_>>() {
                targets.push(DnsTarget {
                    cluster: state.compiled.cluster.name.clone(),
                    hostname: hostname.into(),
                    family: dns.family,
                    refresh: dns.refresh,
                    respect_ttl: dns.respect_ttl,
                });
            }
        }
        targets
    }

    /// The addresses of a name; an empty list counts as an answer, `None` as a failure, which keeps what was there. Endpoints change at once. Returns
    /// whether a cluster was waiting for it: then there is something to [`Self::build`].
    pub fn set_dns(&mut self, cluster: &str, hostname: &str, addresses: Option<&[IpAddr]>) -> bool {
        let Some(slot) = self.clusters.get_mut(cluster) else { return false };
        if let Some(state) = slot.active.as_ref().or(slot.warming.as_ref()) {
            let stats = &state.compiled.cluster.stats;
            stats.update_attempt().inc();
            match addresses {
                Some(_) => stats.update_success().inc(),
                None => stats.update_failure().inc(),
            }
        }
        if let Some(state) = &mut slot.active {
            state.answer(hostname, addresses);
        }
        slot.warming.as_mut().is_some_and(|state| state.answer(hostname, addresses))
    }

    /// The cluster of this name in force: the control plane's, for the ADS client.
    pub fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.clusters.get(name)?.active.as_ref().map(|state| state.compiled.cluster.clone())
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
