//! shikactl: applies, shows and deletes resources, makes tokens. Commands, flags and output as kumactl's.

mod apply;
mod client;
mod config;
mod generate;
mod get;
mod inspect;
mod output;
mod template;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::resource::{Kind, parse_go_duration};
use client::Client;
use config::{ConfigFile, ControlPlaneCommand};
use output::Format;

/// Manages a Kuma-style service mesh: applies and shows resources, makes tokens
#[derive(Debug, Parser)]
#[command(name = "shikactl", version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// File with the control planes and which of them is used; by default ~/.shika/config
    #[arg(long, global = true, value_name = "FILE", env = "SHIKACTL_CONFIG")]
    config_file: Option<PathBuf>,
    /// Reads no configuration file and talks to http://localhost:5681
    #[arg(long, global = true)]
    no_config: bool,
    /// Control plane to talk to, of those in the configuration file; by default the one switched to
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// How long the control plane may take to answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "1m", value_parser = parse_go_duration)]
    api_timeout: Duration,
    /// Mesh to use; by default the one of the context, or "default"
    #[arg(short, long, global = true, value_name = "NAME")]
    mesh: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates or changes resources
    Apply(apply::Apply),
    /// Shows resources
    Get(get::Get),
    /// Deletes a resource
    Delete(get::Delete),
    /// Makes tokens
    #[command(subcommand)]
    Generate(generate::Generate),
    /// Shows the state of what runs
    #[command(subcommand)]
    Inspect(inspect::Inspect),
    /// Shows and changes the configuration of shikactl
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Shows the version of shikactl and of the control plane
    Version,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Manages the known control planes
    #[command(subcommand)]
    ControlPlanes(ControlPlaneCommand),
    /// Shows the configuration file
    View,
}

/// Where a command reads and writes.
pub struct Streams<'a> {
    /// Documents for `apply -f -`.
    pub input: &'a mut (dyn Read + Send),
    /// Results.
    pub output: &'a mut (dyn Write + Send),
    /// Warnings.
    pub errors: &'a mut (dyn Write + Send),
}

/// Carries out a command.
///
/// # Errors
/// What went wrong, where, and what to do.
pub async fn run(arguments: Arguments, streams: Streams<'_>) -> anyhow::Result<()> {
    let Arguments { global, command } = arguments;
    let file = global.file()?;
    match command {
        Command::Apply(apply) => {
            // A dry run needs no control plane.
            let client = if apply.dry_run { None } else { Some(global.client(&file)?) };
            apply::apply(&apply, client.as_ref(), streams).await
        }
        Command::Get(get) => get::get(&get, &global.client(&file)?, &global.mesh(&file)?, streams).await,
        Command::Delete(delete) => get::delete(&delete, &global.client(&file)?, &global.mesh(&file)?, streams).await,
        Command::Generate(generate) => {
            generate::generate(generate, &global.client(&file)?, &global.mesh(&file)?, streams).await
        }
        Command::Inspect(inspect) => {
            inspect::inspect(&inspect, &global.client(&file)?, &global.mesh(&file)?, streams).await
        }
        Command::Config(ConfigCommand::ControlPlanes(command)) => {
            config::control_planes(command, file, global.api_timeout, streams).await
        }
        Command::Config(ConfigCommand::View) => {
            write!(streams.output, "{}", file.to_yaml()?)?;
            Ok(())
        }
        Command::Version => version(&global.client(&file)?, streams).await,
    }
}

impl Global {
    fn file(&self) -> anyhow::Result<ConfigFile> {
        if self.no_config {
            return Ok(ConfigFile::default());
        }
        ConfigFile::read(self.config_file.clone())
    }

    fn client(&self, file: &ConfigFile) -> anyhow::Result<Client> {
        let server = file.api_server(self.context.as_deref())?;
        Client::new(server, self.api_timeout).context("cannot talk to the control plane")
    }

    fn mesh(&self, file: &ConfigFile) -> anyhow::Result<String> {
        if let Some(mesh) = &self.mesh {
            return Ok(mesh.clone());
        }
        file.default_mesh(self.context.as_deref())
    }
}

/// The path of a collection, or of one resource in it.
fn path(kind: Kind, mesh: &str, name: Option<&str>) -> String {
    let collection =
        if kind.in_mesh() { format!("/meshes/{}/{}", segment(mesh), kind.path()) } else { format!("/{}", kind.path()) };
    match name {
        Some(name) => format!("{collection}/{}", segment(name)),
        None => collection,
    }
}

/// A text as one segment of a path.
fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

async fn version(client: &Client, streams: Streams<'_>) -> anyhow::Result<()> {
    writeln!(streams.output, "Client: Shika {}", env!("CARGO_PKG_VERSION"))?;
    match client.get_json("/").await {
        Ok(index) => {
            let text = |field: &str| index.get(field).and_then(|value| value.as_str()).unwrap_or("unknown").to_owned();
            let implementation = index.get("implementation").and_then(|value| value.as_str());
            let implementation = implementation.map(|text| format!(" ({text})")).unwrap_or_default();
            writeln!(streams.output, "Server: {} {}{implementation}", text("product"), text("version"))?;
            Ok(())
        }
        Err(error) => {
            writeln!(streams.errors, "Warning: cannot ask the control plane for its version: {error:#}")?;
            Ok(())
        }
    }
}

/// Reads the type of a resource as it is typed: `dataplane`, `dataplanes`, `Dataplane`.
fn parse_kind(text: &str) -> Result<Kind, String> {
    let typed = text.to_ascii_lowercase().replace('-', "");
    Kind::in_api()
        .find(|kind| {
            [kind.name().to_ascii_lowercase(), kind.singular().replace('-', ""), kind.path().replace('-', "")]
                .contains(&typed)
        })
        .ok_or_else(|| {
            let known: Vec<&str> = Kind::in_api().map(Kind::path).collect();
            format!("unknown type; known: {}", known.join(", "))
        })
}

/// How the result is written, for every command that shows something.
#[derive(Debug, Args)]
struct Output {
    /// How the result is written
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", value_name = "FORMAT")]
    format: Format,
}
