//! What is remembered, as data: for the process that takes over.
//!
//! Moments of one process mean nothing to another, so times are lengths, counted from the moment
//! of the telling. Not told: what the next reply tells anyway (headroom), and what only this
//! process knows the meaning of (numbers of secrets).

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::health::{BackendMemory, Cell, Incident, Memory, Reason, Rest};
use crate::azure::Operation;
use crate::names::BackendName;

/// All backends, as they are remembered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Remembered {
    backends: Vec<Backend>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Backend {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drained: Option<Resting>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    breaker: Option<Resting>,
    /// How often in a row the breaker opened.
    #[serde(default)]
    streak: u32,
    /// How long ago its last rest was over; below zero: it is not yet.
    #[serde(default)]
    ended_ms: Option<i64>,
    #[serde(default)]
    deployments: Vec<Part>,
    #[serde(default)]
    operations: Vec<Part>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resting: Option<Resting>,
    /// It is no longer asked for the usage of a stream.
    #[serde(default)]
    declines_usage: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Resting {
    reason: String,
    /// How long it still lasts.
    left_ms: u64,
    /// How long it has lasted.
    age_ms: u64,
}

impl Resting {
    fn of(cell: &Cell, now: Instant) -> Option<Self> {
        cell.told(now).map(|Incident { rest, since }| Self {
            reason: rest.reason.word().to_owned(),
            left_ms: ms(rest.until.saturating_duration_since(now)),
            age_ms: ms(now.saturating_duration_since(since)),
        })
    }

    /// Of a later version there may be reasons that this one does not know.
    fn tell(&self, cell: &Cell, now: Instant) {
        if let Some(reason) = Reason::of_word(&self.reason)
            && let Some(until) = now.checked_add(Duration::from_millis(self.left_ms))
        {
            let since = now.checked_sub(Duration::from_millis(self.age_ms)).unwrap_or(now);
            cell.continues(Incident { rest: Rest { reason, until }, since });
        }
    }
}

impl Remembered {
    /// What is remembered now.
    pub fn of(memory: &Memory, now: Instant) -> Self {
        let backends = memory.all().into_iter().map(|(name, memory)| Backend::of(&name, &memory, now));
        Self { backends: backends.collect() }
    }

    /// Hands it to a memory that has nothing of its own yet.
    pub fn tell(&self, memory: &Memory, now: Instant) {
        for backend in &self.backends {
            backend.tell(&memory.backend(&BackendName::new(&backend.name)), now);
        }
    }
}

impl Backend {
    fn of(name: &BackendName, memory: &BackendMemory, now: Instant) -> Self {
        let (streak, ended) = memory.breaker.history();
        let deployments = memory.deployments().into_iter().map(|(name, known)| Part {
            name,
            resting: Resting::of(&known.cell, now),
            declines_usage: known.declines_usage.load(std::sync::atomic::Ordering::Relaxed),
        });
        let operations = Operation::ALL.into_iter().map(|operation| Part {
            name: operation.name().to_owned(),
            resting: Resting::of(memory.operation(operation), now),
            declines_usage: false,
        });
        let says_something = |part: &Part| part.resting.is_some() || part.declines_usage;
        Self {
            name: name.to_string(),
            drained: Resting::of(&memory.drained, now),
            breaker: Resting::of(&memory.breaker.cell, now),
            streak,
            ended_ms: ended.map(|ended| match now.checked_duration_since(ended) {
                Some(ago) => signed(ago),
                None => -signed(ended.saturating_duration_since(now)),
            }),
            deployments: deployments.filter(says_something).collect(),
            operations: operations.filter(says_something).collect(),
        }
    }

    fn tell(&self, memory: &BackendMemory, now: Instant) {
        for (resting, cell) in [(&self.drained, &memory.drained), (&self.breaker, &memory.breaker.cell)] {
            if let Some(resting) = resting {
                resting.tell(cell, now);
            }
        }
        let ended = self.ended_ms.and_then(|ms| {
            let length = Duration::from_millis(ms.unsigned_abs());
            if ms < 0 { now.checked_add(length) } else { now.checked_sub(length) }
        });
        memory.breaker.continues(self.streak, ended);
        for part in &self.deployments {
            let known = memory.deployment_of_key(part.name.clone());
            known.declines_usage.store(part.declines_usage, std::sync::atomic::Ordering::Relaxed);
            if let Some(resting) = &part.resting {
                resting.tell(&known.cell, now);
            }
        }
        for part in &self.operations {
            let operation = Operation::ALL.into_iter().find(|operation| operation.name() == part.name);
            if let (Some(operation), Some(resting)) = (operation, &part.resting) {
                resting.tell(memory.operation(operation), now);
            }
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::names::Deployment;
    use crate::routing::breaker::Failure;
    use crate::routing::health::Standing;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_next_process_knows_what_this_one_knew() {
        let (here, there) = (Instant::now(), Instant::now() + 1000 * S);
        let (old, new) = (Memory::new(here), Memory::new(there));
        let (name, deployment) = (BackendName::new("a"), Deployment::parse("GPT-4o").unwrap());
        let memory = old.backend(&name);
        let cell = |memory: &BackendMemory| memory.deployment(Some(&deployment)).cell.clone();
        cell(&memory).rest(Rest { reason: Reason::Cooling, until: here + 9 * S }, here);
        memory.deployment(None).cell.rest(Rest { reason: Reason::Absent, until: here + S }, here);
        memory
            .operation(Operation::Images)
            .rest(Rest { reason: Reason::PermissionDenied, until: here + 60 * S }, here);
        memory.deployment(Some(&deployment)).declines_usage.store(true, std::sync::atomic::Ordering::Relaxed);
        let policy = config::Breaker {
            failures: 1,
            ratio: config::Ratio::new(1).unwrap(),
            window: S,
            open: 10 * S,
            maximum: 60 * S,
        };
        let failure = Failure { is_first: true, is_probe: true, was_answered: false };
        let opened: Vec<_> = (0..2).filter_map(|_| memory.breaker.failed(&policy, failure, here)).collect();
        assert_eq!(opened, [10 * S, 20 * S]);
        memory.drain(here);
        // Four seconds later.
        let told = serde_json::to_string(&Remembered::of(&old, here + 4 * S)).unwrap();
        serde_json::from_str::<Remembered>(&told).unwrap().tell(&new, there);
        let memory = new.backend(&name);
        let until = |cell: &Cell| cell.told(there).map(|told| (told.rest.reason, told.rest.until - there));
        assert_eq!(until(&cell(&memory)), Some((Reason::Cooling, 5 * S)));
        let since = cell(&memory).told(there).map(|told| there - told.since);
        assert_eq!(since, Some(4 * S));
        // It was over, but nobody had found out: one goes first there as well.
        assert_eq!(memory.deployment(None).cell.standing(there), Standing::Due);
        assert_eq!(until(memory.operation(Operation::Images)), Some((Reason::PermissionDenied, 56 * S)));
        assert!(
            memory.deployment(Some(&deployment)).declines_usage.load(std::sync::atomic::Ordering::Relaxed)
        );
        assert_eq!(until(&memory.breaker.cell), Some((Reason::BreakerOpen, 16 * S)));
        assert_eq!(memory.breaker.failed(&policy, failure, there), Some(40 * S), "it goes on counting");
        assert!(!memory.drain(there) && memory.undrain(there) && !memory.undrain(there));
        assert!(new.backend(&BackendName::new("b")).drain(there), "another one was not");
    }

    #[test]
    fn what_a_later_version_tells_does_no_harm() {
        let now = Instant::now();
        let memory = Memory::new(now);
        let text = r#"{"backends":[{"name":"a","breaker":{"reason":"moonlight","left_ms":18446744073709551615,
            "age_ms":18446744073709551615},"ended_ms":-9223372036854775808,"new":[],
            "operations":[{"name":"x","resting":{"reason":"cooling","left_ms":1,"age_ms":1}}]}],"more":1}"#;
        serde_json::from_str::<Remembered>(text).unwrap().tell(&memory, now);
        assert_eq!(memory.backend(&BackendName::new("a")).breaker.cell.standing(now), Standing::Awake);
    }
}
