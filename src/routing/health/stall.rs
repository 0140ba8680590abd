//! Finds backends that do not answer any more: attempts wait for longer than usual, and the backend does not
//! answer a free question on a fresh connection either. A model that thinks for a minute does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::answer_times::AnswerTimes;

/// An attempt that has waited for this long is watched.
pub const WATCHED_AFTER: Duration = Duration::from_secs(1);
/// The longest usual time to the first byte of an answer, where nothing is known.
const UNKNOWN_USUAL_TIME: Duration = Duration::from_secs(10);
/// An attempt that waits for this many times the p99 of its deployment waits for too long.
const MAX_MULTIPLE_OF_P99: u32 = 3;
/// But no attempt waits for longer than this before the backend is asked, however slow its deployment is: with two
/// unanswered questions, a stalled backend is left within half a minute.
const MAX_UNASKED_WAIT: Duration = Duration::from_secs(18);
/// The time between two questions, and the longest time to an answer.
pub const STALL_QUESTION_INTERVAL: Duration = Duration::from_secs(5);
/// A backend that leaves this many questions in a row unanswered is stalled.
const UNANSWERED_QUESTIONS_OF_STALLED: u32 = 2;

/// The attempts on one backend that wait for the first byte of a response, and what it answered when asked.
#[derive(Debug, Default)]
pub struct StallWatch {
    state: Mutex<WatchState>,
}

#[derive(Debug, Default)]
struct WatchState {
    next_id: u64,
    waiting: HashMap<u64, WaitingSince>,
    /// Questions in a row that were not answered.
    unanswered: u32,
    next_question_at: Option<Instant>,
}

#[derive(Debug)]
struct WaitingSince {
    sent_at: Instant,
    /// Those of its deployment; `None` if nothing is known of it.
    usual: Option<Arc<AnswerTimes>>,
}

impl WaitingSince {
    fn is_overdue(&self, now: Instant) -> bool {
        let p99 = self.usual.as_ref().and_then(|usual| usual.p99());
        let limit = p99.map_or(UNKNOWN_USUAL_TIME, |p99| p99.saturating_mul(MAX_MULTIPLE_OF_P99));
        now.saturating_duration_since(self.sent_at) > limit.min(MAX_UNASKED_WAIT)
    }
}

/// What an unanswered question means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// The next question decides.
    Undecided,
    /// The backend is stalled from now on.
    Stalled {
        /// The attempts that wait.
        waiting: usize,
        /// How long the one waits that has waited longest.
        longest: Duration,
    },
    /// It was stalled before.
    StillStalled,
}

impl StallWatch {
    /// Watches an attempt that was sent at `sent_at` and still has no response, until what is returned is
    /// dropped. `usual` is how long its deployment takes.
    #[must_use]
    pub fn watch(self: &Arc<Self>, sent_at: Instant, usual: Option<Arc<AnswerTimes>>) -> WatchedAttempt {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.waiting.insert(id, WaitingSince { sent_at, usual });
        WatchedAttempt { watch: Arc::clone(self), id }
    }

    /// When the attempt was sent that has waited longest, of those that are watched.
    pub fn oldest_attempt(&self) -> Option<Instant> {
        self.lock().waiting.values().map(|waiting| waiting.sent_at).min()
    }

    /// Whether to ask the backend now, and if so takes this as asked: an attempt waits for too long, or the
    /// last question was not answered.
    pub fn begin_question(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let is_due = state.next_question_at.is_none_or(|at| now >= at);
        let begins =
            is_due && (state.unanswered > 0 || state.waiting.values().any(|waiting| waiting.is_overdue(now)));
        if begins {
            state.next_question_at = Some(now + STALL_QUESTION_INTERVAL);
        }
        begins
    }

    /// Records that the backend has answered something; returns whether it was stalled.
    pub fn on_answer(&self) -> bool {
        let mut state = self.lock();
        std::mem::take(&mut state.unanswered) >= UNANSWERED_QUESTIONS_OF_STALLED
    }

