//! Scripted clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::bootstrap::fill_text;
use crate::case::{ClientProtocol, ClientTls, Connection, Fate};
use crate::h2_client;
use crate::run::Run;
use crate::steps;
use crate::text::Pattern;
use crate::wire::{End, Io, PATIENCE, Wire};

/// Runs one client connection and notes what it saw under `client[index]`.
pub async fn run(run: &Arc<Run>, index: usize) {
    if let Some(connection) = run.case.connections.get(index) {
        play(run, connection, &format!("client[{index}]")).await;
    }
}

/// Plays a connection and notes what it saw under `path`.
pub async fn play(run: &Arc<Run>, connection: &Connection, path: &str) {
    if connection.refused {
        return until_refused(run, connection, path).await;
    }
    match open(run, connection, path).await {
        Err(error) => {
            run.recorder.note(&format!("{path}.failed"), "no connection");
            run.recorder.miss(format!("{path}: {error:#}"));
        }
        // The handshake failed: what that means for the case is in `fate` and `alert`.
        Ok(Err(end)) => finish(run, connection, path, Some(end.fate()), Some(end)),
        Ok(Ok(io)) => match connection.protocol {
            ClientProtocol::H1 => {
                let expected = connection.fate.unwrap_or(Fate::Open);
                let wire = steps::run(run, Wire::new(io), &connection.steps, path).await;
                let end = steps::fate(run, wire, expected, path).await;
                finish(run, connection, path, None, end);
            }
            ClientProtocol::H2 => h2_client::run(run, io, connection, path).await,
        },
    }
    for (fact, pattern) in &connection.handshake {
        run.recorder.expect(&format!("{path}.tls.{fact}"), Some(pattern));
    }
}

/// Notes the end of a connection whose fate is not noted yet, and the alert it ended with.
fn finish(run: &Run, connection: &Connection, path: &str, fate: Option<Fate>, end: Option<End>) {
    if let Some(fate) = fate {
        steps::note_fate(run, path, fate, connection.fate.unwrap_or(Fate::Open));
    }
    if let Some(End::Alert(alert)) = &end {
        run.recorder.note(&format!("{path}.alert"), alert);
    }
    if let Some(End::Malformed(what)) = &end {
        run.recorder.note(&format!("{path}.malformed"), what);
    }
    if let Some(alert) = &connection.alert {
        run.recorder.expect_text(&format!("{path}.alert"), alert);
    }
}

/// Connects until that is refused: a listener that is told to stop does so a moment later.
async fn until_refused(run: &Run, connection: &Connection, path: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = match connect(run, connection).await {
            Ok(_) if Instant::now() > deadline => "still accepted".to_owned(),
            Ok(stream) => {
                drop(stream);
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            Err(error) => {
                let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                kind.map_or_else(|| error.to_string(), |kind| kind.to_string())
            }
        };
        run.recorder.note(&format!("{path}.connect"), &outcome);
        run.recorder.expect_text(&format!("{path}.connect"), "connection refused");
        return;
    }
}

/// Connects and shakes hands. The inner error is the subject ending the connection in the handshake.
async fn open(run: &Arc<Run>, connection: &Connection, path: &str) -> Result<Result<Box<dyn Io>, End>> {
    if let Some(pipe) = &connection.pipe {
        return Ok(Ok(Box::new(UnixStream::connect(fill_text(pipe, &run.placeholders)?).await?)));
    }
    let stream = connect(run, connection).await?;
    match &connection.tls {
        None => Ok(Ok(Box::new(stream))),
        Some(tls) => shake_hands(run, stream, tls, &connection.handshake, path).await,
    }
}

async fn connect(run: &Run, connection: &Connection) -> Result<TcpStream> {
    let address = connection.destination.as_deref().unwrap_or("127.0.0.1");
    let port = fill_text(connection.port.as_deref().unwrap_or("${LISTENER}"), &run.placeholders)?;
    let target: SocketAddr = format!("{address}:{port}").parse().context("the connection's address")?;
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = &connection.source {
        socket.bind(format!("{source}:0").parse().context("the connection's source")?)?;
    }
    let stream = timeout(PATIENCE, socket.connect(target)).await.context("connecting takes too long")??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn shake_hands(
    run: &Arc<Run>,
    stream: TcpStream,
    tls: &ClientTls,
    asked: &BTreeMap<String, Pattern>,
    path: &str,
) -> Result<Result<Box<dyn Io>, End>> {
    let connector = TlsConnector::from(Arc::new(run.certs.client(tls)?));
    let name = tls.sni.clone().unwrap_or_else(|| "no-sni.invalid".to_owned());
    let stream = match timeout(PATIENCE, connector.connect(ServerName::try_from(name)?, stream)).await {
        Err(_) => return Ok(Err(End::Silent)),
        Ok(Err(error)) => return Ok(Err(End::of(&error))),
        Ok(Ok(stream)) => stream,
    };
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().map_or("(none)".into(), String::from_utf8_lossy);
    let cipher = session.negotiated_cipher_suite().map_or("(none)".to_owned(), |suite| format!("{:?}", suite.suite()));
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    run.recorder.note(&format!("{path}.tls.alpn"), &alpn);
    run.recorder.note(&format!("{path}.tls.version"), &format!("{:?}", session.protocol_version()));
    // Which cipher suite is taken is compared where a case asks for it.
    if asked.contains_key("cipher") {
        run.recorder.note(&format!("{path}.tls.cipher"), &cipher);
    }
    run.recorder
        .note(&format!("{path}.tls.certificate"), &certificate.map_or("(none)".into(), |c| run.certs.name_of(c)));
    Ok(Ok(Box::new(stream)))
}
