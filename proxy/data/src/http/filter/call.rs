//! Calls that filters make while a request waits.
//!
//! Source: Envoy "gRPC services", its asynchronous HTTP client.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body::Body;
use hyper::body::Incoming;

use super::{
    super::{
        body::{KeptFrame, Replay, RequestBody},
        exchange::UpstreamRequest,
        forward,
        head::own_address,
        headers as names,
    },
    protobuf::Malformed,
};
use crate::{
    model::{ClusterId, http_filter::GrpcCall},
    snapshot::Snapshot,
    stats::Origin,
    upstream::{
        outlier::Report,
        pick::{self, PickContext},
        pool::Protocol,
    },
};

/// Longest answer that is read, bytes. It is held in memory while the request waits.
const LONGEST: usize = 1 << 20;

/// Why a call has no answer. Which it was is of no consequence to a request; it is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// The cluster does not exist.
    NoCluster,
    /// It has no endpoint, or no connection could be had.
    Unreachable,
    /// There was no answer in time.
    Timeout,
    /// The answer is none.
    Malformed,
    /// `grpc-status` other than 0, or a status code that stands for it.
    Status(u16),
}

impl From<Malformed> for CallError {
    fn from(_: Malformed) -> Self {
        CallError::Malformed
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
    /// From the request to the end of the answer.
    pub took: Duration,
}

/// What is sent.
#[derive(Debug)]
pub(super) struct Call {
    pub cluster: ClusterId,
    pub method: Method,
    /// Path and query.
    pub path: Uri,
    pub authority: HeaderValue,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub timeout: Option<Duration>,
}

/// Makes a unary gRPC call; the answer is its message.
pub(super) async fn unary(
    snapshot: &Snapshot,
    call: &GrpcCall,
    path: &'static str,
    message: Vec<u8>,
) -> Result<Bytes, CallError> {
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.extend_from_slice(&[0]);
    body.extend_from_slice(&u32::try_from(message.len()).map_err(|_| CallError::Malformed)?.to_be_bytes());
    body.extend_from_slice(&message);
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(timeout) = call.timeout {
        let text = HeaderValue::from_str(&grpc_timeout(timeout));
        headers.extend(text.ok().map(|text| (HeaderName::from_static("grpc-timeout"), text)));
    }
    if call.envoy_headers {
        envoy_headers(&mut headers, call.timeout);
        if let Ok(address) = HeaderValue::from_str(&own_address().to_string()) {
            headers.insert(names::FORWARDED_FOR, address);
        }
    }
    for (name, value) in &call.metadata {
        headers.append(name, value.clone());
    }
    let call = Call {
        cluster: call.cluster,
        method: Method::POST,
        path: Uri::from_static(path),
        authority: call.authority.clone(),
        headers,
        body: body.freeze(),
        timeout: call.timeout,
    };
    let Answer { status, headers, trailers, body, .. } = send(snapshot, call).await?;
    if status != StatusCode::OK {
        return Err(CallError::Status(status.as_u16()));
    }
    let ended = trailers.get(&names::GRPC_STATUS).or(headers.get(&names::GRPC_STATUS));
    match ended.and_then(|status| status.to_str().ok()?.parse().ok()) {
        Some(0) => message_in(&body).map(|message| body.slice_ref(message)),
        Some(status) => Err(CallError::Status(status)),
        None => Err(CallError::Malformed),
    }
}

/// What tells an upstream that this proxy asks.
pub(super) fn envoy_headers(headers: &mut HeaderMap, timeout: Option<Duration>) {
    headers.insert(names::ENVOY_INTERNAL, HeaderValue::from_static("true"));
    if let Some(timeout) = timeout {
        headers.insert(names::ENVOY_ATTEMPT_TIMEOUT, HeaderValue::from(timeout.as_millis() as u64));
    }
}

/// At most eight digits and a unit.
fn grpc_timeout(timeout: Duration) -> String {
    match timeout.as_millis() {
        ms if ms < 100_000_000 => format!("{ms}m"),
        ms => format!("{}S", (ms / 1000).min(99_999_999)),
    }
}

/// The message of a unary answer, which is not compressed.
fn message_in(body: &[u8]) -> Result<&[u8], CallError> {
    match body.split_at_checked(5) {
        Some(([0, a, b, c, d], message)) if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() => {
            Ok(message)
        }
        _ => Err(CallError::Malformed),
    }
}

/// Sends a request and reads its answer.
pub(super) async fn send(snapshot: &Snapshot, call: Call) -> Result<Answer, CallError> {
    let cluster = snapshot.cluster(call.cluster).cloned().ok_or(CallError::NoCluster)?;
    if cluster.limits.requests.load(std::sync::atomic::Ordering::Relaxed) >= cluster.limits.max_requests {
        cluster.stats.upstream_rq_pending_overflow().inc();
        return Err(CallError::Unreachable);
    }
    let Ok(endpoint) = pick::choose(&cluster, &PickContext::default()) else {
        cluster.stats.count_code(Origin::Internal, 503);
        return Err(CallError::Unreachable);
    };
    let mut upstream = UpstreamRequest::new(&cluster, &endpoint, false);
    let body = match call.body.is_empty() {
        true => RequestBody::Empty,
        false if call.headers.contains_key(header::CONTENT_LENGTH) => {
            RequestBody::Replay(Replay::new(vec![KeptFrame::Data(call.body)]))
        }
        false => RequestBody::Replay(Replay::unsized_message(call.body)),
    };
    let mut request = Request::new(body);
    *request.method_mut() = call.method;
    *request.uri_mut() = call.path;
    *request.headers_mut() = call.headers;
    let exchange = async {
        let sent = forward::attempt(&cluster, &endpoint, None, Protocol::Http1, request, &call.authority, "http").await;
        let Ok((response, lease)) = sent else {
            upstream.ended(Report::Failed);
            cluster.stats.count_code(Origin::Internal, 503);
            return Err(CallError::Unreachable);
        };
        lease.leave();
        let (parts, mut incoming) = response.into_parts();
        let code = parts.status.as_u16();
        upstream.ended(Report::Response(code));
        cluster.stats.count_code(Origin::Internal, code);
        let (body, trailers) = read(&mut incoming).await?;
        lease.give_back();
        let took = upstream.start.elapsed();
        cluster.stats.record_time(Origin::Internal, took.as_millis() as u64);
        Ok(Answer { status: parts.status, headers: parts.headers, trailers, body, took })
    };
    match call.timeout {
        None => exchange.await,
        Some(limit) => match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                cluster.stats.upstream_rq_timeout().inc();
                cluster.stats.count_code(Origin::Internal, 504);
                upstream.ended(Report::TimedOut);
                Err(CallError::Timeout)
            }
        },
    }
}

