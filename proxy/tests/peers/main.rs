//! gRPC, WebSocket and extended CONNECT through a pair of sidecars, client to server, with clients and servers that others have written: `grpcio`,
//! `websockets` and `h2` of PyPI. The same steps run through a pair of shika-proxy and a pair of Envoy, side by side; each step's outcome has to be the
//! same, unless `differences.yaml` lists it with its reason. A listed difference that no longer occurs fails too.
//!
//! Environment: `SHIKA_PEERS_PYTHON` (default `target/tools/venv/bin/python`, which `scripts/setup.sh peers` makes), `SHIKA_ENVOY` (default `envoy` on
//! PATH), `SHIKA_PEERS_STEPS` (a part of the names of the steps to run), `SHIKA_PEERS_SHOW` (print outcomes as they come), `SHIKA_PEERS_LIMIT` (seconds
//! that a step may take, 60 unless told), `CI` (what is missing fails the test instead of being skipped).
#![allow(clippy::unwrap_used, clippy::panic)]

mod processes;
mod sidecars;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::Result;
use serde::Deserialize;
use serde_json::json;

use processes::{Applications, Sidecar, Step, steps};
use sidecars::Certificates;

/// Where Shika differs from Envoy, and why that is so.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    /// Name of the step.
    at: String,
    /// Its outcome through Envoy.
    envoy: String,
    /// Its outcome through Shika.
    shika: String,
    /// Why that is accepted.
    reason: String,
}

/// A pair of sidecars between Python peers: the outcome of each step.
fn run(program: &Path, python: &Path, certificates: &Certificates, directory: &Path) -> Result<Vec<Step>> {
    let applications = Applications::start(python)?;
    let victim = Applications::start(python)?;
    let port = |name: &str| match name {
        "victim" => victim.port("grpc"),
        _ => applications.port(name),
    };
    let server = Sidecar::start(
        program,
        &sidecars::server(certificates, &|name| port(name).unwrap()),
        &directory.join("server"),
    )?;
    let inbound = |name: &str| -> u16 { server.listener(name).unwrap().rsplit_once(':').unwrap().1.parse().unwrap() };
    let client = Sidecar::start(program, &sidecars::client(certificates, &inbound), &directory.join("client"))?;
    let addresses = json!({
        "grpc": client.listener("grpc")?,
        "aging": client.listener("aging")?,
        "victim": client.listener("victim")?,
        "tunnel": client.listener("tunnel")?,
        "websocket_h1": client.listener("websocket_h1")?,
        "websocket_h2": client.listener("websocket_h2")?,
        "control": format!("127.0.0.1:{}", applications.port("control")?),
        "victim_control": format!("127.0.0.1:{}", victim.port("control")?),
        "client_admin": client.admin,
        "server_admin": server.admin,
        "only": std::env::var("SHIKA_PEERS_STEPS").ok(),
    });
    let show = std::env::var_os("SHIKA_PEERS_SHOW").is_some();
    let found = steps(python, &addresses, |step| {
        if show {
            print(&format!("{}: {} ({:.2} s): {}\n", program.display(), step.name, step.seconds, step.outcome));
        }
    });
    if found.as_ref().map_or(true, |found| found.iter().any(|step| step.outcome.starts_with("FAILED:"))) {
        print(&format!("{}:\n{}\n{}\n", program.display(), client.tail(), server.tail()));
    }
    found
}

/// Past the capture of the test's output: this is its report.
fn print(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What is missing on this machine to run anything.
fn missing(python: &Path, envoy: &Path) -> Option<String> {
    let peers = Command::new(python).args(["-c", "import grpc, websockets, h2"]).output();
    if !peers.is_ok_and(|output| output.status.success()) {
        return Some(format!(
            "no Python with grpcio, websockets and h2 at `{}`: run `scripts/setup.sh peers`, or set SHIKA_PEERS_PYTHON",
            python.display()
        ));
    }
    let version = Command::new(envoy).arg("--version").output();
    (!version.is_ok_and(|output| output.status.success()))
        .then(|| format!("no Envoy at `{}`: run `scripts/setup.sh envoy`, or set SHIKA_ENVOY", envoy.display()))
}

#[test]
fn real_peers_see_the_same_through_both() {
    let python = std::env::var_os("SHIKA_PEERS_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/venv/bin/python"), PathBuf::from);
    let envoy = std::env::var_os("SHIKA_ENVOY").map_or_else(|| "envoy".into(), PathBuf::from);
    if let Some(missing) = missing(&python, &envoy) {
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        print(&format!("\nSKIPPED: {missing}\n"));
        return;
    }
    let certificates = Certificates::make();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (by_envoy, by_shika) = thread::scope(|scope| {
        let by_envoy = scope.spawn(|| run(&envoy, &python, &certificates, &at("envoy")));
        let by_shika = run(Path::new(env!("CARGO_BIN_EXE_shika-proxy")), &python, &certificates, &at("shika"));
        (by_envoy.join().unwrap().unwrap(), by_shika.unwrap())
    });

    let listed: Vec<Difference> = serde_yaml_ng::from_str(include_str!("differences.yaml")).unwrap();
    let names = |steps: &[Step]| steps.iter().map(|step| step.name.clone()).collect::<BTreeSet<_>>();
    assert_eq!(names(&by_envoy), names(&by_shika), "both run the same steps");
    let mut report = String::new();
    let (mut wrong, mut differ) = (0, 0);
    for shika in &by_shika {
        let envoy = by_envoy.iter().find(|envoy| envoy.name == shika.name).unwrap();
        let listed = listed.iter().find(|listed| listed.at == shika.name);
        let expected = listed.is_none_or(|listed| listed.envoy == envoy.outcome && listed.shika == shika.outcome);
        let same = envoy.outcome == shika.outcome;
        let verdict = if [envoy, shika].iter().any(|step| step.outcome.starts_with("FAILED:")) {
            "FAILED"
        } else if !expected {
            "NOT AS LISTED"
        } else if same {
            "same"
        } else if listed.is_some() {
            "listed"
        } else {
            "DIFFERS"
        };
        differ += usize::from(!same);
        wrong += usize::from(!matches!(verdict, "same" | "listed"));
        let _ = writeln!(report, "{verdict:8} {} ({:.2} s, {:.2} s)", shika.name, envoy.seconds, shika.seconds);
        if verdict == "same" {
            let _ = writeln!(report, "           {}", shika.outcome);
        } else {
            let _ = writeln!(report, "    envoy: {}\n    shika: {}", envoy.outcome, shika.outcome);
        }
        if let Some(listed) = listed {
            let _ = writeln!(report, "           {}", listed.reason.trim());
        }
    }
    let _ =
        writeln!(report, "{} steps through both pairs, {differ} differ, {wrong} of them unexpectedly", by_shika.len());
    print(&report);
    assert_eq!(wrong, 0, "steps came out wrong; they are listed above");
}
