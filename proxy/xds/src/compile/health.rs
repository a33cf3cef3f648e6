//! `core.v3.HealthCheck`.

use std::{ops::Range, sync::atomic::AtomicU64, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method};
use prost::Message;
use shika_data::{
    model::{
        access_log::LogSink,
        format::Part,
        header::AppendAction,
        health::{Ask, CheckAt, GrpcAsk, HealthCheck, HttpAsk},
    },
    stats::{HealthCheckStats, Scope},
};
use shika_proto::{
    any,
    envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{
                self as proto, HeaderValueOption, RequestMethod,
                health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload},
            },
            endpoint::v3::endpoint::HealthCheckConfig,
        },
        extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink,
        r#type::v3::{CodecClientType, Int64Range},
    },
    google::protobuf::{Duration as ProtoDuration, UInt32Value},
};

use super::{
    Compiled, Context, Fault, Within,
    address::{self, Target},
    duration, enumeration, flag,
    header::{self, Mutations},
    non_empty, positive, required, unpack,
};

/// Envoy's default for a cluster that has no traffic.
const NO_TRAFFIC: Duration = Duration::from_secs(60);

/// The health check of a cluster; Envoy too takes one at most. `http2`: the cluster speaks it.
pub(crate) fn health(
    context: &mut Context<'_>,
    from: &Cluster,
    scope: &Scope,
    http2: bool,
) -> Compiled<Option<Box<HealthCheck>>> {
    let check = match from.health_checks.as_slice() {
        [] => return Ok(None),
        [one] => one,
        _ => return Err(Fault::new("health_checks", "Multiple health checks not supported")),
    };
    let ignore_new = from.common_lb_config.as_ref().is_some_and(|common| common.ignore_new_hosts_until_first_hc);
    let mut compiled = one(context, check, from, scope, http2).at("health_checks", 0)?;
    compiled.ignore_new = ignore_new;
    compiled.removes_healthy = from.ignore_health_on_host_removal;
    Ok(Some(Box::new(compiled)))
}

fn one(
    context: &mut Context<'_>,
    from: &proto::HealthCheck,
    cluster: &Cluster,
    scope: &Scope,
    http2: bool,
) -> Compiled<HealthCheck> {
    let needed = |value: &Option<ProtoDuration>, field: &str| -> Compiled<Duration> {
        positive(value, field)?.ok_or_else(|| Fault::new(field, "value is required"))
    };
    let threshold = |value: &Option<UInt32Value>, field: &str| required(value, field).map(|value| value.value.max(1));
    let interval = needed(&from.interval, "interval")?;
    let or = |value: &Option<ProtoDuration>, field: &str, default: Duration| -> Compiled<Duration> {
        Ok(positive(value, field)?.unwrap_or(default))
    };
    let no_traffic_interval = or(&from.no_traffic_interval, "no_traffic_interval", NO_TRAFFIC)?;
    let unhealthy_interval = or(&from.unhealthy_interval, "unhealthy_interval", interval)?;
    let scope = Scope {
        prefix: format!("{}health_check.", scope.prefix),
        stem: format!("{}health_check.", scope.stem),
        tags: scope.tags.clone(),
    };
    let ask = match &from.health_checker {
        Some(HealthChecker::HttpHealthCheck(check)) => {
            Ask::Http(Box::new(http(context, check, cluster).within("http_health_check")?))
        }
        Some(HealthChecker::TcpHealthCheck(check)) => tcp(check).within("tcp_health_check")?,
        Some(HealthChecker::GrpcHealthCheck(_)) if !http2 => {
            return Err(Fault::new(
                "grpc_health_check",
                format!("{} cluster must support HTTP/2 for gRPC healthchecking", cluster.name),
            ));
        }
        Some(HealthChecker::GrpcHealthCheck(check)) => {
            Ask::Grpc(Box::new(grpc(context, check, cluster).within("grpc_health_check")?))
        }
        Some(HealthChecker::CustomHealthCheck(_)) => {
            return Err(Fault::new(
                "custom_health_check",
                "is not supported; http_health_check, tcp_health_check and grpc_health_check are",
            ));
        }
        None => return Err(Fault::new("health_checker", "value is required")),
    };
    Ok(HealthCheck {
        ask,
        timeout: needed(&from.timeout, "timeout")?,
        interval,
        unhealthy_interval,
        unhealthy_edge_interval: or(&from.unhealthy_edge_interval, "unhealthy_edge_interval", unhealthy_interval)?,
        healthy_edge_interval: or(&from.healthy_edge_interval, "healthy_edge_interval", interval)?,
        no_traffic_interval,
        no_traffic_healthy_interval: or(
            &from.no_traffic_healthy_interval,
            "no_traffic_healthy_interval",
            no_traffic_interval,
        )?,
        initial_jitter: duration(&from.initial_jitter, "initial_jitter")?.unwrap_or(Duration::ZERO),
        jitter: duration(&from.interval_jitter, "interval_jitter")?.unwrap_or(Duration::ZERO),
        jitter_percent: from.interval_jitter_percent,
        unhealthy_threshold: threshold(&from.unhealthy_threshold, "unhealthy_threshold")?,
        healthy_threshold: threshold(&from.healthy_threshold, "healthy_threshold")?,
        reuse_connection: flag(&from.reuse_connection, true),
        ignore_new: false,
        removes_healthy: false,
        events: events(context, from)?,
        always_log_failures: from.always_log_health_check_failures,
        always_log_successes: from.always_log_health_check_success,
        stats: HealthCheckStats::new(context.registry, scope),
        epoch: AtomicU64::new(0),
        changed: Default::default(),
    })
}

