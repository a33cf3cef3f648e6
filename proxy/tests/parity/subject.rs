//! Starting, asking and stopping the program under test, and picking ports for it.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::wire::{Kind, Message, PATIENCE, Wire};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Real Envoy.
    Envoy,
    /// Ours.
    Shika,
}

impl Subject {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Envoy => "envoy",
            Subject::Shika => "shika-proxy",
        }
    }

    /// The program: `SHIKA_ENVOY` or `envoy` on PATH; our own binary as cargo built it, or `SHIKA_PROXY`.
    pub fn program(self) -> PathBuf {
        match self {
            Subject::Envoy => std::env::var_os("SHIKA_ENVOY").map_or_else(|| "envoy".into(), PathBuf::from),
            Subject::Shika => {
                std::env::var_os("SHIKA_PROXY").map_or_else(|| env!("CARGO_BIN_EXE_shika-proxy").into(), PathBuf::from)
            }
        }
    }
}

/// A running program.
pub struct Running {
    child: Child,
    /// Where its admin server listens, from `--admin-address-path`.
    pub admin: String,
    stderr: PathBuf,
}

impl Running {
    /// Starts the subject on a bootstrap file in `dir` and waits until its admin server has an address. `PARITY_CA` in its environment is the CA.
    pub async fn start(subject: Subject, dir: &Path, certs_dir: &Path) -> Result<Self> {
        let address_file = dir.join("admin-address");
        let stderr = dir.join("stderr");
        let child = Command::new(subject.program())
            .arg("-c")
            .arg(dir.join("bootstrap.yaml"))
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--disable-hot-restart", "--log-level", "warning"])
            .arg("--admin-address-path")
            .arg(&address_file)
            .env("PARITY_CA", std::fs::read_to_string(certs_dir.join("ca.pem"))?)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.join("stdout"))?)
            .stderr(std::fs::File::create(&stderr)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", subject.program().display()))?;
        let mut running = Running { child, admin: String::new(), stderr };
        let deadline = Instant::now() + PATIENCE;
        while running.admin.is_empty() {
            running.check_start(deadline)?;
            // Polling interval: nothing announces the file but the file itself.
            sleep(Duration::from_millis(10)).await;
            running.admin = std::fs::read_to_string(&address_file).unwrap_or_default().trim().to_owned();
        }
        Ok(running)
    }

    /// Waits until its admin server says that it is live. Upstreams have to be served by now: it may check their health first.
    pub async fn live(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // LIVE comes when all listeners are up; before that /ready says PRE_INITIALIZING or INITIALIZING.
            if admin(&self.admin, "GET /ready").await.is_ok_and(|answer| answer.body.starts_with(b"LIVE")) {
                return Ok(());
            }
            self.check_start(deadline)?;
            // Polling interval: nothing announces readiness but the admin server itself.
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn check_start(&mut self, deadline: Instant) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended at start with {status}:\n{}", self.tail());
        }
        if Instant::now() > deadline {
            bail!("not LIVE after {PATIENCE:?}:\n{}", self.tail());
        }
        Ok(())
    }

    /// Asks it to quit, and kills it when it does not. Returns how it ended.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended by itself with {status}:\n{}", self.tail());
        }
        let asked = admin(&self.admin, "POST /quitquitquit").await;
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => {
                self.child.kill().await?;
                bail!("it did not quit within {PATIENCE:?} after POST /quitquitquit ({asked:?}):\n{}", self.tail());
            }
        }
    }

    /// The end of what it wrote to stderr.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.stderr).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let cut = |line: &&str| line.chars().take(600).collect::<String>();
        lines[lines.len().saturating_sub(6)..].iter().map(cut).collect::<Vec<_>>().join("\n")
    }
}

/// One admin call on a connection of its own.
pub async fn admin(address: &str, request: &str) -> Result<Message> {
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
    let mut wire = Wire::new(Box::new(stream));
    let text = format!("{request} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let sent = wire.send(text.as_bytes()).await;
    match wire.message(Kind::Response { head: false }).await {
        Ok(message) => Ok(message),
        Err(end) => bail!("admin {request}: {end:?} (sent: {sent:?})"),
    }
}

/// A port for a listener of the subject. It lies below the range from which the kernel serves `bind(0)` and outgoing connections, so
/// that nobody is given it by chance between here and the subject's own bind.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 12_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        // Two runs of the suite on one machine begin at different places.
        AtomicU16::new(FIRST + (std::process::id() % 15_000) as u16)
    });
    let ceiling = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse::<u16>().ok())
        .filter(|first| *first > FIRST + 1000)
        .unwrap_or(32_768);
    for _ in 0..ceiling {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if port >= ceiling || port < FIRST {
            NEXT.store(FIRST, Ordering::Relaxed);
            continue;
        }
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port below {ceiling}")
}
