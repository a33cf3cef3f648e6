//! A scripted delta control plane; the test holds every sender.
#![allow(dead_code)]

use std::{net::SocketAddr, pin::Pin};

use shika_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    google::protobuf::Any,
};
use tokio::sync::mpsc;
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

use super::LIMIT;

/// One stream of the proxy.
pub struct Session {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    early: Vec<DeltaDiscoveryRequest>,
    nonce: u64,
    /// `authorization` of the stream.
    pub token: String,
}

impl Session {
    /// The next request for a type; others are kept.
    pub async fn request(&mut self, type_url: &str) -> DeltaDiscoveryRequest {
        if let Some(at) = self.early.iter().position(|request| request.type_url == type_url) {
            return self.early.remove(at);
        }
        loop {
            let request = tokio::time::timeout(LIMIT, self.requests.message())
                .await
                .expect("a request in time")
                .unwrap()
                .expect("an open stream");
            if request.type_url == type_url {
                return request;
            }
            self.early.push(request);
        }
    }

    /// Sends resources and waits for the answer to them.
    pub async fn send(&mut self, type_url: &str, version: &str, resources: Vec<(&str, Any)>) -> DeltaDiscoveryRequest {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let resources = resources
            .into_iter()
            .map(|(name, resource)| Resource {
                name: name.into(),
                version: version.into(),
                resource: Some(resource),
                ..Resource::default()
            })
            .collect();
        let response = DeltaDiscoveryResponse {
            system_version_info: version.into(),
            resources,
            type_url: type_url.into(),
            nonce: nonce.clone(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        loop {
            let request = self.request(type_url).await;
            if request.response_nonce == nonce {
                return request;
            }
        }
    }
}

struct Script(mpsc::Sender<Session>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(4);
        let token = request.metadata().get("authorization").and_then(|token| token.to_str().ok()).unwrap_or_default();
        let token = token.to_owned();
        let session = Session { requests: request.into_inner(), responses, early: Vec::new(), nonce: 0, token };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A control plane whose streams the test holds.
pub async fn control_plane() -> (SocketAddr, mpsc::Receiver<Session>) {
    control_plane_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
}

/// The same at this socket.
pub fn control_plane_on(listener: std::net::TcpListener) -> (SocketAddr, mpsc::Receiver<Session>) {
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (sessions, receiver) = mpsc::channel(4);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Script(sessions)))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, receiver)
}

/// The next stream.
pub async fn session(sessions: &mut mpsc::Receiver<Session>) -> Session {
    tokio::time::timeout(LIMIT, sessions.recv()).await.expect("a stream in time").unwrap()
}
