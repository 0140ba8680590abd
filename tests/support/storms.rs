//! What one client may do to harm another: requests that backends reject, connections that say nothing or
//! nonsense, responses that are not read or broken off, uploads that stall.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::{CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, STREAM_BODY, sha256_hex};

/// The key of the client `storm`.
pub const STORM_KEY: &str = "key-of-storm";
/// The deployment that only the storm asks for.
pub const STORM_DEPLOYMENT: &str = "other";
const STORM_TARGET: &str = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
const LARGE_PROMPT_BYTES: usize = 40_000;
/// The ports of the storm's connections.
const PORTS: Range<u16> = 10_000..60_000;
static NEXT_PORT: AtomicUsize = AtomicUsize::new(0);
/// How long an upload takes at most until it stalls.
const UPLOAD_TIME: Duration = Duration::from_secs(1);

/// A kind of storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storm {
    /// Requests that backends reject, as [`STORM_DEPLOYMENT`]'s mood says.
    Rejected,
    /// Silent connections, heads that do not end, bytes that are no HTTP, wrong keys.
    Malformed,
    /// Streams that are not read, and streams that are broken off.
    Unread,
    /// Streams with large prompts that are broken off.
    LargePrompts,
    /// Uploads that stall shortly before their end.
    StalledUploads,
}

impl Storm {
    /// Does it once. What is returned is to be kept for a while.
    pub async fn act(self, address: SocketAddr) -> Vec<Option<Client>> {
        match self {
            Self::Rejected => {
                exchange(address, &request(STORM_TARGET, CHAT_BODY)).await;
                Vec::new()
            }
            Self::Malformed => {
                let silent = send_from_elsewhere(address, b"").await;
                let unfinished = b"POST /openai/v1/chat/completions HTTP/1.1\r\nA: ";
                let unfinished = send_from_elsewhere(address, unfinished).await;
                let _ = send_from_elsewhere(address, b"\x16\x03\x01 no TLS here\r\n\r\n").await;
                exchange(address, &request("/openai/..%2f", CHAT_BODY)).await;
                let wrong_key = Client::request_head("GET", "/openai/models", &[("api-key", "wrong")]);
                exchange(address, wrong_key.as_bytes()).await;
                vec![silent, unfinished]
            }
            Self::Unread => {
                let unread = send_from_elsewhere(address, &request(STORM_TARGET, STREAM_BODY)).await;
                exchange(address, &request(STORM_TARGET, STREAM_BODY)).await;
                vec![unread]
            }
            Self::LargePrompts => {
                let body = STREAM_BODY.replace("hello", &"large prompt ".repeat(LARGE_PROMPT_BYTES / 13));
                exchange(address, &request(STORM_TARGET, &body)).await;
                Vec::new()
            }
            Self::StalledUploads => {
                let headers = [("api-key", STORM_KEY), ("Content-Length", "400000")];
                let head = Client::request_head("POST", CHAT_TARGET, &headers).into_bytes();
                let Some(mut client) = connect_from_elsewhere(address).await else { return Vec::new() };
                // The balancer need not read it while there is no memory for it.
                let upload = [head, vec![b' '; 390_000]].concat();
                let _ = timeout(UPLOAD_TIME, client.try_send(&upload)).await;
                vec![Some(client)]
            }
        }
    }
}

/// The `clients` block of the configuration, with `team-a` and `storm`.
pub fn storm_clients_yaml() -> String {
    let clients = [("team-a", CLIENT_KEY), ("storm", STORM_KEY)]
        .map(|(name, key)| format!("  - name: {name}\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex(key)));
    format!("clients:\n{}", clients.concat())
}

/// Sends these bytes on a connection of another address than that of the other client.
async fn send_from_elsewhere(address: SocketAddr, bytes: &[u8]) -> Option<Client> {
    let mut client = connect_from_elsewhere(address).await?;
    client.try_send(bytes).await.then_some(client)
}

async fn connect_from_elsewhere(address: SocketAddr) -> Option<Client> {
    // Ports in turn: to search for a free one takes the kernel longer the more connections have just ended.
    for _ in 0..PORTS.len() {
        let turn = NEXT_PORT.fetch_add(1, Ordering::Relaxed) % PORTS.len();
        let port = PORTS.start + u16::try_from(turn).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        if socket.bind(SocketAddr::from(([127, 0, 0, 2], port))).is_err() {
            continue;
        }
        match socket.connect(address).await {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
            connected => return Some(Client::from_stream(connected.ok()?)),
        }
    }
    None
}

fn request(target: &str, body: &str) -> Vec<u8> {
    let headers = [("api-key", STORM_KEY), ("Content-Length", &body.len().to_string())];
    (Client::request_head("POST", target, &headers) + body).into_bytes()
}

/// Sends these bytes, reads the head of the response and closes the connection.
async fn exchange(address: SocketAddr, bytes: &[u8]) {
    if let Some(mut client) = send_from_elsewhere(address, bytes).await {
        let _ = client.read_response_head().await;
    }
}
