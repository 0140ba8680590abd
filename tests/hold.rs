//! Streams that say yes and then no: held until they have said something.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{ErrorOrder, Mood};
use support::upstream::Upstream;
use support::{Balancer, CHAT, Client, KEY, answerer, azure, backends};

const ORDERS: [ErrorOrder; 3] =
    [ErrorOrder::CreatedErrorFailed, ErrorOrder::ErrorAlone, ErrorOrder::FailedThenError];
const ASK_CHAT: &str = r#"{"stream":true,"messages":[{"role":"user","content":"x"}]}"#;
const ASK_RESPONSE: &str = r#"{"stream":true,"model":"gpt-4o","input":"x"}"#;
const RESPONSES: &str = "/openai/v1/responses";

fn error_first(order: ErrorOrder, retry_after: Option<&str>) -> Mood {
    Mood::ErrorFirst { order, retry_after: retry_after.map(str::to_owned) }
}

#[tokio::test]
async fn a_refusal_inside_a_200_goes_to_another_backend() {
    for order in ORDERS {
        for (target, body) in [(CHAT, ASK_CHAT), (RESPONSES, ASK_RESPONSE)] {
            let azure = azure(&["a", "b"]).await;
            let balancer = Balancer::start(&backends(&azure), "").await;
            azure.set_mood("a", error_first(order, Some("4")));
            let reply = balancer.post(target, &[("api-key", KEY)], body.as_bytes()).await;
            assert_eq!(
                (reply.status, answerer(&reply).as_str()),
                (200, "b"),
                "{order:?} {target}: {}",
                reply.text()
            );
            assert!(!reply.text().contains("rate limit"), "nothing of the refusal is left");
            let record = &balancer.records_of(1).await[0];
            assert_eq!(
                (record["attempts"][0]["status"].as_u64(), record["outcome"].as_str()),
                (Some(429), Some("answered"))
            );
            assert_eq!(record["attempts"][0]["retry_after_ms"], 4000);
        }
    }
}

#[tokio::test]
async fn refused_by_all_is_a_429_that_an_sdk_understands() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    assert_eq!(balancer.chat().await.status, 200);
    for name in ["a", "b"] {
        azure.set_mood(name, error_first(ErrorOrder::CreatedErrorFailed, Some("4")));
    }
    let reply = balancer.post(RESPONSES, &[("api-key", KEY)], ASK_RESPONSE.as_bytes()).await;
    assert_eq!((reply.status, reply.code().as_str()), (429, "all_throttled"));
    assert_eq!(reply.header("retry-after"), Some("4"));
}

/// An upstream that sends these events of a stream with pauses between them.
async fn slowly(events: &'static [(u64, &'static str)]) -> Upstream {
    Upstream::start(move |_| {
        let mut pieces =
            vec![b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n".to_vec()];
        for (pause, event) in events {
            // A piece is a millisecond.
            pieces.extend((0..*pause).map(|_| Vec::new()));
            pieces.push(format!("data: {event}\n\n").into());
        }
        pieces
    })
    .await
}

const EMPTY: &str = r#"{"choices":[],"prompt_filter_results":[]}"#;
const CONTENT: &str = r#"{"choices":[{"index":0,"delta":{"content":"hi"}}]}"#;
const ERROR: &str = r#"{"error":{"code":"too_many_requests","message":"exceeded rate limit"}}"#;

async fn first_bytes(upstream: &Upstream, more: &str) -> (Balancer, Client, Duration) {
    let balancer = Balancer::start(&upstream.backend("a"), more).await;
    let mut client = balancer.client().await;
    let length = ASK_CHAT.len().to_string();
    let begun = Instant::now();
    client
        .send(Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]).as_bytes())
        .await;
    client.send(ASK_CHAT.as_bytes()).await;
    let head = client.reply_head().await.unwrap();
    assert_eq!(head.status, 200);
    let taken = begun.elapsed();
    (balancer, client, taken)
}

