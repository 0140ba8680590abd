//! The last minutes in numbers, for people who watch: what happened in each step of time, how each
//! backend fares, what each client used. Counted by the records' thread.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::exchange::{Exchange, Outcome};
use crate::azure::response::usage::Usage;
use crate::names::{BackendName, ClientName};

/// The length of a step.
pub const STEP: Duration = Duration::from_secs(5);
/// Steps that are remembered: a quarter of an hour.
pub const STEPS: usize = 180;
/// Steps of the last minute.
const MINUTE: u64 = 12;

/// What is counted.
#[derive(Debug)]
pub struct Tally {
    birth: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// By the step's number, modulo their count.
    steps: Vec<Step>,
    backends: HashMap<BackendName, PerBackend>,
    clients: HashMap<ClientName, PerClient>,
}

/// What happened in one step of time.
#[derive(Clone, Debug, Default)]
pub struct Step {
    number: u64,
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that clients were refused with 429.
    pub throttled: u64,
    /// Those that failed.
    pub failed: u64,
    /// Tries that followed another.
    pub failovers: u64,
    /// Tries that a backend answered with 429.
    pub retries_429: u64,
    /// Tokens.
    pub input_tokens: u64,
    /// Tokens.
    pub output_tokens: u64,
    /// The most requests that were seen under way.
    pub in_flight: u64,
    /// Until the first byte of answers.
    pub first_byte: Latencies,
}

/// How one backend fares.
#[derive(Clone, Debug, Default)]
pub struct PerBackend {
    /// Since the start of the process.
    pub total: Tries,
    recent: [(u64, Tries, Latencies); MINUTE as usize],
}

/// Tries on a backend by what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    /// A reply that was not one of the others.
    pub answered: u64,
    /// 429.
    pub throttled: u64,
    /// No reply, 408, 5xx.
    pub failed: u64,
    /// Another 4xx.
    pub refused: u64,
    /// The client left.
    pub client_gone: u64,
}

impl Tries {
    fn count(&mut self, outcome: &str) {
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

    /// All of them.
    pub fn all(&self) -> u64 {
        self.answered + self.throttled + self.failed + self.refused + self.client_gone
    }
}

/// What one client used.
#[derive(Clone, Debug, Default)]
pub struct PerClient {
    /// Since the start of the process.
    pub total: Used,
    recent: [(u64, Used); MINUTE as usize],
}

/// Requests and their tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Requests that ended.
    pub requests: u64,
    /// Tokens.
    pub input_tokens: u64,
    /// Tokens.
    pub output_tokens: u64,
}

impl Used {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
    }
}

/// How long things took, to within an eighth.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// By powers of 1.25 milliseconds.
    counts: [u32; 64],
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; 64] }
    }
}

impl Latencies {
    const STEP: f64 = 1.25;

    fn add(&mut self, length: Duration) {
        let ms = length.as_secs_f64() * 1000.0;
        // Below a millisecond is the first, above half an hour the last; the cast saturates.
        let bucket = (ms.max(1.0).ln() / Self::STEP.ln()) as usize;
        if let Some(count) = self.counts.get_mut(bucket.min(63)) {
            *count = count.saturating_add(1);
        }
    }

    fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    /// The milliseconds within which this part of all were; `None` where there was none.
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let all: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let wanted = (all as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return Some(Self::STEP.powf(bucket as f64 + 0.5).round() as u64);
            }
        }
        None
    }
}

/// Everything that is counted, as it is at a moment.
#[derive(Debug)]
pub struct Told {
    /// The steps that are over and the one under way, oldest first; `None` before the start.
    pub steps: Vec<Option<Step>>,
    /// By backend: since the start, in the last minute, and how long tries took then.
    pub backends: HashMap<BackendName, (Tries, Tries, Latencies)>,
    /// By client: since the start and in the last minute.
    pub clients: Vec<(ClientName, Used, Used)>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(birth: Instant) -> Self {
        let counts = Counts { steps: vec![Step::default(); STEPS], ..Counts::default() };
        Self { birth, counts: Mutex::new(counts) }
    }

