//! The configuration file: control planes, and which of them is used. kumactl reads it too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::Streams;
use super::client::Client;
use super::output::table;

/// Where a control plane is looked for when nothing is configured.
const DEFAULT_URL: &str = "http://localhost:5681";

/// The configuration file. Empty without one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ConfigFile {
    #[serde(skip)]
    path: Option<PathBuf>,
    contexts: Vec<NamedContext>,
    control_planes: Vec<ControlPlane>,
    current_context: String,
}

/// A control plane together with defaults for working with it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NamedContext {
    name: String,
    control_plane: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    defaults: Option<Defaults>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Defaults {
    mesh: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ControlPlane {
    name: String,
    coordinates: Coordinates,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Coordinates {
    api_server: ApiServer,
}

/// How a control plane is called.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ApiServer {
    pub(super) url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) ca_cert_file: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) client_cert_file: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) client_key_file: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) skip_verify: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) headers: Vec<Header>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) auth_type: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) auth_conf: BTreeMap<String, String>,
}

/// A header that is sent with every call.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) key: String,
    pub(super) value: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum ControlPlaneCommand {
    /// Shows the known control planes; the one in use is marked
    List,
    /// Adds a control plane and switches to it
    Add(Box<Add>),
    /// Forgets a control plane
    Remove {
        /// Its name
        #[arg(long, value_name = "NAME")]
        name: String,
    },
    /// Uses another control plane from now on
    Switch {
        /// Its name
        #[arg(long, value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// Name to call the control plane by
    #[arg(long, value_name = "NAME")]
    name: String,
    /// URL of its REST API, such as http://localhost:5681
    #[arg(long, value_name = "URL")]
    address: String,
    /// Replaces a control plane of that name
    #[arg(long)]
    overwrite: bool,
    /// Does not check that the control plane answers
    #[arg(long)]
    skip_check: bool,
    /// PEM file with the authority that signed the control plane's certificate, for https
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    ca_cert_file: String,
    /// Header to send with every call
    #[arg(long = "headers", value_name = "KEY=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// How to authenticate: tokens
    #[arg(long, value_name = "TYPE", value_parser = ["tokens"])]
    auth_type: Option<String>,
    /// What that needs: token=TOKEN
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    auth_conf: Vec<(String, String)>,
}

/// Reads `key=value`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form KEY=VALUE")),
    }
}

