use std::time::{Duration, Instant};

use super::*;
use crate::names::ClientName;

fn caller(name: &str) -> Caller {
    Caller::Client(ClientName::new(name))
}

/// A line with what was asked for in it.
struct Fixture {
    line: ClassLine<u64>,
    start: Instant,
    number: u64,
}

impl Fixture {
    fn new() -> Self {
        Self { line: ClassLine::default(), start: Instant::now(), number: 0 }
    }

    fn push(&mut self, client: &str, tokens: u64) -> TicketOrder {
        self.number += 1;
        self.push_since(client, tokens, self.number)
    }

    fn push_since(&mut self, client: &str, tokens: u64, since_ms: u64) -> TicketOrder {
        self.number += 1;
        let order = TicketOrder { since: self.start + Duration::from_millis(since_ms), number: self.number };
        self.line.push(&caller(client), Ticket { order, tokens, bytes: 0, payload: since_ms }, false);
        order
    }

    /// The client that is served next.
    fn serve(&mut self) -> Option<String> {
        self.line.serve_first(|_| Some(())).map(|(caller, ..)| match caller {
            Caller::Client(name) => name.to_string(),
            Caller::Address(_) => unreachable!(),
        })
    }

    /// The backend refuses the turn of a client, whose request goes back.
    fn refuse_turn(&mut self, client: &str, tokens: u64) {
        self.line.take_turn_back(&caller(client), tokens);
        self.number += 1;
        let order = TicketOrder { since: self.start, number: self.number };
        self.line.push(&caller(client), Ticket { order, tokens, bytes: 0, payload: 0 }, true);
    }

    /// Serves all requests but so many.
    fn serve_all_but(&mut self, rest: usize) -> String {
        let waiting = self.line.clients.values().map(|client| client.waiting.len()).sum::<usize>();
        (rest..waiting).filter_map(|_| self.serve()).collect::<Vec<_>>().join(" ")
    }

