//! Envoy's format strings: `core.v3.SubstitutionFormatString` and the text of headers.
//!
//! Source: Envoy "Access logging: format rules". An operator that does not exist, or that is not supported, is refused.

use std::sync::Arc;

use shika_data::model::{
    access_log::LogFormat,
    format::{AddressPart, Format, JsonFormat, Operator, Part, TimeFormat, WireBytes},
    matcher::HeaderRef,
};
use shika_proto::{
    envoy::config::core::v3::{SubstitutionFormatString, substitution_format_string},
    google::protobuf::{Struct, Value, value::Kind},
};

use super::{Compiled, Context, Fault, Within, matcher::header_ref, source};

/// Deepest nesting of a JSON format.
const DEEPEST_JSON: usize = 32;

/// `SubstitutionFormatString`
pub(crate) fn substitution(context: &Context<'_>, format: &SubstitutionFormatString) -> Compiled<LogFormat> {
    use substitution_format_string::Format as Source;
    let omit = format.omit_empty_values;
    Ok(match &format.format {
        Some(Source::TextFormat(line)) => LogFormat::Text(omitting(text(context, line).within("text_format")?, omit)),
        Some(Source::TextFormatSource(from)) => {
            let line = source::text(from).within("text_format_source")?;
            LogFormat::Text(omitting(text(context, &line).within("text_format_source")?, omit))
        }
        Some(Source::JsonFormat(object)) => LogFormat::Json(json(context, object, omit).within("json_format")?),
        None => return Err(Fault::new("format", "value is required")),
    })
}

fn omitting(mut format: Format, omit_empty: bool) -> Format {
    format.omit_empty = omit_empty;
    format
}

/// A JSON log line. Keys are sorted, as Envoy writes them.
pub(crate) fn json(context: &Context<'_>, object: &Struct, omit_empty: bool) -> Compiled<JsonFormat> {
    members(context, object, omit_empty, 0)
}

fn members(context: &Context<'_>, object: &Struct, omit_empty: bool, depth: usize) -> Compiled<JsonFormat> {
    let mut keys: Vec<_> = object.fields.iter().collect();
    keys.sort_by(|a, b| a.0.cmp(b.0));
    let members = keys
        .into_iter()
        .map(|(key, value)| Ok((key.as_str().into(), leaf(context, value, omit_empty, depth + 1).at_key("", key)?)))
        .collect::<Compiled<_>>()?;
    Ok(JsonFormat::Object(members))
}

fn leaf(context: &Context<'_>, value: &Value, omit_empty: bool, depth: usize) -> Compiled<JsonFormat> {
    if depth > DEEPEST_JSON {
        return Err(Fault::new("", format!("is nested deeper than {DEEPEST_JSON} levels")));
    }
    Ok(match &value.kind {
        Some(Kind::StringValue(line)) => JsonFormat::Value(omitting(text(context, line)?, omit_empty)),
        Some(Kind::StructValue(object)) => members(context, object, omit_empty, depth)?,
        Some(Kind::ListValue(list)) => JsonFormat::Array(
            list.values
                .iter()
                .enumerate()
                .map(|(index, value)| leaf(context, value, omit_empty, depth + 1).at("", index))
                .collect::<Compiled<_>>()?,
        ),
        Some(Kind::NumberValue(number)) => JsonFormat::Literal(
            serde_json::Number::from_f64(*number)
                .map(|exact| {
                    if number.fract() == 0.0 && number.abs() < 9e15 {
                        format!("{number:.0}")
                    } else {
                        exact.to_string()
                    }
                })
                .ok_or_else(|| Fault::new("", "must be a finite number"))?
                .into(),
        ),
        Some(Kind::BoolValue(value)) => JsonFormat::Literal(if *value { "true" } else { "false" }.into()),
        Some(Kind::NullValue(_)) | None => JsonFormat::Literal("null".into()),
    })
}

/// A text with operators.
pub(crate) fn text(context: &Context<'_>, line: &str) -> Compiled<Format> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('%') {
        plain.push_str(rest.get(..at).unwrap_or_default());
        let after = rest.get(at + 1..).unwrap_or_default();
        if let Some(more) = after.strip_prefix('%') {
            plain.push('%');
            rest = more;
            continue;
        }
        let (command, more) = Command::split(after).ok_or_else(|| {
            Fault::new(
                "",
                format!(
                    "Incorrect configuration: {line}. Couldn't find valid command at position {}",
                    line.len() - rest.len() + at
                ),
            )
        })?;
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain).into()));
        }
        let operator = command.operator(context)?;
        let limit = if matches!(operator, Operator::StartTime(_)) { None } else { command.limit };
        parts.push(Part::Operator(operator, limit));
        rest = more;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain.into()));
    }
    Ok(Format { parts, omit_empty: false })
}

/// `NAME(argument):limit`
struct Command<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    limit: Option<usize>,
}

