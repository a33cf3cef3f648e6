//! Shika beside Envoy, HAProxy and nginx: the same work, the same load, in turns within one run; CPU time and memory as the kernel
//! counts them for the proxy processes.

mod bars;
mod closed;
mod clusters;
mod figure;
mod html;
mod markdown;
mod moving;
mod open;
mod plot;
mod process;
mod report;
mod resting;
mod scenario;
mod setup;
mod subject;
mod tls;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};

use tokio::sync::Mutex;

use crate::echo;
use crate::text::{note, parse_duration, say};
use closed::Chain;
use figure::{Metric, Round, number};
use open::Capacity;
use report::{Measured, Report};
use scenario::{Kind, SCENARIOS, Scenario};
use setup::{Cpus, Upstream, WorkDir};
use subject::{Name, Subject};

/// What and how to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which proxies to measure: envoy, shika, haproxy, nginx with commas between them; `both` is the first two, `all` those that are
    /// installed.
    #[arg(long, default_value = "all", value_delimiter = ',')]
    subject: Vec<String>,
    /// Shika's binary.
    #[arg(long, default_value = "target/release/shika-proxy")]
    shika: PathBuf,
    /// Envoy's binary, or a launcher that turns into it; a bare name is looked up in PATH.
    #[arg(long, default_value = "envoy")]
    envoy: PathBuf,
    /// Scenarios to run, with commas between them; a name that ends in `*` stands for all that begin so. All when not given.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Rounds; each measures every subject once, in turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// CPUs that the proxies may use, in taskset's form; by default the last one. The load and the upstream have the first. `none` binds
    /// nothing.
    #[arg(long)]
    proxy_cpus: Option<String>,
    /// Directory of results.json, results.md and report.html; scenarios that results.json has already are replaced, others stay.
    #[arg(long)]
    out_dir: Option<PathBuf>,
    /// List the scenarios and exit.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    settings: Settings,
}

/// How the load is set.
#[derive(Clone, clap::Args)]
pub struct Settings {
    /// Measured time per round and subject.
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    duration: Duration,
    /// Load before each measured time.
    #[arg(long, value_parser = parse_duration, default_value = "500ms")]
    warmup: Duration,
    /// Client connections, where the scenario does not say.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Requests in flight per HTTP/2 connection.
    #[arg(long, default_value_t = 10)]
    streams: usize,
    /// Requests per second offered to each subject; without it each is driven as fast as it answers, and the latency scenarios take
    /// shares of what Envoy can do.
    #[arg(long)]
    rate: Option<f64>,
}

/// Where a report is made from results.
#[derive(clap::Args)]
pub struct ReportArguments {
    /// Directory with results.json; results.md and report.html are written beside it.
    #[arg(long, default_value = "target/load")]
    out_dir: PathBuf,
}

/// What all measurements of a run share.
pub struct Bench {
    dir: WorkDir,
    settings: Settings,
    subjects: Vec<Subject>,
    cpus: Option<Cpus>,
    /// What Envoy answers at most, of the round under way.
    capacity: Mutex<Option<Capacity>>,
}

/// Runs the chosen scenarios and prints the report.
///
/// # Errors
/// When a subject cannot be found or started. A round that fails is void and part of the report, a bar that is missed too: the exit
/// code says only whether measuring worked.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        for scenario in SCENARIOS {
            say(&format!("{:<28} {}", scenario.name, scenario.what))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&arguments.scenario)?;
    let cpus = match arguments.proxy_cpus.as_deref() {
        Some("none") => None,
        proxy => Cpus::choose(proxy),
    };
    raise_file_limit();
    let subjects = find_subjects(&arguments, cpus.as_ref())?;
    if let Some(cpus) = &cpus {
        cpus.bind_load()?;
    }
    let mut bench = Bench::new(arguments.settings.clone(), subjects, cpus)?;
    bench.identify().await?;
    let mut report = Report::new();
    for scenario in chosen {
        let measured = bench.scenario(scenario, arguments.rounds.max(1)).await;
        report.scenarios.insert(scenario.name.to_owned(), measured);
        if let Some(dir) = &arguments.out_dir {
            // After each scenario: what is measured is not lost when a later one is interrupted.
            save(dir, report.clone())?;
        }
    }
    say(&markdown::render(&report))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes results.md and report.html from results.json.
///
/// # Errors
/// When there are no results or the files cannot be written.
pub fn report(arguments: &ReportArguments) -> anyhow::Result<ExitCode> {
    let report = Report::read(&arguments.out_dir.join("results.json"))?;
    write(&arguments.out_dir, &report)?;
    say(&markdown::render(&report))?;
    say(&format!("{}", arguments.out_dir.join("report.html").display()))?;
    Ok(ExitCode::SUCCESS)
}

fn save(dir: &Path, newer: Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--out-dir {}", dir.display()))?;
    let file = dir.join("results.json");
    let mut report = if file.exists() { Report::read(&file)? } else { Report::new() };
    report.merge(newer);
    std::fs::write(&file, serde_json::to_string_pretty(&report)?).with_context(|| file.display().to_string())?;
    write(dir, &report)
}

fn write(dir: &Path, report: &Report) -> anyhow::Result<()> {
    std::fs::write(dir.join("results.md"), markdown::render(report)).context("results.md")?;
    std::fs::write(dir.join("report.html"), html::render(report)).context("report.html")
}

fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Scenario>> {
    let meant = |name: &String, scenario: &Scenario| match name.strip_suffix('*') {
        Some(begin) => scenario.name.starts_with(begin),
        None => scenario.name == name,
    };
    for name in names {
        ensure!(
            SCENARIOS.iter().any(|scenario| meant(name, scenario)),
            "--scenario {name}: no such scenario; --list shows them"
        );
    }
    let chosen = |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| meant(name, scenario));
    Ok(SCENARIOS.iter().filter(chosen).collect())
}

