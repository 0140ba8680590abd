//! What a client asks for: target, operation, body, form, and the prompt for the record.

pub mod body;
pub mod multipart;
pub(super) mod operation;
pub(super) mod path;
pub mod prompt;
pub(super) mod query;
pub(super) mod target_cache;
