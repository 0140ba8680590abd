//! Tests of what waits for the writer, with and without a write-ahead log.

use super::super::write_ahead_log::{take_orphans, visit_records};
use super::*;
use crate::record::testing::memory_directory;

/// Records of this many threads, with logs in a directory of their own.
fn logged_records(threads: usize) -> (tempfile::TempDir, LogPlace, RenderedRecords) {
    let directory = memory_directory();
    let place = LogPlace {
        directory: directory.path().to_owned(),
        outlives_process: true,
        spool_directory: "/spool".into(),
    };
    let records = RenderedRecords::new(threads, Some(place.clone()));
    (directory, place, records)
}

fn push(records: &RenderedRecords, record: &str) -> (Option<WriteReceipt>, bool) {
    records.push(SystemTime::UNIX_EPOCH, |buffer| buffer.extend_from_slice(record.as_bytes()))
}

fn logged(place: &LogPlace) -> usize {
    let mut count = 0;
    visit_records(place, |_| count += 1);
    count
}

/// Takes everything as the writer does, and returns it.
fn take(records: &RenderedRecords) -> Vec<String> {
    let mut frames = FrameBuffer::default();
    assert_eq!(records.take(&mut frames), !frames.is_empty());
    records.on_written();
    frames.records().map(|record| String::from_utf8(record.to_vec()).unwrap()).collect()
}

#[test]
fn nobody_waits_for_a_record_in_the_log_and_the_writer_clears_it() {
    let (directory, place, records) = logged_records(1);
    for round in 0..3 {
        for record in ["one", "two"] {
            let (receipt, wakes_writer) = push(&records, record);
            assert!(receipt.is_none() && !wakes_writer, "round {round}");
        }
        assert!(!records.has_receipts());
        assert_eq!(logged(&place), 2);
        assert_eq!(records.backlog().records, Some(2));
        let mut frames = FrameBuffer::default();
        assert!(records.take(&mut frames));
        assert_eq!((logged(&place), records.backlog().records), (2, Some(2)), "it is not written yet");
        // Meanwhile others go to the other half.
        assert!(push(&records, "three").0.is_none());
        assert_eq!((logged(&place), records.backlog().records), (3, Some(3)));
        assert!(records.is_safe());
        records.on_written();
        assert_eq!(logged(&place), 1);
        assert_eq!(take(&records), ["three"]);
        assert_eq!((logged(&place), records.backlog().records), (0, Some(0)));
    }
    records.delete_logs();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_end_of_a_response_waits_for_the_writer_if_its_record_is_in_no_log() {
    let records = RenderedRecords::new(1, None);
    let (receipt, _) = push(&records, "one");
    let mut receipt = receipt.unwrap();
    assert!(records.has_receipts() && !records.is_safe() && receipt.try_recv().is_err());
    assert_eq!(take(&records), ["one"]);
    assert!(receipt.try_recv().is_ok() && !records.has_receipts());
}

#[test]
fn what_has_no_room_in_the_log_is_waited_for_and_then_there_is_no_room() {
    let (_directory, place, records) = logged_records(1);
    let long = "x".repeat(HALF_BYTES / 2);
    let (receipt, wakes_writer) = push(&records, &long);
    assert!(receipt.is_none() && wakes_writer && records.is_open());
    let (receipt, _) = push(&records, &long);
    assert!(receipt.is_some() && !records.is_open());
    // One that would fit in is not in the log either: what is there has no gaps.
    assert!(push(&records, "short").0.is_some());
    assert_eq!(logged(&place), 1);
    assert_eq!(take(&records).len(), 3);
    assert!(records.is_open() && push(&records, "short").0.is_none());
}

#[test]
fn a_sleeping_writer_is_woken_and_never_falls_asleep_over_records() {
    let (_directory, _, records) = logged_records(1);
    assert!(records.fall_asleep());
    assert!(push(&records, "one").1);
    records.wake_up();
    assert!(!push(&records, "two").1);
    assert!(!records.fall_asleep());
    records.wake_up();
    assert_eq!(take(&records).len(), 2);
    assert!(records.fall_asleep());
}

#[test]
fn a_log_that_somebody_deletes_is_replaced_and_what_is_left_by_a_kill_is_found() {
    let (directory, place, records) = logged_records(1);
    assert!(push(&records, "one").0.is_none());
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    records.maintain_logs();
    // The new log does not have the first record.
    assert!(push(&records, "two").0.is_some());
    assert_eq!(take(&records), ["one", "two"]);
    assert!(push(&records, "three").0.is_none());
    drop(records);
    let orphans = take_orphans(&place);
    let left: Vec<&[u8]> = orphans.iter().flat_map(|orphan| orphan.records()).collect();
    assert_eq!(left, [b"three"]);
}

#[test]
fn a_record_whose_making_panics_is_not_there() {
    let (_directory, place, records) = logged_records(1);
    assert!(push(&records, "one").0.is_none());
    let panicking = std::panic::AssertUnwindSafe(|| {
        records.push(SystemTime::UNIX_EPOCH, |buffer| {
            buffer.extend_from_slice(b"half");
            panic!("a bug");
        })
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert!(push(&records, "two").0.is_none());
    assert_eq!(logged(&place), 2);
    assert_eq!(take(&records), ["one", "two"]);
}

#[test]
fn records_of_several_threads_are_taken_together() {
    let (_directory, place, records) = logged_records(4);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let records = &records;
            scope.spawn(move || assert!(push(records, &format!("{thread}")).0.is_none()));
        }
    });
    assert_eq!(logged(&place), 8);
    let mut taken = take(&records);
    taken.sort();
    assert_eq!(taken, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    assert_eq!(logged(&place), 0);
}

#[test]
fn at_a_high_rate_exchanges_are_passed_to_the_writer_until_the_rate_is_lower() {
    let (_directory, _, records) = logged_records(1);
    let mut now = Instant::now();
    let mut send = |count: u32| {
        let was_open = (0..count).map(|_| records.is_open()).last().unwrap();
        now += RATE_WINDOW;
        records.estimate_rates(now);
        was_open
    };
    let limit = (MAX_RATE * RATE_WINDOW.as_secs_f64()) as u32;
    assert!(send(limit - 10) && send(limit - 10));
    assert!(send(limit * 2), "it is known only afterwards");
    assert!(!send(limit * 2) && !send(limit / 2));
    assert!(send(1));
}

#[test]
fn a_log_with_a_record_that_came_after_the_last_write_is_left_to_the_next_process() {
    let (_directory, place, records) = logged_records(1);
    assert!(push(&records, "late").0.is_none());
    records.delete_logs();
    drop(records);
    assert_eq!(take_orphans(&place).len(), 1);
}
