//! The case format, as serde types. `README.md` beside this file describes it for people who write cases.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_yaml_ng::Value;

pub use crate::script::{Admin, AdminCompare, Datagram, ExpectedResponse, Repeat, Request, Step, Update};
use crate::text::Pattern;

/// One case: a bootstrap, scripted upstreams, scripted clients and what must be observed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// One sentence: what the case shows.
    pub describe: String,
    /// What the bootstrap says.
    #[serde(default)]
    pub config: Config,
    /// Upstreams by name; `foo-bar` listens on `${FOO_BAR}`. Default: one HTTP/1 upstream `upstream` that answers `200 hello`.
    #[serde(default)]
    pub upstreams: BTreeMap<String, Upstream>,
    /// Client connections, opened one after the other.
    pub connections: Vec<Connection>,
    /// Stats that must reach this value, on both subjects. `absent` means no such stat.
    #[serde(default)]
    pub stats: BTreeMap<String, StatValue>,
    /// Lines of the access log `${LOG}`, all of them.
    pub access_log: Option<Vec<Pattern>>,
    /// shika-proxy refuses this configuration, by name, where Envoy serves it.
    pub refused: Option<Refusal>,
    /// Differences between the two subjects that are accepted.
    #[serde(default)]
    pub differences: Vec<Difference>,
    /// The case's own text, so that a value that the case spells is never taken for a generated one.
    #[serde(skip)]
    pub source: String,
}

/// A configuration that shika-proxy refuses: it must exit with an error that names what is refused.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The error.
    pub error: Pattern,
    /// Why it is refused, for a reader who runs Envoy.
    pub reason: String,
}

/// Expected value of a stat.
#[derive(Debug, Deserialize, Clone, PartialEq)]
#[serde(untagged)]
pub enum StatValue {
    /// A counter's or gauge's value.
    Number(u64),
    /// The word `absent`.
    Word(String),
}

/// The parts of a bootstrap that a case spells; the rest is the skeleton in `bootstrap.rs`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Routes of the one virtual host `*`. Default: everything to the cluster `upstream`.
    pub routes: Option<Value>,
    /// Merged into the HttpConnectionManager.
    pub http: Option<Value>,
    /// Access-log format: gives the connection manager (or every tcp_proxy that the case marks) a file log at `${LOG}`.
    pub access_log: Option<String>,
    /// Merged into the one default filter chain.
    pub filter_chain: Option<Value>,
    /// Replaces the filter chains; a chain without `filters` gets the connection manager, its keys `http` and `routes` are merged into that.
    pub filter_chains: Option<Vec<Value>>,
    /// Merged into the listener.
    pub listener: Option<Value>,
    /// Clusters by name, each merged onto a STATIC cluster whose endpoint is the upstream of the same name (or `upstream`).
    #[serde(default)]
    pub clusters: BTreeMap<String, Value>,
    /// Merged into the bootstrap as a whole, last.
    pub bootstrap: Option<Value>,
}

/// What an upstream speaks.
#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, byte for byte.
    #[default]
    H1,
    /// HTTP/2 through the `h2` crate.
    H2,
    /// Steps on a byte stream.
    Tcp,
    /// The port is taken but nothing listens: connects are refused.
    Refuse,
}

/// A scripted upstream.
#[derive(Debug, Deserialize, Default, Clone)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// It listens on a Unix socket, `${<NAME>}` is its path.
    #[serde(default)]
    pub pipe: bool,
    /// TLS in front of the protocol.
    pub tls: Option<ServerTls>,
    /// The n-th request that this upstream sees gets the n-th reply, the last one repeats.
    #[serde(default)]
    pub replies: Vec<Reply>,
    /// Steps of each connection (`tcp` only).
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Requests that it must have seen, in order; when absent they are compared between subjects only.
    pub expect: Option<Vec<ExpectedRequest>>,
    /// It is a unary gRPC service (`h2` only): requests are compared field by field, replies are given as messages.
    pub grpc: Option<Messages>,
    /// It is a control plane (`h2` only) that hands these resources out over ADS, each with its `@type`.
    #[serde(default)]
    pub xds: Vec<Value>,
    /// What it sees is neither compared nor checked; the case says why.
    #[serde(default)]
    pub unobserved: bool,
    /// How each of its connections must end.
    pub ends: Option<Vec<Fate>>,
    /// What its TLS handshakes must have shown, per connection.
    pub handshakes: Option<Vec<BTreeMap<String, Pattern>>>,
}

