//! How the queue behaves.

use std::time::Duration;

use aoai_lb::config::RequestClass;

use crate::azure::Limit;
use crate::load::{ClientLoad, arrivals, burst};
use crate::report::{Row, Target, p95, percent};
use crate::simulation::{EndedRequest, SimulationResult, simulate};

const SECOND: Duration = Duration::from_secs(1);
/// What comes before this is not counted: until then, the queue fills.
const WARM_UP: Duration = Duration::from_secs(3 * 60);
/// Tokens per minute.
const CAPACITY: u64 = 600_000;
/// Those of a large deployment, for which there are a hundred requests in a second.
const LARGE_CAPACITY: u64 = 6_000_000;
/// Many at once.
const CONCURRENT: usize = 480;

/// All of them. In each, requests come for so long.
pub fn rows(length: Duration) -> Vec<Row> {
    let mut rows = bursts();
    rows.extend(greedy_client("2 greedy client, provisioned", CAPACITY, length));
    rows.extend(greedy_client("2 greedy client, large provisioned", LARGE_CAPACITY, length));
    rows.extend(equal_shares(length));
    rows.extend(used_capacity(length));
    rows.extend(batch_behind_interactive("4 batch behind interactive, provisioned", CAPACITY, length));
    let scenario = "4 batch behind interactive, large provisioned";
    rows.extend(batch_behind_interactive(scenario, LARGE_CAPACITY, length));
    rows
}

/// 480 requests at the same time, for which there is too little capacity.
fn bursts() -> Vec<Row> {
    const TOKENS: u64 = 1000;
    // 375 fit, and after three seconds as many again.
    let standard = Limit::Standard { tokens_per_minute: 375 * TOKENS, minute_age: 57 * SECOND };
    // 376 fit, and one more every 32 ms. Some of the others get in within `retry.wait`.
    let provisioned = Limit::Provisioned { tokens_per_minute: 1875 * TOKENS, utilization: 0.8 };
    let mut rows = Vec::new();
    for (scenario, limit, refused) in [
        ("1 burst of 480, standard", standard, Target::Equals(105.0)),
        ("1 burst of 480, provisioned", provisioned, Target::AtLeast(1.0)),
    ] {
        let without = simulate(&[(1, limit)], "", burst(CONCURRENT, TOKENS));
        let with = simulate(&[(1, limit)], "queue: { wait: 5s }", burst(CONCURRENT, TOKENS));
        let errors = |result: &SimulationResult| (CONCURRENT - result.answered()) as f64;
        let longest_wait = with.ended.iter().map(|request| request.queued).max().unwrap_or_default();
        rows.extend([
            Row::new(scenario, "429 to clients without a queue", errors(&without), "", refused),
            Row::new(scenario, "429 to clients with the queue", errors(&with), "", Target::Equals(0.0)),
            Row::new(
                scenario,
                "longest wait in the queue",
                longest_wait.as_secs_f64(),
                "s",
                Target::AtMost(5.0),
            ),
            Row::new(scenario, "refusals by Azure with the queue", with.refusals() as f64, "", Target::None),
        ]);
    }
    rows
}

