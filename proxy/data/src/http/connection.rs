//! An HTTP connection: which protocol it speaks, how long it may live, how it ends.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::{
    exchange::Exchange,
    guard::Refused,
    life::{Active, Answered, DRAIN_IDLE, End, Life},
    request,
    wire::{LINGER, Wire},
};
use crate::{
    connection::Connection,
    drain::Phase,
    error::ResponseFlag,
    io::DownstreamIo,
    model::{
        http::{Codec, HttpConnectionManager},
        listener::{FilterChain, Terminal},
    },
    worker::{Tasks, with_pools},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for what a client says first, of which the protocol is told. Most first requests fit, so that they are read at once.
const FIRST_BYTES: usize = 2048;

/// Serves a connection until it ends.
pub async fn serve(io: DownstreamIo, connection: Arc<Connection>, chain: Arc<FilterChain>) {
    let Terminal::Http(manager) = &chain.terminal else { return };
    let manager = manager.clone();
    let _counted = Counted::new(&manager, connection.tls.is_some());
    let life = Arc::new(Life::default());
    // Boxed, as is all that is over before the connection rests or that only some connections need: the rest of it stays for as long as the connection.
    let Some((mut io, http2)) = Box::pin(choose_codec(io, &manager, &connection, &life)).await else {
        match life.peer_closed() {
            true => manager.stats.downstream_cx_destroy_remote().inc(),
            false => manager.stats.downstream_cx_destroy_local().inc(),
        }
        return;
    };
    let (served, active) = if http2 {
        let _counted = CountedCodec::new(&manager, true);
        Box::pin(serve_http2(io, &connection, chain, &manager, &life)).await
    } else {
        let _counted = CountedCodec::new(&manager, false);
        loop {
            let ended = Box::pin(serve_requests(io, &connection, chain.clone(), &manager, &life)).await;
            let Some(stream) = life.wakes() else { break ended };
            match rest(stream, &connection, &manager, &life).await {
                Some(awake) => io = awake,
                None => break (Ok(()), false),
            }
        }
    };
    with_pools(|pools| pools.forget_client(connection.id));
    // Streams that are dropped from now on were not reset one by one.
    connection.gone.store(true, Relaxed);
    let stats = &manager.stats;
    let refused = life.refused();
    if let Some(refused) = refused {
        record_refusal(refused, &connection, &manager);
    }
    match served {
        Ok(()) => {
            let upgrade = connection.upgrade.lock().take();
            if let Some(upgrade) = upgrade {
                let _ = upgrade.await;
            }
            match life.peer_closed() {
                true => stats.downstream_cx_destroy_remote().inc(),
                false => stats.downstream_cx_destroy_local().inc(),
            }
        }
        Err(_) if refused.is_some() => stats.downstream_cx_destroy_local().inc(),
        Err(error) => {
            if error.is_parse() {
                stats.downstream_cx_protocol_error().inc();
            }
            stats.downstream_cx_destroy_remote().inc();
            if active || error.is_user() {
                stats.downstream_cx_destroy_active_rq().inc();
                stats.downstream_cx_destroy_remote_active_rq().inc();
            }
            tracing::debug!(%error, "an HTTP connection ended with an error");
        }
    }
}

/// Counts and logs a request that was refused before it was one.
fn record_refusal(refused: Refused, connection: &Arc<Connection>, manager: &Arc<HttpConnectionManager>) {
    let stats = &manager.stats;
    match refused {
        Refused::Malformed | Refused::Coding => stats.downstream_cx_protocol_error().inc(),
        Refused::TooLarge => stats.downstream_rq_too_large().inc(),
        Refused::Fragment => stats.downstream_rq_failed_path_normalization().inc(),
        Refused::Late => stats.downstream_rq_header_timeout().inc(),
        Refused::Version => {}
    }
    let mut exchange = Exchange::new(connection.clone(), manager.clone(), Version::HTTP_11);
    exchange.status = refused.status().as_u16();
    exchange.details = Some(refused.details().into());
    exchange.bytes_sent = refused.body().len() as u64;
    if refused.is_protocol_error() {
        exchange.flags.set(ResponseFlag::DownstreamProtocolError);
    }
    exchange.complete();
}

/// Waits for the next request of a connection that rests; `None` if it has ended. What this holds is most of what such a connection costs.
async fn rest(
    mut stream: Box<DownstreamIo>,
    connection: &Arc<Connection>,
    manager: &Arc<HttpConnectionManager>,
    life: &Arc<Life>,
) -> Option<Wire> {
    let _counted = Resting::new();
    let mut seen = Vec::new();
    if more(&mut stream, &mut seen, connection, manager, life).await {
        return Some(Wire::new(*stream, seen, manager.stats.clone(), life));
    }
    Box::pin(part(*stream)).await;
    None
}

/// Reads behind `seen` what comes on a connection that serves nothing; false if it is to end.
async fn more(
    io: &mut DownstreamIo,
    seen: &mut Vec<u8>,
    connection: &Connection,
    manager: &HttpConnectionManager,
    life: &Life,
) -> bool {
    loop {
        let phase = connection.drain.phase();
        if phase == Phase::Closing {
            return false;
        }
        let next = match life.next_end(connection, manager, Instant::now()) {
            Ok(next) => next,
            Err(end) => {
                end.count(manager);
                return false;
            }
        };
        tokio::select! {
            biased;
            read = poll_fn(|cx| poll_bytes(io, seen, cx)) => {
                let came = read.is_ok_and(|n| n > 0);
                if !came {
                    life.peer_closes();
                }
                return came;
            }
            () = tokio::time::sleep_until(next.into()) => {}
            () = connection.drain.after(phase) => {}
        }
    }
}

/// Ends a connection that serves nothing.
async fn part(mut io: DownstreamIo) {
    let _ = tokio::time::timeout(LINGER, io.shutdown()).await;
}

/// How it ended, and whether a request was being served then; or it has left its stream behind, to rest.
async fn serve_requests(
    mut io: Wire,
    connection: &Arc<Connection>,
    chain: Arc<FilterChain>,
    manager: &Arc<HttpConnectionManager>,
    life: &Arc<Life>,
) -> (hyper::Result<()>, bool) {
    io.speak_http1(manager, life);
    let mut builder = conn::http1::Builder::new();
    // The time for the head runs from its first byte, as in Envoy, so hyper's, which runs from the end of the request before, is off.
    builder.timer(TokioTimer::new()).half_close(false).header_read_timeout(None);
    // hyper's buffer holds the head, so it bounds it, above the guard's exact bound; it must also hold a body's chunk.
    builder.max_buf_size((manager.max_request_headers as usize).max(8192) + 8192);
    if manager.max_header_count > 100 {
        builder.max_headers(manager.max_header_count as usize);
    }
    let service = service_fn(|request: Request<Incoming>| {
        let active = Active::new(life.clone());
        let number = life.requests();
        let last = manager.max_requests_per_connection.is_some_and(|most| number >= most);
        let (connection, chain) = (connection.clone(), chain.clone());
        async move {
            let mut response = request::serve(request, connection, chain).await?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                // What hyper has of the refused bytes would be the beginning of the tunnel.
                if life.refused().is_some() {
                    return Err(request::Unanswered("its connection was refused before it could leave HTTP"));
                }
                active.leaves_http();
            } else if last {
                End::Used.count(manager);
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            } else if life.is_leaving(number) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, request::Unanswered>(response.map(|body| Answered::new(body, active)))
        }
    });
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let mut ending = false;
    loop {
        let end = tokio::select! {
            biased;
            result = serving.as_mut() => return (result, life.is_active()),
            // Before what looks at the drain, which this wakes.
            () = poll_fn(|cx| connection.drain.poll(cx, Phase::Closing)) => return (Ok(()), false),
            end = life.end(connection, manager, true), if !ending => end,
            () = life.overstays(manager.timeouts.ending()), if ending => End::Stuck,
            () = life.late(manager.timeouts.request_headers) => {
                life.refuse(Refused::Late);
                continue;
            }
        };
        end.count(manager);
        match end {
            End::Rest => life.rest(),
            End::Stuck => {}
            End::Idle | End::Old | End::Used | End::Drain => {
                ending = true;
                serving.as_mut().graceful_shutdown();
                continue;
            }
        }
        return (Ok(()), false);
    }
}

