//! Scripted HTTP/2 clients, and what both HTTP/2 sides share.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::{Duration, timeout};

use crate::bootstrap::fill_text;
use crate::case::{Connection, ExpectedResponse, Fate, Request, Step};
use crate::control;
use crate::frames::{Frames, Watched, setting_name};
use crate::run::Run;
use crate::steps::{self, check_response, header_lines};
use crate::wire::{Io, PATIENCE, header_line};

/// How long an open connection is watched for a close that must not come.
const STAYS_OPEN: Duration = Duration::from_millis(150);

/// Runs the steps of an HTTP/2 connection.
pub async fn run(run: &Arc<Run>, io: Box<dyn Io>, connection: &Connection, path: &str) {
    let (io, frames) = Watched::new(io, false);
    let handshake = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .enable_push(false)
        .handshake(io);
    let Ok(Ok((mut sender, driver))) = timeout(PATIENCE, handshake).await else {
        run.recorder.note(&format!("{path}.failed"), "no HTTP/2 connection");
        run.recorder.miss(format!("{path}: no HTTP/2 connection"));
        return;
    };
    let mut driver = tokio::spawn(driver);
    for (index, step) in connection.steps.iter().enumerate() {
        let path = format!("{path}.step[{index}]");
        let result = match step {
            Step::Request(request) => send_request(run, &mut sender, request, connection.tls.is_some(), &path).await,
            Step::UntilUpstreamSaw(name) => {
                run.until_seen(name, &path).await;
                Ok(())
            }
            Step::Admin(admin) => {
                steps::call_admin(run, admin, &path).await;
                Ok(())
            }
            Step::UntilStats(stats) => {
                steps::until_stats(run, stats, &path).await;
                Ok(())
            }
            Step::Xds(update) => {
                control::update(run, update, &path).await;
                Ok(())
            }
            Step::Close => {
                driver.abort();
                break;
            }
            Step::Response(_)
            | Step::Send(_)
            | Step::Recv(_)
            | Step::Eof
            | Step::Echo
            | Step::Shutdown
            | Step::Reset
            | Step::Beside(_)
            | Step::Repeat(_)
            | Step::Datagram(_) => Err(anyhow::anyhow!("not a step of an HTTP/2 connection")),
        };
        if let Err(error) = result {
            run.recorder.note(&format!("{path}.failed"), &format!("{error:#}"));
            run.recorder.miss(format!("{path}: {error:#}"));
            break;
        }
    }
    finish(run, connection, &frames, &mut driver, path).await;
    // The connection lives until here: dropping the last sender would close it.
    drop(sender);
    driver.abort();
}

async fn finish<T>(
    run: &Run,
    connection: &Connection,
    frames: &Mutex<Frames>,
    driver: &mut tokio::task::JoinHandle<T>,
    path: &str,
) {
    let expected = connection.fate.unwrap_or(Fate::Open);
    if expected != Fate::Any {
        let wait = if expected == Fate::Open { STAYS_OPEN } else { PATIENCE };
        let ended = timeout(wait, driver).await.is_ok();
        let seen = match (ended, &frames.lock().end) {
            (_, Some(end)) => end.fate(),
            // We closed first, because of a GOAWAY or a fault of the peer.
            (true, None) => Fate::Closed,
            (false, None) => Fate::Open,
        };
        steps::note_fate(run, path, seen, expected);
    }
    let frames = frames.lock();
    if let Some(last) = frames.goaway.last() {
        run.recorder.note(&format!("{path}.goaway"), &format!("{:?}", Reason::from(*last)));
    }
    if let Some(code) = &connection.goaway {
        run.recorder.expect_text(&format!("{path}.goaway"), code);
    } else {
        run.recorder.expect(&format!("{path}.goaway"), None);
    }
    for (name, wanted) in &connection.settings {
        let value = frames.settings.iter().find(|(id, _)| setting_name(**id) == *name);
        let path = format!("{path}.settings.{name}");
        run.recorder.note(&path, &value.map_or("(default)".to_owned(), |(_, value)| value.to_string()));
        run.recorder.expect_text(&path, &wanted.to_string());
    }
}

async fn send_request(
    run: &Run,
    sender: &mut SendRequest<Bytes>,
    request: &Request,
    tls: bool,
    path: &str,
) -> Result<()> {
    let line = request.line.as_deref().unwrap_or("GET /");
    let (method, target) = line.split_once(' ').context("a request line is `METHOD target`")?;
    let host = fill_text(request.host.as_deref().unwrap_or("parity.example"), &run.placeholders)?;
    let scheme = if tls { "https" } else { "http" };
    let protocol = request.headers.iter().find_map(|line| line.strip_prefix(":protocol:")).map(str::trim);
    // A plain CONNECT has only an authority (RFC 9113 section 8.5), an extended one all that other requests have (RFC 8441 section 4).
    let plain = method == "CONNECT" && protocol.is_none();
    let uri = if plain { target.to_owned() } else { format!("{scheme}://{host}{target}") };
    let mut builder = http::Request::builder().method(method).uri(uri).version(http::Version::HTTP_2);
    if let Some(protocol) = protocol {
        builder = builder.extension(h2::ext::Protocol::from(protocol));
    }
    for line in request.headers.iter().filter(|line| !line.starts_with(":protocol:")) {
        let (name, value) = header_line(line);
        builder = builder.header(header_name(&name)?, fill_text(&value, &run.placeholders)?);
    }
    let body = request.body.as_ref().map(|body| body.bytes());
    let bodiless = body.is_none() && request.trailers.is_empty() && request.abort.is_none() && method != "CONNECT";
    let ready = std::future::poll_fn(|cx| sender.poll_ready(cx));
    timeout(PATIENCE, ready).await.context("no stream in time")??;
    let (response, mut stream) = sender.send_request(builder.body(())?, bodiless)?;
    if let Some(code) = &request.abort {
        send_body(&mut stream, body.unwrap_or_default(), None, false).await?;
        run.until_seen("upstream", path).await;
        stream.send_reset(reason(code)?);
        return Ok(());
    }
    let sending = async {
        if !bodiless && !plain {
            let trailers = (!request.trailers.is_empty()).then(|| header_map(&request.trailers)).transpose()?;
            // A peer that answers early and resets makes this fail; what it did shows on the read side.
            let _ = send_body(&mut stream, body.unwrap_or_default(), trailers, true).await;
        }
        anyhow::Ok(())
    };
    let Some(expected) = &request.expect else { return sending.await };
    let receiving = timeout(PATIENCE, receive(run, response, expected, path));
    let (sent, received) = tokio::join!(sending, receiving);
    sent?;
    received.context("no response in time")?
}

