//! Who is asked: fairness, weights, tiers, rests, deployments.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::collections::HashMap;

use aoai_lb::demo::{Mood, Simulator};
use support::{Balancer, CHAT, HELLO, KEY, answerer, azure, backend, backends};

async fn chats(balancer: &Balancer, deployment: &str, count: usize) -> Vec<String> {
    let target = CHAT.replace("gpt-4o", deployment);
    let mut client = balancer.client().await;
    let mut seen = Vec::new();
    for _ in 0..count {
        let reply = client.post(&target, &[("api-key", KEY)], HELLO.as_bytes()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        seen.push(answerer(&reply));
    }
    seen
}

fn throttled(ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(ms), retry_after: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_backends_get_equal_shares_in_turn_and_at_once() {
    let azure = azure(&["a", "b", "c"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    assert_eq!(chats(&balancer, "gpt-4o", 7).await.concat(), "abcabca");
    let balancer = std::sync::Arc::new(balancer);
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let balancer = balancer.clone();
            tokio::spawn(async move { chats(&balancer, "gpt-4o", 16).await })
        })
        .collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for task in tasks {
        for name in task.await.unwrap() {
            *counts.entry(name).or_default() += 1;
        }
    }
    let (most, least) = (counts.values().max().unwrap(), counts.values().min().unwrap());
    assert_eq!(counts.values().sum::<usize>(), 320);
    assert!(most - least <= 1, "{counts:?}");
}

#[tokio::test]
async fn interleaved_deployments_do_not_disturb_each_other() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    // Neither is in the configuration; the first answers teach the balancer that they exist.
    chats(&balancer, "gpt-4o", 1).await;
    chats(&balancer, "other", 1).await;
    let (mut first, mut second) = (String::new(), String::new());
    for _ in 0..6 {
        first += &chats(&balancer, "gpt-4o", 1).await.concat();
        second += &chats(&balancer, "other", 1).await.concat();
    }
    for seen in [first, second] {
        assert!(seen == "ababab" || seen == "bababa", "{seen}");
    }
}

#[tokio::test]
async fn weights_are_smooth_also_while_one_rests() {
    let azure = azure(&["a", "b", "c"]).await;
    let weighted = |rest: &str| {
        backend(&azure, "a", "weight: 5") + &backend(&azure, "b", rest) + &backend(&azure, "c", "weight: 2")
    };
    let listed = weighted("deployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&listed, "").await;
    assert_eq!(chats(&balancer, "gpt-4o", 8).await.concat(), "acaabaca");
    azure.set_mood("b", throttled(30_000));
    let seen = chats(&balancer, "gpt-4o", 71).await.concat();
    // The one refused by b went on to its neighbour on the wheel.
    let count = |letter| seen[1..].matches(letter).count();
    assert_eq!((count("a") + count("c"), count("b")), (70, 0), "{seen}");
    assert!((49..=51).contains(&count("a")), "{seen}");
    assert!(!seen.contains("aaaaa"), "{seen}");
}

#[tokio::test]
async fn a_lower_tier_is_used_while_it_can() {
    let azure = azure(&["ptu", "east", "west"]).await;
    let tiers = backend(&azure, "ptu", "tier: 1\ndeployments: { gpt-4o: gpt-4o }")
        + &backend(&azure, "east", "tier: 2\ndeployments: { gpt-4o: gpt-4o }")
        + &backend(&azure, "west", "tier: 2\ndeployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&tiers, "").await;
    assert_eq!(chats(&balancer, "gpt-4o", 3).await.concat(), "ptuptuptu");
    azure.set_mood("ptu", throttled(700));
    assert_eq!(chats(&balancer, "gpt-4o", 4).await.concat(), "eastwesteastwest");
    assert_eq!(azure.hits("ptu"), 4, "asked once while it rests");
    azure.set_mood("ptu", Mood::Calm);
    let status = balancer.status().await;
    let rest = &status["backends"][0]["resting"][0];
    assert_eq!((rest["deployment"].as_str(), rest["reason"].as_str()), (Some("gpt-4o"), Some("cooling")));
    assert!(rest["until_ms"].as_u64().is_some_and(|left| left <= 700), "{rest}");
    balancer.until_status("the rest ends", |s| !s["backends"][0]["resting"][0].is_object()).await;
    assert_eq!(chats(&balancer, "gpt-4o", 1).await.concat(), "ptu");
}

#[tokio::test]
async fn a_short_cooldown_is_waited_for_rather_than_spilled() {
    let azure = azure(&["ptu", "east"]).await;
    let tiers = backend(&azure, "ptu", "tier: 1") + &backend(&azure, "east", "tier: 2");
    let balancer = Balancer::start(&tiers, "").await;
    azure.set_mood("ptu", Mood::Sequence(vec![throttled(40), Mood::Calm]));
    let reply = balancer.chat().await;
    assert_eq!((reply.status, answerer(&reply).as_str(), azure.hits("east")), (200, "ptu", 0));
    assert_eq!(reply.header("x-aoai-lb-attempts"), Some("2"));
}

#[tokio::test]
async fn two_backends_share_one_endpoint() {
    let azure = azure(&["east"]).await;
    let address = azure.address("east");
    let entry = |name: &str, tier: u8, upstream: &str| {
        format!(
            "  - name: {name}\n    endpoint: http://{address}\n    tier: {tier}\n    credential: {{ api_key: east-key }}\n    deployments: {{ chat: {upstream} }}\n"
        )
    };
    let both = entry("ptu", 1, "gpt-4o") + &entry("standard", 2, "other");
    let balancer = Balancer::start(&both, "").await;
    assert_eq!(chats(&balancer, "chat", 1).await, ["ptu"]);
    let mood = Mood::PerDeployment {
        moods: [("gpt-4o".to_owned(), throttled(30_000))].into(),
        otherwise: Box::new(Mood::Calm),
    };
    azure.set_mood("east", mood);
    assert_eq!(chats(&balancer, "chat", 2).await, ["standard", "standard"]);
    let targets: Vec<String> = azure.requests("east").iter().map(|seen| seen.target.clone()).collect();
    let deployments = targets.iter().map(|target| target.split('/').nth(3).unwrap()).collect::<Vec<_>>();
    assert_eq!(deployments, ["gpt-4o", "gpt-4o", "other", "other"]);
}

#[tokio::test]
async fn a_deployment_goes_only_where_it_is_served() {
    let azure: Simulator = azure(&["a", "b"]).await;
    let listed = backend(&azure, "a", "deployments: { chat: gpt-4o, Embed: other }")
        + &backend(&azure, "b", "deployments: { chat: other }");
    let balancer = Balancer::start(&listed, "").await;
    assert_eq!(chats(&balancer, "CHAT", 4).await.concat(), "abab", "names compare without case");
    assert_eq!(chats(&balancer, "embed", 2).await.concat(), "aa");
    let reply = balancer.post(&CHAT.replace("gpt-4o", "gpt-4o-mini"), &[("api-key", KEY)], b"{}").await;
    assert_eq!((reply.status, reply.code().as_str()), (404, "DeploymentNotFound"));
    assert_eq!(azure.hits("a") + azure.hits("b"), 6);
}

#[tokio::test]
async fn calls_without_a_deployment_go_home_and_ids_are_sought_elsewhere() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&backends(&azure), "requests: { home: b }").await;
    let mut client = balancer.client().await;
    for _ in 0..2 {
        let reply = client.get("/openai/v1/models", &[("api-key", KEY)]).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    }
    // Stored responses are made by any backend and found again.
    for expected in ["a", "b"] {
        let body = br#"{"model":"gpt-4o","input":"hello"}"#;
        let made = client.post("/openai/v1/responses", &[("api-key", KEY)], body).await;
        assert_eq!((made.status, answerer(&made).as_str()), (200, expected), "{}", made.text());
        let target = format!("/openai/v1/responses/{}", made.json()["id"].as_str().unwrap());
        let found = client.get(&target, &[("api-key", KEY)]).await;
        assert_eq!((found.status, answerer(&found).as_str()), (200, expected), "{}", found.text());
    }
    let lost = client.get("/openai/v1/responses/resp_0000", &[("api-key", KEY)]).await;
    assert_eq!((lost.status, answerer(&lost).as_str()), (404, "b"), "home's own answer");
}
