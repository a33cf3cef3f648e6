//! Resources that are accepted, and what they wait for before they are in force.
//!
//! ```text
//!               accepted                 all there, or initial_fetch_timeout over
//!   (nothing) ───────────► warming ─────────────────────────────────────────────► active
//!                             │  an update replaces the warming one; the active one serves meanwhile
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use shika_data::model::{
    ListenerId,
    cluster::Discovery,
    listener::{BindAddress, Listener},
    route::RouteTable,
};
use shika_proto::type_url;

use crate::{
    bootstrap::Source,
    compile::{
        cluster::CompiledCluster,
        endpoints::{Assignment, Resolved},
        http::Routes,
        listener::{ChainIds, CompiledListener},
        tls::SecretRef,
    },
    reject::short_type,
    store::Stored,
};

/// What has arrived, as far as readiness asks.
pub(crate) struct Arrived<'a> {
    /// Assignments by EDS name.
    pub assignments: &'a HashMap<Arc<str>, Assignment>,
    /// Route tables by RDS name.
    pub tables: &'a HashMap<Arc<str>, Arc<RouteTable>>,
}

/// One version of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterState {
    /// The cluster.
    pub compiled: CompiledCluster,
    /// Addresses of its names.
    pub resolved: Resolved,
    /// Names that were looked up at least once, with or without success.
    pub answered: BTreeSet<Arc<str>>,
    /// When it goes on without what is missing; `None` waits for ever.
    pub deadline: Option<Instant>,
    /// The deadline is over.
    pub timed_out: bool,
}

/// A listener's versions.
#[derive(Debug)]
pub(crate) struct ListenerSlot {
    /// Its id; the name keeps it.
    pub id: ListenerId,
    /// From the bootstrap: cannot be changed.
    pub fixed: bool,
    /// Ids of its chains.
    pub chain_ids: ChainIds,
    /// In force.
    pub active: Option<ListenerState>,
    /// Waits.
    pub warming: Option<ListenerState>,
    /// What the last plan took out of force, and its sockets: kept in case the new sockets cannot be bound.
    pub previous: Option<(Option<ListenerState>, Option<Sockets>)>,
    /// Sockets that are bound, as far as the plans say.
    pub bound: Option<Sockets>,
}

/// One version of a listener.
#[derive(Debug)]
pub(crate) struct ListenerState {
    /// The listener.
    pub compiled: CompiledListener,
    /// The resource it came from.
    pub stored: Stored,
    /// When it goes on without what is missing; `None` waits for ever.
    pub deadline: Option<Instant>,
    /// The deadline is over.
    pub timed_out: bool,
}

/// All that a listener's sockets depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sockets {
    addresses: Vec<BindAddress>,
    reuse_port: bool,
    backlog: Option<u32>,
    freebind: bool,
    transparent: bool,
}

impl Sockets {
    /// `None`: the listener binds none.
    pub fn of(listener: &Listener) -> Option<Self> {
        listener.bind_to_port.then(|| Sockets {
            addresses: listener.addresses.clone(),
            reuse_port: listener.reuse_port,
            backlog: listener.backlog,
            freebind: listener.freebind,
            transparent: listener.transparent,
        })
    }
}

/// The earliest time at which waiting for these ends; `None` if one of them is waited for without limit.
pub(crate) fn deadline(now: Instant, timeouts: impl Iterator<Item = Option<Duration>>) -> Option<Instant> {
    let mut longest = Duration::ZERO;
    for timeout in timeouts {
        longest = longest.max(timeout?);
    }
    now.checked_add(longest)
}

fn timeout_of(secret: &SecretRef) -> Option<Duration> {
    secret.source.as_ref().map_or(Some(Duration::ZERO), timeout_of_source)
}

pub(crate) fn timeout_of_source(source: &Source) -> Option<Duration> {
    match source {
        Source::Ads { initial_fetch_timeout }
        | Source::File { initial_fetch_timeout, .. }
        | Source::Api { initial_fetch_timeout, .. } => *initial_fetch_timeout,
    }
}

impl ClusterState {
    /// A cluster as compiled. What the version before it knew of its endpoints is taken over.
    pub fn new(compiled: CompiledCluster, old: Option<&ClusterState>, now: Instant) -> Box<Self> {
        let names: BTreeSet<String> = compiled.assignment.names().map(str::to_owned).collect();
        let mut state = Box::new(ClusterState {
            resolved: Resolved::new(),
            answered: BTreeSet::new(),
            deadline: None,
            timed_out: false,
            compiled,
        });
        if let Some(old) = old {
            for name in old.answered.iter().filter(|name| names.contains(&***name)) {
                state.answered.insert(name.clone());
                if let Some(addresses) = old.resolved.get(name) {
                    state.resolved.insert(name.clone(), addresses.clone());
                }
            }
        }
        let eds = state.compiled.eds.iter().map(|(_, source)| timeout_of_source(source));
        let secrets = state.secrets();
        state.deadline = deadline(now, eds.chain(secrets.iter().map(timeout_of)));
        let old = old.map(|old| old.compiled.cluster.endpoints.load());
        state.refresh(old.as_deref().map(|set| &**set));
        if state.compiled.dns.is_none() {
            // Only names are looked up again.
            state.compiled.assignment = Assignment::default();
        }
        state
    }

    /// The assignment that it takes its endpoints from, where that comes by EDS.
    pub fn assignment(&self) -> Option<&Arc<str>> {
        self.compiled.eds.as_ref().map(|(name, _)| name)
    }

