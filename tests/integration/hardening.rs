//! Isolation of clients from each other, and responses that must not mislead.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, SimulatedError};
use support::upstream::{self, RawRequest, ScriptedUpstream};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, answering_backend, sha256_hex,
    simulated_backend_yaml, start_simulator, wait_until,
};

const COMPLETION_BODY: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;

fn response_with_type(status: u16, content_type: &str, body: &str) -> Vec<Vec<u8>> {
    upstream::complete_response(status, &format!("Content-Type: {content_type}"), body)
}

/// Starts an upstream that responds normally, except to requests whose body contains `poison`.
async fn start_upstream_failing_on_poison(
    status: u16,
    content_type: &'static str,
    body: &'static str,
) -> ScriptedUpstream {
    ScriptedUpstream::start(move |request: &RawRequest| {
        let has_poison = String::from_utf8_lossy(&request.body).contains("poison");
        if has_poison {
            response_with_type(status, content_type, body)
        } else {
            response_with_type(200, "application/json", COMPLETION_BODY)
        }
    })
    .await
}

#[tokio::test]
async fn prompt_text_quoted_in_an_azure_error_does_not_affect_backend_health() {
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
    for (status, content_type, body) in table {
        let (a, b) = (
            start_upstream_failing_on_poison(status, content_type, body).await,
            start_upstream_failing_on_poison(status, content_type, body).await,
        );
        let backend_with_deployment_yaml = |upstream: &ScriptedUpstream, name| {
            upstream.backend_yaml(name) + "    deployments: { gpt-4o: gpt-4o }\n"
        };
        let balancer = Balancer::start(
            &(backend_with_deployment_yaml(&a, "a") + &backend_with_deployment_yaml(&b, "b")),
            "",
        )
        .await;
        let has_poison = r#"{"messages":[{"role":"poison"}]}"#;
        let bad_response =
            balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], has_poison.as_bytes()).await;
        assert_ne!(bad_response.status, 200);
        for _ in 0..2 {
            assert_eq!(balancer.post_chat().await.status, 200, "{status} {body}");
        }
    }
}

