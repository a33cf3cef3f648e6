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
        rbac::RequestView,
    },
};

pub(crate) use operator::flags_text;
pub use operator::{hex, printable, protocol};

use operator::{Field, value};

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
    static LINE: Cell<String> = const { Cell::new(String::new()) };
}

/// Writes one line to every log whose filter lets it through.
pub fn write(logs: &[AccessLog], record: &Record<'_>) {
    for log in logs {
        if log.filter.as_ref().is_some_and(|filter| !filter::passes(filter, record)) {
            continue;
        }
        // Its size is known at the end only: the line is put together where the last one was, and copied once.
        let mut line = LINE.take();
        line.clear();
        match &log.format {
            LogFormat::Text(format) => render(format, record, &mut line),
            LogFormat::Json(format) => {
                render_json(format, record, &mut line);
                line.push('\n');
            }
        }
        log.sink.write(Bytes::copy_from_slice(line.as_bytes()));
        if line.capacity() <= LONGEST_KEPT {
            LINE.set(line);
        }
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
        JsonFormat::Text(format) => {
            let mut text = String::new();
            render(format, record, &mut text);
            quote(&text, out);
        }
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
