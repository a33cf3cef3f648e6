//! shika-proxy: a native data plane that runs Envoy v3 bootstraps.
//!
//! Two faces: without a subcommand it takes Envoy's flags (`shika-proxy -c bootstrap.yaml`); `shika-proxy run` is a sidecar that asks a Kuma-compatible
//! control plane for its bootstrap and runs it in the same process, and `shika-proxy install transparent-proxy` hands it the host's traffic. [`app`] tells how it starts and ends.

mod admin;
mod app;
mod bootstrap;
mod control;
mod dns;
mod export;
mod files;
mod health;
mod install;
mod logging;
mod lookup;
mod memory;
mod options;
mod overload;
mod resolve;
mod server_stats;
mod sidecar;
mod signals;
mod state;
mod subscriptions;
mod validate;
mod version;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;

use logging::Logging;
use options::{Mode, Options};

fn main() -> ExitCode {
    let start = Instant::now();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|argument| argument == "run") {
        arguments.remove(1);
        return sidecar::main(arguments, start);
    }
    let action = match arguments.get(1) {
        Some(argument) if argument == "install" => Some(install::Action::Install),
        Some(argument) if argument == "uninstall" => Some(install::Action::Uninstall),
        _ => None,
    };
    if let Some(action) = action {
        return install::main(&arguments, action);
    }
    let options = match Options::try_parse_from(&arguments) {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    if options.version {
        return print(&Options::version_text());
    }
    if options.hot_restart_version {
        return print(&format!("{}\n", admin::info::HOT_RESTART_VERSION));
    }
    if let Err(error) = options.check() {
        return fail(&error);
    }
    let logging = Logging::start(
        options.log_level,
        &options.component_log_level,
        options.log_path.as_deref(),
        &options.log_format,
        options.log_format_escaped,
    );
    let logging = match logging {
        Ok(logging) => logging,
        Err(error) => return fail(&error),
    };
    for (flag, why) in options.ineffective() {
        tracing::info!("{flag} has no effect: {why}");
    }
    let bootstrap = bootstrap::load(&options);
    match (options.mode, bootstrap) {
        (Mode::Validate, loaded) => {
            validate::run(&options, loaded.and_then(|bootstrap| validate::check(&options, &bootstrap)))
        }
        (Mode::Serve | Mode::InitOnly, Ok(bootstrap)) => {
            app::serve(options, bootstrap, logging, app::Role::Envoy, start)
        }
        (Mode::Serve | Mode::InitOnly, Err(errors)) => {
            for error in errors {
                tracing::error!("error initializing config: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Help and version requests succeed; everything else about arguments is an error with status 1, as in Envoy.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed terminal.
    let _ = error.print();
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Writes to standard output.
pub fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes to standard error, before there is a log.
pub fn fail(text: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::FAILURE
}
