//! Who gets in, with what, and what those read who do not.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::{Duration, Instant};

use aoai_lb::demo::Simulator;
use support::{Balancer, CHAT, Client, HELLO, KEY, azure, backend, backends, sha256};

const TEAMS: [(&str, &str); 2] = [("team-a", KEY), ("team-b", "key-of-team-b")];

fn teams(more_of_b: &str) -> String {
    let mut text = String::from("clients:\n");
    for (name, key) in TEAMS {
        text += &format!("  - name: {name}\n    keys: [ {{ sha256: {} }} ]\n", sha256(key));
    }
    text + more_of_b
}

async fn start(more: &str) -> (Simulator, Balancer) {
    let azure = azure(&["a"]).await;
    let entry = backend(&azure, "a", "deployments: { gpt-4o: gpt-4o, other: other }");
    let balancer = Balancer::with_clients(&entry, &teams("    deployments: [ other ]\n"), more).await;
    (azure, balancer)
}

#[tokio::test]
async fn a_key_is_found_in_all_four_places() {
    let (_azure, balancer) = start("").await;
    let bearer = format!("Bearer {KEY}");
    let lower = format!("bearer {KEY}");
    let in_query = format!("{CHAT}&api-key={KEY}");
    let subscription = format!("{CHAT}&Subscription-Key={KEY}");
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, u16);
    let table: Vec<Case<'_>> = vec![
        (CHAT, vec![("api-key", KEY)], 200),
        (CHAT, vec![("Ocp-Apim-Subscription-Key", KEY)], 200),
        (CHAT, vec![("Authorization", &bearer)], 200),
        (CHAT, vec![("Authorization", &lower)], 200),
        (&in_query, vec![], 200),
        (&subscription, vec![], 200),
        (CHAT, vec![("api-key", "wrong"), ("Ocp-Apim-Subscription-Key", KEY)], 200),
        (&in_query, vec![("api-key", KEY)], 200),
        (CHAT, vec![("api-key", KEY), ("Authorization", "Bearer key-of-team-b")], 401),
        (CHAT, vec![("api-key", "wrong")], 401),
        (CHAT, vec![("api-key", "")], 401),
        (CHAT, vec![("Authorization", KEY)], 401),
        (CHAT, vec![("Authorization", "Basic a2V5")], 401),
        (CHAT, vec![], 401),
    ];
    let mut client = balancer.client().await;
    for (target, headers, expected) in table {
        let reply = client.post(target, &headers, HELLO.as_bytes()).await;
        assert_eq!(reply.status, expected, "{target} {headers:?}");
        if expected == 401 {
            assert_eq!(reply.code(), "invalid_api_key");
            assert!(reply.header("x-request-id").is_some());
        }
    }
}