impl ConfigFile {
    /// Reads the file, which need not be there.
    pub(super) fn read(path: Option<PathBuf>) -> anyhow::Result<ConfigFile> {
        let path = match path {
            Some(path) => path,
            None => std::env::home_dir()
                .context("there is no home directory for the configuration file; name one with --config-file")?
                .join(".shika")
                .join("config"),
        };
        let mut file = match fs::read_to_string(&path) {
            Ok(text) if text.trim().is_empty() => ConfigFile::default(),
            Ok(text) => serde_yaml_ng::from_str(&text).with_context(|| {
                format!("the configuration file {} is damaged; correct or remove it", path.display())
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => ConfigFile::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        file.path = Some(path);
        Ok(file)
    }

    fn write(&self) -> anyhow::Result<()> {
        let path = self.path.as_ref().context("with --no-config there is no file to change")?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        // It may hold tokens: for its owner alone, and whole or not at all.
        let partial = path.with_extension("partial");
        let _ = fs::remove_file(&partial);
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
        io::Write::write_all(&mut file, self.to_yaml()?.as_bytes())?;
        fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(super) fn to_yaml(&self) -> anyhow::Result<String> {
        serde_yaml_ng::to_string(self).context("cannot write the configuration as YAML")
    }

    fn context(&self, name: Option<&str>) -> anyhow::Result<Option<&NamedContext>> {
        let wanted = match name {
            Some(name) => name,
            None if self.current_context.is_empty() => return Ok(None),
            None => &self.current_context,
        };
        let known: Vec<&str> = self.contexts.iter().map(|context| context.name.as_str()).collect();
        let found = self.contexts.iter().find(|context| context.name == wanted);
        found.map(Some).with_context(|| {
            format!("there is no control plane {wanted:?} in the configuration, only {known:?}; add it with: shikactl config control-planes add")
        })
    }

    /// How to call the control plane in use.
    pub(super) fn api_server(&self, context: Option<&str>) -> anyhow::Result<ApiServer> {
        let Some(context) = self.context(context)? else {
            return Ok(ApiServer { url: DEFAULT_URL.to_owned(), ..ApiServer::default() });
        };
        let found = self.control_planes.iter().find(|cp| cp.name == context.control_plane);
        found.map(|cp| cp.coordinates.api_server.clone()).with_context(|| {
            format!(
                "context {:?} refers to a control plane {:?} that is not configured",
                context.name, context.control_plane
            )
        })
    }

    /// The mesh of a context.
    pub(super) fn default_mesh(&self, context: Option<&str>) -> anyhow::Result<String> {
        let mesh = self.context(context)?.and_then(|context| context.defaults.as_ref()).map(|defaults| &defaults.mesh);
        Ok(mesh.filter(|mesh| !mesh.is_empty()).cloned().unwrap_or_else(|| "default".to_owned()))
    }
}

pub(super) async fn control_planes(
    command: ControlPlaneCommand,
    mut file: ConfigFile,
    timeout: Duration,
    streams: Streams<'_>,
) -> anyhow::Result<()> {
    match command {
        ControlPlaneCommand::List => {
            let rows = file.contexts.iter().map(|context| {
                let active = if context.name == file.current_context { "*" } else { "" };
                let cp = file.control_planes.iter().find(|cp| cp.name == context.control_plane);
                let url = cp.map(|cp| cp.coordinates.api_server.url.clone()).unwrap_or_default();
                vec![active.to_owned(), context.name.clone(), url]
            });
            table(streams.output, &["ACTIVE", "NAME", "ADDRESS"], rows.collect())
        }
        ControlPlaneCommand::Add(add) => self::add(*add, file, timeout, streams).await,
        ControlPlaneCommand::Remove { name } => {
            let before = file.contexts.len();
            file.contexts.retain(|context| context.name != name);
            if file.contexts.len() == before {
                bail!(
                    "there is no control plane {name:?} in the configuration; see: shikactl config control-planes list"
                );
            }
            file.control_planes.retain(|cp| cp.name != name);
            if file.current_context == name {
                file.current_context.clear();
            }
            file.write()?;
            writeln!(streams.output, "removed Control Plane {name:?}")?;
            Ok(())
        }
        ControlPlaneCommand::Switch { name } => {
            if !file.contexts.iter().any(|context| context.name == name) {
                bail!(
                    "there is no control plane {name:?} in the configuration; see: shikactl config control-planes list"
                );
            }
            file.current_context.clone_from(&name);
            file.write()?;
            writeln!(streams.output, "switched active Control Plane to {name:?}")?;
            Ok(())
        }
    }
}

async fn add(add: Add, mut file: ConfigFile, timeout: Duration, streams: Streams<'_>) -> anyhow::Result<()> {
    let exists = file.contexts.iter().any(|context| context.name == add.name);
    if exists && !add.overwrite {
        bail!("Control Plane with name {:?} already exists. Use --overwrite to replace an existing one.", add.name);
    }
    let auth_conf: BTreeMap<String, String> = add.auth_conf.into_iter().collect();
    let auth_type = add.auth_type.unwrap_or_default();
    if auth_type == "tokens" && !auth_conf.contains_key("token") {
        bail!("--auth-type tokens needs --auth-conf token=TOKEN");
    }
    if auth_type.is_empty() && !auth_conf.is_empty() {
        bail!("--auth-conf needs --auth-type tokens");
    }
    let server = ApiServer {
        url: add.address,
        ca_cert_file: add.ca_cert_file,
        headers: add.headers.into_iter().map(|(key, value)| Header { key, value }).collect(),
        auth_type,
        auth_conf,
        ..ApiServer::default()
    };
    let client = Client::new(server.clone(), timeout)?;
    if !add.skip_check {
        let index =
            client.get_json("/").await.context("the control plane was not added (--skip-check adds it anyway)")?;
        if index.get("product").is_none() {
            bail!("what answers at {} is no control plane: it names no product", server.url);
        }
    }
    let defaults =
        file.contexts.iter().find(|context| context.name == add.name).and_then(|found| found.defaults.clone());
    file.contexts.retain(|context| context.name != add.name);
    file.control_planes.retain(|cp| cp.name != add.name);
    file.contexts.push(NamedContext { name: add.name.clone(), control_plane: add.name.clone(), defaults });
    file.control_planes.push(ControlPlane { name: add.name.clone(), coordinates: Coordinates { api_server: server } });
    file.current_context.clone_from(&add.name);
    file.write()?;
    writeln!(streams.output, "added Control Plane {:?}", add.name)?;
    writeln!(streams.output, "switched active Control Plane to {:?}", add.name)?;
    Ok(())
}
