//! Tokens in the records of responses without reported usage, and of responses that are too long to be kept.

use crate::support;

use std::fmt::Display;

use serde_json::{Value, json};
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::{Balancer, CLIENT_KEY, Response};

const CHAT: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01";
/// The tokens of a message besides its text, and those of every prompt.
const MESSAGE: u64 = 4;
const PRIMING: u64 = 3;

fn stream_of(events: impl IntoIterator<Item = impl Display>) -> Vec<Vec<u8>> {
    let data: String = events.into_iter().map(|event| format!("data: {event}\n\n")).collect();
    complete_response(200, "Content-Type: text/event-stream", &data)
}

fn chat_stream(model: &str, deltas: &[Value]) -> Vec<Vec<u8>> {
    let chunk = |delta: &Value, reason: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], "model": model});
    let deltas = deltas.iter().map(|delta| chunk(delta, Value::Null));
    let events = deltas.chain([chunk(&json!({}), json!("stop"))]).map(|event| event.to_string());
    stream_of(events.chain(["[DONE]".to_owned()]))
}

fn json_reply(body: &Value) -> Vec<Vec<u8>> {
    complete_response(200, "Content-Type: application/json", &body.to_string())
}

fn chat_reply(model: &str, text: &str) -> Value {
    json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], "model": model})
}

fn user(content: &Value) -> Value {
    json!([{"role": "user", "content": content}])
}

/// A balancer whose backend answers everything with these pieces.
async fn balancer_of(pieces: Vec<Vec<u8>>) -> (Balancer, ScriptedUpstream) {
    let upstream = ScriptedUpstream::start(move |_: &RawRequest| pieces.clone()).await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    (balancer, upstream)
}

async fn post(balancer: &Balancer, target: &str, body: &Value) -> Response {
    let headers = [("api-key", CLIENT_KEY), ("Content-Type", "application/json")];
    balancer.post(target, &headers, body.to_string().as_bytes()).await
}

