//! Clients that do not read their responses: memory stays bounded, and the backend has to wait.

use crate::support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client;
use http::Request;
use support::h2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, WINDOW_UPDATE, connect_tls, frame,
    header_block,
};
use support::tls::{CertificateAuthority, generate_authority};
use support::upstream::{ScriptedUpstream, complete_response};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, TEST_TIMEOUT, backend_yaml, wait_until,
    wait_until_async, wait_until_steady,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_openssl::SslStream;

const STREAMS: usize = 200;
/// A tenth of the streams share a connection over HTTP/2.
const HTTP2_CONNECTIONS: usize = 20;
/// What one stream may add to the memory of the process: what an active stream needs anyway, and what waits.
const MAX_KIB_PER_STREAM: usize = 240;

/// A backend whose responses do not end.
struct EndlessBackend {
    address: SocketAddr,
    responses: Arc<AtomicUsize>,
    written_bytes: Arc<AtomicUsize>,
}

impl EndlessBackend {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (responses, written_bytes) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (response_count, byte_count) = (Arc::clone(&responses), Arc::clone(&written_bytes));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (response_count, byte_count) = (Arc::clone(&response_count), Arc::clone(&byte_count));
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(CHAT_BODY.as_bytes()) {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    response_count.fetch_add(1, Ordering::Relaxed);
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n";
                    let mut bytes = [head.as_bytes(), &[b'x'; 64 * 1024]].concat();
                    while let Ok(written) = stream.write(&bytes).await {
                        byte_count.fetch_add(written, Ordering::Relaxed);
                        bytes.drain(..written);
                        bytes.resize(64 * 1024, b'x');
                    }
                });
            }
        });
        Self { address, responses, written_bytes }
    }

    /// Waits until all responses have begun and none of them goes on.
    async fn wait_until_blocked(&self) {
        wait_until("all responses have begun", || self.responses.load(Ordering::Relaxed) == STREAMS).await;
        let written_bytes = || self.written_bytes.load(Ordering::Relaxed);
        wait_until_steady("the backend has to wait", Duration::from_millis(700), written_bytes).await;
    }
}

fn resident_kib(balancer: &Balancer) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", balancer.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Checks how much the memory of a process has grown.
fn check_growth(balancer: &Balancer, kib_before: usize, what: &str) {
    let kib_per_stream = (resident_kib(balancer) - kib_before) / STREAMS;
    println!("{what}: {kib_per_stream} KiB per stream");
    assert!(kib_per_stream <= MAX_KIB_PER_STREAM, "{what}: {kib_per_stream} KiB per stream");
}

const NO_CONTENT: &str = "record: { content: none, jsonl: { path: records.jsonl } }";

/// Sends the requests over HTTP/1.1 and reads nothing.
async fn send_http1_requests(balancer: &Balancer, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = balancer.connect().await;
        client.send_chat(CHAT_BODY).await;
        clients.push(client);
    }
    clients
}

/// Sends the requests over HTTP/2 and reads nothing of the responses, for which the client's windows have room.
async fn send_http2_requests(
    balancer: &Balancer,
    authority: &CertificateAuthority,
) -> Vec<tokio::sync::oneshot::Sender<()>> {
    let mut connections = Vec::new();
    for _ in 0..HTTP2_CONNECTIONS {
        let stream = connect_tls(balancer.address, authority, b"\x02h2", None).await.unwrap();
        let mut builder = client::Builder::new();
        builder.initial_window_size(16 << 20).initial_connection_window_size(64 << 20);
        let (requests, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (sent, all_sent) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            let mut connection = Box::pin(connection);
            // The connection is read until the requests have been sent, and then no more.
            tokio::select! {
                _ = &mut connection => {}
                _ = all_sent => {}
            }
            let _ = stopped.await;
        });
        let mut requests = requests.ready().await.unwrap();
        let mut responses = Vec::new();
        for _ in 0..STREAMS / HTTP2_CONNECTIONS {
            let request = Request::post(format!("https://balancer.test{CHAT_TARGET}"))
                .header("api-key", CLIENT_KEY)
                .body(())
                .unwrap();
            let (response, mut body) = requests.send_request(request, false).unwrap();
            body.send_data(Bytes::from_static(CHAT_BODY.as_bytes()), true).unwrap();
            responses.push(response);
            requests = requests.ready().await.unwrap();
        }
        for response in responses {
            // Kept, so that the stream is not reset.
            std::mem::forget(tokio::time::timeout(TEST_TIMEOUT, response).await.unwrap().unwrap());
        }
        std::mem::forget(requests);
        sent.send(()).unwrap();
        connections.push(stop);
    }
    connections
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_cost_little_memory_over_http_1() {
    let backend = EndlessBackend::start().await;
    let backends = backend_yaml("a", &format!("http://{}", backend.address), "");
    let balancer = Balancer::start(&backends, NO_CONTENT).await;
    let before = resident_kib(&balancer);
    let clients = send_http1_requests(&balancer, STREAMS).await;
    backend.wait_until_blocked().await;
    check_growth(&balancer, before, "HTTP/1.1 on both sides");
    drop(clients);
}

