//! What clients use of their budgets in requests that a predecessor finishes is reported to the process that serves
//! in its place, which counts it and owns the file.

use std::io;
use std::path::Path;

use log::debug;

use super::channel::ControlChannel;
use super::protocol::ControlMessage;
use super::report::begin_report;
use crate::gateway::ProcessState;
use crate::state::budget_log::BudgetEntry;

/// Counts what a predecessor reports.
pub(super) async fn accept_budgets(
    mut channel: ControlChannel,
    process: &ProcessState,
    additions: &[BudgetEntry],
) {
    process.budgets.add_reported(additions);
    if let Err(problem) = channel.send(&ControlMessage::BudgetsCounted).await {
        debug!("budgets: cannot answer a predecessor: {problem}");
    }
}

/// Sends what this process has counted to the one that serves now.
///
/// # Errors
/// If there is none, or it has another version that does not know budgets.
pub fn report_budgets(upgrade_socket_path: &Path, additions: &[BudgetEntry]) -> io::Result<()> {
    let message = ControlMessage::ReportBudgets { additions: additions.to_vec() };
    match begin_report(upgrade_socket_path, &message)? {
        (ControlMessage::BudgetsCounted, _) => Ok(()),
        (other, _) => Err(io::Error::other(format!("unexpected message {other:?}"))),
    }
}
