//! Streams: bytes as they are, when they come; usage asked for and taken out; broken ends
//! that look broken; clients that leave.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Extent, Mood, Refusal};
use serde_json::Value;
use support::upstream::{self, Request, Upstream};
use support::{Balancer, CHAT, Client, KEY, azure, backends, until};

const STREAM: &str =
    r#"{"stream":true,"messages":[{"role":"user","content":"tell me a story of some length"}]}"#;
const OLD: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01";

fn events(body: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let data =
        text.split("\n\n").filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// What differs between two answers to the same question is made up anew each time.
fn stable(events: &[Value]) -> Vec<Value> {
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
async fn usage_is_asked_for_recorded_and_taken_out_again() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    for mood in [Mood::Calm, Mood::TinyWrites] {
        azure.set_mood("a", mood.clone());
        let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
        assert!(reply.whole && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
        let sent: Value = serde_json::from_slice(&azure.requests("a").pop().unwrap().body.unwrap()).unwrap();
        assert_eq!(sent["stream_options"]["include_usage"], true);
        let mut direct = Client::connect(azure.address("a")).await;
        let direct = direct.post(CHAT, &[("api-key", "a-key")], STREAM.as_bytes()).await;
        assert_eq!(stable(&events(&reply.body)), stable(&events(&direct.body)), "{mood:?}");
    }
    let record = &balancer.records_of(2).await[0];
    assert!(record["output_tokens"].as_u64().unwrap() > 0, "{record:#}");
    assert_eq!((record["usage_source"].as_str(), record["stream"].as_bool()), (Some("reported"), Some(true)));
    assert_eq!(record["finish_reason"], "stop");
    assert!(record["completion"].as_str().unwrap().starts_with("You said: tell me a story"));
}

#[tokio::test]
async fn streams_that_are_not_asked_are_byte_identical() {
    let azure = azure(&["a"]).await;
    let balancer =
        Balancer::start(&backends(&azure), "record: { usage: observe, jsonl: { path: records.jsonl } }")
            .await;
    for mood in
        [Mood::Calm, Mood::TinyWrites, Mood::AsyncFilter { blocks: false }, Mood::CleanEndWithoutTerminal]
    {
        azure.set_mood("a", mood);
        let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
        assert_eq!(azure.requests("a").pop().unwrap().body.unwrap(), STREAM.as_bytes());
        let usage = events(&reply.body).iter().any(|event| event.get("usage").is_some());
        assert!(!usage, "nobody asked");
    }
    // An api-version that does not know the option is not asked either.
    let balancer = Balancer::start(&backends(&azure), "").await;
    balancer.post(OLD, &[("api-key", KEY)], STREAM.as_bytes()).await;
    assert_eq!(azure.requests("a").pop().unwrap().body.unwrap(), STREAM.as_bytes());
}

#[tokio::test]
async fn a_client_that_asks_for_usage_gets_it() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    let body = r#"{"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"x"}]}"#;
    let reply = balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
    let with_usage = events(&reply.body).into_iter().filter(|event| event["usage"].is_object()).count();
    assert_eq!(with_usage, 1);
    assert_eq!(azure.requests("a").pop().unwrap().body.unwrap(), body.as_bytes());
}

#[tokio::test]
async fn a_backend_that_declines_the_question_is_asked_without_it() {
    let declined = r#"{"error":{"message":"Unrecognized request argument supplied: stream_options","type":"invalid_request_error","param":null,"code":null}}"#;
    let content = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
    let upstream = Upstream::start(move |request| {
        let asked = String::from_utf8_lossy(&request.body).contains("stream_options");
        let (status, kind, body) =
            if asked { (400, "application/json", declined) } else { (200, "text/event-stream", content) };
        vec![head(status, kind, body.len()), body.into()]
    })
    .await;
    let entry = upstream.backend("a") + "    deployments: { gpt-4o: gpt-4o }\n";
    let balancer = Balancer::start(&entry, "").await;
    for expected in [2, 3] {
        let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, content));
        assert_eq!(upstream.requests().len(), expected, "remembered after the first time");
    }
    let asked = upstream.requests().iter().map(|seen| seen.body != STREAM.as_bytes()).collect::<Vec<_>>();
    assert_eq!(asked, [true, false, false]);
}

fn head(status: u16, kind: &str, length: usize) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .into()
}

/// An event stream with everything that a careless reader would change.
fn awkward_stream() -> Vec<u8> {
    let mut text = String::from("\u{feff}: a comment\r\n\r\nid: 7\nretry: 10\n\n");
    for n in 0..300 {
        text += &format!(
            "event: x\r\ndata: {{\"choices\":[{{\"delta\":{{\"content\":\"w{n} \u{e4}\u{1f600}\"}}}}],\r\ndata: \"n\":{n}}}\r\n\r\n"
        );
    }
    text += &format!("data: {{\"choices\":[],\"padding\":\"{}\"}}\n\n", "x".repeat(200_000));
    text += "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3}}\n\ndata: [DONE]\n\n";
    text.into_bytes()
}

