//! Starting and stopping the proxies and the Python peers.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Bound on everything that is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that ends with the value.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks again and again until there is a result.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what} did not come within {LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A sidecar.
pub struct Sidecar {
    _process: Process,
    /// Where its admin interface listens.
    pub admin: String,
    log: PathBuf,
}

impl Sidecar {
    /// Starts `program` and waits until it is live. Its files go to `directory`.
    pub fn start(program: &Path, bootstrap: &Value, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (file, address, log) = (directory.join("bootstrap.json"), directory.join("admin"), directory.join("log"));
        fs::write(&file, bootstrap.to_string())?;
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&address)
            // A drain is spread over the drain time and has to take place while the steps look.
            .args(["--concurrency", "2", "--drain-strategy", "immediate", "--log-level", "warning"])
            .args(["--use-dynamic-base-id", "--disable-hot-restart"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut process = Process(child);
        let admin = eventually("LIVE", || {
            if let Some(status) = process.0.try_wait()? {
                bail!("{} ended with {status}: {}", program.display(), tail(&log));
            }
            let admin = fs::read_to_string(&address).unwrap_or_default().trim().to_owned();
            Ok(get(&admin, "/ready").is_ok_and(|text| text.contains("LIVE\n")).then_some(admin))
        })?;
        Ok(Sidecar { _process: process, admin, log })
    }

    /// Where a listener listens.
    pub fn listener(&self, name: &str) -> Result<String> {
        let text = get(&self.admin, "/listeners")?;
        let found = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix("::"));
        Ok(found.with_context(|| format!("no listener {name} in {text}"))?.to_owned())
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// One GET on its own connection: all of the answer.
fn get(address: &str, path: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(LIMIT))?;
    write!(socket, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    Ok(text)
}

/// A directory of this test.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

fn script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    // Python writes its compiled modules beside the sources unless it is told not to.
    command.arg("-B").arg(home().join(name)).env("GRPC_VERBOSITY", "NONE");
    command
}

/// The applications of `server.py`.
pub struct Applications {
    _process: Process,
    ports: Value,
}

impl Applications {
    /// Starts them and waits until they listen.
    pub fn start(python: &Path) -> Result<Self> {
        let mut child = script(python, "server.py")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let stdout = child.stdout.take().context("stdout")?;
        let process = Process(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ports = serde_json::from_str(&line).context("server.py did not tell its ports")?;
        Ok(Applications { _process: process, ports })
    }

    /// The port of one of them.
    pub fn port(&self, name: &str) -> Result<u16> {
        let port = self.ports[name].as_u64().with_context(|| format!("no application {name}"))?;
        Ok(u16::try_from(port)?)
    }
}

/// A line of the client.
pub struct Step {
    /// Its name.
    pub name: String,
    /// How it came out.
    pub outcome: String,
    /// How long it took.
    pub seconds: f64,
}

/// Runs `client.py` to its end. `done` is told of each step as it ends.
pub fn steps(python: &Path, addresses: &Value, done: impl Fn(&Step)) -> Result<Vec<Step>> {
    let mut child = script(python, "client.py")
        .arg(addresses.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", python.display()))?;
    let stdout = child.stdout.take().context("stdout")?;
    let mut process = Process(child);
    let mut found = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line: Value = serde_json::from_str(&line?).context("a line of client.py")?;
        let text = |name: &str| line[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {line}"));
        let step =
            Step { name: text("step")?, outcome: text("outcome")?, seconds: line["seconds"].as_f64().unwrap_or(0.0) };
        done(&step);
        found.push(step);
    }
    let status = process.0.wait()?;
    if !status.success() {
        bail!("client.py ended with {status} after {} steps", found.len());
    }
    Ok(found)
}
