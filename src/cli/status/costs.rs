//! What the responses to each client cost.

use super::fitted_table::{Cell, Column, Table};
use crate::admin::status::costs::CostsStatus;
use crate::cli::text::{Line, Style, printable};
use crate::money::Amount;

/// A row for each client, the one first that has cost most in this month.
pub(super) fn cost_table(costs: &CostsStatus) -> Table {
    let mut table = Table::new(&[
        Column::text("COST OF CLIENT"),
        Column::number("TODAY", 9),
        Column::number("THIS MONTH", 9),
        Column::number("PROVISIONED", 4),
        Column::number("WITHOUT COST", 6),
    ]);
    let mut clients: Vec<_> = costs.clients.iter().collect();
    // Texts of other versions may be anything; a sum that is not a number is last.
    let amount = |cost: &str| Amount::parse(cost).unwrap_or_default();
    clients.sort_by_key(|client| std::cmp::Reverse(amount(&client.month.cost)));
    for client in clients {
        let unknown = client.month.without_cost;
        table.push(vec![
            client.client.as_deref().map_or_else(|| "(unknown)".to_owned(), printable).into(),
            printable(&client.today.cost).into(),
            printable(&client.month.cost).into(),
            client.month.provisioned.to_string().into(),
            Cell::new(unknown.to_string(), if unknown > 0 { Style::Warning } else { Style::Plain }),
        ]);
    }
    table
}

/// The currency, and whether the sums are kept.
pub(super) fn cost_notes(costs: &CostsStatus) -> Vec<Line> {
    let currency = printable(&costs.currency);
    let mut notes = vec![Line::plain(format!("costs are in {currency}, of the UTC day and month"))];
    if let Some(reason) = &costs.not_saved {
        let text = format!("the sums of costs are forgotten when the process ends: {}", printable(reason));
        notes.push(Line::new(text, Style::Warning));
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::plain;
    use super::super::testing;
    use crate::admin::status::StatusReport;
    use crate::cli::text::Palette;

    #[test]
    fn the_client_that_has_cost_most_is_first() {
        let sum =
            |cost: &str, without: u64| json!({ "cost": cost, "provisioned": 2, "without_cost": without });
        let mut status = testing::status(&json!({ "state": "healthy", "problems": [] }), Vec::new());
        let lines = |status: &StatusReport| {
            let text = plain::format(status, None, Palette::Text, true);
            let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            let lines = lines.skip_while(|line| !line.starts_with("COST OF CLIENT"));
            lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>()
        };
        assert!(lines(&status).is_empty());
        let costs = json!({ "currency": "USD", "not_saved": "disk full", "clients": [
            { "client": null, "today": sum("0", 0), "month": sum("0.5", 0) },
            { "client": "a", "today": sum("1.25", 1), "month": sum("9.75", 3) },
            { "client": "b", "today": sum("0.000001", 0), "month": sum("10", 0) },
        ] });
        status.costs = Some(serde_json::from_value(costs).unwrap());
        assert_eq!(
            lines(&status),
            [
                "COST OF CLIENT TODAY THIS MONTH PROVISIONED WITHOUT COST",
                "b 0.000001 10 2 0",
                "a 1.25 9.75 2 3",
                "(unknown) 0 0.5 2 0",
                "costs are in USD, of the UTC day and month",
                "the sums of costs are forgotten when the process ends: disk full",
            ]
        );
    }
}
