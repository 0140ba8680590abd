//! A ring of limited size in which each holder keeps its share.
//!
//! When the ring is full, the holder with the most entries loses one: the oldest of the kind that it has most
//! of. A flood of one client, or of one kind, therefore replaces its own entries, not those of others.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use super::trouble_kind::TroubleKind;
use crate::names::ClientName;

/// Whose an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// A client of the configuration.
    Client(ClientName),
    /// An address, if clients have no names.
    Address(Option<IpAddr>),
    /// All clients together whose credentials are unknown.
    UnknownClient,
}

/// How much the ring holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingLimits {
    pub(super) max_entries: usize,
    pub(super) max_bytes: usize,
}

/// The ring.
#[derive(Debug)]
pub(super) struct FairRing<T> {
    limits: RingLimits,
    bytes: usize,
    next_number: u64,
    /// By number, so oldest first.
    entries: BTreeMap<u64, RingEntry<T>>,
    shares: HashMap<Holder, Share>,
}

#[derive(Debug)]
struct RingEntry<T> {
    bytes: usize,
    value: T,
}

/// The entries of one holder.
#[derive(Debug, Default)]
struct Share {
    entry_count: usize,
    /// The numbers of the entries of each kind, oldest first.
    numbers_by_kind: [VecDeque<u64>; TroubleKind::COUNT],
}

impl Share {
    fn oldest_number(&self) -> u64 {
        self.numbers_by_kind.iter().filter_map(VecDeque::front).copied().min().unwrap_or(u64::MAX)
    }

    /// Takes the oldest number of the kind that has the most; of equal ones, the oldest.
    fn pop_from_largest_kind(&mut self) -> Option<u64> {
        let age = |numbers: &VecDeque<u64>| u64::MAX - numbers.front().copied().unwrap_or(u64::MAX);
        let number = self
            .numbers_by_kind
            .iter_mut()
            .max_by_key(|numbers| (numbers.len(), age(numbers)))?
            .pop_front()?;
        self.entry_count -= 1;
        Some(number)
    }
}

impl<T> FairRing<T> {
    pub(super) fn new(limits: RingLimits) -> Self {
        Self { limits, bytes: 0, next_number: 0, entries: BTreeMap::new(), shares: HashMap::new() }
    }

    /// Adds an entry that takes this many bytes, and removes others if there is no room.
    pub(super) fn push(&mut self, holder: Holder, kind: TroubleKind, bytes: usize, value: T) {
        let number = self.next_number;
        self.next_number += 1;
        self.bytes += bytes;
        self.entries.insert(number, RingEntry { bytes, value });
        let share = self.shares.entry(holder).or_default();
        share.entry_count += 1;
        if let Some(numbers) = share.numbers_by_kind.get_mut(kind as usize) {
            numbers.push_back(number);
        }
        while (self.entries.len() > self.limits.max_entries || self.bytes > self.limits.max_bytes)
            && self.remove_from_largest_share()
        {}
    }

