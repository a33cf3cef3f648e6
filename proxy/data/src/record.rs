//! What is written about a request or a connection when it ends, and how: access-log lines and header values from Envoy's command operators.

use std::{
    borrow::Cow,
    fmt::Write,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Version};

mod filter;

use crate::{
    connection::Connection,
    error::ResponseFlags,
    model::{
        access_log::{AccessLog, LogFormat},
        cluster::{Cluster, Endpoint},
        format::{AddressPart, Format, JsonFormat, Operator, Part, TimeFormat, WireBytes},
        matcher::{HeaderRef, joined_header},
        rbac::RequestView,
    },
};

/// All that operators can ask for. Built once, when a log line or a header value needs it; absent parts are `None`.
#[derive(Debug)]
pub struct Record<'a> {
    /// The downstream connection.
    pub connection: &'a Connection,
    /// Who asks: the connection's peer, or whom `x-forwarded-for` names.
    pub remote: Option<SocketAddr>,
    /// The request; `None` for a TCP connection.
    pub request: Option<RequestView<'a>>,
    /// The request's protocol.
    pub version: Option<Version>,
    /// Response headers.
    pub response: Option<&'a HeaderMap>,
    /// Response trailers.
    pub trailers: Option<&'a HeaderMap>,
    /// Response code; 0 when there is none.
    pub status: u16,
    /// Why that code.
    pub details: Option<&'a str>,
    /// Why the connection was closed.
    pub termination: Option<&'a str>,
    /// Response flags.
    pub flags: ResponseFlags,
    /// Start of the request or connection.
    pub start: Instant,
    /// The same by the wall clock.
    pub start_time: SystemTime,
    /// Last byte of the request received, since `start`.
    pub request_done: Option<Duration>,
    /// First byte of the response received, since `start`.
    pub response_start: Option<Duration>,
    /// Its end, since `start`.
    pub duration: Duration,
    /// Body bytes (HTTP) or all bytes (TCP) from the downstream.
    pub bytes_received: u64,
    /// Body bytes (HTTP) or all bytes (TCP) to the downstream.
    pub bytes_sent: u64,
    /// Name of the route.
    pub route: Option<&'a str>,
    /// Name of the virtual host.
    pub virtual_host: Option<&'a str>,
    /// The cluster chosen.
    pub cluster: Option<&'a Cluster>,
    /// The endpoint chosen.
    pub endpoint: Option<&'a Endpoint>,
    /// Protocol spoken to it.
    pub upstream_version: Option<Version>,
    /// Our address towards it.
    pub upstream_local: Option<SocketAddr>,
    /// Why a connection to it failed.
    pub upstream_failure: Option<&'a str>,
    /// Why the TLS handshake with the downstream failed.
    pub downstream_failure: Option<&'a str>,
    /// Tries made.
    pub attempts: u32,
    /// Identifies the request within the process.
    pub stream_id: Option<u64>,
    /// Which Kuma resource the route stands for, if a filter asked for it.
    pub route_kri: Option<&'a str>,
    /// Spans of the request are sent to a tracer.
    pub traced: bool,
    /// The line tells that the upstream is connected, not that it is over.
    pub only_connected: bool,
}

impl<'a> Record<'a> {
    /// A record of a connection with nothing known beyond it.
    pub fn of_connection(connection: &'a Connection) -> Self {
        Record {
            connection,
            remote: connection.remote,
            request: None,
            version: None,
            response: None,
            trailers: None,
            status: 0,
            details: None,
            termination: None,
            flags: ResponseFlags::default(),
            start: connection.start,
            start_time: connection.start_time,
            request_done: None,
            response_start: None,
            duration: connection.start.elapsed(),
            bytes_received: 0,
            bytes_sent: 0,
            route: None,
            virtual_host: None,
            cluster: None,
            endpoint: None,
            upstream_version: None,
            upstream_local: None,
            upstream_failure: None,
            downstream_failure: None,
            attempts: 0,
            stream_id: None,
            route_kri: None,
            traced: false,
            only_connected: false,
        }
    }
}

