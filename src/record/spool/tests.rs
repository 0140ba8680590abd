//! The spool after a kill, with a full disk and with two processes at once.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use super::*;
use crate::record::delivery::Backlog;

const SINK_NAMES: &[&str] = &["one", "two"];
const READ_TIMEOUT: Duration = Duration::from_millis(50);

fn open_spool(directory: &Path, maximum: u64) -> (Spool, Vec<SpoolReader>) {
    Spool::open(directory, maximum, SINK_NAMES, Instant::now())
}

fn append_records(spool: &mut Spool, records: impl IntoIterator<Item = String>) -> u64 {
    let mut frames = FrameBuffer::default();
    records
        .into_iter()
        .for_each(|record| frames.push_record(|buffer| buffer.extend_from_slice(record.as_bytes())));
    spool.append(&mut frames, None, Instant::now())
}

fn numbered_records(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|n| format!("record {n}"))
}

/// Reads all records of a sink and marks the first `delivered_batches` batches as delivered.
fn read_records(reader: &SpoolReader, max_batch_bytes: usize, delivered_batches: usize) -> Vec<String> {
    let (mut records, mut batches) = (Vec::new(), 0);
    while let SpoolRead::Batch(batch) = reader.wait_for_batch(max_batch_bytes, Duration::ZERO) {
        records.extend(batch.records().map(|record| String::from_utf8(record.to_vec()).unwrap()));
        if batches == delivered_batches {
            break;
        }
        reader.mark_delivered(&batch);
        batches += 1;
    }
    records
}

fn file_names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn each_sink_reads_at_its_own_pace_and_delivered_segments_are_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open_spool(directory.path(), 40 * 1024);
    for n in 0..100 {
        assert_eq!(append_records(&mut spool, numbered_records(n * 10..n * 10 + 10)), 0);
    }
    let all: Vec<String> = numbered_records(0..1000).collect();
    assert_eq!(read_records(&readers[0], 100, usize::MAX), all, "in order, in small batches");
    assert!(readers[1].undelivered_bytes() > 0);
    assert!(file_names(directory.path()).len() > 5);
    assert_eq!(read_records(&readers[1], 1 << 20, usize::MAX), all);
    let remaining = file_names(directory.path());
    assert_eq!(remaining.iter().filter(|name| name.ends_with(".sealed")).count(), 0, "{remaining:?}");
    assert!(matches!(readers[0].wait_for_batch(1, READ_TIMEOUT), SpoolRead::TimedOut));
    spool.close();
    assert!(matches!(readers[0].wait_for_batch(1, READ_TIMEOUT), SpoolRead::Closed));
    drop((spool, readers));
    assert_eq!(file_names(directory.path()), Vec::<String>::new());
}

#[test]
fn records_of_a_killed_process_are_adopted_without_the_torn_end() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open_spool(directory.path(), 1 << 20);
    append_records(&mut spool, numbered_records(0..100));
    // The first sink has delivered some of the records, the second none.
    let first_read = read_records(&readers[0], 64, 3).len();
    assert!((1..100).contains(&first_read));
    let active = spool.active_segment.clone().unwrap();
    // A kill runs no destructor and releases the lock.
    let file = spool.shared.lock().segments[&active].file();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
    std::mem::forget((spool, readers));
    for torn in [&b"\x20\x00\x00\x00\x00"[..], b"\x05\x00\x00\x00\x01\x02\x03\x04torn?"] {
        let mut path = directory.path().join(&active);
        path.set_extension(if path.with_extension("open").exists() { "open" } else { "sealed" });
        let before = fs::metadata(&path).unwrap().len();
        let open_path = path.with_extension("open");
        fs::rename(&path, &open_path).unwrap();
        OpenOptions::new().append(true).open(&open_path).unwrap().write_all(torn).unwrap();
        let (spool, readers) = open_spool(directory.path(), 1 << 20);
        let sealed = open_path.with_extension("sealed");
        assert_eq!(fs::metadata(&sealed).unwrap().len(), before, "the torn end is gone");
        let SpoolRead::Batch(batch) = readers[0].wait_for_batch(1 << 20, READ_TIMEOUT) else { panic!() };
        assert!(batch.may_contain_duplicates);
        // The batch that was read but not marked as delivered comes again.
        let reread = batch.records().count();
        assert!(reread < 100 && reread + first_read >= 100, "{reread} {first_read}");
        assert_eq!(read_records(&readers[1], 1 << 20, 0), numbered_records(0..100).collect::<Vec<_>>());
        let file = spool.shared.lock().segments[&active].file();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
        std::mem::forget(spool);
    }
}

