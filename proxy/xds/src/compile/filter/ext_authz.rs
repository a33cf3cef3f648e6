//! `filters.http.ext_authz.v3.ExtAuthz`.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use shika_data::{
    model::{
        ext_authz::{AskedBody, AuthzService, CheckSettings, ExtAuthz, HttpAuthz},
        http_filter::FilterSetting,
        matcher::StringMatcher,
    },
    stats::ExtAuthzStats,
};
use shika_proto::envoy::{
    config::core::v3::HeaderValue as ProtoHeader,
    extensions::filters::http::ext_authz::v3::{
        BufferSettings, CheckSettings as ProtoSettings, ExtAuthz as Proto, ExtAuthzPerRoute, HttpService,
        check_settings::ServiceOverride, ext_authz::Services, ext_authz_per_route,
    },
    r#type::matcher::v3::ListStringMatcher,
};

use super::{
    super::{Compiled, Context, Fault, Within, duration, flag, matcher, required},
    call,
    ratelimit::{share, status},
    scope,
};

/// Envoy's default for the answer of a gRPC service.
const TIMEOUT: Duration = Duration::from_millis(200);

/// The filter.
pub(crate) fn filter(context: &mut Context<'_>, from: &Proto, stat_prefix: &str) -> Compiled<ExtAuthz> {
    let (service, deprecated) = match &from.services {
        Some(Services::GrpcService(service)) => {
            call::version(from.transport_api_version)?;
            (AuthzService::Grpc(call::grpc(context, service, Some(TIMEOUT)).within("grpc_service")?), None)
        }
        Some(Services::HttpService(service)) => {
            let deprecated = service.authorization_request.as_ref().and_then(|from| from.allowed_headers.as_ref());
            (AuthzService::Http(http(context, service).within("http_service")?), deprecated)
        }
        None => return Err(Fault::new("services", "one of grpc_service and http_service is required")),
    };
    let allowed_headers = match (&from.allowed_headers, deprecated) {
        (Some(list), None) => Some(matchers(Some(list), "allowed_headers")?),
        (None, Some(list)) => {
            let field = "http_service.authorization_request.allowed_headers";
            Some(matchers(Some(list), field)?)
        }
        (None, None) => None,
        (Some(_), Some(_)) => {
            let reason = "is set twice; leave out http_service.authorization_request.allowed_headers";
            return Err(Fault::new("allowed_headers", reason));
        }
    };
    let deny_at_disable = match &from.deny_at_disable {
        None => false,
        Some(flag) => required(&flag.default_value, "default_value").within("deny_at_disable")?.value,
    };
    let prefix = match from.stat_prefix.as_str() {
        "" => "ext_authz.".to_owned(),
        prefix => format!("ext_authz.{prefix}."),
    };
    Ok(ExtAuthz {
        stats: ExtAuthzStats::new(context.registry, scope(stat_prefix, &prefix)),
        service,
        failure_mode_allow: from.failure_mode_allow,
        failure_mode_header: from.failure_mode_allow_header_add,
        body: from.with_request_body.as_ref().map(body).transpose().within("with_request_body")?,
        status_on_error: status(&from.status_on_error, 200, StatusCode::FORBIDDEN).within("status_on_error")?,
        enabled: share(&from.filter_enabled).within("filter_enabled")?,
        deny_at_disable,
        peer_certificate: from.include_peer_certificate,
        tls_session: from.include_tls_session,
        allowed_headers,
        disallowed_headers: matchers(from.disallowed_headers.as_ref(), "disallowed_headers")?,
        raw_headers: from.encode_raw_headers,
        charge_cluster: flag(&from.charge_cluster_response_stats, true),
        longest_denial: from.max_denied_response_body_bytes,
    })
}

fn body(from: &BufferSettings) -> Compiled<AskedBody> {
    match from.max_request_bytes {
        0 => Err(Fault::new("max_request_bytes", "value must be greater than 0")),
        most => Ok(AskedBody { most, partial: from.allow_partial_message, as_bytes: from.pack_as_bytes }),
    }
}

