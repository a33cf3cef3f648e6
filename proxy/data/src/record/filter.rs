//! Which log lines are written.
//!
//! Source: Envoy `AccessLogFilter`, `access_loggers.filters.cel.v3.ExpressionFilter`.

use std::borrow::Cow;

use super::{
    Record,
    operator::{millis, request_header},
};
use crate::{
    model::{
        access_log::{Attribute, Expression, LogFilter, NumberAttribute},
        format::{GRPC_STATUS, REQUEST_ID},
        header_view::HeaderView,
    },
    worker,
};

/// Whether a filter lets a line through.
pub(super) fn passes(filter: &LogFilter, record: &Record<'_>) -> bool {
    match filter {
        LogFilter::StatusCode(comparison) => comparison.holds(u64::from(record.status)),
        LogFilter::Duration(comparison) => comparison.holds(millis(record.duration)),
        // Health checks are recognised by a filter that is not there, so the outcome is known.
        LogFilter::NotHealthCheck => true,
        LogFilter::Traceable => record.traced,
        LogFilter::And(filters) => filters.iter().all(|filter| passes(filter, record)),
        LogFilter::Or(filters) => filters.iter().any(|filter| passes(filter, record)),
        LogFilter::Header(matcher) => record.request.is_some_and(|request| request.header_matches(matcher)),
        LogFilter::ResponseFlags(wanted) if wanted.is_empty() => !record.flags.is_empty(),
        LogFilter::ResponseFlags(wanted) => {
            record.flags.iter().any(|flag| wanted.iter().any(|name| **name == *flag.short()))
        }
        LogFilter::GrpcStatus { codes, exclude } => codes.contains(&grpc_status(record)) != *exclude,
        LogFilter::Share { share, independent } => {
            let drawn = if *independent { None } else { of_request_id(record) };
            drawn.unwrap_or_else(worker::random) % u64::from(share.denominator.max(1)) < u64::from(share.numerator)
        }
        LogFilter::LogType { connected, .. } if record.only_connected => *connected,
        LogFilter::LogType { request_end, connection_end, .. } => match record.request {
            Some(_) => *request_end,
            None => *connection_end,
        },
        LogFilter::RouteKri { value, if_missing } => match record.route_kri {
            Some(kri) => value.as_ref().is_some_and(|value| value.matches(kri)),
            None => *if_missing,
        },
        LogFilter::Always(outcome) => *outcome,
        LogFilter::Expression(expression) => holds(expression, record) == Some(true),
    }
}

/// The number that a request's id stands for: its first eight hexadecimal digits.
fn of_request_id(record: &Record<'_>) -> Option<u64> {
    let id = record.request?.headers.get(&REQUEST_ID)?.to_str().ok()?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}

/// The gRPC status: what the response says of itself, else what its HTTP status stands for.
///
/// Source: Envoy `GrpcStatusFilter::evaluate`, gRPC "HTTP to gRPC status code mapping".
fn grpc_status(record: &Record<'_>) -> u64 {
    let said = [record.trailers.map(HeaderView::All), record.response]
        .into_iter()
        .flatten()
        .find_map(|headers| headers.get(&GRPC_STATUS));
    let said = said.and_then(|value| value.to_str().ok()?.parse().ok());
    said.unwrap_or(match record.status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    })
}

/// `None`: the expression asks for what is not there, and its outcome depends on it.
fn holds(expression: &Expression, record: &Record<'_>) -> Option<bool> {
    // One certain answer decides, however uncertain the others are.
    let decided_by = |parts: &[Expression], answer: bool| {
        let mut outcome = Some(!answer);
        for part in parts {
            match holds(part, record) {
                Some(value) if value == answer => return Some(answer),
                Some(_) => {}
                None => outcome = None,
            }
        }
        outcome
    };
    match expression {
        Expression::And(parts) => decided_by(parts, false),
        Expression::Or(parts) => decided_by(parts, true),
        Expression::Not(part) => holds(part, record).map(|value| !value),
        Expression::Text(attribute, matcher) => Some(matcher.matches(&text(attribute, record)?)),
        Expression::Number(attribute, relation, wanted) => Some(relation.holds(number(*attribute, record)?, *wanted)),
    }
}

fn text<'a>(attribute: &Attribute, record: &'a Record<'a>) -> Option<Cow<'a, str>> {
    let names = || record.connection.tls.as_ref()?.names.as_ref();
    match attribute {
        Attribute::PeerUriSan => names()?.uris.first().map(|uri| Cow::Borrowed(&**uri)),
        Attribute::PeerDnsSan => names()?.dns.first().map(|name| Cow::Borrowed(&**name)),
        Attribute::PeerSubject => Some(Cow::Borrowed(&*names()?.subject)),
        Attribute::RequestedServerName => Some(Cow::Borrowed(&record.connection.sni)),
        Attribute::Header(name) => request_header(record.request.as_ref()?, name),
        Attribute::UrlPath => {
            let path = record.request?.path;
            Some(path.split(['?', '#']).next().unwrap_or(path).into())
        }
    }
}

fn number(attribute: NumberAttribute, record: &Record<'_>) -> Option<u64> {
    match attribute {
        NumberAttribute::ResponseCode => (record.status > 0).then_some(record.status.into()),
        NumberAttribute::SourcePort => record.remote.map(|address| address.port().into()),
        NumberAttribute::DestinationPort => record.connection.local.map(|address| address.port().into()),
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
