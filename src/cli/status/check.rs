//! `aoai-lb status --check`: one line and an exit code, for monitoring systems and scripts.

use super::report_time::ReportTime;
use super::summary::{headline, problem_text, service_state};
use crate::admin::status::StatusReport;
use crate::cli::text::{Palette, counted};
use crate::routing::service_state::ServiceState;

/// Whether an operator need not act: the whole is healthy or spilling.
pub(super) fn is_good(status: &StatusReport) -> bool {
    service_state(&status.service).is_some_and(ServiceState::is_good)
}

/// The state, since when, and the first problem.
pub(super) fn line(status: &StatusReport) -> String {
    let mut line = headline(status, ReportTime::new(&status.process)).render(Palette::Text);
    let mut problems = status.service.problems.iter();
    if let Some(first) = problems.next() {
        line += &format!(": {}", problem_text(first));
    }
    match problems.len() {
        0 => {}
        more => line += &format!(" (and {})", counted(more, "more problem")),
    }
    line
}
