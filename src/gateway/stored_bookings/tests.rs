//! Tests of what happens to bookings during an upgrade.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use super::*;
use crate::admission::limits::{
    Booked, ClientAccounts, ClientLimiter, Demand, FinalUse, Settlement, UsedTokens,
};
use crate::config::{ClientLimits, LimitSet, LimitsConfig};
use crate::gateway::budget_books::BudgetBooks;
use crate::record::stored_bookings::{BookingKeeper, ObjectEnd, StoredObjectKey};

/// A process that has one client.
struct Process {
    limiter: ClientLimiter,
    bookings: Arc<StoredBookings>,
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
        Self { limiter, bookings: Arc::new(StoredBookings::new(&accounts)) }
    }

    /// Books 100 tokens.
    fn book(&self) -> Booked {
        let demand =
            Demand { max_output_tokens: Some(100), has_output: true, choices: 1, ..Demand::default() };
        let reserved = self.limiter.reserve(None, &demand, Instant::now(), SystemTime::now());
        let mut reservation = reserved.unwrap();
        reservation.settle(Settlement::Unknown, Instant::now(), SystemTime::now());
        reservation.booked().unwrap()
    }

    fn used(&self) -> u64 {
        self.limiter.uses(Instant::now(), SystemTime::now())[0].used
    }

    /// The object ends with so many tokens.
    fn end(&self, object: &str, input: u64) {
        let tokens = UsedTokens { input, ..UsedTokens::default() };
        let end = ObjectEnd::known(FinalUse { tokens, cost_millionths: None });
        self.bookings.on_ended(StoredObjectKey::of(object), end);
    }
}

#[test]
fn what_ends_during_a_handover_that_fails_is_corrected_afterwards() {
    let process = Process::new();
    process.bookings.on_made(StoredObjectKey::of("a"), process.book());
    assert_eq!(process.bookings.begin_handover().len(), 1);
    process.bookings.on_made(StoredObjectKey::of("b"), process.book());
    process.end("a", 10);
    process.end("a", 10);
    assert_eq!(process.used(), 200);
    process.bookings.cancel_handover();
    assert_eq!(process.used(), 110);
    process.end("a", 10);
    process.end("b", 20);
    assert_eq!(process.used(), 30);
    // The process stops during the next one.
    process.bookings.on_made(StoredObjectKey::of("c"), process.book());
    process.bookings.begin_handover();
    process.end("c", 30);
    process.bookings.close();
    assert_eq!(process.used(), 60);
}

#[test]
fn reports_are_repeated_until_the_successor_is_reached_and_it_corrects_each_once() {
    let (old, new) = (Process::new(), Process::new());
    for object in ["a", "b"] {
        old.bookings.on_made(StoredObjectKey::of(object), old.book());
    }
    new.bookings.adopt(old.bookings.begin_handover().into());
    // What the budgets of the successor have comes another way.
    (0..3).for_each(|_| drop(new.book()));
    old.end("a", 10);
    old.bookings.on_made(StoredObjectKey::of("c"), old.book());
    let attempts = Arc::new(AtomicUsize::new(0));
    let (successor, made) = (Arc::clone(&new.bookings), Arc::clone(&attempts));
    let last = Arc::new(Mutex::new(None));
    let reported = Arc::clone(&last);
    old.bookings.report_to_successor(Box::new(move |report| {
        match made.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::ErrorKind::ConnectionRefused.into()),
            1 => {
                *reported.lock().unwrap() = Some(report.clone());
                successor.adopt(report.clone());
                Ok(())
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
    old.bookings.close();
    assert_eq!((new.used(), attempts.load(Ordering::Relaxed)), (130, 3));
    new.end("a", 1000);
    new.end("b", 1000);
    assert_eq!(new.used(), 130);
    new.end("c", 30);
    assert_eq!((new.used(), old.used()), (60, 300));
    let report = last.lock().unwrap().take().unwrap();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<BookingReport>(&text).unwrap(), report);
}
