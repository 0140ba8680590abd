//! What a backend asked for or suffers from, and until when: cooldown, absence, credential.
//!
//! State lives in cells that outlive a configuration, keyed by name, and are read without a
//! lock. What a reply means is `azure/verdict.rs`'s; which cell it marks is `gateway.rs`'s.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::azure::Operation;
use crate::names::{BackendName, Deployment};

/// How many operations there are; `Other` is the last of them.
const OPERATIONS: usize = Operation::Other as usize + 1;

/// Why something rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Azure asked to wait (429, or `retry-after` on another refusal).
    Cooling,
    /// The resource does not have the deployment, the model or the api-version.
    Absent,
    /// The resource refuses our credential, or all keys, or our network.
    Credential,
    /// The credential may not do this operation.
    PermissionDenied,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Cooling, Self::Absent, Self::Credential, Self::PermissionDenied];

    /// The word for it in the status API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cooling => "cooling",
            Self::Absent => "absent",
            Self::Credential => "credential",
            Self::PermissionDenied => "permission",
        }
    }
}

/// A rest: why and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Why.
    pub reason: Reason,
    /// The first moment at which it is over.
    pub until: Instant,
}

/// One thing that can rest. Milliseconds since the memory's birth and the reason share one
/// word, so readers never see half of a change.
#[derive(Debug)]
pub struct Cell {
    birth: Instant,
    word: AtomicU64,
}

impl Cell {
    fn new(birth: Instant) -> Self {
        Self { birth, word: AtomicU64::new(0) }
    }

    /// Rests until the given moment, unless a longer rest is already under way. Returns
    /// whether it was awake before: the moment to log, once per incident.
    pub fn rest(&self, rest: Rest, now: Instant) -> bool {
        let millis = rest.until.saturating_duration_since(self.birth).as_micros().div_ceil(1000);
        let millis = u64::try_from(millis).unwrap_or(u64::MAX >> 8);
        let word = (millis << 8) | (rest.reason as u64);
        let before = self.word.fetch_max(word, Ordering::AcqRel);
        self.decode(before, now).is_none()
    }

    /// The rest under way, if any.
    pub fn resting(&self, now: Instant) -> Option<Rest> {
        self.decode(self.word.load(Ordering::Acquire), now)
    }

    /// Ends the rest: it answered.
    pub fn wake(&self) {
        if self.word.load(Ordering::Relaxed) != 0 {
            self.word.store(0, Ordering::Release);
        }
    }

    fn decode(&self, word: u64, now: Instant) -> Option<Rest> {
        if word == 0 {
            return None;
        }
        let until = self.birth + Duration::from_millis(word >> 8);
        let reason = Reason::ALL.get((word & 0xff) as usize).copied()?;
        (until > now).then_some(Rest { reason, until })
    }
}

/// What is remembered of one deployment on one backend.
#[derive(Debug)]
pub struct DeploymentMemory {
    /// Its rests.
    pub cell: Cell,
    /// It refused `stream_options`, so it is no longer asked for the usage of a stream.
    pub declines_usage: AtomicBool,
}

/// What is remembered of one backend over reloads.
#[derive(Debug)]
pub struct BackendMemory {
    birth: Instant,
    /// Rests while the resource refuses our credential.
    pub credential: Cell,
    operations: [Cell; OPERATIONS],
    deployments: Mutex<HashMap<String, Arc<DeploymentMemory>>>,
    /// Attempts under way.
    pub in_flight: AtomicUsize,
    /// Attempts begun since the process started.
    pub attempts: AtomicU64,
}

impl BackendMemory {
    fn new(birth: Instant) -> Self {
        Self {
            birth,
            credential: Cell::new(birth),
            operations: std::array::from_fn(|_| Cell::new(birth)),
            deployments: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            attempts: AtomicU64::new(0),
        }
    }

    /// An attempt on it begins.
    pub fn attempt_begins(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt on it has ended.
    pub fn attempt_ends(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// The cell of one operation.
    pub fn operation(&self, operation: Operation) -> &Cell {
        // In bounds by the definition of OPERATIONS.
        &self.operations[operation as usize]
    }

    /// What is remembered of one of its deployments, by the name the resource knows; `None`
    /// is for calls that name no deployment.
    pub fn deployment(&self, upstream: Option<&Deployment>) -> Arc<DeploymentMemory> {
        let key = upstream.map(Deployment::key).unwrap_or_default();
        let mut known = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            || DeploymentMemory { cell: Cell::new(self.birth), declines_usage: AtomicBool::new(false) };
        Arc::clone(known.entry(key).or_insert_with(|| Arc::new(fresh())))
    }

    /// All deployments that rest now, by upstream name.
    pub fn resting(&self, now: Instant) -> Vec<(String, Rest)> {
        let known = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = |(name, memory): (&String, &Arc<DeploymentMemory>)| {
            Some((name.clone(), memory.cell.resting(now)?))
        };
        let mut resting: Vec<_> = known.iter().filter_map(rest).collect();
        resting.sort_by(|a, b| a.0.cmp(&b.0));
        resting
    }
}

/// What is remembered over reloads, by backend name.
#[derive(Debug)]
pub struct Memory {
    birth: Instant,
    backends: Mutex<HashMap<BackendName, Arc<BackendMemory>>>,
}

impl Memory {
    /// An empty memory; `now` is the zero of its clock.
    pub fn new(now: Instant) -> Self {
        Self { birth: now, backends: Mutex::default() }
    }

    /// What is remembered of this backend.
    pub fn backend(&self, name: &BackendName) -> Arc<BackendMemory> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let birth = self.birth;
        Arc::clone(backends.entry(name.clone()).or_insert_with(|| Arc::new(BackendMemory::new(birth))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_rests_until_its_time_and_longer_rests_win() {
        let now = Instant::now();
        let memory = Memory::new(now);
        let cell = memory.backend(&BackendName::new("a")).deployment(None);
        let cell = &cell.cell;
        assert_eq!(cell.resting(now), None);
        let rest = |ms| Rest { reason: Reason::Cooling, until: now + Duration::from_millis(ms) };
        assert!(cell.rest(rest(100), now));
        assert!(!cell.rest(rest(50), now), "already resting");
        assert_eq!(cell.resting(now + Duration::from_millis(99)), Some(rest(100)));
        assert_eq!(cell.resting(now + Duration::from_millis(100)), None);
        assert!(cell.rest(rest(300), now + Duration::from_millis(200)), "awake again before");
        cell.wake();
        assert_eq!(cell.resting(now), None);
    }

    #[test]
    fn memory_is_found_again_by_name() {
        let now = Instant::now();
        let memory = Memory::new(now);
        let (a, d) = (BackendName::new("a"), Deployment::parse("GPT").unwrap());
        let until = now + Duration::from_secs(1);
        memory.backend(&a).deployment(Some(&d)).cell.rest(Rest { reason: Reason::Absent, until }, now);
        let same = Deployment::parse("gpt").unwrap();
        assert!(memory.backend(&a).deployment(Some(&same)).cell.resting(now).is_some());
        assert_eq!(memory.backend(&a).resting(now).len(), 1);
    }
}
