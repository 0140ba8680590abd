//! Tests of what happens to objects at a restart and during an upgrade.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use super::report::MadeObject;
use super::*;
use crate::admission::limits::{ClientAccounts, ClientLimiter, Demand, FinalUse, Settlement, UsedTokens};
use crate::config::{ClientLimits, LimitSet, LimitsConfig};
use crate::gateway::budget_books::BudgetBooks;
use crate::record::stored_objects::{ObjectEnd, StoredObjectKey, UnfinishedObject, UnfinishedObjectKeeper};
use crate::state::StateDirectory;

/// A process that has one client.
struct Process {
    limiter: ClientLimiter,
    objects: Arc<UnfinishedObjects>,
}

impl Process {
    fn new() -> Self {
        let accounts = Arc::new(ClientAccounts::new(Instant::now()));
        let total = LimitSet { tokens_per_day: Some(5000), ..LimitSet::default() };
        let limits = ClientLimits { total, ..ClientLimits::default() };
        let books = BudgetBooks::default();
        let open_budget = |deployment: Option<&_>| books.open(None, deployment);
        let (account, config) = (accounts.find_or_create(None), LimitsConfig::default());
        let limiter = ClientLimiter::new(limits.into(), &config, account, &open_budget);
        Self { limiter, objects: Arc::new(UnfinishedObjects::new(&accounts)) }
    }

    /// An object for which 100 tokens are booked.
    fn book(&self) -> UnfinishedObject {
        let demand =
            Demand { max_output_tokens: Some(100), has_output: true, choices: 1, ..Demand::default() };
        let reserved = self.limiter.reserve(None, &demand, Instant::now(), SystemTime::now());
        let mut reservation = reserved.unwrap();
        reservation.settle(Settlement::Unknown, Instant::now(), SystemTime::now());
        let booked = serde_json::to_value(reservation.booked().unwrap()).unwrap();
        serde_json::from_value(booked).unwrap()
    }

    fn used(&self) -> u64 {
        self.limiter.uses(Instant::now(), SystemTime::now())[0].used
    }

    /// The object ends with so many tokens. Returns whether this is the first response that shows it.
    fn end(&self, object: &str, input: u64) -> bool {
        let tokens = UsedTokens { input, ..UsedTokens::default() };
        let end = ObjectEnd::known(FinalUse { tokens, cost_millionths: None });
        self.objects.on_ended(StoredObjectKey::of(object), end).is_some()
    }
}

#[test]
fn what_ends_during_a_handover_that_fails_is_corrected_afterwards() {
    let process = Process::new();
    process.objects.on_made(StoredObjectKey::of("a"), process.book());
    assert_eq!(process.objects.begin_handover().len(), 1);
    process.objects.on_made(StoredObjectKey::of("b"), process.book());
    process.end("a", 10);
    process.end("a", 10);
    assert_eq!(process.used(), 200);
    process.objects.cancel_handover();
    assert_eq!(process.used(), 110);
    process.end("a", 10);
    process.end("b", 20);
    assert_eq!(process.used(), 30);
    // The process stops during the next one.
    process.objects.on_made(StoredObjectKey::of("c"), process.book());
    process.objects.begin_handover();
    process.end("c", 30);
    process.objects.close();
    assert_eq!(process.used(), 60);
}

#[test]
fn an_end_that_both_processes_show_is_the_first_one_in_one_of_them() {
    let (old, new) = (Process::new(), Process::new());
    for object in ["a", "b"] {
        old.objects.on_made(StoredObjectKey::of(object), old.book());
    }
    new.objects.adopt(old.objects.begin_handover().into());
    assert!(!old.objects.is_decided_elsewhere());
    let successor = Arc::clone(&new.objects);
    old.objects.report_to_successor(Box::new(move |report| Ok(successor.adopt(report.clone()))));
    assert!(old.objects.is_decided_elsewhere());
    assert_eq!([new.end("a", 1), old.end("a", 1), old.end("a", 1)], [true, false, false]);
    assert_eq!([old.end("b", 1), new.end("b", 1), old.end("b", 1)], [true, false, false]);
    // The successor knows what is made after the handover as well.
    old.objects.on_made(StoredObjectKey::of("c"), old.book());
    assert_eq!([old.end("c", 1), new.end("c", 1)], [true, false]);
}

#[test]
fn an_end_of_which_the_successor_knows_nothing_is_the_first_one() {
    let answers: [ReportObjects; 3] = [
        Box::new(|_| Err(io::ErrorKind::ConnectionRefused.into())),
        Box::new(|_| Err(io::ErrorKind::UnexpectedEof.into())),
        // It has lost the object.
        Box::new(|report| {
            let ended = ObjectReport { made: Vec::new(), ended: report.ended.clone() };
            Ok(Process::new().objects.adopt(ended))
        }),
    ];
    for answer in answers {
        let old = Process::new();
        old.objects.on_made(StoredObjectKey::of("a"), old.book());
        old.objects.begin_handover();
        old.objects.report_to_successor(answer);
        assert_eq!([old.end("a", 1), old.end("a", 1)], [true, false]);
    }
}

