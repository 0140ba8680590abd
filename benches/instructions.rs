//! Counts the instructions of each step of a request with callgrind, which does not depend on the speed or
//! load of the machine.
//!
//! `cargo bench --bench instructions` fails if a step takes 10 % more instructions than in
//! `benches/instructions.json`; with `-- --update` it writes that file.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark that prints its results"
)]

mod hot_path;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The largest accepted increase of a count, as a fraction.
const MAX_INCREASE: f64 = 0.10;
/// The numbers of rounds of two runs. Their difference excludes start-up and warm-up.
const ROUND_COUNTS: [usize; 2] = [50, 550];
/// The argument with which the benchmark runs itself under callgrind.
const STEP_FLAG: &str = "--step";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, rounds] = &arguments[..]
        && flag == STEP_FLAG
    {
        let mut steps = hot_path::steps();
        let (_, step) = steps.iter_mut().find(|(other, _)| other == name).unwrap();
        (0..rounds.parse().unwrap()).for_each(|_| step());
        return ExitCode::SUCCESS;
    }
    let counts: BTreeMap<&str, u64> =
        hot_path::steps().iter().map(|(name, _)| (*name, instructions_per_round(name))).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json");
    if arguments.iter().any(|argument| argument == "--update") {
        std::fs::write(&path, serde_json::to_string_pretty(&counts).unwrap() + "\n").unwrap();
        println!("written: {counts:#?}");
        return ExitCode::SUCCESS;
    }
    let previous_counts: BTreeMap<String, u64> =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut is_within_limit = true;
    println!("| step | instructions | before | |\n| --- | ---: | ---: | ---: |");
    for (name, count) in &counts {
        let Some(before) = previous_counts.get(*name) else {
            println!("| {name} | {count} | | new |");
            is_within_limit = false;
            continue;
        };
        let change = *count as f64 / *before as f64 - 1.0;
        is_within_limit &= change <= MAX_INCREASE;
        println!("| {name} | {count} | {before} | {:+.1} % |", change * 100.0);
    }
    if is_within_limit {
        return ExitCode::SUCCESS;
    }
    println!(
        "\nA step takes more than {:.0} % more instructions than before, or is new. If this is intended, run:\n\
         cargo bench --bench instructions -- --update",
        MAX_INCREASE * 100.0
    );
    ExitCode::FAILURE
}

/// The instructions of one round after warm-up.
fn instructions_per_round(step: &str) -> u64 {
    let [few_rounds, many_rounds] = ROUND_COUNTS.map(|rounds| count_instructions(step, rounds));
    (many_rounds - few_rounds) / (ROUND_COUNTS[1] - ROUND_COUNTS[0]) as u64
}

fn count_instructions(step: &str, rounds: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args([STEP_FLAG, step, &rounds.to_string()])
        .output()
        .expect("valgrind must be installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{step}: {stderr}");
    let line = stderr.lines().find_map(|line| line.split_once("Collected :"));
    line.and_then(|(_, count)| count.trim().parse().ok()).unwrap_or_else(|| panic!("{step}: {stderr}"))
}
