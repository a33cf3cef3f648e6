//! A scripted control plane, delta and state of the world, aggregated and for single types; the test holds every sender.
#![allow(dead_code)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    pin::Pin,
};

use shika_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
            aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
        },
    },
    google::{protobuf::Any, rpc},
    type_url,
};
use tokio::sync::mpsc;
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, body::Body};
use tower::util::MapRequestLayer;

use super::LIMIT;

/// What the proxy says, in either protocol.
#[derive(Clone, Debug)]
pub struct Asked {
    pub type_url: String,
    pub node: Option<Node>,
    /// Names that are subscribed: the new ones in delta, all in state of the world.
    pub names: Vec<String>,
    /// Delta: names that are no longer subscribed.
    pub unsubscribed: Vec<String>,
    /// Delta: what is held at the start of a stream.
    pub initial_resource_versions: HashMap<String, String>,
    /// State of the world: the version in force.
    pub version_info: String,
    pub response_nonce: String,
    pub error_detail: Option<rpc::Status>,
}

impl From<DeltaDiscoveryRequest> for Asked {
    fn from(from: DeltaDiscoveryRequest) -> Asked {
        Asked {
            type_url: from.type_url,
            node: from.node,
            names: from.resource_names_subscribe,
            unsubscribed: from.resource_names_unsubscribe,
            initial_resource_versions: from.initial_resource_versions,
            version_info: String::new(),
            response_nonce: from.response_nonce,
            error_detail: from.error_detail,
        }
    }
}

impl From<DiscoveryRequest> for Asked {
    fn from(from: DiscoveryRequest) -> Asked {
        Asked {
            type_url: from.type_url,
            node: from.node,
            names: from.resource_names,
            unsubscribed: Vec::new(),
            initial_resource_versions: HashMap::new(),
            version_info: from.version_info,
            response_nonce: from.response_nonce,
            error_detail: from.error_detail,
        }
    }
}

enum Requests {
    Delta(Streaming<DeltaDiscoveryRequest>),
    Sotw(Streaming<DiscoveryRequest>),
}

enum Responses {
    Delta(mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>),
    Sotw(mpsc::Sender<Result<DiscoveryResponse, Status>>),
}

/// One stream of the proxy.
pub struct Session {
    requests: Requests,
    responses: Responses,
    early: Vec<Asked>,
    nonce: u64,
    /// Types that were asked for.
    subscribed: BTreeSet<String>,
    /// State of the world: what it is, by type and name.
    world: BTreeMap<String, BTreeMap<String, Any>>,
    /// `authorization` of the stream.
    pub token: String,
    /// The method that was called, such as `/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets`.
    pub method: String,
}

impl Session {
    /// The next request; `None`: the proxy has ended the stream.
    async fn next(&mut self) -> Option<Asked> {
        let next = async {
            match &mut self.requests {
                Requests::Delta(requests) => requests.message().await.ok().flatten().map(Asked::from),
                Requests::Sotw(requests) => requests.message().await.ok().flatten().map(Asked::from),
            }
        };
        tokio::time::timeout(LIMIT, next).await.expect("a request in time")
    }

    async fn message(&mut self) -> Asked {
        let message = self.next().await.expect("an open stream");
        self.subscribed.insert(message.type_url.clone());
        message
    }

    /// The next request for a type; others are kept.
    pub async fn request(&mut self, type_url: &str) -> Asked {
        if let Some(at) = self.early.iter().position(|request| request.type_url == type_url) {
            return self.early.remove(at);
        }
        loop {
            let request = self.message().await;
            if request.type_url == type_url {
                return request;
            }
            self.early.push(request);
        }
    }

    /// Waits until a type's names are asked for, by whatever number of requests.
    pub async fn asked_for(&mut self, type_url: &str, name: &str) -> Asked {
        loop {
            let request = self.request(type_url).await;
            if request.names.iter().any(|asked| asked == name) {
                return request;
            }
        }
    }

    /// Sends resources and waits for the answer to them. In state of the world, what was sent before goes along for listeners and clusters.
    pub async fn send(&mut self, type_url: &str, version: &str, resources: Vec<(&str, Any)>) -> Asked {
        self.change(type_url, version, resources, &[]).await
    }

    /// Takes resources away and waits for the answer.
    pub async fn remove(&mut self, type_url: &str, version: &str, names: &[&str]) -> Asked {
        self.change(type_url, version, Vec::new(), names).await
    }

    /// Sends and takes away in one response, and waits for the answer. What nobody has asked for would be passed over: the subscription is waited for.
    pub async fn change(
        &mut self,
        type_url: &str,
        version: &str,
        resources: Vec<(&str, Any)>,
        removed: &[&str],
    ) -> Asked {
        while !self.subscribed.contains(type_url) {
            let request = self.message().await;
            self.early.push(request);
        }
        let nonce = self.say(type_url, version, resources, removed).await;
        loop {
            let request = self.request(type_url).await;
            if request.response_nonce == nonce {
                return request;
            }
        }
    }

