//! What one client must not be able to do to another, and answers that must not lie.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, Refusal};
use support::upstream::{self, Request, Upstream};
use support::{Balancer, CHAT, Client, HELLO, KEY, answerer, azure, backend, backends, until};

const OK: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;

fn reply(status: u16, kind: &str, body: &str) -> Vec<Vec<u8>> {
    upstream::reply(status, &format!("Content-Type: {kind}"), body)
}

/// Answers well, but for requests whose body contains `poison`.
async fn poisoned(status: u16, kind: &'static str, body: &'static str) -> Upstream {
    Upstream::start(move |request: &Request| {
        let poison = String::from_utf8_lossy(&request.body).contains("poison");
        if poison { reply(status, kind, body) } else { reply(200, "application/json", OK) }
    })
    .await
}

#[tokio::test]
async fn what_azure_quotes_of_a_prompt_is_no_verdict_on_the_backend() {
    let table = [
        (
            400,
            "application/json",
            r#"{"error":{"message":"'no such deployment' is not one of ['user']","type":"invalid_request_error","code":null}}"#,
        ),
        (
            404,
            "application/json",
            r#"{"error":{"message":"deployment 'x' does not exist","type":"invalid_request_error","code":null}}"#,
        ),
        (403, "text/html", "<html>Blocked by firewall: &lt;script&gt;</html>"),
        (
            403,
            "application/json",
            r#"{"error":{"code":null,"message":"'access denied due to virtual network' is not allowed"}}"#,
        ),
        (
            400,
            "application/json",
            r#"{"error":{"code":"BadRequest","message":"API version 'poison' is not supported"}}"#,
        ),
    ];
    for (status, kind, body) in table {
        let (a, b) = (poisoned(status, kind, body).await, poisoned(status, kind, body).await);
        let listed =
            |upstream: &Upstream, name| upstream.backend(name) + "    deployments: { gpt-4o: gpt-4o }\n";
        let balancer = Balancer::start(&(listed(&a, "a") + &listed(&b, "b")), "").await;
        let poison = r#"{"messages":[{"role":"poison"}]}"#;
        let bad = balancer.post(CHAT, &[("api-key", KEY)], poison.as_bytes()).await;
        assert_ne!(bad.status, 200);
        for _ in 0..2 {
            assert_eq!(balancer.chat().await.status, 200, "{status} {body}");
        }
    }
}

