//! `balance: prompt_cache`: requests that can use the same prompt cache go to the same backend.

use crate::support;

use std::collections::HashSet;

use aoai_lb::demo::{Mood, SimulatedError, Simulator};
use serde_json::{Value, json};
use support::responses_upstream::{ResponsesUpstream, create};
use support::stateful_upstream::StatefulUpstream;
use support::upstream::{ScriptedUpstream, complete_response};
use support::websocket::WebSocket;
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, answering_backend, backend_yaml,
    listed_backends_yaml, poll, simulated_backend_yaml, start_simulator, wait_until,
};
use tokio::task::JoinSet;

const BY_PROMPT: &str = "balance: prompt_cache";
const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

/// 5,000 bytes of text that begins with this name.
fn long_text(name: &str) -> String {
    format!("{name} {}", "some words that are long enough for a cache ".repeat(112))
}

/// The body of a turn of a conversation, which has had `turn` earlier ones.
fn conversation(name: &str, turn: usize) -> Value {
    let mut messages = vec![
        json!({"role": "system", "content": long_text("You are helpful.")}),
        json!({"role": "user", "content": format!("a question about {name}")}),
    ];
    for number in 0..turn {
        messages.push(json!({"role": "assistant", "content": format!("answer {number}")}));
        messages.push(json!({"role": "user", "content": format!("question {number}")}));
    }
    json!({"messages": messages})
}

/// A request with a long prompt and this key.
fn keyed(key: &str) -> Value {
    json!({"messages": [{"role": "user", "content": long_text("the same")}], "prompt_cache_key": key})
}

