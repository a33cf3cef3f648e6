//! `shika-proxy run`: what kuma-dp does around its Envoy, in one process.
//!
//! Asks the control plane for a bootstrap and runs it, with a readiness server beside it. Source: kuma `app/kuma-dp/cmd/run.go` and
//! `pkg/config/app/kuma-dp/config.go` for flags, environment and defaults.

mod arguments;
mod client;
pub mod credentials;
pub mod documents;
mod fetch;
mod http_server;
pub mod metrics;
pub mod probes;
pub mod readiness;
mod request;
mod template;
pub mod transparent;

use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use prost::Name;
use serde_json::Value;
use shika_proto::{bootstrap::EncodedBootstrap, envoy::config::bootstrap::v3::Bootstrap, json};
use tracing::{error, info};

use crate::{
    app::{self, Role},
    dns, fail,
    logging::{DEFAULT_FORMAT, Logging},
    options::{Level, Options},
    usage,
};
use arguments::Arguments;

/// Longest name of a Unix socket before its suffix, bytes. Trap 6; kuma `pkg/core/xds/sockets.go`.
const SOCKET_NAME: usize = 98;

/// What the rest of the process needs to know of being a sidecar.
pub struct Sidecar {
    /// Port of the readiness server; 0 turns it off.
    pub readiness_port: u16,
    /// In a pod: the kubelet has to reach the readiness server.
    pub in_pod: bool,
    /// The proxy's own address in the mesh, where the control plane told it.
    pub address: Option<IpAddr>,
    /// Directory of sockets.
    pub work_directory: PathBuf,
    /// File with the dataplane token; read again for each stream.
    pub token_file: Option<PathBuf>,
    /// File with the control plane's CA, where that is where it came from.
    pub ca_file: Option<PathBuf>,
    /// Where DNS is served, and the file with the resolvers of what is not the mesh's.
    pub dns: Option<(dns::Addresses, PathBuf)>,
    /// Path that lines for TCP log backends are logged to. kuma-dp has a FIFO there.
    pub access_log_pipe: PathBuf,
    /// The metrics endpoint.
    pub metrics: Option<metrics::Setup>,
    /// The application probe proxy, where there is one.
    pub probes: Option<probes::Setup>,
}

/// The path of a socket in the work directory. The control plane makes the same name.
pub fn socket_path(work_directory: &Path, name: &str) -> PathBuf {
    let path = work_directory.join(name).display().to_string();
    let end = (0..=SOCKET_NAME.min(path.len())).rev().find(|end| path.is_char_boundary(*end)).unwrap_or(0);
    format!("{}.sock", path.get(..end).unwrap_or_default()).into()
}

