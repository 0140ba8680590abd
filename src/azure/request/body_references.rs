//! Finds the places in a JSON body that hold ids of other objects, while the body is parsed. The ids themselves are
//! read later, if they are needed.

use super::reference_kind::ReferenceKind;
use super::reference_kind::ReferenceKind::{
    Container, Conversation, EncryptedContent, File, Item, PreviousResponse, Response, Upload, VectorStore,
    Video,
};
use crate::azure::json::KeyVisitor;
use crate::azure::json_keys::{KeyFilter, KeySet};
use crate::azure::json_validator::{KeyPath, WantedDepths};

/// How many places of one body are remembered. It bounds the memory; Azure accepts far fewer.
pub(in crate::azure) const MAX_BODY_REFERENCES: usize = 65_536;

/// A value that may be an id, or an array of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::azure) struct BodyReference {
    pub(in crate::azure) kind: ReferenceKind,
    /// Where the value begins in the body.
    pub(in crate::azure) value_offset: usize,
}

/// What a top-level key of a body can refer to.
#[derive(Debug)]
pub(in crate::azure) struct Places {
    /// The kind of its own value, if that is a string or an array of strings.
    own: Option<ReferenceKind>,
    /// The places inside of its value. `*` is any key.
    inner: &'static [(&'static str, ReferenceKind)],
    /// Accepts the keys at these places.
    filter: KeyFilter,
    /// The depths of these places.
    depths: WantedDepths,
}

impl Places {
    const fn own(kind: ReferenceKind) -> Self {
        Self { own: Some(kind), ..Self::inner(&[]) }
    }

    /// The patterns of all places under the key `root`, each with its kind.
    #[cfg(test)]
    pub(in crate::azure) fn patterns_under(&self, root: &str) -> Vec<(String, ReferenceKind)> {
        let own = self.own.map(|kind| (format!(".{root}"), kind));
        own.into_iter()
            .chain(self.inner.iter().map(|(inner, kind)| (format!(".{root}{inner}"), *kind)))
            .collect()
    }

    const fn inner(inner: &'static [(&'static str, ReferenceKind)]) -> Self {
        let (mut filter, mut depths, mut index) = (KeyFilter::NOTHING, WantedDepths::NONE, 0);
        while index < inner.len() {
            let pattern = inner[index].0.as_bytes();
            depths = depths.with(depth_of(pattern));
            let mut start = pattern.len();
            while start > 0 && !matches!(pattern[start - 1], b'.' | b']') {
                start -= 1;
            }
            filter = filter.with_key(pattern, start);
            index += 1;
        }
        Self { own: None, inner, filter, depths }
    }
}

/// How many containers are around the key of a pattern.
const fn depth_of(pattern: &[u8]) -> usize {
    let (mut depth, mut index) = (0, 0);
    while index < pattern.len() {
        depth += matches!(pattern[index], b'.' | b'[') as usize;
        index += 1;
    }
    depth
}

/// The places by top-level key (<https://learn.microsoft.com/azure/ai-foundry/openai/latest>). Keys such as
/// `metadata`, and what a tool or a schema defines, are not among them: their values are the client's own.
pub(in crate::azure) static PLACES: [(&str, &Places); 20] = [
    ("previous_response_id", &Places::own(PreviousResponse)),
    // Of a frame.
    ("response_id", &Places::own(Response)),
    ("conversation", &Places { own: Some(Conversation), ..Places::inner(&[(".id", Conversation)]) }),
    // Of Responses.
    ("input", &ITEMS),
    // Of conversations.
    ("items", &ITEMS),
    (
        "tools",
        &Places::inner(&[
            ("[].vector_store_ids", VectorStore),
            ("[].container", Container),
            ("[].container.file_ids", File),
            ("[].environment.container_id", Container),
            ("[].environment.file_ids", File),
            ("[].input_image_mask.file_id", File),
        ]),
    ),
    // Of chat.
    ("messages", &Places::inner(&[("[].content[].file.file_id", File)])),
    // A prompt template, whose variables can be files.
    ("prompt", &Places::inner(&[(".variables.*.file_id", File)])),
    // Of vector stores, containers, batches and fine-tuning.
    ("file_id", &Places::own(File)),
    ("file_ids", &Places::own(File)),
    ("input_file_id", &Places::own(File)),
    ("training_file", &Places::own(File)),
    ("validation_file", &Places::own(File)),
    // Of a batch of files in a vector store.
    ("files", &Places::inner(&[("[].file_id", File)])),
    // Of an upload that is completed.
    ("part_ids", &Places::own(Upload)),
    // Of an eval's run.
    ("data_source", &Places::inner(&[(".source.id", File)])),
    // Of images and videos.
    ("images", &Places::inner(&[("[].file_id", File)])),
    ("mask", &Places::inner(&[(".file_id", File)])),
    ("input_reference", &Places::inner(&[(".file_id", File)])),
    ("video", &Places::inner(&[(".id", Video)])),
];

