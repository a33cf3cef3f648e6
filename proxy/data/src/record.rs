//! What is written about a request or a connection when it ends, and how: access-log lines and header values from Envoy's command operators.

mod filter;
mod operator;

use std::{
    cell::Cell,
    fmt::Write,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Version};

use crate::{
    connection::Connection,
    error::ResponseFlags,
    model::{
        access_log::{AccessLog, LogFormat},
        cluster::{Cluster, Endpoint},
        format::{Format, JsonFormat, Part},
        header_view::HeaderView,
        rbac::RequestView,
    },
};

pub(crate) use operator::flags_text;
pub use operator::{hex, printable, protocol};

use operator::{Shown, append};

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
    pub response: Option<HeaderView<'a>>,
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
    /// Which Kuma resource the route stands for, if a filter asked for it.
    pub route_kri: Option<&'a str>,
    /// Somebody asked for this very request to be traced.
    pub traced: bool,
    /// The trace that it is part of, and its span.
    pub trace: Option<(u128, u64)>,
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
            route_kri: None,
            traced: false,
            trace: None,
            only_connected: false,
        }
    }
}

/// Room for a line that a thread keeps for the next one, in bytes.
const LONGEST_KEPT: usize = 64 * 1024;

thread_local! {
    /// A line, and a value within it before it is quoted.
    static LINE: Cell<(String, String)> = const { Cell::new((String::new(), String::new())) };
}

/// Writes one line to every log whose filter lets it through.
pub fn write(logs: &[AccessLog], record: &Record<'_>) {
    for log in logs {
        if log.filter.as_ref().is_some_and(|filter| !filter::passes(filter, record)) {
            continue;
        }
        // Its size is known at the end only: the line is put together where the last one was, and copied once.
        let (mut line, mut text) = LINE.take();
        line.clear();
        match &log.format {
            LogFormat::Text(format) => render(format, record, &mut line),
            LogFormat::Json(format) => {
                render_json(format, record, &mut text, &mut line);
                line.push('\n');
            }
        }
        log.sink.write(Bytes::copy_from_slice(line.as_bytes()));
        if line.capacity() <= LONGEST_KEPT && text.capacity() <= LONGEST_KEPT {
            LINE.set((line, text));
        }
    }
}

/// Appends a text format's output to `out`. An operator without a value is written `-`, or nothing with `omit_empty_values`.
pub fn render(format: &Format, record: &Record<'_>, out: &mut String) {
    for part in &format.parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Operator(operator, limit) => {
                let start = out.len();
                match append(operator, record, out) {
                    Some(_) => cut(out, start, *limit),
                    None if format.omit_empty => {}
                    None => out.push('-'),
                }
            }
        }
    }
}

/// Appends a header value: as [`render`], but an operator without a value is written as nothing when it stands alone, as Envoy does for headers.
pub fn render_header(format: &Format, record: &Record<'_>, out: &mut String) {
    match format.parts.as_slice() {
        [Part::Operator(operator, limit)] => {
            let start = out.len();
            append(operator, record, out);
            cut(out, start, *limit);
        }
        _ => render(format, record, out),
    }
}

/// `text` is room for a value before it is quoted.
fn render_json(format: &JsonFormat, record: &Record<'_>, text: &mut String, out: &mut String) {
    match format {
        JsonFormat::Object(fields) => {
            out.push('{');
            for (at, (name, field)) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                quote(name, out);
                out.push(':');
                render_json(field, record, text, out);
            }
            out.push('}');
        }
        JsonFormat::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                render_json(item, record, text, out);
            }
            out.push(']');
        }
        JsonFormat::Literal(literal) => out.push_str(literal),
        JsonFormat::Value(Format { parts, omit_empty }) if let [Part::Operator(operator, limit)] = parts.as_slice() => {
            text.clear();
            match append(operator, record, text) {
                Some(Shown::Number) => out.push_str(text),
                Some(Shown::Text) => {
                    cut(text, 0, *limit);
                    quote(text, out);
                }
                None if *omit_empty => out.push_str("\"\""),
                None => out.push_str("null"),
            }
        }
        JsonFormat::Text(format) | JsonFormat::Value(format) => {
            text.clear();
            render(format, record, text);
            quote(text, out);
        }
    }
}

/// Leaves no more than `limit` bytes after `start`, and whole characters.
fn cut(out: &mut String, start: usize, limit: Option<usize>) {
    if let Some(limit) = limit {
        out.truncate(out.floor_char_boundary(start.saturating_add(limit)));
    }
}

/// Appends a JSON string.
pub(crate) fn quote(text: &str, out: &mut String) {
    out.reserve(text.len() + 2);
    out.push('"');
    // Hardly any text has something to escape, and many bytes are looked at together if none of them may end the search.
    if text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\')) {
        escape(text, out);
    } else {
        out.push_str(text);
    }
    out.push('"');
}

fn escape(text: &str, out: &mut String) {
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escaped = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(text.get(plain..at).unwrap_or_default());
        out.push_str(escaped);
        if escaped.is_empty() {
            let _ = write!(out, "\\u{byte:04x}");
        }
        plain = at + 1;
    }
    out.push_str(text.get(plain..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped() {
        for (text, json) in [
            ("", r#""""#),
            ("plain, \u{e9} and \u{1f98c}", "\"plain, \u{e9} and \u{1f98c}\""),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("\r\n\t\0\u{1f}", r#""\r\n\t\u0000\u001f""#),
            ("\"", r#""\"""#),
        ] {
            let mut out = String::from(",");
            quote(text, &mut out);
            assert_eq!(out, format!(",{json}"));
        }
    }

    #[test]
    fn values_are_cut_between_characters() {
        for (value, limit, left) in [
            ("abc", Some(2), "ab"),
            ("abc", Some(3), "abc"),
            ("abc", Some(9), "abc"),
            ("a\u{e9}b", Some(2), "a"),
            ("abc", Some(0), ""),
            ("abc", None, "abc"),
        ] {
            let mut out = format!("\u{e9}{value}");
            cut(&mut out, 2, limit);
            assert_eq!(out, format!("\u{e9}{left}"));
        }
    }
}
