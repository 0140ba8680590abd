//! State: what a resource remembers, and that another resource does not know it.

use serde_json::json;

use super::*;

const RESPONSES_TARGET: &str = "/openai/v1/responses";

async fn start_two_resources() -> Simulator {
    let west = SimulatedResource { name: "west".to_owned(), ..east_resource() };
    Simulator::start(vec![east_resource(), west]).await.unwrap()
}

async fn send_to(simulator: &Simulator, name: &str, request: impl AsRef<[u8]>) -> TestResponse {
    TestClient::connect(simulator.address(name)).await.round_trip(request).await
}

/// A request for a response, with additional parameters.
fn responses_request(parameters: &Value) -> String {
    let mut body = json!({"model": "gpt-4o", "input": "hello there"});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    post_request(RESPONSES_TARGET, &body.to_string())
}

#[tokio::test]
async fn only_the_resource_that_created_a_response_knows_it() {
    let simulator = start_two_resources().await;
    let created = send_to(&simulator, "east", responses_request(&json!({}))).await.json();
    let id = created["id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), created["model"].clone()), ("resp_".len() + 48, json!("gpt-4o")));
    assert_eq!(created["usage"]["total_tokens"], 22);
    let continuation = responses_request(&json!({"previous_response_id": id}));
    assert_eq!(
        send_to(&simulator, "east", continuation.clone()).await.json()["usage"]["input_tokens"],
        4 + 20 + 3
    );
    let unknown = send_to(&simulator, "west", continuation).await;
    assert_eq!(
        (unknown.status, unknown.json()["error"]["code"].clone()),
        (400, json!("previous_response_not_found"))
    );

    let target = format!("{RESPONSES_TARGET}/{id}");
    assert_eq!(
        send_to(&simulator, "east", bodiless_request("GET", &target)).await.json()["status"],
        "completed"
    );
    let items =
        send_to(&simulator, "east", bodiless_request("GET", &format!("{target}/input_items"))).await.json();
    assert_eq!(items["data"][0]["content"][0]["text"], "hello there");
    assert_eq!(send_to(&simulator, "west", bodiless_request("GET", &target)).await.status, 404);
    assert_eq!(
        send_to(&simulator, "east", bodiless_request("DELETE", &target)).await.json()["deleted"],
        true
    );
    assert_eq!(send_to(&simulator, "east", bodiless_request("GET", &target)).await.status, 404);

    let unstored = send_to(&simulator, "east", responses_request(&json!({"store": false}))).await.json();
    let target = format!("{RESPONSES_TARGET}/{}", unstored["id"].as_str().unwrap());
    assert_eq!(send_to(&simulator, "east", bodiless_request("GET", &target)).await.status, 404);
    let classic = "/openai/responses?api-version=2024-10-21";
    assert_eq!(send_to(&simulator, "east", post_request(classic, "{}")).await.status, 400);
}

#[tokio::test]
async fn only_the_resource_that_encrypted_reasoning_accepts_it() {
    let simulator = start_two_resources().await;
    let body = responses_request(&json!({"store": false, "include": ["reasoning.encrypted_content"]}));
    let created = send_to(&simulator, "east", body).await.json();
    assert_eq!(created["output"][0]["type"], "reasoning");
    let next_request = responses_request(
        &json!({"store": false, "input": [created["output"][0], {"role": "user", "content": "on"}]}),
    );
    assert_eq!(send_to(&simulator, "east", next_request.clone()).await.status, 200);
    let refused = send_to(&simulator, "west", next_request).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("could not be verified"));
}

