//! What happens to background responses in a predecessor is reported to the process that serves in its place, which corrects what
//! was booked for them.

use std::io;
use std::path::Path;

use log::debug;

use super::channel::ControlChannel;
use super::protocol::ControlMessage;
use super::report::begin_report;
use crate::gateway::stored_bookings::{BookingReport, StoredBookings};

/// Takes a predecessor's report.
pub(super) async fn accept_bookings(
    mut channel: ControlChannel,
    bookings: &StoredBookings,
    report: BookingReport,
) {
    bookings.adopt(report);
    if let Err(problem) = channel.send(&ControlMessage::BudgetsCounted).await {
        debug!("bookings of background responses: cannot answer a predecessor: {problem}");
    }
}

/// Sends what has happened to background responses to the process that serves now.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if there is none. After any other error it may have been counted or not.
pub fn report_bookings(upgrade_socket_path: &Path, report: &BookingReport) -> io::Result<()> {
    let message = ControlMessage::ReportBookings { report: report.clone() };
    match begin_report(upgrade_socket_path, &message)? {
        (ControlMessage::BudgetsCounted, _) => Ok(()),
        (other, _) => Err(io::Error::other(format!("unexpected message {other:?}"))),
    }
}
