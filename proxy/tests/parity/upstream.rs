//! Scripted upstreams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::case::{Fate, Protocol, Reply, ReplyEnd, Step, Upstream};
use crate::h2_server;
use crate::run::Run;
use crate::steps::{self, push_chunked};
use crate::wire::{End, Io, Kind, Message, PATIENCE, Wire};

/// Where an upstream listens.
pub enum Listening {
    /// A port.
    Tcp(TcpListener),
    /// A Unix socket.
    Pipe(UnixListener),
}

/// What it accepted.
enum Accepted {
    Tcp(TcpStream),
    Pipe(UnixStream),
}

impl Listening {
    async fn accept(&self) -> std::io::Result<Accepted> {
        match self {
            Listening::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream))
            }
            Listening::Pipe(listener) => Ok(Accepted::Pipe(listener.accept().await?.0)),
        }
    }
}

/// Accepts connections until it is aborted.
pub async fn serve(run: Arc<Run>, name: String, listener: Listening) {
    let mut connections = JoinSet::new();
    loop {
        let Ok(stream) = listener.accept().await else { return };
        let Some(seen) = run.seen.get(&name) else { return };
        let index = seen.borrow().connections;
        seen.send_modify(|seen| seen.connections += 1);
        let (run, name) = (run.clone(), name.clone());
        connections.spawn(async move {
            let fate = connection(&run, &name, index, stream).await;
            if let Some(seen) = run.seen.get(&name) {
                seen.send_modify(|seen| {
                    seen.ended.insert(index, fate);
                });
            }
        });
    }
}

async fn connection(run: &Arc<Run>, name: &str, index: usize, stream: Accepted) -> Fate {
    let Some(upstream) = run.case.upstreams.get(name) else { return Fate::Any };
    let path = format!("upstream.{name}");
    let io: Box<dyn Io> = match (&upstream.tls, stream) {
        (_, Accepted::Pipe(stream)) => Box::new(stream),
        (None, Accepted::Tcp(stream)) => Box::new(stream),
        (Some(tls), Accepted::Tcp(stream)) => {
            let config = match run.certs.server(tls) {
                Ok(config) => config,
                Err(error) => {
                    run.recorder.miss(format!("{path}: {error:#}"));
                    return Fate::Any;
                }
            };
            let path = format!("{path}.connection[{index}].tls");
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    let end = End::of(&error);
                    run.recorder.note(&format!("{path}.failed"), &format!("{end:?}"));
                    return end.fate();
                }
                Err(_) => return Fate::Open,
            };
            let session = stream.get_ref().1;
            let alpn = session.alpn_protocol().map_or("(none)".into(), String::from_utf8_lossy);
            let certificate = session.peer_certificates().and_then(|chain| chain.first());
            let certificate = certificate.map_or("(none)".into(), |c| run.certs.name_of(c));
            let facts = upstream.handshakes.iter().flatten().flat_map(BTreeMap::keys);
            for fact in facts.filter(|fact| *fact == "version" || *fact == "cipher").collect::<BTreeSet<_>>() {
                let value = match fact.as_str() {
                    "version" => format!("{:?}", session.protocol_version()),
                    _ => format!("{:?}", session.negotiated_cipher_suite().map(|suite| suite.suite())),
                };
                run.recorder.note(&format!("{path}.{fact}"), &value);
            }
            run.recorder.note(&format!("{path}.alpn"), &alpn);
            run.recorder.note(&format!("{path}.sni"), session.server_name().unwrap_or("(none)"));
            run.recorder.note(&format!("{path}.client-certificate"), &certificate);
            Box::new(stream)
        }
    };
    match upstream.protocol {
        Protocol::H1 => http1(run, name, upstream, index, Wire::new(io)).await,
        Protocol::H2 => h2_server::run(run, name, upstream, index, io).await,
        Protocol::Tcp => tcp(run, name, upstream, index, Wire::new(io)).await,
        Protocol::Refuse => Fate::Any,
    }
}

/// The reply to the n-th request.
pub fn reply_for(upstream: &Upstream, request: usize) -> Reply {
    upstream.replies.get(request).or(upstream.replies.last()).cloned().unwrap_or_default()
}