#[tokio::test]
async fn bytes_of_streams_are_the_same_however_they_are_cut() {
    for size in [7, 100, 4_096, 1_000_000] {
        for chunked in [true, false] {
            let upstream = Upstream::start(move |_| {
                let body = awkward_stream();
                let mut pieces = Vec::new();
                if chunked {
                    pieces.push(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec());
                } else {
                    pieces.push(head(200, "text/event-stream", body.len()));
                }
                // Few writes for many small pieces; the cuts are those of chunks and writes.
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
            let balancer = Balancer::start(&upstream.backend("a"), observe).await;
            let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
            assert!(reply.whole);
            let digest = openssl::sha::sha256;
            assert_eq!(digest(&reply.body), digest(&awkward_stream()), "pieces of {size}, chunked {chunked}");
            let record = &balancer.records_of(1).await[0];
            assert_eq!(
                (record["total_tokens"].as_u64(), record["outcome"].as_str()),
                (Some(3), Some("answered"))
            );
            // The same with usage asked for on the balancer's account: only that event goes.
            let balancer = Balancer::start(&upstream.backend("a"), "").await;
            let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
            let text = String::from_utf8(awkward_stream()).unwrap();
            let (before, after) = text.split_once("data: {\"choices\":[],\"usage\"").unwrap();
            let without = format!("{before}{}", after.split_once("\n\n").unwrap().1);
            assert_eq!(
                digest(&reply.body),
                digest(without.as_bytes()),
                "pieces of {size}, chunked {chunked}"
            );
        }
    }
}

#[tokio::test]
async fn chunks_go_out_when_they_come_in() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::Drip(Duration::from_millis(150)));
    let mut client = balancer.client().await;
    let head = Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &STREAM.len().to_string())]);
    client.send(head.as_bytes()).await;
    client.send(STREAM.as_bytes()).await;
    assert_eq!(client.reply_head().await.unwrap().status, 200);
    let mut times = Vec::new();
    while let Some(chunk) = client.chunk().await {
        times.push(Instant::now());
        if chunk.is_empty() || times.len() == 5 {
            break;
        }
    }
    let gaps: Vec<u128> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!(gaps.iter().filter(|gap| **gap >= 50).count() >= 3, "gathered rather than passed on: {gaps:?}");
}

#[tokio::test]
async fn a_broken_stream_looks_broken() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&backends(&azure), "timeouts: { idle: 300ms }").await;
    let moods = [
        Mood::ResetMidBody { after: Extent::Events(3) },
        Mood::CloseMidStream { after: Extent::Events(3) },
        Mood::Silence { after: 3, lasting: Duration::from_secs(20) },
    ];
    for (n, mood) in moods.into_iter().enumerate() {
        azure.set_mood("a", mood.clone());
        azure.set_mood("b", mood.clone());
        let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
        assert_eq!((reply.status, reply.whole), (200, false), "{mood:?}");
        assert!(!reply.text().contains("[DONE]"));
        assert_eq!(azure.hits("a") + azure.hits("b"), n + 1, "no second try once the client saw something");
        let record = balancer.records_of(n + 1).await.pop().unwrap();
        assert_eq!(
            (record["outcome"].as_str(), record["status"].as_u64()),
            (Some("failed"), Some(200)),
            "{mood:?}"
        );
        assert!(record["attempts"][0]["error"].is_string(), "{record:#}");
    }
    azure.set_mood("a", Mood::TruncatedLength { missing: 10 });
    azure.set_mood("b", Mood::TruncatedLength { missing: 10 });
    assert!(!balancer.chat().await.whole);
}

#[tokio::test]
async fn a_clean_end_without_the_last_event_is_relayed_and_recorded_as_failed() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::CleanEndWithoutTerminal);
    let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
    assert!(reply.whole && !reply.text().contains("[DONE]"));
    assert_eq!(balancer.records_of(1).await[0]["outcome"], "failed");
}

