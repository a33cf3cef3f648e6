//! The choice of an endpoint.

use std::{net::SocketAddr, sync::Arc};

use super::lb;
use crate::{
    model::cluster::{Cluster, Discovery, Endpoint, EndpointAddress, Locality},
    stats::EndpointStats,
    worker,
};

/// What a choice may depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// The restored original destination of the downstream connection; `None` when it was not redirected.
    pub original_destination: Option<SocketAddr>,
    /// Endpoints that were tried before; another is taken where there is one.
    pub tried: &'a [Arc<Endpoint>],
}

/// There is no endpoint to choose: Envoy's `UH`, `no_healthy_upstream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no healthy upstream")]
pub struct NoHost;

/// How often a choice is repeated to avoid an endpoint that was tried before. Source: Envoy `host_selection_retry_max_attempts`.
const RESELECTIONS: usize = 5;

/// Chooses an endpoint by the cluster's policy, with this worker's own balancing state. Counts `upstream_cx_none_healthy` and `lb_healthy_panic`.
pub fn choose(cluster: &Cluster, context: &PickContext<'_>) -> Result<Arc<Endpoint>, NoHost> {
    if cluster.discovery == Discovery::OriginalDst {
        return original_destination(cluster, context);
    }
    let endpoint = worker::with_balances(|balances| {
        let balance = balances.of(cluster);
        let mut choice = balance.choose(cluster, &mut worker::random);
        for _ in 0..RESELECTIONS {
            match &choice {
                Some(endpoint) if context.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint)) => {
                    choice = balance.choose(cluster, &mut worker::random);
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
                health: lb::HEALTHY.into(),
                stats: EndpointStats::default(),
            })
        })
    }))
}

fn none_healthy(cluster: &Cluster) -> NoHost {
    cluster.stats.upstream_cx_none_healthy().inc();
    NoHost
}
