//! Listeners with TLS, clients of HTTP/2, and backends that speak it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aoai_lb::demo::{Extent, Mood, Refusal, Simulator};
use futures::future::join_all;
use openssl::ssl::SslVersion;
use support::h2::{Connection, Exchange, dial};
use support::tls::{Authority, authority, write_pair};
use support::upstream::{Request, Upstream};
use support::{Balancer, CHAT, HELLO, KEY, STREAM, answerer, azure, backends, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MS: Duration = Duration::from_millis(1);
/// Records are gathered for ten milliseconds before they are written.
const AT_ONCE: Duration = Duration::from_millis(40);

/// A balancer of HTTP/2 in front of the resource `a`, and a connection to it.
async fn connected(more: &str) -> (Simulator, Balancer, Connection) {
    let azure = azure(&["a"]).await;
    let authority = authority();
    let balancer = Balancer::with_tls(&authority, &backends(&azure), more).await;
    let connection = Connection::open(balancer.address, &authority).await;
    (azure, balancer, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_choose_between_http_2_and_http_1() {
    let azure = azure(&["a"]).await;
    let authority = authority();
    let balancer = Balancer::with_tls(&authority, &backends(&azure), "").await;
    let connection = Connection::open(balancer.address, &authority).await;
    for (body, ending) in [(HELLO, "}"), (STREAM, "data: [DONE]\n\n")] {
        let reply = connection.post(CHAT, body.as_bytes()).await;
        assert_eq!((reply.status, reply.whole), (200, true), "{}", reply.text());
        assert!(reply.text().ends_with(ending), "{}", reply.text());
        assert_eq!(answerer(&reply), "a");
        assert!(reply.header("connection").is_none() && reply.header("transfer-encoding").is_none());
    }
    // Many at once on one connection.
    let replies = join_all((0..60).map(|_| connection.post(CHAT, STREAM.as_bytes()))).await;
    assert!(replies.iter().all(|reply| reply.whole && reply.text().ends_with("data: [DONE]\n\n")));
    // The other protocol, by choice or for want of one.
    for protocols in [&b"\x08http/1.1"[..], b""] {
        let mut stream = dial(balancer.address, &authority, protocols, None).await.unwrap();
        let length = HELLO.len();
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: x\r\napi-key: {KEY}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{HELLO}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let records = balancer.records_of(64).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered" && record["client"] == "team-a"));
    assert!(records.iter().all(|record| record["client_ip"] == "127.0.0.1"));
    assert_eq!(balancer.status().await["in_flight"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_bounded_and_a_new_certificate_is_shown() {
    let azure = azure(&["a"]).await;
    let authority = authority();
    let balancer = Balancer::with_tls(&authority, &backends(&azure), "").await;
    assert!(dial(balancer.address, &authority, b"", Some(SslVersion::TLS1_1)).await.is_err());
    let before = dial(balancer.address, &authority, b"", Some(SslVersion::TLS1_2)).await.unwrap();
    let shown = before.ssl().peer_certificate().unwrap().to_der().unwrap();
    let directory = balancer.path("");
    // Half of a pair changes nothing.
    let key = std::fs::read(directory.join("key.pem")).unwrap();
    std::fs::write(directory.join("key.pem"), "no key").unwrap();
    balancer.until_said("keeps its certificate").await;
    dial(balancer.address, &authority, b"", None).await.unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
    write_pair(&directory, &authority, 2);
    let begun = Instant::now();
    loop {
        let stream = dial(balancer.address, &authority, b"", None).await.unwrap();
        if stream.ssl().peer_certificate().unwrap().to_der().unwrap() != shown {
            break;
        }
        assert!(begun.elapsed() < support::PATIENCE, "{}", balancer.log());
        tokio::time::sleep(50 * MS).await;
    }
    assert!(!balancer.log().contains("PRIVATE"), "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_a_length_fails_over_byte_for_byte() {
    let azure = azure(&["a", "b"]).await;
    azure.set_mood("a", Mood::Refuses(Refusal::Unavailable));
    let authority = authority();
    let balancer = Balancer::with_tls(&authority, &backends(&azure), "").await;
    let connection = Connection::open(balancer.address, &authority).await;
    let text: String = (0..700_000).map(|n| format!("{n} ")).collect();
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
    let length = body.len().to_string();
    for headers in [&[][..], &[("content-length", length.as_str())]] {
        let mut exchange = connection.begin(CHAT, headers).await;
        support::h2::send(&mut exchange.body, body.as_bytes()).await;
        let reply = exchange.reply().await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"), "{}", reply.text());
        assert!(azure.requests("b").pop().unwrap().body.unwrap() == body.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_what_they_are_elsewhere() {
    let (_azure, balancer, connection) = connected("requests: { max_body: 1KiB }").await;
    let large = "x".repeat(100_000);
    let many: Vec<(String, &str)> = (0..100).map(|n| (format!("x-{n}"), "v")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let twice = [("content-type", "application/json"), ("content-type", "text/plain")];
    let cases = [
        (CHAT, &[("api-key", "another")][..], HELLO, 401, "invalid_api_key"),
        ("/other", &[], HELLO, 404, "path_not_allowed"),
        ("/openai/v1/../x", &[], HELLO, 400, "bad_request"),
        (CHAT, &[], &large, 413, "body_too_large"),
        (CHAT, &many, HELLO, 431, "headers_too_large"),
        (CHAT, &twice, HELLO, 400, "bad_request"),
    ];
    for (target, headers, body, status, code) in cases {
        let mut exchange = connection.begin(target, headers).await;
        support::h2::send(&mut exchange.body, body.as_bytes()).await;
        let reply = exchange.reply().await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{}", reply.text());
        assert!(reply.header("x-aoai-lb-request-id").is_some());
    }
    // The connection is none the worse for it.
    assert_eq!(connection.post(CHAT, HELLO.as_bytes()).await.status, 200);
    let records = balancer.records_of(7).await;
    let refusals: Vec<&str> = records.iter().filter_map(|record| record["refusal"].as_str()).collect();
    assert_eq!(refusals, cases.map(|case| case.4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_reset() {
    let (azure, balancer, connection) = connected("").await;
    let after = Extent::Events(3);
    let moods = [Mood::ResetMidBody { after }, Mood::CloseMidStream { after }];
    for mood in moods {
        azure.set_mood("a", mood.clone());
        for body in [STREAM, HELLO] {
            let reply = connection.post(CHAT, body.as_bytes()).await;
            assert_eq!((reply.status, reply.whole), (200, false), "{mood:?} {body}");
        }
    }
    azure.set_mood("a", Mood::Calm);
    assert_eq!(connection.post(CHAT, HELLO.as_bytes()).await.status, 200);
    let records = balancer.records_of(5).await;
    assert_eq!(records.iter().filter(|record| record["outcome"] == "failed").count(), 4);
}

/// Resets a request's stream once it is `ready`, three times on one connection; the least time
/// until its record is there.
async fn leaves(
    balancer: &Balancer,
    connection: &Connection,
    body: &str,
    ready: impl AsyncFn(usize, &mut Exchange),
) {
    let before = balancer.records().len();
    let mut least = Duration::MAX;
    for n in 1..=3 {
        let mut exchange = connection.ask(CHAT, body.as_bytes()).await;
        ready(n, &mut exchange).await;
        let mut stream = exchange.body;
        stream.send_reset(h2::Reason::CANCEL);
        let left = Instant::now();
        until("the record is there", || balancer.records().len() == before + n).await;
        least = least.min(left.elapsed());
    }
    let records = balancer.records();
    assert!(records[before..].iter().all(|record| record["outcome"] == "client_gone"), "{records:#?}");
    assert!(least < AT_ONCE, "{least:?}");
    balancer.until_status("nothing is in flight", |status| status["in_flight"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_its_stream_takes_the_request_along() {
    let (azure, balancer, connection) = connected("retry: { wait: 10s, hold: { time: 20s } }").await;
    let arrived = |n: usize| {
        let azure = &azure;
        async move {
            until("it arrives", || azure.requests("a").iter().filter(|seen| seen.complete).count() == n)
                .await;
        }
    };
    let cancelled = || azure.requests("a").iter().filter(|seen| seen.cancelled).count();
    // Before the first byte.
    azure.set_mood("a", Mood::Mute);
    leaves(&balancer, &connection, HELLO, async |n, _: &mut Exchange| arrived(n).await).await;
    until("upstream is cancelled", || cancelled() == 3).await;
    // In mid-stream.
    azure.set_mood("a", Mood::Drip(50 * MS));
    leaves(&balancer, &connection, STREAM, async |_, exchange: &mut Exchange| {
        let mut answer = (&mut exchange.response).await.unwrap().into_body();
        assert!(answer.data().await.unwrap().is_ok());
    })
    .await;
    until("upstream is cancelled", || cancelled() == 6).await;
    assert!(balancer.records()[3..].iter().all(|record| record["status"] == 200));
    // While a cooldown is waited for.
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(9_000), retry_after: None });
    leaves(&balancer, &connection, HELLO, async |_, _: &mut Exchange| {
        // The first is refused, the others know.
        arrived(7).await;
        tokio::time::sleep(30 * MS).await;
    })
    .await;
    // Between tries, with another deployment, which does not rest.
    azure.set_mood("a", Mood::Refuses(Refusal::Unavailable));
    let other = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let exchange = connection.ask(other, HELLO.as_bytes()).await;
    until("it has been asked three times", || azure.hits("a") >= 10).await;
    let mut stream = exchange.body;
    stream.send_reset(h2::Reason::CANCEL);
    until("the record is there", || balancer.records().len() == 10).await;
    assert_eq!(balancer.records()[9]["outcome"], "client_gone");
    // The connection is none the worse for it.
    azure.set_mood("a", Mood::Calm);
    let reply = connection.post(other, HELLO.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_stream_is_held_or_with_its_connection() {
    const EMPTY: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"choices\":[]}\n\n";
    let quiet = Upstream::start(|_: &Request| {
        std::iter::once(EMPTY.into()).chain(std::iter::repeat_n(Vec::new(), 30_000)).collect()
    })
    .await;
    let authority = authority();
    let balancer =
        Balancer::with_tls(&authority, &quiet.backend("a"), "retry: { hold: { time: 20s } }").await;
    let connection = Connection::open(balancer.address, &authority).await;
    leaves(&balancer, &connection, STREAM, async |n, _: &mut Exchange| {
        until("it arrives", || quiet.requests().len() == n).await;
        tokio::time::sleep(30 * MS).await;
    })
    .await;
    let under_way = join_all((0..5).map(|_| connection.ask(CHAT, STREAM.as_bytes()))).await;
    until("they arrive", || quiet.requests().len() == 8).await;
    connection.abort();
    let records = balancer.records_of(8).await;
    assert!(records.iter().all(|record| record["outcome"] == "client_gone"), "{records:#?}");
    drop(under_way);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_a_client_behind_a_trusted_proxy_is_known_for_every_stream() {
    let azure = azure(&["a"]).await;
    let authority = authority();
    let balancer =
        Balancer::with_tls_and(&authority, "trusted_proxies: [127.0.0.1]", &backends(&azure)).await;
    let connection = Connection::open(balancer.address, &authority).await;
    for address in ["192.0.2.1", "192.0.2.2"] {
        let mut exchange = connection.begin(CHAT, &[("x-forwarded-for", address)]).await;
        support::h2::send(&mut exchange.body, HELLO.as_bytes()).await;
        assert_eq!(exchange.reply().await.status, 200);
    }
    let records = balancer.records_of(2).await;
    let addresses: Vec<&str> = records.iter().map(|record| record["client_ip"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_under_way() {
    let azure = azure(&["a"]).await;
    azure.set_mood("a", Mood::Drip(100 * MS));
    let authority = authority();
    let mut balancer = Balancer::with_tls(&authority, &backends(&azure), "").await;
    let connection = Connection::open(balancer.address, &authority).await;
    let exchange = connection.ask(CHAT, STREAM.as_bytes()).await;
    until("it is under way", || azure.hits("a") == 1).await;
    let reply = tokio::spawn(exchange.reply());
    balancer.signal("TERM");
    let reply = reply.await.unwrap();
    assert!(reply.whole && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
    assert_eq!(balancer.ended().await, 0);
    assert_eq!(balancer.records_of(1).await[0]["outcome"], "answered");
}

/// Passes bytes on, and counts the connections that they come on.
async fn relay(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let Ok(mut upstream) = TcpStream::connect(to).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
            });
        }
    });
    (address, count)
}

/// Two balancers, the second of which is the first one's backend of HTTP/2.
struct Chain {
    azure: Simulator,
    second: Balancer,
    first: Balancer,
    connections: Arc<AtomicUsize>,
    authority: Authority,
}

async fn chain(azure: Simulator, more: &str) -> Chain {
    let authority = authority();
    let second = Balancer::with_tls(&authority, &backends(&azure), more).await;
    let (address, connections) = relay(second.address).await;
    let ca = second.path("ca.pem");
    std::fs::write(&ca, authority.certificate.to_pem().unwrap()).unwrap();
    let ca = ca.display();
    let entry = format!(
        "  - name: second\n    endpoint: https://{address}\n    credential: {{ api_key: {KEY} }}\n    http2: true\n    tls: {{ ca: {ca}, server_name: balancer.test }}\n"
    );
    let first = Balancer::with_tls(&authority, &entry, more).await;
    Chain { azure, second, first, connections, authority }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_share_ten_connections() {
    let azure = azure(&["a"]).await;
    // Long enough for all of them to be there at once.
    azure.set_mood("a", Mood::SlowFirstByte(5_000 * MS));
    let chain = chain(azure, "record: { content: none, jsonl: { path: records.jsonl } }").await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Connection::open(chain.first.address, &chain.authority).await);
    }
    let streams = clients.iter().flat_map(|client| (0..50).map(|_| client.post(CHAT, STREAM.as_bytes())));
    let replies = join_all(streams).await;
    let whole = replies
        .iter()
        .filter(|reply| reply.status == 200 && reply.whole && reply.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(whole.count(), 1_000, "{}", chain.first.log());
    let used = chain.connections.load(Ordering::Relaxed);
    assert!((10..=12).contains(&used), "{used} connections");
    assert_eq!(chain.azure.hits("a"), 1_000);
    chain.azure.set_mood("a", Mood::Calm);
    // And what comes then uses those that are there.
    for client in &clients {
        assert_eq!(client.post(CHAT, HELLO.as_bytes()).await.status, 200);
    }
    assert_eq!(chain.connections.load(Ordering::Relaxed), used);
    let records = chain.first.records_of(1_020).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered" && record["attempts"][1].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_of_http_2_is_served_like_any_other() {
    let chain = chain(azure(&["a"]).await, "retry: { attempts: 2 }").await;
    let client = Connection::open(chain.first.address, &chain.authority).await;
    // Bodies of every size, byte for byte; answers that are refusals; streams that break off.
    for size in [1, 70_000, 3_000_000] {
        let body = HELLO.replace("hello", &"x".repeat(size));
        assert_eq!(client.post(CHAT, body.as_bytes()).await.status, 200);
        assert_eq!(chain.azure.requests("a").pop().unwrap().body.unwrap(), body.as_bytes());
    }
    chain.azure.set_mood("a", Mood::CloseMidStream { after: Extent::Events(3) });
    let reply = client.post(CHAT, STREAM.as_bytes()).await;
    // A reset takes along what was sent before it: where that was all, nothing had been shown yet.
    let is_cut = reply.status == 200 && !reply.whole;
    assert!(is_cut || (reply.status, reply.code().as_str()) == (502, "upstream_failed"), "{}", reply.text());
    chain.azure.set_mood("a", Mood::Refuses(Refusal::ContentFilter));
    let reply = client.post(CHAT, HELLO.as_bytes()).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "content_filter"), "{}", reply.text());
    chain.azure.set_mood("a", Mood::Calm);
    // The other side stops and another takes its place: nothing of it is seen.
    assert_eq!(client.post(CHAT, HELLO.as_bytes()).await.status, 200);
    assert_eq!(chain.connections.load(Ordering::Relaxed), 1);
    let mut second = chain.second;
    assert_eq!(second.stop().await, 0);
    let reply = client.post(CHAT, HELLO.as_bytes()).await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_failed"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_on_one_address_share_no_connection() {
    let chain = chain(azure(&["a"]).await, "").await;
    let port = chain.second.address.port();
    let ca = chain.second.path("ca.pem");
    let entry = |name: &str, host: &str| {
        let ca = ca.display();
        format!(
            "  - name: {name}\n    endpoint: https://{host}:{port}\n    credential: {{ api_key: {KEY} }}\n    http2: true\n    tls: {{ ca: {ca}, server_name: balancer.test }}\n"
        )
    };
    let (address, connections) = relay(chain.second.address).await;
    let entries = [entry("one", "127.0.0.1"), entry("two", "localhost")].concat();
    let entries = entries.replace(&port.to_string(), &address.port().to_string());
    let balancer = Balancer::start(&entries, "").await;
    for turn in 0..10 {
        let reply = balancer.chat().await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, ["one", "two"][turn % 2]));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2, "one for each");
}
