//! A simulated Logs Ingestion API with its token endpoint, which enforces the limits of the real
//! one: a valid token, gzip, an array, a megabyte a call.

use std::collections::HashSet;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const RULE: &str = "dcr-0123456789abcdef0123456789abcdef";
pub const SECRET: &str = "the secret/of+the app";
const LIMIT: usize = 1_000_000;

/// How it behaves.
#[derive(Clone, Debug)]
pub enum Temper {
    Good,
    /// This status for every call, with this `Retry-After`.
    Says(u16, Option<&'static str>),
    /// 400 for calls that have a row with this text in it.
    Refuses(&'static str),
    /// 413 for calls of more rows than this.
    AtMost(usize),
    /// Takes calls and does not answer.
    Mute,
}

#[derive(Default)]
struct State {
    temper: Option<Temper>,
    tokens: HashSet<String>,
    issued: usize,
    calls: usize,
    times: Vec<Instant>,
    largest: usize,
    rows: Vec<Value>,
    strange: Vec<String>,
    /// Of the token endpoint.
    refuses_tokens: bool,
}

#[derive(Clone)]
pub struct Ingestion {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Ingestion {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self { address, state: Arc::default() };
        let server = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        this
    }

    /// The `log_analytics` key of a `record` block.
    pub fn config(&self) -> String {
        let address = self.address;
        format!(
            "log_analytics: {{ endpoint: 'http://{address}', rule: {RULE}, stream: Custom-AoaiExchanges, credential: \
             {{ entra: {{ client_secret: {{ tenant: contoso, client_id: app, secret: '{SECRET}' }}, authority: 'http://{address}' }} }} }}"
        )
    }

    pub fn set(&self, temper: Temper) {
        self.state.lock().unwrap().temper = Some(temper);
    }

    pub fn refuse_tokens(&self, refuses: bool) {
        self.state.lock().unwrap().refuses_tokens = refuses;
    }

    /// Tokens issued so far are no good any more.
    pub fn revoke(&self) {
        self.state.lock().unwrap().tokens.clear();
    }

    pub fn rows(&self) -> Vec<Value> {
        self.state.lock().unwrap().rows.clone()
    }

    pub fn count(&self) -> usize {
        self.state.lock().unwrap().rows.len()
    }

    /// Calls, tokens issued, and the bytes of the largest call that was taken.
    pub fn seen(&self) -> (usize, usize, usize) {
        let state = self.state.lock().unwrap();
        (state.calls, state.issued, state.largest)
    }

    /// When calls came.
    pub fn times(&self) -> Vec<Instant> {
        self.state.lock().unwrap().times.clone()
    }

    /// Requests that the real one would not understand.
    pub fn strange(&self) -> Vec<String> {
        self.state.lock().unwrap().strange.clone()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            let Some(end) = super::client::find(&bytes, b"\r\n\r\n") else {
                let mut chunk = vec![0; 64 * 1024];
                match stream.read(&mut chunk).await {
                    Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
                    _ => return,
                }
                continue;
            };
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length: usize = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            while bytes.len() < end + 4 + length {
                let mut chunk = vec![0; 64 * 1024];
                match stream.read(&mut chunk).await {
                    Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
                    _ => return,
                }
            }
            let body: Vec<u8> = bytes[end + 4..end + 4 + length].to_vec();
            bytes.drain(..end + 4 + length);
            let (status, more, answer) = self.answer(&head, &body);
            if status == 0 {
                return std::future::pending().await;
            }
            let length = answer.len();
            let reply = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n{answer}"
            );
            if stream.write_all(reply.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, head: &str, body: &[u8]) -> (u16, String, String) {
        let mut state = self.state.lock().unwrap();
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let plain =
            |status: u16| (status, String::new(), format!("{{\"error\":{{\"code\":\"E{status}\"}}}}"));
        if target == "/contoso/oauth2/v2.0/token" {
            let form = String::from_utf8_lossy(body);
            let good = "grant_type=client_credentials&client_id=app&scope=https%3A%2F%2Fmonitor.azure.com%2F.default\
                        &client_secret=the%20secret%2Fof%2Bthe%20app";
            if state.refuses_tokens || form != good {
                return (
                    401,
                    String::new(),
                    r#"{"error":"invalid_client","error_description":"no"}"#.to_owned(),
                );
            }
            state.issued += 1;
            let token = format!("token-{}", state.issued);
            state.tokens.insert(token.clone());
            return (
                200,
                String::new(),
                format!(r#"{{"token_type":"Bearer","expires_in":3599,"access_token":"{token}"}}"#),
            );
        }
        state.calls += 1;
        state.times.push(Instant::now());
        if matches!(state.temper, Some(Temper::Mute)) {
            return plain(0);
        }
        if target
            != format!("/dataCollectionRules/{RULE}/streams/Custom-AoaiExchanges?api-version=2023-01-01")
        {
            state.strange.push(target);
            return plain(404);
        }
        let token = header(head, "authorization").unwrap_or_default();
        if !token.strip_prefix("Bearer ").is_some_and(|token| state.tokens.contains(token)) {
            return plain(401);
        }
        if let Some(Temper::Says(status, retry_after)) = state.temper {
            let more = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            return (status, more, "{}".to_owned());
        }
        let is_gzip = header(head, "content-encoding") == Some("gzip".to_owned());
        let mut text = String::new();
        if !is_gzip || flate2::read::GzDecoder::new(body).read_to_string(&mut text).is_err() {
            state.strange.push("no gzip".to_owned());
            return plain(400);
        }
        if body.len() > LIMIT || text.len() > LIMIT {
            return plain(413);
        }
        let Ok(Value::Array(rows)) = serde_json::from_str::<Value>(&text) else {
            state.strange.push(text);
            return plain(400);
        };
        match state.temper {
            Some(Temper::Refuses(poison)) if text.contains(poison) => return plain(400),
            Some(Temper::AtMost(most)) if rows.len() > most => return plain(413),
            _ => {}
        }
        state.largest = state.largest.max(text.len());
        state.rows.extend(rows);
        (204, String::new(), String::new())
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
