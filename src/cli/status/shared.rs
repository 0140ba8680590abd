//! The instances that act as one, and whether their server answers.

use super::fitted_table::{Cell, Column, Table};
use super::report_time::in_whole_seconds;
use crate::admin::status::shared::{InstanceStatus, SharedStatus};
use crate::cli::text::{Line, Style, counted, or_unknown, printable};

/// The instances that were last seen.
pub(super) fn instance_table(shared: &SharedStatus) -> Table {
    let mut table = Table::new(&[
        Column::text("INSTANCE"),
        Column::text("VERSION"),
        Column::text("SINCE"),
        Column::number("REQUESTS/S", 6),
    ]);
    let style = if shared.up { Style::Plain } else { Style::Dim };
    for instance in &shared.instances {
        table.push(vec![
            Cell::new(instance_name(instance), style),
            Cell::new(printable(&instance.version), style),
            Cell::new(or_unknown(instance.since.as_deref().map(in_whole_seconds)), style),
            Cell::new(format!("{:.1}", instance.requests_per_second), style),
        ]);
    }
    table
}

/// The name of an instance, or its id, and whether it is the one that answers.
pub(super) fn instance_name(instance: &InstanceStatus) -> String {
    let name = if instance.name.is_empty() { &instance.id } else { &instance.name };
    let this_one = if instance.is_self { " (this one)" } else { "" };
    format!("{}{this_one}", printable(name))
}

/// Which instance probes what.
pub(super) fn probe_notes(shared: &SharedStatus) -> impl Iterator<Item = Line> {
    shared.probes.iter().map(|probe| {
        let this_one = if probe.is_self { " (this one)" } else { "" };
        let part = if probe.name.is_empty() { &probe.part } else { &probe.name };
        let (instance, backend) = (printable(&probe.instance), printable(&probe.backend));
        Line::plain(format!("shared: {instance}{this_one} probes {backend}, {}", printable(part)))
    })
}

/// Whether the server answers, and since when.
pub(super) fn shared_note(shared: &SharedStatus) -> Line {
    let since = shared.since.as_deref().map(|since| format!(" since {}", in_whole_seconds(since)));
    let since = since.unwrap_or_default();
    let count = counted(usize::try_from(shared.last_seen_count).unwrap_or(usize::MAX), "instance");
    let limited_alone = match shared.requests_limited_alone {
        0 => String::new(),
        number => {
            let requests = counted(usize::try_from(number).unwrap_or(usize::MAX), "request");
            format!("; {requests} compared with this instance's part of their limits")
        }
    };
    match (shared.up, &shared.problem) {
        (true, None) => Line::plain(format!("shared: connected{since}, {count}{limited_alone}")),
        (true, Some(problem)) => Line::new(
            format!("shared: connected in part{since}, {count}{limited_alone}: {}", printable(problem)),
            Style::Bad,
        ),
        (false, Some(problem)) => Line::new(
            format!("shared: not connected{since}, {count} before{limited_alone}: {}", printable(problem)),
            Style::Bad,
        ),
        (false, None) => Line::plain("shared: connecting"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::plain;
    use super::super::testing;
    use crate::cli::text::Palette;

    fn shown(shared: &Value) -> String {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        status.shared = serde_json::from_value(shared.clone()).unwrap();
        plain::format(&status, None, Palette::Text, false)
    }

    #[test]
    fn instances_are_listed_with_the_state_of_their_server() {
        let since = "2026-01-01T00:00:00.500Z";
        let instances = json!([
            { "id": "1", "name": "vm-1/7", "version": "0.1.0", "since": since, "requests_per_second": 12.5, "is_self": true },
            { "id": "2", "name": "", "version": "", "since": null, "requests_per_second": 0.0, "is_self": false },
        ]);
        let up = shown(&json!({
            "up": true, "problem": null, "since": since, "last_seen_count": 2, "instances": instances,
            "probes": [{ "backend": "a", "part": "deployment", "name": "gpt-4o", "instance": "vm-1/7", "is_self": true }],
        }));
        let lines: Vec<String> =
            up.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for expected in [
            "INSTANCE VERSION SINCE REQUESTS/S",
            "vm-1/7 (this one) 0.1.0 2026-01-01T00:00:00Z 12.5",
            "shared: connected since 2026-01-01T00:00:00Z, 2 instances",
            "shared: vm-1/7 (this one) probes a, gpt-4o",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {up}");
        }
        assert!(lines.iter().any(|line| line.starts_with("2 ")), "{up}");
        let partial = shown(&json!({
            "up": true, "problem": "cannot use a part of Redis at a:1: 5 slots", "since": since, "last_seen_count": 2,
            "instances": [],
        }));
        let expected = "shared: connected in part since 2026-01-01T00:00:00Z, 2 instances: cannot use a part of Redis at a:1: 5 \
                        slots";
        assert!(partial.lines().any(|line| line == expected), "{partial}");
        let down = shown(&json!({
            "up": false, "problem": "cannot use Redis at a:1: refused", "since": since, "last_seen_count": 1,
            "requests_limited_alone": 2, "instances": [],
        }));
        let expected = "shared: not connected since 2026-01-01T00:00:00Z, 1 instance before; 2 requests compared with this \
                        instance's part of their limits: cannot use Redis at a:1: refused";
        assert!(down.lines().any(|line| line == expected), "{down}");
        assert!(!shown(&Value::Null).contains("shared"));
    }
}
