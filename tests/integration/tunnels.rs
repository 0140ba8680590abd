//! WebSocket tunnels: how long they may be silent, how their ends are passed on, and sides that do not read.

use crate::support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::websocket::UPGRADE_HEADERS;
use support::{Balancer, Client, TEST_TIMEOUT, backend_yaml};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// More than all socket buffers on the way hold.
const MORE_THAN_BUFFERS: usize = 24 << 20;

/// Both ends of a tunnel.
struct TunnelEnds {
    balancer: Balancer,
    client: TcpStream,
    backend: TcpStream,
}

/// Opens a tunnel through a balancer with these timeouts. Its bytes are those of no WebSocket, which makes no
/// difference to the balancer. The first bytes of both sides follow the heads at once.
async fn open_tunnel(timeouts: &str) -> TunnelEnds {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backends = backend_yaml("a", &format!("http://{}", listener.local_addr().unwrap()), "");
    let balancer = Balancer::start(&backends, timeouts).await;
    let mut client = TcpStream::connect(balancer.address).await.unwrap();
    let head = Client::request_head("GET", "/openai/v1/realtime?model=gpt-4o", &UPGRADE_HEADERS);
    client.write_all((head + "from the client").as_bytes()).await.unwrap();
    let (mut backend, _) = listener.accept().await.unwrap();
    read_until(&mut backend, b"\r\n\r\n").await;
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    backend.write_all((head.to_owned() + "from the backend").as_bytes()).await.unwrap();
    assert!(read_until(&mut client, b"from the backend").await.starts_with(b"HTTP/1.1 101 "));
    read_until(&mut backend, b"from the client").await;
    TunnelEnds { balancer, client, backend }
}

async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(timeout(TEST_TIMEOUT, stream.read_u8()).await.unwrap().unwrap());
    }
    bytes
}

/// Reads until the other side has closed the connection.
async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = timeout(TEST_TIMEOUT, stream.read_to_end(&mut bytes)).await.expect("the tunnel stays open");
    bytes
}

async fn record(balancer: &Balancer) -> Value {
    let record = balancer.wait_for_records(1).await.remove(0);
    assert_eq!((&record["status"], &record["operation"]), (&101.into(), &"realtime".into()), "{record:#}");
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_may_be_silent_until_one_side_has_closed_its_direction() {
    const IDLE: Duration = Duration::from_secs(1);
    let mut ends = open_tunnel("timeouts: { idle: 1s, request_body: 100ms, request_header: 100ms }").await;
    // A user who says nothing for a while does not lose the session.
    tokio::time::sleep(2 * IDLE).await;
    ends.backend.write_all(b"x").await.unwrap();
    assert_eq!(ends.client.read_u8().await.unwrap(), b'x');
    ends.backend.shutdown().await.unwrap();
    let closed_at = Instant::now();
    assert_eq!(read_to_end(&mut ends.client).await, b"");
    // The client does not close its own direction, so the balancer does.
    assert_eq!(read_to_end(&mut ends.backend).await, b"");
    assert!(closed_at.elapsed() >= IDLE - Duration::from_millis(100), "{:?}", closed_at.elapsed());
    let record = record(&ends.balancer).await;
    assert_eq!(
        (&record["outcome"], &record["response_bytes"]),
        (&"answered".into(), &17.into()),
        "{record:#}"
    );
    let states = ends.balancer.backend_states().await;
    assert_eq!(states, [("a".to_owned(), "healthy".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_of_a_tunnel_may_close_its_direction_first() {
    let mut ends = open_tunnel("").await;
    ends.client.write_all(b"last words").await.unwrap();
    ends.client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut ends.backend).await, b"last words");
    ends.backend.write_all(b"and their answer").await.unwrap();
    drop(ends.backend);
    assert_eq!(read_to_end(&mut ends.client).await, b"and their answer");
    assert_eq!(record(&ends.balancer).await["outcome"], "answered");

    let mut ends = open_tunnel("").await;
    ends.backend.write_all(b"last words").await.unwrap();
    ends.backend.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut ends.client).await, b"last words");
    ends.client.write_all(b"and their answer").await.unwrap();
    drop(ends.client);
    assert_eq!(read_to_end(&mut ends.backend).await, b"and their answer");
    assert_eq!(record(&ends.balancer).await["outcome"], "answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_directions_of_a_tunnel_do_not_wait_for_each_other() {
    let TunnelEnds { balancer, mut client, backend } = open_tunnel("").await;
    let (mut from_client, mut to_client) = backend.into_split();
    let written = tokio::spawn(async move { to_client.write_all(&vec![b'b'; MORE_THAN_BUFFERS]).await });
    let received = tokio::spawn(async move {
        let mut bytes = vec![0; MORE_THAN_BUFFERS];
        from_client.read_exact(&mut bytes).await.unwrap();
        bytes
    });
    // The client reads only when it has written everything.
    timeout(TEST_TIMEOUT, client.write_all(&vec![b'c'; MORE_THAN_BUFFERS])).await.unwrap().unwrap();
    assert!(received.await.unwrap().iter().all(|byte| *byte == b'c'));
    let mut bytes = vec![0; MORE_THAN_BUFFERS];
    timeout(TEST_TIMEOUT, client.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert!(bytes.iter().all(|byte| *byte == b'b'));
    written.await.unwrap().unwrap();
    drop(client);
    assert_eq!(record(&balancer).await["outcome"], "answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_does_not_read_ends_the_tunnel_and_the_record_says_which() {
    let mut ends = open_tunnel("timeouts: { idle: 500ms }").await;
    let _ = timeout(TEST_TIMEOUT, ends.client.write_all(&vec![b'x'; MORE_THAN_BUFFERS])).await.unwrap();
    let record_of_backend = record(&ends.balancer).await;
    assert_eq!(record_of_backend["outcome"], "failed", "{record_of_backend:#}");

    let mut ends = open_tunnel("timeouts: { idle: 500ms }").await;
    let _ = timeout(TEST_TIMEOUT, ends.backend.write_all(&vec![b'x'; MORE_THAN_BUFFERS])).await.unwrap();
    assert_eq!(record(&ends.balancer).await["outcome"], "client_gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_whose_client_or_backend_is_lost_says_so() {
    let ends = open_tunnel("").await;
    rustix::net::sockopt::set_socket_linger(&ends.client, Some(Duration::ZERO)).unwrap();
    drop(ends.client);
    assert_eq!(record(&ends.balancer).await["outcome"], "client_gone");

    let mut ends = open_tunnel("").await;
    rustix::net::sockopt::set_socket_linger(&ends.backend, Some(Duration::ZERO)).unwrap();
    drop(ends.backend);
    assert_eq!(read_to_end(&mut ends.client).await, b"");
    assert_eq!(record(&ends.balancer).await["outcome"], "failed");
}
