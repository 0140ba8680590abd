//! The objects of a resource that are neither files nor responses: vector stores, containers, conversations,
//! threads, …

use bytes::Bytes;
use serde_json::Value;

use super::bounded_store::{BoundedStore, StoreLimits};

const LIMITS: StoreLimits = StoreLimits { entries: 20_000, bytes: 128 * 1024 * 1024 };

/// Objects by kind (the value of their `object` field, such as `thread`), the object that they belong to, and
/// id.
#[derive(Debug)]
pub(in crate::demo) struct ObjectStore(BoundedStore<StoredObject>);

#[derive(Debug, Clone)]
pub(in crate::demo) struct StoredObject {
    /// The id of the object that it belongs to; empty if there is none.
    parent_id: String,
    pub(in crate::demo) json: Value,
    /// The content of a file of a container.
    pub(in crate::demo) content: Bytes,
}

impl Default for ObjectStore {
    fn default() -> Self {
        Self(BoundedStore::new(LIMITS))
    }
}

impl ObjectStore {
    /// Stores an object that belongs to no other.
    pub(in crate::demo) fn insert(&mut self, kind: &str, id: &str, json: Value) {
        self.insert_child(kind, "", id, json, Bytes::new());
    }

    /// Stores an object that belongs to another, such as a file of a container.
    pub(in crate::demo) fn insert_child(
        &mut self,
        kind: &str,
        parent_id: &str,
        id: &str,
        json: Value,
        content: Bytes,
    ) {
        let bytes = json.to_string().len() * 3 + content.len() + 256;
        let object = StoredObject { parent_id: parent_id.to_owned(), json, content };
        self.0.insert(&key(kind, parent_id, id), object, bytes);
    }

    pub(in crate::demo) fn get(&self, kind: &str, id: &str) -> Option<&Value> {
        self.child(kind, "", id).map(|object| &object.json)
    }

    pub(in crate::demo) fn get_mut(&mut self, kind: &str, id: &str) -> Option<&mut Value> {
        self.0.get_mut(&key(kind, "", id)).map(|object| &mut object.json)
    }

    pub(in crate::demo) fn child(&self, kind: &str, parent_id: &str, id: &str) -> Option<&StoredObject> {
        self.0.get(&key(kind, parent_id, id))
    }

    /// The objects of a kind that belong to the object `parent_id` (or to none, if it is empty), oldest first.
    pub(in crate::demo) fn list(&self, kind: &str, parent_id: &str) -> Vec<&StoredObject> {
        let prefix = key(kind, parent_id, "");
        self.0.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, object)| object).collect()
    }

    /// Removes an object, and all that belong to it.
    pub(in crate::demo) fn remove(&mut self, kind: &str, parent_id: &str, id: &str) {
        self.0.remove(&key(kind, parent_id, id));
        if parent_id.is_empty() {
            let orphans: Vec<String> = self
                .0
                .iter()
                .filter(|(_, object)| object.parent_id == id)
                .map(|(key, _)| key.to_owned())
                .collect();
            for orphan in orphans {
                self.0.remove(&orphan);
            }
        }
    }
}

/// Ids contain no line breaks: those of paths are percent-decoded, but then they are found nowhere.
fn key(kind: &str, parent_id: &str, id: &str) -> String {
    format!("{kind}\n{parent_id}\n{id}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_listed_with_their_parent_and_leave_with_it() {
        let mut store = ObjectStore::default();
        store.insert("container", "c1", json!("c1"));
        store.insert("container", "c2", json!("c2"));
        for (parent, id) in [("c1", "f1"), ("c2", "f2"), ("c1", "f3"), ("c1", "f1")] {
            store.insert_child("container.file", parent, id, json!(id), Bytes::from_static(b"x"));
        }
        let ids = |store: &ObjectStore, kind: &str, parent: &str| {
            store.list(kind, parent).iter().map(|object| object.json.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&store, "container", ""), ["c1", "c2"]);
        assert_eq!(ids(&store, "container.file", "c1"), ["f3", "f1"], "a replaced object is the newest");
        assert!(store.child("container.file", "c2", "f1").is_none());
        store.remove("container", "", "c1");
        assert_eq!(ids(&store, "container.file", "c1"), Vec::<Value>::new());
        assert_eq!(ids(&store, "container.file", "c2"), ["f2"]);
    }
}
