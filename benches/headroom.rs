//! Compares `balance: headroom` with `balance: round_robin`: three simulated resources with unequal
//! tokens per minute get requests for 95 % of their sum.
//!
//! `cargo bench --bench headroom [-- MINUTES]` (default 5) runs both at the same time, each with its own
//! balancer and resources, and prints a table and a line of JSON. Arrivals are random and do not wait for
//! responses. The rate-limit windows of the resources start 20 s apart.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark that prints its results"
)]

#[allow(dead_code, unused_imports, reason = "a benchmark uses a part of the harness")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, ResponseTiming, SimulatedResource, Simulator};
use support::{Balancer, CHAT_TARGET, CLIENT_KEY, simulated_backend_yaml};
use tokio::time::{Instant, sleep, sleep_until};

/// Tokens per minute.
const RESOURCES: [(&str, u64); 3] = [("large", 240_000), ("medium", 120_000), ("small", 40_000)];
const LOAD_FRACTION: f64 = 0.95;
const MEAN_REQUEST_TOKENS: f64 = 800.0;
/// From the request to the response.
const RESPONSE_LATENCY: Duration = Duration::from_secs(2);
const RESOURCE_START_INTERVAL: Duration = Duration::from_secs(20);

#[derive(Default)]
struct LoadResult {
    requests: usize,
    answered_200: usize,
    throttled_429: usize,
    other_statuses: usize,
    upstream_refusals: usize,
    by_backend: BTreeMap<String, usize>,
}

#[tokio::main]
async fn main() {
    let minutes = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(5.0);
    let length = Duration::from_secs_f64(minutes * 60.0);
    let (round_robin, headroom) = tokio::join!(run_load("round_robin", length), run_load("headroom", length));
    println!(
        "three resources of {RESOURCES:?} tokens per minute, {LOAD_FRACTION} of their sum, {minutes} minutes\n\n\
         | balance | requests | answered 200 | 429 to the client | other | refusals upstream | per 1000 | share |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for (balance, result) in [("round_robin", &round_robin), ("headroom", &headroom)] {
        let LoadResult {
            requests,
            answered_200,
            throttled_429,
            other_statuses,
            upstream_refusals,
            by_backend,
        } = result;
        let per_thousand = *upstream_refusals as f64 * 1000.0 / *requests as f64;
        println!(
            "| {balance} | {requests} | {answered_200} | {throttled_429} | {other_statuses} | {upstream_refusals} | {per_thousand:.2} | {by_backend:?} |"
        );
    }
    let json = |result: &LoadResult| {
        serde_json::json!({
            "requests": result.requests, "answered": result.answered_200, "throttled": result.throttled_429,
            "other": result.other_statuses, "refusals": result.upstream_refusals, "by_backend": result.by_backend,
        })
    };
    println!("\n{}", serde_json::json!({ "round_robin": json(&round_robin), "headroom": json(&headroom) }));
}

async fn run_load(balance: &str, length: Duration) -> LoadResult {
    let mut simulators = Vec::new();
    let mut backends = String::new();
    for (name, tokens_per_minute) in RESOURCES {
        let kind = DeploymentKind::Standard { tokens_per_minute, requests_per_minute: None };
        let resource = SimulatedResource {
            timing: ResponseTiming { first_byte_delay: RESPONSE_LATENCY, event_interval: Duration::ZERO },
            ..SimulatedResource::new(name).with_api_key(format!("{name}-key")).with_deployment(
                "gpt-4o",
                "gpt-4o-2024-11-20",
                kind,
            )
        };
        let azure = Simulator::start(vec![resource]).await.unwrap();
        backends += &simulated_backend_yaml(&azure, name, "deployments: { gpt-4o: gpt-4o }");
        simulators.push(azure);
        sleep(RESOURCE_START_INTERVAL).await;
    }
    let balancer = Arc::new(Balancer::start(&backends, &format!("balance: {balance}")).await);
    let total_tokens_per_minute: u64 = RESOURCES.iter().map(|(_, tokens)| tokens).sum();
    let per_second = total_tokens_per_minute as f64 * LOAD_FRACTION / 60.0 / MEAN_REQUEST_TOKENS;
    // The same seed and so the same arrivals for both.
    let mut random = fastrand::Rng::with_seed(1);
    let start = Instant::now();
    let mut next_arrival = start;
    let mut tasks = tokio::task::JoinSet::new();
    while next_arrival < start + length {
        sleep_until(next_arrival).await;
        // Uniformly distributed between 0.2 and 1.8 times the mean.
        let tokens = (MEAN_REQUEST_TOKENS * (0.2 + 1.6 * random.f64())) as usize;
        let prompt = "word".repeat(tokens / 2);
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"{prompt}"}}],"max_tokens":{}}}"#,
            tokens - tokens / 2
        );
        let balancer = Arc::clone(&balancer);
        tasks.spawn(
            async move { balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await },
        );
        next_arrival += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / per_second);
    }
    let mut result = LoadResult::default();
    for response in tasks.join_all().await {
        result.requests += 1;
        match response.status {
            200 => result.answered_200 += 1,
            429 => result.throttled_429 += 1,
            _ => result.other_statuses += 1,
        }
        let attempts: usize = response.header("x-aoai-lb-attempts").unwrap_or("0").parse().unwrap();
        result.upstream_refusals += attempts - usize::from(response.status == 200);
        if let Some(name) = response.header("x-aoai-lb-backend").filter(|_| response.status == 200) {
            *result.by_backend.entry(name.to_owned()).or_default() += 1;
        }
    }
    result
}
