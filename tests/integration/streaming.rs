//! Streams: unchanged bytes without delay, requested usage, broken streams, clients that disconnect.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{BodyPosition, Mood, SimulatedError};
use serde_json::Value;
use support::upstream::{self, RawRequest, ScriptedUpstream};
use support::{Balancer, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, start_simulator, wait_until};

const STORY_STREAM_BODY: &str =
    r#"{"stream":true,"messages":[{"role":"user","content":"tell me a story of some length"}]}"#;
const OLD_VERSION_TARGET: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01";

fn parse_events(body: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let data =
        text.split("\n\n").filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// Removes the fields that differ between two responses to the same request.
fn without_random_fields(events: &[Value]) -> Vec<Value> {
    let mut events = events.to_vec();
    for event in &mut events {
        let object = event.as_object_mut().unwrap();
        ["id", "created", "obfuscation", "system_fingerprint", "usage"].iter().for_each(|key| {
            object.remove(*key);
        });
    }
    events
}

#[tokio::test]
async fn usage_is_requested_recorded_and_removed_from_the_stream() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    for mood in [Mood::Calm, Mood::TinyWrites] {
        azure.set_mood("a", mood.clone());
        let response =
            balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
        assert!(response.is_complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
        let sent: Value =
            serde_json::from_slice(&azure.received_requests("a").pop().unwrap().body.unwrap()).unwrap();
        assert_eq!(sent["stream_options"]["include_usage"], true);
        let mut direct = Client::connect(azure.address("a")).await;
        let direct = direct.post(CHAT_TARGET, &[("api-key", "a-key")], STORY_STREAM_BODY.as_bytes()).await;
        assert_eq!(
            without_random_fields(&parse_events(&response.body)),
            without_random_fields(&parse_events(&direct.body)),
            "{mood:?}"
        );
    }
    let record = &balancer.wait_for_records(2).await[0];
    assert!(record["output_tokens"].as_u64().unwrap() > 0, "{record:#}");
    assert_eq!((record["usage_source"].as_str(), record["stream"].as_bool()), (Some("reported"), Some(true)));
    assert_eq!(record["finish_reason"], "stop");
    assert!(record["completion"].as_str().unwrap().starts_with("You said: tell me a story"));
}

#[tokio::test]
async fn streams_are_byte_identical_when_no_usage_is_requested() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(
        &all_backends_yaml(&azure),
        "record: { usage: observe, jsonl: { path: records.jsonl } }",
    )
    .await;
    for mood in [
        Mood::Calm,
        Mood::TinyWrites,
        Mood::AsyncFilter { blocks_content: false },
        Mood::CleanEndWithoutTerminal,
    ] {
        azure.set_mood("a", mood);
        let response =
            balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
        assert_eq!(azure.received_requests("a").pop().unwrap().body.unwrap(), STORY_STREAM_BODY.as_bytes());
        let usage = parse_events(&response.body).iter().any(|event| event.get("usage").is_some());
        assert!(!usage, "expected no usage that the client did not request");
    }
    // Usage is not requested with an api-version that does not support the option.
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    balancer.post(OLD_VERSION_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
    assert_eq!(azure.received_requests("a").pop().unwrap().body.unwrap(), STORY_STREAM_BODY.as_bytes());
}

#[tokio::test]
async fn a_client_that_asks_for_usage_gets_it() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let body = r#"{"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"x"}]}"#;
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
    let with_usage =
        parse_events(&response.body).into_iter().filter(|event| event["usage"].is_object()).count();
    assert_eq!(with_usage, 1);
    assert_eq!(azure.received_requests("a").pop().unwrap().body.unwrap(), body.as_bytes());
}

