//! What Azure answers: the verdict on a response, hints about waiting, event streams, usage and text.

pub mod answer;
mod answer_text;
pub mod body;
pub mod hints;
pub(super) mod opening;
pub mod sse;
pub mod usage;
pub mod verdict;
