//! The choice of an endpoint.

use std::{net::SocketAddr, sync::Arc};

use super::lb::{self, Wanted};
use crate::{
    model::{
        cluster::{Cluster, Discovery, Endpoint, EndpointAddress, Locality},
        labels::Labels,
    },
    stats::EndpointStats,
    worker,
};

/// What a choice may depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// The restored original destination of the downstream connection; `None` when it was not redirected.
    pub original_destination: Option<SocketAddr>,
    /// What the route asks of endpoints (`metadata_match`); heeded by clusters with subsets.
    pub labels: Option<&'a Arc<Labels>>,
    /// For clusters that hash; `None` is a random one.
    pub hash: Option<u64>,
    /// For tries after the first.
    pub avoid: Avoid<'a>,
}

/// What a further try avoids, as far as there is something else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Avoid<'a> {
    /// These endpoints.
    pub hosts: &'a [Arc<Endpoint>],
    /// Endpoints with all labels of one of these.
    pub labels: &'a [Arc<Labels>],
    /// The priorities of these endpoints.
    pub priorities_of: &'a [Arc<Endpoint>],
    /// How often a choice is repeated for the sake of hosts and labels.
    pub reselections: u32,
}

impl Avoid<'_> {
    fn avoids(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.hosts.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
            || endpoint.labels.as_ref().is_some_and(|have| self.labels.iter().any(|labels| have.holds(labels)))
    }
}

/// There is no endpoint to choose: Envoy's `UH`, `no_healthy_upstream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no healthy upstream")]
pub struct NoHost;

/// Chooses an endpoint by the cluster's policy, with this worker's own balancing state. Counts `upstream_cx_none_healthy` and `lb_healthy_panic`.
pub fn choose(cluster: &Cluster, context: &PickContext<'_>) -> Result<Arc<Endpoint>, NoHost> {
    if cluster.discovery == Discovery::OriginalDst {
        return original_destination(cluster, context);
    }
    let mut wanted = Wanted {
        labels: context.labels,
        hash: context.hash,
        attempt: 0,
        other_priorities_than: context.avoid.priorities_of,
    };
    if wanted.hash.is_none() && cluster.hashing.is_some() {
        // Reselection goes on from one place.
        wanted.hash = Some(worker::random());
    }
    let endpoint = worker::with_balances(|balances| {
        let balance = balances.of(cluster);
        let mut choice = balance.choose(cluster, &wanted, &mut worker::random);
        for _ in 0..context.avoid.reselections {
            match &choice {
                Some(endpoint) if context.avoid.avoids(endpoint) => {
                    wanted.attempt += 1;
                    choice = balance.choose(cluster, &wanted, &mut worker::random);
                }
                _ => break,
            }
        }
        choice
    });
    endpoint.ok_or_else(|| none_healthy(cluster))
}

/// The endpoint that an original-destination cluster makes of a connection. A connection that the kernel did not redirect has none: connecting to its own
/// local address would come back here, for ever.
///
/// Source: Envoy `OriginalDstCluster::LoadBalancer::chooseHost`.
fn original_destination(cluster: &Cluster, context: &PickContext<'_>) -> Result<Arc<Endpoint>, NoHost> {
    let Some(address) = context.original_destination else { return Err(none_healthy(cluster)) };
    Ok(worker::with_balances(|balances| {
        balances.of(cluster).original(address, || {
            Arc::new(Endpoint {
                address: EndpointAddress::Ip(address),
                hostname: None,
                weight: 1,
                locality: Arc::new(Locality::default()),
                labels: None,
                tls_labels: None,
                health: lb::HEALTHY.into(),
                checked: Default::default(),
                failures: Default::default(),
                check: None,
                monitor: Default::default(),
                stats: EndpointStats::default(),
            })
        })
    }))
}

fn none_healthy(cluster: &Cluster) -> NoHost {
    cluster.stats.upstream_cx_none_healthy().inc();
    NoHost
}