async fn post_with(balancer: &Balancer, headers: &[(&str, &str)], body: &Value) -> Response {
    let headers = [&[("api-key", CLIENT_KEY)], headers].concat();
    let response = balancer.post(CHAT_TARGET, &headers, body.to_string().as_bytes()).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

async fn answering(balancer: &Balancer, body: &Value) -> String {
    answering_backend(&post_with(balancer, &[], body).await)
}

/// The backends that answer requests with these keys.
async fn answering_keys(balancer: &Balancer, keys: usize) -> Vec<String> {
    let mut answered = Vec::new();
    for key in 0..keys {
        answered.push(answering(balancer, &keyed(&key.to_string())).await);
    }
    answered
}

/// A key whose requests this backend answers.
async fn key_of(balancer: &Balancer, backend: &str) -> String {
    for number in 0..200 {
        let key = format!("search {number}");
        if answering(balancer, &keyed(&key)).await == backend {
            return key;
        }
    }
    panic!("no key of 200 leads to {backend}")
}

async fn last_record(balancer: &Balancer, response: &Response) -> Value {
    let id = response.header("x-aoai-lb-request-id").unwrap().to_owned();
    poll("the record is written", async || {
        let found = balancer.records().into_iter().find(|record| record["request_id"] == *id);
        found.ok_or(())
    })
    .await
}

fn throttled(retry_after_ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(retry_after_ms), retry_after: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_turns_of_a_conversation_stay_at_one_backend() {
    let azure = start_simulator(&FIVE).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), BY_PROMPT).await;
    let mut homes = Vec::new();
    for turn in 0..4 {
        for number in 0..20 {
            let backend = answering(&balancer, &conversation(&format!("topic {number}"), turn)).await;
            if turn == 0 {
                homes.push(backend);
            } else {
                assert_eq!(homes[number], backend, "turn {turn} of conversation {number}");
            }
        }
    }
    let used: HashSet<&String> = homes.iter().collect();
    assert!(used.len() >= 4, "20 conversations are spread over 5 backends: {homes:?}");
    let records = balancer.wait_for_records(80).await;
    let keys: HashSet<&str> = records.iter().map(|record| record["cache"]["key"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), 20);
    for record in &records {
        let cache = &record["cache"];
        assert_eq!((&cache["by"], &cache["moved"]), (&json!("prefix"), &Value::Null), "{record}");
        let key = cache["key"].as_str().unwrap();
        assert!(key.len() == 16 && key.chars().all(|digit| digit.is_ascii_hexdigit()), "{key}");
    }
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await;
    assert!(!metrics.text().contains("aoai_lb_cache_moves_total{"), "{}", metrics.text());
    assert!(metrics.text().contains(r#"aoai_lb_prompt_tokens_total{deployment="gpt-4o",kind="cached"}"#));
    // A conversation that begins with a long prompt is cached from its second turn on.
    let status = balancer.status().await;
    let pools = status["pools"].as_array().unwrap();
    let pool = pools.iter().find(|pool| pool["deployment"] == "gpt-4o").unwrap();
    assert_eq!(pool["balance"], "prompt_cache");
    let share = pool["cached_share"].as_f64().unwrap();
    assert!((0.5..1.0).contains(&share), "{pool:#}");
    let of_home =
        pool["tiers"][0]["members"].as_array().unwrap().iter().find(|member| member["backend"] == *homes[0]);
    assert!(of_home.unwrap()["cached_share"].as_f64().unwrap() > 0.5, "{pool:#}");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .args(["status", "--admin", &format!("http://{}", balancer.admin_address)])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("PROMPT CACHE OF"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_prompts_take_turns_whatever_key_they_bring() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), BY_PROMPT).await;
    let body = json!({
        "messages": [{"role": "user", "content": "short"}],
        "prompt_cache_key": "k",
        // Not text of the prompt.
        "metadata": {"note": long_text("a note")},
    });
    let mut answered = Vec::new();
    for _ in 0..6 {
        let response = post_with(&balancer, &[("x-session-id", "s")], &body).await;
        answered.push(answering_backend(&response));
    }
    assert!(answered.chunks(2).all(|pair| pair[0] != pair[1]), "{answered:?}");
    assert!(balancer.wait_for_records(6).await.iter().all(|record| record["cache"].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_that_of_the_body_or_of_a_session_header_or_of_the_prompt() {
    let azure = start_simulator(&FIVE).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), BY_PROMPT).await;
    let plain =
        |number: usize| json!({"messages": [{"role": "user", "content": long_text(&number.to_string())}]});
    for header in ["x-session-id", "session_id", "x-claude-code-session-id", "x-session-affinity"] {
        let mut answered = HashSet::new();
        for number in 0..6 {
            let response = post_with(&balancer, &[(header, header)], &plain(number)).await;
            answered.insert(answering_backend(&response));
            assert_eq!(last_record(&balancer, &response).await["cache"]["by"], "session", "{header}");
        }
        assert_eq!(answered.len(), 1, "{header}: {answered:?}");
    }
    let with_both = post_with(&balancer, &[("x-session-id", "s")], &keyed("k")).await;
    let record = last_record(&balancer, &with_both).await;
    assert_eq!(record["cache"]["by"], "prompt_cache_key");
    assert_eq!(answering_backend(&with_both), answering(&balancer, &keyed("k")).await);
    assert!(!record["cache"].to_string().contains("\"k\""));
    let with_empty_ones = post_with(&balancer, &[("x-session-id", " ")], &keyed("")).await;
    assert_eq!(last_record(&balancer, &with_empty_ones).await["cache"]["by"], "prefix");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_backend_loses_its_keys_until_its_rest_is_over() {
    let azure = start_simulator(&FIVE).await;
    let extra = format!("{BY_PROMPT}\nretry: {{ wait: 0s }}");
    let balancer = Balancer::start(&listed_backends_yaml(&azure), &extra).await;
    let before = answering_keys(&balancer, 20).await;
    let home = before[0].clone();
    azure.set_mood(&home, throttled(60_000));
    let during = answering_keys(&balancer, 20).await;
    let next: HashSet<&String> =
        during.iter().zip(&before).filter(|(_, old)| **old == home).map(|(new, _)| new).collect();
    assert!(!next.contains(&home));
    for (old, new) in before.iter().zip(&during).filter(|(old, _)| **old != home) {
        assert_eq!(old, new, "keys of other backends do not move");
    }
    let moved = post_with(&balancer, &[], &keyed("0")).await;
    assert_eq!(answering_backend(&moved), during[0], "each key has an order of its own");
    assert_eq!(last_record(&balancer, &moved).await["cache"]["moved"], "rest");
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await;
    assert!(metrics.text().contains(r#"aoai_lb_cache_moves_total{reason="rest"}"#), "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_rest_a_key_comes_back() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let extra = format!("{BY_PROMPT}\nretry: {{ wait: 0s }}");
    let balancer = Balancer::start(&listed_backends_yaml(&azure), &extra).await;
    let home = answering(&balancer, &keyed("k")).await;
    azure.set_mood(&home, throttled(2_000));
    assert_ne!(answering(&balancer, &keyed("k")).await, home);
    azure.set_mood(&home, Mood::Calm);
    // No requests meanwhile: asked more often, the key would be spread.
    for (what, is_resting) in [("it rests", true), ("the rest is over", false)] {
        balancer
            .wait_for_status(what, |status| {
                let deployments =
                    status["backends"].as_array().unwrap().iter().map(|backend| &backend["deployments"]);
                let mut states =
                    deployments.flat_map(|list| list.as_array().unwrap()).map(|one| &one["state"]);
                states.any(|state| state == "cooling") == is_resting
            })
            .await;
    }
    let back = post_with(&balancer, &[], &keyed("k")).await;
    assert_eq!(answering_backend(&back), home);
    assert_eq!(last_record(&balancer, &back).await["cache"]["moved"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_is_followed_by_one_at_the_next_backend_of_the_key() {
    let azure = start_simulator(&FIVE).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), BY_PROMPT).await;
    let key = key_of(&balancer, "a").await;
    // Where the key goes without its first backend.
    balancer.post_admin("/api/backends/a/drain").await;
    let next = answering(&balancer, &keyed(&key)).await;
    balancer.post_admin("/api/backends/a/undrain").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    let response = post_with(&balancer, &[], &keyed(&key)).await;
    assert_eq!((answering_backend(&response), response.header("x-aoai-lb-attempts")), (next, Some("2")));
    assert_eq!(last_record(&balancer, &response).await["cache"]["moved"], "rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_balancers_choose_alike_and_so_does_one_after_a_reload_or_restart() {
    let azure = start_simulator(&FIVE).await;
    let mut first = Balancer::start(&listed_backends_yaml(&azure), BY_PROMPT).await;
    // The order of the backends in the file does not matter.
    let backwards: String =
        FIVE.iter().rev().map(|name| simulated_backend_yaml(&azure, name, LISTED_DEPLOYMENTS)).collect();
    let second = Balancer::start(&backwards, BY_PROMPT).await;
    let expected = answering_keys(&first, 20).await;
    assert_eq!(answering_keys(&second, 20).await, expected);
    first.replace_in_config(BY_PROMPT, "balance: prompt_cache\nretry: { attempts: 3 }");
    assert_eq!(first.post_admin("/api/reload").await.json()["version"], 2);
    assert_eq!(answering_keys(&first, 20).await, expected, "after a reload");
    first.stop().await;
    first.start_again().await;
    assert_eq!(answering_keys(&first, 20).await, expected, "after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_backend_holds_more_than_its_share_goes_to_the_next() {
    let azure = start_simulator(&FIVE).await;
    FIVE.iter().for_each(|name| azure.set_mood(name, Mood::Mute));
    let balancer = Balancer::start(&listed_backends_yaml(&azure), BY_PROMPT).await;
    let received = |azure: &Simulator| FIVE.map(|name| azure.request_count(name));
    let mut requests = JoinSet::new();
    let (address, body) = (balancer.address, keyed("k").to_string());
    let mut send = async |count: usize| {
        let before: usize = received(&azure).iter().sum();
        for sent in 1..=count {
            let body = body.clone();
            requests.spawn(async move {
                let mut client = Client::connect(address).await;
                client.try_post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
            });
            wait_until("the request has arrived", || received(&azure).iter().sum::<usize>() == before + sent)
                .await;
        }
        received(&azure)
    };
    let counts = send(5).await;
    assert_eq!(counts.iter().max(), Some(&5), "up to five requests stay together: {counts:?}");
    // With the one below, twelve requests: asked more often, the key would be spread.
    let counts = send(6).await;
    let mut sorted = counts;
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 0, 0, 4, 7], "then the next of its order gets most: {counts:?}");
    // What ends is given back, whatever way it ends.
    requests.shutdown().await;
    balancer
        .wait_for_status("no attempt is in flight", |status| {
            status["backends"].as_array().unwrap().iter().all(|backend| backend["in_flight"] == 0)
        })
        .await;
    let records = balancer.wait_for_records(11).await;
    let moved = records.iter().filter(|record| record["cache"]["moved"] == "load").count();
    // The more there are in flight, the more is within three standard deviations of the first one's share.
    assert_eq!(moved, 4, "those that were passed on");
    FIVE.iter().for_each(|name| azure.set_mood(name, Mood::Calm));
    let back = post_with(&balancer, &[], &keyed("k")).await;
    assert_eq!(last_record(&balancer, &back).await["cache"]["moved"], Value::Null);
}

/// An answer with this usage of the input.
fn answer_with(details: &Value) -> Vec<Vec<u8>> {
    let completion = json!({
        "id": "c", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1200, "completion_tokens": 2, "total_tokens": 1202, "prompt_tokens_details": details},
    });
    complete_response(200, "content-type: application/json", &completion.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_is_spread_by_conversations_unless_cache_writes_are_billed() {
    for (details, is_spread) in [
        (json!({"cached_tokens": 1024}), true),
        (json!({"cached_tokens": 1024, "cache_write_tokens": 0}), false),
    ] {
        let mut upstreams = Vec::new();
        for _ in FIVE {
            let answer = answer_with(&details);
            upstreams.push(ScriptedUpstream::start(move |_| answer.clone()).await);
        }
        let backends: String = FIVE
            .iter()
            .zip(&upstreams)
            .map(|(name, upstream)| {
                backend_yaml(name, &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS)
            })
            .collect();
        let balancer = Balancer::start(&backends, BY_PROMPT).await;
        let request = |number: usize| {
            let text = long_text(&format!("conversation {number}"));
            json!({"messages": [{"role": "user", "content": text}], "prompt_cache_key": "hot"})
        };
        let mut answered = Vec::new();
        for number in 0..36 {
            answered.push(answering(&balancer, &request(number)).await);
            if number == 0 {
                balancer.wait_for_records(1).await;
            }
        }
        assert!(answered[..12].iter().all(|backend| *backend == answered[0]), "{answered:?}");
        // From here on to the 48th request the key is spread over four backends.
        for number in 0..6 {
            let once = answering(&balancer, &request(number)).await;
            assert_eq!(answering(&balancer, &request(number)).await, once, "a conversation stays together");
            answered.push(once);
        }
        let used: HashSet<&String> = answered.iter().collect();
        assert_eq!(used.len() > 1, is_spread, "{answered:?}");
        let records = balancer.wait_for_records(48).await;
        let moves: HashSet<Option<&str>> =
            records.iter().map(|record| record["cache"]["moved"].as_str()).collect();
        assert_eq!(moves, if is_spread { HashSet::from([None, Some("hot")]) } else { HashSet::from([None]) });
        let keys: HashSet<&str> =
            records.iter().filter_map(|record| record["cache"]["key"].as_str()).collect();
        assert_eq!(keys.len(), 1, "the record has the key itself");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_refers_to_an_object_goes_to_its_resource() {
    let mut resources = Vec::new();
    for name in FIVE {
        resources.push(StatefulUpstream::start(name).await);
    }
    let backends: String =
        resources.iter().map(|resource| resource.backend_yaml(LISTED_DEPLOYMENTS)).collect();
    let balancer = Balancer::start(&backends, BY_PROMPT).await;
    let respond = async |key: &str, previous: Option<&Value>| {
        let body = json!({
            "model": "gpt-4o", "input": long_text("x"), "prompt_cache_key": key, "previous_response_id": previous,
        });
        let headers = [("api-key", CLIENT_KEY), ("content-type", "application/json")];
        balancer.post("/openai/v1/responses", &headers, body.to_string().as_bytes()).await
    };
    let first = respond("one", None).await;
    let home = answering_backend(&first);
    let mut number = 0;
    let other_key = loop {
        let key = format!("key {number}");
        if answering_backend(&respond(&key, None).await) != home {
            break key;
        }
        number += 1;
    };
    let id = first.json()["id"].clone();
    let follow_up = respond(&other_key, Some(&id)).await;
    assert_eq!(answering_backend(&follow_up), home);
    assert_eq!(last_record(&balancer, &follow_up).await["cache"]["moved"], "home");
    let own = respond("one", Some(&id)).await;
    assert_eq!(answering_backend(&own), home);
    assert_eq!(last_record(&balancer, &own).await["cache"]["moved"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_of_a_responses_socket_are_routed_by_their_prompts() {
    let (_upstreams, balancer) = ResponsesUpstream::start_behind_balancer(["a", "b", "c"], BY_PROMPT).await;
    let mut socket = WebSocket::open(&balancer).await;
    let mut homes = Vec::new();
    for round in 0..2 {
        for key in 0..6 {
            let turn = create(&json!({"input": long_text("x"), "prompt_cache_key": format!("key {key}")}));
            let events = socket.turn(&turn).await;
            let delta = events.iter().find(|event| event["type"] == "response.output_text.delta").unwrap();
            let upstream = delta["from"].as_str().unwrap().to_owned();
            if round == 0 {
                homes.push(upstream);
            } else {
                assert_eq!(upstream, homes[key]);
            }
        }
    }
    assert!(homes.iter().collect::<HashSet<_>>().len() > 1, "{homes:?}");
    // The sockets of the turns come before that of the session, which has no record yet.
    let records = balancer.wait_for_records(12).await;
    assert!(records.iter().all(|record| record["cache"]["by"] == "prompt_cache_key"), "{records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_can_have_a_policy_of_its_own() {
    let azure = start_simulator(&["a", "b"]).await;
    let pools = "pools: { GPT-4o: { balance: prompt_cache } }";
    let balancer = Balancer::start(&listed_backends_yaml(&azure), pools).await;
    let mut answered = HashSet::new();
    for _ in 0..4 {
        answered.insert(answering(&balancer, &keyed("k")).await);
    }
    assert_eq!(answered.len(), 1);
    let mut answered = Vec::new();
    for _ in 0..4 {
        let target = CHAT_TARGET.replace("gpt-4o", "other");
        let body = keyed("k").to_string();
        let response = balancer.post(&target, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        answered.push(answering_backend(&response));
        assert_eq!(last_record(&balancer, &response).await["cache"], Value::Null);
    }
    assert!(answered.chunks(2).all(|pair| pair[0] != pair[1]), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_it_requests_take_turns_and_arrive_as_they_were_sent() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let mut answered = Vec::new();
    for _ in 0..4 {
        answered.push(answering(&balancer, &keyed("k")).await);
    }
    assert!(answered.chunks(2).all(|pair| pair[0] != pair[1]), "{answered:?}");
    for record in balancer.wait_for_records(4).await {
        assert!(record.as_object().unwrap()["cache"].is_null(), "{record}");
    }
    for name in ["a", "b"] {
        for request in azure.received_requests(name) {
            assert_eq!(request.body.as_deref(), Some(keyed("k").to_string().as_bytes()));
        }
    }
}
