//! `config.core.v3.GrpcService`, as filters use it: for unary calls.

use std::time::Duration;

use http::HeaderValue;
use shika_data::model::http_filter::GrpcCall;
use shika_proto::envoy::config::core::v3::{GrpcService, grpc_service::TargetSpecifier};

use super::super::{Compiled, Context, Fault, Within, duration, format, matcher, non_empty, required};

/// The service; without a timeout of its own `default` counts.
pub(crate) fn grpc(context: &mut Context<'_>, from: &GrpcService, default: Option<Duration>) -> Compiled<GrpcCall> {
    let target = match &from.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) => target,
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            return Err(Fault::new("google_grpc", "is not supported; use envoy_grpc"));
        }
        None => return Err(Fault::new("target_specifier", "value is required")),
    };
    if from.retry_policy.is_some() {
        return Err(Fault::new("retry_policy", "calls of filters are not tried again"));
    }
    let (name, authority) = (|| {
        if target.retry_policy.is_some() {
            return Err(Fault::new("retry_policy", "calls of filters are not tried again"));
        }
        if target.max_receive_message_length.is_some() {
            return Err(Fault::new("max_receive_message_length", "answers to filters have a bound of 1 MiB"));
        }
        let name = existing(context, &target.cluster_name, "cluster_name")?;
        let authority = if target.authority.is_empty() { name } else { &target.authority };
        let authority =
            HeaderValue::from_str(authority).map_err(|_| Fault::new("authority", "is not a valid header value"))?;
        Ok((name, authority))
    })()
    .within("envoy_grpc")?;
    let mut metadata = Vec::with_capacity(from.initial_metadata.len());
    for (index, header) in from.initial_metadata.iter().enumerate() {
        let header = (|| {
            let name = matcher::header_name(&header.key, "key")?;
            if !header.raw_value.is_empty() {
                return Err(Fault::new("raw_value", "is not supported here; use value"));
            }
            let text = format::text(context, &header.value).within("value")?;
            let text = text.constant().ok_or_else(|| Fault::new("value", "operators are not supported here"))?;
            Ok((name, HeaderValue::from_str(text).map_err(|_| Fault::new("value", "is not a valid header value"))?))
        })();
        metadata.push(header.at("initial_metadata", index)?);
    }
    let timeout = duration(&from.timeout, "timeout")?.filter(|timeout| !timeout.is_zero()).or(default);
    let (cluster, name) = context.clusters.intern(name);
    Ok(GrpcCall { cluster, name, authority, timeout, metadata, envoy_headers: !target.skip_envoy_headers })
}

/// The name of a cluster, which has to exist when the filter is loaded.
pub(crate) fn existing<'a>(context: &Context<'_>, name: &'a str, field: &str) -> Compiled<&'a str> {
    let name = non_empty(name, field)?;
    if !(context.cluster_exists)(name) {
        return Err(Fault::new(field, format!("Unknown gRPC client cluster '{name}'")));
    }
    Ok(name)
}

/// The one API version there is.
pub(crate) fn version(number: i32) -> Compiled<()> {
    use shika_proto::envoy::config::core::v3::ApiVersion;
    match super::super::enumeration::<ApiVersion>(number, "transport_api_version")? {
        ApiVersion::V3 => Ok(()),
        ApiVersion::Auto | ApiVersion::V2 => Err(Fault::new("transport_api_version", "must be V3")),
    }
}

/// The content of a required service.
pub(crate) fn required_grpc(
    context: &mut Context<'_>,
    from: &Option<GrpcService>,
    default: Option<Duration>,
) -> Compiled<GrpcCall> {
    let from = required(from, "grpc_service")?;
    grpc(context, from, default).within("grpc_service")
}
