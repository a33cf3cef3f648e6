//! Health checks, as the control loop sees them.

use std::sync::Arc;

use shika_data::{model::cluster::Cluster, upstream::health::HealthChecks};
use tokio::sync::mpsc;
use tracing::error;

/// The checks, once a cluster has asked for some.
#[derive(Default)]
pub struct Health {
    running: Option<(HealthChecks, mpsc::UnboundedReceiver<Arc<Cluster>>)>,
    checked: Vec<Arc<Cluster>>,
}

impl Health {
    /// Checks the endpoints of these clusters, and of no others.
    pub fn check(&mut self, clusters: Vec<Arc<Cluster>>) {
        let same = self.checked.len() == clusters.len()
            && self.checked.iter().zip(&clusters).all(|(old, new)| Arc::ptr_eq(old, new));
        if same {
            return;
        }
        self.checked.clone_from(&clusters);
        if self.running.is_none() {
            match HealthChecks::start() {
                Ok(running) => self.running = Some(running),
                // Endpoints that nobody checks are unhealthy: what depends on them is refused its traffic, and the log says why.
                Err(error) => {
                    return error!("health checks cannot be started: {error}; endpoints that need them stay unhealthy");
                }
            }
        }
        if let Some((checks, _)) = &self.running {
            checks.check(clusters);
        }
    }

    /// A cluster whose endpoints have changed their health, or have been checked for the first time.
    pub async fn next(&mut self) -> Arc<Cluster> {
        if let Some((_, changed)) = &mut self.running
            && let Some(cluster) = changed.recv().await
        {
            return cluster;
        }
        std::future::pending().await
    }
}