async fn receive(
    run: &Run,
    mut response: h2::client::ResponseFuture,
    expected: &ExpectedResponse,
    path: &str,
) -> Result<()> {
    let recorder = &run.recorder;
    let mut interim = Vec::new();
    while let Some(Ok(head)) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
        recorder.note(&format!("{path}.interim"), head.status().as_str());
        recorder.note_headers(&format!("{path}.interim.header"), &pairs(head.headers()));
        interim.push(head.status().as_u16());
    }
    let response = match response.await {
        Ok(response) => response,
        Err(error) => return failed(run, expected, path, &error),
    };
    let (head, mut stream) = response.into_parts();
    recorder.note(&format!("{path}.status-line"), head.status.as_str());
    recorder.note_headers(&format!("{path}.header"), &pairs(&head.headers));
    recorder.note(&format!("{path}.end-of-stream-on-head"), &stream.is_end_stream().to_string());
    let (body, trailers, error) = read_body(&mut stream).await;
    recorder.note_headers(&format!("{path}.trailer"), &pairs(&trailers));
    match error {
        None => recorder.note_body(&format!("{path}.body"), &body),
        Some(error) => failed(run, expected, path, &error)?,
    }
    check_response(run, path, Some(head.status.as_u16()), &interim, expected);
    Ok(())
}

/// A stream that fails is an observation; it is in order only where the case expects it.
fn failed(run: &Run, expected: &ExpectedResponse, path: &str, error: &h2::Error) -> Result<()> {
    let code = error.reason().map_or_else(|| "(connection)".to_owned(), |reason| format!("{reason:?}"));
    run.recorder.note(&format!("{path}.reset"), &code);
    match &expected.reset {
        Some(wanted) => run.recorder.expect_text(&format!("{path}.reset"), wanted),
        None if expected.none => {}
        None => run.recorder.miss(format!("{path}: the stream failed: {error}")),
    }
    Ok(())
}

/// Reads a body to its end, with trailers; an error leaves what came before it.
pub async fn read_body(stream: &mut RecvStream) -> (Vec<u8>, HeaderMap, Option<h2::Error>) {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        match data {
            Ok(bytes) => {
                body.extend(&bytes);
                let _ = stream.flow_control().release_capacity(bytes.len());
            }
            Err(error) => return (body, HeaderMap::new(), Some(error)),
        }
    }
    match stream.trailers().await {
        Ok(trailers) => (body, trailers.unwrap_or_default(), None),
        Err(error) => (body, HeaderMap::new(), Some(error)),
    }
}

/// Sends a body within the peer's flow control, then trailers or end of stream if `end`.
pub async fn send_body(
    stream: &mut SendStream<Bytes>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    end: bool,
) -> Result<()> {
    let mut body = Bytes::from(body);
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(64 * 1024));
        let capacity = timeout(PATIENCE, std::future::poll_fn(|cx| stream.poll_capacity(cx)));
        let granted = capacity.await.context("no window in time")?.context("the stream is gone")??;
        let piece = body.split_to(granted.min(body.len()));
        let last = body.is_empty() && trailers.is_none() && end;
        stream.send_data(piece, last)?;
        if last {
            return Ok(());
        }
    }
    match trailers {
        Some(trailers) => stream.send_trailers(trailers)?,
        None if end => stream.send_data(Bytes::new(), true)?,
        None => {}
    }
    Ok(())
}

/// Headers as text.
pub fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// From the case's `name: value` lines.
pub fn header_map(lines: &[String]) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in header_lines(lines) {
        map.append(header_name(&name)?, http::HeaderValue::try_from(value)?);
    }
    Ok(map)
}

/// A name as it goes over HTTP/2, with a quote in it where a case has one.
fn header_name(name: &str) -> Result<http::HeaderName> {
    http::HeaderName::from_lowercase(name.as_bytes()).with_context(|| format!("`{name}` is no name over HTTP/2"))
}

/// A reset code by its name in RFC 9113 section 7.
pub fn reason(name: &str) -> Result<Reason> {
    (0..=13)
        .map(Reason::from)
        .find(|reason| format!("{reason:?}") == name)
        .with_context(|| format!("no error code `{name}`"))
}
