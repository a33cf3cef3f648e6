//! Queries that are not the mesh's: from the cache, or from a resolver; equal ones at once are one.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use hickory_server::{
    proto::op::{LowerQuery, ResponseCode},
    server::Request,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use tracing::debug;

use super::{
    Dns,
    cache::{Cache, Entry, Key},
    message::Reply,
    upstream::{Outgoing, Question, Upstreams},
};

/// Queries that wait for an answer at most, all clients together; more are refused at once.
pub const MAX_WAITING: usize = 4096;
/// Exchanges with resolvers at once, each with a socket of its own; more wait for one of them.
const MAX_EXCHANGES: usize = 256;

/// Where an answer comes out. Closed without one only if the server stops.
pub type Waiting = oneshot::Receiver<Rc<Entry>>;

/// What is known of a query's answer at once.
pub enum Found {
    /// All of it.
    Now(Rc<Entry>),
    /// It is asked for.
    Later(Waiting),
    /// Too many wait already.
    Overloaded,
}

/// See the module.
pub struct Forwarder {
    dns: Arc<Dns>,
    upstreams: RefCell<Rc<Upstreams>>,
    cache: RefCell<Cache>,
    /// Who waits for which answer.
    asked: RefCell<HashMap<Key, Vec<oneshot::Sender<Rc<Entry>>>>>,
    waiting: Cell<usize>,
    slots: Semaphore,
    /// Our own queries.
    pub outgoing: Outgoing,
}

impl Forwarder {
    /// Asks these resolvers.
    pub fn new(dns: Arc<Dns>, upstreams: Upstreams) -> Forwarder {
        Forwarder {
            dns,
            upstreams: RefCell::new(Rc::new(upstreams)),
            cache: RefCell::default(),
            asked: RefCell::default(),
            waiting: Cell::new(0),
            slots: Semaphore::new(MAX_EXCHANGES),
            outgoing: Outgoing::default(),
        }
    }

    /// Asks others from now on. What is on its way goes on as it is.
    pub fn replace(&self, upstreams: Upstreams) {
        *self.upstreams.borrow_mut() = Rc::new(upstreams);
        self.cache.borrow_mut().clear();
    }

    /// The answer, or where it will come from. Has to run in a [`tokio::task::LocalSet`].
    pub fn look_up(self: &Rc<Self>, request: &Request, query: &LowerQuery) -> Found {
        let key = key(request, query);
        if let Some(found) = key.as_ref().and_then(|key| self.cache.borrow_mut().find(key)) {
            self.dns.metrics.cache_hits.fetch_add(1, Relaxed);
            return Found::Now(found);
        }
        if self.waiting.get() >= MAX_WAITING {
            self.dns.metrics.overloaded.fetch_add(1, Relaxed);
            return Found::Overloaded;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.set(self.waiting.get() + 1);
        let Some(key) = key else {
            self.spawn(request, query, None, vec![sender]);
            return Found::Later(receiver);
        };
        let mut asked = self.asked.borrow_mut();
        match asked.get_mut(&key) {
            Some(waiting) => {
                self.dns.metrics.coalesced.fetch_add(1, Relaxed);
                waiting.push(sender);
            }
            None => {
                asked.insert(key.clone(), vec![sender]);
                drop(asked);
                self.spawn(request, query, Some(key), Vec::new());
            }
        }
        Found::Later(receiver)
    }

    /// Asks the resolvers in a task of its own: a client that goes away takes nobody's answer with it.
    fn spawn(
        self: &Rc<Self>,
        request: &Request,
        query: &LowerQuery,
        key: Option<Key>,
        mut waiting: Vec<oneshot::Sender<Rc<Entry>>>,
    ) {
        let forwarder = self.clone();
        let (raw, query, max_payload) = (request.as_slice().to_vec(), query.original().clone(), request.max_payload());
        tokio::task::spawn_local(async move {
            let upstreams = forwarder.upstreams.borrow().clone();
            let question = Question { raw: &raw, query: &query, max_payload, outgoing: &forwarder.outgoing };
            let answer = {
                // Never closed, so never an error.
                let _slot = forwarder.slots.acquire().await;
                upstreams.ask(&question).await
            };
            let reply = answer.map(Reply::forwarded).unwrap_or_else(|error| {
                debug!("{} {}: {error}", query.name(), query.query_type());
                forwarder.dns.metrics.upstream_failures.fetch_add(1, Relaxed);
                Reply::of(ResponseCode::ServFail)
            });
            let entry = Rc::new(Entry { reply, received: Instant::now() });
            if let Some(key) = key {
                waiting.extend(forwarder.asked.borrow_mut().remove(&key).into_iter().flatten());
                // An answer of resolvers that are not asked any more is still this query's, but nobody else's.
                if Rc::ptr_eq(&upstreams, &forwarder.upstreams.borrow()) {
                    forwarder.cache.borrow_mut().keep(key, entry.clone());
                }
            }
            forwarder.waiting.set(forwarder.waiting.get() - waiting.len());
            for waiting in waiting {
                // Who does not wait any more needs no answer.
                let _ = waiting.send(entry.clone());
            }
        });
    }
}

/// What else has to be equal for the answer to be; `None` for a query that is like no other: with EDNS options, a signature, records.
fn key(request: &Request, query: &LowerQuery) -> Option<Key> {
    let edns = request.edns.as_ref();
    let plain = edns.is_none_or(|edns| edns.options().as_ref().is_empty())
        && request.signature.is_none()
        && request.answers.is_empty()
        && request.authorities.is_empty()
        && request.additionals.is_empty();
    plain.then(|| Key {
        name: query.name().clone(),
        kind: query.query_type(),
        class: query.query_class(),
        flags: [
            request.metadata.recursion_desired,
            request.metadata.authentic_data,
            request.metadata.checking_disabled,
            edns.is_some(),
            edns.is_some_and(|edns| edns.flags().dnssec_ok),
        ],
    })
}
