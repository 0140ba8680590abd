//! Tests of the keeper of homes, with real files and sockets.

#![allow(clippy::print_stdout, reason = "measurements are printed")]

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use super::*;
use crate::routing::homes::{HashKey, Home, ObjectKey};
use crate::state::homes_log::{
    FILE_NAME, HEADER_BYTES, HomeEntry, HomeRecord, RECORD_BYTES, encode, header, read_header, read_records,
};

const MEMORY_BYTES: u64 = 1 << 20;
const NOW: u32 = 1_795_000_000;
const KEY: [u8; HashKey::LENGTH] = *b"0123456789abcdef";

struct Process {
    homes: Arc<Homes>,
    keeper: HomesKeeper,
}

impl Process {
    fn new() -> Self {
        Self::with_memory(MEMORY_BYTES)
    }

    fn with_memory(bytes: u64) -> Self {
        let homes = Arc::new(Homes::with_hash_key(bytes, HashKey::from_bytes(KEY)));
        Self { keeper: HomesKeeper::new(Arc::clone(&homes)), homes }
    }

    fn start(directory: &Path) -> Self {
        let process = Self::new();
        process.keeper.restore(&open(directory));
        process
    }

    fn key(&self, id: u32) -> ObjectKey {
        self.homes.key_of(&id.to_le_bytes())
    }

    fn learn(&self, id: u32) {
        let resource = self.homes.resource_tag("east:443");
        let home =
            Home { resource, maker: Some(self.homes.owner_tag("team-a")), made_at: Some(NOW), lags: true };
        self.homes.learn(self.key(id), home, NOW);
    }

    fn knows(&self, id: u32) -> bool {
        self.homes.find(self.key(id), NOW).is_some()
    }

    fn known_of(&self, ids: std::ops::Range<u32>) -> usize {
        ids.filter(|id| self.knows(*id)).count()
    }
}

fn open(directory: &Path) -> Result<Arc<StateDirectory>, StateError> {
    StateDirectory::open(directory).map(Arc::new)
}

/// A record of an object that was found on a resource.
fn record_of(process: &Process, id: u32) -> HomeRecord {
    let resource = process.homes.resource_tag("east:443").hash();
    let key = process.key(id).hash();
    HomeRecord::Stored(HomeEntry { key, resource, maker: 0, made_at: 0, used_at: NOW, lags: false })
}

/// The records of the log; empty if there is no log yet.
fn logged(directory: &Path) -> Vec<HomeRecord> {
    let bytes = fs::read(directory.join(FILE_NAME)).unwrap_or_default();
    records_in(&bytes)
}

/// How many entries a process that reads the log knows.
fn entries_in_log(directory: &Path) -> usize {
    let mut keys = std::collections::BTreeSet::new();
    for record in logged(directory) {
        match record {
            HomeRecord::Stored(entry) => _ = keys.insert(entry.key),
            HomeRecord::Forgotten(key) => _ = keys.remove(&key),
            HomeRecord::SnapshotEnd => panic!("only a socket has it"),
        }
    }
    keys.len()
}

fn records_in(mut bytes: &[u8]) -> Vec<HomeRecord> {
    let mut records = Vec::new();
    if read_header(&mut bytes).is_ok() {
        read_records(&mut bytes, |record| records.push(record)).unwrap();
    }
    records
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Never reached: nobody serves.
fn nobody() -> ReportFunction {
    Box::new(|_| Err(io::ErrorKind::NotFound.into()))
}

#[test]
fn what_is_learned_is_in_the_log_soon_and_known_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let first = Process::start(directory.path());
    (0..100).for_each(|id| first.learn(id));
    first.homes.forget(first.key(7));
    wait_until("all is in the log", || entries_in_log(directory.path()) == 99);
    assert_eq!(first.keeper.save_problem(), None);
    // As a kill leaves it: the copy has only what is in the file by now.
    let copy = tempfile::tempdir().unwrap();
    fs::copy(directory.path().join(FILE_NAME), copy.path().join(FILE_NAME)).unwrap();
    assert_eq!(read_hash_key(copy.path()), Some(first.homes.hash_key()));
    let second = Process::start(copy.path());
    assert_eq!((second.known_of(0..100), second.knows(7)), (99, false));
    assert_eq!(second.homes.find(second.key(1), NOW), first.homes.find(first.key(1), NOW));
}

#[test]
fn what_is_learned_last_is_in_the_log_when_the_process_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    for id in 0..3 {
        let process = Process::start(directory.path());
        assert_eq!(process.known_of(0..id), id as usize);
        process.learn(id);
        process.keeper.close();
    }
    assert_eq!(entries_in_log(directory.path()), 3);
}

