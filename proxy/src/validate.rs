//! `--mode validate`: everything that serving would check, without a socket.

use std::{process::ExitCode, time::Instant};

use shika_data::stats::Registry;
use shika_proto::bootstrap::EncodedBootstrap;
use shika_xds::Compiler;

use crate::{
    app::compile_options,
    export::{access_log::AccessLogs, telemetry::Telemetry},
    options::Options,
    print,
    server_stats::ServerGroups,
};

/// Compiles the static resources, files of TLS contexts included.
///
/// # Errors
/// Every refusal with its field path.
pub fn check(options: &Options, bootstrap: &EncodedBootstrap) -> Result<(), Vec<String>> {
    let registry = Registry::new(0);
    let (access_logs, _writers) = AccessLogs::new(None);
    // Nothing is served, so there is nothing to send.
    let telemetry = Telemetry::new(ServerGroups::new(&registry).server, Box::new(|_, _| {}));
    let mut compiler = Compiler::new(registry, compile_options(options, &access_logs, &telemetry));
    compiler
        .load_static(bootstrap, Instant::now())
        .map(|_| ())
        .map_err(|rejects| rejects.iter().map(ToString::to_string).collect())
}

/// Reports the result and turns it into the exit status.
pub fn run(options: &Options, result: Result<(), Vec<String>>) -> ExitCode {
    let name = options.config_path.as_deref().map_or_else(|| "--config-yaml".into(), |path| path.display().to_string());
    match result {
        Ok(()) => print(&format!("configuration '{name}' OK\n")),
        Err(errors) => {
            for error in errors {
                tracing::error!("error initializing configuration '{name}': {error}");
            }
            ExitCode::FAILURE
        }
    }
}
