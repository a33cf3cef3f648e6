//! Flags and environment of `shika-proxy run`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgAction, Parser, builder::BoolishValueParser};

use super::{level, transparent::TransparentProxy};
use crate::options::Level;

/// What kind of proxy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProxyType {
    /// Beside a workload.
    Dataplane,
    /// Takes other zones' traffic.
    Ingress,
    /// Sends traffic to other zones and outside.
    Egress,
}

impl ProxyType {
    /// As in flags and in the bootstrap request.
    pub fn name(self) -> &'static str {
        match self {
            ProxyType::Dataplane => "dataplane",
            ProxyType::Ingress => "ingress",
            ProxyType::Egress => "egress",
        }
    }

    /// Kind of the resource that describes it.
    pub fn resource(self) -> &'static str {
        match self {
            ProxyType::Dataplane => "Dataplane",
            ProxyType::Ingress => "ZoneIngress",
            ProxyType::Egress => "ZoneEgress",
        }
    }
}

/// Environment variables of kuma-dp that mean nothing here, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("KUMA_DATAPLANE_RESILIENT_COMPONENT_BASE_BACKOFF", "there are no components to restart"),
    ("KUMA_DATAPLANE_RESILIENT_COMPONENT_MAX_BACKOFF", "there are no components to restart"),
    ("KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION_REFRESH_INTERVAL", "changes are seen as they arrive"),
    ("KUMA_DATAPLANE_RUNTIME_OTEL_PIPE_ENABLED", "OpenTelemetry backends are not reached through the sidecar"),
    ("KUMA_DATAPLANE_RUNTIME_SPIRE_SUPPORTED", "identities come from the control plane"),
    ("KUMA_DATAPLANE_RUNTIME_SPIRE_SOCKET_PATH", "identities come from the control plane"),
];

