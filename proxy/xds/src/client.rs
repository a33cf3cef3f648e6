//! The shell around a subscription: connects to the control plane's cluster, carries messages both ways, connects again when the stream is lost.
//!
//! Decides nothing: what to ask for and what to answer comes from the control thread, which holds the protocol state ([`crate::ads::Ads`]).

use std::{
    io::Read,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use rand::Rng;
use shika_data::{
    model::cluster::{Cluster, EndpointAddress},
    proxy_protocol::Addresses,
    stats::Origin,
    tls,
};
use shika_proto::type_url;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{
    Status,
    client::Grpc,
    metadata::{MetadataKey, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};
use tonic_prost::ProstCodec;

use crate::{
    ads::{Request, Response},
    bootstrap::{ApiConfig, ApiType},
    rest,
};

/// First pause after a lost stream; it doubles up to [`LONGEST_PAUSE`]. Envoy's values.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after a lost stream.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A stream that lived this long starts the pauses anew.
const GOOD_LIFE: Duration = Duration::from_secs(30);
/// Largest message taken from a control plane that nothing else is said of.
pub(crate) const LARGEST_MESSAGE: usize = 256 << 20;
/// Largest token in a file.
const LARGEST_TOKEN: u64 = 64 << 10;
/// Requests that wait to be sent.
const REQUESTS: usize = 16;

/// What the control thread is told.
#[derive(Debug)]
pub enum Event {
    /// A stream is open. Requests are to be sent on `requests`, which ends with the stream.
    Connected {
        /// Where requests go.
        requests: mpsc::Sender<Request>,
    },
    /// The control plane has taken the stream. It may have nothing to say: what the proxy holds may be all there is.
    Accepted,
    /// A response.
    Response(Response),
    /// The stream is gone, or could not be opened; another try follows.
    Disconnected {
        /// Why, for the log.
        reason: String,
        /// How long it will be to the next try.
        pause: Duration,
    },
}

/// Keeps a subscription until `events` is closed: a stream that is opened again when it is lost, or questions by REST. `only` is the type of resource that
/// it is for; `None` is ADS. `cluster` gives the cluster as it is now, `None` while it is not there.
pub async fn run(
    config: ApiConfig,
    only: Option<&'static str>,
    cluster: impl Fn() -> Option<Arc<Cluster>>,
    events: mpsc::Sender<Event>,
) {
    let next_endpoint = Arc::new(AtomicUsize::new(0));
    let mut pause = FIRST_PAUSE;
    loop {
        let started = tokio::time::Instant::now();
        let reason = tokio::select! {
            reason = session(&config, only, cluster(), &next_endpoint, &events) => reason,
            () = events.closed() => return,
        };
        if started.elapsed() >= GOOD_LIFE {
            pause = FIRST_PAUSE;
        }
        let wait = match config.api_type {
            // A question that fails is asked again in its turn.
            ApiType::Rest { refresh, .. } => rest::jittered(refresh),
            ApiType::Grpc | ApiType::DeltaGrpc => {
                // Full jitter, so that a fleet does not come back all at once; never quite zero.
                let wait = pause.mul_f64(rand::rng().random_range(0.1..=1.0));
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            }
        };
        if events.send(Event::Disconnected { reason, pause: wait }).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = events.closed() => return,
        }
    }
}

/// One stream, from connecting to its end, or REST until a question fails. Returns why it ended.
async fn session(
    config: &ApiConfig,
    only: Option<&'static str>,
    cluster: Option<Arc<Cluster>>,
    next: &Arc<AtomicUsize>,
    events: &mpsc::Sender<Event>,
) -> String {
    let Some(cluster) = cluster else {
        return format!("cluster {:?} is not ready", config.cluster);
    };
    match config.api_type {
        ApiType::Grpc | ApiType::DeltaGrpc => stream(config, only, &cluster, next, events).await,
        ApiType::Rest { refresh, timeout } => {
            let Some(path) = only.and_then(rest::path) else {
                return "resources of this type cannot be asked for by REST".into();
            };
            rest::Poll { path, refresh, timeout, cluster, next: next.clone() }.run(events).await
        }
    }
}

async fn stream(
    config: &ApiConfig,
    only: Option<&'static str>,
    cluster: &Arc<Cluster>,
    next: &Arc<AtomicUsize>,
    events: &mpsc::Sender<Event>,
) -> String {
    let connecting = tokio::time::Instant::now();
    let channel = channel(config, cluster, next).await;
    let mut counted = Counted::new(cluster, channel.is_ok(), connecting.elapsed());
    let channel = match channel {
        Ok(channel) => channel,
        Err(reason) => return reason,
    };
    let metadata = match metadata(config) {
        Ok(metadata) => metadata,
        Err(reason) => return reason,
    };
    let (requests, sent) = mpsc::channel::<Request>(REQUESTS);
    // Told before the answer's headers are there: a control plane may wait for the first request before it sends any.
    if events.send(Event::Connected { requests }).await.is_err() {
        return "shutting down".into();
    }
    counted.request();
    let opened = open(config, channel, only, metadata, sent).await;
    let mut responses = match opened {
        Ok(responses) => responses,
        Err(status) => return describe(&status),
    };
    if events.send(Event::Accepted).await.is_err() {
        return "shutting down".into();
    }
    cluster.stats.count_code(Origin::Internal, 200);
    while let Some(response) = responses.next().await {
        match response {
            Ok(response) => {
                if events.send(Event::Response(response)).await.is_err() {
                    return "shutting down".into();
                }
            }
            Err(status) => {
                counted.by_peer = true;
                return describe(&status);
            }
        }
    }
    counted.by_peer = true;
    "the control plane closed the stream".into()
}

/// The gRPC method of a stream. Source: the services of `envoy/service/*/v3/*.proto`.
fn method(only: Option<&str>, delta: bool) -> &'static str {
    match (only, delta) {
        (Some(type_url::CLUSTER), false) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
        (Some(type_url::CLUSTER), true) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
        (Some(type_url::ENDPOINT), false) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
        (Some(type_url::ENDPOINT), true) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
        (Some(type_url::LISTENER), false) => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
        (Some(type_url::LISTENER), true) => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
        (Some(type_url::ROUTE), false) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
        (Some(type_url::ROUTE), true) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        (Some(type_url::SECRET), false) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        (Some(type_url::SECRET), true) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        (Some(type_url::RUNTIME), false) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
        (Some(type_url::RUNTIME), true) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
        (_, false) => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        (_, true) => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    }
}

