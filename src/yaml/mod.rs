//! Parses YAML within limits: bytes, nesting, the number of values and what aliases expand to. A scalar keeps
//! the text that was written; what it means is for its reader to say.
//!
//! No problem repeats a value, which may be a secret.

mod build;
mod limits;
mod parse;
#[cfg(test)]
mod tests;
mod value;

pub use limits::{MAX_BYTES, MAX_DEPTH};
pub use parse::parse;
pub use value::{Entries, Item, Scalar, ScalarKind, Value, child_key_path};
