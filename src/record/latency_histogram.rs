//! A histogram of durations that fits into 256 bytes: its buckets grow by a quarter each.

use std::time::Duration;

/// Counts of durations. Quantiles are accurate to an eighth.
#[derive(Clone, Debug)]
pub struct LatencyHistogram {
    /// Bucket `n` counts durations from 1.25^n to 1.25^(n+1) milliseconds.
    bucket_counts: [u32; 64],
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { bucket_counts: [0; 64] }
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
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (count, added) in self.bucket_counts.iter_mut().zip(&other.bucket_counts) {
            *count = count.saturating_add(*added);
        }
    }

    /// The middle of the bucket that contains this quantile, in milliseconds; `None` if nothing was counted.
    pub fn quantile_ms(&self, fraction: f64) -> Option<u64> {
        let total: u64 = self.bucket_counts.iter().map(|count| u64::from(*count)).sum();
        let rank = (total as f64 * fraction).ceil().max(1.0) as u64;
        let mut cumulative = 0;
        for (bucket, count) in self.bucket_counts.iter().enumerate() {
            cumulative += u64::from(*count);
            if cumulative >= rank {
                return Some(Self::BUCKET_RATIO.powf(bucket as f64 + 0.5).round() as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_accurate_to_an_eighth() {
        let mut histogram = LatencyHistogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        for (fraction, expected) in [(0.5, 500.0), (0.95, 950.0)] {
            let found = histogram.quantile_ms(fraction).unwrap() as f64;
            assert!((found / expected - 1.0).abs() < 0.13, "{fraction}: {found}");
        }
        let mut extremes = LatencyHistogram::default();
        extremes.record(Duration::ZERO);
        extremes.record(Duration::from_secs(1_000_000));
        assert_eq!(extremes.quantile_ms(0.0), Some(1));
        assert!(extremes.quantile_ms(1.0).unwrap() > 1_000_000);
    }
}
