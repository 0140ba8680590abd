//! When the records of a segment were appended, to tell how long the oldest that is not delivered has waited.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

/// Records that are appended within this time of each other share one mark.
const MIN_MARK_INTERVAL: Duration = Duration::from_secs(1);
/// The most marks of a segment. With more, every other one is dropped and the interval doubles: the age of a long
/// backlog is exact to a fiftieth of it.
const MAX_MARKS: usize = 128;

/// Marks of a segment: from which offset on records were appended at which time, oldest first.
#[derive(Debug)]
pub(super) struct AppendTimes {
    marks: VecDeque<(u64, SystemTime)>,
    mark_interval: Duration,
}

impl Default for AppendTimes {
    fn default() -> Self {
        Self { marks: VecDeque::new(), mark_interval: MIN_MARK_INTERVAL }
    }
}

impl AppendTimes {
    /// Records are appended at this offset.
    pub(super) fn note(&mut self, offset: u64, now: SystemTime) {
        let is_marked = self.marks.back().is_some_and(|(_, last)| {
            now.duration_since(*last).is_ok_and(|since_last| since_last < self.mark_interval)
        });
        if is_marked {
            return;
        }
        if self.marks.len() >= MAX_MARKS {
            let mut index = 0;
            self.marks.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.mark_interval *= 2;
        }
        self.marks.push_back((offset, now));
    }

    /// Forgets what was appended before this offset.
    pub(super) fn forget_before(&mut self, offset: u64) {
        while self.marks.get(1).is_some_and(|(next, _)| *next <= offset) {
            self.marks.pop_front();
        }
        if self.marks.len() < MAX_MARKS / 4 {
            self.mark_interval = MIN_MARK_INTERVAL;
        }
    }

    /// When the record at this offset was appended; `None` if nothing was.
    pub(super) fn time_at(&self, offset: u64) -> Option<SystemTime> {
        self.marks.iter().rev().find(|(start, _)| *start <= offset).map(|(_, time)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_time_of_an_offset_is_known_to_a_second() {
        let mut times = AppendTimes::default();
        assert_eq!(times.time_at(8), None);
        for (offset, milliseconds) in [(8, 0), (20, 999), (30, 1_500), (40, 10_000), (50, 10_001)] {
            times.note(offset, at(milliseconds));
        }
        let table = [(8, 0), (20, 0), (29, 0), (30, 1_500), (39, 1_500), (40, 10_000), (99, 10_000)];
        for (offset, expected) in table {
            assert_eq!(times.time_at(offset), Some(at(expected)), "{offset}");
        }
        times.forget_before(39);
        assert_eq!((times.time_at(39), times.marks.len()), (Some(at(1_500)), 2));
        times.forget_before(1_000);
        assert_eq!((times.time_at(1_000), times.marks.len()), (Some(at(10_000)), 1));
        // The clock was set back.
        times.note(60, at(5));
        assert_eq!(times.time_at(60), Some(at(5)));
    }

    #[test]
    fn a_long_backlog_takes_little_memory() {
        let mut times = AppendTimes::default();
        for second in 0..100_000 {
            times.note(8 + second, at(second * 1_000));
            assert!(times.marks.len() <= MAX_MARKS);
        }
        assert_eq!(times.time_at(8), Some(at(0)), "the oldest is exact");
        for second in [1_000, 50_000, 99_999] {
            let time = times.time_at(8 + second).unwrap().duration_since(at(0)).unwrap().as_secs();
            assert!(time <= second && time + 100_000 / 48 >= second, "{second}: {time}");
        }
        times.forget_before(100_007);
        times.note(200_000, at(200_000_000));
        times.note(200_001, at(200_001_000));
        assert_eq!(times.time_at(200_001), Some(at(200_001_000)), "exact again");
    }
}
