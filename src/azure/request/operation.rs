//! Maps a path to its operation and tells the API's keywords from object ids. Where a request goes is
//! decided elsewhere.

use http::Method;

use super::reference_kind::ReferenceKind;

/// The group of API operations that a request belongs to: `operation` in records and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the name of an API")]
pub enum Operation {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Images,
    Audio,
    Realtime,
    Files,
    Uploads,
    Batches,
    FineTuning,
    Assistants,
    Threads,
    VectorStores,
    Models,
    Containers,
    Evals,
    Videos,
    Conversations,
    Other,
}

impl Operation {
    /// All operations, in declaration order.
    pub const ALL: [Self; 20] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Images,
        Self::Audio,
        Self::Realtime,
        Self::Files,
        Self::Uploads,
        Self::Batches,
        Self::FineTuning,
        Self::Assistants,
        Self::Threads,
        Self::VectorStores,
        Self::Models,
        Self::Containers,
        Self::Evals,
        Self::Videos,
        Self::Conversations,
        Self::Other,
    ];

    /// The name used in records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::Images => "images",
            Self::Audio => "audio",
            Self::Realtime => "realtime",
            Self::Files => "files",
            Self::Uploads => "uploads",
            Self::Batches => "batches",
            Self::FineTuning => "fine_tuning",
            Self::Assistants => "assistants",
            Self::Threads => "threads",
            Self::VectorStores => "vector_stores",
            Self::Models => "models",
            Self::Containers => "containers",
            Self::Evals => "evals",
            Self::Videos => "videos",
            Self::Conversations => "conversations",
            Self::Other => "other",
        }
    }
}

/// Whether repeating the request could create a second object. Such a request is retried only if no
/// byte of it was sent or the response was 429. A Responses request with `background: true` is another
/// such case, but only its body shows it.
pub fn is_non_idempotent_create(method: &Method, operation: Operation) -> bool {
    use Operation::{
        Assistants, Batches, Containers, Evals, Files, FineTuning, Threads, Uploads, VectorStores, Videos,
    };
    method == Method::POST
        && matches!(
            operation,
            Files
                | Uploads
                | Batches
                | FineTuning
                | Threads
                | Assistants
                | VectorStores
                | Evals
                | Containers
                | Videos
        )
}

/// Begins a segment of a path shape that is the id of an object and keeps its spelling.
const ID_START: char = '{';

/// What the id of a path shape names. `{}` is no object that is remembered.
fn id_kind(placeholder: &str) -> Option<ReferenceKind> {
    Some(match placeholder {
        "{response}" => ReferenceKind::Response,
        "{item}" => ReferenceKind::Item,
        "{conversation}" => ReferenceKind::Conversation,
        "{file}" => ReferenceKind::File,
        "{vector_store}" => ReferenceKind::VectorStore,
        "{container}" => ReferenceKind::Container,
        "{upload}" => ReferenceKind::Upload,
        "{batch}" => ReferenceKind::Batch,
        "{job}" => ReferenceKind::Job,
        "{eval}" => ReferenceKind::Eval,
        "{video}" => ReferenceKind::Video,
        "{completion}" => ReferenceKind::ChatCompletion,
        "{call}" => ReferenceKind::Call,
        _ => return None,
    })
}

