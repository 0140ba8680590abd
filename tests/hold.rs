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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

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
    with_head(0, "", events).await
}

/// The same with a head that comes after so many milliseconds and has a further header.
async fn with_head(after: usize, header: &'static str, events: &'static [(u64, &'static str)]) -> Upstream {
    Upstream::start(move |_| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{header}Connection: close\r\n\r\n"
        );
        // A piece is a millisecond.
        let mut pieces = vec![Vec::new(); after];
        pieces.push(head.into());
        for (pause, event) in events {
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
    let azure = azure(&["b"]).await;
    for events in [&[(0, EMPTY), (600, ERROR)], &[(0, CONTENT), (0, ERROR)]] {
        let late = slowly(events).await;
        let entries = late.backend("a") + &backends(&azure);
        let balancer = Balancer::start(&entries, "retry: { hold: { time: 100ms } }").await;
        let reply = balancer.post(CHAT, &[("api-key", KEY)], ASK_CHAT.as_bytes()).await;
        assert!(reply.status == 200 && reply.text().contains("exceeded rate limit"));
        assert_eq!(balancer.records_of(1).await[0]["outcome"], "failed");
        assert_eq!(azure.hits("b"), 0);
    }
}

#[tokio::test]
async fn a_refusal_after_quiet_events_is_still_one() {
    const QUEUED: &str = r#"{"type":"response.queued","response":{}}"#;
    const PROGRESS: &str = r#"{"type":"response.in_progress","response":{}}"#;
    const FAILED: &str = r#"{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded"}}}"#;
    let warned = "retry-after: 4\r\n";
    let cases = [
        (CHAT, ASK_CHAT, with_head(0, "", &[(0, EMPTY), (20, ERROR)]).await, true),
        (RESPONSES, ASK_RESPONSE, with_head(0, "", &[(0, QUEUED), (0, PROGRESS), (0, FAILED)]).await, true),
        // The time of the hold begins with the head.
        (CHAT, ASK_CHAT, with_head(900, "", &[(0, EMPTY), (20, ERROR)]).await, true),
        (CHAT, ASK_CHAT, with_head(0, "", &[(0, EMPTY), (1_500, ERROR)]).await, false),
        // Azure has been seen to announce a refusal by a header of the 200.
        (CHAT, ASK_CHAT, with_head(0, warned, &[(0, EMPTY), (1_500, ERROR)]).await, true),
    ];
    for (target, body, refusing, fails_over) in cases {
        let azure = azure(&["b"]).await;
        let balancer = Balancer::start(&(refusing.backend("a") + &backends(&azure)), "").await;
        let reply = balancer.post(target, &[("api-key", KEY)], body.as_bytes()).await;
        assert_eq!((reply.status, azure.hits("b")), (200, usize::from(fails_over)), "{}", reply.text());
        assert_eq!(reply.text().contains("rate limit"), !fails_over, "{}", reply.text());
    }
}

#[tokio::test]
async fn what_is_held_has_a_size_alone_and_together() {
    let azure = azure(&["b"]).await;
    let created =
        format!(r#"{{"type":"response.created","response":{{"instructions":"{}"}}}}"#, "x".repeat(300_000));
    let created: &'static str = Box::leak(created.into_boxed_str());
    let error = r#"{"type":"error","error":{"code":"too_many_requests","message":"exceeded rate limit"}}"#;
    let events: &'static [(u64, &'static str)] = Box::leak(Box::new([(0, created), (50, error)]));
    for (more, fails_over) in [
        ("", true),
        ("retry: { hold: { size: 64KiB } }", false),
        // No room among the bodies: it goes out, and nobody is refused for it.
        ("requests: { max_body: 100KiB, body_memory: 100KiB }", false),
    ] {
        let refusing = slowly(events).await;
        let balancer = Balancer::start(&(refusing.backend("a") + &backends(&azure)), more).await;
        let hits = azure.hits("b");
        let reply = balancer.post(RESPONSES, &[("api-key", KEY)], ASK_RESPONSE.as_bytes()).await;
        assert_eq!((reply.status, azure.hits("b") - hits), (200, usize::from(fails_over)), "{more}");
        assert_eq!(reply.text().contains("exceeded rate limit"), !fails_over, "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_content_is_delayed_by_less_than_a_millisecond() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sent, mut when) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
            stream.write_all(format!("{head}data: {EMPTY}\n\n").as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            for _ in 0..2 {
                sent.send(Instant::now()).await.unwrap();
                stream.write_all(format!("data: {CONTENT}\n\n").as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let balancer = Balancer::start(&support::entry("a", &format!("http://{address}"), ""), "").await;
    // The first content, which ends the hold, and one that merely passes.
    let (mut held, mut passing) = (Duration::MAX, Duration::MAX);
    for _ in 0..20 {
        let mut client = balancer.client().await;
        let length = ASK_CHAT.len().to_string();
        let head = Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]);
        client.send(&[head.as_bytes(), ASK_CHAT.as_bytes()].concat()).await;
        assert_eq!(client.reply_head().await.unwrap().status, 200);
        held = held.min(when.recv().await.unwrap().elapsed());
        let mut text = String::new();
        while text.matches("hi").count() < 2 {
            text += &String::from_utf8(client.chunk().await.unwrap()).unwrap();
        }
        passing = passing.min(when.recv().await.unwrap().elapsed());
    }
    assert!(held < passing + Duration::from_millis(1), "{held:?} {passing:?}");
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
