//! The report: a Markdown table for people, JSON for machines.

use serde::Serialize;

use super::scenario::Scenario;
use super::subject::Subject;

/// Most milliseconds from Shika's start to its first reply.
const START_TARGET_MS: f64 = 60.0;
/// Most resident memory of an idle Shika, in MiB.
const RSS_TARGET_MIB: f64 = 15.0;

/// One measured time of one subject.
#[derive(Clone, Serialize)]
pub struct Round {
    /// CPU time of all proxies of the scenario per request, in microseconds.
    pub cpu_us: f64,
    /// Requests per second.
    pub per_second: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
}

/// Median and range of several measurements.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figure {
    /// The middle value; the mean of the two middle ones when their number is even.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// All in the order of measuring.
    pub values: Vec<f64>,
}

impl Figure {
    /// Of these values; all zero when there are none.
    pub fn of(values: Vec<f64>) -> Self {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = |at: usize| sorted.get(at).copied().unwrap_or_default();
        let median = (middle(sorted.len().saturating_sub(1) / 2) + middle(sorted.len() / 2)) / 2.0;
        Self {
            median,
            min: sorted.first().copied().unwrap_or_default(),
            max: sorted.last().copied().unwrap_or_default(),
            values,
        }
    }
}

/// One scenario over all subjects.
#[derive(Serialize)]
pub struct ScenarioReport {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Target ratio of CPU time per request.
    pub target: Option<f64>,
    /// Rounds per subject, in the report's order of subjects.
    pub rounds: Vec<Vec<Round>>,
    /// Why there are no (more) figures.
    pub failure: Option<String>,
}

impl ScenarioReport {
    /// Without figures yet.
    pub fn new(scenario: &Scenario, subjects: &[Subject]) -> Self {
        let rounds = vec![Vec::new(); subjects.len()];
        Self { name: scenario.name, what: scenario.what, target: scenario.target, rounds, failure: None }
    }

    /// Adds a round of the subject at this place.
    pub fn add(&mut self, subject: usize, round: Round) {
        if let Some(rounds) = self.rounds.get_mut(subject) {
            rounds.push(round);
        }
    }

    fn figure(&self, subject: usize, of: fn(&Round) -> f64) -> Option<Figure> {
        let rounds = self.rounds.get(subject).filter(|rounds| !rounds.is_empty())?;
        Some(Figure::of(rounds.iter().map(of).collect()))
    }
}

/// Everything that one run measured.
#[derive(Serialize)]
pub struct Report {
    /// The machine: processor, number of CPUs, kernel.
    pub machine: String,
    /// How the load was set.
    pub settings: String,
    /// Names of the subjects; every list by subject has this order.
    pub subjects: Vec<&'static str>,
    /// Versions as the admin endpoints give them.
    pub versions: Vec<String>,
    /// CPU time per request.
    pub scenarios: Vec<ScenarioReport>,
    /// Milliseconds from start to first byte.
    pub start_ms: Vec<Figure>,
    /// Resident memory in MiB before any traffic.
    pub rss_idle_mib: Vec<f64>,
    /// Resident memory in MiB after load, its connections closed.
    pub rss_after_mib: Vec<f64>,
}

impl Report {
    /// Without figures yet.
    pub fn new(subjects: &[Subject], arguments: &super::Arguments) -> Self {
        let load = arguments.rate.map_or_else(
            || "closed loop (each connection sends as soon as it is answered)".to_owned(),
            |rate| format!("open loop at {rate} requests/s"),
        );
        Self {
            machine: machine(),
            settings: format!(
                "{load}, {} connections, HTTP/2 with {} streams each; {} rounds of {:?} after {:?} of warm-up; --concurrency 1{}",
                arguments.connections,
                arguments.streams,
                arguments.rounds,
                arguments.duration,
                arguments.warmup,
                arguments.proxy_cpus.as_ref().map_or_else(String::new, |cpus| format!("; proxies on CPU {cpus}")),
            ),
            subjects: subjects.iter().map(|subject| subject.name).collect(),
            versions: subjects.iter().map(|subject| subject.version.clone()).collect(),
            scenarios: Vec::new(),
            start_ms: Vec::new(),
            rss_idle_mib: Vec::new(),
            rss_after_mib: Vec::new(),
        }
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.subjects.iter().position(|subject| *subject == name)
    }