#[test]
fn reports_are_repeated_until_the_successor_is_reached_and_it_corrects_each_once() {
    let (old, new) = (Process::new(), Process::new());
    for object in ["a", "b"] {
        old.objects.on_made(StoredObjectKey::of(object), old.book());
    }
    new.objects.adopt(old.objects.begin_handover().into());
    // What the budgets of the successor have comes another way.
    (0..3).for_each(|_| drop(new.book()));
    old.end("a", 10);
    old.objects.on_made(StoredObjectKey::of("c"), old.book());
    let attempts = Arc::new(AtomicUsize::new(0));
    let (successor, made) = (Arc::clone(&new.objects), Arc::clone(&attempts));
    let last = Arc::new(Mutex::new(None));
    let reported = Arc::clone(&last);
    old.objects.report_to_successor(Box::new(move |report| {
        match made.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::ErrorKind::ConnectionRefused.into()),
            1 => {
                *reported.lock().unwrap() = Some(report.clone());
                Ok(successor.adopt(report.clone()))
            }
            // It has counted it, and its answer is lost.
            _ => {
                successor.adopt(report.clone());
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }));
    let begin = Instant::now();
    while new.used() != 210 {
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{}", new.used());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    old.end("b", 20);
    old.objects.close();
    assert_eq!((new.used(), attempts.load(Ordering::Relaxed)), (130, 3));
    new.end("a", 1000);
    new.end("b", 1000);
    assert_eq!(new.used(), 130);
    new.end("c", 30);
    assert_eq!((new.used(), old.used()), (60, 300));
    let report = last.lock().unwrap().take().unwrap();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<ObjectReport>(&text).unwrap(), report);
}

#[test]
fn what_could_not_be_saved_is_saved_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (path, obstacle) = (directory.path().join("objects.log"), directory.path().join("objects.log.new"));
    // As a full disk would: the file cannot be replaced.
    std::fs::create_dir(&obstacle).unwrap();
    let process = Process::new();
    process.objects.restore(&StateDirectory::open(directory.path()).map(Arc::new));
    process.objects.on_made(StoredObjectKey::of("a"), process.book());
    std::fs::remove_dir(&obstacle).unwrap();
    process.objects.release_directory();
    assert!(std::fs::read_to_string(&path).unwrap().contains(&StoredObjectKey::of("a").to_text()));
}

#[test]
fn what_has_not_ended_outlives_a_restart_a_kill_and_a_torn_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("objects.log");
    let open = || StateDirectory::open(directory.path()).map(Arc::new);
    let keys = ["a", "b", "c", "d"].map(StoredObjectKey::of);
    let all = |process: &Process| process.objects.begin_handover().len();
    let process = Process::new();
    // It is made before there is a directory.
    process.objects.on_made(keys[0], process.book());
    process.objects.restore(&open());
    process.objects.on_made(keys[1], process.book());
    process.objects.on_made(keys[2], process.book());
    process.end("a", 10);
    assert_eq!(process.used(), 210);
    process.objects.release_directory();
    // It is not written any more.
    process.end("b", 10);

    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"forgotten\":\"");
    std::fs::write(&path, text).unwrap();
    let next = Process::new();
    let booked = [next.book(), next.book()];
    next.objects.restore(&open());
    assert_eq!(all(&next), 2);
    next.objects.cancel_handover();
    for (name, key) in [("a", keys[0]), ("b", keys[1]), ("c", keys[2])] {
        let end = ObjectEnd::known(FinalUse { tokens: UsedTokens::default(), cost_millionths: None });
        assert_eq!(next.objects.on_ended(key, end).is_some(), name != "a", "{name}");
    }
    assert_eq!((booked.len(), next.used()), (2, 0));

    // What the predecessor has told takes the place of the file.
    next.objects.on_made(keys[0], next.book());
    next.objects.release_directory();
    let successor = Process::new();
    successor.objects.adopt(ObjectReport::from(vec![MadeObject::new(keys[3], &successor.book())]));
    successor.objects.restore(&open());
    successor.objects.close();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&keys[3].to_text()) && !text.contains(&keys[0].to_text()), "{text}");

    // A file of another version is set aside.
    std::fs::write(&path, text.replace("{\"version\":1}", "{\"version\":2}")).unwrap();
    let other = Process::new();
    other.objects.restore(&open());
    assert_eq!(all(&other), 0);
    other.objects.release_directory();
    let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(
        names.into_iter().any(|name| name.to_string_lossy().starts_with("objects.log.unusable-")),
        "it is kept for a person to look at"
    );
}

#[test]
fn the_file_does_not_grow_with_what_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::new();
    process.objects.restore(&StateDirectory::open(directory.path()).map(Arc::new));
    let (kept, object) = (StoredObjectKey::of("kept"), process.book());
    process.objects.on_made(kept, object.clone());
    for number in 0..10_000 {
        let key = StoredObjectKey::of(&format!("{number}"));
        process.objects.on_made(key, UnfinishedObject::default());
        process.end(&format!("{number}"), 1);
    }
    process.objects.release_directory();
    let text = std::fs::read_to_string(directory.path().join("objects.log")).unwrap();
    assert!(text.lines().count() < 10_000, "{}", text.lines().count());
    let next = Process::new();
    next.objects.restore(&StateDirectory::open(directory.path()).map(Arc::new));
    assert_eq!(next.objects.begin_handover(), [MadeObject::new(kept, &object)]);
}
