#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use shika_proto::envoy::config::{cluster::v3::Cluster as ProtoCluster, endpoint::v3::ClusterLoadAssignment};

use crate::compile::testing::{apply, compiler};

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    for (text, expected) in [
        ("{ name: a, connect_timeout: 0s }", "connect_timeout: value must be greater than 0s"),
        ("{ name: a, type: EDS }", "eds_cluster_config: value is required"),
        (
            "{ name: a, lb_policy: CLUSTER_PROVIDED }",
            "lb_policy: CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST",
        ),
        ("{ name: a, type: ORIGINAL_DST }", "lb_policy: ORIGINAL_DST clusters need CLUSTER_PROVIDED"),
        (
            "{ name: a, lb_policy: LEAST_REQUEST, least_request_lb_config: { choice_count: 1 } }",
            "least_request_lb_config.choice_count: value must be greater than or equal to 2",
        ),
        (
            "{ name: a, load_assignment: { cluster_name: a, endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: x.test, port_value: 1 } } } }] }] } }",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: malformed IP address: x.test. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'",
        ),
        (
            "{ name: a, http2_protocol_options: { initial_stream_window_size: 1 } }",
            "http2_protocol_options.initial_stream_window_size: value must be inside range [65535, 2147483647], not 1",
        ),
    ] {
        let applied = apply::<ProtoCluster>(&mut compiler(), Instant::now(), &[text]);
        let got: Vec<_> =
            applied.rejects.iter().map(|reject| format!("{}: {}", reject.field_path, reject.reason)).collect();
        assert_eq!(got, [expected], "{text}");
    }
}

#[test]
fn an_assignment_with_a_port_out_of_range_is_refused() {
    let (mut compiler, now) = (compiler(), Instant::now());
    apply::<ProtoCluster>(
        &mut compiler,
        now,
        &["{ name: a, type: EDS, eds_cluster_config: { eds_config: { ads: {} } } }"],
    );
    let text = "{ cluster_name: a, endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 10.0.0.1, port_value: 70000 } } } }] }] }";
    let applied = apply::<ClusterLoadAssignment>(&mut compiler, now, &[text]);
    assert_eq!(
        applied.rejects[0].to_string(),
        "ClusterLoadAssignment \"a\": endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: value must be less than or equal to 65535, not 70000"
    );
}
