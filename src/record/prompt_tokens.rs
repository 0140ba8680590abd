//! How many input tokens were read from prompt caches, by deployment and backend: for the status page, and for
//! `balance: prompt_cache`.
//!
//! Finished exchanges are counted where their records are made; the status page reads sums of the last minutes.

use std::collections::{HashMap, HashSet};
use std::iter::Sum;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::azure::response::usage::TokenUsage;
use crate::names::{BackendName, DeploymentName};

/// The sums are of this time.
const WINDOW_MINUTES: usize = 15;
const MINUTE: Duration = Duration::from_secs(60);

/// Input tokens by what the prompt cache did with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptTokens {
    /// Read from a cache.
    pub cached: u64,
    /// Written to a cache, by models that bill that.
    pub written: u64,
    /// Neither.
    pub plain: u64,
}

impl Sum for PromptTokens {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, tokens| {
            sum.add(tokens);
            sum
        })
    }
}

/// Input tokens of the last minutes, by deployment and backend.
#[derive(Debug)]
pub struct PromptTokenStatistics {
    started_at: Instant,
    /// Deployments, by the client's name, whose backends have reported tokens that were written to a cache.
    billing_writes: ArcSwap<HashSet<DeploymentName>>,
    /// By deployment, then by backend, so that neither name is cloned to look one up.
    counted: Mutex<HashMap<DeploymentName, HashMap<BackendName, RecentTokens>>>,
}

#[derive(Debug, Default)]
struct RecentTokens {
    /// A ring: a minute is at its number modulo the length.
    minutes: [MinuteTokens; WINDOW_MINUTES],
}

