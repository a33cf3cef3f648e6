//! `HttpConnectionManager.Tracing`, what routes say about it, and the tracers: Zipkin, OpenTelemetry, Datadog.

use std::{env, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Uri};
use shika_data::model::{
    listener::TrafficDirection,
    route::Fraction,
    tracing::{
        Collector, CollectorProtocol, CustomTag, OtlpTarget, Propagation, RouteTracing, Sampling, TagValue, Tracing,
    },
};
use shika_proto::{
    any,
    envoy::{
        config::{
            core::v3::{GrpcService, HttpService, grpc_service::TargetSpecifier, http_uri::HttpUpstreamType},
            route::v3 as route_proto,
            trace::v3::{
                DatadogConfig, OpenTelemetryConfig, ZipkinConfig, tracing::http::ConfigType,
                zipkin_config::CollectorEndpointVersion,
            },
        },
        extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm,
        r#type::{
            tracing::v3::{self as proto, custom_tag},
            v3::{FractionalPercent, Percent},
        },
    },
    google::protobuf::Any,
};

use super::{
    Compiled, Context, Fault, Within, duration, enumeration, flag, format, matcher, non_empty, required, route, unpack,
    wrapped,
};

/// What a service is called that has no name.
const UNKNOWN_SERVICE: &str = "unknown_service:envoy";
/// Bound on one request to a collector that sets none; Envoy's for Zipkin.
const TIMEOUT: Duration = Duration::from_secs(5);

/// `tracing`; `None` without a provider: Envoy then takes the bootstrap's, which is refused. `start_child_span`: the router asks for spans of tries.
pub(crate) fn tracing(
    context: &mut Context<'_>,
    from: &hcm::Tracing,
    start_child_span: bool,
) -> Compiled<Option<Box<Tracing>>> {
    if from.verbose {
        return Err(Fault::new("verbose", "events within spans are not supported"));
    }
    let client = percent(&from.client_sampling, "client_sampling")?;
    let random = percent(&from.random_sampling, "random_sampling")?;
    let overall = percent(&from.overall_sampling, "overall_sampling")?;
    let tags = custom_tags(context, &from.custom_tags)?;
    let Some(provider) = &from.provider else { return Ok(None) };
    let content = match &provider.config_type {
        Some(ConfigType::TypedConfig(content)) => content,
        None => return Err(Fault::new("provider.typed_config", "value is required")),
    };
    let (propagation, collector) = tracer(content).within("typed_config").within("provider")?;
    // Envoy takes whole percents of the first, hundredths of the others.
    let whole = Fraction { numerator: client as u32, denominator: 100 };
    let hundredths = |share: f64| Fraction { numerator: (share * 100.0).round() as u32, denominator: 10_000 };
    Ok(Some(Box::new(Tracing {
        sampling: Sampling { client: whole, random: hundredths(random), overall: hundredths(overall) },
        egress: context.direction == TrafficDirection::Outbound,
        spawn_upstream: flag(&from.spawn_upstream_span, false) || start_child_span,
        longest_path: wrapped(&from.max_path_tag_length).unwrap_or(256) as usize,
        tags,
        propagation,
        sink: (context.span_sink)(&collector),
    })))
}

/// A route's `tracing` and `decorator`.
pub(crate) fn of_route(context: &Context<'_>, from: &route_proto::Route) -> Compiled<Option<Arc<RouteTracing>>> {
    if from.tracing.is_none() && from.decorator.is_none() {
        return Ok(None);
    }
    let mut compiled = RouteTracing::default();
    if let Some(tracing) = &from.tracing {
        let share = |share: &Option<FractionalPercent>, field: &str| match share {
            None => Ok(Fraction { numerator: 100, denominator: 100 }),
            Some(share) => route::fraction(share).within(field).within("tracing"),
        };
        compiled.sampling = Some(Sampling {
            client: share(&tracing.client_sampling, "client_sampling")?,
            random: share(&tracing.random_sampling, "random_sampling")?,
            overall: share(&tracing.overall_sampling, "overall_sampling")?,
        });
        compiled.tags = custom_tags(context, &tracing.custom_tags).within("tracing")?;
    }
    if let Some(decorator) = &from.decorator {
        compiled.operation = Some(non_empty(&decorator.operation, "operation").within("decorator")?.into());
        compiled.propagate = flag(&decorator.propagate, true);
    }
    Ok(Some(Arc::new(compiled)))
}

