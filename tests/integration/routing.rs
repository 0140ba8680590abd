//! Routing: fairness, weights, tiers, cooldowns, deployments and the default backend.

use crate::support;

use std::collections::HashMap;

use aoai_lb::demo::{Mood, Simulator};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, all_backends_yaml, answering_backend,
    simulated_backend_yaml, start_simulator,
};

async fn post_chats(balancer: &Balancer, deployment: &str, count: usize) -> Vec<String> {
    let target = CHAT_TARGET.replace("gpt-4o", deployment);
    let mut client = balancer.connect().await;
    let mut answering_backends = Vec::new();
    for _ in 0..count {
        let response = client.post(&target, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        assert_eq!(response.status, 200, "{}", response.text());
        answering_backends.push(answering_backend(&response));
    }
    answering_backends
}

fn throttled(ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(ms), retry_after: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_backends_get_equal_shares_of_sequential_and_concurrent_requests() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    assert_eq!(post_chats(&balancer, "gpt-4o", 7).await.concat(), "abcabca");
    let balancer = std::sync::Arc::new(balancer);
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let balancer = balancer.clone();
            tokio::spawn(async move { post_chats(&balancer, "gpt-4o", 16).await })
        })
        .collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for task in tasks {
        for name in task.await.unwrap() {
            *counts.entry(name).or_default() += 1;
        }
    }
    let (highest, lowest) = (counts.values().max().unwrap(), counts.values().min().unwrap());
    assert_eq!(counts.values().sum::<usize>(), 320);
    assert!(highest - lowest <= 1, "{counts:?}");
}

#[tokio::test]
async fn each_deployment_has_its_own_round_robin() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    // Neither deployment is configured; the balancer learns them from the first successful responses.
    post_chats(&balancer, "gpt-4o", 1).await;
    post_chats(&balancer, "other", 1).await;
    let (mut first_order, mut second_order) = (String::new(), String::new());
    for _ in 0..6 {
        first_order += &post_chats(&balancer, "gpt-4o", 1).await.concat();
        second_order += &post_chats(&balancer, "other", 1).await.concat();
    }
    for order in [first_order, second_order] {
        assert!(order == "ababab" || order == "bababa", "{order}");
    }
}

#[tokio::test]
async fn weighted_round_robin_stays_smooth_while_a_backend_is_unavailable() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let weighted_backends_yaml = |extra_yaml: &str| {
        simulated_backend_yaml(&azure, "a", "weight: 5")
            + &simulated_backend_yaml(&azure, "b", extra_yaml)
            + &simulated_backend_yaml(&azure, "c", "weight: 2")
    };
    let backends = weighted_backends_yaml("deployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&backends, "").await;
    assert_eq!(post_chats(&balancer, "gpt-4o", 8).await.concat(), "acaabaca");
    azure.set_mood("b", throttled(30_000));
    let order = post_chats(&balancer, "gpt-4o", 71).await.concat();
    // The request that b refused failed over to its neighbour on the wheel.
    let count = |letter| order[1..].matches(letter).count();
    assert_eq!((count("a") + count("c"), count("b")), (70, 0), "{order}");
    assert!((49..=51).contains(&count("a")), "{order}");
    assert!(!order.contains("aaaaa"), "{order}");
}

