//! How many instructions each step of a request takes, counted by callgrind, which does not care
//! how fast or how busy a machine is.
//!
//! `cargo bench --bench instructions_per_round` fails where a step takes a tenth more than
//! `benches/instructions_per_round.json` says; with `-- --update` it writes that file.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a program that measures and reports"
)]

mod hot_path;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

/// How much more than before is too much.
const MAX_INCREASE: f64 = 0.10;
/// What is done before counting means something, and what is counted.
const ROUND_COUNTS: [usize; 2] = [50, 550];
/// How it calls itself.
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
            println!("| {name} | {count} | | it is new |");
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
        "\nA step takes {:.0} % more than before, or is new. If that is meant:\n\
         cargo bench --bench instructions -- --update",
        MAX_INCREASE * 100.0
    );
    ExitCode::FAILURE
}

/// Of one round, in the long run.
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
        .expect("valgrind is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{step}: {stderr}");
    let line = stderr.lines().find_map(|line| line.split_once("Collected :"));
    line.and_then(|(_, count)| count.trim().parse().ok()).unwrap_or_else(|| panic!("{step}: {stderr}"))
}
