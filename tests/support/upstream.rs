//! An upstream that responds with exactly the bytes a test gives it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A piece of a script that stands for a pause of 100 ms.
pub const PAUSE_100_MS: &[u8] = b"\0pause";

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct RawRequest {
    pub head: String,
    pub body: Vec<u8>,
}

/// A complete response with these further headers, one per line.
pub fn complete_response(status: u16, headers: &str, body: &str) -> Vec<Vec<u8>> {
    let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    vec![(head + body).into()]
}

/// A running upstream and the requests that it has received.
pub struct ScriptedUpstream {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<RawRequest>>>,
}

impl ScriptedUpstream {
    /// Starts an upstream that writes the pieces returned by `script`, one millisecond apart, and then
    /// closes the connection.
    pub async fn start(script: impl Fn(&RawRequest) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (received, script) = (Arc::clone(&requests), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (received, script) = (Arc::clone(&received), Arc::clone(&script));
                stream.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    let Some(request) = read_request(&mut stream).await else { return };
                    received.lock().unwrap().push(request.clone());
                    for piece in script(&request) {
                        if piece == PAUSE_100_MS {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                        if stream.write_all(&piece).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                });
            }
        });
        Self { address, requests }
    }

    pub fn requests(&self) -> Vec<RawRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Clears the list of received requests.
    pub fn forget_requests(&self) {
        self.requests.lock().unwrap().clear();
    }

    /// The YAML entry of `backends` for this upstream.
    pub fn backend_yaml(&self, name: &str) -> String {
        super::backend_yaml(name, &format!("http://{}", self.address), "")
    }
}

/// Reads a request; `None` if the connection ended first.
pub async fn read_request(stream: &mut tokio::net::TcpStream) -> Option<RawRequest> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = vec![0; 16 * 1024];
        let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&chunk[..read]);
        let Some(end) = super::client::find_bytes(&bytes, b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
        });
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            return Some(RawRequest { head, body: bytes[end + 4..].to_vec() });
        }
    }
}
