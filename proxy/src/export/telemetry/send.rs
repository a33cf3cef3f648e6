//! Requests to collectors, over connections to clusters of the configuration: with their endpoints, balancing and TLS.

use std::{error::Error, pin::Pin, sync::Arc, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, uri};
use http_body_util::Full;
use hyper::{
    body::{Body, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use shika_data::{
    model::{cluster::Cluster, tracing::OtlpTarget},
    stats::Origin,
    upstream::{
        connect::{self, AlpnChoice, UpstreamConnection},
        metered::Metered,
        pick::{self, PickContext},
    },
};

/// What an exporter of the OpenTelemetry protocol calls itself.
const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-Shika/", env!("CARGO_PKG_VERSION"));

/// Why spans or logs did not arrive.
pub type SendError = Box<dyn Error + Send + Sync>;

/// A connection to a collector, made when it is needed and kept.
#[derive(Default)]
pub struct Channel {
    http1: Option<http1::SendRequest<Full<Bytes>>>,
    http2: Option<http2::SendRequest<Full<Bytes>>>,
}

impl Channel {
    /// A POST over HTTP/1.1 to a host and path; anything but success is an error.
    ///
    /// # Errors
    /// No endpoint, no connection, no answer, or an answer that is none of success.
    pub async fn post<'a>(
        &mut self,
        cluster: &Arc<Cluster>,
        (host, path): (&str, &str),
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        body: Bytes,
    ) -> Result<(), SendError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse()?;
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(host)?);
        put(request.headers_mut(), headers)?;
        let sender = match self.http1.take().filter(|sender| sender.is_ready()) {
            Some(sender) => self.http1.insert(sender),
            None => {
                let UpstreamConnection { io, mut guard } = open(cluster, AlpnChoice::Configured).await?;
                let pooled = guard.pooled.insert(Arc::default());
                let io = Metered::new(io, cluster.clone(), pooled);
                let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
                cluster.stats.upstream_cx_http1_total().inc();
                tokio::spawn(async move {
                    // An error reaches the request that is on the connection.
                    let _ = connection.await;
                    drop(guard);
                });
                self.http1.insert(sender)
            }
        };
        let (status, _) = finish(cluster, sender.send_request(request)).await?;
        if status.is_success() { Ok(()) } else { Err(format!("it answers {status}").into()) }
    }

    /// Sends a message of the OpenTelemetry protocol, over gRPC or HTTP as the target says.
    ///
    /// # Errors
    /// As [`Channel::post`] and [`Channel::call`].
    pub async fn export(
        &mut self,
        cluster: &Arc<Cluster>,
        target: &OtlpTarget,
        method: &'static str,
        message: Bytes,
    ) -> Result<(), SendError> {
        let own = [("user-agent", USER_AGENT)].into_iter();
        let headers = own.chain(target.headers.iter().map(|(name, value)| (&**name, &**value)));
        match &target.path {
            None => self.call(cluster, (&target.authority, method), headers, message).await,
            Some(path) => {
                let headers = headers.chain([("content-type", "application/x-protobuf")]);
                self.post(cluster, (&target.authority, path), headers, message).await
            }
        }
    }

    /// A unary gRPC call of an authority's method, whose answer is not looked at.
    ///
    /// # Errors
    /// No endpoint, no connection, no answer, or a status other than OK.
    pub async fn call<'a>(
        &mut self,
        cluster: &Arc<Cluster>,
        (authority, method): (&str, &'static str),
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        message: Bytes,
    ) -> Result<(), SendError> {
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len())?);
        framed.extend_from_slice(&message);
        let mut request = Request::new(Full::new(framed.freeze()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri::Builder::new().scheme("http").authority(authority).path_and_query(method).build()?;
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        put(request.headers_mut(), headers)?;
        let sender = match self.http2.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => self.http2.insert(sender),
            None => {
                let UpstreamConnection { io, mut guard } = open(cluster, AlpnChoice::Fallback(&[b"h2"])).await?;
                let pooled = guard.pooled.insert(Arc::default());
                let io = Metered::new(io, cluster.clone(), pooled);
                cluster.stats.upstream_cx_http2_total().inc();
                let mut builder = http2::Builder::new(TokioExecutor::new());
                let (sender, connection) = builder.timer(TokioTimer::new()).handshake(TokioIo::new(io)).await?;
                tokio::spawn(async move {
                    let _ = connection.await;
                    drop(guard);
                });
                self.http2.insert(sender)
            }
        };
        let (status, headers) = finish(cluster, sender.send_request(request)).await?;
        match headers.get("grpc-status").map(HeaderValue::as_bytes) {
            Some(b"0") => Ok(()),
            Some(code) => Err(format!("it answers grpc-status {}", String::from_utf8_lossy(code)).into()),
            None => Err(format!("it answers {status} without grpc-status").into()),
        }
    }
}

fn put<'a>(to: &mut HeaderMap, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), SendError> {
    for (name, value) in headers {
        to.append(HeaderName::try_from(name)?, HeaderValue::from_str(value)?);
    }
    Ok(())
}

async fn open(cluster: &Arc<Cluster>, alpn: AlpnChoice) -> Result<UpstreamConnection, SendError> {
    cluster.stats.upstream_rq_pending_total().inc();
    let endpoint = pick::choose(cluster, &PickContext::default()).map_err(|_| "its cluster has no healthy endpoint")?;
    Ok(connect::connect(cluster, &endpoint, alpn, None).await?)
}

/// Waits for an answer and drains it: its status, and its headers with its trailers. Counts it for the cluster.
async fn finish(
    cluster: &Arc<Cluster>,
    response: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<(StatusCode, HeaderMap), SendError> {
    let (stats, began) = (&cluster.stats, Instant::now());
    stats.upstream_rq_total().inc();
    stats.upstream_rq_active().inc();
    let result = drain(response).await;
    stats.upstream_rq_active().dec();
    let code = result.as_ref().map_or(503, |(status, _)| status.as_u16());
    stats.count_code(Origin::Internal, code);
    stats.record_time(Origin::Internal, began.elapsed().as_millis() as u64);
    result
}

async fn drain(
    response: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<(StatusCode, HeaderMap), SendError> {
    let (head, mut body) = response.await?.into_parts();
    let mut headers = head.headers;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(trailers) = frame?.into_trailers() {
            headers.extend(trailers);
        }
    }
    Ok((head.status, headers))
}
