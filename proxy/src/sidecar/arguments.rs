//! Flags and environment of `shika-proxy run`.

use std::{fs, path::PathBuf, time::Duration};

use clap::Parser;

use super::level;
use crate::options::Level;

/// Flags of `shika-proxy run`, with kuma-dp's names, environment variables and defaults.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "shika-proxy run",
    about = "Runs a sidecar: asks a Kuma-compatible control plane for its configuration and proxies.",
    disable_version_flag = true
)]
pub struct Arguments {
    /// Address of the control plane's data-plane server
    #[arg(long, env = "KUMA_CONTROL_PLANE_URL", default_value = "https://localhost:5678", value_name = "URL")]
    pub cp_address: String,
    /// CA that the control plane's certificate is checked with [default: the system's]
    #[arg(long, env = "KUMA_CONTROL_PLANE_CA_CERT_FILE", value_name = "FILE")]
    pub ca_cert_file: Option<PathBuf>,
    /// The same CA as PEM text; wins over the file
    #[arg(long = "ca-cert", env = "KUMA_CONTROL_PLANE_CA_CERT", value_name = "PEM", hide = true)]
    pub ca_cert: Option<String>,
    /// Do not check the control plane's certificate
    #[arg(long, env = "KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY")]
    pub skip_verify: bool,
    /// Pause between tries to reach the control plane
    #[arg(long, env = "KUMA_CONTROL_PLANE_RETRY_BACKOFF", default_value = "3s", value_parser = duration)]
    pub retry_backoff: Duration,
    /// Give up after this long
    #[arg(long, env = "KUMA_CONTROL_PLANE_RETRY_MAX_DURATION", default_value = "5m", value_parser = duration)]
    pub retry_max_duration: Duration,
    /// Mesh, if there is no Dataplane resource
    #[arg(long, env = "KUMA_DATAPLANE_MESH")]
    pub mesh: Option<String>,
    /// Name, if there is no Dataplane resource [default: $POD_NAME.$POD_NAMESPACE]
    #[arg(long, env = "KUMA_DATAPLANE_NAME")]
    pub name: Option<String>,
    /// Kind of proxy; only `dataplane`
    #[arg(long, env = "KUMA_DATAPLANE_PROXY_TYPE", default_value = "dataplane")]
    pub proxy_type: String,
    /// Upper bound of the drain at shutdown
    #[arg(long, env = "KUMA_DATAPLANE_DRAIN_TIME", default_value = "30s", value_parser = duration)]
    pub drain_time: Duration,
    /// Port of the readiness server; 0 turns it off
    #[arg(long, env = "KUMA_READINESS_PORT", default_value_t = 9902)]
    pub readiness_port: u16,
    /// Directory for sockets [default: a temporary one]
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_WORK_DIR", value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Number of workers; 0: the cores that cgroup and affinity allow
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_CONCURRENCY", default_value_t = 0)]
    pub concurrency: u32,
    /// File with the dataplane token
    #[arg(long = "dataplane-token-file", env = "KUMA_DATAPLANE_RUNTIME_TOKEN_PATH", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Dataplane token
    #[arg(long = "dataplane-token", env = "KUMA_DATAPLANE_RUNTIME_TOKEN", hide_env_values = true)]
    pub token_text: Option<String>,
    /// The Dataplane resource as YAML or JSON; may hold `{{ variables }}`
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_RESOURCE", value_name = "YAML")]
    pub dataplane: Option<String>,
    /// File with the Dataplane resource, `-` for standard input; may hold `{{ variables }}`
    #[arg(short = 'd', long, env = "KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH", value_name = "FILE")]
    pub dataplane_file: Option<PathBuf>,
    /// Value of a variable, `name=value`; may be repeated
    #[arg(short = 'v', long, value_name = "NAME=VALUE")]
    pub dataplane_var: Vec<String>,
    /// Log level: off, info, debug, or one of Envoy's
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Log level of the data path; wins over --log-level
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_ENVOY_LOG_LEVEL")]
    pub envoy_log_level: Option<String>,
    /// Log levels of components, such as `upstream:debug,config:trace`
    #[arg(
        long = "envoy-component-log-level",
        env = "KUMA_DATAPLANE_RUNTIME_ENVOY_COMPONENT_LOG_LEVEL",
        default_value = ""
    )]
    pub component_log_level: String,
    /// Log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log_output_path: Option<PathBuf>,
    /// Path of the certificate that the control plane puts into metrics listeners
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_METRICS_CERT_PATH", default_value = "")]
    pub metrics_cert_path: String,
    /// Path of its key
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_METRICS_KEY_PATH", default_value = "")]
    pub metrics_key_path: String,
    /// Bind outbounds to loopback addresses instead of VIPs
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_BIND_OUTBOUNDS")]
    pub bind_outbounds: bool,
    /// Ask for unified resource names
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED", hide = true)]
    pub unified_resource_naming: bool,
    /// Bind inbounds to the workload's ports only
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_STRICT_INBOUND_PORTS_ENABLED", hide = true, default_value_t = true, action = clap::ArgAction::Set)]
    pub strict_inbound_ports: bool,
    /// Let the control plane set `enable_reuse_port`
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_REUSE_PORT_ENABLED", hide = true, default_value_t = true, action = clap::ArgAction::Set)]
    pub reuse_port: bool,
    /// Bundle of the system's CAs, told to the control plane
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_DYNAMIC_SYSTEM_CA_PATH", hide = true)]
    pub system_ca_path: Option<String>,
    /// Not part of this version: the mesh DNS
    #[arg(long, env = "KUMA_DNS_ENABLED", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, hide = true)]
    pub dns_enabled: bool,
    /// Not part of this version: transparent redirection
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_TRANSPARENT_PROXY", hide = true)]
    pub transparent_proxy: bool,
    /// Not part of this version: transparent redirection
    #[arg(long, hide = true)]
    pub transparent_proxy_config: Vec<String>,
    /// Not part of this version: the application probe proxy
    #[arg(long, env = "KUMA_APPLICATION_PROBE_PROXY_PORT", default_value_t = 0, hide = true)]
    pub application_probe_proxy_port: u16,
    /// kuma-dp's path of Envoy: there is no second process
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_BINARY_PATH", hide = true)]
    pub binary_path: Option<String>,
}