impl RecentTokens {
    /// Counts tokens in the minute of this number.
    fn add(&mut self, number: u64, tokens: PromptTokens) {
        let Some(minute) = self.minutes.get_mut((number % WINDOW_MINUTES as u64) as usize) else { return };
        if minute.number != number {
            *minute = MinuteTokens { number, tokens: PromptTokens::default() };
        }
        minute.tokens.add(tokens);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct MinuteTokens {
    /// From 1; 0 is unused.
    number: u64,
    tokens: PromptTokens,
}

impl PromptTokens {
    /// The tokens of a response; `None` if it reports no input tokens.
    pub fn of(usage: &TokenUsage) -> Option<Self> {
        let input = usage.input?;
        let cached = usage.cached.unwrap_or(0).min(input);
        let written = usage.cache_write.unwrap_or(0).min(input - cached);
        Some(Self { cached, written, plain: input - cached - written })
    }

    /// Each count with its name.
    pub fn by_kind(self) -> [(&'static str, u64); 3] {
        [("cached", self.cached), ("written", self.written), ("plain", self.plain)]
    }

    /// The share of the tokens that was read from a cache; `None` without tokens.
    pub fn cached_share(self) -> Option<f64> {
        let total = self.cached + self.written + self.plain;
        (total > 0).then(|| self.cached as f64 / total as f64)
    }

    fn add(&mut self, other: Self) {
        self.cached += other.cached;
        self.written += other.written;
        self.plain += other.plain;
    }
}

impl PromptTokenStatistics {
    /// Counts from now on; no later call may pass an earlier `now`.
    pub fn new(now: Instant) -> Self {
        Self { started_at: now, billing_writes: ArcSwap::default(), counted: Mutex::default() }
    }

    /// Counts the input tokens of a response.
    pub(super) fn record(
        &self,
        deployment: &DeploymentName,
        backend: &BackendName,
        tokens: PromptTokens,
        now: Instant,
    ) {
        let number = self.minute(now);
        let mut counted = self.lock();
        if let Some(recent) = counted.get_mut(deployment).and_then(|backends| backends.get_mut(backend)) {
            return recent.add(number, tokens);
        }
        let backends = counted.entry(deployment.clone()).or_default();
        backends.entry(backend.clone()).or_default().add(number, tokens);
    }

    /// Notes that a backend has reported, for this deployment, tokens that were written to a cache.
    pub(super) fn note_billed_writes(&self, deployment: &DeploymentName) {
        if !self.bills_cache_writes(deployment) {
            self.billing_writes.rcu(|known| {
                let mut known = HashSet::clone(known);
                known.insert(deployment.clone());
                known
            });
        }
    }

    /// Whether writing to the prompt cache is billed for this deployment, as far as its backends have reported.
    pub fn bills_cache_writes(&self, deployment: &DeploymentName) -> bool {
        self.billing_writes.load().contains(deployment)
    }

    /// The tokens of the last minutes of a deployment, by backend.
    pub fn of_deployment(
        &self,
        deployment: &DeploymentName,
        now: Instant,
    ) -> HashMap<BackendName, PromptTokens> {
        let current = self.minute(now);
        let counted = self.lock();
        let backends = counted.get(deployment).into_iter().flatten();
        let sums = backends.map(|(backend, recent)| {
            let is_recent =
                |minute: &&MinuteTokens| minute.number > 0 && minute.number + WINDOW_MINUTES as u64 > current;
            let sum = recent.minutes.iter().filter(is_recent).map(|minute| minute.tokens).sum();
            (backend.clone(), sum)
        });
        sums.collect()
    }

    fn minute(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started_at).as_secs() / MINUTE.as_secs() + 1
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentName, HashMap<BackendName, RecentTokens>>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_cached_written_or_plain() {
        let usage =
            |input, cached, cache_write| TokenUsage { input, cached, cache_write, ..TokenUsage::default() };
        for (usage, expected) in [
            (usage(None, Some(3), None), None),
            (usage(Some(10), None, None), Some((0, 0, 10))),
            (usage(Some(10), Some(4), None), Some((4, 0, 6))),
            (usage(Some(10), Some(4), Some(5)), Some((4, 5, 1))),
            (usage(Some(10), Some(4), Some(7)), Some((4, 6, 0))),
            (usage(Some(10), Some(11), Some(7)), Some((10, 0, 0))),
        ] {
            let tokens = PromptTokens::of(&usage);
            let counts = tokens.map(|tokens| (tokens.cached, tokens.written, tokens.plain));
            assert_eq!(counts, expected, "{usage:?}");
        }
    }

    #[test]
    fn sums_are_of_the_last_quarter_of_an_hour() {
        let start = Instant::now();
        let statistics = PromptTokenStatistics::new(start);
        let at = |minute| start + minute * MINUTE;
        let deployment = |name| DeploymentName::parse(name).unwrap();
        let (a, b) = (BackendName::new("a"), BackendName::new("b"));
        let tokens = |cached, plain| PromptTokens { cached, written: 0, plain };
        statistics.record(&deployment("x"), &a, tokens(1, 3), at(0));
        statistics.record(&deployment("X"), &a, tokens(10, 10), at(14));
        statistics.record(&deployment("x"), &b, tokens(0, 5), at(14));
        let share = |name, backend, minute| {
            let sums = statistics.of_deployment(&deployment(name), at(minute));
            sums.get(backend).and_then(|tokens: &PromptTokens| tokens.cached_share())
        };
        assert_eq!(share("x", &a, 14), Some(11.0 / 24.0));
        assert_eq!(share("x", &a, 15), Some(0.5));
        assert_eq!(share("x", &b, 15), Some(0.0));
        assert_eq!(share("x", &a, 29), None);
        assert_eq!(share("y", &a, 14), None);
    }

    #[test]
    fn models_that_bill_writes_are_known_by_what_their_backends_tell() {
        let statistics = PromptTokenStatistics::new(Instant::now());
        let name = |name| DeploymentName::parse(name).unwrap();
        assert!(!statistics.bills_cache_writes(&name("x")));
        statistics.note_billed_writes(&name("x"));
        assert!(statistics.bills_cache_writes(&name("X")) && !statistics.bills_cache_writes(&name("y")));
    }
}
