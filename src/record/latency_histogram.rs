//! A histogram of durations that fits into 264 bytes: its buckets grow by a quarter each.

use std::time::Duration;

/// Counts of durations. A quantile is in the right bucket, so it is off by less than a quarter; where durations
/// spread evenly over their bucket, by much less.
#[derive(Clone, Debug)]
pub struct LatencyHistogram {
    /// Bucket `n` counts durations from 1.25^n to 1.25^(n+1) milliseconds.
    bucket_counts: [u32; 64],
    /// In milliseconds; infinite if nothing was counted.
    shortest_ms: f32,
    /// In milliseconds; 0 if nothing was counted.
    longest_ms: f32,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { bucket_counts: [0; 64], shortest_ms: f32::INFINITY, longest_ms: 0.0 }
    }
}

impl LatencyHistogram {
    const BUCKET_RATIO: f64 = 1.25;

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let ms = duration.as_secs_f64() * 1000.0;
        // The first bucket also counts anything below a millisecond, the last anything above 21 minutes.
        let bucket = (ms.max(1.0).ln() / Self::BUCKET_RATIO.ln()) as usize;
        if let Some(count) = self.bucket_counts.get_mut(bucket.min(63)) {
            *count = count.saturating_add(1);
        }
        self.shortest_ms = self.shortest_ms.min(ms as f32);
        self.longest_ms = self.longest_ms.max(ms as f32);
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (count, added) in self.bucket_counts.iter_mut().zip(&other.bucket_counts) {
            *count = count.saturating_add(*added);
        }
        self.shortest_ms = self.shortest_ms.min(other.shortest_ms);
        self.longest_ms = self.longest_ms.max(other.longest_ms);
    }

    /// This quantile in milliseconds, as if the durations of a bucket spread evenly over it, and never outside of
    /// what was counted; `None` if nothing was counted.
    pub fn quantile_ms(&self, fraction: f64) -> Option<u64> {
        let total: u64 = self.bucket_counts.iter().map(|count| u64::from(*count)).sum();
        let rank = (total as f64 * fraction).ceil().max(1.0) as u64;
        let mut counted_before = 0;
        for (bucket, count) in self.bucket_counts.iter().enumerate() {
            let count = u64::from(*count);
            if counted_before + count >= rank {
                let part_of_bucket = ((rank - counted_before) as f64 - 0.5) / count as f64;
                let ms = Self::BUCKET_RATIO.powf(bucket as f64 + part_of_bucket);
                let ms = ms.max(f64::from(self.shortest_ms)).min(f64::from(self.longest_ms));
                return Some(ms.round() as u64);
            }
            counted_before += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_accurate_where_durations_spread_evenly() {
        let mut histogram = LatencyHistogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        for (fraction, expected) in [(0.1, 100.0), (0.5, 500.0), (0.9, 900.0), (0.95, 950.0), (1.0, 1000.0)] {
            let found = histogram.quantile_ms(fraction).unwrap() as f64;
            assert!((found / expected - 1.0).abs() < 0.02, "{fraction}: {found}");
        }
    }

    #[test]
    fn a_quantile_is_never_outside_of_what_was_counted() {
        // Edges and middles of buckets are none of these.
        for ms in [3, 811, 1200, 34_567] {
            let mut histogram = LatencyHistogram::default();
            for _ in 0..7 {
                histogram.record(Duration::from_millis(ms));
            }
            let mut merged = LatencyHistogram::default();
            merged.merge(&histogram);
            for fraction in [0.0, 0.5, 0.95, 1.0] {
                assert_eq!(merged.quantile_ms(fraction), Some(ms), "{fraction}");
            }
        }
        let mut extremes = LatencyHistogram::default();
        extremes.record(Duration::ZERO);
        extremes.record(Duration::from_secs(1_000_000));
        assert_eq!(extremes.quantile_ms(0.0), Some(1));
        assert!(extremes.quantile_ms(1.0).unwrap() > 1_000_000);
    }
}
