//! All scenarios, counted and held against the baseline.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    thread,
};

use anyhow::{Context, bail};
use shika_benches::{
    configuration,
    inner::{self, Scenario},
};

use super::{
    COUNTED, Check, NOT_CHECKED,
    baseline::{self, Baseline, Verdict},
    callgrind::{self, Output},
    note,
    proxy::{self, Place, Proxied},
    say,
};

/// A scenario of either kind.
#[derive(Clone, Copy)]
enum Any {
    Inner(&'static Scenario),
    Proxied(&'static Proxied),
}

/// All, those that take longest first.
fn all() -> Vec<Any> {
    let proxied = proxy::SCENARIOS.iter().map(Any::Proxied);
    proxied.chain(inner::SCENARIOS.iter().rev().map(Any::Inner)).collect()
}

/// The names of all scenarios.
pub fn names() -> Vec<&'static str> {
    all().into_iter().map(Any::name).collect()
}

impl Any {
    fn name(self) -> &'static str {
        match self {
            Any::Inner(scenario) => scenario.name,
            Any::Proxied(scenario) => scenario.name,
        }
    }

    /// Most by which it may exceed its baseline.
    fn tolerance(self) -> f64 {
        match self {
            Any::Inner(_) => baseline::TOLERANCE,
            Any::Proxied(scenario) => scenario.tolerance,
        }
    }

    /// How a count stands to the baseline, and by how much it differs.
    fn judge(self, baseline: &Baseline, count: f64) -> (Verdict, f64) {
        baseline::judge(baseline.counts.get(self.name()).copied(), count, self.tolerance())
    }

    /// A count as it is printed.
    fn line(self, baseline: &Baseline, count: f64) -> String {
        let change = match self.judge(baseline, count) {
            (Verdict::Unknown, _) => "new".to_owned(),
            (_, change) => format!("{:+.2} %", 100.0 * change),
        };
        format!("{:<50}{count:>14.0}{change:>12}", self.name())
    }

    /// Instructions of one turn.
    fn count(self, place: &Place<'_>) -> anyhow::Result<f64> {
        let turns = match self {
            Any::Inner(scenario) => scenario.turns,
            Any::Proxied(scenario) => scenario.turns,
        };
        let run = |turns| match self {
            Any::Inner(scenario) => run_inner(scenario, place, turns),
            Any::Proxied(scenario) => scenario.count(place, turns),
        };
        let (once, twice) = (run(turns)?, run(2 * turns)?);
        let more = twice.checked_sub(once).context("twice the turns took fewer instructions")?;
        Ok(more as f64 / turns as f64)
    }
}

