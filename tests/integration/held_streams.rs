//! Streams whose refusal comes inside a 200: they are held until the first content, and fail over.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{ErrorEventOrder, Mood};
use support::upstream::ScriptedUpstream;
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, answering_backend, start_simulator,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const ERROR_ORDERS: [ErrorEventOrder; 3] =
    [ErrorEventOrder::CreatedErrorFailed, ErrorEventOrder::ErrorAlone, ErrorEventOrder::FailedThenError];
const CHAT_STREAM_BODY: &str = r#"{"stream":true,"messages":[{"role":"user","content":"x"}]}"#;
const RESPONSES_STREAM_BODY: &str = r#"{"stream":true,"model":"gpt-4o","input":"x"}"#;
const RESPONSES_TARGET: &str = "/openai/v1/responses";

fn error_first(order: ErrorEventOrder, retry_after: Option<&str>) -> Mood {
    Mood::ErrorFirst { event_order: order, retry_after: retry_after.map(str::to_owned) }
}

#[tokio::test]
async fn a_refusal_inside_a_200_fails_over_to_another_backend() {
    for order in ERROR_ORDERS {
        for (target, body) in [(CHAT_TARGET, CHAT_STREAM_BODY), (RESPONSES_TARGET, RESPONSES_STREAM_BODY)] {
            let azure = start_simulator(&["a", "b"]).await;
            let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
            azure.set_mood("a", error_first(order, Some("4")));
            let response = balancer.post(target, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
            assert_eq!(
                (response.status, answering_backend(&response).as_str()),
                (200, "b"),
                "{order:?} {target}: {}",
                response.text()
            );
            assert!(
                !response.text().contains("rate limit"),
                "expected no trace of the refusal in the response"
            );
            let record = &balancer.wait_for_records(1).await[0];
            assert_eq!(
                (record["attempts"][0]["status"].as_u64(), record["outcome"].as_str()),
                (Some(429), Some("answered"))
            );
            assert_eq!(record["attempts"][0]["retry_after_ms"], 4000);
        }
    }
}

#[tokio::test]
async fn refusals_inside_a_200_from_all_backends_become_a_429() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    assert_eq!(balancer.post_chat().await.status, 200);
    for name in ["a", "b"] {
        azure.set_mood(name, error_first(ErrorEventOrder::CreatedErrorFailed, Some("4")));
    }
    let response =
        balancer.post(RESPONSES_TARGET, &[("api-key", CLIENT_KEY)], RESPONSES_STREAM_BODY.as_bytes()).await;
    assert_eq!((response.status, response.error_code().as_str()), (429, "all_throttled"));
    assert_eq!(response.header("retry-after"), Some("4"));
}

/// Starts an upstream that sends these events, each after a pause in milliseconds.
async fn start_event_upstream(events: &'static [(u64, &'static str)]) -> ScriptedUpstream {
    start_event_upstream_with_head(0, "", events).await
}

/// Like [`start_event_upstream`], with a delay before the head and a further header.
async fn start_event_upstream_with_head(
    head_delay_ms: usize,
    header: &'static str,
    events: &'static [(u64, &'static str)],
) -> ScriptedUpstream {
    ScriptedUpstream::start(move |_| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{header}Connection: close\r\n\r\n"
        );
        // An empty piece is a pause of one millisecond.
        let mut pieces = vec![Vec::new(); head_delay_ms];
        pieces.push(head.into());
        for (pause_ms, event) in events {
            pieces.extend((0..*pause_ms).map(|_| Vec::new()));
            pieces.push(format!("data: {event}\n\n").into());
        }
        pieces
    })
    .await
}

const EMPTY_EVENT: &str = r#"{"choices":[],"prompt_filter_results":[]}"#;
const ROLE_EVENT: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}]}"#;
const CONTENT_EVENT: &str = r#"{"choices":[{"index":0,"delta":{"content":"hi"}}]}"#;
const ERROR_EVENT: &str = r#"{"error":{"code":"too_many_requests","message":"exceeded rate limit"}}"#;

async fn time_to_response_head(
    upstream: &ScriptedUpstream,
    extra_yaml: &str,
) -> (Balancer, Client, Duration) {
    let balancer = Balancer::start(&upstream.backend_yaml("a"), extra_yaml).await;
    let mut client = balancer.connect().await;
    let start = Instant::now();
    client.send_chat(CHAT_STREAM_BODY).await;
    let head = client.read_response_head().await.unwrap();
    assert_eq!(head.status, 200);
    let head_delay = start.elapsed();
    (balancer, client, head_delay)
}