async fn tcp(run: &Arc<Run>, name: &str, upstream: &Upstream, index: usize, wire: Wire) -> Fate {
    let Some(seen) = run.seen.get(name) else { return Fate::Any };
    seen.send_modify(|seen| seen.started += 1);
    let fallback = [Step::Echo];
    let steps = if upstream.steps.is_empty() { &fallback[..] } else { &upstream.steps[..] };
    let wire = steps::run(run, wire, steps, &format!("upstream.{name}.connection[{index}]")).await;
    seen.send_modify(|seen| seen.done += 1);
    match wire {
        Some(mut wire) => wire.rest(PATIENCE).await.1.fate(),
        None => Fate::Any,
    }
}

async fn http1(run: &Arc<Run>, name: &str, upstream: &Upstream, index: usize, mut wire: Wire) -> Fate {
    let Some(seen) = run.seen.get(name) else { return Fate::Any };
    loop {
        let mut message = match wire.head(Kind::Request).await {
            Ok(message) => message,
            Err(end) => {
                if let End::Malformed(what) = &end {
                    run.recorder.note(&format!("upstream.{name}.connection[{index}].malformed"), what);
                    run.recorder.miss(format!("upstream {name}: {what}"));
                }
                return end.fate();
            }
        };
        let number = seen.borrow().started;
        seen.send_modify(|seen| seen.started += 1);
        let reply = reply_for(upstream, number);
        let path = format!("upstream.{name}.request[{number}]");
        let bytes = reply_bytes(&reply, &message);
        let early = reply.on_head;
        if early && !send(run, &mut wire, &bytes, &path).await {
            return Fate::Any;
        }
        wire.body(&mut message).await;
        note(run, &path, index, &message);
        seen.send_modify(|seen| seen.done += 1);
        if let Some(end) = message.truncated {
            return end.fate();
        }
        match reply.end {
            Some(ReplyEnd::CloseWithoutReply) => return Fate::Any,
            Some(ReplyEnd::ResetWithoutReply) => {
                wire.reset();
                return Fate::Any;
            }
            Some(ReplyEnd::Silence) => return wire.rest(PATIENCE).await.1.fate(),
            Some(ReplyEnd::Close) | None => {}
        }
        if !early && !send(run, &mut wire, &bytes, &path).await {
            return Fate::Any;
        }
        if reply.end == Some(ReplyEnd::Close) {
            let _ = wire.shutdown().await;
            return Fate::Any;
        }
        if reply.then_echo {
            let wire = steps::run(run, wire, &[Step::Echo], &path).await;
            return match wire {
                Some(mut wire) => wire.rest(PATIENCE).await.1.fate(),
                None => Fate::Any,
            };
        }
    }
}

/// Sends a reply. That the subject takes it is not this side's to judge: what it does with it shows at the client.
async fn send(run: &Run, wire: &mut Wire, bytes: &[u8], path: &str) -> bool {
    let sent = wire.send(bytes).await;
    if let Err(end) = &sent
        && *end == End::Silent
    {
        run.recorder.note(&format!("{path}.reply"), "not taken in time");
    }
    sent.is_ok()
}

fn note(run: &Run, path: &str, connection: usize, message: &Message) {
    run.recorder.note(&format!("{path}.connection"), &connection.to_string());
    run.recorder.note(&format!("{path}.line"), &message.start);
    run.recorder.note_headers(&format!("{path}.header"), &message.headers);
    run.recorder.note(&format!("{path}.framing"), message.framing);
    match &message.truncated {
        // How much of an aborted body came through depends on timing.
        Some(_) => run.recorder.note(&format!("{path}.truncated"), "yes"),
        None => run.recorder.note_body(&format!("{path}.body"), &message.body),
    }
    run.recorder.note_headers(&format!("{path}.trailer"), &message.trailers);
}

/// The bytes of a reply to an HTTP/1 request.
fn reply_bytes(reply: &Reply, request: &Message) -> Vec<u8> {
    if let Some(raw) = &reply.raw {
        return raw.clone().into_bytes();
    }
    let status = reply.status.unwrap_or(200);
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Other");
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for header in &reply.headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    let body = reply.body.as_ref().map(|body| body.bytes()).unwrap_or_default();
    let bodiless = status < 200 || status == 204 || status == 304;
    if reply.chunked {
        head.push_str("transfer-encoding: chunked\r\n\r\n");
    } else if bodiless {
        head.push_str("\r\n");
    } else {
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    }
    let mut bytes = head.into_bytes();
    if bodiless || request.start.starts_with("HEAD ") {
        return bytes;
    }
    if reply.chunked {
        push_chunked(&mut bytes, &body, &reply.trailers);
    } else {
        bytes.extend(body);
    }
    bytes
}