    /// Shika's median CPU time per request over Envoy's.
    fn ratio(&self, scenario: &ScenarioReport) -> Option<f64> {
        let shika = scenario.figure(self.place("shika")?, |round| round.cpu_us)?;
        let envoy = scenario.figure(self.place("envoy")?, |round| round.cpu_us)?;
        (envoy.median > 0.0).then_some(shika.median / envoy.median)
    }

    /// Whether any target that could be checked is missed.
    pub fn misses_a_target(&self) -> bool {
        let ratio_missed = self
            .scenarios
            .iter()
            .any(|scenario| self.ratio(scenario).zip(scenario.target).is_some_and(|(ratio, target)| ratio > target));
        let shika = self.place("shika");
        let start = shika.and_then(|at| self.start_ms.get(at)).is_some_and(|start| start.median > START_TARGET_MS);
        let rss = shika.and_then(|at| self.rss_idle_mib.get(at)).is_some_and(|rss| *rss > RSS_TARGET_MIB);
        ratio_missed || start || rss
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("Machine: {}\n\nLoad: {}\n\n", self.machine, self.settings);
        for (name, version) in self.subjects.iter().zip(&self.versions) {
            text.push_str(&format!("- {name}: {version}\n"));
        }
        text.push_str("\n| CPU µs per request, median (min–max) |");
        for name in &self.subjects {
            text.push_str(&format!(" {name} | {name} requests/s | {name} p50 / p99 µs |"));
        }
        text.push_str(" shika ÷ envoy | target |\n|---|");
        text.push_str(&"---|".repeat(self.subjects.len() * 3));
        text.push_str("---|---|\n");
        for scenario in &self.scenarios {
            text.push_str(&self.row(scenario));
        }
        if !self.start_ms.is_empty() {
            text.push_str(&self.process_table());
        }
        for scenario in &self.scenarios {
            if let Some(failure) = &scenario.failure {
                text.push_str(&format!("\n{} was not measured: {failure}\n", scenario.name));
            }
        }
        text
    }

    fn row(&self, scenario: &ScenarioReport) -> String {
        let mut row = format!("| {} |", scenario.name);
        for at in 0..self.subjects.len() {
            let cpu = scenario.figure(at, |round| round.cpu_us);
            let median = |of: fn(&Round) -> f64| scenario.figure(at, of).map_or(f64::NAN, |figure| figure.median);
            let (rate, p50, p99) =
                (median(|round| round.per_second), median(|round| round.p50_us), median(|round| round.p99_us));
            match cpu {
                Some(cpu) => row.push_str(&format!(
                    " {:.1} ({:.1}–{:.1}) | {:.0} | {:.0} / {:.0} |",
                    cpu.median, cpu.min, cpu.max, rate, p50, p99
                )),
                None => row.push_str(" – | – | – |"),
            }
        }
        let ratio = self.ratio(scenario);
        row.push_str(&ratio.map_or_else(|| " – |".to_owned(), |ratio| format!(" **{ratio:.2}** |")));
        row.push_str(&match (scenario.target, ratio) {
            (Some(target), Some(ratio)) => format!(" ≤ {target}: {} |\n", verdict(ratio <= target)),
            (Some(target), None) => format!(" ≤ {target} |\n"),
            (None, _) => " – |\n".to_owned(),
        });
        row
    }

