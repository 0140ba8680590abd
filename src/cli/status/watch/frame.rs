//! What `status --watch` shows, as lines for a screen of a certain size.

use std::time::Duration;

use super::keys::View;
use super::screen::ScreenSize;
use crate::admin::status::{BackendStatus, StatusReport};
use crate::cli::status::backends::{backend_counts, backend_table, is_selected};
use crate::cli::status::report_time::ReportTime;
use crate::cli::status::sections::{detail_sections, overview_sections};
use crate::cli::status::summary::{
    headline, open_websockets, problem_lines, queued_requests, refusal_notice, spilling_backends,
};
use crate::cli::text::{Line, Style, in_words, printable};
use crate::routing::health::backend_state::BackendState;

/// The problems take at most this part of the screen.
const PROBLEMS_SHARE: usize = 5;
/// The backends keep at least this part of what is left, and the sections below them as well.
const MIN_SHARE: usize = 3;
/// Sections of fewer lines than this tell nothing.
const MIN_SECTION_LINES: usize = 3;

/// What is known about the process.
pub(super) struct Known<'w> {
    /// The last status, and how old it is.
    pub(super) status: Option<(&'w StatusReport, Duration)>,
    /// Why there is no newer one.
    pub(super) error: Option<&'w str>,
    pub(super) is_verbose: bool,
}

/// The lines of the screen.
pub(super) fn lines(known: &Known<'_>, view: &View, size: ScreenSize) -> Vec<Line> {
    let Some(rows) = size.rows.checked_sub(1) else { return Vec::new() };
    let mut lines = head_lines(known, view, size);
    if let Some((status, _)) = &known.status {
        lines.push(Line::default());
        let body = body_lines(status, known.is_verbose, view, size.columns, rows.saturating_sub(lines.len()));
        // What may not be true any more is less important than that.
        let is_stale = known.error.is_some();
        lines.extend(body.into_iter().map(|line| if is_stale { line.dimmed() } else { line }));
    }
    lines.resize(rows, Line::default());
    lines.push(footer(known, view));
    lines
}

fn head_lines(known: &Known<'_>, view: &View, size: ScreenSize) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(error) = known.error {
        let age = known.status.as_ref().map(|(_, age)| format!("; this is {} old", in_words(age.as_secs())));
        lines.push(Line::new(printable(error), Style::Bad));
        lines.push(Line::new(format!("trying again{}", age.unwrap_or_default()), Style::Bold));
    }
    match &known.status {
        None if known.error.is_none() => lines.push(Line::plain("waiting for the status")),
        None => {}
        Some((status, _)) => {
            let mut line = headline(status, ReportTime::new(&status.process));
            let (websockets, queued) = (open_websockets(status), queued_requests(status));
            line.push(format!("  in flight {}{websockets}{queued}", status.requests_in_flight), Style::Dim);
            if view.is_paused {
                line.push("  paused", Style::Bold);
            }
            lines.push(line);
            lines.extend(problem_lines(&status.service, Some((size.rows / PROBLEMS_SHARE).max(1))));
            lines.extend(refusal_notice(status));
        }
    }
    lines
}

/// The backends and the sections below them, in so many rows.
fn body_lines(
    status: &StatusReport,
    is_verbose: bool,
    view: &View,
    columns: usize,
    rows: usize,
) -> Vec<Line> {
    let time = ReportTime::new(&status.process);
    let filter = view.filter.to_lowercase();
    let mut backends: Vec<&BackendStatus> =
        status.backends.iter().filter(|backend| is_selected(backend, &filter)).collect();
    view.sort.sort(&mut backends);
    let table = backend_table(&backends, &spilling_backends(&status.service), time).lines(Some(columns));
    let mut sections = overview_sections(status, time, is_verbose);
    if is_verbose {
        sections.extend(detail_sections(status));
    }
    let sections: Vec<Vec<Line>> = sections.iter().map(|section| section.lines(Some(columns))).collect();
    let unhealthy = backends.iter().filter(|backend| backend.state != BackendState::Healthy.as_str()).count();
    let for_sections = rows - rows_for_backends(table.len(), unhealthy, rows);
    let sections = fit_sections(sections, for_sections);
    let mut lines = cut_to(table, rows - sections.len(), "");
    lines.extend(sections);
    lines
}

