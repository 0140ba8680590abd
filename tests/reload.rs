//! A changed file is put in place while requests are under way; a bad one changes nothing.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::Duration;

use aoai_lb::demo::Mood;
use support::traffic::Traffic;
use support::{
    Balancer, CHAT, Client, HELLO, KEY, LISTED, STREAM, answerer, azure, backend, clients, listed, sha256,
    until,
};

async fn reloaded(balancer: &Balancer, version: u64) {
    balancer
        .until_status("the new configuration", |status| status["configuration"]["version"] == version)
        .await;
}

#[tokio::test]
async fn sighup_puts_the_file_in_place_and_requests_end_as_they_began() {
    let azure = azure(&["a", "b"]).await;
    azure.set_mood("a", Mood::Drip(Duration::from_millis(100)));
    let balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let mut streaming = balancer.client().await;
    let headers = [("api-key", KEY), ("Content-Length", &STREAM.len().to_string())];
    streaming.send(Client::head("POST", CHAT, &headers).as_bytes()).await;
    streaming.send(STREAM.as_bytes()).await;
    let head = streaming.reply_head().await.unwrap();
    assert_eq!((head.status, answerer(&head).as_str()), (200, "a"));
    assert!(!streaming.chunk().await.unwrap().is_empty());
    // Another backend, another client.
    let text = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    let other =
        format!("clients:\n  - name: team-b\n    keys: [ {{ sha256: {} }} ]\n", sha256("key-of-team-b"));
    let text = text.replace(&backend(&azure, "a", LISTED), &backend(&azure, "b", LISTED));
    balancer.write(&text.replace(&clients(), &other));
    balancer.signal("HUP");
    reloaded(&balancer, 2).await;
    assert_eq!(balancer.chat().await.code(), "invalid_api_key");
    let reply = balancer.post(CHAT, &[("api-key", "key-of-team-b")], HELLO.as_bytes()).await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    // What began before goes on to its end, with the client and the backend that are gone.
    azure.set_mood("a", Mood::Calm);
    let mut end = Vec::new();
    while let Some(chunk) = streaming.chunk().await {
        if chunk.is_empty() {
            break;
        }
        end = chunk;
    }
    assert!(end.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&end));
    // SIGHUP begins a new file; this is its last record.
    until("it is recorded", || balancer.records().iter().any(|record| record["stream"] == true)).await;
    let records = balancer.records();
    let stream = records.iter().find(|record| record["stream"] == true).unwrap();
    assert_eq!((stream["client"].as_str(), stream["outcome"].as_str()), (Some("team-a"), Some("answered")));
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let good = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    balancer.write(&good.replace("credential:", "credental:"));
    let reply = balancer.admin_post("/api/reload").await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"));
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    for part in
        ["the configuration stays as it is", "backends[0].credental: unknown key; did you mean `credential`?"]
    {
        assert!(message.contains(part), "{message}");
    }
    balancer.signal("HUP");
    until("the log says it twice", || {
        balancer.log().matches("the configuration stays as it is").count() == 2
    })
    .await;
    let configuration = balancer.status().await["configuration"].clone();
    assert_eq!(configuration["version"], 1);
    assert!(configuration["problem"].as_str().unwrap().contains("credental"), "{configuration}");
    assert_eq!(balancer.chat().await.status, 200);
    balancer.write(&good.replace("a-key", "\"${NO_SUCH_VARIABLE}\""));
    let message = balancer.admin_post("/api/reload").await.text();
    assert!(message.contains("variables are those of the process's start"), "{message}");
    // No file at all is as bad.
    std::fs::remove_file(balancer.path("aoai-lb.yaml")).unwrap();
    let reply = balancer.admin_post("/api/reload").await;
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("cannot read"), "{}", reply.text());
    balancer.write(&good);
    let reply = balancer.admin_post("/api/reload").await;
    assert_eq!((reply.status, reply.json()["version"].as_u64()), (200, Some(2)));
    assert!(balancer.status().await["configuration"]["problem"].is_null());
    let metrics =
        Client::connect(balancer.admin).await.get("/metrics", &[("Host", "localhost")]).await.text();
    assert!(metrics.contains("aoai_lb_config_reloads_total{result=\"success\"} 1"), "{metrics}");
    assert!(metrics.contains("aoai_lb_config_reloads_total{result=\"failure\"} 4"));
}

#[tokio::test]
async fn what_was_opened_at_the_start_needs_an_upgrade_and_is_named() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    balancer.rewrite("server: { drain_delay: 0s }", "server: { drain_delay: 1s }");
    balancer.rewrite("path: records.jsonl", "path: others.jsonl");
    let entry = backend(&azure, "a", LISTED);
    balancer.rewrite(&entry, &(entry.clone() + &backend(&azure, "b", LISTED)));
    let reply = balancer.admin_post("/api/reload").await;
    let needs = serde_json::json!(["server.drain_delay", "record.jsonl", "record.spool"]);
    assert_eq!(reply.json()["needs_upgrade"], needs);
    let status = balancer.status().await;
    assert_eq!(status["configuration"]["needs_upgrade"], needs);
    assert_eq!(balancer.states().await.len(), 2, "the rest is in place");
    balancer.chat().await;
    balancer.records_of(1).await;
    balancer.until_said("record.jsonl: comes into effect with an upgrade").await;
}

