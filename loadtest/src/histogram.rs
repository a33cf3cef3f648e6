//! Latency histogram with a bounded relative error, in the manner of HdrHistogram.

use std::time::Duration;

/// Bits of precision kept below the leading bit: 128 steps per power of two, so a value is off by less than 0.8 %.
const PRECISION_BITS: u32 = 7;
/// Steps per power of two.
const STEPS: usize = 1 << PRECISION_BITS;
/// Longest value told apart, in nanoseconds (about 18 minutes); longer ones count as this one.
const CEILING: u64 = (1 << 40) - 1;

/// Counts of durations in logarithmic buckets with linear steps. Recording is two shifts and an addition.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum_nanos: u128,
    max_nanos: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; index(CEILING) + 1], total: 0, sum_nanos: 0, max_nanos: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(CEILING).min(CEILING);
        if let Some(count) = self.counts.get_mut(index(nanos)) {
            *count += 1;
        }
        self.total += 1;
        self.sum_nanos += u128::from(nanos);
        self.max_nanos = self.max_nanos.max(nanos);
    }

    /// Adds what `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.sum_nanos += other.sum_nanos;
        self.max_nanos = self.max_nanos.max(other.max_nanos);
    }

    /// Durations counted so far.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest duration counted, exact.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_nanos)
    }

    /// The arithmetic mean, exact; zero when nothing was counted.
    pub fn mean(&self) -> Duration {
        let mean = self.sum_nanos.checked_div(u128::from(self.total)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(CEILING))
    }

    /// The smallest bucket bound that at least `percent` of all durations do not exceed; zero when nothing was counted.
    pub fn percentile(&self, percent: f64) -> Duration {
        let wanted = ((self.total as f64) * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper_bound(at).min(self.max_nanos));
            }
        }
        self.max()
    }
}

/// The bucket of a value in nanoseconds. Values below [`STEPS`] have a bucket each.
fn index(nanos: u64) -> usize {
    let shift = (63 - nanos.max(1).leading_zeros()).saturating_sub(PRECISION_BITS);
    (shift as usize) * STEPS + (nanos >> shift) as usize
}

/// The largest value in nanoseconds that falls into the bucket.
fn upper_bound(bucket: usize) -> u64 {
    if bucket < 2 * STEPS {
        return bucket as u64;
    }
    let shift = bucket / STEPS - 1;
    let step = (bucket - shift * STEPS) as u64;
    ((step + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_its_bucket() {
        let mut previous = 0;
        for nanos in (0..5_000).chain((1..34).map(|bit| (1u64 << bit) + 12_345)).chain([CEILING]) {
            let bucket = index(nanos);
            assert!(upper_bound(bucket) >= nanos, "{nanos} lies above its bucket {bucket}");
            assert!(bucket == 0 || upper_bound(bucket - 1) < nanos, "{nanos} fits into the bucket before {bucket}");
            if nanos < 5_000 {
                assert!(bucket >= previous, "buckets go back at {nanos}");
                previous = bucket;
            }
        }
    }

    #[test]
    fn relative_error_stays_below_one_percent() {
        for nanos in [200u64, 1_000, 54_321, 1_234_567, 9_876_543_210] {
            let bound = upper_bound(index(nanos));
            assert!((bound - nanos) as f64 / (nanos as f64) < 0.01, "{nanos} is shown as {bound}");
        }
    }

    #[test]
    fn percentiles_of_a_known_row() {
        let mut histogram = Histogram::default();
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (percent, micros) in [(50.0, 500.0), (90.0, 900.0), (99.0, 990.0), (100.0, 1_000.0)] {
            let shown = histogram.percentile(percent).as_nanos() as f64 / 1_000.0;
            assert!((shown - micros).abs() / micros < 0.01, "p{percent} is {shown} µs, expected {micros}");
        }
        assert_eq!(histogram.max(), Duration::from_micros(1_000));
        assert_eq!(histogram.mean(), Duration::from_nanos(500_500));
    }

    #[test]
    fn merging_equals_recording_in_one() {
        let (mut left, mut right, mut whole) = (Histogram::default(), Histogram::default(), Histogram::default());
        for nanos in [3u64, 700, 81_000, 5_000_000] {
            left.record(Duration::from_nanos(nanos));
            right.record(Duration::from_nanos(nanos * 3));
            whole.record(Duration::from_nanos(nanos));
            whole.record(Duration::from_nanos(nanos * 3));
        }
        left.merge(&right);
        assert_eq!(left.counts, whole.counts);
        assert_eq!((left.count(), left.max(), left.mean()), (whole.count(), whole.max(), whole.mean()));
    }

    #[test]
    fn an_empty_histogram_shows_zero() {
        let histogram = Histogram::default();
        assert_eq!(histogram.percentile(99.0), Duration::ZERO);
        assert_eq!(histogram.mean(), Duration::ZERO);
    }

    #[test]
    fn longer_than_the_ceiling_counts_as_the_ceiling() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_secs(100_000));
        assert_eq!(histogram.percentile(50.0), Duration::from_nanos(CEILING));
    }
}
