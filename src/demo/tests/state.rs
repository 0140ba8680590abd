//! What a resource remembers, and what it refuses because another one gave it out.

use serde_json::json;

use super::super::codec::base64;
use super::*;

const RESPONSES: &str = "/openai/v1/responses";

async fn pair() -> Simulator {
    let west = Resource { name: "west".to_owned(), ..east() };
    Simulator::start(vec![east(), west]).await.unwrap()
}

async fn ask(simulator: &Simulator, name: &str, request: impl AsRef<[u8]>) -> Reply {
    Client::to(simulator.address(name)).await.ask(request).await
}

fn response(more: &Value) -> String {
    let mut body = json!({"model": "gpt-4o", "input": "hello there"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(RESPONSES, &body.to_string())
}

#[tokio::test]
async fn responses_live_on_the_resource_that_made_them() {
    let simulator = pair().await;
    let made = ask(&simulator, "east", response(&json!({}))).await.json();
    let id = made["id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), made["model"].clone()), ("resp_".len() + 48, json!("gpt-4o")));
    assert_eq!(made["usage"]["total_tokens"], 22);
    let next = response(&json!({"previous_response_id": id}));
    assert_eq!(ask(&simulator, "east", next.clone()).await.json()["usage"]["input_tokens"], 4 + 20 + 3);
    let lost = ask(&simulator, "west", next).await;
    assert_eq!(
        (lost.status, lost.json()["error"]["code"].clone()),
        (400, json!("previous_response_not_found"))
    );

    let target = format!("{RESPONSES}/{id}");
    assert_eq!(ask(&simulator, "east", fetch("GET", &target)).await.json()["status"], "completed");
    let items = ask(&simulator, "east", fetch("GET", &format!("{target}/input_items"))).await.json();
    assert_eq!(items["data"][0]["content"][0]["text"], "hello there");
    assert_eq!(ask(&simulator, "west", fetch("GET", &target)).await.status, 404);
    assert_eq!(ask(&simulator, "east", fetch("DELETE", &target)).await.json()["deleted"], true);
    assert_eq!(ask(&simulator, "east", fetch("GET", &target)).await.status, 404);

    let forgotten = ask(&simulator, "east", response(&json!({"store": false}))).await.json();
    let target = format!("{RESPONSES}/{}", forgotten["id"].as_str().unwrap());
    assert_eq!(ask(&simulator, "east", fetch("GET", &target)).await.status, 404);
    let classic = "/openai/responses?api-version=2024-10-21";
    assert_eq!(ask(&simulator, "east", post(classic, "{}")).await.status, 400);
}

#[tokio::test]
async fn encrypted_reasoning_opens_only_where_it_was_sealed() {
    let simulator = pair().await;
    let body = response(&json!({"store": false, "include": ["reasoning.encrypted_content"]}));
    let made = ask(&simulator, "east", body).await.json();
    assert_eq!(made["output"][0]["type"], "reasoning");
    let again =
        response(&json!({"store": false, "input": [made["output"][0], {"role": "user", "content": "on"}]}));
    assert_eq!(ask(&simulator, "east", again.clone()).await.status, 200);
    let refused = ask(&simulator, "west", again).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("could not be verified"));
}

#[tokio::test]
async fn a_response_streams_and_a_background_one_can_be_resumed() {
    let simulator = pair().await;
    let reply = ask(&simulator, "east", response(&json!({"stream": true}))).await;
    let events = reply.events();
    assert!(reply.text().starts_with("event: response.created\ndata: {"));
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

    let made = ask(&simulator, "east", response(&json!({"background": true}))).await.json();
    let target = format!("{RESPONSES}/{}", made["id"].as_str().unwrap());
    assert_eq!(made["status"], "queued");
    assert_eq!(ask(&simulator, "east", fetch("GET", &target)).await.json()["status"], "in_progress");
    let rest = ask(&simulator, "east", fetch("GET", &format!("{target}?stream=true&starting_after=4"))).await;
    assert_eq!(rest.events()[0]["sequence_number"], 5);
    let cancelled = ask(&simulator, "east", fetch("POST", &format!("{target}/cancel"))).await.json();
    assert_eq!(cancelled["status"], "cancelled");
    let cut = ask(&simulator, "east", response(&json!({"max_output_tokens": 4}))).await.json();
    assert_eq!(cut["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test]
async fn files_batches_and_other_objects_live_on_one_resource() {
    let simulator = pair().await;
    let line = json!({"custom_id": "1", "body": {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}});
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: form-data; \
         name=\"file\"; filename=\"in.jsonl\"\r\nContent-Type: application/octet-stream\r\n\r\n{line}\r\n--b--\r\n"
    );
    let upload = post("/openai/v1/files", &form)
        .replace("api-key", "Content-Type: multipart/form-data; boundary=b\r\napi-key");
    let file = ask(&simulator, "east", upload).await.json();
    let id = file["id"].as_str().unwrap();
    assert_eq!(id.len(), "file-".len() + 32);
    let content = fetch("GET", &format!("/openai/files/{id}/content?api-version=2024-10-21"));
    assert_eq!(ask(&simulator, "east", content.clone()).await.text(), line.to_string());
    assert_eq!(ask(&simulator, "west", content).await.status, 404);
    let batch = post(
        "/openai/v1/batches",
        &json!({"input_file_id": id, "endpoint": "/chat/completions"}).to_string(),
    );
    assert_eq!(ask(&simulator, "west", batch.clone()).await.status, 404);
    let made = ask(&simulator, "east", batch).await.json();
    let done = ask(
        &simulator,
        "east",
        fetch("GET", &format!("/openai/v1/batches/{}", made["id"].as_str().unwrap())),
    )
    .await
    .json();
    assert_eq!((made["status"].clone(), done["status"].clone()), (json!("validating"), json!("completed")));
    let output = format!("/openai/v1/files/{}/content", done["output_file_id"].as_str().unwrap());
    assert_eq!(ask(&simulator, "east", fetch("GET", &output)).await.json()["response"]["status_code"], 200);
    let deleted = ask(&simulator, "east", fetch("DELETE", &format!("/openai/v1/files/{id}"))).await.json();
    assert_eq!(deleted["deleted"], true);

    let store = ask(&simulator, "east", post("/openai/v1/vector_stores", r#"{"name":"n"}"#)).await.json();
    let target = format!("/openai/v1/vector_stores/{}", store["id"].as_str().unwrap());
    assert_eq!(ask(&simulator, "east", fetch("GET", &target)).await.json()["name"], "n");
    assert_eq!(
        ask(&simulator, "east", post(&format!("{target}/files"), r#"{"file_id":"f"}"#)).await.status,
        200
    );
    assert_eq!(ask(&simulator, "west", fetch("GET", &target)).await.status, 404);
}

#[tokio::test]
async fn a_shared_prefix_is_cached_per_resource() {
    let simulator = pair().await;
    let words: String = (0..1000).map(|at| format!("w{at} ")).collect();
    let body = json!({"messages": [{"role": "system", "content": words}, {"role": "user", "content": "hi"}]})
        .to_string();
    let mut cached = Vec::new();
    for name in ["east", "east", "west"] {
        let usage = ask(&simulator, name, post(CHAT, &body)).await.json()["usage"].clone();
        cached.push(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert_eq!(cached, [0, 1280, 0]);
}

/// A client frame, masked as RFC 6455 demands.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x80 | kind, 0x80 | 126];
    frame.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

async fn next(client: &mut Client) -> Value {
    assert!(client.upto(4).await);
    let (start, length) = match client.ahead[1] {
        126 => (4, usize::from(u16::from_be_bytes([client.ahead[2], client.ahead[3]]))),
        short => (2, usize::from(short)),
    };
    assert!(client.upto(start + length).await);
    let frame: Vec<u8> = client.ahead.drain(..start + length).collect();
    serde_json::from_slice(&frame[start..]).unwrap_or(json!({"closed": frame[0] & 15 == 8}))
}

async fn until(client: &mut Client, kind: &str) -> Value {
    loop {
        let event = next(client).await;
        if event["type"] == kind || event["type"] == "error" {
            return event;
        }
    }
}

fn upgrade(target: &str, auth: &str) -> String {
    let key = base64(b"0123456789abcdef");
    format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\n{auth}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
}

#[tokio::test]
async fn websockets_talk_until_their_time_is_up() {
    let simulator = started(Resource { websocket_limit: Duration::from_millis(400), ..east() }).await;
    let mut client = Client::to(simulator.address("east")).await;
    let refused = client.ask(upgrade("/openai/v1/realtime?model=none", "api-key: k\r\n")).await;
    assert_eq!(refused.status, 404);
    assert_eq!(client.ask(upgrade("/openai/v1/realtime?model=gpt-4o&api-key=no", "")).await.status, 401);
    let reply = client.ask(upgrade("/openai/v1/realtime?model=gpt-4o&api-key=k", "")).await;
    assert_eq!(reply.status, 101, "{}", reply.head);
    assert_eq!(next(&mut client).await["type"], "session.created");
    let item = json!({"type": "conversation.item.create", "item": {"content": [{"type": "input_text", "text": "hi"}]}});
    client.send(frame(1, item.to_string().as_bytes())).await;
    client.send(frame(1, br#"{"type":"response.create"}"#)).await;
    let done = until(&mut client, "response.done").await;
    assert_eq!(done["response"]["usage"]["input_tokens"], 2);
    let over = until(&mut client, "error").await;
    assert_eq!(over["error"]["code"], "websocket_connection_limit_reached");
    assert_eq!(next(&mut client).await, json!({"closed": true}));

    let mut client = Client::to(simulator.address("east")).await;
    assert_eq!(client.ask(upgrade(RESPONSES, "Authorization: Bearer k\r\n")).await.status, 101);
    let ask = |more: &str| {
        format!(r#"{{"type":"response.create","model":"gpt-4o","input":"hi","store":false{more}}}"#)
    };
    client.send(frame(1, ask("").as_bytes())).await;
    let done = until(&mut client, "response.completed").await;
    let previous = format!(r#","previous_response_id":{}"#, done["response"]["id"]);
    client.send(frame(1, ask(&previous).as_bytes())).await;
    assert_eq!(until(&mut client, "response.completed").await["type"], "response.completed");
    client.send(frame(8, &1000u16.to_be_bytes())).await;
    assert_eq!(next(&mut client).await, json!({"closed": true}));
    assert!(!client.more().await);
}
