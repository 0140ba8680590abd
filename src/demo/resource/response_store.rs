//! The responses of the Responses API that a resource remembers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use serde_json::Value;

/// Responses that are kept; the oldest are dropped first.
const MAX_STORED_RESPONSES: usize = 10_000;

/// The responses of a resource, or those of one WebSocket.
#[derive(Debug, Default)]
pub(in crate::demo) struct ResponseStore {
    responses_by_id: HashMap<String, StoredResponse>,
    ids_oldest_first: VecDeque<String>,
    /// Output items by which a later request may refer to a response (`item_reference`).
    output_item_ids: HashSet<String>,
}

#[derive(Debug, Clone)]
pub(in crate::demo) struct StoredResponse {
    /// The response object once it is complete.
    pub(in crate::demo) finished_json: Value,
    /// The response object while it is in progress.
    pub(in crate::demo) pending_json: Value,
    /// The conversation so far, as text.
    pub(in crate::demo) conversation_text: String,
    pub(in crate::demo) input_items: Vec<Value>,
    pub(in crate::demo) stream_events: Vec<Value>,
    /// When a background response is complete.
    pub(in crate::demo) finishes_at: Instant,
    pub(in crate::demo) is_cancelled: bool,
}

impl ResponseStore {
    pub(in crate::demo) fn insert(&mut self, id: &str, response: StoredResponse) {
        if self.ids_oldest_first.len() == MAX_STORED_RESPONSES
            && let Some(oldest) = self.ids_oldest_first.pop_front()
        {
            self.responses_by_id.remove(&oldest);
        }
        let items = response.finished_json.get("output").and_then(Value::as_array).into_iter().flatten();
        self.output_item_ids.extend(items.filter_map(|item| item.get("id")?.as_str().map(str::to_owned)));
        self.ids_oldest_first.push_back(id.to_owned());
        self.responses_by_id.insert(id.to_owned(), response);
    }

    pub(in crate::demo) fn get(&self, id: &str) -> Option<&StoredResponse> {
        self.responses_by_id.get(id)
    }

    pub(in crate::demo) fn get_mut(&mut self, id: &str) -> Option<&mut StoredResponse> {
        self.responses_by_id.get_mut(id)
    }

    pub(in crate::demo) fn remove(&mut self, id: &str) {
        self.responses_by_id.remove(id);
    }

    pub(in crate::demo) fn has_output_item(&self, item_id: &str) -> bool {
        self.output_item_ids.contains(item_id)
    }
}
