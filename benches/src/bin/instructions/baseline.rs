//! The counts that hold, in `benches/instructions.tsv`.

use std::{collections::BTreeMap, fmt::Write, fs, io, path::Path};

use anyhow::{Context, bail};

/// Most by which a scenario may exceed its baseline, if it does not say otherwise.
pub const TOLERANCE: f64 = 0.03;

/// Counts by scenario.
#[derive(Debug, Default, PartialEq)]
pub struct Baseline {
    /// With what they were made; empty when there is no baseline.
    pub conditions: String,
    /// Instructions of one turn.
    pub counts: BTreeMap<String, f64>,
}

const CONDITIONS: &str = "# made with: ";

impl Baseline {
    /// Reads the file; without one there is no count in it.
    ///
    /// # Errors
    /// The file cannot be read, or a line is not a name, a tab and a number.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut baseline = Baseline::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(conditions) = line.strip_prefix(CONDITIONS) {
                baseline.conditions = conditions.to_owned();
            } else if !line.starts_with('#') {
                let Some((name, count)) = line.split_once('\t') else { bail!("`{line}` has no tab") };
                baseline.counts.insert(name.to_owned(), count.trim().parse().with_context(|| format!("`{line}`"))?);
            }
        }
        Ok(baseline)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = String::from(
            "# Instructions for one turn of each scenario; `make instructions BLESS=1` writes this file.\n",
        );
        let _ = writeln!(text, "{CONDITIONS}{}", self.conditions);
        for (name, count) in &self.counts {
            let _ = writeln!(text, "{name}\t{count:.0}");
        }
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

/// What a count means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Within the tolerance.
    Held,
    /// Below it.
    Better,
    /// Above it.
    Worse,
    /// The baseline does not know the scenario.
    Unknown,
}

/// Holds a count against the baseline, and says by how much it differs.
pub fn judge(baseline: Option<f64>, count: f64, tolerance: f64) -> (Verdict, f64) {
    let Some(baseline) = baseline.filter(|baseline| *baseline > 0.0) else { return (Verdict::Unknown, 0.0) };
    let change = count / baseline - 1.0;
    // The tolerance itself is allowed, however it comes out of a division.
    let tolerance = tolerance + 1e-9;
    let verdict = match change {
        change if change > tolerance => Verdict::Worse,
        change if change < -tolerance => Verdict::Better,
        _ => Verdict::Held,
    };
    (verdict, change)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counts.tsv");
        assert_eq!(Baseline::read(&path).unwrap(), Baseline::default());
        let baseline = Baseline {
            conditions: "rustc 1, valgrind 2".into(),
            counts: [("a: b c".to_owned(), 12.0), ("d".to_owned(), 3_000_000.0)].into(),
        };
        baseline.write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline);
        for text in ["name without count", "name\tmany"] {
            assert!(Baseline::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_tolerance_is_allowed() {
        for (baseline, count, tolerance, verdict) in [
            (Some(1000.0), 1030.0, TOLERANCE, Verdict::Held),
            (Some(1000.0), 1031.0, TOLERANCE, Verdict::Worse),
            (Some(1000.0), 970.0, TOLERANCE, Verdict::Held),
            (Some(1000.0), 969.0, TOLERANCE, Verdict::Better),
            (Some(1000.0), 1150.0, 0.15, Verdict::Held),
            (Some(1000.0), 1151.0, 0.15, Verdict::Worse),
            (None, 1.0, TOLERANCE, Verdict::Unknown),
            (Some(0.0), 1.0, TOLERANCE, Verdict::Unknown),
        ] {
            assert_eq!(judge(baseline, count, tolerance).0, verdict, "{baseline:?} {count} {tolerance}");
        }
    }
}
