//! Reads values from parsed YAML: expansion of `${…}`, units, and a list of everything that is wrong.
//!
//! Which keys there are, and what their values mean, is left to `check`.

mod expansion;
mod locate;
mod node;
mod numbers;
mod observer;
mod problem_collector;
mod units;
mod wording;

pub(crate) use node::{YamlMapping, YamlNode, parse_document};
pub(crate) use observer::{ReadObserver, ValueKind};
pub(crate) use problem_collector::{AllProblems, ProblemCollector};
#[cfg(test)]
pub(crate) use units::{parse_byte_size, parse_duration};
pub(crate) use wording::{closest_match, join_with_and, join_with_or};
