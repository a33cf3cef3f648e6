#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use shika_data::model::cluster::Fallback;
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
        (
            "{ name: a, outlier_detection: { max_ejection_percent: 101 } }",
            "outlier_detection.max_ejection_percent: value must be less than or equal to 100, not 101",
        ),
        (
            "{ name: a, outlier_detection: { base_ejection_time: 10s, max_ejection_time: 5s } }",
            "outlier_detection.max_ejection_time: outlier detector's max_ejection_time cannot be smaller than base_ejection_time",
        ),
        (
            "{ name: a, lb_subset_config: { subset_selectors: [{ keys: [v], fallback_policy: KEYS_SUBSET }] } }",
            "lb_subset_config.subset_selectors[0].fallback_policy: KEYS_SUBSET is not supported",
        ),
        (
            "{ name: a, transport_socket_matches: [{ name: '' }] }",
            "transport_socket_matches[0].name: value length must be at least 1 characters",
        ),
        (
            "{ name: a, circuit_breakers: { thresholds: [{ retry_budget: { budget_interval: 1s } }] } }",
            "circuit_breakers.thresholds[0].retry_budget.budget_interval: the budget is a share of the requests on their way; leave it out",
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

/// As Kuma's MeshCircuitBreaker, zone egress and legacy zone ingress emit them.
#[test]
fn what_kuma_asks_of_clusters_is_in_the_model() {
    let text = r#"
name: a
type: STATIC
outlier_detection:
  consecutive_5xx: 12
  enforcing_consecutive_gateway_failure: 0
  split_external_local_origin_errors: true
  success_rate_stdev_factor: 1500
  enforcing_failure_percentage: 100
  base_ejection_time: 400s
common_lb_config: { locality_weighted_lb_config: {}, healthy_panic_threshold: { value: 33 } }
lb_subset_config:
  fallback_policy: ANY_ENDPOINT
  subset_selectors: [{ keys: [version, region], fallback_policy: NO_FALLBACK }]
circuit_breakers: { thresholds: [{ retry_budget: { budget_percent: { value: 30 } } }] }
transport_socket_matches:
- { name: plain, match: { kind: plain } }
- name: tls
  match: { kind: tls }
  transport_socket:
    name: tls
    typed_config: { "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: x.test, allow_renegotiation: true }
load_assignment:
  cluster_name: a
  endpoints:
  - locality: { zone: z }
    load_balancing_weight: 7
    lb_endpoints:
    - endpoint: { address: { socket_address: { address: 10.0.0.1, port_value: 1 } } }
      metadata: { filter_metadata: { envoy.lb: { version: v1, weight: 3 }, envoy.transport_socket_match: { kind: tls } } }
    - endpoint: { address: { socket_address: { address: 10.0.0.2, port_value: 1 } } }
      metadata: { filter_metadata: { envoy.transport_socket_match: { kind: plain } } }
    - endpoint: { address: { socket_address: { address: 10.0.0.3, port_value: 1 } } }
"#;
    let mut compiler = compiler();
    let applied = apply::<ProtoCluster>(&mut compiler, Instant::now(), &[text]);
    assert!(applied.rejects.is_empty(), "{:?}", applied.rejects);
    let snapshot = compiler.build().unwrap().snapshot;
    let cluster = snapshot.clusters[0].as_ref().unwrap();

    let outlier = &cluster.outlier.as_ref().unwrap().config;
    assert_eq!((outlier.consecutive_5xx, outlier.consecutive_gateway, outlier.enforce_gateway), (12, 5, 0));
    assert_eq!((outlier.split, outlier.success_rate.factor, outlier.failure_percentage.enforce), (true, 1500, 100));
    assert_eq!(outlier.longest_ejection, outlier.base_ejection, "never shorter than the base");
    assert!(cluster.selection.by_locality && !cluster.selection.fail_on_panic);
    let subsets = cluster.selection.subsets.as_ref().unwrap();
    assert_eq!((subsets.fallback, subsets.selectors[0].1), (Fallback::Any, Some(Fallback::None)));
    assert_eq!(&*subsets.selectors[0].0, &[Box::from("region"), Box::from("version")], "sorted");
    let budget = cluster.limits.retry_budget.unwrap();
    assert_eq!((budget.percent, budget.least), (30.0, 3));

    let endpoints = cluster.endpoints.load();
    let hosts: Vec<_> = endpoints.all().collect();
    assert_eq!(hosts.iter().map(|host| cluster.tls_for(host).is_some()).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(hosts[0].labels.as_ref().unwrap().keys().collect::<Vec<_>>(), ["version", "weight"]);
    assert_eq!(endpoints.priorities[0].localities[0].1, 7);
}

#[test]
fn the_bootstrap_gives_a_source_address_to_clusters_that_name_none() {
    let mut compiler = compiler();
    let text = "
cluster_manager: { upstream_bind_config: { source_address: { address: 127.0.0.6, port_value: 0 } } }
static_resources:
  clusters:
  - { name: a, type: STATIC }
  - { name: b, type: STATIC, upstream_bind_config: { source_address: { address: '::6', port_value: 0 } } }";
    crate::compile::testing::load(&mut compiler, text).unwrap();
    let snapshot = compiler.build().unwrap().snapshot;
    let sources: Vec<_> = snapshot.clusters.iter().flatten().map(|c| c.bind_source.unwrap().to_string()).collect();
    assert_eq!(sources, ["127.0.0.6", "::6"]);
    let refused = crate::compile::testing::load(
        &mut crate::compile::testing::compiler(),
        "cluster_manager: { upstream_bind_config: { source_address: { address: x, port_value: 0 } } }",
    )
    .unwrap_err();
    assert!(
        refused[0].starts_with("cluster_manager.upstream_bind_config.source_address.address: malformed"),
        "{refused:?}"
    );
}
