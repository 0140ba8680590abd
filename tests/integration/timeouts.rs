//! Timeouts of backends, and clients that disconnect at any stage.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, Simulator};
use futures::future::join_all;
use serde_json::Value;
use support::upstream::{RawRequest, ScriptedUpstream};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, STREAM_BODY, all_backends_yaml,
    answering_backend, backend_yaml, simulated_backend_yaml, start_simulator, wait_until, wait_until_async,
};
use tokio::net::{TcpListener, TcpSocket};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Sends a chat request without reading the response.
async fn send_chat(balancer: &Balancer, body: &str) -> Client {
    let mut client = balancer.connect().await;
    let length = body.len().to_string();
    let request_head =
        Client::request_head("POST", CHAT_TARGET, &[("api-key", CLIENT_KEY), ("Content-Length", &length)]);
    client.send(&[request_head.as_bytes(), body.as_bytes()].concat()).await;
    client
}

/// Sends requests that time out on the first backend and fail over to the second, until one of them has done so
/// within this many milliseconds of its timeout: a busy machine delays some.
async fn wait_for_timeout_on_time(
    entries: &str,
    body: &str,
    timeout_ms: u64,
    error: &str,
    max_overrun_ms: u64,
) {
    let extra_yaml = "timeouts: { connect: 500ms, first_byte: 400ms, first_byte_stream: 200ms, idle: 300ms }\n\
                breaker: { failures: 1000 }";
    let balancer = Balancer::start(entries, extra_yaml).await;
    let overrun_ms = |record: &Value| {
        let first = &record["attempts"][0];
        assert_eq!((first["backend"].as_str(), first["error"].as_str()), (Some("a"), Some(error)));
        first["ms"]
            .as_u64()
            .unwrap()
            .checked_sub(timeout_ms)
            .expect("expected no attempt to end before its timeout")
    };
    let mut requests = 0;
    wait_until_async(&format!("{error} comes on time"), async || {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"), "{error}");
        requests += 1;
        overrun_ms(balancer.wait_for_records(requests).await.last().unwrap()) <= max_overrun_ms
    })
    .await;
}

fn two_tiers_yaml(a: &str, azure: &Simulator) -> String {
    backend_yaml("a", a, &format!("tier: 1\n{LISTED_DEPLOYMENTS}"))
        + &simulated_backend_yaml(azure, "b", &format!("tier: 2\n{LISTED_DEPLOYMENTS}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_respond_is_abandoned_on_time() {
    let azure = start_simulator(&["silent", "b"]).await;
    azure.set_mood("silent", Mood::Mute);
    let silent_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_backends = two_tiers_yaml(&format!("http://{}", azure.address("silent")), &azure);
    let stalling_backends =
        two_tiers_yaml(&format!("https://{}", silent_listener.local_addr().unwrap()), &azure);
    let cases = [
        (&silent_backends, CHAT_BODY, 400, "first_byte_timeout"),
        (&silent_backends, STREAM_BODY, 200, "first_byte_timeout"),
        (&stalling_backends, CHAT_BODY, 500, "connect_timeout"),
    ];
    for (entries, body, timeout_ms, error) in cases {
        wait_for_timeout_on_time(entries, body, timeout_ms, error, 50).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_falls_silent_ends_after_the_idle_timeout() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Silence { after_events: 3, duration: Duration::from_secs(20) });
    let balancer = Balancer::start(&all_backends_yaml(&azure), "timeouts: { idle: 300ms }").await;
    wait_until_async("a response ends on time", async || {
        let start = Instant::now();
        let mut client = send_chat(&balancer, STREAM_BODY).await;
        assert_eq!(client.read_response_head().await.unwrap().status, 200);
        let mut last_chunk = Instant::now();
        while client.read_chunk().await.filter(|chunk| !chunk.is_empty()).is_some() {
            last_chunk = Instant::now();
        }
        // The chunks come at once, but may be read late.
        assert!(start.elapsed() >= 300 * MILLISECOND, "{:?}", start.elapsed());
        last_chunk.elapsed() <= 350 * MILLISECOND
    })
    .await;
}

/// A large body is sent over a slow connection.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_byte_timeout_starts_after_the_body_has_been_sent() {
    // Bytes in socket buffers count as sent, so the buffers are kept small.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(256 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    const SIZE: usize = 20 << 20;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = 0;
        let mut piece = vec![0; 512 << 10];
        while read < SIZE {
            tokio::time::sleep(80 * MILLISECOND).await;
            read += tokio::io::AsyncReadExt::read(&mut stream, &mut piece).await.unwrap();
        }
        let response = support::upstream::complete_response(200, "Content-Type: application/json", "{}");
        tokio::io::AsyncWriteExt::write_all(&mut stream, &response[0]).await.unwrap();
        std::future::pending::<()>().await;
    });
    let extra_yaml = "timeouts: { first_byte: 1500ms }\nretry: { attempts: 0 }";
    let balancer = Balancer::start(&backend_yaml("a", &format!("http://{address}"), ""), extra_yaml).await;
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(SIZE));
    let start = Instant::now();
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(start.elapsed() > 2_500 * MILLISECOND, "expected the slow connection to take longer");
}