#[tokio::test]
async fn refusals_come_in_order_and_in_azures_shape() {
    let (azure, balancer) =
        start("requests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 2KiB }").await;
    let b = "key-of-team-b";
    let large = "x".repeat(2000);
    let v1 = "/openai/v1/chat/completions";
    type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a str, u16, &'a str);
    let table: Vec<Case<'_>> = vec![
        // Path before key before the client's list before what exists.
        ("POST", "/openai/%2e%2e/x", vec![], "", 400, "bad_request"),
        ("POST", "/admin", vec![], "", 404, "path_not_allowed"),
        ("PUT", CHAT, vec![], "", 404, "path_not_allowed"),
        ("OPTIONS", CHAT, vec![], "", 405, "method_not_allowed"),
        ("TRACE", CHAT, vec![], "", 405, "method_not_allowed"),
        ("POST", "/openai/deployments/none/chat/completions", vec![], "", 401, "invalid_api_key"),
        (
            "POST",
            "/openai/deployments/none/chat/completions",
            vec![("api-key", b)],
            "",
            403,
            "deployment_not_allowed",
        ),
        (
            "POST",
            "/openai/deployments/none/chat/completions",
            vec![("api-key", KEY)],
            "",
            404,
            "DeploymentNotFound",
        ),
        (
            "POST",
            "/openai/deployments/b%20ad/chat/completions",
            vec![("api-key", KEY)],
            "",
            400,
            "bad_request",
        ),
        ("GET", "/openai/v1/models", vec![("api-key", b)], "", 403, "deployment_not_allowed"),
        ("POST", v1, vec![("api-key", b)], r#"{"model":"gpt-4o"}"#, 403, "deployment_not_allowed"),
        ("POST", v1, vec![("api-key", KEY)], r#"{"model":"none"}"#, 404, "DeploymentNotFound"),
        ("POST", v1, vec![("api-key", KEY)], r#"{"messages":[]}"#, 400, "bad_request"),
        ("POST", v1, vec![("api-key", KEY)], r#"{"model":5}"#, 400, "bad_request"),
        ("POST", v1, vec![("api-key", KEY)], r#"{"model":"a/b"}"#, 400, "bad_request"),
        ("POST", v1, vec![("api-key", KEY)], r#"{"model":"other","model":"gpt-4o"}"#, 400, "bad_request"),
        (
            "POST",
            v1,
            vec![("api-key", KEY)],
            r#"{"model":"other","mod\u0065l":"gpt-4o"}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            v1,
            vec![("api-key", KEY)],
            r#"{"model":"other","stream":true,"stream":false}"#,
            400,
            "bad_request",
        ),
        ("POST", v1, vec![("api-key", KEY)], r#"{"model":"other""#, 400, "bad_request"),
        ("POST", v1, vec![("api-key", KEY)], "", 400, "bad_request"),
        (
            "POST",
            v1,
            vec![("api-key", KEY), ("Content-Encoding", "gzip")],
            "zzz",
            415,
            "unsupported_encoding",
        ),
        ("POST", CHAT, vec![("api-key", KEY)], r#"{"stream":true,"stream":false}"#, 400, "bad_request"),
        ("POST", CHAT, vec![("api-key", KEY)], &large, 413, "body_too_large"),
        (
            "POST",
            "/openai/deployments/gpt-4o/chat/completions?api-version=1&API-version=2",
            vec![("api-key", KEY)],
            "",
            400,
            "bad_request",
        ),
    ];
    let mut client = balancer.client().await;
    for (n, (method, target, headers, body, status, code)) in table.iter().enumerate() {
        let reply = client.request(method, target, headers, Some(body.as_bytes())).await;
        assert_eq!((reply.status, reply.code().as_str()), (*status, *code), "{method} {target} {body}");
        let error = &reply.json()["error"];
        assert!(
            error["message"].as_str().is_some_and(|text| text.len() > 10)
                && error["type"].is_string()
                && error["param"].is_null()
        );
        let record = balancer.records_of(n + 1).await.pop().unwrap();
        assert_eq!((record["outcome"].as_str(), record["refusal"].as_str()), (Some("refused"), Some(*code)));
        assert_eq!(record["request_id"].as_str(), reply.header("x-aoai-lb-request-id"));
        if reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            client = balancer.client().await;
        }
    }
    assert_eq!(azure.hits("a"), 0);
}

#[tokio::test]
async fn nothing_gets_round_the_allow_list() {
    let azure = azure(&["a"]).await;
    let more =
        "requests: { allow: [ \"POST /openai/deployments/*/chat/completions\", \"GET /openai/v1/models\" ] }";
    let balancer = Balancer::start(&backends(&azure), more).await;
    let mut client = balancer.client().await;
    assert_eq!(client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await.status, 200);
    assert_eq!(client.get("/openai/v1/models/", &[("api-key", KEY)]).await.status, 200);
    let head = client.request("HEAD", "/openai/v1/models", &[("api-key", KEY)], None).await;
    assert_eq!(head.header("x-aoai-lb-backend"), Some("a"), "GET includes HEAD");
    let hits = azure.hits("a");
    for target in [
        "/openai/deployments/gpt-4o/embeddings",
        "/openai/deployments/gpt-4o/chat/completions/../../x/embeddings",
        "/openai/deployments/gpt-4o/chat/completions%2f..%2fembeddings",
        "/openai/deployments/gpt-4o%2fembeddings%3f/chat/completions",
        "/openai/deployments/gpt-4o\\embeddings/chat/completions",
        "/openai/deployments/gpt-4o/embeddings%00/chat/completions",
        "/openai/deployments/gpt-4o/embeddings#/chat/completions",
        "/openai/deployments/gpt-4o/%65mbeddings",
        "/openai/deployments/gpt-4o/%252fchat/completions",
        "/openai/v1/files",
        "http://elsewhere/openai/v1/files",
        "/",
        "*",
    ] {
        let reply = client.post(target, &[("api-key", KEY)], b"{}").await;
        assert!((400..=404).contains(&reply.status) && reply.status != 401, "{target}: {}", reply.status);
        if reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            client = balancer.client().await;
        }
    }
    assert_eq!(azure.hits("a"), hits, "nothing reached the backend");
}

#[tokio::test]
async fn what_two_servers_could_read_differently_is_refused() {
    let (azure, balancer) = start("").await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\napi-key: {KEY}\r\n");
    let smuggled = format!(
        "0\r\n\r\nPOST /openai/x HTTP/1.1\r\nHost: x\r\napi-key: {KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    let requests = [
        format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: identity, chunked\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding : chunked\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding:\u{b}chunked\r\n\r\n{smuggled}"),
        format!("{head}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
        format!("{head}Content-Length: 4, 4\r\n\r\nabcd"),
        format!("{head}Content-Length: -1\r\n\r\n"),
        format!("{head}Content-Length: 4\n\r\n\r\nabcd"),
        format!("{head}X: a\rContent-Length: 4\r\n\r\nabcd"),
        format!("{head}Host: y\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("{head} folded: x\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("POST {CHAT} HTTP/1.1\r\napi-key: {KEY}\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("POST {CHAT} HTTP/1.1\r\nHost: a b\r\napi-key: {KEY}\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!(
            "POST {CHAT} HTTP/1.0\r\nHost: x\r\napi-key: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!("POST {CHAT} x HTTP/1.1\r\nHost: x\r\napi-key: {KEY}\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabcd\r\n0\r\n\r\n"),
        format!("{head}Connection: close, host\r\nContent-Length: {}\r\n\r\n{HELLO}", HELLO.len()),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\r\n\r\n".to_owned(),
    ];
    for request in &requests {
        let mut client = balancer.client().await;
        client.send(request.as_bytes()).await;
        println!("{request:?}");
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
    assert_eq!(azure.hits("a"), 0, "{:?}", azure.requests("a"));
    assert_eq!(balancer.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn heads_and_bodies_have_a_deadline_and_heads_a_size() {
    let (azure, balancer) = start("timeouts: { request_header: 300ms, request_body: 400ms }").await;
    let begun = Instant::now();
    let mut slow = balancer.client().await;
    slow.send(b"POST / HTTP/1.1\r\nHost: x\r\n").await;
    let dripping = tokio::spawn(async move {
        let mut sent = 0;
        while slow.try_send(b"X: y\r\n").await && sent < 200 {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if begun.elapsed() > Duration::from_millis(350) {
                break;
            }
        }
        slow.reply().await
    });
    let reply = dripping.await.unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (408, "request_timeout"));
    let mut silent = balancer.client().await;
    assert!(silent.is_closed().await, "a connection without a request ends");
    assert!(begun.elapsed() < Duration::from_secs(10));

    let mut slow = balancer.client().await;
    slow.send(Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", "50")]).as_bytes()).await;
    slow.send(b"{\"messages\"").await;
    let reply = slow.reply().await;
    assert_eq!((reply.status, reply.code().as_str()), (408, "request_timeout"));

    let mut large = balancer.client().await;
    large.try_send(format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(70_000)).as_bytes()).await;
    assert_eq!(large.reply().await.code(), "headers_too_large");
    let many: String = (0..120).map(|n| format!("X-{n}: y\r\n")).collect();
    let mut large = balancer.client().await;
    large.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()).await;
    assert_eq!(large.reply().await.status, 431);
    assert_eq!(azure.hits("a"), 0);
}

#[tokio::test]
async fn a_head_may_come_in_pieces_and_requests_in_a_row() {
    let (_azure, balancer) = start("").await;
    let mut client = balancer.client().await;
    let request = format!(
        "{}{HELLO}",
        Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &HELLO.len().to_string())])
    );
    for piece in request.as_bytes().chunks(11) {
        client.send(piece).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.reply().await.status, 200);
    for _ in 0..3 {
        client.send(b"\r\n").await;
        client.send(request.as_bytes()).await;
        assert_eq!(client.reply().await.status, 200);
    }
    // CONNECT has no path, but an answer and a record.
    client.send(b"CONNECT example:443 HTTP/1.1\r\nHost: example:443\r\n\r\n").await;
    assert_eq!(client.reply().await.code(), "method_not_allowed");
    assert_eq!(balancer.records_of(5).await[4]["refusal"], "method_not_allowed");
}

#[tokio::test]
async fn health_needs_no_key_and_leaves_no_record() {
    let (_azure, balancer) = start("").await;
    let mut client = balancer.client().await;
    for path in ["/healthz", "/readyz", "/readyz?x=1"] {
        assert_eq!(client.get(path, &[("Host", "10.1.2.3")]).await.status, 200);
        assert_eq!(client.request("HEAD", path, &[], None).await.status, 200);
    }
    assert_eq!(client.post("/healthz", &[], b"").await.status, 404);
    assert_eq!(balancer.records_of(1).await[0]["path"], "/healthz");
}

#[tokio::test]
async fn the_clients_address_is_told_by_trusted_proxies_only() {
    let azure = azure(&["a"]).await;
    for (trusted, expected) in [("[]", "127.0.0.1"), ("[127.0.0.0/8]", "203.0.113.7")] {
        let balancer =
            Balancer::with_listener(&backends(&azure), &format!("trusted_proxies: {trusted}")).await;
        let headers = [("api-key", KEY), ("X-Forwarded-For", "1.1.1.1, 203.0.113.7:4711, 127.0.0.9")];
        assert_eq!(balancer.post(CHAT, &headers, HELLO.as_bytes()).await.status, 200);
        let record = &balancer.records_of(1).await[0];
        assert_eq!(
            (record["client_ip"].as_str(), record["peer_ip"].as_str()),
            (Some(expected), Some("127.0.0.1"))
        );
    }
}