    /// Records that a question was not answered.
    pub fn on_no_answer(&self, now: Instant) -> Unanswered {
        let mut state = self.lock();
        state.unanswered = state.unanswered.saturating_add(1);
        match state.unanswered {
            ..UNANSWERED_QUESTIONS_OF_STALLED => Unanswered::Undecided,
            UNANSWERED_QUESTIONS_OF_STALLED => {
                let waits =
                    state.waiting.values().map(|waiting| now.saturating_duration_since(waiting.sent_at));
                Unanswered::Stalled { waiting: state.waiting.len(), longest: waits.max().unwrap_or_default() }
            }
            _ => Unanswered::StillStalled,
        }
    }

    /// Whether the backend is stalled.
    pub fn is_stalled(&self) -> bool {
        self.lock().unanswered >= UNANSWERED_QUESTIONS_OF_STALLED
    }

    fn lock(&self) -> MutexGuard<'_, WatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that is watched until this is dropped.
#[derive(Debug)]
pub struct WatchedAttempt {
    watch: Arc<StallWatch>,
    id: u64,
}

impl WatchedAttempt {
    /// Whether its backend is stalled.
    pub fn is_stalled(&self) -> bool {
        self.watch.is_stalled()
    }
}

impl Drop for WatchedAttempt {
    fn drop(&mut self) {
        self.watch.lock().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_question_is_asked_once_an_attempt_waits_for_longer_than_usual() {
        let usual = |millis| {
            let times = AnswerTimes::default();
            (0..20).for_each(|_| times.record(Duration::from_millis(millis)));
            Some(Arc::new(times))
        };
        // The p99 is rounded up to the end of its bucket.
        let table = [(None, 10), (usual(1000), 3), (usual(10_000), 18), (usual(5), 0)];
        for (usual, seconds) in table {
            let sent_at = Instant::now();
            let watch = Arc::new(StallWatch::default());
            let attempt = watch.watch(sent_at, usual);
            assert!(!watch.begin_question(sent_at + S * seconds));
            assert!(watch.begin_question(sent_at + S * seconds + S), "{seconds}");
            assert!(!watch.begin_question(sent_at + S * seconds + S * 2), "it has just been asked");
            drop(attempt);
            assert!(!watch.begin_question(sent_at + S * 100), "nothing waits");
        }
    }

    #[test]
    fn a_backend_is_stalled_after_two_unanswered_questions_until_it_answers() {
        let sent_at = Instant::now();
        let watch = Arc::new(StallWatch::default());
        let attempt = watch.watch(sent_at, None);
        let second = watch.watch(sent_at + S, None);
        assert!(watch.begin_question(sent_at + 11 * S));
        assert_eq!(watch.on_no_answer(sent_at + 16 * S), Unanswered::Undecided);
        assert!(!attempt.is_stalled() && watch.begin_question(sent_at + 16 * S));
        let expected = Unanswered::Stalled { waiting: 2, longest: 21 * S };
        assert_eq!(watch.on_no_answer(sent_at + 21 * S), expected);
        assert!(attempt.is_stalled());
        assert_eq!(watch.oldest_attempt(), Some(sent_at));
        drop((attempt, second));
        assert_eq!(watch.oldest_attempt(), None);
        assert!(watch.begin_question(sent_at + 21 * S), "it is asked until it answers");
        assert_eq!(watch.on_no_answer(sent_at + 26 * S), Unanswered::StillStalled);
        assert!(watch.on_answer() && !watch.is_stalled() && !watch.on_answer());
        assert!(!watch.begin_question(sent_at + 60 * S));
    }

    #[test]
    fn an_answer_between_two_unanswered_questions_counts() {
        let now = Instant::now();
        let watch = StallWatch::default();
        assert_eq!(watch.on_no_answer(now), Unanswered::Undecided);
        assert!(!watch.on_answer());
        assert_eq!(watch.on_no_answer(now), Unanswered::Undecided);
    }
}
