//! Where the prompt is in a JSON body.

use std::ops::Range;

use crate::azure::json_keys::KeySet;

/// The top-level keys that can hold a prompt: chat, Responses (two), completions and images.
pub(in crate::azure) const PROMPT_KEYS: KeySet<4> =
    KeySet::new(["messages", "input", "instructions", "prompt"]);

/// The byte ranges of the values of `PROMPT_KEYS`, in the same order; `None` for an absent key.
pub type PromptPartRanges = [Option<Range<usize>>; 4];

/// The top-level keys with the definitions of tools, which a model reads before the prompt: of all APIs, and of older
/// versions of chat.
pub(in crate::azure) const TOOL_KEYS: [&str; 2] = ["tools", "functions"];

/// `PROMPT_KEYS`, then `TOOL_KEYS`.
pub(in crate::azure) const LOCATED_KEYS: KeySet<6> = {
    let [messages, input, instructions, prompt] = *PROMPT_KEYS.names();
    let [tools, functions] = TOOL_KEYS;
    KeySet::new([messages, input, instructions, prompt, tools, functions])
};
