//! Episodes of trouble: what begins, goes on and is over, so that each is told once and not once per event.

use std::time::{Duration, Instant};

use super::backend_state::BackendState;

/// Events with less than this between them belong to one episode.
const QUIET_TIME_OF_EVENTS: Duration = Duration::from_secs(60);
/// A backend that has been healthy for less than this is still in its episode.
const QUIET_TIME_OF_STATE: Duration = Duration::from_secs(30);
/// How often an episode is told while it goes on.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Tells the episodes of events that are counted, such as 429s of a deployment.
#[derive(Debug, Default)]
pub struct EventEpisode {
    known_total: u64,
    current: Option<CurrentEvents>,
}

#[derive(Debug)]
struct CurrentEvents {
    began_at: Instant,
    last_event_at: Instant,
    reported_at: Instant,
    total_before: u64,
    total_at_report: u64,
}

/// What is to be told of an episode of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventNews {
    /// It has begun.
    Began,
    /// It goes on: so many events since it was last told.
    GoesOn {
        /// The events.
        count: u64,
    },
    /// It is over.
    Over {
        /// All of its events.
        count: u64,
        /// From its first event to its last one.
        lasted: Duration,
    },
}

impl EventEpisode {
    /// Takes the number of all events so far, and says what is to be told. Call it once a second.
    pub fn observe(&mut self, total: u64, now: Instant) -> Option<EventNews> {
        let has_new_events = total != self.known_total;
        self.known_total = total;
        let Some(current) = &mut self.current else {
            if !has_new_events {
                return None;
            }
            self.current = Some(CurrentEvents {
                began_at: now,
                last_event_at: now,
                reported_at: now,
                total_before: total.saturating_sub(1),
                total_at_report: total,
            });
            return Some(EventNews::Began);
        };
        if has_new_events {
            current.last_event_at = now;
        }
        if now.saturating_duration_since(current.last_event_at) >= QUIET_TIME_OF_EVENTS {
            let count = total.saturating_sub(current.total_before);
            let lasted = current.last_event_at.saturating_duration_since(current.began_at);
            self.current = None;
            return Some(EventNews::Over { count, lasted });
        }
        if now.saturating_duration_since(current.reported_at) >= REPORT_INTERVAL {
            let count = total.saturating_sub(current.total_at_report);
            current.reported_at = now;
            current.total_at_report = total;
            return (count > 0).then_some(EventNews::GoesOn { count });
        }
        None
    }

    /// Whether an episode goes on.
    pub fn is_current(&self) -> bool {
        self.current.is_some()
    }
}

/// Tells the episodes of a backend's state.
#[derive(Debug, Default)]
pub struct StateEpisode(Option<CurrentState>);

#[derive(Debug)]
struct CurrentState {
    began_at: Instant,
    told: BackendState,
    told_at: Instant,
    good_since: Option<Instant>,
}

/// What is to be told of the state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateNews {
    /// It has got into this state, from a good one or from another one.
    Is(BackendState),
    /// It is in a good state again.
    Over {
        /// For how long it was not.
        lasted: Duration,
    },
}

impl StateEpisode {
    /// Takes the state, and says what is to be told. Call it once a second. A cooldown is no episode of the
    /// backend: the 429s of its deployments are told.
    pub fn observe(&mut self, state: BackendState, now: Instant) -> Option<StateNews> {
        let is_good = state.is_intended() || state == BackendState::Cooling;
        let Some(current) = &mut self.0 else {
            if is_good {
                return None;
            }
            self.0 = Some(CurrentState { began_at: now, told: state, told_at: now, good_since: None });
            return Some(StateNews::Is(state));
        };
        if is_good {
            let good_since = *current.good_since.get_or_insert(now);
            if now.saturating_duration_since(good_since) < QUIET_TIME_OF_STATE {
                return None;
            }
            let lasted = good_since.saturating_duration_since(current.began_at);
            self.0 = None;
            return Some(StateNews::Over { lasted });
        }
        current.good_since = None;
        // What gets worse is told at once.
        let is_due =
            state > current.told || now.saturating_duration_since(current.told_at) >= REPORT_INTERVAL;
        if state == current.told || !is_due {
            return None;
        }
        (current.told, current.told_at) = (state, now);
        Some(StateNews::Is(state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn an_episode_of_events_is_told_when_it_begins_each_minute_and_when_it_is_over() {
        let start = Instant::now();
        let mut episode = EventEpisode::default();
        let mut told = Vec::new();
        let mut total = 0;
        for second in 0..400_u32 {
            // Three events a second for 130 s, and one more after another 50 s.
            total += match second {
                10..140 => 3,
                190 => 1,
                _ => 0,
            };
            if let Some(news) = episode.observe(total, start + second * S) {
                told.push((second, news));
            }
            assert_eq!(episode.is_current(), (10..250).contains(&second), "{second}");
        }
        let expected = [
            (10, EventNews::Began),
            (70, EventNews::GoesOn { count: 180 }),
            (130, EventNews::GoesOn { count: 180 }),
            (190, EventNews::GoesOn { count: 28 }),
            (250, EventNews::Over { count: 389, lasted: 180 * S }),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn an_episode_of_a_backend_is_told_once_and_when_it_gets_worse_and_when_it_is_over() {
        use BackendState::{BreakerOpen, Cooling, Failing, Healthy, Stalled};
        let start = Instant::now();
        let mut episode = StateEpisode::default();
        let mut told = Vec::new();
        for second in 0..300_u32 {
            let state = match second {
                10..15 | 40..42 => Failing,
                15..30 => BreakerOpen,
                // Healthy for ten seconds: not over yet.
                30..40 => Healthy,
                42..60 | 100..120 => Stalled,
                60..100 => BreakerOpen,
                120..130 => Cooling,
                _ => Healthy,
            };
            if let Some(news) = episode.observe(state, start + second * S) {
                told.push((second, news));
            }
        }
        let expected = [
            (10, StateNews::Is(Failing)),
            (15, StateNews::Is(BreakerOpen)),
            (42, StateNews::Is(Stalled)),
            (150, StateNews::Over { lasted: 110 * S }),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_state_that_stays_better_is_told_after_a_minute() {
        let start = Instant::now();
        let mut episode = StateEpisode::default();
        assert!(episode.observe(BackendState::Stalled, start).is_some());
        assert_eq!(episode.observe(BackendState::Failing, start + 59 * S), None);
        let news = episode.observe(BackendState::Failing, start + 60 * S);
        assert_eq!(news, Some(StateNews::Is(BackendState::Failing)));
    }
}
