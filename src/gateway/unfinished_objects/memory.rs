//! The objects that a process remembers.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::names::ClientName;
use crate::record::stored_objects::{StoredObjectKey, UnfinishedObject};

/// The most objects that are remembered. Beyond it the oldest one of the client with most of them is forgotten.
const MAX_OBJECTS: usize = 16 * 1024;

/// Objects that have not ended.
#[derive(Debug, Default)]
pub(super) struct ObjectMemory {
    by_key: HashMap<StoredObjectKey, UnfinishedObject>,
    by_client: HashMap<Option<ClientName>, ObjectsOfClient>,
}

/// The objects of one client.
#[derive(Debug, Default)]
struct ObjectsOfClient {
    /// Oldest first. Those that have ended may still be here.
    in_order: VecDeque<StoredObjectKey>,
    /// How many have not ended.
    open: usize,
}

impl ObjectMemory {
    /// Adds an object, unless it is there. Returns the one that is forgotten for it.
    pub(super) fn insert(
        &mut self,
        key: StoredObjectKey,
        object: UnfinishedObject,
    ) -> Option<StoredObjectKey> {
        let client = object.client();
        let Entry::Vacant(entry) = self.by_key.entry(key) else { return None };
        entry.insert(object);
        let objects = self.by_client.entry(client).or_default();
        objects.in_order.push_back(key);
        objects.open += 1;
        if self.by_key.len() > MAX_OBJECTS { self.remove_oldest_of_largest_client() } else { None }
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, key: StoredObjectKey) -> Option<UnfinishedObject> {
        let object = self.by_key.remove(&key)?;
        if let Entry::Occupied(mut entry) = self.by_client.entry(object.client()) {
            let objects = entry.get_mut();
            objects.open = objects.open.saturating_sub(1);
            if objects.open == 0 {
                entry.remove();
            } else if objects.in_order.len() > 2 * objects.open {
                // So that those that have ended do not collect.
                objects.in_order.retain(|key| self.by_key.contains_key(key));
            }
        }
        Some(object)
    }

    /// An object.
    pub(super) fn get(&self, key: StoredObjectKey) -> Option<&UnfinishedObject> {
        self.by_key.get(&key)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// All of them, of each client oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = (StoredObjectKey, &UnfinishedObject)> {
        let objects = self.by_client.values().flat_map(|objects| &objects.in_order);
        objects.filter_map(|key| Some((*key, self.by_key.get(key)?)))
    }

    fn remove_oldest_of_largest_client(&mut self) -> Option<StoredObjectKey> {
        let objects = self.by_client.values_mut().max_by_key(|objects| objects.open)?;
        while let Some(key) = objects.in_order.pop_front() {
            if self.by_key.contains_key(&key) {
                self.remove(key);
                return Some(key);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(client: &str) -> UnfinishedObject {
        serde_json::from_str(&format!(r#"{{"made_by":"{client}"}}"#)).unwrap()
    }

    fn key(client: &str, number: usize) -> StoredObjectKey {
        StoredObjectKey::of(&format!("{client}{number}"))
    }

    #[test]
    fn a_client_with_too_many_objects_loses_its_own_oldest_ones() {
        let mut memory = ObjectMemory::default();
        for number in 0..100 {
            memory.insert(key("small", number), object("small"));
        }
        for number in 0..2 * MAX_OBJECTS {
            memory.insert(key("large", number), object("large"));
        }
        assert_eq!((memory.by_key.len(), memory.all().count()), (MAX_OBJECTS, MAX_OBJECTS));
        assert!(memory.remove(key("large", 0)).is_none());
        assert!(memory.remove(key("large", 2 * MAX_OBJECTS - 1)).is_some());
        assert!((0..100).all(|number| memory.remove(key("small", number)).is_some()));
        // Those that have ended take no room.
        for number in 0..3 * MAX_OBJECTS {
            memory.insert(key("busy", number), object("busy"));
            assert!(memory.remove(key("busy", number)).is_some());
            assert!(memory.remove(key("busy", number)).is_none());
        }
        assert!(!memory.by_client.contains_key(&Some(ClientName::new("busy"))));
        assert!(memory.by_client.values().all(|objects| objects.in_order.len() <= 2 * objects.open));
    }
}
