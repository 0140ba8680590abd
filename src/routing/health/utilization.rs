//! How much of its provisioned capacity a deployment uses, as its last response reported it, and which request may be
//! sent to get a new reading.
//!
//! Which requests leave a deployment because of it is decided in `retry_plan/shedding.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::RequestClass;
use crate::routing::headroom::SendTicket;

/// How long a reading counts.
const READING_LIFETIME: Duration = Duration::from_secs(10);
/// While one request is sent to get a new reading, the others of its class are shed for at most this long.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A deployment that has reported its utilization counts as provisioned for this long.
const PROVISIONED_LIFETIME: Duration = Duration::from_secs(600);
/// The utilization of a deployment that answers 429.
const FULL: f64 = 1.0;

/// The utilization of one deployment, as far as it is known.
#[derive(Debug, Default)]
pub struct Utilization {
    /// False until something has been recorded, to be read without a lock.
    has_records: AtomicBool,
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    last_reading: Option<Reading>,
    /// The end of the cooldown after its last 429.
    throttled_until: Option<Instant>,
    /// For each class, until when one of its requests is expected to bring a new reading.
    renewals: [Option<Instant>; RequestClass::ALL.len()],
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    ratio: f64,
    attempt: SendTicket,
    at: Instant,
}

/// What is known at one moment.
enum Knowledge {
    /// It is not provisioned, or has never reported anything.
    Nothing,
    /// The last reading is too old.
    Outdated,
    /// This ratio. It can exceed 1.
    Ratio(f64),
}

impl Utilization {
    /// Records the ratio that the response to an attempt reported. Ratios can exceed 1.
    pub fn record_reading(&self, attempt: SendTicket, ratio: f64, now: Instant) {
        let mut records = self.lock_records();
        // Responses come in any order: that of an earlier attempt says nothing new.
        if records.last_reading.is_some_and(|last| attempt.was_sent_before(last.attempt)) {
            return;
        }
        records.last_reading = Some(Reading { ratio, attempt, at: now });
        records.renewals = Default::default();
        self.has_records.store(true, Ordering::Release);
    }

    /// Records a 429, which counts as full until its cooldown ends.
    pub fn record_throttling(&self, is_configured_as_provisioned: bool, until: Instant) {
        // Otherwise it is not known to be provisioned, and reading it stays free of locks.
        if is_configured_as_provisioned || self.has_records() {
            let mut records = self.lock_records();
            records.throttled_until = records.throttled_until.max(Some(until));
            records.renewals = Default::default();
            self.has_records.store(true, Ordering::Release);
        }
    }

    /// Whether requests of a class with this `threshold` are shed now: the utilization is higher, or another request of
    /// the class has been sent to get a new reading.
    pub fn is_shed_for(
        &self,
        class: RequestClass,
        threshold: f64,
        is_configured_as_provisioned: bool,
        now: Instant,
    ) -> bool {
        self.has_records()
            && self.lock_records().is_shed_for(class, threshold, is_configured_as_provisioned, now)
    }