/// Runs the subcommand. `arguments` are the program's without `run`.
pub fn main(arguments: Vec<OsString>, start: Instant) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    if let Err(error) = arguments.check() {
        return fail(&error);
    }
    let logging = match Logging::start(
        arguments.level(),
        &arguments.component_log_level,
        arguments.log_output_path.as_deref(),
        DEFAULT_FORMAT,
        false,
    ) {
        Ok(logging) => logging,
        Err(error) => return fail(&error),
    };
    for (flag, why) in arguments.ineffective() {
        info!("{flag} has no effect: {why}");
    }
    match prepare(&arguments) {
        Ok((bootstrap, sidecar, directory)) => {
            let code = app::serve(options(&arguments), bootstrap, logging, Role::Sidecar(Box::new(sidecar)), start);
            drop(directory);
            code
        }
        Err(errors) => {
            for error in errors {
                error!("{error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Everything up to the bootstrap: work directory, resource, token, and the control plane's answer.
fn prepare(arguments: &Arguments) -> Result<(EncodedBootstrap, Sidecar, WorkDirectory), Vec<String>> {
    let one = |error: String| vec![error];
    let directory = WorkDirectory::new(arguments.directory()).map_err(one)?;
    let proxy = request::Proxy::new(arguments).map_err(one)?;
    let token = arguments.token().map_err(one)?;
    let transparent = arguments.transparent_proxy().map_err(one)?;
    let dns_port = arguments.dns_port(transparent.is_some() || proxy.redirected);
    let beside = request::Beside { transparent: transparent.as_ref(), dns_port, work_directory: directory.path() };
    let body = request::body(arguments, &proxy, token.as_deref(), &beside).map_err(one)?;
    let runtime = app::control_runtime().map_err(|error| one(format!("runtime: {error}")))?;
    info!(
        "asking the control plane {} for the bootstrap of {} {:?} in mesh {:?}",
        arguments.cp_address,
        arguments.proxy_type.name(),
        proxy.name,
        proxy.mesh
    );
    let answer = runtime.block_on(client::bootstrap(arguments, &body)).map_err(one)?;
    drop(runtime);
    let bootstrap = json::yaml_to_wire(&Bootstrap::full_name(), &answer.bootstrap, json::Options::default())
        .map(|parsed| EncodedBootstrap::new(parsed.message))
        .map_err(|errors| {
            errors.iter().map(|error| format!("the control plane's bootstrap: {error}")).collect::<Vec<_>>()
        })?;
    let addresses = |port| {
        let (dual_stack, vnet) = transparent
            .as_ref()
            .map_or((true, false), |transparent| (transparent.dual_stack, !transparent.networks.is_empty()));
        dns::Addresses::new(port, transparent.is_some(), dual_stack, vnet)
    };
    let address = answer.sidecar.pointer("/networking/address").and_then(Value::as_str);
    let in_pod = std::env::var_os("POD_NAME").is_some();
    // In a pod the injector has set the redirection, whatever the flags say.
    let redirected = transparent.is_some() || proxy.redirected || in_pod;
    let ip = address.and_then(|address| address.parse::<IpAddr>().ok());
    let probes = (arguments.application_probe_proxy_port != 0).then(|| probes::Setup {
        port: arguments.application_probe_proxy_port,
        address: ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        transparent: redirected,
    });
    let metrics = metrics::Setup {
        socket: socket_path(directory.path(), &format!("kuma-mh-{}-{}", proxy.name, proxy.mesh)),
        address: address.map(str::to_owned),
        transparent: redirected,
        aggregate: metrics::Application::aggregate(&answer.sidecar).map_err(one)?,
    };
    let sidecar = Sidecar {
        access_log_pipe: socket_path(directory.path(), &format!("kuma-al-{}-{}", proxy.name, proxy.mesh)),
        metrics: Some(metrics),
        probes,
        readiness_port: arguments.readiness_port,
        in_pod,
        address: ip,
        work_directory: directory.path().to_owned(),
        token_file: arguments.token_file.clone(),
        ca_file: arguments.ca_cert_file.clone().filter(|_| arguments.ca_cert.as_deref().is_none_or(str::is_empty)),
        dns: dns_port.map(|port| (addresses(port), arguments.dns_resolv_conf.clone())),
    };
    Ok((bootstrap, sidecar, directory))
}

/// The flags with which kuma-dp would start Envoy.
fn options(arguments: &Arguments) -> Options {
    let mut flags: Vec<String> =
        ["shika-proxy", "--drain-strategy", "immediate", "--disable-hot-restart", "--drain-time-s"]
            .map(String::from)
            .to_vec();
    flags.push(arguments.drain_time.as_secs().to_string());
    flags.push("--log-level".into());
    flags.push(arguments.level().name().into());
    if arguments.concurrency > 0 {
        flags.push("--concurrency".into());
        flags.push(arguments.concurrency.to_string());
    }
    Options::parse_from(flags)
}

/// The directory for sockets; a temporary one goes with the process.
struct WorkDirectory {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl WorkDirectory {
    fn new(configured: Option<&Path>) -> Result<WorkDirectory, String> {
        match configured {
            Some(path) => {
                if !path.is_dir() {
                    let made = DirBuilder::new().recursive(true).mode(0o711).create(path);
                    made.map_err(|error| format!("--work-dir {}: {error}", path.display()))?;
                }
                let path = fs::canonicalize(path).map_err(|error| format!("--work-dir {}: {error}", path.display()))?;
                Ok(WorkDirectory { path, temporary: None })
            }
            None => {
                let permissions = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o711);
                let made = tempfile::Builder::new().prefix("shika-dp-").permissions(permissions).tempdir();
                let temporary = made.map_err(|error| format!("temporary work directory: {error}"))?;
                Ok(WorkDirectory { path: temporary.path().to_owned(), temporary: Some(temporary) })
            }
        }
    }

    fn path(&self) -> &Path {
        self.temporary.as_ref().map_or(self.path.as_path(), |directory| directory.path())
    }
}

/// kuma-dp's three levels and Envoy's, by name.
fn level(name: &str) -> Option<Level> {
    Level::parse(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_names_are_cut_as_the_control_plane_cuts_them() {
        // Trap 6.
        let path = |directory: &str, name: &str| socket_path(Path::new(directory), name).display().to_string();
        assert_eq!(path("/tmp/kuma-dp-1", "kuma-mh-backend-default"), "/tmp/kuma-dp-1/kuma-mh-backend-default.sock");
        let long = path("/tmp", &"x".repeat(200));
        assert_eq!((long.len(), &long[..8], &long[95..]), (103, "/tmp/xxx", "xxx.sock"));
        assert_eq!(path("/tmp", &"é".repeat(100)).len(), 5 + 92 + 5);
    }
}
