//! The HTTP connection manager, routes and access logs.

use super::{INFO, Message, NAME, NO_RUNTIME, STATS};

/// Their part of the table.
pub(super) const TABLE: &[Message] = &[
    Message {
        name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        honoured: "tracing codec_type stat_prefix rds route_config http_filters common_http_protocol_options http_protocol_options http2_protocol_options \
                   server_name server_header_transformation max_request_headers_kb stream_idle_timeout request_timeout request_headers_timeout \
                   drain_timeout access_log use_remote_address xff_num_trusted_hops internal_address_config skip_xff_append via \
                   generate_request_id preserve_external_request_id always_set_request_id_in_response forward_client_cert_details \
                   set_current_client_cert_details upgrade_configs normalize_path merge_slashes path_with_escaped_slashes_action \
                   strip_matching_host_port strip_any_host_port strip_trailing_host_dot add_proxy_protocol_connection_state",
        harmless: &[
            ("delayed_close_timeout", "how long a closed connection lingers for its peer to read"),
            ("drain_timeout_jitter", "spreads the ends of connections in time"),
            ("append_local_overload", "there is no overload manager"),
        ],
        refused: &[
            ("local_reply_config", "rewriting of local replies is not supported"),
            ("scoped_routes", "is not supported; use rds or route_config"),
            ("http3_protocol_options", "HTTP/3 is not supported"),
        ],
    },
    Message {
        name: "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
        honoured: "config_source route_config_name",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig",
        honoured: "unix_sockets cidr_ranges",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails",
        honoured: "subject cert chain dns uri",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        honoured: "upgrade_type enabled",
        harmless: &[],
        refused: &[("filters", "filters of their own for upgrades are not supported")],
    },
    Message {
        name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        honoured: "name typed_config disabled",
        harmless: &[("is_optional", "an unsupported filter is refused even if it is optional")],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.router.v3.Router",
        honoured: "suppress_envoy_headers start_child_span strict_check_headers",
        harmless: &[("dynamic_stats", STATS), ("suppress_grpc_request_failure_code_stats", STATS)],
        refused: &[("upstream_log", "logs of tries are not supported; use access_log")],
    },
    Message {
        name: "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        honoured: "individual_method_stats_allowlist stats_for_all_methods enable_upstream_stats replace_dots_in_grpc_service_name",
        harmless: &[("emit_filter_state", "access logs that ask for this filter state are refused")],
        refused: &[],
    },
    Message { name: "envoy.config.core.v3.GrpcMethodList", honoured: "services", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.core.v3.GrpcMethodList.Service",
        honoured: "name method_names",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteConfiguration",
        honoured: "name virtual_hosts response_headers_to_add response_headers_to_remove request_headers_to_add request_headers_to_remove \
                   most_specific_header_mutations_wins validate_clusters max_direct_response_body_size_bytes ignore_port_in_host_matching \
                   request_mirror_policies typed_per_filter_config",
        harmless: &[("metadata", INFO)],
        refused: &[("vhds", "VHDS is not supported")],
    },
    Message {
        name: "envoy.config.route.v3.VirtualHost",
        honoured: "name domains routes require_tls retry_policy request_mirror_policies per_request_buffer_limit_bytes request_body_buffer_limit request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove typed_per_filter_config rate_limits",
        harmless: &[("virtual_clusters", STATS), ("metadata", INFO)],
        refused: &[
            ("matcher", "is not supported; use routes"),
            ("cors", "use the CORS filter and typed_per_filter_config"),
        ],
    },
    Message {
        name: "envoy.config.route.v3.VirtualCluster",
        honoured: "",
        harmless: &[("headers", STATS), ("name", STATS)],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.Route",
        honoured: "name match route redirect direct_response non_forwarding_action request_headers_to_add request_headers_to_remove \
                   response_headers_to_add response_headers_to_remove per_request_buffer_limit_bytes request_body_buffer_limit \
                   typed_per_filter_config decorator tracing",
        harmless: &[
            (
                "metadata",
                "only route_kri of the namespace envoy.filters.http.lua is read: nothing else that is supported looks at it",
            ),
            ("stat_prefix", STATS),
        ],
        refused: &[("filter_action", "is not supported")],
    },
    Message { name: "envoy.config.route.v3.NonForwardingAction", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.route.v3.RouteMatch",
        honoured: "prefix path safe_regex connect_matcher path_separated_prefix case_sensitive runtime_fraction headers query_parameters grpc filter_state",
        harmless: &[],
        refused: &[
            ("tls_context", "matching on the client certificate is not supported"),
            ("dynamic_metadata", "nothing sets dynamic metadata"),
        ],
    },
    Message {
        name: "envoy.config.route.v3.RouteMatch.GrpcRouteMatchOptions",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.route.v3.RouteMatch.ConnectMatcher", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.route.v3.HeaderMatcher",
        honoured: "name exact_match safe_regex_match range_match present_match prefix_match suffix_match contains_match string_match invert_match \
                   treat_missing_header_as_empty",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.QueryParameterMatcher",
        honoured: "name string_match present_match",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction",
        honoured: "cluster cluster_header weighted_clusters cluster_not_found_response_code prefix_rewrite regex_rewrite host_rewrite_literal \
                   auto_host_rewrite host_rewrite_header host_rewrite_path_regex append_x_forwarded_host timeout idle_timeout priority \
                   upgrade_configs max_stream_duration retry_policy metadata_match request_mirror_policies hash_policy rate_limits include_vh_rate_limits",
        harmless: &[("early_data_policy", "early data is not accepted")],
        refused: &[
            ("hedge_policy", "hedging is not supported"),
            ("internal_redirect_policy", "internal redirects are not supported"),
            ("cors", "use the CORS filter and typed_per_filter_config"),
        ],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.HashPolicy",
        honoured: "header cookie connection_properties query_parameter terminal",
        harmless: &[],
        refused: &[("filter_state", "no filter state is made that could be hashed")],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.HashPolicy.Header",
        honoured: "header_name regex_rewrite",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.HashPolicy.Cookie",
        honoured: "name ttl path attributes",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute",
        honoured: "name value",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties",
        honoured: "source_ip",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter",
        honoured: "name",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.RequestMirrorPolicy",
        honoured: "cluster runtime_fraction disable_shadow_host_suffix_append",
        harmless: &[("trace_sampled", "copies carry the trace of their request, and have no span of their own")],
        refused: &[
            ("cluster_header", "is not supported; name the cluster"),
            ("request_headers_mutations", "copies have the headers of the request"),
            ("host_rewrite_literal", "is not supported"),
        ],
    },
    Message {
        name: "envoy.config.route.v3.RetryPolicy",
        honoured: "retry_on num_retries per_try_timeout retry_priority retry_host_predicate host_selection_retry_max_attempts \
                   retriable_status_codes retry_back_off rate_limited_retry_back_off retriable_headers retriable_request_headers",
        harmless: &[],
        refused: &[
            ("per_try_idle_timeout", "is not supported; use per_try_timeout"),
            ("retry_options_predicates", "is not supported"),
            ("refresh_cluster_on_retry", "a request keeps its cluster"),
        ],
    },
    Message {
        name: "envoy.config.route.v3.RetryPolicy.RetryBackOff",
        honoured: "base_interval max_interval",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff",
        honoured: "reset_headers max_interval",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RetryPolicy.ResetHeader",
        honoured: "name format",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RetryPolicy.RetryHostPredicate",
        honoured: "typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RetryPolicy.RetryPriority",
        honoured: "typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig",
        honoured: "metadata_match",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        honoured: "update_frequency",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.UpgradeConfig",
        honoured: "upgrade_type enabled",
        harmless: &[],
        refused: &[("connect_config", "CONNECT is passed on, not terminated")],
    },
    Message {
        name: "envoy.config.route.v3.RouteAction.MaxStreamDuration",
        honoured: "max_stream_duration",
        harmless: &[],
        refused: &[("grpc_timeout_header_max", "deadlines from grpc-timeout are not supported")],
    },
    Message {
        name: "envoy.config.route.v3.WeightedCluster",
        honoured: "clusters total_weight",
        harmless: &[("runtime_key_prefix", NO_RUNTIME)],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.WeightedCluster.ClusterWeight",
        honoured: "name weight metadata_match host_rewrite_literal request_headers_to_add request_headers_to_remove \
                   response_headers_to_add response_headers_to_remove typed_per_filter_config",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.RedirectAction",
        honoured: "host_redirect port_redirect path_redirect prefix_rewrite regex_rewrite response_code https_redirect scheme_redirect strip_query",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.route.v3.DirectResponseAction",
        honoured: "status body body_format",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.accesslog.v3.AccessLog",
        honoured: "filter typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.config.accesslog.v3.AccessLogFilter",
        honoured: "status_code_filter duration_filter not_health_check_filter traceable_filter and_filter or_filter header_filter response_flag_filter \
                   runtime_filter grpc_status_filter log_type_filter metadata_filter extension_filter",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.accesslog.v3.StatusCodeFilter", honoured: "comparison", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.DurationFilter", honoured: "comparison", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.ComparisonFilter", honoured: "op value", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.NotHealthCheckFilter", honoured: "", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.TraceableFilter", honoured: "", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.AndFilter", honoured: "filters", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.OrFilter", honoured: "filters", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.HeaderFilter", honoured: "header", harmless: &[], refused: &[] },
    Message { name: "envoy.config.accesslog.v3.ResponseFlagFilter", honoured: "flags", harmless: &[], refused: &[] },
    Message {
        name: "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        honoured: "path format json_format typed_json_format log_format",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        honoured: "log_format",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
        honoured: "log_format",
        harmless: &[],
        refused: &[],
    },
];
