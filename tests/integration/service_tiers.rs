//! The tiers of service (`service_tier`), and what replies tell of them and of the prompt cache.

use crate::support;

use aoai_lb::demo::{DeploymentKind, SimulatedResource, Simulator};
use serde_json::{Value, json};
use support::{Balancer, CLIENT_KEY, Response, all_backends_yaml};

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
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
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
