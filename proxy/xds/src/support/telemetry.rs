//! Filters of access logs, logs for collectors, and tracing.

use super::{Message, NAME, NO_RUNTIME, STATS};

/// Their part of the table.
pub(super) const TABLE: &[Message] = &[
    Message {
        name: "envoy.config.accesslog.v3.RuntimeFilter",
        honoured: "percent_sampled use_independent_randomness",
        harmless: &[("runtime_key", NO_RUNTIME)],
        refused: &[],
    },
    Message {
        name: "envoy.config.accesslog.v3.GrpcStatusFilter",
        honoured: "statuses exclude",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.accesslog.v3.LogTypeFilter", honoured: "types exclude", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.accesslog.v3.MetadataFilter",
        honoured: "matcher match_if_key_not_found",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.type.matcher.v3.MetadataMatcher",
        honoured: "filter path value",
        harmless: &[],
        refused: &[("invert", "is not supported")],
    },
    Message { name: "envoy.type.matcher.v3.MetadataMatcher.PathSegment", honoured: "key", harmless: &[], refused: &[] },
    Message {
        name: "envoy.type.matcher.v3.ValueMatcher",
        honoured: "null_match double_match string_match bool_match present_match",
        harmless: &[],
        refused: &[("list_match", "no metadata is a list"), ("or_match", "is not supported")],
    },
    Message { name: "envoy.type.matcher.v3.ValueMatcher.NullMatch", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.type.matcher.v3.DoubleMatcher",
        honoured: "",
        harmless: &[
            ("range", "metadata is text, which no number matches"),
            ("exact", "metadata is text, which no number matches"),
        ],
        refused: &[],
    },
    Message { name: "envoy.type.v3.DoubleRange", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.accesslog.v3.ExtensionFilter",
        honoured: "typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        honoured: "expression",
        harmless: &[],
        refused: &[("cel_config", "is not supported")],
    },
    Message {
        name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
        honoured: "client_sampling random_sampling overall_sampling max_path_tag_length custom_tags provider spawn_upstream_span",
        harmless: &[],
        refused: &[
            ("verbose", "events within spans are not supported"),
            ("operation", "formats of operations are not supported"),
            ("upstream_operation", "formats of operations are not supported"),
        ],
    },
    Message {
        name: "envoy.config.route.v3.Tracing",
        honoured: "client_sampling random_sampling overall_sampling custom_tags",
        harmless: &[],
        refused: &[
            ("operation", "formats of operations are not supported"),
            ("upstream_operation", "formats of operations are not supported"),
        ],
    },
    Message { name: "envoy.config.route.v3.Decorator", honoured: "operation propagate", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.trace.v3.Tracing.Http",
        honoured: "typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.type.tracing.v3.CustomTag",
        honoured: "tag literal environment request_header value",
        harmless: &[],
        refused: &[("metadata", "tags of metadata are not supported")],
    },
    Message { name: "envoy.type.tracing.v3.CustomTag.Literal", honoured: "value", harmless: &[], refused: &[] },
    Message {
        name: "envoy.type.tracing.v3.CustomTag.Environment",
        honoured: "name default_value",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.type.tracing.v3.CustomTag.Header",
        honoured: "name default_value",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.trace.v3.ZipkinConfig",
        honoured: "collector_cluster collector_endpoint collector_endpoint_version collector_hostname trace_id_128bit shared_span_context \
                   split_spans_for_request",
        harmless: &[],
        refused: &[("trace_context_option", "W3C headers beside B3 are not supported")],
    },
    Message {
        name: "envoy.config.trace.v3.OpenTelemetryConfig",
        honoured: "grpc_service http_service service_name",
        harmless: &[("max_cache_size", "spans that wait have a bound of their own")],
        refused: &[
            ("exporter", "exporters by extensions are not supported; use grpc_service or http_service"),
            ("resource_detectors", "are not supported"),
            ("sampler", "samplers are not supported; the connection manager's sampling is"),
            ("set_telemetry_sdk_resource_attributes", "they are always set"),
        ],
    },
    Message {
        name: "envoy.config.core.v3.HttpService",
        honoured: "http_uri request_headers_to_add",
        harmless: &[],
        refused: &[("formatters", "command operators have no meaning in requests to collectors")],
    },
    // Of an authorisation service the cluster counts: its requests have the path and the host of the request.
    Message { name: "envoy.config.core.v3.HttpUri", honoured: "uri cluster timeout", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.trace.v3.DatadogConfig",
        honoured: "collector_cluster service_name collector_hostname",
        harmless: &[],
        refused: &[("remote_config", "is not supported: the configuration's sampling decides")],
    },
    Message {
        name: "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
        honoured: "common_config http_service grpc_service disable_builtin_labels resource_attributes body attributes log_name \
                   buffer_flush_interval buffer_size_bytes",
        harmless: &[("stat_prefix", STATS)],
        refused: &[
            ("resource_detectors", "are not supported"),
            ("formatters", "are not supported; the operators of access logs are"),
            ("filter_state_objects_to_log", "is not supported; use %FILTER_STATE% in attributes"),
            ("custom_tags", "are not supported; use attributes"),
        ],
    },
    Message {
        name: "envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig",
        honoured: "log_name grpc_service buffer_flush_interval buffer_size_bytes",
        harmless: &[("transport_api_version", "there is one version, v3")],
        refused: &[
            ("filter_state_objects_to_log", "is not supported; use %FILTER_STATE% in attributes"),
            ("grpc_stream_retry_policy", "what cannot be sent at once is dropped and counted"),
            ("custom_tags", "are not supported; use attributes"),
        ],
    },
    Message { name: "opentelemetry.proto.common.v1.KeyValueList", honoured: "values", harmless: &[], refused: &[] },
    Message { name: "opentelemetry.proto.common.v1.KeyValue", honoured: "key value", harmless: &[], refused: &[] },
    Message { name: "opentelemetry.proto.common.v1.ArrayValue", honoured: "values", harmless: &[], refused: &[] },
    Message {
        name: "opentelemetry.proto.common.v1.AnyValue",
        honoured: "string_value bool_value int_value double_value array_value kvlist_value",
        harmless: &[],
        refused: &[
            ("bytes_value", "is not supported; use a text"),
            ("string_value_strindex", "is not supported; use string_value"),
        ],
    },
];