#[tokio::test]
async fn the_hold_ends_with_the_first_content_or_its_time() {
    // Quiet for four seconds, then content: the head goes out after the time of the hold.
    let quiet = slowly(&[(0, EMPTY), (4_000, CONTENT), (0, "[DONE]")]).await;
    let (_balancer, mut client, taken) = first_bytes(&quiet, "retry: { hold: { time: 300ms } }").await;
    assert!((Duration::from_millis(290)..Duration::from_millis(3_900)).contains(&taken), "{taken:?}");
    let mut text = String::new();
    while let Some(chunk) = client.chunk().await.filter(|chunk| !chunk.is_empty()) {
        text += &String::from_utf8(chunk).unwrap();
    }
    assert_eq!(
        text,
        format!("data: {EMPTY}\n\ndata: {CONTENT}\n\ndata: [DONE]\n\n"),
        "the held bytes go out unchanged"
    );
    // Content at once: nobody waits.
    let prompt = slowly(&[(0, EMPTY), (0, CONTENT), (1_000, "[DONE]")]).await;
    let (_balancer, _client, taken) = first_bytes(&prompt, "retry: { hold: { time: 20s } }").await;
    assert!(taken < Duration::from_secs(10), "{taken:?}");
}

#[tokio::test]
async fn without_a_hold_the_first_event_is_the_clients() {
    let refusing = slowly(&[(0, ERROR)]).await;
    let azure = azure(&["b"]).await;
    let entries = refusing.backend("a") + &backends(&azure);
    for (retry, held) in [("", true), ("retry: { hold: { time: 0s } }", false)] {
        let balancer = Balancer::start(&entries, retry).await;
        let reply = balancer.post(CHAT, &[("api-key", KEY)], ASK_CHAT.as_bytes()).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.text().contains("exceeded rate limit"), !held, "{}", reply.text());
        assert_eq!(azure.hits("b"), 1, "only the first of them was answered by b");
    }
}

#[tokio::test]
async fn after_the_hold_a_refusal_is_the_clients() {
    let late = slowly(&[(0, EMPTY), (600, ERROR)]).await;
    let balancer = Balancer::start(&late.backend("a"), "retry: { hold: { time: 100ms } }").await;
    let reply = balancer.post(CHAT, &[("api-key", KEY)], ASK_CHAT.as_bytes()).await;
    assert!(reply.status == 200 && reply.text().contains("exceeded rate limit"));
    assert_eq!(balancer.records_of(1).await[0]["outcome"], "failed");
}

#[tokio::test]
async fn a_first_event_of_any_size_is_no_content() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::BigCreated { bytes: 300_000 });
    let reply = balancer.post(RESPONSES, &[("api-key", KEY)], ASK_RESPONSE.as_bytes()).await;
    assert!(reply.whole && reply.text().len() > 300_000 && reply.text().contains("response.completed"));
    assert_eq!(balancer.records_of(1).await[0]["outcome"], "answered");
    // Larger than what is held: it goes out.
    let balancer = Balancer::start(&backends(&azure), "retry: { hold: { size: 64KiB } }").await;
    let reply = balancer.post(RESPONSES, &[("api-key", KEY)], ASK_RESPONSE.as_bytes()).await;
    assert!(reply.whole && reply.text().len() > 300_000);
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_content_fails_over() {
    let azure = azure(&["b"]).await;
    // Closing without an end: for a close-delimited reply that is an end, so cut a chunked one.
    let cut = Upstream::start(|_| {
        vec![format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\ndata: {EMPTY}\n\n\r\n", EMPTY.len() + 8).into()]
    })
    .await;
    let balancer = Balancer::start(&(cut.backend("a") + &backends(&azure)), "").await;
    let reply = balancer.post(CHAT, &[("api-key", KEY)], ASK_CHAT.as_bytes()).await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    assert_eq!(cut.requests().len(), 1);
}
