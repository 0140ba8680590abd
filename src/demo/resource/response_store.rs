//! The responses of the Responses API that a resource remembers, and their items.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bounded_store::{BoundedStore, StoreLimits};
use super::conversation_history::ConversationHistory;

const RESOURCE_LIMITS: StoreLimits = StoreLimits { entries: 10_000, bytes: 256 * 1024 * 1024 };
/// A WebSocket keeps the responses that are not stored until it is closed.
const WEBSOCKET_LIMITS: StoreLimits = StoreLimits { entries: 100, bytes: 16 * 1024 * 1024 };
/// Items of responses that were not stored, by which a request is told why they are not found.
const UNSTORED_ITEM_LIMITS: StoreLimits = StoreLimits { entries: 10_000, bytes: usize::MAX };
/// A background response is queued for this part of the time that it takes.
const QUEUED_PART: u32 = 4;

/// The responses of a resource, or those of one WebSocket.
#[derive(Debug)]
pub(in crate::demo) struct ResponseStore {
    responses_by_id: BoundedStore<StoredResponse>,
    /// The response that each input and output item belongs to.
    response_ids_by_item_id: HashMap<String, String>,
    unstored_item_ids: BoundedStore<()>,
}

#[derive(Debug, Clone)]
pub(in crate::demo) struct StoredResponse {
    pub(in crate::demo) id: String,
    /// The response object once it is complete.
    pub(in crate::demo) finished_json: Value,
    /// The response object before there is output. Its status is `queued` or `in_progress`.
    pub(in crate::demo) pending_json: Value,
    /// The conversation up to the end of this response.
    pub(in crate::demo) history: ConversationHistory,
    pub(in crate::demo) input_items: Vec<Value>,
    pub(in crate::demo) stream_events: Vec<Value>,
    pub(in crate::demo) created_at: Instant,
    /// When a background response is complete.
    pub(in crate::demo) finishes_at: Instant,
    pub(in crate::demo) is_cancelled: bool,
    pub(in crate::demo) readability: Readability,
}

/// From when on a response and its items are found.
///
/// Azure does not find a streamed response for some seconds after its stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum Readability {
    Immediate,
    /// The stream has not ended.
    WhileStreamed,
    From(Instant),
}

/// What a background response is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum BackgroundStatus {
    Queued,
    InProgress,
    Done,
}

impl ResponseStore {
    pub(in crate::demo) fn of_resource() -> Self {
        Self::with_limits(RESOURCE_LIMITS)
    }

    pub(in crate::demo) fn of_websocket() -> Self {
        Self::with_limits(WEBSOCKET_LIMITS)
    }

    fn with_limits(limits: StoreLimits) -> Self {
        Self {
            responses_by_id: BoundedStore::new(limits),
            response_ids_by_item_id: HashMap::new(),
            unstored_item_ids: BoundedStore::new(UNSTORED_ITEM_LIMITS),
        }
    }

    pub(in crate::demo) fn insert(&mut self, response: StoredResponse) {
        for item_id in response.item_ids() {
            self.response_ids_by_item_id.insert(item_id.to_owned(), response.id.clone());
        }
        let id = response.id.clone();
        let bytes = response.estimated_bytes();
        for forgotten in self.responses_by_id.insert(&id, response, bytes) {
            self.forget_items(&forgotten);
        }
    }

    /// The response of this id, unless it cannot be read yet.
    pub(in crate::demo) fn get(&self, id: &str, now: Instant) -> Option<&StoredResponse> {
        self.responses_by_id.get(id).filter(|response| response.is_readable(now))
    }

    pub(in crate::demo) fn get_mut(&mut self, id: &str, now: Instant) -> Option<&mut StoredResponse> {
        self.responses_by_id.get_mut(id).filter(|response| response.is_readable(now))
    }

    pub(in crate::demo) fn remove(&mut self, id: &str) {
        if let Some(response) = self.responses_by_id.remove(id) {
            self.forget_items(&response);
        }
    }

    /// The input or output item of this id, unless its response cannot be read yet.
    pub(in crate::demo) fn item(&self, item_id: &str, now: Instant) -> Option<&Value> {
        let response = self.get(self.response_ids_by_item_id.get(item_id)?, now)?;
        response.items().find(|item| id_of(item) == Some(item_id) && !is_reference(item))
    }

    /// The stream of a response has ended: it can be read after the read lag, if it could not be read before.
    /// If the whole stream was sent, a background response is complete.
    pub(in crate::demo) fn on_stream_end(
        &mut self,
        id: &str,
        now: Instant,
        read_lag: Duration,
        is_complete: bool,
    ) {
        let Some(response) = self.responses_by_id.get_mut(id) else { return };
        if response.readability == Readability::WhileStreamed {
            response.readability = Readability::From(now + read_lag);
        }
        if is_complete {
            response.finishes_at = response.finishes_at.min(now);
        }
    }

