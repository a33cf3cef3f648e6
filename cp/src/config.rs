//! The arguments of `shika-cp run`. Where Kuma has a setting, its environment variable is read.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

/// Where resources are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreType {
    /// Gone with the process.
    Memory,
    /// One file, see `--store-path`.
    Sqlite,
    /// Not available in this version.
    Postgres,
}

/// Which part of a mesh over several zones this control plane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Serves data planes; stands alone, or in a zone of a global control plane.
    #[value(alias = "standalone")]
    Zone,
    /// Keeps what all zones have in common, and serves no data planes.
    Global,
}

/// How data planes prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DpAuth {
    /// By a data plane token.
    #[value(name = "dpToken")]
    DpToken,
    /// Not at all: whoever reaches the server may join any mesh.
    None,
}

/// How zones prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KdsAuth {
    /// By a zone token of scope cp.
    #[value(name = "cpToken")]
    CpToken,
    /// Not at all: whoever reaches the server may call itself any zone.
    None,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What stops the control plane from doing its work.
    Error,
    /// What somebody should look at.
    Warn,
    /// What was done.
    Info,
    /// Every request.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level by the name that filters take.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Arguments of `shika-cp run`. Port 0 stands for any free port; see `--ports-file`.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Where resources are kept
    #[arg(long = "store", value_enum, default_value = "sqlite", env = "KUMA_STORE_TYPE")]
    pub store: StoreType,
    /// The file of the SQLite store; by default shika.db in the work directory
    #[arg(long, value_name = "FILE", env = "SHIKA_STORE_PATH")]
    pub store_path: Option<PathBuf>,
    /// Directory for what the control plane makes for itself: its TLS certificate, its database; by default ~/.shika
    #[arg(long, value_name = "DIR", env = "KUMA_GENERAL_WORK_DIR")]
    pub work_dir: Option<PathBuf>,
    /// Address that the REST API listens on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", env = "KUMA_API_SERVER_HTTP_INTERFACE")]
    pub api_http_interface: IpAddr,
    /// Port of the REST API
    #[arg(long, value_name = "PORT", default_value_t = 5681, env = "KUMA_API_SERVER_HTTP_PORT")]
    pub api_http_port: u16,
    /// Whether callers of the REST API on this host are administrators without a token
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        env = "KUMA_API_SERVER_AUTHN_LOCALHOST_IS_ADMIN"
    )]
    pub localhost_is_admin: bool,
    /// Address that the data-plane server listens on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", env = "SHIKA_DP_SERVER_INTERFACE")]
    pub dp_server_interface: IpAddr,
    /// Port of the data-plane server: bootstrap and ADS, over TLS
    #[arg(long, value_name = "PORT", default_value_t = 5678, env = "KUMA_DP_SERVER_PORT")]
    pub dp_server_port: u16,
    /// Certificate chain of the data-plane server, PEM; by default one is made in the work directory
    #[arg(long, value_name = "FILE", requires = "dp_tls_key", env = "KUMA_DP_SERVER_TLS_CERT_FILE")]
    pub dp_tls_cert: Option<PathBuf>,
    /// Private key of the data-plane server, PEM
    #[arg(long, value_name = "FILE", requires = "dp_tls_cert", env = "KUMA_DP_SERVER_TLS_KEY_FILE")]
    pub dp_tls_key: Option<PathBuf>,
    /// How data planes prove who they are
    #[arg(long, value_enum, default_value = "dpToken", env = "KUMA_DP_SERVER_AUTHN_DP_PROXY_TYPE")]
    pub dp_auth: DpAuth,
    /// Host that proxies are told to connect to; by default the one they called for their bootstrap
    #[arg(long, value_name = "HOST", env = "KUMA_BOOTSTRAP_SERVER_PARAMS_XDS_HOST")]
    pub xds_host: Option<String>,
    /// Whether the admin interface of proxies that name a working directory is on a Unix socket there, as Kuma 2.14 has it, and not on
    /// port 9901 of their loopback
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = false,
        action = clap::ArgAction::Set,
        env = "KUMA_BOOTSTRAP_SERVER_PARAMS_ENVOY_ADMIN_UNIX_SOCKET"
    )]
    pub envoy_admin_unix_socket: bool,
    /// Address that the diagnostics server listens on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", env = "SHIKA_DIAGNOSTICS_INTERFACE")]
    pub diagnostics_interface: IpAddr,
    /// Port of the diagnostics server: /healthy, /ready, /metrics
    #[arg(long, value_name = "PORT", default_value_t = 5680, env = "KUMA_DIAGNOSTICS_SERVER_PORT")]
    pub diagnostics_port: u16,
    /// Whether to serve monitoring assignments
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        env = "KUMA_MONITORING_ASSIGNMENT_SERVER_ENABLED"
    )]
    pub mads_enabled: bool,
    /// Address that the monitoring assignment server listens on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", env = "SHIKA_MADS_INTERFACE")]
    pub mads_interface: IpAddr,
    /// Port of the monitoring assignment server, which Prometheus asks for its targets (kuma_sd_configs)
    #[arg(long, value_name = "PORT", default_value_t = 5676, env = "KUMA_MONITORING_ASSIGNMENT_SERVER_PORT")]
    pub mads_port: u16,
    /// Which part of a mesh over several zones this control plane is
    #[arg(long, value_enum, default_value = "zone", env = "KUMA_MODE")]
    pub mode: Mode,
    /// Name of the zone
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = zone_name, env = "KUMA_MULTIZONE_ZONE_NAME")]
    pub zone_name: String,
    /// Where the global control plane of this zone is: grpcs://HOST:5685, or grpc:// without TLS; without it, the zone stands alone
    #[arg(long, value_name = "URL", env = "KUMA_MULTIZONE_ZONE_GLOBAL_ADDRESS")]
    pub kds_global_address: Option<String>,
    /// Certificate authority of the global control plane, PEM
    #[arg(long, value_name = "FILE", env = "KUMA_MULTIZONE_ZONE_KDS_ROOT_CA_FILE")]
    pub kds_root_ca_file: Option<PathBuf>,
    /// Zone token of scope cp with which this zone proves its name to the global control plane
    #[arg(long, value_name = "FILE", env = "KMESH_MULTIZONE_ZONE_KDS_AUTH_CP_TOKEN_PATH")]
    pub kds_token_file: Option<PathBuf>,
    /// Address that zones connect to, in mode global
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", env = "SHIKA_KDS_INTERFACE")]
    pub kds_interface: IpAddr,
    /// Port that zones connect to, in mode global
    #[arg(long, value_name = "PORT", default_value_t = 5685, env = "KUMA_MULTIZONE_GLOBAL_KDS_GRPC_PORT")]
    pub kds_port: u16,
    /// Whether zones connect over TLS, in mode global
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        env = "KUMA_MULTIZONE_GLOBAL_KDS_TLS_ENABLED"
    )]
    pub kds_tls: bool,
    /// Certificate chain that zones are shown, PEM; by default one is made in the work directory
    #[arg(long, value_name = "FILE", requires = "kds_tls_key", env = "KUMA_MULTIZONE_GLOBAL_KDS_TLS_CERT_FILE")]
    pub kds_tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "kds_tls_cert", env = "KUMA_MULTIZONE_GLOBAL_KDS_TLS_KEY_FILE")]
    pub kds_tls_key: Option<PathBuf>,
    /// How zones prove who they are, in mode global
    #[arg(long, value_enum, default_value = "none", env = "KMESH_MULTIZONE_GLOBAL_KDS_AUTH_TYPE")]
    pub kds_auth: KdsAuth,
    /// Whether not to create the mesh "default" on start
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        env = "KUMA_DEFAULTS_SKIP_MESH_CREATION"
    )]
    pub skip_mesh_creation: bool,
    /// File that the actual ports are written to as JSON, once all servers listen
    #[arg(long, value_name = "FILE", env = "SHIKA_PORTS_FILE")]
    pub ports_file: Option<PathBuf>,
    /// How much is logged
    #[arg(long, value_enum, default_value = "info", env = "SHIKA_LOG_LEVEL")]
    pub log_level: LogLevel,
}