/// What can follow the first keyword: each shape is a sequence of keywords and ids. A path may end
/// anywhere within a shape.
type PathShapes = &'static [&'static [&'static str]];

/// The first keyword, its operation and its shapes.
type PathRow = (&'static str, Operation, PathShapes);

/// The paths of Azure OpenAI after `/openai`, `/openai/v1` or `/openai/deployments/{d}`
/// (<https://learn.microsoft.com/azure/ai-foundry/openai/reference> and the OpenAPI document of v1).
const PATH_TABLE: &[PathRow] = &[
    ("chat", Operation::Chat, &[&["completions", "{completion}", "messages"]]),
    (
        "responses",
        Operation::Responses,
        &[
            &["compact"],
            &["input_tokens"],
            &["{response}", "cancel"],
            &["{response}", "input_items", "{item}"],
        ],
    ),
    ("embeddings", Operation::Embeddings, &[]),
    ("completions", Operation::Completions, &[]),
    ("audio", Operation::Audio, &[&["transcriptions"], &["translations"], &["speech"]]),
    ("images", Operation::Images, &[&["generations"], &["edits"], &["variations"], &["generations:submit"]]),
    ("extensions", Operation::Chat, &[&["chat", "completions"]]),
    (
        "realtime",
        Operation::Realtime,
        &[&["client_secrets"], &["sessions"], &["transcription_sessions"], &["calls", "{call}"]],
    ),
    ("realtimeapi", Operation::Realtime, &[&["sessions"]]),
    ("files", Operation::Files, &[&["import"], &["{file}", "content"]]),
    (
        "uploads",
        Operation::Uploads,
        &[&["{upload}", "parts"], &["{upload}", "complete"], &["{upload}", "cancel"]],
    ),
    ("batches", Operation::Batches, &[&["{batch}", "cancel"]]),
    (
        "fine_tuning",
        Operation::FineTuning,
        &[
            &["jobs", "{job}", "events", "{job}"],
            &["jobs", "{job}", "checkpoints", "{job}"],
            &["jobs", "{job}", "cancel"],
            &["jobs", "{job}", "pause"],
            &["jobs", "{job}", "resume"],
            &["checkpoints", "{job}", "permissions", "{job}"],
            &["alpha", "graders", "run"],
            &["alpha", "graders", "validate"],
        ],
    ),
    ("assistants", Operation::Assistants, &[&["{}"]]),
    (
        "threads",
        Operation::Threads,
        &[
            &["runs"],
            &["{}", "messages", "{}", "files", "{}"],
            &["{}", "runs", "{}", "steps", "{}"],
            &["{}", "runs", "{}", "submit_tool_outputs"],
            &["{}", "runs", "{}", "cancel"],
        ],
    ),
    (
        "vector_stores",
        Operation::VectorStores,
        &[
            &["{vector_store}", "files", "{file}", "content"],
            &["{vector_store}", "file_batches", "{vector_store}", "files", "{file}"],
            &["{vector_store}", "file_batches", "{vector_store}", "cancel"],
            &["{vector_store}", "search"],
        ],
    ),
    ("models", Operation::Models, &[&["{}"]]),
    ("containers", Operation::Containers, &[&["{container}", "files", "{file}", "content"]]),
    (
        "evals",
        Operation::Evals,
        &[&["{eval}", "runs", "{eval}", "output_items", "{eval}"], &["{eval}", "runs", "{eval}", "cancel"]],
    ),
    (
        "videos",
        Operation::Videos,
        &[
            &["edits"],
            &["extensions"],
            &["characters", "{video}"],
            &["{video}", "content"],
            &["{video}", "remix"],
        ],
    ),
    (
        "video",
        Operation::Videos,
        &[
            &["generations", "jobs", "{video}"],
            &["generations", "{video}", "content", "video"],
            &["generations", "{video}", "content", "thumbnail"],
        ],
    ),
    ("conversations", Operation::Conversations, &[&["{conversation}", "items", "{item}"]]),
];

/// What a segment of a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::azure) enum SegmentKind {
    /// A keyword of the API, in lower case.
    Keyword(&'static str),
    /// An object's id, and what it names if that is remembered.
    Id(Option<ReferenceKind>),
    /// Not in [`PATH_TABLE`].
    Unknown,
}

/// Matches the segments of one path against [`PATH_TABLE`].
pub(in crate::azure) struct PathMatcher {
    row: Option<&'static PathRow>,
    /// One bit for each shape of the row that matches so far.
    matching_shape_bits: u32,
    segments_seen: usize,
}

impl PathMatcher {
    pub(in crate::azure) fn new() -> Self {
        Self { row: None, matching_shape_bits: u32::MAX, segments_seen: 0 }
    }

    /// Classifies the next segment.
    pub(in crate::azure) fn classify_next_segment(&mut self, segment: &str) -> SegmentKind {
        let index = self.segments_seen;
        self.segments_seen += 1;
        if index == 0 {
            self.row = PATH_TABLE.iter().find(|row| row.0.eq_ignore_ascii_case(segment));
            return self.row.map_or(SegmentKind::Unknown, |row| SegmentKind::Keyword(row.0));
        }
        let Some((_, _, shapes)) = self.row else { return SegmentKind::Unknown };
        let (mut keyword_bits, mut id_bits, mut kind, mut id) = (0_u32, 0_u32, SegmentKind::Unknown, "");
        for (bit, shape) in
            shapes.iter().enumerate().filter(|(n, _)| self.matching_shape_bits & (1 << n) != 0)
        {
            match shape.get(index - 1) {
                Some(placeholder) if placeholder.starts_with(ID_START) => {
                    if id_bits == 0 {
                        id = placeholder;
                    }
                    id_bits |= 1 << bit;
                }
                Some(word) if word.eq_ignore_ascii_case(segment) => {
                    keyword_bits |= 1 << bit;
                    kind = SegmentKind::Keyword(word);
                }
                _ => {}
            }
        }
        // A keyword wins over an id: `/responses/compact` is not the response with the id `compact`.
        self.matching_shape_bits = if keyword_bits == 0 { id_bits } else { keyword_bits };
        if keyword_bits == 0 && id_bits != 0 { SegmentKind::Id(id_kind(id)) } else { kind }
    }

    /// What the id after the segments so far would name. It is what a list at this path contains.
    pub(in crate::azure) fn next_id_kind(&self) -> Option<ReferenceKind> {
        let index = self.segments_seen.checked_sub(1)?;
        let shapes = self.row?.2.iter().enumerate().filter(|(n, _)| self.matching_shape_bits & (1 << n) != 0);
        shapes.filter_map(|(_, shape)| shape.get(index).copied()).find_map(id_kind)
    }

    /// The operation, after all segments were classified.
    pub(in crate::azure) fn operation(&self) -> Operation {
        match self.row {
            // `/chat` and `/extensions` are operations only if `completions` follows.
            Some((_, Operation::Chat, _)) if self.segments_seen < 2 || self.matching_shape_bits == 0 => {
                Operation::Other
            }
            Some((_, operation, _)) => *operation,
            None => Operation::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn match_path(path: &str) -> (Operation, Vec<SegmentKind>) {
        let mut matcher = PathMatcher::new();
        let segments = path.split('/').map(|s| matcher.classify_next_segment(s)).collect();
        (matcher.operation(), segments)
    }

    #[test]
    fn segments_are_classified_as_keywords_or_ids() {
        use SegmentKind::{Id, Keyword, Unknown};
        let rows: &[(&str, Operation, &[SegmentKind])] = &[
            ("CHAT/Completions", Operation::Chat, &[Keyword("chat"), Keyword("completions")]),
            (
                "chat/completions/X",
                Operation::Chat,
                &[Keyword("chat"), Keyword("completions"), Id(Some(ReferenceKind::ChatCompletion))],
            ),
            ("chat", Operation::Other, &[Keyword("chat")]),
            ("chat/Foo", Operation::Other, &[Keyword("chat"), Unknown]),
            ("responses/COMPACT", Operation::Responses, &[Keyword("responses"), Keyword("compact")]),
            (
                "responses/Resp_1/Cancel",
                Operation::Responses,
                &[Keyword("responses"), Id(Some(ReferenceKind::Response)), Keyword("cancel")],
            ),
            ("files/Compact", Operation::Files, &[Keyword("files"), Id(Some(ReferenceKind::File))]),
            ("threads/RUNS", Operation::Threads, &[Keyword("threads"), Keyword("runs")]),
            (
                "threads/T/Runs/R/Steps/S",
                Operation::Threads,
                &[Keyword("threads"), Id(None), Keyword("runs"), Id(None), Keyword("steps"), Id(None)],
            ),
            (
                "Fine_Tuning/Jobs/Ft-1",
                Operation::FineTuning,
                &[Keyword("fine_tuning"), Keyword("jobs"), Id(Some(ReferenceKind::Job))],
            ),
            ("Nothing/Here", Operation::Other, &[Unknown, Unknown]),
            ("embeddings/What", Operation::Embeddings, &[Keyword("embeddings"), Unknown]),
        ];
        for (path, operation, segments) in rows {
            assert_eq!(match_path(path), (*operation, segments.to_vec()), "{path}");
        }
        assert!(PATH_TABLE.iter().all(|row| row.2.len() < 32));
        let segments = PATH_TABLE.iter().flat_map(|row| row.2.iter().copied().flatten());
        for placeholder in segments.filter(|segment| segment.starts_with(ID_START) && **segment != "{}") {
            assert!(id_kind(placeholder).is_some(), "{placeholder}");
        }
    }

    #[test]
    fn only_posts_that_create_objects_are_non_idempotent_creates() {
        assert!(is_non_idempotent_create(&Method::POST, Operation::Files));
        assert!(!is_non_idempotent_create(&Method::GET, Operation::Files));
        assert!(!is_non_idempotent_create(&Method::POST, Operation::Chat));
    }
}