    /// Secrets that it needs.
    pub fn secrets(&self) -> BTreeSet<SecretRef> {
        self.compiled.tls.iter().flat_map(|tls| tls.secrets()).collect()
    }

    /// Puts the endpoints of its own assignment in force. `old` gives those whose counters go on.
    fn refresh(&self, old: Option<&shika_data::model::cluster::EndpointSet>) {
        let cluster = &self.compiled.cluster;
        let first_only = match cluster.discovery {
            Discovery::LogicalDns => true,
            Discovery::Static | Discovery::StrictDns => false,
            Discovery::Eds(_) | Discovery::OriginalDst => return,
        };
        let current = cluster.endpoints.load();
        let endpoints = self.compiled.assignment.endpoints(&self.resolved, first_only, Some(old.unwrap_or(&current)));
        cluster.put_endpoints(endpoints);
    }

    /// Puts an EDS assignment in force. `old` gives the endpoints whose counters go on.
    pub fn assign(&self, assignment: &Assignment, old: Option<&shika_data::model::cluster::EndpointSet>) {
        let cluster = &self.compiled.cluster;
        let current = cluster.endpoints.load();
        let endpoints = assignment.endpoints(&Resolved::new(), false, Some(old.unwrap_or(&current)));
        cluster.put_endpoints(endpoints);
    }

    /// Takes the answer for a name. A failure keeps the addresses there were. Returns whether the name is one of this cluster's.
    pub fn answer(&mut self, hostname: &str, addresses: Option<&[IpAddr]>) -> bool {
        if self.compiled.dns.is_none() || !self.compiled.assignment.names().any(|name| name == hostname) {
            return false;
        }
        let name: Arc<str> = hostname.into();
        if let Some(addresses) = addresses
            && self.resolved.get(&name).map(Vec::as_slice) != Some(addresses)
        {
            self.resolved.insert(name.clone(), addresses.to_vec());
            self.refresh(None);
        }
        self.answered.insert(name);
        true
    }

    /// What it waits for; empty: it can be in force.
    pub fn waits_for(&self, arrived: &Arrived<'_>) -> Vec<String> {
        if self.timed_out {
            return Vec::new();
        }
        let mut missing = Vec::new();
        if let Some((name, _)) = &self.compiled.eds
            && !arrived.assignments.contains_key(name)
        {
            missing.push(format!("{}/{name}", short_type(type_url::ENDPOINT)));
        }
        for name in self.compiled.assignment.names().collect::<BTreeSet<_>>() {
            if self.compiled.dns.is_some() && !self.answered.contains(name) {
                missing.push(format!("DNS/{name}"));
            }
        }
        // Nobody knows of any endpoint whether it is well before it was asked once; a failure is an answer too.
        if missing.is_empty() && self.compiled.cluster.awaits_checks() {
            missing.push("health checks".to_owned());
        }
        for tls in self.compiled.tls.iter().filter(|tls| tls.handle.context.load().is_none()) {
            missing
                .extend(tls.secrets().iter().map(|secret| format!("{}/{}", short_type(type_url::SECRET), secret.name)));
        }
        missing
    }
}

impl ListenerState {
    /// A listener as compiled.
    pub fn new(compiled: CompiledListener, stored: Stored, now: Instant) -> Self {
        let mut state = ListenerState { compiled, stored, deadline: None, timed_out: false };
        let secrets = state.secrets();
        let routes: Vec<_> = state.route_names().map(|(_, source)| timeout_of_source(source)).collect();
        state.deadline = deadline(now, secrets.iter().map(timeout_of).chain(routes));
        state
    }

    /// Names and sources of route tables that come by RDS.
    pub fn route_names(&self) -> impl Iterator<Item = (&Arc<str>, &Source)> {
        self.compiled.chains.iter().filter_map(|chain| match &chain.routes {
            Some(Routes::Rds(name, source)) => Some((name, source)),
            Some(Routes::Inline(_)) | None => None,
        })
    }

    /// Route tables that stand in the listener.
    pub fn inline_tables(&self) -> impl Iterator<Item = &Arc<RouteTable>> {
        self.compiled.chains.iter().filter_map(|chain| match &chain.routes {
            Some(Routes::Inline(table)) => Some(table),
            Some(Routes::Rds(..)) | None => None,
        })
    }

    /// Secrets that its chains need.
    pub fn secrets(&self) -> BTreeSet<SecretRef> {
        self.compiled.chains.iter().filter_map(|chain| chain.tls.as_ref()).flat_map(|tls| tls.secrets()).collect()
    }

    /// What it waits for; empty: it can be in force.
    pub fn waits_for(&self, arrived: &Arrived<'_>) -> Vec<String> {
        if self.timed_out {
            return Vec::new();
        }
        let mut missing = BTreeSet::new();
        for (name, _) in self.route_names() {
            if !arrived.tables.contains_key(name) {
                missing.insert(format!("{}/{name}", short_type(type_url::ROUTE)));
            }
        }
        for tls in self.compiled.chains.iter().filter_map(|chain| chain.tls.as_ref()) {
            if tls.handle.context.load().is_none() {
                missing.extend(
                    tls.secrets().iter().map(|secret| format!("{}/{}", short_type(type_url::SECRET), secret.name)),
                );
            }
        }
        missing.into_iter().collect()
    }
}
