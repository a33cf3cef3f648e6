//! What was measured, as JSON for machines: each scenario with the circumstances of its own run, so that a later run of some scenarios
//! replaces those alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::bars::{BARS, Judged};
use super::figure::{Figure, Metric, Round};
use super::scenario::{SCENARIOS, Section};
use super::subject::Name;

/// Raised when the file's form changes; files of another form are not read.
const FORM: u32 = 1;

/// All scenarios that were measured, in one run or several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    form: u32,
    /// By name.
    pub scenarios: BTreeMap<String, Measured>,
}

/// One scenario.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// When, in seconds since 1970.
    pub time: u64,
    /// The machine: processor, number of CPUs, kernel.
    pub machine: String,
    /// How it was measured.
    pub settings: String,
    /// Versions of the subjects.
    pub versions: BTreeMap<Name, String>,
    /// Figures of each round that counts.
    pub rounds: BTreeMap<Name, Vec<Round>>,
    /// Rounds that do not count, and why.
    pub void: Vec<String>,
}

impl Report {
    /// Without figures yet.
    pub fn new() -> Self {
        Self { form: FORM, scenarios: BTreeMap::new() }
    }

    /// Reads what an earlier run has written.
    ///
    /// # Errors
    /// When the file cannot be read or has another form.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let report: Self = serde_json::from_str(&text).with_context(|| format!("{} is no report", file.display()))?;
        ensure!(report.form == FORM, "{} has form {}, this program reads {FORM}", file.display(), report.form);
        Ok(report)
    }

    /// Replaces the scenarios that `newer` has.
    pub fn merge(&mut self, newer: Self) {
        self.scenarios.extend(newer.scenarios);
    }

    /// Median and range of one subject over the rounds of a scenario.
    pub fn figure(&self, scenario: &str, subject: Name, metric: Metric) -> Option<Figure> {
        let rounds = self.scenarios.get(scenario)?.rounds.get(&subject)?;
        Figure::of(rounds.iter().filter_map(|round| round.get(&metric).copied()).collect())
    }

    /// Shika's median over Envoy's.
    pub fn ratio(&self, scenario: &str, metric: Metric) -> Option<f64> {
        let shika = self.figure(scenario, Name::Shika, metric)?.median;
        let envoy = self.figure(scenario, Name::Envoy, metric)?.median;
        (envoy > 0.0).then_some(shika / envoy)
    }

    /// The bars of a figure that could be judged.
    pub fn bars(&self, scenario: &str, metric: Metric) -> Vec<Judged> {
        let bars = BARS.iter().filter(|bar| bar.scenario == scenario && bar.metric == metric);
        bars.filter_map(|bar| bar.judge(self)).collect()
    }

    /// All bars that could be judged, with scenario and metric.
    pub fn judged(&self) -> Vec<(&'static str, Metric, Judged)> {
        BARS.iter().filter_map(|bar| Some((bar.scenario, bar.metric, bar.judge(self)?))).collect()
    }

    /// Subjects that any of the scenarios has figures of.
    pub fn subjects(&self, names: &[&str]) -> Vec<Name> {
        let found =
            names.iter().filter_map(|name| self.scenarios.get(*name)).flat_map(|scenario| scenario.rounds.keys());
        found.copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Names of the measured scenarios of a section, in the order of [`SCENARIOS`].
    pub fn of_section(&self, section: Section) -> Vec<&'static str> {
        let all = SCENARIOS.iter().filter(|scenario| scenario.section == section).map(|scenario| scenario.name);
        all.filter(|name| self.scenarios.contains_key(*name)).collect()
    }

    /// Metrics that any subject has in the scenario.
    pub fn metrics(&self, scenario: &str) -> Vec<Metric> {
        let rounds = self.scenarios.get(scenario).into_iter().flat_map(|scenario| scenario.rounds.values().flatten());
        rounds.flat_map(|round| round.keys().copied()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Measured {
    /// Adds a round of the subject.
    pub fn add(&mut self, subject: Name, round: Round) {
        self.rounds.entry(subject).or_default().push(round);
    }
}

/// The machine: processor, number of CPUs, kernel.
pub fn machine() -> String {
    // Not `available_parallelism`: the load has bound itself to one CPU.
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cpus} CPUs, Linux {}", kernel.trim())
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
