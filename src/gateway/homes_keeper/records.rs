//! Between the memory of homes and the records of its log.

use crate::routing::homes::{Change, Home, Homes, ObjectKey, OwnerTag, ResourceTag, StoredHome};
use crate::state::homes_log::{HomeEntry, HomeRecord, encode};

/// Appends an entry of the memory to `into`.
pub(super) fn encode_entry(entry: &StoredHome, into: &mut Vec<u8>) {
    encode(HomeRecord::Stored(to_entry(entry)), into);
}

/// Appends a change to `into`.
pub(super) fn encode_change(change: &Change, into: &mut Vec<u8>) {
    let record = match change {
        Change::Stored(entry) => HomeRecord::Stored(to_entry(entry)),
        Change::Forgotten(key) => HomeRecord::Forgotten(key.hash()),
    };
    encode(record, into);
}

/// Does to the memory what a record says.
pub(super) fn apply(record: HomeRecord, homes: &Homes) {
    match record {
        HomeRecord::Stored(entry) => homes.store(from_entry(entry)),
        HomeRecord::Forgotten(key) => homes.forget(ObjectKey::from_hash(key)),
        HomeRecord::SnapshotEnd => {}
    }
}

fn to_entry(StoredHome { key, home, used_at }: &StoredHome) -> HomeEntry {
    HomeEntry {
        key: key.hash(),
        resource: home.resource.hash(),
        maker: home.maker.map_or(0, OwnerTag::hash),
        made_at: home.made_at.unwrap_or(0),
        used_at: *used_at,
        lags: home.lags,
    }
}

fn from_entry(entry: HomeEntry) -> StoredHome {
    let home = Home {
        resource: ResourceTag::from_hash(entry.resource),
        maker: OwnerTag::from_hash(entry.maker),
        made_at: (entry.made_at != 0).then_some(entry.made_at),
        lags: entry.lags,
    };
    StoredHome { key: ObjectKey::from_hash(entry.key), home, used_at: entry.used_at }
}