/// How it ended, and whether a request was being served then.
async fn serve_http2(
    io: Wire,
    connection: &Arc<Connection>,
    chain: Arc<FilterChain>,
    manager: &Arc<HttpConnectionManager>,
    life: &Arc<Life>,
) -> (hyper::Result<()>, bool) {
    let options = &manager.http2;
    let mut builder = conn::http2::Builder::new(Tasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(1024))
        .initial_stream_window_size(options.initial_stream_window.unwrap_or(16 << 20))
        .initial_connection_window_size(options.initial_connection_window.unwrap_or(24 << 20))
        .max_header_list_size(manager.max_request_headers)
        .keep_alive_interval(options.keepalive_interval);
    if let Some(timeout) = options.keepalive_timeout {
        builder.keep_alive_timeout(timeout);
    }
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    let service = {
        let (connection, life, most) = (connection.clone(), life.clone(), manager.max_requests_per_connection);
        service_fn(move |mut request: Request<Incoming>| {
            let active = Active::new(life.clone());
            // A tunnel outlives its answer, and is as much of a reason to keep the connection.
            if request.method() == Method::CONNECT {
                request.extensions_mut().insert(life.clone());
            }
            let last = most.is_some_and(|most| life.requests() >= most);
            let (life, connection, chain) = (life.clone(), connection.clone(), chain.clone());
            async move {
                let response = request::serve(request, connection.clone(), chain).await?;
                // The client is told with its answer rather than at once, so that the request it may just be sending is not turned away.
                if last || connection.drain.is_draining() {
                    life.used_up();
                }
                Ok::<_, request::Unanswered>(response.map(|body| Answered::new(body, active)))
            }
        })
    };
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut ending = false;
    loop {
        let end = tokio::select! {
            biased;
            result = serving.as_mut() => return (result, life.is_active()),
            // Before what looks at the drain, which this wakes.
            () = poll_fn(|cx| connection.drain.poll(cx, Phase::Closing)) => return (Ok(()), false),
            end = life.end(connection, manager, false), if !ending => end,
            () = life.overstays(manager.timeouts.ending()), if ending => End::Stuck,
            () = drained(connection), if !ending => End::Drain,
            () = life.is_used_up(), if !ending => if connection.drain.is_draining() { End::Drain } else { End::Used },
        };
        end.count(manager);
        if let End::Stuck = end {
            return (Ok(()), false);
        }
        ending = true;
        serving.as_mut().graceful_shutdown();
    }
}