#[test]
fn two_processes_share_the_directory_and_the_survivor_adopts_the_segments() {
    let directory = tempfile::tempdir().unwrap();
    let (mut old, old_readers) = open_spool(directory.path(), 1 << 20);
    append_records(&mut old, numbered_records(0..10));
    let (mut new, new_readers) = open_spool(directory.path(), 1 << 20);
    append_records(&mut new, numbered_records(10..20));
    assert_eq!(
        read_records(&new_readers[0], 1 << 20, usize::MAX),
        numbered_records(10..20).collect::<Vec<_>>()
    );
    assert_eq!(
        read_records(&old_readers[0], 1 << 20, usize::MAX),
        numbered_records(0..10).collect::<Vec<_>>()
    );
    drop((old, old_readers));
    new.adopt_orphans();
    // The second sink has delivered none of them.
    let mut all = read_records(&new_readers[1], 1 << 20, usize::MAX);
    all.sort();
    assert_eq!(all.len(), 20);
    assert_eq!(read_records(&new_readers[0], 1 << 20, usize::MAX), Vec::<String>::new());
}

#[test]
fn a_sink_that_has_records_already_does_not_get_them_from_the_spool() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open_spool(directory.path(), 1 << 20);
    let mut frames = FrameBuffer::default();
    for (n, delivered_to) in [(0, None), (1, Some("one")), (2, Some("one")), (3, None), (4, Some("one"))] {
        frames.push_record(|buffer| buffer.extend_from_slice(format!("record {n}").as_bytes()));
        assert_eq!(spool.append(&mut frames, delivered_to, Instant::now()), 0);
        frames.clear();
    }
    let expected = ["record 0".to_owned(), "record 3".to_owned()];
    assert!(!spool.is_delivered_to("one"));
    let backlog = spool.view().backlogs()[0].1;
    assert_eq!((backlog.records, spool.is_delivered_to("nobody")), (Some(2), true));
    assert_eq!(read_records(&readers[0], 1 << 20, 0), expected[..1]);
    // A process that adopts the segments knows it, too.
    std::mem::forget(readers);
    let names: Vec<String> = spool.shared.lock().segments.keys().cloned().collect();
    for name in names {
        let file = spool.shared.lock().segments[&name].file();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
    }
    std::mem::forget(spool);
    let (spool, readers) = open_spool(directory.path(), 1 << 20);
    assert_eq!(read_records(&readers[0], 1 << 20, usize::MAX), expected);
    assert!(spool.is_delivered_to("one") && !spool.is_delivered_to("two"));
    assert_eq!(read_records(&readers[1], 1 << 20, usize::MAX), numbered_records(0..5).collect::<Vec<_>>());
}

#[test]
fn beyond_the_size_limit_the_oldest_records_are_dropped_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let maximum = 64 * 1024;
    let (mut spool, readers) = open_spool(directory.path(), maximum);
    read_records(&readers[0], 1 << 20, usize::MAX);
    for n in 0..10_000 {
        assert_eq!(append_records(&mut spool, numbered_records(n..n + 1)), 0);
        read_records(&readers[0], 1 << 20, usize::MAX);
        assert!(spool.total_bytes() <= maximum + 1024);
    }
    let remaining = read_records(&readers[1], 1 << 20, usize::MAX);
    let lost = spool.take_lost_record_counts();
    assert_eq!(lost, [("two", 10_000 - remaining.len() as u64)]);
    assert!(remaining.len() > 1000);
    assert_eq!(
        remaining,
        numbered_records(10_000 - remaining.len()..10_000).collect::<Vec<_>>(),
        "the newest records are kept"
    );
    assert_eq!(spool.take_lost_record_counts(), []);
}

#[test]
fn a_record_larger_than_a_batch_is_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open_spool(directory.path(), 16 * 1024 * 1024);
    let records = ["a".to_owned(), "b".repeat(3_000_000), "c".to_owned()];
    append_records(&mut spool, records.clone());
    assert_eq!(read_records(&readers[0], 1024, usize::MAX), records);
}

#[test]
fn records_are_lost_while_the_disk_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open_spool(directory.path(), 1 << 20);
    append_records(&mut spool, numbered_records(0..10));
    // The same file, opened read-only, stands in for a disk that fails.
    let active = spool.active_segment.clone().unwrap();
    let path = directory.path().join(&active).with_extension("open");
    let broken = Arc::new(fs::File::open(&path).unwrap());
    let good = spool.shared.lock().segments.get_mut(&active).unwrap().replace_file(broken);
    assert_eq!(append_records(&mut spool, numbered_records(10..15)), 5);
    assert_eq!(
        append_records(&mut spool, numbered_records(15..16)),
        1,
        "the disk is not tried again at once"
    );
    spool.shared.lock().segments.get_mut(&active).unwrap().replace_file(good);
    spool.incident.as_mut().unwrap().last_failure -= WRITE_RETRY_INTERVAL;
    assert_eq!(append_records(&mut spool, numbered_records(20..30)), 0);
    let expected: Vec<String> = numbered_records(0..10).chain(numbered_records(20..30)).collect();
    assert_eq!(read_records(&readers[0], 1 << 20, usize::MAX), expected);
}

