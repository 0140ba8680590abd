//! Admission: client keys, refusals and their order, the allow list, malformed requests, client addresses.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::Simulator;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, sha256_hex,
    simulated_backend_yaml, start_simulator,
};

const TEAMS: [(&str, &str); 2] = [("team-a", CLIENT_KEY), ("team-b", "key-of-team-b")];

fn teams_yaml(extra_yaml_of_team_b: &str) -> String {
    let mut text = String::from("clients:\n");
    for (name, key) in TEAMS {
        text += &format!("  - name: {name}\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex(key));
    }
    text + extra_yaml_of_team_b
}

async fn start_with_two_teams(extra_yaml: &str) -> (Simulator, Balancer) {
    let azure = start_simulator(&["a"]).await;
    let entry = simulated_backend_yaml(&azure, "a", "deployments: { gpt-4o: gpt-4o, other: other }");
    let balancer =
        Balancer::start_with_clients(&entry, &teams_yaml("    deployments: [ other ]\n"), extra_yaml).await;
    (azure, balancer)
}

#[tokio::test]
async fn a_client_key_is_accepted_in_each_of_its_four_places() {
    let (_azure, balancer) = start_with_two_teams("").await;
    let bearer = format!("Bearer {CLIENT_KEY}");
    let lower_case_bearer = format!("bearer {CLIENT_KEY}");
    let api_key_in_query = format!("{CHAT_TARGET}&api-key={CLIENT_KEY}");
    let subscription_key_in_query = format!("{CHAT_TARGET}&Subscription-Key={CLIENT_KEY}");
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, u16);
    let table: Vec<Case<'_>> = vec![
        (CHAT_TARGET, vec![("api-key", CLIENT_KEY)], 200),
        (CHAT_TARGET, vec![("Ocp-Apim-Subscription-Key", CLIENT_KEY)], 200),
        (CHAT_TARGET, vec![("Authorization", &bearer)], 200),
        (CHAT_TARGET, vec![("Authorization", &lower_case_bearer)], 200),
        (&api_key_in_query, vec![], 200),
        (&subscription_key_in_query, vec![], 200),
        (CHAT_TARGET, vec![("api-key", "wrong"), ("Ocp-Apim-Subscription-Key", CLIENT_KEY)], 200),
        (&api_key_in_query, vec![("api-key", CLIENT_KEY)], 200),
        (CHAT_TARGET, vec![("api-key", CLIENT_KEY), ("Authorization", "Bearer key-of-team-b")], 401),
        (CHAT_TARGET, vec![("api-key", "wrong")], 401),
        (CHAT_TARGET, vec![("api-key", "")], 401),
        (CHAT_TARGET, vec![("Authorization", CLIENT_KEY)], 401),
        (CHAT_TARGET, vec![("Authorization", "Basic a2V5")], 401),
        (CHAT_TARGET, vec![], 401),
    ];
    let mut client = balancer.connect().await;
    for (target, headers, expected) in table {
        let response = client.post(target, &headers, CHAT_BODY.as_bytes()).await;
        assert_eq!(response.status, expected, "{target} {headers:?}");
        if expected == 401 {
            assert_eq!(response.error_code(), "invalid_api_key");
            assert!(response.header("x-request-id").is_some());
        }
    }
}