/// The balancer in front reads from the inner one over HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_cost_little_memory_over_http_2() {
    let backend = EndlessBackend::start().await;
    let authority = generate_authority();
    let backends = backend_yaml("a", &format!("http://{}", backend.address), "");
    let inner = Balancer::start_with_tls(&authority, &backends, NO_CONTENT).await;
    let before = resident_kib(&inner);
    let ca = inner.path("ca.pem");
    std::fs::write(&ca, authority.certificate.to_pem().unwrap()).unwrap();
    let (address, ca) = (inner.address, ca.display());
    let backends = format!(
        "  - name: inner\n    endpoint: https://{address}\n    credential: {{ api_key: {CLIENT_KEY} }}\n    http2: true\n    tls: {{ ca: {ca}, server_name: balancer.test }}\n"
    );
    let front = Balancer::start_with_tls(&authority, &backends, NO_CONTENT).await;
    let before_front = resident_kib(&front);
    let connections = send_http2_requests(&front, &authority).await;
    backend.wait_until_blocked().await;
    check_growth(&front, before_front, "HTTP/2 on both sides");
    check_growth(&inner, before, "HTTP/2 to the client, HTTP/1.1 to the backend");
    drop(connections);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_disconnected_after_the_idle_timeout() {
    let backend = EndlessBackend::start().await;
    let authority = generate_authority();
    let backends = backend_yaml("a", &format!("http://{}", backend.address), "");
    let extra_yaml = format!("timeouts: {{ idle: 2s }}\n{NO_CONTENT}");
    let balancer = Balancer::start(&backends, &extra_yaml).await;
    // Few: the kernel takes megabytes for each, and has no more than it has.
    let clients = send_http1_requests(&balancer, 10).await;
    let records = balancer.wait_for_records(10).await;
    // What the kernel has taken for the client is bounded as well.
    let largest = records.iter().map(|record| record["response_bytes"].as_u64().unwrap()).max();
    assert!(largest.unwrap() < 2 << 20, "{largest:?} bytes");
    for record in records {
        assert_eq!(record["outcome"], "client_gone", "{record:#}");
    }
    drop(clients);
    let balancer = Balancer::start_with_tls(&authority, &backends, &extra_yaml).await;
    let connections = send_http2_requests(&balancer, &authority).await;
    let records = balancer.wait_for_records(STREAMS).await;
    for record in records {
        assert_eq!(record["outcome"], "client_gone", "{record:#}");
    }
    // It is no failure of the backend, which has been disconnected as well.
    assert_eq!(balancer.backend_states().await, [("a".to_owned(), "healthy".to_owned())]);
    balancer.wait_for_status("nothing is in flight", |status| status["in_flight"] == 0).await;
    drop(connections);
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_responses_count_as_held_memory_and_one_client_gets_only_a_share() {
    let backend = EndlessBackend::start().await;
    let backends = backend_yaml("a", &format!("http://{}", backend.address), "");
    let limits = "requests: { max_body: 1MiB, max_streamed_body: 1MiB, body_memory: 6MiB }";
    let balancer = Balancer::start(&backends, &format!("{limits}\n{NO_CONTENT}")).await;
    let clients = send_http1_requests(&balancer, 40).await;
    // Two thirds of 6 MiB have room for 21 responses of 192 KiB.
    let records = balancer.wait_for_records(19).await;
    for record in records {
        assert_eq!(record["outcome"], "client_gone", "{record:#}");
    }
    balancer.wait_for_status("the others go on", |status| status["in_flight"] == 21).await;
    let log = balancer.log();
    assert_eq!(log.matches("does not read its responses").count(), 1, "{log}");
    assert_eq!(balancer.backend_states().await, [("a".to_owned(), "healthy".to_owned())]);
    drop(clients);
    balancer.wait_for_status("their memory is free again", |status| status["in_flight"] == 0).await;
    let clients = send_http1_requests(&balancer, 15).await;
    balancer.wait_for_status("as many begin as have room", |status| status["in_flight"] == 15).await;
    drop(clients);
}

/// As many requests as a connection may have at a time.
const HTTP2_REQUESTS: u8 = 100;

/// An upstream whose responses h2 takes whole, without waiting for the client.
async fn start_upstream_with_small_responses() -> ScriptedUpstream {
    let body = "x".repeat(30_000);
    ScriptedUpstream::start(move |_| complete_response(200, "Content-Type: text/plain", &body)).await
}

/// Sends [`HTTP2_REQUESTS`] on a connection of which nothing is read, and whose windows have room for all responses.
async fn send_unread_http2_requests(
    balancer: &Balancer,
    authority: &CertificateAuthority,
) -> SslStream<TcpStream> {
    let mut stream = connect_tls(balancer.address, authority, b"\x02h2", None).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2).
    let window = [&[0, 4][..], &(16u32 << 20).to_be_bytes()].concat();
    let connection_window = (64u32 << 20).to_be_bytes();
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &window)].concat();
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &connection_window));
    let block = header_block(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", CHAT_TARGET),
        (":authority", "balancer.test"),
        ("api-key", CLIENT_KEY),
    ]);
    for stream_id in (0..HTTP2_REQUESTS).map(|number| 2 * number + 1) {
        bytes.extend(frame(HEADERS, END_HEADERS, stream_id, &block));
        bytes.extend(frame(DATA, END_STREAM, stream_id, CHAT_BODY.as_bytes()));
    }
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// Whether the balancer still takes bytes of a connection.
async fn is_open(stream: &mut SslStream<TcpStream>) -> bool {
    let ping = frame(PING, 0, 0, &[0; 8]);
    timeout(TEST_TIMEOUT, stream.write_all(&ping)).await.expect("the connection stays open").is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_have_ended_and_are_not_read_over_http_2_have_a_deadline() {
    let upstream = start_upstream_with_small_responses().await;
    let authority = generate_authority();
    let extra_yaml = format!("timeouts: {{ idle: 2s }}\n{NO_CONTENT}");
    let balancer = Balancer::start_with_tls(&authority, &upstream.backend_yaml("a"), &extra_yaml).await;
    let mut connection = send_unread_http2_requests(&balancer, &authority).await;
    let records = balancer.wait_for_records(usize::from(HTTP2_REQUESTS)).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered"), "{records:#?}");
    wait_until_async("the connection is closed", async || !is_open(&mut connection).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_have_ended_and_are_not_read_over_http_2_count_as_held_memory() {
    let upstream = start_upstream_with_small_responses().await;
    let authority = generate_authority();
    let limits = "requests: { max_body: 1MiB, max_streamed_body: 1MiB, body_memory: 6MiB }";
    let extra_yaml = format!("{limits}\n{NO_CONTENT}");
    let balancer = Balancer::start_with_tls(&authority, &upstream.backend_yaml("a"), &extra_yaml).await;
    let mut first = send_unread_http2_requests(&balancer, &authority).await;
    balancer.wait_for_records(usize::from(HTTP2_REQUESTS)).await;
    let mut second = send_unread_http2_requests(&balancer, &authority).await;
    // One address gets two thirds of 6 MiB, and most of 3 MiB waits on each connection.
    wait_until_async("one of the connections is closed", async || {
        !is_open(&mut second).await || !is_open(&mut first).await
    })
    .await;
    balancer.wait_for_log("an address does not read its responses").await;
    assert!(is_open(&mut first).await || is_open(&mut second).await, "expected the other one to stay open");
}
