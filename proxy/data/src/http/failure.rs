//! Tries that failed, and the answers that stand for them.
//!
//! Source: Envoy "Response flags", router's local replies.

use http::{Response, StatusCode};

use super::{
    body::ResponseBody,
    exchange::Exchange,
    head::Head,
    limits::Expired,
    local_reply::Refusal,
    request::{Matched, reply},
};
use crate::{error::ResponseFlag, model::cluster::Cluster, upstream::pool::AcquireError};

/// The gRPC status.
const DEADLINE_EXCEEDED: u32 = 4;

/// Why a try failed.
#[derive(Debug)]
pub(super) enum Failure {
    Acquire(AcquireError),
    Send(hyper::Error),
    /// The response has a header that is none.
    BadResponse,
    /// A further try found no endpoint.
    NoHost,
    BadTarget,
}

/// The circuit breaker's answer.
pub(super) fn overflow(
    exchange: Box<Exchange>,
    head: &Head,
    matched: Matched<'_>,
    cluster: &Cluster,
) -> Response<ResponseBody> {
    cluster.stats.count_code(exchange.origin, 503);
    let mut refusal = Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        "upstream_reset_before_response_started{overflow}",
    )
    .flag(ResponseFlag::UpstreamOverflow);
    refusal.overloaded = true;
    reply(exchange, head, Some(matched), refusal)
}

pub(super) fn fail(
    mut exchange: Box<Exchange>,
    head: &Head,
    matched: Matched<'_>,
    cluster: &Cluster,
    failure: Failure,
) -> Response<ResponseBody> {
    let (reason, flag, status) = match &failure {
        Failure::Acquire(AcquireError::Overflow) => return overflow(exchange, head, matched, cluster),
        Failure::Acquire(AcquireError::Connect(error)) => {
            exchange.upstream_failure = Some(error.to_string());
            let reason = match error {
                crate::error::ConnectError::Timeout => "connection timeout",
                crate::error::ConnectError::Local { .. } => "local connection failure",
                _ => "remote connection failure",
            };
            (reason, ResponseFlag::UpstreamConnectionFailure, StatusCode::SERVICE_UNAVAILABLE)
        }
        Failure::Send(error) => {
            let (reason, flag, status) = classify(error);
            match flag {
                ResponseFlag::UpstreamProtocolError => cluster.stats.upstream_cx_protocol_error().inc(),
                ResponseFlag::UpstreamRemoteReset => cluster.stats.upstream_rq_rx_reset().inc(),
                // The end of a connection is no reset of a stream.
                _ => {}
            }
            (reason, flag, status)
        }
        Failure::BadResponse => {
            cluster.stats.upstream_cx_protocol_error().inc();
            ("protocol error", ResponseFlag::UpstreamProtocolError, StatusCode::BAD_GATEWAY)
        }
        Failure::NoHost => {
            cluster.stats.count_code(exchange.origin, 503);
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", "no_healthy_upstream")
                .flag(ResponseFlag::NoHealthyUpstream);
            return reply(exchange, head, Some(matched), refusal);
        }
        Failure::BadTarget => {
            return reply(
                exchange,
                head,
                Some(matched),
                Refusal::new(StatusCode::BAD_REQUEST, "", "invalid_authority"),
            );
        }
    };
    cluster.stats.count_code(exchange.origin, status.as_u16());
    // Why a transport failed is for the log: clients need not learn about the upstream.
    let body = format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}");
    let mut details = reason.replace(' ', "_");
    if let Some(failure) = &exchange.upstream_failure
        && reason != "connection timeout"
    {
        details = format!("{details}|{}", failure.replace(' ', "_"));
    }
    let refusal = Refusal::new(status, body, format!("upstream_reset_before_response_started{{{details}}}")).flag(flag);
    reply(exchange, head, Some(matched), refusal)
}

/// The upstream refused the stream: it has not looked at the request.
pub(super) fn is_refused(error: &hyper::Error) -> bool {
    source_of::<h2::Error>(error)
        .is_some_and(|reset| reset.is_reset() && reset.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn classify(error: &hyper::Error) -> (&'static str, ResponseFlag, StatusCode) {
    if let Some(reset) = source_of::<h2::Error>(error) {
        return match (reset.is_reset(), reset.reason()) {
            (true, Some(h2::Reason::REFUSED_STREAM)) => {
                ("remote refused stream reset", ResponseFlag::UpstreamRemoteReset, StatusCode::SERVICE_UNAVAILABLE)
            }
            (true, _) => ("remote reset", ResponseFlag::UpstreamRemoteReset, StatusCode::SERVICE_UNAVAILABLE),
            (false, _) if reset.is_io() || reset.is_remote() => {
                ("connection termination", ResponseFlag::UpstreamConnectionTermination, StatusCode::SERVICE_UNAVAILABLE)
            }
            _ => ("protocol error", ResponseFlag::UpstreamProtocolError, StatusCode::BAD_GATEWAY),
        };
    }
    if error.is_parse() || error.is_parse_too_large() {
        return ("protocol error", ResponseFlag::UpstreamProtocolError, StatusCode::BAD_GATEWAY);
    }
    ("connection termination", ResponseFlag::UpstreamConnectionTermination, StatusCode::SERVICE_UNAVAILABLE)
}

fn source_of<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        source = cause.source();
    }
    None
}

pub(super) fn expire(
    exchange: Box<Exchange>,
    head: &Head,
    matched: Matched<'_>,
    cluster: &Cluster,
    expired: Expired,
) -> Response<ResponseBody> {
    let stats = &exchange.manager.stats;
    let refusal = match expired {
        Expired::Response | Expired::Recheck => {
            cluster.stats.upstream_rq_timeout().inc();
            cluster.stats.count_code(exchange.origin, 504);
            Refusal::new(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout", "response_timeout")
                .flag(ResponseFlag::UpstreamRequestTimeout)
        }
        Expired::Try => {
            cluster.stats.count_code(exchange.origin, 504);
            Refusal::new(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout", "upstream_per_try_timeout")
                .flag(ResponseFlag::UpstreamRequestTimeout)
        }
        Expired::Idle { request_done } => {
            stats.downstream_rq_idle_timeout().inc();
            let status = if request_done { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
            Refusal::new(status, "stream timeout", "stream_idle_timeout").flag(ResponseFlag::StreamIdleTimeout)
        }
        Expired::Stream { request_done } => {
            stats.downstream_rq_max_duration_reached().inc();
            let status = if request_done { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
            // As in Envoy, whose flag for it is that of connections.
            let mut refusal = Refusal::new(status, "downstream duration timeout", "max_duration_timeout");
            refusal.grpc_status = Some(DEADLINE_EXCEEDED);
            refusal
        }
        Expired::UpstreamStream => {
            cluster.stats.upstream_rq_max_duration_reached().inc();
            cluster.stats.count_code(exchange.origin, 504);
            Refusal::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream max stream duration reached",
                "upstream_max_stream_duration_reached",
            )
            .flag(ResponseFlag::UpstreamMaxStreamDuration)
        }
        Expired::Request => {
            stats.downstream_rq_timeout().inc();
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "request timeout", "request_overall_timeout")
        }
    };
    reply(exchange, head, Some(matched), refusal)
}
