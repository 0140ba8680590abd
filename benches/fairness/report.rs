//! What was measured, and whether the targets are met.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

/// What a number has to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    Equals(f64),
    /// It is only told.
    None,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    scenario: &'static str,
    measured: &'static str,
    value: f64,
    unit: &'static str,
    target: Target,
}

impl Row {
    pub fn new(
        scenario: &'static str,
        measured: &'static str,
        value: f64,
        unit: &'static str,
        target: Target,
    ) -> Self {
        Self { scenario, measured, value, unit, target }
    }

    /// Whether its target is met; `None` if it has none.
    fn is_met(&self) -> Option<bool> {
        match self.target {
            Target::AtLeast(least) => Some(self.value >= least),
            Target::AtMost(most) => Some(self.value <= most),
            Target::Equals(expected) => Some((self.value - expected).abs() < 1e-9),
            Target::None => None,
        }
    }

    fn to_line(&self) -> String {
        let Self { scenario, measured, value, unit, .. } = self;
        let target = match self.target {
            Target::AtLeast(least) => format!("at least {} {unit}", number(least)),
            Target::AtMost(most) => format!("at most {} {unit}", number(most)),
            Target::Equals(expected) => format!("{} {unit}", number(expected)),
            Target::None => String::new(),
        };
        let is_met = self.is_met().map_or("", |is_met| if is_met { "yes" } else { "**NO**" });
        format!("| {scenario} | {measured} | {} {unit} | {target} | {is_met} |", number(*value))
    }

    fn to_json(&self) -> Value {
        let Self { scenario, measured, value, unit, .. } = self;
        json!({ "scenario": scenario, "measured": measured, "value": value, "unit": unit, "met": self.is_met() })
    }
}

/// Prints the table and the line of JSON. It fails if a target is missed.
pub fn print(rows: &[Row]) -> ExitCode {
    println!("| scenario | measured | value | target | met |\n| --- | --- | ---: | ---: | --- |");
    rows.iter().for_each(|row| println!("{}", row.to_line()));
    let is_met = rows.iter().all(|row| row.is_met() != Some(false));
    let values: Vec<Value> = rows.iter().map(Row::to_json).collect();
    println!("\n{}", json!({ "met": is_met, "rows": values }));
    if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The 95th percentile, in seconds; 0 of nothing.
pub fn p95(durations: impl Iterator<Item = Duration>) -> f64 {
    let mut sorted: Vec<Duration> = durations.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() * 95 / 100).map_or(0.0, Duration::as_secs_f64)
}

/// A fraction in percent.
pub fn percent(fraction: f64) -> f64 {
    fraction * 100.0
}

fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
