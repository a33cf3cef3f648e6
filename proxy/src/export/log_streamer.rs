//! TCP access logs: each line names the address that it is for, and is sent there.
//!
//! Kuma's control plane has them written to a FIFO of the work directory, which kuma-dp reads (trap 6: a FIFO, in spite of its name's end). Here who writes
//! and who reads are one process, so lines for that path are taken before they come to a file; nobody else can put lines in, and none is lost in the pipe
//! when the process ends. Source: Kuma `app/kuma-dp/pkg/dataplane/accesslogs`. As there, what cannot be sent is dropped, not kept: a log backend that
//! is away must not cost the proxy its memory. It is counted in `server.log_lines_dropped`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{access_log::WriterCommand, gather::Gather};

/// Addresses at once; lines for another are dropped.
const MAX_ADDRESSES: usize = 64;
/// Lines that wait for one address.
const QUEUE: usize = 4096;
/// Lines that are written at once.
const BATCH: usize = 256;
/// Bound on a connect, as kuma-dp's, and on a write that makes no progress.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An address without lines is forgotten after this.
const IDLE: Duration = Duration::from_secs(600);
/// Pause after a failed connect or a lost connection.
const BACK_OFF: Duration = Duration::from_secs(1);

/// Sends lines where they belong until there are no more. Has to run in a [`tokio::task::LocalSet`].
pub(super) async fn run(
    mut lines: mpsc::Receiver<Bytes>,
    mut orders: mpsc::UnboundedReceiver<WriterCommand>,
    lost: Arc<AtomicU64>,
) {
    let mut gather = Gather::default();
    let mut streamer = Streamer { backends: BTreeMap::new(), tasks: JoinSet::new(), lost, complained: false };
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(WriterCommand::Flush(done)) => {
                    while let Ok(line) = lines.try_recv() {
                        streamer.take(&line);
                    }
                    streamer.finish().await;
                    // Who does not wait any more needs no answer.
                    let _ = done.send(());
                }
                // There is no file.
                Some(WriterCommand::Reopen) => {}
                None => break,
            },
            () = gather.over(), if gather.goes_on() => {}
            line = lines.recv(), if !gather.goes_on() => match line {
                Some(line) => {
                    streamer.take(&line);
                    if lines.is_empty() {
                        gather.begin();
                    }
                }
                None => break,
            },
        }
    }
    streamer.finish().await;
}

struct Streamer {
    backends: BTreeMap<String, mpsc::Sender<Bytes>>,
    tasks: JoinSet<()>,
    lost: Arc<AtomicU64>,
    /// A line that cannot be sent anywhere was logged, and none has been good since.
    complained: bool,
}

impl Streamer {
    fn take(&mut self, line: &[u8]) {
        let queued = message(line).and_then(|(address, text)| self.queue(address, text));
        match queued {
            Ok(()) => self.complained = false,
            Err(why) => {
                self.lost.fetch_add(1, Relaxed);
                if !std::mem::replace(&mut self.complained, true) {
                    warn!("an access log line for a TCP backend is dropped: {why}");
                }
            }
        }
    }

