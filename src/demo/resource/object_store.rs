//! The objects of a resource that are neither files nor responses: batches, threads, vector stores, ...

use std::collections::BTreeMap;

use serde_json::Value;

/// Objects by id, each with its kind (the value of its `object` field, such as `thread`).
#[derive(Debug, Default)]
pub(in crate::demo) struct ObjectStore {
    kinds_and_objects_by_id: BTreeMap<String, (String, Value)>,
}

impl ObjectStore {
    pub(in crate::demo) fn insert(&mut self, id: &str, kind: &str, object: Value) {
        self.kinds_and_objects_by_id.insert(id.to_owned(), (kind.to_owned(), object));
    }

    pub(in crate::demo) fn get(&self, id: &str, kind: &str) -> Option<&Value> {
        self.kinds_and_objects_by_id
            .get(id)
            .filter(|(stored_kind, _)| stored_kind == kind)
            .map(|(_, object)| object)
    }

    pub(in crate::demo) fn list_of_kind(&self, kind: &str) -> Vec<&Value> {
        self.kinds_and_objects_by_id
            .values()
            .filter(|(stored_kind, _)| stored_kind == kind)
            .map(|(_, object)| object)
            .collect()
    }

    pub(in crate::demo) fn remove(&mut self, id: &str) {
        self.kinds_and_objects_by_id.remove(id);
    }
}
