//! Load over the network: lanes that send a request, wait for its reply and record how long it took.
//!
//! A lane is one connection (HTTP/1.1, TCP) or one stream slot of a connection (HTTP/2). Closed loop: the next
//! request leaves as soon as the reply is there. Open loop: requests leave by a fixed schedule, and a request that had to wait
//! because its lane was still busy is timed from the moment it was due, so that a slow subject cannot hide its queue.

pub mod http1;
mod http2;
mod tcp;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::histogram::Histogram;

/// How long a lane waits after a failure before it tries again, so that a closed port is not hammered.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What a lane speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 over keep-alive connections.
    Http1,
    /// HTTP/2 with prior knowledge (h2c).
    Http2,
    /// Bytes which the other side echoes.
    Tcp,
}

/// What to send, where and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// What to speak.
    pub protocol: Protocol,
    /// `host` header or `:authority`.
    pub host: String,
    /// Path and query of the request.
    pub path: String,
    /// Bytes of the request body (HTTP) or of one message (TCP). 0 means GET; a TCP message has at least one byte.
    pub payload: usize,
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
}

impl Load {
    /// Starts all lanes on the current runtime. Nothing is recorded before [`Load::record`].
    pub fn start(plan: &Plan) -> Self {
        let plan = Arc::new(plan.clone());
        let progress = Arc::new(Progress::default());
        let (stop, stopped) = watch::channel(false);
        let streams = if plan.protocol == Protocol::Http2 { plan.streams.max(1) } else { 1 };
        let lane_count = plan.connections.max(1) * streams;
        let begin = Instant::now();
        let mut lanes = JoinSet::new();
        for connection in 0..plan.connections.max(1) {
            let shared = http2::Shared::new(plan.clone());
            for stream in 0..streams {
                let client = match plan.protocol {
                    Protocol::Http1 => Client::Http1(http1::Client::new(&plan)),
                    Protocol::Http2 => Client::Http2(http2::Client::new(shared.clone())),
                    Protocol::Tcp => Client::Tcp(tcp::Client::new(&plan)),
                };
                let lane = connection * streams + stream;
                let schedule = plan.rate.map(|rate| Schedule::new(begin, rate, lane, lane_count));
                lanes.spawn(run_lane(client, plan.timeout, schedule, progress.clone(), stopped.clone()));
            }
        }
        Self { progress, stop, lanes }
    }

    /// Counters to watch.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// From now on outcomes are recorded: the warm-up is over.
    pub fn record(&self) {
        self.progress.recording.store(true, Ordering::Relaxed);
    }

    /// Sends nothing more, waits for the replies under way and adds up.
    pub async fn finish(mut self) -> Record {
        self.stop.send_replace(true);
        let mut whole = Record::default();
        while let Some(lane) = self.lanes.join_next().await {
            match lane {
                Ok(record) => whole.merge(record),
                Err(error) => whole.fail(&Failure::Protocol(format!("a lane ended early: {error}"))),
            }
        }
        whole
    }
}

enum Client {
    Http1(http1::Client),
    Http2(http2::Client),
    Tcp(tcp::Client),
}

impl Client {
    async fn exchange(&mut self) -> Result<(), Failure> {
        match self {
            Self::Http1(client) => client.exchange().await,
            Self::Http2(client) => client.exchange().await,
            Self::Tcp(client) => client.exchange().await,
        }
    }
}

/// When the requests of one lane are due.
struct Schedule {
    due: Instant,
    interval: Duration,
}

impl Schedule {
    /// Lanes take turns: lane `n` of `lanes` starts `n` request intervals after `begin`.
    fn new(begin: Instant, rate: f64, lane: usize, lanes: usize) -> Self {
        let interval = Duration::from_secs_f64(lanes as f64 / rate.max(0.001));
        Self { due: begin + interval.mul_f64(lane as f64 / lanes as f64), interval }
    }

    /// Waits for the next request's moment and returns what it is timed from: the moment it was due when the lane came late
    /// (the subject was slow), the moment of sending when the lane was there in time (a late timer is not the subject's fault).
    async fn next(&mut self) -> Instant {
        let due = self.due;
        self.due += self.interval;
        if due <= Instant::now() {
            return due;
        }
        tokio::time::sleep_until(due.into()).await;
        Instant::now()
    }
}

async fn run_lane(
    mut client: Client,
    timeout: Duration,
    mut schedule: Option<Schedule>,
    progress: Arc<Progress>,
    mut stopped: watch::Receiver<bool>,
) -> Record {
    let mut record = Record::default();
    loop {
        let start = match &mut schedule {
            Some(schedule) => tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => return record,
                start = schedule.next() => start,
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
