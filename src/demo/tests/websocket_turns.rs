//! What moods and lanes do to the turns of a Responses WebSocket, and how they are logged.

use super::websocket_client::*;
use super::*;
use crate::demo::{BodyPosition, ErrorEventOrder, SimulatedError};

async fn start_with_lanes(mood: Mood) -> Simulator {
    start_simulator(SimulatedResource { accepts_stream_ids: true, ..east_resource().with_mood(mood) }).await
}

#[tokio::test]
async fn a_handshake_has_only_moods_that_are_about_connections() {
    let refused = Mood::Refuses(SimulatedError::Unavailable);
    let early = Mood::EarlyAnswer { error: SimulatedError::Status(429), closes_connection: true };
    let mood = Mood::Sequence(vec![Mood::Refuses(SimulatedError::Firewall), early, refused, Mood::Calm]);
    let simulator = start_simulator_with_mood(mood).await;
    let handshake = upgrade_request("/openai/v1/responses", "api-key: k\r\n");
    assert_eq!(send_once(&simulator, &handshake).await.status, 403);
    assert_eq!(send_once(&simulator, &handshake).await.status, 429);
    let mut client = SocketClient::open_responses(&simulator, "").await;
    let first = client.turn(json!({})).await;
    assert_eq!((&first["type"], &first["status"]), (&json!("error"), &json!(503)));
    assert_eq!(client.turn(json!({})).await["type"], "response.completed");
}

#[tokio::test]
async fn a_header_of_the_handshake_chooses_the_mood_of_its_turns() {
    let simulator = start_simulator(SimulatedResource { allows_mood_header: true, ..east_resource() }).await;
    let mut client = SocketClient::open_responses(&simulator, "x-simulate: throttled\r\n").await;
    for _ in 0..2 {
        assert_eq!(client.turn(json!({})).await["status"], 429);
    }
    let refused = upgrade_request("/openai/v1/responses", "api-key: k\r\nx-simulate: refuses: firewall\r\n");
    assert_eq!(send_once(&simulator, refused).await.status, 403);
}

#[tokio::test]
async fn moods_end_turns_as_they_end_streams() {
    let types = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    };
    let error_first = |event_order| Mood::ErrorFirst { event_order, retry_after: Some("7".to_owned()) };
    let cases = [
        (error_first(ErrorEventOrder::ErrorAlone), vec!["error"]),
        (error_first(ErrorEventOrder::CreatedErrorFailed), vec!["response.created", "error"]),
        (error_first(ErrorEventOrder::FailedThenError), vec!["response.created", "response.failed", "error"]),
        (Mood::HighDemand, vec!["error"]),
        (Mood::Refuses(SimulatedError::ServerErrorHtml), vec!["error"]),
    ];
    for (mood, expected) in cases {
        let simulator = start_simulator_with_mood(mood.clone()).await;
        let mut client = SocketClient::open_responses(&simulator, "").await;
        client.send(&create(&json!({}))).await;
        let events = client.events_of_turn().await;
        assert_eq!(types(&events), expected, "{mood:?}");
        let error = &events.last().unwrap()["error"];
        assert!(error["message"].is_string() && error["code"].is_string(), "{mood:?}: {error}");
        if matches!(mood, Mood::ErrorFirst { .. }) {
            assert_eq!(error["headers"]["retry-after"], "7");
        }
    }
}

#[tokio::test]
async fn moods_cut_a_websocket_off_within_a_turn() {
    let after = BodyPosition::Events(3);
    let cases = [
        (Mood::ResetMidBody { after }, 3),
        (Mood::CloseMidStream { after }, 3),
        (Mood::ResetMidBody { after: BodyPosition::Events(0) }, 0),
        (Mood::CloseMidStream { after: BodyPosition::Bytes(20) }, 0),
    ];
    for (mood, count) in cases {
        let simulator = start_simulator_with_mood(mood.clone()).await;
        let mut client = SocketClient::open_responses(&simulator, "").await;
        client.send(&create(&json!({}))).await;
        for _ in 0..count {
            client.event().await;
        }
        assert_eq!(client.receive().await, Received::End, "{mood:?}");
    }
    let simulator = start_simulator_with_mood(Mood::TruncatedLength { missing_bytes: 9 }).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client.send(&create(&json!({}))).await;
    let mut last = Value::Null;
    while let Received::Event(event) = client.receive().await {
        last = event;
    }
    assert_eq!(last["type"], "response.output_item.done", "the frame of the last event is cut off");
}