    fn process_table(&self) -> String {
        let mut text = "\n| one process |".to_owned();
        for name in &self.subjects {
            text.push_str(&format!(" {name} |"));
        }
        text.push_str(" target for shika |\n|---|");
        text.push_str(&"---|".repeat(self.subjects.len() + 1));
        text.push_str("\n| start to first byte, ms, median (min–max) |");
        for start in &self.start_ms {
            text.push_str(&format!(" {:.1} ({:.1}–{:.1}) |", start.median, start.min, start.max));
        }
        let shika = self.place("shika");
        let start = shika.and_then(|at| self.start_ms.get(at)).map(|start| start.median <= START_TARGET_MS);
        text.push_str(&format!(" ≤ {START_TARGET_MS}{} |\n", after_colon(start)));
        text.push_str("| resident memory before any traffic, MiB |");
        for rss in &self.rss_idle_mib {
            text.push_str(&format!(" {rss:.1} |"));
        }
        let rss = shika.and_then(|at| self.rss_idle_mib.get(at)).map(|rss| *rss <= RSS_TARGET_MIB);
        text.push_str(&format!(" ≤ {RSS_TARGET_MIB}{} |\n", after_colon(rss)));
        text.push_str("| resident memory after load, MiB |");
        for rss in &self.rss_after_mib {
            text.push_str(&format!(" {rss:.1} |"));
        }
        text.push_str(" – |\n");
        text
    }
}

fn verdict(held: bool) -> &'static str {
    if held { "held" } else { "missed" }
}

fn after_colon(held: Option<bool>) -> String {
    held.map_or_else(String::new, |held| format!(": {}", verdict(held)))
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cpus} CPUs, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenario::SCENARIOS;

    #[test]
    fn medians_and_ranges() {
        for (values, median, min, max) in [
            (vec![], 0.0, 0.0, 0.0),
            (vec![4.0], 4.0, 4.0, 4.0),
            (vec![9.0, 1.0, 2.0], 2.0, 1.0, 9.0),
            (vec![4.0, 1.0, 3.0, 2.0], 2.5, 1.0, 4.0),
        ] {
            let figure = Figure::of(values);
            assert_eq!((figure.median, figure.min, figure.max), (median, min, max), "{figure:?}");
        }
    }

    fn report(envoy: f64, shika: f64, start: f64, rss: f64) -> Report {
        let round = |cpu_us| Round { cpu_us, per_second: 1.0, p50_us: 1.0, p99_us: 1.0 };
        Report {
            machine: "m".into(),
            settings: "s".into(),
            subjects: vec!["envoy", "shika"],
            versions: vec!["1".into(), "2".into()],
            scenarios: vec![ScenarioReport {
                name: SCENARIOS[0].name,
                what: SCENARIOS[0].what,
                target: Some(0.55),
                rounds: vec![vec![round(envoy)], vec![round(shika)]],
                failure: None,
            }],
            start_ms: vec![Figure::of(vec![130.0]), Figure::of(vec![start])],
            rss_idle_mib: vec![50.0, rss],
            rss_after_mib: vec![60.0, 20.0],
        }
    }

    #[test]
    fn targets_are_held_or_missed() {
        assert!(!report(50.0, 25.0, 40.0, 12.0).misses_a_target());
        assert!(report(50.0, 28.0, 40.0, 12.0).misses_a_target());
        assert!(report(50.0, 25.0, 61.0, 12.0).misses_a_target());
        assert!(report(50.0, 25.0, 40.0, 15.5).misses_a_target());
    }

    #[test]
    fn the_table_shows_ratio_and_verdict() {
        let text = report(50.0, 30.0, 40.0, 12.0).markdown();
        assert!(text.contains("| http1_one_hop | 50.0 (50.0–50.0) |"), "{text}");
        assert!(text.contains("**0.60** | ≤ 0.55: missed |"), "{text}");
        assert!(text.contains("≤ 60: held |"), "{text}");
        let columns: Vec<usize> =
            text.lines().filter(|line| line.starts_with('|')).take(3).map(|line| line.matches('|').count()).collect();
        assert_eq!(columns, [columns[0]; 3], "{text}");
    }
}
