//! An HTTP/1.1 client without any convenience: it sends the bytes it is given, and shows interim
//! responses, chunks and truncated bodies as they arrive.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{CHAT_TARGET, CLIENT_KEY, TEST_TIMEOUT};

/// A client connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A response as it was received.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended as its `content-length` or chunks say.
    pub is_complete: bool,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn error_code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.unwrap()
    }

    pub async fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// A client on a connection that the test has made in its own way.
    pub fn from_stream(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        timeout(TEST_TIMEOUT, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    /// Sends bytes; returns whether the other side still accepted them.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        matches!(timeout(TEST_TIMEOUT, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    /// Sends a chat request of the client `team-a` with this body, and reads nothing.
    pub async fn send_chat(&mut self, body: &str) {
        let length = body.len().to_string();
        let headers = [("api-key", CLIENT_KEY), ("Content-Length", &length)];
        let request = Self::request_head("POST", CHAT_TARGET, &headers) + body;
        self.send(request.as_bytes()).await;
    }

    pub fn request_head(method: &str, target: &str, headers: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += "Host: balancer.test\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\n"
    }

    pub async fn get(&mut self, target: &str, headers: &[(&str, &str)]) -> Response {
        self.request("GET", target, headers, None).await
    }

    /// Whether a GET is answered with 200. No answer counts as no.
    pub async fn get_is_ok(&mut self, target: &str) -> bool {
        let is_sent =
            self.try_send(Self::request_head("GET", target, &[("Host", "localhost")]).as_bytes()).await;
        is_sent && self.read_response_head().await.is_some_and(|response| response.status == 200)
    }

    pub async fn post(&mut self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.request("POST", target, headers, Some(body)).await
    }

    /// Like [`Self::post`], but returns `None` if the connection ends.
    pub async fn try_post(
        &mut self,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Response> {
        let length = body.len().to_string();
        let headers = [headers, &[("Content-Length", length.as_str())]].concat();
        let request = [Self::request_head("POST", target, &headers).as_bytes(), body].concat();
        if !self.try_send(&request).await {
            return None;
        }
        let mut response = self.read_response_head().await?;
        self.read_body(&mut response).await;
        Some(response)
    }

    pub async fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Response {
        let length = body.map(|body| body.len().to_string());
        let mut headers = headers.to_vec();
        if let Some(length) = &length {
            headers.push(("Content-Length", length));
        }
        self.send(Self::request_head(method, target, &headers).as_bytes()).await;
        if let Some(body) = body {
            self.try_send(body).await;
        }
        self.read_response_to(method).await
    }

    /// Reads a final response to a GET or POST; interim responses are skipped.
    pub async fn read_response(&mut self) -> Response {
        self.read_response_to("GET").await
    }

    pub async fn read_response_to(&mut self, method: &str) -> Response {
        loop {
            let mut response =
                self.read_response_head().await.expect("the connection ended before a response head");
            if (100..200).contains(&response.status) && response.status != 101 {
                continue;
            }
            if method != "HEAD" && !matches!(response.status, 101 | 204 | 304) {
                self.read_body(&mut response).await;
            }
            return response;
        }
    }

    /// Reads one response head, interim ones included; `None` if the connection ended instead.
    pub async fn read_response_head(&mut self) -> Option<Response> {
        let end = loop {
            if let Some(at) = find_bytes(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more().await {
                return None;
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Some(Response { status, headers, body: Vec::new(), is_complete: true })
    }

    async fn read_body(&mut self, response: &mut Response) {
        if response.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.read_chunk().await {
                if chunk.is_empty() {
                    return;
                }
                response.body.extend(chunk);
            }
            response.is_complete = false;
        } else if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length && self.read_more().await {}
            response.is_complete = self.buffer.len() >= length;
            let length = length.min(self.buffer.len());
            response.body = self.buffer.drain(..length).collect();
        } else {
            while self.read_more().await {}
            response.body = std::mem::take(&mut self.buffer);
        }
    }

    /// Reads the next chunk of a chunked body, empty at its end; `None` if the connection ended.
    pub async fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let line = loop {
            if let Some(at) = find_bytes(&self.buffer, b"\r\n") {
                break at;
            }
            if !self.read_more().await {
                return None;
            }
        };
        let size = std::str::from_utf8(&self.buffer[..line]).unwrap().split(';').next().unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let end = line + 2 + size + 2;
        while self.buffer.len() < end {
            if !self.read_more().await {
                return None;
            }
        }
        let framed: Vec<u8> = self.buffer.drain(..end).collect();
        Some(framed[line + 2..line + 2 + size].to_vec())
    }

    /// Reads some bytes; returns false at the end or after a reset.
    pub async fn read_more(&mut self) -> bool {
        let mut chunk = vec![0; 64 * 1024];
        match timeout(TEST_TIMEOUT, self.stream.read(&mut chunk))
            .await
            .expect("timed out waiting for bytes from the balancer")
        {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                true
            }
        }
    }

    /// Reads until this finds what it returns, with its length, at the start of the bytes; `None` if the connection
    /// ended first. Nothing is lost if this is cancelled.
    pub async fn try_read_parsed<T>(&mut self, parse: impl Fn(&[u8]) -> Option<(T, usize)>) -> Option<T> {
        loop {
            if let Some((parsed, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return Some(parsed);
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    /// Resets the connection.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }

    /// Reads on; returns true if the other side has closed the connection.
    pub async fn is_closed(&mut self) -> bool {
        !self.read_more().await
    }
}

pub fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
