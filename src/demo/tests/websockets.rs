//! The Responses API over a WebSocket: its messages, its state and its frames.

use super::websocket_client::*;
use super::*;

#[tokio::test]
async fn a_responses_websocket_knows_the_latest_response_that_is_not_stored() {
    let simulator = start_simulator(east_resource()).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let first = client.turn(json!({"store": false})).await["response"]["id"].clone();
    let done = client.turn(json!({"store": false, "previous_response_id": first})).await;
    assert!(message_text(&done["response"]).contains("Turn 2; you began with: hi"), "{done}");
    let refused = client.turn(json!({"previous_response_id": first})).await;
    assert_eq!((&refused["status"], &refused["type"]), (&json!(400), &json!("error")));
    assert_eq!(refused["error"]["code"], "previous_response_not_found", "only the latest is kept");
    let other =
        respond(&simulator, "east", json!({"input": "on", "previous_response_id": done["response"]["id"]}))
            .await;
    assert_eq!(other.status, 400, "elsewhere it is unknown");
    let third = client.turn(json!({"store": false, "previous_response_id": done["response"]["id"]})).await;
    assert!(message_text(&third["response"]).contains("Turn 3"), "{third}");
}

#[tokio::test]
async fn a_turn_that_fails_makes_the_websocket_forget_what_it_refers_to() {
    let refusal = Mood::Throttled { retry_after_ms: Some(250), retry_after: Some("1".to_owned()) };
    let mood = Mood::Sequence(vec![Mood::Calm, refusal, Mood::Calm]);
    let simulator = start_simulator_with_mood(mood).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let first = client.turn(json!({"store": false})).await["response"]["id"].clone();
    let parameters = json!({"store": false, "previous_response_id": first});
    let throttled = client.turn(parameters.clone()).await;
    assert_eq!(
        (&throttled["status"], &throttled["error"]["code"]),
        (&json!(429), &json!("RateLimitReached"))
    );
    let headers = &throttled["error"]["headers"];
    assert_eq!((&headers["retry-after-ms"], &headers["retry-after"]), (&json!("250"), &json!("1")));
    assert_eq!(client.turn(parameters).await["error"]["code"], "previous_response_not_found");
}

#[tokio::test]
async fn a_responses_websocket_knows_its_own_responses_without_a_lag() {
    let read_lag = Duration::from_secs(1);
    let simulator = start_simulator(SimulatedResource { read_lag, ..east_resource() }).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let created = client.turn(json!({})).await["response"].clone();
    let path = format!("/responses/{}", created["id"].as_str().unwrap());
    assert_eq!(get(&simulator, "east", &path).await.status, 404, "elsewhere it lags");
    let done = client.turn(json!({"input": "on", "previous_response_id": created["id"]})).await;
    assert!(message_text(&done["response"]).contains("Turn 2"), "{done}");
    wait_for_status(&simulator, &path, &["completed"]).await;
}

#[tokio::test]
async fn a_warm_up_has_no_output_and_can_be_continued() {
    let simulator = start_simulator(east_resource()).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let warm = client.turn(json!({"store": false, "generate": false, "instructions": "be brief"})).await;
    assert_eq!(warm["response"]["status"], "completed");
    assert_eq!(warm["response"]["output"], json!([]));
    assert_eq!(warm["response"]["usage"]["output_tokens"], 0);
    let id = &warm["response"]["id"];
    let done = client.turn(json!({"store": false, "input": "on", "previous_response_id": id})).await;
    assert!(message_text(&done["response"]).contains("you began with: hi"), "{done}");
}

#[tokio::test]
async fn the_same_script_uses_the_same_tokens_over_http_and_over_a_websocket() {
    let script = ["first words", "and then some more of them", "the end"];
    let mut usages: Vec<Vec<Value>> = Vec::new();
    let simulator = start_simulator(east_resource()).await;
    let mut previous = Value::Null;
    usages.push(Vec::new());
    for input in script {
        let body = json!({"input": input, "previous_response_id": previous});
        let response = respond(&simulator, "east", body).await.json();
        previous = response["id"].clone();
        usages[0].push(response["usage"].clone());
    }
    let simulator = start_simulator(east_resource()).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let mut previous = Value::Null;
    usages.push(Vec::new());
    for input in script {
        let done = client.turn(json!({"input": input, "previous_response_id": previous})).await;
        previous = done["response"]["id"].clone();
        usages[1].push(done["response"]["usage"].clone());
    }
    assert_eq!(usages[0], usages[1]);
}