/// How many rows the backends need. Those that are healthy matter less than the sections.
fn rows_for_backends(table_lines: usize, unhealthy: usize, rows: usize) -> usize {
    let least = rows / MIN_SHARE;
    let title_and_more = 2;
    let wanted = table_lines.min((unhealthy + title_and_more).max(least)).min(rows - least);
    if rows - wanted < MIN_SECTION_LINES { rows } else { wanted }
}

/// The sections in so many rows: with a gap before each if there is room for that, else with one before the first.
fn fit_sections(sections: Vec<Vec<Line>>, rows: usize) -> Vec<Line> {
    let gap = || vec![Line::default()];
    let with_gaps: Vec<Line> =
        sections.iter().flat_map(|section| [gap(), section.clone()].concat()).collect();
    if with_gaps.len() <= rows {
        return with_gaps;
    }
    // Each shows as many lines as all can, at least its title, a row and how many more there are.
    let longest = sections.iter().map(Vec::len).max().unwrap_or(0);
    let length = |limit: usize| sections.iter().map(|section| section.len().min(limit)).sum::<usize>() + 1;
    let limit = (MIN_SECTION_LINES..=longest).rev().find(|limit| length(*limit) <= rows);
    let limit = limit.unwrap_or(MIN_SECTION_LINES);
    let cut = sections.into_iter().flat_map(|section| cut_to(section, limit, ""));
    cut_to([gap(), cut.collect()].concat(), rows, " lines")
}

/// The first of the lines. The last row says how many more there are, and of what.
fn cut_to(mut lines: Vec<Line>, rows: usize, of_what: &str) -> Vec<Line> {
    if lines.len() > rows {
        let shown = rows.saturating_sub(1);
        let more = lines.len() - shown;
        lines.truncate(shown);
        if rows > 0 {
            lines.push(Line::new(format!("… {more} more{of_what}"), Style::Dim));
        }
    }
    lines
}

