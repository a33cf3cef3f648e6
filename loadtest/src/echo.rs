//! The service behind the proxies: answers HTTP/1.1 and HTTP/2 (prior knowledge) on one port, or echoes TCP or gRPC.

mod bulk;
mod grpc;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::text::note;

/// Longest request body that `/echo` repeats, in bytes.
const BODY_LIMIT: usize = 1 << 20;
/// Longest wait that `/slow` grants.
const SLOW_LIMIT: Duration = Duration::from_secs(600);
/// Wait after an `accept` that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the service does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// `/echo` repeats the request as JSON, `/slow?ms=N` answers late, `/bytes?n=N` answers with so many bytes, `/ws` upgrades and
    /// repeats bytes, everything else gets the fixed reply once its body is read.
    Http,
    /// Repeats every byte; a client that stops sending still gets what is under way.
    Tcp,
    /// Reads how many bytes come and how many are wanted (8 bytes each, the highest first), takes the former, sends the latter; again
    /// and again.
    Bulk,
    /// gRPC without a schema, HTTP/2 with prior knowledge: every byte of a call goes back, then trailers with status 0.
    Grpc,
    /// gRPC whose calls are all answered with an empty message: a collector of spans or logs that keeps nothing.
    Sink,
}

/// What the service says.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name shown by `/echo`, so that a caller can tell which instance answered.
    pub name: String,
    /// Body of the fixed reply.
    pub reply: Bytes,
}

impl Default for Service {
    fn default() -> Self {
        Self { name: "echo".into(), reply: Bytes::from_static(b"ok\n") }
    }
}

/// Serves until its task is dropped. A connection that fails ends alone; `accept` is tried again after a pause.
pub async fn serve(listener: TcpListener, mode: Mode, service: Service) -> Infallible {
    let service = Arc::new(service);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                note(&format!("echo: accept failed: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            // The peer's abrupt end is its own affair; nothing here depends on it.
            let _ = match mode {
                Mode::Http => serve_http(stream, peer, service).await,
                Mode::Tcp => repeat(stream).await,
                Mode::Bulk => bulk::transfer(stream).await,
                Mode::Grpc => grpc::serve(stream, grpc::Answer::Echo).await,
                Mode::Sink => grpc::serve(stream, grpc::Answer::Empty).await,
            };
        });
    }
}

async fn serve_http(stream: TcpStream, peer: SocketAddr, service: Arc<Service>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let handler = hyper::service::service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(request, peer, &service).await) }
    });
    auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), handler)
        .await
        .map_err(io::Error::other)
}

async fn answer(mut request: Request<Incoming>, peer: SocketAddr, service: &Service) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/echo" => echo(request, peer, service).await,
        "/slow" => {
            tokio::time::sleep(wanted_delay(request.uri().query())).await;
            Response::new(Full::new(service.reply.clone()))
        }
        "/ws" => upgrade(&mut request),
        "/bytes" => Response::new(Full::new(bulk::bytes(number(request.uri().query(), "n=").unwrap_or(1_024)))),
        _ => {
            let mut body = request.into_body();
            // What the client still sends would otherwise end its connection.
            while let Some(Ok(_)) = body.frame().await {}
            Response::new(Full::new(service.reply.clone()))
        }
    }
}

/// `ms=` of the query, 1000 when there is none, at most [`SLOW_LIMIT`].
fn wanted_delay(query: Option<&str>) -> Duration {
    Duration::from_millis(number(query, "ms=").unwrap_or(1_000) as u64).min(SLOW_LIMIT)
}

/// The number after `prefix`, which names a parameter and has its `=`.
fn number(query: Option<&str>, prefix: &str) -> Option<usize> {
    query?.split('&').find_map(|pair| pair.strip_prefix(prefix)).and_then(|value| value.parse().ok())
}

async fn echo(request: Request<Incoming>, peer: SocketAddr, service: &Service) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let mut refused = Response::new(Full::new(Bytes::from(format!("request body: {error}\n"))));
            *refused.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            return refused;
        }
    };
    let mut headers = serde_json::Map::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        // Repeated headers are shown as one list, in the order of arrival.
        match headers.get_mut(name.as_str()) {
            Some(serde_json::Value::String(so_far)) => {
                so_far.push_str(", ");
                so_far.push_str(&value);
            }
            _ => {
                headers.insert(name.as_str().to_owned(), serde_json::Value::String(value.into_owned()));
            }
        }
    }
    let shown = serde_json::json!({
        "service": service.name,
        "peer": peer.to_string(),
        "version": format!("{:?}", head.version),
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map_or("/", |path| path.as_str()),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut text = serde_json::to_vec_pretty(&shown).unwrap_or_default();
    text.push(b'\n');
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// Takes any `Upgrade` token, as a WebSocket server would take its own, and repeats the raw bytes: what proxies do
/// with such a connection does not depend on the frames in it.
fn upgrade(request: &mut Request<Incoming>) -> Response<Full<Bytes>> {
    let Some(token) = request.headers().get(UPGRADE).cloned() else {
        let mut refused = Response::new(Full::new(Bytes::from_static(b"/ws wants an Upgrade header\n")));
        *refused.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return refused;
    };
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let _ = repeat(TokioIo::new(upgraded)).await;
        }
    });
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    reply.headers_mut().insert(UPGRADE, token);
    reply
}

async fn repeat(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_from_the_query() {
        for (query, millis) in [
            (None, 1_000),
            (Some("ms=5"), 5),
            (Some("a=1&ms=20"), 20),
            (Some("ms=x"), 1_000),
            (Some("ms=99999999"), 600_000),
        ] {
            assert_eq!(wanted_delay(query), Duration::from_millis(millis), "{query:?}");
        }
    }
}