#[test]
fn a_directory_that_cannot_be_used_is_tried_again() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("spool");
    // Even root cannot create a directory below a file.
    fs::write(&directory, "a file").unwrap();
    let (mut spool, readers) = open_spool(&directory, 1 << 20);
    let started = Instant::now();
    assert!(spool.is_failing());
    let frames = |range| {
        let mut frames = FrameBuffer::default();
        numbered_records(range).for_each(|record| frames.push_record(|buffer| buffer.extend(record.bytes())));
        frames
    };
    assert_eq!(spool.append(&mut frames(0..10), None, started), 10);
    spool.maintain(started + WRITE_RETRY_INTERVAL);
    assert!(spool.is_failing());
    fs::remove_file(&directory).unwrap();
    spool.maintain(started + 2 * WRITE_RETRY_INTERVAL);
    assert_eq!(spool.append(&mut frames(10..20), None, started + 2 * WRITE_RETRY_INTERVAL), 0);
    spool.maintain(started + 2 * WRITE_RETRY_INTERVAL + RECOVERY_INTERVAL);
    assert!(!spool.is_failing());
    // Nor are records lost when somebody deletes the directory.
    fs::remove_dir_all(&directory).unwrap();
    spool.maintain(started + Duration::from_secs(60));
    assert!(!spool.is_failing());
    assert_eq!(spool.append(&mut frames(20..30), None, started + Duration::from_secs(60)), 0);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    let expected: Vec<String> = numbered_records(10..30).collect();
    assert_eq!(read_records(&readers[0], 1 << 20, usize::MAX), expected);
}

#[test]
fn the_backlog_of_each_sink_is_counted_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let recorded_at = "2026-01-02T03:04:05.000006Z";
    let records = || (0..10).map(|n| format!(r#"{{"time":"{recorded_at}","request_id":"{n}","path":null}}"#));
    let frame_bytes = records().next().unwrap().len() as u64 + 8;
    let started = SystemTime::now();
    let (mut spool, readers) = open_spool(directory.path(), 1 << 20);
    let view = spool.view();
    let empty = Backlog { records: Some(0), bytes: 0, oldest: None };
    assert_eq!(view.backlogs(), [("one", empty), ("two", empty)]);
    append_records(&mut spool, records());
    let backlog = |name: &str| view.backlogs().into_iter().find(|(sink, _)| *sink == name).unwrap().1;
    let all = backlog("one");
    assert_eq!((all.records, all.bytes), (Some(10), 10 * frame_bytes));
    assert!(all.oldest.unwrap() >= started && all.oldest.unwrap() <= SystemTime::now());
    // Four batches of two records.
    read_records(&readers[0], 2 * frame_bytes as usize, 4);
    assert_eq!((backlog("one").records, backlog("one").bytes), (Some(2), 2 * frame_bytes));
    assert_eq!(backlog("two"), all);
    read_records(&readers[0], 1 << 20, usize::MAX);
    assert_eq!(backlog("one"), empty);
    drop((spool, readers));
    assert!(view.backlogs().is_empty(), "the view does not keep the spool open");

    // The next process counts the records when it reads them, and knows their time from themselves.
    let (mut spool, readers) = open_spool(directory.path(), 1 << 20);
    let view = spool.view();
    let oldest = chrono::DateTime::parse_from_rfc3339(recorded_at).unwrap().into();
    let adopted = Backlog { records: None, bytes: 10 * frame_bytes, oldest: Some(oldest) };
    assert_eq!(view.backlogs()[1], ("two", adopted));
    append_records(&mut spool, records());
    let _ = readers[1].wait_for_batch(1, Duration::ZERO);
    let more = Backlog { records: Some(20), bytes: 20 * frame_bytes, oldest: Some(oldest) };
    assert_eq!(view.backlogs()[1], ("two", more));
    read_records(&readers[1], 1 << 20, 1);
    let left = view.backlogs()[1].1;
    assert_eq!((left.records, left.bytes), (Some(10), 10 * frame_bytes));
    assert!(left.oldest.unwrap() >= started);
}
