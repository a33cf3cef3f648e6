//! Statistics of clusters.
//!
//! Source: Envoy documentation, "Statistics" of the cluster manager, outlier detection, health checking, load balancers.

use std::sync::Arc;

use super::super::{
    COMMON_CODES, Counter, Def, Gauge, Group, Histogram, Kind, Level, Origin, Registry, Scope, Tally, placed,
};

stat_group!(
    /// `cluster.<..>.upstream.proxyprotocol.`
    UpstreamProxyProtocolStats {
        counter v2_tlvs_exceed_max_length = "v2_tlvs_exceed_max_length",
    }
);

stat_group!(
    /// `cluster.<name or alt_stat_name>.`
    ClusterStats {
        counter upstream_cx_total = "upstream_cx_total",
        gauge upstream_cx_active = "upstream_cx_active",
        counter upstream_cx_http1_total = "upstream_cx_http1_total",
        counter upstream_cx_http2_total = "upstream_cx_http2_total",
        counter upstream_cx_connect_fail = "upstream_cx_connect_fail",
        counter upstream_cx_connect_timeout = "upstream_cx_connect_timeout",
        counter upstream_cx_connect_attempts_exceeded = "upstream_cx_connect_attempts_exceeded",
        counter upstream_cx_idle_timeout = "upstream_cx_idle_timeout",
        counter upstream_cx_max_duration_reached = "upstream_cx_max_duration_reached",
        counter upstream_cx_overflow = "upstream_cx_overflow",
        counter upstream_cx_pool_overflow = "upstream_cx_pool_overflow",
        counter upstream_cx_protocol_error = "upstream_cx_protocol_error",
        counter upstream_cx_max_requests = "upstream_cx_max_requests",
        counter upstream_cx_none_healthy = "upstream_cx_none_healthy",
        counter upstream_cx_close_notify = "upstream_cx_close_notify",
        counter upstream_cx_destroy = "upstream_cx_destroy",
        counter upstream_cx_destroy_local = "upstream_cx_destroy_local",
        counter upstream_cx_destroy_remote = "upstream_cx_destroy_remote",
        counter upstream_cx_destroy_with_active_rq = "upstream_cx_destroy_with_active_rq",
        counter upstream_cx_destroy_local_with_active_rq = "upstream_cx_destroy_local_with_active_rq",
        counter upstream_cx_destroy_remote_with_active_rq = "upstream_cx_destroy_remote_with_active_rq",
        histogram upstream_cx_connect_ms = "upstream_cx_connect_ms",
        histogram upstream_cx_length_ms = "upstream_cx_length_ms",
        counter upstream_cx_rx_bytes_total = "upstream_cx_rx_bytes_total",
        gauge upstream_cx_rx_bytes_buffered = "upstream_cx_rx_bytes_buffered",
        counter upstream_cx_tx_bytes_total = "upstream_cx_tx_bytes_total",
        gauge upstream_cx_tx_bytes_buffered = "upstream_cx_tx_bytes_buffered",
        counter upstream_rq_total = "upstream_rq_total",
        gauge upstream_rq_active = "upstream_rq_active",
        counter upstream_rq_pending_total = "upstream_rq_pending_total",
        gauge upstream_rq_pending_active = "upstream_rq_pending_active",
        counter upstream_rq_pending_overflow = "upstream_rq_pending_overflow",
        counter upstream_rq_pending_failure_eject = "upstream_rq_pending_failure_eject",
        counter upstream_rq_cancelled = "upstream_rq_cancelled",
        counter upstream_rq_maintenance_mode = "upstream_rq_maintenance_mode",
        counter upstream_rq_timeout = "upstream_rq_timeout",
        counter upstream_rq_max_duration_reached = "upstream_rq_max_duration_reached",
        counter upstream_rq_per_try_timeout = "upstream_rq_per_try_timeout",
        counter upstream_rq_rx_reset = "upstream_rq_rx_reset",
        counter upstream_rq_tx_reset = "upstream_rq_tx_reset",
        counter upstream_rq_retry = "upstream_rq_retry",
        counter upstream_rq_retry_success = "upstream_rq_retry_success",
        counter upstream_rq_retry_overflow = "upstream_rq_retry_overflow",
        counter upstream_rq_retry_limit_exceeded = "upstream_rq_retry_limit_exceeded",
        counter upstream_rq_retry_backoff_exponential = "upstream_rq_retry_backoff_exponential",
        counter upstream_rq_retry_backoff_ratelimited = "upstream_rq_retry_backoff_ratelimited",
        counter retry_or_shadow_abandoned = "retry_or_shadow_abandoned",
        late_histogram upstream_rq_time = "upstream_rq_time",
        histogram upstream_rq_per_cx = "upstream_rq_per_cx",
        counter upstream_flow_control_paused_reading_total = "upstream_flow_control_paused_reading_total",
        counter upstream_flow_control_resumed_reading_total = "upstream_flow_control_resumed_reading_total",
        counter upstream_flow_control_backed_up_total = "upstream_flow_control_backed_up_total",
        counter upstream_flow_control_drained_total = "upstream_flow_control_drained_total",
        counter upstream_internal_redirect_failed_total = "upstream_internal_redirect_failed_total",
        counter upstream_internal_redirect_succeeded_total = "upstream_internal_redirect_succeeded_total",
        counter bind_errors = "bind_errors",
        counter assignment_stale = "assignment_stale",
        counter assignment_timeout_received = "assignment_timeout_received",
        counter lb_healthy_panic = "lb_healthy_panic",
        tally membership_change = "membership_change",
        level membership_total = "membership_total",
        level membership_healthy = "membership_healthy",
        level membership_degraded = "membership_degraded",
        level membership_excluded = "membership_excluded",
        level max_host_weight = "max_host_weight",
        level version = "version",
        counter update_attempt = "update_attempt",
        counter update_success = "update_success",
        counter update_failure = "update_failure",
        counter update_empty = "update_empty",
        counter update_no_rebuild = "update_no_rebuild",
        level default_cx_open = "circuit_breakers.default.cx_open",
        level default_cx_pool_open = "circuit_breakers.default.cx_pool_open",
        level default_rq_open = "circuit_breakers.default.rq_open",
        level default_rq_pending_open = "circuit_breakers.default.rq_pending_open",
        level default_rq_retry_open = "circuit_breakers.default.rq_retry_open",
        level high_cx_open = "circuit_breakers.high.cx_open",
        level high_rq_open = "circuit_breakers.high.rq_open",
        level high_rq_pending_open = "circuit_breakers.high.rq_pending_open",
        level high_rq_retry_open = "circuit_breakers.high.rq_retry_open",
    }
);