/// Sends a request, waits until it is ready, and disconnects, until a record is written within
/// [`MAX_RECORD_DELAY`]: a busy machine delays some. Returns the last record and the number of requests.
async fn disconnect_until_prompt_record(
    balancer: &Balancer,
    body: &str,
    wait_until_ready: impl AsyncFn(usize, &mut Client),
) -> (Value, usize) {
    let mut number = 0;
    wait_until_async("a record is written at once", async || {
        number += 1;
        let mut client = send_chat(balancer, body).await;
        wait_until_ready(number, &mut client).await;
        drop(client);
        let disconnect = Instant::now();
        wait_until("the record is written", || balancer.records().len() == number).await;
        number >= 3 && disconnect.elapsed() < MAX_RECORD_DELAY
    })
    .await;
    let record = balancer.wait_for_records(number).await.pop().unwrap();
    assert_eq!(record["outcome"], "client_gone", "{record:#}");
    balancer.wait_for_status("nothing is in flight", |status| status["in_flight"] == 0).await;
    (record, number)
}

/// Records are collected for ten milliseconds before they are written.
const MAX_RECORD_DELAY: Duration = Duration::from_millis(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_disconnect_before_the_first_byte_ends_the_request_at_once() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Mute);
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let (record, count) =
        disconnect_until_prompt_record(&balancer, CHAT_BODY, async |number, _: &mut Client| {
            wait_until("the request reaches the backend", || {
                azure.received_requests("a").iter().filter(|request| request.is_body_complete).count()
                    == number
            })
            .await;
        })
        .await;
    assert_eq!(record["attempts"][0]["error"], "client_gone");
    wait_until("the upstream requests are cancelled", || {
        azure.received_requests("a").iter().filter(|request| request.client_disconnected).count() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_disconnect_during_a_cooldown_wait_ends_the_request_at_once() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(9_000), retry_after: None });
    let balancer = Balancer::start(&all_backends_yaml(&azure), "retry: { wait: 10s }").await;
    let (record, count) =
        disconnect_until_prompt_record(&balancer, CHAT_BODY, async |number, _: &mut Client| {
            wait_until("the request is refused", || azure.request_count("a") == number).await;
            balancer.wait_for_request_between_attempts().await;
        })
        .await;
    assert_eq!(record["attempts"][0]["status"], 429);
    assert_eq!(azure.request_count("a"), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_disconnect_while_the_stream_is_held_ends_the_request_at_once() {
    const EMPTY_STREAM: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"choices\":[]}\n\n";
    // Each empty piece is a pause of one millisecond, so the upstream is silent for half a minute.
    let silent_upstream = ScriptedUpstream::start(|_: &RawRequest| {
        std::iter::once(EMPTY_STREAM.into()).chain(std::iter::repeat_n(Vec::new(), 30_000)).collect()
    })
    .await;
    let balancer =
        Balancer::start(&silent_upstream.backend_yaml("a"), "retry: { hold: { time: 20s } }").await;
    let (record, _) =
        disconnect_until_prompt_record(&balancer, STREAM_BODY, async |number, _: &mut Client| {
            wait_until("the request reaches the backend", || silent_upstream.requests().len() == number)
                .await;
            tokio::time::sleep(30 * MILLISECOND).await;
        })
        .await;
    assert_eq!(record["status"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_disconnect_mid_stream_is_recorded_with_the_content_so_far() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Drip(100 * MILLISECOND));
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let (record, count) =
        disconnect_until_prompt_record(&balancer, STREAM_BODY, async |_, client: &mut Client| {
            assert_eq!(client.read_response_head().await.unwrap().status, 200);
            let mut text = String::new();
            while !text.contains(r#""content":""#) {
                text += &String::from_utf8(client.read_chunk().await.unwrap()).unwrap();
            }
            let received_events = text.matches("data: ").count();
            while text.matches("data: ").count() < received_events + 2 {
                text += &String::from_utf8(client.read_chunk().await.unwrap()).unwrap();
            }
        })
        .await;
    assert_eq!(record["status"], 200);
    let completion = record["completion"].as_str().unwrap();
    assert!(!completion.is_empty(), "{record:#}");
    // The token counts are estimated from the content received so far.
    assert_eq!(record["usage_source"], "estimated");
    let tokens = ["input_tokens", "output_tokens", "total_tokens"].map(|name| record[name].as_u64().unwrap());
    assert!(tokens[0] > 0 && tokens[1] > 0 && tokens[0] + tokens[1] == tokens[2], "{record:#}");
    assert!(record["cached_tokens"].is_null());
    wait_until("the upstream requests are cancelled", || {
        azure.received_requests("a").iter().filter(|request| request.client_disconnected).count() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_backend_is_tried_after_a_client_disconnect_during_connect() {
    let azure = start_simulator(&["b"]).await;
    let silent_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let entries = two_tiers_yaml(&format!("https://{}", silent_listener.local_addr().unwrap()), &azure);
    let balancer = Balancer::start(&entries, "timeouts: { connect: 400ms }").await;
    let clients = join_all((0..5).map(|_| send_chat(&balancer, CHAT_BODY))).await;
    // The clients disconnect only when the balancer is connecting to the first backend.
    for _ in &clients {
        std::mem::forget(silent_listener.accept().await.unwrap());
    }
    drop(clients);
    for record in balancer.wait_for_records(5).await {
        assert_eq!(record["outcome"], "client_gone", "{record:#}");
    }
    assert_eq!(azure.request_count("b"), 0);
}
