//! HTTP/2: clients of TLS listeners, and backends.

use crate::support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aoai_lb::demo::{BodyPosition, Mood, SimulatedError, Simulator};
use futures::future::join_all;
use openssl::ssl::SslVersion;
use support::h2::{Http2Connection, PendingRequest, connect_tls};
use support::tls::{CertificateAuthority, generate_authority, write_certificate_and_key};
use support::upstream::{RawRequest, ScriptedUpstream};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, STREAM_BODY, all_backends_yaml, answering_backend,
    start_simulator, wait_until, wait_until_async,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MILLISECOND: Duration = Duration::from_millis(1);
/// Records are collected for ten milliseconds before they are written.
const MAX_RECORD_DELAY: Duration = Duration::from_millis(40);

/// Starts a balancer with HTTP/2 in front of the resource `a`, and connects to it.
async fn start_and_connect(extra_yaml: &str) -> (Simulator, Balancer, Http2Connection) {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), extra_yaml).await;
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    (azure, balancer, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_choose_between_http_2_and_http_1() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    for (body, ending) in [(CHAT_BODY, "}"), (STREAM_BODY, "data: [DONE]\n\n")] {
        let response = connection.post(CHAT_TARGET, body.as_bytes()).await;
        assert_eq!((response.status, response.is_complete), (200, true), "{}", response.text());
        assert!(response.text().ends_with(ending), "{}", response.text());
        assert_eq!(answering_backend(&response), "a");
        assert!(response.header("connection").is_none() && response.header("transfer-encoding").is_none());
    }
    // Many concurrent streams on one connection.
    let responses = join_all((0..60).map(|_| connection.post(CHAT_TARGET, STREAM_BODY.as_bytes()))).await;
    assert!(
        responses
            .iter()
            .all(|response| response.is_complete && response.text().ends_with("data: [DONE]\n\n"))
    );
    // HTTP/1.1, chosen by ALPN or by default.
    for protocols in [&b"\x08http/1.1"[..], b""] {
        let mut stream = connect_tls(balancer.address, &authority, protocols, None).await.unwrap();
        let length = CHAT_BODY.len();
        let request = format!(
            "POST {CHAT_TARGET} HTTP/1.1\r\nHost: x\r\napi-key: {CLIENT_KEY}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{CHAT_BODY}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let records = balancer.wait_for_records(64).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered" && record["client"] == "team-a"));
    assert!(records.iter().all(|record| record["client_ip"] == "127.0.0.1"));
    assert_eq!(balancer.status().await["in_flight"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tls_versions_are_rejected_and_a_replaced_certificate_is_used() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    assert!(connect_tls(balancer.address, &authority, b"", Some(SslVersion::TLS1_1)).await.is_err());
    let before = connect_tls(balancer.address, &authority, b"", Some(SslVersion::TLS1_2)).await.unwrap();
    let old_certificate = before.ssl().peer_certificate().unwrap().to_der().unwrap();
    let directory = balancer.path("");
    // A certificate without its matching key changes nothing.
    let key = std::fs::read(directory.join("key.pem")).unwrap();
    std::fs::write(directory.join("key.pem"), "no key").unwrap();
    balancer.wait_for_log("the old certificates stay in use").await;
    connect_tls(balancer.address, &authority, b"", None).await.unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
    write_certificate_and_key(&directory, &authority, 2);
    wait_until_async("the new certificate is in use", async || {
        let stream = connect_tls(balancer.address, &authority, b"", None).await.unwrap();
        stream.ssl().peer_certificate().unwrap().to_der().unwrap() != old_certificate
    })
    .await;
    assert!(!balancer.log().contains("PRIVATE"), "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_or_without_a_length_fails_over_byte_for_byte() {
    let azure = start_simulator(&["a", "b"]).await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    let text: String = (0..700_000).map(|number| format!("{number} ")).collect();
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
    let length = body.len().to_string();
    for headers in [&[][..], &[("content-length", length.as_str())]] {
        let mut exchange = connection.start_post(CHAT_TARGET, headers).await;
        support::h2::send_body(&mut exchange.body, body.as_bytes()).await;
        let response = exchange.read_response().await;
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (200, "b"),
            "{}",
            response.text()
        );
        assert!(azure.received_requests("b").pop().unwrap().body.unwrap() == body.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_over_http_2_are_the_same_as_over_http_1() {
    let (_azure, balancer, connection) = start_and_connect("requests: { max_body: 1KiB }").await;
    let large = "x".repeat(100_000);
    let many_headers: Vec<(String, &str)> = (0..100).map(|number| (format!("x-{number}"), "v")).collect();
    let many_headers: Vec<(&str, &str)> =
        many_headers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let (large_field, many_large_fields) = ("v".repeat(66_000), "v".repeat(10_000));
    let large_head = [("x-large", large_field.as_str())];
    let larger_head: Vec<(&str, &str)> =
        many_headers.iter().take(20).map(|(name, _)| (*name, many_large_fields.as_str())).collect();
    let duplicate_header = [("content-type", "application/json"), ("content-type", "text/plain")];
    let cases = [
        (CHAT_TARGET, &[("api-key", "another")][..], CHAT_BODY, 401, "invalid_api_key"),
        ("/other", &[], CHAT_BODY, 404, "path_not_allowed"),
        ("/openai/v1/../x", &[], CHAT_BODY, 400, "bad_request"),
        (CHAT_TARGET, &[], &large, 413, "body_too_large"),
        (CHAT_TARGET, &many_headers, CHAT_BODY, 431, "headers_too_large"),
        (CHAT_TARGET, &large_head, CHAT_BODY, 431, "headers_too_large"),
        (CHAT_TARGET, &larger_head, CHAT_BODY, 431, "headers_too_large"),
        (CHAT_TARGET, &duplicate_header, CHAT_BODY, 400, "bad_request"),
    ];
    for (target, headers, body, status, code) in cases {
        let mut exchange = connection.start_post(target, headers).await;
        support::h2::send_body(&mut exchange.body, body.as_bytes()).await;
        let response = exchange.read_response().await;
        assert_eq!((response.status, response.error_code().as_str()), (status, code), "{}", response.text());
        assert!(response.header("x-aoai-lb-request-id").is_some());
    }
    // The connection is still usable.
    assert_eq!(connection.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status, 200);
    let records = balancer.wait_for_records(cases.len() + 1).await;
    let refusals: Vec<&str> = records.iter().filter_map(|record| record["refusal"].as_str()).collect();
    assert_eq!(refusals, cases.map(|case| case.4));
    let unread = records.iter().filter(|record| record["refusal"].is_string());
    assert!(unread.into_iter().all(|record| record["request_bytes"].is_null()), "{records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_response_resets_its_stream() {
    let (azure, balancer, connection) = start_and_connect("").await;
    let after = BodyPosition::Events(3);
    let moods = [Mood::ResetMidBody { after }, Mood::CloseMidStream { after }];
    for mood in moods {
        azure.set_mood("a", mood.clone());
        for body in [STREAM_BODY, CHAT_BODY] {
            let response = connection.post(CHAT_TARGET, body.as_bytes()).await;
            assert_eq!((response.status, response.is_complete), (200, false), "{mood:?} {body}");
        }
    }
    azure.set_mood("a", Mood::Calm);
    assert_eq!(connection.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status, 200);
    let records = balancer.wait_for_records(5).await;
    assert_eq!(records.iter().filter(|record| record["outcome"] == "failed").count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_upload_that_stalls_is_refused() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let extra_yaml = "timeouts: { request_body: 400ms }\n\
                requests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 64MiB }";
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), extra_yaml).await;
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    let mut exchange = connection.start_post("/openai/v1/files", &[("content-length", "40000")]).await;
    exchange.body.send_data(vec![b'x'; 20_000].into(), false).unwrap();
    let response = exchange.read_response().await;
    assert_eq!((response.status, response.error_code().as_str()), (408, "request_timeout"));
    assert_eq!(balancer.wait_for_records(1).await[0]["outcome"], "refused");
}

/// On one connection, sends a request, waits until it is ready, and resets its stream, until a record is written
/// within [`MAX_RECORD_DELAY`]: a busy machine delays some. Returns the number of requests.
async fn reset_until_prompt_record(
    balancer: &Balancer,
    connection: &Http2Connection,
    body: &str,
    wait_until_ready: impl AsyncFn(usize, &mut PendingRequest),
) -> usize {
    let before = balancer.records().len();
    let mut number = 0;
    wait_until_async("a record is written at once", async || {
        number += 1;
        let mut exchange = connection.send_post(CHAT_TARGET, body.as_bytes()).await;
        wait_until_ready(number, &mut exchange).await;
        let mut stream = exchange.body;
        stream.send_reset(h2::Reason::CANCEL);
        let reset_time = Instant::now();
        wait_until("the record is written", || balancer.records().len() == before + number).await;
        number >= 3 && reset_time.elapsed() < MAX_RECORD_DELAY
    })
    .await;
    let records = balancer.records();
    assert!(records[before..].iter().all(|record| record["outcome"] == "client_gone"), "{records:#?}");
    balancer.wait_for_status("nothing is in flight", |status| status["in_flight"] == 0).await;
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_reset_by_the_client_cancels_the_request() {
    let (azure, balancer, connection) = start_and_connect("retry: { wait: 60s, hold: { time: 20s } }").await;
    let wait_for_arrivals = |number: usize| {
        let azure = &azure;
        async move {
            wait_until("the request reaches the backend", || {
                azure.received_requests("a").iter().filter(|request| request.is_body_complete).count()
                    == number
            })
            .await;
        }
    };
    let cancelled_requests =
        || azure.received_requests("a").iter().filter(|request| request.client_disconnected).count();
    // A reset before the first byte.
    azure.set_mood("a", Mood::Mute);
    let mute = reset_until_prompt_record(
        &balancer,
        &connection,
        CHAT_BODY,
        async |number, _: &mut PendingRequest| {
            wait_for_arrivals(number).await;
        },
    )
    .await;
    wait_until("the upstream requests are cancelled", || cancelled_requests() == mute).await;
    // A reset in mid-stream.
    azure.set_mood("a", Mood::Drip(50 * MILLISECOND));
    let streams = reset_until_prompt_record(
        &balancer,
        &connection,
        STREAM_BODY,
        async |_, exchange: &mut PendingRequest| {
            let mut answer = (&mut exchange.response).await.unwrap().into_body();
            assert!(answer.data().await.unwrap().is_ok());
        },
    )
    .await;
    wait_until("the upstream requests are cancelled", || cancelled_requests() == mute + streams).await;
    assert!(balancer.records()[mute..].iter().all(|record| record["status"] == 200));
    // A reset during the wait for a cooldown.
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(50_000), retry_after: None });
    let waiting =
        reset_until_prompt_record(&balancer, &connection, CHAT_BODY, async |_, _: &mut PendingRequest| {
            // Only the first request is sent and refused; the others wait at once.
            wait_for_arrivals(mute + streams + 1).await;
            balancer.wait_for_request_between_attempts().await;
        })
        .await;
    // A reset between attempts, with another deployment, which has no cooldown.
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    let other_target = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let exchange = connection.send_post(other_target, CHAT_BODY.as_bytes()).await;
    let tried_three_times = mute + streams + 4;
    wait_until("the backend has been tried three times", || azure.request_count("a") >= tried_three_times)
        .await;
    let mut stream = exchange.body;
    stream.send_reset(h2::Reason::CANCEL);
    wait_until("the record is written", || balancer.records().len() == mute + streams + waiting + 1).await;
    assert_eq!(balancer.records().pop().unwrap()["outcome"], "client_gone");
    // The connection is still usable.
    azure.set_mood("a", Mood::Calm);
    let response = connection.post(other_target, CHAT_BODY.as_bytes()).await;
    assert_eq!(response.status, 200, "{}", response.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reset_or_disconnect_while_streams_are_held_is_recorded() {
    const EMPTY_STREAM: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"choices\":[]}\n\n";
    let silent_upstream = ScriptedUpstream::start(|_: &RawRequest| {
        std::iter::once(EMPTY_STREAM.into()).chain(std::iter::repeat_n(Vec::new(), 30_000)).collect()
    })
    .await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(
        &authority,
        &silent_upstream.backend_yaml("a"),
        "retry: { hold: { time: 20s } }",
    )
    .await;
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    let count = reset_until_prompt_record(
        &balancer,
        &connection,
        STREAM_BODY,
        async |number, _: &mut PendingRequest| {
            wait_until("the request reaches the backend", || silent_upstream.requests().len() == number)
                .await;
            tokio::time::sleep(30 * MILLISECOND).await;
        },
    )
    .await;
    let pending_requests =
        join_all((0..5).map(|_| connection.send_post(CHAT_TARGET, STREAM_BODY.as_bytes()))).await;
    wait_until("all requests reach the backend", || silent_upstream.requests().len() == count + 5).await;
    connection.abort();
    let records = balancer.wait_for_records(count + 5).await;
    assert!(records.iter().all(|record| record["outcome"] == "client_gone"), "{records:#?}");
    drop(pending_requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn x_forwarded_for_of_a_trusted_proxy_is_read_for_every_stream() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls_and_listener(
        &authority,
        "trusted_proxies: [127.0.0.1]",
        &all_backends_yaml(&azure),
    )
    .await;
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    for address in ["192.0.2.1", "192.0.2.2"] {
        let mut exchange = connection.start_post(CHAT_TARGET, &[("x-forwarded-for", address)]).await;
        support::h2::send_body(&mut exchange.body, CHAT_BODY.as_bytes()).await;
        assert_eq!(exchange.read_response().await.status, 200);
    }
    let records = balancer.wait_for_records(2).await;
    let addresses: Vec<&str> = records.iter().map(|record| record["client_ip"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_streams_in_flight() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Drip(100 * MILLISECOND));
    let authority = generate_authority();
    let mut balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    let exchange = connection.send_post(CHAT_TARGET, STREAM_BODY.as_bytes()).await;
    wait_until("the request reaches the backend", || azure.request_count("a") == 1).await;
    let response = tokio::spawn(exchange.read_response());
    balancer.send_signal("TERM");
    let response = response.await.unwrap();
    assert!(response.is_complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    assert_eq!(balancer.wait_for_exit().await, 0);
    assert_eq!(balancer.wait_for_records(1).await[0]["outcome"], "answered");
}

/// Starts a relay of bytes that counts its connections.
async fn start_counting_relay(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connection_count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let accepted = Arc::clone(&connection_count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let Ok(mut upstream) = TcpStream::connect(to).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
            });
        }
    });
    (address, connection_count)
}

/// Two balancers: `inner` is the only backend of `front`, with HTTP/2.
struct ChainedBalancers {
    azure: Simulator,
    inner: Balancer,
    front: Balancer,
    connections: Arc<AtomicUsize>,
    authority: CertificateAuthority,
}

async fn start_chain(azure: Simulator, extra_yaml: &str) -> ChainedBalancers {
    let authority = generate_authority();
    let inner = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), extra_yaml).await;
    let (address, connections) = start_counting_relay(inner.address).await;
    let ca = inner.path("ca.pem");
    std::fs::write(&ca, authority.certificate.to_pem().unwrap()).unwrap();
    let ca = ca.display();
    let backend_entry = format!(
        "  - name: second\n    endpoint: https://{address}\n    credential: {{ api_key: {CLIENT_KEY} }}\n    http2: true\n    tls: {{ ca: {ca}, server_name: balancer.test }}\n"
    );
    let front = Balancer::start_with_tls(&authority, &backend_entry, extra_yaml).await;
    ChainedBalancers { azure, inner, front, connections, authority }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_share_ten_connections() {
    let azure = start_simulator(&["a"]).await;
    // Long enough for all streams to be open at the same time.
    azure.set_mood("a", Mood::SlowFirstByte(5_000 * MILLISECOND));
    let chain = start_chain(azure, "record: { content: none, jsonl: { path: records.jsonl } }").await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Http2Connection::connect(chain.front.address, &chain.authority).await);
    }
    let streams =
        clients.iter().flat_map(|client| (0..50).map(|_| client.post(CHAT_TARGET, STREAM_BODY.as_bytes())));
    let responses = join_all(streams).await;
    let complete_streams = responses.iter().filter(|response| {
        response.status == 200 && response.is_complete && response.text().ends_with("data: [DONE]\n\n")
    });
    assert_eq!(complete_streams.count(), 1_000, "{}", chain.front.log());
    let connections_used = chain.connections.load(Ordering::Relaxed);
    assert!((10..=12).contains(&connections_used), "{connections_used} connections");
    // Apart from the balancer's own question whether a backend that is silent for so long still answers.
    let chats = chain.azure.received_requests("a").into_iter().filter(|request| request.method == "POST");
    assert_eq!(chats.count(), 1_000);
    chain.azure.set_mood("a", Mood::Calm);
    // Further requests reuse the connections; one may have ended meanwhile.
    for client in &clients {
        assert_eq!(client.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status, 200);
    }
    assert!(chain.connections.load(Ordering::Relaxed) <= connections_used + 1);
    let records = chain.front.wait_for_records(1_020).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered" && record["attempts"][1].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_2_backend_behaves_like_an_http_1_backend() {
    let chain = start_chain(start_simulator(&["a"]).await, "retry: { attempts: 2 }").await;
    let client = Http2Connection::connect(chain.front.address, &chain.authority).await;
    // Bodies of several sizes, error responses, and streams that break.
    for size in [1, 70_000, 3_000_000] {
        let body = CHAT_BODY.replace("hello", &"x".repeat(size));
        assert_eq!(client.post(CHAT_TARGET, body.as_bytes()).await.status, 200);
        assert_eq!(chain.azure.received_requests("a").pop().unwrap().body.unwrap(), body.as_bytes());
    }
    chain.azure.set_mood("a", Mood::CloseMidStream { after: BodyPosition::Events(3) });
    let response = client.post(CHAT_TARGET, STREAM_BODY.as_bytes()).await;
    // An HTTP/2 reset may discard data that was sent before it. If all of it is lost, nothing has been
    // relayed yet and the client gets a 502.
    let is_truncated = response.status == 200 && !response.is_complete;
    assert!(
        is_truncated || (response.status, response.error_code().as_str()) == (502, "upstream_failed"),
        "{}",
        response.text()
    );
    chain.azure.set_mood("a", Mood::Refuses(SimulatedError::ContentFilter));
    let response = client.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await;
    assert_eq!(
        (response.status, response.error_code().as_str()),
        (400, "content_filter"),
        "{}",
        response.text()
    );
    chain.azure.set_mood("a", Mood::Calm);
    // After the inner balancer has stopped, requests fail with 502.
    assert_eq!(client.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status, 200);
    assert_eq!(chain.connections.load(Ordering::Relaxed), 1);
    let mut inner = chain.inner;
    assert_eq!(inner.stop().await, 0);
    let response = client.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await;
    assert_eq!(
        (response.status, response.error_code().as_str()),
        (502, "upstream_failed"),
        "{}",
        response.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_on_one_address_do_not_share_connections() {
    let chain = start_chain(start_simulator(&["a"]).await, "").await;
    let port = chain.inner.address.port();
    let ca = chain.inner.path("ca.pem");
    let backend_entry = |name: &str, host: &str| {
        let ca = ca.display();
        format!(
            "  - name: {name}\n    endpoint: https://{host}:{port}\n    credential: {{ api_key: {CLIENT_KEY} }}\n    http2: true\n    tls: {{ ca: {ca}, server_name: balancer.test }}\n"
        )
    };
    let (address, connections) = start_counting_relay(chain.inner.address).await;
    let entries = [backend_entry("one", "127.0.0.1"), backend_entry("two", "localhost")].concat();
    let entries = entries.replace(&port.to_string(), &address.port().to_string());
    let balancer = Balancer::start(&entries, "").await;
    for turn in 0..10 {
        let response = balancer.post_chat().await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, ["one", "two"][turn % 2]));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2, "expected one connection for each resource");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_of_many_connections_are_one_log_line() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    for _ in 0..3 {
        let connection = Http2Connection::connect(balancer.address, &authority).await;
        // The engine closes a connection after 32 of them.
        for _ in 0..40 {
            let Ok(mut requests) = connection.requests.clone().ready().await else { break };
            let request = http::Request::post(format!("https://balancer.test{CHAT_TARGET}"));
            let request = request.header("host", "another.test").body(()).unwrap();
            let Ok((response, _)) = requests.send_request(request, true) else { break };
            // The last one is not answered any more.
            assert!(!response.await.is_ok_and(|response| response.status() != 400));
        }
    }
    balancer.wait_for_log("malformed requests").await;
    let good = Http2Connection::connect(balancer.address, &authority).await;
    assert_eq!(good.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status, 200);
    let lines = balancer.log().lines().filter(|line| line.contains("malformed requests")).count();
    assert_eq!(lines, 1, "{}", balancer.log());
}
