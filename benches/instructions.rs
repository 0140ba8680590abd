//! Counts the instructions of each step of a request with callgrind, which does not depend on the speed or
//! load of the machine.
//!
//! `cargo bench --bench instructions` fails if a step takes 3 % more instructions than in
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
const MAX_INCREASE: f64 = 0.03;
/// Rounds before the count: buffers have then grown to their size.
const WARM_UP_ROUNDS: usize = 50;
/// Rounds that are counted.
const COUNTED_ROUNDS: usize = 500;
/// The argument with which the benchmark runs itself under callgrind.
const STEP_FLAG: &str = "--step";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == STEP_FLAG
    {
        let mut steps = hot_path::steps();
        let (_, step) = steps.iter_mut().find(|(other, _)| other == name).unwrap();
        (0..WARM_UP_ROUNDS).for_each(|_| step());
        counted_rounds(step);
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

/// Callgrind counts only inside of this function. To make all steps takes millions of instructions, and hash tables
/// with random seeds make that number differ from run to run.
#[inline(never)]
fn counted_rounds(step: &mut dyn FnMut()) {
    (0..COUNTED_ROUNDS).for_each(|_| step());
}

/// The instructions of one round after warm-up.
fn instructions_per_round(step: &str) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_rounds*"])
        .arg(std::env::current_exe().unwrap())
        .args([STEP_FLAG, step])
        .output()
        .expect("valgrind must be installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{step}: {stderr}");
    let line = stderr.lines().find_map(|line| line.split_once("Collected :"));
    let count: Option<u64> = line.and_then(|(_, count)| count.trim().parse().ok());
    // 0 if callgrind does not find the function.
    count.filter(|count| *count > 0).unwrap_or_else(|| panic!("{step}: {stderr}")) / COUNTED_ROUNDS as u64
}
