//! Statistics for the status page: a timeline of the last 15 minutes, the attempts of each backend, the usage
//! of each client.
//!
//! Finished exchanges are counted where their records are made; the status page reads snapshots.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::exchange::{ExchangeOutcome, FinishedExchange};
use super::latency_histogram::LatencyHistogram;
use super::recent_trouble::TroubleKind;
use super::refusal_counts::RefusalCounts;
use crate::azure::response::usage::TokenUsage;
use crate::names::{BackendName, ClientName};

/// The length of a step of the timeline.
pub const TIMELINE_STEP_DURATION: Duration = Duration::from_secs(5);
/// The number of steps in the timeline: 15 minutes.
pub const TIMELINE_STEP_COUNT: usize = 180;
/// The number of steps in a minute.
const STEPS_PER_MINUTE: u64 = 12;

/// Counts of the last minutes and since the start of the process.
#[derive(Debug)]
pub struct Statistics {
    started_at: Instant,
    state: Mutex<StatisticsState>,
}

#[derive(Debug, Default)]
struct StatisticsState {
    /// A ring: a step is at its number modulo [`TIMELINE_STEP_COUNT`].
    steps: Vec<TimelineStep>,
    backends: HashMap<BackendName, BackendStatistics>,
    clients: HashMap<ClientName, ClientStatistics>,
    /// Of clients that are unknown or have no names.
    nameless_clients: ClientStatistics,
}

/// Counts of one step of the timeline.
#[derive(Clone, Debug, Default)]
pub struct TimelineStep {
    step_number: u64,
    /// Requests that finished.
    pub finished_requests: u64,
    /// Those that the client saw end with status 429.
    pub throttled_requests: u64,
    /// Those with the outcome `failed`.
    pub failed_requests: u64,
    /// Attempts that followed another attempt of the same request.
    pub failovers: u64,
    /// Attempts that a backend answered with status 429.
    pub throttled_attempts: u64,
    /// Input tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// The highest number of requests in flight in any sample.
    pub max_in_flight: u64,
    /// Times to the first byte of the response body.
    pub time_to_first_byte: LatencyHistogram,
}

/// Counts of one backend.
#[derive(Clone, Debug, Default)]
struct BackendStatistics {
    since_start: AttemptCounts,
    recent_steps: [BackendStep; STEPS_PER_MINUTE as usize],
}

/// Counts of one backend in one step.
#[derive(Clone, Debug, Default)]
struct BackendStep {
    step_number: u64,
    attempts: AttemptCounts,
    answered_latency: LatencyHistogram,
}

/// Attempts at a backend by outcome.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttemptCounts {
    /// Responses with a status below 400.
    pub answered: u64,
    /// Responses with status 429.
    pub throttled: u64,
    /// Attempts without response, and responses with status 408 or 5xx.
    pub failed: u64,
    /// Responses with any other status 4xx.
    pub refused: u64,
    /// Attempts during which the client disconnected.
    pub client_gone: u64,
}

impl AttemptCounts {
    fn count_outcome(&mut self, outcome: &str) {
        match outcome {
            "answered" => self.answered += 1,
            "throttled" => self.throttled += 1,
            "failed" => self.failed += 1,
            "client_gone" => self.client_gone += 1,
            _ => self.refused += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.throttled += other.throttled;
        self.failed += other.failed;
        self.refused += other.refused;
        self.client_gone += other.client_gone;
    }

    /// All attempts.
    pub fn total(&self) -> u64 {
        self.answered + self.throttled + self.failed + self.refused + self.client_gone
    }
}

/// Counts of one client.
#[derive(Clone, Debug, Default)]
struct ClientStatistics {
    since_start: ClientUsage,
    recent_steps: [ClientStep; STEPS_PER_MINUTE as usize],
}

impl ClientStatistics {
    fn count(&mut self, usage: &ClientUsage, step_number: u64) {
        self.since_start.add(usage);
        if let Some(recent) = self.recent_steps.get_mut((step_number % STEPS_PER_MINUTE) as usize) {
            if recent.step_number != step_number {
                *recent = ClientStep { step_number, ..ClientStep::default() };
            }
            recent.usage.add(usage);
        }
    }

