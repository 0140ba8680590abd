//! Reads policies: API Management's dialect of XML, and the words of its C# expressions.

mod csharp;
mod expressions;
mod tree;

pub(super) use csharp::{Token, tokens};
pub(super) use tree::{Element, MAX_ELEMENTS, read_policy};
