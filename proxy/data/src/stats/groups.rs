//! The groups of statistics and Envoy's names in them.
//!
//! Source: Envoy documentation, "Statistics" of listeners, HTTP connection manager, TCP proxy, RBAC, TLS, cluster manager, server.

use std::sync::Arc;

use super::{Counter, Def, Gauge, Group, Histogram, Kind, Level, Registry, Scope, placed};

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

mod cluster;
mod filters;
mod process;

pub use cluster::*;
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
