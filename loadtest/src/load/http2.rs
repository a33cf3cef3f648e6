//! HTTP/2 client with prior knowledge: one connection shared by several lanes, one stream per request; gRPC on top, unary and streaming.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use tokio::sync::Mutex;

use super::stream::Stream;
use super::{Failure, Plan, Protocol};

/// Stream and connection windows offered to the peer, in bytes: large enough that small replies never wait for an update.
const WINDOW: u32 = 1 << 20;

/// A connection and the plan that it serves.
pub struct Shared {
    plan: Arc<Plan>,
    request: http::Request<()>,
    body: Bytes,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// Rises with each connection, so that a late failure of an old one does not discard its successor.
    generation: u64,
    sender: Option<SendRequest<Bytes>>,
}

impl Shared {
    /// Prepares the request of the plan; connects at the first exchange.
    pub fn new(plan: Arc<Plan>) -> Arc<Self> {
        let mut request = http::Request::new(());
        let grpc = matches!(plan.protocol, Protocol::Grpc | Protocol::GrpcStream);
        *request.method_mut() = if plan.payload == 0 && !grpc { http::Method::GET } else { http::Method::POST };
        *request.version_mut() = http::Version::HTTP_2;
        if let Ok(uri) = format!("http://{}{}", plan.host, plan.path).parse() {
            *request.uri_mut() = uri;
        }
        let body = if grpc { grpc_message(plan.payload) } else { Bytes::from(vec![b'x'; plan.payload]) };
        if grpc {
            request
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
            request.headers_mut().insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        }
        Arc::new(Self { plan, request, body, current: Mutex::default() })
    }

    async fn sender(&self) -> Result<(u64, SendRequest<Bytes>), Failure> {
        let mut current = self.current.lock().await;
        if let Some(sender) = &current.sender {
            return Ok((current.generation, sender.clone()));
        }
        let sender = self.connect().await?;
        current.generation += 1;
        current.sender = Some(sender.clone());
        Ok((current.generation, sender))
    }

    async fn discard(&self, generation: u64) {
        let mut current = self.current.lock().await;
        if current.generation == generation {
            current.sender = None;
        }
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, Failure> {
        let stream = Stream::open(&self.plan.target).await?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await
            .map_err(broken)?;
        // Ends when the last sender is dropped or the peer goes away; its error reaches the lanes through their streams.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn exchange_on(&self, sender: SendRequest<Bytes>) -> Result<u16, Failure> {
        let mut sender = sender.ready().await.map_err(broken)?;
        let (reply, mut outgoing) = sender.send_request(self.request.clone(), self.body.is_empty()).map_err(broken)?;
        if !self.body.is_empty() {
            outgoing.send_data(self.body.clone(), true).map_err(broken)?;
        }
        let reply = reply.await.map_err(broken)?;
        let status = reply.status().as_u16();
        let mut body = reply.into_body();
        let mut received = 0;
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            received += chunk.len();
            body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
        }
        if self.plan.protocol == Protocol::Grpc && status == 200 {
            if received != self.body.len() {
                return Err(Failure::Mismatch);
            }
            self.check_trailers(&mut body).await?;
        }
        Ok(status)
    }

    /// A gRPC call is good when its trailers say so.
    async fn check_trailers(&self, body: &mut RecvStream) -> Result<(), Failure> {
        let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
        match trailers.get("grpc-status").map(http::HeaderValue::as_bytes) {
            Some(b"0") => Ok(()),
            Some(status) => Err(Failure::Protocol(format!("grpc-status {}", String::from_utf8_lossy(status)))),
            None => Err(Failure::Protocol("a gRPC reply without grpc-status".into())),
        }
    }

    async fn open_stream(&self) -> Result<(SendStream<Bytes>, RecvStream), Failure> {
        let (generation, sender) = self.sender().await?;
        let opened = match sender.ready().await {
            Ok(mut sender) => sender.send_request(self.request.clone(), false),
            Err(error) => Err(error),
        };
        let (reply, mut outgoing) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.discard(generation).await;
                return Err(broken(error));
            }
        };
        // A server may wait for the first message with its headers.
        outgoing.send_data(self.body.clone(), false).map_err(broken)?;
        let reply = reply.await.map_err(broken)?;
        match reply.status().as_u16() {
            200 => Ok((outgoing, reply.into_body())),
            status => Err(Failure::Status(status)),
        }
    }
}

/// A message with gRPC's prefix: not compressed, then its length.
fn grpc_message(length: usize) -> Bytes {
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.resize(5 + length, b'x');
    Bytes::from(message)
}

/// A lane whose stream stays open: each exchange is a message and its echo.
pub struct MessageClient {
    shared: Arc<Shared>,
    stream: Option<(SendStream<Bytes>, RecvStream)>,
}

impl MessageClient {
    /// A lane of the shared connection.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, stream: None }
    }

    /// Sends one message and waits until as many bytes are back. A stream that failed is not used again.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let (outgoing, mut incoming) = match self.stream.take() {
            Some((mut outgoing, incoming)) => {
                outgoing.send_data(self.shared.body.clone(), false).map_err(broken)?;
                (outgoing, incoming)
            }
            None => self.shared.open_stream().await?,
        };
        let mut left = self.shared.body.len();
        while left > 0 {
            let chunk = incoming.data().await.ok_or(Failure::Closed)?.map_err(broken)?;
            left = left.checked_sub(chunk.len()).ok_or(Failure::Mismatch)?;
            incoming.flow_control().release_capacity(chunk.len()).map_err(broken)?;
        }
        self.stream = Some((outgoing, incoming));
        Ok(())
    }
}

/// One lane's client.
pub struct Client {
    shared: Arc<Shared>,
}

impl Client {
    /// A lane of the shared connection.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Sends one request and waits for its reply. A connection that failed is replaced at the next exchange.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let status = if self.shared.plan.new_connection {
            let sender = self.shared.connect().await?;
            self.shared.exchange_on(sender).await?
        } else {
            let (generation, sender) = self.shared.sender().await?;
            match self.shared.exchange_on(sender).await {
                Ok(status) => status,
                Err(failure) => {
                    self.shared.discard(generation).await;
                    return Err(failure);
                }
            }
        };
        match status {
            200..=299 => Ok(()),
            status => Err(Failure::Status(status)),
        }
    }
}

/// `GOAWAY` and a lost connection count as closed, a reset stream as an error of the protocol.
fn broken(error: h2::Error) -> Failure {
    if error.is_go_away() || error.is_io() { Failure::Closed } else { Failure::Protocol(error.to_string()) }
}
