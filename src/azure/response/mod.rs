//! Responses: their verdict, retry and rate limit headers, event streams, token usage, and the text for
//! the record.

pub mod capture;
pub mod captured_text;
pub mod collected_body;
pub mod error_body;
pub(super) mod first_event;
pub mod hints;
mod json_outline;
mod known_errors;
mod oversized_event;
pub mod sse;
pub mod stored_object;
pub mod usage;
pub mod verdict;