fn events(context: &mut Context<'_>, from: &proto::HealthCheck) -> Compiled<Option<LogSink>> {
    let mut path = from.event_log_path.clone();
    for (index, logger) in from.event_logger.iter().enumerate() {
        let read = || -> Compiled<String> {
            let content = required(&logger.typed_config, "typed_config")?;
            if !any::is::<HealthCheckEventFileSink>(content) {
                return Err(Fault::new(
                    "typed_config",
                    format!("event sink {} is not supported; a file is", content.type_url),
                ));
            }
            let sink: HealthCheckEventFileSink = unpack(content).within("typed_config")?;
            Ok(non_empty(&sink.event_log_path, "event_log_path").within("typed_config")?.to_owned())
        };
        let next = read().at("event_logger", index)?;
        if !path.is_empty() && path != next {
            return Err(Fault::new(format!("event_logger[{index}]"), "one file of events is supported"));
        }
        path = next;
    }
    Ok((!path.is_empty()).then(|| (context.log_sink)(&path)))
}

fn http(context: &Context<'_>, from: &HttpHealthCheck, cluster: &Cluster) -> Compiled<HttpAsk> {
    let path = non_empty(&from.path, "path")?;
    if http::uri::PathAndQuery::try_from(path).is_err() || !path.starts_with('/') {
        return Err(Fault::new("path", format!("{path:?} is no path")));
    }
    let host = if from.host.is_empty() { &cluster.name } else { &from.host };
    let http2 = match enumeration(from.codec_client_type, "codec_client_type")? {
        CodecClientType::Http1 => false,
        CodecClientType::Http2 => true,
        CodecClientType::Http3 => return Err(Fault::new("codec_client_type", "HTTP/3 is not supported")),
    };
    let method = enumeration::<RequestMethod>(from.method, "method")?;
    let method = match method {
        RequestMethod::MethodUnspecified => Method::GET,
        RequestMethod::Connect => return Err(Fault::new("method", "CONNECT has no path to check")),
        other => Method::from_bytes(other.as_str_name().as_bytes())
            .map_err(|_| Fault::new("method", "value must be one of the defined enum values"))?,
    };
    let mut expected = ranges(&from.expected_statuses, "expected_statuses")?;
    if expected.is_empty() {
        expected.push(200..201);
    }
    Ok(HttpAsk {
        http2,
        method,
        path: path.into(),
        host: HeaderValue::from_str(host).map_err(|_| Fault::new("host", "is not a valid header value"))?,
        headers: headers(
            context,
            &from.request_headers_to_add,
            &from.request_headers_to_remove,
            "request_headers_to_add",
        )?,
        expected,
        retriable: ranges(&from.retriable_statuses, "retriable_statuses")?,
    })
}

fn ranges(from: &[Int64Range], field: &str) -> Compiled<Vec<Range<u16>>> {
    let mut ranges = Vec::with_capacity(from.len());
    for (index, range) in from.iter().enumerate() {
        let fault = |reason: String| Fault::new(format!("{field}[{index}]"), reason);
        if range.start >= range.end {
            return Err(fault(format!(
                "Invalid http status range: expecting start < end, but found start={} and end={}",
                range.start, range.end
            )));
        }
        let (Ok(start), Ok(end)) = (u16::try_from(range.start), u16::try_from(range.end)) else {
            return Err(fault("Invalid http status range: codes are from 100 to 599".to_owned()));
        };
        if start < 100 || end > 600 {
            return Err(fault("Invalid http status range: codes are from 100 to 599".to_owned()));
        }
        ranges.push(start..end);
    }
    Ok(ranges)
}

