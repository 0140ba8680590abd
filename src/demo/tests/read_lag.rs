//! The time during which a streamed response is not found after its stream has ended.

use super::*;

const LAG: Duration = Duration::from_millis(1500);

/// Streams a response, and returns its last event's response object.
async fn stream(simulator: &Simulator, parameters: Value) -> Value {
    let mut body = json!({"input": "hello", "stream": true});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    respond(simulator, "east", body).await.events().last().unwrap()["response"].clone()
}

async fn is_readable(simulator: &Simulator, response: &Value) -> bool {
    get(simulator, "east", &format!("/responses/{}", response["id"].as_str().unwrap())).await.status == 200
}

#[tokio::test]
async fn a_streamed_response_and_its_items_are_found_after_the_lag() {
    let simulator = start_simulator(SimulatedResource { read_lag: LAG, ..east_resource() }).await;
    let plain = respond(&simulator, "east", json!({"input": "hello"})).await.json();
    assert!(is_readable(&simulator, &plain).await, "only streamed responses lag");

    let before = Instant::now();
    let streamed = stream(&simulator, json!({"reasoning": {"effort": "low"}})).await;
    let path = format!("/responses/{}", streamed["id"].as_str().unwrap());
    let follow_up = json!({"input": "on", "previous_response_id": streamed["id"]});
    let reference = json!({"input": [{"type": "item_reference", "id": streamed["output"][1]["id"]}]});
    let reasoning = json!({"input": [streamed["output"][0], {"role": "user", "content": "on"}]});
    let refused = respond(&simulator, "east", follow_up.clone()).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].clone()),
        (400, json!("previous_response_not_found"))
    );
    for body in [&reference, &reasoning] {
        let refused = respond(&simulator, "east", body.clone()).await;
        assert_eq!(refused.status, 404);
        assert!(refused.json()["error"]["message"].as_str().unwrap().ends_with("' not found."));
    }
    for suffix in ["", "?stream=true", "/input_items"] {
        assert_eq!(get(&simulator, "east", &format!("{path}{suffix}")).await.status, 404, "{suffix}");
    }
    assert_eq!(delete(&simulator, "east", &path).await.status, 404);

    while !is_readable(&simulator, &streamed).await {
        assert!(before.elapsed() < RESPONSE_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(before.elapsed() >= LAG);
    for body in [follow_up, reference, reasoning] {
        assert_eq!(respond(&simulator, "east", body).await.status, 200);
    }
    assert_eq!(delete(&simulator, "east", &path).await.status, 200);
}

#[tokio::test]
async fn the_lag_counts_from_the_end_of_the_stream_even_if_the_client_leaves() {
    let lag = Duration::from_millis(50);
    let simulator = start_simulator(SimulatedResource { read_lag: lag, ..east_resource() }).await;
    simulator.set_mood("east", Mood::Silence { after_events: 3, duration: Duration::from_secs(60) });
    let body = json!({"model": "gpt-4o", "input": "hello", "stream": true}).to_string();
    let mut client = TestClient::connect(simulator.address("east")).await;
    client.send(post_request("/openai/v1/responses", &body)).await;
    let created = loop {
        let text = String::from_utf8_lossy(&client.buffer).into_owned();
        if let Some(line) =
            text.split_inclusive('\n').find(|line| line.starts_with("data: ") && line.ends_with('\n'))
        {
            break serde_json::from_str::<Value>(&line[6..]).unwrap()["response"].clone();
        }
        assert!(client.read_more().await);
    };
    simulator.set_mood("east", Mood::Calm);
    let start = Instant::now();
    while start.elapsed() < lag * 4 {
        assert!(!is_readable(&simulator, &created).await, "it is still being streamed");
        tokio::task::yield_now().await;
    }
    drop(client);
    while !is_readable(&simulator, &created).await {
        assert!(start.elapsed() < RESPONSE_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_lag_can_be_changed_at_run_time_and_for_one_request() {
    let simulator = start_simulator(SimulatedResource { allows_mood_header: true, ..east_resource() }).await;
    let streamed = stream(&simulator, json!({})).await;
    assert!(is_readable(&simulator, &streamed).await, "without a lag");
    simulator.set_read_lag("east", Duration::from_secs(60));
    let hidden = stream(&simulator, json!({})).await;
    let background = stream(&simulator, json!({"background": true})).await;
    simulator.set_read_lag("east", Duration::ZERO);
    assert!(!is_readable(&simulator, &hidden).await, "it was streamed under the earlier lag");
    assert!(is_readable(&simulator, &background).await, "clients resume background responses while they run");
    let body = json!({"model": "gpt-4o", "input": "hello", "stream": true}).to_string();
    let request = post_request("/openai/v1/responses", &body).replacen(
        "api-key",
        "x-simulate: read_lag: 60s\r\napi-key",
        1,
    );
    let events = send_to(&simulator, "east", request).await.events();
    assert!(!is_readable(&simulator, &events.last().unwrap()["response"]).await);
    let streamed = stream(&simulator, json!({})).await;
    assert!(is_readable(&simulator, &streamed).await, "only the one request lagged");
}
