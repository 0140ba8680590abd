//! What waits in the queue.

use std::time::Duration;

use super::fitted_table::{Cell, Column, Table};
use crate::admin::status::queue::{QueueStatus, WaitingByClass};
use crate::cli::text::{Line, Style, printable};

/// The deployments for which requests wait, the one with most first.
pub(super) fn queue_table(queue: &QueueStatus) -> Table {
    let mut table = Table::new(&[Column::text("QUEUE FOR"), Column::number("WAITING", 9)]);
    for line in &queue.lines {
        let name = line.deployment.as_deref().map_or_else(|| "(no deployment)".to_owned(), printable);
        table.push(vec![name.into(), Cell::new(line.waiting.to_string(), Style::Notice)]);
    }
    table
}

/// How many requests of each class wait, and how many may, for how long.
pub(super) fn queue_note(queue: &QueueStatus) -> Line {
    let WaitingByClass { interactive, standard, batch } = queue.waiting;
    let wait = humantime::format_duration(Duration::from_millis(queue.wait_ms));
    Line::plain(format!(
        "in the queue: interactive {interactive}, standard {standard}, batch {batch}; at most {} requests, each for at \
         most {wait}",
        queue.requests
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::plain;
    use super::super::testing;
    use crate::cli::text::Palette;

    /// The lines about the queue, with single blanks.
    fn shown(waiting: [u64; 3], lines: &Value, is_verbose: bool) -> Vec<String> {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        let [interactive, standard, batch] = waiting;
        let waiting = json!({ "interactive": interactive, "standard": standard, "batch": batch });
        status.queue = testing::queue(&waiting, lines);
        let text = plain::format(&status, None, Palette::Text, is_verbose);
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let is_of_queue = |line: &String| line.starts_with("QUEUE FOR") || line.starts_with("in the queue");
        lines.skip_while(|line| !is_of_queue(line)).take_while(|line| !line.is_empty()).collect()
    }

    #[test]
    fn what_waits_is_shown_and_the_bounds_in_detail() {
        let lines = json!([{ "deployment": "gpt-4o", "waiting": 3 }, { "deployment": null, "waiting": 1 }]);
        let note =
            "in the queue: interactive 1, standard 0, batch 3; at most 1000 requests, each for at most 5s";
        let expected = ["QUEUE FOR WAITING", "gpt-4o 3", "(no deployment) 1", note];
        assert_eq!(shown([1, 0, 3], &lines, false), expected);
        assert_eq!(shown([1, 0, 3], &lines, true), expected);
        assert!(shown([0; 3], &json!([]), false).is_empty());
        let nothing =
            "in the queue: interactive 0, standard 0, batch 0; at most 1000 requests, each for at most 5s";
        assert_eq!(shown([0; 3], &json!([]), true), [nothing]);
    }

    #[test]
    fn without_a_queue_nothing_is_shown() {
        let status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        assert!(!plain::format(&status, None, Palette::Text, true).to_lowercase().contains("queue"));
    }
}