#[tokio::test]
async fn the_hold_ends_with_the_first_content_or_after_its_time() {
    // Content comes after four seconds: the head is relayed after `retry.hold.time`.
    let quiet_upstream =
        start_event_upstream(&[(0, EMPTY_EVENT), (4_000, CONTENT_EVENT), (0, "[DONE]")]).await;
    let (_balancer, mut client, head_delay) =
        time_to_response_head(&quiet_upstream, "retry: { hold: { time: 300ms } }").await;
    assert!(
        (Duration::from_millis(290)..Duration::from_millis(3_900)).contains(&head_delay),
        "{head_delay:?}"
    );
    let mut text = String::new();
    while let Some(chunk) = client.read_chunk().await.filter(|chunk| !chunk.is_empty()) {
        text += &String::from_utf8(chunk).unwrap();
    }
    assert_eq!(
        text,
        format!("data: {EMPTY_EVENT}\n\ndata: {CONTENT_EVENT}\n\ndata: [DONE]\n\n"),
        "expected the held bytes unchanged"
    );
    // Content comes at once: it is not delayed.
    let prompt_upstream =
        start_event_upstream(&[(0, EMPTY_EVENT), (0, CONTENT_EVENT), (1_000, "[DONE]")]).await;
    let (_balancer, _client, head_delay) =
        time_to_response_head(&prompt_upstream, "retry: { hold: { time: 20s } }").await;
    assert!(head_delay < Duration::from_secs(10), "{head_delay:?}");
}

#[tokio::test]
async fn without_a_hold_the_first_event_is_relayed_to_the_client() {
    let refusing_upstream = start_event_upstream(&[(0, ERROR_EVENT)]).await;
    let azure = start_simulator(&["b"]).await;
    let entries = refusing_upstream.backend_yaml("a") + &all_backends_yaml(&azure);
    for (retry, is_held) in [("", true), ("retry: { hold: { time: 0s } }", false)] {
        let balancer = Balancer::start(&entries, retry).await;
        let response =
            balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_STREAM_BODY.as_bytes()).await;
        assert_eq!(response.status, 200);
        assert_eq!(response.text().contains("exceeded rate limit"), !is_held, "{}", response.text());
        assert_eq!(azure.request_count("b"), 1, "expected only the first request to be answered by b");
    }
}

#[tokio::test]
async fn a_refusal_after_the_hold_is_relayed_to_the_client() {
    let azure = start_simulator(&["b"]).await;
    for events in [&[(0, EMPTY_EVENT), (600, ERROR_EVENT)], &[(0, CONTENT_EVENT), (0, ERROR_EVENT)]] {
        let late_upstream = start_event_upstream(events).await;
        let entries = late_upstream.backend_yaml("a") + &all_backends_yaml(&azure);
        let balancer = Balancer::start(&entries, "retry: { hold: { time: 100ms } }").await;
        let response =
            balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_STREAM_BODY.as_bytes()).await;
        assert!(response.status == 200 && response.text().contains("exceeded rate limit"));
        assert_eq!(balancer.wait_for_records(1).await[0]["outcome"], "failed");
        assert_eq!(azure.request_count("b"), 0);
    }
}

