//! Reads from responses the ids of the objects that exist on the resource that answered: what it made, and what it
//! lists or names. Takes a JSON body as its bytes pass, the events of a stream, or the frames of a WebSocket.

use super::id_scanner::{Found, IdScanner};
pub use super::learned_id::LearnedId;
use super::learned_id::{decode_id, scan_event};
use super::sse::SseEvent;
use crate::azure::json;
use crate::azure::json_text::text_from_bytes;
use crate::azure::request::operation::Operation;
use crate::azure::request::reference_kind::ReferenceKind;
use crate::azure::request::target::RequestTarget;

/// Reads the ids in one response or in the frames of one socket.
#[derive(Debug)]
pub struct MadeObjectReader {
    /// What the id of the outermost object of a body names, and what a list contains.
    own_kind: ReferenceKind,
    body: IdScanner,
    /// The id of the outermost object, until it is known that it was not deleted.
    own_id: Option<String>,
    is_deleted: bool,
    says_not_stored: bool,
}

impl MadeObjectReader {
    /// A reader for the response to a request; `None` if such responses name no objects.
    pub fn new(target: &RequestTarget) -> Option<Self> {
        let kind_of_operation = match target.operation {
            Operation::Responses => ReferenceKind::Response,
            Operation::Conversations => ReferenceKind::Conversation,
            Operation::Files => ReferenceKind::File,
            Operation::Uploads => ReferenceKind::Upload,
            Operation::Batches => ReferenceKind::Batch,
            Operation::FineTuning => ReferenceKind::Job,
            Operation::VectorStores => ReferenceKind::VectorStore,
            Operation::Containers => ReferenceKind::Container,
            Operation::Evals => ReferenceKind::Eval,
            Operation::Videos => ReferenceKind::Video,
            _ => return None,
        };
        // The content of a file is not Azure's.
        if ["/content", "/content/video", "/content/thumbnail"].iter().any(|end| target.path.ends_with(end)) {
            return None;
        }
        let last_kind = target.path_references().last().map(|(kind, _)| kind);
        let own_kind = target.cursor_kind.or(last_kind).unwrap_or(kind_of_operation);
        Some(Self {
            own_kind,
            body: IdScanner::default(),
            own_id: None,
            is_deleted: false,
            says_not_stored: false,
        })
    }

    /// Takes the next bytes of a JSON body. The id of the outermost object is told when the object ends, unless it
    /// says that it was deleted.
    pub fn on_body_bytes(&mut self, bytes: &[u8], on_id: &mut impl FnMut(LearnedId<'_>)) {
        let Self { own_kind, body, own_id, is_deleted, says_not_stored } = self;
        body.feed(bytes, &mut |found| match found {
            Found::OwnId(content) => {
                *own_id = None;
                decode_id(*own_kind, content, |id| *own_id = Some(id.to_owned()));
            }
            Found::Id(kind, content) => {
                let kind = kind.unwrap_or(*own_kind);
                decode_id(kind, content, |id| on_id(LearnedId { kind, id }));
            }
            Found::Store(is_stored) => *says_not_stored = !is_stored,
            Found::Deleted => *is_deleted = true,
            Found::End => {
                if let Some(id) = own_id.take().filter(|_| !*is_deleted) {
                    on_id(LearnedId { kind: *own_kind, id: &id });
                }
            }
        });
    }

    /// Takes the next event of a stream.
    pub fn on_event(&mut self, event: &SseEvent<'_>, on_id: &mut impl FnMut(LearnedId<'_>)) {
        if !has_ids(event.name, event.data) {
            return;
        }
        match event.oversized_ids {
            Some(ids) => {
                self.says_not_stored |= ids.says_not_stored;
                for (kind, id) in &ids.ids {
                    on_id(LearnedId { kind: *kind, id });
                }
            }
            None => self.read_event(event.data, on_id),
        }
    }

    /// Takes a frame of a WebSocket, which has the JSON of an event.
    pub fn on_frame(&mut self, json: &[u8], on_id: &mut impl FnMut(LearnedId<'_>)) {
        if has_ids(b"", json) {
            self.read_event(json, on_id);
        }
    }

    /// Whether the response said `store: false`, so that it cannot be read or continued later.
    pub fn says_not_stored(&self) -> bool {
        self.says_not_stored
    }

    fn read_event(&mut self, json: &[u8], on_id: &mut impl FnMut(LearnedId<'_>)) {
        self.says_not_stored |= scan_event(&mut IdScanner::default(), json, on_id);
    }
}

/// Whether an event of this name, or with this JSON if it has no name of Responses, can have ids that no event before
/// it had.
fn has_ids(name: &[u8], json: &[u8]) -> bool {
    if name.starts_with(b"response.") {
        return has_ids_by_type(name);
    }
    // Azure writes the type first.
    if let Some(from_type) = json.strip_prefix(b"{\"type\":\"") {
        let end = memchr::memchr(b'"', from_type).unwrap_or(from_type.len());
        return has_ids_by_type(from_type.get(..end).unwrap_or_default());
    }
    let json = text_from_bytes(json);
    let [event_type] = json::find_fields(&json, &["type"]);
    event_type.and_then(json::string_content).is_some_and(|event_type| has_ids_by_type(event_type.as_bytes()))
}

fn has_ids_by_type(event_type: &[u8]) -> bool {
    matches!(
        event_type,
        b"response.created"
            | b"response.output_item.added"
            | b"response.output_item.done"
            | b"response.output_text.annotation.added"
            | b"response.completed"
            | b"response.incomplete"
            | b"response.failed"
            | b"response.cancelled"
    )
}

#[cfg(test)]
#[path = "made_objects_tests.rs"]
mod tests;