#[tokio::test]
async fn our_own_question_costs_no_answer_where_no_further_attempt_is_allowed() {
    const REFUSES: &str = r#"{"error":{"message":"Unrecognized request argument supplied: stream_options","type":"invalid_request_error","param":null,"code":null}}"#;
    let declines = Upstream::start(|request: &Request| {
        let asked = String::from_utf8_lossy(&request.body).contains("stream_options");
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
        match asked {
            true => upstream::reply(400, "Content-Type: application/json", REFUSES),
            false => upstream::reply(200, "Content-Type: text/event-stream", stream),
        }
    })
    .await;
    let balancer = Balancer::start(&declines.backend("a"), "retry: { attempts: 0 }").await;
    let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
    assert_eq!((reply.status, declines.requests().len()), (200, 2), "{}", reply.text());
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    for (n, mood) in [Mood::Mute, Mood::Drip(Duration::from_millis(200))].into_iter().enumerate() {
        azure.set_mood("a", mood.clone());
        let mut client = balancer.client().await;
        let head =
            Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &STREAM.len().to_string())]);
        client.send(head.as_bytes()).await;
        client.send(STREAM.as_bytes()).await;
        if n == 1 {
            assert_eq!(client.reply_head().await.unwrap().status, 200);
            client.chunk().await;
        } else {
            until("the request arrives", || azure.requests("a").iter().any(|seen| seen.complete)).await;
        }
        drop(client);
        until("upstream is cancelled", || {
            azure.requests("a").iter().filter(|seen| seen.cancelled).count() == n + 1
        })
        .await;
        let record = balancer.records_of(n + 1).await.pop().unwrap();
        assert_eq!(record["outcome"], "client_gone", "{mood:?} {record:#}");
    }
    assert_eq!(balancer.status().await["in_flight"], 0);
}

#[tokio::test]
async fn a_client_that_leaves_between_tries_ends_them() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::Refuses(Refusal::Unavailable));
    let mut client = balancer.client().await;
    let head = Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &STREAM.len().to_string())]);
    client.send(head.as_bytes()).await;
    client.send(STREAM.as_bytes()).await;
    until("it has been asked three times", || azure.hits("a") >= 3).await;
    drop(client);
    let record = balancer.records_of(1).await.pop().unwrap();
    assert_eq!(record["outcome"], "client_gone");
    assert!(azure.hits("a") < 6);
}

#[tokio::test]
async fn odd_but_legal_replies_pass() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    for mood in [Mood::InfoFlood(20), Mood::Http10Close, Mood::CountersMinusOne] {
        azure.set_mood("a", mood.clone());
        let mut client = balancer.client().await;
        let reply = client.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
        assert!(reply.status == 200 && reply.whole, "{mood:?}");
        assert!(reply.text().ends_with("data: [DONE]\n\n"), "{mood:?}: {}", reply.text());
        azure.set_mood("a", Mood::Calm);
        assert_eq!(
            client.post(CHAT, &[("api-key", KEY)], support::HELLO.as_bytes()).await.status,
            200,
            "{mood:?}"
        );
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_on_the_last_event_has_its_answer() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let done = b"data: [DONE]\n\n";
    // The end of the body never comes: whoever waits for it waits in vain.
    let upstream = Upstream::start(move |_| {
        let mut pieces =
            vec![head.to_vec(), format!("{:x}\r\n", done.len()).into(), done.to_vec(), b"\r\n".to_vec()];
        pieces.extend((0..5_000).map(|_| Vec::new()));
        pieces
    })
    .await;
    let balancer = Balancer::start(&upstream.backend("a"), "").await;
    let mut client = balancer.client().await;
    let length = STREAM.len().to_string();
    client
        .send(Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]).as_bytes())
        .await;
    client.send(STREAM.as_bytes()).await;
    assert_eq!(client.reply_head().await.unwrap().status, 200);
    assert_eq!(client.chunk().await.unwrap(), done);
    drop(client);
    assert_eq!(balancer.records_of(1).await[0]["outcome"], "answered");
}

#[tokio::test]
async fn clients_of_http_1_0_get_no_chunks() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    for body in [STREAM, support::HELLO] {
        let mut client = balancer.client().await;
        let length = body.len();
        client
            .send(
                format!("POST {CHAT} HTTP/1.0\r\napi-key: {KEY}\r\nContent-Length: {length}\r\n\r\n{body}")
                    .as_bytes(),
            )
            .await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("transfer-encoding")), (200, None));
        assert!(reply.text().starts_with(if body == STREAM { "data: {" } else { "{" }), "{}", reply.text());
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_broken_answer_to_a_client_of_http_1_0_is_reset() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::CloseMidStream { after: Extent::Events(3) });
    let mut stream = tokio::net::TcpStream::connect(balancer.address).await.unwrap();
    let length = STREAM.len();
    let request =
        format!("POST {CHAT} HTTP/1.0\r\napi-key: {KEY}\r\nContent-Length: {length}\r\n\r\n{STREAM}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let ended = stream.read_to_end(&mut seen).await;
    assert!(String::from_utf8_lossy(&seen).contains("data: "), "{seen:?}");
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
