//! Which resource has what: the ids that are remembered, and how each resource was asked and answered.

use super::fitted_table::{Column, Table};
use crate::admin::status::affinity::AffinityStatus;
use crate::cli::text::{Line, Style, in_words_ms, or_unknown, printable};

const MEBIBYTE: u64 = 1024 * 1024;

/// Each resource of the configuration.
pub(super) fn resource_table(affinity: &AffinityStatus) -> Table {
    let mut table = Table::new(&[
        Column::text("RESOURCE"),
        Column::number("OBJECTS", 9),
        Column::number("REQUESTS/MIN", 8),
        Column::number("FOUND THERE", 5),
        Column::number("NOT THERE", 4),
        Column::number("READ LAG", 6),
        Column::text("BACKENDS"),
    ]);
    for resource in &affinity.resources {
        table.push(vec![
            printable(&resource.name).into(),
            resource.entries.to_string().into(),
            resource.last_minute_requests.to_string().into(),
            resource.asked.accepted.to_string().into(),
            resource.asked.denied.to_string().into(),
            or_unknown(resource.last_read_lag_ms.map(in_words_ms)).into(),
            printable(&resource.backends.join(", ")).into(),
        ]);
    }
    table
}

/// How full the memory is, and what was forgotten.
pub(super) fn memory_lines(affinity: &AffinityStatus) -> Vec<Line> {
    let AffinityStatus { entries, capacity, bytes, evicted, evicted_with_maker, .. } = affinity;
    let mut lines = vec![Line::plain(format!(
        "{entries} of {capacity} ids are remembered that fit into {} MiB",
        bytes.div_ceil(MEBIBYTE)
    ))];
    if *evicted > 0 {
        let style =
            if *evicted_with_maker > 0 && affinity.owner == "enforce" { Style::Bad } else { Style::Plain };
        let text =
            format!("{evicted} were forgotten since the memory was full, {evicted_with_maker} with a maker");
        lines.push(Line::new(text, style));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::text::Palette;

    #[test]
    fn the_memory_and_each_resource_are_told_and_what_is_unknown_is_not_zero() {
        let mut affinity: AffinityStatus = serde_json::from_value(json!({
            "entries": 7, "capacity": 100, "bytes": 1_048_577, "evicted": 0, "evicted_with_maker": 0,
            "owner": "enforce", "not_saved": null,
            "resources": [
                { "name": "east:443", "backends": ["a", "b"], "entries": 7, "asked": { "accepted": 2, "denied": 3 },
                  "last_minute_requests": 4, "last_read_lag_ms": 7200 },
                { "name": "west:443", "backends": ["c"], "entries": 0, "asked": { "accepted": 0, "denied": 0 },
                  "last_minute_requests": 0, "last_read_lag_ms": null },
            ],
        }))
        .unwrap();
        let lines = resource_table(&affinity).lines(None);
        let lines: Vec<String> = lines.iter().map(|line| line.render(Palette::Text)).collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[1])[..5], ["east:443", "7", "4", "2", "3"], "{lines:?}");
        assert!(lines[1].ends_with("a, b") && words(&lines[2])[5] == or_unknown(None), "{lines:?}");
        let memory = |affinity: &AffinityStatus| -> Vec<String> {
            memory_lines(affinity).iter().map(|line| line.render(Palette::Text)).collect()
        };
        assert_eq!(memory(&affinity), ["7 of 100 ids are remembered that fit into 2 MiB"]);
        (affinity.evicted, affinity.evicted_with_maker) = (9, 1);
        assert_eq!(memory(&affinity)[1], "9 were forgotten since the memory was full, 1 with a maker");
    }
}