#[tokio::test]
async fn refusals_are_checked_in_order_and_look_like_azure_errors() {
    let (azure, balancer) =
        start_with_two_teams("requests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 2KiB }")
            .await;
    let b = "key-of-team-b";
    let large_body = "x".repeat(2000);
    let v1_target = "/openai/v1/chat/completions";
    type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a str, u16, &'a str);
    let table: Vec<Case<'_>> = vec![
        // In this order: the path, the key, the deployments of the client, the existence of the deployment.
        ("POST", "/openai/%2e%2e/x", vec![], "", 400, "bad_request"),
        ("POST", "/admin", vec![], "", 404, "path_not_allowed"),
        ("PUT", CHAT_TARGET, vec![], "", 404, "path_not_allowed"),
        ("OPTIONS", CHAT_TARGET, vec![], "", 405, "method_not_allowed"),
        ("TRACE", CHAT_TARGET, vec![], "", 405, "method_not_allowed"),
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
            vec![("api-key", CLIENT_KEY)],
            "",
            404,
            "DeploymentNotFound",
        ),
        (
            "POST",
            "/openai/deployments/b%20ad/chat/completions",
            vec![("api-key", CLIENT_KEY)],
            "",
            400,
            "bad_request",
        ),
        ("GET", "/openai/v1/files", vec![("api-key", b)], "", 403, "deployment_not_allowed"),
        ("POST", v1_target, vec![("api-key", b)], r#"{"model":"gpt-4o"}"#, 403, "deployment_not_allowed"),
        ("POST", v1_target, vec![("api-key", CLIENT_KEY)], r#"{"model":"none"}"#, 404, "DeploymentNotFound"),
        ("POST", v1_target, vec![("api-key", CLIENT_KEY)], r#"{"model":7}"#, 400, "bad_request"),
        ("POST", v1_target, vec![("api-key", CLIENT_KEY)], r#"{"model":5}"#, 400, "bad_request"),
        ("POST", v1_target, vec![("api-key", CLIENT_KEY)], r#"{"model":"a/b"}"#, 400, "bad_request"),
        (
            "POST",
            v1_target,
            vec![("api-key", CLIENT_KEY)],
            r#"{"model":"other","model":"gpt-4o"}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            v1_target,
            vec![("api-key", CLIENT_KEY)],
            r#"{"model":"other","mod\u0065l":"gpt-4o"}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            v1_target,
            vec![("api-key", CLIENT_KEY)],
            r#"{"model":"other","stream":true,"stream":false}"#,
            400,
            "bad_request",
        ),
        ("POST", v1_target, vec![("api-key", CLIENT_KEY)], r#"{"model":"other""#, 400, "bad_request"),
        ("POST", v1_target, vec![("api-key", CLIENT_KEY)], "", 400, "bad_request"),
        (
            "POST",
            v1_target,
            vec![("api-key", CLIENT_KEY), ("Content-Encoding", "gzip")],
            "zzz",
            415,
            "unsupported_encoding",
        ),
        (
            "POST",
            CHAT_TARGET,
            vec![("api-key", CLIENT_KEY)],
            r#"{"stream":true,"stream":false}"#,
            400,
            "bad_request",
        ),
        ("POST", CHAT_TARGET, vec![("api-key", CLIENT_KEY)], &large_body, 413, "body_too_large"),
        (
            "POST",
            "/openai/deployments/gpt-4o/chat/completions?api-version=1&API-version=2",
            vec![("api-key", CLIENT_KEY)],
            "",
            400,
            "bad_request",
        ),
    ];
    let mut client = balancer.connect().await;
    for (index, (method, target, headers, body, status, code)) in table.iter().enumerate() {
        let response = client.request(method, target, headers, Some(body.as_bytes())).await;
        assert_eq!(
            (response.status, response.error_code().as_str()),
            (*status, *code),
            "{method} {target} {body}"
        );
        let error = &response.json()["error"];
        assert!(
            error["message"].as_str().is_some_and(|text| text.len() > 10)
                && error["type"].is_string()
                && error["param"].is_null()
        );
        let record = balancer.wait_for_records(index + 1).await.pop().unwrap();
        assert_eq!((record["outcome"].as_str(), record["refusal"].as_str()), (Some("refused"), Some(*code)));
        assert_eq!(record["request_id"].as_str(), response.header("x-aoai-lb-request-id"));
        if response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            client = balancer.connect().await;
        }
    }
    assert_eq!(azure.request_count("a"), 0);
}

#[tokio::test]
async fn no_path_spelling_bypasses_the_allow_list() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "requests: { allow: [ \"POST /openai/deployments/*/chat/completions\", \"GET /openai/v1/batches\" ] }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    let mut client = balancer.connect().await;
    assert_eq!(client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await.status, 200);
    assert_eq!(client.get("/openai/v1/batches/", &[("api-key", CLIENT_KEY)]).await.status, 200);
    let head = client.request("HEAD", "/openai/v1/batches", &[("api-key", CLIENT_KEY)], None).await;
    assert_eq!(head.header("x-aoai-lb-backend"), Some("a"), "expected an allowed GET to allow HEAD, too");
    let hits = azure.request_count("a");
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
        let response = client.post(target, &[("api-key", CLIENT_KEY)], b"{}").await;
        assert!(
            (400..=404).contains(&response.status) && response.status != 401,
            "{target}: {}",
            response.status
        );
        if response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            client = balancer.connect().await;
        }
    }
    assert_eq!(azure.request_count("a"), hits, "expected no request at the backend");
}