impl<'a> Command<'a> {
    /// Takes a command and its closing `%` off the text that follows the opening one.
    fn split(text: &'a str) -> Option<(Self, &'a str)> {
        let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
        let name = text.get(..end).filter(|name| !name.is_empty())?;
        let rest = text.get(end..)?;
        let Some(inner) = rest.strip_prefix('(') else {
            let (limit, rest) = Self::limit(rest)?;
            return Some((Command { name, argument: None, limit }, rest));
        };
        // The argument may hold `%` and `)` itself: it ends at the first `)` that a limit or the closing `%` follows.
        inner.match_indices(')').find_map(|(at, _)| {
            let (limit, rest) = Self::limit(inner.get(at + 1..)?)?;
            Some((Command { name, argument: inner.get(..at), limit }, rest))
        })
    }

    /// `:123%` or `%`.
    fn limit(text: &str) -> Option<(Option<usize>, &str)> {
        match text.strip_prefix(':') {
            None => Some((None, text.strip_prefix('%')?)),
            Some(digits) => {
                let end = digits.find('%')?;
                let limit = digits.get(..end).filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
                Some((Some(limit.parse().ok()?), digits.get(end + 1..)?))
            }
        }
    }

    fn headers(&self) -> Compiled<(HeaderRef, Option<HeaderRef>)> {
        let argument =
            self.argument.ok_or_else(|| Fault::new("", format!("%{}% needs a header in parentheses", self.name)))?;
        let (main, alternative) = match argument.split_once('?') {
            Some((main, alternative)) => (main, Some(alternative)),
            None => (argument, None),
        };
        if alternative.is_some_and(|alternative| alternative.contains('?')) {
            return Err(Fault::new("", format!("more than 1 alternative header specified in token: {argument}")));
        }
        Ok((header_ref(main, "")?, alternative.map(|name| header_ref(name, "")).transpose()?))
    }