/// `cluster.<..>.upstream_*` of the stream and its connection; the end is counted by `Drop`.
struct Counted {
    cluster: Arc<Cluster>,
    opened: tokio::time::Instant,
    connected: bool,
    requested: bool,
    by_peer: bool,
}

impl Counted {
    fn new(cluster: &Arc<Cluster>, connected: bool, took: Duration) -> Counted {
        let stats = &cluster.stats;
        stats.upstream_cx_total().inc();
        stats.upstream_cx_active().inc();
        stats.upstream_rq_pending_total().inc();
        if connected {
            stats.upstream_cx_http2_total().inc();
            stats.upstream_cx_connect_ms().record(took.as_millis() as u64);
        } else {
            stats.upstream_cx_connect_fail().inc();
            stats.upstream_rq_pending_failure_eject().inc();
        }
        let opened = tokio::time::Instant::now();
        Counted { cluster: cluster.clone(), opened, connected, requested: false, by_peer: !connected }
    }

    fn request(&mut self) {
        self.requested = true;
        self.cluster.stats.upstream_rq_total().inc();
        self.cluster.stats.upstream_rq_active().inc();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.cluster.stats;
        stats.upstream_cx_active().dec();
        stats.upstream_cx_destroy().inc();
        match self.by_peer {
            true => stats.upstream_cx_destroy_remote().inc(),
            false => stats.upstream_cx_destroy_local().inc(),
        }
        stats.upstream_cx_length_ms().record(self.opened.elapsed().as_millis() as u64);
        if self.connected {
            stats.upstream_rq_per_cx().record(u64::from(self.requested));
        }
        if self.requested {
            stats.upstream_rq_active().dec();
        }
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<Response, Status>> + Send>>;

async fn open(
    config: &ApiConfig,
    channel: Channel,
    only: Option<&str>,
    metadata: MetadataMap,
    sent: mpsc::Receiver<Request>,
) -> Result<Responses, Status> {
    let sent = ReceiverStream::new(sent);
    let delta = config.api_type == ApiType::DeltaGrpc;
    let path = PathAndQuery::from_static(method(only, delta));
    let client = Grpc::new(channel).max_decoding_message_size(config.largest_message);
    if delta {
        let sent = sent.filter_map(|request| match request {
            Request::Delta(request) => Some(request),
            Request::Sotw(_) => None,
        });
        exchange(client, path, metadata, sent, Response::Delta).await
    } else {
        let sent = sent.filter_map(|request| match request {
            Request::Sotw(request) => Some(request),
            Request::Delta(_) => None,
        });
        exchange(client, path, metadata, sent, Response::Sotw).await
    }
}

async fn exchange<Q: Message + 'static, R: Message + Default + 'static>(
    mut client: Grpc<Channel>,
    path: PathAndQuery,
    metadata: MetadataMap,
    sent: impl Stream<Item = Q> + Send + 'static,
    wrap: fn(R) -> Response,
) -> Result<Responses, Status> {
    client.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
    let mut request = tonic::Request::new(sent);
    *request.metadata_mut() = metadata;
    let responses = client.streaming(request, path, ProstCodec::<Q, R>::default()).await?.into_inner();
    Ok(Box::pin(responses.map(move |response| response.map(wrap))))
}

fn metadata(config: &ApiConfig) -> Result<MetadataMap, String> {
    let mut metadata = MetadataMap::new();
    for (key, value) in &config.metadata {
        // The value may be a token: it is not repeated.
        let bad = || format!("initial_metadata {key:?} cannot be sent");
        let name: MetadataKey<_> = key.parse().map_err(|_| bad())?;
        let value: MetadataValue<_> = value.parse().map_err(|_| bad())?;
        metadata.append(name, value);
    }
    if let Some(file) = &config.token_file {
        let token = token(&file.path).map_err(|why| format!("token {}: {why}", file.path.display()))?;
        let bad = || format!("token {}: cannot be sent as a header", file.path.display());
        let name: MetadataKey<_> = file.header.parse().map_err(|_| bad())?;
        let value: MetadataValue<_> = format!("{}{token}", file.prefix).parse().map_err(|_| bad())?;
        metadata.insert(name, value);
    }
    Ok(metadata)
}

/// The content of a file with a token, as it is now: the file changes before the token in it runs out.
fn token(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut token = String::new();
    file.take(LARGEST_TOKEN).read_to_string(&mut token).map_err(|error| error.to_string())?;
    match token.trim() {
        "" => Err("is empty".into()),
        token => Ok(token.to_owned()),
    }
}

async fn channel(config: &ApiConfig, cluster: &Arc<Cluster>, next: &Arc<AtomicUsize>) -> Result<Channel, String> {
    let authority = if config.authority.is_empty() { &config.cluster } else { &config.authority };
    // A cluster's name need not be a host name; the scheme tells the other side nothing that matters to gRPC.
    let uri = Uri::builder().scheme("http").authority(authority.as_str()).path_and_query("/").build();
    let uri = uri.unwrap_or_else(|_| Uri::from_static("http://ads/"));
    let mut endpoint = Endpoint::from(uri).connect_timeout(cluster.connect_timeout);
    let (interval, answer) = config.keepalive.unwrap_or((
        cluster.http2.keepalive_interval.unwrap_or(Duration::from_secs(30)),
        cluster.http2.keepalive_timeout.unwrap_or(Duration::from_secs(20)),
    ));
    endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(answer).keep_alive_while_idle(true);
    let connector = Connector { cluster: cluster.clone(), next: next.clone() };
    endpoint.connect_with_connector(connector).await.map_err(|error| chain(&error))
}

/// Connects to one endpoint of the cluster after the other.
#[derive(Clone)]
struct Connector {
    cluster: Arc<Cluster>,
    next: Arc<AtomicUsize>,
}

/// A connection to the control plane.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (cluster, at) = (self.cluster.clone(), self.next.fetch_add(1, Ordering::Relaxed));
        // gRPC needs HTTP/2, and many servers want it named.
        Box::pin(async move { connect(&cluster, at, b"h2").await.map(TokioIo::new) })
    }
}

