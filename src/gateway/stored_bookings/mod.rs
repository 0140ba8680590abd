//! What was booked against budgets for responses that go on in the background, until the end of each is known and corrects it.
//!
//! A booking is corrected once. An instance alone keeps its bookings in memory (`bookings.rs`, `local.rs`) and hands them
//! over at an upgrade; from then on the successor corrects them, also for ends that this process sees (`handover.rs`,
//! `report.rs`). Where several instances share budgets, the server keeps the bookings, and the instance that sees the end
//! claims the booking there (`shared.rs`). A booking that is lost, in a restart or because there are too many, counts on
//! as it was estimated.

mod bookings;
mod handover;
mod local;
mod report;
mod shared;
#[cfg(test)]
mod tests;

pub use self::bookings::StoredBookings;
pub use self::report::{BookingReport, EndedObject, MadeObject, ReportBookings};
