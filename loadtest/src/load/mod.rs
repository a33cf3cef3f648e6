//! Load over the network: lanes that send a request, wait for its reply and record how long it took.
//!
//! A lane is one connection (HTTP/1.1, TCP) or one stream slot of a connection (HTTP/2). Closed loop: the next
//! request leaves as soon as the reply is there. Open loop: requests are due by a fixed schedule (`pace.rs`) and timed from the moment
//! they were due, so that a slow subject cannot hide its queue.

pub mod http1;
mod http2;
mod pace;
pub mod stream;
mod tcp;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::histogram::Histogram;
use stream::Peer;

/// How long a lane waits after a failure before it tries again, so that a closed port is not hammered.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What a lane speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 over keep-alive connections.
    Http1,
    /// HTTP/2 with prior knowledge (h2c).
    Http2,
    /// Unary gRPC calls: HTTP/2 with a message each way and trailers.
    Grpc,
    /// gRPC streams that stay open; a request is a message and the one that comes back.
    GrpcStream,
    /// Bytes which the other side echoes.
    Tcp,
    /// Many bytes one way: a header says how many go up and how many come down (`echo --mode bulk`).
    Bulk,
    /// HTTP/1.1 connections upgraded to WebSocket; a request is a message and the one that comes back.
    WebSocket,
}

impl Protocol {
    /// Whether several lanes share a connection.
    fn multiplexes(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcStream)
    }
}

/// What to send, where and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: Peer,
    /// What to speak.
    pub protocol: Protocol,
    /// `host` header or `:authority`.
    pub host: String,
    /// Path and query of the request.
    pub path: String,
    /// Bytes of the request body (HTTP) or of one message. 0 means GET; a message has at least one byte.
    pub payload: usize,
    /// Bytes that are expected back, a hint for the size of buffers; with [`Protocol::Bulk`] the number asked for.
    pub reply: usize,
    /// Connections open at a time.
    pub connections: usize,
    /// Requests in flight per HTTP/2 connection; 1 elsewhere.
    pub streams: usize,
    /// Requests per second over all lanes; none means closed loop.
    pub rate: Option<f64>,
    /// Opens a new connection for each request.
    pub new_connection: bool,
    /// Longest wait for one reply, connecting included.
    pub timeout: Duration,
}