    /// Notes the items of a response that is not stored.
    pub(in crate::demo) fn note_unstored_items(&mut self, items: &[Value]) {
        for id in items.iter().filter_map(id_of) {
            self.unstored_item_ids.insert(id, (), id.len());
        }
    }

    /// Whether this is an item of a response that was not stored.
    pub(in crate::demo) fn is_unstored_item(&self, item_id: &str) -> bool {
        self.unstored_item_ids.get(item_id).is_some()
    }

    fn forget_items(&mut self, response: &StoredResponse) {
        for item_id in response.item_ids() {
            // A later response may have been given the same input item.
            if self.response_ids_by_item_id.get(item_id).is_some_and(|owner| *owner == response.id) {
                self.response_ids_by_item_id.remove(item_id);
            }
        }
    }
}

impl StoredResponse {
    /// Where a response that was created in the background is.
    pub(in crate::demo) fn background_status(&self, now: Instant) -> BackgroundStatus {
        let duration = self.finishes_at.saturating_duration_since(self.created_at);
        if self.is_cancelled || now >= self.finishes_at {
            BackgroundStatus::Done
        } else if now < self.created_at + duration / QUEUED_PART {
            BackgroundStatus::Queued
        } else {
            BackgroundStatus::InProgress
        }
    }

    fn is_readable(&self, now: Instant) -> bool {
        match self.readability {
            Readability::Immediate => true,
            Readability::WhileStreamed => false,
            Readability::From(instant) => now >= instant,
        }
    }

    fn items(&self) -> impl Iterator<Item = &Value> {
        let output = self.finished_json.get("output").and_then(Value::as_array).into_iter().flatten();
        self.input_items.iter().chain(output)
    }

    fn item_ids(&self) -> impl Iterator<Item = &str> {
        // A reference has the id of the item that it refers to, which belongs to another response.
        self.items().filter(|item| !is_reference(item)).filter_map(id_of)
    }

    /// The objects, the events and the history repeat much of each other.
    fn estimated_bytes(&self) -> usize {
        let input_bytes: usize = self.input_items.iter().map(|item| item.to_string().len()).sum();
        let event_count = self.stream_events.len();
        self.finished_json.to_string().len() * 5 + input_bytes + event_count * 200 + self.history.byte_count()
    }
}

fn id_of(item: &Value) -> Option<&str> {
    item.get("id").and_then(Value::as_str)
}

/// Whether an input item stands for another item.
pub(in crate::demo) fn is_reference(item: &Value) -> bool {
    item.get("type").and_then(Value::as_str) == Some("item_reference")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn response(id: &str, now: Instant, readability: Readability) -> StoredResponse {
        StoredResponse {
            id: id.to_owned(),
            finished_json: json!({"id": id, "output": [{"id": format!("msg_{id}")}]}),
            pending_json: json!({"id": id}),
            history: ConversationHistory::default(),
            input_items: vec![json!({"id": format!("in_{id}")})],
            stream_events: Vec::new(),
            created_at: now,
            finishes_at: now + Duration::from_secs(4),
            is_cancelled: false,
            readability,
        }
    }

    #[test]
    fn a_streamed_response_and_its_items_are_found_after_the_read_lag() {
        let (mut store, now) = (ResponseStore::of_resource(), Instant::now());
        store.insert(response("r", now, Readability::WhileStreamed));
        let is_found = |store: &ResponseStore, now| {
            let found = ["in_r", "msg_r"].map(|id| store.item(id, now).is_some());
            assert_eq!(found, [store.get("r", now).is_some(); 2]);
            found[0]
        };
        let lag = Duration::from_secs(5);
        assert!(!is_found(&store, now + lag * 10), "while it is streamed");
        store.on_stream_end("r", now, lag, true);
        assert!(!is_found(&store, now + lag - Duration::from_millis(1)));
        assert!(is_found(&store, now + lag));
        store.remove("r");
        assert!(!is_found(&store, now + lag) && store.response_ids_by_item_id.is_empty());
    }

    #[test]
    fn forgotten_responses_take_their_items_with_them() {
        let (mut store, now) = (ResponseStore::of_websocket(), Instant::now());
        for number in 0..150 {
            store.insert(response(&number.to_string(), now, Readability::Immediate));
        }
        assert_eq!(store.response_ids_by_item_id.len(), 200);
        assert!(store.item("msg_49", now).is_none() && store.item("msg_50", now).is_some());
    }

    #[test]
    fn a_background_response_is_queued_then_in_progress_then_done() {
        let now = Instant::now();
        let mut stored = response("r", now, Readability::Immediate);
        let cases = [
            (0, BackgroundStatus::Queued),
            (1, BackgroundStatus::InProgress),
            (3, BackgroundStatus::InProgress),
            (4, BackgroundStatus::Done),
        ];
        for (seconds, status) in cases {
            assert_eq!(stored.background_status(now + Duration::from_secs(seconds)), status, "{seconds} s");
        }
        stored.is_cancelled = true;
        assert_eq!(stored.background_status(now), BackgroundStatus::Done);
    }
}
