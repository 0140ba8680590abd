//! A running resource: its definition and everything that changes while it runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::codec::{Ids, fingerprint};
use super::files::Shelf;
use super::journal::Journal;
use super::limits::{Ask, Charge, Meter, Regime, Ruling};
use super::objects::Objects;
use super::responses::Archive;
use super::script::Script;
use super::{Resource, SimDeployment};

/// Words that make up one step of the prefix cache: 128 tokens.
const STEP_WORDS: usize = 96;
/// Steps below which nothing is cached: 1 024 tokens.
const FIRST_STEPS: usize = 8;
/// Steps looked at in one prompt.
const MOST_STEPS: usize = 4096;
/// Idle time after which a prefix is forgotten.
const PREFIX_LIFE: Duration = Duration::from_secs(600);
const MOST_PREFIXES: usize = 200_000;

#[derive(Debug)]
pub(super) struct Live {
    pub(super) resource: Resource,
    pub(super) script: Mutex<Script>,
    pub(super) journal: Journal,
    pub(super) ids: Ids,
    pub(super) archive: Mutex<Archive>,
    pub(super) shelf: Mutex<Shelf>,
    pub(super) objects: Mutex<Objects>,
    /// Stands for the key this resource encrypts reasoning with.
    pub(super) seal: String,
    meters: Mutex<HashMap<String, Meter>>,
    prefixes: Mutex<HashMap<u64, Instant>>,
    connections: AtomicU64,
}

impl Live {
    pub(super) fn new(resource: Resource, now: Instant) -> Self {
        let ids = Ids::new();
        let meters =
            resource.deployments.iter().map(|own| (own.name.clone(), Meter::new(own.kind, now))).collect();
        Self {
            script: Mutex::new(Script::new(resource.mood.clone())),
            journal: Journal::default(),
            archive: Mutex::default(),
            shelf: Mutex::default(),
            objects: Mutex::default(),
            seal: ids.hex("", 16),
            meters: Mutex::new(meters),
            prefixes: Mutex::default(),
            connections: AtomicU64::new(0),
            resource,
            ids,
        }
    }

    /// Numbers a new connection.
    pub(super) fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// The deployment of this name; names are compared without regard to case, as Azure does.
    pub(super) fn deployment(&self, name: &str) -> Option<&SimDeployment> {
        self.resource.deployments.iter().find(|own| own.name.eq_ignore_ascii_case(name))
    }

    pub(super) fn admit(&self, deployment: &SimDeployment, ask: Ask, regime: Regime, now: Instant) -> Ruling {
        hold(&self.meters)
            .entry(deployment.name.clone())
            .or_insert_with(|| Meter::new(deployment.kind, now))
            .admit(ask, regime, now)
    }

    /// What tokens weigh in a deployment.
    pub(super) fn weight(&self, deployment: &str, input: u64, output: u64) -> u64 {
        hold(&self.meters).get(deployment).map_or(input + output, |meter| meter.weight(input, output))
    }

    pub(super) fn settle(&self, charge: &Charge) {
        if let Some(meter) = hold(&self.meters).get_mut(&charge.deployment) {
            meter.settle(charge);
        }
    }

    /// Tokens of this prompt that the deployment has seen lately as the beginning of another one; from
    /// now on it has seen this one too.
    pub(super) fn cached_tokens(&self, deployment: &str, key: &str, prompt: &str, now: Instant) -> u64 {
        let mut hash = fingerprint(fingerprint(0, deployment.as_bytes()), key.as_bytes());
        let mut steps = Vec::new();
        for (count, word) in prompt.split_ascii_whitespace().enumerate() {
            hash = fingerprint(hash, word.as_bytes());
            if (count + 1) % STEP_WORDS == 0 {
                steps.push(hash);
                if steps.len() == MOST_STEPS {
                    break;
                }
            }
        }
        if steps.len() < FIRST_STEPS {
            return 0;
        }
        let mut prefixes = hold(&self.prefixes);
        if prefixes.len() > MOST_PREFIXES {
            prefixes.retain(|_, used| now.saturating_duration_since(*used) < PREFIX_LIFE);
            if prefixes.len() > MOST_PREFIXES {
                prefixes.clear();
            }
        }
        let fresh = |used: &Instant| now.saturating_duration_since(*used) < PREFIX_LIFE;
        let known = steps.iter().take_while(|step| prefixes.get(*step).is_some_and(fresh)).count();
        prefixes.extend(steps.iter().map(|step| (*step, now)));
        if known < FIRST_STEPS { 0 } else { known as u64 * 128 }
    }
}

/// Locks; a panic of somebody else does not spread.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970, as Azure dates its objects.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_cached_from_1024_tokens_in_steps_of_128() {
        let live = Live::new(Resource::new("r"), Instant::now());
        let now = Instant::now();
        let prompt = |words: usize| (0..words).map(|at| format!("w{at} ")).collect::<String>();
        let cases = [
            ("d", "", 700, 0, "too short"),
            ("d", "", 800, 0, "first time"),
            ("d", "", 800, 1024, "again"),
            ("d", "", 1000, 1024, "longer, same beginning"),
            ("d", "", 1000, 1280, "the longer one again"),
            ("e", "", 1000, 0, "another deployment"),
            ("d", "k", 1000, 0, "another cache key"),
        ];
        for (deployment, key, words, expected, why) in cases {
            assert_eq!(live.cached_tokens(deployment, key, &prompt(words), now), expected, "{why}");
        }
        assert_eq!(live.cached_tokens("d", "", &prompt(1000), now + PREFIX_LIFE), 0, "expired");
    }
}
