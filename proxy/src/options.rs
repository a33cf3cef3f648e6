//! Envoy's command line.
//!
//! Source: Envoy documentation, "Command line options", and `envoy --help` of 1.40. Every flag is known: it is honoured, or [`Options::ineffective`]
//! says why it has no effect here.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

use crate::version;

/// Flags of `shika-proxy` without a subcommand.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "shika-proxy",
    about = "A native data plane that runs Envoy v3 bootstraps.",
    after_help = "Subcommand:\n  run   runs a sidecar of a Kuma-compatible control plane; see `shika-proxy run --help`",
    disable_version_flag = true
)]
pub struct Options {
    /// Path to the bootstrap: YAML or JSON by its extension, otherwise YAML
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Inline YAML bootstrap, merged over the file: set fields replace, lists are appended
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// Number of worker threads [default: the cores that cgroup and affinity allow]
    #[arg(long)]
    pub concurrency: Option<u32>,
    /// Take the number of workers from the cpuset; the default already does, together with the cgroup's quota
    #[arg(long)]
    pub cpuset_threads: bool,
    /// Log level; `critical` is the same as `error`
    #[arg(short = 'l', long, value_enum, ignore_case = true, default_value = "info")]
    pub log_level: Level,
    /// Log levels of components, such as `upstream:debug,config:trace`
    #[arg(long, value_name = "NAME:LEVEL,...", default_value = "")]
    pub component_log_level: String,
    /// Log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// Log line in spdlog syntax: %Y %m %d %H %M %S %T %e %f %z %t %P %l %L %n %g %# %v %j %_ %%
    #[arg(long, default_value = crate::logging::DEFAULT_FORMAT)]
    pub log_format: String,
    /// Escape control characters in messages
    #[arg(long)]
    pub log_format_escaped: bool,
    /// Base id of Envoy's shared memory
    #[arg(long, default_value_t = 0)]
    pub base_id: u32,
    /// Let the server choose a base id
    #[arg(long)]
    pub use_dynamic_base_id: bool,
    /// File to which the base id is written
    #[arg(long, value_name = "FILE")]
    pub base_id_path: Option<PathBuf>,
    /// Hot restart is never used
    #[arg(long)]
    pub disable_hot_restart: bool,
    /// Hot restart epoch; without hot restart only reported
    #[arg(long, default_value_t = 0)]
    pub restart_epoch: u32,
    /// Upper bound of a drain, in seconds
    #[arg(long, default_value_t = 600)]
    pub drain_time_s: u64,
    /// How connections are told to close during a drain
    #[arg(long, value_enum, ignore_case = true, default_value = "gradual")]
    pub drain_strategy: DrainStrategy,
    /// Hot restart parent's life, in seconds
    #[arg(long, default_value_t = 900)]
    pub parent_shutdown_time_s: u64,
    /// Overrides node.cluster where the bootstrap has none
    #[arg(long, default_value = "")]
    pub service_cluster: String,
    /// Overrides node.id where the bootstrap has none
    #[arg(long, default_value = "")]
    pub service_node: String,
    /// Overrides node.locality.zone where the bootstrap has none
    #[arg(long, default_value = "")]
    pub service_zone: String,
    /// File to which the admin interface's address is written
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// `validate` checks all that serving would and exits; `init_only` exits once initialised
    #[arg(long, value_enum, ignore_case = true, default_value = "serve")]
    pub mode: Mode,
    /// Print the version and exit
    #[arg(long)]
    pub version: bool,
    /// Ignore fields of the bootstrap that the schema does not have; they are counted and logged
    #[arg(long, alias = "allow-unknown-fields")]
    pub allow_unknown_static_fields: bool,
    /// Refuse dynamic resources with fields that the schema does not have
    #[arg(long, conflicts_with = "ignore_unknown_dynamic_fields")]
    pub reject_unknown_dynamic_fields: bool,
    /// Do not log unknown fields of dynamic resources
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// Access logs are written out at least this often, in milliseconds [default: 1000; Envoy's is 10000]
    #[arg(long, value_name = "MS")]
    pub file_flush_interval_msec: Option<u64>,
    /// Access logs are written out once this much is waiting, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 64)]
    pub file_flush_min_size_kb: u32,
    /// Print Envoy's hot restart compatibility version and exit
    #[arg(long)]
    pub hot_restart_version: bool,
    /// With a restart epoch: start normally when there is no parent
    #[arg(long)]
    pub skip_hot_restart_on_no_parent: bool,
    /// Start with all statistics at zero
    #[arg(long)]
    pub skip_hot_restart_parent_stats: bool,
    /// A tag for all statistics, `name:value`; may be repeated
    #[arg(long, value_name = "NAME:VALUE")]
    pub stats_tag: Vec<String>,
    /// Enable core dumps
    #[arg(long)]
    pub enable_core_dump: bool,
    /// Enable mutex contention tracing
    #[arg(long)]
    pub enable_mutex_tracing: bool,
    /// File-level log control
    #[arg(long)]
    pub enable_fine_grain_logging: bool,
    /// Do not log uses of deprecated fields
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    /// One log entry per stack trace
    #[arg(long)]
    pub log_stacktrace_single_entry: bool,
    /// Hot restart socket
    #[arg(long, default_value = "@envoy_domain_socket")]
    pub socket_path: String,
    /// Mode of the hot restart socket
    #[arg(long, default_value = "600")]
    pub socket_mode: String,
    /// IP version that `node.locality` reports as local address
    #[arg(long, value_parser = ["v4", "v6"], default_value = "v4")]
    pub local_address_ip_version: String,
    /// Comma-separated list of extensions to disable
    #[arg(long, default_value = "")]
    pub disable_extensions: String,
    /// Arguments after `--` are ignored
    #[arg(last = true, hide = true)]
    pub ignored: Vec<String>,
}