const ITEMS: Places = Places::inner(&[
    ("[].id", Item),
    ("[].approval_request_id", Item),
    ("[].encrypted_content", EncryptedContent),
    ("[].content[].encrypted_content", EncryptedContent),
    ("[].content[].file_id", File),
    ("[].output[].file_id", File),
    ("[].output.file_id", File),
]);

/// The keys of [`PLACES`].
const TOP_LEVEL_KEYS: KeySet<{ PLACES.len() }> = {
    let (mut names, mut index) = ([""; PLACES.len()], 0);
    while index < PLACES.len() {
        names[index] = PLACES[index].0;
        index += 1;
    }
    KeySet::new(names)
};

/// Collects the places in a body.
#[derive(Debug, Default)]
pub(in crate::azure) struct ReferenceCollector {
    references: Vec<BodyReference>,
    /// The places under the current top-level key.
    places: Option<&'static Places>,
    has_too_many: bool,
}

impl ReferenceCollector {
    /// The places in their order. `None` if they are more than [`MAX_BODY_REFERENCES`].
    pub(in crate::azure) fn into_references(self) -> Option<Vec<BodyReference>> {
        (!self.has_too_many).then_some(self.references)
    }

    fn push(&mut self, kind: ReferenceKind, value_offset: usize) {
        if self.references.len() < MAX_BODY_REFERENCES {
            self.references.push(BodyReference { kind, value_offset });
        } else {
            self.has_too_many = true;
        }
    }
}

impl KeyVisitor for ReferenceCollector {
    fn on_key(&mut self, key: &[u8], value_offset: usize) -> WantedDepths {
        self.places =
            TOP_LEVEL_KEYS.index_of(key).and_then(|index| PLACES.get(index)).map(|(_, places)| *places);
        let Some(places) = self.places else { return WantedDepths::NONE };
        if let Some(kind) = places.own {
            self.push(kind, value_offset);
        }
        places.depths
    }

    #[inline]
    fn wants_inner_key(&self, key: &[u8]) -> bool {
        self.places.is_some_and(|places| places.filter.accepts(key))
    }

    fn on_inner_key(&mut self, path: &KeyPath<'_>) {
        let inner = self.places.map(|places| places.inner).unwrap_or_default();
        if let Some((_, kind)) = inner.iter().find(|(pattern, _)| is_at(path, pattern)) {
            self.push(*kind, path.value_offset);
        }
    }
}

/// Whether a key is at the place that a pattern describes. Keys are compared without case, as at the top level.
fn is_at(path: &KeyPath<'_>, pattern: &str) -> bool {
    let mut rest = pattern;
    for step in path.steps() {
        let Some(key) = step else {
            let Some(after) = rest.strip_prefix("[]") else { return false };
            rest = after;
            continue;
        };
        let Some(from_name) = rest.strip_prefix('.') else { return false };
        let end = from_name.find(['.', '[']).unwrap_or(from_name.len());
        let (name, after) = from_name.split_at(end);
        if name != "*" && !name.as_bytes().eq_ignore_ascii_case(&key) {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_accept_the_keys_of_all_places() {
        for (root, places) in &PLACES {
            for (pattern, _) in places.inner {
                let key = pattern.rsplit('.').next().unwrap();
                assert!(places.filter.accepts(key.as_bytes()), "{pattern}");
                assert!(places.filter.accepts(key.to_ascii_uppercase().as_bytes()), "{pattern}");
                assert!(
                    pattern.matches(['.', '[']).count() <= 5,
                    "{pattern} is deeper than keys are visited"
                );
            }
            for key in ["", "type", "role", "content", "text", "name", "description"] {
                assert!(!places.filter.accepts(key.as_bytes()), "{root}: {key}");
            }
        }
    }
}
