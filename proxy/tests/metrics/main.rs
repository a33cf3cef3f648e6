//! The metrics pages of shika-proxy beside Envoy's: the same bootstraps, the same traffic, and every page compared.
//!
//! Each scene of `scenes/` is a case of the parity suite (see its README), played on both proxies at a time. Then `/stats` as text and JSON and
//! `/stats/prometheus` are compared: names, types, labels, and values. A difference that `stats.yaml` does not list fails the test, and so does a row
//! of it that nothing needs; `docs/stats.md` is made from it. `promtool` checks every page of the Prometheus format, and a real Prometheus
//! scrapes both proxies.
//!
//! Environment: `SHIKA_ENVOY`, `SHIKA_PROXY` (as for the parity suite), `SHIKA_METRICS_SCENES` (comma-separated parts of names),
//! `SHIKA_METRICS_KEEP` (a directory that keeps what was used and the pages), `SHIKA_WRITE_DOCS` (write `docs/stats.md`), `CI` (without Envoy or
//! Prometheus the suite fails instead of being skipped).

#![allow(clippy::unwrap_used, clippy::panic)]

mod ads;
#[path = "../parity/bootstrap.rs"]
#[allow(dead_code)]
mod bootstrap;
#[path = "../parity/case.rs"]
#[allow(dead_code)]
mod case;
#[path = "../parity/certs.rs"]
mod certs;
#[path = "../parity/client.rs"]
mod client;
#[path = "../common/mod.rs"]
mod common;
mod compare;
#[path = "../parity/control.rs"]
#[allow(dead_code)]
mod control;
#[path = "../parity/frames.rs"]
mod frames;
#[path = "../parity/grpc.rs"]
mod grpc;
#[path = "../parity/h2_client.rs"]
mod h2_client;
#[path = "../parity/h2_server.rs"]
mod h2_server;
#[path = "../parity/observe.rs"]
#[allow(dead_code)]
mod observe;
mod pages;
mod prometheus;
#[path = "../parity/run.rs"]
#[allow(dead_code)]
mod run;
#[path = "../parity/script.rs"]
#[allow(dead_code)]
mod script;
#[path = "../parity/steps.rs"]
mod steps;
#[path = "../parity/subject.rs"]
#[allow(dead_code)]
mod subject;
mod table;
#[path = "../parity/text.rs"]
#[allow(dead_code)]
mod text;
#[path = "../parity/upstream.rs"]
mod upstream;
#[path = "../parity/wire.rs"]
#[allow(dead_code)]
mod wire;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep, timeout},
};

use crate::{
    certs::Certs,
    common::sidecar::{Setup, Sidecar},
    compare::Found,
    pages::Pages,
    prometheus::Prometheus,
    run::Stage,
    subject::Subject,
    table::Table,
};

/// Bound on how long two proxies may take to agree: counters trail behind what clients see.
const SETTLES: Duration = Duration::from_secs(60);

/// Directory of this file.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics")
}

/// Paths of the scenes, sorted; only those whose name has one of the wanted parts.
fn scenes() -> Result<Vec<PathBuf>> {
    let filter = std::env::var("SHIKA_METRICS_SCENES").ok();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(home().join("scenes"))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if filter.as_ref().is_none_or(|filter| filter.split(',').any(|part| name.contains(part.trim()))) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// One proxy after a scene's traffic.
struct Side {
    stage: Stage,
    /// Port of the listener that comes over ADS.
    dynamic: u16,
}

impl Side {
    /// The admin interface.
    fn admin(&self) -> &str {
        &self.stage.run.admin
    }

    /// Starts a proxy, with a control plane where the scene's bootstrap asks for one, and plays the scene.
    async fn play(subject: Subject, scene: &Path, certs: Arc<Certs>, certs_dir: &Path, dir: &Path) -> Result<Side> {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir)?;
        let source = std::fs::read_to_string(scene)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let dynamic = subject::free_port()?;
        let source = source
            .replace("${CONTROL_PLANE}", &listener.local_addr()?.port().to_string())
            .replace("${DYNAMIC}", &dynamic.to_string());
        let path = dir.join("scene.yaml");
        std::fs::write(&path, &source)?;
        let (done, mut is_done) = watch::channel(!source.contains("dynamic_resources"));
        let (_, sessions) = common::control_plane::control_plane_on(listener);
        let mut control_plane = tokio::spawn(ads::serve(sessions, done));
        let played = async {
            let stage = Stage::start(subject, case::read(&path)?, certs, certs_dir, dir).await?;
            timeout(wire::PATIENCE, is_done.wait_for(|done| *done))
                .await
                .context("the control plane is not done")??;
            stage.play().await?;
            anyhow::Ok(Side { stage, dynamic })
        };
        tokio::select! {
            played = played => played,
            ended = &mut control_plane => Err(ended?.err().context("the control plane ended")?),
        }
    }
}

/// Both proxies after a scene's traffic.
struct Played {
    name: String,
    envoy: Side,
    shika: Side,
}

