//! Request bodies: failing over with the complete body, limits, and uploads that are streamed.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, SimulatedError};
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, answering_backend, simulated_backend_yaml,
    start_simulator, wait_until,
};

/// A JSON body of about this size without repetitions, so that misplaced parts show.
fn large_chat_body(model: Option<&str>, size: usize) -> Vec<u8> {
    let mut text = String::with_capacity(size + 200);
    text.push('{');
    if let Some(model) = model {
        text += &format!("\"model\":\"{model}\",");
    }
    text += "\"messages\":[{\"role\":\"user\",\"content\":\"";
    let mut number = 0_u64;
    while text.len() < size {
        text += &format!("{number} ");
        number += 7;
    }
    text += "\"}]}";
    text.into_bytes()
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    openssl::sha::sha256(bytes)
}

#[tokio::test]
async fn large_bodies_fail_over_byte_for_byte() {
    let azure = start_simulator(&["a", "b"]).await;
    let renamed_body = simulated_backend_yaml(&azure, "a", "deployments: { x: gpt-4o }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { x: gpt-4o }");
    let balancer = Balancer::start(&renamed_body, "").await;
    for (size, mood) in [
        (5 << 20, Mood::Refuses(SimulatedError::Unavailable)),
        (60 << 20, Mood::Throttled { retry_after_ms: Some(1), retry_after: None }),
    ] {
        azure.set_mood("a", mood);
        let classic_target = CHAT_TARGET.replace("gpt-4o", "x");
        let body = large_chat_body(None, size);
        let response = balancer.post(&classic_target, &[("api-key", CLIENT_KEY)], &body).await;
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (200, "b"),
            "{}",
            response.text()
        );
        let request = azure.received_requests("b").pop().unwrap();
        assert_eq!((request.body_len, digest(&request.body.unwrap())), (body.len() as u64, digest(&body)));
        let v1_body = large_chat_body(Some("x"), size);
        let response =
            balancer.post("/openai/v1/chat/completions", &[("api-key", CLIENT_KEY)], &v1_body).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
        let request = azure.received_requests("b").pop().unwrap();
        let renamed_body =
            [br#"{"model":"gpt-4o""#.as_slice(), &v1_body[br#"{"model":"x""#.len()..]].concat();
        assert_eq!(digest(&request.body.unwrap()), digest(&renamed_body));
    }
}

#[tokio::test]
async fn chunked_bodies_and_expect_100_continue_fail_over() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    let body = large_chat_body(None, 5 << 20);
    let mut client = balancer.connect().await;
    let head = Client::request_head(
        "POST",
        CHAT_TARGET,
        &[("api-key", CLIENT_KEY), ("Transfer-Encoding", "chunked")],
    );
    client.send(head.as_bytes()).await;
    for piece in body.chunks(333_333) {
        client.send(format!("{:x};ext=1\r\n", piece.len()).as_bytes()).await;
        client.send(piece).await;
        client.send(b"\r\n").await;
    }
    client.send(b"0\r\nTrailer: x\r\n\r\n").await;
    let response = client.read_response().await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    let request = azure.received_requests("b").pop().unwrap();
    assert_eq!(
        (request.header("content-length"), digest(&request.body.clone().unwrap())),
        (Some(body.len().to_string().as_str()), digest(&body))
    );
    assert!(request.header("transfer-encoding").is_none());

    azure.set_mood("b", Mood::Refuses(SimulatedError::Unavailable));
    azure.set_mood("a", Mood::Calm);
    let length = body.len().to_string();
    let head = Client::request_head(
        "POST",
        CHAT_TARGET,
        &[("api-key", CLIENT_KEY), ("Content-Length", &length), ("Expect", "100-continue")],
    );
    client.send(head.as_bytes()).await;
    assert_eq!(client.read_response_head().await.unwrap().status, 100);
    client.send(&body).await;
    let response = client.read_response().await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "a"));
    let request = azure.received_requests("a").pop().unwrap();
    assert_eq!(digest(&request.body.clone().unwrap()), digest(&body));
    assert!(request.header("expect").is_none());
    assert_eq!(client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], &body).await.status, 200);
}

