//! The simulated endpoint over real sockets, with a client that takes nothing for granted.

mod basics;
mod faults;
mod state;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Kind, Mood, Resource, Simulator};

const CHAT: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
const HELLO: &str = r#"{"messages":[{"role":"user","content":"hello there"}]}"#;
const STREAM: &str = r#"{"stream":true,"messages":[{"role":"user","content":"hello there"}]}"#;
const PATIENCE: Duration = Duration::from_secs(5);

/// A resource called `east` with key `k`, a chat and an embeddings deployment without limits.
fn east() -> Resource {
    Resource::new("east")
        .key("k")
        .token("eyJgood")
        .deployment("gpt-4o", "gpt-4o", Kind::Unlimited)
        .deployment("embed", "text-embedding-3-small", Kind::Unlimited)
}

async fn started(resource: Resource) -> Simulator {
    Simulator::start(vec![resource]).await.unwrap()
}

async fn in_mood(mood: Mood) -> Simulator {
    started(east().mood(mood)).await
}

/// A request head and body with the key of `east`.
fn post(target: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: x\r\napi-key: k\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn fetch(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: x\r\napi-key: k\r\n\r\n")
}

/// A connection that is read exactly as HTTP/1.1 says.
struct Client {
    socket: TcpStream,
    ahead: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// The body ended as its framing says; `false` when the connection ended first.
    whole: bool,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (own, value) = line.split_once(": ")?;
            own.eq_ignore_ascii_case(name).then_some(value)
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

    fn types(&self) -> Vec<String> {
        self.events().iter().map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The text of a chat stream.
    fn said(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect()
    }
}

impl Client {
    async fn to(address: SocketAddr) -> Self {
        Self { socket: TcpStream::connect(address).await.unwrap(), ahead: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn ask(&mut self, request: impl AsRef<[u8]>) -> Reply {
        self.send(request).await;
        self.reply().await.unwrap()
    }

    /// The next answer, or `None` when the connection ends before its head.
    async fn reply(&mut self) -> Option<Reply> {
        tokio::time::timeout(PATIENCE, self.read_reply()).await.expect("no answer in time")
    }

    async fn read_reply(&mut self) -> Option<Reply> {
        let end = loop {
            match find(&self.ahead, b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.more().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8(self.ahead.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut reply = Reply { status, head, body: Vec::new(), whole: true };
        if let Some(length) = reply.header("content-length").map(|text| text.parse::<usize>().unwrap()) {
            reply.whole = self.upto(length).await;
            let length = length.min(self.ahead.len());
            reply.body = self.ahead.drain(..length).collect();
        } else if reply.header("transfer-encoding") == Some("chunked") {
            reply.whole = self.chunks(&mut reply.body).await;
        } else if status >= 200 {
            while self.more().await {}
            reply.body = std::mem::take(&mut self.ahead);
        }
        Some(reply)
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let end = loop {
                match find(&self.ahead, b"\r\n") {
                    Some(at) => break at,
                    None if self.more().await => {}
                    None => return false,
                }
            };
            let line: Vec<u8> = self.ahead.drain(..end + 2).collect();
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            let is_whole = self.upto(size + 2).await;
            let got = size.min(self.ahead.len());
            body.extend(self.ahead.drain(..got));
            if !is_whole {
                return false;
            }
            assert_eq!(self.ahead.drain(..2).collect::<Vec<u8>>(), b"\r\n");
            if size == 0 {
                return true;
            }
        }
    }

    async fn upto(&mut self, count: usize) -> bool {
        while self.ahead.len() < count {
            if !self.more().await {
                return false;
            }
        }
        true
    }

    async fn more(&mut self) -> bool {
        matches!(self.socket.read_buf(&mut self.ahead).await, Ok(1..))
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

async fn one(simulator: &Simulator, request: impl AsRef<[u8]>) -> Reply {
    Client::to(simulator.address("east")).await.ask(request).await
}