fn tokens(record: &Value) -> Value {
    json!([
        record["input_tokens"],
        record["output_tokens"],
        record["total_tokens"],
        record["usage_source"],
        record["usage_missing"]
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_without_reported_usage_are_counted() {
    let hello = user(&json!("say hello"));
    let hello_tokens = 2 + MESSAGE + PRIMING;
    let delta = |text: &str| json!({ "content": text });
    let call = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}]});
    let arguments = json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"city\":\"Paris\"}"}}]});
    let completed = json!({"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "model": "gpt-4o"}});
    let text_delta = json!({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "hello"});
    let responses = "/openai/v1/responses";
    let cases = [
        (
            CHAT,
            json!({"stream": true, "messages": hello}),
            chat_stream("gpt-4o", &[delta("hel"), delta("lo")]),
            (hello_tokens, 1),
        ),
        (
            "/openai/v1/chat/completions",
            json!({"model": "gpt-4o", "stream": true, "messages": hello, "stream_options": {"include_usage": false}}),
            chat_stream("gpt-4o", &[call, arguments]),
            (hello_tokens, 2 + 5),
        ),
        (
            CHAT,
            json!({"messages": hello}),
            json_reply(&chat_reply("gpt-35-turbo", "hello there")),
            (hello_tokens, 2),
        ),
        (
            responses,
            json!({"model": "gpt-4o", "stream": true, "input": "say hello"}),
            stream_of(&[text_delta, completed]),
            (hello_tokens, 1),
        ),
        (
            "/openai/deployments/gpt-4o/embeddings?api-version=2024-06-01",
            json!({"input": ["say hello", "and more"]}),
            json_reply(&json!({"data": [{"embedding": [0.5]}], "model": "text-embedding-3-small"})),
            (4, 0),
        ),
    ];
    for (target, body, pieces, (input, output)) in cases {
        let (balancer, _upstream) = balancer_of(pieces).await;
        assert_eq!(post(&balancer, target, &body).await.status, 200);
        let record = balancer.wait_for_records(1).await.remove(0);
        let output = if target.contains("embeddings") { Value::Null } else { json!(output) };
        let total = input + output.as_u64().unwrap_or_default();
        assert_eq!(tokens(&record), json!([input, output, total, "estimated", null]), "{record:#}");
        assert_eq!(record["outcome"], "answered", "{record:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_the_record_says_why() {
    let picture = |url: &str| user(&json!([{"type": "image_url", "image_url": {"url": url}}]));
    let sound = user(&json!([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]));
    let hello = user(&json!("say hello"));
    let reply = |model: &str| json_reply(&chat_reply(model, "hello"));
    let long = "hello ".repeat(300_000);
    let role =
        json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "model": "gpt-4o"});
    for (messages, pieces, expected) in [
        (picture("https://pictures.test/a.png"), reply("gpt-4o"), "image"),
        (sound, reply("gpt-4o"), "audio"),
        (hello.clone(), reply("mistral-large"), "encoding_unknown"),
        (hello.clone(), stream_of(&[role]), "broken_off"),
        (hello.clone(), json_reply(&json!({"unknown": true})), "not_told"),
        (hello.clone(), json_reply(&chat_reply("gpt-4o", &long)), "not_told"),
    ] {
        let (balancer, _upstream) = balancer_of(pieces).await;
        post(&balancer, CHAT, &json!({"messages": messages})).await;
        let record = balancer.wait_for_records(1).await.remove(0);
        assert_eq!(tokens(&record), json!([null, null, null, "none", expected]), "{record:#}");
    }
    let (balancer, _upstream) = balancer_of(complete_response(400, "", "{}")).await;
    post(&balancer, CHAT, &json!({"messages": hello})).await;
    let record = balancer.wait_for_records(1).await.remove(0);
    assert_eq!(tokens(&record), json!([null, null, null, "none", null]), "a refusal needs none: {record:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn model_and_usage_are_read_from_long_replies_and_events() {
    let filler =
        json!({"model": "not-this-one", "usage": {"prompt_tokens": 9}, "text": "x".repeat(1_500_000)});
    let usage = json!({"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100});
    let reply = json!({"data": [filler], "model": "gpt-4o-2024-11-20", "usage": usage});
    let response = json!({"output": [filler], "model": "gpt-4o-2024-11-20", "status": "completed", "usage": {"input_tokens": 70, "output_tokens": 30, "total_tokens": 100}});
    let event = json!({"type": "response.completed", "response": response});
    for (target, pieces) in [(CHAT, json_reply(&reply)), ("/openai/v1/responses", stream_of(&[event]))] {
        let (balancer, _upstream) = balancer_of(pieces).await;
        post(&balancer, target, &json!({"model": "gpt-4o", "input": "hi", "messages": []})).await;
        let record = balancer.wait_for_records(1).await.remove(0);
        assert_eq!(tokens(&record), json!([70, 30, 100, "reported", null]), "{target}");
        assert_eq!(record["model"], "gpt-4o-2024-11-20", "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_is_counted_from_a_sample() {
    const WORDS: u64 = 400_000;
    let (balancer, _upstream) = balancer_of(json_reply(&chat_reply("gpt-4o", "hello"))).await;
    let long = " word".repeat(usize::try_from(WORDS).unwrap());
    for text in [&long, "say hello"] {
        assert_eq!(post(&balancer, CHAT, &json!({"messages": user(&json!(text))})).await.status, 200);
    }
    let records = balancer.wait_for_records(2).await;
    let mut inputs: Vec<u64> =
        records.iter().map(|record| record["input_tokens"].as_u64().unwrap()).collect();
    inputs.sort_unstable();
    assert_eq!(inputs[0], 2 + MESSAGE + PRIMING);
    assert!((WORDS * 97 / 100..=WORDS * 103 / 100).contains(&inputs[1]), "{inputs:?}");
}