#[tokio::test]
async fn responses_can_be_streamed_resumed_cancelled_and_cut_off() {
    let simulator = start_two_resources().await;
    let response = send_to(&simulator, "east", responses_request(&json!({"stream": true}))).await;
    let events = response.events();
    assert!(response.text().starts_with("event: response.created\ndata: {"));
    assert!(events.iter().enumerate().all(|(number, event)| event["sequence_number"] == number));
    let text: String = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    let last = events.last().unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text);
    assert_eq!(
        (last["type"].clone(), last["response"]["usage"]["output_tokens"].clone()),
        (json!("response.completed"), json!(18))
    );
    assert_eq!(events[0]["response"]["usage"], Value::Null);

    let created = send_to(&simulator, "east", responses_request(&json!({"background": true}))).await.json();
    let target = format!("{RESPONSES_TARGET}/{}", created["id"].as_str().unwrap());
    assert_eq!(created["status"], "queued");
    assert_eq!(
        send_to(&simulator, "east", bodiless_request("GET", &target)).await.json()["status"],
        "in_progress"
    );
    let resumed = send_to(
        &simulator,
        "east",
        bodiless_request("GET", &format!("{target}?stream=true&starting_after=4")),
    )
    .await;
    assert_eq!(resumed.events()[0]["sequence_number"], 5);
    let cancelled =
        send_to(&simulator, "east", bodiless_request("POST", &format!("{target}/cancel"))).await.json();
    assert_eq!(cancelled["status"], "cancelled");
    let truncated =
        send_to(&simulator, "east", responses_request(&json!({"max_output_tokens": 4}))).await.json();
    assert_eq!(truncated["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test]
async fn only_one_resource_knows_a_file_a_batch_or_another_object() {
    let simulator = start_two_resources().await;
    let line = json!({"custom_id": "1", "body": {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}});
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: form-data; \
         name=\"file\"; filename=\"in.jsonl\"\r\nContent-Type: application/octet-stream\r\n\r\n{line}\r\n--b--\r\n"
    );
    let upload = post_request("/openai/v1/files", &form)
        .replace("api-key", "Content-Type: multipart/form-data; boundary=b\r\napi-key");
    let file = send_to(&simulator, "east", upload).await.json();
    let id = file["id"].as_str().unwrap();
    assert_eq!(id.len(), "file-".len() + 32);
    let content = bodiless_request("GET", &format!("/openai/files/{id}/content?api-version=2024-10-21"));
    assert_eq!(send_to(&simulator, "east", content.clone()).await.text(), line.to_string());
    assert_eq!(send_to(&simulator, "west", content).await.status, 404);
    let batch = post_request(
        "/openai/v1/batches",
        &json!({"input_file_id": id, "endpoint": "/chat/completions"}).to_string(),
    );
    assert_eq!(send_to(&simulator, "west", batch.clone()).await.status, 404);
    let created = send_to(&simulator, "east", batch).await.json();
    let done = send_to(
        &simulator,
        "east",
        bodiless_request("GET", &format!("/openai/v1/batches/{}", created["id"].as_str().unwrap())),
    )
    .await
    .json();
    assert_eq!(
        (created["status"].clone(), done["status"].clone()),
        (json!("validating"), json!("completed"))
    );
    let output = format!("/openai/v1/files/{}/content", done["output_file_id"].as_str().unwrap());
    assert_eq!(
        send_to(&simulator, "east", bodiless_request("GET", &output)).await.json()["response"]["status_code"],
        200
    );
    let deleted = send_to(&simulator, "east", bodiless_request("DELETE", &format!("/openai/v1/files/{id}")))
        .await
        .json();
    assert_eq!(deleted["deleted"], true);

    let store =
        send_to(&simulator, "east", post_request("/openai/v1/vector_stores", r#"{"name":"n"}"#)).await.json();
    let target = format!("/openai/v1/vector_stores/{}", store["id"].as_str().unwrap());
    assert_eq!(send_to(&simulator, "east", bodiless_request("GET", &target)).await.json()["name"], "n");
    assert_eq!(
        send_to(&simulator, "east", post_request(&format!("{target}/files"), r#"{"file_id":"f"}"#))
            .await
            .status,
        200
    );
    assert_eq!(send_to(&simulator, "west", bodiless_request("GET", &target)).await.status, 404);
}

#[tokio::test]
async fn each_resource_has_its_own_prompt_cache() {
    let simulator = start_two_resources().await;
    let words: String = (0..1000).map(|index| format!("w{index} ")).collect();
    let body = json!({"messages": [{"role": "system", "content": words}, {"role": "user", "content": "hi"}]})
        .to_string();
    let mut cached_tokens = Vec::new();
    for name in ["east", "east", "west"] {
        let usage = send_to(&simulator, name, post_request(CHAT_TARGET, &body)).await.json()["usage"].clone();
        cached_tokens.push(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert_eq!(cached_tokens, [0, 1280, 0]);
}
