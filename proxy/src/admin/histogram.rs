//! Histograms as text and JSON.
//!
//! Envoy prints two values, of the last flush interval and since the start. Cells are cumulative here, so the interval is always printed as not
//! measured (`nan`, `null`), which is what Envoy prints for an interval without values.

use std::fmt::Write;

use serde_json::{Value, json};
use shika_data::stats::BUCKETS;

/// Quantiles of Envoy's summaries, in percent.
pub const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// How histograms are shown: Envoy's `histogram_buckets`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Display {
    /// Quantiles.
    #[default]
    Summary,
    /// Buckets with all below them.
    Cumulative,
    /// Buckets alone.
    Disjoint,
}

/// Counts by bucket, the last one above all bounds.
pub type Counts = [u64; BUCKETS.len() + 1];

/// The value below which `percent` of the values lie, interpolated within its bucket; `None` without values.
pub fn quantile(counts: &Counts, percent: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = percent / 100.0 * total as f64;
    let mut below = 0.0;
    let mut last = 0.0;
    for (index, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let low = index.checked_sub(1).and_then(|index| BUCKETS.get(index)).copied().unwrap_or(0.0);
        // What lies above all bounds has no upper one: the bound itself is the best that can be said.
        let high = BUCKETS.get(index).copied().unwrap_or(low);
        let count = *count as f64;
        if rank <= below + count {
            return Some(low + (high - low) * ((rank - below) / count).clamp(0.0, 1.0));
        }
        below += count;
        last = high;
    }
    Some(last)
}

/// The text behind `name: `.
pub fn text(counts: &Counts, display: Display, out: &mut String) {
    if counts.iter().all(|count| *count == 0) {
        out.push_str("No recorded values");
        return;
    }
    // Writing to a string does not fail.
    match display {
        Display::Summary => {
            for (index, percent) in QUANTILES.iter().enumerate() {
                let space = if index == 0 { "" } else { " " };
                let value = quantile(counts, *percent).unwrap_or(f64::NAN);
                let _ = write!(out, "{space}P{percent}(nan,{value})");
            }
        }
        Display::Cumulative | Display::Disjoint => {
            for (index, (bound, count)) in buckets(counts, display).enumerate() {
                let space = if index == 0 { "" } else { " " };
                let _ = write!(out, "{space}B{bound}(0,{count})");
            }
        }
    }
}

/// The entry of one histogram in `/stats?format=json`.
pub fn json(name: &str, counts: &Counts, display: Display) -> Value {
    match display {
        Display::Summary => {
            let values: Vec<_> = QUANTILES
                .iter()
                .map(|percent| json!({"cumulative": quantile(counts, *percent), "interval": null}))
                .collect();
            json!({"name": name, "values": values})
        }
        Display::Cumulative | Display::Disjoint => {
            let buckets: Vec<_> = buckets(counts, display)
                .map(|(bound, count)| json!({"upper_bound": bound, "interval": 0, "cumulative": count}))
                .collect();
            json!({"name": name, "buckets": buckets})
        }
    }
}

fn buckets(counts: &Counts, display: Display) -> impl Iterator<Item = (f64, u64)> {
    let mut sum = 0;
    BUCKETS.iter().zip(counts.iter()).map(move |(bound, count)| {
        sum += count;
        (*bound, if display == Display::Cumulative { sum } else { *count })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_within_a_bucket() {
        let mut counts = [0; BUCKETS.len() + 1];
        assert_eq!(quantile(&counts, 50.0), None);
        counts[2] = 4; // (1, 5]
        assert_eq!(quantile(&counts, 0.0), Some(1.0));
        assert_eq!(quantile(&counts, 50.0), Some(3.0));
        assert_eq!(quantile(&counts, 100.0), Some(5.0));
        counts[BUCKETS.len()] = 1;
        assert_eq!(quantile(&counts, 100.0), Some(3_600_000.0));
    }

    #[test]
    fn text_as_envoys() {
        let mut counts = [0; BUCKETS.len() + 1];
        let mut out = String::new();
        text(&counts, Display::Summary, &mut out);
        assert_eq!(out, "No recorded values");
        counts[0] = 1;
        counts[1] = 1;
        out.clear();
        text(&counts, Display::Summary, &mut out);
        assert!(out.starts_with("P0(nan,0) P25(nan,0.25) P50(nan,0.5) ") && out.ends_with(" P100(nan,1)"), "{out}");
        out.clear();
        text(&counts, Display::Cumulative, &mut out);
        assert!(out.starts_with("B0.5(0,1) B1(0,2) B5(0,2) ") && out.ends_with(" B3600000(0,2)"), "{out}");
    }
}
