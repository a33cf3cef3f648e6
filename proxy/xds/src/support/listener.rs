//! Listeners, network filters and RBAC.

use super::{ENGINE, INFO, Message, NAME, STATS};

/// Their part of the table.
pub(super) const TABLE: &[Message] = &[
    Message {
        name: "envoy.config.listener.v3.Listener",
        honoured: "name address additional_addresses stat_prefix filter_chains use_original_dst default_filter_chain \
                   per_connection_buffer_limit_bytes deprecated_v1 listener_filters listener_filters_timeout continue_on_listener_filters_timeout \
                   transparent freebind traffic_direction ignore_global_conn_limit enable_reuse_port access_log tcp_backlog_size bind_to_port",
        harmless: &[
            ("metadata", INFO),
            ("stats_matcher", STATS),
            ("tcp_fast_open_queue_length", "saves a round trip for clients that ask for it"),
            (
                "connection_balance_config",
                "connections are spread over workers by the kernel or by the accepting worker",
            ),
            ("max_connections_to_accept_per_socket_event", "how many connections are taken at a time"),
            ("reuse_port", "deprecated: Envoy too reads enable_reuse_port"),
        ],
        refused: &[
            ("udp_listener_config", "of UDP listeners the DNS filter is supported, with its defaults"),
            ("bypass_overload_manager", "the overload manager's actions hold for all listeners"),
            ("api_listener", "API listeners are for Envoy as a library"),
            ("socket_options", "raw socket options are not supported"),
            ("filter_chain_matcher", "is not supported; use filter_chain_match"),
        ],
    },
    Message {
        name: "envoy.config.listener.v3.Listener.DeprecatedV1",
        honoured: "bind_to_port",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.listener.v3.AdditionalAddress", honoured: "address", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.listener.v3.Listener.ConnectionBalanceConfig",
        honoured: "",
        harmless: &[("exact_balance", "connections are spread over workers by the kernel or by the accepting worker")],
        refused: &[],
    },
    Message {
        name: "envoy.config.listener.v3.ListenerFilter",
        honoured: "typed_config filter_disabled",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.config.listener.v3.ListenerFilterChainMatchPredicate",
        honoured: "or_match and_match not_match any_match destination_port_range",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet",
        honoured: "rules",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.listener.v3.FilterChain",
        honoured: "filter_chain_match filters transport_socket transport_socket_connect_timeout name",
        harmless: &[("metadata", INFO)],
        refused: &[("use_proxy_proto", "deprecated; use the listener filter proxy_protocol")],
    },
    Message {
        name: "envoy.config.listener.v3.FilterChainMatch",
        honoured: "destination_port prefix_ranges direct_source_prefix_ranges source_type source_prefix_ranges source_ports server_names \
                   transport_protocol application_protocols",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.listener.v3.Filter",
        honoured: "typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        honoured: "",
        harmless: &[
            ("initial_read_buffer_size", "how much is read at first"),
            ("enable_ja3_fingerprinting", INFO),
            ("enable_ja4_fingerprinting", INFO),
        ],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        honoured: "rules allow_requests_without_proxy_protocol pass_through_tlvs disallowed_versions stat_prefix tlv_location",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.Rule",
        honoured: "tlv_type on_tlv_present",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.KeyValuePair",
        honoured: "metadata_namespace key value_string_encoding",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.config.core.v3.ProxyProtocolPassThroughTLVs",
        honoured: "match_type tlv_type",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        honoured: "stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts max_downstream_connection_duration \
                   access_log_flush_interval flush_access_log_on_connected access_log_options metadata_match hash_policy",
        harmless: &[("backoff_options", "a further try to connect follows at once")],
        refused: &[("tunneling_config", "tunnelling over HTTP is not supported")],
    },
    Message {
        name: "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
        honoured: "stat_prefix server_config case_insensitive",
        harmless: &[],
        refused: &[
            ("client_config", "other names are not forwarded: the sidecar's own DNS server does that"),
            ("access_log", "queries are counted, not logged"),
        ],
    },
    Message {
        name: "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig.ServerContextConfig",
        honoured: "inline_dns_table",
        harmless: &[],
        refused: &[("external_dns_table", "tables in files are not supported; use inline_dns_table")],
    },
    Message {
        name: "envoy.data.dns.v3.DnsTable",
        honoured: "virtual_domains",
        harmless: &[
            ("external_retry_count", "no other server is asked"),
            ("known_suffixes", "deprecated: Envoy too takes them from the names"),
        ],
        refused: &[],
    },
    Message {
        name: "envoy.data.dns.v3.DnsTable.DnsVirtualDomain",
        honoured: "name endpoint answer_ttl",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.data.dns.v3.DnsTable.DnsEndpoint",
        honoured: "address_list",
        harmless: &[],
        refused: &[
            ("cluster_name", "answers from a cluster's endpoints are not supported; give addresses"),
            ("service_list", "SRV records are not supported; give addresses"),
        ],
    },
    Message { name: "envoy.data.dns.v3.DnsTable.AddressList", honoured: "address", harmless: &[], refused: &[] },
    Message {
        name: "envoy.type.v3.HashPolicy",
        honoured: "source_ip",
        harmless: &[],
        refused: &[("filter_state", "no filter state is made that could be hashed")],
    },
    Message { name: "envoy.type.v3.HashPolicy.SourceIp", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster",
        honoured: "clusters",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        honoured: "name weight metadata_match",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions",
        honoured: "access_log_flush_interval flush_access_log_on_connected flush_access_log_on_start",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.filters.network.direct_response.v3.Config",
        honoured: "response",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.extensions.filters.network.echo.v3.Echo", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.extensions.filters.network.rbac.v3.RBAC",
        honoured: "rules matcher shadow_rules shadow_matcher stat_prefix enforcement_type",
        harmless: &[("shadow_rules_stat_prefix", STATS)],
        refused: &[("delay_deny", "is not supported")],
    },
    Message {
        name: "envoy.extensions.filters.http.rbac.v3.RBAC",
        honoured: "rules rules_stat_prefix matcher shadow_rules shadow_matcher",
        harmless: &[("shadow_rules_stat_prefix", STATS), ("track_per_rule_stats", STATS)],
        refused: &[],
    },
    Message {
        name: "envoy.config.rbac.v3.RBAC",
        honoured: "action policies",
        harmless: &[],
        refused: &[("audit_logging_options", "audit logs are not supported")],
    },
    Message {
        name: "envoy.config.rbac.v3.Policy",
        honoured: "permissions principals",
        harmless: &[],
        refused: &[
            ("condition", "CEL conditions are not supported"),
            ("checked_condition", "CEL conditions are not supported"),
        ],
    },
    Message {
        name: "envoy.config.rbac.v3.Permission",
        honoured: "and_rules or_rules any header url_path destination_ip destination_port destination_port_range not_rule requested_server_name",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.rbac.v3.Permission.Set", honoured: "rules", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.rbac.v3.Principal",
        honoured: "and_ids or_ids any authenticated source_ip direct_remote_ip remote_ip header url_path not_id",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.rbac.v3.Principal.Set", honoured: "ids", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.rbac.v3.Principal.Authenticated",
        honoured: "principal_name",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.rbac.v3.Action", honoured: "name action", harmless: &[], refused: &[] },
    Message {
        name: "envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.matching.common_inputs.network.v3.ServerNameInput",
        honoured: "",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "xds.type.matcher.v3.Matcher",
        honoured: "matcher_list on_no_match",
        harmless: &[],
        refused: &[("matcher_tree", "is not supported; use matcher_list")],
    },
    Message {
        name: "xds.type.matcher.v3.Matcher.OnMatch",
        honoured: "action",
        harmless: &[],
        refused: &[("matcher", "nested matchers are not supported")],
    },
    Message { name: "xds.type.matcher.v3.Matcher.MatcherList", honoured: "matchers", harmless: &[], refused: &[] },
    Message {
        name: "xds.type.matcher.v3.Matcher.MatcherList.FieldMatcher",
        honoured: "predicate on_match",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "xds.type.matcher.v3.Matcher.MatcherList.Predicate",
        honoured: "single_predicate or_matcher and_matcher not_matcher",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate",
        honoured: "input value_match",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "xds.type.matcher.v3.Matcher.MatcherList.Predicate.PredicateList",
        honoured: "predicate",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "xds.core.v3.TypedExtensionConfig",
        honoured: "typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "xds.type.matcher.v3.StringMatcher",
        honoured: "exact prefix suffix contains safe_regex ignore_case",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "xds.type.matcher.v3.RegexMatcher",
        honoured: "regex",
        harmless: &[("google_re2", ENGINE)],
        refused: &[],
    },
    Message { name: "xds.type.matcher.v3.RegexMatcher.GoogleRE2", honoured: "", harmless: &[], refused: &[] },
];
