//! Values of Envoy's command operators.
//!
//! Source: Envoy documentation, "Access log command operators".

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt::{Display, Write},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use http::Version;

use super::{Record, quote};
use crate::{
    error::{ResponseFlag, ResponseFlags},
    model::{
        cluster::EndpointAddress,
        format::{AddressPart, GRPC_STATUS, Operator, REQUEST_ID, TimeFormat, WireBytes},
        header_view::HeaderView,
        matcher::HeaderRef,
        rbac::RequestView,
    },
};

/// What was written for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Text.
    Text,
    /// A number, which JSON does not quote.
    Number,
}

/// Appends the value of an operator; `None` where it has none, and then nothing is appended.
pub(super) fn append(operator: &Operator, record: &Record<'_>, out: &mut String) -> Option<Shown> {
    let connection = record.connection;
    let tls = connection.tls.as_ref();
    let names = tls.and_then(|tls| tls.names.as_ref());
    match operator {
        Operator::StartTime(format) => start_time(format, record.start_time, out),
        Operator::RequestHeader(name, alternative) => {
            let request = record.request.as_ref()?;
            let header = request_header(request, name).or_else(|| request_header(request, alternative.as_ref()?));
            said(&header?, out)
        }
        Operator::ResponseHeader(name, alternative) => {
            response_header(record, name, out).or_else(|| response_header(record, alternative.as_ref()?, out))
        }
        Operator::ResponseTrailer(name, alternative) => {
            let header = |name: &HeaderRef| match name {
                HeaderRef::Name(name) => HeaderView::from(record.trailers?).joined(name),
                _ => None,
            };
            said(&header(name).or_else(|| header(alternative.as_ref()?))?, out)
        }
        Operator::TraceId => {
            let trace = record.trace?.0;
            let digits = if trace >> 64 == 0 { 16 } else { 32 };
            display(format_args!("{trace:0digits$x}"), out)
        }
        Operator::SpanId => display(format_args!("{:016x}", record.trace?.1), out),
        Operator::Protocol => text(protocol(record.version?), out),
        Operator::UpstreamProtocol => text(protocol(record.upstream_version?), out),
        Operator::ResponseCode => number(u64::from(record.status), out),
        Operator::ResponseCodeDetails => text(record.details?, out),
        Operator::ConnectionTerminationDetails => text(record.termination?, out),
        Operator::ResponseFlags => flags(record.flags, ResponseFlag::short, out),
        Operator::ResponseFlagsLong => flags(record.flags, ResponseFlag::long, out),
        Operator::BytesReceived => number(record.bytes_received, out),
        Operator::BytesSent => number(record.bytes_sent, out),
        Operator::WireBytes(WireBytes::DownstreamReceived | WireBytes::UpstreamSent) => {
            number(record.bytes_received, out)
        }
        Operator::WireBytes(WireBytes::DownstreamSent | WireBytes::UpstreamReceived) => number(record.bytes_sent, out),
        Operator::Duration => number(millis(record.duration), out),
        Operator::RequestDuration => number(millis(record.request_done?), out),
        Operator::ResponseDuration => number(millis(record.response_start?), out),
        Operator::ResponseTxDuration => number(millis(record.duration.checked_sub(record.response_start?)?), out),
        Operator::UpstreamHost => upstream(record, AddressPart::Full, out),
        Operator::UpstreamCluster => text(&record.cluster?.name, out),
        Operator::UpstreamLocalAddress(part) => address(record.upstream_local, *part, out),
        Operator::UpstreamRemoteAddress(part) => upstream(record, *part, out),
        Operator::UpstreamTransportFailureReason => text(record.upstream_failure?, out),
        Operator::AttemptCount => number(u64::from(record.attempts), out),
        Operator::DownstreamLocalAddress(part) => address(connection.local, *part, out),
        Operator::DownstreamDirectLocalAddress(part) => address(connection.direct_local, *part, out),
        Operator::DownstreamRemoteAddress(part) => address(record.remote, *part, out),
        Operator::DownstreamDirectRemoteAddress(part) => address(connection.direct_remote, *part, out),
        Operator::PeerUriSan => text(&printable(&names?.uris.join(",")), out),
        Operator::PeerDnsSan => text(&printable(&names?.dns.join(",")), out),
        Operator::PeerSubject => text(&names?.subject, out),
        Operator::PeerFingerprint => text(&hex(&tls?.fingerprint?), out),
        Operator::LocalUriSan => text(tls?.own_uri.as_deref()?, out),
        Operator::TlsVersion => text(tls?.version, out),
        Operator::TlsCipher => text(tls?.cipher, out),
        Operator::DownstreamTransportFailureReason => text(record.downstream_failure?, out),
        Operator::RequestedServerName => text(&server_name(&connection.sni), out),
        Operator::RouteName => text(record.route?, out),
        Operator::VirtualHostName => text(record.virtual_host?, out),
        Operator::ConnectionId => number(connection.id, out),
        // A stream is known by its request's id.
        Operator::StreamId => text(record.request.as_ref()?.headers.get(&REQUEST_ID)?.to_str().ok()?, out),
        Operator::FilterChainName => {
            text(&crate::worker::snapshot().chain(connection.listener, connection.chain)?.name, out)
        }
        Operator::Constant(constant) => text(constant, out),
        Operator::GrpcStatus { number: as_number } => {
            let status = record
                .trailers
                .and_then(|trailers| trailers.get("grpc-status"))
                .or_else(|| record.response?.get(&GRPC_STATUS))?
                .to_str()
                .ok()?
                .parse()
                .ok()?;
            if *as_number { number(status, out) } else { text(grpc_status_name(status), out) }
        }
        Operator::RouteKri => text(record.route_kri?, out),
        Operator::FilterState { key, plain } => {
            let value = connection.filter_state.value(key)?;
            if *plain {
                return said(value, out);
            }
            quote(value, out);
            Some(Shown::Text)
        }
        // Requests have metadata of their own.
        Operator::ConnectionMetadata { namespace, key } if record.request.is_none() => {
            text(connection.filter_state.proxied()?.metadata(namespace, key)?, out)
        }
        Operator::ConnectionMetadata { .. } | Operator::Unset => None,
    }
}