    fn operator(&self, context: &Context<'_>) -> Compiled<Operator> {
        use AddressPart::{Full, Port, WithoutPort};
        let pair =
            |make: fn(HeaderRef, Option<HeaderRef>) -> Operator| self.headers().map(|(main, other)| make(main, other));
        let operator = match self.name {
            "START_TIME" => match self.argument {
                None | Some("") => Operator::StartTime(TimeFormat::Iso8601),
                Some(format) => Operator::StartTime(TimeFormat::Strftime(format.into())),
            },
            "REQ" => pair(Operator::RequestHeader)?,
            "RESP" => pair(Operator::ResponseHeader)?,
            "TRAILER" => pair(Operator::ResponseTrailer)?,
            "DYNAMIC_METADATA" if self.argument == Some("kuma.routes:route_kri") => Operator::RouteKri,
            "FILTER_STATE" => {
                let argument =
                    self.argument.ok_or_else(|| Fault::new("", "%FILTER_STATE% needs a key in parentheses"))?;
                match argument.split_once(':') {
                    None => Operator::FilterState { key: argument.into(), plain: false },
                    Some((key, "TYPED")) => Operator::FilterState { key: key.into(), plain: false },
                    Some((key, "PLAIN")) => Operator::FilterState { key: key.into(), plain: true },
                    Some((_, other)) => {
                        let reason =
                            format!("Invalid filter state serialize type, only support PLAIN/TYPED, not {other}");
                        return Err(Fault::new("", reason));
                    }
                }
            }
            "DYNAMIC_METADATA" if self.argument.is_some_and(|argument| argument.matches(':').count() == 1) => {
                let (namespace, key) = self.argument.and_then(|argument| argument.split_once(':')).unwrap_or_default();
                Operator::ConnectionMetadata { namespace: namespace.into(), key: key.into() }
            }
            "DYNAMIC_METADATA" | "CLUSTER_METADATA" | "UPSTREAM_METADATA" | "UPSTREAM_FILTER_STATE" | "METADATA" => {
                self.argument
                    .ok_or_else(|| Fault::new("", format!("%{}% needs an argument in parentheses", self.name)))?;
                Operator::Unset
            }
            "ENVIRONMENT" => {
                let name = self
                    .argument
                    .ok_or_else(|| Fault::new("", "%ENVIRONMENT% needs the name of a variable in parentheses"))?;
                Operator::Constant(std::env::var(name).map_or_else(|_| Arc::from("-"), Arc::from))
            }
            "GRPC_STATUS" => match self.argument {
                None | Some("" | "CAMEL_STRING") => Operator::GrpcStatus { number: false },
                Some("NUMBER") => Operator::GrpcStatus { number: true },
                Some(other) => {
                    return Err(Fault::new(
                        "",
                        format!("%GRPC_STATUS({other})% is not supported; CAMEL_STRING and NUMBER are"),
                    ));
                }
            },
            name => {
                if let Some(argument) = self.argument {
                    return Err(Fault::new("", format!("Not supported field in StreamInfo: {name}({argument})")));
                }
                match name {
                    "TRACE_ID" => Operator::TraceId,
                    "SPAN_ID" => Operator::SpanId,
                    "PROTOCOL" => Operator::Protocol,
                    "UPSTREAM_PROTOCOL" => Operator::UpstreamProtocol,
                    "RESPONSE_CODE" => Operator::ResponseCode,
                    "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
                    "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
                    "RESPONSE_FLAGS" => Operator::ResponseFlags,
                    "RESPONSE_FLAGS_LONG" => Operator::ResponseFlagsLong,
                    "BYTES_RECEIVED" => Operator::BytesReceived,
                    "BYTES_SENT" => Operator::BytesSent,
                    "UPSTREAM_WIRE_BYTES_SENT" => Operator::WireBytes(WireBytes::UpstreamSent),
                    "UPSTREAM_WIRE_BYTES_RECEIVED" => Operator::WireBytes(WireBytes::UpstreamReceived),
                    "DOWNSTREAM_WIRE_BYTES_SENT" => Operator::WireBytes(WireBytes::DownstreamSent),
                    "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Operator::WireBytes(WireBytes::DownstreamReceived),
                    "DURATION" => Operator::Duration,
                    "REQUEST_DURATION" => Operator::RequestDuration,
                    "RESPONSE_DURATION" => Operator::ResponseDuration,
                    "RESPONSE_TX_DURATION" => Operator::ResponseTxDuration,
                    "UPSTREAM_HOST" => Operator::UpstreamHost,
                    "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
                    "UPSTREAM_LOCAL_ADDRESS" => Operator::UpstreamLocalAddress(Full),
                    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::UpstreamLocalAddress(WithoutPort),
                    "UPSTREAM_LOCAL_PORT" => Operator::UpstreamLocalAddress(Port),
                    "UPSTREAM_REMOTE_ADDRESS" => Operator::UpstreamRemoteAddress(Full),
                    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::UpstreamRemoteAddress(WithoutPort),
                    "UPSTREAM_REMOTE_PORT" => Operator::UpstreamRemoteAddress(Port),
                    "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
                    "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::AttemptCount,
                    "DOWNSTREAM_LOCAL_ADDRESS" => Operator::DownstreamLocalAddress(Full),
                    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::DownstreamLocalAddress(WithoutPort),
                    "DOWNSTREAM_LOCAL_PORT" => Operator::DownstreamLocalAddress(Port),
                    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Operator::DownstreamDirectLocalAddress(Full),
                    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => {
                        Operator::DownstreamDirectLocalAddress(WithoutPort)
                    }
                    "DOWNSTREAM_DIRECT_LOCAL_PORT" => Operator::DownstreamDirectLocalAddress(Port),
                    "DOWNSTREAM_REMOTE_ADDRESS" => Operator::DownstreamRemoteAddress(Full),
                    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::DownstreamRemoteAddress(WithoutPort),
                    "DOWNSTREAM_REMOTE_PORT" => Operator::DownstreamRemoteAddress(Port),
                    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::DownstreamDirectRemoteAddress(Full),
                    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
                        Operator::DownstreamDirectRemoteAddress(WithoutPort)
                    }
                    "DOWNSTREAM_DIRECT_REMOTE_PORT" => Operator::DownstreamDirectRemoteAddress(Port),
                    "DOWNSTREAM_PEER_URI_SAN" => Operator::PeerUriSan,
                    "DOWNSTREAM_PEER_DNS_SAN" => Operator::PeerDnsSan,
                    "DOWNSTREAM_PEER_SUBJECT" => Operator::PeerSubject,
                    "DOWNSTREAM_PEER_FINGERPRINT_256" => Operator::PeerFingerprint,
                    "DOWNSTREAM_LOCAL_URI_SAN" => Operator::LocalUriSan,
                    "DOWNSTREAM_TLS_VERSION" => Operator::TlsVersion,
                    "DOWNSTREAM_TLS_CIPHER" => Operator::TlsCipher,
                    "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Operator::DownstreamTransportFailureReason,
                    "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
                    "ROUTE_NAME" => Operator::RouteName,
                    "VIRTUAL_HOST_NAME" => Operator::VirtualHostName,
                    "CONNECTION_ID" => Operator::ConnectionId,
                    "STREAM_ID" => Operator::StreamId,
                    "FILTER_CHAIN_NAME" => Operator::FilterChainName,
                    "HOSTNAME" => Operator::Constant(context.hostname.into()),
                    "GRPC_STATUS_NUMBER" => Operator::GrpcStatus { number: true },
                    "VIRTUAL_CLUSTER_NAME" => Operator::Unset,
                    other => return Err(Fault::new("", format!("Not supported field in StreamInfo: {other}"))),
                }
            }
        };
        Ok(operator)
    }
}
