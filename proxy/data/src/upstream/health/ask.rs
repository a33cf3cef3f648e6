//! One check: what is sent, and what the answer means.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header, uri};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    io::UpstreamIo,
    model::{
        cluster::{Cluster, Endpoint, EndpointAddress},
        health::{Answer, Ask, GrpcAsk, HealthCheck, HttpAsk},
    },
    upstream::connect::{self, AlpnChoice},
};

/// Most bytes of an answer that are looked at.
const LARGEST_ANSWER: usize = 64 * 1024;
/// What checks call themselves.
const USER_AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");

/// Asks one endpoint, and keeps the connection from check to check.
#[derive(Default)]
pub(super) struct Asker {
    kept: Option<Kept>,
}

enum Kept {
    Http1(http1::SendRequest<Whole>),
    Http2(http2::SendRequest<Whole>),
    Tcp(UpstreamIo),
}

/// A body that is all there.
#[derive(Debug)]
struct Whole(Bytes);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = std::mem::take(&mut self.0);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        // A call announces no length, as Envoy's does not.
        if self.0.is_empty() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// An answer's parts.
struct Read {
    head: http::response::Parts,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

impl Asker {
    /// Checks once. The caller bounds the time.
    pub(super) async fn ask(&mut self, cluster: &Arc<Cluster>, check: &HealthCheck, endpoint: &Endpoint) -> Answer {
        let answer = match &check.ask {
            Ask::Http(ask) => self.http(cluster, endpoint, ask).await,
            Ask::Grpc(ask) => self.grpc(cluster, endpoint, ask, check.timeout).await,
            Ask::Tcp { send, receive } => self.tcp(cluster, endpoint, send, receive).await,
        };
        answer.unwrap_or(Answer::Network)
    }

    /// `None`: no answer.
    async fn http(&mut self, cluster: &Arc<Cluster>, endpoint: &Endpoint, ask: &HttpAsk) -> Option<Answer> {
        let host = endpoint.check.as_ref().and_then(|at| at.hostname.clone()).unwrap_or_else(|| ask.host.clone());
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, USER_AGENT);
        amend(&mut headers, &ask.headers);
        let mut request = Request::new(Whole(Bytes::new()));
        *request.method_mut() = ask.method.clone();
        *request.headers_mut() = headers;
        let read = self.exchange(cluster, endpoint, ask.http2, request, &host, &ask.path).await?;
        if closes(&read.head.headers) {
            self.kept = None;
        }
        let code = read.head.status.as_u16();
        let is_in = |ranges: &[std::ops::Range<u16>]| ranges.iter().any(|range| range.contains(&code));
        Some(if is_in(&ask.expected) {
            Answer::Healthy { degraded: read.head.headers.contains_key("x-envoy-degraded") }
        } else if is_in(&ask.retriable) {
            Answer::Retriable
        } else {
            Answer::Unwell
        })
    }

    async fn grpc(
        &mut self,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
        ask: &GrpcAsk,
        timeout: Duration,
    ) -> Option<Answer> {
        let authority =
            endpoint.check.as_ref().and_then(|at| at.hostname.clone()).unwrap_or_else(|| ask.authority.clone());
        let mut headers = HeaderMap::new();
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert("grpc-timeout", HeaderValue::from_str(&format!("{}m", timeout.as_millis())).ok()?);
        amend(&mut headers, &ask.headers);
        let mut request = Request::new(Whole(ask.request.clone()));
        *request.method_mut() = http::Method::POST;
        *request.headers_mut() = headers;
        let read = self.exchange(cluster, endpoint, true, request, &authority, "/grpc.health.v1.Health/Check").await?;
        let status = read.trailers.as_ref().unwrap_or(&read.head.headers).get("grpc-status");
        let status: u32 = status?.to_str().ok()?.parse().ok()?;
        let serves = read.head.status == http::StatusCode::OK && status == 0 && says_serving(&read.body);
        Some(if serves { Answer::Healthy { degraded: false } } else { Answer::Unwell })
    }