    /// Sends without waiting for the answer; the nonce.
    pub async fn say(
        &mut self,
        type_url: &str,
        version: &str,
        resources: Vec<(&str, Any)>,
        removed: &[&str],
    ) -> String {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        match &self.responses {
            Responses::Delta(responses) => {
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
                    removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
                    type_url: type_url.into(),
                    nonce: nonce.clone(),
                    ..DeltaDiscoveryResponse::default()
                };
                responses.send(Ok(response)).await.unwrap();
            }
            Responses::Sotw(responses) => {
                let whole = matches!(type_url, type_url::CLUSTER | type_url::LISTENER);
                let world = self.world.entry(type_url.to_owned()).or_default();
                world.retain(|name, _| whole && !removed.contains(&name.as_str()));
                // A name that comes twice comes twice.
                world.retain(|name, _| !resources.iter().any(|(new, _)| new == name));
                let all: Vec<Any> =
                    world.values().cloned().chain(resources.iter().map(|(_, resource)| resource.clone())).collect();
                world.extend(resources.into_iter().map(|(name, resource)| (name.to_owned(), resource)));
                let response = DiscoveryResponse {
                    version_info: version.into(),
                    resources: all,
                    type_url: type_url.into(),
                    nonce: nonce.clone(),
                    ..DiscoveryResponse::default()
                };
                responses.send(Ok(response)).await.unwrap();
            }
        }
        nonce
    }

    /// Whether the stream is ADS.
    fn serves_all(&self) -> bool {
        self.method.ends_with("AggregatedResources")
    }

    /// Whether the stream is for this type.
    fn serves(&self, type_url: &str) -> bool {
        let service = match type_url {
            type_url::CLUSTER => "Clusters",
            type_url::ENDPOINT => "Endpoints",
            type_url::LISTENER => "Listeners",
            type_url::ROUTE => "Routes",
            _ => "Secrets",
        };
        self.serves_all() || self.method.ends_with(service)
    }
}

/// All streams of the proxy, whichever way it is subscribed.
pub struct Streams {
    sessions: mpsc::Receiver<Session>,
    open: Vec<Session>,
}

impl Streams {
    /// Those of this control plane.
    pub fn new(sessions: mpsc::Receiver<Session>) -> Streams {
        Streams { sessions, open: Vec::new() }
    }

    /// The stream for a type; waits for it.
    pub async fn of(&mut self, type_url: &str) -> &mut Session {
        loop {
            if let Some(at) = self.open.iter().position(|session| session.serves(type_url)) {
                return &mut self.open[at];
            }
            self.open.push(session(&mut self.sessions).await);
        }
    }

    /// See [`Session::send`].
    pub async fn send(&mut self, type_url: &str, version: &str, resources: Vec<(&str, Any)>) -> Asked {
        self.of(type_url).await.send(type_url, version, resources).await
    }

    /// See [`Session::remove`].
    pub async fn remove(&mut self, type_url: &str, version: &str, names: &[&str]) -> Asked {
        self.of(type_url).await.remove(type_url, version, names).await
    }

    /// See [`Session::request`].
    pub async fn request(&mut self, type_url: &str) -> Asked {
        self.of(type_url).await.request(type_url).await
    }

    /// See [`Session::asked_for`].
    pub async fn asked_for(&mut self, type_url: &str, name: &str) -> Asked {
        self.of(type_url).await.asked_for(type_url, name).await
    }

    /// Waits until the proxy has given up the stream for a type, if the stream is for nothing else.
    pub async fn ended(&mut self, type_url: &str) {
        let theirs = |session: &Session| session.serves(type_url) && !session.serves_all();
        let Some(at) = self.open.iter().position(theirs) else { return };
        let mut session = self.open.remove(at);
        while session.next().await.is_some() {}
    }

    /// Cuts every stream off.
    pub fn cut(&mut self) {
        self.open.clear();
    }
}

struct Script(mpsc::Sender<Session>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Script {
    async fn take<Q>(
        &self,
        request: Request<Streaming<Q>>,
        wrap: fn(Streaming<Q>) -> Requests,
        responses: Responses,
    ) -> Result<(), Status> {
        let header = |name: &str| {
            request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let session = Session {
            token: header("authorization"),
            method: header(METHOD),
            requests: wrap(request.into_inner()),
            responses,
            early: Vec::new(),
            nonce: 0,
            subscribed: BTreeSet::new(),
            world: BTreeMap::new(),
        };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(4);
        self.take(request, Requests::Sotw, Responses::Sotw(responses)).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(4);
        self.take(request, Requests::Delta, Responses::Delta(responses)).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A control plane whose streams the test holds.
pub async fn control_plane() -> (SocketAddr, mpsc::Receiver<Session>) {
    control_plane_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
}

/// Carries the method that was called.
const METHOD: &str = "x-method";

/// Leads every discovery service to the one that there is: they differ in their methods' names alone.
fn aggregated(mut request: http::Request<Body>) -> http::Request<Body> {
    let called = request.uri().path().to_owned();
    let method = if called.contains("/Delta") { "DeltaAggregatedResources" } else { "StreamAggregatedResources" };
    *request.uri_mut() =
        format!("http://cp/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}").parse().unwrap();
    request.headers_mut().insert(METHOD, called.parse().unwrap());
    request
}

/// The same at this socket.
pub fn control_plane_on(listener: std::net::TcpListener) -> (SocketAddr, mpsc::Receiver<Session>) {
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (sessions, receiver) = mpsc::channel(8);
    tokio::spawn(
        tonic::transport::Server::builder()
            .layer(MapRequestLayer::new(aggregated))
            .add_service(AggregatedDiscoveryServiceServer::new(Script(sessions)))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, receiver)
}

/// The next stream.
pub async fn session(sessions: &mut mpsc::Receiver<Session>) -> Session {
    tokio::time::timeout(LIMIT, sessions.recv()).await.expect("a stream in time").unwrap()
}
