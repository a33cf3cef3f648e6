//! `shika-proxy run`: what kuma-dp does around its Envoy, in one process.
//!
//! Asks the control plane for a bootstrap and runs it, with a readiness server beside it. Source: kuma `app/kuma-dp/cmd/run.go` and
//! `pkg/config/app/kuma-dp/config.go` for flags, environment and defaults.

mod arguments;
mod client;
pub mod readiness;
mod request;
mod template;

use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use shika_proto::{envoy::config::bootstrap::v3::Bootstrap, json};
use tracing::{error, info};

use crate::{
    app::{self, Role},
    fail,
    logging::{DEFAULT_FORMAT, Logging},
    options::{Level, Options},
    usage,
};
use arguments::Arguments;

/// What the rest of the process needs to know of being a sidecar.
pub struct Sidecar {
    /// Port of the readiness server; 0 turns it off.
    pub readiness_port: u16,
    /// In a pod: the kubelet has to reach the readiness server.
    pub in_pod: bool,
    /// File with the dataplane token; read again for each stream.
    pub token_file: Option<PathBuf>,
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
    match prepare(&arguments) {
        Ok((bootstrap, options, directory)) => {
            let sidecar = Sidecar {
                readiness_port: arguments.readiness_port,
                in_pod: std::env::var_os("POD_NAME").is_some(),
                token_file: arguments.token_file.clone(),
            };
            let code = app::serve(options, bootstrap, logging, Role::Sidecar(sidecar), start);
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
fn prepare(arguments: &Arguments) -> Result<(Bootstrap, Options, WorkDirectory), Vec<String>> {
    let one = |error: String| vec![error];
    let directory = WorkDirectory::new(arguments.work_dir.as_deref()).map_err(one)?;
    let proxy = request::Proxy::new(arguments).map_err(one)?;
    let token = arguments.token().map_err(one)?;
    let body = request::body(arguments, &proxy, token.as_deref(), directory.path()).map_err(one)?;
    let runtime = app::control_runtime().map_err(|error| one(format!("runtime: {error}")))?;
    info!(
        "asking the control plane {} for the bootstrap of {} {:?} in mesh {:?}",
        arguments.cp_address, arguments.proxy_type, proxy.name, proxy.mesh
    );
    let yaml = runtime.block_on(client::bootstrap(arguments, &body)).map_err(one)?;
    drop(runtime);
    let bootstrap = json::from_yaml(&yaml).map_err(|errors| {
        errors.iter().map(|error| format!("the control plane's bootstrap: {error}")).collect::<Vec<_>>()
    })?;
    Ok((bootstrap, options(arguments), directory))
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
