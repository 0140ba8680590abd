//! Decides whether a rejection that a request met (401, 403, missing deployment) holds for every request.
//! A client can bring about almost any of them: with an odd api-version, with a data source that rejects it.
//! So the balancer asks a question of its own, and until that is answered only several clients together
//! make something unavailable.
//!
//! What the question is, and what becomes unavailable, is decided in `gateway/rejections.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::names::ClientName;

/// So many clients, or requests of the only client, that met a rejection make it count without an answer to
/// the balancer's question.
const ENOUGH_WITNESSES: usize = 3;
/// How long something is unavailable that only the operator can repair (deployment missing, credential
/// rejected, permission denied) before one request probes it.
pub const MISCONFIGURATION_RECHECK_INTERVAL: Duration = Duration::from_secs(60);
/// A question is answered within this time or not at all.
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// A recheck that was not answered is repeated after this time.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);
/// After an answer that denied the rejection, further rejections are those of their requests for so long.
const DENIAL_HOLDS_FOR: Duration = Duration::from_secs(5);
/// Rejections that are further apart than this have nothing to do with each other.
const WITNESSES_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Reviews the rejections of one thing: of a backend's credential, a deployment or an operation.
#[derive(Debug, Default)]
pub struct RejectionReview {
    /// Whether there is anything in `state`; nearly always false.
    is_open: AtomicBool,
    state: Mutex<ReviewState>,
}

/// What follows from a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReviewResult {
    /// The rejection holds for every request, as far as is known.
    pub holds_for_all: bool,
    /// The balancer's own question is to be asked now.
    pub asks_question: bool,
}

/// The answer to the balancer's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReviewAnswer {
    /// The same rejection.
    Confirmed,
    /// Another answer: the rejection was about the request.
    Denied,
    /// No answer, or one that says nothing about it.
    Unknown,
}

#[derive(Debug, Default)]
struct ReviewState {
    first_rejection_at: Option<Instant>,
    rejections: usize,
    /// The different clients that met it, as many as are needed.
    clients: SmallVec<[Option<ClientName>; ENOUGH_WITNESSES]>,
    asked_at: Option<Instant>,
    denied_at: Option<Instant>,
}

impl RejectionReview {
    /// Records a rejection that a request of this client met. `is_only_client` says that there is no
    /// other.
    pub fn on_rejection(
        &self,
        client: Option<&ClientName>,
        is_only_client: bool,
        now: Instant,
    ) -> ReviewResult {
        let mut state = self.lock_state();
        if state.denied_at.is_some_and(|denied_at| now < denied_at + DENIAL_HOLDS_FOR) {
            return ReviewResult { holds_for_all: false, asks_question: false };
        }
        if state.first_rejection_at.is_none_or(|first| now >= first + WITNESSES_FORGOTTEN_AFTER) {
            let asked_at = state.asked_at;
            *state = ReviewState { first_rejection_at: Some(now), asked_at, ..ReviewState::default() };
        }
        state.rejections = state.rejections.saturating_add(1);
        if state.clients.len() < ENOUGH_WITNESSES
            && !state.clients.iter().any(|known| known.as_ref() == client)
        {
            state.clients.push(client.cloned());
        }
        let witnesses = if is_only_client { state.rejections } else { state.clients.len() };
        let asks_question = state.asked_at.is_none_or(|asked_at| now >= asked_at + QUESTION_TIMEOUT);
        if asks_question {
            state.asked_at = Some(now);
        }
        self.is_open.store(true, Ordering::Release);
        ReviewResult { holds_for_all: witnesses >= ENOUGH_WITNESSES, asks_question }
    }

    /// Whether to ask, without a rejection, if one that holds for every request still does; if so, takes the question
    /// as asked.
    pub fn begin_recheck(&self, now: Instant) -> bool {
        let mut state = self.lock_state();
        let is_due = state.asked_at.is_none_or(|asked_at| now >= asked_at + RECHECK_INTERVAL);
        if is_due {
            state.asked_at = Some(now);
        }
        is_due
    }

    /// Whether the balancer's own question is to be asked now, because another instance has met a rejection. That is no
    /// rejection that a request of this instance has met, and counts as none.
    pub fn begin_question(&self, now: Instant) -> bool {
        let mut state = self.lock_state();
        let is_denied = state.denied_at.is_some_and(|denied_at| now < denied_at + DENIAL_HOLDS_FOR);
        let is_asked = state.asked_at.is_some_and(|asked_at| now < asked_at + QUESTION_TIMEOUT);
        if is_denied || is_asked {
            return false;
        }
        state.asked_at = Some(now);
        true
    }