/// Ten clients, of which one asks for a hundred times as much as each of the others.
fn greedy_client(scenario: &'static str, capacity: u64, length: Duration) -> Vec<Row> {
    let modest: Vec<ClientLoad> =
        (1..10).map(|number| ClientLoad { number, ..client(capacity, 0.02) }).collect();
    let greedy =
        ClientLoad { number: 0, tokens_per_minute: 100.0 * modest[0].tokens_per_minute, ..modest[0] };
    let all = [modest.as_slice(), &[greedy]].concat();
    let run = |clients: &[ClientLoad]| {
        simulate(&[(1, provisioned(capacity))], "queue: { wait: 5s }", arrivals(clients, length))
    };
    let (without, with) = (run(&modest), run(&all));
    let of_modest = |result: &SimulationResult| {
        let (counted, end) = (result.start + WARM_UP, result.start + length);
        let requests = result.ended.iter().filter(|request| request.client > 0).cloned();
        requests
            .filter(|request| request.arrived_at >= counted && request.arrived_at < end)
            .collect::<Vec<EndedRequest>>()
    };
    let (modest_without, modest_with) = (of_modest(&without), of_modest(&with));
    let refused = modest_with.iter().filter(|request| request.accepted_at.is_none()).count();
    let p95_of = |requests: &[EndedRequest]| p95(requests.iter().map(EndedRequest::duration));
    let growth = p95_of(&modest_with) / p95_of(&modest_without) - 1.0;
    let queued = p95(modest_with.iter().map(|request| request.queued));
    vec![
        Row::new(scenario, "p95 of the nine without it", p95_of(&modest_without), "s", Target::None),
        Row::new(scenario, "growth of that with it", percent(growth), "%", Target::AtMost(10.0)),
        Row::new(scenario, "p95 of their waits in the queue", queued, "s", Target::None),
        Row::new(scenario, "429 to the nine", refused as f64, "", Target::Equals(0.0)),
        Row::new(scenario, "capacity used", percent(used(&with, length)), "%", Target::AtLeast(98.0)),
    ]
}

/// Ten clients that all ask for more than their share: some for much more, some in small requests.
fn equal_shares(length: Duration) -> Vec<Row> {
    const SCENARIO: &str = "2 shares in overload, provisioned";
    let clients: Vec<ClientLoad> = (0..10)
        .map(|number| {
            let share = [0.15, 0.2, 0.3, 0.6, 1.5][number % 5];
            ClientLoad { number, mean_tokens: [500, 1000, 2000][number % 3], ..client(CAPACITY, share) }
        })
        .collect();
    let result = simulate(
        &[(1, provisioned(CAPACITY))],
        "queue: { wait: 10s, requests: 2000 }",
        arrivals(&clients, length),
    );
    let (begin, end) = (result.start + WARM_UP, result.start + length);
    let tokens_of = |client: usize| {
        let accepted = result.ended.iter().filter(|request| request.client == client);
        let counted =
            accepted.filter(|request| request.accepted_at.is_some_and(|at| (begin..end).contains(&at)));
        counted.map(|request| request.tokens).sum::<u64>() as f64
    };
    let tokens: Vec<f64> = (0..clients.len()).map(tokens_of).collect();
    let mean = tokens.iter().sum::<f64>() / tokens.len() as f64;
    let farthest = tokens.iter().map(|tokens| (tokens / mean - 1.0).abs()).fold(0.0, f64::max);
    vec![
        Row::new(SCENARIO, "farthest from an equal share", percent(farthest), "%", Target::AtMost(5.0)),
        Row::new(SCENARIO, "capacity used", percent(used(&result, length)), "%", Target::AtLeast(98.0)),
    ]
}

/// More load than capacity, with waits that are long enough for the queue never to be empty.
fn used_capacity(length: Duration) -> Vec<Row> {
    let standard = |tokens_per_minute| Limit::Standard { tokens_per_minute, minute_age: 20 * SECOND };
    let half = CAPACITY / 2;
    let half_provisioned = provisioned(half);
    let mut rows = Vec::new();
    for (scenario, backends) in [
        ("3 standard", vec![(1, standard(CAPACITY))]),
        ("3 provisioned", vec![(1, provisioned(CAPACITY))]),
        ("3 provisioned, then standard in tier 2", vec![(1, half_provisioned), (2, standard(half))]),
        ("3 two standard, one in tier 2", vec![(1, standard(half)), (2, standard(half))]),
        ("3 two standard in one tier", vec![(1, standard(half)), (1, standard(half / 4))]),
        ("3 two provisioned, one in tier 2", vec![(1, half_provisioned), (2, half_provisioned)]),
    ] {
        let capacity: f64 = backends.iter().map(|(_, limit)| capacity_of(limit)).sum();
        let tokens_per_minute = capacity * 2.0 / 4.0;
        let clients: Vec<ClientLoad> =
            (0..4).map(|number| ClientLoad { number, tokens_per_minute, ..client(CAPACITY, 1.0) }).collect();
        let blocks = "queue: { wait: 100s, requests: 5000 }";
        let result = simulate(&backends, blocks, arrivals(&clients, length));
        let (begin, end) = (result.start + WARM_UP, result.start + length);
        let shares = result.deployments.iter().map(|deployment| deployment.used_share(begin, end));
        let least = shares.fold(f64::INFINITY, f64::min);
        let idle = result.idle_time(begin, end).as_secs_f64();
        rows.extend([
            Row::new(scenario, "time in which nobody waits", idle, "s", Target::Equals(0.0)),
            Row::new(scenario, "capacity used, of each", percent(least), "%", Target::AtLeast(98.0)),
            Row::new(scenario, "refusals by Azure", result.refusals() as f64, "", Target::None),
        ]);
    }
    rows
}

