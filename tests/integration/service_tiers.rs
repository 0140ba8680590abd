//! The tiers of service (`service_tier`), and what replies tell of them and of the prompt cache.

use crate::support;

use aoai_lb::demo::{DeploymentKind, Mood, SimulatedResource, Simulator};
use serde_json::{Value, json};
use support::redis_server::RedisServer;
use support::responses_upstream::{ResponsesUpstream, TURN, create, throttled_step};
use support::websocket::WebSocket;
use support::{
    Balancer, CLIENT_KEY, LISTED_DEPLOYMENTS, Response, answering_backend, simulated_backend_yaml,
    start_simulator, wait_until_async,
};

const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";

async fn post(balancer: &Balancer, target: &str, body: &Value) -> Response {
    let headers = [("api-key", CLIENT_KEY), ("Content-Type", "application/json")];
    balancer.post(target, &headers, body.to_string().as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_tell_the_tier_and_the_tokens_written_to_the_cache_as_the_reply_does() {
    let resource = SimulatedResource::new("a")
        .with_api_key("a-key")
        .with_deployment("gpt-5.6-sol", "gpt-5.6-sol", DeploymentKind::Unlimited)
        .with_deployment("gpt-4o", "gpt-4o", DeploymentKind::Unlimited);
    let azure = Simulator::start(vec![resource]).await.unwrap();
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", ""), "").await;
    // 1,280 tokens in whole steps of the cache.
    let words = |seed: &str| (0..1000).map(|index| format!("{seed}{index} ")).collect::<String>();
    let chat = |seed: &str| json!({"messages": [{"role": "system", "content": words(seed)}, {"role": "user", "content": "hi"}]});
    let response = |seed: &str| json!({"instructions": words(seed), "input": "hi"});
    let with = |mut body: Value, model: &str, more: Value| {
        body["model"] = json!(model);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let sol = "gpt-5.6-sol";
    let cases = [
        (CHAT, with(chat("a"), sol, json!({})), json!([null, 0, 1280])),
        (CHAT, with(chat("a"), sol, json!({"service_tier": "flex"})), json!(["flex", 1280, 0])),
        (CHAT, with(chat("b"), sol, json!({"service_tier": "auto"})), json!(["default", 0, 1280])),
        (
            CHAT,
            with(with(chat("c"), sol, streamed.clone()), sol, json!({"service_tier": "priority"})),
            json!(["priority", 0, 1280]),
        ),
        (
            CHAT,
            with(with(chat("c"), sol, streamed), sol, json!({"service_tier": "flex"})),
            json!(["flex", 1280, 0]),
        ),
        (RESPONSES, with(response("d"), sol, json!({"service_tier": "auto"})), json!(["default", 0, 1280])),
        (
            RESPONSES,
            with(response("d"), sol, json!({"stream": true, "service_tier": "flex"})),
            json!(["flex", 1280, 0]),
        ),
        (RESPONSES, with(response("e"), sol, json!({"stream": true})), json!(["default", 0, 1280])),
        // This model does not bill what is written.
        (CHAT, with(chat("a"), "gpt-4o", json!({"service_tier": "default"})), json!(["default", 0, null])),
        (RESPONSES, with(response("a"), "gpt-4o", json!({})), json!(["default", 0, null])),
        (CHAT, with(chat("a"), sol, json!({"service_tier": "quick"})), json!([null, null, null])),
    ];
    for (target, body, _) in &cases {
        let expected = if body["service_tier"] == "quick" { 400 } else { 200 };
        assert_eq!(post(&balancer, target, body).await.status, expected, "{body:.200}");
    }
    let records = balancer.wait_for_records(cases.len()).await;
    for (record, (target, body, expected)) in records.iter().zip(&cases) {
        let recorded = json!([record["service_tier"], record["cached_tokens"], record["cache_write_tokens"]]);
        assert_eq!(recorded, *expected, "{target} {} {}: {record:#}", body["stream"], body["service_tier"]);
    }
}

fn flex_throttled(retry_after_ms: u64) -> Mood {
    Mood::FlexThrottled { retry_after_ms: Some(retry_after_ms) }
}

/// The YAML of two resources, the first of them preferred.
fn tiers_yaml(azure: &Simulator) -> String {
    let backend =
        |name, tier: u16| simulated_backend_yaml(azure, name, &format!("{LISTED_DEPLOYMENTS}\ntier: {tier}"));
    backend("a", 1) + &backend("b", 2)
}

async fn post_tier(balancer: &Balancer, tier: &str) -> Response {
    let messages = json!([{"role": "user", "content": "hi"}]);
    post(balancer, CHAT, &json!({"model": "gpt-4o", "messages": messages, "service_tier": tier})).await
}

/// What is resting of a backend: deployment, tier of service, and reason.
fn resting_parts(status: &Value, name: &str) -> Vec<Value> {
    let backend =
        status["backends"].as_array().unwrap().iter().find(|backend| backend["name"] == name).unwrap();
    assert_eq!(backend["state"], "healthy");
    let parts = backend["resting"].as_array().unwrap().iter();
    parts.map(|part| json!([part["deployment"], part["service_tier"], part["reason"]])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_to_a_flex_request_keeps_only_flex_requests_away() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&tiers_yaml(&azure), "").await;
    azure.set_mood("a", flex_throttled(30_000));
    assert_eq!(answering_backend(&post_tier(&balancer, "flex").await), "b");
    for (tier, expected) in [("auto", "a"), ("flex", "b"), ("priority", "a"), ("default", "a"), ("flex", "b")]
    {
        assert_eq!(answering_backend(&post_tier(&balancer, tier).await), expected, "{tier}");
    }
    let records = balancer.wait_for_records(6).await;
    let attempts: Vec<usize> =
        records.iter().map(|record| record["attempts"].as_array().unwrap().len()).collect();
    assert_eq!(attempts, [2, 1, 1, 1, 1, 1], "it is not asked again");
    let status = balancer.status().await;
    assert_eq!(resting_parts(&status, "a"), [json!(["gpt-4o", "flex", "cooling"])]);
    assert!(resting_parts(&status, "b").is_empty());
    let pool =
        status["pools"].as_array().unwrap().iter().find(|pool| pool["deployment"] == "gpt-4o").unwrap();
    assert_eq!(pool["tiers"][0]["members"][0]["state"], "healthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flex_request_that_every_backend_refuses_gets_the_429_and_the_rest_ends() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&tiers_yaml(&azure), "").await;
    azure.set_mood("a", flex_throttled(1_500));
    azure.set_mood("b", flex_throttled(30_000));
    let refused = post_tier(&balancer, "flex").await;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "resource_unavailable"));
    let wait: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((1..=1_500).contains(&wait), "the first to have capacity again says when: {wait}");
    azure.set_mood("a", Mood::Calm);
    assert_eq!(answering_backend(&post_tier(&balancer, "default").await), "a");
    wait_until_async("the rest is over", async || {
        let response = post_tier(&balancer, "flex").await;
        if response.status == 429 {
            assert_eq!(response.error_code(), "all_throttled");
            return false;
        }
        assert_eq!(answering_backend(&response), "a");
        true
    })
    .await;
    assert!(resting_parts(&balancer.status().await, "a").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_flex_requests_do_not_hold_up_others() {
    let azure = start_simulator(&["a"]).await;
    let backends = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS);
    let balancer = Balancer::start(&backends, "queue: { wait: 50s }\n").await;
    azure.set_mood("a", flex_throttled(25_000));
    let waiting = post_tier(&balancer, "flex");
    let others = async {
        balancer
            .wait_for_status("the flex request waits", |status| status["queue"]["waiting"]["standard"] == 1)
            .await;
        for _ in 0..3 {
            assert_eq!(post_tier(&balancer, "default").await.status, 200);
        }
    };
    tokio::select! {
        response = waiting => panic!("it does not wait: {}", response.text()),
        () = others => {}
    }
    // The client of the one that waits has left.
    let records = balancer.wait_for_records(4).await;
    let answered: Vec<&Value> = records.iter().filter(|record| record["status"] == 200).collect();
    assert!(answered.len() == 3 && answered.iter().all(|record| record["queued_ms"] == 0), "{records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_of_sockets_that_ask_for_flex_rest_by_themselves() {
    let (a, b) = (ResponsesUpstream::start("a").await, ResponsesUpstream::start("b").await);
    let yaml = |upstream: &ResponsesUpstream, tier: u16| {
        upstream.backend_yaml(&format!("{LISTED_DEPLOYMENTS}\ntier: {tier}"))
    };
    let balancer = Balancer::start(&(yaml(&a, 1) + &yaml(&b, 2)), "").await;
    a.script(|create| match create["service_tier"] == "flex" {
        true => vec![throttled_step(30_000)],
        false => TURN.to_vec(),
    });
    let mut socket = WebSocket::open(&balancer).await;
    let mut answered_by = Vec::new();
    for tier in ["default", "flex", "auto", "flex", "flex"] {
        let events = socket.turn(&create(&json!({"service_tier": tier}))).await;
        let delta = events.iter().find(|event| event["type"] == "response.output_text.delta").unwrap();
        answered_by.push(delta["from"].as_str().unwrap().to_owned());
    }
    assert_eq!(answered_by, ["a", "b", "a", "b", "b"]);
    assert_eq!((a.message_count(), b.message_count()), (3, 3), "it is not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_tell_each_other_of_flex_requests_that_rest() {
    let server = RedisServer::start(&[]).await;
    let azure = start_simulator(&["a", "b"]).await;
    let (backends, shared) = (tiers_yaml(&azure), server.shared_yaml(""));
    let first = Balancer::start(&backends, &shared).await;
    let second = Balancer::start(&backends, &shared).await;
    for balancer in [&first, &second] {
        balancer
            .wait_for_status("both instances are seen", |status| {
                status["shared"]["instances"].as_array().is_some_and(|seen| seen.len() == 2)
            })
            .await;
    }
    azure.set_mood("a", flex_throttled(30_000));
    assert_eq!(answering_backend(&post_tier(&first, "flex").await), "b");
    let late = Balancer::start(&backends, &shared).await;
    for balancer in [&second, &late] {
        balancer
            .wait_for_status("flex requests rest there as well", |status| {
                resting_parts(status, "a") == [json!(["gpt-4o", "flex", "cooling"])]
            })
            .await;
        assert_eq!(answering_backend(&post_tier(balancer, "flex").await), "b");
        assert_eq!(answering_backend(&post_tier(balancer, "default").await), "a");
    }
    let asked =
        azure.received_requests("a").iter().filter(|request| request.response_status == Some(429)).count();
    assert_eq!(asked, 1);
    let keys = format!("{:?}", server.command("", &["KEYS", "*:rest:*"]).await);
    assert!(keys.contains("}:rest:flex_requests:gpt-4o") && !keys.contains("rest:deployment"), "{keys}");
}
