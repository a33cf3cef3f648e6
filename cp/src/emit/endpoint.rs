//! Endpoints.

use std::collections::BTreeMap;

use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::Locality;
use shika_proto::envoy::config::endpoint::v3::{
    self as envoy, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use shika_proto::google::protobuf::{Any, UInt32Value};

use super::metadata;
use crate::mesh::Endpoint;

/// Where a destination is: one locality for each zone and priority, those without a zone first. Tags go into the metadata twice, for
/// subsets of the load balancer and for the choice of the transport socket.
pub(super) fn assignment(cluster: &str, endpoints: &[Endpoint]) -> Any {
    let mut zones: BTreeMap<(&str, u32), Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        zones.entry((&endpoint.zone, endpoint.priority)).or_default().push(lb_endpoint(endpoint));
    }
    let localities = zones.into_iter().map(|((zone, priority), lb_endpoints)| LocalityLbEndpoints {
        locality: (!zone.is_empty()).then(|| Locality { zone: zone.to_owned(), ..Locality::default() }),
        lb_endpoints,
        priority,
        ..LocalityLbEndpoints::default()
    });
    pack(&ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: localities.collect(),
        ..ClusterLoadAssignment::default()
    })
}

fn lb_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let Endpoint { zone: _, address: ip, port, tags, labels, weight, priority: _, through_zone_proxy: _ } = endpoint;
    LbEndpoint { load_balancing_weight: Some(UInt32Value { value: *weight }), ..host(ip, *port, tags, labels) }
}

/// An address with the tags and labels of what is there.
pub(super) fn host(
    address: &str,
    port: u32,
    tags: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> LbEndpoint {
    let host = envoy::Endpoint { address: Some(super::address(address, port)), ..envoy::Endpoint::default() };
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(host)),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        metadata: metadata([
            ("envoy.lb", super::tags(tags)),
            ("envoy.transport_socket_match", super::tags(tags)),
            ("io.kuma.labels", super::tags(labels)),
        ]),
        ..LbEndpoint::default()
    }
}
