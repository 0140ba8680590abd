//! Where the prompt lies in a JSON body.

use std::ops::Range;

/// Where a prompt may be.
pub(in crate::azure) const PROMPT_KEYS: [&str; 4] = ["messages", "input", "instructions", "prompt"];

/// Where the values of [`PROMPT_KEYS`] lie in a body, in this order.
pub type PromptParts = [Option<Range<usize>>; 4];