stat_group!(
    /// `cluster.<name or alt_stat_name>.circuit_breakers.<priority>.`, where `track_remaining` asks for it.
    RemainingStats {
        level cx = "remaining_cx",
        level rq = "remaining_rq",
        level pending = "remaining_pending",
        level retries = "remaining_retries",
    }
);

stat_group!(
    /// `cluster.<name or alt_stat_name>.`, of a cluster whose endpoints come by EDS.
    EdsStats {
        counter update_rejected = "update_rejected",
        counter init_fetch_timeout = "init_fetch_timeout",
        level update_time = "update_time",
        histogram update_duration = "update_duration",
    }
);

stat_group!(
    /// `cluster.<name or alt_stat_name>.outlier_detection.`
    OutlierStats {
        level ejections_active = "ejections_active",
        counter ejections_overflow = "ejections_overflow",
        counter ejections_total = "ejections_total",
        counter ejections_enforced_total = "ejections_enforced_total",
        counter ejections_detected_consecutive_5xx = "ejections_detected_consecutive_5xx",
        counter ejections_enforced_consecutive_5xx = "ejections_enforced_consecutive_5xx",
        counter ejections_detected_consecutive_gateway_failure = "ejections_detected_consecutive_gateway_failure",
        counter ejections_enforced_consecutive_gateway_failure = "ejections_enforced_consecutive_gateway_failure",
        counter ejections_detected_consecutive_local_origin_failure = "ejections_detected_consecutive_local_origin_failure",
        counter ejections_enforced_consecutive_local_origin_failure = "ejections_enforced_consecutive_local_origin_failure",
        counter ejections_detected_success_rate = "ejections_detected_success_rate",
        counter ejections_enforced_success_rate = "ejections_enforced_success_rate",
        counter ejections_detected_local_origin_success_rate = "ejections_detected_local_origin_success_rate",
        counter ejections_enforced_local_origin_success_rate = "ejections_enforced_local_origin_success_rate",
        counter ejections_detected_failure_percentage = "ejections_detected_failure_percentage",
        counter ejections_enforced_failure_percentage = "ejections_enforced_failure_percentage",
        counter ejections_detected_local_origin_failure_percentage = "ejections_detected_local_origin_failure_percentage",
        counter ejections_enforced_local_origin_failure_percentage = "ejections_enforced_local_origin_failure_percentage",
    }
);

stat_group!(
    /// `cluster.<name or alt_stat_name>.health_check.`
    HealthCheckStats {
        counter attempt = "attempt",
        counter failure = "failure",
        counter network_failure = "network_failure",
        counter passive_failure = "passive_failure",
        counter success = "success",
        counter verify_cluster = "verify_cluster",
        level healthy = "healthy",
        level degraded = "degraded",
    }
);

stat_group!(
    /// `cluster.<name or alt_stat_name>.ring_hash_lb.`
    RingHashStats {
        level size = "size",
        level min_hashes_per_host = "min_hashes_per_host",
        level max_hashes_per_host = "max_hashes_per_host",
    }
);

stat_group!(
    /// `cluster.<name or alt_stat_name>.maglev_lb.`
    MaglevStats {
        level min_entries_per_host = "min_entries_per_host",
        level max_entries_per_host = "max_entries_per_host",
    }
);

impl ClusterStats {
    /// Counts a response: `upstream_rq_<code>`, its class, `upstream_rq_completed`, and the `internal.`/`external.` copies, all derived on read.
    pub fn count_code(&self, origin: Origin, code: u16) {
        self.0.count_code(origin, code);
    }

    /// Records how long a response took, in milliseconds: `upstream_rq_time`, and its `internal.` or `external.` copy.
    pub fn record_time(&self, origin: Origin, millis: u64) {
        self.upstream_rq_time().record(millis);
        self.0.codes_of(origin).cells.record(COMMON_CODES.len(), millis);
    }
}
