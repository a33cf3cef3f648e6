//! Looks at memory as often as the overload manager is told to, and says what follows from it.
//!
//! Source: Envoy documentation, "Overload manager".

use std::time::Duration;

use shika_data::{
    stats::{OverloadActionStats, Registry, ResourceMonitorStats, Scope},
    worker,
};
use shika_xds::overload::{ActionKind, Heap, Overload};
use tokio::time;

use crate::server_stats::Memory;

/// See the module.
pub struct OverloadWatch {
    ticks: time::Interval,
    heap: Heap,
    monitor: ResourceMonitorStats,
    actions: Vec<(ActionKind, f64, OverloadActionStats)>,
}

impl OverloadWatch {
    /// `None`: there is nothing to look at. Has to run in a runtime.
    pub fn new(overload: Option<&Overload>, registry: &Registry) -> Option<OverloadWatch> {
        let overload = overload?;
        let heap = overload.heap.clone()?;
        let scope = |name: &str| Scope {
            prefix: format!("overload.{name}."),
            stem: format!("overload.{name}."),
            tags: Vec::new(),
        };
        let stats = |kind: ActionKind| OverloadActionStats::new(registry, scope(kind.name()));
        let mut ticks = time::interval(overload.refresh_interval.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        Some(OverloadWatch {
            ticks,
            monitor: ResourceMonitorStats::new(registry, scope(&heap.monitor)),
            actions: heap.actions.iter().map(|action| (action.kind, action.threshold, stats(action.kind))).collect(),
            heap,
        })
    }

    /// Waits for the next look; for ever where there is nothing to look at.
    pub async fn next(watch: &mut Option<OverloadWatch>) {
        match watch {
            Some(watch) => drop(watch.ticks.tick().await),
            None => std::future::pending().await,
        }
    }

    /// Looks.
    pub fn look(&self) {
        let used = Memory::read().anonymous;
        if used == 0 {
            self.monitor.failed_updates().inc();
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a share of memory")]
        let pressure = used as f64 / self.heap.most as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share in per cent, bounded")]
        self.monitor.pressure().set((pressure.min(100.0) * 100.0) as u64);
        let mut stop = false;
        for (kind, threshold, stats) in &self.actions {
            let active = pressure >= *threshold;
            if active != (stats.active().value() == 1) {
                let name = kind.name();
                if active {
                    tracing::warn!(used, most = self.heap.most, "overload action {name} begins");
                } else {
                    tracing::info!(used, most = self.heap.most, "overload action {name} ends");
                }
            }
            stats.active().set(u64::from(active));
            stats.scale_percent().set(if active { 100 } else { 0 });
            stop |= active && *kind == ActionKind::StopRequests;
        }
        worker::set_stop_requests(stop);
    }
}