/// The messages of a gRPC service.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Messages {
    /// Full name of what it is asked.
    pub request: String,
    /// Full name of what it answers.
    pub response: String,
}

/// TLS of a scripted upstream.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Name of the certificate that it presents.
    pub cert: String,
    /// Protocols that it selects from.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Ask for a client certificate signed by this CA.
    pub client_ca: Option<String>,
    /// The only version that it speaks, `1.2` or `1.3`; absent: both.
    pub version: Option<String>,
}

/// A body: literal, or generated so that five megabytes need not be spelt.
#[derive(Debug, Deserialize, Clone)]
#[serde(untagged)]
pub enum Body {
    /// These bytes.
    Text(String),
    /// These bytes; not spelt by cases.
    #[serde(skip)]
    Bytes(Vec<u8>),
    /// So many bytes of a fixed pattern.
    Size {
        /// Bytes.
        size: usize,
    },
}

impl Body {
    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Body::Text(text) => text.clone().into_bytes(),
            Body::Bytes(bytes) => bytes.clone(),
            Body::Size { size } => (0..*size).map(|i| b'a' + (i.wrapping_mul(31) % 23) as u8).collect(),
        }
    }
}

/// What an HTTP upstream does with a request.
#[derive(Debug, Deserialize, Clone, Default)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Status; 200 when absent.
    pub status: Option<u16>,
    /// `name: value` lines.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Body; over HTTP/1 with content-length unless `chunked`.
    pub body: Option<Body>,
    /// The message of a gRPC service; it is followed by `grpc-status: 0`.
    pub message: Option<serde_json::Value>,
    /// Send the body chunked.
    #[serde(default)]
    pub chunked: bool,
    /// Trailers, `name: value`.
    #[serde(default)]
    pub trailers: Vec<String>,
    /// HTTP/1 only: these bytes instead of a built reply.
    pub raw: Option<String>,
    /// Reply when the head has come, do not wait for the body.
    #[serde(default)]
    pub on_head: bool,
    /// Read on after the reply as raw bytes and echo them (upgrades).
    #[serde(default)]
    pub then_echo: bool,
    /// After the reply, or instead of it when nothing else is given.
    pub end: Option<ReplyEnd>,
}

/// How an upstream ends a reply.
#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ReplyEnd {
    /// Close the connection after the reply.
    Close,
    /// Close without any reply.
    CloseWithoutReply,
    /// Reset the connection (or the HTTP/2 stream) without any reply.
    ResetWithoutReply,
    /// Never reply, keep the connection.
    Silence,
}

/// A request that an upstream must have seen.
#[derive(Debug, Deserialize, Clone, Default)]
#[serde(deny_unknown_fields)]
pub struct ExpectedRequest {
    /// `GET / HTTP/1.1`; for HTTP/2 `GET / HTTP/2`.
    pub line: Option<Pattern>,
    /// Headers by name; `null` means absent. Pseudo headers by their names.
    #[serde(default)]
    pub headers: BTreeMap<String, Option<Pattern>>,
    /// Body as the upstream decoded it.
    pub body: Option<Pattern>,
    /// Of a gRPC service: fields of the message by their path (`a.b[0].c`); `null` means absent.
    #[serde(default)]
    pub message: BTreeMap<String, Option<Pattern>>,
    /// `content-length`, `chunked`, `none`.
    pub framing: Option<String>,
    /// Trailers by name.
    #[serde(default)]
    pub trailers: BTreeMap<String, Option<Pattern>>,
}

