//! Limits for asking resources for objects that nobody here remembers: an id that every resource has denied is
//! not asked for everywhere again at once, and no client may ask too often.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::homes::ObjectKey;
use crate::names::Caller;

/// How long an id that all resources have denied is asked of one resource only.
const MISSING_DURATION: Duration = Duration::from_secs(60);
/// The most ids that are known not to exist.
const MAX_MISSING: usize = 16 * 1024;
/// From this number of callers on, those that have not asked lately are forgotten.
const MAX_CALLERS: usize = 1024;
/// How many further resources are asked for one client in a second; more wait their turn.
const ASKS_PER_SECOND: u32 = 50;

/// What has been asked lately.
#[derive(Debug, Default)]
pub struct Asking {
    /// The objects that are known not to exist, each until when.
    missing: Mutex<HashMap<ObjectKey, (Missing, Instant)>>,
    /// For each caller, when the asks so far would have ended at the permitted rate.
    paid_until: Mutex<HashMap<Caller, Instant>>,
}

/// Why an object is known not to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    /// All resources have denied it. If it was made a short time ago, they may be able to read it later.
    Denied,
    /// It was deleted through this balancer.
    Deleted,
}

impl Asking {
    /// Whether this object is known not to exist.
    pub fn missing(&self, key: ObjectKey, now: Instant) -> Option<Missing> {
        lock(&self.missing).get(&key).filter(|(_, until)| *until > now).map(|(missing, _)| *missing)
    }

    /// Records that an object does not exist.
    pub fn record_missing(&self, key: ObjectKey, why: Missing, now: Instant) {
        let mut missing = lock(&self.missing);
        if missing.len() >= MAX_MISSING {
            missing.retain(|_, (_, until)| *until > now);
        }
        // So many in a minute are invented; each is then asked for everywhere, at the permitted rate.
        if missing.len() < MAX_MISSING {
            missing.insert(key, (why, now + MISSING_DURATION));
        }
    }

    /// Takes a turn to ask a further resource for this caller: when it may be asked, `None` for now.
    pub fn take_turn(&self, caller: &Caller, now: Instant) -> Option<Instant> {
        let mut paid_until = lock(&self.paid_until);
        if paid_until.len() >= MAX_CALLERS {
            paid_until.retain(|_, paid| *paid > now);
        }
        let paid = paid_until.entry(caller.clone()).or_insert(now);
        *paid = (*paid).max(now) + Duration::from_secs(1) / ASKS_PER_SECOND;
        // A second's worth may be asked at once.
        paid.checked_sub(Duration::from_secs(1)).filter(|turn| *turn > now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClientName;

    #[test]
    fn what_does_not_exist_is_remembered_for_a_minute() {
        let (asking, now) = (Asking::default(), Instant::now());
        let [denied, deleted, other] = [1, 2, 3].map(ObjectKey::from_hash);
        asking.record_missing(denied, Missing::Denied, now);
        asking.record_missing(deleted, Missing::Deleted, now);
        let later = now + Duration::from_secs(59);
        assert_eq!(asking.missing(denied, later), Some(Missing::Denied));
        assert_eq!(asking.missing(deleted, later), Some(Missing::Deleted));
        assert_eq!(asking.missing(other, later), None);
        assert_eq!(asking.missing(denied, now + Duration::from_secs(60)), None);
    }

    #[test]
    fn what_does_not_exist_takes_bounded_memory() {
        let (asking, now) = (Asking::default(), Instant::now());
        let keys = || (1..2 * MAX_MISSING as u64).map(ObjectKey::from_hash);
        keys().for_each(|key| asking.record_missing(key, Missing::Denied, now));
        assert_eq!(keys().filter(|key| asking.missing(*key, now).is_some()).count(), MAX_MISSING);
        // Once they are over, there is room again.
        let later = now + Duration::from_secs(61);
        asking.record_missing(ObjectKey::from_hash(u64::MAX), Missing::Denied, later);
        assert_eq!(lock(&asking.missing).len(), 1);
    }

    #[test]
    fn beyond_fifty_asks_a_second_a_client_waits_its_turn() {
        let (asking, now) = (Asking::default(), Instant::now());
        let (one, other) =
            (Caller::Client(ClientName::new("one")), Caller::Address("192.0.2.1".parse().ok()));
        for _ in 0..50 {
            assert_eq!(asking.take_turn(&one, now), None);
        }
        assert_eq!(asking.take_turn(&one, now), Some(now + Duration::from_millis(20)));
        assert_eq!(asking.take_turn(&one, now), Some(now + Duration::from_millis(40)));
        assert_eq!(asking.take_turn(&other, now), None);
        assert_eq!(asking.take_turn(&Caller::Address(None), now), None);
        // After a pause of a second it may ask as often as before.
        let later = now + Duration::from_millis(1_040);
        assert_eq!((0..50).filter_map(|_| asking.take_turn(&one, later)).count(), 0);
        assert!(asking.take_turn(&one, later).is_some());
    }
}
