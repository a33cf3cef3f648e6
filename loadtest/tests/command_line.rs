//! The program as scripts and other tests use it: port files, ready files, signals, JSON, exit codes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

fn loadtest() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shika-loadtest"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process that does not outlive its test.
struct Running(Option<Child>);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    fn signal(&self, name: &str) {
        let pid = self.0.as_ref().unwrap().id().to_string();
        assert!(Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status().unwrap().success());
    }

    fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Polls until the file is there.
fn wait_for(file: &Path) -> String {
    let begin = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(file) {
            return text;
        }
        assert!(begin.elapsed() < LIMIT, "{} was not written", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Echo {
    process: Running,
    target: String,
    dir: tempfile::TempDir,
}

impl Echo {
    fn start(mode: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("port");
        let process = Running::start(loadtest().args(["echo", "--mode", mode, "--port-file"]).arg(&file));
        let target = format!("127.0.0.1:{}", wait_for(&file).trim());
        Self { process, target, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn load_reports_as_json_and_by_exit_code() {
    for (mode, protocol) in [("http", "http1"), ("http", "http2"), ("tcp", "tcp")] {
        let echo = Echo::start(mode);
        let load = |extra: &[&str]| {
            let base = ["load", "--target", &echo.target, "--protocol", protocol, "--warmup", "0s", "--json"];
            loadtest().args(base).args(extra).output().unwrap()
        };
        for extra in [&["--duration", "2s"][..], &["--duration", "2s", "--rate", "200"][..]] {
            let output = load(extra);
            let report = json(&output);
            assert!(output.status.success(), "{protocol} {extra:?}: {report}");
            assert!(report["requests"].as_u64().unwrap() > 0, "{protocol} {extra:?}: {report}");
            assert_eq!(report["failed"], 0, "{protocol} {extra:?}: {report}");
            assert!(report["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{protocol} {extra:?}: {report}");
        }
    }
}

#[test]
fn load_on_a_closed_port_fails() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let target = format!("127.0.0.1:{port}");
    let output = loadtest()
        .args(["load", "--target", &target, "--warmup", "0s", "--duration", "2s", "--json"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(json(&output)["failures"]["connect"].as_u64().unwrap() > 0);
}

#[test]
fn hold_ends_well_on_a_signal() {
    let echo = Echo::start("http");
    let ready = echo.file("ready");
    let hold =
        Running::start(loadtest().args(["hold", "--json", "--target", &echo.target, "--ready-file"]).arg(&ready));
    assert_eq!(wait_for(&ready).trim(), "30");
    hold.signal("TERM");
    let output = hold.output();
    let tally = json(&output);
    assert!(output.status.success(), "{tally}");
    assert_eq!((&tally["connections"], &tally["lost_connections"]), (&30.into(), &0.into()), "{tally}");
    assert!(tally["requests"].as_u64().unwrap() >= 20 && tally["messages"].as_u64().unwrap() >= 10, "{tally}");
}

#[test]
fn hold_fails_when_the_subject_dies() {
    let echo = Echo::start("http");
    let ready = echo.file("ready");
    let hold =
        Running::start(loadtest().args(["hold", "--json", "--target", &echo.target, "--ready-file"]).arg(&ready));
    wait_for(&ready);
    echo.process.signal("KILL");
    let output = hold.output();
    let tally = json(&output);
    assert_eq!(output.status.code(), Some(1), "{tally}");
    assert_eq!(tally["lost_connections"], 30, "{tally}");
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = loadtest().args(["echo", "--port", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{message}");
}

#[test]
fn bench_names_what_is_missing() {
    for (arguments, expected) in [
        (
            &["bench", "--subject", "shika", "--shika", "/nowhere/shika-proxy"][..],
            "cargo build --release -p shika-proxy",
        ),
        (&["bench", "--scenario", "http9"][..], "--scenario http9"),
    ] {
        let output = loadtest().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn greet_times_a_server_that_speaks_first() {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    // Greets three clients, and hangs up on the fourth.
    let server = std::thread::spawn(move || {
        for number in 0..4 {
            let mut stream = listener.accept().unwrap().0;
            if number < 3 {
                stream.write_all(b"220 hello\r\n").unwrap();
            }
        }
    });
    let greet = |count: &str| {
        let output = loadtest().args(["greet", "--json", "--count", count, "--target", &target]).output().unwrap();
        (output.status.success(), output)
    };
    let (good, output) = greet("3");
    let shown = json(&output);
    assert!(good && shown["greetings"] == 3 && shown["time_us"]["p99"].as_f64().unwrap() > 0.0, "{shown}");
    let (good, output) = greet("1");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!good && said.contains(&target) && said.contains("greeting"), "{said}");
    server.join().unwrap();
}
