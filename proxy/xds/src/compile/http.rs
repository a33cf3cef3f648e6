//! `filters.network.http_connection_manager.v3.HttpConnectionManager`.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use shika_data::{
    model::{
        RouteTableId,
        http::{
            Codec, EscapedSlashes, ForwardClientCert, ForwardClientCertMode, Http1Options, HttpConnectionManager,
            ServerHeader, StrictHeader, StripPort, Timeouts, Trust, Underscores,
        },
        route::RouteTable,
    },
    stats::{HttpStats, Scope},
};
use shika_proto::envoy::{
    config::core::v3::{Http1ProtocolOptions, http_protocol_options::HeadersWithUnderscoresAction},
    extensions::filters::network::http_connection_manager::v3::{
        self as proto, http_connection_manager as hcm, http_connection_manager::RouteSpecifier,
    },
};

use super::{
    Compiled, Context, Fault, Within, access_log, address, bound,
    config_source::{self, Through},
    duration, enumeration, filter, flag, non_empty, required, route, tracing, upstream_http, wrapped,
};
use crate::bootstrap::Source;

/// Where a connection manager's routes come from.
#[derive(Debug)]
pub(crate) enum Routes {
    /// `route_config`
    Inline(Arc<RouteTable>),
    /// `rds`: name and source.
    Rds(Arc<str>, Source),
}

/// Gives the id of a route table: that of an RDS name, or with `None` the one of this chain.
pub(crate) type RouteIds<'a> = &'a mut dyn FnMut(Option<&str>) -> RouteTableId;

/// The router's `strict_check_headers`.
fn strict_headers(from: &[String]) -> Compiled<Vec<StrictHeader>> {
    let named = from.iter().map(|name| {
        StrictHeader::ALL.into_iter().find(|header| header.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let all = StrictHeader::ALL.map(StrictHeader::name).join(", ");
            Fault::new("strict_check_headers", format!("{name:?} is none of {all}"))
        })
    });
    named.collect::<Compiled<_>>().within("http_filters")
}

