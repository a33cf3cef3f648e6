//! The global control plane's side: a gRPC server on 5685 to which zones connect.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use shika_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use shika_proto::google::protobuf;
use shika_proto::kuma::mesh::v1alpha1::global_kds_service_server::{GlobalKdsService, GlobalKdsServiceServer};
use shika_proto::kuma::mesh::v1alpha1::kds_sync_service_server::{KdsSyncService, KdsSyncServiceServer};
use shika_proto::kuma::mesh::v1alpha1::{
    ClustersRequest, ClustersResponse, StatsRequest, StatsResponse, XdsConfigRequest, XdsConfigResponse,
    ZoneHealthCheckRequest, ZoneHealthCheckResponse,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::inbox::{Inbox, InboxError};
use super::outbox::Outbox;
use super::{
    CLIENT_ID, Direction, FEATURES, INSTANCE, MAX_MESSAGE, TIME, ZoneNode, insight, skew, told_to_stop, unix_time,
};
use crate::auth::{TokenError, ZoneScope, ZoneTokens};
use crate::dp::{Connection, DpConfig, DpError, serve_connections, tls};
use crate::resource::{Kind, Resource, ResourceKey};
use crate::store::{Event, Store, StoreError};

/// Messages that may wait for a slow connection.
const QUEUE: usize = 4;
/// How long a complaint of a zone is not repeated: it tries again and again, on three streams.
const QUIET: Duration = Duration::from_secs(60);
/// Complaints that are remembered. Anybody may call itself any zone.
const MAX_COMPLAINTS: usize = 1024;
/// Notes that may wait for the writer of the insight. More are lost, which only its figures show.
const NOTES: usize = 256;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct GlobalConfig {
    /// Directory for the certificate that is made on the first start.
    pub work_dir: PathBuf,
    /// Whether zones connect over TLS (Kuma `multizone.global.kds.tlsEnabled`). On by default.
    pub with_tls: bool,
    /// Certificate and key to serve with, PEM files, instead of a self-made one.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether zones must prove their name by a zone token of scope `cp`. Off by default, as in Kuma.
    pub require_token: bool,
    /// Name of this instance in insights.
    pub instance_id: String,
    /// How often a zone is to say that it is there (Kuma `multizone.global.kds.zoneHealthCheck.pollInterval`, 30 s).
    pub health_interval: Duration,
    /// How often what happened on a stream is written to the ZoneInsight (Kuma `metrics.zone`, 10 s).
    pub insight_interval: Duration,
}

impl GlobalConfig {
    /// Defaults with this working directory.
    pub fn new(work_dir: impl Into<PathBuf>) -> GlobalConfig {
        GlobalConfig {
            work_dir: work_dir.into(),
            with_tls: true,
            tls: None,
            require_token: false,
            instance_id: uuid::Uuid::new_v4().to_string(),
            health_interval: Duration::from_secs(30),
            insight_interval: Duration::from_secs(10),
        }
    }
}

/// The server, ready to serve.
pub struct GlobalServer {
    shared: Arc<Shared>,
    acceptor: Option<TlsAcceptor>,
    ca_path: Option<PathBuf>,
    listener: TcpListener,
}

impl std::fmt::Debug for GlobalServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GlobalServer").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shared {
    store: Store,
    config: GlobalConfig,
    tokens: ZoneTokens,
    /// The zones that are connected.
    connected: Mutex<HashMap<String, Connected>>,
    /// When it was last said that something is wrong with a zone.
    complaints: Mutex<HashMap<(String, Complaint), Instant>>,
    stopping: watch::Sender<bool>,
}

/// What may be wrong with a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Complaint {
    Clock,
    Token,
    Name,
}

/// A zone that is connected.
#[derive(Debug)]
struct Connected {
    /// All streams of a control plane share its connection.
    peer: SocketAddr,
    /// The process, where it says which it is.
    instance: String,
    streams: usize,
}

impl GlobalServer {
    /// Prepares a server on `listener`: reads or makes its certificate.
    ///
    /// # Errors
    /// [`DpError`], with the file and the reason.
    pub fn new(store: Store, config: GlobalConfig, listener: TcpListener) -> Result<GlobalServer, DpError> {
        let (mut acceptor, mut ca_path) = (None, None);
        if config.with_tls {
            // The same certificate as a data-plane server would have: a control plane is one or the other.
            let mut settings = DpConfig::new(&config.work_dir);
            settings.tls.clone_from(&config.tls);
            let identity = tls::ServerIdentity::load(&settings)?;
            acceptor = Some(identity.acceptor()?);
            ca_path = Some(identity.ca_path);
        }
        let tokens = ZoneTokens::new(store.clone());
        let (connected, complaints) = Default::default();
        let stopping = watch::Sender::new(false);
        let shared = Arc::new(Shared { store, config, tokens, connected, complaints, stopping });
        Ok(GlobalServer { shared, acceptor, ca_path, listener })
    }

