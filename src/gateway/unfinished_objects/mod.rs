//! The objects that go on after the response that made them, such as background responses, until the end of each is known:
//! who made it, for which deployment, and what was booked against budgets.
//!
//! An end counts once. An instance alone remembers its objects in memory (`memory.rs`, `objects.rs`) and in the state
//! directory (`log.rs`), and hands them over at an upgrade; from then on the successor corrects what was booked, also for ends
//! that this process sees (`handover.rs`, `report.rs`). Where several instances share budgets, the server remembers the objects
//! of all, and the instance that sees an end claims it there (`shared.rs`); the memory is used while the server is away.

mod handover;
mod log;
mod memory;
mod objects;
mod report;
mod shared;
#[cfg(test)]
mod tests;

pub use self::objects::UnfinishedObjects;
pub use self::report::{EndedObject, MadeObject, ObjectReport, ReportObjects};
