//! Which operation a path is, which of its segments are words of the API and which are
//! somebody's ids. Decides nothing about where a call goes.

use http::Method;

/// What a call asks Azure OpenAI to do, coarsely: the record's `operation`.
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
    /// All of them, in their order.
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

    /// The word used in records and metrics.
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

/// Whether repeating the call could make a second object, so that it is tried again only when
/// no byte of it was sent or the answer was 429. A Responses call with `background: true` is
/// another such case, which only its body tells.
pub fn is_create_without_idempotence(method: &Method, operation: Operation) -> bool {
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

/// An id in a shape: any one segment, spelled by its owner.
const ID: &str = "{}";

type Shapes = &'static [&'static [&'static str]];

/// First word of a path (after `/openai`, `/openai/v1` or `/openai/deployments/{d}`), its
/// operation, and what may follow that word.
const TABLE: &[(&str, Operation, Shapes)] = &[
    ("chat", Operation::Chat, &[&["completions", ID, "messages"]]),
    (
        "responses",
        Operation::Responses,
        &[&["compact"], &["input_tokens"], &[ID, "cancel"], &[ID, "input_items"]],
    ),
    ("embeddings", Operation::Embeddings, &[]),
    ("completions", Operation::Completions, &[]),
    ("audio", Operation::Audio, &[&["transcriptions"], &["translations"], &["speech"]]),
    ("images", Operation::Images, &[&["generations"], &["edits"], &["variations"], &["generations:submit"]]),
    ("extensions", Operation::Chat, &[&["chat", "completions"]]),
    (
        "realtime",
        Operation::Realtime,
        &[&["client_secrets"], &["sessions"], &["transcription_sessions"], &["calls", ID]],
    ),
    ("realtimeapi", Operation::Realtime, &[&["sessions"]]),
    ("files", Operation::Files, &[&["import"], &[ID, "content"]]),
    ("uploads", Operation::Uploads, &[&[ID, "parts"], &[ID, "complete"], &[ID, "cancel"]]),
    ("batches", Operation::Batches, &[&[ID, "cancel"]]),
    (
        "fine_tuning",
        Operation::FineTuning,
        &[
            &["jobs", ID, "events"],
            &["jobs", ID, "checkpoints", ID],
            &["jobs", ID, "cancel"],
            &["jobs", ID, "pause"],
            &["jobs", ID, "resume"],
            &["checkpoints", ID, "permissions", ID],
            &["alpha", "graders", "run"],
            &["alpha", "graders", "validate"],
        ],
    ),
    ("assistants", Operation::Assistants, &[&[ID]]),
    (
        "threads",
        Operation::Threads,
        &[
            &["runs"],
            &[ID, "messages", ID, "files", ID],
            &[ID, "runs", ID, "steps", ID],
            &[ID, "runs", ID, "submit_tool_outputs"],
            &[ID, "runs", ID, "cancel"],
        ],
    ),
    (
        "vector_stores",
        Operation::VectorStores,
        &[
            &[ID, "files", ID, "content"],
            &[ID, "file_batches", ID, "files"],
            &[ID, "file_batches", ID, "cancel"],
            &[ID, "search"],
        ],
    ),
    ("models", Operation::Models, &[&[ID]]),
    ("containers", Operation::Containers, &[&[ID, "files", ID, "content"]]),
    ("evals", Operation::Evals, &[&[ID, "runs", ID, "output_items", ID], &[ID, "runs", ID, "cancel"]]),
    ("videos", Operation::Videos, &[&[ID, "content"], &[ID, "remix"]]),
    (
        "video",
        Operation::Videos,
        &[
            &["generations", "jobs", ID],
            &["generations", ID, "content", "video"],
            &["generations", ID, "content", "thumbnail"],
        ],
    ),
    ("conversations", Operation::Conversations, &[&[ID, "items", ID]]),
];

/// What one segment of a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::azure) enum Segment {
    /// A word of the API, in its lower-case spelling.
    Word(&'static str),
    /// The id of an object.
    Id,
    /// Something this table does not know.
    Unknown,
}

/// Follows the segments of one path through the table.
pub(in crate::azure) struct Reader {
    row: Option<&'static (&'static str, Operation, Shapes)>,
    /// Shapes of the row that fit so far, as bits.
    fitting: u32,
    depth: usize,
}

impl Reader {
    pub(in crate::azure) fn new() -> Self {
        Self { row: None, fitting: u32::MAX, depth: 0 }
    }

    /// Classifies the next segment.
    pub(in crate::azure) fn next(&mut self, segment: &str) -> Segment {
        let depth = self.depth;
        self.depth += 1;
        if depth == 0 {
            self.row = TABLE.iter().find(|row| row.0.eq_ignore_ascii_case(segment));
            return self.row.map_or(Segment::Unknown, |row| Segment::Word(row.0));
        }
        let Some((_, _, shapes)) = self.row else { return Segment::Unknown };
        let (mut words, mut ids, mut found) = (0_u32, 0_u32, Segment::Unknown);
        for (bit, shape) in shapes.iter().enumerate().filter(|(n, _)| self.fitting & (1 << n) != 0) {
            match shape.get(depth - 1) {
                Some(&ID) => ids |= 1 << bit,
                Some(word) if word.eq_ignore_ascii_case(segment) => {
                    words |= 1 << bit;
                    found = Segment::Word(word);
                }
                _ => {}
            }
        }
        // A word wins over an id: `/responses/compact` is no response called `compact`.
        self.fitting = if words == 0 { ids } else { words };
        if words == 0 && ids != 0 { Segment::Id } else { found }
    }

    /// The operation, once all segments were seen.
    pub(in crate::azure) fn operation(&self) -> Operation {
        match self.row {
            // `/chat` and `/extensions` mean something only with `completions` after them.
            Some((_, Operation::Chat, _)) if self.depth < 2 || self.fitting == 0 => Operation::Other,
            Some((_, operation, _)) => *operation,
            None => Operation::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> (Operation, Vec<Segment>) {
        let mut reader = Reader::new();
        let segments = path.split('/').map(|s| reader.next(s)).collect();
        (reader.operation(), segments)
    }

    #[test]
    fn words_and_ids_are_told_apart() {
        use Segment::{Id, Unknown, Word};
        let rows: &[(&str, Operation, &[Segment])] = &[
            ("CHAT/Completions", Operation::Chat, &[Word("chat"), Word("completions")]),
            ("chat/completions/X", Operation::Chat, &[Word("chat"), Word("completions"), Id]),
            ("chat", Operation::Other, &[Word("chat")]),
            ("chat/Foo", Operation::Other, &[Word("chat"), Unknown]),
            ("responses/COMPACT", Operation::Responses, &[Word("responses"), Word("compact")]),
            ("responses/Resp_1/Cancel", Operation::Responses, &[Word("responses"), Id, Word("cancel")]),
            ("files/Compact", Operation::Files, &[Word("files"), Id]),
            ("threads/RUNS", Operation::Threads, &[Word("threads"), Word("runs")]),
            (
                "threads/T/Runs/R/Steps/S",
                Operation::Threads,
                &[Word("threads"), Id, Word("runs"), Id, Word("steps"), Id],
            ),
            ("Fine_Tuning/Jobs/Ft-1", Operation::FineTuning, &[Word("fine_tuning"), Word("jobs"), Id]),
            ("Nothing/Here", Operation::Other, &[Unknown, Unknown]),
            ("embeddings/What", Operation::Embeddings, &[Word("embeddings"), Unknown]),
        ];
        for (path, operation, segments) in rows {
            assert_eq!(read(path), (*operation, segments.to_vec()), "{path}");
        }
        assert!(TABLE.iter().all(|row| row.2.len() < 32));
    }

    #[test]
    fn creates_are_posts_to_collections_of_objects() {
        assert!(is_create_without_idempotence(&Method::POST, Operation::Files));
        assert!(!is_create_without_idempotence(&Method::GET, Operation::Files));
        assert!(!is_create_without_idempotence(&Method::POST, Operation::Chat));
    }
}