/// Headers of checks. There is no request whose values they could quote.
fn headers(
    context: &Context<'_>,
    add: &[HeaderValueOption],
    remove: &[String],
    field: &str,
) -> Compiled<Vec<(HeaderName, Option<HeaderValue>)>> {
    let mutations = header::mutations(context, Mutations { side: "request", add, remove })?;
    let mut headers: Vec<(HeaderName, Option<HeaderValue>)> = Vec::new();
    for (index, add) in mutations.add.iter().enumerate() {
        let mut text = String::new();
        for part in &add.value.parts {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Operator(..) => {
                    return Err(Fault::new(
                        format!("{field}[{index}].header.value"),
                        "a check has no request whose values it could quote; give a constant",
                    ));
                }
            }
        }
        let own = add.name == "user-agent";
        match add.append {
            AppendAction::AddIfAbsent if own => continue,
            AppendAction::OverwriteIfExists if !own => continue,
            _ => {}
        }
        let value = HeaderValue::from_str(&text)
            .map_err(|_| Fault::new(format!("{field}[{index}].header.value"), "is not a valid header value"))?;
        headers.push((add.name.clone(), Some(value)));
    }
    headers.extend(mutations.remove.into_iter().map(|name| (name, None)));
    Ok(headers)
}

fn tcp(from: &TcpHealthCheck) -> Compiled<Ask> {
    let send = from.send.as_ref().map(bytes).transpose().within("send")?.unwrap_or_default();
    let mut receive = Vec::with_capacity(from.receive.len());
    for (index, one) in from.receive.iter().enumerate() {
        receive.push(bytes(one).at("receive", index)?);
    }
    Ok(Ask::Tcp { send, receive })
}

fn bytes(from: &Payload) -> Compiled<Bytes> {
    match &from.payload {
        Some(payload::Payload::Text(text)) => {
            let text = non_empty(text, "text")?;
            let digits: Option<Vec<u8>> = (0..text.len())
                .step_by(2)
                .map(|at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
                .collect();
            digits.map(Bytes::from).ok_or_else(|| Fault::new("text", format!("invalid hex string '{text}'")))
        }
        Some(payload::Payload::Binary(bytes)) => Ok(bytes.clone().into()),
        None => Err(Fault::new("payload", "value is required")),
    }
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, Message)]
struct GrpcRequest {
    #[prost(string, tag = "1")]
    service: String,
}

fn grpc(context: &Context<'_>, from: &GrpcHealthCheck, cluster: &Cluster) -> Compiled<GrpcAsk> {
    let message = GrpcRequest { service: from.service_name.clone() }.encode_to_vec();
    let length = u32::try_from(message.len()).map_err(|_| Fault::new("service_name", "is too long"))?;
    let mut request = BytesMut::new();
    request.put_u8(0);
    request.put_u32(length);
    request.extend_from_slice(&message);
    let authority = if from.authority.is_empty() { &cluster.name } else { &from.authority };
    Ok(GrpcAsk {
        request: request.freeze(),
        authority: HeaderValue::from_str(authority)
            .map_err(|_| Fault::new("authority", "is not a valid header value"))?,
        headers: headers(context, &from.initial_metadata, &[], "initial_metadata")?,
    })
}

/// `Endpoint.health_check_config`; `None` if it says nothing.
pub(crate) fn check_at(from: &HealthCheckConfig) -> Compiled<Option<CheckAt>> {
    let address = match &from.address {
        None => None,
        Some(address) => match address::target(address).within("address")? {
            Target::Ip(address) => Some(shika_data::model::cluster::EndpointAddress::Ip(address)),
            Target::Unix(path) => Some(shika_data::model::cluster::EndpointAddress::Unix(path)),
            Target::Name(name, _) => {
                return Err(Fault::new("address", format!("{name} is a name; health is asked for at an IP address")));
            }
        },
    };
    let port = match from.port_value {
        0 => None,
        port => Some(
            u16::try_from(port).map_err(|_| Fault::new("port_value", "value must be less than or equal to 65535"))?,
        ),
    };
    let hostname = match from.hostname.as_str() {
        "" => None,
        name => Some(HeaderValue::from_str(name).map_err(|_| Fault::new("hostname", "is not a valid header value"))?),
    };
    let check = CheckAt { address, port, hostname, disabled: from.disable_active_health_check };
    let says_nothing = check == CheckAt { address: None, port: None, hostname: None, disabled: false };
    Ok((!says_nothing).then_some(check))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_hexadecimal() {
        let text = |text: &str| bytes(&Payload { payload: Some(payload::Payload::Text(text.into())) });
        for (digits, wanted) in
            [("70696e67", Some(&b"ping"[..])), ("0", None), ("zz", None), ("", None), ("a\u{e9}", None)]
        {
            assert_eq!(text(digits).ok().as_deref(), wanted, "{digits}");
        }
    }

    #[test]
    fn ranges_of_codes_are_checked() {
        for (start, end, fine) in [
            (200, 201, true),
            (100, 600, true),
            (201, 201, false),
            (99, 200, false),
            (500, 601, false),
            (-1, 200, false),
        ] {
            assert_eq!(ranges(&[Int64Range { start, end }], "expected_statuses").is_ok(), fine, "{start} {end}");
        }
    }
}
