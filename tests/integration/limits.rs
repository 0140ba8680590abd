//! The limits of clients: rates, budgets and requests in flight.

use crate::support;

use std::sync::Arc;

use serde_json::{Value, json};
use support::responses_upstream::{ResponsesUpstream, create};
use support::upstream::{PAUSE_100_MS, RawRequest, ScriptedUpstream, complete_response};
use support::websocket::WebSocket;
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, sha256_hex, wait_until,
    wait_until_async,
};
use tokio::task::JoinSet;

/// What each request uses.
const USED_INPUT: u64 = 100;
const USED_OUTPUT: u64 = 20;
pub(crate) const USED: u64 = USED_INPUT + USED_OUTPUT;

/// Answers with usage; with the status that `user` of the request names, or after two seconds if that is `slow`.
pub(crate) fn answer(request: &RawRequest) -> Vec<Vec<u8>> {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let user = body["user"].as_str().unwrap_or_default();
    let headers =
        "content-type: application/json\nx-ratelimit-remaining-tokens: 7\nx-ratelimit-limit-requests: 9";
    let completion = json!({
        "id": "c", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": USED_INPUT, "completion_tokens": USED_OUTPUT, "total_tokens": USED,
                  "prompt_tokens_details": {"cached_tokens": 60}},
    });
    let ok = complete_response(200, headers, &completion.to_string());
    match user {
        "slow" => [vec![PAUSE_100_MS.to_vec(); 20], ok].concat(),
        "400" => complete_response(
            400,
            headers,
            r#"{"error":{"message":"no","code":"bad","type":"t","param":null}}"#,
        ),
        _ => ok,
    }
}

pub(crate) fn clients(limits: &str) -> String {
    let key = sha256_hex(CLIENT_KEY);
    let other = sha256_hex("other");
    format!(
        "clients:\n  - name: team-a\n    class: interactive\n    keys: [ {{ sha256: {key} }} ]\n    limits: {{ {limits} }}\n  \
         - {{ name: free, keys: [ {{ sha256: {other} }} ] }}\n"
    )
}

async fn start(limits: &str, extra_yaml: &str) -> (ScriptedUpstream, Balancer) {
    let upstream = ScriptedUpstream::start(answer).await;
    let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS);
    let balancer = Balancer::start_with_clients(&backend, &clients(limits), extra_yaml).await;
    (upstream, balancer)
}

pub(crate) fn chat(fields: &Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

async fn post(balancer: &Balancer, fields: &Value) -> Response {
    balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], chat(fields).as_bytes()).await
}

fn number(response: &Response, header: &str) -> u64 {
    response.header(header).unwrap_or_else(|| panic!("no {header}")).parse().unwrap()
}

#[track_caller]
fn expect_rate_refusal(response: &Response, limit: &str) {
    assert_eq!(
        (response.status, &*response.error_code()),
        (429, "rate_limit_exceeded"),
        "{}",
        response.text()
    );
    assert_eq!(response.json()["error"]["type"], "rate_limit_error");
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("{limit} of team-a")), "{message}");
}

