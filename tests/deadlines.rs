//! What takes too long is left in time, and a client that leaves takes its request along.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, Simulator};
use futures::future::join_all;
use serde_json::Value;
use support::upstream::{Request, Upstream};
use support::{
    Balancer, CHAT, Client, HELLO, KEY, LISTED, STREAM, answerer, azure, backend, backends, entry, until,
};
use tokio::net::{TcpListener, TcpSocket};

const MS: Duration = Duration::from_millis(1);

/// Sends a chat and does not wait for its answer.
async fn ask(balancer: &Balancer, body: &str) -> Client {
    let mut client = balancer.client().await;
    let length = body.len().to_string();
    let head = Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]);
    client.send(&[head.as_bytes(), body.as_bytes()].concat()).await;
    client
}

/// The least that any of five requests overstayed this time on the first backend, which they all
/// had to leave for the second.
async fn overstays(entries: &str, body: &str, due: u64, error: &str) -> u64 {
    let more = "timeouts: { connect: 500ms, first_byte: 400ms, first_byte_stream: 200ms, idle: 300ms }\n\
                breaker: { failures: 1000 }";
    let balancer = Balancer::start(entries, more).await;
    for _ in 0..5 {
        let reply = balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"), "{error}");
    }
    let late = |record: Value| {
        let first = &record["attempts"][0];
        assert_eq!((first["backend"].as_str(), first["error"].as_str()), (Some("a"), Some(error)));
        first["ms"].as_u64().unwrap().checked_sub(due).expect("given up too early")
    };
    balancer.records_of(5).await.into_iter().map(late).min().unwrap()
}

fn tiers(a: &str, azure: &Simulator) -> String {
    entry("a", a, &format!("tier: 1\n{LISTED}")) + &backend(azure, "b", &format!("tier: 2\n{LISTED}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mute_backend_is_left_in_time() {
    let azure = azure(&["mute", "b"]).await;
    azure.set_mood("mute", Mood::Mute);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = tiers(&format!("http://{}", azure.address("mute")), &azure);
    let stalls = tiers(&format!("https://{}", silent.local_addr().unwrap()), &azure);
    let cases = [
        (&mute, HELLO, 400, "first_byte_timeout"),
        (&mute, STREAM, 200, "first_byte_timeout"),
        (&stalls, HELLO, 500, "connect_timeout"),
    ];
    for (entries, body, due, error) in cases {
        let late = overstays(entries, body, due, error).await;
        assert!(late <= 50, "{error}: {late} ms late");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_in_an_answer_is_ended_in_time() {
    let azure = azure(&["a"]).await;
    azure.set_mood("a", Mood::Silence { after: 3, lasting: Duration::from_secs(20) });
    let balancer = Balancer::start(&backends(&azure), "timeouts: { idle: 300ms }").await;
    let mut least = Duration::MAX;
    for _ in 0..5 {
        let mut client = ask(&balancer, STREAM).await;
        assert_eq!(client.reply_head().await.unwrap().status, 200);
        let mut last = Instant::now();
        while client.chunk().await.filter(|chunk| !chunk.is_empty()).is_some() {
            last = Instant::now();
        }
        let silent = last.elapsed();
        assert!(silent >= 290 * MS, "{silent:?}");
        least = least.min(silent);
    }
    assert!(least <= 350 * MS, "{least:?}");
}

/// A large body over a slow line: the time of the first byte begins after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_takes_long_to_send_does_not_count() {
    // What lies in the system's buffers is sent, as far as anyone can know: they are kept small.
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
            tokio::time::sleep(80 * MS).await;
            read += tokio::io::AsyncReadExt::read(&mut stream, &mut piece).await.unwrap();
        }
        let reply = support::upstream::reply(200, "Content-Type: application/json", "{}");
        tokio::io::AsyncWriteExt::write_all(&mut stream, &reply[0]).await.unwrap();
        std::future::pending::<()>().await;
    });
    let more = "timeouts: { first_byte: 1500ms }\nretry: { attempts: 0 }";
    let balancer = Balancer::start(&entry("a", &format!("http://{address}"), ""), more).await;
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(SIZE));
    let begun = Instant::now();
    let reply = balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(begun.elapsed() > 2_500 * MS, "it was no slow line");
}

/// The record of a request whose client left, and how long after that it was over, at the least of
/// three times.
async fn leaves(
    balancer: &Balancer,
    body: &str,
    ready: impl AsyncFn(usize, &mut Client),
) -> (Value, Duration) {
    let mut least = Duration::MAX;
    for n in 1..=3 {
        let mut client = ask(balancer, body).await;
        ready(n, &mut client).await;
        drop(client);
        let left = Instant::now();
        until("the record is there", || balancer.records().len() == n).await;
        least = least.min(left.elapsed());
    }
    let record = balancer.records_of(3).await.pop().unwrap();
    assert_eq!(record["outcome"], "client_gone", "{record:#}");
    balancer.until_status("nothing is in flight", |status| status["in_flight"] == 0).await;
    (record, least)
}