/// Writes one line to every log whose filter lets it through.
pub fn write(logs: &[AccessLog], record: &Record<'_>) {
    for log in logs {
        if log.filter.as_ref().is_some_and(|filter| !filter::passes(filter, record)) {
            continue;
        }
        let mut line = String::with_capacity(256);
        match &log.format {
            LogFormat::Text(format) => render(format, record, &mut line),
            LogFormat::Json(format) => {
                render_json(format, record, &mut line);
                line.push('\n');
            }
        }
        log.sink.write(Bytes::from(line));
    }
}

/// Appends a text format's output to `out`. An operator without a value is written `-`, or nothing with `omit_empty_values`.
pub fn render(format: &Format, record: &Record<'_>, out: &mut String) {
    for part in &format.parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Operator(operator, limit) => match value(operator, record) {
                Some(field) => out.push_str(cut(field.text(), *limit)),
                None if format.omit_empty => {}
                None => out.push('-'),
            },
        }
    }
}

/// Appends a header value: as [`render`], but an operator without a value is written as nothing when it stands alone, as Envoy does for headers.
pub fn render_header(format: &Format, record: &Record<'_>, out: &mut String) {
    if let [Part::Operator(operator, limit)] = format.parts.as_slice() {
        if let Some(field) = value(operator, record) {
            out.push_str(cut(field.text(), *limit));
        }
        return;
    }
    render(format, record, out);
}

fn render_json(format: &JsonFormat, record: &Record<'_>, out: &mut String) {
    match format {
        JsonFormat::Object(fields) => {
            out.push('{');
            for (at, (name, field)) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                quote(name, out);
                out.push(':');
                render_json(field, record, out);
            }
            out.push('}');
        }
        JsonFormat::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                render_json(item, record, out);
            }
            out.push(']');
        }
        JsonFormat::Literal(text) => out.push_str(text),
        JsonFormat::Value(format) => match format.parts.as_slice() {
            [Part::Operator(operator, limit)] => match value(operator, record) {
                Some(Field::Number(number, _)) => {
                    let _ = write!(out, "{number}");
                }
                Some(field) => quote(cut(field.text(), *limit), out),
                None if format.omit_empty => out.push_str("\"\""),
                None => out.push_str("null"),
            },
            _ => {
                let mut text = String::new();
                render(format, record, &mut text);
                quote(&text, out);
            }
        },
    }
}

/// Appends a JSON string.
pub(crate) fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The text with control characters escaped, so that what a peer says of itself stays within its line.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return text.into();
    }
    let escaped = |character: char| {
        if character.is_control() { character.escape_default().to_string() } else { character.to_string() }
    };
    text.chars().map(escaped).collect::<String>().into()
}

/// A requested server name as logs and header values show it: every byte that is in no host name becomes `_`, and a prefix says so.
///
/// Source: Envoy's answer to CVE-2024-45808, `StringUtil::sanitizeInvalidHostname`.
fn server_name(name: &str) -> Cow<'_, str> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.bytes().all(valid) {
        return name.into();
    }
    let shown = |byte: u8| if valid(byte) { char::from(byte) } else { '_' };
    format!("invalid:{}", name.bytes().map(shown).collect::<String>()).into()
}

fn cut(text: &str, limit: Option<usize>) -> &str {
    match limit {
        Some(limit) if limit < text.len() => {
            let mut end = limit;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.get(..end).unwrap_or(text)
        }
        _ => text,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

enum Field<'a> {
    Text(Cow<'a, str>),
    Number(u64, String),
}

impl Field<'_> {
    fn text(&self) -> &str {
        match self {
            Field::Text(text) => text,
            Field::Number(_, text) => text,
        }
    }
}

fn text<'a>(text: impl Into<Cow<'a, str>>) -> Option<Field<'a>> {
    let text = text.into();
    (!text.is_empty()).then_some(Field::Text(text))
}

