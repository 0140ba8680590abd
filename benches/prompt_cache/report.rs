//! What was measured, and whether the targets are met.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::simulation::{EndedRequest, SimulationResult};

/// The policy that has targets.
const MEASURED_POLICY: &str = "prompt_cache";
/// The least share of cached tokens, compared with that of a single resource.
const MIN_SHARE_OF_SINGLE: f64 = 0.95;
/// The most tokens of a resource, compared with the mean of all.
const MAX_LOAD_OF_MEAN: f64 = 1.25;

/// The figures of one simulation.
#[derive(Clone, Debug)]
pub struct Measured {
    requests: usize,
    /// The share of prompt tokens that were cached, of the requests that were answered.
    pub cached_share: f64,
    /// The tokens of the resource with the most of them, compared with the mean.
    highest_load: f64,
    /// Requests whose client got 429.
    refused: usize,
    /// Attempts that were answered with 429.
    refused_attempts: usize,
    /// Times to the first byte, in seconds.
    first_byte_p50: f64,
    first_byte_p95: f64,
    /// Why requests were not sent to the first backend of their keys, and how many.
    moves: BTreeMap<&'static str, usize>,
}

impl Measured {
    pub fn new(result: &SimulationResult) -> Self {
        let answered: Vec<&EndedRequest> =
            result.ended.iter().filter(|request| request.first_byte.is_some()).collect();
        let sum =
            |count: fn(&EndedRequest) -> u64| answered.iter().map(|request| count(request)).sum::<u64>();
        let loads = result
            .deployments
            .iter()
            .map(|deployment| deployment.accepted_between(result.start, result.end) as f64);
        let loads: Vec<f64> = loads.collect();
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let mut times: Vec<Duration> = answered.iter().filter_map(|request| request.first_byte).collect();
        times.sort_unstable();
        let quantile =
            |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, Duration::as_secs_f64);
        let mut moves = BTreeMap::new();
        for reason in result.ended.iter().filter_map(|request| request.moved) {
            *moves.entry(reason.as_str()).or_default() += 1;
        }
        Self {
            requests: result.ended.len(),
            cached_share: sum(|request| request.cached_tokens) as f64
                / sum(|request| request.prompt_tokens) as f64,
            highest_load: loads.iter().fold(0.0, |highest: f64, load| highest.max(load / mean)),
            refused: result.ended.len() - answered.len(),
            refused_attempts: result.deployments.iter().map(|deployment| deployment.refusals).sum(),
            first_byte_p50: quantile(50),
            first_byte_p95: quantile(95),
            moves,
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    workload: &'static str,
    /// `None` for the single resource, whose load does not matter.
    load: Option<f64>,
    balance: &'static str,
    measured: Measured,
    /// Its share of cached tokens, compared with that of the single resource.
    share_of_single: f64,
}

impl Line {
    pub fn new(
        workload: &'static str,
        load: f64,
        balance: &'static str,
        measured: Measured,
        single_share: f64,
    ) -> Self {
        let share_of_single = measured.cached_share / single_share;
        Self { workload, load: Some(load), balance, measured, share_of_single }
    }

    /// That of a single resource.
    pub fn single(workload: &'static str, measured: Measured) -> Self {
        Self { workload, load: None, balance: "single resource", measured, share_of_single: 1.0 }
    }

    /// The targets that it misses.
    fn missed_targets(&self) -> Vec<String> {
        if self.balance != MEASURED_POLICY {
            return Vec::new();
        }
        let cached = (self.share_of_single < MIN_SHARE_OF_SINGLE).then(|| {
            format!(
                "cached {:.1} % of a single resource's, at least {:.0} %",
                self.share_of_single * 100.0,
                MIN_SHARE_OF_SINGLE * 100.0
            )
        });
        let load = (self.measured.highest_load > MAX_LOAD_OF_MEAN).then(|| {
            format!("highest load {:.2} of the mean, at most {MAX_LOAD_OF_MEAN}", self.measured.highest_load)
        });
        cached.into_iter().chain(load).collect()
    }

    fn to_line(&self) -> String {
        let Self { workload, balance, measured, share_of_single, .. } = self;
        let load = self.load.map_or_else(String::new, |load| format!("{:.0} %", load * 100.0));
        format!(
            "| {workload} | {load} | {balance} | {:.1} % | {:.1} % | {:.2} | {} | {} | {:.2} s | {:.2} s |",
            measured.cached_share * 100.0,
            share_of_single * 100.0,
            measured.highest_load,
            measured.refused,
            measured.refused_attempts,
            measured.first_byte_p50,
            measured.first_byte_p95,
        )
    }

    fn to_json(&self) -> Value {
        let Self { workload, load, balance, measured, share_of_single } = self;
        json!({
            "workload": workload, "load": load, "balance": balance, "requests": measured.requests,
            "cached_share": measured.cached_share, "share_of_single": share_of_single,
            "highest_load": measured.highest_load, "refused": measured.refused,
            "refused_attempts": measured.refused_attempts, "first_byte_p50": measured.first_byte_p50,
            "first_byte_p95": measured.first_byte_p95, "moves": measured.moves,
            "missed": self.missed_targets(),
        })
    }
}

/// Prints the table, the targets that are missed, and the line of JSON. It fails if a target is missed.
pub fn print(lines: &[Line]) -> ExitCode {
    println!(
        "| workload | load | balance | cached | of a single resource's | highest load / mean | 429 to clients | 429 \
         from resources | first byte p50 | p95 |\n| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    lines.iter().for_each(|line| println!("{}", line.to_line()));
    println!();
    let mut is_met = true;
    for line in lines {
        for missed in line.missed_targets() {
            is_met = false;
            println!("missed: {} at {:.0} %: {missed}", line.workload, line.load.unwrap_or_default() * 100.0);
        }
    }
    println!("{}", json!({ "met": is_met, "lines": lines.iter().map(Line::to_json).collect::<Vec<_>>() }));
    if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
