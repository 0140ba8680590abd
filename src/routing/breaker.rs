//! A backend that fails too often is left alone for a while: longer each time it comes back
//! only to fail.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::health::{Cell, Reason, Rest};
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

impl Breaker {
    pub(super) fn new(birth: Instant) -> Self {
        Self { cell: Arc::default(), window: Window::new(birth), history: Mutex::default() }
    }

    /// It is known to be well, though no request found out.
    pub fn close(&self) {
        self.cell.wake();
    }

    /// An attempt has been answered.
    pub fn succeeded(&self, policy: &config::Breaker, now: Instant) {
        self.window.add(Counts { all: 1, marked: 0 }, policy.window, now);
    }

    /// An attempt has failed; `first` if it is this request's first failure here, since one
    /// poisonous prompt must not open every breaker; `probing` if it was to find out whether
    /// the backend is back. Returns how long the breaker is open from now on, if it opened.
    pub fn failed(
        &self,
        policy: &config::Breaker,
        first: bool,
        probing: bool,
        now: Instant,
    ) -> Option<Duration> {
        if first {
            self.window.add(Counts { all: 1, marked: 1 }, policy.window, now);
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
    use crate::routing::health::Standing;

    const S: Duration = Duration::from_secs(1);

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
            let opened =
                (0..failures).filter_map(|_| breaker.failed(&policy(), true, false, now)).count() > 0;
            assert_eq!(opened, opens, "{successes} {failures}");
            assert_eq!(breaker.cell.standing(now) == Standing::Awake, !opens);
        }
    }

    #[test]
    fn one_request_counts_once_and_old_failures_not_at_all() {
        let now = Instant::now();
        let breaker = Breaker::new(now);
        assert!((0..20).all(|n| breaker.failed(&policy(), n == 0, false, now).is_none()));
        assert!((1..5).all(|n| breaker.failed(&policy(), true, false, now + n * 4 * S).is_none()));
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
                .filter_map(|_| breaker.failed(&policy(), true, n > 0, now))
                .next_back()
                .unwrap();
            seconds.push(open.as_secs());
            now += open;
        }
        assert_eq!(seconds, [10, 20, 40, 60, 60, 60]);
        // Long after it was back it begins anew.
        now += 61 * S;
        let open = (0..5).filter_map(|_| breaker.failed(&policy(), true, false, now)).next().unwrap();
        assert_eq!(open, 10 * S);
    }
}
