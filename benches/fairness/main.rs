//! How the queue and the limits of clients behave, in virtual time: nothing sleeps, and no socket is opened.
//!
//! `cargo bench --bench fairness` takes some seconds; `-- --quick` simulates half of the time. It prints a table of what
//! was measured, each with its target, and a line of JSON, and fails if a target is missed. The pools, plans, health, queue
//! and limiters are those of the balancer; what is simulated are time, clients and two kinds of deployments of Azure.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark that prints its results"
)]

mod azure;
#[allow(dead_code, reason = "another benchmark uses it as well")]
mod balancer;
mod ledger;
mod limit_run;
mod limit_scenarios;
mod load;
mod queue_scenarios;
mod report;
mod simulation;

use std::process::ExitCode;
use std::time::Duration;

/// How long requests come in the scenarios of the queue.
const LENGTH: Duration = Duration::from_secs(10 * 60);
const QUICK_LENGTH: Duration = Duration::from_secs(5 * 60);

fn main() -> ExitCode {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let length = if is_quick { QUICK_LENGTH } else { LENGTH };
    report::print(&[queue_scenarios::rows(length), limit_scenarios::rows()].concat())
}