#[test]
fn a_log_that_was_cut_at_any_byte_keeps_its_whole_records_and_is_continued() {
    let mut whole = header(KEY).to_vec();
    let template = Process::new();
    (0..3).for_each(|id| encode(record_of(&template, id), &mut whole));
    for cut in 0..=whole.len() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE_NAME), &whole[..cut]).unwrap();
        let process = Process::start(directory.path());
        let expected = cut.saturating_sub(HEADER_BYTES) / RECORD_BYTES;
        assert_eq!(process.known_of(0..3), expected, "cut at {cut}");
        process.learn(9);
        process.keeper.close();
        let next = Process::start(directory.path());
        assert_eq!((next.known_of(0..3), next.knows(9)), (expected, true), "cut at {cut}");
        let aside = fs::read_dir(directory.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("homes.log.unusable-")
        });
        assert_eq!(aside.count(), usize::from(cut < HEADER_BYTES), "cut at {cut}");
    }
}

#[test]
fn a_damaged_record_costs_only_itself_and_is_gone_after_a_rewrite() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut bytes = header(KEY).to_vec();
    let template = Process::new();
    (0..20).for_each(|id| encode(record_of(&template, id), &mut bytes));
    bytes[HEADER_BYTES + 5 * RECORD_BYTES + 9] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let second = Process::start(directory.path());
    assert_eq!(second.known_of(0..20), 19);
    wait_until("it is written anew", || {
        let text = fs::read(&path).unwrap();
        read_records(&mut &text[HEADER_BYTES..], |_| {}).unwrap().records == 0
    });
    assert_eq!(entries_in_log(directory.path()), 19);
}

#[test]
fn a_log_of_mostly_outdated_records_is_compacted_while_more_is_learned() {
    let directory = tempfile::tempdir().unwrap();
    let mut outdated = header(KEY).to_vec();
    (0..20_000).for_each(|_| encode(HomeRecord::Forgotten(1), &mut outdated));
    fs::write(directory.path().join(FILE_NAME), &outdated).unwrap();
    let process = Process::start(directory.path());
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let process = &process;
            scope.spawn(move || (0..3_000).for_each(|id| process.learn(10_000 * thread + id)));
        }
    });
    wait_until("it is short", || {
        let length = fs::metadata(directory.path().join(FILE_NAME)).unwrap().len();
        length < (HEADER_BYTES + 15_000 * RECORD_BYTES) as u64
    });
    process.keeper.close();
    assert!(!directory.path().join("homes.log.new").exists());
    let next = Process::start(directory.path());
    assert_eq!(next.known_of(0..3_000) + next.known_of(10_000..13_000), 6_000);
}

#[test]
fn a_directory_of_another_process_is_told_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let first = Process::start(directory.path());
    first.learn(1);
    wait_until("it is in the log", || entries_in_log(directory.path()) == 1);
    let before = fs::read(directory.path().join(FILE_NAME)).unwrap();
    let second = Process::start(directory.path());
    let problem = second.keeper.save_problem().unwrap();
    assert!(problem.contains(&format!("process {} uses ", std::process::id())), "{problem}");
    second.learn(2);
    assert!(second.knows(2) && !second.knows(1), "it serves with a memory of its own");
    second.keeper.close();
    assert_eq!(fs::read(directory.path().join(FILE_NAME)).unwrap(), before);
}

#[test]
fn a_disk_that_cannot_be_written_is_told_until_the_log_is_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let obstacle = directory.path().join("homes.log.new");
    fs::create_dir(&obstacle).unwrap();
    let process = Process::start(directory.path());
    process.learn(1);
    wait_until("the problem is told", || process.keeper.save_problem().is_some());
    let problem = process.keeper.save_problem().unwrap();
    assert!(problem.starts_with("cannot write homes.log: "), "{problem}");
    assert!(process.knows(1));
    fs::remove_dir(&obstacle).unwrap();
    process.keeper.close();
    assert_eq!(process.keeper.save_problem(), None);
    assert_eq!(entries_in_log(directory.path()), 1);
}

#[test]
fn a_log_of_another_version_is_renamed_and_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(FILE_NAME), "of another program").unwrap();
    assert_eq!(read_hash_key(directory.path()), None);
    let process = Process::start(directory.path());
    wait_until("it is begun anew", || read_hash_key(directory.path()).is_some());
    process.learn(1);
    process.keeper.close();
    assert_eq!(entries_in_log(directory.path()), 1);
}