    /// Records that a request was not rejected: what others have met was about their requests.
    pub fn on_success(&self) {
        if self.is_open.load(Ordering::Acquire) {
            let mut state = self.lock_state();
            // A question that is under way is not asked again.
            *state = ReviewState {
                asked_at: state.asked_at,
                denied_at: state.denied_at,
                ..ReviewState::default()
            };
            self.is_open.store(false, Ordering::Release);
        }
    }

    /// Records the answer to the balancer's question.
    pub fn on_answer(&self, answer: ReviewAnswer, now: Instant) {
        if answer != ReviewAnswer::Unknown {
            let denied_at = (answer == ReviewAnswer::Denied).then_some(now);
            *self.lock_state() = ReviewState { denied_at, ..ReviewState::default() };
            self.is_open.store(false, Ordering::Release);
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, ReviewState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Fixture {
        review: RejectionReview,
        began_at: Instant,
        is_only_client: bool,
    }

    impl Fixture {
        fn new(is_only_client: bool) -> Self {
            Self { review: RejectionReview::default(), began_at: Instant::now(), is_only_client }
        }

        /// Whether the rejection of a client at this time holds for all, and whether the question is asked.
        fn reject(&self, client: &str, at_ms: u32) -> (bool, bool) {
            let client = Some(ClientName::new(client));
            let now = self.began_at + at_ms * MS;
            let result = self.review.on_rejection(client.as_ref(), self.is_only_client, now);
            (result.holds_for_all, result.asks_question)
        }
    }

    #[test]
    fn one_client_alone_makes_nothing_unavailable_however_often_it_is_rejected() {
        let fixture = Fixture::new(false);
        assert_eq!(fixture.reject("a", 0), (false, true));
        for at in 1..1900 {
            assert_eq!(fixture.reject("a", at), (false, false), "the question is under way");
        }
        assert_eq!(fixture.reject("a", 2000), (false, true), "it was not answered in time");
        assert_eq!(fixture.reject("b", 2001), (false, false));
        assert_eq!(fixture.reject("c", 2002), (true, false), "three clients are enough");
    }

    #[test]
    fn a_recheck_that_is_not_answered_is_repeated_after_half_a_minute() {
        let fixture = Fixture::new(false);
        let recheck = |at_ms: u32| fixture.review.begin_recheck(fixture.began_at + at_ms * MS);
        assert_eq!([0, 29_999, 30_000, 30_001].map(recheck), [true, false, true, false]);
        assert_eq!(fixture.reject("a", 30_002), (false, false), "the question is under way");
        fixture.review.on_answer(ReviewAnswer::Confirmed, fixture.began_at + 30_003 * MS);
        assert!(recheck(30_004));
    }

    #[test]
    fn three_requests_of_the_only_client_are_enough() {
        let fixture = Fixture::new(true);
        assert_eq!(fixture.reject("a", 0), (false, true));
        assert_eq!(fixture.reject("a", 1), (false, false));
        assert_eq!(fixture.reject("a", 2), (true, false));
    }

    #[test]
    fn a_success_in_between_clears_the_witnesses() {
        let fixture = Fixture::new(false);
        fixture.reject("a", 0);
        fixture.reject("b", 1);
        fixture.review.on_success();
        assert_eq!(fixture.reject("c", 2), (false, false));
        // As does a long time.
        assert_eq!(fixture.reject("d", 3), (false, false));
        assert_eq!(fixture.reject("e", 60_002), (false, true));
    }

    #[test]
    fn another_instance_has_a_question_asked_and_is_no_witness() {
        let fixture = Fixture::new(false);
        let at = |ms: u32| fixture.began_at + ms * MS;
        assert!(fixture.review.begin_question(at(0)) && !fixture.review.begin_question(at(1999)));
        assert!(fixture.review.begin_question(at(2000)));
        assert_eq!(fixture.reject("a", 2001), (false, false), "the question is under way");
        assert_eq!(fixture.reject("b", 2002), (false, false));
        fixture.review.on_answer(ReviewAnswer::Denied, at(2003));
        assert!(!fixture.review.begin_question(at(7002)) && fixture.review.begin_question(at(7003)));
    }

    #[test]
    fn a_denial_holds_for_a_while_against_any_number_of_clients() {
        let fixture = Fixture::new(false);
        fixture.reject("a", 0);
        fixture.review.on_answer(ReviewAnswer::Denied, fixture.began_at);
        for client in ["a", "b", "c", "d"] {
            assert_eq!(fixture.reject(client, 4999), (false, false));
        }
        assert_eq!(fixture.reject("a", 5000), (false, true), "then the question is asked again");
        // No answer decides nothing.
        fixture.review.on_answer(ReviewAnswer::Unknown, fixture.began_at);
        assert_eq!(fixture.reject("b", 5001), (false, false));
        assert_eq!(fixture.reject("c", 5002), (true, false));
    }
}
