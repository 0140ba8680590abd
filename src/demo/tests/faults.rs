//! Bad moods, as a client sees them.

use std::collections::HashMap;
use std::time::Instant;

use super::super::{ErrorOrder, Extent, Refusal};
use super::*;

const RESPONSES: &str = "/openai/v1/responses";
const ASK: &str = r#"{"model":"gpt-4o","input":"hello there","stream":true}"#;

#[tokio::test]
async fn refusals_have_the_shape_of_their_origin() {
    let throttled = Mood::Throttled { retry_after_ms: Some(1500), retry_after: Some("2".to_owned()) };
    let cases = [
        (throttled, 429, "rate limit"),
        (Mood::HighDemand, 429, "high demand"),
        (Mood::Refuses(Refusal::ContentFilter), 400, "ResponsibleAIPolicyViolation"),
        (Mood::Refuses(Refusal::ContextLengthExceeded), 400, "context_length_exceeded"),
        (Mood::Refuses(Refusal::Firewall), 403, "Firewall"),
        (Mood::Refuses(Refusal::Timeout), 408, "Timeout"),
        (Mood::Refuses(Refusal::FailedDependency), 424, "424"),
        (Mood::Refuses(Refusal::BadGateway), 502, "<html>"),
        (Mood::Refuses(Refusal::Unavailable), 503, "temporarily"),
        (Mood::Refuses(Refusal::Status(418)), 418, "simulated"),
    ];
    let simulator = started(east()).await;
    for (mood, status, text) in cases {
        simulator.set_mood("east", mood.clone());
        let reply = one(&simulator, post(CHAT, HELLO)).await;
        assert_eq!(reply.status, status, "{mood:?}");
        assert!(reply.text().contains(text), "{mood:?}: {}", reply.text());
        let waits = (reply.header("retry-after-ms"), reply.header("retry-after"));
        let expected =
            if matches!(mood, Mood::Throttled { .. }) { (Some("1500"), Some("2")) } else { (None, None) };
        assert_eq!(waits, expected, "{mood:?}");
    }
}

#[tokio::test]
async fn moods_follow_each_other_and_differ_by_deployment() {
    let sequence = Mood::Sequence(vec![Mood::Refuses(Refusal::ServerError), Mood::Calm]);
    let moods = HashMap::from([("gpt-4o".to_owned(), sequence)]);
    let simulator = in_mood(Mood::PerDeployment { moods, otherwise: Box::new(Mood::HighDemand) }).await;
    let v1 = |model: &str| {
        post("/openai/v1/chat/completions", &HELLO.replacen('{', &format!("{{\"model\":\"{model}\","), 1))
    };
    let mut client = Client::to(simulator.address("east")).await;
    assert_eq!(client.ask(post(CHAT, HELLO)).await.status, 500);
    assert_eq!(client.ask(v1("other")).await.status, 429);
    assert_eq!(client.ask(v1("gpt-4o")).await.status, 200);
    assert_eq!(client.ask(post(CHAT, HELLO)).await.status, 200);
}

#[tokio::test]
async fn connections_break_where_they_should() {
    let simulator = started(east()).await;
    for (mood, is_reset) in
        [(Mood::ResetBeforeHead, true), (Mood::CloseBeforeHead, false), (Mood::ResetOnAccept, true)]
    {
        simulator.set_mood("east", mood.clone());
        let mut client = Client::to(simulator.address("east")).await;
        if client.socket.write_all(post(CHAT, HELLO).as_bytes()).await.is_ok() {
            let ended = client.socket.read_buf(&mut client.ahead).await;
            assert_eq!(ended.is_err(), is_reset, "{mood:?}: {ended:?}");
            assert!(client.ahead.is_empty());
        }
    }
    // (mood, at least so many events, whole as far as framing goes)
    let cases = [
        (Mood::ResetMidBody { after: Extent::Events(4) }, 4, false),
        (Mood::CloseMidStream { after: Extent::Events(4) }, 4, false),
        (Mood::TruncatedLength { missing: 10 }, 16, false),
        (Mood::CleanEndWithoutTerminal, 16, true),
        (Mood::TinyWrites, 16, true),
        (Mood::Http10Close, 16, true),
    ];
    for (mood, count, whole) in cases {
        simulator.set_mood("east", mood.clone());
        let reply = one(&simulator, post(CHAT, STREAM)).await;
        assert_eq!((reply.status, reply.whole), (200, whole), "{mood:?}");
        assert_eq!(reply.events().len(), count, "{mood:?}");
        let has_end = matches!(mood, Mood::TruncatedLength { .. } | Mood::TinyWrites | Mood::Http10Close);
        assert_eq!(reply.text().ends_with("[DONE]\n\n"), has_end, "{mood:?}");
        assert_eq!(reply.head.starts_with("HTTP/1.0"), mood == Mood::Http10Close);
    }
    simulator.set_mood("east", Mood::ResetMidBody { after: Extent::Bytes(30) });
    let reply = one(&simulator, post(CHAT, HELLO)).await;
    assert_eq!((reply.body.len(), reply.whole), (30, false));
}

