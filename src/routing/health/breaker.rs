//! The circuit breaker of a backend. It opens when too many attempts fail. After a while it is half-open:
//! one request probes. If that fails, it stays open twice as long, up to a maximum.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::availability::{Availability, AvailabilityCell, Unavailable, UnavailableReason};
use super::recent_attempts::FailureRun;
use crate::config;
use crate::routing::window::{EventCounts, SlidingWindow};

/// Failures in a row within less than this open the circuit only as a share of all attempts.
const MIN_RUN_DURATION: Duration = Duration::from_secs(1);

/// The circuit breaker of one backend: closed while the backend is available, open while it is unavailable,
/// half-open when a probe is due.
#[derive(Debug)]
pub struct CircuitBreaker {
    /// The state of the circuit.
    pub availability: Arc<AvailabilityCell>,
    /// All attempts; those that failed are marked.
    attempt_window: SlidingWindow,
    opening_history: Mutex<OpeningHistory>,
}

#[derive(Debug, Default)]
struct OpeningHistory {
    /// How often in a row it opened again soon after it was open.
    reopen_count: u32,
    /// Until when it is or was open.
    last_open_until: Option<Instant>,
}

/// What the failure of an attempt counts as.
#[derive(Clone, Copy, Debug, Default)]
pub struct FailureFlags {
    /// The first failure of its request on this backend. Others do not count: one request that makes
    /// backends fail must not open all their circuits.
    pub is_first_of_request_on_backend: bool,
    /// This failure is enough to open the circuit: the attempt was a probe.
    pub opens_circuit_alone: bool,
    /// The attempt was counted as a success when its response began, before it broke off.
    pub was_counted_as_success: bool,
}

/// How long a circuit is open from now on, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedCircuit {
    /// How long.
    pub duration: Duration,
    cause: OpeningCause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpeningCause {
    TooManyFailures { failures: u64, attempts: u64 },
    FailuresInARow(u32),
    ProbeFailed,
}

impl fmt::Display for OpenedCircuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "circuit open for {:?}: ", self.duration)?;
        match self.cause {
            OpeningCause::TooManyFailures { failures, attempts } => {
                write!(f, "{failures} of {attempts} attempts failed")
            }
            OpeningCause::FailuresInARow(failures) => write!(f, "{failures} attempts in a row failed"),
            OpeningCause::ProbeFailed => f.write_str("the probe failed"),
        }
    }
}