    /// File with what zones must trust to reach this server; `None` without TLS.
    pub fn ca_path(&self) -> Option<&std::path::Path> {
        self.ca_path.as_deref()
    }

    /// Serves until `shutdown` completes, then ends the streams and returns.
    ///
    /// # Errors
    /// When the store cannot be written at the start.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), StoreError> {
        let GlobalServer { shared, acceptor, listener, .. } = self;
        insight::close_all(&shared.store).await?;
        let cleaner = tokio::spawn(clean(shared.store.clone()));
        let services = Services { shared: shared.clone() };
        let gzip = CompressionEncoding::Gzip;
        let sync = KdsSyncServiceServer::new(services.clone())
            .accept_compressed(gzip)
            .send_compressed(gzip)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let global = GlobalKdsServiceServer::new(services).accept_compressed(gzip).send_compressed(gzip);
        let router = Routes::new(sync).add_service(global).prepare().into_axum_router();
        let router = move |connection: Connection| router.clone().layer(Extension(Peer(connection.peer)));
        serve_connections(listener, acceptor, router, &shared.stopping, shutdown).await;
        cleaner.abort();
        Ok(())
    }
}

/// Deletes what a zone sent when the zone is deleted, until the store is gone.
async fn clean(store: Store) {
    let mut watch = store.watch();
    while let Some(event) = watch.next().await {
        let result = match event {
            Event::Deleted(key) if key.kind == Kind::Zone => clean_zone(&store, &key.name).await,
            _ => continue,
        };
        if let Err(error) = result {
            tracing::error!(%error, "could not delete what a deleted zone left behind");
        }
    }
}

