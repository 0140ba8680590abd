//! The dialect of Azure OpenAI, as pure functions: request targets, JSON and form bodies,
//! what a reply means, hints about waiting, event streams, usage, and the text of prompts and
//! answers. Knows no backend, no client, no socket and no clock.

mod json;
mod json_check;
pub mod request;
pub mod response;

pub use self::request::operation::{Operation, is_create_without_idempotence};
pub use self::request::path::{Api, BadTarget, Naming, Target, parse};
pub use self::request::query::{Query, QueryCredential};
pub use self::request::target_cache::parse as parse_recent;
pub use self::response::opening::{Opening, opening};
