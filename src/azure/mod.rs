//! The dialect of Azure OpenAI, as pure functions: request targets, JSON and form bodies,
//! what a reply means, hints about waiting, event streams, usage, and the text of prompts and
//! answers. Knows no backend, no client, no socket and no clock.

mod answer_text;
mod json;
mod opening;
mod operation;
mod path;
mod query;
mod recent;
mod scan;

pub mod answer;
pub mod body;
pub mod hints;
pub mod multipart;
pub mod prompt;
pub mod reply;
pub mod sse;
pub mod usage;
pub mod verdict;

pub use opening::{Opening, opening};
pub use operation::{Operation, is_create_without_idempotence};
pub use path::{Api, BadTarget, Naming, Target, parse};
pub use query::{Query, QueryCredential};
pub use recent::parse as parse_recent;