#[tokio::test]
async fn a_backend_that_rejects_stream_options_is_retried_without_them() {
    let rejection_body = r#"{"error":{"message":"Unrecognized request argument supplied: stream_options","type":"invalid_request_error","param":null,"code":null}}"#;
    let content = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
    let upstream = ScriptedUpstream::start(move |request| {
        let has_option = String::from_utf8_lossy(&request.body).contains("stream_options");
        let (status, content_type, body) = if has_option {
            (400, "application/json", rejection_body)
        } else {
            (200, "text/event-stream", content)
        };
        vec![response_head(status, content_type, body.len()), body.into()]
    })
    .await;
    let entry = upstream.backend_yaml("a") + "    deployments: { gpt-4o: gpt-4o }\n";
    let balancer = Balancer::start(&entry, "").await;
    for expected in [2, 3] {
        let response =
            balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
        assert_eq!((response.status, response.text().as_str()), (200, content));
        assert_eq!(upstream.requests().len(), expected, "expected the rejection to be remembered");
    }
    let had_option = upstream
        .requests()
        .iter()
        .map(|request| request.body != STORY_STREAM_BODY.as_bytes())
        .collect::<Vec<_>>();
    assert_eq!(had_option, [true, false, false]);
}

fn response_head(status: u16, content_type: &str, length: usize) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .into()
}

/// An event stream with everything that careless parsing would change: a byte order mark, comments, mixed
/// line ends, split data, a large event.
fn awkward_stream() -> Vec<u8> {
    let mut text = String::from("\u{feff}: a comment\r\n\r\nid: 7\nretry: 10\n\n");
    for number in 0..300 {
        text += &format!(
            "event: x\r\ndata: {{\"choices\":[{{\"delta\":{{\"content\":\"w{number} \u{e4}\u{1f600}\"}}}}],\r\ndata: \"n\":{number}}}\r\n\r\n"
        );
    }
    text += &format!("data: {{\"choices\":[],\"padding\":\"{}\"}}\n\n", "x".repeat(200_000));
    text += "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3}}\n\ndata: [DONE]\n\n";
    text.into_bytes()
}

#[tokio::test]
async fn stream_bytes_do_not_depend_on_how_they_are_chunked() {
    for size in [7, 100, 4_096, 1_000_000] {
        for chunked in [true, false] {
            let upstream = ScriptedUpstream::start(move |_| {
                let body = awkward_stream();
                let mut pieces = Vec::new();
                if chunked {
                    pieces.push(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec());
                } else {
                    pieces.push(response_head(200, "text/event-stream", body.len()));
                }
                // Several chunks per write, to keep the number of writes low.
                for piece in body.chunks(size.max(body.len() / 100)) {
                    let mut framed = Vec::new();
                    for part in piece.chunks(size) {
                        if chunked {
                            framed.extend(format!("{:x}\r\n", part.len()).bytes());
                        }
                        framed.extend(part);
                        if chunked {
                            framed.extend(b"\r\n");
                        }
                    }
                    pieces.push(framed);
                }
                if chunked {
                    pieces.push(b"0\r\n\r\n".to_vec());
                }
                pieces
            })
            .await;
            let observe = "record: { usage: observe, jsonl: { path: records.jsonl } }";
            let balancer = Balancer::start(&upstream.backend_yaml("a"), observe).await;
            let response =
                balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
            assert!(response.is_complete);
            let digest = openssl::sha::sha256;
            assert_eq!(
                digest(&response.body),
                digest(&awkward_stream()),
                "pieces of {size}, chunked {chunked}"
            );
            let record = &balancer.wait_for_records(1).await[0];
            assert_eq!(
                (record["total_tokens"].as_u64(), record["outcome"].as_str()),
                (Some(3), Some("answered"))
            );
            // With usage requested by the balancer, only the usage event is removed.
            let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
            let response =
                balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
            let text = String::from_utf8(awkward_stream()).unwrap();
            let (before, after) = text.split_once("data: {\"choices\":[],\"usage\"").unwrap();
            let expected_text = format!("{before}{}", after.split_once("\n\n").unwrap().1);
            assert_eq!(
                digest(&response.body),
                digest(expected_text.as_bytes()),
                "pieces of {size}, chunked {chunked}"
            );
        }
    }
}

