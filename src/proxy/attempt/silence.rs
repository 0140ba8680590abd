//! An attempt that waits for its response: after a second it is watched, and after half a minute it leaves a backend
//! that is stalled (`routing/health/stall.rs`).

use std::time::{Duration, Instant};

use super::deadline::{AttemptDeadline, DeadlineAction};
use crate::routing::health::stall::{STALL_QUESTION_INTERVAL, WATCHED_AFTER, WatchedAttempt};

/// How long an attempt waits at least before it leaves a stalled backend: a model may only be thinking.
const MIN_SILENCE: Duration = Duration::from_secs(30);

/// What is known of the silence of the current attempt's backend.
#[derive(Default)]
pub(in crate::proxy) struct Silence {
    sent_at: Option<Instant>,
    next_check: Option<Instant>,
    watched: Option<WatchedAttempt>,
}

impl Silence {
    /// The request has been sent completely, and no response has begun.
    pub(in crate::proxy) fn begin(&mut self, now: Instant) {
        self.sent_at = Some(now);
        self.next_check = Some(now + WATCHED_AFTER);
    }

    /// The response has begun, or the attempt has ended.
    pub(in crate::proxy) fn end(&mut self) {
        *self = Self::default();
    }

    /// When to call [`Silence::check`].
    pub(in crate::proxy) fn deadline(&self) -> Option<AttemptDeadline> {
        self.next_check.map(|at| AttemptDeadline { at, action: DeadlineAction::CheckSilence })
    }

    /// Begins to watch the attempt with `watch`, and says whether to leave the backend.
    pub(in crate::proxy) fn check(
        &mut self,
        now: Instant,
        watch: impl FnOnce(Instant) -> Option<WatchedAttempt>,
    ) -> bool {
        let Some(sent_at) = self.sent_at else { return false };
        match &self.watched {
            None => {
                self.watched = watch(sent_at);
                self.next_check = Some(sent_at + MIN_SILENCE);
                false
            }
            Some(watched) => {
                self.next_check = Some(now + STALL_QUESTION_INTERVAL);
                watched.is_stalled()
            }
        }
    }
}
