//! What the recent attempts say about a backend: how many failed in a row and in the last minute, and the last
//! error in the backend's own words.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::routing::attempt_errors::attempt_error_in_words;
use crate::routing::window::{EventCounts, SlidingWindow};

/// A backend is failing if this many attempts in a row failed.
pub const FAILING_IN_A_ROW: u32 = 3;
/// Attempts that failed outside of this window do not count.
const WINDOW: Duration = Duration::from_secs(60);
/// A backend is failing if half of the attempts in the window failed, if there are at least this many.
const MIN_ATTEMPTS_IN_WINDOW: u64 = 5;
/// The longest message of an error that is kept.
const MAX_MESSAGE_CHARS: usize = 200;
/// Errors of the same status within this time count as the same one: a full deployment refuses thousands of
/// requests a second.
const MIN_ERROR_INTERVAL: Duration = Duration::from_secs(1);

/// The recent attempts on one backend.
#[derive(Debug)]
pub struct RecentAttempts {
    failures_in_a_row: AtomicU32,
    /// Those of the last minute; failures are marked.
    window: SlidingWindow,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    failing_since: Option<Instant>,
    last_failure_at: Option<Instant>,
    /// When the first of the failures in a row was.
    run_began_at: Option<Instant>,
    last_error: Option<LastError>,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureRun {
    /// How many.
    pub count: u32,
    /// From the first to the last.
    pub lasted: Duration,
}

/// The last error of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastError {
    /// When it came; `None` if that is not known.
    pub at: Option<Instant>,
    /// The status of the response; `None` if there was none.
    pub status: Option<u16>,
    /// The code in the response's body, or the reason why there was no response.
    pub code: Option<String>,
    /// The message in the response's body, cut.
    pub message: Option<String>,
}

impl LastError {
    /// For a log line or a person: status, code and message as far as they are known.
    pub fn describe(&self) -> String {
        let status = self.status.map(|status| status.to_string());
        // Azure repeats the status as a code in some errors. Without a response the code is our own.
        let code = self.code.as_deref().filter(|code| Some(*code) != status.as_deref());
        let code = code.map(|code| if status.is_none() { attempt_error_in_words(code) } else { code });
        let head = [status.as_deref(), code].into_iter().flatten().collect::<Vec<_>>().join(" ");
        match &self.message {
            Some(message) => format!("{head}: {message}"),
            None => head,
        }
    }
}

