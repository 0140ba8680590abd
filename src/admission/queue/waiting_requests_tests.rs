use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::admission::queue::charges::LineCharges;
use crate::names::{CacheKey, ClientName, RoutedKey};

/// A choice with a number of free places that all its requests share.
#[derive(Clone, Debug)]
struct Places {
    name: &'static str,
    free: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Places {
    fn new(name: &'static str, free: usize) -> Self {
        Self { name, free: std::sync::Arc::new(free.into()) }
    }

    fn set(&self, free: usize) {
        self.free.store(free, std::sync::atomic::Ordering::Relaxed);
    }
}

impl PartialEq for Places {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Choice for Places {
    type Turn = &'static str;

    fn try_take(&self, _key: Option<RoutedKey>, _now: Instant) -> Option<&'static str> {
        let free = self.free.load(std::sync::atomic::Ordering::Relaxed);
        self.set(free.checked_sub(1)?);
        Some(self.name)
    }

    fn next_chance(&self, now: Instant) -> Option<Instant> {
        Some(now + Duration::from_secs(self.name.len() as u64))
    }
}

const NO_BOUNDS: QueueBounds = QueueBounds { max_requests: usize::MAX, max_bytes: u64::MAX };

struct Fixture {
    waiting: WaitingRequests<Places, String>,
    start: Instant,
    bounds: QueueBounds,
    joined: u64,
}

impl Fixture {
    fn new(bounds: QueueBounds) -> Self {
        Self { waiting: WaitingRequests::default(), start: Instant::now(), bounds, joined: 0 }
    }

    /// Has a request wait; returns those that are displaced.
    fn join(
        &mut self,
        line: u64,
        class: RequestClass,
        client: &str,
        bytes: u64,
        choice: &Places,
    ) -> Vec<String> {
        self.joined += 1;
        let request = QueuedRequest {
            class,
            caller: Caller::Client(ClientName::new(client)),
            since: self.start + Duration::from_millis(self.joined),
            tokens: 1,
            bytes,
            holds_up_others: true,
            key: None,
        };
        let name = format!("{client}{}", self.joined);
        self.waiting.join(line, &request, choice.clone(), name, None, self.bounds).1
    }

