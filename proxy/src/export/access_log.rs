//! Writers of access logs: one task per path, all on one thread, so that a slow disk holds up neither a worker nor the control thread.
//!
//! Source: Envoy documentation, "Access logging" and "File system statistics"; `--file-flush-interval-msec`, `--file-flush-min-size-kb`.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use shika_data::{model::access_log::LogSink, stats::FilesystemStats};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior},
};
use tracing::{error, info};

use super::{gather::Gather, log_streamer};

/// Lines that may wait for a writer, per path.
const QUEUE_LINES: usize = 16 * 1024;
/// Bytes a writer holds while its file takes none. What comes after waits in the queue, and then is dropped and counted.
const MAX_BUFFERED: usize = 1024 * 1024;
/// Pause after a failed open or write.
const BACK_OFF: Duration = Duration::from_secs(1);
/// Pause after a pipe was full.
const PIPE_BACK_OFF: Duration = Duration::from_millis(20);

/// When lines are written out.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// At least this often.
    pub interval: Duration,
    /// As soon as this many bytes wait.
    pub min_size: usize,
}

/// The sinks of the process, by path. Cheap to clone.
#[derive(Clone)]
pub struct AccessLogs {
    sinks: Arc<Mutex<BTreeMap<Arc<str>, LogSink>>>,
    commands: mpsc::UnboundedSender<Command>,
    /// Lines that a TCP backend did not take.
    lost: Arc<AtomicU64>,
}

enum Command {
    Add(Arc<str>, mpsc::Receiver<Bytes>),
    Reopen,
    Flush(oneshot::Sender<()>),
}

impl AccessLogs {
    /// The sinks, and what [`run`] needs on the writer's thread. Lines for the path `streamed` go to the TCP backends that they name instead of a file.
    pub fn new(streamed: Option<PathBuf>) -> (AccessLogs, Commands) {
        let (commands, received) = mpsc::unbounded_channel();
        let lost = Arc::<AtomicU64>::default();
        (AccessLogs { sinks: Arc::default(), commands, lost: lost.clone() }, Commands { received, streamed, lost })
    }

    /// The sink of `path`. Two logs to one path share one writer, so their lines do not mix.
    pub fn sink(&self, path: &str) -> LogSink {
        let mut sinks = self.sinks.lock();
        if let Some(sink) = sinks.get(path) {
            return sink.clone();
        }
        // A path that only this map (key and sink) and its writer still hold belongs to a configuration that is gone; its writer ends with it.
        sinks.retain(|key, _| Arc::strong_count(key) > 3);
        let (sink, lines) = LogSink::new(path, QUEUE_LINES);
        // Without a writer's thread (validation) lines have nowhere to go, and none is written.
        let _ = self.commands.send(Command::Add(sink.path.clone(), lines));
        sinks.insert(sink.path.clone(), sink.clone());
        sink
    }

    /// Opens all files again: they were rotated.
    pub fn reopen(&self) {
        let _ = self.commands.send(Command::Reopen);
    }

    /// Returns when all that was logged before is in the files, or after `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Flush(done)).is_ok() {
            // On a time-out the lines are lost with the process; there is nobody left to tell.
            let _ = tokio::time::timeout(limit, wait).await;
        }
    }

    /// Lines lost so far to full queues and to TCP backends that were away.
    pub fn dropped(&self) -> u64 {
        self.sinks.lock().values().map(LogSink::dropped).sum::<u64>() + self.lost.load(Relaxed)
    }
}

/// The writers' end of [`AccessLogs`].
pub struct Commands {
    received: mpsc::UnboundedReceiver<Command>,
    streamed: Option<PathBuf>,
    lost: Arc<AtomicU64>,
}

/// Runs the writers until all [`AccessLogs`] are gone. Has to run in a [`tokio::task::LocalSet`].
pub async fn run(mut commands: Commands, flush: Flush, stats: FilesystemStats) {
    let mut writers: Vec<mpsc::UnboundedSender<WriterCommand>> = Vec::new();
    while let Some(command) = commands.received.recv().await {
        writers.retain(|writer| !writer.is_closed());
        match command {
            Command::Add(path, lines) => {
                let (writer, orders) = mpsc::unbounded_channel();
                writers.push(writer);
                if commands.streamed.as_deref() == Some(Path::new(&*path)) {
                    tokio::task::spawn_local(log_streamer::run(lines, orders, commands.lost.clone()));
                } else {
                    tokio::task::spawn_local(Writer::new(path, flush, stats.clone()).run(lines, orders));
                }
            }
            Command::Reopen => {
                for writer in &writers {
                    let _ = writer.send(WriterCommand::Reopen);
                }
            }
            Command::Flush(done) => {
                let mut waits = Vec::new();
                for writer in &writers {
                    let (done, wait) = oneshot::channel();
                    if writer.send(WriterCommand::Flush(done)).is_ok() {
                        waits.push(wait);
                    }
                }
                for wait in waits {
                    let _ = wait.await;
                }
                let _ = done.send(());
            }
        }
    }
}

/// What is asked of who writes one path's lines.
pub(super) enum WriterCommand {
    /// Open the file again.
    Reopen,
    /// Write what was logged before, and say so.
    Flush(oneshot::Sender<()>),
}

