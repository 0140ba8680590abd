//! The Realtime API and the Responses API over a WebSocket.

use super::*;
use crate::demo::util::encoding::base64_encode;

/// A frame of a client, masked as RFC 6455 section 5.3 demands.
fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x80 | opcode, 0x80 | 126];
    frame.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The JSON of the next message; `{"closed": true}` for a close frame.
async fn next_event(client: &mut TestClient) -> Value {
    assert!(client.buffer_at_least(4).await);
    let (start, length) = match client.buffer[1] {
        126 => (4, usize::from(u16::from_be_bytes([client.buffer[2], client.buffer[3]]))),
        short => (2, usize::from(short)),
    };
    assert!(client.buffer_at_least(start + length).await);
    let frame: Vec<u8> = client.buffer.drain(..start + length).collect();
    serde_json::from_slice(&frame[start..]).unwrap_or(json!({"closed": frame[0] & 15 == 8}))
}

/// Skips events until one of this type, or an error.
async fn next_event_of_type(client: &mut TestClient, event_type: &str) -> Value {
    loop {
        let event = next_event(client).await;
        if event["type"] == event_type || event["type"] == "error" {
            return event;
        }
    }
}

/// A WebSocket handshake. `auth` is a header line, or empty.
fn upgrade_request(target: &str, auth: &str) -> String {
    let key = base64_encode(b"0123456789abcdef");
    format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\n{auth}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_realtime_websocket_is_closed_after_its_maximum_lifetime() {
    let simulator = start_simulator(SimulatedResource {
        max_websocket_lifetime: Duration::from_millis(400),
        ..east_resource()
    })
    .await;
    let mut client = TestClient::connect(simulator.address("east")).await;
    let refused =
        client.round_trip(upgrade_request("/openai/v1/realtime?model=none", "api-key: k\r\n")).await;
    assert_eq!(refused.status, 404);
    assert_eq!(
        client.round_trip(upgrade_request("/openai/v1/realtime?model=gpt-4o&api-key=no", "")).await.status,
        401
    );
    let response = client.round_trip(upgrade_request("/openai/v1/realtime?model=gpt-4o&api-key=k", "")).await;
    assert_eq!(response.status, 101, "{}", response.head);
    assert_eq!(next_event(&mut client).await["type"], "session.created");
    let item = json!({"type": "conversation.item.create", "item": {"content": [{"type": "input_text", "text": "hi"}]}});
    client.send(client_frame(1, item.to_string().as_bytes())).await;
    client.send(client_frame(1, br#"{"type":"response.create"}"#)).await;
    let done = next_event_of_type(&mut client, "response.done").await;
    assert_eq!(done["response"]["usage"]["input_tokens"], 2);
    let expired = next_event_of_type(&mut client, "error").await;
    assert_eq!(expired["error"]["code"], "websocket_connection_limit_reached");
    assert_eq!(next_event(&mut client).await, json!({"closed": true}));
}

#[tokio::test]
async fn a_responses_websocket_remembers_responses_that_are_not_stored() {
    let simulator = start_simulator(east_resource()).await;
    let mut client = TestClient::connect(simulator.address("east")).await;
    assert_eq!(
        client
            .round_trip(upgrade_request("/openai/v1/responses", "Authorization: Bearer k\r\n"))
            .await
            .status,
        101
    );
    let create_message = |more: &str| {
        format!(r#"{{"type":"response.create","model":"gpt-4o","input":"hi","store":false{more}}}"#)
    };
    client.send(client_frame(1, create_message("").as_bytes())).await;
    let done = next_event_of_type(&mut client, "response.completed").await;
    let previous = format!(r#","previous_response_id":{}"#, done["response"]["id"]);
    client.send(client_frame(1, create_message(&previous).as_bytes())).await;
    let done = next_event_of_type(&mut client, "response.completed").await;
    assert!(message_text(&done["response"]).contains("Turn 2; you began with: hi"), "{done}");
    let message =
        r#"{"type":"response.create","model":"gpt-4o","input":"hi","previous_response_id":"resp_x"}"#;
    client.send(client_frame(1, message.as_bytes())).await;
    let refused = next_event_of_type(&mut client, "error").await;
    assert_eq!(
        (refused["status"].clone(), refused["error"]["code"].clone()),
        (json!(400), json!("previous_response_not_found"))
    );
    client.send(client_frame(8, &1000u16.to_be_bytes())).await;
    assert_eq!(next_event(&mut client).await, json!({"closed": true}));
    assert!(!client.read_more().await);
}

#[tokio::test]
async fn a_responses_websocket_knows_its_own_responses_without_a_lag() {
    let read_lag = Duration::from_secs(1);
    let simulator = start_simulator(SimulatedResource { read_lag, ..east_resource() }).await;
    let mut client = TestClient::connect(simulator.address("east")).await;
    client.round_trip(upgrade_request("/openai/v1/responses", "api-key: k\r\n")).await;
    client.send(client_frame(1, br#"{"type":"response.create","model":"gpt-4o","input":"hi"}"#)).await;
    let created = next_event_of_type(&mut client, "response.completed").await["response"].clone();
    let follow_up = json!({"type": "response.create", "model": "gpt-4o", "input": "on", "previous_response_id": created["id"]});
    let path = format!("/responses/{}", created["id"].as_str().unwrap());
    assert_eq!(get(&simulator, "east", &path).await.status, 404, "elsewhere it lags");
    client.send(client_frame(1, follow_up.to_string().as_bytes())).await;
    let done = next_event_of_type(&mut client, "response.completed").await;
    assert!(message_text(&done["response"]).contains("Turn 2"), "{done}");
    wait_for_status(&simulator, &path, &["completed"]).await;
}
