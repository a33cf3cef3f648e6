//! The groups of filters.

use std::sync::Arc;

use super::super::{Counter, Def, Gauge, Group, Histogram, Kind, Registry, Scope, placed};
use super::ClusterStats;

stat_group!(
    /// `<stat_prefix>rbac.`
    RbacStats {
        counter allowed = "allowed",
        counter denied = "denied",
        counter shadow_allowed = "shadow_allowed",
        counter shadow_denied = "shadow_denied",
    }
);

stat_group!(
    /// `<stat_prefix>rbac.`, of rules whose action is LOG: each exists from its first use on.
    RbacLogStats {
        counter logged = "logged",
        counter not_logged = "not_logged",
    }
);

impl RbacStats {
    /// What rules said whose action is LOG.
    pub fn log(&self) -> RbacLogStats {
        RbacLogStats(self.group().below_always("", RbacLogStats::DEFS))
    }
}

stat_group!(
    /// `<stat_prefix>.http_local_rate_limit.`
    HttpLocalRateLimitStats {
        counter enabled = "enabled",
        counter enforced = "enforced",
        counter rate_limited = "rate_limited",
        counter ok = "ok",
        counter shadow_mode = "shadow_mode",
    }
);

stat_group!(
    /// `local_rate_limit.<stat_prefix>.`
    LocalRateLimitStats {
        counter rate_limited = "rate_limited",
    }
);

stat_group!(
    /// `http.<stat_prefix>.fault.`
    FaultStats {
        counter aborts_injected = "aborts_injected",
        counter delays_injected = "delays_injected",
        counter faults_overflow = "faults_overflow",
        counter response_rl_injected = "response_rl_injected",
        gauge active_faults = "active_faults",
    }
);

stat_group!(
    /// `http.<stat_prefix>.compressor.<library name>.gzip.`
    CompressorStats {
        counter compressed = "response.compressed",
        counter not_compressed = "response.not_compressed",
        counter total_uncompressed_bytes = "response.total_uncompressed_bytes",
        counter total_compressed_bytes = "response.total_compressed_bytes",
        counter content_length_too_small = "response.content_length_too_small",
        counter request_compressed = "request.compressed",
        counter request_not_compressed = "request.not_compressed",
        counter request_total_uncompressed_bytes = "request.total_uncompressed_bytes",
        counter request_total_compressed_bytes = "request.total_compressed_bytes",
        counter request_content_length_too_small = "request.content_length_too_small",
        counter no_accept_header = "no_accept_header",
        counter header_identity = "header_identity",
        counter header_compressor_used = "header_compressor_used",
        counter header_compressor_overshadowed = "header_compressor_overshadowed",
        counter header_wildcard = "header_wildcard",
        counter header_not_valid = "header_not_valid",
        counter not_compressed_etag = "not_compressed_etag",
    }
);

stat_group!(
    /// `http.<stat_prefix>.cors.`
    CorsStats {
        counter origin_valid = "origin_valid",
        counter origin_invalid = "origin_invalid",
    }
);

stat_group!(
    /// `http.<stat_prefix>.lua.<stat_prefix of the filter>`
    LuaStats {
        counter errors = "errors",
        counter executions = "executions",
    }
);

stat_group!(
    /// `cluster.<name>.grpc.` and `cluster.<name>.grpc.<service>.<method>.`: each exists from its first use on.
    GrpcStats {
        counter total = "total",
        counter success = "success",
        counter failure = "failure",
        counter request_message_count = "request_message_count",
        counter response_message_count = "response_message_count",
        histogram upstream_rq_time = "upstream_rq_time",
        counter status_0 = "0",
        counter status_1 = "1",
        counter status_2 = "2",
        counter status_3 = "3",
        counter status_4 = "4",
        counter status_5 = "5",
        counter status_6 = "6",
        counter status_7 = "7",
        counter status_8 = "8",
        counter status_9 = "9",
        counter status_10 = "10",
        counter status_11 = "11",
        counter status_12 = "12",
        counter status_13 = "13",
        counter status_14 = "14",
        counter status_15 = "15",
        counter status_16 = "16",
    }
);

impl GrpcStats {
    /// Counts the end of a call by its `grpc-status`. One that gRPC does not define has no counter of its own: an upstream could make up any number of
    /// them.
    pub fn count_status(&self, status: &str) {
        let code = Self::DEFS.iter().find(|def| def.name == status && status.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(code) = code {
            Counter(&self.0, code.at).inc();
        }
        if status == "0" { self.success() } else { self.failure() }.inc();
        self.total().inc();
    }
}

stat_group!(
    /// `cluster.<name>.ratelimit.`: each exists from its first use on.
    RateLimitStats {
        counter ok = "ok",
        counter error = "error",
        counter over_limit = "over_limit",
        counter failure_mode_allowed = "failure_mode_allowed",
    }
);

impl ClusterStats {
    /// What rate limit services said of requests to it; `prefix` is empty or ends with a dot.
    pub fn rate_limit(&self, prefix: &str) -> RateLimitStats {
        RateLimitStats(self.group().below_always(&format!("ratelimit.{prefix}"), RateLimitStats::DEFS))
    }