#[tokio::test]
async fn a_refusal_after_events_without_content_fails_over() {
    const QUEUED_EVENT: &str = r#"{"type":"response.queued","response":{}}"#;
    const PROGRESS_EVENT: &str = r#"{"type":"response.in_progress","response":{}}"#;
    const FAILED_EVENT: &str =
        r#"{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded"}}}"#;
    let retry_after_header = "retry-after: 4\r\n";
    let cases = [
        (
            CHAT_TARGET,
            CHAT_STREAM_BODY,
            start_event_upstream_with_head(0, "", &[(0, EMPTY_EVENT), (20, ERROR_EVENT)]).await,
            true,
        ),
        (
            CHAT_TARGET,
            CHAT_STREAM_BODY,
            start_event_upstream_with_head(0, "", &[(0, EMPTY_EVENT), (0, ROLE_EVENT), (20, ERROR_EVENT)])
                .await,
            true,
        ),
        (
            RESPONSES_TARGET,
            RESPONSES_STREAM_BODY,
            start_event_upstream_with_head(
                0,
                "",
                &[(0, QUEUED_EVENT), (0, PROGRESS_EVENT), (0, FAILED_EVENT)],
            )
            .await,
            true,
        ),
        // `retry.hold.time` starts at the head of the response.
        (
            CHAT_TARGET,
            CHAT_STREAM_BODY,
            start_event_upstream_with_head(900, "", &[(0, EMPTY_EVENT), (20, ERROR_EVENT)]).await,
            true,
        ),
        (
            CHAT_TARGET,
            CHAT_STREAM_BODY,
            start_event_upstream_with_head(0, "", &[(0, EMPTY_EVENT), (1_500, ERROR_EVENT)]).await,
            false,
        ),
        // Azure sometimes announces such a refusal with a `retry-after` in the head of the 200.
        (
            CHAT_TARGET,
            CHAT_STREAM_BODY,
            start_event_upstream_with_head(0, retry_after_header, &[(0, EMPTY_EVENT), (1_500, ERROR_EVENT)])
                .await,
            true,
        ),
    ];
    for (target, body, refusing_upstream, fails_over) in cases {
        let azure = start_simulator(&["b"]).await;
        let balancer =
            Balancer::start(&(refusing_upstream.backend_yaml("a") + &all_backends_yaml(&azure)), "").await;
        let response = balancer.post(target, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        assert_eq!(
            (response.status, azure.request_count("b")),
            (200, usize::from(fails_over)),
            "{}",
            response.text()
        );
        assert_eq!(response.text().contains("rate limit"), !fails_over, "{}", response.text());
    }
}

#[tokio::test]
async fn the_hold_ends_at_its_size_limit_or_without_body_memory() {
    let azure = start_simulator(&["b"]).await;
    let created =
        format!(r#"{{"type":"response.created","response":{{"instructions":"{}"}}}}"#, "x".repeat(300_000));
    let created: &'static str = Box::leak(created.into_boxed_str());
    let error = r#"{"type":"error","error":{"code":"too_many_requests","message":"exceeded rate limit"}}"#;
    let events: &'static [(u64, &'static str)] = Box::leak(Box::new([(0, created), (50, error)]));
    for (extra_yaml, fails_over) in [
        ("", true),
        ("retry: { hold: { size: 64KiB } }", false),
        // Without body memory the stream is relayed at once instead of being refused.
        ("requests: { max_body: 100KiB, body_memory: 100KiB }", false),
    ] {
        let refusing_upstream = start_event_upstream(events).await;
        let balancer =
            Balancer::start(&(refusing_upstream.backend_yaml("a") + &all_backends_yaml(&azure)), extra_yaml)
                .await;
        let hits = azure.request_count("b");
        let response = balancer
            .post(RESPONSES_TARGET, &[("api-key", CLIENT_KEY)], RESPONSES_STREAM_BODY.as_bytes())
            .await;
        assert_eq!(
            (response.status, azure.request_count("b") - hits),
            (200, usize::from(fails_over)),
            "{extra_yaml}"
        );
        assert_eq!(response.text().contains("exceeded rate limit"), !fails_over, "{extra_yaml}");
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
            stream.write_all(format!("{head}data: {EMPTY_EVENT}\n\n").as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            for _ in 0..2 {
                sent.send(Instant::now()).await.unwrap();
                stream.write_all(format!("data: {CONTENT_EVENT}\n\n").as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let balancer = Balancer::start(&support::backend_yaml("a", &format!("http://{address}"), ""), "").await;
    // The delay of the first content, which ends the hold, and of content that is just relayed.
    let (mut is_held, mut passing) = (Duration::MAX, Duration::MAX);
    for _ in 0..20 {
        let mut client = balancer.connect().await;
        let length = CHAT_STREAM_BODY.len().to_string();
        let head = Client::request_head(
            "POST",
            CHAT_TARGET,
            &[("api-key", CLIENT_KEY), ("Content-Length", &length)],
        );
        client.send(&[head.as_bytes(), CHAT_STREAM_BODY.as_bytes()].concat()).await;
        assert_eq!(client.read_response_head().await.unwrap().status, 200);
        is_held = is_held.min(when.recv().await.unwrap().elapsed());
        let mut text = String::new();
        while text.matches("hi").count() < 2 {
            text += &String::from_utf8(client.read_chunk().await.unwrap()).unwrap();
        }
        passing = passing.min(when.recv().await.unwrap().elapsed());
    }
    assert!(is_held < passing + Duration::from_millis(1), "{is_held:?} {passing:?}");
}

#[tokio::test]
async fn a_large_first_event_without_content_is_relayed_unchanged() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::BigCreated { padding_bytes: 300_000 });
    let response =
        balancer.post(RESPONSES_TARGET, &[("api-key", CLIENT_KEY)], RESPONSES_STREAM_BODY.as_bytes()).await;
    assert!(
        response.is_complete
            && response.text().len() > 300_000
            && response.text().contains("response.completed")
    );
    assert_eq!(balancer.wait_for_records(1).await[0]["outcome"], "answered");
    // An event larger than `retry.hold.size` is relayed at once.
    let balancer = Balancer::start(&all_backends_yaml(&azure), "retry: { hold: { size: 64KiB } }").await;
    let response =
        balancer.post(RESPONSES_TARGET, &[("api-key", CLIENT_KEY)], RESPONSES_STREAM_BODY.as_bytes()).await;
    assert!(response.is_complete && response.text().len() > 300_000);
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_content_fails_over() {
    let azure = start_simulator(&["b"]).await;
    // Closing the connection would be a regular end of a response without framing, hence a chunked one.
    let truncating = ScriptedUpstream::start(|_| {
        vec![format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\ndata: {EMPTY_EVENT}\n\n\r\n", EMPTY_EVENT.len() + 8).into()]
    })
    .await;
    let balancer = Balancer::start(&(truncating.backend_yaml("a") + &all_backends_yaml(&azure)), "").await;
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_STREAM_BODY.as_bytes()).await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    assert_eq!(truncating.requests().len(), 1);
}