/// The subjects in the order of the first round.
fn find_subjects(arguments: &Arguments, cpus: Option<&Cpus>) -> anyhow::Result<Vec<Subject>> {
    let named = |name: &str| arguments.subject.iter().any(|given| given == name);
    let (all, both) = (named("all"), named("both"));
    for given in &arguments.subject {
        ensure!(
            ["all", "both", "envoy", "shika", "haproxy", "nginx"].contains(&given.as_str()),
            "--subject {given}: there are envoy, shika, haproxy, nginx, both and all"
        );
    }
    let mut subjects = Vec::new();
    for (name, path) in [(Name::Envoy, arguments.envoy.as_path()), (Name::Shika, arguments.shika.as_path())] {
        if all || both || named(&name.to_string()) {
            subjects.push(Subject::find(name, path, cpus)?);
        }
    }
    for name in [Name::Haproxy, Name::Nginx] {
        match Subject::find(name, Path::new(&name.to_string()), cpus) {
            Ok(subject) if all || named(&name.to_string()) => subjects.push(subject),
            Err(error) if named(&name.to_string()) => return Err(error),
            Err(error) if all => note(&format!("left out: {error:#}")),
            _ => {}
        }
    }
    Ok(subjects)
}

/// Ten thousand connections need as many descriptors, here and in the proxies, which inherit the limit. Where it cannot be raised the
/// scenarios that need them fail and say so.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

impl Bench {
    fn new(settings: Settings, subjects: Vec<Subject>, cpus: Option<Cpus>) -> anyhow::Result<Self> {
        let capacity = Mutex::default();
        Ok(Self { dir: WorkDir::create()?, settings, subjects, cpus, capacity })
    }

    /// Starts Envoy and Shika once: a launcher is replaced by the binary it turns into, so that no later figure contains it, and the
    /// version comes from the admin endpoint.
    async fn identify(&mut self) -> anyhow::Result<()> {
        let upstream = Upstream::start(echo::Mode::Http)?;
        for subject in &mut self.subjects {
            if matches!(subject.name, Name::Envoy | Name::Shika)
                && let Some(Scenario { kind: Kind::Closed(work), .. }) = SCENARIOS.first()
            {
                let chain = Chain::start(work, subject, &self.dir, upstream.port).await?;
                let proxy = chain.proxies.first().context("no proxy was started")?;
                let (path, version) = (proxy.executable()?, proxy.version()?);
                drop(chain);
                (subject.path, subject.version) = (path, version);
            }
            note(&format!("{}: {} ({})", subject.name, subject.path.display(), subject.version));
        }
        Ok(())
    }

    async fn scenario(&self, scenario: &'static Scenario, rounds: usize) -> Measured {
        let mut measured = Measured {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            machine: report::machine(),
            settings: self.described(),
            ..Measured::default()
        };
        let subjects: Vec<usize> = (0..self.subjects.len())
            .filter(|at| self.subjects.get(*at).is_some_and(|s| scenario.is_for(s.name)))
            .collect();
        for round in 0..rounds {
            // Every other round goes the other way round, so that no subject always runs on the warmer machine.
            let order: Vec<usize> =
                if round % 2 == 0 { subjects.clone() } else { subjects.iter().rev().copied().collect() };
            for at in order {
                let Some(subject) = self.subjects.get(at) else { continue };
                measured.versions.insert(subject.name, subject.version.clone());
                let name = subject.name;
                match self.round(scenario, round, subject).await {
                    Ok(figures) => {
                        note(&format!("{:<28} round {} {name:<7} {}", scenario.name, round + 1, brief(&figures)));
                        measured.add(name, figures);
                    }
                    Err(error) => {
                        let void = format!("round {} of {name}: {error:#}", round + 1);
                        note(&format!("{:<28} VOID, {void}", scenario.name));
                        measured.void.push(void);
                    }
                }
            }
        }
        measured
    }

    async fn round(&self, scenario: &'static Scenario, round: usize, subject: &Subject) -> anyhow::Result<Round> {
        match &scenario.kind {
            Kind::Closed(work) => self.closed_round(work, subject).await,
            Kind::Open(work, share) => self.open_round(work, *share, round, subject).await,
            Kind::Start(work) => self.start_round(work, subject).await,
            Kind::Idle(work, count) => self.idle_round(work, *count, subject).await,
            Kind::Churn(work, rate) => self.churn_round(work, *rate, subject).await,
            Kind::Clusters(number) => self.clusters_round(*number, subject).await,
        }
    }

    fn described(&self) -> String {
        let settings = &self.settings;
        let cpus = self.cpus.as_ref().map_or_else(
            || "no process bound to a CPU".to_owned(),
            |cpus| format!("proxies on CPU {}, load and upstream on CPU {}", cpus.proxy, cpus.load),
        );
        let rate = settings.rate.map_or_else(String::new, |rate| format!(", {rate} requests/s"));
        format!(
            "{:?} after {:?} of warm-up, {} connections and {} streams on each{rate} where the scenario does not say; {cpus}",
            settings.duration, settings.warmup, settings.connections, settings.streams
        )
    }
}

/// The figures of a round on one line.
fn brief(round: &Round) -> String {
    let shown: Vec<String> = round
        .iter()
        .filter(|(metric, _)| !matches!(metric, Metric::Proportional | Metric::P50 | Metric::P99))
        .map(|(metric, value)| format!("{} {}", number(*value), metric.label()))
        .collect();
    shown.join(", ")
}

#[cfg(test)]
#[path = "bench_tests.rs"]
mod tests;
