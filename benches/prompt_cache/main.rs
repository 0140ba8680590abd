//! How much of the prompts resources find in their caches, in virtual time: nothing sleeps, and no socket is opened.
//!
//! `cargo bench --bench prompt_cache` simulates half an hour; `-- --quick` a third of that. Each workload is
//! sent to five resources at 50, 80 and 95 % of their tokens per minute, with each way to balance, and to a single
//! resource as large as all of them. It prints a table and a line of JSON, and fails if a target is missed. The pools, plans
//! and health are those of the balancer; what is simulated are time, clients, and the limits and prompt caches of Azure.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark that prints its results"
)]

#[allow(dead_code, reason = "a benchmark uses a part of another one's")]
#[path = "../fairness/azure.rs"]
mod azure;
#[allow(dead_code, reason = "as above")]
#[path = "../fairness/balancer.rs"]
mod balancer;
mod report;
mod simulation;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use report::{Line, Measured};
use simulation::simulate;
use workload::{Workload, total_tokens};

/// How long requests come.
const LENGTH: Duration = Duration::from_secs(30 * 60);
const QUICK_LENGTH: Duration = Duration::from_secs(10 * 60);
const RESOURCES: usize = 5;
/// The share of the tokens per minute of all resources that requests use on average.
const LOADS: [f64; 3] = [0.5, 0.8, 0.95];
const BALANCE_POLICIES: [&str; 3] = ["round_robin", "headroom", "prompt_cache"];

fn main() -> ExitCode {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let length = if is_quick { QUICK_LENGTH } else { LENGTH };
    let mut lines = Vec::new();
    for workload in Workload::ALL {
        let requests = workload.requests(length);
        let tokens_per_minute = total_tokens(&requests) as f64 / length.as_secs_f64() * 60.0;
        // It has room for everything: only its cache matters.
        let single = simulate(1, tokens_per_minute * 100.0, "round_robin", &requests);
        let single = Measured::new(&single);
        let single_share = single.cached_share;
        lines.push(Line::single(workload.name(), single));
        for load in LOADS {
            let limit = tokens_per_minute / load / RESOURCES as f64;
            for policy in BALANCE_POLICIES {
                let result = simulate(RESOURCES, limit, policy, &requests);
                lines.push(Line::new(workload.name(), load, policy, Measured::new(&result), single_share));
            }
        }
    }
    report::print(&lines)
}
