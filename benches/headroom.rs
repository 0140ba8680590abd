//! `balance: headroom` against `balance: round_robin`: three simulated resources of unequal tokens
//! per minute, asked for 95 % of their sum.
//!
//! `cargo bench --bench headroom [-- MINUTES]` (default 5) runs both at once, each with its own
//! balancer and resources, and prints a table and a line of JSON. Arrivals are random and do not
//! wait for answers; the minutes of the resources begin 20 s apart.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a program that reports")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aoai_lb::demo::{Kind, Pace, Resource, Simulator};
use support::{Balancer, CHAT, KEY, backend};
use tokio::time::{Instant, sleep, sleep_until};

/// Tokens per minute.
const RESOURCES: [(&str, u64); 3] = [("large", 240_000), ("medium", 120_000), ("small", 40_000)];
const LOAD: f64 = 0.95;
const MEAN_TOKENS: f64 = 800.0;
/// From the request to the answer.
const LATENCY: Duration = Duration::from_secs(2);
const APART: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Tally {
    requests: usize,
    ok: usize,
    throttled: usize,
    other: usize,
    refusals: usize,
    answered: BTreeMap<String, usize>,
}

#[tokio::main]
async fn main() {
    let minutes = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(5.0);
    let length = Duration::from_secs_f64(minutes * 60.0);
    let (plain, with) = tokio::join!(run("round_robin", length), run("headroom", length));
    println!(
        "three resources of {RESOURCES:?} tokens per minute, {LOAD} of their sum, {minutes} minutes\n\n\
         | balance | requests | answered 200 | 429 to the client | other | refusals upstream | per 1000 | share |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for (balance, tally) in [("round_robin", &plain), ("headroom", &with)] {
        let Tally { requests, ok, throttled, other, refusals, answered } = tally;
        let thousandth = *refusals as f64 * 1000.0 / *requests as f64;
        println!(
            "| {balance} | {requests} | {ok} | {throttled} | {other} | {refusals} | {thousandth:.2} | {answered:?} |"
        );
    }
    let json = |tally: &Tally| {
        serde_json::json!({
            "requests": tally.requests, "answered": tally.ok, "throttled": tally.throttled,
            "other": tally.other, "refusals": tally.refusals, "by_backend": tally.answered,
        })
    };
    println!("\n{}", serde_json::json!({ "round_robin": json(&plain), "headroom": json(&with) }));
}

async fn run(balance: &str, length: Duration) -> Tally {
    let mut running = Vec::new();
    let mut backends = String::new();
    for (name, tokens_per_minute) in RESOURCES {
        let kind = Kind::Standard { tokens_per_minute, requests_per_minute: None };
        let resource = Resource {
            pace: Pace { first_byte: LATENCY, between_events: Duration::ZERO },
            ..Resource::new(name).key(format!("{name}-key")).deployment("gpt-4o", "gpt-4o-2024-11-20", kind)
        };
        let azure = Simulator::start(vec![resource]).await.unwrap();
        backends += &backend(&azure, name, "deployments: { gpt-4o: gpt-4o }");
        running.push(azure);
        sleep(APART).await;
    }
    let balancer = Arc::new(Balancer::start(&backends, &format!("balance: {balance}")).await);
    let sum: u64 = RESOURCES.iter().map(|(_, tokens)| tokens).sum();
    let per_second = sum as f64 * LOAD / 60.0 / MEAN_TOKENS;
    // The same arrivals for both.
    let mut random = fastrand::Rng::with_seed(1);
    let begun = Instant::now();
    let mut next = begun;
    let mut tasks = tokio::task::JoinSet::new();
    while next < begun + length {
        sleep_until(next).await;
        // An even spread from a fifth to nine fifths of the mean.
        let tokens = (MEAN_TOKENS * (0.2 + 1.6 * random.f64())) as usize;
        let prompt = "word".repeat(tokens / 2);
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"{prompt}"}}],"max_tokens":{}}}"#,
            tokens - tokens / 2
        );
        let balancer = Arc::clone(&balancer);
        tasks.spawn(async move { balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await });
        next += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / per_second);
    }
    let mut tally = Tally::default();
    for reply in tasks.join_all().await {
        tally.requests += 1;
        match reply.status {
            200 => tally.ok += 1,
            429 => tally.throttled += 1,
            _ => tally.other += 1,
        }
        let attempts: usize = reply.header("x-aoai-lb-attempts").unwrap_or("0").parse().unwrap();
        tally.refusals += attempts - usize::from(reply.status == 200);
        if let Some(name) = reply.header("x-aoai-lb-backend").filter(|_| reply.status == 200) {
            *tally.answered.entry(name.to_owned()).or_default() += 1;
        }
    }
    tally
}