#[tokio::test]
async fn a_turn_is_charged_and_limited_like_a_request() {
    let limited = DeploymentKind::Standard { tokens_per_minute: 60_000, requests_per_minute: Some(12) };
    let resource = SimulatedResource { deployments: Vec::new(), ..east_resource() };
    let simulator = start_simulator(resource.with_deployment("gpt-4o", "gpt-4o", limited)).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(client.turn(json!({})).await["status"].clone());
    }
    assert_eq!(statuses, [Value::Null, Value::Null, json!(429)], "the handshake is not limited");
    assert_eq!(respond(&simulator, "east", json!({"input": "hi"})).await.status, 429);
}

#[tokio::test]
async fn turns_run_one_after_the_other_while_messages_are_read() {
    let timing = ResponseTiming { event_interval: Duration::from_millis(5), ..ResponseTiming::default() };
    let simulator = start_simulator(SimulatedResource { timing, ..east_resource() }).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    for input in ["one", "two"] {
        client.send(&create(&json!({"input": input}))).await;
    }
    let id = client.event().await["response"]["id"].clone();
    client.send_bytes(&client_frame(PING, b"now")).await;
    client.send(&json!({"type": "response.processed", "response_id": id})).await;
    client.send(&json!({"type": "response.inject", "response_id": id, "input": []})).await;
    let mut numbers = vec![0];
    let (mut has_pong, mut has_injected) = (false, false);
    loop {
        match client.receive().await {
            Received::Pong(payload) => has_pong = payload == b"now",
            Received::Event(event) => {
                numbers.push(event["sequence_number"].as_u64().unwrap());
                has_injected |= event["type"] == "response.inject.created" && event["response_id"] == id;
                if event["type"] == "response.completed" {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(has_pong && has_injected, "the turn goes on meanwhile");
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<u64>>());
    let second = client.events_of_turn().await;
    assert_eq!(second[0]["type"], "response.created");
    assert!(message_text(&second.last().unwrap()["response"]).contains("two"));

    client.send(&json!({"type": "response.inject", "response_id": id, "input": [{"x": 1}]})).await;
    let failed = client.event_of_type("response.inject.failed").await;
    assert_eq!(failed["error"]["code"], "response_already_completed");
    assert_eq!(failed["input"], json!([{"x": 1}]));
    client.send(&json!({"type": "response.inject", "response_id": "resp_x", "input": []})).await;
    assert_eq!(client.event_of_type("response.inject.failed").await["error"]["code"], "response_not_found");
}

#[tokio::test]
async fn a_turn_can_be_cancelled() {
    let mood = Mood::Sequence(vec![
        Mood::Silence { after_events: 2, duration: Duration::from_secs(60) },
        Mood::Calm,
    ]);
    let simulator = start_simulator_with_mood(mood).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client.send(&create(&json!({}))).await;
    let id = client.event_of_type("response.in_progress").await["response"]["id"].clone();
    client.send(&json!({"type": "response.cancel", "response_id": "resp_x"})).await;
    assert_eq!(client.event_of_type("error").await["error"]["code"], "response_cancel_not_active");
    client.send(&json!({"type": "response.cancel", "response_id": id})).await;
    let cancelled = client.event_of_type("response.incomplete").await;
    assert_eq!((&cancelled["response"]["status"], &cancelled["response"]["id"]), (&json!("cancelled"), &id));
    let path = format!("/responses/{}", id.as_str().unwrap());
    assert_eq!(get(&simulator, "east", &path).await.status, 404);
    assert_eq!(client.turn(json!({})).await["type"], "response.completed", "the WebSocket goes on");
}

#[tokio::test]
async fn messages_that_are_none_are_refused_and_the_websocket_stays_open() {
    let simulator = start_simulator(east_resource()).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let cases = [
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        (r#"{"type":"response.nothing"}"#, "invalid_value"),
        (r#"{"input":"hi"}"#, "invalid_value"),
    ];
    for (message, code) in cases {
        client.send_bytes(&client_frame(TEXT, message.as_bytes())).await;
        let refused = client.event().await;
        assert_eq!((&refused["status"], &refused["error"]["code"]), (&json!(400), &json!(code)), "{message}");
    }
    let cases = [
        (json!({"model": "none"}), 404, "DeploymentNotFound"),
        (json!({"stream_id": "a"}), 400, "unknown_parameter"),
    ];
    for (parameters, status, code) in cases {
        let refused = client.turn(parameters).await;
        assert_eq!((&refused["status"], &refused["error"]["code"]), (&json!(status), &json!(code)));
    }
    assert_eq!(client.turn(json!({"background": true})).await["error"]["param"], "background");
    assert_eq!(client.turn(json!({})).await["type"], "response.completed");
}

#[tokio::test]
async fn frames_that_no_client_may_send_close_the_websocket() {
    let simulator = start_simulator(east_resource()).await;
    let unmasked = vec![TEXT, 2, b'{', b'}'];
    let compressed = client_frame(0xc1, b"{}");
    let long_ping = client_frame(PING, &[b'x'; 126]);
    let twice = [client_frame(0x01, b"{"), client_frame(TEXT, b"{}")].concat();
    let invalid_text = client_frame(TEXT, &[0xff]);
    let huge = [vec![TEXT, 0x80 | 127], vec![0xff; 8]].concat();
    let cases = [
        (unmasked, 1002),
        (compressed, 1002),
        (long_ping, 1002),
        (twice, 1002),
        (client_frame(CONTINUATION, b"{}"), 1002),
        (client_frame(0x82, b"{}"), 1003),
        (invalid_text, 1007),
        (huge, 1009),
        (client_frame(CLOSE, &1000u16.to_be_bytes()), 1000),
    ];
    for (bytes, code) in cases {
        let mut client = SocketClient::open_responses(&simulator, "").await;
        client.send_bytes(&bytes).await;
        assert_eq!(client.receive().await, Received::Close(code), "{bytes:x?}");
        assert_eq!(client.receive().await, Received::End);
    }
}

#[tokio::test]
async fn messages_may_be_long_and_come_in_parts() {
    let simulator = start_simulator(east_resource()).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let message = create(&json!({"input": "x".repeat(200_000)})).to_string();
    let (first, second) = message.as_bytes().split_at(70_000);
    client.send_bytes(&client_frame(0x01, first)).await;
    client.send_bytes(&client_frame(PING, b"between")).await;
    client.send_bytes(&client_frame(CONTINUATION, second)).await;
    assert_eq!(client.receive().await, Received::Pong(b"between".to_vec()));
    assert_eq!(client.events_of_turn().await.last().unwrap()["type"], "response.completed");
}

#[tokio::test]
async fn a_websocket_expires_between_two_turns() {
    let timing = ResponseTiming { event_interval: Duration::from_millis(20), ..ResponseTiming::default() };
    let lifetime = Duration::from_millis(100);
    let resource = SimulatedResource { timing, max_websocket_lifetime: lifetime, ..east_resource() };
    let simulator = start_simulator(resource).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client
        .send(&create(&json!({"input": "as many words as it takes to stream for longer than it may stay"})))
        .await;
    client.send(&create(&json!({}))).await;
    let events = client.events_of_turn().await;
    assert_eq!(events.last().unwrap()["type"], "response.completed", "the turn under way ends");
    let expired = client.event().await;
    assert_eq!(
        (&expired["status"], &expired["error"]["code"]),
        (&json!(400), &json!("websocket_connection_limit_reached"))
    );
    assert_eq!(client.receive().await, Received::Close(1001));
    assert_eq!(client.receive().await, Received::End);
}
