//! The backends of a status: their order, which of them a filter selects, and their table.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::fitted_table::{Cell, Column, Table};
use super::report_time::ReportTime;
use crate::admin::status::{BackendStatus, UnavailablePart};
use crate::cli::text::{Style, counted, in_words, in_words_ms, or_unknown, printable};
use crate::routing::health::backend_state::BackendState;

/// So many unavailable deployments and operations of a backend are named.
const MAX_NAMED_PARTS: usize = 3;
/// An attempt that has waited so long is worth a word.
const LONG_WAIT_SECONDS: f64 = 30.0;

/// What the backends are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SortOrder {
    #[default]
    WorstFirst,
    Name,
    Attempts,
    Throttled,
    P95,
}

impl SortOrder {
    /// The next one, after the last the first again.
    pub(super) fn next(self) -> Self {
        match self {
            Self::WorstFirst => Self::Name,
            Self::Name => Self::Attempts,
            Self::Attempts => Self::Throttled,
            Self::Throttled => Self::P95,
            Self::P95 => Self::WorstFirst,
        }
    }

    /// Its name for people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::WorstFirst => "worst first",
            Self::Name => "name",
            Self::Attempts => "attempts",
            Self::Throttled => "429s",
            Self::P95 => "p95",
        }
    }

    /// Sorts the backends; those that are equal by name.
    pub(super) fn sort(self, backends: &mut [&BackendStatus]) {
        backends.sort_by(|a, b| a.name.cmp(&b.name));
        match self {
            Self::WorstFirst => backends.sort_by_key(|backend| Reverse(severity(backend))),
            Self::Name => {}
            Self::Attempts => backends.sort_by_key(|backend| Reverse(backend.last_minute.attempts)),
            Self::Throttled => backends.sort_by_key(|backend| Reverse(backend.last_minute.throttled)),
            Self::P95 => backends.sort_by_key(|backend| Reverse(backend.last_minute.attempt_p95_ms)),
        }
    }
}

/// How bad the state of a backend is; then how many of its parts are unavailable, and what failed lately.
fn severity(backend: &BackendStatus) -> (usize, usize, u64, u64) {
    let recent = &backend.last_minute;
    (state_severity(&backend.state), backend.unavailable_parts.len(), recent.failed, recent.throttled)
}

/// The place of a state from good to bad. One that this version does not know is the worst.
fn state_severity(state: &str) -> usize {
    BackendState::ALL.iter().position(|known| known.as_str() == state).unwrap_or(BackendState::ALL.len())
}

/// How a state is shown.
pub(super) fn state_style(state: &str) -> Style {
    match BackendState::ALL.iter().find(|known| known.as_str() == state) {
        Some(BackendState::Healthy) => Style::Good,
        Some(BackendState::Disabled | BackendState::Drained) => Style::Dim,
        Some(BackendState::Cooling | BackendState::Permission | BackendState::Absent) => Style::Warning,
        _ => Style::Bad,
    }
}

/// Whether the name, state or reason of a backend contains the text, which is in lower case.
pub(super) fn is_selected(backend: &BackendStatus, lowercase_text: &str) -> bool {
    let contains = |text: &str| text.to_lowercase().contains(lowercase_text);
    lowercase_text.is_empty()
        || contains(&backend.name)
        || contains(&backend.state)
        || contains(&reason_text(backend))
}

/// A row per backend, with the reason last. `spilling` are those whose cooldown is normal.
pub(super) fn backend_table(
    backends: &[&BackendStatus],
    spilling: &HashSet<&str>,
    time: ReportTime,
) -> Table {
    let mut table = Table::new(&[
        Column::text("BACKEND"),
        Column::text("STATE"),
        Column::number("FOR", 6),
        Column::number("LEFT", 8),
        Column::number("TIER", 4),
        Column::number("WEIGHT", 1),
        Column::number("IN FLIGHT", 9),
        Column::number("ATT/MIN", 7),
        Column::number("SHARE", 2),
        Column::number("429/MIN", 5),
        Column::number("FAIL/MIN", 8),
        Column::number("P50", 3),
        Column::number("P95", 5),
        Column::text("REASON"),
    ]);
    for backend in backends {
        let recent = &backend.last_minute;
        let style = match state_style(&backend.state) {
            Style::Warning if spilling.contains(backend.name.as_str()) => Style::Notice,
            style => style,
        };
        let share = recent.attempt_share.map(|share| format!("{:.0}%", share * 100.0));
        let count =
            |count: u64, style| Cell::new(count.to_string(), if count > 0 { style } else { Style::Plain });
        table.push(vec![
            printable(&backend.name).into(),
            Cell::new(printable(&backend.state), style),
            or_unknown(time.age_of(backend.since.as_deref()).map(in_words)).into(),
            or_unknown(backend.remaining_ms.map(in_words_ms)).into(),
            backend.tier.to_string().into(),
            backend.weight.to_string().into(),
            backend.attempts_in_flight.to_string().into(),
            recent.attempts.to_string().into(),
            or_unknown(share).into(),
            count(recent.throttled, Style::Warning),
            count(recent.failed, Style::Bad),
            or_unknown(recent.attempt_p50_ms.map(|ms| format!("{ms} ms"))).into(),
            or_unknown(recent.attempt_p95_ms.map(|ms| format!("{ms} ms"))).into(),
            reason_text(backend).into(),
        ]);
    }
    table
}

