//! Closing what pools need no longer.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{HostPool, Pools};
use crate::{model::cluster::Discovery, snapshot::Snapshot};

impl Pools {
    /// Closes what configuration replaced, and what an endpoint had that has failed since. Called by the worker after each publication, and now and then
    /// for endpoints, which change without one.
    pub fn retain(&mut self, snapshot: &Snapshot) {
        self.hosts.retain(|_, host| {
            if !host.is_listed(snapshot) {
                host.retire();
            }
            let failures = host.endpoint.failures.load(Relaxed);
            if std::mem::replace(&mut host.failures, failures) != failures {
                // What is under way on a shared connection holds it until it is over.
                host.idle.clear();
                host.shared.clear();
            }
            !host.retired || host.live > 0
        });
        let hosts = &self.hosts;
        self.own.retain(|_, keys| {
            keys.retain(|key| hosts.contains_key(key));
            !keys.is_empty()
        });
    }

    /// Closes connections that nobody used for the cluster's idle timeout, or that are too old. Called by the worker about once a second.
    pub fn sweep(&mut self, now: Instant) {
        for host in self.hosts.values_mut() {
            let idle = host.cluster.idle_timeout.unwrap_or(Duration::MAX);
            let longest = host.cluster.max_connection.unwrap_or(Duration::MAX);
            let stats = &host.cluster.stats;
            host.idle.retain(|connection| {
                let unused = now.saturating_duration_since(connection.since) >= idle;
                if unused {
                    stats.upstream_cx_idle_timeout().inc();
                }
                let old = !unused && now.saturating_duration_since(connection.opened) >= longest;
                if old {
                    stats.upstream_cx_max_duration_reached().inc();
                }
                !unused && !old
            });
            host.shared.retain(|connection| {
                let unused = connection.active == 0 && now.saturating_duration_since(connection.last_used) >= idle;
                if unused {
                    stats.upstream_cx_idle_timeout().inc();
                }
                let old = !unused && now.saturating_duration_since(connection.opened) >= longest;
                if old {
                    stats.upstream_cx_max_duration_reached().inc();
                }
                !unused && !old
            });
        }
    }
}

impl HostPool {
    fn is_listed(&self, snapshot: &Snapshot) -> bool {
        let current = snapshot.cluster(self.cluster.id).is_some_and(|cluster| Arc::ptr_eq(cluster, &self.cluster));
        let endpoints = self.cluster.endpoints.load();
        let mut all = endpoints.priorities.iter().flat_map(|priority| &priority.endpoints);
        current
            && (self.cluster.discovery == Discovery::OriginalDst
                || all.any(|endpoint| Arc::ptr_eq(endpoint, &self.endpoint)))
    }
}
