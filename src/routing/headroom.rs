//! How much of a deployment's quota is left: what its last response reported, less an estimate for the
//! attempts sent since.
//!
//! Azure charges a request on arrival and reports in its response what was left at that time. Models
//! answer slowly, so the last report is old when the next request is routed; the attempts since then, also those of
//! other instances, are estimated at the average cost so far. This never makes a deployment unavailable: it only decides
//! which share of its round-robin turns it takes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::azure::response::hints::{RateLimit, ReportedCapacity};

/// The rate limits of a standard deployment are reset each minute (Azure OpenAI, "Manage quota"). A fully
/// loaded provisioned deployment needs about as long to become idle.
const QUOTA_WINDOW: Duration = Duration::from_secs(60);
/// A deployment whose remaining quota is less than what remains of the minute, by more than this, takes
/// fewer turns.
const EVEN_USE_TOLERANCE: f64 = 0.05;
/// Where the end of the minute is not known, a deployment takes fewer turns below this remaining fraction.
const LOW_REMAINING_FRACTION: f64 = 0.25;
/// If the remaining fraction rises by more than this, a new minute has begun.
const MIN_REFILL_RISE: f64 = 0.1;
/// The weight of one attempt in the moving average of their cost.
const COST_SMOOTHING_FACTOR: f64 = 0.03;
/// A cost of more than this many times the average has another reason than the size of a request.
const UNUSUAL_COST_FACTOR: f64 = 4.0;

/// The estimated headroom of one deployment.
#[derive(Debug, Default)]
pub struct Headroom {
    attempts_sent: AtomicU64,
    /// Attempts that other instances have sent, as far as they have told.
    attempts_sent_elsewhere: AtomicU64,
    /// False until a response has reported something, to be read without a lock.
    has_reported_capacity: AtomicBool,
    estimates: Mutex<CapacityEstimates>,
}

/// Identifies an attempt, so that its response can be put in order with those of other attempts.
#[derive(Clone, Copy, Debug)]
pub struct SendTicket {
    number: u64,
    sent_at: Instant,
}

impl SendTicket {
    /// Whether its attempt was sent before the other one, to the same deployment.
    pub(super) fn was_sent_before(self, other: Self) -> bool {
        self.number < other.number
    }
}

#[derive(Debug, Default)]
struct CapacityEstimates {
    requests: Option<CapacityEstimate>,
    tokens: Option<CapacityEstimate>,
    /// Of a provisioned deployment.
    provisioned_capacity: Option<CapacityEstimate>,
    last_reported_capacity: ReportedCapacity,
}

/// What is left of one limit, as a fraction of it.
#[derive(Clone, Copy, Debug)]
struct CapacityEstimate {
    /// What was left when `last_reported_attempt` arrived; below zero if Azure let more through.
    remaining_fraction: f64,
    /// The latest attempt whose response has reported.
    last_reported_attempt: SendTicket,
    /// What one attempt takes, as a fraction of the limit.
    average_cost: f64,
    refill: Refill,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Refill {
    /// The whole limit at once, each minute; counted from this moment, if one is known.
    EachMinute(Option<Instant>),
    /// A little all the time: a provisioned deployment.
    Continuous,
}

impl Headroom {
    /// Counts an attempt that begins.
    pub fn record_send(&self, now: Instant) -> SendTicket {
        let number = self.attempts_sent.fetch_add(1, Ordering::Relaxed) + 1;
        SendTicket { number: number.saturating_add(self.attempts_sent_elsewhere()), sent_at: now }
    }

    /// Counts attempts that another instance has sent. They use up the same limits.
    pub fn record_sends_elsewhere(&self, count: u64) {
        self.attempts_sent_elsewhere.fetch_add(count, Ordering::Relaxed);
    }

    /// Attempts that other instances have sent, as far as they have told.
    pub fn attempts_sent_elsewhere(&self) -> u64 {
        self.attempts_sent_elsewhere.load(Ordering::Relaxed)
    }

    /// Attempts of this instance since the process started.
    pub fn attempts_sent(&self) -> u64 {
        self.attempts_sent.load(Ordering::Relaxed)
    }

    /// Records what the response to an attempt reports.
    pub fn record_response(&self, attempt: SendTicket, capacity: &ReportedCapacity) {
        if *capacity == ReportedCapacity::default() {
            return;
        }
        let mut estimates = self.lock_estimates();
        let CapacityEstimates {
            requests,
            tokens,
            provisioned_capacity,
            last_reported_capacity: last_reported,
        } = &mut *estimates;
        *last_reported = *capacity;
        for (estimate, limit) in
            [(requests, capacity.request_rate_limit), (tokens, capacity.token_rate_limit)]
        {
            if let Some(RateLimit { limit_per_minute: limit, remaining, resets_in }) = limit {
                // Exact up to 2^53 tokens, which is enough.
                let remaining_fraction = remaining as f64 / limit.get() as f64;
                let refill = Refill::EachMinute(resets_in.map(|resets_in| attempt.sent_at + resets_in));
                CapacityEstimate::record_remaining(estimate, remaining_fraction, attempt, refill);
            }
        }
        if let Some(load) = capacity.provisioned_utilization {
            CapacityEstimate::record_remaining(provisioned_capacity, 1.0 - load, attempt, Refill::Continuous);
        }
        self.has_reported_capacity.store(true, Ordering::Release);
    }

    /// What the latest response reported.
    pub fn last_reported_capacity(&self) -> ReportedCapacity {
        self.lock_estimates().last_reported_capacity
    }

