//! The data-plane server on 5678: bootstrap, ADS in both variants, SDS, all with TLS on one port, over HTTP/1.1 and HTTP/2.
//!
//! ```text
//!   POST /bootstrap ─▶ bootstrap.rs ─▶ emit::bootstrap
//!   ADS stream ─▶ grpc.rs ─▶ session.rs: node, token, Dataplane ─▶ view of the mesh ─▶ plan ─▶ emit ─▶ xds ─▶ responses
//!                               └─▶ insight.rs: what was sent, what was answered, which certificate
//! ```

mod admit;
mod bootstrap;
mod certificates;
mod connections;
mod grpc;
mod insight;
mod node;
mod registry;
mod session;
mod source;
pub mod stats;
pub mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::auth::{DataplaneTokens, ZoneTokens};
use crate::identity::leaf::LeafIssuer;
use crate::mesh::MeshViews;
use crate::store::Store;
pub(crate) use connections::{Connection, serve_connections};
use registry::Registry;
use stats::DpStats;

/// Settings of the data-plane server.
#[derive(Clone, Debug)]
pub struct DpConfig {
    /// Directory for the certificate that is made on the first start.
    pub work_dir: PathBuf,
    /// Certificate and key to serve with, PEM files, instead of a self-made one.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Host to put into bootstraps (Kuma `bootstrapServer.params.xdsHost`); by default the host that the proxy asked.
    pub xds_host: Option<String>,
    /// More names and addresses for the self-made certificate.
    pub extra_names: Vec<String>,
    /// Port of the admin interface of proxies whose Dataplane names none (Kuma `bootstrapServer.params.adminPort`, 9901).
    pub admin_port: u16,
    /// Put the admin interface of proxies that name a working directory on a UNIX socket there (Kuma
    /// `bootstrapServer.params.envoyAdminUnixSocket`). Off by default.
    pub admin_unix_socket: bool,
    /// Ask proxies for a token (Kuma `dpServer.authn.dpProxy.type: dpToken`). On by default.
    pub require_token: bool,
    /// How long after its stream ended a Dataplane is deleted that its proxy brought along (Kuma
    /// `xdsServer.dataplaneDeregistrationDelay`, 10 s).
    pub deregistration_delay: Duration,
    /// How often what happened on a stream is written to the DataplaneInsight (Kuma `xdsServer.dataplaneStatusFlushInterval`, 10 s).
    pub insight_interval: Duration,
    /// Name of this instance in responses and insights.
    pub instance_id: String,
    /// Name of the zone (Kuma `multizone.zone.name`, `default`).
    pub zone: String,
    /// Whether the zone has a global control plane. It then has the certificate authorities, and Dataplanes carry their zone.
    pub federated: bool,
}

impl DpConfig {
    /// Defaults with this working directory.
    pub fn new(work_dir: impl Into<PathBuf>) -> Self {
        DpConfig {
            work_dir: work_dir.into(),
            tls: None,
            xds_host: None,
            extra_names: Vec::new(),
            admin_port: 9901,
            admin_unix_socket: false,
            require_token: true,
            deregistration_delay: Duration::from_secs(10),
            insight_interval: Duration::from_secs(10),
            instance_id: uuid::Uuid::new_v4().to_string(),
            zone: "default".to_owned(),
            federated: false,
        }
    }
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DpError {
    /// A certificate or key of the server cannot be read, made or used.
    #[error("TLS of the data-plane server: {0}")]
    Tls(String),
    /// The listening socket failed.
    #[error("data-plane server: {0}")]
    Listen(#[from] std::io::Error),
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: DpConfig,
    store: Store,
    tokens: DataplaneTokens,
    zone_tokens: ZoneTokens,
    views: Arc<MeshViews>,
    issuer: LeafIssuer,
    registry: Registry,
    stats: Arc<DpStats>,
    identity: tls::ServerIdentity,
    port: u16,
    /// Becomes true when streams must end.
    stopping: watch::Sender<bool>,
}

/// The data-plane server, ready to serve.
pub struct DpServer {
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    listener: TcpListener,
}

impl std::fmt::Debug for DpServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DpServer").field("port", &self.shared.port).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for tls::ServerIdentity {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerIdentity").field("names", &self.names).finish_non_exhaustive()
    }
}

impl DpServer {
    /// Prepares a server on `listener`: reads or makes its certificate.
    ///
    /// # Errors
    /// [`DpError`], with the file and the reason.
    pub fn new(
        store: Store,
        tokens: DataplaneTokens,
        config: DpConfig,
        listener: TcpListener,
    ) -> Result<Self, DpError> {
        let identity = tls::ServerIdentity::load(&config)?;
        let acceptor = identity.acceptor()?;
        let port = listener.local_addr()?.port();
        // Issuing is pure CPU work: leave one core to everything else.
        let parallel = std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1));
        let shared = Shared {
            zone_tokens: ZoneTokens::new(store.clone()),
            views: MeshViews::new(&config.zone, config.federated),
            config,
            store,
            tokens,
            issuer: LeafIssuer::new(parallel),
            registry: Registry::default(),
            stats: Arc::default(),
            identity,
            port,
            stopping: watch::Sender::new(false),
        };
        Ok(DpServer { shared: Arc::new(shared), acceptor, listener })
    }

    /// The certificate authority that proxies must trust to reach this server, PEM.
    pub fn ca(&self) -> &str {
        &self.shared.identity.ca
    }

    /// File with [`ca`](Self::ca), for `--ca-cert-file` of proxies.
    pub fn ca_path(&self) -> &std::path::Path {
        &self.shared.identity.ca_path
    }

    /// Counters of the streams, for the diagnostics server and for tests.
    pub fn stats(&self) -> Arc<DpStats> {
        self.shared.stats.clone()
    }

    /// The views of the meshes, which [`serve`](Self::serve) keeps up to date.
    pub fn views(&self) -> Arc<MeshViews> {
        self.shared.views.clone()
    }

    /// Serves until `shutdown` completes; then ends the streams and returns. Dataplanes stay: their proxies come back.
    ///
    /// # Errors
    /// When the listening socket is unusable.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), DpError> {
        let DpServer { shared, acceptor, listener } = self;
        let views = tokio::spawn(shared.views.clone().run(shared.store.clone()));
        let router = grpc::router(shared.clone()).merge(bootstrap::router(shared.clone()));
        let router = move |connection: Connection| router.clone().layer(axum::Extension(connection));
        serve_connections(listener, Some(acceptor), router, &shared.stopping, shutdown).await;
        views.abort();
        Ok(())
    }
}

/// Completes when the server stops, or is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