    fn serve_all(&mut self, line: u64) -> String {
        let served = std::iter::from_fn(|| self.waiting.serve_first(line, self.start));
        served.map(|(name, _)| name).collect::<Vec<_>>().join(" ")
    }
}

use RequestClass::{Batch, Interactive, Standard};

#[test]
fn the_more_urgent_class_goes_first_in_its_line() {
    let mut fixture = Fixture::new(NO_BOUNDS);
    let choice = Places::new("any", 0);
    for class in [Batch, Standard, Interactive, Batch, Interactive] {
        fixture.join(0, class, class.as_str(), 1, &choice);
    }
    fixture.join(1, Interactive, "elsewhere", 1, &Places::new("other", 1));
    choice.set(3);
    assert_eq!(fixture.serve_all(0), "interactive3 interactive5 standard2");
    assert_eq!(fixture.serve_all(1), "elsewhere6");
    choice.set(9);
    assert_eq!(fixture.serve_all(0), "batch1 batch4");
    assert!(!fixture.waiting.lines.is_empty(), "what they got is remembered until their tokens are known");
}

#[test]
fn nothing_is_idle_while_somebody_waits_who_can_use_it() {
    let mut fixture = Fixture::new(NO_BOUNDS);
    let (home, any) = (Places::new("home", 0), Places::new("any", 0));
    fixture.join(0, Interactive, "a", 1, &home);
    fixture.join(0, Batch, "b", 1, &any);
    assert_eq!(fixture.serve_all(0), "");
    any.set(5);
    assert_eq!(fixture.serve_all(0), "b2", "the more urgent one cannot use it");
    assert_eq!(fixture.waiting.next_chance(fixture.start), Some(fixture.start + Duration::from_secs(4)));
    home.set(1);
    assert_eq!(fixture.serve_all(0), "a1");
    assert_eq!(fixture.waiting.next_chance(fixture.start), None);
    assert_eq!(fixture.waiting.lines(), [0; 0]);
}

#[test]
fn a_full_queue_displaces_the_newest_of_the_client_with_the_most() {
    let mut fixture = Fixture::new(QueueBounds { max_requests: 4, max_bytes: 1000 });
    let choice = Places::new("any", 0);
    for class in [Standard, Batch, Standard] {
        assert_eq!(fixture.join(0, class, "many", 10, &choice), [""; 0]);
    }
    assert_eq!(fixture.join(0, Batch, "few", 10, &choice), [""; 0]);
    assert_eq!(fixture.join(1, Batch, "few", 10, &choice), ["many2"], "of its least urgent class");
    assert_eq!(fixture.join(0, Interactive, "one", 10, &choice), ["few5"], "two have two each");
    assert_eq!(fixture.join(0, Interactive, "many", 10, &choice), ["many3"]);
    assert_eq!(fixture.join(0, Batch, "many", 10, &choice), ["many8"], "that is itself");
    // Bytes count in the same way.
    assert_eq!(fixture.join(0, Batch, "large", 980, &choice), ["many1", "large9"]);
    assert_eq!(fixture.join(0, Batch, "huge", 1001, &choice), ["huge10"]);
}

#[test]
fn what_leaves_makes_room() {
    let mut fixture = Fixture::new(QueueBounds { max_requests: 1, max_bytes: 10 });
    let choice = Places::new("any", 0);
    let request = QueuedRequest {
        class: Batch,
        caller: Caller::Address(None),
        since: fixture.start,
        tokens: 1,
        bytes: 10,
        holds_up_others: true,
        key: None,
    };
    for _ in 0..3 {
        let (place, displaced) =
            fixture.waiting.join(0, &request, choice.clone(), "x".to_owned(), None, fixture.bounds);
        assert_eq!(displaced, [""; 0]);
        assert_eq!(fixture.waiting.leave(&place).as_deref(), Some("x"));
        assert_eq!(fixture.waiting.leave(&place), None);
    }
    assert!(fixture.waiting.lines.is_empty() && fixture.waiting.held.is_empty());
}

#[test]
fn what_clients_are_charged_is_collected_for_each_line_and_class() {
    let mut fixture = Fixture::new(NO_BOUNDS);
    let choice = Places::new("any", 9);
    let take = |fixture: &mut Fixture| {
        let charges =
            fixture.waiting.take_charges().into_charges(|line| (line < 2).then(|| line.to_string()));
        let mut charges: Vec<_> = charges
            .into_iter()
            .flat_map(|LineCharges { line, class, clients }| {
                clients.into_iter().map(move |(client, tokens)| format!("{line} {class:?} {client} {tokens}"))
            })
            .collect();
        charges.sort();
        charges.join(", ")
    };
    let request = |class, caller: &Caller, tokens| QueuedRequest {
        class,
        caller: caller.clone(),
        since: Instant::now(),
        tokens,
        bytes: 1,
        holds_up_others: true,
        key: None,
    };
    let (a, b) = (Caller::Client(ClientName::new("a")), Caller::Client(ClientName::new("b")));
    let serve = |fixture: &mut Fixture, line, class, caller: &Caller, tokens, refused| {
        let request = request(class, caller, tokens);
        fixture.waiting.join(line, &request, choice.clone(), String::new(), refused, NO_BOUNDS);
        choice.set(1);
        assert!(fixture.waiting.serve_first(line, fixture.start).is_some());
    };
    serve(&mut fixture, 0, Batch, &a, 100, None);
    assert_eq!(take(&mut fixture), "", "it is not collected");
    fixture.waiting.collect_charges();
    assert_eq!(take(&mut fixture), "");
    serve(&mut fixture, 0, Batch, &a, 100, None);
    serve(&mut fixture, 0, Batch, &a, 50, None);
    serve(&mut fixture, 0, Standard, &a, 7, None);
    serve(&mut fixture, 1, Batch, &a, 0, None);
    serve(&mut fixture, 1, Batch, &b, 9, None);
    serve(&mut fixture, 2, Batch, &b, 9, None);
    serve(&mut fixture, 0, Batch, &Caller::Address(None), 1000, None);
    assert_eq!(take(&mut fixture), "0 Batch a 150, 0 Standard a 7, 1 Batch a 1, 1 Batch b 9");
    assert_eq!(take(&mut fixture), "");
    // A refused turn is refunded, and charged again at the next one; what was used differs from the estimate.
    serve(&mut fixture, 0, Batch, &a, 100, Some(100));
    assert_eq!(take(&mut fixture), "");
    fixture.waiting.settle(0, Batch, &a, 100, 30);
    fixture.waiting.settle(0, Standard, &a, 7, 20);
    fixture.waiting.settle(1, Batch, &a, 0, 1);
    assert_eq!(take(&mut fixture), "0 Batch a -70, 0 Standard a 13");
}

proptest! {
    /// Whatever happens: no request is lost or served twice, and the bounds hold.
    #[test]
    fn every_request_has_one_end(steps in prop::collection::vec((0..4_u8, 0..4_u64, 0..3_usize, 0..3_u8, 1..60_u64), 1..200)) {
        let bounds = QueueBounds { max_requests: 12, max_bytes: 300 };
        let mut fixture = Fixture::new(bounds);
        let choices = [Places::new("a", 0), Places::new("bb", 0)];
        let mut ends: BTreeMap<String, usize> = BTreeMap::new();
        let places: Rc<Cell<Vec<Place>>> = Rc::default();
        for (number, (step, client, class, choice, bytes)) in steps.into_iter().enumerate() {
            let choice = &choices[usize::from(choice) % 2];
            match step {
                0 | 1 => {
                    let request = QueuedRequest {
                        class: RequestClass::ALL[class],
                        caller: Caller::Client(ClientName::new(&client.to_string())),
                        since: fixture.start + Duration::from_millis(number as u64),
                        tokens: bytes,
                        bytes,
                        holds_up_others: true,
                        key: None,
                    };
                    let name = number.to_string();
                    ends.insert(name.clone(), 0);
                    let (place, displaced) =
                        fixture.waiting.join(client % 2, &request, choice.clone(), name, None, bounds);
                    for name in displaced {
                        *ends.get_mut(&name).unwrap() += 1;
                    }
                    let mut all = places.take();
                    all.push(place);
                    places.set(all);
                }
                2 => {
                    choice.set(class);
                    for (name, _) in std::iter::from_fn(|| fixture.waiting.serve_first(client % 2, fixture.start)) {
                        *ends.get_mut(&name).unwrap() += 1;
                    }
                }
                _ => {
                    let mut all = places.take();
                    if !all.is_empty() {
                        let place = all.swap_remove(number % all.len());
                        if let Some(name) = fixture.waiting.leave(&place) {
                            *ends.get_mut(&name).unwrap() += 1;
                        }
                    }
                    places.set(all);
                }
            }
            let waiting = ends.values().filter(|count| **count == 0).count();
            prop_assert_eq!(fixture.waiting.total.requests, waiting);
            prop_assert!(waiting <= bounds.max_requests && fixture.waiting.total.bytes <= bounds.max_bytes);
            prop_assert!(ends.values().all(|count| *count <= 1));
        }
        for place in places.take() {
            if let Some(name) = fixture.waiting.leave(&place) {
                *ends.get_mut(&name).unwrap() += 1;
            }
        }
        prop_assert!(ends.values().all(|count| *count == 1));
        prop_assert_eq!(fixture.waiting.total.bytes, 0);
        prop_assert!(fixture.waiting.held.is_empty());
    }
}

/// A choice whose turns tell the key that they are for.
#[derive(PartialEq)]
struct KeyTold;

impl Choice for KeyTold {
    type Turn = Option<RoutedKey>;

    fn try_take(&self, key: Option<RoutedKey>, _now: Instant) -> Option<Option<RoutedKey>> {
        Some(key)
    }

    fn next_chance(&self, _now: Instant) -> Option<Instant> {
        None
    }
}

#[test]
fn the_backend_of_a_turn_is_chosen_by_the_key_of_the_request_that_gets_it() {
    let start = Instant::now();
    let mut waiting = WaitingRequests::default();
    let bounds = QueueBounds { max_requests: 10, max_bytes: 10 };
    let keys = [Some(CacheKey::from_hash(1).into()), None, Some(CacheKey::from_hash(2).into())];
    for key in keys {
        let request = QueuedRequest {
            class: RequestClass::Standard,
            caller: Caller::Client(ClientName::new("a")),
            since: start,
            tokens: 1,
            bytes: 1,
            holds_up_others: true,
            key,
        };
        let (_, displaced) = waiting.join(1, &request, KeyTold, (), None, bounds);
        assert!(displaced.is_empty());
    }
    assert_eq!(keys.map(|_| waiting.serve_first(1, start).unwrap().1), keys);
}
