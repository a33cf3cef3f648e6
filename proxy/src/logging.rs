//! The process's own log, in Envoy's line format and under Envoy's component names.
//!
//! Source: Envoy documentation, "Application logging"; spdlog's pattern syntax for `--log-format`.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use tracing::{Event, Subscriber, field::Visit, level_filters::LevelFilter};
use tracing_subscriber::{
    Registry,
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::options::Level;

/// Envoy's default log line.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// Envoy's loggers that have lines here, and the modules behind each. The longest matching module decides.
const COMPONENTS: &[(&str, &[&str])] = &[
    ("admin", &["shika_proxy::admin"]),
    ("config", &["shika_xds"]),
    ("connection", &["shika_data::connection", "shika_data::tls", "rustls", "tokio_rustls"]),
    ("conn_handler", &["shika_data::worker", "shika_data::listen"]),
    ("dns", &["shika_proxy::dns", "shika_proxy::resolve", "hickory_resolver", "hickory_net", "hickory_proto"]),
    ("file", &["shika_proxy::export"]),
    ("filter", &["shika_data::tcp"]),
    ("grpc", &["shika_xds::client", "tonic"]),
    ("http", &["shika_data::http", "hyper"]),
    ("http2", &["h2"]),
    ("init", &["shika_xds::warm"]),
    ("main", &["shika_proxy"]),
    ("pool", &["shika_data::upstream::pool"]),
    ("rbac", &["shika_data::denial", "shika_data::model::rbac"]),
    ("router", &["shika_data::http::route", "shika_data::http::request"]),
    ("secret", &["shika_xds::compile::secret"]),
    ("upstream", &["shika_data::upstream"]),
];

/// Envoy's loggers of which Shika writes nothing; their levels are accepted and shown.
const SILENT: &[&str] = &[
    "a2a",
    "ai_protocol_manager",
    "alternate_protocols_cache",
    "aws",
    "assert",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "compression",
    "credential_injector",
    "decompression",
    "dubbo",
    "dynamic_modules",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "forward_proxy",
    "geolocation",
    "golang",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "hystrix",
    "io",
    "ip_tagging",
    "json_rpc",
    "jwt",
    "kafka",
    "key_value_store",
    "local_rate_limit",
    "lua",
    "matcher",
    "mcp",
    "misc",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rds",
    "redis",
    "rocketmq",
    "runtime",
    "sse",
    "stats",
    "stats_sinks",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "wasm",
    "websocket",
];

/// Why a level could not be changed. The texts are those of Envoy's `/logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No such component.
    #[error("unknown logger name")]
    Name,
    /// No such level.
    #[error("unknown logger level")]
    Level,
}

/// The levels now, and the way to change them while running.
#[derive(Clone)]
pub struct Logging {
    levels: Arc<Mutex<Vec<(&'static str, Level)>>>,
    filter: Option<reload::Handle<Targets, Registry>>,
    file: Output,
}

impl Logging {
    /// Starts logging for the process. `path` of `None` is standard error.
    ///
    /// # Errors
    /// The file cannot be opened, a component is unknown, or logging was started before.
    pub fn start(
        level: Level,
        components: &str,
        path: Option<&Path>,
        format: &str,
        escaped: bool,
    ) -> Result<Logging, String> {
        let mut levels: Vec<_> =
            COMPONENTS.iter().map(|(name, _)| *name).chain(SILENT.iter().copied()).map(|name| (name, level)).collect();
        levels.sort_unstable_by_key(|(name, _)| *name);
        change_paths(&mut levels, components)
            .map_err(|error| format!("error: --component-log-level {components}: {error}"))?;
        let file = Output::open(path).map_err(|error| {
            format!("error: --log-path {}: {error}", path.map(|path| path.display().to_string()).unwrap_or_default())
        })?;
        let (filter, handle) = reload::Layer::new(targets(&levels));
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Line { pattern: format.to_owned(), escaped })
            .with_writer(file.clone());
        tracing_subscriber::registry()
            .with(filter)
            .with(layer)
            .try_init()
            .map_err(|error| format!("error: logging cannot be started: {error}"))?;
        Ok(Logging { levels: Arc::new(Mutex::new(levels)), filter: Some(handle), file })
    }