/// Checks the name of a zone: a DNS label, because it becomes a part of host names.
fn zone_name(text: &str) -> Result<String, String> {
    let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let edges = bytes.first().is_some_and(|b| label(*b)) && bytes.last().is_some_and(|b| label(*b));
    if text.len() <= 63 && edges && bytes.iter().all(|b| label(*b) || *b == b'-') {
        return Ok(text.to_owned());
    }
    Err("use at most 63 lower case letters, digits and '-', beginning and ending with a letter or digit".to_owned())
}

impl Config {
    /// What is not available in this version or makes no sense together, by name and with what to do instead.
    pub fn unavailable(&self) -> Option<&'static str> {
        match (self.store, self.mode, &self.kds_global_address) {
            (StoreType::Postgres, _, _) => Some(
                "--store postgres is not available in this version; use --store sqlite, which keeps everything in one file",
            ),
            (_, Mode::Global, Some(_)) => {
                Some("--kds-global-address is for a zone, and this is --mode global: leave one of them out")
            }
            (StoreType::Memory | StoreType::Sqlite, Mode::Zone | Mode::Global, _) => None,
        }
    }

    /// Whether this is the control plane of a zone that has a global one.
    pub fn is_federated(&self) -> bool {
        self.mode == Mode::Zone && self.kds_global_address.is_some()
    }

    /// The work directory, with its default.
    pub fn work_dir(&self) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| match std::env::home_dir() {
            Some(home) => home.join(".shika"),
            None => PathBuf::from(".shika"),
        })
    }

    /// The file of the SQLite store, with its default.
    pub fn store_path(&self) -> PathBuf {
        self.store_path.clone().unwrap_or_else(|| self.work_dir().join("shika.db"))
    }

    /// The configuration as `GET /config` shows it, under Kuma's keys. There are no secrets in it.
    pub fn to_json(&self) -> Value {
        json!({
            "mode": match self.mode {
                Mode::Zone => "zone",
                Mode::Global => "global",
            },
            "environment": "universal",
            "store": {
                "type": match self.store {
                    StoreType::Memory => "memory",
                    StoreType::Sqlite => "sqlite",
                    StoreType::Postgres => "postgres",
                },
                "sqlite": {"path": self.store_path()},
            },
            "general": {"workDir": self.work_dir()},
            "apiServer": {
                "http": {"enabled": true, "interface": self.api_http_interface, "port": self.api_http_port},
                "https": {"enabled": false},
                "authn": {"type": "tokens", "localhostIsAdmin": self.localhost_is_admin},
                "readOnly": false,
            },
            "dpServer": {
                "port": self.dp_server_port,
                "tlsCertFile": self.dp_tls_cert,
                "tlsKeyFile": self.dp_tls_key,
                "authn": {"dpProxy": {"type": match self.dp_auth {
                    DpAuth::DpToken => "dpToken",
                    DpAuth::None => "none",
                }}},
            },
            "multizone": {
                "zone": {
                    "name": self.zone_name,
                    "globalAddress": self.kds_global_address,
                    "kds": {"rootCaFile": self.kds_root_ca_file},
                },
                "global": {"kds": {
                    "grpcPort": self.kds_port,
                    "tlsEnabled": self.kds_tls,
                    "tlsCertFile": self.kds_tls_cert,
                    "tlsKeyFile": self.kds_tls_key,
                }},
            },
            "bootstrapServer": {"params": {"xdsHost": self.xds_host, "envoyAdminUnixSocket": self.envoy_admin_unix_socket}},
            "diagnostics": {"serverPort": self.diagnostics_port},
            "monitoringAssignmentServer": {
                "enabled": self.mads_enabled,
                "port": self.mads_port,
                "apiVersions": ["v1"],
                "defaultFetchTimeout": "30s",
                "assignmentRefreshInterval": "1s",
                "tlsEnabled": false,
            },
            "defaults": {"skipMeshCreation": self.skip_mesh_creation},
        })
    }
}