#[tokio::test]
async fn an_unknown_model_of_a_call_that_goes_home_is_that_calls_own() {
    let upstream = Upstream::start(|request: &Request| {
        if request.head.contains("/models/nope") || String::from_utf8_lossy(&request.body).contains("nope") {
            reply(404, "application/json", r#"{"error":{"code":"model_not_found","message":"no"}}"#)
        } else {
            reply(200, "application/json", "{}")
        }
    })
    .await;
    let balancer = Balancer::start(&upstream.backend("a"), "").await;
    let mut client = balancer.client().await;
    let gone = client.get("/openai/v1/models/nope", &[("api-key", KEY)]).await;
    assert_eq!((gone.status, gone.code().as_str()), (404, "model_not_found"));
    let gone = client.post("/openai/v1/fine_tuning/jobs", &[("api-key", KEY)], br#"{"model":"nope"}"#).await;
    assert_eq!(gone.status, 404);
    assert_eq!(client.get("/openai/v1/files", &[("api-key", KEY)]).await.status, 200);
}

#[tokio::test]
async fn an_id_is_sought_elsewhere_only_when_home_does_not_know_it() {
    let azure = azure(&["home", "other"]).await;
    let balancer = Balancer::start(&backends(&azure), "retry: { attempts: 1 }").await;
    azure.set_mood("home", Mood::Refuses(Refusal::Unavailable));
    let target = "/openai/v1/files/file-0123";
    let mut client = balancer.client().await;
    for method in ["GET", "DELETE"] {
        let reply = client.request(method, target, &[("api-key", KEY)], None).await;
        assert_eq!(
            (reply.status, answerer(&reply).as_str()),
            (503, "home"),
            "{method}: nobody else can say that it is gone"
        );
    }
    azure.set_mood("home", Mood::Calm);
    let reply = client.get(target, &[("api-key", KEY)]).await;
    assert_eq!((reply.status, answerer(&reply).as_str(), azure.hits("other")), (404, "home", 1));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go_of() {
    let upstream = Upstream::start(|_| {
        let mut pieces = vec![
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 67108864\r\n\r\n"
                .to_vec(),
        ];
        pieces.extend((0..64).map(|_| vec![b'x'; 1 << 20]));
        pieces
    })
    .await;
    let balancer = Balancer::start(&upstream.backend("a"), "timeouts: { idle: 500ms }").await;
    let mut client = balancer.client().await;
    let length = HELLO.len().to_string();
    client
        .send(Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]).as_bytes())
        .await;
    client.send(HELLO.as_bytes()).await;
    assert_eq!(client.reply_head().await.unwrap().status, 200);
    let record = balancer.records_of(1).await.pop().unwrap();
    assert_ne!(record["outcome"], "answered");
    assert_eq!(balancer.status().await["in_flight"], 0);
}

#[tokio::test]
async fn announcing_a_body_takes_nothing_from_others() {
    let azure = azure(&["a"]).await;
    let more = "requests: { max_body: 1MiB, body_memory: 2MiB, max_streamed_body: 1MiB }";
    let balancer = Balancer::start(&backends(&azure), more).await;
    let mut idle = Vec::new();
    for _ in 0..5 {
        let mut client = balancer.client().await;
        client
            .send(Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", "1000000")]).as_bytes())
            .await;
        client.send(b"{").await;
        idle.push(client);
    }
    for _ in 0..3 {
        assert_eq!(balancer.chat().await.status, 200);
    }
}

#[tokio::test]
async fn a_large_error_reply_is_passed_on_whole_or_not_at_all() {
    let body = "x".repeat(300_000);
    let text = body.clone();
    let upstream = Upstream::start(move |_| reply(500, "text/plain", &text)).await;
    let azure = azure(&["b"]).await;
    let alone = Balancer::start(&upstream.backend("a"), "retry: { attempts: 0 }").await;
    let reply = alone.chat().await;
    assert_eq!((reply.status, reply.whole, reply.body.len()), (500, true, body.len()));
    assert_eq!(alone.records_of(1).await[0]["response_bytes"], body.len());
    // With somebody else to ask nobody waits for its end.
    let both = Balancer::start(&(upstream.backend("a") + &backend(&azure, "b", "")), "").await;
    let reply = both.chat().await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
}

#[tokio::test]
async fn an_error_reply_that_trickles_is_not_waited_for() {
    let upstream = Upstream::start(|_| {
        let mut pieces = vec![b"HTTP/1.1 500 X\r\nContent-Length: 100000\r\n\r\n".to_vec()];
        pieces.extend((0..60_000).map(|_| b"x".to_vec()));
        pieces
    })
    .await;
    let azure = azure(&["b"]).await;
    let balancer = Balancer::start(&(upstream.backend("a") + &backend(&azure, "b", "")), "").await;
    let begun = Instant::now();
    let reply = balancer.chat().await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_background_response_is_not_begun_twice() {
    let upstream = Upstream::start(|_| {
        let events = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\nevent: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\",\"message\":\"x\"}}}\n\n";
        reply(200, "text/event-stream", events)
    })
    .await;
    let balancer = Balancer::start(&upstream.backend("a"), "retry: { attempts: 3 }").await;
    let ask = |background: bool| {
        format!(r#"{{"model":"gpt-4o","input":"x","stream":true,"background":{background}}}"#)
    };
    let reply = balancer.post("/openai/v1/responses", &[("api-key", KEY)], ask(true).as_bytes()).await;
    assert!(reply.status == 200 && reply.text().contains("resp_1"));
    assert_eq!(upstream.requests().len(), 1);
    balancer.post("/openai/v1/responses", &[("api-key", KEY)], ask(false).as_bytes()).await;
    assert_eq!(upstream.requests().len(), 5, "what can be repeated is");
}

#[tokio::test]
async fn a_400_about_the_clients_own_words_does_not_end_the_metering_of_others() {
    let bad =
        r#"{"error":{"message":"'include_usage' is not one of ['user']","type":"invalid_request_error"}}"#;
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
    let upstream = Upstream::start(move |request: &Request| {
        let poison = String::from_utf8_lossy(&request.body).contains("poison");
        if poison { reply(400, "application/json", bad) } else { reply(200, "text/event-stream", stream) }
    })
    .await;
    let entry = upstream.backend("a") + "    deployments: { gpt-4o: gpt-4o }\n";
    let balancer = Balancer::start(&entry, "retry: { statuses: [400-599], attempts: 3 }").await;
    let ask = |role: &str| format!(r#"{{"stream":true,"messages":[{{"role":"{role}","content":"x"}}]}}"#);
    let reply = balancer.post(CHAT, &[("api-key", KEY)], ask("poison").as_bytes()).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    balancer.post(CHAT, &[("api-key", KEY)], ask("user").as_bytes()).await;
    let last = upstream.requests().pop().unwrap();
    assert!(String::from_utf8_lossy(&last.body).contains("include_usage"), "still asked");
}

#[tokio::test]
async fn the_time_of_the_first_byte_begins_when_the_request_has_been_sent() {
    let azure = azure(&["a"]).await;
    let more = "timeouts: { first_byte: 400ms }\nrequests: { max_body: 64KiB, body_memory: 1MiB, max_streamed_body: 8MiB }";
    let balancer = Balancer::start(&backends(&azure), more).await;
    let file = "y".repeat(200_000);
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\r\n{file}\r\n--B--\r\n"
    );
    let mut client = balancer.client().await;
    let length = form.len().to_string();
    let headers = [
        ("api-key", KEY),
        ("Content-Type", "multipart/form-data; boundary=B"),
        ("Content-Length", length.as_str()),
    ];
    client.send(Client::head("POST", "/openai/v1/files", &headers).as_bytes()).await;
    for piece in form.as_bytes().chunks(25_000) {
        client.send(piece).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reply = client.reply().await;
    assert!(matches!(reply.status, 200 | 201), "{} {}", reply.status, reply.text());
    azure.set_mood("a", Mood::Mute);
    let begun = Instant::now();
    assert_eq!(
        balancer.post("/openai/v1/batches", &[("api-key", KEY)], b"{}").await.code(),
        "upstream_timeout"
    );
    assert!((Duration::from_millis(390)..Duration::from_secs(10)).contains(&begun.elapsed()));
}

#[tokio::test]
async fn an_upload_that_stalls_or_breaks_is_told_so() {
    let azure = azure(&["a"]).await;
    let more = "timeouts: { request_body: 300ms }\nrequests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 1MiB }";
    let balancer = Balancer::start(&backends(&azure), more).await;
    let headers = [
        ("api-key", KEY),
        ("Content-Type", "multipart/form-data; boundary=B"),
        ("Transfer-Encoding", "chunked"),
    ];
    for (more, code) in [("", "request_timeout"), ("zz\r\n", "bad_request")] {
        let mut client = balancer.client().await;
        client.send(Client::head("POST", "/openai/v1/files", &headers).as_bytes()).await;
        client.send(format!("1000\r\n{}\r\n", "y".repeat(0x1000)).as_bytes()).await;
        until("the upload passes", || azure.hits("a") > 0).await;
        client.send(more.as_bytes()).await;
        assert_eq!(client.reply().await.code(), code);
    }
    let records = balancer.records_of(2).await;
    assert!(
        records.iter().all(|record| record["outcome"] == "refused" && record["request_bytes"].is_null()),
        "{records:#?}"
    );
}

#[tokio::test]
async fn only_an_answer_makes_a_deployment_known() {
    let upstream = Upstream::start(|_| {
        vec![
            b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                .to_vec(),
        ]
    })
    .await;
    let balancer = Balancer::start(&upstream.backend("a"), "").await;
    for n in 0..3 {
        let target = CHAT.replace("gpt-4o", &format!("invented-{n}"));
        assert_eq!(balancer.post(&target, &[("api-key", KEY)], HELLO.as_bytes()).await.status, 302);
    }
    assert!(!balancer.log().contains("invented"), "{}", balancer.log());
}

#[tokio::test]
async fn what_comes_after_a_request_does_not_cost_its_answer() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_millis(300)));
    let length = HELLO.len().to_string();
    let request = Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]) + HELLO;
    for more in ["\r\n", &request] {
        let hits = azure.hits("a");
        let mut client = balancer.client().await;
        client.send(request.as_bytes()).await;
        until("it runs", || azure.hits("a") > hits).await;
        client.send(more.as_bytes()).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.whole), (200, true));
        assert_eq!(reply.header("connection").map(str::to_lowercase).as_deref(), Some("close"));
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_pause_between_tries_harms_neither_uploads_nor_clients() {
    let azure = azure(&["a"]).await;
    let more = "retry: { wait: 2s }\ntimeouts: { first_byte: 150ms, first_byte_stream: 150ms }\nrequests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 8MiB }";
    let balancer = Balancer::start(&backends(&azure), more).await;
    let throttled = Mood::Throttled { retry_after_ms: Some(400), retry_after: None };
    azure.set_mood("a", Mood::Sequence(vec![throttled, Mood::Calm]));
    let mut client = balancer.client().await;
    assert_eq!(client.get("/openai/v1/models", &[("api-key", KEY)]).await.status, 200, "waited for");
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(600), retry_after: None });
    let mut other = balancer.client().await;
    let refused =
        tokio::spawn(async move { other.get("/openai/v1/models", &[("api-key", KEY)]).await.status });
    until("it cools", || azure.hits("a") >= 3).await;
    azure.set_mood("a", Mood::Calm);
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\r\n{}\r\n--B--\r\n",
        "y".repeat(3 << 20)
    );
    let headers = [("api-key", KEY), ("Content-Type", "multipart/form-data; boundary=B")];
    let reply = balancer.post("/openai/v1/files", &headers, form.as_bytes()).await;
    assert!(matches!(reply.status, 200 | 201), "{} {}", reply.status, reply.text());
    refused.await.unwrap();
    // Between rounds no time-out of a first byte runs.
    azure.set_mood(
        "a",
        Mood::Sequence(vec![
            Mood::Refuses(Refusal::Unavailable),
            Mood::Refuses(Refusal::Unavailable),
            Mood::Refuses(Refusal::Unavailable),
            Mood::Calm,
        ]),
    );
    let reply = balancer.chat().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test]