#[tokio::test]
async fn moods_change_the_pace_and_the_frames_of_a_turn() {
    let pause = Duration::from_millis(100);
    let paused = [
        Mood::SlowFirstByte(pause),
        Mood::After(pause, Box::new(Mood::Calm)),
        Mood::Silence { after_events: 3, duration: pause },
    ];
    for mood in paused {
        let simulator = start_simulator_with_mood(mood.clone()).await;
        let mut client = SocketClient::open_responses(&simulator, "").await;
        let began = Instant::now();
        assert_eq!(client.turn(json!({})).await["type"], "response.completed");
        assert!(began.elapsed() >= pause, "{mood:?}");
    }
    let simulator = start_simulator_with_mood(Mood::InfoFlood(2)).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client.send(&create(&json!({}))).await;
    assert_eq!([client.receive().await, client.receive().await], [Received::Ping, Received::Ping]);
    let simulator = start_simulator_with_mood(Mood::TinyWrites).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    assert_eq!(client.turn(json!({})).await["type"], "response.completed");
    let simulator = start_simulator_with_mood(Mood::CleanEndWithoutTerminal).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client.send(&create(&json!({}))).await;
    client.event_of_type("response.output_item.done").await;
    client.send(&json!({"type": "response.cancel"})).await;
    assert_eq!(client.event().await["error"]["code"], "response_cancel_not_active", "the turn has ended");
}

#[tokio::test]
async fn turns_of_different_lanes_run_at_the_same_time() {
    let stalled = Mood::Silence { after_events: 1, duration: Duration::from_secs(60) };
    let mood = Mood::Sequence(vec![stalled, Mood::Calm]);
    let simulator = start_with_lanes(mood).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client.send(&create(&json!({"stream_id": "a", "store": false}))).await;
    assert_eq!(client.event().await["stream_id"], "a");
    client.send(&create(&json!({"stream_id": "a", "input": "waits"}))).await;
    let done = client.turn(json!({"stream_id": "b", "store": false, "input": "bee"})).await;
    assert_eq!((&done["type"], &done["stream_id"]), (&json!("response.completed"), &json!("b")));
    let unnamed = client.turn(json!({})).await;
    assert_eq!((&unnamed["type"], &unnamed["stream_id"]), (&json!("response.completed"), &Value::Null));
    let fork = json!({"stream_id": "c", "store": false, "previous_response_id": done["response"]["id"]});
    let forked = client.turn(fork.clone()).await;
    assert!(message_text(&forked["response"]).contains("Turn 2; you began with: bee"), "{forked}");
    client.turn(json!({"stream_id": "b", "store": false})).await;
    assert_eq!(client.turn(fork).await["error"]["code"], "previous_response_not_found", "b has gone on");
    client.send(&json!({"type": "response.cancel"})).await;
    assert_eq!(client.event_of_type("response.incomplete").await["stream_id"], "a");
    let next = client.events_of_turn().await;
    assert!(message_text(&next.last().unwrap()["response"]).contains("waits"), "in the order of its lane");
}

