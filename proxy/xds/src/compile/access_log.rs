//! `config.accesslog.v3.AccessLog`: file, standard output, standard error, OpenTelemetry.

use shika_data::model::{
    access_log::{AccessLog, Comparison, ComparisonOp, LogFilter, LogFormat},
    format::Format,
    matcher::StringMatcher,
    route::Fraction,
};
use shika_proto::{
    any,
    envoy::{
        config::accesslog::v3::{
            self as proto, ComparisonFilter, MetadataFilter, access_log, access_log_filter::FilterSpecifier,
            comparison_filter::Op, extension_filter,
        },
        data::accesslog::v3::AccessLogType,
        extensions::access_loggers::{
            file::v3::{FileAccessLog, file_access_log},
            filters::cel::v3::ExpressionFilter,
            open_telemetry::v3::OpenTelemetryAccessLogConfig,
            stream::v3::{StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log},
        },
        r#type::matcher::v3::{metadata_matcher, value_matcher::MatchPattern},
    },
};

use super::{Compiled, Context, Fault, Within, enumeration, flag, format, matcher, non_empty, required, route, unpack};

mod cel;
mod open_telemetry;

/// Envoy's default line.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Deepest nesting of `and_filter` and `or_filter`.
const DEEPEST: usize = 32;

/// The list in the field `field`.
pub(crate) fn access_logs(
    context: &mut Context<'_>,
    from: &[proto::AccessLog],
    field: &str,
) -> Compiled<Vec<AccessLog>> {
    from.iter().enumerate().map(|(index, log)| access_log(context, log).at(field, index)).collect()
}

fn access_log(context: &mut Context<'_>, from: &proto::AccessLog) -> Compiled<AccessLog> {
    let filter = from.filter.as_ref().map(|filter| log_filter(filter, 0).within("filter")).transpose()?;
    let content = match &from.config_type {
        Some(access_log::ConfigType::TypedConfig(content)) => content,
        None => return Err(Fault::new("typed_config", "value is required")),
    };
    if any::is::<OpenTelemetryAccessLogConfig>(content) {
        let config: OpenTelemetryAccessLogConfig = unpack(content)?;
        let (format, collector) = open_telemetry::open_telemetry(context, &config).within("typed_config")?;
        return Ok(AccessLog { filter, format, sink: (context.log_collector)(&collector) });
    }
    let (path, format) = (|| {
        if any::is::<FileAccessLog>(content) {
            let file: FileAccessLog = unpack(content)?;
            let path = non_empty(&file.path, "path")?.to_owned();
            Ok((path, file_format(context, &file)?))
        } else if any::is::<StdoutAccessLog>(content) {
            let stream: StdoutAccessLog = unpack(content)?;
            let format =
                stream.access_log_format.as_ref().map(|stdout_access_log::AccessLogFormat::LogFormat(format)| format);
            Ok(("/dev/stdout".to_owned(), log_format(context, format)?))
        } else if any::is::<StderrAccessLog>(content) {
            let stream: StderrAccessLog = unpack(content)?;
            let format =
                stream.access_log_format.as_ref().map(|stderr_access_log::AccessLogFormat::LogFormat(format)| format);
            Ok(("/dev/stderr".to_owned(), log_format(context, format)?))
        } else {
            Err(Fault::new(
                "",
                format!(
                    "access logger {} is not supported; file, stdout, stderr and OpenTelemetry are",
                    content.type_url
                ),
            ))
        }
    })()
    .within("typed_config")?;
    Ok(AccessLog { filter, format, sink: (context.log_sink)(&path) })
}

fn default_format(context: &Context<'_>) -> Compiled<Format> {
    format::text(context, DEFAULT_FORMAT)
}

fn log_format(
    context: &Context<'_>,
    format: Option<&shika_proto::envoy::config::core::v3::SubstitutionFormatString>,
) -> Compiled<LogFormat> {
    match format {
        None => Ok(LogFormat::Text(default_format(context)?)),
        Some(format) => format::substitution(context, format).within("log_format"),
    }
}