impl RecentAttempts {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            failures_in_a_row: AtomicU32::new(0),
            window: SlidingWindow::new(now),
            trouble: Mutex::default(),
        }
    }

    /// Counts an attempt that the backend answered, be it with a refusal.
    pub fn record_answer(&self, now: Instant) {
        self.window.record(EventCounts { total: 1, marked: 0 }, WINDOW, now);
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
            self.refresh(&mut self.lock_trouble(), now);
        }
    }

    /// Counts an attempt that failed; returns those that have now failed in a row. `was_counted_as_answer` says
    /// that it broke off after its response had begun.
    pub fn record_failure(&self, was_counted_as_answer: bool, now: Instant) -> FailureRun {
        let total = u64::from(!was_counted_as_answer);
        self.window.record(EventCounts { total, marked: 1 }, WINDOW, now);
        let count = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let mut trouble = self.lock_trouble();
        trouble.last_failure_at = Some(now);
        if count == 1 {
            trouble.run_began_at = Some(now);
        }
        self.refresh(&mut trouble, now);
        let began_at = trouble.run_began_at.unwrap_or(now);
        FailureRun { count, lasted: now.saturating_duration_since(began_at) }
    }

    /// Records that the backend has answered a health probe. Real requests say more, so their failures within
    /// the last minute stay.
    pub fn record_probe_answer(&self, now: Instant) {
        let mut trouble = self.lock_trouble();
        if trouble.last_failure_at.is_none_or(|at| now.saturating_duration_since(at) >= WINDOW) {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
            self.refresh(&mut trouble, now);
        }
    }

    /// Forgets the failures: the backend was stalled, which explains them, and answers again.
    pub fn on_stall_end(&self, now: Instant) {
        let mut trouble = self.lock_trouble();
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.window.clear();
        self.refresh(&mut trouble, now);
    }

    /// Keeps the error of an attempt. `details` gives the code and the message; it is not called if the error
    /// is the same as a moment ago.
    pub fn record_error(
        &self,
        status: Option<u16>,
        now: Instant,
        details: impl FnOnce() -> (Option<String>, Option<String>),
    ) {
        let is_repeated = |last: &LastError| {
            last.status == status
                && last.at.is_some_and(|at| now.saturating_duration_since(at) < MIN_ERROR_INTERVAL)
        };
        if self.lock_trouble().last_error.as_ref().is_some_and(is_repeated) {
            return;
        }
        let (code, message) = details();
        let cut = |text: String| text.chars().take(MAX_MESSAGE_CHARS).collect();
        let error = LastError { at: Some(now), status, code: code.map(cut), message: message.map(cut) };
        self.lock_trouble().last_error = Some(error);
    }

    /// Since when the backend fails most of what it is asked; `None` if it does not.
    pub fn failing_since(&self, now: Instant) -> Option<Instant> {
        let mut trouble = self.lock_trouble();
        self.refresh(&mut trouble, now);
        trouble.failing_since
    }

    /// The attempts of the last minute, and how many of them failed.
    pub fn last_minute(&self, now: Instant) -> (u64, u64) {
        let EventCounts { total, marked } = self.window.counts(WINDOW, now);
        (total, marked)
    }

    /// How many attempts in a row failed up to now.
    pub fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row.load(Ordering::Relaxed)
    }

    /// The last error, whether the backend works again or not.
    pub fn last_error(&self) -> Option<LastError> {
        self.lock_trouble().last_error.clone()
    }

    fn refresh(&self, trouble: &mut Trouble, now: Instant) {
        let (attempts, failures) = self.last_minute(now);
        let is_failing = self.failures_in_a_row() >= FAILING_IN_A_ROW
            || (attempts >= MIN_ATTEMPTS_IN_WINDOW && failures * 2 >= attempts);
        trouble.failing_since = is_failing.then(|| trouble.failing_since.unwrap_or(now));
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_backend_is_failing_after_three_failures_in_a_row_or_if_half_of_a_minutes_attempts_failed() {
        // Attempts two seconds apart; f: failed, .: answered, _: none.
        let table = [
            ("ff", None),
            ("fff", Some(2)),
            ("ff.f", None),
            ("f.ff", None),
            ("..fff", Some(4)),
            ("f.f.f", Some(4)),
            ("f.f.f.", Some(4)),
            ("f.f.f..", None),
            ("fff.", None),
            ("fff________________________________________", Some(2)),
            ("f.f.f________________________________________", None),
        ];
        for (attempts, failing_since) in table {
            let start = Instant::now();
            let recent = RecentAttempts::new(start);
            for (number, attempt) in attempts.chars().enumerate() {
                let now = start + S * 2 * u32::try_from(number).unwrap();
                match attempt {
                    'f' => {
                        recent.record_failure(false, now);
                    }
                    '.' => recent.record_answer(now),
                    _ => {}
                }
            }
            let now = start + S * 2 * u32::try_from(attempts.len() - 1).unwrap();
            let since = recent.failing_since(now).map(|since| (since - start).as_secs() / 2);
            assert_eq!(since, failing_since, "{attempts}");
        }
    }

    #[test]
    fn a_probes_answer_ends_failures_of_requests_only_if_they_are_old() {
        let now = Instant::now();
        let recent = RecentAttempts::new(now);
        (0..3).for_each(|_| assert!(recent.record_failure(false, now).count > 0));
        recent.record_probe_answer(now + 59 * S);
        assert_eq!(recent.failing_since(now + 59 * S), Some(now));
        recent.record_probe_answer(now + 60 * S);
        assert_eq!(recent.failing_since(now + 60 * S), None);
    }

    #[test]
    fn a_backend_whose_stall_is_over_does_not_fail_because_of_it() {
        let now = Instant::now();
        let recent = RecentAttempts::new(now);
        (0..9).for_each(|_| assert!(recent.record_failure(false, now).count > 0));
        recent.on_stall_end(now + S);
        assert_eq!((recent.failing_since(now + S), recent.last_minute(now + S)), (None, (0, 0)));
        (0..3).for_each(|_| assert!(recent.record_failure(false, now + S * 2).count > 0));
        assert_eq!(recent.failing_since(now + S * 2), Some(now + S * 2), "it fails again");
    }

    #[test]
    fn a_response_that_broke_off_counts_as_one_failed_attempt() {
        let now = Instant::now();
        let recent = RecentAttempts::new(now);
        recent.record_answer(now);
        assert_eq!(recent.record_failure(true, now).count, 1);
        assert_eq!(recent.last_minute(now), (1, 1));
    }

    #[test]
    fn the_last_error_is_kept_in_the_backends_words_and_cut() {
        let now = Instant::now();
        let recent = RecentAttempts::new(now);
        let error = |code: &str| (Some(code.to_owned()), Some("é".repeat(300)));
        recent.record_error(Some(429), now, || error("a"));
        recent.record_error(Some(429), now + S / 2, || unreachable!("the same error"));
        assert_eq!(recent.last_error().unwrap().describe(), format!("429 a: {}", "é".repeat(200)));
        recent.record_error(None, now + S / 2, || (Some("reset".to_owned()), None));
        assert_eq!(recent.last_error().unwrap().describe(), "connection reset");
        recent
            .record_error(Some(401), now + S, || (Some("401".to_owned()), Some("Access denied".to_owned())));
        assert_eq!(recent.last_error().unwrap().describe(), "401: Access denied");
        recent.record_error(Some(500), now + S, || (None, None));
        assert_eq!(recent.last_error().unwrap().describe(), "500");
    }
}
