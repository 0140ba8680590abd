//! The clients that are close to a limit, or all limits.

use std::cmp::Reverse;

use super::fitted_table::{Cell, Column, Table};
use crate::admin::status::limits::{LimitUsage, LimitsStatus};
use crate::cli::text::{Line, Style, printable};
use crate::config::LimitMode;

/// A limit is close if at least so much of it is used.
const CLOSE_PERCENT: u64 = 80;

/// The limits that are close, or all, the one first that is used most.
pub(super) fn limit_table(limits: &LimitsStatus, shows_all: bool) -> Table {
    let mut table = Table::new(&[
        Column::text("LIMITED CLIENT"),
        Column::text("LIMIT"),
        Column::number("CLASS", 3),
        Column::number("USED", 8),
        Column::number("OF", 7),
        Column::number("LEFT", 4),
        Column::number("USED %", 9),
    ]);
    let all = limits
        .clients
        .iter()
        .flat_map(|client| client.limits.iter().map(move |limit| (client, limit, limit.used_percent())));
    let mut shown: Vec<_> = all.filter(|(_, _, percent)| shows_all || *percent >= CLOSE_PERCENT).collect();
    shown.sort_by_key(|(_, _, percent)| Reverse(*percent));
    for (client, limit, percent) in shown {
        let LimitUsage { limit, value, used, remaining } = limit;
        let style = match percent {
            0..CLOSE_PERCENT => Style::Plain,
            CLOSE_PERCENT..100 => Style::Notice,
            100.. => Style::Warning,
        };
        table.push(vec![
            client.client.as_deref().map_or_else(|| "(all)".to_owned(), printable).into(),
            printable(limit).into(),
            printable(&client.class).into(),
            used.to_string().into(),
            value.to_string().into(),
            remaining.to_string().into(),
            Cell::new(format!("{percent}%"), style),
        ]);
    }
    table
}

/// What has to be known with the table.
pub(super) fn limit_notes(limits: &LimitsStatus) -> Vec<Line> {
    let observed = limits.mode == LimitMode::Observe.as_str();
    let observed = observed.then(|| Line::plain("limits.mode is observe: no request is refused"));
    let not_saved = limits.budgets_not_saved.as_deref().map(|reason| {
        let text = format!("the use of budgets is forgotten when the process ends: {}", printable(reason));
        Line::new(text, Style::Warning)
    });
    let currency = limits.currency.as_deref();
    let currency =
        currency.map(|currency| Line::plain(format!("limits by cost are in {}", printable(currency))));
    observed.into_iter().chain(currency).chain(not_saved).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::plain;
    use super::super::testing;
    use crate::cli::text::Palette;

    /// The lines from the table on, with single blanks.
    fn shown(limits: serde_json::Value, is_verbose: bool) -> Vec<String> {
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        status.limits = serde_json::from_value(limits).unwrap();
        let text = plain::format(&status, None, Palette::Text, is_verbose);
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.skip_while(|line| !line.starts_with("LIMITED CLIENT")).collect()
    }

    #[test]
    fn limits_that_are_close_are_shown_and_all_in_detail() {
        let limit = |limit: &str, value: u64, used: u64| json!({ "limit": limit, "value": value, "used": used, "remaining": value.saturating_sub(used) });
        let mut limits = json!({ "mode": "enforce", "budgets_not_saved": null, "clients": [
            { "client": "team-a", "class": "batch", "limits": [
                limit("tokens_per_minute", 1000, 800), limit("requests_per_minute", 1000, 799),
            ] },
            { "client": null, "class": "standard", "limits": [limit("tokens_per_day", 10, 12)] },
        ] });
        let [title, day, tokens, requests] = [
            "LIMITED CLIENT LIMIT CLASS USED OF LEFT USED %",
            "(all) tokens_per_day standard 12 10 0 120%",
            "team-a tokens_per_minute batch 800 1000 200 80%",
            "team-a requests_per_minute batch 799 1000 201 79%",
        ];
        assert_eq!(shown(limits.clone(), false), [title, day, tokens]);
        assert_eq!(shown(limits.clone(), true), [title, day, tokens, requests]);
        let cost = json!({ "limit": "cost_per_day", "value": 2.0, "used": 1.75, "remaining": 0.25 });
        limits["clients"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "client": "c", "class": "batch", "limits": [cost] }));
        limits["currency"] = json!("USD");
        let cost = "c cost_per_day batch 1.75 2 0.25 87%";
        assert_eq!(shown(limits.clone(), false), [title, day, cost, tokens, "limits by cost are in USD"]);
        limits["clients"].as_array_mut().unwrap().pop();
        limits["currency"] = json!(null);
        limits["mode"] = json!("observe");
        limits["budgets_not_saved"] = json!("disk\nfull");
        let notes = [
            "limits.mode is observe: no request is refused",
            "the use of budgets is forgotten when the process ends: disk full",
        ];
        assert_eq!(shown(limits.clone(), false)[3..], notes);
        // Nothing is close, so there is nothing to tell.
        limits["clients"] =
            json!([{ "client": "a", "class": "batch", "limits": [limit("in_flight", 5, 3)] }]);
        assert!(shown(limits, false).is_empty());
        assert!(shown(json!(null), true).is_empty());
    }
}