fn file_format(context: &Context<'_>, file: &FileAccessLog) -> Compiled<LogFormat> {
    use file_access_log::AccessLogFormat as Source;
    Ok(match &file.access_log_format {
        None => LogFormat::Text(default_format(context)?),
        Some(Source::Format(line)) if line.is_empty() => LogFormat::Text(default_format(context)?),
        Some(Source::Format(line)) => LogFormat::Text(format::text(context, line).within("format")?),
        Some(Source::JsonFormat(object)) => {
            LogFormat::Json(format::json(context, object, false).within("json_format")?)
        }
        Some(Source::TypedJsonFormat(object)) => {
            LogFormat::Json(format::json(context, object, false).within("typed_json_format")?)
        }
        Some(Source::LogFormat(format)) => format::substitution(context, format).within("log_format")?,
    })
}

fn log_filter(from: &proto::AccessLogFilter, depth: usize) -> Compiled<LogFilter> {
    if depth > DEEPEST {
        return Err(Fault::new("", format!("is nested deeper than {DEEPEST} filters")));
    }
    let list = |filters: &[proto::AccessLogFilter]| -> Compiled<Vec<LogFilter>> {
        if filters.len() < 2 {
            return Err(Fault::new("filters", "value must contain at least 2 item(s)"));
        }
        filters.iter().enumerate().map(|(index, filter)| log_filter(filter, depth + 1).at("filters", index)).collect()
    };
    match &from.filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(filter)) => {
            Ok(LogFilter::StatusCode(comparison(&filter.comparison).within("status_code_filter")?))
        }
        Some(FilterSpecifier::DurationFilter(filter)) => {
            Ok(LogFilter::Duration(comparison(&filter.comparison).within("duration_filter")?))
        }
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => Ok(LogFilter::NotHealthCheck),
        Some(FilterSpecifier::TraceableFilter(_)) => Ok(LogFilter::Traceable),
        Some(FilterSpecifier::AndFilter(filter)) => Ok(LogFilter::And(list(&filter.filters).within("and_filter")?)),
        Some(FilterSpecifier::OrFilter(filter)) => Ok(LogFilter::Or(list(&filter.filters).within("or_filter")?)),
        Some(FilterSpecifier::HeaderFilter(filter)) => {
            let header = required(&filter.header, "header").and_then(|header| matcher::header(header).within("header"));
            Ok(LogFilter::Header(header.within("header_filter")?))
        }
        Some(FilterSpecifier::ResponseFlagFilter(filter)) => {
            for (index, flag) in filter.flags.iter().enumerate() {
                if !RESPONSE_FLAGS.contains(&flag.as_str()) {
                    let path = format!("response_flag_filter.flags[{index}]");
                    return Err(Fault::new(path, format!("{flag:?} is not one of {RESPONSE_FLAGS:?}")));
                }
            }
            Ok(LogFilter::ResponseFlags(filter.flags.iter().map(|flag| flag.as_str().into()).collect()))
        }
        Some(FilterSpecifier::RuntimeFilter(filter)) => {
            let share = match &filter.percent_sampled {
                // Envoy's default, for a key that nothing overrides.
                None => Fraction { numerator: 0, denominator: 100 },
                Some(share) => route::fraction(share).within("percent_sampled").within("runtime_filter")?,
            };
            Ok(LogFilter::Share { share, independent: filter.use_independent_randomness })
        }
        Some(FilterSpecifier::GrpcStatusFilter(filter)) => {
            let mut codes = Vec::with_capacity(filter.statuses.len());
            for (index, code) in filter.statuses.iter().enumerate() {
                codes.push(u64::try_from(*code).ok().filter(|code| *code <= 16).ok_or_else(|| {
                    Fault::new(
                        format!("grpc_status_filter.statuses[{index}]"),
                        format!("value must be one of the defined enum values, not {code}"),
                    )
                })?);
            }
            Ok(LogFilter::GrpcStatus { codes, exclude: filter.exclude })
        }
        Some(FilterSpecifier::LogTypeFilter(filter)) => {
            for (index, kind) in filter.types.iter().enumerate() {
                enumeration::<AccessLogType>(*kind, "").at("types", index).within("log_type_filter")?;
            }
            let passes = |kind: AccessLogType| filter.types.contains(&(kind as i32)) != filter.exclude;
            Ok(LogFilter::LogType {
                request_end: passes(AccessLogType::DownstreamEnd),
                connection_end: passes(AccessLogType::TcpConnectionEnd),
                connected: passes(AccessLogType::TcpUpstreamConnected),
            })
        }
        Some(FilterSpecifier::MetadataFilter(filter)) => metadata(filter).within("metadata_filter"),
        Some(FilterSpecifier::ExtensionFilter(filter)) => {
            let content = match &filter.config_type {
                Some(extension_filter::ConfigType::TypedConfig(content)) => content,
                None => return Err(Fault::new("extension_filter.typed_config", "value is required")),
            };
            (|| {
                if !any::is::<ExpressionFilter>(content) {
                    return Err(Fault::new(
                        "",
                        format!("access log filter {} is not supported; CEL is", content.type_url),
                    ));
                }
                let filter: ExpressionFilter = unpack(content)?;
                cel::expression(&filter.expression)
                    .map(LogFilter::Expression)
                    .map_err(|reason| Fault::new("expression", reason))
            })()
            .within("typed_config")
            .within("extension_filter")
        }
        None => Err(Fault::new("filter_specifier", "value is required")),
    }
}