/// By configuration, else by ALPN, else by what the client sends first; `None` if the connection has ended before. True is HTTP/2.
async fn choose_codec(
    mut io: DownstreamIo,
    manager: &HttpConnectionManager,
    connection: &Arc<Connection>,
    life: &Arc<Life>,
) -> Option<(Wire, bool)> {
    let by_alpn = match connection.alpn.as_deref() {
        Some(b"h2") => Some(true),
        Some(b"http/1.1" | b"http/1.0") => Some(false),
        _ => None,
    };
    let known = match manager.codec {
        Codec::Http1 => Some(false),
        Codec::Http2 => Some(true),
        Codec::Auto => by_alpn,
    };
    if let Some(http2) = known {
        return Some((Wire::new(io, Vec::new(), manager.stats.clone(), life), http2));
    }
    let mut seen = Vec::new();
    while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
        if !seen.is_empty() {
            life.head_is_under_way(true);
        }
        let goes_on = tokio::select! {
            biased;
            goes_on = more(&mut io, &mut seen, connection, manager, life) => goes_on,
            // The rest of what began as HTTP/2 would begin has not come; the codec for all else has the answer to that.
            () = life.late(manager.timeouts.request_headers) => break,
        };
        if !goes_on {
            part(io).await;
            return None;
        }
    }
    let http2 = seen.starts_with(PREFACE);
    Some((Wire::new(io, seen, manager.stats.clone(), life), http2))
}

/// Appends what has come, and says how much. A connection that says nothing costs no buffer.
fn poll_bytes(io: &mut DownstreamIo, seen: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut room = [MaybeUninit::uninit(); FIRST_BYTES];
    let mut read = ReadBuf::uninit(&mut room);
    ready!(Pin::new(io).poll_read(cx, &mut read))?;
    seen.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}

/// Resolves once a drain has left the connection time for one more request. For the connection's own task.
async fn drained(connection: &Connection) {
    poll_fn(|cx| connection.drain.poll(cx, Phase::Draining)).await;
    tokio::time::sleep(DRAIN_IDLE).await;
}

/// HTTP/1 connections that rest, of all workers.
static RESTING: AtomicUsize = AtomicUsize::new(0);

/// How many HTTP/1 connections have given back what only requests need. An allocator may still hold it.
pub fn resting() -> usize {
    RESTING.load(Relaxed)
}

/// Counts one of them.
struct Resting;

impl Resting {
    fn new() -> Self {
        RESTING.fetch_add(1, Relaxed);
        Resting
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        RESTING.fetch_sub(1, Relaxed);
    }
}

/// `http.<prefix>.downstream_cx_*` of one connection.
struct Counted(Arc<HttpConnectionManager>, bool, Instant);

impl Counted {
    fn new(manager: &Arc<HttpConnectionManager>, tls: bool) -> Self {
        manager.stats.downstream_cx_total().inc();
        manager.stats.downstream_cx_active().inc();
        if tls {
            manager.stats.downstream_cx_ssl_total().inc();
            manager.stats.downstream_cx_ssl_active().inc();
        }
        Counted(manager.clone(), tls, Instant::now())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.0.stats;
        stats.downstream_cx_active().dec();
        stats.downstream_cx_destroy().inc();
        stats.downstream_cx_length_ms().record(self.2.elapsed().as_millis() as u64);
        if self.1 {
            stats.downstream_cx_ssl_active().dec();
        }
    }
}

/// The same by protocol.
struct CountedCodec(Arc<HttpConnectionManager>, bool);

impl CountedCodec {
    fn new(manager: &Arc<HttpConnectionManager>, http2: bool) -> Self {
        let stats = &manager.stats;
        if http2 {
            stats.downstream_cx_http2_total().inc();
            stats.downstream_cx_http2_active().inc();
        } else {
            stats.downstream_cx_http1_total().inc();
            stats.downstream_cx_http1_active().inc();
        }
        CountedCodec(manager.clone(), http2)
    }
}

impl Drop for CountedCodec {
    fn drop(&mut self) {
        if self.1 {
            self.0.stats.downstream_cx_http2_active().dec();
        } else {
            self.0.stats.downstream_cx_http1_active().dec();
        }
    }
}