/// An empty text is none.
fn text(text: &str, out: &mut String) -> Option<Shown> {
    out.push_str(text);
    (!text.is_empty()).then_some(Shown::Text)
}

/// Something that somebody said is there, even if it is empty.
fn said(text: &str, out: &mut String) -> Option<Shown> {
    out.push_str(text);
    Some(Shown::Text)
}

fn number(number: u64, out: &mut String) -> Option<Shown> {
    out.push_str(itoa::Buffer::new().format(number));
    Some(Shown::Number)
}

fn display(value: impl Display, out: &mut String) -> Option<Shown> {
    // A String takes all there is.
    let _ = write!(out, "{value}");
    Some(Shown::Text)
}

fn response_header(record: &Record<'_>, name: &HeaderRef, out: &mut String) -> Option<Shown> {
    match name {
        HeaderRef::Name(name) => said(&record.response?.joined(name)?, out),
        HeaderRef::Status if record.status > 0 => number(u64::from(record.status), out).map(|_| Shown::Text),
        _ => None,
    }
}

pub(super) fn request_header<'a>(request: &RequestView<'a>, name: &HeaderRef) -> Option<Cow<'a, str>> {
    match name {
        HeaderRef::Method => Some(request.method.into()),
        HeaderRef::Path => Some(request.path.into()),
        HeaderRef::Authority => (!request.authority.is_empty()).then_some(request.authority.into()),
        HeaderRef::Scheme => Some(request.scheme.into()),
        HeaderRef::Protocol | HeaderRef::Status => None,
        HeaderRef::Name(name) => request.headers.joined(name),
    }
}

fn upstream(record: &Record<'_>, part: AddressPart, out: &mut String) -> Option<Shown> {
    match &record.endpoint?.address {
        EndpointAddress::Ip(ip) => address(Some(*ip), part, out),
        other => display(other, out),
    }
}

fn address(address: Option<SocketAddr>, part: AddressPart, out: &mut String) -> Option<Shown> {
    let address = address?;
    match (part, address.ip()) {
        (AddressPart::Port, _) => number(u64::from(address.port()), out),
        (_, IpAddr::V4(ip)) => {
            // Put together here: the library's formatting takes several times as long, and a line has several addresses.
            for (at, octet) in ip.octets().into_iter().enumerate() {
                if at > 0 {
                    out.push('.');
                }
                out.push_str(itoa::Buffer::new().format(octet));
            }
            if part == AddressPart::Full {
                out.push(':');
                out.push_str(itoa::Buffer::new().format(address.port()));
            }
            Some(Shown::Text)
        }
        (AddressPart::Full, IpAddr::V6(_)) => display(address, out),
        (AddressPart::WithoutPort, IpAddr::V6(ip)) => display(ip, out),
    }
}

