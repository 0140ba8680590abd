//! The kinds of objects that live on one Azure resource and that later requests refer to.

use std::borrow::Cow;

use crate::azure::json_text::{decode_content, text_from_bytes};

/// What kind of object an id belongs to. An id names the same object whatever the kind says: the same file can be
/// named by a path, in a body and as the cursor of a list, so ids are compared without their kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// A response that is continued: `previous_response_id`.
    PreviousResponse,
    /// A response, in a path or as the `response_id` of a frame.
    Response,
    /// An item of a response or of a conversation.
    Item,
    /// Encrypted reasoning or a compacted context. Its id is the beginning of the encrypted text.
    EncryptedContent,
    /// A conversation.
    Conversation,
    /// A file, also one in a container or a vector store.
    File,
    /// A vector store or a batch of its files.
    VectorStore,
    /// A container of the code interpreter.
    Container,
    /// An upload or a part of it.
    Upload,
    /// A batch.
    Batch,
    /// A fine-tuning job or what belongs to it.
    Job,
    /// An eval, a run of it or an item of its output.
    Eval,
    /// A video or the job that makes it.
    Video,
    /// A stored chat completion.
    ChatCompletion,
    /// A call of the realtime API.
    Call,
}

impl ReferenceKind {
    /// All kinds, in declaration order.
    pub const ALL: [Self; 15] = [
        Self::PreviousResponse,
        Self::Response,
        Self::Item,
        Self::EncryptedContent,
        Self::Conversation,
        Self::File,
        Self::VectorStore,
        Self::Container,
        Self::Upload,
        Self::Batch,
        Self::Job,
        Self::Eval,
        Self::Video,
        Self::ChatCompletion,
        Self::Call,
    ];

    /// The name used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreviousResponse => "previous_response",
            Self::Response => "response",
            Self::Item => "item",
            Self::EncryptedContent => "encrypted",
            Self::Conversation => "conversation",
            Self::File => "file",
            Self::VectorStore => "vector_store",
            Self::Container => "container",
            Self::Upload => "upload",
            Self::Batch => "batch",
            Self::Job => "job",
            Self::Eval => "eval",
            Self::Video => "video",
            Self::ChatCompletion => "chat_completion",
            Self::Call => "call",
        }
    }

    /// Whether Azure may not find such an object for some seconds after it was made: responses and their items.
    pub fn may_lag(self) -> bool {
        matches!(self, Self::PreviousResponse | Self::Response | Self::Item)
    }
}

/// How many characters of an `encrypted_content` are its id. It is a Fernet token: its version, time and random
/// IV are in the first 34.
pub const ENCRYPTED_CONTENT_ID_CHARS: usize = 64;
/// A character can be written as the escapes of a surrogate pair. What is cut inside of one is beyond the id.
const MAX_ENCRYPTED_CONTENT_ID_BYTES: usize = 12 * (ENCRYPTED_CONTENT_ID_CHARS + 1);

/// The id of an `encrypted_content`, from the content of its JSON string, which may be cut after
/// [`MAX_ENCRYPTED_CONTENT_ID_BYTES`].
pub(in crate::azure) fn encrypted_content_id(content: &[u8]) -> Cow<'_, str> {
    let beginning = content.get(..content.len().min(MAX_ENCRYPTED_CONTENT_ID_BYTES)).unwrap_or_default();
    let decoded = match text_from_bytes(beginning) {
        Cow::Borrowed(text) => decode_content(text),
        Cow::Owned(text) => Cow::Owned(decode_content(&text).into_owned()),
    };
    let Some((end, _)) = decoded.char_indices().nth(ENCRYPTED_CONTENT_ID_CHARS) else { return decoded };
    match decoded {
        Cow::Borrowed(text) => Cow::Borrowed(text.get(..end).unwrap_or_default()),
        Cow::Owned(mut text) => {
            text.truncate(end);
            Cow::Owned(text)
        }
    }
}