    fn activity(&self, name: Option<&ClientName>, is_recent: impl Fn(u64) -> bool) -> ClientActivity {
        let mut last_minute = ClientUsage::default();
        for step in self.recent_steps.iter().filter(|step| is_recent(step.step_number)) {
            last_minute.add(&step.usage);
        }
        ClientActivity { name: name.cloned(), since_start: self.since_start, last_minute }
    }
}

/// Counts of one client in one step.
#[derive(Clone, Copy, Debug, Default)]
struct ClientStep {
    step_number: u64,
    usage: ClientUsage,
}

/// Requests of a client and their tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientUsage {
    /// Requests that finished.
    pub requests: u64,
    /// Input tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Requests that were refused or failed.
    pub refusals: RefusalCounts,
}

impl ClientUsage {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.refusals.add(&other.refusals);
    }
}

/// All statistics at one moment.
#[derive(Debug)]
pub struct StatisticsSnapshot {
    /// The steps up to the current one, oldest first; `None` before the start of the process.
    pub steps: Vec<Option<TimelineStep>>,
    /// By backend.
    pub backends: HashMap<BackendName, BackendActivity>,
    /// By client, in no particular order.
    pub clients: Vec<ClientActivity>,
}

/// The attempts of one backend.
#[derive(Clone, Debug, Default)]
pub struct BackendActivity {
    /// Attempts since the start of the process.
    pub since_start: AttemptCounts,
    /// Attempts in the last minute.
    pub last_minute: AttemptCounts,
    /// How long the answered attempts of the last minute took.
    pub last_minute_latency: LatencyHistogram,
}

/// The usage of one client.
#[derive(Debug)]
pub struct ClientActivity {
    /// The client's name; `None` stands for all clients that are unknown or have no names.
    pub name: Option<ClientName>,
    /// Usage since the start of the process.
    pub since_start: ClientUsage,
    /// Usage in the last minute.
    pub last_minute: ClientUsage,
}

impl Statistics {
    /// Statistics that are all 0, with a timeline from `started_at` on.
    pub fn new(started_at: Instant) -> Self {
        let state = StatisticsState {
            steps: vec![TimelineStep::default(); TIMELINE_STEP_COUNT],
            ..StatisticsState::default()
        };
        Self { started_at, state: Mutex::new(state) }
    }

    /// Counts a finished exchange.
    pub(super) fn record_exchange(
        &self,
        exchange: &FinishedExchange,
        usage: Option<&TokenUsage>,
        now: Instant,
    ) {
        let step_number = self.step_number(now);
        let input_tokens = usage.and_then(|usage| usage.input).unwrap_or_default();
        let output_tokens = usage.and_then(|usage| usage.output).unwrap_or_default();
        // Its turns are requests.
        let requests = u64::from(!exchange.is_opened_websocket());
        let mut usage =
            ClientUsage { requests, input_tokens, output_tokens, refusals: RefusalCounts::default() };
        usage.refusals.count(TroubleKind::of(exchange), exchange.client_status);
        let mut state = self.lock();
        let StatisticsState { steps, backends, clients, nameless_clients } = &mut *state;
        let mut step = get_or_replace_step(steps, step_number);
        for (index, attempt) in exchange.attempts.iter().enumerate() {
            let outcome = attempt.outcome_label();
            if let Some(step) = &mut step {
                step.failovers += u64::from(index > 0);
                step.throttled_attempts += u64::from(outcome == "throttled");
            }
            // `entry()` would clone the name of every attempt; almost all backends are in the map already.
            if !backends.contains_key(&attempt.backend) {
                backends.insert(attempt.backend.clone(), BackendStatistics::default());
            }
            let Some(backend) = backends.get_mut(&attempt.backend) else { continue };
            backend.since_start.count_outcome(outcome);
            let index = (step_number % STEPS_PER_MINUTE) as usize;
            let Some(recent) = backend.recent_steps.get_mut(index) else { continue };
            if recent.step_number != step_number {
                *recent = BackendStep { step_number, ..BackendStep::default() };
            }
            recent.attempts.count_outcome(outcome);
            if outcome == "answered" {
                recent.answered_latency.record(Duration::from_millis(attempt.duration_ms));
            }
        }
        if let Some(step) = step {
            step.finished_requests += requests;
            step.throttled_requests += u64::from(exchange.client_status == Some(429));
            step.failed_requests += u64::from(exchange.outcome == ExchangeOutcome::Failed);
            step.input_tokens += input_tokens;
            step.output_tokens += output_tokens;
            if let Some(first) = exchange.time_to_first_body_byte {
                step.time_to_first_byte.record(first);
            }
        }
        let client = match exchange.client.as_ref().and_then(|client| client.name.as_ref()) {
            None => nameless_clients,
            Some(name) => {
                if !clients.contains_key(name) {
                    clients.insert(name.clone(), ClientStatistics::default());
                }
                let Some(client) = clients.get_mut(name) else { return };
                client
            }
        };
        client.count(&usage, step_number);
    }