#[tokio::test]
async fn backends_that_stay_keep_their_state_and_their_connections() {
    let azure = azure(&["a", "b", "c"]).await;
    let entries = listed(&azure);
    let balancer = Balancer::start(&entries, "balance: round_robin").await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    let mut client = balancer.client().await;
    for _ in 0..6 {
        assert_eq!(client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await.status, 200);
    }
    assert_eq!(balancer.admin_post("/api/backends/b/drain").await.json()["drained"], true);
    let before = (azure.hits("a"), azure.connections("c"), azure.connections("b"));
    balancer.rewrite("balance: round_robin", "balance: headroom");
    for version in 2..5 {
        assert_eq!(balancer.admin_post("/api/reload").await.json()["version"], version);
        for _ in 0..4 {
            let reply = client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
            assert_eq!((reply.status, answerer(&reply).as_str()), (200, "c"), "a cools, b is drained");
        }
    }
    assert_eq!(before, (azure.hits("a"), azure.connections("c"), azure.connections("b")));
    let status = balancer.status().await;
    assert_eq!(status["backends"][0]["resting"][0]["reason"], "cooling");
    assert_eq!(balancer.states().await[1], ("b".to_owned(), "drained".to_owned()));
    balancer.admin_post("/api/backends/b/undrain").await;
    let mut answerers = Vec::new();
    for _ in 0..4 {
        answerers.push(answerer(&client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await));
    }
    assert!(answerers.contains(&"b".to_owned()), "{answerers:?}");
}

#[tokio::test]
async fn every_part_of_the_file_that_can_is_in_place_at_once() {
    let azure = azure(&["a"]).await;
    let more = "requests: { max_body: 1MiB }\nrecord: { jsonl: { path: records.jsonl } }";
    let balancer = Balancer::start(&backend(&azure, "a", ""), more).await;
    let headers = [("api-key", KEY), ("x-forwarded-for", "198.51.100.7")];
    let body = r#"{"messages":[{"role":"user","content":"the password is hunter2"}]}"#.as_bytes();
    balancer.post(CHAT, &headers, body).await;
    balancer.rewrite("max_body: 1MiB", "max_body: 10B");
    assert_eq!(balancer.admin_post("/api/reload").await.status, 200);
    assert_eq!(balancer.post(CHAT, &headers, body).await.code(), "body_too_large");
    balancer.rewrite("requests: { max_body: 10B }\nrecord: {", "record: { redact: [hunter2],");
    let listener = format!("address: {}\n", balancer.address);
    balancer.rewrite(&listener, &format!("{listener}    trusted_proxies: [127.0.0.1]\n"));
    assert_eq!(balancer.admin_post("/api/reload").await.json()["needs_upgrade"], serde_json::json!([]));
    balancer.post(CHAT, &headers, body).await;
    let records = balancer.records_of(3).await;
    let of = |n: usize| {
        (records[n]["client_ip"].as_str(), records[n]["prompt"].as_str().unwrap_or("").contains("hunter2"))
    };
    assert_eq!(of(0), (Some("127.0.0.1"), true));
    assert_eq!(of(2), (Some("198.51.100.7"), false), "{}", records[2]);
    assert_eq!(records[2]["deployment"], "gpt-4o");
}

#[tokio::test]
async fn connections_of_one_address_are_bounded() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::with_listener(&backend(&azure, "a", ""), "connections_per_client: 3").await;
    let mut held = Vec::new();
    // The harness's own connections end at some moment.
    while held.len() < 3 {
        let mut client = balancer.client().await;
        if client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await.status == 200 {
            held.push(client);
        }
    }
    let mut refused = balancer.client().await;
    let reply = refused.reply().await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "overloaded"));
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("has 3 connections already"));
    balancer.until_said("(listeners[].connections_per_client); more are refused").await;
    held.pop();
    // A place is free as soon as its connection is gone.
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while balancer.chat().await.status != 200 {
        assert!(std::time::Instant::now() < deadline);
    }
    balancer.rewrite("connections_per_client: 3", "connections_per_client: 100");
    assert_eq!(balancer.admin_post("/api/reload").await.status, 200);
    for _ in 0..10 {
        let mut client = balancer.client().await;
        assert_eq!(client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await.status, 200);
        held.push(client);
    }
}

#[tokio::test]
async fn ten_reloads_under_load_lose_nothing() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&listed(&azure), "balance: round_robin").await;
    let traffic = Traffic::start(balancer.address);
    for n in 0..10 {
        let (from, to) = if n % 2 == 0 { ("round_robin", "headroom") } else { ("headroom", "round_robin") };
        balancer.rewrite(&format!("balance: {from}"), &format!("balance: {to}"));
        let begun = traffic.begun();
        assert_eq!(balancer.admin_post("/api/reload").await.json()["version"], n + 2);
        until("there is traffic", || traffic.begun() > begun + 20).await;
    }
    let seen = traffic.finish().await;
    assert_eq!(seen.failures, Vec::<String>::new());
    let records = balancer.records_of(seen.requests + seen.streams + seen.sockets).await;
    assert!(records.iter().all(|record| record["outcome"] != "failed"));
}