fn footer(known: &Known<'_>, view: &View) -> Line {
    if view.is_typing() {
        let hint = "  (name, state or reason; Enter keeps it, Esc does not)";
        return Line::new("filter: ", Style::Bold)
            .with(format!("{}_", view.filter), Style::Plain)
            .with(hint, Style::Dim);
    }
    if view.shows_help {
        return Line::new(
            "q quit   s sort by another column   / filter   p pause   ? hide this   (ATT: attempts)",
            Style::Bold,
        );
    }
    let mut parts = vec!["? help".to_owned(), format!("sort: {}", view.sort.as_str())];
    if !view.filter.is_empty() {
        parts.push(format!("filter: {}", printable(&view.filter)));
    }
    parts.extend(known.status.map(|(status, _)| backend_counts(&status.backends)));
    Line::new(parts.join("   "), Style::Dim)
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::status::testing::{backend, status};
    use crate::cli::text::{Palette, width};

    fn trouble() -> StatusReport {
        let problem = |number: usize| json!({ "state": "degraded", "subject": format!("b{number:02}"), "text": "stalled" });
        let problems: Vec<Value> = (0..20).map(problem).collect();
        let service =
            json!({ "state": "degraded", "since": "2026-01-01T00:48:00.000Z", "problems": problems });
        let backends = (0..40).map(|number| match number {
            0..20 => backend(
                &format!("b{number:02}"),
                "stalled",
                Some("does not answer any more, not even a free question"),
            ),
            _ => backend(&format!("b{number:02}"), "healthy", None),
        });
        let mut status = status(&service, backends.collect());
        status.refusals = serde_json::from_value(json!([{
            "client": "team-a", "refused": { "401": 0, "403": 0, "404": 0, "429": 7, "other": 0 }, "failed": 0,
            "last_minute": { "refused": { "401": 0, "403": 0, "404": 0, "429": 1, "other": 0 }, "failed": 0 },
        }]))
        .unwrap();
        status
    }

    fn shown(known: &Known<'_>, view: &View, columns: usize, rows: usize) -> Vec<String> {
        let lines = lines(known, view, ScreenSize { columns, rows });
        lines.into_iter().map(|line| line.fitted(Some(columns)).render(Palette::Text)).collect()
    }

    fn position(lines: &[String], beginning: &str) -> Option<usize> {
        lines.iter().position(|line| line.trim_start().starts_with(beginning))
    }

    #[test]
    fn the_screen_is_filled_and_never_exceeded() {
        let status = trouble();
        for error in [None, Some("cannot reach the admin API")] {
            let known = Known { status: Some((&status, Duration::from_secs(3))), error, is_verbose: true };
            for rows in 0..60 {
                for columns in [0, 1, 5, 20, 40, 80, 132, 300] {
                    let lines = shown(&known, &View::default(), columns, rows);
                    // The screen shows no more than it has.
                    assert!(lines.len() >= rows && lines.len() <= rows.max(5), "{rows}: {lines:#?}");
                    assert!(lines.iter().all(|line| width(line) <= columns), "{columns}: {lines:#?}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_the_worst_stays() {
        let status = trouble();
        let known = Known { status: Some((&status, Duration::ZERO)), error: None, is_verbose: false };
        let lines = shown(&known, &View::default(), 80, 24);
        assert!(lines[0].starts_with("degraded since 2026-01-01T00:48:00Z (12m)  in flight 2"), "{lines:#?}");
        assert_eq!(lines[1], "  degraded  b00: stalled");
        assert_eq!(position(&lines, "… 17 more problems"), Some(4), "{lines:#?}");
        let table = position(&lines, "BACKEND").unwrap();
        assert!(lines[table + 1].starts_with("b00      stalled "), "{lines:#?}");
        let more = position(&lines, "… ").filter(|more| *more > table);
        let more = more.or_else(|| lines.iter().rposition(|line| line.starts_with("… "))).unwrap();
        assert_eq!(lines[more], format!("… {} more", 40 - (more - table - 1)));
        assert!(
            lines[more + 2].starts_with("REFUSED CLIENT") && lines[more + 3].starts_with("team-a "),
            "{lines:#?}"
        );
        assert_eq!(lines.last().unwrap(), "? help   sort: worst first   40 backends, 20 not healthy");
        // All of it, where there is room.
        let lines = shown(&known, &View::default(), 80, 100);
        assert!(lines.iter().all(|line| !line.starts_with("…")), "{lines:#?}");
    }

    #[test]
    fn the_view_decides_which_backends_are_shown() {
        let status = trouble();
        let known = Known { status: Some((&status, Duration::ZERO)), error: None, is_verbose: false };
        let mut view = View::default();
        for key in ['/', 'B', '3'] {
            view.on_key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE));
        }
        let lines = shown(&known, &view, 120, 40);
        assert!(lines.last().unwrap().starts_with("filter: B3_"), "{lines:#?}");
        let table = position(&lines, "BACKEND").unwrap();
        assert!(lines[table + 1].starts_with("b30 ") && lines[table + 10].starts_with("b39 "), "{lines:#?}");
        assert_eq!(lines[table + 11], "");
        view.on_key(KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE));
        view.on_key(KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE));
        let lines = shown(&known, &view, 120, 40);
        assert!(lines[0].ends_with("paused") && lines.last().unwrap().contains("filter: B3"), "{lines:#?}");
    }

    #[test]
    fn a_process_that_cannot_be_asked_is_said_above_what_was_known() {
        let status = trouble();
        let mut known = Known { status: None, error: None, is_verbose: false };
        assert_eq!(shown(&known, &View::default(), 80, 24)[0], "waiting for the status");
        known.error = Some("cannot reach the admin API");
        let lines = shown(&known, &View::default(), 80, 24);
        assert_eq!(lines[..3], ["cannot reach the admin API", "trying again", ""]);
        known.status = Some((&status, Duration::from_secs(14)));
        let lines = shown(&known, &View::default(), 80, 24);
        assert_eq!(lines[..2], ["cannot reach the admin API", "trying again; this is 14s old"]);
        assert!(lines[2].starts_with("degraded "), "{lines:#?}");
    }
}