    /// Every component with its level, by name.
    pub fn levels(&self) -> Vec<(&'static str, Level)> {
        self.levels.lock().clone()
    }

    /// Changes all components.
    ///
    /// # Errors
    /// The level is unknown.
    pub fn change_all(&self, level: &str) -> Result<(), LevelError> {
        let level = Level::parse(level).ok_or(LevelError::Level)?;
        self.change(|levels| {
            levels.iter_mut().for_each(|(_, now)| *now = level);
            Ok(())
        })
    }

    /// Changes the components of a list `name:level,name:level`; nothing if one of them is bad.
    ///
    /// # Errors
    /// A name or level is unknown.
    pub fn change_components(&self, list: &str) -> Result<(), LevelError> {
        self.change(|levels| change_paths(levels, list))
    }

    fn change(
        &self,
        f: impl FnOnce(&mut Vec<(&'static str, Level)>) -> Result<(), LevelError>,
    ) -> Result<(), LevelError> {
        let mut levels = self.levels.lock();
        let mut next = levels.clone();
        f(&mut next)?;
        *levels = next;
        if let Some(filter) = &self.filter {
            // The only failure is a subscriber that is gone, and with it every reader of the level.
            let _ = filter.reload(targets(&levels));
        }
        Ok(())
    }

    /// Opens the log file again, after it was moved away.
    pub fn reopen(&self) {
        if let Err(error) = self.file.reopen() {
            tracing::error!(%error, "the log file cannot be opened again; logging goes on to the old one");
        }
    }
}

/// One change of a list, or all of it: `upstream:debug,config:trace`.
fn change_paths(levels: &mut Vec<(&'static str, Level)>, list: &str) -> Result<(), LevelError> {
    let mut next = levels.clone();
    for item in list.split(',').filter(|item| !item.is_empty()) {
        let (name, level) = item.split_once(':').ok_or(LevelError::Level)?;
        let level = Level::parse(level).ok_or(LevelError::Level)?;
        next.iter_mut().find(|(known, _)| *known == name).ok_or(LevelError::Name)?.1 = level;
    }
    *levels = next;
    Ok(())
}

fn targets(levels: &[(&'static str, Level)]) -> Targets {
    let level = |name: &str| levels.iter().find(|(known, _)| *known == name).map_or(Level::Info, |(_, level)| *level);
    // What belongs to no component is `misc`.
    let mut targets = Targets::new().with_default(filter(level("misc")));
    for (name, modules) in COMPONENTS {
        for module in *modules {
            targets = targets.with_target(*module, filter(level(name)));
        }
    }
    targets
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warning => LevelFilter::WARN,
        Level::Error | Level::Critical => LevelFilter::ERROR,
        Level::Off => LevelFilter::OFF,
    }
}

/// The component of a module, for `%n`.
fn component(module: &str) -> &'static str {
    let within =
        |prefix: &str| module.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    COMPONENTS
        .iter()
        .flat_map(|(name, modules)| modules.iter().map(move |prefix| (*name, *prefix)))
        .filter(|(_, prefix)| within(prefix))
        .max_by_key(|(_, prefix)| prefix.len())
        .map_or("misc", |(name, _)| name)
}

/// Where lines go: standard error, or a file that can be opened again.
#[derive(Clone)]
struct Output {
    path: Option<PathBuf>,
    file: Option<Arc<Mutex<File>>>,
}

impl Output {
    fn open(path: Option<&Path>) -> io::Result<Output> {
        let file = path.map(append).transpose()?.map(|file| Arc::new(Mutex::new(file)));
        Ok(Output { path: path.map(Path::to_owned), file })
    }

    fn reopen(&self) -> io::Result<()> {
        if let (Some(path), Some(file)) = (&self.path, &self.file) {
            *file.lock() = append(path)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Sink;

    fn make_writer(&'a self) -> Sink {
        Sink(self.file.clone())
    }
}

struct Sink(Option<Arc<Mutex<File>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(file) => file.lock().write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one event by an spdlog pattern.
struct Line {
    pattern: String,
    escaped: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut message = Message::default();
        event.record(&mut message);
        let text = message.text();
        let (level, short) = match *metadata.level() {
            tracing::Level::TRACE => ("trace", 'T'),
            tracing::Level::DEBUG => ("debug", 'D'),
            tracing::Level::INFO => ("info", 'I'),
            tracing::Level::WARN => ("warning", 'W'),
            tracing::Level::ERROR => ("error", 'E'),
        };
        let now = chrono::Local::now();
        let mut pattern = self.pattern.chars();
        while let Some(c) = pattern.next() {
            if c != '%' {
                writer.write_char(c)?;
                continue;
            }
            match pattern.next() {
                Some('v') if self.escaped => write!(writer, "{}", text.escape_debug())?,
                Some('v') => writer.write_str(&text)?,
                // Envoy's own: a message without line breaks, and one that is JSON text.
                Some('_') => writer.write_str(&text.replace('\n', "\\n"))?,
                Some('j') => {
                    let quoted = serde_json::Value::from(text.as_str()).to_string();
                    writer.write_str(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default())?;
                }
                Some('l') => writer.write_str(level)?,
                Some('L') => writer.write_char(short)?,
                Some('n') => writer.write_str(component(metadata.target()))?,
                Some('g') => writer.write_str(metadata.file().unwrap_or_default())?,
                Some('s') => {
                    writer.write_str(metadata.file().and_then(|file| file.rsplit('/').next()).unwrap_or_default())?
                }
                Some('#') => write!(writer, "{}", metadata.line().unwrap_or_default())?,
                Some('t') => write!(writer, "{}", thread_id())?,
                Some('P') => write!(writer, "{}", std::process::id())?,
                Some('e') => write!(writer, "{}", now.format("%3f"))?,
                Some('f') => write!(writer, "{}", now.format("%6f"))?,
                Some('F') => write!(writer, "{}", now.format("%9f"))?,
                Some('E') => write!(writer, "{}", now.timestamp())?,
                Some('z') => write!(writer, "{}", now.format("%:z"))?,
                Some(c @ ('Y' | 'm' | 'd' | 'H' | 'M' | 'S' | 'T' | 'y' | 'a' | 'A' | 'b' | 'B' | 'I' | 'p' | 'D')) => {
                    let mut buffer = String::with_capacity(2);
                    buffer.push('%');
                    buffer.push(c);
                    write!(writer, "{}", now.format(&buffer))?;
                }
                Some('%') => writer.write_char('%')?,
                Some(other) => write!(writer, "%{other}")?,
                None => writer.write_char('%')?,
            }
        }
        writer.write_char('\n')
    }
}

/// An event's message, with its other fields behind it.
#[derive(Default)]
struct Message {
    message: String,
    fields: String,
}

impl Message {
    fn text(mut self) -> String {
        self.message.push_str(&self.fields);
        self.message
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

/// The kernel's id of this thread, as Envoy prints it.
fn thread_id() -> u32 {
    thread_local! {
        static ID: u32 = std::fs::read_link("/proc/thread-self")
            .ok()
            .and_then(|link| link.file_name()?.to_str()?.parse().ok())
            .unwrap_or_else(std::process::id);
    }
    ID.with(|id| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_module_names_the_component() {
        for (module, name) in [
            ("shika_proxy", "main"),
            ("shika_proxy::app", "main"),
            ("shika_proxy::admin::stats", "admin"),
            ("shika_data::upstream::pick", "upstream"),
            ("shika_data::upstream::pool", "pool"),
            ("shika_xds::client", "grpc"),
            ("shika_xds::compile::route", "config"),
            ("hyperion", "misc"),
        ] {
            assert_eq!(component(module), name, "{module}");
        }
    }

    #[test]
    fn a_bad_list_changes_nothing() {
        let mut levels = vec![("http", Level::Info), ("upstream", Level::Info)];
        assert_eq!(change_paths(&mut levels, "http:debug,nope:debug"), Err(LevelError::Name));
        assert_eq!(change_paths(&mut levels, "http:loud"), Err(LevelError::Level));
        assert_eq!(levels, [("http", Level::Info), ("upstream", Level::Info)]);
        assert_eq!(change_paths(&mut levels, "http:debug,upstream:off"), Ok(()));
        assert_eq!(levels, [("http", Level::Debug), ("upstream", Level::Off)]);
    }

    #[test]
    fn no_component_is_listed_twice() {
        let mut names: Vec<_> = COMPONENTS.iter().map(|(name, _)| *name).chain(SILENT.iter().copied()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
