//! Reads values from YAML: parsing, expansion of `${…}`, units, and a list of everything that is wrong.
//!
//! Which keys there are, and what their values mean, is left to `check`.

mod document;
mod expansion;
mod node;
mod problem_collector;
mod units;
mod wording;

pub(crate) use document::parse_document;
pub(crate) use node::{YamlMapping, YamlNode};
pub(crate) use problem_collector::ProblemCollector;
#[cfg(test)]
pub(crate) use units::{parse_byte_size, parse_duration};
