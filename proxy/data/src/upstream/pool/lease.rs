//! The right to send one request over a connection, from the pool and back.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::{TrySendError, http1, http2},
};
use tokio::task::unconstrained;

use super::{Driven, Idle, Key, Protocol, tell};
use crate::{
    http::body::RequestBody,
    upstream::connect::Pooled,
    worker::{with_pools, with_pools_while_open},
};

/// The right to send one request over a connection.
#[derive(Debug)]
pub struct Lease {
    /// Sends it; taken when the connection goes back to the pool.
    pub(super) sender: Option<Sender>,
    /// The connection has served a request before: a failure to send may mean no more than that it was idle for too long.
    pub reused: bool,
    /// Our address on it.
    pub local: Option<SocketAddr>,
    pub(super) key: Key,
    pub(super) opened: Instant,
    pub(super) requests: u32,
    /// When the request began, and how many bytes had come in over the connection by then.
    pub(super) began: Instant,
    pub(super) heard_before: u64,
    /// Bytes that came in over the connection.
    pub(super) heard: Arc<AtomicU64>,
    /// The connection.
    pub(super) pooled: Arc<Pooled>,
}

/// A connection's sending half.
#[derive(Debug)]
pub enum Sender {
    /// One request at a time, which drives the connection.
    Http1(http1::SendRequest<RequestBody>, Arc<Driven>),
    /// Many.
    Http2(http2::SendRequest<RequestBody>),
}

impl Sender {
    /// Sends the request, and waits for the head of its response.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Sender::Http1(sender, driven) => {
                // Its waker is nobody's, so there is to be no other reason to wait than that: no budget.
                let mut sent = pin!(unconstrained(sender.try_send_request(request)));
                poll_fn(|cx| {
                    driven.poll(cx);
                    // What it waits for comes of that alone.
                    sent.as_mut().poll(&mut Context::from_waker(Waker::noop()))
                })
                .await
            }
            Sender::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

impl Lease {
    /// Of the request for which the connection was made.
    pub(super) fn first(
        sender: Sender,
        local: Option<SocketAddr>,
        key: Key,
        heard: Arc<AtomicU64>,
        pooled: Arc<Pooled>,
    ) -> Self {
        let now = Instant::now();
        let sender = Some(sender);
        Lease {
            sender,
            reused: false,
            local,
            key,
            opened: now,
            requests: 0,
            began: now,
            heard_before: 0,
            heard,
            pooled,
        }
    }

    /// The connection's sending half.
    pub fn sender(&mut self) -> Option<&mut Sender> {
        self.sender.as_mut()
    }

    /// The next frame of the response.
    pub fn poll_frame(
        &self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &self.sender {
            Some(Sender::Http1(_, driven)) if driven.is_leased() => driven.poll_frame(incoming, cx),
            _ => Pin::new(incoming).poll_frame(cx),
        }
    }

    /// From now on the connection goes on by itself, whether or not [`Lease::poll_frame`] asks for the response. For requests that still have something
    /// to send, and for whoever reads a response by other ways.
    pub fn leave(&self) {
        if let Some(Sender::Http1(_, driven)) = &self.sender {
            driven.leave();
        }
    }

    /// Some of what was sent waits for room at the other end (HTTP/1).
    pub fn is_blocked(&self) -> bool {
        self.pooled.blocked.load(Relaxed)
    }

    /// Which protocol is spoken.
    pub fn protocol(&self) -> Protocol {
        self.key.protocol
    }

    /// The request is over, and the connection fit for another one. A lease that is dropped instead closes an HTTP/1 connection and leaves an HTTP/2
    /// one as it is.
    pub fn give_back(mut self) {
        let Some(Sender::Http1(sender, driven)) = self.sender.take_if(|sender| matches!(sender, Sender::Http1(..)))
        else {
            return;
        };
        driven.rest();
        let (local, key, opened, requests) = (self.local, self.key, self.opened, self.requests);
        let pooled = self.pooled.clone();
        pooled.carried();
        tell(with_pools(|pools| {
            let host = pools.hosts.get_mut(&key)?;
            let used_up = host.cluster.max_requests_per_connection.is_some_and(|most| requests + 1 >= most);
            let worn = host.retired
                || used_up
                || host.cluster.max_connection.is_some_and(|longest| opened.elapsed() >= longest);
            if used_up {
                host.cluster.stats.upstream_cx_max_requests().inc();
            }
            if worn || sender.is_closed() {
                // Its end will be told.
                return None;
            }
            let is_ready = sender.is_ready();
            host.idle.push(Idle { sender, driven, local, since: Instant::now(), opened, requests, pooled });
            is_ready.then(|| pools.next_waiter(key)).flatten()
        }));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match &self.sender {
            Some(Sender::Http2(_)) => {
                self.pooled.carried();
                tell(with_pools_while_open(|pools| pools.hosts.get_mut(&self.key)?.end_stream(self)));
            }
            Some(Sender::Http1(_, driven)) => driven.leave(),
            None => {}
        }
    }
}