#[tokio::test]
async fn an_unknown_model_in_a_call_to_the_default_backend_affects_only_that_call() {
    let upstream = ScriptedUpstream::start(|request: &RawRequest| {
        if request.head.contains("/models/nope") || String::from_utf8_lossy(&request.body).contains("nope") {
            response_with_type(
                404,
                "application/json",
                r#"{"error":{"code":"model_not_found","message":"no"}}"#,
            )
        } else {
            response_with_type(200, "application/json", "{}")
        }
    })
    .await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    let mut client = balancer.connect().await;
    let not_found = client.get("/openai/models/nope", &[("api-key", CLIENT_KEY)]).await;
    assert_eq!((not_found.status, not_found.error_code().as_str()), (404, "model_not_found"));
    let not_found =
        client.post("/openai/v1/fine_tuning/jobs", &[("api-key", CLIENT_KEY)], br#"{"model":"nope"}"#).await;
    assert_eq!(not_found.status, 404);
    assert_eq!(client.get("/openai/v1/files", &[("api-key", CLIENT_KEY)]).await.status, 200);
}

#[tokio::test]
async fn an_id_is_not_a_404_while_a_resource_cannot_be_asked() {
    let azure = start_simulator(&["home", "other"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "retry: { attempts: 1 }").await;
    azure.set_mood("home", Mood::Refuses(SimulatedError::Unavailable));
    let target = "/openai/v1/files/file-0123";
    let mut client = balancer.connect().await;
    for method in ["GET", "DELETE"] {
        let response = client.request(method, target, &[("api-key", CLIENT_KEY)], None).await;
        assert_eq!((response.status, response.error_code().as_str()), (503, "home_unavailable"), "{method}");
    }
    azure.set_mood("home", Mood::Calm);
    let response = client.get(target, &[("api-key", CLIENT_KEY)]).await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (404, "home"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let upstream = ScriptedUpstream::start(|_| {
        let mut pieces = vec![
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 67108864\r\n\r\n"
                .to_vec(),
        ];
        pieces.extend((0..64).map(|_| vec![b'x'; 1 << 20]));
        pieces
    })
    .await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "timeouts: { idle: 500ms }").await;
    let mut client = balancer.connect().await;
    client.send_chat(CHAT_BODY).await;
    assert_eq!(client.read_response_head().await.unwrap().status, 200);
    let record = balancer.wait_for_records(1).await.pop().unwrap();
    assert_ne!(record["outcome"], "answered");
    balancer.wait_for_status("nothing is in flight", |status| status["in_flight"] == 0).await;
}

#[tokio::test]
async fn a_body_that_is_announced_but_not_sent_reserves_no_memory() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "requests: { max_body: 1MiB, body_memory: 2MiB, max_streamed_body: 1MiB }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    let mut idle_clients = Vec::new();
    for _ in 0..5 {
        let mut client = balancer.connect().await;
        client
            .send(
                Client::request_head(
                    "POST",
                    CHAT_TARGET,
                    &[("api-key", CLIENT_KEY), ("Content-Length", "1000000")],
                )
                .as_bytes(),
            )
            .await;
        client.send(b"{").await;
        idle_clients.push(client);
    }
    for _ in 0..3 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
}

#[tokio::test]
async fn stalled_uploads_of_one_client_leave_memory_for_the_bodies_of_another() {
    let azure = start_simulator(&["a"]).await;
    let client = |name: &str| {
        let key = sha256_hex(&format!("key-of-{name}"));
        format!("  - name: {name}\n    keys: [ {{ sha256: {key} }} ]\n")
    };
    let clients = format!("clients:\n{}{}", client("greedy"), client("modest"));
    let extra_yaml = "requests: { max_body: 1MiB, body_memory: 4MiB, max_streamed_body: 1MiB }";
    let balancer = Balancer::start_with_clients(&all_backends_yaml(&azure), &clients, extra_yaml).await;
    let mut stalled_clients = Vec::new();
    for _ in 0..16 {
        let mut client = balancer.connect().await;
        let headers = [("api-key", "key-of-greedy"), ("Content-Length", "400000")];
        client.send(Client::request_head("POST", CHAT_TARGET, &headers).as_bytes()).await;
        client.try_send(&[b' '; 399_999]).await;
        stalled_clients.push(client);
    }
    // Two thirds of the memory are six such bodies; the others are refused.
    let in_flight = async || balancer.status().await["in_flight"].as_u64().unwrap();
    support::wait_until_async("the others are refused", async || in_flight().await <= 6).await;
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(100_000));
    for _ in 0..20 {
        let response = balancer.post(CHAT_TARGET, &[("api-key", "key-of-modest")], body.as_bytes()).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert!(in_flight().await >= 1, "expected some uploads to be held all the time");
}

#[tokio::test]
async fn a_large_error_response_is_relayed_completely_or_replaced_by_a_failover() {
    let body = "x".repeat(300_000);
    let text = body.clone();
    let upstream = ScriptedUpstream::start(move |_| response_with_type(500, "text/plain", &text)).await;
    let azure = start_simulator(&["b"]).await;
    let single_backend = Balancer::start(&upstream.backend_yaml("a"), "retry: { attempts: 0 }").await;
    let response = single_backend.post_chat().await;
    assert_eq!((response.status, response.is_complete, response.body.len()), (500, true, body.len()));
    assert_eq!(single_backend.wait_for_records(1).await[0]["response_bytes"], body.len());
    // With another backend to try, the balancer does not wait for the end of the error.
    let two_backends =
        Balancer::start(&(upstream.backend_yaml("a") + &simulated_backend_yaml(&azure, "b", "")), "").await;
    let response = two_backends.post_chat().await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
}

#[tokio::test]
async fn a_failover_does_not_wait_for_a_slow_error_body() {
    let upstream = ScriptedUpstream::start(|_| {
        let mut pieces = vec![b"HTTP/1.1 500 X\r\nContent-Length: 100000\r\n\r\n".to_vec()];
        pieces.extend((0..60_000).map(|_| b"x".to_vec()));
        pieces
    })
    .await;
    let azure = start_simulator(&["b"]).await;
    let balancer =
        Balancer::start(&(upstream.backend_yaml("a") + &simulated_backend_yaml(&azure, "b", "")), "").await;
    let start = Instant::now();
    let response = balancer.post_chat().await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_background_response_is_not_created_twice() {
    let upstream = ScriptedUpstream::start(|_| {
        let events = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\nevent: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\",\"message\":\"x\"}}}\n\n";
        response_with_type(200, "text/event-stream", events)
    })
    .await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "retry: { attempts: 3 }").await;
    let body_with = |background: bool| {
        format!(r#"{{"model":"gpt-4o","input":"x","stream":true,"background":{background}}}"#)
    };
    let response =
        balancer.post("/openai/v1/responses", &[("api-key", CLIENT_KEY)], body_with(true).as_bytes()).await;
    assert!(response.status == 200 && response.text().contains("resp_1"));
    assert_eq!(upstream.requests().len(), 1);
    balancer.post("/openai/v1/responses", &[("api-key", CLIENT_KEY)], body_with(false).as_bytes()).await;
    assert_eq!(upstream.requests().len(), 5, "expected the repeatable request to be retried");
}

#[tokio::test]
async fn a_400_that_quotes_include_usage_does_not_disable_usage_for_others() {
    let bad_response =
        r#"{"error":{"message":"'include_usage' is not one of ['user']","type":"invalid_request_error"}}"#;
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
    let upstream = ScriptedUpstream::start(move |request: &RawRequest| {
        let has_poison = String::from_utf8_lossy(&request.body).contains("poison");
        if has_poison {
            response_with_type(400, "application/json", bad_response)
        } else {
            response_with_type(200, "text/event-stream", stream)
        }
    })
    .await;
    let entry = upstream.backend_yaml("a") + "    deployments: { gpt-4o: gpt-4o }\n";
    let balancer = Balancer::start(&entry, "retry: { statuses: [400-599], attempts: 3 }").await;
    let body_with =
        |role: &str| format!(r#"{{"stream":true,"messages":[{{"role":"{role}","content":"x"}}]}}"#);
    let response =
        balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body_with("poison").as_bytes()).await;
    assert_eq!(response.status, 400, "{}", response.text());
    balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body_with("user").as_bytes()).await;
    let last = upstream.requests().pop().unwrap();
    assert!(
        String::from_utf8_lossy(&last.body).contains("include_usage"),
        "expected usage to be requested still"
    );
}

#[tokio::test]
async fn the_first_byte_timeout_starts_after_a_streamed_upload_has_been_sent() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "timeouts: { first_byte: 400ms }\nrequests: { max_body: 64KiB, body_memory: 1MiB, max_streamed_body: 8MiB }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    let file = "y".repeat(200_000);
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\r\n{file}\r\n--B--\r\n"
    );
    let mut client = balancer.connect().await;
    let length = form.len().to_string();
    let headers = [
        ("api-key", CLIENT_KEY),
        ("Content-Type", "multipart/form-data; boundary=B"),
        ("Content-Length", length.as_str()),
    ];
    client.send(Client::request_head("POST", "/openai/v1/files", &headers).as_bytes()).await;
    for piece in form.as_bytes().chunks(25_000) {
        client.send(piece).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let response = client.read_response().await;
    assert!(matches!(response.status, 200 | 201), "{} {}", response.status, response.text());
    azure.set_mood("a", Mood::Mute);
    let start = Instant::now();
    assert_eq!(
        balancer.post("/openai/v1/batches", &[("api-key", CLIENT_KEY)], b"{}").await.error_code(),
        "upstream_timeout"
    );
    assert!((Duration::from_millis(390)..Duration::from_secs(10)).contains(&start.elapsed()));
}