fn percent(value: &Option<Percent>, field: &str) -> Compiled<f64> {
    match value {
        None => Ok(100.0),
        Some(percent) if (0.0..=100.0).contains(&percent.value) => Ok(percent.value),
        Some(_) => Err(Fault::new(format!("{field}.value"), "value must be inside range [0, 100]")),
    }
}

fn tracer(content: &Any) -> Compiled<(Propagation, Collector)> {
    if any::is::<ZipkinConfig>(content) {
        zipkin(&unpack(content)?)
    } else if any::is::<OpenTelemetryConfig>(content) {
        open_telemetry(&unpack(content)?)
    } else if any::is::<DatadogConfig>(content) {
        datadog(&unpack(content)?)
    } else {
        let reason = format!("tracer {} is not supported; Zipkin, OpenTelemetry and Datadog are", content.type_url);
        Err(Fault::new("", reason))
    }
}

fn zipkin(config: &ZipkinConfig) -> Compiled<(Propagation, Collector)> {
    if config.trace_context_option != 0 {
        return Err(Fault::new("trace_context_option", "W3C headers beside B3 are not supported"));
    }
    let cluster = non_empty(&config.collector_cluster, "collector_cluster")?;
    let proto = match enumeration(config.collector_endpoint_version, "collector_endpoint_version")? {
        CollectorEndpointVersion::HttpJson => false,
        CollectorEndpointVersion::HttpProto => true,
        other => {
            let reason = format!("{} is not supported; HTTP_JSON and HTTP_PROTO are", other.as_str_name());
            return Err(Fault::new("collector_endpoint_version", reason));
        }
    };
    let shared = flag(&config.shared_span_context, true);
    let endpoint = non_empty(&config.collector_endpoint, "collector_endpoint")?;
    Uri::try_from(endpoint)
        .map_err(|_| Fault::new("collector_endpoint", format!("{endpoint:?} is not a valid path")))?;
    let protocol = CollectorProtocol::Zipkin {
        endpoint: endpoint.into(),
        host: host(&config.collector_hostname, cluster, "collector_hostname")?,
        proto,
        shared,
    };
    let propagation = Propagation::B3 { shared, wide: config.trace_id_128bit, split: config.split_spans_for_request };
    Ok((propagation, Collector { cluster: cluster.into(), protocol }))
}

fn open_telemetry(config: &OpenTelemetryConfig) -> Compiled<(Propagation, Collector)> {
    let (cluster, target) = match (&config.grpc_service, &config.http_service) {
        (Some(_), Some(_)) => return Err(Fault::new("http_service", "cannot be given beside grpc_service")),
        (None, Some(service)) => http_service(service).within("http_service")?,
        (service, None) => grpc(required(service, "grpc_service")?).within("grpc_service")?,
    };
    let service = if config.service_name.is_empty() { UNKNOWN_SERVICE } else { &config.service_name };
    let protocol = CollectorProtocol::OpenTelemetry { service: service.into(), target };
    Ok((Propagation::TraceContext, Collector { cluster, protocol }))
}

fn datadog(config: &DatadogConfig) -> Compiled<(Propagation, Collector)> {
    let cluster = non_empty(&config.collector_cluster, "collector_cluster")?;
    let protocol = CollectorProtocol::Datadog {
        service: non_empty(&config.service_name, "service_name")?.into(),
        host: host(&config.collector_hostname, cluster, "collector_hostname")?,
    };
    Ok((Propagation::Datadog, Collector { cluster: cluster.into(), protocol }))
}

fn host(given: &str, cluster: &str, field: &str) -> Compiled<Arc<str>> {
    let host = if given.is_empty() { cluster } else { given };
    HeaderValue::from_str(host).map_err(|_| Fault::new(field, format!("{host:?} is not a valid host")))?;
    Ok(host.into())
}

