//! Type URLs, spelt only here.

use prost::Name;

/// What stands in front of the full name in every type URL that Envoy and Shika write.
pub const PREFIX: &str = "type.googleapis.com/";

/// The type URL of a message type.
pub fn of<M: Name>() -> String {
    format!("{PREFIX}{}", M::full_name())
}

/// The full name of the message in a type URL: what follows its last slash; `None` without a slash or a name.
pub fn message_name(type_url: &str) -> Option<&str> {
    type_url.rsplit_once('/').map(|(_, name)| name).filter(|name| !name.is_empty())
}

// Resources.

/// `envoy.config.listener.v3.Listener`
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `envoy.config.route.v3.RouteConfiguration`
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// `envoy.config.route.v3.ScopedRouteConfiguration`
pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
/// `envoy.config.route.v3.VirtualHost`
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
/// `envoy.config.cluster.v3.Cluster`
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// `envoy.config.endpoint.v3.ClusterLoadAssignment`
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// `envoy.extensions.transport_sockets.tls.v3.Secret`
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// `envoy.service.runtime.v3.Runtime`
pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
/// `envoy.config.core.v3.TypedExtensionConfig`
pub const EXTENSION_CONFIG: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// `envoy.config.bootstrap.v3.Bootstrap`
pub const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";
/// `envoy.service.health.v3.HealthCheckSpecifier`
pub const HEALTH_CHECK_SPECIFIER: &str = "type.googleapis.com/envoy.service.health.v3.HealthCheckSpecifier";

// Listener filters.

/// `envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector`
pub const TLS_INSPECTOR: &str = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
/// `envoy.extensions.filters.listener.http_inspector.v3.HttpInspector`
pub const HTTP_INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
/// `envoy.extensions.filters.listener.original_dst.v3.OriginalDst`
pub const ORIGINAL_DST: &str = "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
/// `envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol`
pub const PROXY_PROTOCOL: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";

// Network filters.

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`
pub const HTTP_CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`
pub const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
/// `envoy.extensions.filters.network.rbac.v3.RBAC`
pub const NETWORK_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";

// HTTP filters.

/// `envoy.extensions.filters.http.router.v3.Router`
pub const HTTP_ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
/// `envoy.extensions.filters.http.rbac.v3.RBAC`
pub const HTTP_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
/// `envoy.extensions.filters.http.rbac.v3.RBACPerRoute`
pub const HTTP_RBAC_PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
/// `envoy.extensions.filters.http.fault.v3.HTTPFault`
pub const HTTP_FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
/// `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`
pub const HTTP_LOCAL_RATE_LIMIT: &str =
    "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
/// `envoy.extensions.filters.http.cors.v3.Cors`
pub const HTTP_CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
/// `envoy.extensions.filters.http.compressor.v3.Compressor`
pub const HTTP_COMPRESSOR: &str = "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor";
/// `envoy.extensions.filters.http.lua.v3.Lua`
pub const HTTP_LUA: &str = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
/// `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`
pub const HTTP_GRPC_STATS: &str = "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";

// UDP listener filters.

/// `envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig`
pub const DNS_FILTER: &str = "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig";

// Transport sockets and their parts.

/// `envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext`
pub const DOWNSTREAM_TLS_CONTEXT: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
/// `envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext`
pub const UPSTREAM_TLS_CONTEXT: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
/// `envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer`
pub const RAW_BUFFER: &str = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
/// `envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig`
pub const SPIFFE_CERT_VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

// Upstream options.

/// `envoy.extensions.upstreams.http.v3.HttpProtocolOptions`
pub const HTTP_PROTOCOL_OPTIONS: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

// Access logs.

/// `envoy.extensions.access_loggers.file.v3.FileAccessLog`
pub const FILE_ACCESS_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
/// `envoy.extensions.access_loggers.stream.v3.StdoutAccessLog`
pub const STDOUT_ACCESS_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
/// `envoy.extensions.access_loggers.stream.v3.StderrAccessLog`
pub const STDERR_ACCESS_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog";
/// `envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig`
pub const HTTP_GRPC_ACCESS_LOG: &str =
    "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
/// `envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig`
pub const TCP_GRPC_ACCESS_LOG: &str =
    "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig";
/// `envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig`
pub const OPENTELEMETRY_ACCESS_LOG: &str =
    "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";

