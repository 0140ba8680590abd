//! `balance: headroom`: how requests are distributed while rate limits fill up.

use crate::support;

use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, Mood, ResponseTiming, SimulatedResource, Simulator};
use futures::StreamExt;
use serde_json::Value;
use support::redis_server::RedisServer;
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, answering_backend, instant_resource, simulated_backend_yaml,
};

/// A request of a hundred tokens by Azure's estimate: characters / 4 plus `max_tokens`.
const HUNDRED_TOKEN_BODY: &str =
    r#"{"messages":[{"role":"user","content":"of forty characters, or ten tokens, all."}],"max_tokens":90}"#;

fn standard_kind(tokens_per_minute: u64) -> DeploymentKind {
    DeploymentKind::Standard { tokens_per_minute, requests_per_minute: Some(100_000) }
}

/// Starts a balancer in front of two resources with deployments of these kinds.
async fn start_two_backends(balance: &str, a: DeploymentKind, b: DeploymentKind) -> (Simulator, Balancer) {
    let azure = Simulator::start(vec![instant_resource("a", a), instant_resource("b", b)]).await.unwrap();
    let listed = ["a", "b"]
        .map(|name| simulated_backend_yaml(&azure, name, "deployments: { gpt-4o: gpt-4o }"))
        .concat();
    let balancer = Balancer::start(&listed, balance).await;
    (azure, balancer)
}

/// Sends `count` requests of a hundred tokens one after another; returns the answering backends and the
/// number of refused attempts.
async fn send_requests(balancer: &Balancer, count: usize) -> (Vec<String>, usize) {
    let mut client = balancer.connect().await;
    let (mut answering_backends, mut attempts) = (Vec::new(), 0);
    for _ in 0..count {
        let response =
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], HUNDRED_TOKEN_BODY.as_bytes()).await;
        assert_eq!(response.status, 200, "{}", response.text());
        attempts += response.header("x-aoai-lb-attempts").unwrap().parse::<usize>().unwrap();
        answering_backends.push(answering_backend(&response));
    }
    (answering_backends, attempts - count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_close_to_its_rate_limit_gets_fewer_requests() {
    let provisioned_kind =
        |tokens_per_minute| DeploymentKind::Provisioned { tokens_per_minute, output_weight: 4 };
    let cases = [
        // Enough for 150 requests a minute, of which 140 are sent.
        (standard_kind(3_000), standard_kind(12_000), 140),
        (provisioned_kind(2_500), provisioned_kind(60_000), 140),
    ];
    for (a, b, count) in cases {
        // The default first, then plain round robin.
        let (_azure, balancer) = start_two_backends("", a, b).await;
        let (answering_backends, refusals) = send_requests(&balancer, count).await;
        assert_eq!(refusals, 0, "{a:?}");
        let answered_by_a = answering_backends.iter().filter(|name| *name == "a").count();
        assert!((10..=30).contains(&answered_by_a), "{a:?} answered {answered_by_a}");
        let (_azure, balancer) = start_two_backends("balance: round_robin", a, b).await;
        let (_, refusals) = send_requests(&balancer, count).await;
        assert!(refusals > 0, "{a:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_with_equal_headroom_take_turns_and_invalid_counters_are_ignored() {
    for mood in [Mood::Calm, Mood::CountersMinusOne] {
        let (azure, balancer) =
            start_two_backends("balance: headroom", standard_kind(20_000), standard_kind(20_000)).await;
        azure.set_mood("a", mood.clone());
        let (answering_backends, refusals) = send_requests(&balancer, 100).await;
        let takes_turns = answering_backends.chunks(2).all(|pair| pair[0] != pair[1]);
        assert!(refusals == 0 && takes_turns, "{mood:?}: {answering_backends:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_without_headroom_is_used_when_no_other_is_available() {
    // The counters alone are no refusal: with Azure they may fall below zero while calls succeed.
    let (azure, balancer) =
        start_two_backends("balance: headroom", standard_kind(500), standard_kind(500)).await;
    azure.set_mood("b", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    let (answering_backends, _) = send_requests(&balancer, 5).await;
    assert!(answering_backends.iter().all(|name| name == "a"), "{answering_backends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_instance_has_sent_counts() {
    let server = RedisServer::start(&[]).await;
    let kinds = [("a", standard_kind(3_000)), ("b", standard_kind(60_000))];
    // So that requests that are sent together are all sent before the first response.
    let timing =
        ResponseTiming { first_byte_delay: Duration::from_millis(100), event_interval: Duration::ZERO };
    let resources =
        kinds.map(|(name, kind)| SimulatedResource { timing, ..instant_resource(name, kind) }).to_vec();
    let azure = Simulator::start(resources).await.unwrap();
    let listed = ["a", "b"]
        .map(|name| simulated_backend_yaml(&azure, name, "deployments: { gpt-4o: gpt-4o }"))
        .concat();
    let first = Balancer::start(&listed, &server.shared_yaml("")).await;
    let second = Balancer::start(&listed, &server.shared_yaml("")).await;
    for balancer in [&first, &second] {
        balancer.wait_for_status("it is up", |status| status["shared"]["up"] == true).await;
    }
    let client = redis::Client::open(server.url()).unwrap();
    let mut subscription = client.get_async_pubsub().await.unwrap();
    subscription.subscribe("aoai-lb:1:channel:sends").await.unwrap();
    // What an attempt costs is known from two of them.
    send_requests(&first, 6).await;
    let (by_second, _) = send_requests(&second, 50).await;
    let sent_to_a = by_second.iter().filter(|name| *name == "a").count() as u64;
    let (mut told, mut messages) = (0, subscription.on_message());
    while told < 3 + sent_to_a {
        let message: Value =
            serde_json::from_slice(messages.next().await.unwrap().get_payload_bytes()).unwrap();
        let sent = message["sent"].as_array().unwrap().iter().filter(|sent| sent["backend"] == "a");
        told += sent.map(|sent| sent["count"].as_u64().unwrap()).sum::<u64>();
    }
    // At once, so that no response can tell how little is left.
    let requests = (0..20).map(|_| send_requests(&first, 1));
    let answers = futures::future::join_all(requests).await;
    let answered_by_a = answers.iter().filter(|(names, _)| names[0] == "a").count();
    assert!(answered_by_a <= 1, "{answered_by_a} of 20, after {sent_to_a} of the other instance");
}