    /// Removes an entry of the holder that has the most; of equal ones, of the one with the oldest entry.
    /// `false` if there is none.
    fn remove_from_largest_share(&mut self) -> bool {
        let largest = self
            .shares
            .iter_mut()
            .max_by_key(|(_, share)| (share.entry_count, u64::MAX - share.oldest_number()));
        let Some((holder, share)) = largest else { return false };
        let removed = share.pop_from_largest_kind().and_then(|number| self.entries.remove(&number));
        if share.entry_count == 0 {
            let holder = holder.clone();
            self.shares.remove(&holder);
        }
        self.bytes = self.bytes.saturating_sub(removed.as_ref().map_or(0, |entry| entry.bytes));
        removed.is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter_newest_first(&self) -> impl Iterator<Item = &T> {
        self.entries.values().rev().map(|entry| &entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::trouble_kind::TroubleKind::{Failed, Refused, Retried, Slow};
    use super::*;

    type Push<'a> = (&'a str, TroubleKind, usize);

    /// What a ring of ten entries holds after these pushes of several entries each: how many of each holder
    /// and kind, and the values from old to new.
    fn after(pushes: &[Push<'_>]) -> (BTreeMap<(String, &'static str), usize>, Vec<usize>) {
        let mut ring = FairRing::new(RingLimits { max_entries: 10, max_bytes: 1_000 });
        let mut value = 0;
        for (name, kind, count) in pushes {
            for _ in 0..*count {
                let holder = match *name {
                    "?" => Holder::UnknownClient,
                    name => Holder::Client(ClientName::new(name)),
                };
                ring.push(holder, *kind, 100, ((*name).to_owned(), *kind, value));
                value += 1;
            }
        }
        let mut counts = BTreeMap::new();
        for (name, kind, _) in ring.iter_newest_first() {
            *counts.entry((name.clone(), kind.as_str())).or_default() += 1;
        }
        let mut values: Vec<usize> = ring.iter_newest_first().map(|entry| entry.2).collect();
        values.reverse();
        assert_eq!(ring.bytes, ring.len() * 100);
        (counts, values)
    }

    #[test]
    fn a_flood_replaces_its_own_entries() {
        type Counts<'a> = &'a [(&'a str, &'a str, usize)];
        let table: [(&[Push<'_>], Counts<'_>); 7] = [
            (&[("a", Failed, 3)], &[("a", "failed", 3)]),
            (&[("a", Failed, 30)], &[("a", "failed", 10)]),
            // Unknown clients are one holder, whoever else is there.
            (&[("a", Failed, 3), ("?", Refused, 1_000)], &[("?", "refused", 7), ("a", "failed", 3)]),
            // Whoever comes after a flood gets a share up to half.
            (&[("?", Refused, 1_000), ("a", Failed, 9)], &[("?", "refused", 5), ("a", "failed", 5)]),
            // Kinds of one client share as clients do.
            (
                &[("a", Failed, 2), ("a", Retried, 1_000), ("a", Slow, 1)],
                &[("a", "failed", 2), ("a", "retried", 7), ("a", "slow", 1)],
            ),
            // The kinds of a client give it no larger share.
            (
                &[("a", Failed, 9), ("a", Retried, 9), ("a", Slow, 9), ("b", Failed, 9)],
                &[("a", "failed", 1), ("a", "retried", 2), ("a", "slow", 2), ("b", "failed", 5)],
            ),
            (
                &[("a", Failed, 9), ("b", Failed, 9), ("c", Failed, 9)],
                &[("a", "failed", 3), ("b", "failed", 3), ("c", "failed", 4)],
            ),
        ];
        for (pushes, expected) in table {
            let expected: BTreeMap<_, _> =
                expected.iter().map(|(name, kind, count)| (((*name).to_owned(), *kind), *count)).collect();
            assert_eq!(after(pushes).0, expected, "{pushes:?}");
        }
    }

    #[test]
    fn the_oldest_entries_go_first() {
        let table: [(&[Push<'_>], &[usize]); 3] = [
            (&[("a", Failed, 13)], &[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
            (&[("a", Failed, 2), ("b", Failed, 10)], &[0, 1, 4, 5, 6, 7, 8, 9, 10, 11]),
            (&[("a", Failed, 8), ("b", Failed, 4)], &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ];
        for (pushes, expected) in table {
            assert_eq!(after(pushes).1, expected, "{pushes:?}");
        }
        // More holders than room.
        let names: Vec<String> = (0..25).map(|number| format!("client-{number}")).collect();
        let pushes: Vec<Push<'_>> = names.iter().map(|name| (name.as_str(), Slow, 1)).collect();
        assert_eq!(after(&pushes).1, (15..25).collect::<Vec<_>>());
    }

    #[test]
    fn bytes_are_limited_too() {
        let mut ring = FairRing::new(RingLimits { max_entries: 10, max_bytes: 1_000 });
        for number in 0..5 {
            ring.push(Holder::UnknownClient, Refused, 300, number);
        }
        assert_eq!(ring.iter_newest_first().copied().collect::<Vec<_>>(), [4, 3, 2]);
        ring.push(Holder::UnknownClient, Refused, 5_000, 9);
        assert_eq!((ring.len(), ring.bytes, ring.shares.len()), (0, 0, 0));
    }
}
