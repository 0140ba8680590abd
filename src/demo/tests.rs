//! The simulator over real sockets, with a client that checks the framing of each response.

mod basics;
mod batches;
mod conversations;
mod faults;
mod files;
mod read_lag;
mod realtime;
mod references;
mod state;
mod structured_output;
mod websocket_client;
mod websocket_turns;
mod websockets;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DeploymentKind, Mood, ResponseTiming, SimulatedResource, Simulator};

const CHAT_TARGET: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
const CHAT_BODY: &str = r#"{"messages":[{"role":"user","content":"hello there"}]}"#;
const STREAMING_CHAT_BODY: &str = r#"{"stream":true,"messages":[{"role":"user","content":"hello there"}]}"#;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A resource called `east` with the API key `k`, and a chat and an embeddings deployment without limits.
fn east_resource() -> SimulatedResource {
    SimulatedResource::new("east")
        .with_api_key("k")
        .with_entra_token("eyJgood")
        .with_deployment("gpt-4o", "gpt-4o", DeploymentKind::Unlimited)
        .with_deployment("embed", "text-embedding-3-small", DeploymentKind::Unlimited)
}

async fn start_simulator(resource: SimulatedResource) -> Simulator {
    Simulator::start(vec![resource]).await.unwrap()
}

async fn start_simulator_with_mood(mood: Mood) -> Simulator {
    start_simulator(east_resource().with_mood(mood)).await
}

/// A POST with the API key of `east`.
fn post_request(target: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: x\r\napi-key: k\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A request without a body, with the API key of `east`.
fn bodiless_request(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: x\r\napi-key: k\r\n\r\n")
}

/// A client connection that is read exactly as HTTP/1.1 demands.
struct TestClient {
    stream: TcpStream,
    /// Bytes that were read but not yet consumed.
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct TestResponse {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// Whether the body ended as its framing says, and not with the connection.
    is_complete: bool,
}

impl TestResponse {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(": ")?;
            known.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The JSON of every `data:` line but `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    fn event_types(&self) -> Vec<String> {
        self.events().iter().map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The text of a chat stream.
    fn chat_text(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect()
    }
}

impl TestClient {
    async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), buffer: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn round_trip(&mut self, request: impl AsRef<[u8]>) -> TestResponse {
        self.send(request).await;
        self.read_response().await.unwrap()
    }

    /// The next response, or `None` if the connection ends before its head.
    async fn read_response(&mut self) -> Option<TestResponse> {
        tokio::time::timeout(RESPONSE_TIMEOUT, self.read_response_untimed())
            .await
            .expect("no response in time")
    }

    async fn read_response_untimed(&mut self) -> Option<TestResponse> {
        let end = loop {
            match find_bytes(&self.buffer, b"\r\n\r\n") {
                Some(index) => break index + 4,
                None if self.read_more().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut response = TestResponse { status, head, body: Vec::new(), is_complete: true };
        if let Some(length) = response.header("content-length").map(|text| text.parse::<usize>().unwrap()) {
            response.is_complete = self.buffer_at_least(length).await;
            let length = length.min(self.buffer.len());
            response.body = self.buffer.drain(..length).collect();
        } else if response.header("transfer-encoding") == Some("chunked") {
            response.is_complete = self.read_chunks(&mut response.body).await;
        } else if status >= 200 {
            while self.read_more().await {}
            response.body = std::mem::take(&mut self.buffer);
        }
        Some(response)
    }

    async fn read_chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let end = loop {
                match find_bytes(&self.buffer, b"\r\n") {
                    Some(index) => break index,
                    None if self.read_more().await => {}
                    None => return false,
                }
            };
            let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            let is_complete = self.buffer_at_least(size + 2).await;
            let available = size.min(self.buffer.len());
            body.extend(self.buffer.drain(..available));
            if !is_complete {
                return false;
            }
            assert_eq!(self.buffer.drain(..2).collect::<Vec<u8>>(), b"\r\n");
            if size == 0 {
                return true;
            }
        }
    }

    /// Reads until the buffer has this many bytes; `false` if the connection ends first.
    async fn buffer_at_least(&mut self, count: usize) -> bool {
        while self.buffer.len() < count {
            if !self.read_more().await {
                return false;
            }
        }
        true
    }

    /// `false` if the connection has ended.
    async fn read_more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }
}

fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Two resources with the same keys and deployments: `east` and `west`.
async fn start_two_resources() -> Simulator {
    let west = SimulatedResource { name: "west".to_owned(), ..east_resource() };
    Simulator::start(vec![east_resource(), west]).await.unwrap()
}

/// Sends one request to a resource on a new connection.
async fn send_to(simulator: &Simulator, name: &str, request: impl AsRef<[u8]>) -> TestResponse {
    TestClient::connect(simulator.address(name)).await.round_trip(request).await
}

async fn get(simulator: &Simulator, name: &str, path: &str) -> TestResponse {
    send_to(simulator, name, bodiless_request("GET", &format!("/openai/v1{path}"))).await
}

async fn delete(simulator: &Simulator, name: &str, path: &str) -> TestResponse {
    send_to(simulator, name, bodiless_request("DELETE", &format!("/openai/v1{path}"))).await
}

async fn post(simulator: &Simulator, name: &str, path: &str, body: &Value) -> TestResponse {
    send_to(simulator, name, post_request(&format!("/openai/v1{path}"), &body.to_string())).await
}

/// A response of `gpt-4o` with these parameters.
async fn respond(simulator: &Simulator, name: &str, parameters: Value) -> TestResponse {
    let mut body = json!({"model": "gpt-4o"});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    post(simulator, name, "/responses", &body).await
}

/// Uploads a file, and returns its id.
async fn upload(simulator: &Simulator, name: &str, purpose: &str, filename: &str, content: &str) -> String {
    let uploaded = send_to(simulator, name, upload_request(purpose, filename, content)).await;
    assert_eq!(uploaded.status, 201, "{uploaded:?}");
    uploaded.json()["id"].as_str().unwrap().to_owned()
}

fn upload_request(purpose: &str, filename: &str, content: &str) -> String {
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n--b\r\nContent-Disposition: form-data; \
         name=\"file\"; filename=\"{filename}\"\r\nContent-Type: application/octet-stream\r\n\r\n{content}\r\n--b--\r\n"
    );
    multipart_request("/openai/v1/files", &form)
}

/// A POST of a form with the boundary `b`.
fn multipart_request(target: &str, form: &str) -> String {
    post_request(target, form).replacen(
        "api-key",
        "Content-Type: multipart/form-data; boundary=b\r\napi-key",
        1,
    )
}

/// The text of the message that a response ends with.
fn message_text(response: &Value) -> &str {
    let item = response["output"].as_array().unwrap().last().unwrap();
    item["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no message: {response}"))
}

/// Asks until the object at this path has one of these statuses. Returns the object.
async fn wait_for_status(simulator: &Simulator, path: &str, statuses: &[&str]) -> Value {
    let deadline = Instant::now() + RESPONSE_TIMEOUT;
    loop {
        let object = get(simulator, "east", path).await.json();
        if statuses.contains(&object["status"].as_str().unwrap_or_default()) {
            return object;
        }
        assert!(Instant::now() < deadline, "still not {statuses:?}: {object}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends one request to `east` on a new connection.
async fn send_once(simulator: &Simulator, request: impl AsRef<[u8]>) -> TestResponse {
    TestClient::connect(simulator.address("east")).await.round_trip(request).await
}
