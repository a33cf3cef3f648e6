//! What one worker owns.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Deref,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use foldhash::{HashMap, HashMapExt, HashSet};
use http::HeaderValue;
use rand::{RngCore, SeedableRng, rngs::SmallRng};

use crate::{
    connection::{self, Connection, Verdict},
    drain::{DrainScope, Phase},
    model::{
        ListenerId,
        cluster::Cluster,
        listener::{BindAddress, Listener, TrafficDirection},
    },
    snapshot::Snapshot,
    upstream::{lb::Balances, outlier, pool::Pools},
};

/// A snapshot as one worker holds it. Cloning touches a reference count that no other worker touches.
#[derive(Clone, Debug)]
pub struct SnapshotRef(Arc<Published>);

/// A snapshot and what is derived from it once per publication.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    snapshot: Arc<Snapshot>,
    by_address: Arc<HashMap<SocketAddr, ListenerId>>,
    inbound: Arc<Inbound>,
    /// Clusters that detect outliers.
    outliers: Arc<[Arc<Cluster>]>,
}

/// What tells inbound connections from outbound ones where both are redirected to one listener.
#[derive(Debug, Default)]
struct Inbound {
    /// Addresses of the workload: those of virtual listeners for inbound traffic.
    addresses: HashSet<IpAddr>,
    /// Listeners that take redirected inbound connections that no other listener owns, for IPv4 and for IPv6.
    pass_through: [Option<ListenerId>; 2],
}

impl Inbound {
    fn note(&mut self, listener: &Listener) {
        if listener.direction != TrafficDirection::Inbound {
            return;
        }
        for address in &listener.addresses {
            let BindAddress::Ip { address, .. } = address else { continue };
            if !listener.bind_to_port && !address.ip().is_unspecified() {
                self.addresses.insert(address.ip().to_canonical());
            } else if listener.takes_redirected() {
                let slot = &mut self.pass_through[usize::from(address.is_ipv6())];
                slot.get_or_insert(listener.id);
            }
        }
    }
}

impl Published {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Self {
        let mut by_address = HashMap::new();
        let mut inbound = Inbound::default();
        for listener in snapshot.listeners.iter().flatten() {
            inbound.note(listener);
            for address in &listener.addresses {
                if let BindAddress::Ip { address, .. } = address {
                    by_address.insert(*address, listener.id);
                }
            }
        }
        let outliers =
            snapshot.clusters.iter().flatten().filter(|cluster| cluster.outlier.is_some()).cloned().collect();
        Published { snapshot, by_address: Arc::new(by_address), inbound: Arc::new(inbound), outliers }
    }
}

impl SnapshotRef {
    pub(super) fn new(published: &Published) -> Self {
        SnapshotRef(Arc::new(published.clone()))
    }

    /// The listener that owns a restored original destination: the one with that very address, else the one with the wildcard address and that port.
    ///
    /// Source: Envoy `ConnectionHandlerImpl::getBalancedHandlerByAddress`.
    pub fn listener_for(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        let wildcard = |ip: IpAddr| self.0.by_address.get(&SocketAddr::new(ip, destination.port()));
        let id = self.0.by_address.get(&destination).or_else(|| match destination {
            SocketAddr::V4(_) => wildcard(Ipv4Addr::UNSPECIFIED.into()).or_else(|| {
                let id = wildcard(Ipv6Addr::UNSPECIFIED.into())?;
                let takes_v4 = |address: &BindAddress| matches!(address, BindAddress::Ip { ipv4_compat: true, .. });
                self.0.snapshot.listener(*id)?.addresses.iter().any(takes_v4).then_some(id)
            }),
            SocketAddr::V6(_) => wildcard(Ipv6Addr::UNSPECIFIED.into()),
        })?;
        self.0.snapshot.listener(*id)
    }

    /// Whether an address is the workload's own, as far as its inbound listeners say.
    pub(crate) fn is_inbound_address(&self, ip: IpAddr) -> bool {
        self.0.inbound.addresses.contains(&ip.to_canonical())
    }

