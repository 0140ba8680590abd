//! One request's way through its pool: who is next, how the request is put to them, and what
//! became of each try. What a reply means is `judge.rs`'s, what the client gets in the end
//! `conclude.rs`'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::final_response::Held;
use super::upstream_error::Trouble;
use crate::credentials::Credential;
use crate::gateway::{Admitted, Failure, Gateway, Outgoing};
use crate::names::{BackendName, Deployment};
use crate::record::exchange::Attempt;
use crate::routing::headroom::Sent;
use crate::routing::health::Claim;
use crate::routing::pool::Pool;
use crate::routing::retry_plan::{Allowance, Choice, Journey, Outcome, Pause, Try};

/// An admitted request on its way through its pool.
pub(in crate::proxy) struct RetryState {
    pub(in crate::proxy) admitted: Admitted,
    pub(in crate::proxy) attempts: Vec<Attempt>,
    pub(in crate::proxy) journey: Journey,
    allowance: Allowance,
    /// A choice made early, when a reply was judged.
    pub(in crate::proxy) chosen: Option<Choice>,
    pub(in crate::proxy) underway: Option<Underway>,
    pub(in crate::proxy) last: Option<Answerer>,
    /// The most useful of the replies that were held back.
    pub(in crate::proxy) best: Option<Held>,
    /// Home does not know the id, and others are asked for it.
    pub(in crate::proxy) seeking: bool,
    /// Who refused to be asked for the usage of the stream; nobody else is asked then.
    pub(in crate::proxy) declined: Option<usize>,
}

pub(in crate::proxy) struct Underway {
    pub(in crate::proxy) place: usize,
    pub(in crate::proxy) begun: Instant,
    /// Its number in the account of its deployment's capacity.
    pub(in crate::proxy) number: Option<Sent>,
    sent: bool,
    asks_usage: bool,
    /// The number of the secret that is shown; 0: none yet.
    pub(in crate::proxy) secret: u64,
    /// It has been counted as answered.
    pub(in crate::proxy) answered: bool,
    /// What the try finds out for others.
    claim: Claim,
    is_last_hope: bool,
}

/// A try that is over. A claim of it that was not opened lets others try when this is dropped,
/// which is after its lesson was learned.
pub(in crate::proxy) struct Tried {
    pub(in crate::proxy) place: usize,
    pub(in crate::proxy) number: Option<Sent>,
    pub(in crate::proxy) secret: u64,
    _claim: Claim,
}

/// Whose reply it is.
#[derive(Clone)]
pub(in crate::proxy) struct Answerer {
    pub(in crate::proxy) backend: usize,
    pub(in crate::proxy) upstream: Option<Deployment>,
}

/// What a deadline of a try is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Due {
    /// The try is given up.
    GiveUp(Trouble),
    /// What is held of the stream goes out.
    Release,
}

/// What comes next.
pub(in crate::proxy) enum Step {
    /// A try on this backend.
    Try(usize),
    /// A wait, then [`RetryState::waited`].
    Wait(Pause),
    /// A wait for a new secret, then [`RetryState::renewed`].
    Renewal(Arc<Credential>),
    /// Nothing.
    Spent,
}

impl RetryState {
    pub(in crate::proxy) fn new(admitted: Admitted, allowance: Allowance) -> Self {
        Self {
            journey: Journey::through(&admitted.pool),
            admitted,
            attempts: Vec::new(),
            allowance,
            chosen: None,
            underway: None,
            last: None,
            best: None,
            seeking: false,
            declined: None,
        }
    }

    /// Takes note of what came of a try.
    pub(in crate::proxy) fn end(&mut self, place: usize, outcome: Outcome) {
        // An id that home does not know is asked for once: the answer is home's if nobody has
        // a better one.
        let outcome = if self.seeking && outcome == Outcome::Failed { Outcome::Unfit } else { outcome };
        self.journey.end(place, outcome);
        self.chosen = None;
    }

    /// Goes on with those who may know what home does not.
    pub(in crate::proxy) fn seek(&mut self, strangers: Arc<Pool>) {
        self.seeking = true;
        self.journey = self.journey.onwards(&strangers);
        self.admitted.pool = strangers;
    }

    /// What comes next; asked again before it is done, it is the same.
    pub(in crate::proxy) fn step(&mut self, now: Instant) -> Step {
        let (journey, admitted, allowance) = (&self.journey, &self.admitted, &self.allowance);
        let chosen = self.chosen.get_or_insert_with(|| {
            journey.choose(&admitted.pool, admitted.target.operation, allowance, now, fastrand::f64())
        });
        match chosen {
            Choice::Try(chosen) => match admitted.pool.candidate(chosen.place) {
                Some(candidate) => Step::Try(candidate.backend),
                None => Step::Spent,
            },
            Choice::Wait(pause) => Step::Wait(*pause),
            Choice::Renewal(place) => match admitted.pool.candidate(*place) {
                Some(candidate) => Step::Renewal(Arc::clone(&candidate.credential)),
                None => Step::Spent,
            },
            Choice::Spent => Step::Spent,
        }
    }

