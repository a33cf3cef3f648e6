//! A token bucket without a lock.
//!
//! Source: Envoy `type.v3.TokenBucket`, `AtomicTokenBucketImpl`: tokens come in steadily, and the bucket is the moment at which it would have been empty.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A token bucket, full at first, that any number of threads take from.
#[derive(Debug)]
pub struct TokenBucket {
    start: Instant,
    max: u32,
    /// Tokens a second.
    rate: f64,
    /// Bits of the seconds after `start` since when tokens have gathered; negative before it.
    since: AtomicU64,
}

impl TokenBucket {
    /// Takes `per_fill` new tokens each `interval`, and holds at most `max`.
    pub fn new(max: u32, per_fill: u32, interval: Duration) -> Self {
        let rate = f64::from(per_fill) / interval.as_secs_f64().max(1e-9);
        let since = -(f64::from(max) / rate);
        TokenBucket { start: Instant::now(), max, rate, since: AtomicU64::new(since.to_bits()) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.start).as_secs_f64();
        let taken = self.since.fetch_update(Relaxed, Relaxed, |since| {
            let tokens = self.gathered(now, f64::from_bits(since));
            (tokens >= 1.0).then(|| (now - (tokens - 1.0) / self.rate).to_bits())
        });
        taken.is_ok()
    }

    fn gathered(&self, now: f64, since: f64) -> f64 {
        ((now - since) * self.rate).min(f64::from(self.max))
    }

    /// Most tokens that it holds.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// Whole tokens that are there.
    pub fn remaining(&self) -> u64 {
        let now = self.start.elapsed().as_secs_f64();
        self.gathered(now, f64::from_bits(self.since.load(Relaxed))).max(0.0) as u64
    }

    /// Seconds, rounded up, until there is a token.
    pub fn next_token(&self) -> u64 {
        let now = self.start.elapsed().as_secs_f64();
        let missing = 1.0 - self.gathered(now, f64::from_bits(self.since.load(Relaxed)));
        if missing <= 0.0 { 0 } else { (missing / self.rate).ceil() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_full_at_first_and_fills_steadily() {
        let bucket = TokenBucket::new(3, 2, Duration::from_secs(10));
        let start = bucket.start;
        let at = |seconds: f64| bucket.take_at(start + Duration::from_secs_f64(seconds));
        for (seconds, expected) in [
            (0.0, true),
            (0.0, true),
            (0.0, true),
            (0.0, false),
            (4.9, false),
            (5.1, true),
            (5.1, false),
            // No more than three gather.
            (100.0, true),
            (100.0, true),
            (100.0, true),
            (100.0, false),
        ] {
            assert_eq!(at(seconds), expected, "at {seconds} s");
        }
    }

    #[test]
    fn a_bucket_of_no_tokens_gives_none() {
        assert!(!TokenBucket::new(0, 1, Duration::from_secs(1)).take());
    }

    #[test]
    fn threads_share_a_bucket() {
        let bucket = TokenBucket::new(100, 1, Duration::from_secs(3_600));
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..50).filter(|_| bucket.take()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        assert_eq!((taken, bucket.remaining()), (100, 0));
        assert!((1..=3_600).contains(&bucket.next_token()));
    }
}
