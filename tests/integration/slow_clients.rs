//! Clients that send nothing, too little or too slowly, or do not read.

use crate::support;

use std::time::Duration;

use futures::future::join_all;
use openssl::ssl::SslVersion;
use support::h2::{
    self, CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, connect_tls, frame,
};
use support::tls::{CertificateAuthority, generate_authority};
use support::{Balancer, Client, TEST_TIMEOUT, all_backends_yaml, start_simulator, wait_until_async};
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
    tokio::join!(no_handshake, half_a_handshake, no_http1_head, http2);
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
