//! Statistics of the process and of what manages its configuration.

use std::sync::Arc;

use super::super::{Counter, Def, Gauge, Group, Histogram, Kind, Level, Registry, Scope, placed};

stat_group!(
    /// `listener_manager.`
    ListenerManagerStats {
        counter listener_added = "listener_added",
        counter listener_modified = "listener_modified",
        counter listener_removed = "listener_removed",
        counter listener_stopped = "listener_stopped",
        counter listener_create_success = "listener_create_success",
        counter listener_create_failure = "listener_create_failure",
        counter listener_in_place_updated = "listener_in_place_updated",
        level total_listeners_warming = "total_listeners_warming",
        level total_listeners_active = "total_listeners_active",
        level total_listeners_draining = "total_listeners_draining",
        level total_filter_chains_draining = "total_filter_chains_draining",
        level workers_started = "workers_started",
    }
);

stat_group!(
    /// `cluster_manager.`
    ClusterManagerStats {
        counter cluster_added = "cluster_added",
        counter cluster_modified = "cluster_modified",
        counter cluster_removed = "cluster_removed",
        counter cluster_updated = "cluster_updated",
        counter cluster_updated_via_merge = "cluster_updated_via_merge",
        counter update_merge_cancelled = "update_merge_cancelled",
        counter update_out_of_merge_window = "update_out_of_merge_window",
        level active_clusters = "active_clusters",
        level warming_clusters = "warming_clusters",
    }
);

stat_group!(
    /// `listener_manager.lds.`, `cluster_manager.cds.`, `http.<prefix>.rds.<name>.`, `sds.<name>.`: one subscription.
    SubscriptionStats {
        counter update_attempt = "update_attempt",
        counter update_success = "update_success",
        counter update_failure = "update_failure",
        counter update_rejected = "update_rejected",
        counter init_fetch_timeout = "init_fetch_timeout",
        level update_time = "update_time",
        level version = "version",
        histogram update_duration = "update_duration",
    }
);

stat_group!(
    /// `cluster_manager.cds.` and `http.<prefix>.rds.<name>.`: when what came was put in force.
    ReloadStats {
        counter config_reload = "config_reload",
        level config_reload_time_ms = "config_reload_time_ms",
    }
);

stat_group!(
    /// `runtime.`
    RuntimeStats {
        level admin_overrides_active = "admin_overrides_active",
        level deprecated_feature_seen_since_process_start = "deprecated_feature_seen_since_process_start",
        counter deprecated_feature_use = "deprecated_feature_use",
        counter load_error = "load_error",
        counter load_success = "load_success",
        level num_keys = "num_keys",
        level num_layers = "num_layers",
        counter override_dir_exists = "override_dir_exists",
        counter override_dir_not_exists = "override_dir_not_exists",
    }
);

stat_group!(
    /// `tls_inspector.`: of all listeners.
    TlsInspectorStats {
        counter alpn_found = "alpn_found",
        counter alpn_not_found = "alpn_not_found",
        counter client_hello_too_large = "client_hello_too_large",
        counter sni_found = "sni_found",
        counter sni_not_found = "sni_not_found",
        counter tls_found = "tls_found",
        counter tls_not_found = "tls_not_found",
    }
);

stat_group!(
    /// `http_inspector.`: of all listeners.
    HttpInspectorStats {
        counter http10_found = "http10_found",
        counter http11_found = "http11_found",
        counter http2_found = "http2_found",
        counter http_not_found = "http_not_found",
        counter read_error = "read_error",
    }
);

stat_group!(
    /// `control_plane.`
    ControlPlaneStats {
        level connected_state = "connected_state",
        level pending_requests = "pending_requests",
        counter rate_limit_enforced = "rate_limit_enforced",
    }
);

stat_group!(
    /// `server.`
    ServerStats {
        level live = "live",
        level state = "state",
        level uptime = "uptime",
        level concurrency = "concurrency",
        level memory_allocated = "memory_allocated",
        level memory_heap_size = "memory_heap_size",
        level memory_physical_size = "memory_physical_size",
        level parent_connections = "parent_connections",
        level total_connections = "total_connections",
        level version = "version",
        level days_until_first_cert_expiring = "days_until_first_cert_expiring",
        level seconds_until_first_ocsp_response_expiring = "seconds_until_first_ocsp_response_expiring",
        level hot_restart_epoch = "hot_restart_epoch",
        level hot_restart_generation = "hot_restart_generation",
        counter static_unknown_fields = "static_unknown_fields",
        counter dynamic_unknown_fields = "dynamic_unknown_fields",
        counter wip_protos = "wip_protos",
        counter envoy_bug_failures = "envoy_bug_failures",
        counter debug_assertion_failures = "debug_assertion_failures",
        counter worker_panic = "worker_panic",
        counter log_lines_dropped = "log_lines_dropped",
        counter spans_dropped = "spans_dropped",
        histogram initialization_time_ms = "initialization_time_ms",
    }
);

stat_group!(
    /// `filesystem.`
    FilesystemStats {
        counter write_buffered = "write_buffered",
        counter write_completed = "write_completed",
        counter write_failed = "write_failed",
        counter flushed_by_timer = "flushed_by_timer",
        counter reopen_failed = "reopen_failed",
        gauge write_total_buffered = "write_total_buffered",
    }
);

stat_group!(
    /// `overload.<name of the action>.`
    OverloadActionStats {
        level active = "active",
        level scale_percent = "scale_percent",
    }
);

stat_group!(
    /// `overload.<name of the resource monitor>.`
    ResourceMonitorStats {
        level pressure = "pressure",
        counter failed_updates = "failed_updates",
        counter skipped_updates = "skipped_updates",
    }
);
