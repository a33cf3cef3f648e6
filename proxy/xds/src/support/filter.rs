//! HTTP filters other than RBAC and the router, settings of routes, and small network filters.

use super::{DESCRIPTORS, INFO, Message, NO_RUNTIME};

const INSIDE_GZIP: &str = "how gzip works inside: the output stays gzip";

/// Their part of the table.
pub(super) const TABLE: &[Message] = &[
    Message {
        name: "envoy.config.route.v3.FilterConfig",
        honoured: "config disabled",
        harmless: &[("is_optional", "an unsupported setting is refused even if it is optional")],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        honoured: "rbac",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        honoured: "stat_prefix status token_bucket filter_enabled filter_enforced request_headers_to_add_when_not_enforced \
                   response_headers_to_add enable_x_ratelimit_headers rate_limited_as_resource_exhausted",
        harmless: &[
            ("stage", DESCRIPTORS),
            ("vh_rate_limits", DESCRIPTORS),
            ("always_consume_default_token_bucket", DESCRIPTORS),
            ("max_dynamic_descriptors", DESCRIPTORS),
        ],
        refused: &[
            ("descriptors", "limits by descriptor are not supported; use token_bucket"),
            ("rate_limits", "limits by descriptor are not supported; use token_bucket"),
            ("local_rate_limit_per_downstream_connection", "a bucket for each connection is not supported"),
            ("local_cluster_rate_limit", "a bucket's share in a cluster is not supported"),
        ],
    },
    Message { name: "envoy.type.v3.HttpStatus", honoured: "code", harmless: &[], refused: &[] },
    Message {
        name: "envoy.type.v3.TokenBucket",
        honoured: "max_tokens tokens_per_fill fill_interval",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.fault.v3.HTTPFault",
        honoured: "delay abort upstream_cluster headers downstream_nodes max_active_faults response_rate_limit",
        harmless: &[
            ("delay_percent_runtime", NO_RUNTIME),
            ("abort_percent_runtime", NO_RUNTIME),
            ("delay_duration_runtime", NO_RUNTIME),
            ("abort_http_status_runtime", NO_RUNTIME),
            ("max_active_faults_runtime", NO_RUNTIME),
            ("response_rate_limit_percent_runtime", NO_RUNTIME),
            ("abort_grpc_status_runtime", NO_RUNTIME),
            ("disable_downstream_cluster_stats", "statistics by x-envoy-downstream-service-cluster are not kept"),
            ("filter_metadata", INFO),
        ],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.fault.v3.FaultAbort",
        honoured: "http_status grpc_status header_abort percentage",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.fault.v3.FaultAbort.HeaderAbort",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.common.fault.v3.FaultDelay",
        honoured: "fixed_delay header_delay percentage",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.common.fault.v3.FaultDelay.HeaderDelay",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.common.fault.v3.FaultRateLimit",
        honoured: "fixed_limit header_limit percentage",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.common.fault.v3.FaultRateLimit.FixedLimit",
        honoured: "limit_kbps",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.common.fault.v3.FaultRateLimit.HeaderLimit",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.compressor.v3.Compressor",
        honoured: "compressor_library response_direction_config choose_first",
        harmless: &[],
        refused: &[
            ("request_direction_config", "requests are not compressed"),
            ("content_length", "use response_direction_config"),
            ("content_type", "use response_direction_config"),
            ("disable_on_etag_header", "use response_direction_config"),
            ("remove_accept_encoding_header", "use response_direction_config"),
            ("runtime_enabled", "use response_direction_config"),
        ],
    },
    Message {
        name: "envoy.extensions.filters.http.compressor.v3.Compressor.ResponseDirectionConfig",
        honoured: "common_config disable_on_etag_header weaken_etag_on_compress remove_accept_encoding_header uncompressible_response_codes",
        harmless: &[],
        refused: &[("status_header_enabled", "responses do not say why they are not compressed")],
    },
    Message {
        name: "envoy.extensions.filters.http.compressor.v3.Compressor.CommonDirectionConfig",
        honoured: "enabled min_content_length content_type",
        harmless: &[],
        refused: &[("content_type_matcher", "is not supported; use content_type")],
    },
    Message {
        name: "envoy.config.core.v3.RuntimeFeatureFlag",
        honoured: "default_value",
        harmless: &[("runtime_key", NO_RUNTIME)],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.compression.gzip.compressor.v3.Gzip",
        honoured: "compression_level",
        harmless: &[
            ("memory_level", INSIDE_GZIP),
            ("compression_strategy", INSIDE_GZIP),
            ("window_bits", INSIDE_GZIP),
            ("chunk_size", INSIDE_GZIP),
        ],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute",
        honoured: "disabled overrides",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.compressor.v3.CompressorOverrides",
        honoured: "response_direction_config",
        harmless: &[],
        refused: &[("compressor_library", "a route cannot choose another library")],
    },
    Message {
        name: "envoy.extensions.filters.http.compressor.v3.ResponseDirectionOverrides",
        honoured: "remove_accept_encoding_header",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.lua.v3.Lua",
        honoured: "default_source_code stat_prefix",
        harmless: &[("clear_route_cache", "the script that is known does not change what routes look at")],
        refused: &[
            ("inline_code", "Lua is not run; see default_source_code"),
            ("source_codes", "Lua is not run; see default_source_code"),
            ("filter_context", "Lua is not run; see default_source_code"),
        ],
    },
    Message { name: "envoy.extensions.filters.http.cors.v3.Cors", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        honoured: "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials filter_enabled \
                   shadow_enabled allow_private_network_access forward_not_matching_preflights",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        honoured: "mutations most_specific_header_mutations_wins",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
        honoured: "mutations",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.http.header_mutation.v3.Mutations",
        honoured: "request_mutations response_mutations",
        harmless: &[],
        refused: &[
            ("query_parameter_mutations", "only headers can be changed"),
            ("request_trailers_mutations", "only headers can be changed"),
            ("response_trailers_mutations", "only headers can be changed"),
        ],
    },
    Message {
        name: "envoy.config.common.mutation_rules.v3.HeaderMutation",
        honoured: "remove append",
        harmless: &[],
        refused: &[("remove_on_match", "is not supported; use remove")],
    },
    Message {
        name: "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        honoured: "xds_matcher extension_config",
        harmless: &[],
        refused: &[("matcher", "is not supported; use xds_matcher")],
    },
    Message {
        name: "envoy.extensions.filters.common.matcher.action.v3.SkipFilter",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        honoured: "stat_prefix token_bucket runtime_enabled",
        harmless: &[],
        refused: &[("share_key", "every filter has a bucket of its own")],
    },
    Message {
        name: "envoy.extensions.filters.network.set_filter_state.v3.Config",
        honoured: "on_new_connection on_downstream_tls_handshake",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue",
        honoured: "object_key factory_key format_string read_only shared_with_upstream skip_if_empty",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.type.matcher.v3.FilterStateMatcher",
        honoured: "key string_match",
        harmless: &[],
        refused: &[("address_match", "is not supported; use string_match")],
    },
];