#[tokio::test]
async fn chunks_are_relayed_as_they_arrive() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::Drip(Duration::from_millis(150)));
    let mut client = balancer.connect().await;
    let head = Client::request_head(
        "POST",
        CHAT_TARGET,
        &[("api-key", CLIENT_KEY), ("Content-Length", &STORY_STREAM_BODY.len().to_string())],
    );
    client.send(head.as_bytes()).await;
    client.send(STORY_STREAM_BODY.as_bytes()).await;
    assert_eq!(client.read_response_head().await.unwrap().status, 200);
    let mut times = Vec::new();
    while let Some(chunk) = client.read_chunk().await {
        times.push(Instant::now());
        if chunk.is_empty() || times.len() == 5 {
            break;
        }
    }
    let gaps: Vec<u128> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!(
        gaps.iter().filter(|gap| **gap >= 50).count() >= 3,
        "expected chunks to be relayed one by one: {gaps:?}"
    );
}

#[tokio::test]
async fn a_broken_stream_is_visibly_broken_for_the_client() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "timeouts: { idle: 300ms }").await;
    let moods = [
        Mood::ResetMidBody { after: BodyPosition::Events(3) },
        Mood::CloseMidStream { after: BodyPosition::Events(3) },
        Mood::Silence { after_events: 3, duration: Duration::from_secs(20) },
    ];
    for (number, mood) in moods.into_iter().enumerate() {
        azure.set_mood("a", mood.clone());
        azure.set_mood("b", mood.clone());
        let response =
            balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
        assert_eq!((response.status, response.is_complete), (200, false), "{mood:?}");
        assert!(!response.text().contains("[DONE]"));
        assert_eq!(
            azure.request_count("a") + azure.request_count("b"),
            number + 1,
            "expected no retry once the client has received content"
        );
        let record = balancer.wait_for_records(number + 1).await.pop().unwrap();
        assert_eq!(
            (record["outcome"].as_str(), record["status"].as_u64()),
            (Some("failed"), Some(200)),
            "{mood:?}"
        );
        assert!(record["attempts"][0]["error"].is_string(), "{record:#}");
    }
    azure.set_mood("a", Mood::TruncatedLength { missing_bytes: 10 });
    azure.set_mood("b", Mood::TruncatedLength { missing_bytes: 10 });
    assert!(!balancer.post_chat().await.is_complete);
}

#[tokio::test]
async fn a_stream_without_its_last_event_is_relayed_and_recorded_as_failed() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::CleanEndWithoutTerminal);
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
    assert!(response.is_complete && !response.text().contains("[DONE]"));
    assert_eq!(balancer.wait_for_records(1).await[0]["outcome"], "failed");
}

#[tokio::test]
async fn rejected_stream_options_are_removed_even_without_retry_attempts() {
    const REJECTION_BODY: &str = r#"{"error":{"message":"Unrecognized request argument supplied: stream_options","type":"invalid_request_error","param":null,"code":null}}"#;
    let rejecting = ScriptedUpstream::start(|request: &RawRequest| {
        let has_option = String::from_utf8_lossy(&request.body).contains("stream_options");
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
        match has_option {
            true => upstream::complete_response(400, "Content-Type: application/json", REJECTION_BODY),
            false => upstream::complete_response(200, "Content-Type: text/event-stream", stream),
        }
    })
    .await;
    let balancer = Balancer::start(&rejecting.backend_yaml("a"), "retry: { attempts: 0 }").await;
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
    assert_eq!((response.status, rejecting.requests().len()), (200, 2), "{}", response.text());
}

#[tokio::test]
async fn a_client_disconnect_cancels_the_upstream_request() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    for (number, mood) in [Mood::Mute, Mood::Drip(Duration::from_millis(200))].into_iter().enumerate() {
        azure.set_mood("a", mood.clone());
        let mut client = balancer.connect().await;
        let head = Client::request_head(
            "POST",
            CHAT_TARGET,
            &[("api-key", CLIENT_KEY), ("Content-Length", &STORY_STREAM_BODY.len().to_string())],
        );
        client.send(head.as_bytes()).await;
        client.send(STORY_STREAM_BODY.as_bytes()).await;
        if number == 1 {
            assert_eq!(client.read_response_head().await.unwrap().status, 200);
            client.read_chunk().await;
        } else {
            wait_until("the request reaches the backend", || {
                azure.received_requests("a").iter().any(|request| request.is_body_complete)
            })
            .await;
        }
        drop(client);
        wait_until("the upstream request is cancelled", || {
            azure.received_requests("a").iter().filter(|request| request.client_disconnected).count()
                == number + 1
        })
        .await;
        let record = balancer.wait_for_records(number + 1).await.pop().unwrap();
        assert_eq!(record["outcome"], "client_gone", "{mood:?} {record:#}");
    }
    assert_eq!(balancer.status().await["in_flight"], 0);
}

