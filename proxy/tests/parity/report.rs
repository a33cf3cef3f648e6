//! Gathers what cases found, and prints it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;

use crate::case::Difference;
use crate::observe::{self, Observed};
use crate::subject::Subject;

/// What one case found.
#[derive(Debug, Default)]
pub struct CaseReport {
    name: String,
    /// The case's one sentence.
    pub describe: String,
    /// Everything that fails the case.
    failures: Vec<String>,
    /// Differences that an exception covers.
    listed: usize,
    /// Differences that none covers.
    unlisted: usize,
    /// Global exceptions that this case needed.
    global_used: BTreeSet<usize>,
    /// How long it took, both subjects together.
    pub seconds: f64,
    /// Why shika-proxy refused the configuration, as the case says that it must.
    pub refused: Option<String>,
    /// Observations to print.
    pub shown: Vec<String>,
}

impl CaseReport {
    /// Nothing found yet.
    pub fn new(name: &str) -> Self {
        CaseReport { name: name.to_owned(), ..CaseReport::default() }
    }

    /// Whether nothing fails.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// What fails, with the case's name.
    fn failed(&self, out: &mut String) {
        if !self.failures.is_empty() {
            let _ = writeln!(out, "{} ({}):", self.name, self.describe.trim());
        }
        for failure in &self.failures {
            let _ = writeln!(out, "  {failure}");
        }
    }

    /// Adds expectations that a subject missed.
    pub fn missed(&mut self, subject: Subject, missed: &[String], tail: &str) {
        self.failures.extend(missed.iter().map(|what| format!("{}: {what}", subject.name())));
        if !missed.is_empty() && !tail.is_empty() {
            self.failures.push(format!("{} wrote:\n    {}", subject.name(), tail.replace('\n', "\n    ")));
        }
    }

    /// Compares the two runs.
    pub fn compare(&mut self, envoy: &Observed, shika: &Observed, own: &[Difference], global: &[Difference]) {
        let exceptions: Vec<Difference> = own.iter().chain(global).cloned().collect();
        let result = observe::compare(envoy, shika, &exceptions);
        self.listed = result.listed.len();
        self.unlisted = result.unlisted.len();
        self.failures.extend(result.unlisted.iter().map(|difference| format!("differs: {difference}")));
        for index in observe::stale(own.len(), &result.listed) {
            if let Some(stale) = own.get(index) {
                self.failures
                    .push(format!("stale exception: `{}` no longer differs: take it out of the case", stale.at));
            }
        }
        self.global_used = result.listed.iter().filter_map(|(_, index)| index.checked_sub(own.len())).collect();
    }
}

/// What the whole suite found.
#[derive(Debug)]
pub struct Report {
    cases: Vec<CaseReport>,
    stale: Vec<String>,
    subjects: usize,
}

impl Report {
    /// `global` are the exceptions that must have been needed by some case.
    pub fn new(mut cases: Vec<CaseReport>, global: &[Difference], subjects: usize) -> Self {
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        let used: BTreeSet<usize> = cases.iter().flat_map(|case| case.global_used.iter().copied()).collect();
        let stale = global
            .iter()
            .enumerate()
            .filter(|(index, _)| !used.contains(index))
            .map(|(_, difference)| format!("stale global exception: `{}` occurs in no case", difference.at))
            .collect();
        Report { cases, stale, subjects }
    }

    /// Whether nothing fails.
    pub fn passed(&self) -> bool {
        self.stale.is_empty() && self.cases.iter().all(CaseReport::passed)
    }

    /// Everything that fails.
    pub fn failures(&self) -> String {
        let mut out = String::new();
        for case in &self.cases {
            case.failed(&mut out);
        }
        for stale in &self.stale {
            let _ = writeln!(out, "{stale}");
        }
        out
    }

    /// Prints the table, then what failed in a first run of cases that then ran alone.
    pub fn print(&self, unsteady: &[CaseReport]) {
        let mut out = String::from("\n");
        for case in &self.cases {
            for shown in &case.shown {
                let _ = writeln!(out, "{shown}");
            }
        }
        let _ = writeln!(out, "\n{:<40} {:>8} {:>8} {:>8}  result", "parity case", "seconds", "listed", "unlisted");
        for case in &self.cases {
            let result = match (case.failures.is_empty(), &case.refused) {
                (true, None) => "ok".to_owned(),
                (true, Some(reason)) => format!("ok, refused by shika-proxy: {reason}"),
                (false, _) => "FAILED".to_owned(),
            };
            let CaseReport { name, seconds, listed, unlisted, .. } = case;
            let _ = writeln!(out, "{name:<40} {seconds:>8.2} {listed:>8} {unlisted:>8}  {result}");
        }
        let failed = self.cases.iter().filter(|case| !case.failures.is_empty()).count();
        let listed: usize = self.cases.iter().map(|case| case.listed).sum();
        let unlisted: usize = self.cases.iter().map(|case| case.unlisted).sum();
        let _ = writeln!(
            out,
            "\nparity: {} cases on {} subject(s), {failed} failed; differences: {listed} listed, {unlisted} unlisted",
            self.cases.len(),
            self.subjects
        );
        if !unsteady.is_empty() {
            let _ = writeln!(out, "run a second time, alone, after this in the first run ({} cases):", unsteady.len());
        }
        for case in unsteady {
            case.failed(&mut out);
        }
        print(&out);
    }
}

/// Writes past the test harness, which would hold a passing test's output back: the table is wanted always.
pub fn print(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(at: &str) -> Difference {
        Difference { at: at.into(), envoy: None, shika: None, reason: "a reason that says why".into() }
    }

    #[test]
    fn stale_and_unlisted_fail_listed_passes() {
        let envoy: Observed = [("a".to_owned(), "1".to_owned())].into();
        let shika: Observed = [("a".to_owned(), "2".to_owned())].into();
        let passes = |envoy: &Observed, shika: &Observed, own: &[Difference], global: &[Difference]| {
            let mut case = CaseReport::new("case");
            case.compare(envoy, shika, own, global);
            Report::new(vec![case], global, 2).passed()
        };
        assert!(!passes(&envoy, &shika, &[], &[]), "an unlisted difference fails");
        assert!(passes(&envoy, &shika, &[exception("a")], &[]), "a listed one passes");
        assert!(passes(&envoy, &shika, &[], &[exception("a")]), "so does one listed for all");
        assert!(!passes(&envoy, &envoy, &[exception("a")], &[]), "a stale one fails");
        assert!(!passes(&envoy, &envoy, &[], &[exception("a")]), "so does a stale one for all");
        assert!(passes(&envoy, &envoy, &[], &[]), "no difference passes");
        let mut missed = CaseReport::new("case");
        missed.missed(Subject::Envoy, &["status".into()], "");
        assert!(!Report::new(vec![missed], &[], 2).passed(), "a missed expectation fails");
    }
}