    /// The share of its round-robin turns that the deployment should take, from 0 to 1: 1 is every turn,
    /// 0.5 every other one, 0 none unless all others have 0 as well.
    pub fn turn_share(&self, now: Instant) -> f64 {
        if !self.has_reported_capacity.load(Ordering::Acquire) {
            return 1.0;
        }
        let attempts_sent = self.attempts_sent().saturating_add(self.attempts_sent_elsewhere());
        let mut estimates = self.lock_estimates();
        let CapacityEstimates { requests, tokens, provisioned_capacity, .. } = &mut *estimates;
        let estimates = [requests, tokens, provisioned_capacity].into_iter().flatten();
        estimates.map(|estimate| estimate.turn_share(attempts_sent, now)).fold(1.0, f64::min)
    }

    fn lock_estimates(&self) -> MutexGuard<'_, CapacityEstimates> {
        self.estimates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CapacityEstimate {
    fn record_remaining(
        estimate: &mut Option<Self>,
        remaining_fraction: f64,
        attempt: SendTicket,
        reported_refill: Refill,
    ) {
        let Some(estimate) = estimate else {
            *estimate = Some(Self {
                remaining_fraction,
                last_reported_attempt: attempt,
                average_cost: 0.0,
                refill: reported_refill,
            });
            return;
        };
        // Responses come in any order: that of an earlier attempt says nothing new.
        if attempt.number <= estimate.last_reported_attempt.number {
            return;
        }
        let attempts = (attempt.number - estimate.last_reported_attempt.number) as f64;
        let is_new_minute = estimate.next_refill().is_some_and(|refill| attempt.sent_at >= refill);
        let taken = estimate.remaining_fraction + estimate.continuously_refilled_fraction(attempt.sent_at)
            - remaining_fraction;
        let has_risen = taken < -MIN_REFILL_RISE;
        let has_fallen_far =
            taken > (estimate.average_cost * attempts * UNUSUAL_COST_FACTOR).max(MIN_REFILL_RISE);
        if !is_new_minute && !has_risen {
            estimate.update_average_cost((taken / attempts).max(0.0), attempts);
        }
        estimate.refill = match (estimate.refill, reported_refill) {
            (_, reported @ (Refill::EachMinute(Some(_)) | Refill::Continuous)) => reported,
            // The minute began some time between the two attempts.
            _ if has_risen && !is_new_minute => Refill::EachMinute(Some(attempt.sent_at)),
            // Perhaps a new minute was expected and had not begun.
            _ if has_fallen_far => Refill::EachMinute(None),
            (refill, _) => refill,
        };
        (estimate.remaining_fraction, estimate.last_reported_attempt) = (remaining_fraction, attempt);
    }

    /// Updates the average with this many attempts that cost `cost` each.
    fn update_average_cost(&mut self, cost: f64, attempts: f64) {
        if self.average_cost > 0.0 {
            let cost = cost.min(self.average_cost * UNUSUAL_COST_FACTOR);
            self.average_cost += (cost - self.average_cost) * (attempts * COST_SMOOTHING_FACTOR).min(1.0);
        } else {
            self.average_cost = cost;
        }
    }

    /// The first reset of the limit after `last_reported_attempt`, if its minute is known.
    fn next_refill(&self) -> Option<Instant> {
        let Refill::EachMinute(Some(known_reset)) = self.refill else { return None };
        let last = self.last_reported_attempt.sent_at;
        if known_reset > last {
            return Some(known_reset);
        }
        let into_minute = last.duration_since(known_reset).as_millis() % QUOTA_WINDOW.as_millis();
        Some(last + QUOTA_WINDOW - Duration::from_millis(u64::try_from(into_minute).unwrap_or(0)))
    }

    /// What has been refilled since `last_reported_attempt`, other than by a reset.
    fn continuously_refilled_fraction(&self, now: Instant) -> f64 {
        match self.refill {
            Refill::Continuous => {
                to_minutes(now.saturating_duration_since(self.last_reported_attempt.sent_at))
            }
            Refill::EachMinute(_) => 0.0,
        }
    }

    fn turn_share(&mut self, attempts_sent: u64, now: Instant) -> f64 {
        while let Some(refill) = self.next_refill().filter(|refill| *refill <= now) {
            // The limit has been reset: attempts sent before no longer count.
            self.remaining_fraction = 1.0;
            self.last_reported_attempt = SendTicket { number: attempts_sent, sent_at: refill };
        }
        let refill = self.next_refill();
        if refill.is_none() && now >= self.last_reported_attempt.sent_at + QUOTA_WINDOW {
            return 1.0;
        }
        let unreported = attempts_sent.saturating_sub(self.last_reported_attempt.number) as f64;
        // The square root allows for attempts that cost more than the average; 1 is the next attempt.
        let estimated_attempts = unreported + unreported.sqrt() + 1.0;
        let left = self.remaining_fraction + self.continuously_refilled_fraction(now)
            - estimated_attempts * self.average_cost;
        match refill {
            _ if left <= 0.0 => 0.0,
            // Even use: as much of the limit is left as of the minute.
            Some(refill) => ((left + EVEN_USE_TOLERANCE) / to_minutes(refill - now).min(1.0)).min(1.0),
            None => (left / LOW_REMAINING_FRACTION).min(1.0),
        }
    }
}

fn to_minutes(duration: Duration) -> f64 {
    duration.as_secs_f64() / QUOTA_WINDOW.as_secs_f64()
}

#[cfg(test)]
#[path = "headroom_tests.rs"]
mod tests;