#[tokio::test]
async fn concurrent_requests_never_use_more_tokens_than_the_limit() {
    let (upstream, balancer) = start("tokens_per_minute: 1000", "").await;
    let first = post(&balancer, &json!({})).await;
    assert_eq!(first.status, 200);
    let mut requests = JoinSet::new();
    let address = balancer.address;
    for _ in 0..60 {
        requests.spawn(async move {
            let mut client = Client::connect(address).await;
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], chat(&json!({})).as_bytes()).await
        });
    }
    let responses = requests.join_all().await;
    let answered = responses.iter().filter(|response| response.status == 200).count();
    for refused in responses.iter().filter(|response| response.status != 200) {
        expect_rate_refusal(refused, "tokens_per_minute");
        let wait = number(refused, "retry-after-ms");
        assert!((1..=61_000).contains(&wait) && refused.header("x-should-retry").is_none(), "{wait}");
    }
    let used = (answered as u64 + 1) * USED;
    assert!(used <= 1000 + USED, "{answered}");
    // One after the other, the rest of the limit is used.
    let mut count = answered as u64 + 1;
    while post(&balancer, &json!({})).await.status == 200 {
        count += 1;
    }
    assert!((880..=1000 + USED).contains(&(count * USED)), "{count}");
    assert_eq!(upstream.requests().len() as u64, count);
    let sequential = usize::try_from(count).unwrap() - answered;
    let records = balancer.wait_for_records(60 + sequential + 1).await;
    let refused = records.iter().find(|record| record["status"] == 429).unwrap();
    assert_eq!(refused["limited_by"], "tokens_per_minute", "{refused}");
    assert_eq!(
        (&refused["class"], &refused["refusal"]),
        (&json!("interactive"), &json!("rate_limit_exceeded"))
    );
    let answered = records.iter().find(|record| record["status"] == 200).unwrap();
    assert_eq!(answered["limited_by"], Value::Null);
    assert!((20..400).contains(&answered["reserved_tokens"].as_u64().unwrap()), "{answered}");
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await.text();
    assert!(metrics.contains(r#"aoai_lb_limit_refused_total{client="team-a",limit="tokens_per_minute"}"#));
}

#[tokio::test]
async fn a_client_with_rates_is_told_its_own_and_others_what_azure_says() {
    let (_upstream, balancer) = start("tokens_per_minute: 10000, requests_per_minute: 50", "").await;
    let response = post(&balancer, &json!({})).await;
    assert_eq!(number(&response, "x-ratelimit-limit-tokens"), 10_000);
    assert_eq!(number(&response, "x-ratelimit-limit-requests"), 50);
    assert_eq!(number(&response, "x-ratelimit-remaining-requests"), 49);
    let remaining = number(&response, "x-ratelimit-remaining-tokens");
    assert!((9_500..10_000).contains(&remaining), "{remaining}");
    assert!((59..=61).contains(&number(&response, "x-ratelimit-reset-tokens")));
    let free = balancer.post(CHAT_TARGET, &[("api-key", "other")], chat(&json!({})).as_bytes()).await;
    assert_eq!(free.header("x-ratelimit-remaining-tokens"), Some("7"));
    // What has failed before it was billed counts as a request, and its tokens do not.
    let failed = post(&balancer, &json!({"user": "400", "max_tokens": 9000})).await;
    assert_eq!((failed.status, number(&failed, "x-ratelimit-remaining-requests")), (400, 48));
    wait_until_async("its tokens are given back", async || {
        number(&post(&balancer, &json!({})).await, "x-ratelimit-remaining-tokens") > 9_000
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_too_much_for_a_limit_is_refused_for_good() {
    let (upstream, balancer) = start("tokens_per_minute: 1000", "").await;
    let response = post(&balancer, &json!({"max_tokens": 5000})).await;
    expect_rate_refusal(&response, "tokens_per_minute");
    assert_eq!(response.header("x-should-retry"), Some("false"));
    assert_eq!((response.header("retry-after"), response.header("retry-after-ms")), (None, None));
    let message = response.text();
    assert!(message.contains("about 50") && message.contains("1000 tokens in 60 seconds"), "{message}");
    // The output of several choices.
    let response = post(&balancer, &json!({"max_tokens": 300, "n": 4})).await;
    assert_eq!(response.header("x-should-retry"), Some("false"));
    assert_eq!(upstream.requests().len(), 0);
    // An image is no text of its length.
    let image = format!("data:image/png;base64,{}", "A".repeat(1 << 20));
    let content = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}]);
    let (_upstream, balancer) = start("tokens_per_minute: 2000", "").await;
    assert_eq!(post(&balancer, &json!({"messages": content})).await.status, 200);
    let observed = "limits: { mode: observe }\n";
    let (_upstream, balancer) = start("tokens_per_minute: 2000", observed).await;
    assert_eq!(post(&balancer, &json!({"messages": content})).await.status, 200);
    assert_eq!(balancer.wait_for_records(1).await[0]["limited_by"], Value::Null);
}

#[tokio::test]
async fn a_limit_of_a_deployment_is_for_that_one_only() {
    let limits = "requests_per_minute: 100, deployments: { gpt-4o: { requests_per_minute: 2 } }";
    let (_upstream, balancer) = start(limits, "").await;
    for expected in [1, 0] {
        let response = post(&balancer, &json!({})).await;
        assert_eq!((response.status, number(&response, "x-ratelimit-remaining-requests")), (200, expected));
    }
    let refused = post(&balancer, &json!({})).await;
    expect_rate_refusal(&refused, "deployments.gpt-4o.requests_per_minute");
    assert!((55_000..=61_000).contains(&(number(&refused, "retry-after") * 1000)));
    assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);
    let other = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let response = balancer.post(other, &[("api-key", CLIENT_KEY)], chat(&json!({})).as_bytes()).await;
    assert_eq!((response.status, number(&response, "x-ratelimit-limit-requests")), (200, 100));
}