async fn play(path: &Path, certs: Arc<Certs>, root: &Path) -> Result<Played> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let side = |subject: Subject| {
        let dir = root.join(&name).join(subject.name());
        let (certs, certs_dir) = (certs.clone(), root.join("certs"));
        Box::pin(async move { Side::play(subject, path, certs, &certs_dir, &dir).await })
    };
    let (envoy, shika) = tokio::join!(side(Subject::Envoy), side(Subject::Shika));
    let envoy = envoy.with_context(|| format!("{name} on Envoy"))?;
    let shika = shika.with_context(|| format!("{name} on shika-proxy"))?;
    Ok(Played { name, envoy, shika })
}

/// Asks both again and again until they differ in listed ways only.
async fn settled(played: &Played, table: &Table, keep: &Path) -> Result<Found> {
    let patience = std::env::var("SHIKA_METRICS_SETTLES").ok().and_then(|seconds| seconds.parse().ok());
    let deadline = Instant::now() + patience.map_or(SETTLES, Duration::from_secs);
    loop {
        let envoy = Pages::of(&played.envoy).await?;
        let shika = Pages::of(&played.shika).await?;
        let mut found = compare::compare(&envoy, &shika, table);
        if found.unlisted.is_empty() || Instant::now() > deadline {
            envoy.keep(&keep.join(&played.name).join("envoy"))?;
            shika.keep(&keep.join(&played.name).join("shika-proxy"))?;
            found.unlisted.iter_mut().for_each(|line| *line = format!("{}: {line}", played.name));
            return Ok(found);
        }
        // Polling interval: nothing announces a counter but its page.
        sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn metrics_are_envoys() {
    let missing: Vec<&str> = [
        (std::process::Command::new(Subject::Envoy.program()).arg("--version").output().is_err(), "Envoy"),
        (!prometheus::installed(), "Prometheus (scripts/setup.sh prometheus)"),
    ]
    .iter()
    .filter_map(|(missing, what)| missing.then_some(*what))
    .collect();
    if !missing.is_empty() {
        let missing = missing.join(" and ");
        let envoy = !missing.contains("Envoy");
        assert!(envoy || std::env::var_os("CI").is_none(), "{missing}: not installed, and CI checks metrics");
        eprintln!("metrics: skipped, {missing}: not installed");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(compared()).unwrap();
}

/// The page of a sidecar, which puts those of applications behind the proxy's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_a_sidecar_can_be_read() {
    if !prometheus::installed() {
        eprintln!("metrics: skipped, Prometheus is not installed");
        return;
    }
    let application = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = application.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let page = "# HELP jobs_total Jobs.\n# TYPE jobs_total counter\njobs_total 3\n";
        for mut socket in application.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = socket.read(&mut head);
            let length = page.len();
            let _ = write!(
                socket,
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}"
            );
        }
    });
    let configuration = serde_json::json!({
        "metrics": {"aggregate": [{"name": "app", "address": "127.0.0.1", "port": port, "path": "/metrics"}]}
    });
    let mut sidecar = Sidecar::start(Setup { configuration, ..Setup::default() }).await;
    let mut stream = sidecar.session().await;
    stream.send(shika_proto::type_url::CLUSTER, "1", vec![]).await;
    let page = sidecar.unix("kuma-mh-backend-1-default.sock", "GET", "/metrics", "").body;
    assert!(page.contains("envoy_server_live") && page.contains("\njobs_total 3\n"), "{page}");
    let expected = ["no help text", "counter metrics should have \"_total\" suffix"];
    for line in prometheus::promtool(&page).await.unwrap() {
        let sort = line.split_once(' ').map_or("", |(_, sort)| sort);
        let of_units = sort.contains("base unit") || sort.contains("abbreviated units") || sort.contains("should not");
        assert!(expected.contains(&sort) || of_units, "{line}");
    }
}

async fn compared() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let root = match std::env::var_os("SHIKA_METRICS_KEEP") {
        Some(keep) => PathBuf::from(keep),
        None => scratch.path().to_owned(),
    };
    std::fs::create_dir_all(root.join("certs"))?;
    let certs = Arc::new(Certs::make(&root.join("certs"))?);
    let table = table::read(&home().join("stats.yaml"))?;
    let prometheus = Prometheus::start(&root).await?;

    let mut failures = Vec::new();
    let mut used = vec![false; table.rows()];
    let mut families = BTreeSet::new();
    let scenes = scenes()?;
    for path in &scenes {
        let played = play(path, certs.clone(), &root).await?;
        prometheus.scrape(&played)?;
        let found = settled(&played, &table, &root).await?;
        failures.extend(found.unlisted);
        for row in found.used {
            used[row] = true;
        }
        families.extend(found.families);
        failures.extend(prometheus::lint(&played).await?);
        failures.extend(prometheus.agrees(&played).await?);
        for (subject, side) in [("Envoy", played.envoy), ("shika-proxy", played.shika)] {
            let outcome = side.stage.finish().await?;
            // How connections end is the parity suite's matter.
            let missed = outcome.missed.iter().filter(|missed| !missed.contains(".fate: "));
            failures.extend(missed.map(|missed| format!("{} on {subject}: {missed}", played.name)));
        }
    }
    if std::env::var_os("SHIKA_METRICS_SCENES").is_none() {
        failures.extend(table.stale(&used));
        failures.extend(table::dashboards(&home().join("dashboards.txt"), &families)?);
    }
    failures.extend(table::check_page(&table)?);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}