/// A collector that is called over gRPC.
pub(crate) fn grpc(from: &GrpcService) -> Compiled<(Arc<str>, OtlpTarget)> {
    let mut headers = Vec::with_capacity(from.initial_metadata.len());
    for (index, header) in from.initial_metadata.iter().enumerate() {
        headers.push(self::header(&header.key, &header.value).at("initial_metadata", index)?);
    }
    match &from.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) => {
            let cluster = non_empty(&target.cluster_name, "cluster_name").within("envoy_grpc")?;
            let authority = if target.authority.is_empty() { cluster } else { &target.authority };
            // What is no authority, as many names of clusters, cannot be sent as one; Envoy sends it as it is.
            let authority = if http::uri::Authority::try_from(authority).is_ok() { authority } else { "collector" };
            let target = OtlpTarget { authority: authority.into(), path: None, headers, timeout: TIMEOUT };
            Ok((cluster.into(), target))
        }
        Some(TargetSpecifier::GoogleGrpc(_)) => Err(Fault::new("google_grpc", "is not supported; use envoy_grpc")),
        None => Err(Fault::new("target_specifier", "value is required")),
    }
}

/// A collector that is called over HTTP.
pub(crate) fn http_service(from: &HttpService) -> Compiled<(Arc<str>, OtlpTarget)> {
    let uri = required(&from.http_uri, "http_uri")?;
    let parsed: Uri = non_empty(&uri.uri, "uri")
        .within("http_uri")?
        .parse()
        .map_err(|_| Fault::new("http_uri.uri", format!("{:?} is not a valid URI", uri.uri)))?;
    let cluster = match &uri.http_upstream_type {
        Some(HttpUpstreamType::Cluster(cluster)) => non_empty(cluster, "cluster").within("http_uri")?,
        None => return Err(Fault::new("http_uri.cluster", "value is required")),
    };
    let mut headers = Vec::with_capacity(from.request_headers_to_add.len());
    for (index, option) in from.request_headers_to_add.iter().enumerate() {
        let field = "request_headers_to_add";
        let given = required(&option.header, "header").at(field, index)?;
        if given.value.contains('%') {
            return Err(Fault::new(
                format!("{field}[{index}].header.value"),
                "command operators have no meaning here, where there is no request; write the value itself",
            ));
        }
        headers.push(header(&given.key, &given.value).within("header").at(field, index)?);
    }
    let timeout = match duration(&uri.timeout, "timeout").within("http_uri")? {
        Some(timeout) if !timeout.is_zero() => timeout,
        _ => TIMEOUT,
    };
    let authority = parsed.authority().map_or(cluster, |authority| authority.as_str());
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    let target = OtlpTarget { authority: authority.into(), path: Some(path.into()), headers, timeout };
    Ok((cluster.into(), target))
}

fn header(key: &str, value: &str) -> Compiled<(Box<str>, Box<str>)> {
    let name = matcher::header_name(key, "key")?;
    HeaderValue::from_str(value).map_err(|_| Fault::new("value", "is not a valid header value"))?;
    Ok((name.as_str().into(), value.into()))
}

fn custom_tags(context: &Context<'_>, from: &[proto::CustomTag]) -> Compiled<Vec<CustomTag>> {
    let mut tags = Vec::with_capacity(from.len());
    for (index, tag) in from.iter().enumerate() {
        tags.extend(custom_tag(context, tag).at("custom_tags", index)?);
    }
    Ok(tags)
}

fn custom_tag(context: &Context<'_>, from: &proto::CustomTag) -> Compiled<Option<CustomTag>> {
    let name: Box<str> = non_empty(&from.tag, "tag")?.into();
    let value = match &from.r#type {
        Some(custom_tag::Type::Literal(literal)) => {
            TagValue::Constant(non_empty(&literal.value, "value").within("literal")?.into())
        }
        Some(custom_tag::Type::Environment(variable)) => {
            let value = env::var(non_empty(&variable.name, "name").within("environment")?)
                .unwrap_or_else(|_| variable.default_value.clone());
            if value.is_empty() {
                return Ok(None);
            }
            TagValue::Constant(value.into())
        }
        Some(custom_tag::Type::RequestHeader(header)) => {
            let name: HeaderName = matcher::header_name(&header.name, "name").within("request_header")?;
            let default = (!header.default_value.is_empty()).then(|| header.default_value.as_str().into());
            TagValue::Header { header: name, default }
        }
        Some(custom_tag::Type::Value(value)) => TagValue::Format(format::text(context, value).within("value")?),
        Some(custom_tag::Type::Metadata(_)) => {
            return Err(Fault::new("metadata", "tags of metadata are not supported"));
        }
        None => return Err(Fault::new("type", "value is required")),
    };
    Ok(Some(CustomTag { name, value }))
}

#[cfg(test)]
#[path = "tracing_tests.rs"]
mod tests;
