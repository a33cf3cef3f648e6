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

use crate::api::{Api, diagnostics, server};
use crate::auth::DataplaneTokens;
use crate::config::{Config, DpAuth, StoreType};
use crate::defaults;
use crate::dp::{DpConfig, DpServer};
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
    defaults::ensure(&store, config.skip_mesh_creation).await.context("cannot create the defaults")?;

    defaults::ensure_zone_names(&store).await.context("cannot create the defaults")?;

    let api_listener = bind(config.api_http_interface, config.api_http_port, "the REST API", "--api-http-port").await?;
    let diagnostics_listener =
        bind(config.diagnostics_interface, config.diagnostics_port, "diagnostics", "--diagnostics-port").await?;
    let dp_listener =
        bind(config.dp_server_interface, config.dp_server_port, "the data-plane server", "--dp-server-port").await?;
    let (api_at, diagnostics_at, dp_at) =
        (api_listener.local_addr()?, diagnostics_listener.local_addr()?, dp_listener.local_addr()?);

    let hostname = hostname();
    let instance_id = format!("{hostname}-{}", &uuid::Uuid::new_v4().simple().to_string()[..4]);
    let mut api = Api::new(store.clone());
    api.localhost_is_admin = config.localhost_is_admin;
    api.cluster_id = cluster_id(&work_dir)?;
    api.config = config.to_json();
    api.hostname.clone_from(&hostname);
    api.instance_id.clone_from(&instance_id);
    let api = Arc::new(api);

    let mut dp_config = DpConfig::new(&work_dir);
    dp_config.tls = config.dp_tls_cert.clone().zip(config.dp_tls_key.clone());
    dp_config.xds_host.clone_from(&config.xds_host);
    dp_config.require_token = config.dp_auth == DpAuth::DpToken;
    dp_config.instance_id.clone_from(&instance_id);
    dp_config.zone.clone_from(&config.zone_name);
    if !dp_config.require_token {
        tracing::warn!("data planes join without a token: whoever reaches {dp_at} gets a certificate");
    }
    let dp = DpServer::new(store.clone(), DataplaneTokens::new(store.clone()), dp_config, dp_listener)?;
    let (dp_stats, dp_ca) = (dp.stats(), dp.ca_path().to_owned());

    let services = tokio::spawn(Services::new(store.clone(), Settings::new(&config.zone_name)).run());

    let (stop, stopped) = watch::channel(false);
    let mut servers: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
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
        let stopped = stopped.clone();
        async move {
            let handler = move |request| {
                let (store, instance_id, dp_stats) = (store.clone(), instance_id.clone(), Arc::clone(&dp_stats));
                async move { diagnostics::answer(&store, &instance_id, &dp_stats, request).await }
            };
            server::serve(diagnostics_listener, stopped, handler).await;
            ("diagnostics", Ok(()))
        }
    });
    servers.spawn({
        let mut stopped = stopped.clone();
        async move {
            let shutdown = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            ("the data-plane server", dp.serve(shutdown).await.map_err(Into::into))
        }
    });

    tracing::info!(
        api = %api_at,
        data_plane = %dp_at,
        data_plane_ca = %dp_ca.display(),
        diagnostics = %diagnostics_at,
        "the control plane is ready"
    );
    if let Some(file) = &config.ports_file {
        let ports = json!({
            "apiHttp": api_at.port(),
            "dpServer": dp_at.port(),
            "diagnostics": diagnostics_at.port(),
            "dpServerCaFile": dp_ca,
        });
        write_whole(file, ports.to_string().as_bytes())?;
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
    services.abort();
    while let Some(ended) = servers.join_next().await {
        if let Ok((name, Err(error))) = ended
            && result.is_ok()
        {
            result = Err(error.context(format!("{name} failed")));
        }
    }
    result
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