#[tokio::test]
async fn a_stalled_upload_gets_408_and_a_malformed_one_400() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "timeouts: { request_body: 300ms }\nrequests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 1MiB }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    let headers = [
        ("api-key", CLIENT_KEY),
        ("Content-Type", "multipart/form-data; boundary=B"),
        ("Transfer-Encoding", "chunked"),
    ];
    for (extra_yaml, code) in [("", "request_timeout"), ("zz\r\n", "bad_request")] {
        let mut client = balancer.connect().await;
        client.send(Client::request_head("POST", "/openai/v1/files", &headers).as_bytes()).await;
        client.send(format!("1000\r\n{}\r\n", "y".repeat(0x1000)).as_bytes()).await;
        wait_until("the upload reaches the backend", || azure.request_count("a") > 0).await;
        client.send(extra_yaml.as_bytes()).await;
        assert_eq!(client.read_response().await.error_code(), code);
    }
    let records = balancer.wait_for_records(2).await;
    assert!(
        records.iter().all(|record| record["outcome"] == "refused" && record["request_bytes"].is_null()),
        "{records:#?}"
    );
}

#[tokio::test]
async fn a_redirect_does_not_make_a_deployment_known() {
    let upstream = ScriptedUpstream::start(|_| {
        vec![
            b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                .to_vec(),
        ]
    })
    .await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    for index in 0..3 {
        let target = CHAT_TARGET.replace("gpt-4o", &format!("invented-{index}"));
        assert_eq!(
            balancer.post(&target, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await.status,
            302
        );
    }
    assert!(!balancer.log().contains("invented"), "{}", balancer.log());
}

#[tokio::test]
async fn pipelined_bytes_do_not_lose_the_current_response() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_millis(300)));
    let length = CHAT_BODY.len().to_string();
    let request =
        Client::request_head("POST", CHAT_TARGET, &[("api-key", CLIENT_KEY), ("Content-Length", &length)])
            + CHAT_BODY;
    for later in ["\r\n", &request] {
        let hits = azure.request_count("a");
        let mut client = balancer.connect().await;
        client.send(request.as_bytes()).await;
        wait_until("the request reaches the backend", || azure.request_count("a") > hits).await;
        client.send(later.as_bytes()).await;
        let response = client.read_response().await;
        assert_eq!((response.status, response.is_complete), (200, true));
        assert_eq!(response.header("connection").map(str::to_lowercase).as_deref(), Some("close"));
        assert!(client.is_closed().await);
    }
    // What came in one read with the request is answered in its turn, and does not hide that the client disconnects.
    let mut client = balancer.connect().await;
    client.send(format!("{request}\r\n{request}").as_bytes()).await;
    assert_eq!((client.read_response().await.status, client.read_response().await.status), (200, 200));
    client.send(request.as_bytes()).await;
    assert_eq!(client.read_response().await.status, 200);
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_secs(600)));
    client.send(format!("{request}\r\n").as_bytes()).await;
    balancer.wait_for_status("the request is served", |status| status["in_flight"] == 1).await;
    drop(client);
    balancer.wait_for_status("the disconnect is seen", |status| status["in_flight"] == 0).await;
}