#[tokio::test]
async fn a_websocket_has_a_limited_number_of_lanes_and_of_turns_at_a_time() {
    let simulator = start_with_lanes(Mood::Calm).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    for invalid in [json!(""), json!("a b"), json!("x".repeat(257)), json!(7)] {
        let refused = client.turn(json!({"stream_id": invalid})).await;
        assert_eq!(refused["error"]["param"], "stream_id");
    }
    for number in 0..32 {
        let done = client.turn(json!({"stream_id": format!("lane-{number}")})).await;
        assert_eq!(done["type"], "response.completed", "{done}");
    }
    let refused = client.turn(json!({"stream_id": "one_more"})).await;
    assert_eq!(refused["error"]["code"], "websocket_stream_limit_reached");
    assert_eq!(client.turn(json!({})).await["type"], "response.completed");

    let stalled = Mood::Silence { after_events: 1, duration: Duration::from_secs(60) };
    let simulator = start_with_lanes(stalled).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    for number in 0..17 {
        client.send(&create(&json!({"stream_id": format!("lane-{number}")}))).await;
    }
    let mut first = Value::Null;
    for _ in 0..16 {
        let created = client.event().await;
        assert_eq!(created["type"], "response.created");
        first = created["response"]["id"].clone();
    }
    client.send(&json!({"type": "response.cancel", "response_id": first})).await;
    assert_eq!(client.event().await["type"], "response.incomplete");
    assert_eq!(client.event().await["stream_id"], "lane-16", "it has waited for one of them to end");
}

#[tokio::test]
async fn a_response_is_steered_by_a_successor() {
    let timing = ResponseTiming { event_interval: Duration::from_millis(2), ..ResponseTiming::default() };
    let resource = SimulatedResource { timing, accepts_stream_ids: true, ..east_resource() };
    let simulator = start_simulator(resource).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client.send(&create(&json!({"stream_id": "a", "store": false}))).await;
    let id = client.event().await["response"]["id"].clone();
    let steer = json!({"type": "response.steer", "previous_response_id": id, "input": "rather this"});
    client.send(&steer).await;
    let accepted = client.event_of_type("response.steer.accepted").await;
    assert_eq!((&accepted["steer"]["previous_response_id"], &accepted["stream_id"]), (&id, &json!("a")));
    assert_eq!(client.event_of_type("response.completed").await["response"]["id"], id);
    let successor = client.events_of_turn().await;
    assert_eq!(successor[0]["response"]["previous_response_id"], id);
    assert!(message_text(&successor.last().unwrap()["response"]).contains("rather this"));
    client.send(&steer).await;
    let failed = client.event_of_type("response.steer.failed").await;
    assert_eq!(failed["steer"]["input"], "rather this");

    let simulator = start_simulator(east_resource()).await;
    let mut client = SocketClient::open_responses(&simulator, "").await;
    client.send(&steer).await;
    assert_eq!(
        client.event_of_type("response.steer.failed").await["error"]["code"],
        "steering_not_supported"
    );
}

#[tokio::test]
async fn turns_are_logged_as_requests_that_came_over_a_websocket() {
    let stalled = Mood::Silence { after_events: 1, duration: Duration::from_secs(60) };
    let refused = Mood::Refuses(SimulatedError::Unavailable);
    let resource = east_resource().with_recorded_request_bodies();
    let simulator =
        start_simulator(resource.with_mood(Mood::Sequence(vec![Mood::Calm, refused, stalled]))).await;
    let mut client = SocketClient::open_responses(&simulator, "X-Trace: t\r\n").await;
    client.turn(json!({})).await;
    client.turn(json!({})).await;
    client.send(&create(&json!({"input": "last"}))).await;
    client.event().await;
    drop(client);
    let has_ended = |requests: &[super::super::LoggedRequest]| {
        requests.len() == 4
            && requests.iter().all(|request| request.client_disconnected || request.is_response_complete)
    };
    assert!(simulator.wait_for_requests("east", RESPONSE_TIMEOUT, has_ended).await);
    assert_eq!(simulator.request_count("east"), 4);
    let requests = simulator.received_requests("east");
    let summary: Vec<_> = requests
        .iter()
        .map(|request| (request.method.as_str(), request.is_websocket_turn, request.response_status))
        .collect();
    let turn = |status| ("WEBSOCKET", true, Some(status));
    assert_eq!(summary, [("GET", false, Some(101)), turn(200), turn(503), turn(200)]);
    assert!(requests[3].client_disconnected && requests[1].is_response_complete);
    assert_eq!(requests[3].header("x-trace"), Some("t"));
    assert!(requests.iter().all(|request| request.connection_number == 1));
    let body: Value = serde_json::from_slice(requests[3].body.as_ref().unwrap()).unwrap();
    assert_eq!(body, create(&json!({"input": "last"})));
}
