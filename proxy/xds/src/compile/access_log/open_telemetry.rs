//! `access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig`.

use std::time::Duration;

use shika_data::model::{
    access_log::{LogCollector, LogFormat},
    format::{JsonFormat, Operator, Part, TimeFormat},
};
use shika_proto::{
    envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig,
    opentelemetry::proto::common::v1::{AnyValue, KeyValue, any_value::Value},
};

use super::super::{Compiled, Context, Fault, Within, duration, format, non_empty, tracing, wrapped};

/// Deepest nesting of values.
const DEEPEST: usize = 32;
/// Nanoseconds since 1970.
const NANOSECONDS: &str = "%s%9f";

/// How a line looks, and who takes it.
pub(super) fn open_telemetry(
    context: &Context<'_>,
    from: &OpenTelemetryAccessLogConfig,
) -> Compiled<(LogFormat, LogCollector)> {
    let (field, common) = ("common_config", from.common_config.as_ref());
    let (cluster, target) = match (&from.http_service, &from.grpc_service, common) {
        (Some(_), Some(_), _) => return Err(Fault::new("http_service", "cannot be given beside grpc_service")),
        (Some(service), None, _) => tracing::http_service(service).within("http_service")?,
        (None, Some(service), _) => tracing::grpc(service).within("grpc_service")?,
        (None, None, Some(common)) => match &common.grpc_service {
            Some(service) => tracing::grpc(service).within("grpc_service").within(field)?,
            None => return Err(Fault::new("common_config.grpc_service", "value is required")),
        },
        (None, None, None) => return Err(Fault::new("grpc_service", "value is required")),
    };
    let log_name = match common {
        Some(common) if from.log_name.is_empty() => non_empty(&common.log_name, "log_name").within(field)?,
        _ => &from.log_name,
    };
    let flush = match duration(&from.buffer_flush_interval, "buffer_flush_interval")? {
        Some(flush) => Some(flush),
        None => match common {
            Some(common) => duration(&common.buffer_flush_interval, "buffer_flush_interval").within(field)?,
            None => None,
        },
    };
    if flush.is_some_and(|flush| flush.is_zero()) {
        return Err(Fault::new("buffer_flush_interval", "value must be greater than 0s"));
    }
    let bytes = wrapped(&from.buffer_size_bytes).or(common.and_then(|common| wrapped(&common.buffer_size_bytes)));
    let mut resource = Vec::new();
    for (index, one) in from.resource_attributes.iter().flat_map(|list| &list.values).enumerate() {
        let value = constant(one.value.as_ref(), 0).at("values", index).within("resource_attributes")?;
        resource.push((one.key.as_str().into(), value.to_string().into()));
    }
    let operator = |operator| JsonFormat::Value(single(operator));
    let mut line = vec![
        ("time".into(), operator(Operator::StartTime(TimeFormat::Strftime(NANOSECONDS.into())))),
        ("trace".into(), operator(Operator::TraceId)),
        ("span".into(), operator(Operator::SpanId)),
    ];
    if let Some(body) = &from.body {
        line.push(("body".into(), value(context, Some(body), 0).within("body")?));
    }
    if let Some(list) = &from.attributes {
        line.push(("attributes".into(), members(context, &list.values, 0).within("attributes")?));
    }
    let collector = LogCollector {
        cluster,
        target,
        log_name: (!from.disable_builtin_labels).then(|| log_name.into()),
        resource,
        flush: flush.unwrap_or(Duration::from_secs(1)),
        bytes: bytes.unwrap_or(16 * 1024),
    };
    Ok((LogFormat::Json(JsonFormat::Object(line)), collector))
}

fn single(operator: Operator) -> shika_data::model::format::Format {
    shika_data::model::format::Format { parts: vec![Part::Operator(operator, None)], omit_empty: false }
}

fn members(context: &Context<'_>, from: &[KeyValue], depth: usize) -> Compiled<JsonFormat> {
    let mut members = Vec::with_capacity(from.len());
    for (index, member) in from.iter().enumerate() {
        let value = value(context, member.value.as_ref(), depth + 1).within("value").at("values", index)?;
        members.push((member.key.as_str().into(), value));
    }
    Ok(JsonFormat::Object(members))
}

/// A value whose texts are formats. Source: Envoy `OpenTelemetryFormatter`, which takes no others.
fn value(context: &Context<'_>, from: Option<&AnyValue>, depth: usize) -> Compiled<JsonFormat> {
    if depth > DEEPEST {
        return Err(Fault::new("", format!("is nested deeper than {DEEPEST} levels")));
    }
    Ok(match from.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(line)) => JsonFormat::Text(format::text(context, line).within("string_value")?),
        Some(Value::KvlistValue(list)) => members(context, &list.values, depth).within("kvlist_value")?,
        Some(Value::ArrayValue(list)) => {
            let items = list.values.iter().enumerate();
            let items = items.map(|(index, item)| value(context, Some(item), depth + 1).at("values", index));
            JsonFormat::Array(items.collect::<Compiled<_>>().within("array_value")?)
        }
        _ => {
            return Err(Fault::new(
                "value",
                "Only string values, nested key value lists and array values are supported in OpenTelemetry access log format.",
            ));
        }
    })
}

/// A value that stays as it is.
fn constant(from: Option<&AnyValue>, depth: usize) -> Compiled<serde_json::Value> {
    use serde_json::Value as Json;
    if depth > DEEPEST {
        return Err(Fault::new("value", format!("is nested deeper than {DEEPEST} levels")));
    }
    Ok(match from.and_then(|value| value.value.as_ref()) {
        None => Json::Null,
        Some(Value::StringValue(text)) => text.as_str().into(),
        Some(Value::BoolValue(value)) => (*value).into(),
        Some(Value::IntValue(value)) => (*value).into(),
        Some(Value::DoubleValue(value)) => (*value).into(),
        Some(Value::ArrayValue(list)) => {
            Json::Array(list.values.iter().map(|value| constant(Some(value), depth + 1)).collect::<Compiled<_>>()?)
        }
        Some(Value::KvlistValue(list)) => {
            let members = list.values.iter();
            let members = members.map(|one| Ok((one.key.clone(), constant(one.value.as_ref(), depth + 1)?)));
            Json::Object(members.collect::<Compiled<_>>()?)
        }
        Some(Value::BytesValue(_)) => return Err(Fault::new("value.bytes_value", "is not supported; use a text")),
        Some(Value::StringValueStrindex(_)) => {
            return Err(Fault::new("value.string_value_strindex", "is not supported; use string_value"));
        }
    })
}
