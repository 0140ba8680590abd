//! The beginning of a status: the whole, since when, and what is wrong.

use std::collections::HashSet;

use super::report_time::{ReportTime, in_whole_seconds};
use crate::admin::status::{ServiceProblemStatus, ServiceStatus, StatusReport};
use crate::cli::text::{Line, Style, counted, in_words, printable};
use crate::routing::service_state::ServiceState;

/// The problems are aligned after the longest state.
const STATE_COLUMNS: usize = 8;

/// Fewer refused requests in a minute are not told of.
const MIN_REFUSED_REQUESTS: u64 = 10;

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

/// That most requests of the last minute were refused for what clients send: no problem of the backends, so the state
/// of the whole does not tell it.
pub(super) fn refusal_notice(status: &StatusReport) -> Option<Line> {
    let by_client = status.refusals.iter().map(|client| &client.last_minute.refused);
    let [unauthorized, forbidden, not_found] = by_client.fold([0; 3], |[a, b, c], refused| {
        [a + refused.unauthorized, b + refused.forbidden, c + refused.not_found]
    });
    let refused = unauthorized + forbidden + not_found;
    // With the step that is not over yet: what was refused just now is counted as well.
    let steps = (60 / status.timeline.step_seconds.max(1)) as usize + 1;
    let requests: u64 = status.timeline.requests.iter().rev().take(steps).flatten().sum();
    if refused < MIN_REFUSED_REQUESTS || refused * 2 < requests {
        return None;
    }
    let text = format!(
        "  {refused} of {} requests of the last minute were refused for their key, deployment or path (401: \
         {unauthorized}, 403: {forbidden}, 404: {not_found})",
        requests.max(refused)
    );
    Some(Line::new(text, Style::Warning))
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
    use crate::cli::text::Palette;

    #[test]
    fn open_websockets_are_counted_if_there_are_any() {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        assert_eq!(open_websockets(&status), "");
        status.websockets.realtime = 1;
        status.websockets.responses = 2;
        assert_eq!(open_websockets(&status), ", WebSockets 3");
    }

    #[test]
    fn it_is_told_if_most_requests_are_refused_for_what_clients_send() {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        for (unauthorized, not_found, throttled, answered, expected) in [
            (9, 0, 0, 0, None),
            (4, 6, 0, 10, Some("10 of 20 requests of the last minute were refused for their key")),
            (4, 6, 0, 11, None),
            (0, 0, 90, 0, None),
        ] {
            let counts = json!({
                "refused": { "401": unauthorized, "403": 0, "404": not_found, "429": throttled, "other": 0 },
                "failed": 0,
            });
            let mut client = counts.clone();
            client["client"] = json!(null);
            client["last_minute"] = counts;
            status.refusals = serde_json::from_value(json!([client])).unwrap();
            let requests = answered + unauthorized + not_found + throttled;
            // What was before the last minute does not count.
            status.timeline.requests = vec![Some(1000), None];
            status.timeline.requests.extend([0; 11].map(Some));
            status.timeline.requests.push(Some(requests));
            let notice = refusal_notice(&status).map(|line| line.render(Palette::Text));
            assert_eq!(notice.is_some(), expected.is_some(), "{notice:?}");
            assert!(notice.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
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
