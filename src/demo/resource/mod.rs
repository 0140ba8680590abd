//! A simulated resource: its definition, and all that changes while it runs.

pub(in crate::demo) mod batch_store;
pub(in crate::demo) mod bounded_store;
pub(in crate::demo) mod conversation_history;
pub(in crate::demo) mod definition;
pub(in crate::demo) mod file_store;
pub(in crate::demo) mod object_store;
pub(in crate::demo) mod prompt_cache;
pub(in crate::demo) mod rate_limiter;
pub(in crate::demo) mod request_log;
pub(in crate::demo) mod response_store;
pub(in crate::demo) mod state;
pub(in crate::demo) mod stream_end;
