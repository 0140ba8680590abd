//! A part of the memory that has a lock of its own.
//!
//! An entry is in one of two buckets, which its key chooses, so a look-up reads at most 18 keys. A new one goes to
//! the emptier of them. If both are full, an entry that has a place in its other bucket moves there (cuckoo
//! hashing, with one step); if none has, as in a memory that is nearly full, the least used of the 18 makes room.

use std::collections::BTreeMap;

use super::bucket::{self, Bucket};
use super::home::{Change, Home, ObjectKey, ResourceTag, StoredHome};

/// Changes that wait to be taken. Beyond these, whoever takes them has to read the whole memory.
const MAX_CHANGES: usize = 4096;
/// A use is told to the log once in this time for each entry.
const USE_REPORT_SECONDS: u32 = 3600;

/// What a shard has counted.
#[derive(Clone, Debug, Default)]
pub(super) struct ShardStatistics {
    pub(super) entries: u64,
    pub(super) evicted: u64,
    pub(super) evicted_with_maker: u64,
    pub(super) entries_by_resource: BTreeMap<ResourceTag, u64>,
}

/// How the memory is to behave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Entries with a maker are evicted last.
    pub(super) prefers_makers: bool,
    /// Changes are kept until somebody takes them.
    pub(super) records_changes: bool,
}

#[derive(Debug)]
pub(super) struct Shard {
    buckets: Vec<Bucket>,
    statistics: ShardStatistics,
    changes: Vec<Change>,
    has_lost_changes: bool,
}

/// The place of an entry.
#[derive(Clone, Copy)]
struct Place {
    bucket: usize,
    position: usize,
}

impl Shard {
    pub(super) fn new(buckets: usize) -> Self {
        Self {
            buckets: vec![bucket::EMPTY; buckets],
            statistics: ShardStatistics::default(),
            changes: Vec::new(),
            has_lost_changes: false,
        }
    }

    pub(super) fn statistics(&self) -> &ShardStatistics {
        &self.statistics
    }

    pub(super) fn bucket_count(&self) -> usize {
        self.buckets.len()
    }

    pub(super) fn find(&mut self, key: ObjectKey, now: u32, policy: Policy) -> Option<Home> {
        let (place, mut entry) = self.locate(key)?;
        if now > entry.used_at {
            // The hours of different entries begin at different times, so that the log gets no bursts.
            let hour = |time: u32| {
                (u64::from(time) + key.hash() % u64::from(USE_REPORT_SECONDS)) / u64::from(USE_REPORT_SECONDS)
            };
            let is_reported = hour(now) != hour(entry.used_at);
            entry.used_at = now;
            self.put(place, Some(entry));
            if is_reported {
                self.record(Change::Stored(entry), policy);
            }
        }
        Some(entry.home)
    }

    pub(super) fn store(&mut self, new: StoredHome, policy: Policy) {
        let Some((place, old)) = self.locate(new.key) else { return self.insert(new, policy) };
        let home = old.home.updated_by(new.home);
        let entry = StoredHome { key: new.key, home, used_at: old.used_at.max(new.used_at) };
        self.put(place, Some(entry));
        if home != old.home {
            self.uncount(old.home.resource);
            self.count(home.resource);
            self.record(Change::Stored(entry), policy);
        }
    }

    pub(super) fn forget(&mut self, key: ObjectKey, policy: Policy) {
        let Some((place, old)) = self.locate(key) else { return };
        self.put(place, None);
        self.uncount(old.home.resource);
        self.record(Change::Forgotten(key), policy);
    }

    /// Adds the entries of some buckets to `into`.
    pub(super) fn copy_entries(&self, buckets: std::ops::Range<usize>, into: &mut Vec<StoredHome>) {
        for bucket in self.buckets.get(buckets).unwrap_or_default() {
            into.extend(bucket::entries(bucket).map(|(_, entry)| entry));
        }
    }

    /// Moves the recorded changes to `into`. Returns whether some were lost since the last time.
    pub(super) fn take_changes(&mut self, into: &mut Vec<Change>) -> bool {
        into.append(&mut self.changes);
        std::mem::take(&mut self.has_lost_changes)
    }