#[tokio::test]
async fn a_refusal_can_hide_in_a_200() {
    let simulator = started(east()).await;
    let orders = [
        (ErrorOrder::CreatedErrorFailed, vec!["response.created", "error", "response.failed"]),
        (ErrorOrder::ErrorAlone, vec!["error"]),
        (ErrorOrder::FailedThenError, vec!["response.created", "response.failed", "error"]),
    ];
    for (order, types) in orders {
        simulator.set_mood("east", Mood::ErrorFirst { order, retry_after: Some("4".to_owned()) });
        let reply = one(&simulator, post(RESPONSES, ASK)).await;
        assert_eq!((reply.status, reply.header("retry-after")), (200, Some("4")));
        assert_eq!(reply.types(), types);
        let failed = reply.events().into_iter().find(|event| event["type"] == "response.failed");
        let is_null = failed.map(|event| event["response"]["error"].is_null());
        assert_eq!(
            is_null,
            (order != ErrorOrder::ErrorAlone).then_some(order == ErrorOrder::FailedThenError)
        );
        let chat = one(&simulator, post(CHAT, STREAM)).await;
        assert_eq!(chat.events().last().unwrap()["error"]["code"], "rate_limit_exceeded");
        assert_eq!(one(&simulator, post(CHAT, HELLO)).await.status, 429);
    }
    simulator.set_mood("east", Mood::MidStreamError { after: 2 });
    let chat = one(&simulator, post(CHAT, STREAM)).await;
    assert_eq!(chat.said(), "You said:");
    assert_eq!(chat.events().last().unwrap()["error"]["type"], "server_error");
    let response = one(&simulator, post(RESPONSES, ASK)).await;
    assert_eq!(response.types().last().unwrap(), "response.failed");
    assert_eq!(response.types().iter().filter(|kind| kind.ends_with(".delta")).count(), 2);
}

#[tokio::test]
async fn events_can_be_large_late_and_annotated() {
    let simulator = in_mood(Mood::BigCreated { bytes: 60_000 }).await;
    let reply = one(&simulator, post(RESPONSES, ASK)).await;
    assert!(reply.text().lines().nth(1).unwrap().len() > 60_000);
    assert_eq!(reply.events()[0]["type"], "response.created");
    simulator.set_mood("east", Mood::AsyncFilter { blocks: true });
    let events = one(&simulator, post(CHAT, STREAM)).await.events();
    let finishes: Vec<&str> =
        events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(finishes, ["stop", "content_filter"]);
    simulator.set_mood("east", Mood::Silence { after: 3, lasting: Duration::from_millis(120) });
    let started = Instant::now();
    assert!(
        one(&simulator, post(CHAT, STREAM)).await.whole && started.elapsed() >= Duration::from_millis(120)
    );
    simulator.set_mood("east", Mood::After(Duration::from_millis(60), Box::new(Mood::HighDemand)));
    let started = Instant::now();
    assert_eq!(one(&simulator, post(CHAT, HELLO)).await.status, 429);
    assert!(started.elapsed() >= Duration::from_millis(60));
}

#[tokio::test]
async fn odd_heads_come_before_or_instead_of_answers() {
    let simulator = in_mood(Mood::InfoFlood(3)).await;
    let mut client = Client::to(simulator.address("east")).await;
    client.send(post(CHAT, HELLO)).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.reply().await.unwrap().status);
    }
    assert_eq!(statuses, [103, 102, 103, 200]);
    simulator.set_mood("east", Mood::Unsolicited101);
    assert_eq!(client.ask(post(CHAT, HELLO)).await.status, 101);
    simulator.set_mood("east", Mood::CountersMinusOne);
    let reply = one(&simulator, post(CHAT, HELLO)).await;
    assert_eq!(reply.header("x-ratelimit-remaining-tokens"), Some("-1"));

    // The head alone is enough for an early answer; the connection goes on after the body.
    simulator.set_mood("east", Mood::EarlyAnswer { refusal: Refusal::Unavailable, close: false });
    let mut client = Client::to(simulator.address("east")).await;
    let request = post(CHAT, HELLO);
    let (head, body) = request.split_at(request.len() - HELLO.len());
    assert_eq!(client.ask(head).await.status, 503);
    simulator.set_mood("east", Mood::Calm);
    client.send(body).await;
    assert_eq!(client.ask(post(CHAT, HELLO)).await.status, 200);
    simulator.set_mood("east", Mood::EarlyAnswer { refusal: Refusal::Unavailable, close: true });
    assert_eq!(client.ask(head).await.header("connection"), Some("close"));
    assert!(!client.more().await);
}

#[tokio::test]
async fn a_caller_who_leaves_is_noticed() {
    let slow = Duration::from_secs(30);
    let silence = Mood::Silence { after: 2, lasting: slow };
    let simulator = started(east()).await;
    for (number, mood) in
        [Mood::Mute, silence, Mood::Drip(slow), Mood::SlowFirstByte(slow)].into_iter().enumerate()
    {
        simulator.set_mood("east", mood.clone());
        let mut client = Client::to(simulator.address("east")).await;
        client.send(post(CHAT, STREAM)).await;
        assert!(
            simulator.wait("east", PATIENCE, |seen| seen.get(number).is_some_and(|seen| seen.complete)).await
        );
        drop(client);
        let noticed = simulator
            .wait("east", PATIENCE, |seen| seen.get(number).is_some_and(|seen| seen.cancelled))
            .await;
        assert!(noticed, "{mood:?}");
        assert!(!simulator.requests("east")[number].answered);
    }
    let mut client = Client::to(simulator.address("east")).await;
    let request = post(CHAT, HELLO);
    client.send(&request[..request.len() - 10]).await;
    drop(client);
    assert!(
        simulator
            .wait("east", PATIENCE, |seen| seen.get(4).is_some_and(|seen| seen.cancelled && !seen.complete))
            .await
    );
}

#[tokio::test]
async fn a_request_may_choose_its_mood_where_that_is_allowed() {
    let mut resource = east();
    let request = post(CHAT, HELLO).replace("api-key", "x-simulate: {refuses: content_filter}\r\napi-key");
    assert_eq!(one(&started(resource.clone()).await, &request).await.status, 200);
    resource.moods_by_header = true;
    assert_eq!(one(&started(resource).await, &request).await.status, 400);
}