/// Records are gathered for ten milliseconds before they are written.
const AT_ONCE: Duration = Duration::from_millis(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_first_byte() {
    let azure = azure(&["a"]).await;
    azure.set_mood("a", Mood::Mute);
    let balancer = Balancer::start(&backends(&azure), "").await;
    let (record, least) = leaves(&balancer, HELLO, async |n, _: &mut Client| {
        until("it arrives", || azure.requests("a").iter().filter(|seen| seen.complete).count() == n).await;
    })
    .await;
    assert!(least < AT_ONCE, "{least:?}");
    assert_eq!(record["attempts"][0]["error"], "client_gone");
    until("upstream is cancelled", || azure.requests("a").iter().filter(|seen| seen.cancelled).count() == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_a_cooldown_is_waited_for() {
    let azure = azure(&["a"]).await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(9_000), retry_after: None });
    let balancer = Balancer::start(&backends(&azure), "retry: { wait: 10s }").await;
    let (record, least) = leaves(&balancer, HELLO, async |n, _: &mut Client| {
        until("it is refused", || azure.hits("a") == n).await;
        tokio::time::sleep(30 * MS).await;
    })
    .await;
    assert!(least < AT_ONCE, "{least:?}");
    assert_eq!(record["attempts"][0]["status"], 429);
    assert_eq!(azure.hits("a"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_stream_is_held() {
    const EMPTY: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"choices\":[]}\n\n";
    // A piece is a millisecond: silent for half a minute.
    let quiet = Upstream::start(|_: &Request| {
        std::iter::once(EMPTY.into()).chain(std::iter::repeat_n(Vec::new(), 30_000)).collect()
    })
    .await;
    let balancer = Balancer::start(&quiet.backend("a"), "retry: { hold: { time: 20s } }").await;
    let (record, least) = leaves(&balancer, STREAM, async |n, _: &mut Client| {
        until("it arrives", || quiet.requests().len() == n).await;
        tokio::time::sleep(30 * MS).await;
    })
    .await;
    assert!(least < AT_ONCE, "{least:?}");
    assert_eq!(record["status"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_mid_stream_is_recorded_with_what_it_got() {
    let azure = azure(&["a"]).await;
    azure.set_mood("a", Mood::Drip(100 * MS));
    let balancer = Balancer::start(&backends(&azure), "").await;
    let (record, least) = leaves(&balancer, STREAM, async |_, client: &mut Client| {
        assert_eq!(client.reply_head().await.unwrap().status, 200);
        let mut text = String::new();
        while !text.contains(r#""content":""#) {
            text += &String::from_utf8(client.chunk().await.unwrap()).unwrap();
        }
        let got = text.matches("data: ").count();
        while text.matches("data: ").count() < got + 2 {
            text += &String::from_utf8(client.chunk().await.unwrap()).unwrap();
        }
    })
    .await;
    assert!(least < AT_ONCE, "{least:?}");
    assert_eq!(record["status"], 200);
    let completion = record["completion"].as_str().unwrap();
    assert!(!completion.is_empty(), "{record:#}");
    // What it cost is estimated from what came.
    assert_eq!(record["usage_source"], "estimated");
    let tokens = ["input_tokens", "output_tokens", "total_tokens"].map(|name| record[name].as_u64().unwrap());
    assert!(tokens[0] > 0 && tokens[1] > 0 && tokens[0] + tokens[1] == tokens[2], "{record:#}");
    assert!(record["cached_tokens"].is_null());
    until("upstream is cancelled", || azure.requests("a").iter().filter(|seen| seen.cancelled).count() == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_for_a_client_that_left_while_a_backend_was_connected_to() {
    let azure = azure(&["b"]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let entries = tiers(&format!("https://{}", silent.local_addr().unwrap()), &azure);
    let balancer = Balancer::start(&entries, "timeouts: { connect: 400ms }").await;
    let asked = join_all((0..5).map(|_| ask(&balancer, HELLO))).await;
    // The clients are there until a connection to the first backend is being made.
    for _ in &asked {
        std::mem::forget(silent.accept().await.unwrap());
    }
    drop(asked);
    for record in balancer.records_of(5).await {
        assert_eq!(record["outcome"], "client_gone", "{record:#}");
    }
    assert_eq!(azure.hits("b"), 0);
}