impl Plan {
    /// One connection in a closed loop: GET `/` of the host `backend`, ten seconds for a reply.
    pub fn to(target: SocketAddr, protocol: Protocol) -> Self {
        Self {
            target: Peer::plain(target),
            protocol,
            host: "backend".into(),
            path: "/".into(),
            payload: 0,
            reply: 0,
            connections: 1,
            streams: 1,
            rate: None,
            new_connection: false,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why a request has no good reply.
#[derive(Debug)]
pub enum Failure {
    /// The connection could not be opened.
    Connect(std::io::Error),
    /// The connection ended before the whole reply was there.
    Closed,
    /// Reading or writing failed.
    Io(std::io::Error),
    /// The reply breaks the protocol.
    Protocol(String),
    /// The reply is whole, its status is not 2xx.
    Status(u16),
    /// The bytes that came back are not those that were sent.
    Mismatch,
    /// No whole reply within [`Plan::timeout`].
    Timeout,
}

impl Failure {
    /// Short name that failures are counted under.
    pub fn kind(&self) -> String {
        match self {
            Self::Connect(_) => "connect".into(),
            Self::Closed => "closed".into(),
            Self::Io(_) => "io".into(),
            Self::Protocol(_) => "protocol".into(),
            Self::Status(status) => format!("status_{status}"),
            Self::Mismatch => "mismatch".into(),
            Self::Timeout => "timeout".into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Closed => f.write_str("the connection was closed before the reply was complete"),
            Self::Io(error) => write!(f, "connection failed: {error}"),
            Self::Protocol(what) => write!(f, "the reply breaks the protocol: {what}"),
            Self::Status(status) => write!(f, "the reply has status {status}"),
            Self::Mismatch => f.write_str("the bytes that came back are not those that were sent"),
            Self::Timeout => f.write_str("no complete reply in time"),
        }
    }
}

impl std::error::Error for Failure {}

/// Outcome of a load, merged over all lanes.
#[derive(Clone, Default)]
pub struct Record {
    /// Time from request to complete reply of each good request.
    pub latency: Histogram,
    /// Failed requests by [`Failure::kind`].
    pub failures: BTreeMap<String, u64>,
    /// The first failure met, in words.
    pub first_failure: Option<String>,
    /// How late requests of an open loop were handed out; empty in a closed loop.
    pub lateness: Histogram,
}

impl Record {
    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    fn fail(&mut self, failure: &Failure) {
        *self.failures.entry(failure.kind()).or_default() += 1;
        self.first_failure.get_or_insert_with(|| failure.to_string());
    }

    fn merge(&mut self, other: Self) {
        self.latency.merge(&other.latency);
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        if self.first_failure.is_none() {
            self.first_failure = other.first_failure;
        }
    }
}

/// Counters that can be read while a load runs.
#[derive(Default)]
pub struct Progress {
    completed: AtomicU64,
    recording: AtomicBool,
}

impl Progress {
    /// Good replies since the start, those of the warm-up included.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }
}

/// A running load.
pub struct Load {
    progress: Arc<Progress>,
    stop: watch::Sender<bool>,
    lanes: JoinSet<Record>,
    pacing: Option<JoinHandle<()>>,
    lateness: Arc<Mutex<Histogram>>,
}

impl Load {
    /// Starts all lanes on the current runtime. Nothing is recorded before [`Load::record`].
    pub fn start(plan: &Plan) -> Self {
        let plan = Arc::new(plan.clone());
        let progress = Arc::new(Progress::default());
        let lateness = Arc::new(Mutex::new(Histogram::default()));
        let (stop, stopped) = watch::channel(false);
        let streams = if plan.protocol.multiplexes() { plan.streams.max(1) } else { 1 };
        let queue = plan.rate.map(|_| Arc::new(pace::Queue::default()));
        let mut lanes = JoinSet::new();
        for _ in 0..plan.connections.max(1) {
            let shared = http2::Shared::new(plan.clone());
            for _ in 0..streams {
                let client = Client::new(&plan, &shared);
                lanes.spawn(run_lane(client, plan.timeout, queue.clone(), progress.clone(), stopped.clone()));
            }
        }
        let pacing = plan.rate.zip(queue).map(|(rate, queue)| tokio::spawn(pace::run(rate, queue, lateness.clone())));
        Self { progress, stop, lanes, pacing, lateness }
    }

    /// Counters to watch.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// From now on outcomes are recorded: the warm-up is over.
    pub fn record(&self) {
        *self.lateness.lock().unwrap_or_else(PoisonError::into_inner) = Histogram::default();
        self.progress.recording.store(true, Ordering::Relaxed);
    }

    /// Sends nothing more, waits for the replies under way and adds up.
    pub async fn finish(mut self) -> Record {
        if let Some(pacing) = &self.pacing {
            pacing.abort();
        }
        self.stop.send_replace(true);
        let mut whole = Record::default();
        while let Some(lane) = self.lanes.join_next().await {
            match lane {
                Ok(record) => whole.merge(record),
                Err(error) => whole.fail(&Failure::Protocol(format!("a lane ended early: {error}"))),
            }
        }
        whole.lateness = self.lateness.lock().unwrap_or_else(PoisonError::into_inner).clone();
        whole
    }
}

enum Client {
    Http1(http1::Client),
    Http2(http2::Client),
    GrpcStream(http2::MessageClient),
    Tcp(tcp::Client),
}

impl Client {
    fn new(plan: &Arc<Plan>, shared: &Arc<http2::Shared>) -> Self {
        match plan.protocol {
            Protocol::Http1 => Self::Http1(http1::Client::new(plan)),
            Protocol::Http2 | Protocol::Grpc => Self::Http2(http2::Client::new(shared.clone())),
            Protocol::GrpcStream => Self::GrpcStream(http2::MessageClient::new(shared.clone())),
            Protocol::Tcp | Protocol::Bulk | Protocol::WebSocket => Self::Tcp(tcp::Client::new(plan)),
        }
    }

    async fn exchange(&mut self) -> Result<(), Failure> {
        match self {
            Self::Http1(client) => client.exchange().await,
            Self::Http2(client) => client.exchange().await,
            Self::GrpcStream(client) => client.exchange().await,
            Self::Tcp(client) => client.exchange().await,
        }
    }
}

async fn run_lane(
    mut client: Client,
    timeout: Duration,
    queue: Option<Arc<pace::Queue>>,
    progress: Arc<Progress>,
    mut stopped: watch::Receiver<bool>,
) -> Record {
    let mut record = Record::default();
    loop {
        let start = match &queue {
            Some(queue) => tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => return record,
                due = queue.take() => due,
            },
            None => Instant::now(),
        };
        if *stopped.borrow() {
            return record;
        }
        let outcome = tokio::time::timeout(timeout, client.exchange()).await.unwrap_or(Err(Failure::Timeout));
        let recording = progress.recording.load(Ordering::Relaxed);
        match outcome {
            Ok(()) => {
                progress.completed.fetch_add(1, Ordering::Relaxed);
                if recording {
                    record.latency.record(start.elapsed());
                }
            }
            Err(failure) => {
                if recording {
                    record.fail(&failure);
                }
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
