//! Start-up and shutdown of the control plane, in order. The only file that creates a runtime.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{Api, KUMA_VERSION, Role, diagnostics, server};
use crate::auth::DataplaneTokens;
use crate::config::{Config, DpAuth, KdsAuth, Mode, StoreType};
use crate::defaults::{self, DefaultsError};
use crate::dp::stats::DpStats;
use crate::dp::{DpConfig, DpServer};
use crate::kds::ZoneNode;
use crate::kds::global::{GlobalConfig, GlobalServer};
use crate::kds::zone::{ZoneClient, ZoneConfig};
use crate::mads::Mads;
use crate::mesh::keep_authorities;
use crate::services::{Services, Settings};
use crate::store::Store;

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting or made it stop.
pub fn run(config: &Config) -> anyhow::Result<()> {
    if let Some(reason) = config.unavailable() {
        bail!(reason);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    // Signals first, so that one that comes during start-up is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;

    let work_dir = config.work_dir();
    fs::create_dir_all(&work_dir).with_context(|| {
        format!("cannot create the work directory {}; choose another with --work-dir", work_dir.display())
    })?;
    let store = match config.store {
        StoreType::Memory => {
            tracing::warn!("resources are kept in memory: they are gone when this process ends");
            Store::memory()
        }
        StoreType::Sqlite | StoreType::Postgres => Store::sqlite(&config.store_path()).await?,
    };
    defaults(config, &store).await.context("cannot create the defaults")?;

    let api_listener = bind(config.api_http_interface, config.api_http_port, "the REST API", "--api-http-port").await?;
    let diagnostics_listener =
        bind(config.diagnostics_interface, config.diagnostics_port, "diagnostics", "--diagnostics-port").await?;
    let mut ports = serde_json::Map::new();
    let (api_at, diagnostics_at) = (api_listener.local_addr()?, diagnostics_listener.local_addr()?);
    ports.insert("apiHttp".to_owned(), json!(api_at.port()));
    ports.insert("diagnostics".to_owned(), json!(diagnostics_at.port()));

    let hostname = hostname();
    let instance_id = format!("{hostname}-{}", &uuid::Uuid::new_v4().simple().to_string()[..4]);
    let mut api = Api::new(store.clone());
    api.role = match config.mode {
        Mode::Global => Role::Global,
        Mode::Zone if config.is_federated() => Role::Zone(config.zone_name.clone()),
        Mode::Zone => Role::Standalone,
    };
    api.localhost_is_admin = config.localhost_is_admin;
    api.cluster_id = cluster_id(&work_dir)?;
    api.config = config.to_json();
    api.hostname.clone_from(&hostname);
    api.instance_id.clone_from(&instance_id);
    let api = Arc::new(api);

    let (stop, stopped) = watch::channel(false);
    let mut servers: Servers = JoinSet::new();
    let dp_stats = match config.mode {
        Mode::Zone => zone(config, &store, &instance_id, &stopped, &mut servers, &mut ports).await?,
        Mode::Global => {
            global(config, &store, &instance_id, &stopped, &mut servers, &mut ports).await?;
            Arc::default()
        }
    };
    servers.spawn({
        let stopped = stopped.clone();
        async move {
            let handler = move |request| {
                let api = Arc::clone(&api);
                async move { api.answer(request).await }
            };
            server::serve(api_listener, stopped, handler).await;
            ("the REST API", Ok(()))
        }
    });
    servers.spawn({
        let (store, stopped) = (store.clone(), stopped.clone());
        async move {
            let handler = move |request| {
                let (store, instance_id, dp_stats) = (store.clone(), instance_id.clone(), Arc::clone(&dp_stats));
                async move { diagnostics::answer(&store, &instance_id, &dp_stats, request).await }
            };
            server::serve(diagnostics_listener, stopped, handler).await;
            ("diagnostics", Ok(()))
        }
    });

    tracing::info!(api = %api_at, diagnostics = %diagnostics_at, "the control plane is ready");
    if let Some(file) = &config.ports_file {
        write_whole(file, serde_json::Value::Object(ports).to_string().as_bytes())?;
    }

    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = servers.join_next() => ended,
    };
    tracing::info!("stopping: requests in progress may finish");
    let _ = stop.send(true);
    let mut result = match failed {
        None => Ok(()),
        Some(Ok((name, Ok(())))) => Err(anyhow::anyhow!("{name} ended although it was not told to")),
        Some(Ok((name, Err(error)))) => Err(error.context(format!("{name} failed"))),
        Some(Err(panic)) => Err(anyhow::anyhow!("a server failed: {panic}")),
    };
    while let Some(ended) = servers.join_next().await {
        if let Ok((name, Err(error))) = ended
            && result.is_ok()
        {
            result = Err(error.context(format!("{name} failed")));
        }
    }
    result
}

