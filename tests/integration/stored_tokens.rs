//! Which of the responses that tell the tokens of a stored object have them in their records.

use crate::support;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::upstream::{ScriptedUpstream, complete_response};
use support::{Balancer, CLIENT_KEY, clients_yaml, sha256_hex};

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_stored_response_are_counted_once_however_often_it_is_fetched() {
    const DONE: &str =
        r#""status":"completed","usage":{"input_tokens":100,"output_tokens":50,"total_tokens":150}"#;
    let polls = AtomicUsize::new(0);
    let upstream = ScriptedUpstream::start(move |request| {
        let is_background = String::from_utf8_lossy(&request.body).contains("background");
        let is_stored = request.head.contains("/resp_made");
        let state = match () {
            () if is_background => r#""status":"queued","usage":null"#,
            // The background response has ended at the third look.
            () if request.head.starts_with("GET") && !is_stored => {
                match polls.fetch_add(1, Ordering::Relaxed) {
                    ..2 => r#""status":"in_progress","usage":null"#,
                    _ => DONE,
                }
            }
            () => DONE,
        };
        let id =
            if is_stored || !is_background && request.head.starts_with("POST") { "made" } else { "later" };
        let body = format!(r#"{{"id":"resp_{id}","object":"response","model":"m","output":[],{state}}}"#);
        complete_response(200, "Content-Type: application/json", &body)
    })
    .await;
    let other_client =
        format!("  - name: other\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex("key-of-other"));
    let clients = clients_yaml() + &other_client;
    let mut balancer = Balancer::start_with_clients(&upstream.backend_yaml("a"), &clients, "").await;
    let key = [("api-key", CLIENT_KEY)];
    let create = r#"{"model":"m","input":"x"}"#;
    let create_in_background = r#"{"model":"m","input":"x","background":true}"#;
    for body in [create, create_in_background] {
        let response = balancer.post("/openai/v1/responses", &key, body.as_bytes()).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let get_with = async |balancer: &Balancer, id: &str, key: &str| {
        let target = format!("/openai/v1/responses/resp_{id}");
        assert_eq!(balancer.connect().await.get(&target, &[("api-key", key)]).await.status, 200);
    };
    let get = async |balancer: &Balancer, id: &str| get_with(balancer, id, CLIENT_KEY).await;
    get(&balancer, "made").await;
    get(&balancer, "later").await;
    // What has not been counted is handed over.
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    balancer.wait_until_single_process().await;
    get(&balancer, "later").await;
    // Its end, seen by another client first.
    get_with(&balancer, "later", "key-of-other").await;
    for id in ["later", "later", "made"] {
        get(&balancer, id).await;
    }
    let records = balancer.wait_for_records(9).await;
    let counted: Vec<_> = records
        .iter()
        .map(|record| (record["method"].as_str().unwrap(), record["input_tokens"].as_u64()))
        .collect();
    let none = ("GET", None);
    assert_eq!(
        counted,
        [("POST", Some(100)), ("POST", None), none, none, none, ("GET", Some(100)), none, none, none]
    );
    assert!(
        records
            .iter()
            .all(|record| (record["usage_source"] == "reported") == record["total_tokens"].is_u64())
    );
}

/// Reads and changes of what an earlier response has made tell its tokens once more, and batches are billed apart.
#[tokio::test(flavor = "multi_thread")]
async fn stored_chat_completions_and_batches_count_no_tokens_again() {
    let upstream = ScriptedUpstream::start(|request| {
        let answer = if request.head.contains("/batches") {
            let end = json!({"input_tokens": 7000, "output_tokens": 500, "total_tokens": 7500});
            let has_ended = !request.head.starts_with("POST /openai/v1/batches ");
            let (status, usage) = if has_ended { ("completed", end) } else { ("validating", Value::Null) };
            json!({"id": "batch_1", "object": "batch", "status": status, "model": "m", "usage": usage})
        } else {
            let text = json!({"role": "assistant", "content": "x"});
            json!({"id": "chatcmpl-1", "object": "chat.completion", "model": "m",
                   "choices": [{"index": 0, "message": text, "finish_reason": "stop"}],
                   "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}})
        };
        complete_response(200, "Content-Type: application/json", &answer.to_string())
    })
    .await;
    let prices = "prices: { currency: USD, rows: [ { deployment: m, input: 1000, output: 1000 } ] }";
    let balancer = Balancer::start(&upstream.backend_yaml("a"), prices).await;
    let chat = r#"{"model":"m","store":true,"messages":[{"role":"user","content":"x"}]}"#;
    let batch =
        r#"{"input_file_id":"file-1","endpoint":"/chat/completions","completion_window":"24h","model":"m"}"#;
    let metadata = r#"{"metadata":{"a":"b"}}"#;
    for (method, path, body) in [
        ("POST", "/chat/completions", chat),
        ("GET", "/chat/completions/chatcmpl-1", ""),
        ("POST", "/chat/completions/chatcmpl-1", metadata),
        ("POST", "/batches", batch),
        ("GET", "/batches/batch_1", ""),
        ("GET", "/batches/batch_1", ""),
        ("POST", "/batches/batch_1/cancel", ""),
    ] {
        let target = format!("/openai/v1{path}");
        let body = Some(body.as_bytes()).filter(|body| !body.is_empty());
        let headers = [("api-key", CLIENT_KEY), ("Content-Type", "application/json")];
        let response = balancer.connect().await.request(method, &target, &headers, body).await;
        assert_eq!(response.status, 200, "{method} {path}: {}", response.text());
    }
    let records = balancer.wait_for_records(7).await;
    for (number, record) in records.iter().enumerate() {
        let found = json!([record["total_tokens"], record["cost"]]);
        let expected = if number == 0 { json!([150, 0.15]) } else { json!([null, null]) };
        assert_eq!(found, expected, "{record:#}");
    }
}
