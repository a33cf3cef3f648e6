//! Values of Envoy's command operators.
//!
//! Source: Envoy documentation, "Access log command operators".

use std::{
    borrow::Cow,
    fmt::Write,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::Version;

use super::{Record, quote};
use crate::{
    error::ResponseFlags,
    model::{
        format::{AddressPart, Operator, TimeFormat, WireBytes},
        matcher::{HeaderRef, joined_header},
        rbac::RequestView,
    },
};

/// What an operator stands for.
pub(super) enum Field<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// A number, and the same as text.
    Number(u64, String),
}

impl Field<'_> {
    /// As it is written outside JSON.
    pub(super) fn text(&self) -> &str {
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

/// The value of an operator; `None` where it has none.
pub(super) fn value<'a>(operator: &'a Operator, record: &'a Record<'a>) -> Option<Field<'a>> {
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
        Operator::TraceId => {
            let trace = record.trace?.0;
            text(if trace >> 64 == 0 { format!("{trace:016x}") } else { format!("{trace:032x}") })
        }
        Operator::SpanId => text(format!("{:016x}", record.trace?.1)),
        Operator::Protocol => text(protocol(record.version?)),
        Operator::UpstreamProtocol => text(protocol(record.upstream_version?)),
        Operator::ResponseCode => number(u64::from(record.status)),
        Operator::ResponseCodeDetails => text(record.details?),
        Operator::ConnectionTerminationDetails => text(record.termination?),
        Operator::ResponseFlags => text(flags_text(record.flags)),
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
        // A stream is known by its request's id.
        Operator::StreamId => text(record.request.as_ref()?.headers.get("x-request-id")?.to_str().ok()?),
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
        Operator::RouteKri => text(record.route_kri?),
        Operator::FilterState { key, plain } => {
            let value = connection.filter_state.value(key)?;
            if *plain {
                return Some(Field::Text(value.into()));
            }
            let mut quoted = String::with_capacity(value.len() + 2);
            quote(value, &mut quoted);
            Some(Field::Text(quoted.into()))
        }
        // Requests have metadata of their own.
        Operator::ConnectionMetadata { namespace, key } if record.request.is_none() => {
            text(connection.filter_state.proxied()?.metadata(namespace, key)?)
        }
        Operator::ConnectionMetadata { .. } | Operator::Unset => None,
    }
}

pub(super) fn request_header<'a>(request: &RequestView<'a>, name: &HeaderRef) -> Option<Cow<'a, str>> {
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

/// `%RESPONSE_FLAGS%`
pub(crate) fn flags_text(of: ResponseFlags) -> String {
    flags(of, |flag| flag.short())
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
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
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

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