/// What runs until it is told to stop, by name.
type Servers = JoinSet<(&'static str, anyhow::Result<()>)>;
/// What tests and scripts learn of the ports.
type Ports = serde_json::Map<String, serde_json::Value>;

/// Creates what a control plane of this role starts with.
async fn defaults(config: &Config, store: &Store) -> Result<(), DefaultsError> {
    match config.mode {
        Mode::Global => {
            defaults::ensure(store, config.skip_mesh_creation).await?;
            defaults::ensure_global_names(store).await
        }
        Mode::Zone => {
            if config.is_federated() {
                defaults::ensure_federated(store).await?;
            } else {
                defaults::ensure(store, config.skip_mesh_creation).await?;
            }
            defaults::ensure_zone_names(store).await
        }
    }
}

/// Completes when the control plane stops.
async fn told_to_stop(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Begins to serve data planes, to make services of them, and to connect to global if there is one.
async fn zone(
    config: &Config,
    store: &Store,
    instance_id: &str,
    stopped: &watch::Receiver<bool>,
    servers: &mut Servers,
    ports: &mut Ports,
) -> anyhow::Result<Arc<DpStats>> {
    let listener =
        bind(config.dp_server_interface, config.dp_server_port, "the data-plane server", "--dp-server-port").await?;
    let address = listener.local_addr()?;
    let mut dp_config = DpConfig::new(config.work_dir());
    dp_config.tls = config.dp_tls_cert.clone().zip(config.dp_tls_key.clone());
    dp_config.xds_host.clone_from(&config.xds_host);
    dp_config.admin_unix_socket = config.envoy_admin_unix_socket;
    dp_config.require_token = config.dp_auth == DpAuth::DpToken;
    instance_id.clone_into(&mut dp_config.instance_id);
    dp_config.zone.clone_from(&config.zone_name);
    dp_config.federated = config.is_federated();
    if !dp_config.require_token {
        tracing::warn!("data planes join without a token: whoever reaches {address} gets a certificate");
    }
    let dp = DpServer::new(store.clone(), DataplaneTokens::new(store.clone()), dp_config, listener)?;
    let stats = dp.stats();
    if config.mads_enabled {
        let listener = bind(config.mads_interface, config.mads_port, "monitoring assignments", "--mads-port").await?;
        let at = listener.local_addr()?;
        tracing::info!(address = %at, "serving monitoring assignments");
        ports.insert("mads".to_owned(), json!(at.port()));
        let (mads, stopped) = (Arc::new(Mads::new(dp.views())), stopped.clone());
        servers.spawn(async move {
            let stop = stopped.clone();
            let handler = move |request| {
                let (mads, stop) = (Arc::clone(&mads), stop.clone());
                async move { mads.answer(request, stop).await }
            };
            server::serve(listener, stopped, handler).await;
            ("monitoring assignments", Ok(()))
        });
    }
    tracing::info!(%address, authority = %dp.ca_path().display(), zone = config.zone_name, "serving data planes");
    ports.insert("dpServer".to_owned(), json!(address.port()));
    ports.insert("dpServerCaFile".to_owned(), json!(dp.ca_path()));
    let shutdown = told_to_stop(stopped.clone());
    servers.spawn(async move { ("the data-plane server", dp.serve(shutdown).await.map_err(Into::into)) });

    let services = Services::new(store.clone(), Settings::new(&config.zone_name));
    let shutdown = told_to_stop(stopped.clone());
    servers.spawn(async move {
        tokio::select! {
            () = services.run() => {}
            () = shutdown => {}
        }
        ("services", Ok(()))
    });

    if let Some(global_address) = &config.kds_global_address {
        let node = ZoneNode {
            zone: config.zone_name.clone(),
            instance: instance_id.to_owned(),
            version: KUMA_VERSION.to_owned(),
            config: config.to_json().to_string(),
        };
        let client = ZoneClient::new(
            store.clone(),
            ZoneConfig {
                global_address: global_address.clone(),
                root_ca_file: config.kds_root_ca_file.clone(),
                token_file: config.kds_token_file.clone(),
                node,
            },
        );
        let client = client.map_err(anyhow::Error::msg).context("--kds-global-address")?;
        let stopped = stopped.clone();
        servers.spawn(async move {
            client.run(stopped).await;
            ("the connection to global", Ok(()))
        });
    }
    Ok(stats)
}

/// Begins to serve zones, and to make the certificate authorities that they use.
async fn global(
    config: &Config,
    store: &Store,
    instance_id: &str,
    stopped: &watch::Receiver<bool>,
    servers: &mut Servers,
    ports: &mut Ports,
) -> anyhow::Result<()> {
    let listener = bind(config.kds_interface, config.kds_port, "zones", "--kds-port").await?;
    let address = listener.local_addr()?;
    let mut global_config = GlobalConfig::new(config.work_dir());
    global_config.with_tls = config.kds_tls;
    global_config.tls = config.kds_tls_cert.clone().zip(config.kds_tls_key.clone());
    global_config.require_token = config.kds_auth == KdsAuth::CpToken;
    instance_id.clone_into(&mut global_config.instance_id);
    if !global_config.require_token {
        tracing::warn!(
            "zones connect without a token: whoever reaches {address} may call itself any zone; see --kds-auth"
        );
    }
    let global = GlobalServer::new(store.clone(), global_config, listener)?;
    let authority = global.ca_path().map(|path| path.display().to_string()).unwrap_or_default();
    tracing::info!(%address, authority, "serving zones");
    ports.insert("kds".to_owned(), json!(address.port()));
    ports.insert("kdsCaFile".to_owned(), json!(global.ca_path()));
    let shutdown = told_to_stop(stopped.clone());
    servers.spawn(async move { ("the server of zones", global.serve(shutdown).await.map_err(Into::into)) });
    let (store, shutdown) = (store.clone(), told_to_stop(stopped.clone()));
    servers.spawn(async move {
        tokio::select! {
            () = keep_authorities(store) => {}
            () = shutdown => {}
        }
        ("certificate authorities", Ok(()))
    });
    Ok(())
}

/// Listens. The unspecified address of either family stands for both, as in Kuma: "localhost" may lead to either.
async fn bind(ip: IpAddr, port: u16, what: &str, flag: &str) -> anyhow::Result<TcpListener> {
    if ip.is_unspecified() {
        match TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(error).with_context(|| {
                    format!("cannot listen on port {port} for {what}; choose another port with {flag}")
                });
            }
            // A host without IPv6.
            Err(error) => tracing::debug!(%error, "listening on IPv4 only"),
        }
    }
    let address = SocketAddr::new(ip, port);
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for {what}; choose another port with {flag}"))
}

/// The identifier of this control plane, made on first start and kept in the work directory.
fn cluster_id(work_dir: &Path) -> anyhow::Result<String> {
    let file = work_dir.join("cluster-id");
    match fs::read_to_string(&file) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
    let id = uuid::Uuid::new_v4().to_string();
    write_whole(&file, id.as_bytes())?;
    Ok(id)
}

/// Writes a file so that a reader sees all of it or nothing.
fn write_whole(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let partial = file.with_extension("partial");
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, file).with_context(|| format!("cannot write {}", file.display()))
}

fn hostname() -> String {
    // Linux keeps it here; elsewhere the variable that shells set has to do.
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "localhost".to_owned())
}
