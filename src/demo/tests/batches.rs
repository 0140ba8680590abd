//! Batches: their course, their output, and what becomes of bad lines.

use super::*;

/// `east` and `west`, whose batches take long enough to be seen at work.
async fn start_slow_resources() -> Simulator {
    let resource = |name: &str| SimulatedResource {
        name: name.to_owned(),
        background_response_duration: Duration::from_secs(1),
        ..east_resource()
    };
    Simulator::start(vec![resource("east"), resource("west")]).await.unwrap()
}

async fn start_batch(simulator: &Simulator, lines: &str, endpoint: &str) -> String {
    let file = upload(simulator, "east", "batch", "in.jsonl", lines).await;
    let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"});
    let unknown = post(simulator, "west", "/batches", &body).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["message"], format!("File with id '{file}' not found."));
    let created = post(simulator, "east", "/batches", &body).await.json();
    assert_eq!(
        (created["status"].clone(), created["output_file_id"].clone()),
        (json!("validating"), Value::Null)
    );
    format!("/batches/{}", created["id"].as_str().unwrap())
}

async fn file_lines(simulator: &Simulator, id: &Value) -> Vec<Value> {
    let text = get(simulator, "east", &format!("/files/{}/content", id.as_str().unwrap())).await.text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_batch_answers_each_line_and_reports_bad_ones() {
    let simulator = start_slow_resources().await;
    let line = |id: &str, url: &str, body: Value| json!({"custom_id": id, "method": "POST", "url": url, "body": body});
    let messages = json!([{"role": "user", "content": "hi"}]);
    let lines = [
        line("chat", "/v1/chat/completions", json!({"model": "gpt-4o", "messages": messages})).to_string(),
        line("response", "/v1/responses", json!({"model": "gpt-4o", "input": "hi"})).to_string(),
        line("vector", "/embeddings", json!({"model": "embed", "input": "hi", "dimensions": 2})).to_string(),
        line("unknown", "/chat/completions", json!({"model": "none", "messages": messages})).to_string(),
        line("incomplete", "/chat/completions", json!({"model": "gpt-4o"})).to_string(),
        "not JSON".to_owned(),
    ];
    let path = start_batch(&simulator, &lines.join("\n"), "/chat/completions").await;
    wait_for_status(&simulator, &path, &["in_progress", "finalizing"]).await;
    let done = wait_for_status(&simulator, &path, &["completed"]).await;
    assert_eq!(done["request_counts"], json!({"total": 6, "completed": 3, "failed": 3}));
    let output = file_lines(&simulator, &done["output_file_id"]).await;
    let bodies: Vec<&Value> = output.iter().map(|line| &line["response"]["body"]).collect();
    assert!(output.iter().all(|line| line["response"]["status_code"] == 200));
    assert_eq!(output[0]["custom_id"], "chat");
    assert!(bodies[0]["choices"][0]["message"]["content"].as_str().unwrap().starts_with("You said: hi"));
    assert!(message_text(bodies[1]).starts_with("You said: hi"));
    assert_eq!(bodies[2]["data"][0]["embedding"].as_array().unwrap().len(), 2);
    let errors = file_lines(&simulator, &done["error_file_id"]).await;
    assert_eq!(errors[0]["response"]["body"]["error"]["code"], "DeploymentNotFound");
    assert_eq!(errors[1]["response"]["status_code"], 400);
    assert_eq!(errors[2]["error"]["code"], "invalid_json_line");
    // It is answered once, however often it is looked at.
    assert_eq!(get(&simulator, "east", &path).await.json(), done);
    let listed = get(&simulator, "east", "/batches").await.json();
    assert_eq!(listed["data"][0], done);
    let refused = post(&simulator, "east", &format!("{path}/cancel"), &json!({})).await;
    assert_eq!(refused.status, 400);
    assert_eq!(get(&simulator, "west", &path).await.status, 404);
}

#[tokio::test]
async fn a_batch_that_is_cancelled_has_no_output() {
    let simulator = start_slow_resources().await;
    let path = start_batch(&simulator, "{}", "/v1/responses").await;
    let cancelling = post(&simulator, "east", &format!("{path}/cancel"), &json!({})).await.json();
    assert_eq!(cancelling["status"], "cancelling");
    let cancelled = wait_for_status(&simulator, &path, &["cancelled"]).await;
    assert!(cancelled["cancelled_at"].is_u64() && cancelled["output_file_id"].is_null(), "{cancelled}");

    let empty = start_batch(&simulator, " ", "/embeddings").await;
    let failed = wait_for_status(&simulator, &empty, &["failed"]).await;
    assert_eq!(failed["errors"]["data"][0]["code"], "empty_file");
    let body = json!({"input_file_id": "file-x", "endpoint": "/images"});
    assert_eq!(post(&simulator, "east", "/batches", &body).await.json()["error"]["param"], "endpoint");
}