// Generic configuration of extensions that have no message of their own.

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_the_names_of_the_types() {
        let cases = [
            (LISTENER, of::<crate::envoy::config::listener::v3::Listener>()),
            (ROUTE, of::<crate::envoy::config::route::v3::RouteConfiguration>()),
            (SCOPED_ROUTE, of::<crate::envoy::config::route::v3::ScopedRouteConfiguration>()),
            (VIRTUAL_HOST, of::<crate::envoy::config::route::v3::VirtualHost>()),
            (CLUSTER, of::<crate::envoy::config::cluster::v3::Cluster>()),
            (ENDPOINT, of::<crate::envoy::config::endpoint::v3::ClusterLoadAssignment>()),
            (SECRET, of::<crate::envoy::extensions::transport_sockets::tls::v3::Secret>()),
            (RUNTIME, of::<crate::envoy::service::runtime::v3::Runtime>()),
            (EXTENSION_CONFIG, of::<crate::envoy::config::core::v3::TypedExtensionConfig>()),
            (BOOTSTRAP, of::<crate::envoy::config::bootstrap::v3::Bootstrap>()),
            (HEALTH_CHECK_SPECIFIER, of::<crate::envoy::service::health::v3::HealthCheckSpecifier>()),
            (TLS_INSPECTOR, of::<crate::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector>()),
            (HTTP_INSPECTOR, of::<crate::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector>()),
            (ORIGINAL_DST, of::<crate::envoy::extensions::filters::listener::original_dst::v3::OriginalDst>()),
            (PROXY_PROTOCOL, of::<crate::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol>()),
            (
                HTTP_CONNECTION_MANAGER,
                of::<crate::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager>(),
            ),
            (TCP_PROXY, of::<crate::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy>()),
            (NETWORK_RBAC, of::<crate::envoy::extensions::filters::network::rbac::v3::Rbac>()),
            (HTTP_ROUTER, of::<crate::envoy::extensions::filters::http::router::v3::Router>()),
            (HTTP_RBAC, of::<crate::envoy::extensions::filters::http::rbac::v3::Rbac>()),
            (HTTP_RBAC_PER_ROUTE, of::<crate::envoy::extensions::filters::http::rbac::v3::RbacPerRoute>()),
            (HTTP_FAULT, of::<crate::envoy::extensions::filters::http::fault::v3::HttpFault>()),
            (
                HTTP_LOCAL_RATE_LIMIT,
                of::<crate::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit>(),
            ),
            (HTTP_CORS, of::<crate::envoy::extensions::filters::http::cors::v3::Cors>()),
            (HTTP_COMPRESSOR, of::<crate::envoy::extensions::filters::http::compressor::v3::Compressor>()),
            (HTTP_LUA, of::<crate::envoy::extensions::filters::http::lua::v3::Lua>()),
            (HTTP_GRPC_STATS, of::<crate::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig>()),
            (DNS_FILTER, of::<crate::envoy::extensions::filters::udp::dns_filter::v3::DnsFilterConfig>()),
            (
                DOWNSTREAM_TLS_CONTEXT,
                of::<crate::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext>(),
            ),
            (UPSTREAM_TLS_CONTEXT, of::<crate::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext>()),
            (RAW_BUFFER, of::<crate::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer>()),
            (
                SPIFFE_CERT_VALIDATOR,
                of::<crate::envoy::extensions::transport_sockets::tls::v3::SpiffeCertValidatorConfig>(),
            ),
            (HTTP_PROTOCOL_OPTIONS, of::<crate::envoy::extensions::upstreams::http::v3::HttpProtocolOptions>()),
            (FILE_ACCESS_LOG, of::<crate::envoy::extensions::access_loggers::file::v3::FileAccessLog>()),
            (STDOUT_ACCESS_LOG, of::<crate::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog>()),
            (STDERR_ACCESS_LOG, of::<crate::envoy::extensions::access_loggers::stream::v3::StderrAccessLog>()),
            (HTTP_GRPC_ACCESS_LOG, of::<crate::envoy::extensions::access_loggers::grpc::v3::HttpGrpcAccessLogConfig>()),
            (TCP_GRPC_ACCESS_LOG, of::<crate::envoy::extensions::access_loggers::grpc::v3::TcpGrpcAccessLogConfig>()),
            (
                OPENTELEMETRY_ACCESS_LOG,
                of::<crate::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig>(),
            ),
        ];
        for (constant, derived) in cases {
            assert_eq!(constant, derived);
            assert!(message_name(constant).is_some_and(crate::is_known_message), "{constant}");
        }
    }

    #[test]
    fn message_names() {
        assert_eq!(message_name("type.googleapis.com/a.B"), Some("a.B"));
        assert_eq!(message_name("/a.B"), Some("a.B"));
        assert_eq!(message_name("a.B"), None);
        assert_eq!(message_name("type.googleapis.com/"), None);
        assert_eq!(message_name(""), None);
    }
}