fn number<'a>(number: u64) -> Option<Field<'a>> {
    Some(Field::Number(number, number.to_string()))
}

fn value<'a>(operator: &'a Operator, record: &'a Record<'a>) -> Option<Field<'a>> {
    let connection = record.connection;
    let tls = connection.tls.as_ref();
    let names = tls.and_then(|tls| tls.names.as_ref());
    match operator {
        Operator::StartTime(format) => text(start_time(format, record.start_time)),
        Operator::RequestHeader(name, alternative) => {
            let request = record.request.as_ref()?;
            let header = request_header(request, name).or_else(|| request_header(request, alternative.as_ref()?))?;
            Some(Field::Text(header))
        }
        Operator::ResponseHeader(name, alternative) => {
            let header = |name: &HeaderRef| match name {
                HeaderRef::Name(name) => joined_header(record.response?, name),
                HeaderRef::Status if record.status > 0 => Some(record.status.to_string().into()),
                _ => None,
            };
            Some(Field::Text(header(name).or_else(|| header(alternative.as_ref()?))?))
        }
        Operator::ResponseTrailer(name, alternative) => {
            let header = |name: &HeaderRef| match name {
                HeaderRef::Name(name) => joined_header(record.trailers?, name),
                _ => None,
            };
            Some(Field::Text(header(name).or_else(|| header(alternative.as_ref()?))?))
        }
        Operator::Protocol => text(protocol(record.version?)),
        Operator::UpstreamProtocol => text(protocol(record.upstream_version?)),
        Operator::ResponseCode => number(u64::from(record.status)),
        Operator::ResponseCodeDetails => text(record.details?),
        Operator::ConnectionTerminationDetails => text(record.termination?),
        Operator::ResponseFlags => text(flags(record.flags, |flag| flag.short())),
        Operator::ResponseFlagsLong => text(flags(record.flags, |flag| flag.long())),
        Operator::BytesReceived => number(record.bytes_received),
        Operator::BytesSent => number(record.bytes_sent),
        Operator::WireBytes(WireBytes::DownstreamReceived | WireBytes::UpstreamSent) => number(record.bytes_received),
        Operator::WireBytes(WireBytes::DownstreamSent | WireBytes::UpstreamReceived) => number(record.bytes_sent),
        Operator::Duration => number(millis(record.duration)),
        Operator::RequestDuration => number(millis(record.request_done?)),
        Operator::ResponseDuration => number(millis(record.response_start?)),
        Operator::ResponseTxDuration => number(millis(record.duration.checked_sub(record.response_start?)?)),
        Operator::UpstreamHost => text(record.endpoint?.address.to_string()),
        Operator::UpstreamCluster => text(&*record.cluster?.name),
        Operator::UpstreamLocalAddress(part) => address(record.upstream_local, *part),
        Operator::UpstreamRemoteAddress(part) => match &record.endpoint?.address {
            crate::model::cluster::EndpointAddress::Ip(ip) => address(Some(*ip), *part),
            unix => text(unix.to_string()),
        },
        Operator::UpstreamTransportFailureReason => text(record.upstream_failure?),
        Operator::AttemptCount => number(u64::from(record.attempts)),
        Operator::DownstreamLocalAddress(part) => address(connection.local, *part),
        Operator::DownstreamDirectLocalAddress(part) => address(connection.direct_local, *part),
        Operator::DownstreamRemoteAddress(part) => address(record.remote, *part),
        Operator::DownstreamDirectRemoteAddress(part) => address(connection.direct_remote, *part),
        Operator::PeerUriSan => text(printable(&names?.uris.join(",")).into_owned()),
        Operator::PeerDnsSan => text(printable(&names?.dns.join(",")).into_owned()),
        Operator::PeerSubject => text(&*names?.subject),
        Operator::PeerFingerprint => text(hex(&tls?.fingerprint?)),
        Operator::LocalUriSan => text(tls?.own_uri.as_deref()?),
        Operator::TlsVersion => text(tls?.version),
        Operator::TlsCipher => text(tls?.cipher),
        Operator::DownstreamTransportFailureReason => text(record.downstream_failure?),
        Operator::RequestedServerName => text(server_name(&connection.sni)),
        Operator::RouteName => text(record.route?),
        Operator::VirtualHostName => text(record.virtual_host?),
        Operator::ConnectionId => number(connection.id),
        Operator::StreamId => number(record.stream_id?),
        Operator::FilterChainName => {
            text(crate::worker::snapshot().chain(connection.listener, connection.chain)?.name.to_string())
        }
        Operator::Constant(constant) => text(&**constant),
        Operator::GrpcStatus { number: as_number } => {
            let status = record
                .trailers
                .and_then(|trailers| trailers.get("grpc-status"))
                .or_else(|| record.response?.get("grpc-status"))?
                .to_str()
                .ok()?
                .parse()
                .ok()?;
            if *as_number { number(status) } else { text(grpc_status_name(status)) }
        }
        Operator::Unset => None,
    }
}

