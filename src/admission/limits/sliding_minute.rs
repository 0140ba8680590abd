//! What was used in the last 60 seconds, in slots of one second.
//!
//! A slot counts until 60 seconds after its end, so that nothing is forgotten early: a fixed minute or a bucket
//! would let twice the limit through around a boundary.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The minute and the second that has begun.
const SLOTS: usize = 61;

/// A sliding window. Times are durations since an instant that its owner chooses, and never go back: an earlier one
/// counts as the latest.
#[derive(Clone, Debug)]
pub(super) struct SlidingMinute {
    slots: [Slot; SLOTS],
    /// The second of the latest call.
    newest: u64,
    /// What has ended, in all slots.
    settled: u64,
    /// What is reserved by requests in progress, whatever their age.
    running: u64,
    /// The part of it that was reserved before the oldest slot.
    running_for_long: u64,
}

/// One second.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    settled: u64,
    running: u64,
}

/// The second in which something was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReservedAt(u64);

impl Default for SlidingMinute {
    fn default() -> Self {
        let slots = [Slot::default(); SLOTS];
        Self { slots, newest: 0, settled: 0, running: 0, running_for_long: 0 }
    }
}

impl SlidingMinute {
    /// What counts now: what was used or reserved in the last minute, and what is still reserved.
    pub(super) fn total(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.settled.saturating_add(self.running)
    }

    /// Adds what a request is expected to use. Whether that exceeds a limit is the caller's question.
    pub(super) fn reserve(&mut self, amount: u64, now: Duration) -> ReservedAt {
        self.advance(now);
        self.reserve_at(ReservedAt(self.newest), amount, now)
    }

    /// Adds what another process reserved at that time. Returns when it counts from: not later than now.
    pub(super) fn reserve_at(&mut self, reserved_at: ReservedAt, amount: u64, now: Duration) -> ReservedAt {
        self.advance(now);
        let second = reserved_at.0.min(self.newest);
        self.running = self.running.saturating_add(amount);
        let reserved = match self.newest - second < SLOTS as u64 {
            true => &mut self.slot(second).running,
            false => &mut self.running_for_long,
        };
        *reserved = reserved.saturating_add(amount);
        ReservedAt(second)
    }

    /// Replaces a reservation by what was used. What exceeds it counts from now on, the rest since the reservation.
    pub(super) fn settle(&mut self, reserved: u64, reserved_at: ReservedAt, used: u64, now: Duration) {
        self.advance(now);
        self.running = self.running.saturating_sub(reserved);
        let within = used.min(reserved);
        if self.newest - reserved_at.0 < SLOTS as u64 {
            let slot = self.slot(reserved_at.0);
            slot.running = slot.running.saturating_sub(reserved);
            slot.settled = slot.settled.saturating_add(within);
            self.settled = self.settled.saturating_add(within);
        } else {
            self.running_for_long = self.running_for_long.saturating_sub(reserved);
        }
        self.add(used - within, now);
    }

    /// Adds what was used without a reservation.
    pub(super) fn add(&mut self, used: u64, now: Duration) {
        self.advance(now);
        let newest = self.newest;
        let slot = self.slot(newest);
        slot.settled = slot.settled.saturating_add(used);
        self.settled = self.settled.saturating_add(used);
    }

    /// How long it takes until `amount` fits into the limit, if requests in progress end by then and nothing else is
    /// used; zero if it fits now. `others` is what others have used, by second.
    pub(super) fn time_until_fits(
        &mut self,
        amount: u64,
        limit: u64,
        others: &[(u64, u64)],
        now: Duration,
    ) -> Duration {
        let used = sum_of(others.iter().copied()).saturating_add(self.total(now));
        let excess = used.saturating_add(amount).saturating_sub(limit);
        if excess == 0 {
            return Duration::ZERO;
        }
        let mut freed = self.running_for_long;
        let oldest = self.newest.saturating_sub(SLOTS as u64 - 1);
        for second in oldest..=self.newest {
            if freed >= excess {
                break;
            }
            let Slot { settled, running } = *self.slot(second);
            let by_others = sum_of(others.iter().copied().filter(|(other, _)| *other == second));
            freed = freed.saturating_add(settled).saturating_add(running).saturating_add(by_others);
            if freed >= excess {
                return Duration::from_secs(second + SLOTS as u64).saturating_sub(now);
            }
        }
        // It depends on requests that have been in progress for more than a minute.
        Duration::from_secs(1)
    }

