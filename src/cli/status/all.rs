//! `aoai-lb status --all`: each instance that shares one server, and their sum.

use serde::Serialize;

use super::fitted_table::{Cell, Column, Table};
use super::report_time::in_whole_seconds;
use super::shared::{instance_name, shared_note};
use super::status_client::StatusError;
use crate::admin::status::StatusReport;
use crate::admin::status::shared::{InstanceStatus, SharedStatus};
use crate::cli::text::{Line, Palette, Style, counted, or_unknown, printable};
use crate::routing::service_state::ServiceState;

/// What all instances have to do together.
#[derive(Debug, PartialEq, Serialize)]
struct Total {
    instances: u64,
    requests_per_second: f64,
    in_flight: u64,
    queued: u64,
    /// How many instances are in each state.
    states: Vec<StateCount>,
    /// Instances whose requests in flight and queue are not in the sum: their version does not tell, or they are not
    /// listed.
    not_counted: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct StateCount {
    state: String,
    instances: u64,
}

/// The JSON of `--all`.
#[derive(Serialize)]
struct AllReport<'s> {
    up: bool,
    problem: Option<&'s str>,
    since: Option<&'s str>,
    instances_seen: Option<&'s str>,
    instances_current: bool,
    instances: &'s [InstanceStatus],
    /// `None` if the list is not of now.
    total: Option<Total>,
}

/// The instances and their sum as JSON, in one line.
///
/// # Errors
/// If this instance shares nothing.
pub(super) fn to_json(status: &StatusReport) -> Result<Vec<u8>, StatusError> {
    let shared = status.shared.as_ref().ok_or(StatusError::NotShared)?;
    let report = AllReport {
        up: shared.up,
        problem: shared.problem.as_deref(),
        since: shared.since.as_deref(),
        instances_seen: shared.instances_seen.as_deref(),
        instances_current: shared.instances_current,
        instances: &shared.instances,
        total: total(shared),
    };
    let mut json = serde_json::to_vec(&report)?;
    json.push(b'\n');
    Ok(json)
}

/// The same as a table and sentences. With `columns`, for a terminal of that width.
///
/// # Errors
/// If this instance shares nothing.
pub(super) fn format(
    status: &StatusReport,
    columns: Option<usize>,
    palette: Palette,
) -> Result<String, StatusError> {
    let shared = status.shared.as_ref().ok_or(StatusError::NotShared)?;
    let total = total(shared);
    let mut lines = instance_table(shared, total.as_ref()).lines(columns);
    lines.push(Line::default());
    lines.push(shared_note(shared));
    lines.push(match &total {
        Some(total) => states_note(total),
        None => Line::new(no_total_note(shared), Style::Bad),
    });
    lines.extend(total.filter(|total| total.not_counted > 0).map(|total| {
        let instances = counted(usize::try_from(total.not_counted).unwrap_or(usize::MAX), "instance");
        Line::new(
            format!("The total of requests in flight and in queues leaves out {instances} without figures"),
            Style::Warning,
        )
    }));
    Ok(lines.iter().map(|line| line.render(palette) + "\n").collect())
}

/// The sum; `None` if the list is not of now.
fn total(shared: &SharedStatus) -> Option<Total> {
    if !shared.instances_current {
        return None;
    }
    let listed = shared.instances.len() as u64;
    let instances = shared.last_seen_count.max(listed);
    let is_counted = |instance: &&InstanceStatus| instance.in_flight.is_some() && instance.queued.is_some();
    let counted = || shared.instances.iter().filter(is_counted);
    let rate: f64 = shared.instances.iter().map(|instance| instance.requests_per_second).sum();
    let states = ServiceState::ALL.iter().filter_map(|state| {
        let name = state.as_str();
        let in_state = shared.instances.iter().filter(|instance| instance.state.as_deref() == Some(name));
        match in_state.count() as u64 {
            0 => None,
            instances => Some(StateCount { state: name.to_owned(), instances }),
        }
    });
    Some(Total {
        instances,
        requests_per_second: (rate * 10.0).round() / 10.0,
        in_flight: counted().filter_map(|instance| instance.in_flight).fold(0, u64::saturating_add),
        queued: counted().filter_map(|instance| instance.queued).fold(0, u64::saturating_add),
        states: states.collect(),
        not_counted: instances.saturating_sub(counted().count() as u64),
    })
}

fn instance_table(shared: &SharedStatus, total: Option<&Total>) -> Table {
    let mut table = Table::new(&[
        Column::text("INSTANCE"),
        Column::text("STATE"),
        Column { importance: 2, ..Column::text("VERSION") },
        Column { importance: 1, ..Column::text("SINCE") },
        Column::number("IN FLIGHT", 6),
        Column::number("QUEUED", 5),
        Column::number("REQUESTS/S", 4),
    ]);
    let style = if total.is_some() { Style::Plain } else { Style::Dim };
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for instance in &shared.instances {
        let state = instance.state.as_deref();
        let state_style = if total.is_some() { state_style(state) } else { style };
        table.push(vec![
            Cell::new(instance_name(instance), style),
            Cell::new(state.map_or_else(|| "-".to_owned(), printable), state_style),
            Cell::new(printable(&instance.version), style),
            Cell::new(or_unknown(instance.since.as_deref().map(in_whole_seconds)), style),
            Cell::new(number(instance.in_flight), style),
            Cell::new(number(instance.queued), style),
            Cell::new(format!("{:.1}", instance.requests_per_second), style),
        ]);
    }
    if let Some(total) = total {
        let cells = [
            format!("TOTAL ({})", total.instances),
            String::new(),
            String::new(),
            String::new(),
            total.in_flight.to_string(),
            total.queued.to_string(),
            format!("{:.1}", total.requests_per_second),
        ];
        table.push(cells.map(|text| Cell::new(text, Style::Bold)).to_vec());
    }
    table
}

