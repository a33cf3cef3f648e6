//! Steps of a scripted connection over HTTP/1 or raw bytes, for clients and for TCP upstreams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::bootstrap::fill_text;
use crate::case::{Admin, AdminCompare, Datagram, ExpectedResponse, Fate, Repeat, Request, StatValue, Step};
use crate::client;
use crate::control;
use crate::run::{self, Run};
use crate::subject;
use crate::wire::{End, Message, PATIENCE, Wire, header_line};

/// How long an open connection is watched for a close that must not come. Too short can only miss a fault, never invent one.
const STAYS_OPEN: Duration = Duration::from_millis(150);

/// Runs the steps; gives the connection back unless a step ended it.
pub async fn run(run: &Arc<Run>, mut wire: Wire, steps: &[Step], path: &str) -> Option<Wire> {
    for (index, step) in steps.iter().enumerate() {
        let path = format!("{path}.step[{index}]");
        let result = match step {
            Step::Request(request) => send_request(run, &mut wire, request, &path).await,
            Step::Response(expected) => match wire.responses(false).await {
                Ok(messages) => {
                    note_responses(run, &path, &messages, expected);
                    Ok(())
                }
                Err(end) => no_response(run, &path, expected, end),
            },
            Step::Send(body) => {
                let bytes = fill_text(&String::from_utf8_lossy(&body.bytes()), &run.placeholders).unwrap_or_default();
                wire.send(bytes.as_bytes()).await
            }
            Step::Recv(body) => receive(run, &mut wire, &body.bytes(), &path).await,
            Step::Eof => {
                let (rest, end) = wire.rest(PATIENCE).await;
                run.recorder.note_body(&format!("{path}.rest"), &rest);
                run.recorder.note(&format!("{path}.end"), &format!("{end:?}"));
                run.recorder.expect_text(&format!("{path}.rest"), "");
                run.recorder.expect_text(&format!("{path}.end"), "Closed");
                Ok(())
            }
            Step::Echo => echo(&mut wire).await,
            Step::Shutdown => wire.shutdown().await,
            Step::Close => return None,
            Step::Reset => {
                wire.reset();
                return None;
            }
            Step::UntilUpstreamSaw(name) => {
                run.until_seen(name, &path).await;
                Ok(())
            }
            Step::Admin(admin) => {
                call_admin(run, admin, &path).await;
                Ok(())
            }
            Step::Beside(connection) => {
                Box::pin(client::play(run, connection, &format!("{path}.beside"))).await;
                Ok(())
            }
            Step::Datagram(datagram) => {
                if let Err(error) = exchange(run, datagram, &path).await {
                    run.recorder.miss(format!("{path}: {error:#}"));
                }
                Ok(())
            }
            Step::UntilStats(stats) => {
                until_stats(run, stats, &path).await;
                Ok(())
            }
            Step::Repeat(repeat) => self::repeat(run, &mut wire, repeat).await,
            Step::Xds(update) => {
                control::update(run, update, &path).await;
                Ok(())
            }
        };
        if let Err(end) = result {
            run.recorder.note(&format!("{path}.failed"), &format!("{end:?}"));
            run.recorder.miss(format!("{path}: {end:?}"));
            return Some(wire);
        }
    }
    Some(wire)
}

/// Waits for stats in the middle of a connection.
pub async fn until_stats(run: &Run, stats: &BTreeMap<String, StatValue>, path: &str) {
    if let Err(error) = run::check_stats(run, stats, path).await {
        run.recorder.miss(format!("{path}: {error:#}"));
    }
}

async fn repeat(run: &Run, wire: &mut Wire, repeat: &Repeat) -> Result<(), End> {
    let bytes = format!("{} HTTP/1.1\r\nhost: parity.example\r\n\r\n", repeat.line);
    let bytes = fill_text(&bytes, &run.placeholders).unwrap_or_default();
    for _ in 0..repeat.times {
        wire.exchange(bytes.as_bytes(), false).await?;
    }
    Ok(())
}

/// How a connection stands after its steps.
pub async fn fate(run: &Run, wire: Option<Wire>, expected: Fate, path: &str) -> Option<End> {
    let mut wire = wire?;
    if expected == Fate::Any {
        return None;
    }
    let wait = if expected == Fate::Open { STAYS_OPEN } else { PATIENCE };
    let (rest, end) = wire.rest(wait).await;
    if !rest.is_empty() {
        run.recorder.note_body(&format!("{path}.unread"), &rest);
        run.recorder.miss(format!("{path}: bytes that nobody asked for: {:?}", String::from_utf8_lossy(&rest)));
    }
    note_fate(run, path, end.fate(), expected);
    Some(end)
}

/// Notes and checks a fate.
pub fn note_fate(run: &Run, path: &str, seen: Fate, expected: Fate) {
    if expected == Fate::Any {
        return;
    }
    run.recorder.note(&format!("{path}.fate"), &format!("{seen:?}"));
    run.recorder.expect_text(&format!("{path}.fate"), &format!("{expected:?}"));
}