    /// How long it takes until everything that counts is forgotten.
    pub(super) fn time_until_empty(&mut self, now: Duration) -> Duration {
        if self.total(now) == 0 {
            return Duration::ZERO;
        }
        let oldest = self.newest.saturating_sub(SLOTS as u64 - 1);
        let newest_used = (oldest..=self.newest).rev().find(|second| {
            let Slot { settled, running } = *self.slot(*second);
            settled > 0 || running > 0
        });
        let last = newest_used.unwrap_or(self.newest);
        Duration::from_secs(last + SLOTS as u64).saturating_sub(now)
    }

    /// What counts, second by second: pairs of an age in seconds and an amount.
    pub(super) fn amounts_by_age(&mut self, now: Duration) -> Vec<(u64, u64)> {
        let amounts = self.amounts(now).into_iter();
        // Not by the newest slot, which may have begun after `now`.
        amounts.map(|(second, amount)| (now.as_secs().saturating_sub(second), amount)).collect()
    }

    /// The same: pairs of a second and an amount, the latest first.
    pub(super) fn amounts(&mut self, now: Duration) -> Vec<(u64, u64)> {
        self.advance(now);
        let newest = self.newest;
        let seconds = (0..SLOTS as u64).filter_map(|age| newest.checked_sub(age));
        let amounts = seconds.map(|second| {
            let Slot { settled, running } = *self.slot(second);
            (second, settled.saturating_add(running))
        });
        amounts.filter(|(_, amount)| *amount > 0).collect()
    }

    /// What is reserved since before the oldest second that counts.
    pub(super) fn running_for_long(&self) -> u64 {
        self.running_for_long
    }

    /// What is reserved, by the second of the reservation. What is older than a minute is in second 0.
    pub(super) fn reserved(&mut self, now: Duration) -> Vec<(ReservedAt, u64)> {
        self.advance(now);
        let oldest = self.newest.saturating_sub(SLOTS as u64 - 1);
        let old = std::iter::once((ReservedAt(0), self.running_for_long));
        let slots = (oldest..=self.newest).map(|second| (ReservedAt(second), self.slot(second).running));
        old.chain(slots.collect::<Vec<_>>()).filter(|(_, amount)| *amount > 0).collect()
    }

    /// Adds what another process has counted: `amounts` by their age in seconds at `counted_at`, of which `reserved` is
    /// only reserved. Returns `reserved` with the seconds that it counts from here.
    pub(super) fn restore(
        &mut self,
        amounts: &[(u64, u64)],
        reserved: &[(ReservedAt, u64)],
        counted_at: Option<ReservedAt>,
        now: Duration,
    ) -> Vec<(ReservedAt, u64)> {
        self.advance(now);
        let counted_at = counted_at.map_or(self.newest, |counted_at| counted_at.0.min(self.newest));
        for (age, amount) in amounts {
            let Some(second) = counted_at.checked_sub(*age) else { continue };
            if self.newest - second >= SLOTS as u64 {
                continue;
            }
            let only_reserved = reserved.iter().filter(|(reserved_at, _)| reserved_at.0 == second);
            let only_reserved = only_reserved.fold(0_u64, |sum, (_, amount)| sum.saturating_add(*amount));
            let used = amount.saturating_sub(only_reserved);
            let slot = self.slot(second);
            slot.settled = slot.settled.saturating_add(used);
            self.settled = self.settled.saturating_add(used);
        }
        reserved.iter().map(|(at, amount)| (self.reserve_at(*at, *amount, now), *amount)).collect()
    }

    /// The second that it is now.
    pub(super) fn second_of(now: Duration) -> ReservedAt {
        ReservedAt(now.as_secs())
    }

    /// Forgets what is older than a minute.
    fn advance(&mut self, now: Duration) {
        let now = now.as_secs();
        if now <= self.newest {
            return;
        }
        let first_new = (self.newest + 1).max(now.saturating_sub(SLOTS as u64 - 1));
        for second in first_new..=now {
            let slot = std::mem::take(self.slot(second));
            self.settled = self.settled.saturating_sub(slot.settled);
            self.running_for_long = self.running_for_long.saturating_add(slot.running);
        }
        self.newest = now;
    }

    fn slot(&mut self, second: u64) -> &mut Slot {
        // The remainder is less than the number of slots.
        &mut self.slots[usize::try_from(second % SLOTS as u64).unwrap_or_default()]
    }
}

fn sum_of(amounts: impl Iterator<Item = (u64, u64)>) -> u64 {
    amounts.fold(0, |sum, (_, amount)| sum.saturating_add(amount))
}

#[cfg(test)]
#[path = "sliding_minute_tests.rs"]
mod tests;
