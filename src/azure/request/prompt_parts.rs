//! Where the prompt is in a JSON body.

use std::ops::Range;

use crate::azure::json_keys::KeySet;

/// The top-level keys that can hold a prompt: chat, Responses (two), completions and images.
pub(in crate::azure) const PROMPT_KEYS: KeySet<4> =
    KeySet::new(["messages", "input", "instructions", "prompt"]);

/// The byte ranges of the values of `PROMPT_KEYS`, in the same order; `None` for an absent key.
pub type PromptPartRanges = [Option<Range<usize>>; 4];
