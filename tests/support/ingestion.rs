//! A simulated Logs Ingestion API with its token endpoint. It enforces the rules of the real one: a
//! valid token, gzip, a JSON array, and at most one megabyte a call.

use std::collections::HashSet;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const COLLECTION_RULE: &str = "dcr-0123456789abcdef0123456789abcdef";
pub const CLIENT_SECRET: &str = "the secret/of+the app";
const MAX_CALL_BYTES: usize = 1_000_000;

/// How the simulated service behaves.
#[derive(Clone, Debug)]
pub enum IngestionBehaviour {
    Normal,
    /// Responds with this status to every call, and with this `Retry-After`.
    RespondsWith(u16, Option<&'static str>),
    /// Responds with 400 to calls that contain this text.
    RejectsRowsContaining(&'static str),
    /// Responds with 413 to calls with more rows than this.
    AcceptsAtMostRows(usize),
    /// Reads calls and never responds.
    NeverResponds,
}

#[derive(Default)]
struct IngestionState {
    behaviour: Option<IngestionBehaviour>,
    valid_tokens: HashSet<String>,
    issued_tokens: usize,
    calls: usize,
    call_times: Vec<Instant>,
    largest_call_bytes: usize,
    rows: Vec<Value>,
    unexpected_requests: Vec<String>,
    /// Whether the token endpoint responds with 401.
    rejects_token_requests: bool,
}

/// The running service.
#[derive(Clone)]
pub struct LogIngestionService {
    pub address: SocketAddr,
    state: Arc<Mutex<IngestionState>>,
}

impl LogIngestionService {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Self { address, state: Arc::default() };
        let server = service.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        service
    }

    /// The `log_analytics` entry of a `record` block.
    pub fn log_analytics_yaml(&self) -> String {
        let address = self.address;
        format!(
            "log_analytics: {{ endpoint: 'http://{address}', rule: {COLLECTION_RULE}, stream: Custom-AoaiExchanges, credential: \
             {{ entra: {{ client_secret: {{ tenant: contoso, client_id: app, secret: '{CLIENT_SECRET}' }}, authority: 'http://{address}' }} }} }}"
        )
    }

    pub fn set_behaviour(&self, behaviour: IngestionBehaviour) {
        self.state.lock().unwrap().behaviour = Some(behaviour);
    }

    pub fn reject_token_requests(&self, rejects: bool) {
        self.state.lock().unwrap().rejects_token_requests = rejects;
    }

    /// Makes all tokens issued so far invalid.
    pub fn revoke_tokens(&self) {
        self.state.lock().unwrap().valid_tokens.clear();
    }

    pub fn rows(&self) -> Vec<Value> {
        self.state.lock().unwrap().rows.clone()
    }

    pub fn row_count(&self) -> usize {
        self.state.lock().unwrap().rows.len()
    }

    /// The number of calls, the number of issued tokens, and the uncompressed size of the largest
    /// accepted call.
    pub fn call_statistics(&self) -> (usize, usize, usize) {
        let state = self.state.lock().unwrap();
        (state.calls, state.issued_tokens, state.largest_call_bytes)
    }

    /// When each call arrived.
    pub fn call_times(&self) -> Vec<Instant> {
        self.state.lock().unwrap().call_times.clone()
    }

    /// Descriptions of calls that the real service would not understand.
    pub fn unexpected_requests(&self) -> Vec<String> {
        self.state.lock().unwrap().unexpected_requests.clone()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            let Some(end) = super::client::find_bytes(&bytes, b"\r\n\r\n") else {
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
            let (status, extra_headers, body_text) = self.respond(&head, &body);
            if status == 0 {
                return std::future::pending().await;
            }
            let length = body_text.len();
            let response = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra_headers}Content-Length: {length}\r\n\r\n{body_text}"
            );
            if stream.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn respond(&self, head: &str, body: &[u8]) -> (u16, String, String) {
        let mut state = self.state.lock().unwrap();
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let plain =
            |status: u16| (status, String::new(), format!("{{\"error\":{{\"code\":\"E{status}\"}}}}"));
        if target == "/contoso/oauth2/v2.0/token" {
            let form = String::from_utf8_lossy(body);
            let expected_form = "grant_type=client_credentials&client_id=app&scope=https%3A%2F%2Fmonitor.azure.com%2F.default\
                        &client_secret=the%20secret%2Fof%2Bthe%20app";
            if state.rejects_token_requests || form != expected_form {
                return (
                    401,
                    String::new(),
                    r#"{"error":"invalid_client","error_description":"no"}"#.to_owned(),
                );
            }
            state.issued_tokens += 1;
            let token = format!("token-{}", state.issued_tokens);
            state.valid_tokens.insert(token.clone());
            return (
                200,
                String::new(),
                format!(r#"{{"token_type":"Bearer","expires_in":3599,"access_token":"{token}"}}"#),
            );
        }
        state.calls += 1;
        state.call_times.push(Instant::now());
        if matches!(state.behaviour, Some(IngestionBehaviour::NeverResponds)) {
            return plain(0);
        }
        if target
            != format!(
                "/dataCollectionRules/{COLLECTION_RULE}/streams/Custom-AoaiExchanges?api-version=2023-01-01"
            )
        {
            state.unexpected_requests.push(target);
            return plain(404);
        }
        let token = header(head, "authorization").unwrap_or_default();
        if !token.strip_prefix("Bearer ").is_some_and(|token| state.valid_tokens.contains(token)) {
            return plain(401);
        }
        if let Some(IngestionBehaviour::RespondsWith(status, retry_after)) = state.behaviour {
            let extra_headers =
                retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            return (status, extra_headers, "{}".to_owned());
        }
        let is_gzip = header(head, "content-encoding") == Some("gzip".to_owned());
        let mut text = String::new();
        if !is_gzip || flate2::read::GzDecoder::new(body).read_to_string(&mut text).is_err() {
            state.unexpected_requests.push("no gzip".to_owned());
            return plain(400);
        }
        if body.len() > MAX_CALL_BYTES || text.len() > MAX_CALL_BYTES {
            return plain(413);
        }
        let Ok(Value::Array(rows)) = serde_json::from_str::<Value>(&text) else {
            state.unexpected_requests.push(text);
            return plain(400);
        };
        match state.behaviour {
            Some(IngestionBehaviour::RejectsRowsContaining(rejected_text))
                if text.contains(rejected_text) =>
            {
                return plain(400);
            }
            Some(IngestionBehaviour::AcceptsAtMostRows(max_rows)) if rows.len() > max_rows => {
                return plain(413);
            }
            _ => {}
        }
        state.largest_call_bytes = state.largest_call_bytes.max(text.len());
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
