//! Which resource made which object: a memory of a fixed size, from the keyed hash of an id to its resource,
//! its maker and its times.
//!
//! Requests of different shards do not wait for each other. What changes is recorded for whoever writes the log
//! or tells a successor (`gateway/homes_keeper.rs`); requests do not wait for them either. What an id is and
//! where it stands in a request is left to `azure`, the choice of a backend to the pools.

mod bucket;
mod home;
mod known_resources;
mod shard;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::shard::{Policy, Shard};

pub use self::home::{Change, HashKey, Home, ObjectKey, OwnerTag, ResourceTag, StoredHome};
pub use self::known_resources::KnownResources;

/// `affinity.memory` by default, in bytes: two million entries.
pub const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;

/// Shards of a memory that is large enough.
const MAX_SHARDS: u64 = 64;
/// A shard has at least as many buckets as this, if the memory has.
const MIN_SHARD_BUCKETS: u64 = 64;
/// How many buckets are copied at a time while their shard is locked: some 5 µs.
const SNAPSHOT_BUCKETS: usize = 64;

/// The memory of homes.
#[derive(Debug)]
pub struct Homes {
    hash_key: HashKey,
    shards: Vec<Mutex<Shard>>,
    prefers_makers: AtomicBool,
    records_changes: AtomicBool,
}

/// How full the memory is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HomesStatistics {
    /// The entries that are remembered.
    pub entries: u64,
    /// The entries that fit.
    pub capacity: u64,
    /// The memory that they may take, in bytes. The system gives it when it is first used.
    pub bytes: u64,
    /// Entries that made room for others since the start.
    pub evicted: u64,
    /// Those of them whose maker was known.
    pub evicted_with_maker: u64,
    /// The entries of each resource.
    pub entries_by_resource: BTreeMap<ResourceTag, u64>,
}

/// How far [`Homes::copy_entries`] has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct SnapshotPosition {
    shard: usize,
    bucket: usize,
}

impl Homes {
    /// An empty memory of this size with a new hash key.
    pub fn new(memory_bytes: u64) -> Self {
        Self::with_hash_key(memory_bytes, HashKey::random())
    }

    /// An empty memory for keys that were hashed with this key.
    pub fn with_hash_key(memory_bytes: u64, hash_key: HashKey) -> Self {
        let buckets = (memory_bytes / bucket::BUCKET_BYTES).max(1);
        let shard_count = (buckets / MIN_SHARD_BUCKETS).clamp(1, MAX_SHARDS);
        // A power of two, so that the highest bits of a key choose a shard evenly.
        let shard_count = 1 << shard_count.ilog2();
        let shard = || Mutex::new(Shard::new((buckets / shard_count) as usize));
        Self {
            hash_key,
            shards: (0..shard_count).map(|_| shard()).collect(),
            prefers_makers: AtomicBool::new(false),
            records_changes: AtomicBool::new(false),
        }
    }

    /// The secret that ids are hashed with.
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// The key of an id.
    pub fn key_of(&self, id: &[u8]) -> ObjectKey {
        ObjectKey::from_hash(self.hash_key.hash(id))
    }

    /// The tag of a resource.
    pub fn resource_tag(&self, name: &str) -> ResourceTag {
        ResourceTag::from_hash(self.hash_key.hash(name.as_bytes()) as u32)
    }

    /// The tag of a client.
    pub fn owner_tag(&self, client: &str) -> OwnerTag {
        OwnerTag::from_any_hash(self.hash_key.hash(client.as_bytes()) as u32)
    }

    /// Whether entries with a maker are evicted last (`affinity.owner: enforce`). Then an entry without a maker
    /// never takes the place of one that has one; where only such are left, it is not remembered.
    pub fn set_prefers_makers(&self, prefers_makers: bool) {
        self.prefers_makers.store(prefers_makers, Ordering::Relaxed);
    }

    /// Where the object lives, as far as is remembered; it counts as used at `now`, in Unix seconds.
    pub fn find(&self, key: ObjectKey, now: u32) -> Option<Home> {
        self.shard(key)?.find(key, now, self.policy())
    }

    /// Remembers where an object lives. An entry that exists keeps its maker unless `home` has one, and the
    /// time it was made unless `home` has one.
    pub fn learn(&self, key: ObjectKey, home: Home, now: u32) {
        self.store(StoredHome { key, home, used_at: now });
    }

    /// Forgets an object, which was deleted.
    pub fn forget(&self, key: ObjectKey) {
        if let Some(mut shard) = self.shard(key) {
            shard.forget(key, self.policy());
        }
    }

    /// Adds an entry as another process or an earlier one knew it. Of its times the later one holds.
    pub fn store(&self, entry: StoredHome) {
        if let Some(mut shard) = self.shard(entry.key) {
            shard.store(entry, self.policy());
        }
    }

    /// What has been counted. Entries are not read.
    pub fn statistics(&self) -> HomesStatistics {
        let mut total = HomesStatistics::default();
        for shard in &self.shards {
            let shard = lock(shard);
            let statistics = shard.statistics();
            total.entries += statistics.entries;
            total.evicted += statistics.evicted;
            total.evicted_with_maker += statistics.evicted_with_maker;
            total.capacity += (shard.bucket_count() * bucket::SLOTS) as u64;
            total.bytes += shard.bucket_count() as u64 * bucket::BUCKET_BYTES;
            for (resource, count) in &statistics.entries_by_resource {
                *total.entries_by_resource.entry(*resource).or_default() += count;
            }
        }
        total
    }

    /// How many objects of a resource are remembered.
    pub fn entries_of(&self, resource: ResourceTag) -> u64 {
        let counts = self
            .shards
            .iter()
            .map(|shard| lock(shard).statistics().entries_by_resource.get(&resource).copied());
        counts.map(Option::unwrap_or_default).sum()
    }

    /// Records changes from now on, until somebody takes them.
    pub fn start_recording_changes(&self) {
        self.records_changes.store(true, Ordering::Relaxed);
    }

    /// Moves the recorded changes to `into`, those of one object in their order. Returns false if there were too
    /// many to keep: only [`Homes::copy_entries`] tells all then.
    #[must_use]
    pub fn take_changes(&self, into: &mut Vec<Change>) -> bool {
        let mut is_complete = true;
        for shard in &self.shards {
            is_complete &= !lock(shard).take_changes(into);
        }
        is_complete
    }

    /// Adds the next few entries to `into`, and returns false after the last. A change that is made meanwhile
    /// may or may not be seen.
    #[must_use]
    pub fn copy_entries(&self, position: &mut SnapshotPosition, into: &mut Vec<StoredHome>) -> bool {
        let Some(shard) = self.shards.get(position.shard) else { return false };
        let shard = lock(shard);
        let end = position.bucket + SNAPSHOT_BUCKETS;
        shard.copy_entries(position.bucket..end.min(shard.bucket_count()), into);
        position.bucket = end;
        if end >= shard.bucket_count() {
            *position = SnapshotPosition { shard: position.shard + 1, bucket: 0 };
        }
        true
    }

    fn policy(&self) -> Policy {
        Policy {
            prefers_makers: self.prefers_makers.load(Ordering::Relaxed),
            records_changes: self.records_changes.load(Ordering::Relaxed),
        }
    }

    /// The shard of a key. There always is one.
    fn shard(&self, key: ObjectKey) -> Option<MutexGuard<'_, Shard>> {
        // The highest bits; the index within the shard takes the lowest.
        let index = ((u128::from(key.hash()) * self.shards.len() as u128) >> 64) as usize;
        self.shards.get(index).map(lock)
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