#[tokio::test]
async fn a_client_disconnect_between_attempts_ends_the_retries() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    let mut client = balancer.connect().await;
    let head = Client::request_head(
        "POST",
        CHAT_TARGET,
        &[("api-key", CLIENT_KEY), ("Content-Length", &STORY_STREAM_BODY.len().to_string())],
    );
    client.send(head.as_bytes()).await;
    client.send(STORY_STREAM_BODY.as_bytes()).await;
    wait_until("the backend has been tried three times", || azure.request_count("a") >= 3).await;
    drop(client);
    let record = balancer.wait_for_records(1).await.pop().unwrap();
    assert_eq!(record["outcome"], "client_gone");
    assert!(azure.request_count("a") < 6);
}

#[tokio::test]
async fn unusual_but_legal_responses_are_relayed() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    for mood in [Mood::InfoFlood(20), Mood::Http10Close, Mood::CountersMinusOne] {
        azure.set_mood("a", mood.clone());
        let mut client = balancer.connect().await;
        let response =
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STORY_STREAM_BODY.as_bytes()).await;
        assert!(response.status == 200 && response.is_complete, "{mood:?}");
        assert!(response.text().ends_with("data: [DONE]\n\n"), "{mood:?}: {}", response.text());
        azure.set_mood("a", Mood::Calm);
        assert_eq!(
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], support::CHAT_BODY.as_bytes()).await.status,
            200,
            "{mood:?}"
        );
    }
}

#[tokio::test]
async fn a_client_disconnect_after_the_last_event_is_recorded_as_answered() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let done = b"data: [DONE]\n\n";
    // The end of the body never comes, so the client disconnects after the last event.
    let upstream = ScriptedUpstream::start(move |_| {
        let mut pieces =
            vec![head.to_vec(), format!("{:x}\r\n", done.len()).into(), done.to_vec(), b"\r\n".to_vec()];
        pieces.extend((0..5_000).map(|_| Vec::new()));
        pieces
    })
    .await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    let mut client = balancer.connect().await;
    client.send_chat(STORY_STREAM_BODY).await;
    assert_eq!(client.read_response_head().await.unwrap().status, 200);
    assert_eq!(client.read_chunk().await.unwrap(), done);
    drop(client);
    assert_eq!(balancer.wait_for_records(1).await[0]["outcome"], "answered");
}

#[tokio::test]
async fn http_1_0_clients_get_no_chunked_encoding() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    for body in [STORY_STREAM_BODY, support::CHAT_BODY] {
        let mut client = balancer.connect().await;
        let length = body.len();
        client
            .send(
                format!("POST {CHAT_TARGET} HTTP/1.0\r\napi-key: {CLIENT_KEY}\r\nContent-Length: {length}\r\n\r\n{body}")
                    .as_bytes(),
            )
            .await;
        let response = client.read_response().await;
        assert_eq!((response.status, response.header("transfer-encoding")), (200, None));
        assert!(
            response.text().starts_with(if body == STORY_STREAM_BODY { "data: {" } else { "{" }),
            "{}",
            response.text()
        );
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_broken_response_to_an_http_1_0_client_is_reset() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::CloseMidStream { after: BodyPosition::Events(3) });
    let mut stream = tokio::net::TcpStream::connect(balancer.address).await.unwrap();
    let length = STORY_STREAM_BODY.len();
    let request = format!(
        "POST {CHAT_TARGET} HTTP/1.0\r\napi-key: {CLIENT_KEY}\r\nContent-Length: {length}\r\n\r\n{STORY_STREAM_BODY}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    let read_result = stream.read_to_end(&mut received).await;
    assert!(String::from_utf8_lossy(&received).contains("data: "), "{received:?}");
    assert_eq!(read_result.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