async fn homes_own_trouble_does_not_make_an_object_unknown() {
    let azure = azure(&["home", "other"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("home", Mood::Refuses(Refusal::InvalidKey));
    let reply = balancer.client().await.get("/openai/v1/files/file-1", &[("api-key", KEY)]).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "backend_misconfigured"));
    assert_eq!(azure.hits("other"), 0);
}

#[tokio::test]
async fn a_429_that_breaks_off_is_a_429() {
    let cut = Upstream::start(|_| {
        vec![b"HTTP/1.1 429 X\r\nRetry-After: 30\r\nContent-Length: 1000\r\n\r\n{\"error\"".to_vec()]
    })
    .await;
    let azure = azure(&["b"]).await;
    let entry = cut.backend("a")
        + "    deployments: { gpt-4o: gpt-4o }\n"
        + &backend(&azure, "b", "deployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&entry, "").await;
    for _ in 0..3 {
        assert_eq!(answerer(&balancer.chat().await), "b");
    }
    assert_eq!(cut.requests().len(), 1, "it cools");
    assert_eq!(balancer.records_of(3).await[0]["attempts"][0]["status"], 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blip_opens_a_breaker_once() {
    let azure = azure(&["a", "b"]).await;
    let listed = backend(&azure, "a", "deployments: { gpt-4o: gpt-4o }")
        + &backend(&azure, "b", "deployments: { gpt-4o: gpt-4o }");
    let balancer = std::sync::Arc::new(Balancer::start(&listed, "breaker: { open: 30s }").await);
    azure.set_mood("a", Mood::After(Duration::from_millis(300), Box::new(Mood::CloseBeforeHead)));
    let tasks: Vec<_> = (0..80)
        .map(|_| {
            let balancer = balancer.clone();
            tokio::spawn(async move { balancer.chat().await.status })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
    balancer.until_said("fails too often").await;
    assert_eq!(balancer.log().matches("fails too often").count(), 1, "{}", balancer.log());
    let until_ms = balancer.status().await["backends"][0]["until_ms"].as_u64().unwrap();
    assert!(until_ms <= 30_000, "{until_ms}");
}
