//! `filters.network.tcp_proxy.v3.TcpProxy`

use std::{sync::Arc, time::Duration};

use shika_data::{
    model::{
        labels::Labels,
        listener::TcpProxy,
        route::{ClusterChoice, WeightedCluster},
    },
    stats::{Scope, TcpStats},
};
use shika_proto::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy as ProtoTcpProxy,
    tcp_proxy::{self, weighted_cluster},
};

use super::super::{Compiled, Context, Fault, Within, access_log, bound, hash, labels, non_empty, positive, wrapped};

/// The filter.
pub(super) fn tcp_proxy(context: &mut Context<'_>, from: &ProtoTcpProxy) -> Compiled<TcpProxy> {
    let stat_prefix = non_empty(&from.stat_prefix, "stat_prefix")?;
    let asked = labels::namespace(from.metadata_match.as_ref(), labels::LB);
    let clusters = match &from.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            let (id, name) = context.clusters.intern(non_empty(name, "cluster")?);
            ClusterChoice::One { id, name }
        }
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
            weighted_clusters(context, asked.as_deref(), &weighted.clusters).within("weighted_clusters")?
        }
        None => return Err(Fault::new("cluster_specifier", "value is required")),
    };
    let max_connect_attempts = match wrapped(&from.max_connect_attempts) {
        Some(0) => return Err(Fault::new("max_connect_attempts", "value must be greater than or equal to 1")),
        Some(attempts) => attempts,
        None => 1,
    };
    let (mut log_on_connected, mut on_start, mut interval) =
        (from.flush_access_log_on_connected, false, from.access_log_flush_interval.is_some());
    if let Some(options) = &from.access_log_options {
        log_on_connected |= options.flush_access_log_on_connected;
        on_start = options.flush_access_log_on_start;
        interval |= options.access_log_flush_interval.is_some();
    }
    if on_start || interval {
        return Err(Fault::new("access_log_options", "log lines at the start and at intervals are not supported"));
    }
    let scope = Scope {
        prefix: format!("tcp.{stat_prefix}."),
        stem: "tcp.".into(),
        tags: vec![("envoy.tcp_prefix", stat_prefix.to_owned())],
    };
    Ok(TcpProxy {
        stats: TcpStats::new(context.registry, scope),
        clusters,
        labels: asked,
        hash_source_ip: hash::source_ip(&from.hash_policy)?,
        idle_timeout: bound(&from.idle_timeout, "idle_timeout", Some(Duration::from_secs(3_600)))?,
        max_duration: positive(&from.max_downstream_connection_duration, "max_downstream_connection_duration")?,
        max_connect_attempts,
        access_log: access_log::access_logs(context, &from.access_log, "access_log")?,
        log_on_connected,
    })
}

fn weighted_clusters(
    context: &mut Context<'_>,
    asked: Option<&Labels>,
    from: &[weighted_cluster::ClusterWeight],
) -> Compiled<ClusterChoice> {
    if from.is_empty() {
        return Err(Fault::new("clusters", "value must contain at least 1 item(s)"));
    }
    let mut total: u32 = 0;
    let mut clusters = Vec::with_capacity(from.len());
    for (index, one) in from.iter().enumerate() {
        let name = non_empty(&one.name, "name").at("clusters", index)?;
        if one.weight == 0 {
            return Err(Fault::new(format!("clusters[{index}].weight"), "value must be greater than or equal to 1"));
        }
        total = total
            .checked_add(one.weight)
            .ok_or_else(|| Fault::new("clusters", "The sum of weights of all weighted clusters exceeds 4294967295"))?;
        let (id, name) = context.clusters.intern(name);
        clusters.push(WeightedCluster {
            id,
            name,
            weight: one.weight,
            labels: match (asked, labels::namespace(one.metadata_match.as_ref(), labels::LB)) {
                (Some(asked), Some(own)) => Some(Arc::new(asked.clone().with(&own))),
                (Some(asked), None) => Some(Arc::new(asked.clone())),
                (None, own) => own,
            },
            host_rewrite: None,
            request_headers: Default::default(),
            response_headers: Default::default(),
            filters: Default::default(),
        });
    }
    Ok(ClusterChoice::Weighted { clusters, total })
}
