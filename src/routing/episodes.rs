//! Episodes of trouble: what begins, goes on and is over, so that each is told once and not once per event.

use std::time::{Duration, Instant};

use super::health::backend_state::BackendState;
use super::service_state::ServiceState;

/// Events with less than this between them belong to one episode.
const QUIET_TIME_OF_EVENTS: Duration = Duration::from_secs(60);
/// What has been in a good state for less than this is still in its episode.
const QUIET_TIME_OF_STATE: Duration = Duration::from_secs(30);
/// The longest time without trouble within an episode.
const MAX_QUIET_TIME: Duration = Duration::from_secs(600);
/// How often an episode is told while it goes on.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// How long there has to be no trouble for an episode to be over. It doubles each time that the trouble comes back
/// soon: what comes and goes all day is then one episode, and not one each minute.
#[derive(Debug)]
struct QuietTime {
    initial: Duration,
    current: Duration,
    last_end: Option<Instant>,
}

/// Tells the episodes of events that are counted, such as 429s of a deployment.
#[derive(Debug)]
pub struct EventEpisode {
    known_total: u64,
    current: Option<CurrentEvents>,
    quiet_time: QuietTime,
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

/// A state whose episodes are told.
pub trait EpisodeState: Copy + Ord {
    /// Whether there is nothing to tell of it.
    fn is_good(self) -> bool;

    /// Whether the other state is the same trouble in another stage.
    fn is_same_trouble(self, other: Self) -> bool;
}

/// Tells the episodes of a state.
#[derive(Debug)]
pub struct StateEpisode<S> {
    current: Option<CurrentState<S>>,
    quiet_time: QuietTime,
}

#[derive(Debug)]
struct CurrentState<S> {
    began_at: Instant,
    told: S,
    told_at: Instant,
    good_since: Option<Instant>,
}

/// What is to be told of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateNews<S> {
    /// It has become this, from a good one or from another one.
    Is(S),
    /// It is a good one again.
    Over {
        /// For how long it was not.
        lasted: Duration,
    },
}

impl QuietTime {
    fn new(initial: Duration) -> Self {
        Self { initial, current: initial, last_end: None }
    }

    /// An episode begins.
    fn on_begin(&mut self, now: Instant) {
        let is_soon = |end: Instant| now.saturating_duration_since(end) < MAX_QUIET_TIME;
        self.current = match self.last_end {
            Some(end) if is_soon(end) => (self.current * 2).min(MAX_QUIET_TIME),
            _ => self.initial,
        };
    }

    /// Whether an episode ends without trouble since this time.
    fn is_over(&mut self, quiet_since: Instant, now: Instant) -> bool {
        let is_over = now.saturating_duration_since(quiet_since) >= self.current;
        if is_over {
            self.last_end = Some(now);
        }
        is_over
    }
}

impl Default for EventEpisode {
    fn default() -> Self {
        Self { known_total: 0, current: None, quiet_time: QuietTime::new(QUIET_TIME_OF_EVENTS) }
    }
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
            self.quiet_time.on_begin(now);
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
        if self.quiet_time.is_over(current.last_event_at, now) {
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

    /// Whether there was an event in the last minute.
    pub fn has_recent_event(&self, now: Instant) -> bool {
        let is_recent = |current: &CurrentEvents| {
            now.saturating_duration_since(current.last_event_at) < QUIET_TIME_OF_EVENTS
        };
        self.current.as_ref().is_some_and(is_recent)
    }
}

impl<S> Default for StateEpisode<S> {
    fn default() -> Self {
        Self { current: None, quiet_time: QuietTime::new(QUIET_TIME_OF_STATE) }
    }
}

impl<S: EpisodeState> StateEpisode<S> {
    /// Takes the state, and says what is to be told. Call it once a second.
    pub fn observe(&mut self, state: S, now: Instant) -> Option<StateNews<S>> {
        let Some(current) = &mut self.current else {
            if state.is_good() {
                return None;
            }
            self.quiet_time.on_begin(now);
            self.current = Some(CurrentState { began_at: now, told: state, told_at: now, good_since: None });
            return Some(StateNews::Is(state));
        };
        if state.is_good() {
            let good_since = *current.good_since.get_or_insert(now);
            if !self.quiet_time.is_over(good_since, now) {
                return None;
            }
            let lasted = good_since.saturating_duration_since(current.began_at);
            self.current = None;
            return Some(StateNews::Over { lasted });
        }
        current.good_since = None;
        if state == current.told || state.is_same_trouble(current.told) {
            return None;
        }
        // What gets worse is told at once.
        let is_due =
            state > current.told || now.saturating_duration_since(current.told_at) >= REPORT_INTERVAL;
        if !is_due {
            return None;
        }
        (current.told, current.told_at) = (state, now);
        Some(StateNews::Is(state))
    }
}

impl EpisodeState for BackendState {
    /// A cooldown is no episode of the backend: the 429s of its deployments are told.
    fn is_good(self) -> bool {
        self.is_intended() || self == Self::Cooling
    }

