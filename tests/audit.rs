//! Records under stress: none is lost, doubled or without its content because of another client or a disk.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use support::upstream::{PAUSE_100_MS, RawRequest, ScriptedUpstream};
use support::{Balancer, CHAT_BODY, CHAT_TARGET, Client, sha256_hex};

const HEAVY_KEY: &str = "key-of-heavy";
const CALM_KEY: &str = "key-of-calm";
/// For what takes a debug build on a busy machine long.
const LONG_TIMEOUT: Duration = Duration::from_secs(120);
/// The default of `record.content_limit`.
const CONTENT_LIMIT: usize = 64 * 1024;

fn two_clients_yaml() -> String {
    let client = |name: &str, key: &str| {
        format!("  - name: {name}\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex(key))
    };
    format!("clients:\n{}{}", client("heavy", HEAVY_KEY), client("calm", CALM_KEY))
}

/// An upstream whose streams say a word and then nothing for half a minute.
async fn start_upstream_with_open_streams() -> ScriptedUpstream {
    ScriptedUpstream::start(|request: &RawRequest| {
        let body_start = String::from_utf8_lossy(&request.body[..request.body.len().min(200)]).into_owned();
        if !body_start.contains("\"stream\":true") {
            let body = r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
            return support::upstream::complete_response(200, "Content-Type: application/json", body);
        }
        let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a word\"}}]}\n\n";
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut pieces = vec![format!("{head}{:x}\r\n{event}\r\n", event.len()).into_bytes()];
        pieces.extend(vec![PAUSE_100_MS.to_vec(); 300]);
        pieces
    })
    .await
}

/// Opens streams with this body and reads until their first event.
async fn open_streams(balancer: &Balancer, count: usize, key: &str, body: &str) -> Vec<Client> {
    let mut streams = Vec::new();
    while streams.len() < count {
        let opened = join_all((0..20.min(count - streams.len())).map(|_| async {
            let mut client = balancer.connect().await;
            let headers = [("api-key", key), ("Content-Type", "application/json")];
            let length = body.len().to_string();
            let headers = [&headers[..], &[("Content-Length", length.as_str())]].concat();
            client.send((Client::request_head("POST", CHAT_TARGET, &headers)).as_bytes()).await;
            client.send(body.as_bytes()).await;
            assert_eq!(client.read_response_head().await.unwrap().status, 200);
            assert!(client.read_chunk().await.is_some());
            client
        }));
        streams.extend(opened.await);
    }
    streams
}

/// Like `Balancer::wait_for_records`, without parsing records again and again.
async fn wait_for_large_records(balancer: &Balancer, count: usize) -> Vec<Value> {
    let path = balancer.path("records.jsonl");
    let line_count = || std::fs::read(&path).unwrap_or_default().split(|byte| *byte == b'\n').count() - 1;
    let started = Instant::now();
    while line_count() < count {
        assert!(started.elapsed() < LONG_TIMEOUT, "{} of {count} records\n{}", line_count(), balancer.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    balancer.records()
}

fn records_of<'r>(records: &'r [Value], client: &str) -> Vec<&'r Value> {
    records.iter().filter(|record| record["client"] == client).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_streams_that_break_off_together_cost_no_record_and_no_prompt() {
    const STREAMS: usize = 150;
    const REQUESTS: usize = 60;
    let upstream = start_upstream_with_open_streams().await;
    let balancer = Balancer::start_with_clients(&upstream.backend_yaml("a"), &two_clients_yaml(), "").await;
    let content = "some words ".repeat(100_000);
    let body = format!(r#"{{"stream":true,"messages":[{{"role":"user","content":"{content}"}}]}}"#);
    let streams = open_streams(&balancer, STREAMS, HEAVY_KEY, &body).await;
    drop(streams);
    for _ in 0..REQUESTS / 10 {
        let responses = join_all(
            (0..10).map(|_| balancer.post(CHAT_TARGET, &[("api-key", CALM_KEY)], CHAT_BODY.as_bytes())),
        );
        assert!(responses.await.iter().all(|response| response.status == 200));
    }
    let records = wait_for_large_records(&balancer, STREAMS + REQUESTS).await;
    let ids: HashSet<&str> = records.iter().map(|record| record["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), records.len(), "expected no record twice");
    let (heavy, calm) = (records_of(&records, "heavy"), records_of(&records, "calm"));
    assert_eq!((heavy.len(), calm.len()), (STREAMS, REQUESTS));
    for record in heavy {
        let prompt = record["prompt"].as_str().unwrap();
        assert!(prompt.len() <= CONTENT_LIMIT && prompt.len() > CONTENT_LIMIT - 4, "{}", prompt.len());
        assert_eq!((&record["completion"], &record["content_cut"]), (&"a word".into(), &true.into()));
        assert_eq!(record["usage_source"], "estimated");
        let input = record["input_tokens"].as_u64().unwrap();
        assert!((180_000..=220_000).contains(&input), "{input}");
    }
    for record in calm {
        assert!(record["prompt"].as_str().unwrap().contains("hello"), "{record}");
        assert_eq!((&record["completion"], &record["content_cut"]), (&"hi".into(), &false.into()));
    }
}