/// Envoy's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Everything.
    Trace,
    /// For debugging.
    Debug,
    /// Normal events.
    Info,
    /// Something is odd.
    #[value(alias = "warn")]
    Warning,
    /// Something failed.
    Error,
    /// As `error`: Shika has no separate critical level.
    Critical,
    /// Nothing.
    Off,
}

impl Level {
    /// The name that Envoy prints.
    pub fn name(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Critical => "critical",
            Level::Off => "off",
        }
    }

    /// The level with this name, in lower case.
    pub fn parse(name: &str) -> Option<Level> {
        Level::from_str(name, false).ok()
    }
}

/// Envoy's `--drain-strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    /// Connections are told to close with a probability that grows over the drain time.
    Gradual,
    /// Every response of a draining connection tells it to close.
    Immediate,
}

/// Envoy's `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Serve traffic.
    Serve,
    /// Check the configuration and exit.
    Validate,
    /// Initialise and exit.
    #[value(name = "init_only")]
    InitOnly,
}

impl Options {
    /// What clap cannot check: combinations of flags.
    ///
    /// # Errors
    /// A message that names the flag and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.restart_epoch > 0 && !self.disable_hot_restart && !self.skip_hot_restart_on_no_parent {
            return Err(format!(
                "--restart-epoch {}: hot restart is not supported, there is no parent to take over from; start a new process, drain the old one with \
                 SIGTERM, and pass --disable-hot-restart",
                self.restart_epoch
            ));
        }
        if self.use_dynamic_base_id && self.restart_epoch > 0 {
            return Err("cannot use --restart-epoch=<n> with --use-dynamic-base-id".into());
        }
        if self.mode == Mode::Serve && self.config_path.is_none() && self.config_yaml.is_none() {
            return Err(
                "At least one of --config-path or --config-yaml or Options::configProto() should be non-empty".into()
            );
        }
        for tag in &self.stats_tag {
            let Some((name, value)) = tag.split_once(':') else {
                return Err(format!("error: misformatted stats-tag '{tag}': expected name:value"));
            };
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("error: misformatted stats-tag '{tag}' contains invalid char in '{name}'"));
            }
            if value.contains('.') {
                return Err(format!("error: misformatted stats-tag '{tag}' contains invalid char in '{value}'"));
            }
        }
        Ok(())
    }

    /// Flags that were given but change nothing, each with its reason. They are logged at the start.
    pub fn ineffective(&self) -> Vec<(&'static str, &'static str)> {
        const HOT_RESTART: &str = "hot restart is not supported";
        let mut flags = Vec::new();
        let mut note = |given: bool, flag, why| {
            if given {
                flags.push((flag, why));
            }
        };
        note(self.base_id != 0, "--base-id", "there is no shared memory that could clash");
        note(self.use_dynamic_base_id, "--use-dynamic-base-id", "there is no shared memory that could clash");
        note(self.parent_shutdown_time_s != 900, "--parent-shutdown-time-s", HOT_RESTART);
        note(self.skip_hot_restart_on_no_parent, "--skip-hot-restart-on-no-parent", HOT_RESTART);
        note(self.skip_hot_restart_parent_stats, "--skip-hot-restart-parent-stats", HOT_RESTART);
        note(self.socket_path != "@envoy_domain_socket", "--socket-path", HOT_RESTART);
        note(self.socket_mode != "600", "--socket-mode", HOT_RESTART);
        note(
            self.enable_core_dump,
            "--enable-core-dump",
            "the limits of the process decide; set `ulimit -c` where it is started",
        );
        note(self.enable_mutex_tracing, "--enable-mutex-tracing", "the data path takes no locks that could be traced");
        note(self.enable_fine_grain_logging, "--enable-fine-grain-logging", "use --component-log-level");
        note(
            self.skip_deprecated_logs,
            "--skip-deprecated-logs",
            "uses of deprecated fields are not logged one by one",
        );
        note(self.log_stacktrace_single_entry, "--log-stacktrace-single-entry", "stack traces are not logged");
        note(
            !self.disable_extensions.is_empty(),
            "--disable-extensions",
            "an extension that is not configured does nothing",
        );
        note(
            self.local_address_ip_version != "v4",
            "--local-address-ip-version",
            "the local address is not sent anywhere",
        );
        note(self.cpuset_threads && self.concurrency.is_some(), "--cpuset-threads", "--concurrency is given and wins");
        flags
    }

    /// Number of workers, at least 1.
    pub fn workers(&self) -> usize {
        match self.concurrency {
            Some(count) => (count as usize).clamp(1, 1024),
            None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }

    /// Upper bound of a drain.
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.drain_time_s)
    }

    /// How often waiting log lines are written out.
    pub fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.file_flush_interval_msec.unwrap_or(1000).max(1))
    }

    /// The `command_line_options` of `/server_info`, in Envoy's form and order.
    pub fn json(&self) -> serde_json::Value {
        let path = |path: &Option<PathBuf>| path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        serde_json::json!({
            "base_id": self.base_id.to_string(),
            "concurrency": self.workers(),
            "config_path": path(&self.config_path),
            "config_yaml": self.config_yaml.as_deref().unwrap_or_default(),
            "allow_unknown_static_fields": self.allow_unknown_static_fields,
            "admin_address_path": path(&self.admin_address_path),
            "local_address_ip_version": self.local_address_ip_version,
            "log_level": self.log_level.name(),
            "component_log_level": self.component_log_level,
            "log_format": self.log_format,
            "log_path": path(&self.log_path),
            "service_cluster": self.service_cluster,
            "service_node": self.service_node,
            "service_zone": self.service_zone,
            "file_flush_interval": format!("{}s", self.flush_interval().as_secs_f64()),
            "drain_time": format!("{}s", self.drain_time_s),
            "parent_shutdown_time": format!("{}s", self.parent_shutdown_time_s),
            "mode": match self.mode { Mode::Serve => "Serve", Mode::Validate => "Validate", Mode::InitOnly => "InitOnly" },
            "disable_hot_restart": self.disable_hot_restart,
            "enable_mutex_tracing": self.enable_mutex_tracing,
            "restart_epoch": self.restart_epoch,
            "cpuset_threads": self.cpuset_threads,
            "reject_unknown_dynamic_fields": self.reject_unknown_dynamic_fields,
            "log_format_escaped": self.log_format_escaped,
            "disabled_extensions": self.disable_extensions.split(',').filter(|name| !name.is_empty()).collect::<Vec<_>>(),
            "ignore_unknown_dynamic_fields": self.ignore_unknown_dynamic_fields,
            "use_dynamic_base_id": self.use_dynamic_base_id,
            "base_id_path": path(&self.base_id_path),
            "drain_strategy": match self.drain_strategy { DrainStrategy::Gradual => "Gradual", DrainStrategy::Immediate => "Immediate" },
            "enable_fine_grain_logging": self.enable_fine_grain_logging,
            "socket_path": self.socket_path,
            "socket_mode": u32::from_str_radix(&self.socket_mode, 8).unwrap_or(0o600),
            "enable_core_dump": self.enable_core_dump,
            "stats_tag": self.stats_tag,
            "skip_hot_restart_on_no_parent": self.skip_hot_restart_on_no_parent,
            "skip_hot_restart_parent_stats": self.skip_hot_restart_parent_stats,
            "skip_deprecated_logs": self.skip_deprecated_logs,
            "file_flush_min_size": self.file_flush_min_size_kb,
            "log_stacktrace_single_entry": self.log_stacktrace_single_entry,
        })
    }

    /// Envoy's name for the build, with Shika's own beside it.
    pub fn version_text() -> String {
        version::text("shika-proxy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let options =
            Options::try_parse_from(std::iter::once(&"shika-proxy").chain(args)).map_err(|error| error.to_string())?;
        options.check().map(|()| options)
    }

    #[test]
    fn kuma_dp_arguments() {
        let options = parse(&[
            "--config-path",
            "/tmp/bootstrap.yaml",
            "--drain-time-s",
            "30",
            "--drain-strategy",
            "immediate",
            "--disable-hot-restart",
            "--log-level",
            "info",
            "--cpuset-threads",
        ])
        .expect("kuma-dp's arguments");
        assert_eq!(options.drain_time(), Duration::from_secs(30));
        assert_eq!(options.drain_strategy, DrainStrategy::Immediate);
        assert!(options.ineffective().is_empty(), "{:?}", options.ineffective());
    }

    #[test]
    fn equals_sign_short_forms_and_level_names() {
        for (args, level) in [
            (&["-c", "x", "-l", "warn"][..], Level::Warning),
            (&["--config-path=x", "--log-level=critical"], Level::Critical),
            (&["-c", "x", "-l", "off", "--", "--what", "ever"], Level::Off),
        ] {
            assert_eq!(parse(args).expect("good arguments").log_level, level);
        }
    }

    #[test]
    fn refusals_name_the_flag() {
        for (args, needle) in [
            (&["--nonsense"][..], "--nonsense"),
            (&["-c", "x", "--log-level", "loud"], "loud"),
            (&["-c", "x", "--mode", "dance"], "dance"),
            (&["-c", "x", "--concurrency", "many"], "--concurrency"),
            (&["-c", "x", "--restart-epoch", "1"], "--restart-epoch"),
            (&[], "--config-path"),
            (&["-c", "x", "--stats-tag", "nocolon"], "nocolon"),
            (
                &["-c", "x", "--reject-unknown-dynamic-fields", "--ignore-unknown-dynamic-fields"],
                "--ignore-unknown-dynamic-fields",
            ),
        ] {
            let error = parse(args).expect_err("a refusal");
            assert!(error.contains(needle), "{args:?}: {error}");
        }
    }

    #[test]
    fn flags_without_effect_are_listed() {
        let options =
            parse(&["-c", "x", "--base-id", "3", "--enable-core-dump", "--cpuset-threads", "--concurrency", "0"])
                .expect("good arguments");
        let flags: Vec<_> = options.ineffective().into_iter().map(|(flag, _)| flag).collect();
        assert_eq!(flags, ["--base-id", "--enable-core-dump", "--cpuset-threads"]);
        assert_eq!(options.workers(), 1);
    }
}