fn state_style(state: Option<&str>) -> Style {
    match ServiceState::ALL.into_iter().find(|known| Some(known.as_str()) == state) {
        Some(ServiceState::Healthy) => Style::Good,
        Some(ServiceState::Spilling) => Style::Notice,
        Some(ServiceState::Degraded) => Style::Warning,
        Some(ServiceState::Failing) => Style::Bad,
        None => Style::Plain,
    }
}

fn states_note(total: &Total) -> Line {
    let states: Vec<String> =
        total.states.iter().map(|count| format!("{} {}", count.instances, count.state)).collect();
    let states =
        if states.is_empty() { "no instance reports its state".to_owned() } else { states.join(", ") };
    Line::plain(states)
}

/// What the rows are, if there is no sum.
fn no_total_note(shared: &SharedStatus) -> String {
    match &shared.instances_seen {
        Some(seen) => format!(
            "There is no total: this is what was last known, at {}. Which instances run now, and what they do, is not known",
            in_whole_seconds(seen)
        ),
        None => "There is no total: this instance has not seen the others yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing;
    use super::*;

    const SINCE: &str = "2026-01-01T00:00:00.500Z";

    fn instance(name: &str, more: &Value) -> Value {
        let mut instance = json!({
            "id": name, "name": name, "version": "0.1.0", "since": SINCE, "requests_per_second": 1.25, "is_self": name == "vm-1/7",
        });
        instance.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        instance
    }

    fn status(shared: &Value) -> StatusReport {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        status.shared = serde_json::from_value(shared.clone()).unwrap();
        status
    }

    /// The lines, with one space between words.
    fn shown(shared: &Value) -> Vec<String> {
        let text = format(&status(shared), None, Palette::Text).unwrap_or_else(|error| error.to_string());
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    fn shared(is_current: bool) -> Value {
        json!({
            "up": is_current, "problem": if is_current { Value::Null } else { json!("cannot use Redis at a:1: refused") },
            "since": SINCE, "last_seen_count": 3, "instances_seen": "2026-01-02T00:00:00.000Z",
            "instances_current": is_current, "instances": [
                instance("vm-1/7", &json!({ "state": "healthy", "in_flight": 5, "queued": 2 })),
                instance("vm-2/8", &json!({ "state": "degraded", "in_flight": 7, "queued": 0 })),
                instance("vm-3/9", &json!({})),
            ],
        })
    }

    #[test]
    fn a_total_says_what_it_leaves_out() {
        let expected = [
            "INSTANCE STATE VERSION SINCE IN FLIGHT QUEUED REQUESTS/S",
            "vm-1/7 (this one) healthy 0.1.0 2026-01-01T00:00:00Z 5 2 1.2",
            "vm-2/8 degraded 0.1.0 2026-01-01T00:00:00Z 7 0 1.2",
            "vm-3/9 - 0.1.0 2026-01-01T00:00:00Z - - 1.2",
            "TOTAL (3) 12 2 3.8",
            "",
            "shared: connected since 2026-01-01T00:00:00Z, 3 instances",
            "1 healthy, 1 degraded",
            "The total of requests in flight and in queues leaves out 1 instance without figures",
        ];
        assert_eq!(shown(&shared(true)), expected);
        let json: Value = serde_json::from_slice(&to_json(&status(&shared(true))).unwrap()).unwrap();
        let total = json!({
            "instances": 3, "requests_per_second": 3.8, "in_flight": 12, "queued": 2, "not_counted": 1,
            "states": [{ "state": "healthy", "instances": 1 }, { "state": "degraded", "instances": 1 }],
        });
        assert_eq!((&json["total"], json["instances"].as_array().unwrap().len()), (&total, 3));
    }

    #[test]
    fn without_the_server_there_is_no_total() {
        let lines = shown(&shared(false));
        assert!(!lines.iter().any(|line| line.starts_with("TOTAL")), "{lines:?}");
        let expected = [
            "shared: not connected since 2026-01-01T00:00:00Z, 3 instances before: cannot use Redis at a:1: refused",
            "There is no total: this is what was last known, at 2026-01-02T00:00:00Z. Which instances run now, and what they \
             do, is not known",
        ];
        assert_eq!(lines[lines.len() - 2..], expected);
        let json: Value = serde_json::from_slice(&to_json(&status(&shared(false))).unwrap()).unwrap();
        assert_eq!((&json["total"], &json["instances"][1]["in_flight"]), (&Value::Null, &json!(7)));
        let never =
            json!({ "up": false, "problem": null, "since": null, "last_seen_count": 1, "instances": [] });
        let expected = "There is no total: this instance has not seen the others yet";
        assert_eq!(shown(&never).last().unwrap(), expected);
        // An instance that is alone.
        let expected = StatusError::NotShared.to_string();
        assert_eq!(shown(&Value::Null), [expected]);
    }
}
