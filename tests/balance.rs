//! `balance`: who is asked while rate limits fill up.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use aoai_lb::demo::{Kind, Mood, Resource, Simulator};
use support::{Balancer, CHAT, KEY, answerer, backend, quick};

/// A hundred tokens by Azure's estimate: characters / 4 and `max_tokens`.
const HUNDRED: &str =
    r#"{"messages":[{"role":"user","content":"of forty characters, or ten tokens, all."}],"max_tokens":90}"#;

fn standard(tokens_per_minute: u64) -> Kind {
    Kind::Standard { tokens_per_minute, requests_per_minute: Some(100_000) }
}

/// A balancer in front of a deployment of this kind on `a`, and of that on `b`.
async fn two(balance: &str, a: Kind, b: Kind) -> (Simulator, Balancer) {
    let resource = |name: &str, kind| Resource {
        pace: quick(),
        ..Resource::new(name).key(format!("{name}-key")).deployment("gpt-4o", "gpt-4o-2024-11-20", kind)
    };
    let azure = Simulator::start(vec![resource("a", a), resource("b", b)]).await.unwrap();
    let listed = ["a", "b"].map(|name| backend(&azure, name, "deployments: { gpt-4o: gpt-4o }")).concat();
    let balancer = Balancer::start(&listed, balance).await;
    (azure, balancer)
}

/// So many requests of a hundred tokens, one after the other: who answered, and how many refusals
/// it took.
async fn ask(balancer: &Balancer, count: usize) -> (Vec<String>, usize) {
    let mut client = balancer.client().await;
    let (mut answerers, mut tries) = (Vec::new(), 0);
    for _ in 0..count {
        let reply = client.post(CHAT, &[("api-key", KEY)], HUNDRED.as_bytes()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        tries += reply.header("x-aoai-lb-attempts").unwrap().parse::<usize>().unwrap();
        answerers.push(answerer(&reply));
    }
    (answerers, tries - count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_about_to_refuse_takes_fewer_turns() {
    let provisioned = |tokens_per_minute| Kind::Provisioned { tokens_per_minute, output_weight: 4 };
    let kinds = [
        // 150 requests a minute, of which 140 come at once.
        (standard(3_000), standard(12_000), 140),
        (provisioned(2_500), provisioned(60_000), 140),
    ];
    for (a, b, count) in kinds {
        // The default, then the one that only turns.
        let (_azure, balancer) = two("", a, b).await;
        let (answerers, refusals) = ask(&balancer, count).await;
        assert_eq!(refusals, 0, "{a:?}");
        let by_a = answerers.iter().filter(|name| *name == "a").count();
        assert!((10..=30).contains(&by_a), "{a:?} answered {by_a}");
        let (_azure, balancer) = two("balance: round_robin", a, b).await;
        let (_, refusals) = ask(&balancer, count).await;
        assert!(refusals > 0, "{a:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equals_take_turns_and_odd_counters_say_nothing() {
    for mood in [Mood::Calm, Mood::CountersMinusOne] {
        let (azure, balancer) = two("balance: headroom", standard(20_000), standard(20_000)).await;
        azure.set_mood("a", mood.clone());
        let (answerers, refusals) = ask(&balancer, 100).await;
        let takes_turns = answerers.chunks(2).all(|pair| pair[0] != pair[1]);
        assert!(refusals == 0 && takes_turns, "{mood:?}: {answerers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_with_nothing_left_is_still_asked_when_nobody_else_is() {
    // What the counters say is no refusal: Azure lets them fall below zero on calls that succeed.
    let (azure, balancer) = two("balance: headroom", standard(500), standard(500)).await;
    azure.set_mood("b", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    let (answerers, _) = ask(&balancer, 5).await;
    assert!(answerers.iter().all(|name| name == "a"), "{answerers:?}");
}