    /// When a class that is shed now may be accepted again, without a further response.
    pub fn next_change(&self, class: RequestClass, now: Instant) -> Option<Instant> {
        let records = self.lock_records();
        // In bounds: there are as many as classes.
        let renewal = records.renewals[class as usize];
        let reading_end = records.last_reading.map(|reading| reading.at + READING_LIFETIME);
        [records.throttled_until, reading_end, renewal].into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Admits a request of such a class, unless the class is shed now. If the reading is too old, this request gets the
    /// new one.
    pub fn try_enter(
        &self,
        class: RequestClass,
        threshold: f64,
        is_configured_as_provisioned: bool,
        now: Instant,
    ) -> bool {
        if !self.has_records() {
            return true;
        }
        let mut records = self.lock_records();
        if records.is_shed_for(class, threshold, is_configured_as_provisioned, now) {
            return false;
        }
        if matches!(records.knowledge(is_configured_as_provisioned, now), Knowledge::Outdated) {
            // In bounds: there are as many as classes.
            records.renewals[class as usize] = Some(now + RENEWAL_TIMEOUT);
        }
        true
    }

    fn has_records(&self) -> bool {
        self.has_records.load(Ordering::Acquire)
    }

    fn lock_records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn is_shed_for(
        &self,
        class: RequestClass,
        threshold: f64,
        is_configured_as_provisioned: bool,
        now: Instant,
    ) -> bool {
        match self.knowledge(is_configured_as_provisioned, now) {
            Knowledge::Nothing => false,
            // In bounds: there are as many as classes.
            Knowledge::Outdated => self.renewals[class as usize].is_some_and(|until| now < until),
            Knowledge::Ratio(ratio) => ratio > threshold,
        }
    }

    fn knowledge(&self, is_configured_as_provisioned: bool, now: Instant) -> Knowledge {
        let age = self.last_reading.map(|reading| now.saturating_duration_since(reading.at));
        let has_told = age.is_some_and(|age| age < PROVISIONED_LIFETIME);
        let is_provisioned = is_configured_as_provisioned || has_told;
        let is_throttled = self.throttled_until.is_some_and(|until| now < until);
        match self.last_reading.zip(age) {
            _ if is_provisioned && is_throttled => Knowledge::Ratio(FULL),
            Some((reading, age)) if age < READING_LIFETIME => Knowledge::Ratio(reading.ratio),
            Some(_) if is_provisioned => Knowledge::Outdated,
            _ => Knowledge::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::headroom::Headroom;

    const BATCH: RequestClass = RequestClass::Batch;
    const STANDARD: RequestClass = RequestClass::Standard;

    /// What happens at one moment.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A response tells this ratio.
        Told(f64),
        /// A response tells this ratio, to an attempt that was sent before all others.
        ToldLate(f64),
        /// A 429 whose `retry-after` ends at this second.
        Throttled(u64),
        /// A request of this class, which leaves it above 80 %, goes there or not.
        Goes(RequestClass, bool),
    }
    use Event::{Goes, Throttled, Told, ToldLate};

    /// What it shows, whether the deployment is configured as provisioned, and what happens in which second.
    type Case = (&'static str, bool, &'static [(u64, Event)]);

    #[test]
    fn a_class_leaves_what_is_used_more_than_its_threshold_and_one_request_at_a_time_finds_out() {
        let table: &[Case] = &[
            ("nothing is known", true, &[(0, Goes(BATCH, true)), (0, Goes(BATCH, true))]),
            ("at the threshold", false, &[(0, Told(0.8)), (0, Goes(BATCH, true)), (9, Goes(BATCH, true))]),
            ("above it", false, &[(0, Told(0.81)), (0, Goes(BATCH, false)), (9, Goes(BATCH, false))]),
            ("far above it", false, &[(0, Told(1.3)), (9, Goes(BATCH, false))]),
            (
                "one request renews an old reading, for its class",
                false,
                &[
                    (0, Told(0.9)),
                    (10, Goes(BATCH, true)),
                    (10, Goes(BATCH, false)),
                    (10, Goes(STANDARD, true)),
                    (19, Goes(STANDARD, false)),
                    (19, Goes(BATCH, false)),
                    // Nothing came of it.
                    (20, Goes(BATCH, true)),
                    (20, Goes(BATCH, false)),
                ],
            ),
            (
                "a low reading lets all go there",
                false,
                &[
                    (0, Told(0.9)),
                    (10, Goes(BATCH, true)),
                    (11, Told(0.5)),
                    (11, Goes(BATCH, true)),
                    (20, Goes(BATCH, true)),
                ],
            ),
            (
                "a reading ends the renewal, and the next is due after it",
                false,
                &[
                    (0, Told(0.9)),
                    (10, Goes(BATCH, true)),
                    (11, Told(0.9)),
                    (20, Goes(BATCH, false)),
                    (21, Goes(BATCH, true)),
                    (21, Goes(BATCH, false)),
                ],
            ),
            (
                "responses come in any order",
                false,
                &[(0, Told(0.9)), (1, ToldLate(0.1)), (1, Goes(BATCH, false)), (10, Goes(BATCH, true))],
            ),
            (
                "what has told nothing for ten minutes is not provisioned",
                false,
                &[
                    (0, Told(0.9)),
                    (599, Goes(BATCH, true)),
                    (599, Goes(BATCH, false)),
                    (600, Goes(BATCH, true)),
                    (600, Goes(BATCH, true)),
                ],
            ),
            (
                "unless it is configured as such",
                true,
                &[
                    (0, Told(0.9)),
                    (600, Goes(BATCH, true)),
                    (600, Goes(BATCH, false)),
                    (610, Goes(BATCH, true)),
                ],
            ),
            (
                "a 429 is full until its cooldown ends, whatever was told and is told meanwhile",
                false,
                &[
                    (0, Told(0.5)),
                    (1, Throttled(6)),
                    (2, Told(0.4)),
                    (5, Goes(BATCH, false)),
                    (6, Goes(BATCH, true)),
                ],
            ),
            (
                "the longest cooldown counts, and what was told before is old after it",
                false,
                &[
                    (0, Told(0.5)),
                    (1, Throttled(30)),
                    (2, Throttled(20)),
                    (29, Goes(BATCH, false)),
                    (30, Goes(BATCH, true)),
                    (30, Goes(BATCH, false)),
                ],
            ),
            (
                "a 429 answers the request that was to find out",
                false,
                &[
                    (0, Told(0.9)),
                    (10, Goes(BATCH, true)),
                    (11, Throttled(12)),
                    (12, Goes(BATCH, true)),
                    (12, Goes(BATCH, false)),
                ],
            ),
            (
                "a 429 of a standard deployment says nothing",
                false,
                &[(0, Throttled(5)), (1, Goes(BATCH, true))],
            ),
            (
                "one of a provisioned one does",
                true,
                &[(0, Throttled(5)), (1, Goes(BATCH, false)), (5, Goes(BATCH, true)), (5, Goes(BATCH, true))],
            ),
            (
                "one of what has not told anything for ten minutes does not",
                false,
                &[(0, Told(0.5)), (600, Throttled(605)), (601, Goes(BATCH, true)), (601, Goes(BATCH, true))],
            ),
        ];
        for (name, is_configured, events) in table {
            let (start, headroom, utilization) =
                (Instant::now(), Headroom::default(), Utilization::default());
            let first = headroom.record_send(start);
            for (second, event) in *events {
                let at = |second: u64| start + Duration::from_secs(second);
                let now = at(*second);
                match *event {
                    Told(ratio) => utilization.record_reading(headroom.record_send(now), ratio, now),
                    ToldLate(ratio) => utilization.record_reading(first, ratio, now),
                    Throttled(until) => utilization.record_throttling(*is_configured, at(until)),
                    Goes(class, expected) => {
                        let is_left = utilization.is_shed_for(class, 0.8, *is_configured, now);
                        let goes = utilization.try_enter(class, 0.8, *is_configured, now);
                        assert_eq!((goes, !is_left), (expected, expected), "{name}: {event:?} at {second} s");
                    }
                }
            }
        }
    }

    #[test]
    fn a_threshold_of_100_percent_is_exceeded_by_what_is_overloaded_only() {
        let (now, headroom, utilization) = (Instant::now(), Headroom::default(), Utilization::default());
        for (ratio, is_left) in [(0.99, false), (1.0, false), (1.01, true)] {
            utilization.record_reading(headroom.record_send(now), ratio, now);
            assert_eq!(utilization.is_shed_for(STANDARD, 1.0, false, now), is_left, "{ratio}");
        }
    }
}