struct Writer {
    path: Arc<str>,
    flush: Flush,
    stats: FilesystemStats,
    out: Option<Out>,
    buffer: BytesMut,
    /// Not before this.
    retry: Option<Instant>,
    /// A failure was logged and nothing has been written since.
    failing: bool,
}

enum Out {
    File(File),
    Stdout,
    Stderr,
}

impl Writer {
    fn new(path: Arc<str>, flush: Flush, stats: FilesystemStats) -> Self {
        Writer { path, flush, stats, out: None, buffer: BytesMut::new(), retry: None, failing: false }
    }

    async fn run(mut self, mut lines: mpsc::Receiver<Bytes>, mut commands: mpsc::UnboundedReceiver<WriterCommand>) {
        // Opened at once, so that a path that cannot be opened is known before the first request; a later try may succeed.
        self.write();
        let mut tick = tokio::time::interval(self.flush.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut batch, mut gather) = (Vec::new(), Gather::default());
        loop {
            let retry = self.retry;
            tokio::select! {
                command = commands.recv() => match command {
                    Some(WriterCommand::Reopen) => {
                        self.write();
                        self.out = None;
                        self.retry = None;
                        self.write();
                    }
                    Some(WriterCommand::Flush(done)) => {
                        while let Ok(line) = lines.try_recv() {
                            self.push(&line);
                        }
                        self.retry = None;
                        self.write();
                        let _ = done.send(());
                    }
                    None => break,
                },
                () = gather.over(), if gather.goes_on() => {}
                count = lines.recv_many(&mut batch, 256), if !gather.goes_on() && self.buffer.len() < MAX_BUFFERED => {
                    if count == 0 {
                        break;
                    }
                    if lines.is_empty() {
                        gather.begin();
                    }
                    for line in batch.drain(..) {
                        self.push(&line);
                    }
                    if self.buffer.len() >= self.flush.min_size {
                        self.write();
                    }
                }
                () = sleep_until(retry), if retry.is_some() => {
                    self.retry = None;
                    self.write();
                }
                _ = tick.tick(), if !self.buffer.is_empty() => {
                    self.stats.flushed_by_timer().inc();
                    self.write();
                }
            }
        }
        self.retry = None;
        self.write();
    }

    fn push(&mut self, line: &[u8]) {
        self.buffer.extend_from_slice(line);
        self.stats.write_buffered().inc();
        self.stats.write_total_buffered().add(line.len() as u64);
    }

    /// Writes what waits; on failure the rest stays, and [`Self::retry`] says when to go on.
    fn write(&mut self) {
        if self.retry.is_some_and(|retry| retry > Instant::now()) {
            return;
        }
        self.retry = None;
        if self.out.is_none() {
            match open(&self.path) {
                Ok(out) => self.out = Some(out),
                Err(error) => {
                    self.stats.reopen_failed().inc();
                    return self.failed("opened", &error, BACK_OFF);
                }
            }
        }
        while !self.buffer.is_empty() {
            let Some(out) = &mut self.out else { return };
            let written = match out {
                Out::File(file) => file.write(&self.buffer),
                Out::Stdout => write_through(io::stdout().lock(), &self.buffer),
                Out::Stderr => io::stderr().lock().write(&self.buffer),
            };
            match written {
                Ok(0) => return self.failed("written", &ErrorKind::WriteZero.into(), BACK_OFF),
                Ok(count) => {
                    let _ = self.buffer.split_to(count);
                    self.stats.write_completed().inc();
                    self.stats.write_total_buffered().sub(count as u64);
                    if self.failing {
                        self.failing = false;
                        info!("access log {}: lines are written again", self.path);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A pipe whose reader is slow is no failure.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.retry = Some(Instant::now() + PIPE_BACK_OFF);
                    return;
                }
                Err(error) => {
                    if error.kind() == ErrorKind::BrokenPipe {
                        self.out = None;
                    }
                    return self.failed("written", &error, BACK_OFF);
                }
            }
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error, pause: Duration) {
        self.stats.write_failed().inc();
        self.retry = Some(Instant::now() + pause);
        if !self.failing {
            self.failing = true;
            error!(
                "access log {}: cannot be {what}: {error}; up to {MAX_BUFFERED} bytes wait, then lines are dropped and counted in server.log_lines_dropped",
                self.path
            );
        }
    }
}

async fn sleep_until(retry: Option<Instant>) {
    if let Some(retry) = retry {
        tokio::time::sleep_until(retry).await;
    }
}

/// Standard output is line-buffered by the library: what it took has to be pushed on, or the last part of a line would stay behind.
fn write_through(mut out: impl Write, bytes: &[u8]) -> io::Result<usize> {
    let count = out.write(bytes)?;
    out.flush()?;
    Ok(count)
}

fn open(path: &str) -> io::Result<Out> {
    let standard = match path {
        "/dev/stdout" => Some(Out::Stdout),
        "/dev/stderr" => Some(Out::Stderr),
        _ => None,
    };
    if let Some(out) = standard {
        // A pipe is opened anew to be non-blocking without changing the descriptor that others share. Anything else is used as it is: a second
        // descriptor of a regular file would have its own offset, and overwrite.
        let is_pipe = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
        if !is_pipe {
            return Ok(out);
        }
    }
    // Non-blocking: a FIFO without reader fails at once (ENXIO), a full one says so (EAGAIN).
    OpenOptions::new()
        .create(true)
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map(Out::File)
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