#[tokio::test]
async fn the_lowest_tier_is_used_while_it_is_available() {
    let azure = start_simulator(&["ptu", "east", "west"]).await;
    let tiers = simulated_backend_yaml(&azure, "ptu", "tier: 1\ndeployments: { gpt-4o: gpt-4o }")
        + &simulated_backend_yaml(&azure, "east", "tier: 2\ndeployments: { gpt-4o: gpt-4o }")
        + &simulated_backend_yaml(&azure, "west", "tier: 2\ndeployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&tiers, "").await;
    assert_eq!(post_chats(&balancer, "gpt-4o", 3).await.concat(), "ptuptuptu");
    azure.set_mood("ptu", throttled(700));
    assert_eq!(post_chats(&balancer, "gpt-4o", 4).await.concat(), "eastwesteastwest");
    assert_eq!(azure.request_count("ptu"), 4, "expected no further request during the cooldown");
    azure.set_mood("ptu", Mood::Calm);
    let status = balancer.status().await;
    let extra_yaml = &status["backends"][0]["resting"][0];
    assert_eq!(
        (extra_yaml["deployment"].as_str(), extra_yaml["reason"].as_str()),
        (Some("gpt-4o"), Some("cooling"))
    );
    assert!(extra_yaml["until_ms"].as_u64().is_some_and(|left| left <= 700), "{extra_yaml}");
    balancer
        .wait_for_status("the cooldown of ptu ends", |s| !s["backends"][0]["resting"][0].is_object())
        .await;
    assert_eq!(post_chats(&balancer, "gpt-4o", 1).await.concat(), "ptu");
}

#[tokio::test]
async fn a_short_cooldown_is_waited_out_instead_of_spilling_over() {
    let azure = start_simulator(&["ptu", "east"]).await;
    let tiers =
        simulated_backend_yaml(&azure, "ptu", "tier: 1") + &simulated_backend_yaml(&azure, "east", "tier: 2");
    let balancer = Balancer::start(&tiers, "").await;
    azure.set_mood("ptu", Mood::Sequence(vec![throttled(40), Mood::Calm]));
    let response = balancer.post_chat().await;
    assert_eq!(
        (response.status, answering_backend(&response).as_str(), azure.request_count("east")),
        (200, "ptu", 0)
    );
    assert_eq!(response.header("x-aoai-lb-attempts"), Some("2"));
}

#[tokio::test]
async fn two_backends_may_share_one_endpoint() {
    let azure = start_simulator(&["east"]).await;
    let address = azure.address("east");
    let entry = |name: &str, tier: u8, upstream: &str| {
        format!(
            "  - name: {name}\n    endpoint: http://{address}\n    tier: {tier}\n    credential: {{ api_key: east-key }}\n    deployments: {{ chat: {upstream} }}\n"
        )
    };
    let two_backends = entry("ptu", 1, "gpt-4o") + &entry("standard", 2, "other");
    let balancer = Balancer::start(&two_backends, "").await;
    assert_eq!(post_chats(&balancer, "chat", 1).await, ["ptu"]);
    let mood = Mood::PerDeployment {
        moods_by_deployment: [("gpt-4o".to_owned(), throttled(30_000))].into(),
        default_mood: Box::new(Mood::Calm),
    };
    azure.set_mood("east", mood);
    assert_eq!(post_chats(&balancer, "chat", 2).await, ["standard", "standard"]);
    let targets: Vec<String> =
        azure.received_requests("east").iter().map(|request| request.target.clone()).collect();
    let deployments = targets.iter().map(|target| target.split('/').nth(3).unwrap()).collect::<Vec<_>>();
    assert_eq!(deployments, ["gpt-4o", "gpt-4o", "other", "other"]);
}

#[tokio::test]
async fn a_deployment_is_routed_only_to_backends_that_list_it() {
    let azure: Simulator = start_simulator(&["a", "b"]).await;
    let backends = simulated_backend_yaml(&azure, "a", "deployments: { chat: gpt-4o, Embed: other }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { chat: other }");
    let balancer = Balancer::start(&backends, "").await;
    assert_eq!(
        post_chats(&balancer, "CHAT", 4).await.concat(),
        "abab",
        "expected names to be compared without case"
    );
    assert_eq!(post_chats(&balancer, "embed", 2).await.concat(), "aa");
    let response =
        balancer.post(&CHAT_TARGET.replace("gpt-4o", "gpt-4o-mini"), &[("api-key", CLIENT_KEY)], b"{}").await;
    assert_eq!((response.status, response.error_code().as_str()), (404, "DeploymentNotFound"));
    assert_eq!(azure.request_count("a") + azure.request_count("b"), 6);
}

#[tokio::test]
async fn calls_without_a_deployment_use_the_default_backend_and_ids_are_searched_elsewhere() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "requests: { home: b }").await;
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        let response = client.get("/openai/v1/files", &[("api-key", CLIENT_KEY)]).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    }
    // Any backend may create a stored response, which is found again by its id.
    for expected in ["a", "b"] {
        let body = br#"{"model":"gpt-4o","input":"hello"}"#;
        let created = client.post("/openai/v1/responses", &[("api-key", CLIENT_KEY)], body).await;
        assert_eq!(
            (created.status, answering_backend(&created).as_str()),
            (200, expected),
            "{}",
            created.text()
        );
        let target = format!("/openai/v1/responses/{}", created.json()["id"].as_str().unwrap());
        let retrieved = client.get(&target, &[("api-key", CLIENT_KEY)]).await;
        assert_eq!(
            (retrieved.status, answering_backend(&retrieved).as_str()),
            (200, expected),
            "{}",
            retrieved.text()
        );
    }
    let not_found = client.get("/openai/v1/responses/resp_0000", &[("api-key", CLIENT_KEY)]).await;
    assert_eq!(
        (not_found.status, answering_backend(&not_found).as_str()),
        (404, "b"),
        "expected the 404 of the default backend"
    );
}
