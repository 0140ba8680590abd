//! The reference of all keys, made from the code that reads them: the keys and kinds of values are those that `check`
//! accepts, and the texts are the comments of the example configuration.
//!
//! Example documents that together have every key are read, and an observer collects what is read. So the reference
//! cannot disagree with `check`.

mod comments;
mod documents;
mod json_schema;
mod manual;
mod observed;
mod page;
mod tree;

pub use json_schema::json_schema;
pub use manual::{manual_page, roff_in_ascii};
pub use page::configuration_page;

#[cfg(test)]
mod tests;