async fn read(body: &mut Incoming) -> Result<(Bytes, HeaderMap), CallError> {
    let mut whole = BytesMut::new();
    let mut trailers = HeaderMap::new();
    while !body.is_end_stream() {
        match std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await {
            None => break,
            Some(Err(_)) => return Err(CallError::Unreachable),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if whole.len() + data.len() > LONGEST => return Err(CallError::Malformed),
                Ok(data) => whole.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            },
        }
    }
    Ok((whole.freeze(), trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unary_answer_is_one_message() {
        assert_eq!(message_in(&[0, 0, 0, 0, 2, 7, 8]), Ok(&[7, 8][..]));
        assert_eq!(message_in(&[0, 0, 0, 0, 0]), Ok(&[][..]));
        for bad in [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 3, 1], &[0, 0, 0, 0, 1, 1, 0]] {
            assert_eq!(message_in(bad), Err(CallError::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_deadline_has_at_most_eight_digits() {
        assert_eq!(grpc_timeout(Duration::from_millis(200)), "200m");
        assert_eq!(grpc_timeout(Duration::from_secs(99_999)), "99999000m");
        assert_eq!(grpc_timeout(Duration::from_secs(100_000)), "100000S");
        assert_eq!(grpc_timeout(Duration::from_secs(u64::MAX)), "99999999S");
    }
}
