//! What clients use of their budgets in requests that a predecessor finishes, and what these cost, is reported to the
//! process that serves in its place, which counts it and owns the files.

use std::io;
use std::path::Path;

use log::debug;

use super::channel::ControlChannel;
use super::protocol::ControlMessage;
use super::report::begin_report;
use crate::gateway::budget_books::BudgetBooks;
use crate::state::budget_log::BudgetEntry;

/// Counts what a predecessor reports of these books.
pub(super) async fn accept_additions(
    mut channel: ControlChannel,
    books: &BudgetBooks,
    additions: &[BudgetEntry],
) {
    books.add_reported(additions);
    if let Err(problem) = channel.send(&ControlMessage::BudgetsCounted).await {
        debug!("budgets and costs: cannot answer a predecessor: {problem}");
    }
}

/// Sends what this process has counted of budgets to the one that serves now.
///
/// # Errors
/// If there is none, or it has another version that does not know budgets.
pub fn report_budgets(upgrade_socket_path: &Path, additions: &[BudgetEntry]) -> io::Result<()> {
    report(upgrade_socket_path, &ControlMessage::ReportBudgets { additions: additions.to_vec() })
}

/// The same with what responses have cost.
///
/// # Errors
/// If there is none, or it has another version that does not know costs.
pub fn report_costs(upgrade_socket_path: &Path, additions: &[BudgetEntry]) -> io::Result<()> {
    report(upgrade_socket_path, &ControlMessage::ReportCosts { additions: additions.to_vec() })
}

fn report(upgrade_socket_path: &Path, message: &ControlMessage) -> io::Result<()> {
    match begin_report(upgrade_socket_path, message)? {
        (ControlMessage::BudgetsCounted, _) => Ok(()),
        (other, _) => Err(io::Error::other(format!("unexpected message {other:?}"))),
    }
}
