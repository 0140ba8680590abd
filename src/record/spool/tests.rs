//! What survives a kill, a full disk and two processes at once.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use super::*;

const SINKS: &[&str] = &["one", "two"];
const WAIT: Duration = Duration::from_millis(50);

fn open(directory: &Path, maximum: u64) -> (Spool, Vec<Reader>) {
    Spool::open(directory, maximum, SINKS).unwrap()
}

fn write(spool: &mut Spool, records: impl IntoIterator<Item = String>) -> u64 {
    let mut frames = Frames::default();
    records.into_iter().for_each(|record| frames.push(|to| to.extend_from_slice(record.as_bytes())));
    spool.append(&frames)
}

fn numbered(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|n| format!("record {n}"))
}

/// All that a sink is given; it takes note of the first `deliver` batches.
fn drain(reader: &Reader, most: usize, deliver: usize) -> Vec<String> {
    let (mut seen, mut batches) = (Vec::new(), 0);
    while let Read::Batch(batch) = reader.next(most, Duration::ZERO) {
        seen.extend(batch.records().map(|record| String::from_utf8(record.to_vec()).unwrap()));
        if batches == deliver {
            break;
        }
        reader.delivered(&batch);
        batches += 1;
    }
    seen
}

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn each_sink_reads_at_its_own_pace_and_what_all_have_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open(directory.path(), 40 * 1024);
    for n in 0..100 {
        assert_eq!(write(&mut spool, numbered(n * 10..n * 10 + 10)), 0);
    }
    let all: Vec<String> = numbered(0..1000).collect();
    assert_eq!(drain(&readers[0], 100, usize::MAX), all, "in order, in small batches");
    assert!(readers[1].behind() > 0);
    assert!(files(directory.path()).len() > 5);
    assert_eq!(drain(&readers[1], 1 << 20, usize::MAX), all);
    let left = files(directory.path());
    assert_eq!(left.iter().filter(|name| name.ends_with(".sealed")).count(), 0, "{left:?}");
    assert!(matches!(readers[0].next(1, WAIT), Read::Nothing));
    spool.close();
    assert!(matches!(readers[0].next(1, WAIT), Read::Closed));
    drop((spool, readers));
    assert_eq!(files(directory.path()), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_left_is_found_again_without_its_torn_end() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open(directory.path(), 1 << 20);
    write(&mut spool, numbered(0..100));
    // The first sink has some of it, the second none.
    let some = drain(&readers[0], 64, 3).len();
    assert!((1..100).contains(&some));
    let active = spool.active.clone().unwrap();
    // A kill runs no destructor and lets go of the lock.
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
        let (spool, readers) = open(directory.path(), 1 << 20);
        let sealed = open_path.with_extension("sealed");
        assert_eq!(fs::metadata(&sealed).unwrap().len(), before, "the torn end is gone");
        let Read::Batch(batch) = readers[0].next(1 << 20, WAIT) else { panic!() };
        assert!(batch.may_repeat);
        // The batch that was read but not noted comes again.
        let again = batch.records().count();
        assert!(again < 100 && again + some >= 100, "{again} {some}");
        assert_eq!(drain(&readers[1], 1 << 20, 0), numbered(0..100).collect::<Vec<_>>());
        let file = spool.shared.lock().segments[&active].file();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
        std::mem::forget(spool);
    }
}

#[test]
fn two_processes_share_the_directory_and_one_inherits() {
    let directory = tempfile::tempdir().unwrap();
    let (mut old, old_readers) = open(directory.path(), 1 << 20);
    write(&mut old, numbered(0..10));
    let (mut new, new_readers) = open(directory.path(), 1 << 20);
    write(&mut new, numbered(10..20));
    assert_eq!(drain(&new_readers[0], 1 << 20, usize::MAX), numbered(10..20).collect::<Vec<_>>());
    assert_eq!(drain(&old_readers[0], 1 << 20, usize::MAX), numbered(0..10).collect::<Vec<_>>());
    drop((old, old_readers));
    new.claim();
    // The second sink had none of it.
    let mut all = drain(&new_readers[1], 1 << 20, usize::MAX);
    all.sort();
    assert_eq!(all.len(), 20);
    assert_eq!(drain(&new_readers[0], 1 << 20, usize::MAX), Vec::<String>::new());
}

#[test]
fn beyond_its_bound_the_oldest_go_and_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let maximum = 64 * 1024;
    let (mut spool, readers) = open(directory.path(), maximum);
    drain(&readers[0], 1 << 20, usize::MAX);
    for n in 0..10_000 {
        assert_eq!(write(&mut spool, numbered(n..n + 1)), 0);
        drain(&readers[0], 1 << 20, usize::MAX);
        assert!(spool.bytes() <= maximum + 1024);
    }
    let left = drain(&readers[1], 1 << 20, usize::MAX);
    let lost = spool.take_lost();
    assert_eq!(lost, [("two", 10_000 - left.len() as u64)]);
    assert!(left.len() > 1000);
    assert_eq!(left, numbered(10_000 - left.len()..10_000).collect::<Vec<_>>(), "the newest are there");
    assert_eq!(spool.take_lost(), []);
}

#[test]
fn a_record_of_any_size_passes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open(directory.path(), 16 * 1024 * 1024);
    let records = ["a".to_owned(), "b".repeat(3_000_000), "c".to_owned()];
    write(&mut spool, records.clone());
    assert_eq!(drain(&readers[0], 1024, usize::MAX), records);
}

#[test]
fn a_disk_that_cannot_be_written_costs_records_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, readers) = open(directory.path(), 1 << 20);
    write(&mut spool, numbered(0..10));
    // A file of the same name in read-only mode stands in for a disk that fails.
    let active = spool.active.clone().unwrap();
    let path = directory.path().join(&active).with_extension("open");
    let broken = Arc::new(fs::File::open(&path).unwrap());
    let good = spool.shared.lock().segments.get_mut(&active).unwrap().replace_file(broken);
    assert_eq!(write(&mut spool, numbered(10..15)), 5);
    assert_eq!(write(&mut spool, numbered(15..16)), 1, "it is not asked for each record");
    spool.shared.lock().segments.get_mut(&active).unwrap().replace_file(good);
    spool.full_until = spool.full_until.map(|until| until - FULL);
    assert_eq!(write(&mut spool, numbered(20..30)), 0);
    let expected: Vec<String> = numbered(0..10).chain(numbered(20..30)).collect();
    assert_eq!(drain(&readers[0], 1 << 20, usize::MAX), expected);
}
