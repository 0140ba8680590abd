//! What Azure answers: the verdict on a response, hints about waiting, event streams, usage and text.

pub mod capture;
mod captured_text;
pub mod collected_body;
pub(super) mod first_event;
pub mod hints;
pub mod sse;
pub mod usage;
pub mod verdict;
