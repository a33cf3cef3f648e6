//! HTTP for the API and for diagnostics: connections in, requests read within limits, answers out.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::{ApiError, Peer};

/// Largest body that is read. A Dataplane with hundreds of inbounds is far below it.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Connections at a time; further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take for its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take for its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests in progress may take once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A request, read completely.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// Who sent it.
    pub peer: Peer,
    /// The body, within the limit.
    pub body: Bytes,
}

impl Request {
    /// The path, still percent-encoded.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The host and port that the client called, from `:authority` or `Host`.
    pub fn host(&self) -> Option<&str> {
        match self.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => self.headers.get(header::HOST).and_then(|host| host.to_str().ok()),
        }
    }

    /// The parameters of the query, decoded, in order.
    pub fn parameters(&self) -> Vec<(String, String)> {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        self.uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            })
            .collect()
    }

    /// The last value of a parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.parameters().into_iter().rev().find(|(found, _)| found == name).map(|(_, value)| value)
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A JSON document.
    pub fn json(status: StatusCode, document: &Value) -> Answer {
        let mut body = serde_json::to_vec_pretty(document).unwrap_or_default();
        body.push(b'\n');
        Answer { status, content_type: "application/json", body: body.into() }
    }

    /// A text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
        Answer { status, content_type: "text/plain", body: text.into().into() }
    }
}

/// Serves HTTP/1.1 and HTTP/2 on a listener until `stop` becomes true (or its sender is gone), then lets the requests in
/// progress finish.
pub async fn serve<H, F>(listener: TcpListener, mut stop: watch::Receiver<bool>, handler: H)
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let handler = Arc::new(handler);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(100).keep_alive_interval(Duration::from_secs(60));
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: without a pause this loop would only burn time.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = Arc::clone(&handler);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let handler = Arc::clone(&handler);
            async move { Ok::<_, Infallible>(respond(request, peer, &*handler).await) }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "connection failed");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests are still in progress after {DRAIN_TIMEOUT:?}, closing their connections");
    }
}

/// Resolves when the server is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone cannot tell any more: stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(tokio::net::TcpStream, Peer, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    // A listener of both families shows IPv4 callers as mapped addresses.
    Ok((stream, Peer::new(peer.ip().to_canonical(), peer.port()), place))
}

async fn respond<H, F>(request: hyper::Request<Incoming>, peer: Peer, handler: &H) -> http::Response<Full<Bytes>>
where
    H: Fn(Request) -> F,
    F: Future<Output = Answer> + Send + 'static,
{
    let (head, body) = request.into_parts();
    let head_only = head.method == Method::HEAD;
    let (method, path) = (head.method.clone(), head.uri.path().to_owned());
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let answer = match read {
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            let request = Request { method: head.method, uri: head.uri, headers: head.headers, peer, body };
            // In a task of its own: a client that goes away halfway must not leave a mesh without its keys.
            tokio::spawn(handler(request)).await.unwrap_or_else(|error| {
                tracing::error!(%peer, %method, path, %error, "request failed");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", "the request failed").into()
            })
        }
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Request too large",
            format!("the body is larger than {MAX_BODY_BYTES} bytes"),
        )
        .into(),
        Ok(Err(error)) => ApiError::bad_request(format!("cannot read the body: {error}")).into(),
        Err(_) => ApiError::new(StatusCode::REQUEST_TIMEOUT, "Request timeout", "the body took too long").into(),
    };
    tracing::debug!(%peer, %method, path, status = answer.status.as_u16(), "request");
    let body = if head_only { Bytes::new() } else { answer.body };
    let mut response = http::Response::new(Full::new(body));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}