/// A connection manager.
pub(crate) fn manager(
    context: &mut Context<'_>,
    from: &proto::HttpConnectionManager,
    ids: RouteIds<'_>,
) -> Compiled<(HttpConnectionManager, Routes)> {
    let stat_prefix = non_empty(&from.stat_prefix, "stat_prefix")?;
    let codec = match enumeration(from.codec_type, "codec_type")? {
        hcm::CodecType::Auto => Codec::Auto,
        hcm::CodecType::Http1 => Codec::Http1,
        hcm::CodecType::Http2 => Codec::Http2,
        hcm::CodecType::Http3 => return Err(Fault::new("codec_type", "HTTP3 is not supported")),
    };
    let routes = match &from.route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => {
            let id = ids(None);
            Routes::Inline(Arc::new(route::table(context, config, id, true).within("route_config")?))
        }
        Some(RouteSpecifier::Rds(rds)) => {
            let source = required(&rds.config_source, "config_source").and_then(|from| {
                config_source::config(from, context.servers, Through::Primary).within("config_source")
            });
            Routes::Rds(
                non_empty(&rds.route_config_name, "route_config_name").within("rds")?.into(),
                source.within("rds")?,
            )
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            return Err(Fault::new("scoped_routes", "is not supported; use rds or route_config"));
        }
        None => return Err(Fault::new("route_specifier", "value is required")),
    };
    let table = match &routes {
        Routes::Inline(table) => table.id,
        Routes::Rds(name, _) => ids(Some(name)),
    };
    let (filters, router) = filter::filters(context, &from.http_filters, stat_prefix)?;
    let common = from.common_http_protocol_options.unwrap_or_default();
    let underscores = match enumeration(common.headers_with_underscores_action, "headers_with_underscores_action")
        .within("common_http_protocol_options")?
    {
        HeadersWithUnderscoresAction::Allow => Underscores::Allow,
        HeadersWithUnderscoresAction::RejectRequest => Underscores::Reject,
        HeadersWithUnderscoresAction::DropHeader => Underscores::Drop,
    };
    let max_request_headers = match wrapped(&from.max_request_headers_kb) {
        None => 60,
        Some(kb @ 1..=8192) => kb,
        Some(kb) => {
            return Err(Fault::new(
                "max_request_headers_kb",
                format!("value must be inside range (0, 8192], not {kb}"),
            ));
        }
    };
    let max_header_count = match wrapped(&common.max_headers_count) {
        None => 100,
        Some(0) => {
            return Err(Fault::new(
                "common_http_protocol_options.max_headers_count",
                "value must be greater than or equal to 1",
            ));
        }
        Some(count) => count,
    };
    let http2 = match &from.http2_protocol_options {
        None => Default::default(),
        Some(http2) => upstream_http::http2(http2).within("http2_protocol_options")?,
    };
    let scope = Scope {
        prefix: format!("http.{stat_prefix}."),
        stem: "http.".into(),
        tags: vec![("envoy.http_conn_manager_prefix", stat_prefix.to_owned())],
    };
    let manager = HttpConnectionManager {
        stats: HttpStats::new(context.registry, scope),
        codec,
        routes: table,
        filters,
        suppress_envoy_headers: router.suppress_envoy_headers,
        strict_headers: strict_headers(&router.strict_check_headers)?,
        access_log: access_log::access_logs(context, &from.access_log, "access_log")?.into(),
        tracing: match &from.tracing {
            None => None,
            Some(tracing) => tracing::tracing(context, tracing, router.start_child_span).within("tracing")?,
        },
        trust: trust(from)?,
        server_name: text(&from.server_name, "server_name")?.unwrap_or(HeaderValue::from_static("envoy")),
        server_header: match enumeration(from.server_header_transformation, "server_header_transformation")? {
            hcm::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            hcm::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            hcm::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        generate_request_id: flag(&from.generate_request_id, true),
        preserve_external_request_id: from.preserve_external_request_id,
        always_set_request_id_in_response: from.always_set_request_id_in_response,
        via: text(&from.via, "via")?,
        normalize_path: flag(&from.normalize_path, false),
        merge_slashes: from.merge_slashes,
        escaped_slashes: match enumeration(from.path_with_escaped_slashes_action, "path_with_escaped_slashes_action")? {
            hcm::PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | hcm::PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
            hcm::PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
            hcm::PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            hcm::PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
        strip_port: strip_port(from)?,
        strip_trailing_dot: from.strip_trailing_host_dot,
        underscores,
        max_request_headers: max_request_headers * 1024,
        max_header_count,
        timeouts: timeouts(from, &common)?,
        max_requests_per_connection: wrapped(&common.max_requests_per_connection).filter(|most| *most > 0),
        http1: from
            .http_protocol_options
            .as_ref()
            .map(http1)
            .transpose()
            .within("http_protocol_options")?
            .unwrap_or_default(),
        http2,
        upgrades: upgrades(&from.upgrade_configs)?,
        client_cert: client_cert(from)?,
    };
    Ok((manager, routes))
}

fn text(value: &str, field: &str) -> Compiled<Option<HeaderValue>> {
    if value.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(value).map(Some).map_err(|_| Fault::new(field, "is not a valid header value"))
}

fn timeouts(
    from: &proto::HttpConnectionManager,
    common: &shika_proto::envoy::config::core::v3::HttpProtocolOptions,
) -> Compiled<Timeouts> {
    const IDLE: Duration = Duration::from_secs(3_600);
    const STREAM_IDLE: Duration = Duration::from_secs(300);
    const DRAIN: Duration = Duration::from_secs(5);
    let within = "common_http_protocol_options";
    Ok(Timeouts {
        idle: bound(&common.idle_timeout, "idle_timeout", Some(IDLE)).within(within)?,
        max_connection: bound(&common.max_connection_duration, "max_connection_duration", None).within(within)?,
        max_stream: bound(&common.max_stream_duration, "max_stream_duration", None).within(within)?,
        stream_idle: bound(&from.stream_idle_timeout, "stream_idle_timeout", Some(STREAM_IDLE))?,
        request: bound(&from.request_timeout, "request_timeout", None)?,
        request_headers: bound(&from.request_headers_timeout, "request_headers_timeout", None)?,
        drain: duration(&from.drain_timeout, "drain_timeout")?.unwrap_or(DRAIN),
    })
}

fn trust(from: &proto::HttpConnectionManager) -> Compiled<Trust> {
    if !flag(&from.add_proxy_protocol_connection_state, true) {
        return Err(Fault::new(
            "add_proxy_protocol_connection_state",
            "false is not supported: upstreams that speak the PROXY protocol are told who the client is",
        ));
    }
    let mut trust = Trust {
        use_remote_address: flag(&from.use_remote_address, false),
        xff_trusted_hops: from.xff_num_trusted_hops,
        skip_xff_append: from.skip_xff_append,
        internal: Vec::new(),
        internal_unix: false,
    };
    if let Some(internal) = &from.internal_address_config {
        trust.internal = address::cidrs(&internal.cidr_ranges, "cidr_ranges").within("internal_address_config")?;
        trust.internal_unix = internal.unix_sockets;
    }
    Ok(trust)
}

fn strip_port(from: &proto::HttpConnectionManager) -> Compiled<StripPort> {
    let any = matches!(from.strip_port_mode, Some(hcm::StripPortMode::StripAnyHostPort(true)));
    match (any, from.strip_matching_host_port) {
        (true, true) => Err(Fault::new(
            "strip_any_host_port",
            "strip_matching_host_port and strip_any_host_port cannot both be set",
        )),
        (true, false) => Ok(StripPort::Any),
        (false, true) => Ok(StripPort::Matching),
        (false, false) => Ok(StripPort::No),
    }
}

fn http1(from: &Http1ProtocolOptions) -> Compiled<Http1Options> {
    if !flag(&from.allow_absolute_url, true) {
        return Err(Fault::new("allow_absolute_url", "false is not supported: absolute URLs are always accepted"));
    }
    if flag(&from.override_stream_error_on_invalid_http_message, false) {
        return Err(Fault::new("override_stream_error_on_invalid_http_message", "is not supported"));
    }
    Ok(Http1Options {
        accept_http_10: from.accept_http_10,
        default_host: text(&from.default_host_for_http_10, "default_host_for_http_10")?,
        enable_trailers: from.enable_trailers,
    })
}

fn upgrades(from: &[hcm::UpgradeConfig]) -> Compiled<Vec<(Box<str>, bool)>> {
    let mut upgrades: Vec<(Box<str>, bool)> = Vec::with_capacity(from.len());
    for (index, upgrade) in from.iter().enumerate() {
        let name: Box<str> =
            non_empty(&upgrade.upgrade_type, "upgrade_type").at("upgrade_configs", index)?.to_ascii_lowercase().into();
        if upgrades.iter().any(|(other, _)| *other == name) {
            return Err(Fault::new(
                format!("upgrade_configs[{index}].upgrade_type"),
                format!("multiple upgrade configs with name {name}"),
            ));
        }
        upgrades.push((name, flag(&upgrade.enabled, true)));
    }
    Ok(upgrades)
}

fn client_cert(from: &proto::HttpConnectionManager) -> Compiled<ForwardClientCert> {
    let mode = match enumeration(from.forward_client_cert_details, "forward_client_cert_details")? {
        hcm::ForwardClientCertDetails::Sanitize => ForwardClientCertMode::Sanitize,
        hcm::ForwardClientCertDetails::ForwardOnly => ForwardClientCertMode::ForwardOnly,
        hcm::ForwardClientCertDetails::AppendForward => ForwardClientCertMode::AppendForward,
        hcm::ForwardClientCertDetails::SanitizeSet => ForwardClientCertMode::SanitizeSet,
        hcm::ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCertMode::AlwaysForwardOnly,
    };
    let details = from.set_current_client_cert_details.unwrap_or_default();
    Ok(ForwardClientCert {
        mode,
        subject: flag(&details.subject, false),
        cert: details.cert,
        chain: details.chain,
        dns: details.dns,
        uri: details.uri,
    })
}