    /// The gRPC counters below it: of `service` and `method`, or of neither. They live as long as the cluster's own. Beyond [`Group::MOST_BELOW`] methods
    /// further ones are counted without their names: clients choose the names.
    pub fn grpc(&self, service: &str, method: &str) -> GrpcStats {
        let prefix = match (service, method) {
            ("", "") => "grpc.".to_owned(),
            (service, method) => format!("grpc.{service}.{method}."),
        };
        let below = self.group().below(&prefix, GrpcStats::DEFS);
        GrpcStats(below.unwrap_or_else(|| self.group().below_always("grpc.", GrpcStats::DEFS)))
    }
}

stat_group!(
    /// `http.<stat_prefix>.ext_authz.`
    ExtAuthzStats {
        counter ok = "ok",
        counter denied = "denied",
        counter error = "error",
        counter disabled = "disabled",
        counter failure_mode_allowed = "failure_mode_allowed",
        counter invalid = "invalid",
        counter ignored_dynamic_metadata = "ignored_dynamic_metadata",
        counter filter_state_name_collision = "filter_state_name_collision",
        counter omitted_response_headers = "omitted_response_headers",
        counter request_header_limits_reached = "request_header_limits_reached",
        counter response_header_limits_reached = "response_header_limits_reached",
        counter shadow_denied = "shadow_denied",
        counter shadow_error = "shadow_error",
    }
);

stat_group!(
    /// `cluster.<name>.ext_authz.`: each exists from its first use on.
    ClusterAuthzStats {
        counter ok = "ok",
        counter denied = "denied",
        counter error = "error",
        counter disabled = "disabled",
        counter failure_mode_allowed = "failure_mode_allowed",
    }
);

impl ClusterStats {
    /// What authorization services said of requests to it.
    pub fn ext_authz(&self) -> ClusterAuthzStats {
        ClusterAuthzStats(self.group().below_always("ext_authz.", ClusterAuthzStats::DEFS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_names_up_to_a_bound() {
        let registry = Registry::new(1);
        let scope = Scope { prefix: "cluster.c.".into(), stem: "cluster.".into(), tags: Vec::new() };
        let cluster = ClusterStats::new(&registry, scope);
        for method in 0..Group::MOST_BELOW + 5 {
            cluster.grpc("Echo", &method.to_string()).count_status("0");
        }
        cluster.grpc("Echo", "0").count_status("5");
        assert_eq!(cluster.grpc("Echo", "0").total().total(), 2, "one that is known stays");
        assert_eq!(cluster.grpc("", "").success().total(), 5, "the others are counted together");
        let prefix = "cluster.c.grpc.Echo.";
        let named = registry.groups().iter().filter(|group| group.scope.prefix.starts_with(prefix)).count();
        assert_eq!(named, Group::MOST_BELOW);
    }

    #[test]
    fn a_call_is_counted_by_its_status() {
        let registry = Registry::new(1);
        let scope = Scope { prefix: "cluster.c.".into(), stem: "cluster.".into(), tags: Vec::new() };
        let stats = ClusterStats::new(&registry, scope).grpc("a.Echo", "Say");
        for status in ["0", "16", "17", "", "total"] {
            stats.count_status(status);
        }
        let counts = [stats.total(), stats.success(), stats.failure(), stats.status_0(), stats.status_16()];
        assert_eq!(counts.map(|counter| counter.total()), [5, 1, 4, 1, 1], "others have no counter of their own");
    }
}

stat_group!(
    /// `dns_filter.<stat_prefix>.`
    DnsFilterStats {
        counter a_record_queries = "a_record_queries",
        counter aaaa_record_queries = "aaaa_record_queries",
        counter cluster_a_record_answers = "cluster_a_record_answers",
        counter cluster_aaaa_record_answers = "cluster_aaaa_record_answers",
        counter cluster_srv_record_answers = "cluster_srv_record_answers",
        counter cluster_unsupported_answers = "cluster_unsupported_answers",
        counter downstream_rx_errors = "downstream_rx_errors",
        counter downstream_rx_invalid_queries = "downstream_rx_invalid_queries",
        counter downstream_rx_queries = "downstream_rx_queries",
        counter downstream_tx_responses = "downstream_tx_responses",
        counter external_a_record_answers = "external_a_record_answers",
        counter external_a_record_queries = "external_a_record_queries",
        counter external_aaaa_record_answers = "external_aaaa_record_answers",
        counter external_aaaa_record_queries = "external_aaaa_record_queries",
        counter external_unsupported_answers = "external_unsupported_answers",
        counter external_unsupported_queries = "external_unsupported_queries",
        counter externally_resolved_queries = "externally_resolved_queries",
        counter known_domain_queries = "known_domain_queries",
        counter local_a_record_answers = "local_a_record_answers",
        counter local_aaaa_record_answers = "local_aaaa_record_answers",
        counter local_srv_record_answers = "local_srv_record_answers",
        counter local_unsupported_answers = "local_unsupported_answers",
        counter queries_with_additional_rrs = "queries_with_additional_rrs",
        counter queries_with_ans_or_authority_rrs = "queries_with_ans_or_authority_rrs",
        counter query_buffer_underflow = "query_buffer_underflow",
        counter query_parsing_failure = "query_parsing_failure",
        counter record_name_overflow = "record_name_overflow",
        counter srv_record_queries = "srv_record_queries",
        counter unanswered_queries = "unanswered_queries",
        counter unsupported_queries = "unsupported_queries",
        histogram downstream_rx_bytes = "downstream_rx_bytes",
        histogram downstream_rx_query_latency = "downstream_rx_query_latency",
        histogram downstream_tx_bytes = "downstream_tx_bytes",
    }
);
