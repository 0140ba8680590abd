//! What happens to background responses in a predecessor is reported to the process that serves in its place.

use std::io;
use std::path::Path;

use log::debug;

use super::channel::ControlChannel;
use super::protocol::ControlMessage;
use super::report::begin_report;
use crate::gateway::unfinished_objects::{ObjectReport, UnfinishedObjects};

/// Takes a predecessor's report.
pub(super) async fn accept_objects(
    mut channel: ControlChannel,
    objects: &UnfinishedObjects,
    report: ObjectReport,
) {
    let ended_before = objects.adopt(report);
    if let Err(problem) = channel.send(&ControlMessage::ObjectsCounted { ended_before }).await {
        debug!("background responses: cannot answer a predecessor: {problem}");
    }
}

/// Sends what has happened to background responses to the process that serves now. Returns the ended ones whose end that
/// process had already seen.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if there is none. After any other error it may have been counted or not.
pub fn report_objects(upgrade_socket_path: &Path, report: &ObjectReport) -> io::Result<Vec<String>> {
    let message = ControlMessage::ReportObjects { report: report.clone() };
    match begin_report(upgrade_socket_path, &message)? {
        (ControlMessage::ObjectsCounted { ended_before }, _) => Ok(ended_before),
        (other, _) => Err(io::Error::other(format!("unexpected message {other:?}"))),
    }
}
