//! How the limits of clients behave.

use std::time::Duration;

use aoai_lb::config::LimitSet;

use crate::limit_run::{LimitRun, LimitRunResult, run_client};
use crate::report::{Row, Target, percent};

const MINUTE: Duration = Duration::from_secs(60);
const TOKENS_PER_MINUTE: u64 = 300_000;
const TOKENS_PER_DAY: u64 = 2_000_000;

/// All of them.
pub fn rows() -> Vec<Row> {
    let upgrade = Duration::from_millis(317_400);
    let mut rows = rate("5 rate, 200 at a time", Vec::new());
    rows.extend(rate("5 rate, with an upgrade", vec![upgrade]));
    rows.extend(budget("5 budget, with two upgrades", vec![upgrade / 3, upgrade * 2 / 3]));
    rows
}

/// A client that asks for more than its tokens per minute.
fn rate(scenario: &'static str, upgrades: Vec<Duration>) -> Vec<Row> {
    let length = 15 * MINUTE;
    let limits = LimitSet { tokens_per_minute: Some(TOKENS_PER_MINUTE), ..LimitSet::default() };
    let LimitRunResult { start, ledger, .. } = run_client(&LimitRun { limits, upgrades, length });
    let limit = TOKENS_PER_MINUTE as f64;
    let of_limit = |tokens: u64| percent(tokens as f64 / limit);
    let (begin, end) = (start + 2 * MINUTE, start + length);
    let minutes = (end - begin).as_secs_f64() / MINUTE.as_secs_f64();
    let used = ledger.used_between(begin, end) as f64 / (limit * minutes);
    vec![
        Row::new(
            scenario,
            "most reserved or used by estimate in 60 s, of the limit",
            of_limit(ledger.most_within_estimates),
            "%",
            Target::AtMost(100.0),
        ),
        Row::new(scenario, "used, of the limit", percent(used), "%", Target::AtLeast(95.0)),
        Row::new(
            scenario,
            "largest overshoot, of the limit",
            of_limit(ledger.largest_overshoot),
            "%",
            Target::None,
        ),
        Row::new(
            scenario,
            "overshoot beyond the errors of estimates in progress",
            ledger.largest_unexplained_overshoot as f64,
            "tokens",
            Target::Equals(0.0),
        ),
    ]
}

/// A client that asks for more than its tokens of a day, of which processes that replace each other keep the books.
fn budget(scenario: &'static str, upgrades: Vec<Duration>) -> Vec<Row> {
    let limits = LimitSet { tokens_per_day: Some(TOKENS_PER_DAY), ..LimitSet::default() };
    let result = run_client(&LimitRun { limits, upgrades, length: 10 * MINUTE });
    let LimitRunResult { start, ledger, budget_used } = result;
    let used = ledger.used_between(start, start + 10 * MINUTE);
    let errors: u64 =
        ledger.entries.iter().filter_map(|entry| Some(entry.ended?.1.saturating_sub(entry.reserved))).sum();
    let unexplained = used.saturating_sub(TOKENS_PER_DAY + errors);
    let difference = used.abs_diff(budget_used);
    vec![
        Row::new(
            scenario,
            "used, of the budget",
            percent(used as f64 / TOKENS_PER_DAY as f64),
            "%",
            Target::AtLeast(95.0),
        ),
        Row::new(
            scenario,
            "used and not in the books, or twice",
            difference as f64,
            "tokens",
            Target::Equals(0.0),
        ),
        Row::new(
            scenario,
            "overshoot beyond the errors of estimates",
            unexplained as f64,
            "tokens",
            Target::Equals(0.0),
        ),
    ]
}