impl Arguments {
    /// What clap cannot check.
    ///
    /// # Errors
    /// A message that names the flag and what to do.
    pub fn check(&self) -> Result<(), String> {
        match self.proxy_type.as_str() {
            "dataplane" => {}
            "ingress" | "egress" => {
                return Err(format!(
                    "--proxy-type {}: zone proxies are not supported; only dataplane is",
                    self.proxy_type
                ));
            }
            other => return Err(format!("--proxy-type {other}: unknown; only dataplane is supported")),
        }
        for (given, flag, what) in [
            (self.dns_enabled, "--dns-enabled", "the mesh DNS; leave it out or pass --dns-enabled=false"),
            (
                self.transparent_proxy,
                "--transparent-proxy",
                "transparent redirection; name the outbounds in the Dataplane resource",
            ),
            (
                !self.transparent_proxy_config.is_empty(),
                "--transparent-proxy-config",
                "transparent redirection; name the outbounds in the Dataplane resource",
            ),
            (
                self.application_probe_proxy_port != 0,
                "KUMA_APPLICATION_PROBE_PROXY_PORT",
                "the application probe proxy; set it to 0",
            ),
        ] {
            if given {
                return Err(format!("{flag}: this version does not have {what}"));
            }
        }
        if self.dataplane.is_some() && self.dataplane_file.is_some() {
            return Err("--dataplane and --dataplane-file exclude each other".into());
        }
        if (self.dataplane.is_some() || self.dataplane_file.is_some()) && (self.name.is_some() || self.mesh.is_some()) {
            return Err("--name and --mesh cannot be given with a Dataplane resource: it names both".into());
        }
        if self.token_text.is_some() && self.token_file.is_some() {
            return Err("--dataplane-token and --dataplane-token-file exclude each other".into());
        }
        if let Some(bad) = self.dataplane_var.iter().find(|var| !var.contains('=')) {
            return Err(format!("--dataplane-var {bad}: expected name=value"));
        }
        for name in std::iter::once(&self.log_level).chain(&self.envoy_log_level) {
            if level(name).is_none() {
                return Err(format!(
                    "log level {name:?} is unknown; one of off, critical, error, warning, info, debug, trace"
                ));
            }
        }
        if !self.cp_address.starts_with("https://") && !self.cp_address.starts_with("http://") {
            return Err(format!("--cp-address {}: expected https://host:port", self.cp_address));
        }
        Ok(())
    }

