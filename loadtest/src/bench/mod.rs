//! Shika and Envoy side by side: the same bootstraps, the same load, alternating in one run; CPU time per request as the
//! kernel counts it for the proxy processes.

mod report;
mod scenario;
mod setup;
mod subject;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::echo;
use crate::load::{Load, Plan, Protocol};
use crate::text::{note, parse_duration, say};
use report::{Figure, Report, Round, ScenarioReport};
use scenario::{SCENARIOS, Scenario};
use setup::{Upstream, WorkDir};
use subject::{Proxy, Subject};

/// Time without traffic before resident memory is read: start-up work is over by then.
const IDLE: Duration = Duration::from_secs(1);
/// Load that comes between the two readings of resident memory.
const MEMORY_LOAD: Duration = Duration::from_secs(3);

/// Which proxies are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// Envoy alone.
    Envoy,
    /// Shika alone.
    Shika,
    /// Both, alternating.
    Both,
}

/// What and how to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which proxies to measure.
    #[arg(long, value_enum, default_value = "both")]
    subject: Choice,
    /// Shika's binary.
    #[arg(long, default_value = "target/release/shika-proxy")]
    shika: PathBuf,
    /// Envoy's binary, or a launcher that turns into it; a bare name is looked up in PATH.
    #[arg(long, default_value = "envoy")]
    envoy: PathBuf,
    /// Scenario to run; may be given several times. All when not given.
    #[arg(long)]
    scenario: Vec<String>,
    /// Rounds; each measures every subject once, in turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured time per round and subject.
    #[arg(long, value_parser = parse_duration, default_value = "4s")]
    duration: Duration,
    /// Load before each measured time.
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    warmup: Duration,
    /// Client connections.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Requests in flight per HTTP/2 connection.
    #[arg(long, default_value_t = 10)]
    streams: usize,
    /// Requests per second offered to both subjects; without it each is driven as fast as it answers.
    #[arg(long)]
    rate: Option<f64>,
    /// CPUs that the proxies may use, in taskset's form.
    #[arg(long)]
    proxy_cpus: Option<String>,
    /// Starts per subject for the time from start to first byte; 0 leaves it out.
    #[arg(long, default_value_t = 10)]
    starts: usize,
    /// Directory that receives results.md and results.json.
    #[arg(long)]
    out_dir: Option<PathBuf>,
    /// Exit with 1 when a target is missed.
    #[arg(long)]
    check: bool,
    /// List the scenarios and exit.
    #[arg(long)]
    list: bool,
}

/// Runs the chosen scenarios and prints the report.
///
/// # Errors
/// When a subject cannot be found or started; a scenario that fails is part of the report and of the exit code.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        for scenario in SCENARIOS {
            say(&format!("{:<24} {}", scenario.name, scenario.what))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&arguments.scenario)?;
    let work = WorkDir::create()?;
    let mut subjects = Vec::new();
    if arguments.subject != Choice::Shika {
        subjects.push(Subject::find("envoy", &arguments.envoy, arguments.proxy_cpus.as_deref())?);
    }
    if arguments.subject != Choice::Envoy {
        subjects.push(Subject::find("shika", &arguments.shika, arguments.proxy_cpus.as_deref())?);
    }
    for subject in &mut subjects {
        identify(subject, &work).await?;
    }
    let mut report = Report::new(&subjects, &arguments);
    for scenario in chosen {
        report.scenarios.push(measure_scenario(scenario, &subjects, &work, &arguments).await);
    }
    if arguments.starts > 0 {
        report.start_ms = measure_starts(&subjects, &work, arguments.starts)?;
        report.rss_idle_mib = Vec::new();
        for subject in &subjects {
            let (idle, after) = measure_memory(subject, &work).await?;
            report.rss_idle_mib.push(idle);
            report.rss_after_mib.push(after);
        }
    }
    let markdown = report.markdown();
    say(&markdown)?;
    if let Some(dir) = &arguments.out_dir {
        write_results(dir, &markdown, &report)?;
    }
    let failed = report.scenarios.iter().any(|scenario| scenario.failure.is_some());
    let missed = arguments.check && report.misses_a_target();
    Ok(if failed || missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Scenario>> {
    for name in names {
        ensure!(
            SCENARIOS.iter().any(|scenario| scenario.name == name),
            "--scenario {name}: no such scenario; --list shows them"
        );
    }
    Ok(SCENARIOS.iter().filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name)).collect())
}

fn write_results(dir: &Path, markdown: &str, report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--out-dir {}", dir.display()))?;
    std::fs::write(dir.join("results.md"), markdown).context("results.md")?;
    std::fs::write(dir.join("results.json"), serde_json::to_string_pretty(report)?).context("results.json")?;
    Ok(())
}

/// Starts the subject once: a launcher is replaced by the binary it turns into, so that no later figure contains it, and the
/// version comes from the admin endpoint.
async fn identify(subject: &mut Subject, work: &WorkDir) -> anyhow::Result<()> {
    let upstream = Upstream::start(echo::Mode::Http)?;
    let (mut proxies, _) = start_proxies(&SCENARIOS[0], subject, work, upstream.port).await?;
    for proxy in &mut proxies {
        subject.path = proxy.executable()?;
        subject.version = proxy.version().await?;
    }
    note(&format!("{}: {} ({})", subject.name, subject.path.display(), subject.version));
    Ok(())
}