    /// Records the number of requests in flight at this moment.
    pub fn record_in_flight(&self, in_flight: u64, now: Instant) {
        let step_number = self.step_number(now);
        if let Some(step) = get_or_replace_step(&mut self.lock().steps, step_number) {
            step.max_in_flight = step.max_in_flight.max(in_flight);
        }
    }

    /// All statistics as they are now.
    pub fn snapshot(&self, now: Instant) -> StatisticsSnapshot {
        let current_step = self.step_number(now);
        let state = self.lock();
        let steps = (0..TIMELINE_STEP_COUNT as u64).map(|index| {
            let wanted = (current_step + index + 1)
                .checked_sub(TIMELINE_STEP_COUNT as u64)
                .filter(|wanted| *wanted > 0)?;
            let step = state.steps.get((wanted % TIMELINE_STEP_COUNT as u64) as usize)?;
            Some(if step.step_number == wanted { step.clone() } else { TimelineStep::default() })
        });
        let is_recent = |step_number: u64| step_number > 0 && step_number + STEPS_PER_MINUTE > current_step;
        let backends = state.backends.iter().map(|(name, backend)| {
            let mut activity =
                BackendActivity { since_start: backend.since_start, ..BackendActivity::default() };
            for step in backend.recent_steps.iter().filter(|step| is_recent(step.step_number)) {
                activity.last_minute.add(&step.attempts);
                activity.last_minute_latency.merge(&step.answered_latency);
            }
            (name.clone(), activity)
        });
        let named_clients = state.clients.iter().map(|(name, client)| client.activity(Some(name), is_recent));
        let clients = named_clients.chain([state.nameless_clients.activity(None, is_recent)]);
        StatisticsSnapshot {
            steps: steps.collect(),
            backends: backends.collect(),
            clients: clients.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, StatisticsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the current step. The first one is 1, so that 0 marks a step that was never used.
    fn step_number(&self, now: Instant) -> u64 {
        let step_number = now.saturating_duration_since(self.started_at).as_millis()
            / TIMELINE_STEP_DURATION.as_millis()
            + 1;
        u64::try_from(step_number).unwrap_or(u64::MAX)
    }
}

impl Default for Statistics {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

/// The step of this number. It replaces an older step at its place in the ring.
fn get_or_replace_step(steps: &mut [TimelineStep], step_number: u64) -> Option<&mut TimelineStep> {
    let step = steps.get_mut((step_number % TIMELINE_STEP_COUNT as u64) as usize)?;
    if step.step_number != step_number {
        *step = TimelineStep { step_number, ..TimelineStep::default() };
    }
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_covers_a_quarter_of_an_hour() {
        let started_at = Instant::now();
        let statistics = Statistics::new(started_at);
        let at = |seconds| started_at + Duration::from_secs(seconds);
        statistics.record_in_flight(3, at(0));
        statistics.record_in_flight(2, at(4));
        statistics.record_in_flight(7, at(5));
        let steps = statistics.snapshot(at(11)).steps;
        let in_flight: Vec<_> =
            steps.iter().map(|step| step.as_ref().map(|step| step.max_in_flight)).collect();
        assert_eq!(in_flight.len(), TIMELINE_STEP_COUNT);
        assert_eq!(in_flight[TIMELINE_STEP_COUNT - 4..], [None, Some(3), Some(7), Some(0)]);
        let later = statistics.snapshot(at(5 + 899)).steps;
        assert_eq!(later[0].as_ref().map(|step| step.max_in_flight), Some(7), "the oldest");
        assert_eq!(
            statistics.snapshot(at(5 + 905)).steps[0].as_ref().map(|step| step.max_in_flight),
            Some(0)
        );
    }
}
