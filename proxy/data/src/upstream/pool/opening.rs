//! Making a pooled connection: connect, shake hands, tell those who wait for it.

use std::{future::poll_fn, task::Poll};

use super::*;

/// Connects, shakes hands and leaves the connection to a task of its own.
pub(super) async fn open(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    client: Option<&Connection>,
    key: Key,
    auto: bool,
) -> Result<Lease, AcquireError> {
    let mut opening = Opening { key, done: false, has_place: true };
    let _pending = Pending::new(cluster);
    let alpn = match (auto, key.protocol) {
        (true, _) => AlpnChoice::Offer(&[b"h2", b"http/1.1"]),
        (false, Protocol::Http2) => AlpnChoice::Fallback(&[b"h2"]),
        (false, Protocol::Http1) => AlpnChoice::Configured,
    };
    let connected = match connect::connect(cluster, endpoint, alpn, client).await {
        Ok(connected) => connected,
        Err(error) => {
            opening.failed(&error);
            cluster.stats.upstream_rq_pending_failure_eject().inc();
            return Err(AcquireError::Connect(error));
        }
    };
    let protocol = match (auto, connected.io.negotiated_alpn()) {
        (false, _) => key.protocol,
        (true, Some(b"h2")) => Protocol::Http2,
        (true, _) => Protocol::Http1,
    };
    let key = Key { protocol, ..key };
    // From here on the connection itself gives its place back, in the pool that ALPN chose.
    if key == opening.key {
        opening.has_place = false;
    } else {
        with_pools(|pools| pools.host(key, cluster, endpoint).live += 1);
    }
    let handshake = match protocol {
        Protocol::Http1 => http1_handshake(cluster, connected, key).await,
        Protocol::Http2 => http2_handshake(cluster, connected, key).await,
    };
    match handshake {
        Ok(lease) => {
            opening.succeeded(cluster, endpoint, &lease);
            lease.pooled.carries();
            cluster.stats.upstream_rq_total().inc();
            Ok(lease)
        }
        Err(error) => {
            let error = ConnectError::Refused { reason: error.to_string() };
            opening.failed(&error);
            Err(AcquireError::Connect(error))
        }
    }
}

async fn http1_handshake(cluster: &Arc<Cluster>, connected: UpstreamConnection, key: Key) -> hyper::Result<Lease> {
    let UpstreamConnection { io, mut guard } = connected;
    let pooled = Arc::new(Pooled::default());
    guard.pooled = Some(pooled.clone());
    let local = io.local_address();
    let io = Metered::new(io, cluster.clone(), &pooled).in_pool(Open::new(guard, key));
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await?;
    cluster.stats.upstream_cx_http1_total().inc();
    let driven = Driven::new(connection);
    let kept = driven.clone();
    tokio::spawn(poll_fn(move |cx| {
        let ended = kept.poll_keeping(cx);
        match ended {
            // It may be one that was given back before all was sent, and ready by now.
            Poll::Pending => offer(key),
            Poll::Ready(()) => sweep(key),
        }
        ended
    }));
    Ok(Lease::first(Sender::Http1(sender, driven), local, key, Arc::default(), pooled))
}

async fn http2_handshake(cluster: &Arc<Cluster>, connected: UpstreamConnection, key: Key) -> hyper::Result<Lease> {
    let UpstreamConnection { io, mut guard } = connected;
    let pooled = Arc::new(Pooled::default());
    guard.pooled = Some(pooled.clone());
    let local = io.local_address();
    let options = &cluster.http2;
    let mut builder = http2::Builder::new(worker::Tasks);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(options.initial_stream_window.unwrap_or(16 << 20))
        .initial_connection_window_size(options.initial_connection_window.unwrap_or(24 << 20))
        .initial_max_send_streams(options.max_concurrent_streams.unwrap_or(MAX_STREAMS) as usize)
        .keep_alive_interval(options.keepalive_interval);
    if let Some(timeout) = options.keepalive_timeout {
        builder.keep_alive_timeout(timeout);
    }
    let io = Metered::new(io, cluster.clone(), &pooled).in_pool(Open::new(guard, key));
    let heard = io.heard();
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
    cluster.stats.upstream_cx_http2_total().inc();
    tokio::spawn(async move {
        // What went wrong reaches the requests that are on it.
        let _ = connection.await;
        sweep(key);
    });
    Ok(Lease::first(Sender::Http2(sender), local, key, heard, pooled))
}

/// Tells those who wait for this connection how it went, also when the request that makes it is cancelled.
struct Opening {
    key: Key,
    done: bool,
    /// The pool counts a connection that there is not.
    has_place: bool,
}

impl Opening {
    fn failed(&mut self, error: &ConnectError) {
        self.finish(|| Err(error.clone()));
    }

    fn succeeded(&mut self, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, lease: &Lease) {
        with_pools(|pools| {
            let host = pools.host(lease.key, cluster, endpoint);
            if let Some(Sender::Http2(sender)) = &lease.sender {
                // There may be streams for all who wait; dropped senders wake them.
                host.waiters.clear();
                if cluster.max_requests_per_connection == Some(1) {
                    cluster.stats.upstream_cx_max_requests().inc();
                    return;
                }
                host.shared.push(Shared {
                    sender: sender.clone(),
                    local: lease.local,
                    opened: lease.opened,
                    last_used: lease.opened,
                    requests: 1,
                    active: 1,
                    heard: lease.heard.clone(),
                    pooled: lease.pooled.clone(),
                });
            }
        });
        self.finish(|| Ok(()));
    }

    fn finish(&mut self, outcome: impl Fn() -> Result<(), ConnectError>) {
        self.done = true;
        let waiters = with_pools(|pools| pools.hosts.get_mut(&self.key)?.connecting.take());
        for waiter in waiters.into_iter().flatten() {
            let _ = waiter.send(outcome());
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.done {
            // Dropped senders wake their requests, one of which then connects.
            drop(with_pools_while_open(|pools| pools.hosts.get_mut(&self.key)?.connecting.take()));
        }
        if self.has_place {
            closed(self.key);
        }
    }
}
