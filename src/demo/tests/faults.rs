//! Moods, as a client sees them.

use std::collections::HashMap;
use std::time::Instant;

use super::*;
use crate::demo::{BodyPosition, ErrorEventOrder, LoggedRequest, SimulatedError};

const RESPONSES_TARGET: &str = "/openai/v1/responses";
const STREAMING_RESPONSES_BODY: &str = r#"{"model":"gpt-4o","input":"hello there","stream":true}"#;

#[tokio::test]
async fn each_error_has_the_shape_that_azure_gives_it() {
    let throttled = Mood::Throttled { retry_after_ms: Some(1500), retry_after: Some("2".to_owned()) };
    let cases = [
        (throttled, 429, "rate limit"),
        (Mood::HighDemand, 429, "high demand"),
        (Mood::Refuses(SimulatedError::ContentFilter), 400, "ResponsibleAIPolicyViolation"),
        (Mood::Refuses(SimulatedError::ContextLengthExceeded), 400, "context_length_exceeded"),
        (Mood::Refuses(SimulatedError::Firewall), 403, "Firewall"),
        (Mood::Refuses(SimulatedError::Timeout), 408, "Timeout"),
        (Mood::Refuses(SimulatedError::FailedDependency), 424, "424"),
        (Mood::Refuses(SimulatedError::BadGateway), 502, "<html>"),
        (Mood::Refuses(SimulatedError::Unavailable), 503, "temporarily"),
        (Mood::Refuses(SimulatedError::Status(418)), 418, "simulated"),
    ];
    let simulator = start_simulator(east_resource()).await;
    for (mood, status, text) in cases {
        simulator.set_mood("east", mood.clone());
        let response = send_once(&simulator, post_request(CHAT_TARGET, CHAT_BODY)).await;
        assert_eq!(response.status, status, "{mood:?}");
        assert!(response.text().contains(text), "{mood:?}: {}", response.text());
        let retry_after = (response.header("retry-after-ms"), response.header("retry-after"));
        let expected =
            if matches!(mood, Mood::Throttled { .. }) { (Some("1500"), Some("2")) } else { (None, None) };
        assert_eq!(retry_after, expected, "{mood:?}");
    }
}