impl CircuitBreaker {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            availability: Arc::default(),
            attempt_window: SlidingWindow::new(now),
            opening_history: Mutex::default(),
        }
    }

    /// Counts an attempt that was answered.
    pub fn record_success(&self, policy: &config::BreakerConfig, now: Instant) {
        self.attempt_window.record(EventCounts { total: 1, marked: 0 }, policy.window, now);
    }

    /// Counts an attempt that failed, and opens the circuit if that was one too many. `run` includes it. However
    /// long it lasted, enough failures in a row open the circuit, but a moment is not enough: with much traffic a
    /// short disturbance fails several attempts at once.
    pub fn record_failure(
        &self,
        policy: &config::BreakerConfig,
        failure: FailureFlags,
        run: FailureRun,
        now: Instant,
    ) -> Option<OpenedCircuit> {
        let FailureFlags { is_first_of_request_on_backend, opens_circuit_alone, was_counted_as_success } =
            failure;
        let is_open = || matches!(self.availability.availability(now), Availability::Unavailable(_));
        if !opens_circuit_alone && is_open() {
            // The attempt began before the circuit opened and says nothing new.
            return None;
        }
        if is_first_of_request_on_backend {
            let total = u64::from(!was_counted_as_success);
            self.attempt_window.record(EventCounts { total, marked: 1 }, policy.window, now);
        }
        let cause = if opens_circuit_alone {
            OpeningCause::ProbeFailed
        } else {
            let EventCounts { total, marked } = self.attempt_window.counts(policy.window, now);
            let is_large_share = marked * 100 >= total * u64::from(policy.min_failure_percentage.percent());
            if marked >= u64::from(policy.min_failures) && is_large_share {
                OpeningCause::TooManyFailures { failures: marked, attempts: total }
            } else if run.count >= policy.min_failures && run.lasted >= MIN_RUN_DURATION {
                OpeningCause::FailuresInARow(run.count)
            } else {
                return None;
            }
        };
        let mut history = self.opening_history.lock().unwrap_or_else(PoisonError::into_inner);
        if !opens_circuit_alone && is_open() {
            // Another request opened it between the first check and the lock.
            return None;
        }
        let is_recent = |until: Instant| now.saturating_duration_since(until) < policy.max_open_duration;
        history.reopen_count = match history.last_open_until {
            Some(until) if is_recent(until) => history.reopen_count.saturating_add(1),
            _ => 0,
        };
        let factor = 2_u32.saturating_pow(history.reopen_count.min(16));
        let duration = policy.open_duration.saturating_mul(factor).min(policy.max_open_duration);
        let until = now + duration;
        history.last_open_until = Some(until);
        self.attempt_window.clear();
        self.availability
            .mark_unavailable(Unavailable { reason: UnavailableReason::BreakerOpen, until }, now);
        Some(OpenedCircuit { duration, cause })
    }

    /// Keeps requests away from a backend that does not answer any more, until this moment.
    pub fn open_for_stall(&self, until: Instant, now: Instant) {
        self.availability.mark_unavailable(Unavailable { reason: UnavailableReason::Stalled, until }, now);
    }

    /// Closes the circuit, since the backend is known to answer.
    pub fn close_circuit(&self) {
        self.availability.mark_available();
    }

    /// How often in a row it opened again, and until when it is or was open.
    pub(super) fn opening_history(&self) -> (u32, Option<Instant>) {
        let history = self.opening_history.lock().unwrap_or_else(PoisonError::into_inner);
        (history.reopen_count, history.last_open_until)
    }

    /// Continues the history of another process.
    pub(super) fn restore_history(&self, reopen_count: u32, last_open_until: Option<Instant>) {
        let mut history = self.opening_history.lock().unwrap_or_else(PoisonError::into_inner);
        *history = OpeningHistory { reopen_count, last_open_until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const FAILURE: FailureFlags = FailureFlags {
        is_first_of_request_on_backend: true,
        opens_circuit_alone: false,
        was_counted_as_success: false,
    };

    const FIRST: FailureRun = FailureRun { count: 1, lasted: Duration::ZERO };

    fn policy() -> config::BreakerConfig {
        config::BreakerConfig {
            min_failures: 5,
            min_failure_percentage: config::Percentage::new(50).unwrap(),
            window: 10 * S,
            open_duration: 10 * S,
            max_open_duration: 60 * S,
        }
    }

    #[test]
    fn the_circuit_opens_after_enough_failures_that_are_a_large_enough_share_of_all_attempts() {
        let now = Instant::now();
        let table = [
            // successes, failures of different requests, whether it opens
            (0, 4, false),
            (0, 5, true),
            (5, 5, true),
            (6, 5, false),
        ];
        for (successes, failures, opens) in table {
            let breaker = CircuitBreaker::new(now);
            (0..successes).for_each(|_| breaker.record_success(&policy(), now));
            let opened =
                (0..failures).filter_map(|_| breaker.record_failure(&policy(), FAILURE, FIRST, now)).count()
                    > 0;
            assert_eq!(opened, opens, "{successes} successes, {failures} failures");
            assert_eq!(breaker.availability.availability(now) == Availability::Available, !opens);
        }
    }

    #[test]
    fn the_circuit_opens_after_enough_failures_in_a_row_however_long_they_took() {
        let now = Instant::now();
        let breaker = CircuitBreaker::new(now);
        let opened: Vec<_> = (1..=5)
            .filter_map(|n| {
                let run = FailureRun { count: n, lasted: (n - 1) * 600 * S };
                breaker.record_failure(&policy(), FAILURE, run, now + n * 600 * S)
            })
            .map(|opened| opened.to_string())
            .collect();
        assert_eq!(opened, ["circuit open for 10s: 5 attempts in a row failed"]);
        // With much traffic, five failures in a row may be one short disturbance.
        let busy = CircuitBreaker::new(now);
        (0..100).for_each(|_| busy.record_success(&policy(), now));
        let run = FailureRun { count: 5, lasted: S / 2 };
        assert_eq!((0..5).find_map(|_| busy.record_failure(&policy(), FAILURE, run, now)), None);
    }

    #[test]
    fn one_request_counts_once_and_failures_before_the_window_do_not_count() {
        let now = Instant::now();
        let breaker = CircuitBreaker::new(now);
        for n in 0..20 {
            let failure = FailureFlags { is_first_of_request_on_backend: n == 0, ..FAILURE };
            assert_eq!(breaker.record_failure(&policy(), failure, FIRST, now), None);
        }
        assert!((1..5).all(|n| breaker.record_failure(&policy(), FAILURE, FIRST, now + n * 4 * S).is_none()));
    }

    #[test]
    fn the_circuit_stays_open_twice_as_long_after_each_failed_probe_up_to_a_maximum() {
        let mut now = Instant::now();
        let breaker = CircuitBreaker::new(now);
        let mut seconds = Vec::new();
        for n in 0..6 {
            // Later the failure of one probe is enough.
            let failures = if n == 0 { 5 } else { 1 };
            let failure = FailureFlags { opens_circuit_alone: n > 0, ..FAILURE };
            let opened = (0..failures)
                .filter_map(|_| breaker.record_failure(&policy(), failure, FIRST, now))
                .next_back();
            let duration = opened.unwrap().duration;
            seconds.push(duration.as_secs());
            now += duration;
        }
        assert_eq!(seconds, [10, 20, 40, 60, 60, 60]);
        // After it has been closed for the maximum duration, it starts again with the shortest.
        now += 61 * S;
        let opened =
            (0..5).filter_map(|_| breaker.record_failure(&policy(), FAILURE, FIRST, now)).next().unwrap();
        assert_eq!(opened.duration, 10 * S);
    }

    #[test]
    fn failures_of_attempts_that_began_before_the_circuit_opened_do_not_prolong_it() {
        let now = Instant::now();
        let breaker = CircuitBreaker::new(now);
        let opened = (0..100)
            .filter_map(|_| breaker.record_failure(&policy(), FAILURE, FIRST, now))
            .collect::<Vec<_>>();
        assert_eq!(opened.len(), 1);
        assert_eq!(opened[0].to_string(), "circuit open for 10s: 5 of 5 attempts failed");
        assert_eq!(
            breaker.attempt_window.counts(10 * S, now),
            EventCounts::default(),
            "counting starts again"
        );
    }

    #[test]
    fn a_response_that_broke_off_counts_as_one_attempt() {
        let now = Instant::now();
        let breaker = CircuitBreaker::new(now);
        let opened = (0..5).filter_map(|_| {
            breaker.record_success(&policy(), now);
            let failure = FailureFlags { was_counted_as_success: true, ..FAILURE };
            breaker.record_failure(&policy(), failure, FIRST, now)
        });
        let opened: Vec<_> = opened.map(|opened| opened.to_string()).collect();
        assert_eq!(opened, ["circuit open for 10s: 5 of 5 attempts failed"]);
    }
}