    async fn exchange(
        &mut self,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
        http2: bool,
        mut request: Request<Whole>,
        host: &HeaderValue,
        path: &str,
    ) -> Option<Read> {
        let path = uri::PathAndQuery::try_from(path).ok()?;
        if http2 {
            let mut parts = uri::Parts::default();
            let scheme = if cluster.tls_for(endpoint).is_some() { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
            parts.scheme = Some(scheme);
            parts.authority = Some(uri::Authority::try_from(host.as_bytes()).ok()?);
            parts.path_and_query = Some(path);
            *request.uri_mut() = uri::Uri::from_parts(parts).ok()?;
            *request.version_mut() = Version::HTTP_2;
        } else {
            *request.uri_mut() = path.into();
            request.headers_mut().insert(header::HOST, host.clone());
        }
        let usable = match &self.kept {
            Some(Kept::Http1(sender)) => !sender.is_closed() && sender.is_ready(),
            Some(Kept::Http2(sender)) => !sender.is_closed(),
            Some(Kept::Tcp(_)) | None => false,
        };
        if !usable {
            self.kept = Some(open_http(cluster, endpoint, http2).await?);
        }
        let response = match &mut self.kept {
            Some(Kept::Http1(sender)) => sender.send_request(request).await.ok()?,
            Some(Kept::Http2(sender)) => sender.send_request(request).await.ok()?,
            Some(Kept::Tcp(_)) | None => return None,
        };
        read(response).await
    }

    async fn tcp(
        &mut self,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
        send: &Bytes,
        receive: &[Bytes],
    ) -> Option<Answer> {
        let mut io = match self.kept.take() {
            Some(Kept::Tcp(io)) => io,
            _ => connect::probe(cluster, endpoint, &address(endpoint), AlpnChoice::Configured).await.ok()?,
        };
        let healthy = Some(Answer::Healthy { degraded: false });
        if receive.is_empty() {
            io.socket().reset_on_close();
            return healthy;
        }
        io.write_all(send).await.ok()?;
        io.flush().await.ok()?;
        let mut seen = BytesMut::new();
        while !holds_in_order(&seen, receive) {
            if seen.len() > LARGEST_ANSWER || io.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        }
        self.kept = Some(Kept::Tcp(io));
        healthy
    }
}

/// Where the endpoint is asked.
fn address(endpoint: &Endpoint) -> EndpointAddress {
    let at = endpoint.check.as_ref();
    match (at.and_then(|at| at.address.as_ref()), &endpoint.address, at.and_then(|at| at.port)) {
        (Some(address), ..) => address.clone(),
        (None, EndpointAddress::Ip(address), Some(port)) => EndpointAddress::Ip(SocketAddr::new(address.ip(), port)),
        (None, address, _) => address.clone(),
    }
}

fn amend(headers: &mut HeaderMap, changes: &[(HeaderName, Option<HeaderValue>)]) {
    for (name, value) in changes {
        match value {
            Some(value) => headers.insert(name, value.clone()),
            None => headers.remove(name),
        };
    }
}

fn closes(headers: &HeaderMap) -> bool {
    headers.get(header::CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

async fn open_http(cluster: &Arc<Cluster>, endpoint: &Endpoint, http2: bool) -> Option<Kept> {
    let alpn = if http2 { AlpnChoice::Fallback(&[b"h2"]) } else { AlpnChoice::Configured };
    let io = TokioIo::new(connect::probe(cluster, endpoint, &address(endpoint), alpn).await.ok()?);
    if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.timer(TokioTimer::new()).handshake(io).await.ok()?;
        // It ends with its sender.
        tokio::spawn(connection);
        Some(Kept::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        Some(Kept::Http1(sender))
    }
}

/// The whole of an answer; what is too long is no answer.
async fn read(response: Response<Incoming>) -> Option<Read> {
    let (head, mut incoming) = response.into_parts();
    let (mut body, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        match frame.ok()?.into_data() {
            Ok(data) => {
                if body.len() + data.len() > LARGEST_ANSWER {
                    return None;
                }
                body.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Some(Read { head, body: body.freeze(), trailers })
}

/// Whether all are in `seen`, one after the other, with anything between.
fn holds_in_order(seen: &[u8], wanted: &[Bytes]) -> bool {
    let mut rest = seen;
    wanted.iter().all(|one| match memchr::memmem::find(rest, one) {
        Some(at) => {
            rest = rest.get(at + one.len()..).unwrap_or_default();
            true
        }
        None => false,
    })
}

/// Whether a message of `grpc.health.v1.HealthCheckResponse` says `SERVING`: field 1 is 1. The last value of a field counts.
fn says_serving(framed: &[u8]) -> bool {
    let Some((&[0, a, b, c, d], message)) = framed.split_first_chunk::<5>() else { return false };
    if message.len() as u64 != u64::from(u32::from_be_bytes([a, b, c, d])) {
        return false;
    }
    // Small numbers alone: whatever else it may say, it does not say that.
    message.chunks(2).all(|pair| matches!(pair, [8, 0..=127])) && matches!(message, [.., 8, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_looked_for_in_order() {
        for (seen, wanted, found) in [
            ("pong", &["pong"][..], true),
            ("..po..ng..", &["po", "ng"], true),
            ("ngpo", &["po", "ng"], false),
            ("po", &["po", "po"], false),
            ("", &["a"], false),
        ] {
            let wanted: Vec<Bytes> = wanted.iter().map(|one| Bytes::from_static(one.as_bytes())).collect();
            assert_eq!(holds_in_order(seen.as_bytes(), &wanted), found, "{seen}");
        }
    }

    #[test]
    fn serving_is_one_value_of_one_field() {
        for (message, serves) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], true),
            (&[0, 0, 0, 0, 2, 8, 2], false),
            (&[0, 0, 0, 0, 0], false),
            (&[0, 0, 0, 0, 4, 8, 1, 8, 2], false),
            (&[0, 0, 0, 0, 4, 8, 2, 8, 1], true),
            (&[1, 0, 0, 0, 2, 8, 1], false),
            (&[0, 0, 0, 0, 3, 8, 1], false),
            (&[0, 0], false),
        ] {
            assert_eq!(says_serving(message), serves, "{message:?}");
        }
    }
}
