//! Chat completions, complete and streamed.

mod completion;
mod create;
mod request;

pub(super) use create::{batch_line_response_body, create_chat_completion};