    /// The level of the log.
    pub fn level(&self) -> Level {
        level(self.envoy_log_level.as_deref().unwrap_or(&self.log_level)).unwrap_or(Level::Info)
    }

    /// The dataplane token, without white space around it.
    ///
    /// # Errors
    /// The file cannot be read, or holds nothing.
    pub fn token(&self) -> Result<Option<String>, String> {
        let text = match (&self.token_text, &self.token_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => fs::read_to_string(path)
                .map_err(|error| format!("--dataplane-token-file {}: {error}", path.display()))?,
            (None, None) => return Ok(None),
        };
        match text.trim() {
            "" => Err("the dataplane token is empty".into()),
            token => Ok(Some(token.to_owned())),
        }
    }

    /// The CA for the control plane as PEM; empty where none is given.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn ca(&self) -> Result<String, String> {
        match (&self.ca_cert, &self.ca_cert_file) {
            (Some(pem), _) if !pem.is_empty() => Ok(pem.clone()),
            (_, Some(path)) => {
                fs::read_to_string(path).map_err(|error| format!("--ca-cert-file {}: {error}", path.display()))
            }
            (_, None) => Ok(String::new()),
        }
    }
}

/// Go's notation of durations: `300ms`, `1m30s`, `5m`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration; such as 30s, 1m30s, 500ms");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if text == "0" {
        return Ok(total);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| bad())?;
        let unit_length = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_length);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        rest = tail;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Arguments, String> {
        let arguments =
            Arguments::try_parse_from(std::iter::once(&"run").chain(args)).map_err(|error| error.to_string())?;
        arguments.check().map(|()| arguments)
    }

    #[test]
    fn kuma_defaults() {
        let arguments = parse(&["--dataplane-file", "x.yaml", "-v", "a=b"]).expect("good arguments");
        assert_eq!(arguments.cp_address, "https://localhost:5678");
        assert_eq!((arguments.drain_time, arguments.readiness_port), (Duration::from_secs(30), 9902));
        assert_eq!(arguments.retry_max_duration, Duration::from_secs(300));
    }

    #[test]
    fn refusals_name_the_flag() {
        for (args, needle) in [
            (&["--proxy-type", "ingress"][..], "--proxy-type ingress"),
            (&["--dns-enabled"], "--dns-enabled"),
            (&["--transparent-proxy"], "--transparent-proxy"),
            (&["--dataplane", "x", "--name", "y"], "--name"),
            (&["--dataplane", "x", "--dataplane-file", "y"], "--dataplane-file"),
            (&["--dataplane-token", "x", "--dataplane-token-file", "y"], "--dataplane-token"),
            (&["--dataplane-var", "x"], "--dataplane-var x"),
            (&["--cp-address", "localhost:5678"], "--cp-address"),
            (&["--log-level", "loud"], "loud"),
            (&["--drain-time", "soon"], "soon"),
        ] {
            let error = parse(args).expect_err("a refusal");
            assert!(error.contains(needle), "{args:?}: {error}");
        }
        assert!(parse(&["--dns-enabled=false"]).is_ok());
    }

    #[test]
    fn durations() {
        for (text, millis) in [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "x", "5 s", "1e9h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