async fn send_request(run: &Run, wire: &mut Wire, request: &Request, path: &str) -> Result<(), End> {
    let bytes = request_bytes(run, request);
    let Some(expected) = &request.expect else {
        return wire.send(&bytes).await;
    };
    let head = request.line.as_deref().is_some_and(|line| line.starts_with("HEAD "));
    match wire.exchange(&bytes, head).await {
        Ok(messages) => {
            note_responses(run, path, &messages, expected);
            Ok(())
        }
        Err(end) => no_response(run, path, expected, end),
    }
}

fn no_response(run: &Run, path: &str, expected: &ExpectedResponse, end: End) -> Result<(), End> {
    if expected.none && end != End::Silent {
        run.recorder.note(&format!("{path}.none"), &format!("{end:?}"));
        return Ok(());
    }
    Err(end)
}

/// The bytes of a request as the case spells it.
fn request_bytes(run: &Run, request: &Request) -> Vec<u8> {
    let fill = |text: &str| fill_text(text, &run.placeholders).unwrap_or_else(|_| text.to_owned());
    let body = request.body.as_ref().map(|body| body.bytes());
    if let Some(raw) = &request.raw {
        let mut bytes = fill(raw).into_bytes();
        bytes.extend(body.unwrap_or_default());
        return bytes;
    }
    let line = request.line.as_deref().unwrap_or("GET /");
    let host = request.host.as_deref().unwrap_or("parity.example");
    let mut head = format!("{} HTTP/1.1\r\nhost: {}\r\n", fill(line), fill(host));
    for header in &request.headers {
        head.push_str(&fill(header));
        head.push_str("\r\n");
    }
    let mut bytes;
    match body {
        Some(body) if request.chunked => {
            head.push_str("transfer-encoding: chunked\r\n\r\n");
            bytes = head.into_bytes();
            push_chunked(&mut bytes, &body, &request.trailers);
        }
        Some(body) => {
            head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
            bytes = head.into_bytes();
            bytes.extend(body);
        }
        None => {
            head.push_str("\r\n");
            bytes = head.into_bytes();
        }
    }
    bytes
}

