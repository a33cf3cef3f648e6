//! HTTP/2 client with prior knowledge: one connection shared by several lanes, one stream per request.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::{Failure, Plan};

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
        *request.method_mut() = if plan.payload == 0 { http::Method::GET } else { http::Method::POST };
        *request.version_mut() = http::Version::HTTP_2;
        if let Ok(uri) = format!("http://{}{}", plan.host, plan.path).parse() {
            *request.uri_mut() = uri;
        }
        let body = Bytes::from(vec![b'x'; plan.payload]);
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
        let stream = TcpStream::connect(self.plan.target).await.map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
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
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
        }
        Ok(status)
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
