//! A backend that fails too often is left alone for a while: longer each time it comes back
//! only to fail.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::health::{Cell, Reason, Rest, Standing};
use super::window::{Counts, Window};
use crate::config;

/// The breaker of one backend.
#[derive(Debug)]
pub struct Breaker {
    /// Rests while the breaker is open; one request goes first when that is over.
    pub cell: Arc<Cell>,
    window: Window,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    /// How often in a row it opened.
    streak: u32,
    /// When its last rest was over.
    ended: Option<Instant>,
}

/// What a failure counts as.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failure {
    /// It is its request's first on this backend: one poisonous prompt must not open every
    /// breaker.
    pub is_first: bool,
    /// The attempt was to find out whether the backend is back.
    pub is_probe: bool,
    /// The attempt has been counted as answered before it broke off.
    pub was_answered: bool,
}

impl Breaker {
    pub(super) fn new(birth: Instant) -> Self {
        Self { cell: Arc::default(), window: Window::new(birth), history: Mutex::default() }
    }

    /// How often in a row it opened, and when its last rest was over, as far as that matters.
    pub(super) fn history(&self) -> (u32, Option<Instant>) {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        (history.streak, history.ended)
    }

    /// Goes on with the history of another process.
    pub(super) fn continues(&self, streak: u32, ended: Option<Instant>) {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner) = History { streak, ended };
    }

    /// It is known to be well, though no request found out.
    pub fn close(&self) {
        self.cell.wake();
    }

    /// An attempt has been answered.
    pub fn succeeded(&self, policy: &config::Breaker, now: Instant) {
        self.window.add(Counts { all: 1, marked: 0 }, policy.window, now);
    }

    /// An attempt has failed. Returns how long the breaker is open from now on, if it opened.
    pub fn failed(&self, policy: &config::Breaker, failure: Failure, now: Instant) -> Option<Duration> {
        let Failure { is_first: first, is_probe: probing, was_answered: answered } = failure;
        if !probing && matches!(self.cell.standing(now), Standing::Resting(_)) {
            // Requests that were under way when it opened say nothing new.
            return None;
        }
        if first {
            let all = u64::from(!answered);
            self.window.add(Counts { all, marked: 1 }, policy.window, now);
        }
        if !probing {
            let Counts { all, marked } = self.window.counts(policy.window, now);
            let enough = marked >= u64::from(policy.failures)
                && marked * 100 >= all * u64::from(policy.ratio.percent());
            if !enough {
                return None;
            }
        }
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if !probing && matches!(self.cell.standing(now), Standing::Resting(_)) {
            // Another one was faster to open it.
            return None;
        }
        let recent = |ended: Instant| now.saturating_duration_since(ended) < policy.maximum;
        history.streak = if history.ended.is_some_and(recent) { history.streak.saturating_add(1) } else { 0 };
        let open =
            policy.open.saturating_mul(2_u32.saturating_pow(history.streak.min(16))).min(policy.maximum);
        let until = now + open;
        history.ended = Some(until);
        self.window.clear();
        self.cell.rest(Rest { reason: Reason::BreakerOpen, until }, now);
        Some(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const FIRST: Failure = Failure { is_first: true, is_probe: false, was_answered: false };

    fn policy() -> config::Breaker {
        config::Breaker {
            failures: 5,
            ratio: config::Ratio::new(50).unwrap(),
            window: 10 * S,
            open: 10 * S,
            maximum: 60 * S,
        }
    }

    #[test]
    fn it_opens_at_enough_failures_that_are_enough_of_the_attempts() {
        let now = Instant::now();
        let table = [
            // successes, failures of different requests, whether it opens
            (0, 4, false),
            (0, 5, true),
            (5, 5, true),
            (6, 5, false),
        ];
        for (successes, failures, opens) in table {
            let breaker = Breaker::new(now);
            (0..successes).for_each(|_| breaker.succeeded(&policy(), now));
            let opened = (0..failures).filter_map(|_| breaker.failed(&policy(), FIRST, now)).count() > 0;
            assert_eq!(opened, opens, "{successes} {failures}");
            assert_eq!(breaker.cell.standing(now) == Standing::Awake, !opens);
        }
    }

    #[test]
    fn one_request_counts_once_and_old_failures_not_at_all() {
        let now = Instant::now();
        let breaker = Breaker::new(now);
        assert!(
            (0..20).all(|n| breaker.failed(&policy(), Failure { is_first: n == 0, ..FIRST }, now).is_none())
        );
        assert!((1..5).all(|n| breaker.failed(&policy(), FIRST, now + n * 4 * S).is_none()));
    }

    #[test]
    fn repeat_offenders_stay_out_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let breaker = Breaker::new(now);
        let mut seconds = Vec::new();
        for n in 0..6 {
            // After the first time the probe's failure is enough.
            let failures = if n == 0 { 5 } else { 1 };
            let open = (0..failures)
                .filter_map(|_| breaker.failed(&policy(), Failure { is_probe: n > 0, ..FIRST }, now))
                .next_back()
                .unwrap();
            seconds.push(open.as_secs());
            now += open;
        }
        assert_eq!(seconds, [10, 20, 40, 60, 60, 60]);
        // Long after it was back it begins anew.
        now += 61 * S;
        let open = (0..5).filter_map(|_| breaker.failed(&policy(), FIRST, now)).next().unwrap();
        assert_eq!(open, 10 * S);
    }

    #[test]
    fn what_was_under_way_when_it_opened_does_not_keep_it_open() {
        let now = Instant::now();
        let breaker = Breaker::new(now);
        let opened = (0..100).filter_map(|_| breaker.failed(&policy(), FIRST, now)).collect::<Vec<_>>();
        assert_eq!(opened, [10 * S]);
        // An answer that broke off counts as one attempt, not as two.
        let breaker = Breaker::new(now);
        let broken = |_: &i32| {
            breaker.succeeded(&policy(), now);
            breaker.failed(&policy(), Failure { was_answered: true, ..FIRST }, now).is_some()
        };
        assert_eq!((0..5).filter(broken).count(), 1);
        assert_eq!(breaker.window.counts(10 * S, now), Counts::default(), "forgotten once it is open");
    }
}