/// Writes a body in two chunks (so that a boundary is crossed) with its trailers.
pub fn push_chunked(bytes: &mut Vec<u8>, body: &[u8], trailers: &[String]) {
    let (first, second) = body.split_at(body.len() / 2);
    for chunk in [first, second] {
        if !chunk.is_empty() {
            bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
    }
    bytes.extend(b"0\r\n");
    for trailer in trailers {
        bytes.extend(trailer.as_bytes());
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"\r\n");
}

/// Notes interim responses and the final one, and checks what was expected.
fn note_responses(run: &Run, path: &str, messages: &[Message], expected: &ExpectedResponse) {
    let Some((last, interim)) = messages.split_last() else { return };
    for message in interim {
        run.recorder.note(&format!("{path}.interim"), &message.start);
        run.recorder.note_headers(&format!("{path}.interim.header"), &message.headers);
    }
    let recorder = &run.recorder;
    recorder.note(&format!("{path}.status-line"), &last.start);
    recorder.note_headers(&format!("{path}.header"), &last.headers);
    recorder.note(&format!("{path}.framing"), last.framing);
    let ended = last.truncated.as_ref().map(End::fate);
    match ended {
        None => recorder.note_body(&format!("{path}.body"), &last.body),
        Some(fate) => recorder.note(&format!("{path}.truncated"), &format!("{fate:?}")),
    }
    recorder.note_headers(&format!("{path}.trailer"), &last.trailers);
    if ended != expected.truncated {
        recorder.miss(format!("{path}: expected the end inside the body {:?}, saw {ended:?}", expected.truncated));
    }
    let interim: Vec<u16> = interim.iter().filter_map(Message::status).collect();
    check_response(run, path, last.status(), &interim, expected);
}

/// Checks what was noted of a response.
pub fn check_response(run: &Run, path: &str, status: Option<u16>, interim: &[u16], expected: &ExpectedResponse) {
    let recorder = &run.recorder;
    if expected.none {
        recorder.miss(format!("{path}: expected no response, saw {status:?}"));
    }
    if let Some(wanted) = expected.status
        && status != Some(wanted)
    {
        recorder.miss(format!("{path}: expected status {wanted}, saw {status:?}"));
    }
    for (name, pattern) in &expected.headers {
        recorder.expect(&format!("{path}.header.{name}"), pattern.as_ref());
    }
    for (name, pattern) in &expected.trailers {
        recorder.expect(&format!("{path}.trailer.{name}"), pattern.as_ref());
    }
    if let Some(pattern) = &expected.body {
        recorder.expect(&format!("{path}.body"), Some(pattern));
    }
    if let Some(wanted) = &expected.interim
        && wanted != interim
    {
        recorder.miss(format!("{path}: expected interim {wanted:?}, saw {interim:?}"));
    }
}

async fn receive(run: &Run, wire: &mut Wire, expected: &[u8], path: &str) -> Result<(), End> {
    match wire.exact(expected.len()).await {
        Ok(bytes) => {
            run.recorder.note_body(&format!("{path}.received"), &bytes);
            if bytes != expected {
                run.recorder.miss(format!("{path}: other bytes than expected"));
            }
            Ok(())
        }
        Err((bytes, end)) => {
            run.recorder.note_body(&format!("{path}.received"), &bytes);
            Err(end)
        }
    }
}

async fn echo(wire: &mut Wire) -> Result<(), End> {
    loop {
        match wire.some().await {
            Ok(bytes) => wire.send(&bytes).await?,
            Err(End::Closed) => return wire.shutdown().await,
            Err(end) => return Err(end),
        }
    }
}

/// Sends datagrams and notes the first that comes back.
async fn exchange(run: &Run, datagram: &Datagram, path: &str) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(fill_text("127.0.0.1:${LISTENER}", &run.placeholders)?).await?;
    for digits in &datagram.send {
        let bytes = digits.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
        socket.send(&bytes.collect::<anyhow::Result<Vec<u8>>>()?).await?;
    }
    let mut buffer = vec![0; 65_536];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await??;
    let answer: String = buffer[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    run.recorder.note(&format!("{path}.datagram"), &answer);
    if let Some(pattern) = &datagram.recv {
        run.recorder.expect(&format!("{path}.datagram"), Some(pattern));
    }
    Ok(())
}

/// Calls the admin server, notes what the case compares, checks what it expects. Keys that the case expects are waited for: a stat may
/// be raised after the last byte has reached the client.
pub async fn call_admin(run: &Run, admin: &Admin, path: &str) {
    let recorder = &run.recorder;
    let deadline = Instant::now() + PATIENCE;
    let (answer, keys) = loop {
        match subject::admin(&run.admin, &admin.request).await {
            Ok(answer) => {
                let keys = admin_keys(admin.compare, &answer.body);
                let missing = admin.keys.iter().any(|key| !keys.contains(key));
                if !missing || Instant::now() > deadline {
                    break (answer, keys);
                }
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => {
                recorder.note(&format!("{path}.failed"), "no answer");
                recorder.miss(format!("{path}: {error:#}"));
                return;
            }
        }
    };
    recorder.note(&format!("{path}.status-line"), &answer.start);
    let wanted = admin.status.unwrap_or(200);
    if answer.status() != Some(wanted) {
        recorder.miss(format!("{path}: {}: expected status {wanted}, saw {:?}", admin.request, answer.start));
    }
    let text = String::from_utf8_lossy(&answer.body);
    if let Some(pattern) = &admin.body
        && !pattern.matches(&text)
    {
        recorder.miss(format!("{path}: {}: expected {pattern}, saw {text:?}", admin.request));
    }
    if admin.compare == AdminCompare::Status {
        return;
    }
    recorder.note(&format!("{path}.content-type"), answer.header("content-type").unwrap_or("(none)"));
    if admin.compare == AdminCompare::Body {
        recorder.note_body(&format!("{path}.body"), &answer.body);
    }
    let only = admin.only.as_deref().map(regex::Regex::new).transpose().unwrap_or_else(|error| {
        recorder.miss(format!("{path}: {error}"));
        None
    });
    for key in keys.iter().filter(|key| only.as_ref().is_none_or(|only| only.is_match(key))) {
        recorder.note_present(&format!("{path}.key.{key}"));
    }
    for key in admin.keys.iter().filter(|key| !keys.contains(*key)) {
        recorder.miss(format!("{path}: {}: no `{key}`", admin.request));
    }
}

/// The names in an admin answer, by the way it is compared. An answer that is no JSON has none.
fn admin_keys(compare: AdminCompare, body: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(body);
    match compare {
        AdminCompare::Body | AdminCompare::Status => BTreeSet::new(),
        AdminCompare::JsonKeys => {
            let mut keys = Vec::new();
            match serde_json::from_slice(body) {
                Ok(json) => json_keys(&json, String::new(), &mut keys),
                Err(_) => keys.push("(not JSON)".to_owned()),
            }
            keys.into_iter().collect()
        }
        AdminCompare::LineKeys => text.lines().map(line_key).collect(),
        AdminCompare::PrometheusKeys => {
            text.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
        }
    }
}

/// `a::b::1` → `a::b`, `name: 1` → `name`.
fn line_key(line: &str) -> String {
    match (line.rsplit_once("::"), line.split_once(": ")) {
        (Some((key, _)), _) | (None, Some((key, _))) => key.to_owned(),
        (None, None) => line.to_owned(),
    }
}

/// Paths of all fields; list items share the path of the list.
fn json_keys(value: &serde_json::Value, path: String, keys: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                json_keys(value, path, keys);
            }
        }
        serde_json::Value::Array(items) => {
            for item in items {
                json_keys(item, format!("{path}[]"), keys);
            }
        }
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => keys.push(path),
    }
}

/// Splits the case's `name: value` lines.
pub fn header_lines(lines: &[String]) -> Vec<(String, String)> {
    lines.iter().map(|line| header_line(line)).collect()
}