/// Flags of `shika-proxy run`, with kuma-dp's names, environment variables and defaults.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "shika-proxy run",
    about = "Runs a sidecar or a zone proxy: asks a Kuma-compatible control plane for its configuration and proxies.",
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
    #[arg(long, env = "KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
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
    /// Kind of proxy: dataplane, or ingress or egress of a zone
    #[arg(long, env = "KUMA_DATAPLANE_PROXY_TYPE", default_value = "dataplane")]
    pub proxy_type: ProxyType,
    /// Upper bound of the drain at shutdown
    #[arg(long, env = "KUMA_DATAPLANE_DRAIN_TIME", default_value = "30s", value_parser = duration)]
    pub drain_time: Duration,
    /// Port of the readiness server; 0 turns it off
    #[arg(long, env = "KUMA_READINESS_PORT", default_value_t = 9902)]
    pub readiness_port: u16,
    /// Directory for sockets [default: a temporary one]
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_WORK_DIR", value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Old name of --work-dir
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_CONFIG_DIR", value_name = "DIR", hide = true)]
    pub config_dir: Option<PathBuf>,
    /// Directory for sockets in kuma-dp's older notation; wins over --work-dir
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_SOCKET_DIR", value_name = "DIR", hide = true)]
    pub socket_dir: Option<PathBuf>,
    /// Number of workers; 0: the cores that cgroup and affinity allow
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_CONCURRENCY", default_value_t = 0)]
    pub concurrency: u32,
    /// File with the dataplane or zone token; read again when it changes
    #[arg(long = "dataplane-token-file", env = "KUMA_DATAPLANE_RUNTIME_TOKEN_PATH", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Dataplane or zone token
    #[arg(long = "dataplane-token", env = "KUMA_DATAPLANE_RUNTIME_TOKEN", hide_env_values = true)]
    pub token_text: Option<String>,
    /// The Dataplane, ZoneIngress or ZoneEgress resource as YAML or JSON; may hold `{{ variables }}`
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_RESOURCE", value_name = "YAML")]
    pub dataplane: Option<String>,
    /// File with the resource, `-` for standard input; may hold `{{ variables }}`
    #[arg(short = 'd', long, env = "KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH", value_name = "FILE")]
    pub dataplane_file: Option<PathBuf>,
    /// Values of variables, `name=value,…`; may be repeated
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
    /// Size at which kuma-dp rotates its log; no effect
    #[arg(long, value_name = "MB", hide = true)]
    pub log_max_size: Option<u32>,
    /// Age at which kuma-dp drops a log; no effect
    #[arg(long, value_name = "DAYS", hide = true)]
    pub log_max_age: Option<u32>,
    /// Number of logs that kuma-dp keeps; no effect
    #[arg(long, value_name = "COUNT", hide = true)]
    pub log_max_retained_files: Option<u32>,
    /// Path of the certificate that the control plane puts into metrics listeners
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_METRICS_CERT_PATH", default_value = "")]
    pub metrics_cert_path: String,
    /// Path of its key
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_METRICS_KEY_PATH", default_value = "")]
    pub metrics_key_path: String,
    /// Bind outbounds to loopback addresses instead of VIPs
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_BIND_OUTBOUNDS", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub bind_outbounds: bool,
    /// Ask for unified resource names
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED", hide = true, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub unified_resource_naming: bool,
    /// Bind inbounds to the workload's ports only
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_STRICT_INBOUND_PORTS_ENABLED", hide = true, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub strict_inbound_ports: bool,
    /// Let the control plane set `enable_reuse_port`
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_REUSE_PORT_ENABLED", hide = true, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub reuse_port: bool,
    /// IPv6 may be used, where the host has it
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_IPV6_ENABLED", hide = true, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub ipv6_enabled: bool,
    /// Protocol to the control plane: DELTA_GRPC, or GRPC for state of the world
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT", hide = true, default_value = "")]
    pub xds_variant: String,
    /// Bundle of the system's CAs, told to the control plane
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_DYNAMIC_SYSTEM_CA_PATH", hide = true)]
    pub system_ca_path: Option<String>,
    /// Memory of the proxy, told to the control plane, bytes
    #[arg(long, env = "KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES", hide = true, default_value_t = 0)]
    pub max_memory_bytes: u64,
    /// Serve DNS [default: on with transparent proxying]
    #[arg(long, env = "KUMA_DNS_ENABLED", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub dns_enabled: Option<bool>,
    /// Port of the DNS server [default: 15053]
    #[arg(long, env = "KUMA_DNS_PROXY_PORT", value_name = "PORT")]
    pub dns_proxy_port: Option<u16>,
    /// Port of kuma-dp's CoreDNS; where --dns-proxy-port is not set, the DNS server's
    #[arg(long, env = "KUMA_DNS_CORE_DNS_PORT", value_name = "PORT")]
    pub dns_coredns_port: Option<u16>,
    /// File with the resolvers of names outside the mesh
    #[arg(long, env = "KUMA_DNS_RESOLV_CONF_PATH", value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub dns_resolv_conf: PathBuf,
    /// Port of Envoy's DNS filter behind CoreDNS; no effect
    #[arg(long, env = "KUMA_DNS_ENVOY_DNS_PORT", hide = true)]
    pub dns_envoy_port: Option<u16>,
    /// kuma-dp's CoreDNS; no effect
    #[arg(long, env = "KUMA_DNS_CORE_DNS_BINARY_PATH", hide = true)]
    pub dns_coredns_path: Option<String>,
    /// Its configuration; no effect
    #[arg(long, env = "KUMA_DNS_CORE_DNS_CONFIG_TEMPLATE_PATH", hide = true)]
    pub dns_coredns_config_template_path: Option<String>,
    /// Its directory; no effect
    #[arg(long, env = "KUMA_DNS_CONFIG_DIR", hide = true)]
    pub dns_server_config_dir: Option<String>,
    /// Its metrics; no effect
    #[arg(long, env = "KUMA_DNS_PROMETHEUS_PORT", hide = true)]
    pub dns_prometheus_port: Option<u16>,
    /// Its log; no effect
    #[arg(long, env = "KUMA_DNS_ENABLE_LOGGING", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub dns_enable_logging: Option<bool>,
    /// Traffic is redirected to this proxy, by Kuma's default rules
    #[arg(long, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new(), action = ArgAction::Set)]
    pub transparent_proxy: bool,
    /// The same, by these rules: files, separated by commas, or `-`; may be repeated, later ones win
    #[arg(long, value_name = "FILE")]
    pub transparent_proxy_config: Vec<String>,
    /// Port of the application probe proxy; 0 turns it off
    #[arg(long, env = "KUMA_APPLICATION_PROBE_PROXY_PORT", default_value_t = 0)]
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
        if self.dataplane.is_some() && self.dataplane_file.is_some() {
            return Err("--dataplane and --dataplane-file exclude each other".into());
        }
        if (self.dataplane.is_some() || self.dataplane_file.is_some()) && (self.name.is_some() || self.mesh.is_some()) {
            return Err("--name and --mesh cannot be given with a Dataplane resource: it names both".into());
        }
        if self.token_text.is_some() && self.token_file.is_some() {
            return Err("--dataplane-token and --dataplane-token-file exclude each other".into());
        }
        if !matches!(self.xds_variant.as_str(), "" | "GRPC" | "DELTA_GRPC") {
            return Err(format!(
                "KUMA_DATAPLANE_RUNTIME_ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT {}: one of DELTA_GRPC, GRPC",
                self.xds_variant
            ));
        }
        if self.drain_time.is_zero() {
            return Err("--drain-time has to be more than 0".into());
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

    /// Names and values of `--dataplane-var`. As with kuma-dp's flag one may hold several, separated by commas.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        let mut variables = Vec::new();
        for given in &self.dataplane_var {
            // A comma within a value does not start another variable.
            if given.split(',').all(|part| part.contains('=')) {
                variables.extend(given.split(',').filter_map(|part| part.split_once('=')));
            } else {
                variables.extend(given.split_once('='));
            }
        }
        variables
    }

    /// The directory for sockets, by whichever name it was given.
    pub fn directory(&self) -> Option<&Path> {
        self.socket_dir.as_deref().or(self.work_dir.as_deref()).or(self.config_dir.as_deref())
    }

    /// What traffic is redirected here; `None` where the flags do not say that any is.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    pub fn transparent_proxy(&self) -> Result<Option<TransparentProxy>, String> {
        if !self.transparent_proxy && self.transparent_proxy_config.is_empty() {
            return Ok(None);
        }
        TransparentProxy::load(&self.transparent_proxy_config).map(Some)
    }

    /// Port of the DNS server; `None` where it is off. Unless a flag decides, it is on where queries are redirected to it: with transparent proxying
    /// (`redirected`), or where the injector has set its port.
    pub fn dns_port(&self, redirected: bool) -> Option<u16> {
        let given = self.dns_proxy_port.filter(|port| *port != 0).or(self.dns_coredns_port);
        let on = self.dns_enabled.unwrap_or(redirected || given.is_some());
        (on && self.proxy_type == ProxyType::Dataplane).then(|| given.unwrap_or(15053))
    }

    /// Flags and variables that were given and mean nothing here, and why.
    pub fn ineffective(&self) -> Vec<(&'static str, &'static str)> {
        let core_dns = "there is no CoreDNS; the DNS server is part of this process";
        let log = "rotate the file from outside and send SIGUSR1";
        let flags = [
            (self.log_max_size.is_some(), "--log-max-size", log),
            (self.log_max_age.is_some(), "--log-max-age", log),
            (self.log_max_retained_files.is_some(), "--log-max-retained-files", log),
            (self.dns_envoy_port.is_some(), "--dns-envoy-port", core_dns),
            (self.dns_coredns_path.is_some(), "--dns-coredns-path", core_dns),
            (self.dns_coredns_config_template_path.is_some(), "--dns-coredns-config-template-path", core_dns),
            (self.dns_server_config_dir.is_some(), "--dns-server-config-dir", core_dns),
            (self.dns_prometheus_port.is_some(), "--dns-prometheus-port", "its metrics are among the sidecar's"),
            (self.dns_enable_logging.is_some(), "--dns-enable-logging", "use --envoy-component-log-level=dns:debug"),
            (self.binary_path.is_some(), "--binary-path", "there is no second process"),
            (self.config_dir.is_some() && self.work_dir.is_some(), "--config-dir", "--work-dir wins"),
            (self.work_dir.is_some() && self.socket_dir.is_some(), "--work-dir", "--socket-dir wins"),
        ];
        let set = WITHOUT_EFFECT.iter().copied().filter(|(name, _)| std::env::var_os(name).is_some());
        flags.into_iter().filter(|(given, ..)| *given).map(|(_, flag, why)| (flag, why)).chain(set).collect()
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
            (&["--proxy-type", "gateway"][..], "--proxy-type"),
            (&["--dns-enabled=perhaps"], "--dns-enabled"),
            (&["--drain-time", "0"], "--drain-time"),
            (&["--xds-variant", "REST"], "REST"),
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
    }

    #[test]
    fn booleans_are_gos() {
        for (args, expected) in [
            (&[][..], (false, true)),
            (&["--skip-verify", "--strict-inbound-ports=false"], (true, false)),
            (&["--skip-verify=true", "--strict-inbound-ports=1"], (true, true)),
        ] {
            let arguments = parse(args).expect("good arguments");
            assert_eq!((arguments.skip_verify, arguments.strict_inbound_ports), expected, "{args:?}");
        }
    }

    #[test]
    fn dns_is_on_where_queries_come() {
        for (args, redirected, expected) in [
            (&[][..], false, None),
            (&[], true, Some(15053)),
            (&["--dns-enabled"], false, Some(15053)),
            (&["--dns-enabled=false"], true, None),
            (&["--dns-proxy-port=15153"], false, Some(15153)),
            (&["--dns-proxy-port=0", "--dns-coredns-port=15054"], false, Some(15054)),
            (&["--dns-proxy-port=15153", "--dns-enabled=false"], true, None),
            (&["--proxy-type=ingress", "--dns-enabled"], true, None),
        ] {
            assert_eq!(parse(args).expect("good arguments").dns_port(redirected), expected, "{args:?}");
        }
    }

    #[test]
    fn all_of_kuma_dps_flags_are_taken() {
        let arguments = parse(&[
            "--log-max-size=100",
            "--log-max-age=30",
            "--log-max-retained-files=1000",
            "--config-dir=/tmp",
            "--binary-path=envoy",
            "--dns-coredns-path=coredns",
            "--dns-coredns-config-template-path=",
            "--dns-server-config-dir=/tmp",
            "--dns-envoy-port=15054",
            "--dns-prometheus-port=19153",
            "--dns-enable-logging",
            "--metrics-cert-path=/c",
            "--metrics-key-path=/k",
            "--bind-outbounds",
            "--transparent-proxy",
            "--envoy-log-level=warn",
            "--concurrency=2",
            "--proxy-type=egress",
            "-v",
            "a=1,b=2",
            "-v",
            "c=x,y",
        ])
        .expect("good arguments");
        let flags: Vec<_> = arguments.ineffective().into_iter().map(|(flag, _)| flag).collect();
        assert_eq!(flags.len(), 10, "{flags:?}");
        assert_eq!(arguments.variables(), [("a", "1"), ("b", "2"), ("c", "x,y")]);
        assert_eq!(arguments.transparent_proxy(), Ok(Some(TransparentProxy::default())));
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