#[tokio::test]
async fn a_wait_between_attempts_breaks_neither_uploads_nor_timeouts() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "retry: { wait: 5s }\ntimeouts: { first_byte: 1s, first_byte_stream: 1s }\nrequests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 8MiB }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    // Each wait is longer than the first-byte timeout.
    let throttled = Mood::Throttled { retry_after_ms: Some(1_500), retry_after: None };
    azure.set_mood("a", Mood::Sequence(vec![throttled, Mood::Calm]));
    let mut client = balancer.connect().await;
    assert_eq!(
        client.get("/openai/v1/files", &[("api-key", CLIENT_KEY)]).await.status,
        200,
        "expected the cooldown to be waited out"
    );
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(1_500), retry_after: None });
    let mut other_client = balancer.connect().await;
    let refused =
        tokio::spawn(
            async move { other_client.get("/openai/v1/files", &[("api-key", CLIENT_KEY)]).await.status },
        );
    wait_until("the third request reaches the backend", || azure.request_count("a") >= 3).await;
    azure.set_mood("a", Mood::Calm);
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\r\n{}\r\n--B--\r\n",
        "y".repeat(3 << 20)
    );
    let headers = [("api-key", CLIENT_KEY), ("Content-Type", "multipart/form-data; boundary=B")];
    let response = balancer.post("/openai/v1/files", &headers, form.as_bytes()).await;
    assert!(matches!(response.status, 200 | 201), "{} {}", response.status, response.text());
    refused.await.unwrap();
    // The first-byte timeout does not run while the request waits between rounds.
    azure.set_mood(
        "a",
        Mood::Sequence(vec![
            Mood::Refuses(SimulatedError::Unavailable),
            Mood::Refuses(SimulatedError::Unavailable),
            Mood::Refuses(SimulatedError::Unavailable),
            Mood::Calm,
        ]),
    );
    let response = balancer.post_chat().await;
    assert_eq!(response.status, 200, "{}", response.text());
}

#[tokio::test]
async fn a_credential_failure_of_the_default_backend_is_not_a_404() {
    let azure = start_simulator(&["home", "other"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("home", Mood::Refuses(SimulatedError::InvalidKey));
    let response = balancer.connect().await.get("/openai/v1/files/file-1", &[("api-key", CLIENT_KEY)]).await;
    assert_eq!((response.status, response.error_code().as_str()), (503, "home_unavailable"));
}

#[tokio::test]
async fn a_429_with_a_truncated_body_counts_as_a_429() {
    let truncating = ScriptedUpstream::start(|_| {
        vec![b"HTTP/1.1 429 X\r\nRetry-After: 30\r\nContent-Length: 1000\r\n\r\n{\"error\"".to_vec()]
    })
    .await;
    let azure = start_simulator(&["b"]).await;
    let entry = truncating.backend_yaml("a")
        + "    deployments: { gpt-4o: gpt-4o }\n"
        + &simulated_backend_yaml(&azure, "b", "deployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&entry, "").await;
    for _ in 0..3 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    }
    assert_eq!(truncating.requests().len(), 1, "the third request reaches the backend");
    assert_eq!(balancer.wait_for_records(3).await[0]["attempts"][0]["status"], 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_failures_open_the_breaker_once() {
    let azure = start_simulator(&["a", "b"]).await;
    let backend_with_deployment_yaml = simulated_backend_yaml(&azure, "a", "deployments: { gpt-4o: gpt-4o }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { gpt-4o: gpt-4o }");
    let balancer =
        std::sync::Arc::new(Balancer::start(&backend_with_deployment_yaml, "breaker: { open: 30s }").await);
    azure.set_mood("a", Mood::After(Duration::from_millis(300), Box::new(Mood::CloseBeforeHead)));
    let tasks: Vec<_> = (0..80)
        .map(|_| {
            let balancer = balancer.clone();
            tokio::spawn(async move { balancer.post_chat().await.status })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
    balancer.wait_for_log("circuit open for ").await;
    assert_eq!(balancer.log().matches("circuit open for ").count(), 1, "{}", balancer.log());
    let until_ms = balancer.status().await["backends"][0]["until_ms"].as_u64().unwrap();
    assert!(until_ms <= 30_000, "{until_ms}");
}