/// Connects to one endpoint of the cluster; `alpn` is offered in the handshake where the context itself offers nothing.
pub(crate) async fn connect(cluster: &Cluster, at: usize, alpn: &[u8]) -> std::io::Result<Box<dyn Connection>> {
    let endpoints = cluster.endpoints.load_full();
    let all: Vec<_> = endpoints.priorities.iter().flat_map(|priority| &priority.endpoints).collect();
    let endpoint = all
        .get(at.checked_rem(all.len()).unwrap_or(0))
        .ok_or_else(|| std::io::Error::other(format!("cluster {:?} has no endpoint", cluster.name)))?;
    let place = |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", endpoint.address));
    let mut own = None;
    let mut plain: Box<dyn Connection> = match &endpoint.address {
        EndpointAddress::Ip(address) => {
            let stream = TcpStream::connect(address).await.map_err(place)?;
            stream.set_nodelay(true).map_err(place)?;
            own = Some(Addresses { source: stream.local_addr().map_err(place)?, destination: *address });
            Box::new(stream)
        }
        EndpointAddress::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(place)?),
    };
    if let Some(proxy_protocol) = &cluster.proxy_protocol {
        plain.write_all(&proxy_protocol.header(None, own)).await.map_err(place)?;
    }
    let Some(client) = cluster.tls_for(endpoint) else { return Ok(plain) };
    let context =
        client.context.load_full().ok_or_else(|| std::io::Error::other("the TLS context waits for its secrets"))?;
    let alpn = context.config.alpn_protocols.is_empty().then(|| vec![alpn.to_vec()]);
    let stream = tls::connect::handshake(&context, alpn, plain).await.map_err(place)?;
    client.stats.handshake().inc();
    Ok(Box::new(stream))
}

/// A status with what caused it.
fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(source) = std::error::Error::source(status) {
        text.push_str(": ");
        text.push_str(&chain(source));
    }
    text
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