async fn measure_scenario(
    scenario: &'static Scenario,
    subjects: &[Subject],
    work: &WorkDir,
    arguments: &Arguments,
) -> ScenarioReport {
    let mut shown = ScenarioReport::new(scenario, subjects);
    for round in 0..arguments.rounds.max(1) {
        // Every other round goes the other way round, so that neither subject always runs on the warmer machine.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..subjects.len()).collect() } else { (0..subjects.len()).rev().collect() };
        for at in order {
            let Some(subject) = subjects.get(at) else { continue };
            match measure_round(scenario, subject, work, arguments).await {
                Ok(round_figures) => {
                    note(&format!(
                        "{:<24} round {} {:<6} {:7.1} µs/request, {:6.0} requests/s",
                        scenario.name,
                        round + 1,
                        subject.name,
                        round_figures.cpu_us,
                        round_figures.per_second
                    ));
                    shown.add(at, round_figures);
                }
                Err(error) => {
                    let failure = format!("{}, round {}: {error:#}", subject.name, round + 1);
                    note(&format!("{:<24} {failure}", scenario.name));
                    shown.failure = Some(failure);
                    return shown;
                }
            }
        }
    }
    shown
}

async fn measure_round(
    scenario: &Scenario,
    subject: &Subject,
    work: &WorkDir,
    arguments: &Arguments,
) -> anyhow::Result<Round> {
    let upstream = Upstream::start(scenario.upstream)?;
    let (proxies, target) = start_proxies(scenario, subject, work, upstream.port).await?;
    let plan = Plan {
        target,
        protocol: scenario.protocol,
        host: "backend".into(),
        path: "/".into(),
        payload: scenario.payload,
        connections: arguments.connections,
        streams: arguments.streams,
        rate: arguments.rate,
        new_connection: scenario.new_connection,
        timeout: Duration::from_secs(10),
    };
    let load = Load::start(&plan);
    tokio::time::sleep(arguments.warmup).await;
    load.record();
    let (begin, first_cpu, first) = (Instant::now(), cpu_of(&proxies)?, load.progress().completed());
    tokio::time::sleep(arguments.duration).await;
    let (elapsed, last_cpu, last) = (begin.elapsed(), cpu_of(&proxies)?, load.progress().completed());
    let record = load.finish().await;
    ensure!(
        record.failed() == 0,
        "{} requests failed, the first: {}",
        record.failed(),
        record.first_failure.as_deref().unwrap_or("unknown")
    );
    let requests = last - first;
    ensure!(requests > 0, "no request was answered");
    Ok(Round {
        cpu_us: (last_cpu - first_cpu).as_secs_f64() * 1e6 / requests as f64,
        per_second: requests as f64 / elapsed.as_secs_f64(),
        p50_us: record.latency.percentile(50.0).as_secs_f64() * 1e6,
        p99_us: record.latency.percentile(99.0).as_secs_f64() * 1e6,
    })
}

/// Starts the scenario's proxies from the last hop to the first and waits until each says that it is live. Returns the first
/// hop's address.
async fn start_proxies(
    scenario: &Scenario,
    subject: &Subject,
    work: &WorkDir,
    upstream_port: u16,
) -> anyhow::Result<(Vec<Proxy>, std::net::SocketAddr)> {
    let mut proxies = Vec::new();
    let mut next = upstream_port;
    for hop in scenario.hops.iter().rev() {
        let rendered = work.render(hop, next)?;
        let mut proxy = Proxy::start(subject, &rendered, work)?;
        proxy.wait_until_live().await?;
        next = rendered.listener_port;
        proxies.push(proxy);
    }
    Ok((proxies, setup::loopback(next)))
}

fn cpu_of(proxies: &[Proxy]) -> anyhow::Result<Duration> {
    proxies.iter().map(Proxy::cpu_time).sum()
}

fn measure_starts(subjects: &[Subject], work: &WorkDir, starts: usize) -> anyhow::Result<Vec<Figure>> {
    let upstream = Upstream::start(echo::Mode::Http)?;
    let mut millis = vec![Vec::new(); subjects.len()];
    for round in 0..starts {
        for (subject, times) in subjects.iter().zip(&mut millis) {
            let rendered = work.render(&SCENARIOS[0].hops[0], upstream.port)?;
            let begin = Instant::now();
            let mut proxy = Proxy::start(subject, &rendered, work)?;
            proxy.wait_for_first_byte(setup::loopback(rendered.listener_port))?;
            let time = begin.elapsed();
            note(&format!("start to first byte      round {} {:<6} {time:.1?}", round + 1, subject.name));
            times.push(time.as_secs_f64() * 1e3);
        }
    }
    Ok(millis.into_iter().map(Figure::of).collect())
}

/// Resident memory in MiB: after the start without any traffic, and after load whose connections are closed again.
async fn measure_memory(subject: &Subject, work: &WorkDir) -> anyhow::Result<(f64, f64)> {
    let upstream = Upstream::start(echo::Mode::Http)?;
    let (proxies, target) = start_proxies(&SCENARIOS[0], subject, work, upstream.port).await?;
    let proxy = proxies.first().context("the scenario has no proxy")?;
    tokio::time::sleep(IDLE).await;
    let idle = proxy.resident_mib()?;
    let load = Load::start(&Plan {
        target,
        protocol: Protocol::Http1,
        host: "backend".into(),
        path: "/".into(),
        payload: 0,
        connections: 64,
        streams: 1,
        rate: None,
        new_connection: false,
        timeout: Duration::from_secs(10),
    });
    tokio::time::sleep(MEMORY_LOAD).await;
    load.finish().await;
    tokio::time::sleep(IDLE).await;
    let after = proxy.resident_mib()?;
    note(&format!("resident memory          {:<6} {idle:.1} MiB idle, {after:.1} MiB after load", subject.name));
    Ok((idle, after))
}

#[cfg(test)]
#[path = "bench_tests.rs"]
mod tests;