fn run_inner(scenario: &Scenario, place: &Place<'_>, turns: u64) -> anyhow::Result<u64> {
    let output = Output::new(place.directory, &format!("{} {turns}", scenario.name));
    let ended = output
        .command(&std::env::current_exe()?, Some(COUNTED))
        .args(["turns", scenario.name, &turns.to_string()])
        .arg(place.certificates)
        .output()
        .context("valgrind cannot be started")?;
    if !ended.status.success() {
        bail!("{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr).trim());
    }
    output.total()
}

/// Runs `check`.
///
/// # Errors
/// Something could not be counted.
pub fn run(check: &Check) -> anyhow::Result<ExitCode> {
    let baseline = Baseline::read(&check.baseline)?;
    let conditions = callgrind::conditions()?;
    if !check.bless && baseline.conditions.is_empty() {
        say(&format!("there is no baseline {}: make instructions BLESS=1 writes it", check.baseline.display()))?;
        return Ok(ExitCode::from(NOT_CHECKED));
    }
    if !check.bless && baseline.conditions != conditions {
        say(&format!("the baseline was made with {}", baseline.conditions))?;
        say(&format!("here it would be           {conditions}"))?;
        say("instructions of different compilers, libraries or CPU features cannot be compared")?;
        return Ok(ExitCode::from(NOT_CHECKED));
    }

    let chosen = |any: &Any| check.only.is_empty() || check.only.iter().any(|part| any.name().contains(part.as_str()));
    let scenarios: Vec<Any> = all().into_iter().filter(chosen).collect();
    if scenarios.is_empty() {
        bail!("no scenario's name contains {}: `list` names them", check.only.join(" or "));
    }
    let kept = Kept::new(check.keep.as_deref())?;
    let proxy = match &check.proxy {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("shika-proxy"),
    };
    let certificates = tempfile::tempdir()?;
    configuration::write_certificates(certificates.path())?;
    let place = Place { program: &proxy, certificates: certificates.path(), directory: kept.path() };
    let measured = measure(&scenarios, &place, &baseline, check)?;

    if check.bless {
        // Of a part, the rest stays; of all, what is gone goes.
        let mut new = if check.only.is_empty() { Baseline::default() } else { baseline };
        new.conditions = conditions;
        new.counts.extend(measured.into_iter().map(|(any, count)| (any.name().to_owned(), count)));
        new.write(&check.baseline)?;
        say(&format!("{} now holds {} scenarios", check.baseline.display(), new.counts.len()))?;
        return Ok(ExitCode::SUCCESS);
    }
    report(&measured, &baseline, check)
}

/// How often a scenario that is over its baseline is counted again.
const AGAIN: usize = 2;

/// Counts of all scenarios, in their order. What is over the baseline is counted again, and the lowest count holds: noise mostly adds.
fn measure(
    scenarios: &[Any],
    place: &Place<'_>,
    baseline: &Baseline,
    check: &Check,
) -> anyhow::Result<Vec<(Any, f64)>> {
    let queue: Mutex<VecDeque<(usize, Any)>> = Mutex::new(scenarios.iter().copied().enumerate().collect());
    let results = Mutex::new(Vec::new());
    let work = || {
        while let Some((at, any)) = lock(&queue).pop_front() {
            let mut count = any.count(place);
            for _ in 0..AGAIN {
                if !check.bless && matches!(count, Ok(count) if any.judge(baseline, count).0 == Verdict::Worse) {
                    count = count.and_then(|before| Ok(before.min(any.count(place)?)));
                }
            }
            let count = count.with_context(|| any.name().to_owned());
            match &count {
                Ok(count) => note(&any.line(baseline, *count)),
                Err(error) => note(&format!("{error:#}")),
            }
            lock(&results).push((at, count.map(|count| (any, count))));
        }
    };
    thread::scope(|scope| {
        for _ in 0..check.jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn report(measured: &[(Any, f64)], baseline: &Baseline, check: &Check) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    for (any, count) in measured {
        let (verdict, _) = any.judge(baseline, *count);
        let what = match verdict {
            Verdict::Held => continue,
            Verdict::Worse => "WORSE: ",
            Verdict::Better => "better: ",
            Verdict::Unknown => "NOT IN THE BASELINE: ",
        };
        failed |= verdict != Verdict::Better;
        say(&format!("{what}{}", any.line(baseline, *count)))?;
        if verdict == Verdict::Better {
            say(&format!("  update the baseline with: make instructions BLESS=1 ONLY='{}'", any.name()))?;
        }
    }
    if check.only.is_empty() {
        for name in baseline.counts.keys().filter(|name| !names().contains(&name.as_str())) {
            failed = true;
            say(&format!("IN THE BASELINE AND NOWHERE ELSE: {name}"))?;
        }
    }
    if failed {
        say("if that is meant to be so: make instructions BLESS=1, and say why in the commit")?;
        return Ok(ExitCode::FAILURE);
    }
    say(&format!("{} scenarios within their tolerance of {}, or better", measured.len(), check.baseline.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Where callgrind writes.
enum Kept {
    Here(PathBuf),
    Nowhere(tempfile::TempDir),
}

impl Kept {
    fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Kept::Nowhere(tempfile::tempdir()?)) };
        fs::create_dir_all(path)?;
        Ok(Kept::Here(fs::canonicalize(path)?))
    }

    fn path(&self) -> &Path {
        match self {
            Kept::Here(path) => path,
            Kept::Nowhere(directory) => directory.path(),
        }
    }
}
