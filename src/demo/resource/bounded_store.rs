//! What a resource remembers, within limits: the oldest is forgotten first.

use std::collections::{BTreeMap, HashMap};

/// How much a store may hold.
#[derive(Debug, Clone, Copy)]
pub(in crate::demo) struct StoreLimits {
    pub(in crate::demo) entries: usize,
    /// Bytes of all entries together, as their owner estimates them.
    pub(in crate::demo) bytes: usize,
}

/// Values by key, in the order in which they were inserted.
#[derive(Debug)]
pub(in crate::demo) struct BoundedStore<V> {
    limits: StoreLimits,
    entries_by_key: HashMap<String, Entry<V>>,
    keys_oldest_first: BTreeMap<u64, String>,
    next_number: u64,
    total_bytes: usize,
}

#[derive(Debug)]
struct Entry<V> {
    number: u64,
    bytes: usize,
    value: V,
}

impl<V> BoundedStore<V> {
    pub(in crate::demo) fn new(limits: StoreLimits) -> Self {
        Self {
            limits,
            entries_by_key: HashMap::new(),
            keys_oldest_first: BTreeMap::new(),
            next_number: 0,
            total_bytes: 0,
        }
    }

    /// Inserts or replaces a value. Returns those that were forgotten to make room; never the new one, however
    /// large it is.
    pub(in crate::demo) fn insert(&mut self, key: &str, value: V, bytes: usize) -> Vec<V> {
        self.remove(key);
        let number = self.next_number;
        self.next_number += 1;
        self.total_bytes = self.total_bytes.saturating_add(bytes);
        self.keys_oldest_first.insert(number, key.to_owned());
        self.entries_by_key.insert(key.to_owned(), Entry { number, bytes, value });
        self.forget_oldest()
    }

    pub(in crate::demo) fn get(&self, key: &str) -> Option<&V> {
        self.entries_by_key.get(key).map(|entry| &entry.value)
    }

    pub(in crate::demo) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.entries_by_key.get_mut(key).map(|entry| &mut entry.value)
    }

    /// Counts more bytes for a value that has grown.
    pub(in crate::demo) fn add_bytes(&mut self, key: &str, bytes: usize) {
        if let Some(entry) = self.entries_by_key.get_mut(key) {
            entry.bytes = entry.bytes.saturating_add(bytes);
            self.total_bytes = self.total_bytes.saturating_add(bytes);
            self.forget_oldest();
        }
    }

    pub(in crate::demo) fn remove(&mut self, key: &str) -> Option<V> {
        let entry = self.entries_by_key.remove(key)?;
        self.keys_oldest_first.remove(&entry.number);
        self.total_bytes = self.total_bytes.saturating_sub(entry.bytes);
        Some(entry.value)
    }

    /// All values with their keys, oldest first.
    pub(in crate::demo) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.keys_oldest_first
            .values()
            .filter_map(|key| Some((key.as_str(), &self.entries_by_key.get(key)?.value)))
    }

    fn forget_oldest(&mut self) -> Vec<V> {
        let mut forgotten = Vec::new();
        while self.entries_by_key.len() > 1
            && (self.entries_by_key.len() > self.limits.entries || self.total_bytes > self.limits.bytes)
        {
            let Some((_, oldest)) = self.keys_oldest_first.first_key_value() else { break };
            let oldest = oldest.clone();
            forgotten.extend(self.remove(&oldest));
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_when_there_are_too_many_entries_or_bytes() {
        let mut store = BoundedStore::new(StoreLimits { entries: 3, bytes: 100 });
        let keys =
            |store: &BoundedStore<u32>| store.iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
        for (number, key) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(store.insert(key, number as u32, 10), [0u32; 0]);
        }
        assert_eq!(store.insert("d", 3, 10), [0], "too many entries");
        assert_eq!(store.insert("b", 4, 10), [0u32; 0], "a replaced value is the newest");
        assert_eq!(keys(&store), ["c", "d", "b"]);
        assert_eq!(store.insert("e", 5, 85), [2, 3], "too many bytes");
        assert_eq!(store.insert("f", 6, 1000), [4, 5], "more bytes than the limit allows");
        assert_eq!((keys(&store), store.get("f")), (vec!["f".to_owned()], Some(&6)));
        assert_eq!((store.remove("f"), store.total_bytes), (Some(6), 0));
        store.insert("g", 7, 10);
        store.insert("h", 8, 10);
        store.add_bytes("h", 85);
        assert_eq!(keys(&store), ["h"], "a value that grows makes others forgotten");
    }
}
