//! shika-cp: arguments, logging, exit codes.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shika_cp::app;
use shika_cp::config::Config;
use tracing_subscriber::EnvFilter;

/// Control plane of a Kuma-style service mesh
#[derive(Parser)]
#[command(name = "shika-cp", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the control plane until it is told to stop (SIGTERM, SIGINT)
    Run(Box<Config>),
}

fn main() -> ExitCode {
    let Command::Run(config) = Arguments::parse().command;
    let filter = EnvFilter::new(config.log_level.as_str());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    match app::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
