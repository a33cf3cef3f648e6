//! The groups of statistics and Envoy's names in them.
//!
//! Source: Envoy documentation, "Statistics" of listeners, HTTP connection manager, TCP proxy, RBAC, TLS, cluster manager, server.

use std::sync::Arc;

use super::{Counter, Def, Gauge, Group, Histogram, Kind, Level, Origin, Registry, Scope, Tally, placed};

macro_rules! handle {
    (counter) => { Counter<'_> };
    (gauge) => { Gauge<'_> };
    (level) => { Level<'_> };
    (tally) => { Tally<'_> };
    (histogram) => { Histogram<'_> };
    (late_histogram) => { Histogram<'_> };
}

macro_rules! kind {
    (counter) => {
        Kind::Counter
    };
    (tally) => {
        Kind::Counter
    };
    (gauge) => {
        Kind::Gauge
    };
    (level) => {
        Kind::Level
    };
    (histogram) => {
        Kind::Histogram
    };
    (late_histogram) => {
        Kind::Histogram
    };
}

/// What configuration sets is kept apart from what threads count.
macro_rules! apart {
    (level) => {
        true
    };
    (tally) => {
        true
    };
    ($other:ident) => {
        false
    };
}

/// What Envoy makes when it is first counted, instead of with its scope.
macro_rules! late {
    (late_histogram) => {
        true
    };
    ($other:ident) => {
        false
    };
}

macro_rules! make {
    (tally, $group:expr, $at:expr) => {
        Tally($group, $at)
    };
    (counter, $group:expr, $at:expr) => {
        Counter($group, $at)
    };
    (gauge, $group:expr, $at:expr) => {
        Gauge($group, $at)
    };
    (level, $group:expr, $at:expr) => {
        Level($group, $at)
    };
    (histogram, $group:expr, $at:expr) => {
        Histogram($group, $at)
    };
    (late_histogram, $group:expr, $at:expr) => {
        Histogram($group, $at)
    };
}

macro_rules! stat_group {
    ($(#[$doc:meta])* $name:ident { $($kind:ident $stat:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(Arc<Group>);

        impl $name {
            /// Names and kinds, in the order of the cells.
            pub const DEFS: &'static [Def] = &placed([$(($text, kind!($kind), apart!($kind), late!($kind))),*]);

            /// The cells of this scope in `registry`.
            pub fn new(registry: &Registry, scope: Scope) -> Self {
                Self(registry.group(scope, Self::DEFS))
            }

            /// The group behind the handles.
            pub fn group(&self) -> &Arc<Group> {
                &self.0
            }

            stat_group!(@accessors ($name::DEFS) 0; $($kind $stat = $text,)*);
        }
    };
    (@accessors ($defs:expr) $index:expr; $kind:ident $stat:ident = $text:literal, $($rest:tt)*) => {
        #[doc = concat!("`", $text, "`")]
        pub fn $stat(&self) -> handle!($kind) {
            const AT: usize = $defs[$index].at;
            make!($kind, &self.0, AT)
        }
        stat_group!(@accessors ($defs) $index + 1; $($rest)*);
    };
    (@accessors ($defs:expr) $index:expr;) => {};
}

mod filters;
mod process;

pub use filters::*;
pub use process::*;

stat_group!(
    /// `listener.<address or stat_prefix>.`
    ListenerStats {
        counter downstream_cx_total = "downstream_cx_total",
        gauge downstream_cx_active = "downstream_cx_active",
        counter downstream_cx_destroy = "downstream_cx_destroy",
        histogram downstream_cx_length_ms = "downstream_cx_length_ms",
        counter downstream_cx_overflow = "downstream_cx_overflow",
        counter downstream_cx_overload_reject = "downstream_cx_overload_reject",
        counter downstream_cx_transport_socket_connect_timeout = "downstream_cx_transport_socket_connect_timeout",
        counter downstream_global_cx_overflow = "downstream_global_cx_overflow",
        gauge downstream_pre_cx_active = "downstream_pre_cx_active",
        counter downstream_pre_cx_timeout = "downstream_pre_cx_timeout",
        counter downstream_listener_filter_error = "downstream_listener_filter_error",
        counter downstream_listener_filter_remote_close = "downstream_listener_filter_remote_close",
        counter no_filter_chain_match = "no_filter_chain_match",
        counter downstream_cx_redirect_loop = "downstream_cx_redirect_loop",
    }
);

stat_group!(
    /// `listener.<address or stat_prefix>.udp.`
    UdpListenerStats {
        counter downstream_rx_datagram_dropped = "downstream_rx_datagram_dropped",
    }
);

stat_group!(
    /// `listener.<..>.ssl.` and `cluster.<..>.ssl.`
    SslStats {
        counter handshake = "handshake",
        counter connection_error = "connection_error",
        counter session_reused = "session_reused",
        counter no_certificate = "no_certificate",
        counter fail_verify_no_cert = "fail_verify_no_cert",
        counter fail_verify_error = "fail_verify_error",
        counter fail_verify_san = "fail_verify_san",
        counter fail_verify_cert_hash = "fail_verify_cert_hash",
    }
);

stat_group!(
    /// `listener.<..>.ssl.` and `cluster.<..>.ssl.`: what handshakes agreed on. Each exists from its first use on.
    SslChoiceStats {
        counter tls_1_2 = "versions.TLSv1.2",
        counter tls_1_3 = "versions.TLSv1.3",
        counter aes_128_gcm = "ciphers.TLS_AES_128_GCM_SHA256",
        counter aes_256_gcm = "ciphers.TLS_AES_256_GCM_SHA384",
        counter chacha20 = "ciphers.TLS_CHACHA20_POLY1305_SHA256",
        counter ecdsa_aes_128_gcm = "ciphers.ECDHE-ECDSA-AES128-GCM-SHA256",
        counter ecdsa_aes_256_gcm = "ciphers.ECDHE-ECDSA-AES256-GCM-SHA384",
        counter ecdsa_chacha20 = "ciphers.ECDHE-ECDSA-CHACHA20-POLY1305",
        counter rsa_aes_128_gcm = "ciphers.ECDHE-RSA-AES128-GCM-SHA256",
        counter rsa_aes_256_gcm = "ciphers.ECDHE-RSA-AES256-GCM-SHA384",
        counter rsa_chacha20 = "ciphers.ECDHE-RSA-CHACHA20-POLY1305",
        counter x25519_mlkem768 = "curves.X25519MLKEM768",
        counter x25519 = "curves.X25519",
        counter p_256 = "curves.P-256",
        counter p_384 = "curves.P-384",
        counter signed_ecdsa_p_256 = "sigalgs.ecdsa_secp256r1_sha256",
        counter signed_ecdsa_p_384 = "sigalgs.ecdsa_secp384r1_sha384",
        counter signed_ecdsa_p_521 = "sigalgs.ecdsa_secp521r1_sha512",
        counter signed_ed25519 = "sigalgs.ed25519",
        counter signed_pss_sha256 = "sigalgs.rsa_pss_rsae_sha256",
        counter signed_pss_sha384 = "sigalgs.rsa_pss_rsae_sha384",
        counter signed_pss_sha512 = "sigalgs.rsa_pss_rsae_sha512",
        counter signed_pkcs1_sha256 = "sigalgs.rsa_pkcs1_sha256",
        counter signed_pkcs1_sha384 = "sigalgs.rsa_pkcs1_sha384",
        counter signed_pkcs1_sha512 = "sigalgs.rsa_pkcs1_sha512",
    }
);

impl SslStats {
    /// Counts what a handshake agreed on, each by its name: version, cipher, the group of the key exchange, and how the peer signed. A resumed session
    /// counts as the one that it resumes, as in Envoy.
    pub fn agreed_on(&self, version: &str, cipher: &str, curve: Option<&str>, scheme: Option<&str>) {
        let choices = self.0.below_always("", SslChoiceStats::DEFS);
        let said = [("versions.", Some(version)), ("ciphers.", Some(cipher)), ("curves.", curve), ("sigalgs.", scheme)];
        for (kind, value) in said.into_iter().filter_map(|(kind, value)| Some((kind, value?))) {
            let chosen = SslChoiceStats::DEFS.iter().find(|def| def.name.strip_prefix(kind) == Some(value));
            if let Some(chosen) = chosen {
                Counter(&choices, chosen.at).inc();
            }
        }
    }

    /// How often handshakes agreed on this, such as `curves.X25519`.
    #[cfg(test)]
    pub(crate) fn chosen(&self, name: &str) -> u64 {
        let choices = self.0.below_always("", SslChoiceStats::DEFS);
        SslChoiceStats::DEFS.iter().find(|def| def.name == name).map_or(0, |def| Counter(&choices, def.at).total())
    }
}

stat_group!(
    /// `listener.<..>.server_ssl_socket_factory.` and `cluster.<..>.client_ssl_socket_factory.`
    SslFactoryStats {
        counter context_update_by_sds = "ssl_context_update_by_sds",
        counter downstream_secrets_not_ready = "downstream_context_secrets_not_ready",
        counter upstream_secrets_not_ready = "upstream_context_secrets_not_ready",
    }
);

stat_group!(
    /// `listener.<..>.ssl.certificate.<name>.`
    CertificateStats {
        level expiration_unix_time_seconds = "expiration_unix_time_seconds",
    }
);

stat_group!(
    /// `http.<stat_prefix>.`
    HttpStats {
        counter downstream_cx_total = "downstream_cx_total",
        gauge downstream_cx_active = "downstream_cx_active",
        counter downstream_cx_http1_total = "downstream_cx_http1_total",
        gauge downstream_cx_http1_active = "downstream_cx_http1_active",
        counter downstream_cx_http2_total = "downstream_cx_http2_total",
        gauge downstream_cx_http2_active = "downstream_cx_http2_active",
        counter downstream_cx_ssl_total = "downstream_cx_ssl_total",
        gauge downstream_cx_ssl_active = "downstream_cx_ssl_active",
        counter downstream_cx_upgrades_total = "downstream_cx_upgrades_total",
        gauge downstream_cx_upgrades_active = "downstream_cx_upgrades_active",
        counter downstream_cx_destroy = "downstream_cx_destroy",
        counter downstream_cx_destroy_remote = "downstream_cx_destroy_remote",
        counter downstream_cx_destroy_local = "downstream_cx_destroy_local",
        counter downstream_cx_destroy_active_rq = "downstream_cx_destroy_active_rq",
        counter downstream_cx_destroy_local_active_rq = "downstream_cx_destroy_local_active_rq",
        counter downstream_cx_destroy_remote_active_rq = "downstream_cx_destroy_remote_active_rq",
        counter downstream_cx_protocol_error = "downstream_cx_protocol_error",
        counter downstream_cx_idle_timeout = "downstream_cx_idle_timeout",
        counter downstream_cx_max_duration_reached = "downstream_cx_max_duration_reached",
        counter downstream_cx_max_requests_reached = "downstream_cx_max_requests_reached",
        counter downstream_cx_drain_close = "downstream_cx_drain_close",
        counter downstream_cx_delayed_close_timeout = "downstream_cx_delayed_close_timeout",
        histogram downstream_cx_length_ms = "downstream_cx_length_ms",
        counter downstream_cx_rx_bytes_total = "downstream_cx_rx_bytes_total",
        gauge downstream_cx_rx_bytes_buffered = "downstream_cx_rx_bytes_buffered",
        counter downstream_cx_tx_bytes_total = "downstream_cx_tx_bytes_total",
        gauge downstream_cx_tx_bytes_buffered = "downstream_cx_tx_bytes_buffered",
        counter downstream_rq_total = "downstream_rq_total",
        gauge downstream_rq_active = "downstream_rq_active",
        counter downstream_rq_http1_total = "downstream_rq_http1_total",
        counter downstream_rq_http2_total = "downstream_rq_http2_total",
        counter downstream_rq_completed = "downstream_rq_completed",
        counter downstream_rq_1xx = "downstream_rq_1xx",
        counter downstream_rq_2xx = "downstream_rq_2xx",
        counter downstream_rq_3xx = "downstream_rq_3xx",
        counter downstream_rq_4xx = "downstream_rq_4xx",
        counter downstream_rq_5xx = "downstream_rq_5xx",
        histogram downstream_rq_time = "downstream_rq_time",
        counter downstream_rq_idle_timeout = "downstream_rq_idle_timeout",
        counter downstream_rq_timeout = "downstream_rq_timeout",
        counter downstream_rq_header_timeout = "downstream_rq_header_timeout",
        counter downstream_rq_max_duration_reached = "downstream_rq_max_duration_reached",
        counter downstream_rq_overload_close = "downstream_rq_overload_close",
        counter downstream_rq_too_large = "downstream_rq_too_large",
        counter downstream_rq_non_relative_path = "downstream_rq_non_relative_path",
        counter downstream_rq_failed_path_normalization = "downstream_rq_failed_path_normalization",
        counter downstream_rq_redirected_with_normalized_path = "downstream_rq_redirected_with_normalized_path",
        counter downstream_rq_rejected_via_ip_detection = "downstream_rq_rejected_via_ip_detection",
        counter downstream_rq_response_before_rq_complete = "downstream_rq_response_before_rq_complete",
        counter downstream_rq_rx_reset = "downstream_rq_rx_reset",
        counter downstream_rq_tx_reset = "downstream_rq_tx_reset",
        counter downstream_rq_ws_on_non_ws_route = "downstream_rq_ws_on_non_ws_route",
        counter downstream_flow_control_paused_reading_total = "downstream_flow_control_paused_reading_total",
        counter downstream_flow_control_resumed_reading_total = "downstream_flow_control_resumed_reading_total",
        counter no_route = "no_route",
        counter no_cluster = "no_cluster",
        counter tracing_client_enabled = "tracing.client_enabled",
        counter tracing_health_check = "tracing.health_check",
        counter tracing_not_traceable = "tracing.not_traceable",
        counter tracing_random_sampling = "tracing.random_sampling",
        counter tracing_service_forced = "tracing.service_forced",
        counter rq_direct_response = "rq_direct_response",
        counter rq_redirect = "rq_redirect",
        counter rq_reset_after_downstream_response_started = "rq_reset_after_downstream_response_started",
        counter rq_retry_skipped_request_not_complete = "rq_retry_skipped_request_not_complete",
        counter rq_total = "rq_total",
    }
);

stat_group!(
    /// `tcp.<stat_prefix>.`
    TcpStats {
        counter downstream_cx_total = "downstream_cx_total",
        counter downstream_cx_no_route = "downstream_cx_no_route",
        counter downstream_cx_tx_bytes_total = "downstream_cx_tx_bytes_total",
        gauge downstream_cx_tx_bytes_buffered = "downstream_cx_tx_bytes_buffered",
        counter downstream_cx_rx_bytes_total = "downstream_cx_rx_bytes_total",
        gauge downstream_cx_rx_bytes_buffered = "downstream_cx_rx_bytes_buffered",
        counter downstream_flow_control_paused_reading_total = "downstream_flow_control_paused_reading_total",
        counter downstream_flow_control_resumed_reading_total = "downstream_flow_control_resumed_reading_total",
        counter early_data_received_count_total = "early_data_received_count_total",
        counter idle_timeout = "idle_timeout",
        counter max_downstream_connection_duration = "max_downstream_connection_duration",
        counter upstream_flush_total = "upstream_flush_total",
        gauge upstream_flush_active = "upstream_flush_active",
    }
);

stat_group!(
    /// `proxy_proto.<stat_prefix>.`
    ProxyProtocolStats {
        counter not_found_allowed = "not_found_allowed",
        counter not_found_disallowed = "not_found_disallowed",
    }
);

stat_group!(
    /// `proxy_proto.<stat_prefix>.versions.v<version>.`
    ProxyProtocolVersionStats {
        counter found = "found",
        counter disallowed = "disallowed",
        counter error = "error",
    }
);

stat_group!(
    /// Without a prefix: Envoy's name from before there were more.
    ProxyProtocolErrorStats {
        counter downstream_cx_proxy_proto_error = "downstream_cx_proxy_proto_error",
    }
);

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
        self.0.codes_of(origin).cells.record(super::COMMON_CODES.len(), millis);
    }
}