    fn serve_all(&mut self) -> String {
        std::iter::from_fn(|| self.serve()).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn clients_get_the_same_number_of_tokens() {
    let mut fixture = Fixture::new();
    for _ in 0..6 {
        fixture.push("large", 300);
    }
    for _ in 0..6 {
        fixture.push("small", 100);
    }
    assert_eq!(
        fixture.serve_all(),
        "large small small small large small small small large large large large"
    );
    assert!(fixture.line.is_empty());
}

#[test]
fn a_client_that_comes_later_waits_for_one_turn_at_most_and_saves_nothing_up() {
    let mut fixture = Fixture::new();
    for _ in 0..20 {
        fixture.push("busy", 100);
    }
    for _ in 0..9 {
        assert_eq!(fixture.serve().unwrap(), "busy");
    }
    for _ in 0..5 {
        fixture.push("idle", 100);
    }
    // It does not get the 900 tokens first that the other one got before.
    let next: Vec<_> = (0..6).filter_map(|_| fixture.serve()).collect();
    assert_eq!(next.join(" "), "idle busy idle busy idle busy");
}

#[test]
fn a_client_that_comes_later_starts_where_the_others_are_whatever_they_were_estimated_to_use() {
    let mut fixture = Fixture::new();
    for _ in 0..20 {
        fixture.push("busy", 100);
    }
    for _ in 0..9 {
        assert_eq!(fixture.serve().unwrap(), "busy");
    }
    // It has used half of what was estimated.
    for _ in 0..9 {
        fixture.line.settle(&caller("busy"), 100, 50);
    }
    for _ in 0..3 {
        fixture.push("idle", 100);
    }
    let next: Vec<_> = (0..4).filter_map(|_| fixture.serve()).collect();
    assert_eq!(next.join(" "), "idle busy idle busy");
}

#[test]
fn a_client_that_waits_again_and_again_is_not_preferred() {
    let mut fixture = Fixture::new();
    for _ in 0..10 {
        fixture.push("busy", 100);
    }
    let mut served = Vec::new();
    for _ in 0..10 {
        // It has one request at a time.
        let single = fixture.line.clients.get(&caller("single"));
        if single.is_none_or(|client| client.waiting.is_empty()) {
            fixture.push("single", 100);
        }
        served.extend(fixture.serve());
    }
    assert_eq!(served.iter().filter(|name| *name == "single").count(), 5, "{served:?}");
}

#[test]
fn requests_of_one_client_are_served_in_the_order_in_which_they_came() {
    let mut fixture = Fixture::new();
    for since in [5, 3, 9, 1] {
        fixture.push_since("a", 1, since);
    }
    let order: Vec<u64> =
        std::iter::from_fn(|| fixture.line.serve_first(|_| Some(())).map(|(_, ticket, ())| ticket.payload))
            .collect();
    assert_eq!(order, [1, 3, 5, 9]);
}

#[test]
fn who_cannot_be_served_is_passed_over_and_keeps_its_place() {
    let mut fixture = Fixture::new();
    fixture.push_since("a", 100, 1);
    fixture.push_since("a", 100, 2);
    fixture.push_since("b", 100, 3);
    let even = |payload: &u64| payload.is_multiple_of(2).then_some(());
    assert_eq!(fixture.line.serve_first(even).unwrap().1.payload, 2);
    assert!(fixture.line.serve_first(even).is_none());
    assert_eq!(fixture.serve_all(), "b a", "what a got counts");
}

#[test]
fn what_a_request_turned_out_to_use_counts() {
    let mut fixture = Fixture::new();
    for client in ["a", "b", "a", "b", "a", "b"] {
        fixture.push(client, 100);
    }
    assert_eq!((fixture.serve().unwrap(), fixture.serve().unwrap()), ("a".to_owned(), "b".to_owned()));
    fixture.line.settle(&caller("a"), 100, 250);
    assert_eq!(fixture.serve_all(), "b b a a");
}

#[test]
fn a_request_whose_turn_was_refused_goes_back_to_its_place() {
    let mut fixture = Fixture::new();
    for _ in 0..9 {
        fixture.push("busy", 100);
    }
    assert_eq!(fixture.serve_all_but(5), "busy busy busy busy");
    fixture.push("unlucky", 50);
    for _ in 0..3 {
        // Its counter and that of the other client are the same.
        assert_eq!(fixture.serve().unwrap(), "unlucky");
        fixture.refuse_turn("unlucky", 50);
    }
    // The other client gets a turn meanwhile: the refused one is 100 tokens behind it now, not level with it.
    assert_eq!(
        (fixture.serve().unwrap(), fixture.serve().unwrap()),
        ("unlucky".to_owned(), "busy".to_owned())
    );
    fixture.refuse_turn("unlucky", 50);
    fixture.push("unlucky", 50);
    fixture.push("unlucky", 50);
    assert_eq!(fixture.serve_all_but(4), "unlucky unlucky busy");
}

#[test]
fn idle_clients_are_forgotten() {
    let mut fixture = Fixture::new();
    let order = fixture.push("a", 100);
    assert!(fixture.line.remove(&caller("a"), order).is_some());
    assert!(fixture.line.remove(&caller("a"), order).is_none());
    assert!(fixture.line.is_forgotten());
    fixture.push("a", 100);
    fixture.push("b", 100);
    assert_eq!(fixture.serve_all(), "a b");
    assert!(!fixture.line.is_forgotten(), "their tokens are not known yet");
    fixture.line.settle(&caller("a"), 100, 100);
    fixture.line.settle(&caller("b"), 100, 100);
    assert!(fixture.line.is_forgotten());
    for number in 0..3 * MAX_REMEMBERED_CLIENTS {
        fixture.push("other", 1);
        fixture.push(&format!("client {number}"), 1_000_000);
        while let Some(name) = fixture.serve() {
            fixture.line.settle(&caller(&name), 1, 1);
        }
        assert!(fixture.line.clients.len() <= MAX_REMEMBERED_CLIENTS + 1);
    }
}

impl Fixture {
    /// Another instance has charged these tokens.
    fn charge(&mut self, charges: &[(&str, i64)]) {
        let charges: Vec<_> = charges.iter().map(|(client, tokens)| (caller(client), *tokens)).collect();
        self.line.add_charges_of_others(&charges);
    }

    fn push_several(&mut self, clients: &str) {
        for client in clients.split(' ') {
            self.push(client, 100);
        }
    }
}

/// What happens in a row of the table below.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// These clients begin to wait, each with a request of 100 tokens.
    Push(&'static str),
    /// Another instance has charged this.
    Charge(&'static [(&'static str, i64)]),
    /// These are served next, and use what was estimated.
    Served(&'static str),
}

#[test]
fn what_others_have_charged_counts() {
    use Step::{Charge, Push, Served};
    let tables: [(&str, &[Step]); 10] = [
        (
            "a client that was served elsewhere waits",
            &[Push("a a a b b b b"), Charge(&[("a", 250)]), Served("b b b a b a a")],
        ),
        ("all got as much", &[Push("a a b b"), Charge(&[("a", 250), ("b", 250)]), Served("a b a b")]),
        (
            "charges add up",
            &[Push("a a b b b b b"), Charge(&[("a", 150)]), Charge(&[("a", 150)]), Served("b b b a b a b")],
        ),
        (
            "what is refunded does not count",
            &[Push("a a b b b"), Charge(&[("a", 250)]), Charge(&[("a", -200)]), Served("b a b a b")],
        ),
        (
            "no more is refunded than was charged",
            &[
                Push("a a a b b b b"),
                Served("a b a b"),
                Charge(&[("b", 10)]),
                Charge(&[("b", -150)]),
                Served("a b b"),
            ],
        ),
        (
            "a client that begins to wait soon after waits as well",
            &[Push("b b b b"), Charge(&[("a", 250)]), Push("a a"), Served("b b b a b a")],
        ),
        (
            "it is level once the others have got as much",
            &[
                Push("b b b b b b"),
                Charge(&[("a", 250)]),
                Served("b b b b"),
                Push("a a a"),
                Served("a b a b a"),
            ],
        ),
        ("nothing counts while nobody waits", &[Charge(&[("a", 250)]), Push("a a b b"), Served("a b a b")]),
        (
            "a client that begins to wait starts level with those that were charged",
            &[Push("a a a"), Charge(&[("a", 250)]), Push("b b b"), Served("a b a b a b")],
        ),
        (
            "nobody is held up for more than five times a charge",
            &[
                Push("a b b b b b b b"),
                Charge(&[("a", 100)]),
                Charge(&[("a", 100)]),
                Charge(&[("a", 100)]),
                Charge(&[("a", 100)]),
                Charge(&[("a", 100)]),
                Charge(&[("a", 100)]),
                Charge(&[("a", 100)]),
                Served("b b b b b a b b"),
            ],
        ),
    ];
    for (what, steps) in tables {
        let mut fixture = Fixture::new();
        for step in steps {
            match *step {
                Push(clients) => fixture.push_several(clients),
                Charge(charges) => fixture.charge(charges),
                Served(expected) => {
                    let served: Vec<_> =
                        expected.split(' ').map(|_| fixture.serve().unwrap_or_default()).collect();
                    assert_eq!(served.join(" "), expected, "{what}");
                    for client in served {
                        fixture.line.settle(&caller(&client), 100, 100);
                    }
                }
            }
        }
        assert!(fixture.line.is_forgotten(), "{what}");
    }
}

#[test]
fn amounts_without_measure_and_names_without_end_do_no_harm() {
    let mut fixture = Fixture::new();
    fixture.push_several("a a b b");
    for tokens in [i64::MAX, i64::MIN, i64::MAX, i64::MAX, i64::MAX, i64::MIN, i64::MIN, i64::MIN, 0] {
        fixture.charge(&[("a", tokens), ("b", tokens), ("a", tokens), ("elsewhere", tokens)]);
    }
    for number in 0..3 * MAX_REMEMBERED_CLIENTS {
        fixture.charge(&[(&number.to_string(), 1)]);
    }
    assert!(fixture.line.clients.len() <= MAX_REMEMBERED_CLIENTS);
    let mut served: Vec<_> = (0..4).filter_map(|_| fixture.serve()).collect();
    served.sort();
    assert_eq!(served.join(" "), "a a b b");
    for client in served {
        fixture.line.settle(&caller(&client), 100, 100);
    }
    assert!(fixture.line.is_forgotten());
}
