//! Clusters, endpoints and TLS contexts.

use super::{INFO, Message, STATS};

/// Their part of the table.
pub(super) const TABLE: &[Message] = &[
    Message {
        name: "envoy.config.cluster.v3.Cluster",
        honoured: "name alt_stat_name type eds_cluster_config connect_timeout per_connection_buffer_limit_bytes lb_policy load_assignment \
                   max_requests_per_connection circuit_breakers common_http_protocol_options http_protocol_options http2_protocol_options \
                   typed_extension_protocol_options dns_refresh_rate respect_dns_ttl dns_lookup_family upstream_bind_config common_lb_config \
                   transport_socket protocol_selection upstream_connection_options least_request_lb_config round_robin_lb_config \
                   ring_hash_lb_config maglev_lb_config health_checks ignore_health_on_host_removal close_connections_on_host_health_failure \
                   outlier_detection lb_subset_config transport_socket_matches",
        harmless: &[
            ("metadata", INFO),
            ("stats_matcher", STATS),
            ("track_timeout_budgets", STATS),
            ("track_cluster_stats", STATS),
            ("lrs_server", "load reports tell the control plane about traffic; nothing here depends on them"),
            (
                "lrs_report_endpoint_metrics",
                "load reports tell the control plane about traffic; nothing here depends on them",
            ),
            ("dns_jitter", "spreads lookups in time"),
            ("dns_failure_refresh_rate", "a failed lookup is repeated at dns_refresh_rate"),
            ("wait_for_warm_on_init", "the start always waits for clusters to be warm"),
            ("cleanup_interval", "original destinations are not remembered as hosts"),
            ("preconnect_policy", "connections made ahead of need save time only"),
        ],
        refused: &[
            ("original_dst_lb_config", "the connection's own destination is the only one supported"),
            ("load_balancing_policy", "is not supported; use lb_policy"),
            ("cluster_type", "custom cluster types are not supported"),
            ("connection_pool_per_downstream_connection", "pools are shared by all downstream connections"),
        ],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.EdsClusterConfig",
        honoured: "eds_config service_name",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.CommonLbConfig",
        honoured: "healthy_panic_threshold locality_weighted_lb_config zone_aware_lb_config consistent_hashing_lb_config \
                   ignore_new_hosts_until_first_hc",
        harmless: &[("update_merge_window", "updates are put in force at once")],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig",
        honoured: "fail_traffic_on_panic",
        harmless: &[
            (
                "routing_enabled",
                "without a local cluster (cluster_manager.local_cluster_name, which is refused) no zone is preferred",
            ),
            ("min_cluster_size", "no zone is preferred"),
        ],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig",
        honoured: "use_hostname_for_hashing",
        harmless: &[],
        refused: &[("hash_balance_factor", "bounded loads are not supported")],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.RingHashLbConfig",
        honoured: "minimum_ring_size hash_function maximum_ring_size",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.MaglevLbConfig",
        honoured: "table_size",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
        honoured: "choice_count active_request_bias",
        harmless: &[],
        refused: &[("slow_start_config", "slow start is not supported")],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig",
        honoured: "",
        harmless: &[],
        refused: &[("slow_start_config", "slow start is not supported")],
    },
    Message {
        name: "envoy.config.cluster.v3.CircuitBreakers",
        honoured: "thresholds",
        harmless: &[],
        refused: &[("per_host_thresholds", "limits per host are not supported")],
    },
    Message {
        name: "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        honoured: "priority max_connections max_pending_requests max_requests max_retries retry_budget track_remaining",
        harmless: &[(
            "max_connection_pools",
            "there is one pool for each endpoint and worker, and max_connections bounds their connections",
        )],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget",
        honoured: "budget_percent min_retry_concurrency",
        harmless: &[],
        refused: &[("budget_interval", "the budget is a share of the requests on their way; leave it out")],
    },
    Message {
        name: "envoy.config.cluster.v3.OutlierDetection",
        honoured: "consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx enforcing_success_rate \
                   success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor consecutive_gateway_failure \
                   enforcing_consecutive_gateway_failure split_external_local_origin_errors consecutive_local_origin_failure \
                   enforcing_consecutive_local_origin_failure enforcing_local_origin_success_rate failure_percentage_threshold \
                   enforcing_failure_percentage enforcing_failure_percentage_local_origin failure_percentage_minimum_hosts \
                   failure_percentage_request_volume max_ejection_time max_ejection_time_jitter always_eject_one_host \
                   successful_active_health_check_uneject_host",
        harmless: &[],
        refused: &[
            ("monitors", "detector extensions are not supported"),
            ("detect_degraded_hosts", "endpoints are ejected or not"),
        ],
    },
    Message {
        name: "envoy.config.core.v3.HealthCheck",
        honoured: "timeout interval initial_jitter interval_jitter interval_jitter_percent unhealthy_threshold healthy_threshold reuse_connection \
                   http_health_check tcp_health_check grpc_health_check no_traffic_interval no_traffic_healthy_interval unhealthy_interval \
                   unhealthy_edge_interval healthy_edge_interval event_log_path event_logger always_log_health_check_failures \
                   always_log_health_check_success",
        harmless: &[("alt_port", "deprecated; Envoy reads health_check_config.port_value of endpoints instead")],
        refused: &[
            ("custom_health_check", "checks by extensions are not supported"),
            ("event_service", "events are written to a file, not sent"),
            ("tls_options", "checks offer what the cluster's TLS context offers"),
            ("transport_socket_match_criteria", "checks use the transport socket of requests"),
        ],
    },
    Message {
        name: "envoy.config.core.v3.HealthCheck.HttpHealthCheck",
        honoured: "host path request_headers_to_add request_headers_to_remove expected_statuses retriable_statuses codec_client_type method",
        harmless: &[("response_buffer_size", "bodies are bounded by 64 KiB and not looked at")],
        refused: &[
            ("send", "checks have no body"),
            ("receive", "bodies are not looked at; use expected_statuses"),
            ("service_name_matcher", "is not supported"),
        ],
    },
    Message {
        name: "envoy.config.core.v3.HealthCheck.TcpHealthCheck",
        honoured: "send receive",
        harmless: &[],
        refused: &[("proxy_protocol_config", "checks do not begin with the PROXY protocol")],
    },
    Message {
        name: "envoy.config.core.v3.HealthCheck.GrpcHealthCheck",
        honoured: "service_name authority initial_metadata",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.core.v3.HealthCheck.Payload", honoured: "text binary", harmless: &[], refused: &[] },
    Message {
        name: "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink",
        honoured: "event_log_path",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.LbSubsetConfig",
        honoured: "fallback_policy default_subset subset_selectors",
        harmless: &[],
        refused: &[
            ("locality_weight_aware", "localities have no weight within subsets"),
            ("scale_locality_weight", "localities have no weight within subsets"),
            ("panic_mode_any", "is not supported"),
            ("list_as_any", "is not supported"),
            ("metadata_fallback_policy", "is not supported"),
        ],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector",
        honoured: "keys fallback_policy",
        harmless: &[],
        refused: &[("single_host_per_subset", "is not supported"), ("fallback_keys_subset", "is not supported")],
    },
    Message {
        name: "envoy.config.cluster.v3.Cluster.TransportSocketMatch",
        honoured: "name match transport_socket",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.cluster.v3.UpstreamConnectionOptions",
        honoured: "tcp_keepalive",
        harmless: &[
            ("set_local_interface_name_on_upstream_connections", INFO),
            ("happy_eyeballs_config", "endpoints have one address each"),
        ],
        refused: &[],
    },
    Message {
        name: "envoy.config.endpoint.v3.ClusterLoadAssignment",
        honoured: "cluster_name endpoints policy",
        harmless: &[],
        refused: &[("named_endpoints", "named endpoints are not supported")],
    },
    Message {
        name: "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy",
        honoured: "overprovisioning_factor",
        harmless: &[("endpoint_stale_after", "endpoints stay until they are replaced")],
        refused: &[
            ("drop_overloads", "dropping of load is not supported"),
            ("weighted_priority_health", "is not supported"),
        ],
    },
    Message {
        name: "envoy.config.endpoint.v3.LocalityLbEndpoints",
        honoured: "locality lb_endpoints priority load_balancer_endpoints load_balancing_weight",
        harmless: &[("metadata", INFO), ("proximity", INFO)],
        refused: &[("leds_cluster_locality_config", "LEDS is not supported")],
    },
    Message {
        name: "envoy.config.endpoint.v3.LocalityLbEndpoints.LbEndpointList",
        honoured: "lb_endpoints",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.endpoint.v3.LbEndpoint",
        honoured: "endpoint health_status load_balancing_weight metadata",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.endpoint.v3.Endpoint",
        honoured: "address hostname health_check_config",
        harmless: &[("observability_name", STATS)],
        refused: &[("additional_addresses", "one address per endpoint is supported")],
    },
    Message {
        name: "envoy.config.endpoint.v3.Endpoint.HealthCheckConfig",
        honoured: "port_value hostname disable_active_health_check address",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        honoured: "common_http_protocol_options explicit_http_config use_downstream_protocol_config auto_config",
        harmless: &[],
        refused: &[("http_filters", "upstream HTTP filters are not supported")],
    },
    Message {
        name: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        honoured: "http_protocol_options http2_protocol_options",
        harmless: &[],
        refused: &[("http3_protocol_options", "HTTP/3 is not supported")],
    },
    Message {
        name: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
        honoured: "http_protocol_options http2_protocol_options",
        harmless: &[],
        refused: &[("http3_protocol_options", "HTTP/3 is not supported")],
    },
    Message {
        name: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
        honoured: "http_protocol_options http2_protocol_options",
        harmless: &[],
        refused: &[("http3_protocol_options", "HTTP/3 is not supported")],
    },
    Message {
        name: "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        honoured: "config transport_socket",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.core.v3.ProxyProtocolConfig",
        honoured: "version pass_through_tlvs added_tlvs",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.core.v3.TlvEntry",
        honoured: "type value",
        harmless: &[],
        refused: &[("format_string", "is not supported; give value")],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        honoured: "common_tls_context sni max_session_keys",
        harmless: &[
            ("enforce_rsa_key_usage", "key usage is always enforced"),
            (
                "allow_renegotiation",
                "a server that asks for renegotiation, which TLS 1.3 does not have, ends the connection",
            ),
        ],
        refused: &[
            ("auto_host_sni", "SNI from the endpoint's host name is not supported; set sni"),
            ("auto_sni_san_validation", "is not supported; give match_typed_subject_alt_names"),
        ],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        honoured: "common_tls_context require_client_certificate require_sni disable_stateless_session_resumption session_timeout",
        harmless: &[
            ("disable_stateful_session_resumption", "only stateless tickets resume sessions"),
            ("full_scan_certs_on_sni_mismatch", "a certificate that fits is always looked for among all"),
            ("prefer_client_ciphers", "all suites that are left are strong"),
            (
                "ocsp_staple_policy",
                "nothing is stapled, and a certificate that must be stapled is refused by clients, not by us",
            ),
        ],
        refused: &[
            ("session_ticket_keys", "shared session ticket keys are not supported"),
            ("session_ticket_keys_sds_secret_config", "shared session ticket keys are not supported"),
        ],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        honoured: "tls_params tls_certificates tls_certificate_sds_secret_configs alpn_protocols validation_context \
                   validation_context_sds_secret_config combined_validation_context",
        harmless: &[],
        refused: &[("key_log", "session keys are never written out")],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
        honoured: "default_validation_context validation_context_sds_secret_config",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        honoured: "name sds_config",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        honoured: "tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        honoured: "certificate_chain private_key",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        honoured: "trusted_ca verify_certificate_spki verify_certificate_hash match_typed_subject_alt_names match_subject_alt_names \
                   allow_expired_certificate trust_chain_verification custom_validator_config",
        harmless: &[("suppress_client_ca_list", "a hint to clients about which certificate to show")],
        refused: &[
            ("crl", "revocation lists are not supported"),
            ("system_root_certs", "is not supported; name the bundle in trusted_ca.filename"),
        ],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher",
        honoured: "san_type matcher",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        honoured: "trust_domains",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain",
        honoured: "name trust_bundle",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.transport_sockets.tls.v3.Secret",
        honoured: "name tls_certificate validation_context",
        harmless: &[],
        refused: &[],
    },
];
