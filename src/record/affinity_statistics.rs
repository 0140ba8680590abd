//! Statistics of requests that refer to objects, by the resource that has them: for the status, and for whoever
//! drains a backend.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::affinity::{AffinityRecord, AskAnswer};
use crate::names::ResourceName;

/// The last minute is counted in steps of this length. A request leaves the count with its step, after 55 s at the
/// earliest and 60 s at the latest.
const STEP_DURATION: Duration = Duration::from_secs(5);
/// The number of steps in a minute.
const STEPS_PER_MINUTE: u64 = 12;

/// What is counted of each resource.
#[derive(Debug)]
pub struct AffinityStatistics {
    started_at: Instant,
    resources: Mutex<HashMap<ResourceName, ResourceCounts>>,
}

#[derive(Debug, Default)]
struct ResourceCounts {
    accepted: u64,
    denied: u64,
    last_read_lag: Option<Duration>,
    /// Requests by step: a step is at its number modulo [`STEPS_PER_MINUTE`].
    recent_steps: [RequestStep; STEPS_PER_MINUTE as usize],
}

#[derive(Clone, Copy, Debug, Default)]
struct RequestStep {
    step_number: u64,
    requests: u64,
}

/// What is known of the requests about objects of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceActivity {
    /// How often it said that it has an object that it was asked for, since the start of the process.
    pub accepted: u64,
    /// How often it said that it does not have an object.
    pub denied: u64,
    /// The requests about its objects that ended in the last minute.
    pub last_minute_requests: u64,
    /// How long it last took until it could read what it had made; `None` if it was never late.
    pub last_read_lag: Option<Duration>,
}

impl AffinityStatistics {
    /// Statistics that are all 0.
    pub(super) fn new(started_at: Instant) -> Self {
        Self { started_at, resources: Mutex::default() }
    }

    /// Counts a finished request.
    pub(super) fn record(&self, affinity: &AffinityRecord, now: Instant) {
        let Some(home) = affinity.home() else {
            // Nobody has it, or nobody knows.
            return self.record_answers(&mut self.lock(), affinity);
        };
        let step_number = self.step_number(now);
        let mut resources = self.lock();
        self.record_answers(&mut resources, affinity);
        let counts = counts_of(&mut resources, home);
        if let Some(step) = counts.recent_steps.get_mut((step_number % STEPS_PER_MINUTE) as usize) {
            if step.step_number != step_number {
                *step = RequestStep { step_number, requests: 0 };
            }
            step.requests += 1;
        }
        if affinity.read_lag.is_some() {
            counts.last_read_lag = affinity.read_lag;
        }
    }

    /// What is known of a resource.
    pub fn activity(&self, resource: &ResourceName, now: Instant) -> ResourceActivity {
        let current = self.step_number(now);
        let resources = self.lock();
        let Some(counts) = resources.get(resource) else { return ResourceActivity::default() };
        let is_recent = |step: &&RequestStep| current.saturating_sub(step.step_number) < STEPS_PER_MINUTE;
        ResourceActivity {
            accepted: counts.accepted,
            denied: counts.denied,
            last_minute_requests: counts
                .recent_steps
                .iter()
                .filter(is_recent)
                .map(|step| step.requests)
                .sum(),
            last_read_lag: counts.last_read_lag,
        }
    }

    fn record_answers(
        &self,
        resources: &mut HashMap<ResourceName, ResourceCounts>,
        affinity: &AffinityRecord,
    ) {
        for asked in &affinity.asked {
            let counts = counts_of(resources, &asked.resource);
            match asked.answer {
                AskAnswer::Accepted => counts.accepted += 1,
                AskAnswer::Denied => counts.denied += 1,
            }
        }
    }

    fn step_number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started_at).as_secs() / STEP_DURATION.as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ResourceName, ResourceCounts>> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counts_of<'a>(
    resources: &'a mut HashMap<ResourceName, ResourceCounts>,
    name: &ResourceName,
) -> &'a mut ResourceCounts {
    resources.entry(name.clone()).or_default()
}

#[cfg(test)]
mod tests {
    use super::super::affinity::AskedResource;
    use super::*;

    fn record(how: &'static str, asked: &[(&str, AskAnswer)], resource: Option<&str>) -> AffinityRecord {
        let asked = asked
            .iter()
            .map(|(name, answer)| AskedResource { resource: ResourceName::new(name), answer: *answer });
        AffinityRecord {
            by: Some("file"),
            how,
            resource: resource.map(ResourceName::new),
            asked: asked.collect(),
            waited: Duration::ZERO,
            read_lag: None,
        }
    }

    #[test]
    fn only_the_resource_that_has_the_object_gets_the_request_counted() {
        use AskAnswer::{Accepted, Denied};
        let now = Instant::now();
        let statistics = AffinityStatistics::new(now);
        for exchange in [
            record("learned", &[], Some("a")),
            record("learned", &[("a", Denied)], Some("a")),
            record("asked", &[("a", Denied), ("b", Accepted)], Some("b")),
            record("asked", &[("a", Denied), ("b", Denied)], Some("b")),
            record("default", &[], Some("a")),
        ] {
            statistics.record(&exchange, now);
        }
        let activity = |name| statistics.activity(&ResourceName::new(name), now);
        let expected = |accepted, denied, last_minute_requests| ResourceActivity {
            accepted,
            denied,
            last_minute_requests,
            last_read_lag: None,
        };
        assert_eq!(activity("a"), expected(0, 3, 2));
        assert_eq!(activity("b"), expected(1, 1, 1));
        assert_eq!(activity("c"), ResourceActivity::default());
    }

    #[test]
    fn requests_are_counted_for_a_minute_and_the_last_lag_is_kept() {
        let start = Instant::now();
        let (statistics, name) = (AffinityStatistics::new(start), ResourceName::new("a"));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut late = record("learned", &[], Some("a"));
        late.read_lag = Some(Duration::from_secs(7));
        statistics.record(&late, at(2));
        statistics.record(&record("learned", &[], Some("a")), at(58));
        for (seconds, expected) in [(59, 2), (60, 1), (114, 1), (115, 0), (3600, 0)] {
            let activity = statistics.activity(&name, at(seconds));
            assert_eq!(activity.last_minute_requests, expected, "after {seconds} s");
            assert_eq!(activity.last_read_lag, Some(Duration::from_secs(7)));
        }
        // A step of an earlier round makes room.
        statistics.record(&record("learned", &[], Some("a")), at(62));
        assert_eq!(statistics.activity(&name, at(62)).last_minute_requests, 2);
    }
}
