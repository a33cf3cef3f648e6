//! Who drives a connection over HTTP/1.
//!
//! hyper's connection is a future that reads and writes only while somebody polls it. Were that a task of its own alone, a message would take two turns of
//! the runtime: the connection's, and then, behind all others that have something to read, the request's, when it is out of the cache again. So a
//! request drives the connection that it has leased, in its own turn. While there is none the connection's own task does, the keeper: it hears of the
//! connection's end.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::http1::Connection,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::Metered;
use crate::http::body::RequestBody;

/// hyper's half of a connection that may leave HTTP; the type has no public name.
type Http1 = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection and who drives it. All of its users are tasks of one worker, so nobody ever waits for the locks.
pub struct Driven {
    /// `None`: it has ended.
    connection: Mutex<Option<Http1>>,
    gate: Arc<Gate>,
    /// Of `gate`.
    waker: Waker,
}

/// What the connection wakes: whoever drives it at that moment.
#[derive(Default)]
struct Gate(Mutex<Driver>);

#[derive(Default)]
struct Driver {
    /// A request drives it.
    leased: bool,
    /// What happens now is followed by a look at the connection anyway.
    hushed: bool,
    request: Option<Waker>,
    keeper: Option<Waker>,
}

impl Driver {
    fn wake(&self) {
        let driver = if self.leased { &self.request } else { &self.keeper };
        if let Some(driver) = driver.as_ref().filter(|_| !self.hushed) {
            driver.wake_by_ref();
        }
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.0.lock().wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.lock().wake();
    }
}

impl Driven {
    /// A new connection, leased.
    pub(super) fn new(connection: Connection<TokioIo<Metered>, RequestBody>) -> Arc<Self> {
        let gate = Arc::new(Gate(Mutex::new(Driver { leased: true, ..Driver::default() })));
        Arc::new(Driven {
            connection: Mutex::new(Some(Box::pin(connection.with_upgrades()))),
            waker: gate.clone().into(),
            gate,
        })
    }

    /// A request has it from now on, and is to poll it.
    pub(super) fn lease(&self) {
        let mut driver = self.gate.0.lock();
        (driver.leased, driver.request) = (true, None);
    }

    /// A request has it and polls it.
    pub(super) fn is_leased(&self) -> bool {
        self.gate.0.lock().leased
    }

    /// Leaves it to the keeper, whatever is under way.
    pub(super) fn leave(&self) {
        let mut driver = self.gate.0.lock();
        if driver.leased {
            (driver.leased, driver.request) = (false, None);
            driver.wake();
        }
    }

    /// Leaves it to the keeper, having done what is to be done at the end of an exchange.
    pub(super) fn rest(&self) {
        {
            let mut driver = self.gate.0.lock();
            (driver.leased, driver.request) = (false, None);
        }
        self.go_on();
    }

    /// The keeper's: resolves when the connection has ended.
    pub(super) fn poll_keeping(&self, cx: &mut Context<'_>) -> Poll<()> {
        let leased = {
            let mut driver = self.gate.0.lock();
            set(&mut driver.keeper, cx);
            driver.leased
        };
        if !leased {
            self.go_on();
        }
        match self.connection.try_lock() {
            Some(connection) if connection.is_none() => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// A request's: reads and writes what is possible; the request is woken when more is.
    pub(super) fn poll(&self, cx: &mut Context<'_>) {
        set(&mut self.gate.0.lock().request, cx);
        self.go_on();
    }

    /// A request's: the next frame of its response.
    pub(super) fn poll_frame(
        &self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // Asked first, for the connection reads on only if it is asked.
        if let Poll::Ready(frame) = self.ask(incoming) {
            return Poll::Ready(frame);
        }
        self.poll(cx);
        self.ask(incoming)
    }

    /// A frame that was read already. Wakes nobody, now or later: a frame comes of [`Driven::poll`] alone, and that follows, now or with the next frame.
    fn ask(&self, incoming: &mut Incoming) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.gate.0.lock().hushed = true;
        let frame = Pin::new(incoming).poll_frame(&mut Context::from_waker(Waker::noop()));
        self.gate.0.lock().hushed = false;
        frame
    }

    fn go_on(&self) {
        let Some(mut connection) = self.connection.try_lock() else { return };
        let Some(open) = connection.as_mut() else { return };
        // What went wrong reaches the request that is on the connection; one that has none is just gone.
        if open.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready() {
            let ended = connection.take();
            drop(connection);
            drop(ended);
            if let Some(keeper) = &self.gate.0.lock().keeper {
                keeper.wake_by_ref();
            }
        }
    }
}

/// Keeps the waker of this context.
fn set(kept: &mut Option<Waker>, cx: &Context<'_>) {
    match kept {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *kept = Some(cx.waker().clone()),
    }
}

impl fmt::Debug for Driven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driven").field("leased", &self.is_leased()).finish_non_exhaustive()
    }
}
