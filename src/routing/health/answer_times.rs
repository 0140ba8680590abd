//! How long a deployment takes to answer: a histogram without a lock that fits into 128 bytes and forgets.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Two buckets for each doubling, from 1 ms to 17 minutes and a half.
const BUCKET_COUNT: usize = 42;
/// With fewer answers nothing is known.
const MIN_ANSWERS: u64 = 20;

/// The times to the first byte of the answers of one deployment.
#[derive(Debug)]
pub struct AnswerTimes {
    buckets: [AtomicU32; BUCKET_COUNT],
}

impl Default for AnswerTimes {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU32::new(0)) }
    }
}

impl AnswerTimes {
    /// Counts an answer.
    pub fn record(&self, time: Duration) {
        let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1);
        let octave = millis.ilog2() as usize;
        // The bit below the highest halves the octave.
        let half = if octave == 0 { 0 } else { (millis >> (octave - 1)) as usize & 1 };
        if let Some(bucket) = self.buckets.get((octave * 2 + half).min(BUCKET_COUNT - 1)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The time within which 99 of 100 answers came, rounded up to the end of a bucket, which is at most a half
    /// more; `None` if too few are known.
    pub fn p99(&self) -> Option<Duration> {
        let counts = self.buckets.each_ref().map(|bucket| u64::from(bucket.load(Ordering::Relaxed)));
        let total: u64 = counts.iter().sum();
        if total < MIN_ANSWERS {
            return None;
        }
        let mut above: u64 = 0;
        let slowest = counts.iter().enumerate().rev().find(|(_, count)| {
            above += **count;
            above * 100 > total
        });
        slowest.map(|(bucket, _)| {
            let octave = 1_u64 << (bucket / 2);
            let end = if bucket % 2 == 0 { octave + octave.div_ceil(2) } else { octave * 2 };
            Duration::from_millis(end)
        })
    }

    /// Halves all counts, so that old answers count less and less.
    pub fn fade(&self) {
        for bucket in &self.buckets {
            let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count / 2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_p99_is_the_end_of_the_bucket_that_it_is_in() {
        type Answers = &'static [(u32, u64)];
        let table: [(Answers, Option<u64>); 6] = [
            (&[(19, 100)], None),
            (&[(20, 100)], Some(128)),
            (&[(100, 10), (1, 5000)], Some(12)),
            (&[(99, 10), (2, 5000)], Some(6144)),
            (&[(50, 0)], Some(2)),
            (&[(50, 10_000_000)], Some(1 << 21)),
        ];
        for (answers, expected) in table {
            let times = AnswerTimes::default();
            for (count, millis) in answers {
                (0..*count).for_each(|_| times.record(Duration::from_millis(*millis)));
            }
            assert_eq!(times.p99(), expected.map(Duration::from_millis), "{answers:?}");
        }
    }

    #[test]
    fn old_answers_are_forgotten() {
        let times = AnswerTimes::default();
        (0..100).for_each(|_| times.record(Duration::from_secs(60)));
        (0..7).for_each(|_| times.fade());
        (0..20).for_each(|_| times.record(Duration::from_millis(100)));
        assert_eq!(times.p99(), Some(Duration::from_millis(128)));
    }
}
