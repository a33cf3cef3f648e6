//! Clusters.

use shika_proto::any::pack;
use shika_proto::envoy::config::cluster::v3::Cluster;
use shika_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use shika_proto::envoy::config::core::v3 as core;
use shika_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use shika_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use shika_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use shika_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use shika_proto::google::protobuf::Any;

use super::{address, ads, seconds, tls, transparent};
use crate::mesh::Protocol;
use crate::plan::{ClusterPlan, Speaks, WorkloadPlan, stat_name};

/// Key of the HTTP options of a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Kuma's default for connections to the application: how long connecting may take, seconds.
const WORKLOAD_CONNECT: u64 = 10;
/// Kuma's default for other connections that it gives a limit: how long connecting may take, seconds.
pub(super) const CONNECT: u64 = 5;
/// Kuma's default for connections to the application: how long one may be idle, seconds.
pub(super) const WORKLOAD_IDLE: u64 = 7200;

/// The application behind an inbound.
pub(super) fn workload(plan: &WorkloadPlan) -> Any {
    let options = protocol_options(plan.protocol, true);
    pack(&Cluster {
        name: plan.name.clone(),
        alt_stat_name: stat_name(&plan.name),
        connect_timeout: seconds(WORKLOAD_CONNECT),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(static_endpoint(&plan.name, address(&plan.address, plan.port))),
        typed_extension_protocol_options: options.into_iter().collect(),
        upstream_bind_config: plan.source.map(transparent::bind_from),
        ..Cluster::default()
    })
}

/// A destination. Inside the mesh HTTP/2 with prior knowledge is spoken whatever the application speaks (Kuma).
pub(super) fn upstream(plan: &ClusterPlan) -> Any {
    let alt_stat_name = stat_name(&plan.name);
    let options = match plan.speaks {
        Speaks::Mesh => protocol_options(Protocol::Http2, false),
        Speaks::Declared(protocol) => protocol_options(protocol, false),
        Speaks::Bytes => None,
    };
    pack(&Cluster {
        alt_stat_name: if alt_stat_name == plan.name { String::new() } else { alt_stat_name },
        name: plan.name.clone(),
        connect_timeout: if plan.speaks == Speaks::Bytes { seconds(CONNECT) } else { None },
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), ..EdsClusterConfig::default() }),
        transport_socket: plan.tls.as_ref().map(tls::upstream),
        typed_extension_protocol_options: options.into_iter().collect(),
        ..Cluster::default()
    })
}

/// HTTP options for a protocol, as a map entry; none for bytes.
pub(super) fn protocol_options(protocol: Protocol, idle_timeout: bool) -> Option<(String, Any)> {
    let options = match protocol {
        Protocol::Tcp => return None,
        Protocol::Http => ProtocolConfig::HttpProtocolOptions(Default::default()),
        Protocol::Http2 | Protocol::Grpc => ProtocolConfig::Http2ProtocolOptions(Default::default()),
    };
    Some(http_options(options, idle_timeout))
}

/// Assignment of one address to a static cluster.
pub(super) fn static_endpoint(cluster: &str, address: core::Address) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address: Some(address), ..Endpoint::default() };
    let endpoint =
        LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() }],
        ..ClusterLoadAssignment::default()
    }
}

/// HTTP options of a cluster, as a map entry.
fn http_options(protocol: ProtocolConfig, idle_timeout: bool) -> (String, Any) {
    let options = HttpProtocolOptions {
        common_http_protocol_options: idle_timeout
            .then(|| core::HttpProtocolOptions { idle_timeout: seconds(WORKLOAD_IDLE), ..Default::default() }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })),
        ..HttpProtocolOptions::default()
    };
    (HTTP_OPTIONS.to_owned(), pack(&options))
}