fn request_header<'a>(request: &RequestView<'a>, name: &HeaderRef) -> Option<Cow<'a, str>> {
    match name {
        HeaderRef::Method => Some(request.method.into()),
        HeaderRef::Path => Some(request.path.into()),
        HeaderRef::Authority => (!request.authority.is_empty()).then_some(request.authority.into()),
        HeaderRef::Scheme => Some(request.scheme.into()),
        HeaderRef::Protocol | HeaderRef::Status => None,
        HeaderRef::Name(name) => joined_header(request.headers, name),
    }
}

fn address<'a>(address: Option<SocketAddr>, part: AddressPart) -> Option<Field<'a>> {
    let address = address?;
    match part {
        AddressPart::Full => text(address.to_string()),
        AddressPart::WithoutPort => text(address.ip().to_string()),
        AddressPart::Port => number(u64::from(address.port())),
    }
}

fn flags(flags: ResponseFlags, name: impl Fn(crate::error::ResponseFlag) -> &'static str) -> String {
    let mut text = String::new();
    if flags.is_empty() {
        // Also in JSON, where other operators without a value are null.
        text.push('-');
    }
    for flag in flags.iter() {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name(flag));
    }
    text
}

/// `%PROTOCOL%`'s spelling.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn start_time(format: &TimeFormat, time: SystemTime) -> String {
    let time: chrono::DateTime<chrono::Utc> = time.into();
    let format = match format {
        TimeFormat::Iso8601 => return time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        TimeFormat::Strftime(format) => format,
    };
    // The compiler has checked the format, so a write error cannot come from it; should one come, the line goes without the time.
    let mut out = String::new();
    let nanos = time.timestamp_subsec_nanos();
    let format = format
        .replace("%3f", &format!("{:03}", nanos / 1_000_000))
        .replace("%6f", &format!("{:06}", nanos / 1_000))
        .replace("%9f", &format!("{nanos:09}"));
    let _ = write!(out, "{}", time.format(&format));
    out
}

fn grpc_status_name(status: u64) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    usize::try_from(status).ok().and_then(|status| NAMES.get(status)).copied().unwrap_or("InvalidCode")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_of_itself_stays_within_its_line() {
        for (text, shown, name) in [
            ("backend.mesh", "backend.mesh", "backend.mesh"),
            ("a_b.c", "a_b.c", "a_b.c"),
            ("", "", ""),
            ("backend{mesh=default}", "backend{mesh=default}", "invalid:backend_mesh_default_"),
            ("evil{\nSNI=[forged] 200", "evil{\\nSNI=[forged] 200", "invalid:evil__SNI__forged__200"),
            ("a\r\0\u{1b}[2J", "a\\r\\u{0}\\u{1b}[2J", "invalid:a____2J"),
            ("\u{e9}.x", "\u{e9}.x", "invalid:__.x"),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(server_name(text), name);
        }
    }
}