/// `%RESPONSE_FLAGS%`
pub(crate) fn flags_text(of: ResponseFlags) -> String {
    let mut text = String::new();
    flags(of, ResponseFlag::short, &mut text);
    text
}

fn flags(flags: ResponseFlags, name: impl Fn(ResponseFlag) -> &'static str, out: &mut String) -> Option<Shown> {
    if flags.is_empty() {
        // Also in JSON, where other operators without a value are null.
        out.push('-');
    }
    for (at, flag) in flags.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(name(flag));
    }
    Some(Shown::Text)
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

thread_local! {
    /// The last second that this thread wrote, since 1970, as text.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

fn start_time(format: &TimeFormat, time: SystemTime, out: &mut String) -> Option<Shown> {
    let format = match format {
        TimeFormat::Iso8601 => return iso8601(time, out),
        TimeFormat::Strftime(format) => format,
    };
    let time: DateTime<Utc> = time.into();
    let nanos = time.timestamp_subsec_nanos();
    let format = format
        .replace("%3f", &format!("{:03}", nanos / 1_000_000))
        .replace("%6f", &format!("{:06}", nanos / 1_000))
        .replace("%9f", &format!("{nanos:09}"));
    // The compiler has checked the format, so a write error cannot come from it; should one come, the line goes without the time.
    let start = out.len();
    let _ = write!(out, "{}", time.format(&format));
    (out.len() > start).then_some(Shown::Text)
}

/// Envoy's default, such as `2026-01-31T12:30:00.125Z`. Its seconds stay the same for many lines.
fn iso8601(time: SystemTime, out: &mut String) -> Option<Shown> {
    let Ok(since) = time.duration_since(SystemTime::UNIX_EPOCH) else {
        return display(DateTime::<Utc>::from(time).format("%Y-%m-%dT%H:%M:%S%.3fZ"), out);
    };
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            text.clear();
            *second = since.as_secs();
            let _ = write!(text, "{}", DateTime::<Utc>::from(time).format("%Y-%m-%dT%H:%M:%S."));
        }
        out.push_str(text);
    });
    let millis = since.subsec_millis();
    for leading in [100, 10] {
        if millis < leading {
            out.push('0');
        }
    }
    out.push_str(itoa::Buffer::new().format(millis));
    out.push('Z');
    Some(Shown::Text)
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

    #[test]
    fn times_are_written_to_the_millisecond() {
        let at = |millis: i64| {
            let since = Duration::from_millis(millis.unsigned_abs());
            let epoch = SystemTime::UNIX_EPOCH;
            let mut out = String::from("at ");
            start_time(&TimeFormat::Iso8601, if millis < 0 { epoch - since } else { epoch + since }, &mut out);
            out
        };
        for (millis, text) in [
            (0, "at 1970-01-01T00:00:00.000Z"),
            (7, "at 1970-01-01T00:00:00.007Z"),
            (1_769_862_600_125, "at 2026-01-31T12:30:00.125Z"),
            // The second that was written last, and the one before it.
            (1_769_862_600_099, "at 2026-01-31T12:30:00.099Z"),
            (1_769_862_599_999, "at 2026-01-31T12:29:59.999Z"),
            (-1, "at 1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(at(millis), text);
        }
        let mut out = String::new();
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_769_862_600_000_012_345);
        start_time(&TimeFormat::Strftime("%s %3f %6f %9f".into()), time, &mut out);
        assert_eq!(out, "1769862600 000 000012 000012345");
    }

    #[test]
    fn addresses_are_written_whole_and_in_parts() {
        for (text, ip, port) in [
            ("10.0.255.1:8080", "10.0.255.1", "8080"),
            ("0.0.0.0:0", "0.0.0.0", "0"),
            ("[2001:db8::1]:443", "2001:db8::1", "443"),
        ] {
            for (part, shown) in [(AddressPart::Full, text), (AddressPart::WithoutPort, ip), (AddressPart::Port, port)]
            {
                let mut out = String::new();
                let kind = address(text.parse().ok(), part, &mut out);
                assert_eq!((out.as_str(), kind == Some(Shown::Number)), (shown, part == AddressPart::Port));
            }
        }
        assert_eq!(address(None, AddressPart::Full, &mut String::new()), None);
    }
}