/// A connection over which `predecessor` tells everything to a new process.
fn follow(predecessor: &Process) -> (Process, tokio::sync::oneshot::Receiver<()>) {
    let (near, far) = UnixStream::pair().unwrap();
    predecessor.keeper.tell(far).unwrap();
    let source = HomesSource::open(near).unwrap();
    assert_eq!(source.hash_key(), predecessor.homes.hash_key());
    let successor = Process::new();
    let complete = source.copy_into(Arc::clone(&successor.homes)).unwrap();
    (successor, complete)
}

#[test]
fn a_successor_knows_everything_and_what_the_predecessor_learns_until_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let predecessor = Process::start(directory.path());
    (0..10_000).for_each(|id| predecessor.learn(id));
    let (successor, complete) = follow(&predecessor);
    complete.blocking_recv().unwrap();
    assert_eq!(successor.known_of(0..10_000), 10_000);
    predecessor.learn(20_000);
    predecessor.keeper.release_directory(nobody());
    successor.keeper.take_over(&open(directory.path()), true);
    successor.learn(30_000);
    predecessor.learn(20_001);
    predecessor.homes.forget(predecessor.key(5));
    wait_until("it is told", || successor.knows(20_001) && !successor.knows(5));
    predecessor.learn(20_002);
    predecessor.keeper.close();
    wait_until("the last change is told", || successor.knows(20_002));
    successor.keeper.close();
    let next = Process::start(directory.path());
    assert_eq!((next.known_of(0..10_000), next.knows(30_000)), (9_999, true));
    assert_eq!(next.known_of(20_000..20_003), 3, "all of it is in the log of the successor");
}

#[test]
fn a_chain_of_upgrades_passes_on_what_the_first_process_learns() {
    let first = Process::new();
    let (second, complete) = follow(&first);
    complete.blocking_recv().unwrap();
    let (third, complete) = follow(&second);
    complete.blocking_recv().unwrap();
    first.learn(1);
    wait_until("the third knows", || third.knows(1));
}

#[test]
fn a_handover_works_without_a_state_directory_and_from_a_directory_that_was_not_told() {
    let predecessor = Process::new();
    predecessor.keeper.restore(&open(Path::new("/dev/null/state")));
    predecessor.learn(1);
    let (successor, complete) = follow(&predecessor);
    complete.blocking_recv().unwrap();
    predecessor.keeper.release_directory(nobody());
    successor.keeper.take_over(&open(Path::new("/dev/null/state")), true);
    predecessor.learn(2);
    wait_until("both are known", || successor.known_of(1..3) == 2);
    assert!(successor.keeper.save_problem().unwrap().starts_with("cannot use /dev/null/state: "));
    // A predecessor of an earlier version tells nothing; the log is all there is.
    let directory = tempfile::tempdir().unwrap();
    let earlier = Process::start(directory.path());
    earlier.learn(3);
    earlier.keeper.close();
    let successor = Process::new();
    successor.keeper.take_over(&open(directory.path()), false);
    wait_until("the log is read", || successor.knows(3));
}

#[test]
fn what_a_dead_successor_was_not_told_is_reported_to_the_next_process() {
    let directory = tempfile::tempdir().unwrap();
    let predecessor = Process::start(directory.path());
    let (near, far) = UnixStream::pair().unwrap();
    predecessor.keeper.tell(far).unwrap();
    let (reports, reported) = mpsc::channel();
    predecessor
        .keeper
        .release_directory(Box::new(move |bytes| reports.send(bytes.to_vec()).map_err(io::Error::other)));
    drop(near);
    predecessor.learn(1);
    let report = reported.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(records_in(&report).len(), 1);
    let next = Process::new();
    let (mut near, far) = UnixStream::pair().unwrap();
    let receiver = std::thread::spawn(move || {
        next.keeper.accept_report(far).unwrap();
        next
    });
    io::Write::write_all(&mut near, &report).unwrap();
    drop(near);
    assert!(receiver.join().unwrap().knows(1));
}

#[test]
fn what_nobody_takes_is_appended_to_the_log_unless_somebody_else_owns_it() {
    for is_owned in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let predecessor = Process::start(directory.path());
        predecessor.learn(1);
        wait_until("it is in the log", || entries_in_log(directory.path()) == 1);
        let (near, far) = UnixStream::pair().unwrap();
        predecessor.keeper.tell(far).unwrap();
        predecessor.keeper.release_directory(nobody());
        drop(near);
        let owner = is_owned.then(|| open(directory.path()).unwrap());
        predecessor.learn(2);
        predecessor.keeper.close();
        assert_eq!(entries_in_log(directory.path()), if is_owned { 1 } else { 2 });
        assert!(owner.is_some() || open(directory.path()).is_ok(), "the directory is free again");
    }
}
