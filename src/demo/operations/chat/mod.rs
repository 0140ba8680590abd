//! Chat completions, complete and streamed.

mod completion;
mod create;
mod request;

pub(super) use create::{chat_completion_for_batch_line, create_chat_completion};