/// Why a backend is not healthy, or what of it is unavailable although it is.
fn reason_text(backend: &BackendStatus) -> String {
    let parts = unavailable_parts_text(&backend.unavailable_parts, &backend.state);
    let waiting = backend.oldest_attempt_seconds.filter(|seconds| *seconds >= LONG_WAIT_SECONDS);
    let waiting = waiting.map(|seconds| format!("an attempt waits for {seconds:.0}s"));
    let texts = match &backend.reason {
        Some(reason) => [parts, Some(printable(reason))],
        None => [parts, waiting],
    };
    texts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// The unavailable deployments and operations, with their states if these are not that of the backend.
fn unavailable_parts_text(parts: &[UnavailablePart], state_of_backend: &str) -> Option<String> {
    let describe = |part: &UnavailablePart| {
        let name = part.deployment.as_deref().or(part.operation.as_deref()).unwrap_or("-");
        let mut text = printable(name);
        if let Some(tier) = &part.service_tier {
            text += &format!(" {} requests", printable(tier));
        }
        if part.reason != state_of_backend {
            text += &format!(" {}", printable(&part.reason));
            text += &part.remaining_ms.map(|ms| format!(" {}", in_words_ms(ms))).unwrap_or_default();
        }
        text
    };
    let mut named: Vec<String> = parts.iter().take(MAX_NAMED_PARTS).map(describe).collect();
    match parts.len().saturating_sub(MAX_NAMED_PARTS) {
        0 => {}
        more => named.push(format!("{more} more")),
    }
    (!named.is_empty()).then(|| named.join(", "))
}

/// How many backends there are, and how many of them are not healthy.
pub(super) fn backend_counts(backends: &[BackendStatus]) -> String {
    let unhealthy = backends.iter().filter(|backend| backend.state != BackendState::Healthy.as_str()).count();
    let all = counted(backends.len(), "backend");
    if unhealthy == 0 { all } else { format!("{all}, {unhealthy} not healthy") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::backend;
    use super::*;

    fn with_traffic(
        name: &str,
        state: &str,
        attempts: u64,
        throttled: u64,
        p95: Option<u64>,
    ) -> BackendStatus {
        let mut backend = backend(name, state, None);
        backend.last_minute.attempts = attempts;
        backend.last_minute.throttled = throttled;
        backend.last_minute.attempt_p95_ms = p95;
        backend
    }

    #[test]
    fn each_order_has_what_it_is_about_first() {
        let mut partly = with_traffic("d", "healthy", 3, 0, None);
        partly.unavailable_parts = serde_json::from_value(json!([
            { "deployment": "gpt-4o", "operation": null, "reason": "cooling", "since": "", "until_ms": 11_200 }
        ]))
        .unwrap();
        let backends = [
            with_traffic("c", "healthy", 9, 1, Some(90)),
            with_traffic("a", "cooling", 5, 5, Some(20)),
            with_traffic("b", "drained", 0, 0, None),
            partly,
            with_traffic("e", "stalled", 2, 0, Some(200)),
            with_traffic("f", "a state of tomorrow", 0, 0, None),
        ];
        let mut order = SortOrder::default();
        for expected in ["feabdc", "abcdef", "cadebf", "acbdef", "ecabdf"] {
            let mut sorted: Vec<&BackendStatus> = backends.iter().collect();
            order.sort(&mut sorted);
            let names: String = sorted.iter().map(|backend| backend.name.as_str()).collect();
            assert_eq!(names, expected, "{order:?}");
            order = order.next();
        }
        assert_eq!(order, SortOrder::default());
    }

    #[test]
    fn the_reason_names_what_is_unavailable_and_a_filter_finds_it() {
        let part = |deployment: &str, reason: &str, left: Option<u64>| {
            json!({
                "deployment": deployment, "operation": null, "reason": reason, "since": "", "until_ms": left,
            })
        };
        let parts = [
            part("gpt-4o", "cooling", Some(11_200)),
            part("o3", "absent", None),
            part("o4", "absent", None),
            part("o5", "absent", None),
        ];
        for (state, reason, count, waits, expected) in [
            ("healthy", None, 0, None, ""),
            ("healthy", None, 1, None, "gpt-4o cooling 12s"),
            ("healthy", None, 4, None, "gpt-4o cooling 12s, o3 absent, o4 absent, 1 more"),
            ("healthy", None, 0, Some(29.0), ""),
            ("healthy", None, 1, Some(31.0), "gpt-4o cooling 12s; an attempt waits for 31s"),
            ("absent", Some("not\nthere"), 2, Some(31.0), "gpt-4o cooling 12s, o3; not there"),
        ] {
            let mut backend = backend("west", state, reason);
            backend.unavailable_parts = serde_json::from_value(json!(parts[..count])).unwrap();
            backend.oldest_attempt_seconds = waits;
            assert_eq!(reason_text(&backend), expected);
            for text in ["", "wes", &state[1..3], expected.to_lowercase().as_str()] {
                assert!(is_selected(&backend, text), "{text}");
            }
            assert!(!is_selected(&backend, "east"));
        }
    }

    #[test]
    fn flex_requests_that_are_kept_away_are_told_apart() {
        let mut backend = backend("west", "healthy", None);
        backend.unavailable_parts = serde_json::from_value(json!([{
            "deployment": "gpt-5.6-sol", "operation": null, "service_tier": "flex", "reason": "cooling", "since": "",
            "until_ms": 2_000,
        }]))
        .unwrap();
        assert_eq!(reason_text(&backend), "gpt-5.6-sol flex requests cooling 2s");
    }
}