    fn queue(&mut self, address: String, text: Bytes) -> Result<(), String> {
        while self.tasks.try_join_next().is_some() {}
        self.backends.retain(|_, backend| !backend.is_closed());
        if !self.backends.contains_key(&address) && self.backends.len() >= MAX_ADDRESSES {
            return Err(format!("{address} is more than the {MAX_ADDRESSES} addresses that logs are sent to at once"));
        }
        let backend = self.backends.entry(address).or_insert_with_key(|address| {
            let (backend, lines) = mpsc::channel(QUEUE);
            self.tasks.spawn_local(deliver(Backend::new(address.clone(), self.lost.clone()), lines));
            backend
        });
        if backend.try_send(text).is_err() {
            // Whoever serves the address says why it takes none.
            self.lost.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Returns when all that is queued has been sent or given up.
    async fn finish(&mut self) {
        self.backends.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Address and text of a line: `{"address": "host:port", "message": <text or object>}`, or `host:port;text`.
fn message(line: &[u8]) -> Result<(String, Bytes), String> {
    if let Ok(mut value) = serde_json::from_slice::<Value>(line)
        && let Some(address) = value.get("address").and_then(Value::as_str).map(str::to_owned)
    {
        let text = match value.get_mut("message").map(Value::take) {
            Some(Value::String(text)) => text,
            other => format!("{}\n", other.unwrap_or_default()),
        };
        return Ok((address, text.into()));
    }
    let text = String::from_utf8_lossy(line);
    match text.split_once(';') {
        Some((address, text)) if !address.is_empty() => Ok((address.to_owned(), text.to_owned().into())),
        _ => Err("it names no address".into()),
    }
}

/// One address that lines are sent to.
struct Backend {
    address: String,
    stream: Option<TcpStream>,
    /// No connect before this.
    not_before: Instant,
    /// Lines dropped since the last connect that succeeded; the first of them was logged.
    dropped: u64,
    /// In all.
    lost: Arc<AtomicU64>,
}

/// Keeps one connection and writes lines to it. Lines that come while there is none are dropped.
async fn deliver(mut backend: Backend, mut lines: mpsc::Receiver<Bytes>) {
    let mut batch = Vec::new();
    loop {
        let received = tokio::select! {
            // Lines first: at the end of the process a connection that was closed is found by the write.
            biased;
            received = timeout(IDLE, lines.recv_many(&mut batch, BATCH)) => received.unwrap_or(0),
            why = closed(&mut backend.stream) => {
                info!("{} has closed the connection for access logs: {why}", backend.address);
                backend.stream = None;
                continue;
            }
        };
        if received == 0 {
            return;
        }
        if let Err(why) = backend.write(&batch).await {
            backend.drop_lines(batch.len() as u64, &why);
        }
        batch.clear();
    }
}

/// Resolves when the other end has closed or failed. A log backend has nothing to say; if it speaks all the same, that is passed over.
async fn closed(stream: &mut Option<TcpStream>) -> String {
    let Some(stream) = stream else { return std::future::pending().await };
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return "end of stream".into(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

impl Backend {
    fn new(address: String, lost: Arc<AtomicU64>) -> Backend {
        Backend { address, stream: None, not_before: Instant::now(), dropped: 0, lost }
    }

    /// Writes lines, over a new connection if there is none.
    async fn write(&mut self, lines: &[Bytes]) -> Result<(), String> {
        if self.stream.is_none() {
            self.connect().await?;
        }
        let Some(stream) = &mut self.stream else { return Err("no connection".into()) };
        let mut bytes = BytesMut::with_capacity(lines.iter().map(Bytes::len).sum());
        lines.iter().for_each(|line| bytes.extend_from_slice(line));
        let written = match timeout(TIMEOUT, stream.write_all(&bytes)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it took nothing for {} s", TIMEOUT.as_secs())),
        };
        if written.is_err() {
            self.stream = None;
            self.not_before = Instant::now() + BACK_OFF;
        }
        written
    }

    async fn connect(&mut self) -> Result<(), String> {
        if Instant::now() < self.not_before {
            return Err("the last try failed a moment ago".into());
        }
        let connected = match timeout(TIMEOUT, TcpStream::connect(&self.address)).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no connection within {} s", TIMEOUT.as_secs())),
        };
        // Also after a success: a backend that closes every connection at once is not called more often either.
        self.not_before = Instant::now() + BACK_OFF;
        self.stream = Some(connected?);
        let dropped = std::mem::take(&mut self.dropped);
        info!("access logs are sent to {}, {dropped} lines for it were dropped before", self.address);
        Ok(())
    }

    fn drop_lines(&mut self, count: u64, why: &str) {
        if self.dropped == 0 {
            warn!("access logs for {} are dropped: {why}", self.address);
        }
        self.dropped += count;
        self.lost.fetch_add(count, Relaxed);
    }
}

#[cfg(test)]
#[path = "log_streamer_tests.rs"]
mod tests;
