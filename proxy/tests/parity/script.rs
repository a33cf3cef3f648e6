//! Steps of a scripted connection, as serde types.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml_ng::Value;

use crate::case::{Body, Connection, Fate, StatValue};
use crate::text::Pattern;

/// One step of a connection.
#[derive(Debug, Deserialize, Clone)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Send a request; read its response when `expect` is given.
    Request(Request),
    /// Read one HTTP/1 response.
    Response(ExpectedResponse),
    /// Send these bytes.
    Send(Body),
    /// Read exactly these bytes.
    Recv(Body),
    /// Read until the peer's end of stream; nothing may come before it.
    Eof,
    /// Send back what comes until the peer's end of stream, then half-close.
    Echo,
    /// Half-close our side.
    Shutdown,
    /// Close.
    Close,
    /// Close with a reset.
    Reset,
    /// Wait until the named upstream has seen a request head (`tcp`: a connection).
    UntilUpstreamSaw(String),
    /// Call the admin server.
    Admin(Admin),
    /// Wait until stats have these values.
    UntilStats(BTreeMap<String, StatValue>),
    /// Send one request many times (HTTP/1) and take whatever comes; nothing of it is compared.
    Repeat(Repeat),
    /// Change what a control plane serves, and wait until the subject has taken or refused it.
    Xds(Update),
    /// Send datagrams to the listener's port, and compare what comes back first.
    Datagram(Datagram),
    /// Play another connection to its end while this one stays open.
    Beside(Connection),
}

/// Datagrams and the first answer, in hexadecimal digits.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Datagram {
    /// What is sent. A second one behind one that may be left unanswered says by its answer that it was.
    pub send: Vec<String>,
    /// What must come back first.
    pub recv: Option<Pattern>,
}

/// One request, many times.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// `GET /path`.
    pub line: String,
    /// How often.
    pub times: usize,
}

/// A change of what a control plane serves.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Name of the upstream that is the control plane.
    pub upstream: String,
    /// Resources to add, or to put in place of those of the same type and name.
    #[serde(default)]
    pub set: Vec<Value>,
    /// Names of resources to remove, of whatever type.
    #[serde(default)]
    pub remove: Vec<String>,
    /// The subject must refuse the update.
    #[serde(default)]
    pub refused: bool,
}

/// A request.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// `GET /path`; the version is added.
    pub line: Option<String>,
    /// Host or :authority; default `parity.example`.
    pub host: Option<String>,
    /// `name: value` lines.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Body.
    pub body: Option<Body>,
    /// Send the body chunked (HTTP/1).
    #[serde(default)]
    pub chunked: bool,
    /// Trailers.
    #[serde(default)]
    pub trailers: Vec<String>,
    /// HTTP/1: these bytes as they are, instead of all the above.
    pub raw: Option<String>,
    /// HTTP/2: after head and body (the stream left open), reset the stream with this code.
    pub abort: Option<String>,
    /// What must come back; absent: do not read.
    pub expect: Option<ExpectedResponse>,
}

/// What must come back.
#[derive(Debug, Deserialize, Clone, Default)]
#[serde(deny_unknown_fields)]
pub struct ExpectedResponse {
    /// Status.
    pub status: Option<u16>,
    /// Headers by name; `null` means absent.
    #[serde(default)]
    pub headers: BTreeMap<String, Option<Pattern>>,
    /// Body.
    pub body: Option<Pattern>,
    /// Trailers by name.
    #[serde(default)]
    pub trailers: BTreeMap<String, Option<Pattern>>,
    /// Interim statuses that came before.
    pub interim: Option<Vec<u16>>,
    /// The connection ends so inside the body; how much of the body came before depends on timing and is not compared.
    pub truncated: Option<Fate>,
    /// HTTP/2: the stream is reset with this code.
    pub reset: Option<String>,
    /// No response comes: the connection ends first.
    #[serde(default)]
    pub none: bool,
}

/// How an admin answer is compared.
#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
pub enum AdminCompare {
    /// Status, content type, and body.
    #[default]
    Body,
    /// Status, content type, and the paths of all JSON fields.
    JsonKeys,
    /// Status, content type, and the name at the start of each line: before the last `::` (`/clusters`) or the first `: ` (`/stats`).
    LineKeys,
    /// Status, content type, and name with labels of each line of the Prometheus text format.
    PrometheusKeys,
    /// Status only.
    Status,
}

/// A call to the admin server.
#[derive(Debug, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// `GET /ready`.
    pub request: String,
    /// What is compared.
    #[serde(default)]
    pub compare: AdminCompare,
    /// Only keys that match this expression are compared.
    pub only: Option<String>,
    /// Status that must come; default 200.
    pub status: Option<u16>,
    /// Body that must come.
    pub body: Option<Pattern>,
    /// Keys that must be among those seen (`json_keys`, `line_keys`).
    #[serde(default)]
    pub keys: Vec<String>,
}