    /// A circuit breaker opens and tries again as long as a backend fails.
    fn is_same_trouble(self, other: Self) -> bool {
        matches!((self, other), (Self::BreakerOpen, Self::Failing) | (Self::Failing, Self::BreakerOpen))
    }
}

impl EpisodeState for ServiceState {
    fn is_good(self) -> bool {
        Self::is_good(self)
    }

    fn is_same_trouble(self, _: Self) -> bool {
        false
    }
}

/// A duration as people write it: `45s`, `12m`, `3h 20m`.
pub fn duration_in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) if minutes < 10 => format!("{minutes}m {}s", seconds % 60),
        (0, minutes, _) => format!("{minutes}m"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
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
            let is_recent = episode.has_recent_event(start + second * S);
            assert_eq!(is_recent, (10..250).contains(&second), "{second}");
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
                42..60 => Stalled,
                60..120 => BreakerOpen,
                120..130 => Cooling,
                _ => Healthy,
            };
            if let Some(news) = episode.observe(state, start + second * S) {
                told.push((second, news));
            }
        }
        let expected = [
            (10, StateNews::Is(Failing)),
            (42, StateNews::Is(Stalled)),
            (102, StateNews::Is(BreakerOpen)),
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

    #[test]
    fn trouble_that_comes_and_goes_is_one_episode_in_the_end() {
        let (start, hour) = (Instant::now(), 3600_u32);
        let (mut state, mut events) = (StateEpisode::default(), EventEpisode::default());
        let (mut told_states, mut told_events, mut total) = (Vec::new(), Vec::new(), 0);
        for second in 0..2 * hour {
            // Five seconds of trouble every two minutes for an hour.
            let is_trouble = second < hour && second % 120 < 5;
            total += u64::from(is_trouble);
            let current = if is_trouble { BackendState::Failing } else { BackendState::Healthy };
            let now = start + second * S;
            told_states.extend(state.observe(current, now).map(|_| second));
            told_events.extend(events.observe(total, now).map(|news| (second, news)));
        }
        // Over after 30 s without trouble, after 60 s, and then not before the end: 120 s are too many.
        assert_eq!(told_states, [0, 35, 120, 185, 240, 3605]);
        told_events.retain(|(_, news)| !matches!(news, EventNews::GoesOn { .. }));
        let times: Vec<u32> = told_events.iter().map(|(second, _)| *second).collect();
        assert_eq!(times, [0, 64, 120, 3604]);
        // What comes back after a long time is told as early as before.
        assert_eq!(
            state.observe(BackendState::Failing, start + 3 * hour * S),
            Some(StateNews::Is(BackendState::Failing))
        );
        assert_eq!(state.observe(BackendState::Healthy, start + (3 * hour + 1) * S), None);
        let over = state.observe(BackendState::Healthy, start + (3 * hour + 31) * S);
        assert_eq!(over, Some(StateNews::Over { lasted: S }));
    }

    #[test]
    fn durations_are_as_exact_as_people_need_them() {
        let table =
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (754, "12m"), (3600, "1h 0m"), (12_000, "3h 20m")];
        for (seconds, expected) in table {
            assert_eq!(duration_in_words(Duration::from_secs(seconds)), expected);
        }
    }
}