    /// The listener that passes inbound connections on whose port no listener names.
    pub(crate) fn inbound_pass_through(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let id = self.0.inbound.pass_through[usize::from(destination.ip().to_canonical().is_ipv6())]?;
        self.0.snapshot.listener(id)
    }
}

impl Deref for SnapshotRef {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0.snapshot
    }
}

struct Local {
    snapshot: RefCell<SnapshotRef>,
    pools: RefCell<Pools>,
    balances: RefCell<Balances>,
    random: RefCell<SmallRng>,
    date: RefCell<(u64, HeaderValue)>,
    /// The last that was asked for.
    number: RefCell<(u64, HeaderValue)>,
    connections: RefCell<HashMap<u64, Arc<Connection>>>,
    /// Drains that new connections join.
    standing: RefCell<Vec<DrainScope>>,
    live: RefCell<Arc<AtomicU64>>,
}

thread_local! {
    static LOCAL: Local = Local {
        snapshot: RefCell::new(SnapshotRef::new(&Published::default())),
        pools: RefCell::default(),
        balances: RefCell::default(),
        random: RefCell::new(SmallRng::from_os_rng()),
        date: RefCell::new((0, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))),
        number: RefCell::new((0, HeaderValue::from_static("0"))),
        connections: RefCell::default(),
        standing: RefCell::default(),
        live: RefCell::default(),
    };
}

/// The configuration that this worker uses now. A request takes it once.
pub fn snapshot() -> SnapshotRef {
    LOCAL.with(|local| local.snapshot.borrow().clone())
}

/// Gives access to this worker's upstream pools. Not to be nested.
pub fn with_pools<T>(f: impl FnOnce(&mut Pools) -> T) -> T {
    LOCAL.with(|local| f(&mut local.pools.borrow_mut()))
}

/// The same, unless the thread is at its end and the pools are being closed themselves.
pub(crate) fn with_pools_while_open<T>(f: impl FnOnce(&mut Pools) -> Option<T>) -> Option<T> {
    LOCAL.try_with(|local| f(&mut *local.pools.try_borrow_mut().ok()?)).ok().flatten()
}

/// Gives access to this worker's load-balancing state. Not to be nested.
pub(crate) fn with_balances<T>(f: impl FnOnce(&mut Balances) -> T) -> T {
    LOCAL.with(|local| f(&mut local.balances.borrow_mut()))
}

/// A random number, from a generator of this worker's own. Not for secrets.
pub fn random() -> u64 {
    LOCAL.with(|local| local.random.borrow_mut().next_u64())
}

/// The value of the `date` header (RFC 9110, section 5.6.7), made once per second.
pub fn date() -> HeaderValue {
    LOCAL.with(|local| {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let mut date = local.date.borrow_mut();
        if date.0 != second
            && let Ok(text) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            *date = (second, text);
        }
        date.1.clone()
    })
}

/// A number as a header's value, made once as long as it is the same that is asked for.
pub(crate) fn number(n: u64) -> HeaderValue {
    LOCAL.with(|local| {
        let mut number = local.number.borrow_mut();
        if number.0 != n {
            *number = (n, HeaderValue::from(n));
        }
        number.1.clone()
    })
}

/// Makes the current thread a worker with this snapshot, without starting one. For tests and benches.
pub fn enter_for_test(snapshot: Arc<Snapshot>) {
    take(SnapshotRef::new(&Published::new(snapshot)));
}

/// Forgets all that runs before have left on this thread, and begins the random numbers anew.
#[cfg(feature = "fuzzing")]
pub(crate) fn forget() {
    LOCAL.with(|local| {
        // Dropped when nothing is borrowed any more: what is dropped may want to tell the pools.
        let pools = local.pools.take();
        let balances = local.balances.take();
        let connections = local.connections.take();
        local.standing.take();
        local.random.replace(SmallRng::seed_from_u64(1));
        (pools, balances, connections)
    });
}

/// Shares the counter of live connections with [`super::Workers`].
pub(super) fn enter(live: Arc<AtomicU64>) {
    LOCAL.with(|local| *local.live.borrow_mut() = live);
}

