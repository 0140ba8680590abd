//! The status as text, once: for a terminal that scrolls, or a pipe.

use super::backends::{SortOrder, backend_table};
use super::report_time::{ReportTime, in_whole_seconds};
use super::sections::{detail_sections, overview_sections};
use super::summary::{
    headline, open_websockets, problem_lines, queued_requests, refusal_notice, spilling_backends,
};
use crate::admin::status::{BackendStatus, StatusReport};
use crate::cli::text::{Line, Palette, in_words, printable};

/// So many problems are listed on a terminal, where the backends below would be out of sight.
const MAX_PROBLEMS_ON_TERMINAL: usize = 12;

/// The text. With `columns`, for a terminal of that width: tables are cut, sentences are not.
pub(super) fn format(
    status: &StatusReport,
    columns: Option<usize>,
    palette: Palette,
    is_verbose: bool,
) -> String {
    let time = ReportTime::new(&status.process);
    let mut lines = vec![headline(status, time)];
    lines.extend(problem_lines(&status.service, columns.map(|_| MAX_PROBLEMS_ON_TERMINAL)));
    lines.extend(refusal_notice(status));
    lines.extend(process_lines(status).into_iter().map(Line::plain));
    lines.push(Line::default());
    let mut backends: Vec<&BackendStatus> = status.backends.iter().collect();
    SortOrder::WorstFirst.sort(&mut backends);
    lines.extend(backend_table(&backends, &spilling_backends(&status.service), time).lines(columns));
    let details = is_verbose.then(|| detail_sections(status));
    for section in
        overview_sections(status, time, is_verbose).into_iter().chain(details.into_iter().flatten())
    {
        lines.push(Line::default());
        lines.extend(section.lines(columns));
    }
    lines.iter().map(|line| line.render(palette) + "\n").collect()
}

fn process_lines(status: &StatusReport) -> Vec<String> {
    let (process, configuration) = (&status.process, &status.configuration);
    let readiness = match (process.stopping, process.ready) {
        (true, _) => "stopping",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let mut lines = vec![
        format!(
            "aoai-lb {}, process {}, up {}, {readiness}; in flight {}{}{}, finished {}",
            printable(&status.build.version),
            process.pid,
            in_words(process.uptime_seconds),
            status.requests_in_flight,
            open_websockets(status),
            queued_requests(status),
            status.finished_requests,
        ),
        format!(
            "configuration {} of {}, active since {}",
            configuration.version,
            configuration.file.as_deref().map_or_else(|| "no file".to_owned(), printable),
            in_whole_seconds(&configuration.loaded),
        ),
    ];
    if !configuration.needs_upgrade.is_empty() {
        lines.push(format!("needs an upgrade: {}", printable(&configuration.needs_upgrade.join(", "))));
    }
    if let Some(problem) = &process.drains_not_saved {
        lines.push(format!("drains end with this process: {}", printable(problem)));
    }
    if let Some(problem) = status.affinity.as_ref().and_then(|affinity| affinity.not_saved.as_deref()) {
        lines.push(format!(
            "ids of stored objects are forgotten when this process ends: {}",
            printable(problem)
        ));
    }
    lines
}