async fn clean_zone(store: &Store, zone: &str) -> Result<(), StoreError> {
    let direction = Direction::ToGlobal(zone.to_owned());
    for kind in direction.kinds() {
        let stored = store.list(kind, None).await?;
        for resource in stored.iter().filter(|resource| super::transform::came_from(&direction, resource)) {
            match store.delete(&resource.key()).await {
                Ok(()) | Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    tracing::info!(zone, "deleted what the zone had sent");
    Ok(())
}

/// The address of the other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

/// A zone that was let in.
struct Admitted {
    zone: String,
    with_token: bool,
    guard: Guard,
}

/// Holds one stream of a connected zone.
struct Guard {
    shared: Arc<Shared>,
    zone: String,
    peer: SocketAddr,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut connected = self.shared.connected.lock();
        if let Some(entry) = connected.get_mut(&self.zone).filter(|entry| entry.peer == self.peer) {
            entry.streams = entry.streams.saturating_sub(1);
            if entry.streams == 0 {
                connected.remove(&self.zone);
            }
        }
    }
}

impl Shared {
    /// Lets a zone in: its name, its token, and that nobody else has the name.
    async fn admit(self: &Arc<Shared>, metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Admitted, Status> {
        let zone = text(metadata, CLIENT_ID).unwrap_or_default().to_owned();
        if !is_zone_name(&zone) {
            return Err(Status::invalid_argument(format!(
                "metadata {CLIENT_ID} is {zone:?}: the name of the zone is expected, lower case letters, digits and '-'"
            )));
        }
        let features: Vec<&str> = metadata.get_all(FEATURES).iter().filter_map(|value| value.to_str().ok()).collect();
        if !features.contains(&"hash-suffix") {
            return Err(Status::failed_precondition(format!(
                "zone {zone:?} does not announce the feature hash-suffix; its control plane is too old (before Kuma 2.6)"
            )));
        }
        let clock = text(metadata, TIME).and_then(skew);
        if let Some(ahead) = clock.filter(|_| self.may_complain(&zone, Complaint::Clock)) {
            tracing::error!(zone, seconds_ahead = ahead, "{}", skewed(&zone, ahead));
        }
        let token = text(metadata, "authorization").map(|token| token.strip_prefix("Bearer ").unwrap_or(token));
        if self.config.require_token {
            let checked = self.tokens.validate(token.unwrap_or_default(), &zone, ZoneScope::ControlPlane).await;
            checked.map_err(|error| {
                let hint = clock.map(|ahead| format!("; {}", skewed(&zone, ahead))).unwrap_or_default();
                if self.may_complain(&zone, Complaint::Token) {
                    tracing::warn!(zone, peer = peer.map(tracing::field::display), reason = %error, "refused a zone");
                }
                match error {
                    TokenError::Store(error) => Status::unavailable(error.to_string()),
                    other => Status::unauthenticated(format!("zone {zone:?} is refused: {other}{hint}")),
                }
            })?;
        }
        let peer = peer.ok_or_else(|| Status::internal("the connection has no address"))?;
        let instance = text(metadata, INSTANCE).unwrap_or_default();
        let guard = self.enter(&zone, peer, instance)?;
        Ok(Admitted { zone, with_token: token.is_some(), guard })
    }

    /// Whether this was not said of the zone for a while; what is said now counts.
    fn may_complain(&self, zone: &str, complaint: Complaint) -> bool {
        let now = Instant::now();
        let mut complaints = self.complaints.lock();
        complaints.retain(|_, at| now.duration_since(*at) < QUIET);
        let key = (zone.to_owned(), complaint);
        if complaints.len() >= MAX_COMPLAINTS || complaints.contains_key(&key) {
            return false;
        }
        complaints.insert(key, now);
        true
    }

    fn enter(self: &Arc<Shared>, zone: &str, peer: SocketAddr, instance: &str) -> Result<Guard, Status> {
        let mut connected = self.connected.lock();
        let entry = connected.entry(zone.to_owned()).or_insert_with(|| Connected {
            peer,
            instance: instance.to_owned(),
            streams: 0,
        });
        if entry.peer != peer {
            // The same process may have lost its connection without this side having noticed yet.
            if instance.is_empty() || entry.instance != instance {
                if self.may_complain(zone, Complaint::Name) {
                    tracing::error!(zone, %peer, other = %entry.peer, "two control planes connect as the same zone");
                }
                return Err(Status::already_exists(format!(
                    "zone {zone:?} is connected already, from {}: every zone needs a name of its own, give this one another with \
                     --zone-name. If it is the same zone, which was restarted, wait until its old connection has timed out",
                    entry.peer
                )));
            }
            (entry.peer, entry.streams) = (peer, 0);
        }
        entry.streams += 1;
        Ok(Guard { shared: self.clone(), zone: zone.to_owned(), peer })
    }
}

fn skewed(zone: &str, ahead: i64) -> String {
    let (seconds, which) = (ahead.unsigned_abs(), if ahead > 0 { "ahead of" } else { "behind" });
    format!(
        "the clock of zone {zone:?} is {seconds} s {which} that of global: certificates and tokens will be refused; set both \
         clocks by NTP"
    )
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key).and_then(|value| value.to_str().ok()).map(str::trim).filter(|text| !text.is_empty())
}

fn is_zone_name(text: &str) -> bool {
    text.len() <= 253 && crate::resource::is_hostname(text)
}

/// The services.
#[derive(Clone)]
struct Services {
    shared: Arc<Shared>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream of messages that ends with this status.
fn messages<T: Send + 'static>(queue: mpsc::Receiver<Result<T, Status>>) -> Response<Messages<T>> {
    let mut response: Response<Messages<T>> = Response::new(Box::pin(ReceiverStream::new(queue)));
    response.metadata_mut().insert(TIME, unix_time().into());
    response
}

/// What is known of who calls, and what they send.
fn parts<T>(request: Request<T>) -> (MetadataMap, Option<SocketAddr>, T) {
    let (metadata, extensions, message) = request.into_parts();
    (metadata, extensions.get::<Peer>().map(|peer| peer.0), message)
}

/// Passes on what one side sends, as results.
async fn forward<T>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<Result<T, Status>>) {
    while let Some(message) = from.recv().await {
        if to.send(Ok(message)).await.is_err() {
            return;
        }
    }
}

#[tonic::async_trait]
impl KdsSyncService for Services {
    type GlobalToZoneSyncStream = Messages<DeltaDiscoveryResponse>;
    type ZoneToGlobalSyncStream = Messages<DeltaDiscoveryRequest>;

    async fn global_to_zone_sync(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::GlobalToZoneSyncStream>, Status> {
        let (metadata, peer, stream) = parts(request);
        let Admitted { zone, with_token, guard } = self.shared.admit(&metadata, peer).await?;
        let unavailable = |e: StoreError| Status::unavailable(e.to_string());
        insight::ensure_zone(&self.shared.store, &zone).await.map_err(unavailable)?;
        let (results, queue) = mpsc::channel(QUEUE);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let _guard = guard;
            let (notes, noted) = mpsc::channel(NOTES);
            let (store, instance) = (shared.store.clone(), shared.config.instance_id.clone());
            let interval = shared.config.insight_interval;
            let keeper =
                tokio::spawn(insight::keep(store.clone(), zone.clone(), instance.clone(), with_token, interval, noted));
            tracing::info!(zone, "a zone is connected");
            let (responses, out) = mpsc::channel(QUEUE);
            let outbox = Outbox::new(store, Direction::ToZone(zone.clone()), &instance);
            let mut stopping = shared.stopping.subscribe();
            let ended = tokio::select! {
                ended = outbox.run(stream, responses, |happened| drop(notes.try_send(happened))) => ended,
                () = forward(out, results.clone()) => Ok(()),
                () = told_to_stop(&mut stopping) => Err(Status::unavailable("the global control plane stops")),
            };
            drop(notes);
            tracing::info!(zone, "a zone is gone");
            if let Err(status) = ended {
                let _ = results.send(Err(status)).await;
            }
            let _ = keeper.await;
        });
        Ok(messages(queue))
    }

    async fn zone_to_global_sync(
        &self,
        request: Request<Streaming<DeltaDiscoveryResponse>>,
    ) -> Result<Response<Self::ZoneToGlobalSyncStream>, Status> {
        let (metadata, peer, stream) = parts(request);
        let Admitted { zone, guard, .. } = self.shared.admit(&metadata, peer).await?;
        let unavailable = |e: StoreError| Status::unavailable(e.to_string());
        insight::ensure_zone(&self.shared.store, &zone).await.map_err(unavailable)?;
        let (results, queue) = mpsc::channel(QUEUE);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let _guard = guard;
            let (requests, out) = mpsc::channel(QUEUE);
            // Kuma names the zone here, and not itself.
            let node =
                ZoneNode { zone: zone.clone(), instance: shared.config.instance_id.clone(), ..ZoneNode::default() };
            let inbox = Inbox::new(shared.store.clone(), Direction::ToGlobal(zone.clone()), &node);
            let mut stopping = shared.stopping.subscribe();
            let ended = tokio::select! {
                ended = inbox.run(stream, requests) => ended,
                () = forward(out, results.clone()) => Ok(()),
                () = told_to_stop(&mut stopping) => {
                    Err(InboxError::Stream(Status::unavailable("the global control plane stops")))
                }
            };
            match ended {
                Ok(()) | Err(InboxError::Gone) => {}
                Err(InboxError::Store(error)) => {
                    tracing::error!(zone, %error, "could not store what a zone sent");
                    let _ = results.send(Err(Status::unavailable(error.to_string()))).await;
                }
                Err(InboxError::Stream(status)) => {
                    tracing::debug!(zone, reason = status.message(), "a stream of a zone broke");
                    let _ = results.send(Err(status)).await;
                }
            }
        });
        Ok(messages(queue))
    }
}