    /// Counts a request that is over, whose tries became what `outcome` says.
    pub(super) fn observe<'o>(
        &self,
        exchange: &Exchange,
        outcomes: impl Iterator<Item = &'o str>,
        usage: Option<&Usage>,
        now: Instant,
    ) {
        let number = self.number(now);
        let (input, output) =
            usage.map_or((0, 0), |usage| (usage.input.unwrap_or_default(), usage.output.unwrap_or_default()));
        let used = Used { requests: 1, input_tokens: input, output_tokens: output };
        let mut counts = self.lock();
        let Counts { steps, backends, clients } = &mut *counts;
        let mut step = step(steps, number);
        for (n, (attempt, outcome)) in exchange.attempts.iter().zip(outcomes).enumerate() {
            if let Some(step) = &mut step {
                step.failovers += u64::from(n > 0);
                step.retries_429 += u64::from(outcome == "throttled");
            }
            // Most are known.
            if !backends.contains_key(&attempt.backend) {
                backends.insert(attempt.backend.clone(), PerBackend::default());
            }
            let Some(backend) = backends.get_mut(&attempt.backend) else { continue };
            backend.total.count(outcome);
            let Some(recent) = backend.recent.get_mut((number % MINUTE) as usize) else { continue };
            if recent.0 != number {
                *recent = (number, Tries::default(), Latencies::default());
            }
            recent.1.count(outcome);
            if outcome == "answered" {
                recent.2.add(Duration::from_millis(attempt.ms));
            }
        }
        if let Some(step) = step {
            step.requests += 1;
            step.throttled += u64::from(exchange.status == Some(429));
            step.failed += u64::from(exchange.outcome == Outcome::Failed);
            step.input_tokens += input;
            step.output_tokens += output;
            if let Some(first) = exchange.first_byte {
                step.first_byte.add(first);
            }
        }
        let Some(name) = exchange.client.as_ref().and_then(|client| client.name.as_ref()) else { return };
        if !clients.contains_key(name) {
            clients.insert(name.clone(), PerClient::default());
        }
        let Some(client) = clients.get_mut(name) else { return };
        client.total.add(&used);
        if let Some(recent) = client.recent.get_mut((number % MINUTE) as usize) {
            if recent.0 != number {
                *recent = (number, Used::default());
            }
            recent.1.add(&used);
        }
    }

    /// Takes note of how many requests are under way.
    pub fn sample(&self, in_flight: u64, now: Instant) {
        let number = self.number(now);
        if let Some(step) = step(&mut self.lock().steps, number) {
            step.in_flight = step.in_flight.max(in_flight);
        }
    }

    /// How things are.
    pub fn told(&self, now: Instant) -> Told {
        let number = self.number(now);
        let counts = self.lock();
        let steps = (0..STEPS as u64).map(|n| {
            let wanted = (number + n + 1).checked_sub(STEPS as u64).filter(|wanted| *wanted > 0)?;
            let known = counts.steps.get((wanted % STEPS as u64) as usize)?;
            Some(if known.number == wanted { known.clone() } else { Step::default() })
        });
        let is_recent = |of: u64| of > 0 && of + MINUTE > number;
        let backends = counts.backends.iter().map(|(name, backend)| {
            let (mut tries, mut took) = (Tries::default(), Latencies::default());
            for (_, more, latencies) in backend.recent.iter().filter(|recent| is_recent(recent.0)) {
                tries.add(more);
                took.merge(latencies);
            }
            (name.clone(), (backend.total, tries, took))
        });
        let clients = counts.clients.iter().map(|(name, client)| {
            let mut used = Used::default();
            client.recent.iter().filter(|recent| is_recent(recent.0)).for_each(|recent| used.add(&recent.1));
            (name.clone(), client.total, used)
        });
        Told { steps: steps.collect(), backends: backends.collect(), clients: clients.collect() }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the step under way, from 1.
    fn number(&self, now: Instant) -> u64 {
        let number = now.saturating_duration_since(self.birth).as_millis() / STEP.as_millis() + 1;
        u64::try_from(number).unwrap_or(u64::MAX)
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

/// The step of this number, which may be a new one.
fn step(steps: &mut [Step], number: u64) -> Option<&mut Step> {
    let step = steps.get_mut((number % STEPS as u64) as usize)?;
    if step.number != number {
        *step = Step { number, ..Step::default() };
    }
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_an_eighth() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for ms in 1..=1000 {
            latencies.add(Duration::from_millis(ms));
        }
        for (part, expected) in [(0.5, 500.0), (0.95, 950.0)] {
            let found = latencies.quantile(part).unwrap() as f64;
            assert!((found / expected - 1.0).abs() < 0.13, "{part}: {found}");
        }
        let mut extremes = Latencies::default();
        extremes.add(Duration::ZERO);
        extremes.add(Duration::from_secs(1_000_000));
        assert_eq!(extremes.quantile(0.0), Some(1));
        assert!(extremes.quantile(1.0).unwrap() > 1_000_000);
    }

    #[test]
    fn a_quarter_of_an_hour_is_remembered() {
        let birth = Instant::now();
        let tally = Tally::new(birth);
        let at = |seconds| birth + Duration::from_secs(seconds);
        tally.sample(3, at(0));
        tally.sample(2, at(4));
        tally.sample(7, at(5));
        let steps = tally.told(at(11)).steps;
        let in_flight: Vec<_> = steps.iter().map(|step| step.as_ref().map(|step| step.in_flight)).collect();
        assert_eq!(in_flight.len(), STEPS);
        assert_eq!(in_flight[STEPS - 4..], [None, Some(3), Some(7), Some(0)]);
        let later = tally.told(at(5 + 899)).steps;
        assert_eq!(later[0].as_ref().map(|step| step.in_flight), Some(7), "the oldest");
        assert_eq!(tally.told(at(5 + 905)).steps[0].as_ref().map(|step| step.in_flight), Some(0));
    }
}
