//! The beginning of a status: the whole, since when, and what is wrong.

use std::collections::HashSet;

use super::report_time::{ReportTime, in_whole_seconds};
use super::text::{Line, Style, counted, in_words, printable};
use crate::admin::status::{ServiceProblemStatus, ServiceStatus, StatusReport};
use crate::routing::service_state::ServiceState;

/// The problems are aligned after the longest state.
const STATE_COLUMNS: usize = 8;

/// The state of the whole; `None` if this version does not know it.
pub(super) fn service_state(service: &ServiceStatus) -> Option<ServiceState> {
    ServiceState::ALL.into_iter().find(|state| state.as_str() == service.state)
}

fn style_of(state: &str) -> Style {
    match ServiceState::ALL.into_iter().find(|known| known.as_str() == state) {
        Some(ServiceState::Healthy) => Style::Good,
        Some(ServiceState::Spilling) => Style::Notice,
        Some(ServiceState::Degraded) => Style::Warning,
        Some(ServiceState::Failing) | None => Style::Bad,
    }
}

/// `degraded since 2026-01-01T00:00:00Z (12m)`
pub(super) fn headline(status: &StatusReport, time: ReportTime) -> Line {
    let service = &status.service;
    let mut line = Line::new(printable(&service.state), style_of(&service.state));
    if let Some(since) = &service.since {
        let age = time.age_of(Some(since)).map(|age| format!(" ({})", in_words(age))).unwrap_or_default();
        line.push(format!(" since {}{age}", in_whole_seconds(since)), Style::Plain);
    }
    if status.process.stopping {
        line.push("; the process is stopping", Style::Warning);
    }
    line
}

/// `, WebSockets 3`, or nothing if there are none.
pub(super) fn open_websockets(status: &StatusReport) -> String {
    match status.websockets.responses + status.websockets.realtime {
        0 => String::new(),
        count => format!(", WebSockets {count}"),
    }
}

/// `, in the queue 3`, or nothing if no request waits.
pub(super) fn queued_requests(status: &StatusReport) -> String {
    match status.queue.as_ref().map_or(0, |queue| queue.waiting.total()) {
        0 => String::new(),
        count => format!(", in the queue {count}"),
    }
}

/// The provisioned backends that are full while others serve, which is normal. The process knows; their states alone do
/// not tell.
pub(super) fn spilling_backends(service: &ServiceStatus) -> HashSet<&str> {
    let problems = service.problems.iter().filter(|problem| problem.state == ServiceState::Spilling.as_str());
    problems.map(|problem| problem.subject.as_str()).collect()
}

/// The problems, worst first; of more than `limit` the first, and how many more there are.
pub(super) fn problem_lines(service: &ServiceStatus, limit: Option<usize>) -> Vec<Line> {
    let shown = match limit {
        Some(limit) if service.problems.len() > limit => limit.saturating_sub(1),
        _ => service.problems.len(),
    };
    let mut lines: Vec<Line> = service.problems.iter().take(shown).map(problem_line).collect();
    match service.problems.len() - shown {
        0 => {}
        more => lines.push(Line::new(format!("  … {}", counted(more, "more problem")), Style::Dim)),
    }
    lines
}

fn problem_line(problem: &ServiceProblemStatus) -> Line {
    let state = format!("  {:<STATE_COLUMNS$}  ", printable(&problem.state));
    Line::new(state, style_of(&problem.state)).with(problem_text(problem), Style::Plain)
}

/// `westus: breaker_open: failed too often`
pub(super) fn problem_text(problem: &ServiceProblemStatus) -> String {
    format!("{}: {}", printable(&problem.subject), printable(&problem.text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::status::testing;

    #[test]
    fn open_websockets_are_counted_if_there_are_any() {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        assert_eq!(open_websockets(&status), "");
        status.websockets.realtime = 1;
        status.websockets.responses = 2;
        assert_eq!(open_websockets(&status), ", WebSockets 3");
    }

    #[test]
    fn requests_in_the_queue_are_counted_if_there_are_any() {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        assert_eq!(queued_requests(&status), "");
        let waiting = json!({ "interactive": 1, "standard": 0, "batch": 4 });
        status.queue = testing::queue(&waiting, &json!([]));
        assert_eq!(queued_requests(&status), ", in the queue 5");
        status.queue = testing::queue(&json!({ "interactive": 0, "standard": 0, "batch": 0 }), &json!([]));
        assert_eq!(queued_requests(&status), "");
    }
}
