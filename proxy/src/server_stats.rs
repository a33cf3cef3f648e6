//! Statistics of the process: `server.*` and the managers'.
//!
//! Source: Envoy documentation, "Statistics" of server, listener manager and cluster manager.

use std::{
    fs,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use shika_data::{
    model::cluster::Cluster,
    stats::{
        ClusterManagerStats, ControlPlaneStats, FilesystemStats, ListenerManagerStats, Registry, RuntimeStats, Scope,
        ServerStats,
    },
};

use crate::{admin::certs, state::State, version};

/// The groups; held as long as the process, so that they stay in the registry.
pub struct ServerGroups {
    /// `server.`
    pub server: ServerStats,
    /// `listener_manager.`
    pub listeners: ListenerManagerStats,
    /// `cluster_manager.`
    pub clusters: ClusterManagerStats,
    /// `control_plane.`
    pub control_plane: ControlPlaneStats,
    /// `filesystem.`
    pub files: FilesystemStats,
    /// `runtime.`
    pub runtime: RuntimeStats,
}

impl ServerGroups {
    /// All of them, in `registry`.
    pub fn new(registry: &Registry) -> Self {
        let scope = |prefix: &str| Scope { prefix: prefix.to_owned(), stem: prefix.to_owned(), tags: Vec::new() };
        let groups = ServerGroups {
            server: ServerStats::new(registry, scope("server.")),
            listeners: ListenerManagerStats::new(registry, scope("listener_manager.")),
            clusters: ClusterManagerStats::new(registry, scope("cluster_manager.")),
            control_plane: ControlPlaneStats::new(registry, scope("control_plane.")),
            files: FilesystemStats::new(registry, scope("filesystem.")),
            runtime: RuntimeStats::new(registry, scope("runtime.")),
        };
        groups.runtime.load_success().inc();
        groups.runtime.override_dir_not_exists().inc();
        groups.runtime.deprecated_feature_seen_since_process_start().set(0);
        groups.runtime.admin_overrides_active().set(0);
        groups.server.version().set(version::number());
        groups.server.hot_restart_generation().set(1);
        groups.server.parent_connections().set(0);
        groups
    }
}

/// Brings the levels that nobody sets when they change up to date. Cheap enough for each `/stats`.
pub fn refresh(state: &State) {
    let groups = &state.groups;
    let server = &groups.server;
    let now = state.server_state();
    server.state().set(now.number());
    server.live().set(u64::from(!state.health_failed.get()));
    server.uptime().set(state.start.elapsed().as_secs());
    server.total_connections().set(state.connections.get());
    server.concurrency().set(state.options.workers() as u64);
    server.hot_restart_epoch().set(u64::from(state.options.restart_epoch));
    let memory = Memory::read();
    server.memory_allocated().set(memory.anonymous);
    server.memory_heap_size().set(memory.anonymous);
    server.memory_physical_size().set(memory.resident);
    let dropped = state.access_logs.dropped() + state.telemetry.dropped_lines();
    let counted = server.log_lines_dropped().total();
    server.log_lines_dropped().add(dropped.saturating_sub(counted));
    server.spans_dropped().add(state.telemetry.newly_dropped_spans());
    server.days_until_first_cert_expiring().set(days_until_first_expiry(state));
    let snapshot = Arc::clone(&state.snapshot.borrow());
    groups.listeners.total_listeners_active().set(snapshot.listeners.iter().flatten().count() as u64);
    groups.clusters.active_clusters().set(snapshot.clusters.iter().flatten().count() as u64);
    for cluster in snapshot.clusters.iter().flatten() {
        breakers(cluster);
    }
}

/// Which circuit breakers of a cluster are open, and what is left until they are.
fn breakers(cluster: &Cluster) {
    let stats = &cluster.stats;
    let default = [
        stats.default_cx_open(),
        stats.default_rq_pending_open(),
        stats.default_rq_open(),
        stats.default_rq_retry_open(),
    ];
    let high = [stats.high_cx_open(), stats.high_rq_pending_open(), stats.high_rq_open(), stats.high_rq_retry_open()];
    // As in Envoy they are there from the first connection, request or retry on; most clusters never see one and need no cells for it.
    let (connected, asked) = (stats.upstream_cx_total().total() > 0, stats.upstream_rq_total().total() > 0);
    let touched = [connected, connected, asked, stats.upstream_rq_retry().total() > 0];
    if connected && !stats.default_cx_pool_open().is_set() {
        stats.default_cx_pool_open().set(0);
    }
    for (limits, open, touched) in [(&cluster.limits, default, touched), (&cluster.high_limits, high, [false; 4])] {
        let used = [
            (&limits.connections, limits.max_connections),
            (&limits.pending, limits.max_pending),
            (&limits.requests, limits.max_requests),
            (&limits.retries, limits.max_retries),
        ]
        .map(|(now, most)| (now.load(Relaxed), most));
        for ((open, touched), (now, most)) in open.into_iter().zip(touched).zip(used) {
            let is_open = u64::from(now >= most && now > 0);
            if open.value() != is_open || (touched && !open.is_set()) {
                open.set(is_open);
            }
        }
        if let Some(remaining) = &limits.remaining {
            let left = used.map(|(now, most)| u64::from(most.saturating_sub(now)));
            let gauges = [remaining.cx(), remaining.pending(), remaining.rq(), remaining.retries()];
            gauges.into_iter().zip(left).for_each(|(gauge, left)| gauge.set(left));
        }
    }
}

/// Envoy's value where there is no certificate: 2³² − 1.
fn days_until_first_expiry(state: &State) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    certs::served(&state.snapshot.borrow())
        .iter()
        .map(|certificate| certs::days_until(certificate.not_after, now))
        .min()
        .unwrap_or(u64::from(u32::MAX))
}

/// Memory of the process, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Pages in memory.
    pub resident: u64,
    /// Those of heap and stacks.
    pub anonymous: u64,
}

impl Memory {
    /// From `/proc/self/status`; zeros where there is none.
    pub fn read() -> Memory {
        let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
                .unwrap_or(0)
                .saturating_mul(1024)
        };
        Memory { resident: field("VmRSS:"), anonymous: field("RssAnon:") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process() {
        let memory = Memory::read();
        assert!(memory.resident > 1024 * 1024 && memory.anonymous > 0, "{memory:?}");
    }
}