#[tokio::test]
async fn ambiguous_http_requests_are_rejected() {
    let (azure, balancer) = start_with_two_teams("").await;
    let head = format!("POST {CHAT_TARGET} HTTP/1.1\r\nHost: x\r\napi-key: {CLIENT_KEY}\r\n");
    let smuggled_request = format!(
        "0\r\n\r\nPOST /openai/x HTTP/1.1\r\nHost: x\r\napi-key: {CLIENT_KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    let ambiguous_requests = [
        format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled_request}"),
        format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{smuggled_request}"),
        format!("{head}Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n{smuggled_request}"),
        format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n{smuggled_request}"),
        format!("{head}Transfer-Encoding: identity, chunked\r\n\r\n{smuggled_request}"),
        format!("{head}Transfer-Encoding : chunked\r\n\r\n{smuggled_request}"),
        format!("{head}Transfer-Encoding:\u{b}chunked\r\n\r\n{smuggled_request}"),
        format!("{head}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
        format!("{head}Content-Length: 4, 4\r\n\r\nabcd"),
        format!("{head}Content-Length: -1\r\n\r\n"),
        format!("{head}Content-Length: 4\n\r\n\r\nabcd"),
        format!("{head}X: a\rContent-Length: 4\r\n\r\nabcd"),
        format!("{head}Host: y\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("{head} folded: x\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("POST {CHAT_TARGET} HTTP/1.1\r\napi-key: {CLIENT_KEY}\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!(
            "POST {CHAT_TARGET} HTTP/1.1\r\nHost: a b\r\napi-key: {CLIENT_KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
        ),
        format!(
            "POST {CHAT_TARGET} HTTP/1.0\r\nHost: x\r\napi-key: {CLIENT_KEY}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST {CHAT_TARGET} x HTTP/1.1\r\nHost: x\r\napi-key: {CLIENT_KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
        ),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabcd\r\n0\r\n\r\n"),
        format!("{head}Connection: close, host\r\nContent-Length: {}\r\n\r\n{CHAT_BODY}", CHAT_BODY.len()),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\r\n\r\n".to_owned(),
    ];
    for request in &ambiguous_requests {
        let mut client = balancer.connect().await;
        client.send(request.as_bytes()).await;
        println!("{request:?}");
        let response = client.read_response().await;
        assert_eq!((response.status, response.error_code().as_str()), (400, "bad_request"), "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
    assert_eq!(azure.request_count("a"), 0, "{:?}", azure.received_requests("a"));
    assert_eq!(
        balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await.status,
        200
    );
}

#[tokio::test]
async fn slow_heads_and_bodies_time_out_and_large_heads_are_rejected() {
    let (azure, balancer) =
        start_with_two_teams("timeouts: { request_header: 300ms, request_body: 400ms }").await;
    let start = Instant::now();
    let mut slow_client = balancer.connect().await;
    slow_client.send(b"POST / HTTP/1.1\r\nHost: x\r\n").await;
    let slow_request = tokio::spawn(async move {
        let mut sent = 0;
        while slow_client.try_send(b"X: y\r\n").await && sent < 200 {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if start.elapsed() > Duration::from_millis(350) {
                break;
            }
        }
        slow_client.read_response().await
    });
    let response = slow_request.await.unwrap();
    assert_eq!((response.status, response.error_code().as_str()), (408, "request_timeout"));
    let mut silent_client = balancer.connect().await;
    assert!(silent_client.is_closed().await, "expected the connection without a request to be closed");
    assert!(start.elapsed() < Duration::from_secs(10));

    let mut slow_client = balancer.connect().await;
    slow_client
        .send(
            Client::request_head("POST", CHAT_TARGET, &[("api-key", CLIENT_KEY), ("Content-Length", "50")])
                .as_bytes(),
        )
        .await;
    slow_client.send(b"{\"messages\"").await;
    let response = slow_client.read_response().await;
    assert_eq!((response.status, response.error_code().as_str()), (408, "request_timeout"));

    // An empty line after a body does not begin a head.
    let mut idle_client = balancer.connect().await;
    let length = CHAT_BODY.len().to_string();
    let head =
        Client::request_head("POST", CHAT_TARGET, &[("api-key", CLIENT_KEY), ("Content-Length", &length)]);
    idle_client.send(format!("{head}{CHAT_BODY}\r\n").as_bytes()).await;
    assert_eq!(idle_client.read_response().await.status, 200);
    let told = tokio::time::timeout(Duration::from_millis(600), idle_client.is_closed()).await;
    assert!(told.is_err(), "expected no 408 within twice the time of a head");
    idle_client.send(format!("{head}{CHAT_BODY}").as_bytes()).await;
    assert_eq!(idle_client.read_response().await.status, 200);

    let mut large_head_client = balancer.connect().await;
    large_head_client
        .try_send(format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(70_000)).as_bytes())
        .await;
    assert_eq!(large_head_client.read_response().await.error_code(), "headers_too_large");
    let many_headers: String = (0..120).map(|index| format!("X-{index}: y\r\n")).collect();
    let mut large_head_client = balancer.connect().await;
    large_head_client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{many_headers}\r\n").as_bytes()).await;
    assert_eq!(large_head_client.read_response().await.status, 431);
    assert_eq!(azure.request_count("a"), 2);
}

#[tokio::test]
async fn a_head_may_arrive_in_pieces_and_one_connection_serves_many_requests() {
    let (_azure, balancer) = start_with_two_teams("").await;
    let mut client = balancer.connect().await;
    let request = format!(
        "{}{CHAT_BODY}",
        Client::request_head(
            "POST",
            CHAT_TARGET,
            &[("api-key", CLIENT_KEY), ("Content-Length", &CHAT_BODY.len().to_string())]
        )
    );
    for piece in request.as_bytes().chunks(11) {
        client.send(piece).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.read_response().await.status, 200);
    for _ in 0..3 {
        client.send(b"\r\n").await;
        client.send(request.as_bytes()).await;
        assert_eq!(client.read_response().await.status, 200);
    }
    // A CONNECT request has no path, but gets a response and a record, too.
    client.send(b"CONNECT example:443 HTTP/1.1\r\nHost: example:443\r\n\r\n").await;
    assert_eq!(client.read_response().await.error_code(), "method_not_allowed");
    assert_eq!(balancer.wait_for_records(5).await[4]["refusal"], "method_not_allowed");
}

#[tokio::test]
async fn health_checks_need_no_key_and_write_no_record() {
    let (_azure, balancer) = start_with_two_teams("").await;
    let mut client = balancer.connect().await;
    for path in ["/healthz", "/readyz", "/readyz?x=1"] {
        assert_eq!(client.get(path, &[("Host", "10.1.2.3")]).await.status, 200);
        assert_eq!(client.request("HEAD", path, &[], None).await.status, 200);
    }
    assert_eq!(client.post("/healthz", &[], b"").await.status, 404);
    assert_eq!(balancer.wait_for_records(1).await[0]["path"], "/healthz");
}

#[tokio::test]
async fn x_forwarded_for_is_read_only_from_trusted_proxies() {
    let azure = start_simulator(&["a"]).await;
    for (trusted_proxies, expected) in [("[]", "127.0.0.1"), ("[127.0.0.0/8]", "203.0.113.7")] {
        let balancer = Balancer::start_with_listener(
            &all_backends_yaml(&azure),
            &format!("trusted_proxies: {trusted_proxies}"),
        )
        .await;
        let headers = [("api-key", CLIENT_KEY), ("X-Forwarded-For", "1.1.1.1, 203.0.113.7:4711, 127.0.0.9")];
        assert_eq!(balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await.status, 200);
        let record = &balancer.wait_for_records(1).await[0];
        assert_eq!(
            (record["client_ip"].as_str(), record["peer_ip"].as_str()),
            (Some(expected), Some("127.0.0.1"))
        );
    }
}
