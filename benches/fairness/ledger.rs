//! What requests have reserved and used: computed from all of them each time, so that nothing can be forgotten.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// A request that was admitted.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub admitted_at: Instant,
    pub reserved: u64,
    /// When it ended, and what it has used.
    pub ended: Option<(Instant, u64)>,
}

impl Entry {
    /// What it has used beyond its reservation.
    fn error(&self) -> u64 {
        self.ended.map_or(0, |(_, used)| used.saturating_sub(self.reserved))
    }

    /// What counts of its reservation at this moment.
    fn within_reservation(&self, now: Instant) -> u64 {
        match self.ended {
            None => self.reserved,
            Some((_, used)) if self.admitted_at + MINUTE > now => used.min(self.reserved),
            Some(_) => 0,
        }
    }

    /// What counts beyond its reservation.
    fn beyond_reservation(&self, now: Instant) -> u64 {
        match self.ended {
            Some((ended_at, _)) if ended_at + MINUTE > now => self.error(),
            _ => 0,
        }
    }
}

/// All requests of a client.
#[derive(Debug, Default)]
pub struct Ledger {
    pub entries: Vec<Entry>,
    last_admission: Option<Instant>,
    /// Those before are over and no longer count.
    first_counted: usize,
    /// The most that was reserved, or used of what was reserved, within a minute.
    pub most_within_estimates: u64,
    /// The most that was used beyond the limit within a minute.
    pub largest_overshoot: u64,
    /// The same, without the errors of estimates that were not known at the last admission.
    pub largest_unexplained_overshoot: u64,
}

impl Ledger {
    /// Adds a request; returns its number.
    pub fn admit(&mut self, reserved: u64, limit: u64, now: Instant) -> usize {
        self.entries.push(Entry { admitted_at: now, reserved, ended: None });
        self.last_admission = Some(now);
        self.check(limit, now);
        self.entries.len() - 1
    }

    /// A request ends.
    pub fn end(&mut self, number: usize, used: u64, limit: u64, now: Instant) {
        self.entries[number].ended = Some((now, used));
        self.check(limit, now);
    }

    /// What all requests have used that were admitted in this time.
    pub fn used_between(&self, begin: Instant, end: Instant) -> u64 {
        let admitted = self.entries.iter().filter(|entry| (begin..end).contains(&entry.admitted_at));
        admitted.filter_map(|entry| entry.ended).map(|(_, used)| used).sum()
    }

    fn check(&mut self, limit: u64, now: Instant) {
        let is_over = |entry: &Entry| {
            entry.ended.is_some() && entry.within_reservation(now) + entry.beyond_reservation(now) == 0
        };
        while self.entries.get(self.first_counted).is_some_and(is_over) {
            self.first_counted += 1;
        }
        let counted = &self.entries[self.first_counted..];
        let within: u64 = counted.iter().map(|entry| entry.within_reservation(now)).sum();
        let beyond: u64 = counted.iter().map(|entry| entry.beyond_reservation(now)).sum();
        let is_unknown = |entry: &&Entry| entry.ended.is_some_and(|(at, _)| Some(at) >= self.last_admission);
        let unknown = counted.iter().filter(is_unknown).map(|entry| entry.beyond_reservation(now)).sum();
        let overshoot = (within + beyond).saturating_sub(limit);
        self.most_within_estimates = self.most_within_estimates.max(within);
        self.largest_overshoot = self.largest_overshoot.max(overshoot);
        self.largest_unexplained_overshoot =
            self.largest_unexplained_overshoot.max(overshoot.saturating_sub(unknown));
    }
}