#[tokio::test]
async fn requests_in_flight_are_limited_until_they_end_or_their_client_leaves() {
    let (upstream, balancer) = start("in_flight: 1", "").await;
    let mut slow = balancer.connect().await;
    slow.send_chat(&chat(&json!({"user": "slow"}))).await;
    wait_until("the request is in flight", || upstream.requests().len() == 1).await;
    let refused = post(&balancer, &json!({})).await;
    expect_rate_refusal(&refused, "in_flight");
    assert!((100..=5_000).contains(&number(&refused, "retry-after-ms")));
    // No rate: what Azure says is passed on.
    assert_eq!(refused.header("x-ratelimit-limit-requests"), None);
    drop(slow);
    wait_until_async("its place is free", async || post(&balancer, &json!({})).await.status == 200).await;
    for _ in 0..20 {
        assert_eq!(
            post(&balancer, &json!({})).await.status,
            200,
            "the place is free before the response has ended"
        );
    }
}

#[tokio::test]
async fn a_budget_outlives_a_kill_an_upgrade_and_a_reload() {
    let (_upstream, mut balancer) = start("tokens_per_day: 400, tokens_per_month: 10000", "").await;
    for _ in 0..3 {
        assert_eq!(post(&balancer, &json!({})).await.status, 200);
    }
    let refused = post(&balancer, &json!({"max_tokens": 100})).await;
    assert_eq!((refused.status, &*refused.error_code()), (429, "insufficient_quota"), "{}", refused.text());
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!((1..=86_401).contains(&number(&refused, "retry-after")));
    assert!(refused.text().contains("tokens_per_day of team-a"), "{}", refused.text());
    let is_saved = || {
        let text = std::fs::read_to_string(balancer.path("state/budgets.log")).unwrap_or_default();
        text.contains(r#""day_tokens":360"#)
    };
    wait_until("it is saved", is_saved).await;
    balancer.send_signal("KILL");
    balancer.start_again().await;
    assert_eq!(post(&balancer, &json!({"max_tokens": 100})).await.error_code(), "insufficient_quota");
    assert!(balancer.run_upgrade_command().await.status.success());
    balancer.wait_until_single_process().await;
    assert_eq!(post(&balancer, &json!({"max_tokens": 100})).await.error_code(), "insufficient_quota");
    // What was used is not forgotten, and there is more now.
    balancer.replace_in_config("tokens_per_day: 400", "tokens_per_day: 600");
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    let mut answered = 0;
    while post(&balancer, &json!({"max_tokens": 100})).await.status == 200 {
        answered += 1;
    }
    assert!((1..=2).contains(&answered), "{answered}");
}

#[tokio::test]
async fn an_upgrade_in_the_middle_of_a_minute_gives_no_second_limit() {
    let (_upstream, mut balancer) = start("requests_per_minute: 3", "").await;
    for _ in 0..2 {
        assert_eq!(post(&balancer, &json!({})).await.status, 200);
    }
    assert!(balancer.run_upgrade_command().await.status.success());
    balancer.wait_until_single_process().await;
    assert_eq!(post(&balancer, &json!({})).await.status, 200);
    expect_rate_refusal(&post(&balancer, &json!({})).await, "requests_per_minute");
}

#[tokio::test]
async fn a_stop_and_a_kill_in_the_middle_of_a_minute_give_no_second_limit() {
    let (_upstream, mut balancer) = start("requests_per_minute: 3", "").await;
    for _ in 0..2 {
        assert_eq!(post(&balancer, &json!({})).await.status, 200);
    }
    assert_eq!(balancer.stop().await, 0);
    balancer.start_again().await;
    assert_eq!(post(&balancer, &json!({})).await.status, 200);
    let counted = |text: &str| -> u64 {
        let file: Value = serde_json::from_str(text).unwrap_or_default();
        let slots = file["rates"][0]["requests"].as_array().cloned().unwrap_or_default();
        slots.iter().filter_map(|slot| slot[1].as_u64()).sum()
    };
    let is_saved =
        || counted(&std::fs::read_to_string(balancer.path("state/rates.json")).unwrap_or_default()) == 3;
    wait_until("it is saved", is_saved).await;
    balancer.send_signal("KILL");
    balancer.start_again().await;
    expect_rate_refusal(&post(&balancer, &json!({})).await, "requests_per_minute");
}

#[tokio::test]
async fn observed_limits_are_counted_and_refuse_nothing() {
    let (_upstream, balancer) = start("requests_per_minute: 1", "limits: { mode: observe }\n").await;
    for _ in 0..3 {
        let response = post(&balancer, &json!({})).await;
        assert_eq!((response.status, response.header("x-ratelimit-limit-requests")), (200, Some("9")));
    }
    let records = balancer.wait_for_records(3).await;
    let limited_by: Vec<&Value> = records.iter().map(|record| &record["limited_by"]).collect();
    let name = json!("requests_per_minute");
    assert_eq!(limited_by, [&Value::Null, &name, &name]);
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await.text();
    let counter = r#"aoai_lb_limit_refused_total{client="team-a",limit="requests_per_minute"} 2"#;
    assert!(metrics.contains(counter), "{metrics}");
}

#[tokio::test]
async fn cached_tokens_count_for_as_much_as_the_configuration_says() {
    let (_upstream, balancer) =
        start("tokens_per_day: 1000000", "limits: { cached_weight: 0.5, default: { in_flight: 1000 } }\n")
            .await;
    assert_eq!(post(&balancer, &json!({})).await.status, 200);
    wait_until("half of 60 cached tokens count", || {
        let text = std::fs::read_to_string(balancer.path("state/budgets.log")).unwrap_or_default();
        text.contains(r#""day_tokens":90"#)
    })
    .await;
}

#[tokio::test]
async fn a_request_can_lower_its_class() {
    let (_upstream, balancer) = start("requests_per_minute: 100", "").await;
    let bodies = Arc::new(chat(&json!({})));
    for (header, key) in
        [("batch", CLIENT_KEY), ("standard", CLIENT_KEY), ("interactive", "other"), ("urgent", CLIENT_KEY)]
    {
        let headers = [("api-key", key), ("x-aoai-lb-class", header)];
        assert_eq!(balancer.post(CHAT_TARGET, &headers, bodies.as_bytes()).await.status, 200);
    }
    let records = balancer.wait_for_records(4).await;
    let classes: Vec<&str> = records.iter().map(|record| record["class"].as_str().unwrap()).collect();
    // Nobody raises its class, and an unknown one counts for nothing.
    assert_eq!(classes, ["batch", "standard", "standard", "interactive"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_turn_of_a_socket_counts_and_the_socket_itself_does_not() {
    let upstream = ResponsesUpstream::start("a").await;
    let backend = upstream.backend_yaml(LISTED_DEPLOYMENTS);
    let limits = "requests_per_minute: 2, in_flight: 1, tokens_per_day: 100000";
    let balancer = Balancer::start_with_clients(&backend, &clients(limits), "").await;
    let (mut socket, mut other) = (WebSocket::open(&balancer).await, WebSocket::open(&balancer).await);
    for _ in 0..2 {
        socket.complete_turn(&create(&json!({}))).await;
    }
    let event = other.failing_turn(&create(&json!({}))).await;
    assert_eq!(
        (&event["status"], &event["error"]["code"]),
        (&json!(429), &json!("rate_limit_exceeded")),
        "{event}"
    );
    assert!((1..=60_000).contains(&event["retry_after_ms"].as_u64().unwrap()), "{event}");
    assert_eq!(upstream.message_count(), 2);
    // The next one gets the same answer: the socket is still open.
    other.failing_turn(&create(&json!({}))).await;
    drop((socket, other));
    let records = balancer.wait_for_records(6).await;
    let turns = records.iter().filter(|record| record["method"] == "WEBSOCKET");
    let limited_by: Vec<&Value> = turns.map(|record| &record["limited_by"]).collect();
    let name = json!("requests_per_minute");
    assert_eq!(limited_by, [&Value::Null, &Value::Null, &name, &name]);
    wait_until("the tokens of both turns count", || {
        let text = std::fs::read_to_string(balancer.path("state/budgets.log")).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str::<Value>(last).is_ok_and(|entry| entry["day_tokens"] == 2 * total_of(&records))
    })
    .await;
}

/// The tokens of the first answered turn.
fn total_of(records: &[Value]) -> u64 {
    records.iter().find_map(|record| record["total_tokens"].as_u64()).unwrap()
}

#[tokio::test]
async fn explain_tells_the_class_and_the_limits_of_a_client() {
    let limits = "tokens_per_minute: 1000, deployments: { gpt-4o: { in_flight: 5 } }";
    let (_upstream, balancer) = start(limits, "limits: { mode: observe }\n").await;
    let explain = |client: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
            .args(["explain", "POST", CHAT_TARGET, "--client", client, "-c"])
            .arg(balancer.path("aoai-lb.yaml"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = explain("team-a");
    let expected = "tokens_per_minute 1000, deployments.gpt-4o.in_flight 5 (observed only)";
    assert!(text.contains("class       interactive\n") && text.contains(expected), "{text}");
    let left = "has left    tokens_per_minute 1000 of 1000, deployments.gpt-4o.in_flight 5 of 5\n";
    assert!(text.contains(left), "{text}");
    assert_eq!(post(&balancer, &json!({})).await.status, 200);
    balancer.wait_for_records(1).await;
    let text = explain("team-a");
    assert!(text.contains(&format!("has left    tokens_per_minute {} of 1000", 1000 - USED)), "{text}");
    let text = explain("free");
    assert!(!text.contains("\nclass ") && !text.contains("\nmay use "), "{text}");
}
