//! Nine entries in 256 bytes.

use super::home::{Home, ObjectKey, OwnerTag, ResourceTag, StoredHome};

/// The entries of a bucket.
pub(super) const SLOTS: usize = 9;
/// The memory of a bucket.
pub(super) const BUCKET_BYTES: u64 = 256;

const _: () = assert!(size_of::<Bucket>() as u64 == BUCKET_BYTES);

/// Set in the last word of a slot if the object lags.
const LAGS: u32 = 1;

/// Everything but the key: resource, maker or 0, time made or 0, time used, flags.
type Slot = [u32; 5];

/// The keys, 0 for a free slot, and what belongs to them. Integers only: the standard library gets a vector of
/// zeros from the system as memory that is not touched before it is used.
pub(super) type Bucket = ([u64; SLOTS], [Slot; SLOTS]);

/// A bucket without entries.
pub(super) const EMPTY: Bucket = ([0; SLOTS], [[0; 5]; SLOTS]);

/// The place of a key.
pub(super) fn position(bucket: &Bucket, key: ObjectKey) -> Option<usize> {
    bucket.0.iter().position(|other| *other == key.hash())
}

/// A free place.
pub(super) fn free_position(bucket: &Bucket) -> Option<usize> {
    bucket.0.iter().position(|key| *key == 0)
}

/// How many places are free.
pub(super) fn free_count(bucket: &Bucket) -> usize {
    bucket.0.iter().filter(|key| **key == 0).count()
}

/// The entry of a place.
pub(super) fn get(bucket: &Bucket, position: usize) -> Option<StoredHome> {
    let key = bucket.0.get(position).copied().filter(|key| *key != 0)?;
    let [resource, maker, made_at, used_at, flags] = *bucket.1.get(position)?;
    let home = Home {
        resource: ResourceTag::from_hash(resource),
        maker: OwnerTag::from_hash(maker),
        made_at: (made_at != 0).then_some(made_at),
        lags: flags & LAGS != 0,
    };
    Some(StoredHome { key: ObjectKey::from_hash(key), home, used_at })
}

/// Replaces the entry of a place, or frees it.
pub(super) fn set(bucket: &mut Bucket, position: usize, entry: Option<StoredHome>) {
    let (Some(key), Some(slot)) = (bucket.0.get_mut(position), bucket.1.get_mut(position)) else { return };
    let Some(StoredHome { key: new_key, home, used_at }) = entry else {
        (*key, *slot) = (0, [0; 5]);
        return;
    };
    *key = new_key.hash();
    *slot = [
        home.resource.hash(),
        home.maker.map_or(0, OwnerTag::hash),
        home.made_at.unwrap_or(0),
        used_at,
        u32::from(home.lags) * LAGS,
    ];
}

/// The entries of a bucket, each with its place.
pub(super) fn entries(bucket: &Bucket) -> impl Iterator<Item = (usize, StoredHome)> + '_ {
    (0..SLOTS).filter_map(|position| Some((position, get(bucket, position)?)))
}