/// A stream on which nothing is asked, and which ends with what the zone sends.
fn silent<From: Send + 'static, To: Send + 'static>(request: Request<Streaming<From>>) -> Response<Messages<To>> {
    Response::new(Box::pin(request.into_inner().filter_map(|_| std::future::ready(None))))
}

#[tonic::async_trait]
impl GlobalKdsService for Services {
    type StreamXDSConfigsStream = Messages<XdsConfigRequest>;
    type StreamStatsStream = Messages<StatsRequest>;
    type StreamClustersStream = Messages<ClustersRequest>;

    async fn stream_xds_configs(
        &self,
        request: Request<Streaming<XdsConfigResponse>>,
    ) -> Result<Response<Self::StreamXDSConfigsStream>, Status> {
        Ok(silent(request))
    }

    async fn stream_stats(
        &self,
        request: Request<Streaming<StatsResponse>>,
    ) -> Result<Response<Self::StreamStatsStream>, Status> {
        Ok(silent(request))
    }

    async fn stream_clusters(
        &self,
        request: Request<Streaming<ClustersResponse>>,
    ) -> Result<Response<Self::StreamClustersStream>, Status> {
        Ok(silent(request))
    }

    async fn health_check(
        &self,
        request: Request<ZoneHealthCheckRequest>,
    ) -> Result<Response<ZoneHealthCheckResponse>, Status> {
        let (metadata, peer, _) = parts(request);
        let Admitted { zone, .. } = self.shared.admit(&metadata, peer).await?;
        let unavailable = |e: StoreError| Status::unavailable(e.to_string());
        insight::alive(&self.shared.store, &zone).await.map_err(unavailable)?;
        let seconds = i64::try_from(self.shared.config.health_interval.as_secs()).unwrap_or(i64::MAX);
        let interval = Some(protobuf::Duration { seconds, nanos: 0 });
        let mut response = Response::new(ZoneHealthCheckResponse { interval });
        response.metadata_mut().insert(TIME, unix_time().into());
        Ok(response)
    }
}

/// Whether a zone is connected, as its insight says.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn is_connected(store: &Store, zone: &str) -> Result<bool, StoreError> {
    let insight = store.get(&ResourceKey::global(Kind::ZoneInsight, zone)).await?;
    Ok(insight.as_ref().and_then(Resource::zone_insight).is_some_and(|insight| insight.is_online()))
}