/// Interactive requests for half of the capacity, and a flood of batch requests.
fn batch_behind_interactive(scenario: &'static str, capacity: u64, length: Duration) -> Vec<Row> {
    let interactive: Vec<ClientLoad> = (0..5)
        .map(|number| ClientLoad { number, class: RequestClass::Interactive, ..client(capacity, 0.1) })
        .collect();
    let batch =
        ClientLoad { number: 5, class: RequestClass::Batch, mean_tokens: 2000, ..client(capacity, 3.0) };
    let all = [interactive.as_slice(), &[batch]].concat();
    let run = |clients: &[ClientLoad]| {
        simulate(&[(1, provisioned(capacity))], "queue: { wait: 20s }", arrivals(clients, length))
    };
    let (without, with) = (run(&interactive), run(&all));
    let counted = |result: &SimulationResult| -> Vec<EndedRequest> {
        let (begin, end) = (result.start + WARM_UP, result.start + length);
        let interactive = result.ended.iter().filter(|request| request.client != batch.number);
        interactive.filter(|request| (begin..end).contains(&request.arrived_at)).cloned().collect()
    };
    let (before, after) = (counted(&without), counted(&with));
    let p95_of = |requests: &[EndedRequest]| p95(requests.iter().map(EndedRequest::duration));
    let waits = |requests: &[EndedRequest]| p95(requests.iter().map(|request| request.queued));
    let refused = after.iter().filter(|request| request.accepted_at.is_none()).count();
    let growth = p95_of(&after) / p95_of(&before) - 1.0;
    vec![
        Row::new(scenario, "p95 of waits of interactive without batch", waits(&before), "s", Target::None),
        Row::new(scenario, "p95 of waits of interactive with batch", waits(&after), "s", Target::None),
        Row::new(scenario, "growth of the p95 of interactive", percent(growth), "%", Target::AtMost(10.0)),
        Row::new(scenario, "429 to interactive", refused as f64, "", Target::Equals(0.0)),
        Row::new(scenario, "capacity used", percent(used(&with, length)), "%", Target::AtLeast(98.0)),
    ]
}

/// A provisioned deployment that is full when the load begins.
fn provisioned(tokens_per_minute: u64) -> Limit {
    Limit::Provisioned { tokens_per_minute, utilization: 1.0 }
}

/// A client that asks for this share of the capacity.
fn client(capacity: u64, share: f64) -> ClientLoad {
    let tokens_per_minute = capacity as f64 * share;
    ClientLoad { number: 0, class: RequestClass::Standard, tokens_per_minute, mean_tokens: 1000 }
}

fn capacity_of(limit: &Limit) -> f64 {
    let (Limit::Standard { tokens_per_minute, .. } | Limit::Provisioned { tokens_per_minute, .. }) = limit;
    *tokens_per_minute as f64
}

/// The share of the capacity of all deployments that was used after the queue had filled.
fn used(result: &SimulationResult, length: Duration) -> f64 {
    let (begin, end) = (result.start + WARM_UP, result.start + length);
    let shares = result.deployments.iter().map(|deployment| deployment.used_share(begin, end));
    shares.fold(f64::INFINITY, f64::min)
}