/// How a connection stands at its end, seen from our side of it.
#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Still usable.
    Open,
    /// The peer closed it in order.
    Closed,
    /// The peer reset it.
    Reset,
    /// Not looked at.
    Any,
}

/// What a client connection speaks.
#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum ClientProtocol {
    /// HTTP/1 or raw bytes.
    #[default]
    H1,
    /// HTTP/2.
    H2,
}

/// A scripted client connection.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// What it speaks.
    #[serde(default)]
    pub protocol: ClientProtocol,
    /// TLS towards the listener.
    pub tls: Option<ClientTls>,
    /// Source address; default 127.0.0.1.
    pub source: Option<String>,
    /// Destination address; default 127.0.0.1.
    pub destination: Option<String>,
    /// Port; default `${LISTENER}`.
    pub port: Option<String>,
    /// Path of a Unix socket, instead of the addresses above.
    pub pipe: Option<String>,
    /// What it does, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// The connect must come to be refused; there are no steps then.
    #[serde(default)]
    pub refused: bool,
    /// How it must stand at the end; default open.
    pub fate: Option<Fate>,
    /// The TLS alert that must have come.
    pub alert: Option<String>,
    /// HTTP/2: error code of the GOAWAY that must have come.
    pub goaway: Option<String>,
    /// HTTP/2: settings that the peer must have announced, and that are compared.
    #[serde(default)]
    pub settings: BTreeMap<String, u32>,
    /// Facts of the TLS handshake that must hold: `alpn`, `version`, `certificate`.
    #[serde(default)]
    pub handshake: BTreeMap<String, Pattern>,
}

/// TLS of a scripted client.
#[derive(Debug, Deserialize, Clone, Default)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// Server name; absent: none sent.
    pub sni: Option<String>,
    /// Protocols offered.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Name of the client certificate.
    pub cert: Option<String>,
    /// The only version that it speaks, `1.2` or `1.3`; absent: both.
    pub version: Option<String>,
}

/// An accepted difference.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Path of the observation; `*` stands for any run of characters.
    pub at: String,
    /// Value on Envoy that the exception is for; absent: any.
    pub envoy: Option<String>,
    /// Value on shika-proxy that the exception is for; absent: any.
    pub shika: Option<String>,
    /// Why it is accepted.
    pub reason: String,
}

/// Reads one case.
pub fn read(path: &Path) -> Result<Case> {
    let source = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let parsed = serde_yaml_ng::Deserializer::from_str(&source);
    let mut case: Case = serde_yaml_ng::with::singleton_map_recursive::deserialize(parsed)
        .with_context(|| format!("in {}", path.display()))?;
    if case.upstreams.is_empty() {
        let hello = Reply { body: Some(Body::Text("hello".into())), ..Reply::default() };
        case.upstreams.insert("upstream".into(), Upstream { replies: vec![hello], ..Upstream::default() });
    }
    if case.connections.is_empty() {
        bail!("{}: a case without connections shows nothing", path.display());
    }
    check_differences(&case.differences).with_context(|| format!("in {}", path.display()))?;
    case.source = source;
    Ok(case)
}

/// Reads the differences that hold for every case.
pub fn read_differences(path: &Path) -> Result<Vec<Difference>> {
    let source = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let differences: Vec<Difference> =
        serde_yaml_ng::from_str(&source).with_context(|| format!("in {}", path.display()))?;
    check_differences(&differences).with_context(|| format!("in {}", path.display()))?;
    Ok(differences)
}

/// An exception without a reason is not an exception.
fn check_differences(differences: &[Difference]) -> Result<()> {
    for difference in differences {
        if difference.reason.trim().len() < 10 {
            bail!("difference at `{}` has no reason", difference.at);
        }
    }
    Ok(())
}
