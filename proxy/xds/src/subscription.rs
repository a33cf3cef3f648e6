//! Statistics of subscriptions: what was asked for, and what became of what came.
//!
//! Source: Envoy documentation, "xDS subscription statistics". As there an attempt is counted for the first request and for each answer to what came.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shika_data::stats::{ClusterStats, EdsStats, Registry, ReloadStats, Scope, SubscriptionStats};

use crate::store::content_hash;

/// Counts a response, or a resource of a subscription of its own.
pub(crate) fn arrived(stats: &SubscriptionStats, version: &str, accepted: bool, took: Duration) {
    stats.update_attempt().inc();
    if accepted {
        stats.update_success().inc();
        stats.version().set(content_hash(version.as_bytes()));
        stats.update_time().set(now());
        stats.update_duration().record(took.as_millis() as u64);
    } else {
        stats.update_rejected().inc();
    }
}

/// The same for the endpoints of a cluster, which has these statistics among its own.
pub(crate) fn endpoints(cluster: &ClusterStats, eds: &EdsStats, version: &str, accepted: bool, took: Duration) {
    cluster.update_attempt().inc();
    if accepted {
        cluster.update_success().inc();
        cluster.version().set(content_hash(version.as_bytes()));
        eds.update_time().set(now());
        eds.update_duration().record(took.as_millis() as u64);
    } else {
        eds.update_rejected().inc();
    }
}

/// `http.<prefix>.rds.<name>.`
#[derive(Debug)]
pub(crate) struct RouteStats {
    name: String,
    stats: SubscriptionStats,
    reloads: ReloadStats,
}

impl RouteStats {
    /// Of the route table `name` in the connection manager with this scope.
    pub fn new(registry: &Registry, manager: &Scope, name: &str) -> RouteStats {
        let scope = || Scope {
            prefix: format!("{}rds.{}.", manager.prefix, name.replace(':', "_")),
            stem: format!("{}rds.", manager.stem),
            tags: [&manager.tags[..], &[("envoy.rds_route_config", name.to_owned())]].concat(),
        };
        let stats = SubscriptionStats::new(registry, scope());
        begun(&stats);
        RouteStats { name: name.to_owned(), stats, reloads: ReloadStats::new(registry, scope()) }
    }

    /// Counts what became of a route table, if it is this one.
    pub fn arrived(&self, name: &str, version: &str, accepted: bool, took: Duration) {
        if self.name == name {
            arrived(&self.stats, version, accepted, took);
            if accepted {
                self.reloads.config_reload().inc();
                self.reloads.config_reload_time_ms().set(now());
            }
        }
    }
}

/// `sds.<name>.`
pub(crate) fn secret(registry: &Registry, name: &str) -> SubscriptionStats {
    let scope = Scope {
        prefix: format!("sds.{}.", name.replace(':', "_")),
        stem: "sds.".into(),
        tags: vec![("envoy.xds_resource_name", name.to_owned())],
    };
    let stats = SubscriptionStats::new(registry, scope);
    begun(&stats);
    stats
}

/// Counts the first request; statistics that live on have counted it.
fn begun(stats: &SubscriptionStats) {
    if stats.update_attempt().total() == 0 {
        stats.update_attempt().inc();
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}