/// Takes a snapshot into use. Connections that it no longer allows are told to close; returned are those that should drain: their listener or chain is
/// gone, or asks more of the peer.
pub(super) fn take(new: SnapshotRef) -> Vec<Weak<Connection>> {
    LOCAL.with(|local| {
        let old = local.snapshot.replace(new.clone());
        local.pools.borrow_mut().retain(&new);
        local.balances.borrow_mut().retain(&new);
        let mut drained = Vec::new();
        for connection in local.connections.borrow().values() {
            match connection::judge(connection, &old, &new) {
                Verdict::Keep => {}
                Verdict::Drain => drained.push(Arc::downgrade(connection)),
                Verdict::Close => connection.drain.set(Phase::Closing),
            }
        }
        drained
    })
}

/// Closes upstream connections that were idle for too long or whose endpoint is gone (endpoints change without a publication).
pub(super) fn housekeep() {
    LOCAL.with(|local| {
        let snapshot = local.snapshot.borrow().clone();
        let mut pools = local.pools.borrow_mut();
        pools.retain(&snapshot);
        pools.sweep(Instant::now());
    });
}

/// Closes upstream connections whose endpoint is gone.
pub(super) fn let_go() {
    LOCAL.with(|local| local.pools.borrow_mut().retain(&local.snapshot.borrow()));
}

/// Whether a cluster of the configuration detects outliers.
pub(super) fn detects_outliers() -> bool {
    LOCAL.with(|local| !local.snapshot.borrow().0.outliers.is_empty())
}

/// Looks at the endpoints of clusters that detect outliers, as far as their interval is over.
pub(super) fn look_for_outliers() {
    let snapshot = snapshot();
    let now = Instant::now();
    for cluster in snapshot.0.outliers.iter() {
        outlier::tick(cluster, now);
    }
}

/// The connections in a scope now.
pub(super) fn members(scope: DrainScope) -> Vec<Weak<Connection>> {
    LOCAL.with(|local| local.connections.borrow().values().filter(|c| in_scope(scope, c)).map(Arc::downgrade).collect())
}

/// Makes new connections in the scope begin as draining.
pub(super) fn begin_standing(scope: DrainScope) {
    LOCAL.with(|local| local.standing.borrow_mut().push(scope));
}

/// Ends all standing drains and opens the connections that drain because of them.
pub(super) fn end_standing() {
    LOCAL.with(|local| {
        let ended = std::mem::take(&mut *local.standing.borrow_mut());
        for connection in local.connections.borrow().values() {
            if ended.iter().any(|scope| in_scope(*scope, connection)) {
                connection.drain.set(Phase::Open);
            }
        }
    });
}

/// Whether a scope's drain still stands.
pub(super) fn stands(scope: DrainScope) -> bool {
    LOCAL.with(|local| local.standing.borrow().contains(&scope))
}

fn in_scope(scope: DrainScope, connection: &Connection) -> bool {
    match scope {
        DrainScope::All => true,
        DrainScope::Inbound => connection.direction == TrafficDirection::Inbound,
        DrainScope::Listener(id) => connection.listener == id,
        DrainScope::Chain(listener, chain) => connection.listener == listener && connection.chain == chain,
    }
}

/// A connection in the worker's table; it leaves by `Drop`.
#[derive(Debug)]
pub(crate) struct Registered(Arc<Connection>);

/// Puts a connection into the worker's table. From now on every publication judges it, so the caller checks policies after this, not before: a change
/// between the two is seen by one of them.
pub(crate) fn register(connection: Arc<Connection>) -> Registered {
    LOCAL.with(|local| {
        if local.standing.borrow().iter().any(|scope| in_scope(*scope, &connection)) {
            connection.drain.set(Phase::Draining);
        }
        local.connections.borrow_mut().insert(connection.id, connection.clone());
        local.live.borrow().fetch_add(1, Ordering::Relaxed);
    });
    Registered(connection)
}

impl Drop for Registered {
    fn drop(&mut self) {
        // A runtime that is dropped together with its thread may outlive the thread-local.
        let _ = LOCAL.try_with(|local| {
            local.connections.borrow_mut().remove(&self.0.id);
            local.live.borrow().fetch_sub(1, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
