//! Clients that send nothing, too little or too slowly, or do not read.

use crate::support;

use std::time::Duration;

use futures::future::join_all;
use openssl::ssl::SslVersion;
use support::h2::{
    self, CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, connect_tls, frame,
};
use support::tls::{CertificateAuthority, generate_authority};
use support::{Balancer, Client, TEST_TIMEOUT, all_backends_yaml, poll, start_simulator, wait_until_async};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;

const MILLISECOND: Duration = Duration::from_millis(1);

/// An HTTP/2 connection on which a test writes its own frames.
struct RawHttp2(SslStream<TcpStream>);

/// The header block of a health check.
fn header_block() -> Vec<u8> {
    h2::header_block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/healthz"),
        (":authority", "balancer.test"),
    ])
}

impl RawHttp2 {
    async fn connect(balancer: &Balancer, authority: &CertificateAuthority) -> Self {
        Self(connect_tls(balancer.address, authority, b"\x02h2", Some(SslVersion::TLS1_3)).await.unwrap())
    }

    async fn send(&mut self, pieces: &[&[u8]]) {
        self.0.write_all(&pieces.concat()).await.unwrap();
    }

    /// Reads frames until one of this type; false if the connection ended instead.
    async fn reads_frame(&mut self, frame_type: u8) -> bool {
        loop {
            let mut header = [0; 9];
            let read = timeout(TEST_TIMEOUT, self.0.read_exact(&mut header));
            if read.await.expect("timed out waiting for a frame or the end of the connection").is_err() {
                return false;
            }
            let mut payload = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
            if self.0.read_exact(&mut payload).await.is_err() {
                return false;
            }
            if header[3] == frame_type {
                return true;
            }
        }
    }

    async fn is_closed(&mut self) -> bool {
        !self.reads_frame(u8::MAX).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_count_before_their_tls_handshake() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let limit = "connections_per_client: 5";
    let timeouts = "timeouts: { request_header: 60s }";
    let backends = all_backends_yaml(&azure);
    let balancer = Balancer::start_with_tls_blocks(&authority, limit, &backends, timeouts).await;
    let connections = join_all((0..20).map(|_| balancer.connect())).await;
    let mut closed_count = 0;
    let mut waiting: futures::stream::FuturesUnordered<_> = connections
        .into_iter()
        .map(|mut connection| async move {
            connection.is_closed().await;
        })
        .collect();
    while closed_count < 15 {
        futures::StreamExt::next(&mut waiting).await.unwrap();
        closed_count += 1;
    }
    balancer.wait_for_log("(listeners[].connections_per_client); more are refused").await;
    drop(waiting);
    wait_until_async("another client gets a connection", async || {
        connect_tls(balancer.address, &authority, b"", None).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_and_a_first_head_that_are_not_complete_in_time_close_the_connection() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    // Enough for a handshake on a busy machine.
    let timeouts = "timeouts: { request_header: 3s }";
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), timeouts).await;
    let no_handshake = async { assert!(balancer.connect().await.is_closed().await) };
    let half_a_handshake = async {
        let mut client = balancer.connect().await;
        client.send(&[0x16, 3, 1, 2, 0, 1, 0]).await;
        assert!(client.is_closed().await);
    };
    let no_http1_head = async {
        let mut stream = connect_tls(balancer.address, &authority, b"", None).await.unwrap();
        let read = timeout(TEST_TIMEOUT, stream.read(&mut [0; 100])).await.unwrap();
        assert!(!matches!(read, Ok(1..)), "{read:?}");
    };
    let (block, settings) = (header_block(), frame(SETTINGS, 0, 0, b""));
    let begun = frame(HEADERS, END_STREAM, 1, &block[..20]);
    let more = frame(CONTINUATION, 0, 1, &block[20..]);
    let unfinished: [&[&[u8]]; 5] = [
        &[],
        &[&PREFACE[..10]],
        &[PREFACE, &settings],
        &[PREFACE, &settings, &begun[..12]],
        &[PREFACE, &settings, &begun, &more],
    ];
    let http2 = join_all(unfinished.map(|pieces| async {
        let mut connection = RawHttp2::connect(&balancer, &authority).await;
        connection.send(pieces).await;
        assert!(connection.is_closed().await);
    }));
    // While it can write nothing, h2 does not read.
    let unread_answers = async {
        let mut connection = RawHttp2::connect(&balancer, &authority).await;
        connection.send(&[PREFACE, &settings]).await;
        let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
        let write = async { while connection.0.write_all(&pings).await.is_ok() {} };
        timeout(TEST_TIMEOUT, write).await.expect("the connection stays open");
    };
    tokio::join!(no_handshake, half_a_handshake, no_http1_head, http2, unread_answers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_http_2_head_that_does_not_end_closes_its_connection_and_an_idle_connection_stays() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let timeouts = "timeouts: { request_header: 2s }";
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), timeouts).await;
    let mut connection = RawHttp2::connect(&balancer, &authority).await;
    let block = header_block();
    let settings = frame(SETTINGS, 0, 0, b"");
    connection.send(&[PREFACE, &settings, &frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)]).await;
    assert!(connection.reads_frame(HEADERS).await);
    // Longer than a head may take: the connection is idle, not slow.
    tokio::time::sleep(2500 * MILLISECOND).await;
    let (begun, rest) = block.split_at(15);
    let (begun, rest) = (frame(HEADERS, END_STREAM, 3, begun), frame(CONTINUATION, END_HEADERS, 3, rest));
    connection.send(&[&begun, &rest]).await;
    assert!(connection.reads_frame(HEADERS).await);
    connection.send(&[&frame(HEADERS, END_STREAM, 5, &block[..15])]).await;
    assert!(connection.is_closed().await);
    // The admin API has the same deadline.
    let mut admin = Client::connect(balancer.admin_address).await;
    admin.send(b"GET /healthz HTTP/1.1\r\nHost: ").await;
    assert_eq!(admin.read_response().await.status, 408);
    assert!(Client::connect(balancer.admin_address).await.is_closed().await);
}

/// The open files of the balancer.
fn count_open_files(balancer: &Balancer) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", balancer.pid())).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_hold_few_descriptors() {
    let azure = start_simulator(&["a"]).await;
    let backends = all_backends_yaml(&azure);
    let balancer = Balancer::start_with_listener(&backends, "connections_per_client: 1").await;
    // The harness has had the only place until now.
    let mut admitted = poll("a connection is admitted", async || {
        let mut client = balancer.connect().await;
        if client.get_is_ok("/healthz").await { Ok(client) } else { Err("it is refused") }
    })
    .await;
    let before = count_open_files(&balancer);
    let (mut connections, mut most) = (Vec::new(), 0);
    for _ in 0..100 {
        let refused = join_all((0..10).map(|_| async {
            let connection = TcpStream::connect(balancer.address).await.unwrap();
            // The balancer has answered or closed it.
            timeout(TEST_TIMEOUT, connection.readable()).await.unwrap().unwrap();
            connection
        }));
        connections.extend(refused.await);
        most = most.max(count_open_files(&balancer) - before);
    }
    assert!(most < 400, "{most} descriptors");
    let mut first = Client::from_stream(connections.remove(0));
    assert_eq!(first.read_response().await.error_code(), "overloaded");
    assert!(admitted.get_is_ok("/healthz").await);
}