/// The one value of dynamic metadata that anything sets: Kuma's name of the route.
const ROUTE_KRI: (&str, &str) = ("kuma.routes", "route_kri");

fn metadata(from: &MetadataFilter) -> Compiled<LogFilter> {
    let if_missing = flag(&from.match_if_key_not_found, true);
    let Some(wanted) = &from.matcher else { return Ok(LogFilter::Always(if_missing)) };
    let inner = || -> Compiled<_> {
        non_empty(&wanted.filter, "filter")?;
        let mut path = Vec::with_capacity(wanted.path.len());
        for (index, segment) in wanted.path.iter().enumerate() {
            match &segment.segment {
                Some(metadata_matcher::path_segment::Segment::Key(key)) => path.push(key.as_str()),
                None => return Err(Fault::new(format!("path[{index}].key"), "value is required")),
            }
        }
        let value = required(&wanted.value, "value")?;
        let text = match &value.match_pattern {
            Some(MatchPattern::StringMatch(text)) => {
                Some(matcher::string(text).within("string_match").within("value")?)
            }
            // A text that is there is neither of these.
            Some(MatchPattern::NullMatch(_) | MatchPattern::DoubleMatch(_) | MatchPattern::BoolMatch(_)) => None,
            Some(MatchPattern::PresentMatch(true)) => {
                Some(StringMatcher::Prefix { value: "".into(), ignore_case: false })
            }
            Some(MatchPattern::PresentMatch(false)) => None,
            Some(MatchPattern::ListMatch(_)) => {
                return Err(Fault::new("value.list_match", "is not supported; no metadata is a list"));
            }
            Some(MatchPattern::OrMatch(_)) => return Err(Fault::new("value.or_match", "is not supported")),
            None => return Err(Fault::new("value", "value is required")),
        };
        Ok(match (wanted.filter.as_str(), path.as_slice()) {
            (namespace, [key]) if (namespace, *key) == ROUTE_KRI => LogFilter::RouteKri { value: text, if_missing },
            _ => LogFilter::Always(if_missing),
        })
    };
    inner().within("matcher")
}

/// Envoy's short flags; those that never occur here simply never match.
const RESPONSE_FLAGS: [&str; 30] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX", "SI", "IH",
    "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR", "UDO",
];

fn comparison(from: &Option<ComparisonFilter>) -> Compiled<Comparison> {
    let from = required(from, "comparison")?;
    let op = match enumeration(from.op, "op").within("comparison")? {
        Op::Eq => ComparisonOp::Equal,
        Op::Ge => ComparisonOp::AtLeast,
        Op::Le => ComparisonOp::AtMost,
        Op::Ne => ComparisonOp::NotEqual,
    };
    let value = required(&from.value, "value").within("comparison")?;
    Ok(Comparison { op, value: value.default_value.into() })
}