fn http(context: &mut Context<'_>, from: &HttpService) -> Compiled<HttpAuthz> {
    use shika_proto::envoy::config::core::v3::http_uri::HttpUpstreamType;
    let uri = required(&from.server_uri, "server_uri")?;
    let (name, timeout) = (|| {
        let name = match &uri.http_upstream_type {
            Some(HttpUpstreamType::Cluster(name)) => call::existing(context, name, "cluster")?,
            None => return Err(Fault::new("cluster", "value is required")),
        };
        let timeout = duration(&uri.timeout, "timeout")?.ok_or_else(|| Fault::new("timeout", "value is required"))?;
        Ok((name, timeout))
    })()
    .within("server_uri")?;
    if !from.path_prefix.is_empty() && !from.path_override.is_empty() {
        return Err(Fault::new("path_override", "only one of path_prefix and path_override may be set"));
    }
    for (path, field) in [(&from.path_prefix, "path_prefix"), (&from.path_override, "path_override")] {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(Fault::new(field, "must begin with /"));
        }
    }
    let headers = match &from.authorization_request {
        None => Vec::new(),
        Some(request) => headers(&request.headers_to_add, "headers_to_add").within("authorization_request")?,
    };
    let response = from.authorization_response.clone().unwrap_or_default();
    let listed = |list: &Option<ListStringMatcher>, field| matchers(list.as_ref(), field);
    let (to_upstream, append_to_upstream, to_client, to_client_on_success) = (|| {
        Ok((
            listed(&response.allowed_upstream_headers, "allowed_upstream_headers")?,
            listed(&response.allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append")?,
            listed(&response.allowed_client_headers, "allowed_client_headers")?,
            listed(&response.allowed_client_headers_on_success, "allowed_client_headers_on_success")?,
        ))
    })()
    .within("authorization_response")?;
    let (cluster, name) = context.clusters.intern(name);
    Ok(HttpAuthz {
        cluster,
        name,
        timeout,
        path_prefix: from.path_prefix.as_str().into(),
        path_override: (!from.path_override.is_empty()).then(|| from.path_override.as_str().into()),
        headers,
        to_upstream,
        append_to_upstream,
        to_client,
        to_client_on_success,
    })
}

fn headers(from: &[ProtoHeader], field: &str) -> Compiled<Vec<(HeaderName, HeaderValue)>> {
    let header = |from: &ProtoHeader| {
        let name = matcher::header_name(&from.key, "key")?;
        let bytes = if from.raw_value.is_empty() { from.value.as_bytes() } else { &from.raw_value };
        let value = HeaderValue::from_bytes(bytes).map_err(|_| Fault::new("value", "is not a valid header value"))?;
        Ok((name, value))
    };
    from.iter().enumerate().map(|(index, one)| header(one).at(field, index)).collect()
}

fn matchers(from: Option<&ListStringMatcher>, field: &str) -> Compiled<Vec<StringMatcher>> {
    let patterns = from.map(|list| list.patterns.as_slice()).unwrap_or_default();
    let patterns = patterns.iter().enumerate().map(|(index, one)| matcher::string(one).at("patterns", index));
    patterns.collect::<Compiled<_>>().within(field)
}

/// `ExtAuthzPerRoute`
pub(crate) fn per_route(from: &ExtAuthzPerRoute) -> Compiled<FilterSetting> {
    match &from.r#override {
        None => Err(Fault::new("override", "value is required")),
        Some(ext_authz_per_route::Override::Disabled(true)) => Ok(FilterSetting::Disabled),
        Some(ext_authz_per_route::Override::Disabled(false)) => {
            Ok(FilterSetting::ExtAuthz(Arc::new(CheckSettings::default())))
        }
        Some(ext_authz_per_route::Override::CheckSettings(from)) => {
            settings(from).map(|settings| FilterSetting::ExtAuthz(Arc::new(settings))).within("check_settings")
        }
    }
}

fn settings(from: &ProtoSettings) -> Compiled<CheckSettings> {
    match &from.service_override {
        None => {}
        Some(ServiceOverride::GrpcService(_)) => {
            return Err(Fault::new("grpc_service", "a route cannot ask another service"));
        }
        Some(ServiceOverride::HttpService(_)) => {
            return Err(Fault::new("http_service", "a route cannot ask another service"));
        }
    }
    let body = match (&from.with_request_body, from.disable_request_body_buffering) {
        (Some(_), true) => {
            let reason = "must not be set together with disable_request_body_buffering";
            return Err(Fault::new("with_request_body", reason));
        }
        (Some(settings), false) if settings.pack_as_bytes => {
            return Err(Fault::new("with_request_body.pack_as_bytes", "is the filter's to say: set it there"));
        }
        (Some(settings), false) => Some(Some(body(settings).within("with_request_body")?)),
        (None, true) => Some(None),
        (None, false) => None,
    };
    let mut context: Vec<(Box<str>, Box<str>)> =
        from.context_extensions.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
    context.sort();
    Ok(CheckSettings { context, body })
}