    pub(in crate::proxy) fn waited(&mut self, pause: Pause) {
        self.chosen = None;
        self.journey.waited(pause);
    }

    pub(in crate::proxy) fn renewed(&mut self) {
        self.chosen = None;
        self.journey.renewed();
    }

    /// The chosen try begins.
    pub(in crate::proxy) fn begin(&mut self, backend_name: &BackendName, now: Instant) {
        let Some(Choice::Try(chosen)) = self.chosen.take() else { return };
        self.journey.begin(&self.admitted.pool, &chosen, now);
        let Try { place, claim, is_last_hope, .. } = chosen;
        let candidate = self.admitted.pool.candidate(place);
        self.underway = Some(Underway {
            place,
            begun: now,
            number: candidate.and_then(|candidate| candidate.sent(now)),
            sent: false,
            asks_usage: false,
            secret: 0,
            answered: false,
            claim,
            is_last_hope,
        });
        if let Some(candidate) = candidate {
            candidate.memory.attempt_begins();
            self.last = Some(Answerer { backend: candidate.backend, upstream: candidate.upstream.clone() });
        }
        self.attempts.push(Attempt {
            backend: backend_name.clone(),
            status: None,
            error: None,
            ms: 0,
            retry_after_ms: None,
        });
    }

    /// The request is about to be sent on the try under way, with the secret of this number.
    pub(in crate::proxy) fn put(&mut self, gateway: &Gateway, secret: u64) -> Option<Outgoing> {
        let underway = self.underway.as_mut()?;
        underway.secret = secret;
        let candidate = self.admitted.pool.candidate(underway.place)?;
        let outgoing = gateway.put(&self.admitted, candidate, self.declined.is_none());
        underway.sent = true;
        underway.asks_usage = outgoing.asks_usage;
        Some(outgoing)
    }

    pub(in crate::proxy) fn asks_usage(&self) -> bool {
        self.underway.as_ref().is_some_and(|underway| underway.asks_usage)
    }

    pub(in crate::proxy) fn answerer(&self) -> Option<&Answerer> {
        self.last.as_ref()
    }

    /// Whether the try under way may be followed by another after it broke off.
    pub(in crate::proxy) fn may_repeat(&self) -> bool {
        self.admitted.repeatable || !self.underway.as_ref().is_some_and(|underway| underway.sent)
    }

    /// The try under way has been sent whole.
    pub(in crate::proxy) fn sent(&self, now: Instant) {
        if let Some(underway) = &self.underway {
            underway.claim.sent(now);
        }
    }

    /// The try under way is answered by its backend, with whatever that is no refusal.
    pub(in crate::proxy) fn open(&mut self) {
        let Some(underway) = &mut self.underway else { return };
        std::mem::take(&mut underway.claim).open();
        if underway.is_last_hope
            && let Some(candidate) = self.admitted.pool.candidate(underway.place)
        {
            candidate.memory.breaker.cell.wake();
        }
    }

    /// Its backend is there, whatever it says: a head is enough for a breaker.
    pub(in crate::proxy) fn open_breaker(&mut self) {
        let Some(underway) = &mut self.underway else { return };
        if let Some(candidate) = self.admitted.pool.candidate(underway.place) {
            underway.claim.open_one(&candidate.memory.breaker.cell);
            if underway.is_last_hope {
                candidate.memory.breaker.close();
            }
        }
    }

    /// Whether a try is under way.
    pub(in crate::proxy) fn is_underway(&self) -> bool {
        self.underway.is_some()
    }

    /// What a failure of the try under way counts as.
    pub(in crate::proxy) fn failure(&mut self) -> Failure {
        let Some(underway) = &self.underway else { return NO_FAILURE };
        let place = underway.place;
        let breaker = self.admitted.pool.candidate(place).map(|candidate| &candidate.memory.breaker.cell);
        let is_probe = breaker.is_some_and(|breaker| underway.claim.holds(breaker));
        let was_answered = underway.answered;
        Failure { is_first: self.journey.fails_first(place), is_probe, was_answered }
    }

    /// Ends the try under way in the record.
    pub(in crate::proxy) fn finish(
        &mut self,
        now: Instant,
        note: impl FnOnce(&mut Attempt),
    ) -> Option<Tried> {
        let underway = self.underway.take()?;
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ms =
                u64::try_from(now.saturating_duration_since(underway.begun).as_millis()).unwrap_or(u64::MAX);
            note(attempt);
        }
        if let Some(candidate) = self.admitted.pool.candidate(underway.place) {
            candidate.memory.attempt_ends();
        }
        let Underway { place, number, secret, claim, .. } = underway;
        Some(Tried { place, number, secret, _claim: claim })
    }

    /// Ends a try that is still under way when the request ends.
    pub(in crate::proxy) fn close(&mut self, client_gone: bool, now: Instant) {
        self.finish(now, |attempt| {
            if client_gone && attempt.status.is_none() {
                attempt.error = Some("client_gone");
            }
        });
    }
}

/// What counts as no failure.
pub(in crate::proxy) const NO_FAILURE: Failure =
    Failure { is_first: false, is_probe: false, was_answered: false };

/// Whole milliseconds.
pub(in crate::proxy) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