#[tokio::test]
async fn flex_requests_alone_are_throttled_by_their_mood() {
    let simulator = start_simulator_with_mood(Mood::FlexThrottled { retry_after_ms: Some(700) }).await;
    for (body, status, retry_after) in [
        (r#"{"model":"gpt-4o","input":"hi","service_tier":"flex"}"#, 429, Some("700")),
        (r#"{"model":"gpt-4o","input":"hi","service_tier":"default"}"#, 200, None),
        (r#"{"model":"gpt-4o","input":"hi"}"#, 200, None),
    ] {
        let response = send_once(&simulator, post_request(RESPONSES_TARGET, body)).await;
        assert_eq!((response.status, response.header("retry-after-ms")), (status, retry_after), "{body}");
    }
}

#[tokio::test]
async fn moods_can_follow_each_other_and_depend_on_the_deployment() {
    let sequence = Mood::Sequence(vec![Mood::Refuses(SimulatedError::ServerError), Mood::Calm]);
    let moods = HashMap::from([("gpt-4o".to_owned(), sequence)]);
    let simulator = start_simulator_with_mood(Mood::PerDeployment {
        moods_by_deployment: moods,
        default_mood: Box::new(Mood::HighDemand),
    })
    .await;
    let v1 = |model: &str| {
        post_request(
            "/openai/v1/chat/completions",
            &CHAT_BODY.replacen('{', &format!("{{\"model\":\"{model}\","), 1),
        )
    };
    let mut client = TestClient::connect(simulator.address("east")).await;
    assert_eq!(client.round_trip(post_request(CHAT_TARGET, CHAT_BODY)).await.status, 500);
    assert_eq!(client.round_trip(v1("other")).await.status, 429);
    assert_eq!(client.round_trip(v1("gpt-4o")).await.status, 200);
    assert_eq!(client.round_trip(post_request(CHAT_TARGET, CHAT_BODY)).await.status, 200);
}

#[tokio::test]
async fn connections_are_cut_off_at_the_position_that_the_mood_names() {
    let simulator = start_simulator(east_resource()).await;
    for (mood, is_reset) in
        [(Mood::ResetBeforeHead, true), (Mood::CloseBeforeHead, false), (Mood::ResetOnAccept, true)]
    {
        simulator.set_mood("east", mood.clone());
        let mut client = TestClient::connect(simulator.address("east")).await;
        if client.stream.write_all(post_request(CHAT_TARGET, CHAT_BODY).as_bytes()).await.is_ok() {
            let read = client.stream.read_buf(&mut client.buffer).await;
            assert_eq!(read.is_err(), is_reset, "{mood:?}: {read:?}");
            assert!(client.buffer.is_empty());
        }
    }
    // (mood, number of events, whether the framing is complete)
    let cases = [
        (Mood::ResetMidBody { after: BodyPosition::Events(4) }, 4, false),
        (Mood::CloseMidStream { after: BodyPosition::Events(4) }, 4, false),
        (Mood::TruncatedLength { missing_bytes: 10 }, 16, false),
        (Mood::CleanEndWithoutTerminal, 16, true),
        (Mood::TinyWrites, 16, true),
        (Mood::Http10Close, 16, true),
    ];
    for (mood, event_count, is_complete) in cases {
        simulator.set_mood("east", mood.clone());
        let response = send_once(&simulator, post_request(CHAT_TARGET, STREAMING_CHAT_BODY)).await;
        assert_eq!((response.status, response.is_complete), (200, is_complete), "{mood:?}");
        assert_eq!(response.events().len(), event_count, "{mood:?}");
        let has_done_event =
            matches!(mood, Mood::TruncatedLength { .. } | Mood::TinyWrites | Mood::Http10Close);
        assert_eq!(response.text().ends_with("[DONE]\n\n"), has_done_event, "{mood:?}");
        assert_eq!(response.head.starts_with("HTTP/1.0"), mood == Mood::Http10Close);
    }
    simulator.set_mood("east", Mood::ResetMidBody { after: BodyPosition::Bytes(30) });
    let response = send_once(&simulator, post_request(CHAT_TARGET, CHAT_BODY)).await;
    assert_eq!((response.body.len(), response.is_complete), (30, false));
}

#[tokio::test]
async fn a_stream_with_status_200_can_contain_an_error() {
    let simulator = start_simulator(east_resource()).await;
    let orders = [
        (ErrorEventOrder::CreatedErrorFailed, vec!["response.created", "error", "response.failed"]),
        (ErrorEventOrder::ErrorAlone, vec!["error"]),
        (ErrorEventOrder::FailedThenError, vec!["response.created", "response.failed", "error"]),
    ];
    for (order, types) in orders {
        simulator
            .set_mood("east", Mood::ErrorFirst { event_order: order, retry_after: Some("4".to_owned()) });
        let response = send_once(&simulator, post_request(RESPONSES_TARGET, STREAMING_RESPONSES_BODY)).await;
        assert_eq!((response.status, response.header("retry-after")), (200, Some("4")));
        assert_eq!(response.event_types(), types);
        let failed = response.events().into_iter().find(|event| event["type"] == "response.failed");
        let is_null = failed.map(|event| event["response"]["error"].is_null());
        assert_eq!(
            is_null,
            (order != ErrorEventOrder::ErrorAlone).then_some(order == ErrorEventOrder::FailedThenError)
        );
        let chat = send_once(&simulator, post_request(CHAT_TARGET, STREAMING_CHAT_BODY)).await;
        assert_eq!(chat.events().last().unwrap()["error"]["code"], "rate_limit_exceeded");
        assert_eq!(send_once(&simulator, post_request(CHAT_TARGET, CHAT_BODY)).await.status, 429);
    }
    simulator.set_mood("east", Mood::MidStreamError { after_events: 2 });
    let chat = send_once(&simulator, post_request(CHAT_TARGET, STREAMING_CHAT_BODY)).await;
    assert_eq!(chat.chat_text(), "You said:");
    assert_eq!(chat.events().last().unwrap()["error"]["type"], "server_error");
    let response = send_once(&simulator, post_request(RESPONSES_TARGET, STREAMING_RESPONSES_BODY)).await;
    assert_eq!(response.event_types().last().unwrap(), "response.failed");
    assert_eq!(response.event_types().iter().filter(|event_type| event_type.ends_with(".delta")).count(), 2);
}

#[tokio::test]
async fn events_can_be_padded_annotated_and_delayed() {
    let simulator = start_simulator_with_mood(Mood::BigCreated { padding_bytes: 60_000 }).await;
    let response = send_once(&simulator, post_request(RESPONSES_TARGET, STREAMING_RESPONSES_BODY)).await;
    assert!(response.text().lines().nth(1).unwrap().len() > 60_000);
    assert_eq!(response.events()[0]["type"], "response.created");
    simulator.set_mood("east", Mood::AsyncFilter { blocks_content: true });
    let events = send_once(&simulator, post_request(CHAT_TARGET, STREAMING_CHAT_BODY)).await.events();
    let finishes: Vec<&str> =
        events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(finishes, ["stop", "content_filter"]);
    simulator.set_mood("east", Mood::Silence { after_events: 3, duration: Duration::from_millis(120) });
    let started = Instant::now();
    assert!(
        send_once(&simulator, post_request(CHAT_TARGET, STREAMING_CHAT_BODY)).await.is_complete
            && started.elapsed() >= Duration::from_millis(120)
    );
    simulator.set_mood("east", Mood::After(Duration::from_millis(60), Box::new(Mood::HighDemand)));
    let started = Instant::now();
    assert_eq!(send_once(&simulator, post_request(CHAT_TARGET, CHAT_BODY)).await.status, 429);
    assert!(started.elapsed() >= Duration::from_millis(60));
}

#[tokio::test]
async fn interim_unsolicited_and_early_responses_are_sent() {
    let simulator = start_simulator_with_mood(Mood::InfoFlood(3)).await;
    let mut client = TestClient::connect(simulator.address("east")).await;
    client.send(post_request(CHAT_TARGET, CHAT_BODY)).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.read_response().await.unwrap().status);
    }
    assert_eq!(statuses, [103, 102, 103, 200]);
    simulator.set_mood("east", Mood::Unsolicited101);
    assert_eq!(client.round_trip(post_request(CHAT_TARGET, CHAT_BODY)).await.status, 101);
    simulator.set_mood("east", Mood::CountersMinusOne);
    let response = send_once(&simulator, post_request(CHAT_TARGET, CHAT_BODY)).await;
    assert_eq!(response.header("x-ratelimit-remaining-tokens"), Some("-1"));

    // An early answer needs only the head; the connection can be used again after the body.
    simulator
        .set_mood("east", Mood::EarlyAnswer { error: SimulatedError::Unavailable, closes_connection: false });
    let mut client = TestClient::connect(simulator.address("east")).await;
    let request = post_request(CHAT_TARGET, CHAT_BODY);
    let (head, body) = request.split_at(request.len() - CHAT_BODY.len());
    assert_eq!(client.round_trip(head).await.status, 503);
    simulator.set_mood("east", Mood::Calm);
    client.send(body).await;
    assert_eq!(client.round_trip(post_request(CHAT_TARGET, CHAT_BODY)).await.status, 200);
    simulator
        .set_mood("east", Mood::EarlyAnswer { error: SimulatedError::Unavailable, closes_connection: true });
    assert_eq!(client.round_trip(head).await.header("connection"), Some("close"));
    assert!(!client.read_more().await);
}

#[tokio::test]
async fn a_client_that_disconnects_is_noticed() {
    let delay = Duration::from_secs(30);
    let silence = Mood::Silence { after_events: 2, duration: delay };
    let simulator = start_simulator(east_resource()).await;
    let is_logged = async |index: usize, condition: fn(&LoggedRequest) -> bool| {
        let condition = |requests: &[LoggedRequest]| requests.get(index).is_some_and(condition);
        simulator.wait_for_requests("east", RESPONSE_TIMEOUT, condition).await
    };
    let moods = [Mood::Mute, silence, Mood::Drip(delay), Mood::SlowFirstByte(delay)];
    let mood_count = moods.len();
    for (index, mood) in moods.into_iter().enumerate() {
        simulator.set_mood("east", mood.clone());
        let mut client = TestClient::connect(simulator.address("east")).await;
        client.send(post_request(CHAT_TARGET, STREAMING_CHAT_BODY)).await;
        assert!(is_logged(index, |request| request.is_body_complete).await, "{mood:?}");
        drop(client);
        assert!(is_logged(index, |request| request.client_disconnected).await, "{mood:?}");
        assert!(!simulator.received_requests("east")[index].is_response_complete);
    }
    let mut client = TestClient::connect(simulator.address("east")).await;
    let request = post_request(CHAT_TARGET, CHAT_BODY);
    client.send(&request[..request.len() - 10]).await;
    drop(client);
    assert!(is_logged(mood_count, |request| request.client_disconnected && !request.is_body_complete).await);
}

#[tokio::test]
async fn a_request_can_choose_its_mood_if_the_resource_allows_that() {
    let mut resource = east_resource();
    let request = post_request(CHAT_TARGET, CHAT_BODY)
        .replace("api-key", "x-simulate: {refuses: content_filter}\r\napi-key");
    assert_eq!(send_once(&start_simulator(resource.clone()).await, &request).await.status, 200);
    resource.allows_mood_header = true;
    assert_eq!(send_once(&start_simulator(resource).await, &request).await.status, 400);
}