#[tokio::test]
async fn bodies_are_limited_individually_and_in_total() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "requests: { max_body: 64KiB, max_streamed_body: 1MiB, body_memory: 100KiB }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    let response =
        balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], &large_chat_body(None, 70 << 10)).await;
    assert_eq!((response.status, response.error_code().as_str()), (413, "body_too_large"));
    let mut client = balancer.connect().await;
    client
        .send(
            Client::request_head(
                "POST",
                CHAT_TARGET,
                &[("api-key", CLIENT_KEY), ("Transfer-Encoding", "chunked")],
            )
            .as_bytes(),
        )
        .await;
    let piece = vec![b' '; 70 << 10];
    client.try_send(format!("{:x}\r\n", piece.len()).as_bytes()).await;
    client.try_send(&piece).await;
    assert_eq!(client.read_response().await.error_code(), "body_too_large");
    assert_eq!(azure.request_count("a"), 0);
    // A buffered body counts against `body_memory`, which all requests share.
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_secs(600)));
    let held_body = large_chat_body(None, 60 << 10);
    let head = Client::request_head(
        "POST",
        CHAT_TARGET,
        &[("api-key", CLIENT_KEY), ("Content-Length", &held_body.len().to_string())],
    );
    let mut first = balancer.connect().await;
    first.send(head.as_bytes()).await;
    first.send(&held_body).await;
    wait_until("the first body is sent", || azure.request_count("a") == 1).await;
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], &held_body).await;
    assert_eq!((response.status, response.error_code().as_str()), (503, "overloaded"));
    assert!(response.header("retry-after").is_some());
    // One that is refused in the middle of its body is read to its end, so that its connection stays in step.
    let mut second = balancer.connect().await;
    let (refused_part, rest) = held_body.split_at(50 << 10);
    second.send(head.as_bytes()).await;
    second.send(refused_part).await;
    assert_eq!(second.read_response().await.error_code(), "overloaded");
    second.send(rest).await;
    drop(first);
    balancer.wait_for_status("the first body is released", |status| status["in_flight"] == 0).await;
    azure.set_mood("a", Mood::Calm);
    second.send(head.as_bytes()).await;
    second.send(&held_body).await;
    assert_eq!(second.read_response().await.status, 200);
    assert_eq!(
        balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], &held_body).await.status,
        200,
        "expected the memory to be released"
    );
}

#[tokio::test]
async fn uploads_too_large_to_buffer_are_streamed() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "requests: { max_body: 1MiB, max_streamed_body: 8MiB, body_memory: 2MiB }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    let content = large_chat_body(None, 6 << 20);
    let multipart_form = |content: &[u8]| {
        let mut multipart_form = b"--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\r\n".to_vec();
        multipart_form.extend_from_slice(content);
        multipart_form.extend_from_slice(b"\r\n--B--\r\n");
        multipart_form
    };
    let content_type_header = ("Content-Type", "multipart/form-data; boundary=B");
    let target = "/openai/files?api-version=2024-10-21";
    let body = multipart_form(&content);
    let response = balancer.post(target, &[("api-key", CLIENT_KEY), content_type_header], &body).await;
    assert!(matches!(response.status, 200 | 201), "{} {}", response.status, response.text());
    let request = azure.received_requests("a").pop().unwrap();
    assert_eq!(digest(&request.body.unwrap()), digest(&body));
    let mut client = balancer.connect().await;
    client
        .send(
            Client::request_head(
                "POST",
                target,
                &[("api-key", CLIENT_KEY), content_type_header, ("Transfer-Encoding", "chunked")],
            )
            .as_bytes(),
        )
        .await;
    for piece in body.chunks(100_000) {
        client.send(format!("{:x}\r\n", piece.len()).as_bytes()).await;
        client.send(piece).await;
        client.send(b"\r\n").await;
    }
    client.send(b"0\r\n\r\n").await;
    let response = client.read_response().await;
    assert!(matches!(response.status, 200 | 201), "{} {}", response.status, response.text());
    let request = azure.received_requests("a").pop().unwrap();
    assert_eq!(digest(&request.body.unwrap()), digest(&body));
    let too_large = multipart_form(&large_chat_body(None, 9 << 20));
    let response = balancer.post(target, &[("api-key", CLIENT_KEY), content_type_header], &too_large).await;
    assert_eq!((response.status, response.error_code().as_str()), (413, "body_too_large"));
    assert_eq!(balancer.wait_for_records(3).await[1]["request_bytes"], body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_takes_long_to_parse_delays_no_other_request() {
    let azure = start_simulator(&["a"]).await;
    let balancer =
        Balancer::start(&all_backends_yaml(&azure), "server: { threads: 1, drain_delay: 0s }").await;
    // It is refused for its end, so that nothing follows the parsing.
    let body = format!(r#"{{"model":"gpt-4o","input":[{}1]"#, "1,".repeat(4 << 20));
    let (all_but_last, last) = body.as_bytes().split_at(body.len() - 1);
    let headers = [("api-key", CLIENT_KEY), ("Content-Length", &body.len().to_string())];
    let mut large = balancer.connect().await;
    large.send(Client::request_head("POST", "/openai/v1/responses", &headers).as_bytes()).await;
    large.send(all_but_last).await;
    let mut other = balancer.connect().await;
    assert!(other.get_is_ok("/healthz").await);
    large.send(last).await;
    let began_at = Instant::now();
    let refused = tokio::spawn(async move { (large.read_response().await.status, began_at.elapsed()) });
    let mut longest = Duration::ZERO;
    while !refused.is_finished() {
        let asked_at = Instant::now();
        assert!(other.get_is_ok("/healthz").await);
        longest = longest.max(asked_at.elapsed());
    }
    let (status, parsing) = refused.await.unwrap();
    assert_eq!(status, 400);
    assert!(longest < parsing / 2, "another request took {longest:?} of {parsing:?}");
}
