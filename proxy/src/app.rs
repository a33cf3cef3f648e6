//! Start-up and shutdown, in order. The only file that creates threads or runtimes.

use std::{
    cell::{Cell, RefCell},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use shika_data::{
    drain,
    model::listener::BindAddress,
    stats::Registry,
    worker::{WorkerConfig, Workers},
};
use shika_proto::{bootstrap::EncodedBootstrap, envoy::config::core::v3::Node, google::protobuf::value::Kind};
use shika_xds::{CompileOptions, Compiler};
use tokio::{sync::mpsc, task::LocalSet};
use tracing::{error, info};

use crate::{
    admin::{self, Access, tags::Tags},
    control::{Control, Credentials, End},
    dns::{self, Dns},
    export::{
        access_log::{self, AccessLogs, Flush},
        telemetry::{self, Exporters, Identity, Telemetry},
    },
    logging::Logging,
    options::{DrainStrategy, Mode, Options},
    server_stats::{self, ServerGroups},
    sidecar::{
        self,
        credentials::Watched,
        metrics::{self, Metrics},
        probes, readiness,
    },
    signals::Signals,
    state::State,
    version,
};

/// Requests of the admin interface that may wait for the control loop.
const COMMANDS: usize = 16;
/// How long the last access log lines may take.
const LAST_FLUSH: Duration = Duration::from_secs(2);
/// How long a sidecar goes on accepting after the last connection has ended, while its peers learn that it is going.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);
/// Kuma's.
const DEFAULT_ADMIN_PORT: u16 = 9901;

/// On whose behalf the process serves.
pub enum Role {
    /// In Envoy's place.
    Envoy,
    /// In kuma-dp's place too.
    Sidecar(Box<sidecar::Sidecar>),
}

/// Runs a bootstrap until the process is told to end.
pub fn serve(options: Options, bootstrap: EncodedBootstrap, logging: Logging, role: Role, start: Instant) -> ExitCode {
    let runtime = match control_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!("the control thread's runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = LocalSet::new().block_on(&runtime, run(options, bootstrap, logging, role, start));
    // Lookups may still sit in the blocking pool; nothing waits for them any more.
    runtime.shutdown_background();
    match result {
        Ok(code) => {
            info!("exiting");
            code
        }
        Err(errors) => {
            for error in errors {
                error!("error initializing config: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A current-thread runtime for the main thread.
///
/// # Errors
/// The system has no epoll instance left.
pub fn control_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()
}

async fn run(
    options: Options,
    bootstrap: EncodedBootstrap,
    logging: Logging,
    role: Role,
    start: Instant,
) -> Result<ExitCode, Vec<String>> {
    let one = |error: String| vec![error];
    info!("initializing Shika {} ({}), {} workers", version::SHIKA_VERSION, version::build(), options.workers());
    let mut signals = Signals::new().map_err(|error| one(format!("signal handlers: {error}")))?;

    // Statistics, logs, configuration: nothing is bound before all of the bootstrap is accepted.
    let registry = Registry::new(options.workers());
    let groups = ServerGroups::new(&registry);
    let streamed = match &role {
        Role::Envoy => None,
        Role::Sidecar(sidecar) => Some(sidecar.access_log_pipe.clone()),
    };
    let access_logs =
        start_access_logs(&options, &groups, streamed).map_err(|error| one(format!("access log thread: {error}")))?;
    let telemetry = Telemetry::new(groups.server.clone(), Box::new(start_exporters));
    let mut compiler = Compiler::new(registry.clone(), compile_options(&options, &access_logs, &telemetry));
    let plan = compiler
        .load_static(&bootstrap, Instant::now())
        .map_err(|rejects| rejects.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    telemetry.identify(Identity {
        node: plan.node.id.clone(),
        cluster: plan.node.cluster.clone(),
        zone: plan.node.locality.as_ref().map_or_else(String::new, |locality| locality.zone.clone()),
        address: Some(shika_data::http::own_address()),
    });
    let admin = plan.admin.as_ref().map(|admin| admin::Listener::bind(&admin.address)).transpose().map_err(one)?;
    write_address_files(&options, admin.as_ref()).map_err(one)?;
    let readiness = match &role {
        Role::Envoy => Vec::new(),
        Role::Sidecar(sidecar) => readiness::bind(sidecar, plan.admin.as_ref()).map_err(one)?,
    };
    let dns = match &role {
        Role::Envoy => None,
        Role::Sidecar(sidecar) => sidecar
            .dns
            .as_ref()
            .map(|(addresses, resolv_conf)| start_dns(addresses, resolv_conf))
            .transpose()
            .map_err(one)?,
    };

    // Threads.
    if let Some(most) = plan.overload.as_ref().and_then(|overload| overload.most_connections) {
        shika_data::worker::set_connection_limit(most);
    }
    let workers = Workers::start(WorkerConfig {
        count: options.workers(),
        server: groups.server.clone(),
        drain_time: options.drain_time(),
        drain_strategy: match options.drain_strategy {
            DrainStrategy::Gradual => drain::DrainStrategy::Gradual,
            DrainStrategy::Immediate => drain::DrainStrategy::Immediate,
        },
    })
    .map_err(|error| one(format!("worker threads: {error}")))?;

    // Control.
    let (commands, mut received) = mpsc::channel(COMMANDS);
    let loopback_admin = match (&role, plan.admin.as_ref().map(|admin| &admin.address)) {
        (Role::Sidecar(sidecar), Some(BindAddress::Unix { .. })) => loopback_admin(sidecar, &plan.node),
        (Role::Envoy | Role::Sidecar(_), _) => None,
    };
    let (token_file, credentials, metrics, probes, grace) = match role {
        Role::Envoy => (None, Credentials::default(), None, None, Duration::ZERO),
        Role::Sidecar(sidecar) => {
            let sidecar::Sidecar { token_file, ca_file, metrics, probes, .. } = *sidecar;
            let credentials =
                Credentials { token: token_file.clone().map(Watched::new), ca: ca_file.map(Watched::new) };
            (token_file, credentials, metrics.map(|setup| Rc::new(Metrics::new(setup))), probes, SIDECAR_GRACE)
        }
    };
    let probes_socket = probes.as_ref().map(probes::bind).transpose().map_err(one)?;
    let metrics_socket = metrics.as_deref().map(metrics::bind).transpose().map_err(one)?;
    let init_only = options.mode == Mode::InitOnly;
    let tags = Rc::new(Tags::new(plan.default_tags, &plan.stats_tags, &options.stats_tag));
    let state = Rc::new(State {
        options,
        encoded_bootstrap: bootstrap,
        plan,
        compiler: RefCell::new(compiler),
        snapshot: RefCell::new(Arc::default()),
        bound: RefCell::default(),
        token_file,
        dns,
        metrics: metrics.clone(),
        registry,
        groups,
        tags,
        logging,
        access_logs: access_logs.clone(),
        telemetry,
        start,
        start_time: SystemTime::now(),
        initialized: Cell::new(false),
        health_failed: Cell::new(false),
        terminating: Cell::new(false),
        dns_wait_over: Cell::new(false),
        warming: RefCell::default(),
        connections: Cell::new(0),
        heap_used: Cell::new(true),
        commands,
    });
    let mut control = Control::new(state.clone(), workers, credentials);
    control.start().await.map_err(|rejects| rejects.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    server_stats::refresh(&state);
    if let Some(listener) = admin {
        tokio::task::spawn_local(admin::serve(listener, state.clone(), Access::Full));
    }
    if let Some(listener) = loopback_admin {
        tokio::task::spawn_local(admin::serve(listener, state.clone(), Access::ReadOnly));
    }
    for listener in readiness {
        tokio::task::spawn_local(readiness::serve(listener, state.clone()));
    }
    if let Some((socket, metrics)) = metrics_socket.zip(metrics) {
        tokio::task::spawn_local(metrics::serve(socket, metrics, state.clone()));
    }
    if let Some((socket, probes)) = probes_socket.zip(probes) {
        tokio::task::spawn_local(probes::serve(socket, probes));
    }
    let end = control.run(&mut received, &mut signals, init_only).await;
    match end {
        End::Terminate => control.shut_down(&mut signals, &mut received, grace).await,
        End::Quit => control.quit(&mut signals, &mut received).await,
        End::Initialized => {}
    }
    tokio::select! {
        () = access_logs.flush(LAST_FLUSH) => Ok(ExitCode::SUCCESS),
        // Twice was not enough: at once, whatever is left to write.
        () = signals.terminated() => Ok(ExitCode::FAILURE),
    }
}

/// The admin interface on 127.0.0.1 beside its Unix socket, where tools of Kuma before 2.14 look for it. None where the port is taken, or where the
/// proxy's own address is a loopback one and the port there is the control plane's to use.
fn loopback_admin(sidecar: &sidecar::Sidecar, node: &Node) -> Option<admin::Listener> {
    if sidecar.address.is_none_or(|address| address.is_loopback()) {
        return None;
    }
    let told = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("dataplane.admin.port"));
    let port = match told.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(port)) => port.parse().ok()?,
        _ => DEFAULT_ADMIN_PORT,
    };
    let address = BindAddress::Ip { address: (Ipv4Addr::LOCALHOST, port).into(), ipv4_compat: false };
    admin::Listener::bind(&address)
        .inspect_err(|error| info!("{error}; the admin interface is on its Unix socket only"))
        .ok()
}

/// What the compiler needs to know of the process.
pub fn compile_options(options: &Options, access_logs: &AccessLogs, telemetry: &Telemetry) -> CompileOptions {
    let (access_logs, spans, logs) = (access_logs.clone(), telemetry.clone(), telemetry.clone());
    CompileOptions {
        hostname: fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_owned())
            .unwrap_or_default(),
        concurrency: options.workers(),
        reject_unknown_dynamic_fields: options.reject_unknown_dynamic_fields,
        log_sink: Box::new(move |path| access_logs.sink(path)),
        span_sink: Box::new(move |collector| spans.spans(collector)),
        log_collector: Box::new(move |collector| logs.logs(collector)),
    }
}

/// The writers' thread. It ends with the process; what it holds is flushed before.
fn start_access_logs(options: &Options, groups: &ServerGroups, streamed: Option<PathBuf>) -> io::Result<AccessLogs> {
    let (access_logs, commands) = AccessLogs::new(streamed);
    let flush = Flush { interval: options.flush_interval(), min_size: options.file_flush_min_size_kb as usize * 1024 };
    let stats = groups.files.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("access-log".into())
        .spawn(move || LocalSet::new().block_on(&runtime, access_log::run(commands, flush, stats)))?;
    Ok(access_logs)
}

/// The exporters' thread. It ends with the process; what waits then is lost.
fn start_exporters(telemetry: Telemetry, exporters: Exporters) {
    let started = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let run = move || LocalSet::new().block_on(&runtime, telemetry::run(telemetry, exporters));
        std::thread::Builder::new().name("telemetry".into()).spawn(run)
    });
    if let Err(error) = started {
        error!("telemetry thread: {error}; spans, and logs for collectors, are dropped");
    }
}

/// The DNS server's thread. It ends with the process: queries are answered as long as there may be clients.
fn start_dns(addresses: &dns::Addresses, resolv_conf: &Path) -> Result<Arc<Dns>, String> {
    let sockets = dns::Sockets::bind(addresses)?;
    let shared = Arc::new(Dns::new(resolv_conf.to_owned()));
    let served = shared.clone();
    let failed = |error: io::Error| format!("DNS thread: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    std::thread::Builder::new()
        .name("dns".into())
        .spawn(move || LocalSet::new().block_on(&runtime, dns::run(sockets, served)))
        .map_err(failed)?;
    Ok(shared)
}

fn write_address_files(options: &Options, admin: Option<&admin::Listener>) -> Result<(), String> {
    let write = |path: &Path, text: &str| fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()));
    if let (Some(path), Some(address)) = (&options.admin_address_path, admin.and_then(admin::Listener::address)) {
        write(path, &address)?;
    }
    if let Some(path) = &options.base_id_path {
        write(path, &options.base_id.to_string())?;
    }
    Ok(())
}
