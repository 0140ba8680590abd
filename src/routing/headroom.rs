//! How much a deployment can still take: what its replies tell, less what has been asked of it
//! since.
//!
//! Azure takes the charge for a request on arrival and tells in the reply what was left then.
//! Replies of models come late, so the last one told is old when the next request has to be
//! placed; what was sent in between counts with what requests have cost so far. Nothing here
//! keeps a deployment from being asked: it only says how freely to ask it among its equals.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::azure::response::hints::{Capacity, Limit};

/// Rate limits of standard deployments begin anew each minute (Azure OpenAI, "Manage quota");
/// a provisioned deployment works off what fills it in about as long.
const MINUTE: Duration = Duration::from_secs(60);
/// How far a deployment may be ahead of the even use of its minute before it is asked less.
const SLACK: f64 = 0.05;
/// Where it is not known when the minute ends, a deployment is asked less below this part.
const RESERVE: f64 = 0.25;
/// A rise of what is left by more than this is a new minute.
const RISE: f64 = 0.1;
/// The weight of one attempt in what attempts cost on average.
const NOVELTY: f64 = 0.03;
/// A cost of so many times what is usual has another reason.
const UNUSUAL: f64 = 4.0;

/// What is known of one deployment's capacity.
#[derive(Debug, Default)]
pub struct Headroom {
    sent: AtomicU64,
    is_told: AtomicBool,
    gauges: Mutex<Gauges>,
}

/// An attempt, as the account knows it.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    number: u64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Gauges {
    requests: Option<Gauge>,
    tokens: Option<Gauge>,
    load: Option<Gauge>,
    /// What the latest reply told.
    last: Capacity,
}

/// One limit, as parts of the whole.
#[derive(Clone, Copy, Debug)]
struct Gauge {
    /// What was left when the latest attempt arrived of which that is known.
    left: f64,
    latest: Sent,
    /// What an attempt takes, on average.
    cost: f64,
    refill: Refill,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Refill {
    /// All of it at once, each minute from such a moment on, as far as one is known.
    Minutely(Option<Instant>),
    /// Steadily.
    Steady,
}

impl Headroom {
    /// An attempt begins.
    pub fn sent(&self, now: Instant) -> Sent {
        Sent { number: self.sent.fetch_add(1, Ordering::Relaxed) + 1, at: now }
    }

    /// Takes note of what the reply to an attempt tells.
    pub fn told(&self, sent: Sent, capacity: &Capacity) {
        if *capacity == Capacity::default() {
            return;
        }
        let mut gauges = self.lock();
        let Gauges { requests, tokens, load, last } = &mut *gauges;
        *last = *capacity;
        for (gauge, limit) in [(requests, capacity.requests), (tokens, capacity.tokens)] {
            if let Some(Limit { limit, remaining, reset }) = limit {
                // Some precision of more than 2^53 tokens is of no matter.
                let left = remaining as f64 / limit.get() as f64;
                Gauge::note(gauge, left, sent, Refill::Minutely(reset.map(|reset| sent.at + reset)));
            }
        }
        if let Some(utilization) = capacity.utilization {
            Gauge::note(load, 1.0 - utilization, sent, Refill::Steady);
        }
        self.is_told.store(true, Ordering::Release);
    }

    /// What the latest reply told.
    pub fn last_told(&self) -> Capacity {
        self.lock().last
    }

    /// How freely it may be asked: 1 as often as its turn comes, 0.5 every other time, 0 only
    /// where all others are no better off.
    pub fn pace(&self, now: Instant) -> f64 {
        if !self.is_told.load(Ordering::Acquire) {
            return 1.0;
        }
        let sent = self.sent.load(Ordering::Relaxed);
        let mut gauges = self.lock();
        let Gauges { requests, tokens, load, .. } = &mut *gauges;
        let gauges = [requests, tokens, load].into_iter().flatten();
        gauges.map(|gauge| gauge.pace(sent, now)).fold(1.0, f64::min)
    }

    fn lock(&self) -> MutexGuard<'_, Gauges> {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gauge {
    fn note(gauge: &mut Option<Self>, left: f64, sent: Sent, told: Refill) {
        let Some(known) = gauge else {
            *gauge = Some(Self { left, latest: sent, cost: 0.0, refill: told });
            return;
        };
        // Of an attempt that arrived before the latest nothing new is learned.
        if sent.number <= known.latest.number {
            return;
        }
        let attempts = (sent.number - known.latest.number) as f64;
        let is_new_minute = known.ends().is_some_and(|end| sent.at >= end);
        let taken = known.left + known.regained(sent.at) - left;
        let rises = taken < -RISE;
        let falls = taken > (known.cost * attempts * UNUSUAL).max(RISE);
        if !is_new_minute && !rises {
            known.learn((taken / attempts).max(0.0), attempts);
        }
        known.refill = match (known.refill, told) {
            (_, told @ (Refill::Minutely(Some(_)) | Refill::Steady)) => told,
            // It began somewhere between the two attempts.
            _ if rises && !is_new_minute => Refill::Minutely(Some(sent.at)),
            // Perhaps it was thought to have begun, and had not.
            _ if falls => Refill::Minutely(None),
            (refill, _) => refill,
        };
        (known.left, known.latest) = (left, sent);
    }

    /// Takes note of what each of some attempts took.
    fn learn(&mut self, share: f64, attempts: f64) {
        if self.cost > 0.0 {
            let share = share.min(self.cost * UNUSUAL);
            self.cost += (share - self.cost) * (attempts * NOVELTY).min(1.0);
        } else {
            self.cost = share;
        }
    }

    /// When all of it is there again, as seen from the latest attempt.
    fn ends(&self) -> Option<Instant> {
        let Refill::Minutely(Some(turn)) = self.refill else { return None };
        let at = self.latest.at;
        if turn > at {
            return Some(turn);
        }
        let into = at.duration_since(turn).as_millis() % MINUTE.as_millis();
        Some(at + MINUTE - Duration::from_millis(u64::try_from(into).unwrap_or(0)))
    }

    /// What has come back since the latest attempt.
    fn regained(&self, now: Instant) -> f64 {
        match self.refill {
            Refill::Steady => parts(now.saturating_duration_since(self.latest.at)),
            Refill::Minutely(_) => 0.0,
        }
    }

    fn pace(&mut self, sent: u64, now: Instant) -> f64 {
        while let Some(end) = self.ends().filter(|end| *end <= now) {
            // What was sent before counts no more.
            (self.left, self.latest) = (1.0, Sent { number: sent, at: end });
        }
        let end = self.ends();
        if end.is_none() && now >= self.latest.at + MINUTE {
            return 1.0;
        }
        let unaccounted = sent.saturating_sub(self.latest.number) as f64;
        // Some of them cost more than others, and the next one has to fit as well.
        let likely = unaccounted + unaccounted.sqrt() + 1.0;
        let left = self.left + self.regained(now) - likely * self.cost;
        match end {
            _ if left <= 0.0 => 0.0,
            Some(end) => ((left + SLACK) / parts(end - now).min(1.0)).min(1.0),
            None => (left / RESERVE).min(1.0),
        }
    }
}

/// A time in minutes.
fn parts(time: Duration) -> f64 {
    time.as_secs_f64() / MINUTE.as_secs_f64()
}

#[cfg(test)]
#[path = "headroom_tests.rs"]
mod tests;