    fn insert(&mut self, new: StoredHome, policy: Policy) {
        let [first, second] = self.bucket_indexes(new.key);
        let free_count = |index: usize| self.buckets.get(index).map_or(0, bucket::free_count);
        let emptier = if free_count(second) > free_count(first) { second } else { first };
        let free = self.buckets.get(emptier).and_then(bucket::free_position);
        let place = free.map(|position| Place { bucket: emptier, position });
        let place = place.or_else(|| self.move_one([first, second], policy));
        let Some(place) = place.or_else(|| self.evict(&new, [first, second], policy)) else { return };
        self.put(place, Some(new));
        self.count(new.home.resource);
        self.record(Change::Stored(new), policy);
    }

    /// Moves an entry of two full buckets to its other bucket. Returns the place that it leaves; `None` if there is
    /// no such entry.
    fn move_one(&mut self, indexes: [usize; 2], policy: Policy) -> Option<Place> {
        let (from, entry, to) = self.entries_of(indexes).find_map(|(from, entry)| {
            let [first, second] = self.bucket_indexes(entry.key);
            let other = if first == from.bucket { second } else { first };
            let position = bucket::free_position(self.buckets.get(other)?)?;
            Some((from, entry, Place { bucket: other, position }))
        })?;
        self.put(to, Some(entry));
        self.put(from, None);
        // Whoever copies the memory may have passed the new place already.
        self.record(Change::Stored(entry), policy);
        Some(from)
    }

    /// Frees the place of the least valuable entry of two buckets; `None` if that is the new one itself.
    fn evict(&mut self, new: &StoredHome, indexes: [usize; 2], policy: Policy) -> Option<Place> {
        let value = |entry: &StoredHome| (policy.prefers_makers && entry.home.maker.is_some(), entry.used_at);
        let (place, victim) = self.entries_of(indexes).min_by_key(|(_, entry)| value(entry))?;
        let is_new_one = value(new) < value(&victim);
        let evicted = if is_new_one { new } else { &victim };
        self.statistics.evicted += 1;
        self.statistics.evicted_with_maker += u64::from(evicted.home.maker.is_some());
        if is_new_one {
            return None;
        }
        self.put(place, None);
        self.uncount(victim.home.resource);
        Some(place)
    }

    fn entries_of(&self, indexes: [usize; 2]) -> impl Iterator<Item = (Place, StoredHome)> + '_ {
        indexes.into_iter().flat_map(|index| {
            let entries = self.buckets.get(index).into_iter().flat_map(bucket::entries);
            entries.map(move |(position, entry)| (Place { bucket: index, position }, entry))
        })
    }

    fn locate(&self, key: ObjectKey) -> Option<(Place, StoredHome)> {
        self.bucket_indexes(key).into_iter().find_map(|index| {
            let bucket = self.buckets.get(index)?;
            let position = bucket::position(bucket, key)?;
            Some((Place { bucket: index, position }, bucket::get(bucket, position)?))
        })
    }

    /// The two buckets of a key, which may be the same one.
    fn bucket_indexes(&self, key: ObjectKey) -> [usize; 2] {
        // Keys are evenly distributed already. The multiplication is that of Fibonacci hashing; it makes the
        // second index differ where the first is the same.
        let hashes = [key.hash() & 0xffff_ffff, key.hash().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32];
        hashes.map(|hash| ((hash * self.buckets.len() as u64) >> 32) as usize)
    }

    fn put(&mut self, place: Place, entry: Option<StoredHome>) {
        if let Some(bucket) = self.buckets.get_mut(place.bucket) {
            bucket::set(bucket, place.position, entry);
        }
    }

    fn count(&mut self, resource: ResourceTag) {
        self.statistics.entries += 1;
        *self.statistics.entries_by_resource.entry(resource).or_default() += 1;
    }

    fn uncount(&mut self, resource: ResourceTag) {
        self.statistics.entries -= 1;
        if let Some(count) = self.statistics.entries_by_resource.get_mut(&resource) {
            *count -= 1;
            if *count == 0 {
                self.statistics.entries_by_resource.remove(&resource);
            }
        }
    }

    fn record(&mut self, change: Change, policy: Policy) {
        if !policy.records_changes {
            return;
        }
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(change);
        } else {
            self.has_lost_changes = true;
        }
    }
}
